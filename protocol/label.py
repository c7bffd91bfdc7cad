"""The label on a device: its serial and set-up secret, as a QR code holds them and a person types.

The QR's text is `vsl1.<serial>.<secret><check>`; the code itself holds it in capitals, which need
less room, and readers take any case. On paper the secret and its check character stand in groups
of four, without 0, O, 1 and I. The check character covers serial and secret: it tells any one wrong
character and any two neighbours that were swapped in the secret, and nearly all in the serial.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

PREFIX = "vsl1."
ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # 32: five bits a character
SECRET_LENGTH = 16  # 80 random bits: a plain hash of them can be kept
_SERIAL = re.compile(r"[A-Z0-9][A-Z0-9-]{2,30}")
_SECRET = re.compile(rf"[{ALPHABET}]{{{SECRET_LENGTH}}}")


class LabelError(ValueError):
    """A label that can't be read, and what was expected."""


@dataclass(frozen=True, slots=True)
class Label:
    """What stands on a device; the secret does not show."""

    serial: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The text of the QR code."""
        return f"{PREFIX}{self.serial}.{self.secret}{check(self.serial, self.secret)}"

    @property
    def typed(self) -> str:
        """The secret and its check character in groups, as a person reads them."""
        whole = self.secret + check(self.serial, self.secret)
        return "-".join(whole[at : at + 4] for at in range(0, len(whole), 4))

    @property
    def secret_sha256(self) -> bytes:
        """What a server keeps of the secret."""
        return digest(self.secret)


def serial_number(text: str) -> str:
    """Return a serial as it is written everywhere: capitals, digits, hyphens; else LabelError."""
    serial = text.strip().upper()
    if not _SERIAL.fullmatch(serial):
        raise LabelError(f"a serial is 3 to 31 of A-Z, 0-9 and '-'; got {text[:40]!r}")
    return serial


def label(serial: str, secret: str) -> Label:
    """Return the label of a serial and a secret without check character; LabelError."""
    plain = _plain(secret)
    if not _SECRET.fullmatch(plain):
        raise LabelError(f"a set-up secret has {SECRET_LENGTH} characters, and no 0, O, 1 or I")
    return Label(serial_number(serial), plain)


def typed(serial: str, secret: str) -> Label:
    """Return the label of what a person typed: the secret with its check character; LabelError."""
    plain = _plain(secret)
    if len(plain) != SECRET_LENGTH + 1 or set(plain) - set(ALPHABET):
        raise LabelError(
            f"the set-up code has {SECRET_LENGTH + 1} letters and digits, and never 0, O, 1 or I"
        )
    found = label(serial, plain[:-1])
    if check(found.serial, found.secret) != plain[-1]:
        raise LabelError("serial and set-up code do not belong together: one is mistyped")
    return found


def parse(text: str) -> Label:
    """Read the text of a label's QR code, in any case; LabelError says what is wrong with it."""
    prefix, _, rest = text.strip().partition(".")
    serial, _, secret = rest.partition(".")
    if prefix.lower() + "." != PREFIX or not secret:
        raise LabelError(f"a label's text begins with {PREFIX!r}; is this the right code?")
    return typed(serial, secret)


def check(serial: str, secret: str) -> str:
    """Return the check character: Horner's rule over GF(32), x^5 + x^2 + 1."""
    sum_ = 0
    symbols = [part for byte in serial.encode() for part in (byte >> 5, byte & 31)]
    for symbol in (*symbols, *(ALPHABET.index(character) for character in secret)):
        sum_ = _times_x(sum_) ^ symbol
    return ALPHABET[_times_x(sum_)]


def digest(secret: str) -> bytes:
    """Return what a server keeps of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def bind_proof(secret_sha256: bytes, *, voucher: str, serial: str, spot: str, at_ms: int) -> str:
    """Return a phone's proof that it has read the label: HMAC-SHA256 in hexadecimal digits.

    Under SHA-256 of the secret, over `vsb1`, the voucher's ref, serial, spot's ref and the time in
    milliseconds since 1970, a line each. So neither phone nor server need keep the secret.
    """
    lines = "\n".join(("vsb1", voucher, serial, spot, str(at_ms)))
    return hmac.new(secret_sha256, lines.encode(), hashlib.sha256).hexdigest()


def _plain(secret: str) -> str:
    return re.sub(r"[\s-]", "", secret).upper()


def _times_x(value: int) -> int:
    value <<= 1
    return value ^ 0b100101 if value & 32 else value
