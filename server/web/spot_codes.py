"""The code at a device: a spot's reference, signed. Pure.

`<spot>.<20 characters>`, HMAC-SHA-256 under a key of its own, cut to 100 bits, in base 32. It opens
one page about one spot and nothing else; whatever device stands there, the code stays true, so it
may be printed and stuck to the wall. Compared in constant time.
"""

import base64
import hmac
import re

from server.people.sealing import Seal

PURPOSE = "staff page"
_TOKEN = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,63})\.([a-z2-7]{20})")


def token(seal: Seal, spot: str) -> str:
    """Return what leads to a spot's page."""
    return f"{spot}.{_mark(seal, spot)}"


def spot_of(seal: Seal, text: str) -> str | None:
    """Return the spot that a token is of, None if we made none such."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        return None
    return match[1] if hmac.compare_digest(match[2], _mark(seal, match[1])) else None


def _mark(seal: Seal, spot: str) -> str:
    return base64.b32encode(seal.sign(PURPOSE, spot.encode()))[:20].decode().lower()
