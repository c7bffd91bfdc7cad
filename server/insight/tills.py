"""Reading a till's CSV, purely: `site,transaction,at,kind,amount,units` to rows and issues.

Decided here: `at` is the site's local time unless it has an offset; a local time that never was
(the clock went forward) is refused, one that was twice (it went back) is taken as its first pass
and listed. Amounts are without VAT, after discounts. Files with semicolons may have decimal
commas. The same row twice counts once; two rows that say different things are refused.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

COLUMNS = ("site", "transaction", "at", "kind", "amount", "units")
KINDS = frozenset({"sale", "return", "pickup", "void"})

_AMOUNT = re.compile(r"-?\d{1,12}([.,]\d{1,2})?")
_UNITS = re.compile(r"-?\d{1,6}")
_MOST_REF = 128


@dataclass(frozen=True, slots=True)
class Issue:
    """What is wrong, or worth knowing, about a line (1 is the header)."""

    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """One receipt of a till."""

    site: str
    ref: str
    at: datetime
    kind: str
    amount: Decimal
    units: int


@dataclass(slots=True)
class Read:
    """A file as read: good rows with their lines, errors, and what is worth knowing."""

    rows: list[tuple[int, Transaction]] = field(default_factory=list)
    errors: list[Issue] = field(default_factory=list)
    warnings: list[Issue] = field(default_factory=list)
    repeated: int = 0


class RowError(ValueError):
    """A row cannot be read; the text says which column, what was expected and what came."""


ZoneOf = Callable[[str], str | None]
"""Tells a site's time zone, None if there is no such site."""


def read_tills(lines: Iterable[str], zone_of: ZoneOf) -> Read:
    """Read a file's lines."""
    found = Read()
    reader = _open(iter(lines), found)
    if reader is None:
        return found
    seen: dict[tuple[str, str], tuple[int, Transaction]] = {}
    for row in reader:
        line = reader.line_num
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        try:
            transaction, note = _parse(row, zone_of)
        except RowError as error:
            found.errors.append(Issue(line, str(error)))
            continue
        key = transaction.site, transaction.ref
        if key in seen:
            first, other = seen[key]
            if other == transaction:
                found.repeated += 1
            else:
                text = f"transaction {transaction.ref!r} says something else in line {first}"
                found.errors.append(Issue(line, text))
            continue
        if note:
            found.warnings.append(Issue(line, note))
        seen[key] = line, transaction
        found.rows.append((line, transaction))
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


def _open(lines: Iterator[str], found: Read) -> _Reader | None:
    header = next(lines, "").lstrip("\ufeff").strip()
    delimiter = ";" if ";" in header else ","
    names = tuple(name.strip().strip('"').lower() for name in header.split(delimiter))
    if names != COLUMNS:
        wanted = delimiter.join(COLUMNS)
        found.errors.append(Issue(1, f"expected the header {wanted!r}, got {header[:120]!r}"))
        return None
    return _Reader(lines, delimiter=delimiter)


def _parse(row: list[str], zone_of: ZoneOf) -> tuple[Transaction, str]:
    """Return the row's transaction, and a note if its time was twice."""
    if len(row) != len(COLUMNS):
        raise RowError(f"expected {len(COLUMNS)} columns, got {len(row)}")
    site, ref, at_text, kind, amount, units = (text.strip() for text in row)
    zone = zone_of(site)
    if zone is None:
        raise RowError(f"site: there is no site {site!r}")
    if not 0 < len(ref) <= _MOST_REF:
        raise RowError(f"transaction: expected 1 to {_MOST_REF} characters, got {len(ref)}")
    if kind not in KINDS:
        raise RowError(f"kind: expected one of {', '.join(sorted(KINDS))}, got {kind!r}")
    if not _AMOUNT.fullmatch(amount):
        raise RowError(f"amount: expected a number such as 129.90, got {amount!r}")
    if not _UNITS.fullmatch(units):
        raise RowError(f"units: expected a whole number, got {units!r}")
    at, note = _instant(at_text, zone)
    value = Decimal(amount.replace(",", "."))
    return Transaction(site, ref, at, kind, value, int(units)), note


def _instant(text: str, zone: str) -> tuple[datetime, str]:
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise RowError(f"at: expected a time such as 2026-03-29T10:15:00, got {text!r}") from error
    if len(text) < 16:
        raise RowError(f"at: expected a date and a time, got {text!r}")
    if at.tzinfo is not None:
        return at.astimezone(UTC), ""
    first = at.replace(tzinfo=ZoneInfo(zone))
    if first.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != at:
        raise RowError(f"at: {text} never was in {zone}, where the clock went forward")
    if first.utcoffset() != first.replace(fold=1).utcoffset():
        return first.astimezone(UTC), f"at: {text} was twice in {zone}; taken as the first"
    return first.astimezone(UTC), ""
