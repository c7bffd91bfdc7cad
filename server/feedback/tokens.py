"""What lets somebody answer a survey: one-time tokens, posters, and the sheet that a form carries.

A token is 80 random bits and a keyed MAC over them and all that it is bound to: survey, site,
spot, channel, touchpoint, delay class and end. We keep its hash alone, so who reads the database
can neither answer nor tell whose receipt it was. A typed code of 12 characters follows from the
token under the same key; 55 of its bits are secret, the last character tells typing errors.

A token is checked, in this order, and the same numbers stand in `demand`:
1. its form, and a code's check character (`mistyped_code`);
2. it is one of ours (`unknown_code`), its MAC over what our row says of it in constant time;
3. it has not ended (`expired_code`), and its survey is still asked (`closed_survey`);
4. it was not used (`answered_already`), unless it is a poster's.

Posters hang for everybody: they are a channel of their own and never counted with one-time tokens;
what they bring is limited by site and hour. Nothing tells one reader of a poster from another, so
each form that is shown bears a sheet: random, signed, and stored once.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from protocol import label
from server.errors import RefusedError

PURPOSE = "survey tokens"
"""What the key of tokens, codes and sheets is derived for."""
NONCE_LENGTH, MAC_LENGTH, CODE_LENGTH = 16, 8, 12
POSTER_PER_HOUR = 60  # answers from one site's posters; more in an hour is no visitors' doing
MOST_LIFE = timedelta(days=400)
SHEET_LIFE = timedelta(hours=12)
_PLAIN = re.compile(f"[{label.ALPHABET}]+")
_SHEET = re.compile(rf"(\d{{13}})-([{label.ALPHABET}]{{{NONCE_LENGTH}}})-([0-9a-f]{{32}})")


class Channel(StrEnum):
    """By which way somebody came to a survey."""

    TERMINAL = "terminal"
    RECEIPT = "receipt"
    POSTER = "poster"
    LINK = "link"
    EMAIL = "email"

    @property
    def one_time(self) -> bool:
        return self is not Channel.POSTER


class Delay(StrEnum):
    """How long after the visit it is answered."""

    NOW = "0"
    WEEK = "1-7 d"
    LATER = ">7 d"


@dataclass(frozen=True, slots=True)
class Binding:
    """What a token is good for; `spot`: the kiosk that shows it."""

    survey: str
    site: str
    channel: Channel
    touchpoint: str
    delay: Delay
    expires_at: datetime
    spot: str = ""

    @property
    def said(self) -> bytes:
        end = round(self.expires_at.timestamp() * 1000)
        bound = (self.survey, self.site, self.spot, self.channel, self.touchpoint, self.delay)
        parts = (*bound, str(end))
        return b"".join(len(part.encode()).to_bytes(2, "big") + part.encode() for part in parts)


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """A token as it is given away: for an address, and for typing."""

    nonce: str
    text: str
    code: str

    @property
    def typed(self) -> str:
        """The code in groups of four."""
        return "-".join(self.code[at : at + 4] for at in range(0, CODE_LENGTH, 4))


@dataclass(frozen=True, slots=True, repr=False)
class Shown:
    """A token or code as somebody brought it; `kept` is what our row of it is found by."""

    nonce: str | None
    mac: str
    kept: bytes


@dataclass(frozen=True, slots=True)
class Sheet:
    """A form that was shown: when, and the random number that makes it one of a kind."""

    begun: datetime
    nonce: str


def make(key: bytes, binding: Binding, random: bytes) -> Token:
    """Return the token of 10 random bytes."""
    nonce = _letters(random, NONCE_LENGTH)
    return Token(nonce, nonce + _mac(key, nonce, binding), _code(key, nonce))


def kept_of(token: str) -> bytes:
    """Return what is kept of a token's random part: 80 bits need no slow hash."""
    return hashlib.sha256(token[:NONCE_LENGTH].encode()).digest()


def kept_of_code(key: bytes, code: str) -> bytes:
    """Return what is kept of a typed code."""
    return hmac.digest(key, b"kept\n" + code.encode(), hashlib.sha256)


def read(key: bytes, text: str) -> Shown:
    """Read a token or a typed code, in any case and with any hyphens. RefusedError."""
    plain = re.sub(r"[\s-]", "", text).upper()
    if _PLAIN.fullmatch(plain) and len(plain) == NONCE_LENGTH + MAC_LENGTH:  # 1
        return Shown(plain[:NONCE_LENGTH], plain[NONCE_LENGTH:], kept_of(plain))
    if len(plain) != CODE_LENGTH or not _PLAIN.fullmatch(plain):
        raise RefusedError("mistyped_code", "a code has 12 letters and digits, and no 0, O, 1 or I")
    if label.check("", plain[:-1]) != plain[-1]:
        raise RefusedError("mistyped_code", "a character of this code is wrong")
    return Shown(None, "", kept_of_code(key, plain))


def demand(
    key: bytes, shown: Shown, binding: Binding | None, *, used: bool, closed: bool, now: datetime
) -> Binding:
    """Return what a token is good for now; `binding` is our row's. RefusedError says what not."""
    if binding is None:  # 2
        raise RefusedError("unknown_code", "there is no survey behind this code")
    if shown.nonce is not None and not hmac.compare_digest(
        _mac(key, shown.nonce, binding), shown.mac
    ):
        raise RefusedError("unknown_code", "there is no survey behind this code")
    if now >= binding.expires_at:  # 3
        raise RefusedError("expired_code", f"it ended on {binding.expires_at:%Y-%m-%d}")
    if closed:
        raise RefusedError("closed_survey", "this survey is no longer asked")
    if used and binding.channel.one_time:  # 4
        raise RefusedError("answered_already", "this code was used, and each counts once")
    return binding


def sheet(key: bytes, kept: bytes, *, now: datetime, random: bytes) -> str:
    """Return what a shown form bears: when it was shown, 10 random bytes, and our MAC."""
    begun, nonce = f"{round(now.timestamp() * 1000):013d}", _letters(random, NONCE_LENGTH)
    return f"{begun}-{nonce}-{_sheet_mac(key, kept, begun, nonce)}"


def read_sheet(key: bytes, kept: bytes, text: str, *, now: datetime) -> Sheet:
    """Return a form's sheet. RefusedError (`stale_form`) if it is not ours, or of another day."""
    found = _SHEET.fullmatch(text)
    if found is None or not hmac.compare_digest(
        _sheet_mac(key, kept, found[1], found[2]), found[3]
    ):
        raise RefusedError("stale_form", "this form is none that we have shown")
    begun = datetime.fromtimestamp(int(found[1]) / 1000, tz=now.tzinfo)
    if not timedelta(0) <= now - begun <= SHEET_LIFE:
        raise RefusedError("stale_form", "this form was shown too long ago: load it again")
    return Sheet(begun, found[2])


def _sheet_mac(key: bytes, kept: bytes, begun: str, nonce: str) -> str:
    data = b"sheet\n" + kept + f"{begun}-{nonce}".encode()
    return hmac.digest(key, data, hashlib.sha256)[:16].hex()


def _mac(key: bytes, nonce: str, binding: Binding) -> str:
    data = b"token\n" + nonce.encode() + binding.said
    return _letters(hmac.digest(key, data, hashlib.sha256), MAC_LENGTH)


def _code(key: bytes, nonce: str) -> str:
    digest = hmac.digest(key, b"code\n" + nonce.encode(), hashlib.sha256)
    body = _letters(digest, CODE_LENGTH - 1)
    return body + label.check("", body)


def _letters(data: bytes, length: int) -> str:
    """Return `length` characters of five bits each, from the beginning of `data`."""
    number, bits = int.from_bytes(data, "big"), len(data) * 8
    return "".join(label.ALPHABET[number >> (bits - 5 * (at + 1)) & 31] for at in range(length))
