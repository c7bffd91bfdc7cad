"""Codes: one-time ways to a survey, a stock of which a kiosk holds, to show each once.

A stock is a document in canonical form (`content`), of one device:

    {"format": 1, "device": "fk-…", "offer": "offer-…", "address": "https://shop.example/s",
     "until": UTC in ms, "codes": [[TOKEN, TYPED], ...]}

A visitor scans a QR code of the address, a slash and TOKEN; or opens the address and types TYPED
there. From `until` on none of them is shown any more.

It travels in an envelope (`envelope`) of the kind "stock".
"""

import re
from dataclasses import dataclass, field

from protocol.content import (
    FORMAT,
    ContentError,
    Fault,
    bad,
    canonical,
    document,
    integer,
    list_of,
    matching,
    parsed,
    text_of,
)
from protocol.envelope import Sealed

SIGNED = b"vestibule codes 1\n"
MAX_CODES = 200
MAX_STOCK = 32_768  # 200 codes have 9 kB
MAX_ENVELOPE = 65_536
_MAX_UTC_MS = 1 << 48
_TOKEN = re.compile("[0-9A-Z]{16,64}")
_TYPED = re.compile("[0-9A-Z-]{4,40}")
_ADDRESS = re.compile(r"https?://[!-~]{1,190}")


@dataclass(frozen=True, slots=True)
class Code:
    """One code; nothing of it is written to a log."""

    token: str = field(repr=False)
    typed: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Stock:
    """Codes that one device may show, in their order, each once."""

    device: str
    offer: str
    address: str
    until_ms: int
    codes: tuple[Code, ...]

    def content(self) -> bytes:
        """Return it in canonical form."""
        return canonical(
            {
                "format": FORMAT,
                "device": self.device,
                "offer": self.offer,
                "address": self.address,
                "until": self.until_ms,
                "codes": [[each.token, each.typed] for each in self.codes],
            }
        )


def read_stock(content: bytes, *, device: str) -> Stock:
    """Return the stock with this content; ContentError if it is none, or another device's."""
    needed = ("format", "device", "offer", "address", "until", "codes")
    data = document(content, MAX_STOCK, needed=needed)
    if data["device"] != device:
        raise ContentError(Fault.WRONG_DEVICE, "device", f"is {str(data['device'])[:40]!r}")
    address = matching(_ADDRESS, data["address"], "address", "an address of the web")
    given = list_of(data["codes"], "codes", 1, MAX_CODES)
    codes = tuple(_code(each, f"codes[{at}]") for at, each in enumerate(given))
    if len({each.token for each in codes}) != len(codes):
        bad("codes", "a token stands there twice")
    until_ms = integer(data["until"], "until", 0, _MAX_UTC_MS)
    return Stock(device, text_of(data["offer"], "offer"), address, until_ms, codes)


def _code(value: object, where: str) -> Code:
    token, typed = (text_of(each, where) for each in list_of(value, where, 2, 2))
    if not _TOKEN.fullmatch(token) or not _TYPED.fullmatch(typed):
        bad(where, "expected a token, and what is typed for it")
    return Code(token, typed)


class Envelope(Sealed):
    """A stock as it travels; nothing of it is checked yet."""

    __slots__ = ()
    KIND = "stock"
    PREFIX = SIGNED


def read_envelope(content: bytes) -> Envelope:
    """Take an envelope apart; ContentError if it is none."""
    return Envelope.of(parsed(content, MAX_ENVELOPE))
