"""TLS of the listener that devices enrol and renew at: a certificate is asked for, not demanded.

Decided here:
- Who shows a certificate must hold its key, and an authority of ours must have signed it, be it one
  that is gone: a device may come back from a long absence. Dates are not looked at. What such a
  certificate is worth, `renew` decides, by our records; enrolment does not look at it.
- A rollover needs no restart: each handshake looks whether the authority's list, or our own
  certificate, was replaced, and the next one is made with what is there now.
"""

import ssl
from pathlib import Path

import structlog
from aiohttp import web

from server.pki.files import LIST, AuthorityError

NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME

log = structlog.get_logger(__name__)


def listener_tls(pki: Path) -> ssl.SSLContext:
    """Return the listener's context. Raises AuthorityError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.options |= ssl.OP_NO_TICKET  # each connection proves its key anew
    context.num_tickets = 0
    seen = _stamp(pki)
    _load(context, pki)

    def look(_: object, __: str | None, ___: ssl.SSLContext) -> None:
        nonlocal seen
        try:
            now = _stamp(pki)
            if now != seen:
                _load(context, pki)
                seen = now
        except (OSError, AuthorityError) as error:  # half replaced: the next handshake looks again
            log.warning("certificates not read", error=str(error))

    context.sni_callback = look  # called without a name, too
    return context


def peer_certificate(request: web.Request) -> bytes | None:
    """Return the certificate (DER) whose key this connection has proved, or None."""
    if request.transport is None:
        return None
    tls = request.transport.get_extra_info("ssl_object")
    shown: bytes | None = None if tls is None else tls.getpeercert(binary_form=True)
    return shown


def _load(context: ssl.SSLContext, pki: Path) -> None:
    context.load_cert_chain(pki / "https.pem", pki / "https.key")
    anchors = sorted((pki / "authorities").glob("device-*.anchor.pem"))
    if not anchors:
        raise AuthorityError(f"{pki} holds no device authority")
    for path in anchors:
        context.load_verify_locations(path)


def _stamp(pki: Path) -> tuple[int, ...]:
    return tuple((pki / name).stat().st_mtime_ns for name in (LIST, "https.pem", "https.key"))
