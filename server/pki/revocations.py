"""Revocation lists: built, and verified before anything installs one. Pure.

The broker refuses everyone if its list is expired or of another authority, and admits the revoked
if it cannot read it. So no file reaches it that `verify_crl` or `verify_crls` has not passed.

Verification, in this order; the same numbers stand in the code:

1. It is one list in PEM, whole, byte for byte as we write one.
2. Its issuer is the authority, by name and by key.
3. The authority signed it.
4. It is valid now, and for six days more.
5. It holds every serial that it must.
6. Its number is higher than that of the list before.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from server.pki.profile import revocation_list
from server.pki.signer import Signer

CRL_LIFE = timedelta(days=7)
LEAST_LEFT = timedelta(days=6)
_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----\s*", re.DOTALL)


class CrlError(ValueError):
    """A revocation list that must not be installed; `rule` is the number it fails."""

    def __init__(self, rule: int, message: str) -> None:
        self.rule = rule
        super().__init__(message)


def build_crl(
    signer: Signer,
    serials: Iterable[int],
    now: datetime,
    *,
    life: timedelta = CRL_LIFE,
    previous: bytes | None = None,
) -> bytes:
    """Return the signed list (PEM); an empty one is valid too. `previous`: numbered above it."""
    number = int(now.timestamp() * 1000)
    if previous is not None:
        number = max(number, _number(_parsed(previous)) + 1)
    built = revocation_list(serials, signer=signer, now=now, life=life, number=number)
    return built.public_bytes(Encoding.PEM)


def verify_crl(
    pem: bytes,
    issuer: x509.Certificate,
    serials: Collection[int],
    now: datetime,
    *,
    previous: bytes | None = None,
) -> None:
    """Raise CrlError unless this list may be installed."""
    _verify(_parsed(pem), issuer, serials, now)  # 1-5
    if previous is not None and _number(_parsed(pem)) <= _number(_parsed(previous)):  # 6
        raise CrlError(6, "the list's number is not higher than that of the list before")


def verify_crls(
    pem: bytes, issuers: Sequence[x509.Certificate], serials: Collection[int], now: datetime
) -> None:
    """Raise CrlError unless the file holds one list for each authority, and no other."""
    blocks = split_crls(pem)
    if len(blocks) != len(issuers):
        raise CrlError(1, f"expected {len(issuers)} lists, one for each authority: {len(blocks)}")
    parsed = [_parsed(block) for block in blocks]
    for issuer in issuers:
        own = [crl for crl in parsed if crl.issuer == issuer.subject]
        if len(own) != 1:
            raise CrlError(2, f"expected one list of {issuer.subject.rfc4514_string()}")
        _verify(own[0], issuer, serials, now)


def split_crls(pem: bytes) -> list[bytes]:
    """Return the lists of a file, each as PEM. Raises CrlError for anything between them."""
    blocks = _BLOCK.findall(pem)
    if not blocks or b"".join(blocks) != pem:
        raise CrlError(1, "the file holds something else than revocation lists in PEM")
    return blocks


def listed_serials(pem: bytes) -> set[int]:
    """Return every serial on the file's lists. Raises CrlError."""
    return {entry.serial_number for block in split_crls(pem) for entry in _parsed(block)}


def own_serials(pem: bytes, issuers: Sequence[x509.Certificate]) -> set[int]:
    """Return the serials on those of the file's lists that one of the issuers signed.

    Raises CrlError if none is: such a file says nothing about who is revoked.
    """
    keys = [issuer.public_key() for issuer in issuers]
    own = [
        crl
        for crl in map(_parsed, split_crls(pem))
        for key in keys
        if isinstance(key, ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)
    ]
    if not own:
        raise CrlError(3, "none of the lists is of an authority of ours")
    return {entry.serial_number for crl in own for entry in crl}


def valid_until(pem: bytes) -> datetime:
    """Return when the first of the file's lists ends. Raises CrlError."""
    return min(_next_update(_parsed(block)) for block in split_crls(pem))


def _verify(
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    serials: Collection[int],
    now: datetime,
) -> None:
    key = issuer.public_key()
    if crl.issuer != issuer.subject or not isinstance(key, ec.EllipticCurvePublicKey):  # 2
        raise CrlError(2, f"the list is of {crl.issuer.rfc4514_string()}")
    if _authority_key(crl) != x509.SubjectKeyIdentifier.from_public_key(key).digest:  # 2
        raise CrlError(2, "the list is of an authority of the same name with another key")
    if not crl.is_signature_valid(key):  # 3
        raise CrlError(3, "the list's signature is not the authority's")
    if crl.last_update_utc > now:  # 4
        raise CrlError(4, f"the list is of the future: {crl.last_update_utc:%Y-%m-%d %H:%M}")
    if _next_update(crl) < now + LEAST_LEFT:  # 4
        raise CrlError(4, f"the list ends too soon: {_next_update(crl):%Y-%m-%d %H:%M}")
    missing = [s for s in serials if crl.get_revoked_certificate_by_serial_number(s) is None]
    if missing:  # 5
        raise CrlError(5, f"{len(missing)} revoked certificates are not on the list")


def _parsed(pem: bytes) -> x509.CertificateRevocationList:
    if len(split_crls(pem)) != 1:  # 1
        raise CrlError(1, "expected one list")
    try:
        crl = x509.load_pem_x509_crl(pem)
        _ = crl.extensions, crl.issuer, len(crl)  # parsed only when they are looked at
    except ValueError as error:
        raise CrlError(1, f"the list cannot be read: {error}") from error
    if crl.public_bytes(Encoding.PEM) != pem:
        raise CrlError(1, "the list is not written as we write it")  # OpenSSL may not read it
    return crl


def _authority_key(crl: x509.CertificateRevocationList) -> bytes | None:
    try:
        found = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return None
    return found.value.key_identifier


def _next_update(crl: x509.CertificateRevocationList) -> datetime:
    if crl.next_update_utc is None:
        raise CrlError(4, "the list does not say how long it is valid")
    return crl.next_update_utc


def _number(crl: x509.CertificateRevocationList) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound as error:
        raise CrlError(6, "the list has no number") from error
