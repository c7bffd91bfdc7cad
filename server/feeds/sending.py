"""How a change travels to a webhook: what is said, how it is signed, when it is tried again.

The form is that of Standard Webhooks (standardwebhooks.com, 1.0): `webhook-id` is the same at every
try of one change, so that who is told twice knows it; `webhook-timestamp` is the try's; and
`webhook-signature` is `v1,` and the base64 of HMAC-SHA-256 over `id.timestamp.body`.

Where a webhook may lead: to an address that anybody on the internet could ask, over TLS. What a
name resolves to is judged where the connection is made, after resolving, so neither a name that
leads inwards, nor one that changes between two questions, reaches anything of ours; nobody is
followed elsewhere (redirects).
"""

import base64
import hashlib
import hmac
import ipaddress
import secrets
from datetime import timedelta
from urllib.parse import urlsplit

import msgspec

from server.db.changes import AlertNote, Change, GapNote, IncidentNote, Kind, Revised
from server.errors import RefusedError

PREFIX = "whsec_"
FIRST_WAIT_S, MOST_WAIT_S = 20.0, 6 * 3600.0
TRIED_FOR = timedelta(days=3)
"""After this a delivery is dead: it is listed, and sent again when it is asked for."""
FAILING_FOR = timedelta(days=5)
"""A webhook at which nothing has arrived for so long is disabled."""
MOST_URL = 500
_INWARD = [
    ipaddress.ip_network(each)
    for each in (
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2001::/32",
        "::/96",
        "fec0::/10",
        "100.64.0.0/10",
    )
]  # what leads to an IPv4 address by another name, or to a carrier's own


class ChangeRow(msgspec.Struct, frozen=True):
    """A change; one of `revised`, `gap`, `alert` and `incident` says more, by its kind.

    `change` is its number for ever: who is told twice knows it by that.
    """

    change: str
    kind: Kind
    at: str
    site: str | None
    spot: str | None
    revised: Revised | None = None
    gap: GapNote | None = None
    alert: AlertNote | None = None
    incident: IncidentNote | None = None


class Message(msgspec.Struct, frozen=True):
    """The body of a delivery."""

    type: Kind
    timestamp: str
    data: ChangeRow


def change_row(change: Change) -> ChangeRow:
    """Return a change as it is told, in the feed and to webhooks."""
    detail = change.detail
    return ChangeRow(
        f"change-{change.id}",
        change.kind,
        change.at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        change.site,
        change.spot,
        revised=detail if isinstance(detail, Revised) else None,
        gap=detail if isinstance(detail, GapNote) else None,
        alert=detail if isinstance(detail, AlertNote) else None,
        incident=detail if isinstance(detail, IncidentNote) else None,
    )


def body_of(change: Change) -> bytes:
    """Return what is sent of a change: the same bytes at every try."""
    row = change_row(change)
    return msgspec.json.encode(Message(row.kind, row.at, row))


def new_secret() -> bytes:
    """Return a secret of 32 bytes."""
    return secrets.token_bytes(32)


def secret_text(secret: bytes) -> str:
    """Return a secret as it is shown, once."""
    return PREFIX + base64.b64encode(secret).decode()


def headers_of(name: str, *, secret: bytes, body: bytes, at_s: int) -> dict[str, str]:
    """Return the headers of one try."""
    signed = hmac.digest(secret, f"{name}.{at_s}.".encode() + body, hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "User-Agent": "Vestibule",
        "webhook-id": name,
        "webhook-timestamp": str(at_s),
        "webhook-signature": "v1," + base64.b64encode(signed).decode(),
    }


def wait_s(failures: int, chance: float) -> float:
    """Return how long to wait after so many failures; `chance` in [0, 1) spreads it by half."""
    whole = min(MOST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 30))
    return whole * (0.5 + chance)


def demand_address(url: str, *, inward: bool = False) -> None:
    """Raise RefusedError (bad_value) unless a webhook may lead there by its looks.

    `inward` allows plain HTTP and addresses of our own, for tests and demonstrations alone.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise AddressError(f"`url` is none: {error}") from error
    if len(url) > MOST_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise AddressError(f"`url` has at most {MOST_URL} visible ASCII characters")
    if parts.scheme != "https" and not (inward and parts.scheme == "http"):
        raise AddressError("`url` begins with https://")
    if not host or parts.username is not None or parts.fragment:
        raise AddressError("`url` names a host, and neither a user nor a fragment")
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        return
    if not inward and not is_outward(str(literal)):
        raise AddressError("`url` leads to an address that is not public")


class AddressError(RefusedError):
    """An address that no webhook may have."""

    parameter = "url"

    def __init__(self, message: str) -> None:
        super().__init__("bad_value", message)


def is_outward(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet could ask."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if any(found.version == each.version and found in each for each in _INWARD):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved
