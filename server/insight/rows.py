"""Reading rows that other systems deliver, as CSV or JSON: text to values and issues. Pure.

Decided here, for sales, shifts, campaigns and rates alike: a time is the site's local one unless it
has an offset; a local time that never was (the clock went forward) is refused, one that was twice
(it went back) is taken as its first pass and listed. Amounts are without VAT and have at most two
decimals. Files with semicolons may have decimal commas. The same row twice counts once; two rows of
the same key that say different things are refused. Times lie in the years that questions may be
about: beyond them nothing could be asked, and PostgreSQL takes the last day of all for infinity.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Generic, TypeVar
from zoneinfo import ZoneInfo

R = TypeVar("R")

_AMOUNT = re.compile(r"-?\d{1,12}([.,]\d{1,2})?")
_WHOLE = re.compile(r"-?\d{1,12}")
_CURRENCY = re.compile(r"[A-Z]{3}")
EARLIEST, LATEST = 1990, 2100
MOST_REF = 128
MOST_TEXT = 200


@dataclass(frozen=True, slots=True)
class Issue:
    """What is wrong, or worth knowing, about a line (1 is the header)."""

    line: int
    message: str


class RowError(ValueError):
    """A row cannot be read; the text says which column, what was expected and what came."""

    def __init__(self, message: str, *, column: str = "") -> None:
        self.column = column
        super().__init__(f"{column}: {message}" if column else message)


@dataclass(slots=True)
class Rows(Generic[R]):
    """A file as read: good rows with their lines, errors, and what is worth knowing."""

    rows: list[tuple[int, R]] = field(default_factory=list)
    errors: list[Issue] = field(default_factory=list)
    warnings: list[Issue] = field(default_factory=list)
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class Table(Generic[R]):
    """A kind of row: its columns, how texts are read (with a note), and what it is known by.

    Keys sort, and rows are stored in their order: who locks in one order never waits in a circle.
    """

    noun: str
    columns: tuple[str, ...]
    parse: Callable[[Sequence[str], "ZoneOf"], tuple[R, str]]
    key: Callable[[R], tuple[str, ...]]
    ref: Callable[[R], str]


ZoneOf = Callable[[str], str | None]
"""Tells a site's time zone, None if there is no such site."""


def read_rows(lines: Iterable[str], table: Table[R], zone_of: ZoneOf) -> Rows[R]:
    """Read a CSV file's lines."""
    found = Rows[R]()
    reader = _open(iter(lines), table.columns, found)
    if reader is None:
        return found
    delivered = (
        (reader.line_num, row)
        for row in reader
        if row and not (len(row) == 1 and not row[0].strip())
    )
    return collect(delivered, table, zone_of, into=found)


def collect(
    delivered: Iterable[tuple[int, Sequence[str]]],
    table: Table[R],
    zone_of: ZoneOf,
    *,
    into: Rows[R] | None = None,
) -> Rows[R]:
    """Read rows of texts, each with its line."""
    found = Rows[R]() if into is None else into
    seen: dict[tuple[str, ...], tuple[int, R]] = {}
    for line, row in delivered:
        try:
            if len(row) != len(table.columns):
                raise RowError(f"expected {len(table.columns)} columns, got {len(row)}")
            value, note = table.parse([text.strip() for text in row], zone_of)
        except RowError as error:
            found.errors.append(Issue(line, str(error)))
            continue
        key = table.key(value)
        if key in seen:
            first, other = seen[key]
            if other == value:
                found.repeated += 1
            else:
                text = f"{table.noun} {table.ref(value)!r} says something else in line {first}"
                found.errors.append(Issue(line, text))
            continue
        if note:
            found.warnings.append(Issue(line, note))
        seen[key] = line, value
        found.rows.append((line, value))
    return found


class _Reader:
    """A csv reader over lines of which the header is already taken."""

    def __init__(self, lines: Iterator[str], *, delimiter: str) -> None:
        self._reader = csv.reader(lines, delimiter=delimiter)

    @property
    def line_num(self) -> int:
        return self._reader.line_num + 1

    def __iter__(self) -> Iterator[list[str]]:
        return self._reader


def _open(lines: Iterator[str], columns: tuple[str, ...], found: Rows[R]) -> _Reader | None:
    header = next(lines, "").lstrip("\ufeff").strip()
    delimiter = ";" if ";" in header else ","
    names = tuple(name.strip().strip('"').lower() for name in header.split(delimiter))
    if names != columns:
        wanted = delimiter.join(columns)
        found.errors.append(Issue(1, f"expected the header {wanted!r}, got {header[:120]!r}"))
        return None
    return _Reader(lines, delimiter=delimiter)


# -- fields --------------------------------------------------------------------------------------


def zone(text: str, zone_of: ZoneOf, column: str = "site") -> str:
    """Return the time zone of a site."""
    found = zone_of(text)
    if found is None:
        raise RowError(f"there is no site {text!r}", column=column)
    return found


def ref(text: str, column: str, *, most: int = MOST_REF) -> str:
    """Return a text that may not be empty."""
    if not 0 < len(text) <= most:
        raise RowError(f"expected 1 to {most} characters, got {len(text)}", column=column)
    if not text.isprintable():
        raise RowError("expected printable characters alone", column=column)
    return text


def one_of(text: str, known: Iterable[str], column: str) -> str:
    """Return a text that is one of `known`."""
    if text not in (wanted := sorted(known)):
        raise RowError(f"expected one of {', '.join(wanted)}, got {text!r}", column=column)
    return text


def amount(text: str, column: str = "amount") -> Decimal:
    """Return an amount of money."""
    if not _AMOUNT.fullmatch(text):
        raise RowError(f"expected a number such as 129.90, got {text!r}", column=column)
    return Decimal(text.replace(",", "."))


def whole(text: str, column: str, *, low: int, high: int) -> int:
    """Return a whole number."""
    if not _WHOLE.fullmatch(text):
        raise RowError(f"expected a whole number, got {text!r}", column=column)
    if not low <= int(text) <= high:
        raise RowError(f"expected {low} to {high}, got {text}", column=column)
    return int(text)


def currency(text: str, column: str = "currency") -> str:
    """Return a currency's code."""
    if not _CURRENCY.fullmatch(text):
        raise RowError(f"expected a code such as SEK, got {text!r}", column=column)
    return text


def day(text: str, column: str = "day") -> date:
    """Return a date."""
    try:
        found = date.fromisoformat(text)
    except ValueError as error:
        raise RowError(
            f"expected a date such as 2026-03-29, got {text!r}", column=column
        ) from error
    _demand_year(found, column)
    return found


def instant(text: str, zone: str, column: str = "at") -> tuple[datetime, str]:
    """Return an instant, and a note if the site's clock showed this time twice."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise RowError(
            f"expected a time such as 2026-03-29T10:15:00, got {text!r}", column=column
        ) from error
    if len(text) < 16:
        raise RowError(f"expected a date and a time, got {text!r}", column=column)
    _demand_year(at, column)
    if at.tzinfo is not None:
        return at.astimezone(UTC), ""
    first = at.replace(tzinfo=ZoneInfo(zone))
    if first.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != at:
        raise RowError(f"{text} never was in {zone}, where the clock went forward", column=column)
    if first.utcoffset() != first.replace(fold=1).utcoffset():
        note = f"{column}: {text} was twice in {zone}; taken as the first"
        return first.astimezone(UTC), note
    return first.astimezone(UTC), ""


def _demand_year(found: date, column: str) -> None:
    if not EARLIEST <= found.year <= LATEST:
        raise RowError(f"expected {EARLIEST} to {LATEST}, got {found.year}", column=column)
