"""What the register accepts in a field, and when an edit comes too late. Pure.

Each refusal names its field (`parameter`), so that an API, a form and a file can point at it.
An edit says which version it has seen: a digest of all that may be edited. Of two operators who
edit at once, the second is refused (`ChangedError`) and is shown what the first has written.
"""

import hashlib
import re
from dataclasses import dataclass, fields
from datetime import date
from functools import cache
from typing import Any, Generic, TypeVar
from zoneinfo import available_timezones

from babel.numbers import list_currencies

from server.errors import ConflictError, RefusedError

T = TypeVar("T")
MOST_NAME = 100
MOST_TEXT = 300
HEIGHTS_CM = (50, 2000)
_CURRENCY = re.compile(r"[A-Z]{3}")


class FieldError(RefusedError):
    """A field's value is none that the register takes."""

    def __init__(self, field: str, message: str) -> None:
        self.parameter = field
        super().__init__("bad_value", message)


class TakenError(ConflictError):
    """Another thing has this name already."""

    code = "name_taken"


class ChangedError(ConflictError):
    """Somebody else has changed it since it was read."""

    code = "changed_meanwhile"


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """A thing of the register: its row, its public name, and what may be edited of it."""

    id: int
    ref: str
    facts: T

    @property
    def version(self) -> str:
        """Which state this is; `seen` of an edit."""
        return hashlib.sha256(repr(self.facts).encode()).hexdigest()[:16]

    def demand_unchanged(self, seen: str | None) -> None:
        """Raise ChangedError unless it is as it was `seen` (None: whatever it is now)."""
        if seen is not None and seen != self.version:
            raise ChangedError(f"{self.ref} was changed by somebody else meanwhile")


def changes(before: object, after: object) -> dict[str, list[str]]:
    """Return what differs between two states of a thing, for the audit: field to both texts."""
    return {
        each.name: [_text(getattr(before, each.name)), _text(getattr(after, each.name))]
        for each in fields(before)  # type: ignore[arg-type]
        if getattr(before, each.name) != getattr(after, each.name)
    }


def contents(facts: object) -> dict[str, str]:
    """Return what a new thing says, for the audit; what is empty is left out."""
    found = {each.name: _text(getattr(facts, each.name)) for each in fields(facts)}  # type: ignore[arg-type]
    return {name: text for name, text in found.items() if text}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def name(text: str, field: str = "name") -> str:
    """Return a name with single spaces. Raises FieldError."""
    text = " ".join(text.split())
    if not 0 < len(text) <= MOST_NAME or not text.isprintable():
        raise FieldError(field, f"expected 1 to {MOST_NAME} characters")
    return text


def line(text: str, field: str) -> str:
    """Return a line of text that may be empty. Raises FieldError."""
    text = " ".join(text.split())
    if len(text) > MOST_TEXT or not text.isprintable():
        raise FieldError(field, f"expected at most {MOST_TEXT} characters")
    return text


def time_zone(text: str) -> str:
    """Return an IANA zone. Raises FieldError."""
    text = text.strip()
    if text not in _zones():
        raise FieldError("time_zone", f"no time zone {text[:60]!r}; one is Europe/Stockholm")
    return text


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def currency(text: str) -> str:
    """Return a currency of ISO 4217. Raises FieldError."""
    text = text.strip()
    if not _CURRENCY.fullmatch(text) or text not in list_currencies():
        raise FieldError("currency", f"no currency {text[:10]!r}; one is SEK")
    return text


def one_of(text: str, known: tuple[str, ...], field: str) -> str:
    """Return one of the `known` words. Raises FieldError."""
    if text not in known:
        raise FieldError(field, f"expected {', '.join(known)}; got {text[:40]!r}")
    return text


def height_cm(value: int | None) -> int | None:
    """Return a mounting height. Raises FieldError."""
    low, high = HEIGHTS_CM
    if value is not None and not low <= value <= high:
        raise FieldError("height_cm", f"expected {low} to {high}, got {value}")
    return value


def day(text: str, field: str) -> date | None:
    """Return the day that `text` writes as 2026-12-24, None for an empty one. Raises FieldError."""
    text = text.strip()
    if not text:
        return None
    try:
        if len(text) != 10:
            raise ValueError
        found = date.fromisoformat(text)
    except ValueError as error:
        raise FieldError(field, f"expected a day such as 2026-12-24, got {text[:20]!r}") from error
    return sensible(found, field)


def sensible(found: date, field: str) -> date:
    """Return a day that anything of ours may be about. Raises FieldError."""
    if not 1990 <= found.year <= 2100:
        raise FieldError(field, f"expected a year from 1990 to 2100, got {found.year}")
    return found


def season(opens_on: date | None, closes_on: date | None) -> None:
    """Raise FieldError unless a site's first day comes before its last."""
    for field, found in (("opens_on", opens_on), ("closes_on", closes_on)):
        if found is not None:
            sensible(found, field)
    if opens_on is not None and closes_on is not None and closes_on < opens_on:
        raise FieldError("closes_on", f"{closes_on} is before the first day, {opens_on}")
