"""A file of hourly counts (`Date,Hour,LocationName,InCount`) and the rules for its quirks. Pure.

Decided here, and listed as a `Quirk` each time:
1. Dates are `YYYY-MM-DD`, `DD/MM/YYYY` or `D-Mon-YY[YY]`. Anything else is refused. If some date
   of the file can only be month first, dates that could be either are refused as ambiguous.
2. A row with a count that is no number from 0 to 32,767, an hour outside 0..23 or no place is left
   out.
3. Identical rows of one place, date and hour count once. Differing ones stop that place's day
   until a policy (`first`, `last`, `sum`) says what they mean.
4. An hour that did not exist (the clock went forward) goes to the first instant after the gap.
5. An hour that came twice (the clock went back): two rows are its first and second pass; one row
   stands at the first pass, the second is not observed. On a day whose other hours are doubled
   too, the rows are duplicates before they are passes.
6. A missing hour is missing: no reading, not zero.

Invariant: for each place and local day, `file_total - excluded` is the sum of its readings.
"""

import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple
from zoneinfo import ZoneInfo

MAX_COUNT = 32_767  # the wire's largest reading
HOUR_S = 3_600
COLUMNS = ("Date", "Hour", "LocationName", "InCount")
Policy = Literal["first", "last", "sum"]

_ISO = re.compile(r"(\d{4})-(\d{1,2})-(\d{1,2})")
_SLASH = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4})")
_NAMED = re.compile(r"(\d{1,2})-([A-Za-z]{3})-(\d{4}|\d{2})")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_COUNT = re.compile(r"-?\d{1,12}")


class CountsFileError(ValueError):
    """The file, or the zone it is to be read in, cannot be used at all."""


class QuirkKind(Enum):
    """What was odd about rows of the file."""

    BAD_DATE = "bad-date"
    AMBIGUOUS_DATE = "ambiguous-date"
    BAD_HOUR = "bad-hour"
    BAD_COUNT = "bad-count"
    NO_PLACE = "no-place"
    DUPLICATE = "duplicate"
    DIFFERING = "differing-duplicates"
    NO_SUCH_HOUR = "no-such-hour"
    ONE_OF_TWO = "repeated-hour-one-row"
    BOTH_OF_TWO = "repeated-hour-two-rows"
    TOO_LARGE = "too-large"
    MISSING = "missing-hours"
    BEGINS_LATE = "begins-late"


@dataclass(frozen=True, slots=True)
class Quirk:
    """One oddity and what was done. `count`: the people concerned; of MISSING, the hours."""

    location: str
    date: date | None
    hour: int | None
    kind: QuirkKind
    count: int
    action: str


class Reading(NamedTuple):
    """One hour's count; `start_s` is the UTC second its hour begins."""

    start_s: int
    people: int


@dataclass(slots=True)
class Day:
    """One place's local day: what the file says, what of it is left out, how many readings."""

    file_total: int = 0
    excluded: int = 0
    readings: int = 0

    @property
    def expected(self) -> int:
        """What must be served."""
        return self.file_total - self.excluded


@dataclass(frozen=True, slots=True)
class CountsFile:
    """The file read in a zone: readings by place, ascending; days; quirks in order of place."""

    zone: str
    rows: int
    readings: Mapping[str, list[Reading]]
    days: Mapping[tuple[str, date], Day]
    quirks: tuple[Quirk, ...]

    @property
    def stopped(self) -> tuple[tuple[str, date], ...]:
        """The days that wait for a policy on differing duplicates."""
        return tuple(
            (quirk.location, quirk.date)
            for quirk in self.quirks
            if quirk.kind is QuirkKind.DIFFERING and quirk.hour is None and quirk.date is not None
        )


class Row(NamedTuple):
    """One line of the file, as text; `number` counts from 1, the header."""

    number: int
    date: str
    hour: str
    location: str
    people: str


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of `path` (plain or .gz); CountsFileError if a column is missing."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as stream:
        yield from parse_rows(stream)


def parse_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Yield the rows of CSV text; columns are found by their names, others are passed over."""
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise CountsFileError(f"expected the columns {', '.join(COLUMNS)}; no {missing[0]!r}")
    where = [header.index(name) for name in COLUMNS]
    for row in reader:
        if row:
            cells = [row[at].strip() if at < len(row) else "" for at in where]
            yield Row(reader.line_num, *cells)


def interpret(
    rows: Iterable[Row],
    *,
    zone: str,
    duplicates: Policy | None = None,
    between: tuple[date, date] | None = None,
) -> CountsFile:
    """Apply the rules; `between` keeps only days from the first to the last, both included."""
    work = _Interpreter(ZoneInfo(zone), duplicates, between)
    count = work.gather(list(rows))
    for location in work.table:
        work.place(location)
    return CountsFile(
        zone,
        count,
        {place: [Reading(*pair) for pair in sorted(found.items())] for place, found in work.found},
        work.days,
        tuple(sorted(work.quirks, key=_quirk_order)),
    )


def read_date(text: str) -> date | None:
    """Return the date by rule 1, day before month; None if there is none."""
    try:
        if match := _ISO.fullmatch(text):
            return date(int(match[1]), int(match[2]), int(match[3]))
        if match := _SLASH.fullmatch(text):
            return date(int(match[3]), int(match[2]), int(match[1]))
        if match := _NAMED.fullmatch(text):
            year = int(match[3]) + (2000 if len(match[3]) == 2 else 0)
            return date(year, _MONTHS.index(match[2].lower()) + 1, int(match[1]))
    except ValueError:
        return None
    return None


def instants(day: date, hour: int, zone: ZoneInfo) -> tuple[int, ...]:
    """Return the UTC seconds at which that local hour begins: none, one, or two of them."""
    wall = datetime(day.year, day.month, day.day, hour)  # noqa: DTZ001 - a wall time, no instant
    found: list[int] = []
    for fold in (0, 1):
        second = int(wall.replace(tzinfo=zone, fold=fold).timestamp())
        back = datetime.fromtimestamp(second, zone).replace(tzinfo=None, fold=0)
        if back == wall and second not in found:
            found.append(second)
    return tuple(found)


def after_gap(day: date, hour: int, zone: ZoneInfo) -> int:
    """Return the first UTC second after the gap that swallowed that local hour."""
    wall = datetime(day.year, day.month, day.day, hour, tzinfo=zone)
    before, after = wall.utcoffset(), wall.replace(fold=1).utcoffset()
    if before is None or after is None or after >= before:
        # PEP 495: in a gap, fold=0 has the offset from before, fold=1 the one from after it
        before, after = after, before
    wall_s = int(wall.replace(tzinfo=UTC).timestamp())
    low, high = sorted(
        wall_s - int(offset.total_seconds()) for offset in (before, after) if offset is not None
    )
    target = datetime.fromtimestamp(high, zone).utcoffset()
    for second in range(low, high, 60):
        if datetime.fromtimestamp(second, zone).utcoffset() == target:
            return second
    return high


def _quirk_order(quirk: Quirk) -> tuple[str, date, int]:
    return quirk.location, quirk.date or date.min, -1 if quirk.hour is None else quirk.hour


def _month_first(text: str) -> bool:
    match = _SLASH.fullmatch(text)
    return match is not None and int(match[2]) > 12 and int(match[1]) <= 12


def _either_way(text: str) -> bool:
    match = _SLASH.fullmatch(text)
    return (
        match is not None and int(match[1]) <= 12 and match[1].lstrip("0") != match[2].lstrip("0")
    )


@dataclass(slots=True)
class _Interpreter:
    zone: ZoneInfo
    policy: Policy | None
    between: tuple[date, date] | None
    table: dict[str, dict[date, dict[int, list[int]]]] = field(default_factory=dict)
    found: list[tuple[str, dict[int, int]]] = field(default_factory=list)
    days: dict[tuple[str, date], Day] = field(default_factory=dict)
    quirks: list[Quirk] = field(default_factory=list)
    _instants: dict[tuple[date, int], tuple[int, ...]] = field(default_factory=dict)

    def gather(self, rows: list[Row]) -> int:
        """Rules 1 and 2: sort good rows into the table; return how many rows there were."""
        texts = {row.date for row in rows}
        dates = {text: read_date(text) for text in texts}
        doubtful: set[str] = set()
        if any(_month_first(text) for text in texts):
            doubtful = {text for text in texts if dates[text] and _either_way(text)}
        for row in rows:
            day = dates[row.date]
            if day is None or row.date in doubtful:
                self._refuse_date(row, ambiguous=row.date in doubtful)
            elif self.between is None or self.between[0] <= day <= self.between[1]:
                self._row(row, day)
        return len(rows)

    def _refuse_date(self, row: Row, *, ambiguous: bool) -> None:
        kind = QuirkKind.AMBIGUOUS_DATE if ambiguous else QuirkKind.BAD_DATE
        count = int(row.people) if _COUNT.fullmatch(row.people) else 0
        why = "could be month first" if ambiguous else "is no date"
        action = f"row {row.number} left out: {row.date[:20]!r} {why}"
        self.quirks.append(Quirk(row.location, None, None, kind, count, action))

    def _row(self, row: Row, day: date) -> None:
        number = int(row.people) if _COUNT.fullmatch(row.people) else None
        hour = int(row.hour) if re.fullmatch(r"\d{1,2}", row.hour) else -1
        kind: QuirkKind | None = None
        if not row.location:
            kind, why = QuirkKind.NO_PLACE, "it names no place"
        elif not 0 <= hour <= 23:
            kind, why = QuirkKind.BAD_HOUR, f"{row.hour[:20]!r} is no hour of a day"
        elif number is None or not 0 <= number <= MAX_COUNT:
            kind, why = QuirkKind.BAD_COUNT, f"{row.people[:20]!r} is not 0 to {MAX_COUNT:,}"
        else:
            self._day(row.location, day).file_total += number
            hours = self.table.setdefault(row.location, {}).setdefault(day, {})
            hours.setdefault(hour, []).append(number)
            return
        if row.location:
            self.table.setdefault(row.location, {}).setdefault(day, {})
            record = self._day(row.location, day)
            record.file_total += number or 0
            record.excluded += number or 0
        action = f"row {row.number} left out: {why}"
        known = hour if 0 <= hour <= 23 else None
        self.quirks.append(Quirk(row.location, day, known, kind, number or 0, action))

    def _day(self, location: str, day: date) -> Day:
        return self.days.setdefault((location, day), Day())

    def place(self, location: str) -> None:
        """Rules 3 to 6 for one place."""
        found: dict[int, int] = {}
        moved: list[tuple[date, int, int]] = []
        for day, hours in sorted(self.table[location].items()):
            passes = self._passes(location, day, hours)
            if passes is None:
                continue
            for hour, counts in passes.items():
                when = self._when(day, hour)
                if not when:
                    moved.append((day, hour, counts[0]))
                    continue
                found.update(zip(when, counts, strict=False))
        for day, hour, count in moved:
            self._move(location, day, hour, count=count, found=found)
        for second in found:
            self._day(location, self._local(second).date()).readings += 1
        self._missing(location, found)
        self.found.append((location, found))

    def _passes(
        self, location: str, day: date, hours: dict[int, list[int]]
    ) -> dict[int, tuple[int, ...]] | None:
        """Return each hour's counts (two only for a repeated hour); None if the day stops."""
        usual = Counter(len(counts) for counts in hours.values()).most_common(1)
        copies = usual[0][0] if len(hours) > 1 else 1
        result: dict[int, tuple[int, ...]] = {}
        mark = len(self.quirks)
        for hour, counts in sorted(hours.items()):
            twice = len(self._when(day, hour)) == 2
            both = _two_passes(counts, copies) if twice else None
            if both is not None:
                self._note_passes(location, day, hour, counts=counts, both=both)
                result[hour] = both
                continue
            one = self._one(location, day, hour, counts=counts)
            if one is None:
                found = self.quirks[mark:]
                self.quirks[mark:] = [q for q in found if q.kind is QuirkKind.DIFFERING]
                self._stop(location, day)
                return None
            if twice:
                action = "kept at the first pass; the second is not observed (coverage 0.5)"
                quirk = Quirk(location, day, hour, QuirkKind.ONE_OF_TWO, one, action)
                self.quirks.append(quirk)
            result[hour] = (one,)
        return result

    def _note_passes(
        self, location: str, day: date, hour: int, *, counts: list[int], both: tuple[int, int]
    ) -> None:
        action = f"first pass {both[0]}, second pass {both[1]}, in the file's order"
        extra = sum(counts) - sum(both)
        if len(counts) > 2:
            self._day(location, day).excluded += extra
            action += f"; {len(counts)} rows are copies, {extra} left out"
        quirk = Quirk(location, day, hour, QuirkKind.BOTH_OF_TWO, sum(both), action)
        self.quirks.append(quirk)

    def _one(self, location: str, day: date, hour: int, *, counts: list[int]) -> int | None:
        """Rule 3: return the hour's one count, or None if nobody can say which it is."""
        if len(counts) == 1:
            return counts[0]
        if len(set(counts)) == 1:
            kind, one = QuirkKind.DUPLICATE, counts[0]
            action = f"{len(counts)} identical rows count once"
        else:
            kind, one = QuirkKind.DIFFERING, self._choose(counts)
            action = f"{len(counts)} rows differ ({', '.join(map(str, counts[:5]))})"
            if one > MAX_COUNT:
                action += f"; their sum is above {MAX_COUNT:,}"
            elif one >= 0:
                action += f"; {self.policy} taken"
        self.quirks.append(Quirk(location, day, hour, kind, sum(counts), action))
        if not 0 <= one <= MAX_COUNT:
            return None
        self._day(location, day).excluded += sum(counts) - one
        return one

    def _choose(self, counts: list[int]) -> int:
        match self.policy:
            case None:
                return -1
            case "first":
                return counts[0]
            case "last":
                return counts[-1]
            case "sum":
                return sum(counts)

    def _stop(self, location: str, day: date) -> None:
        record = self._day(location, day)
        record.excluded = record.file_total
        action = "the day is left out until --duplicates first, last or sum is given"
        self.quirks.append(
            Quirk(location, day, None, QuirkKind.DIFFERING, record.file_total, action)
        )

    def _move(
        self, location: str, day: date, hour: int, *, count: int, found: dict[int, int]
    ) -> None:
        """Rule 4: add the count of an hour that did not exist to the first one after the gap."""
        second = after_gap(day, hour, self.zone)
        local = self._local(second)
        total = found.get(second, 0) + count
        if total > MAX_COUNT:
            self._day(location, day).excluded += count
            action = f"left out: with hour {local.hour:02} it would be {total}"
            self.quirks.append(Quirk(location, day, hour, QuirkKind.TOO_LARGE, count, action))
            return
        own = "added to" if second in found else "the only count of"
        action = f"no such hour: {own} {local:%Y-%m-%d %H:%M}, the first instant after it"
        self.quirks.append(Quirk(location, day, hour, QuirkKind.NO_SUCH_HOUR, count, action))
        found[second] = total
        if local.date() != day:
            self._day(location, day).excluded += count
            self._day(location, local.date()).excluded -= count

    def _missing(self, location: str, found: dict[int, int]) -> None:
        """Rule 6: list the hours without a reading, by local day, and a late beginning."""
        if not found:
            return
        first, last = min(found), max(found)
        begins = min(
            day for day in (min(days, default=None) for days in self.table.values()) if day
        )
        if self._local(first).date() > begins:
            local = self._local(first)
            action = f"begins {local:%Y-%m-%d %H:%M}; nothing is said of the time before"
            quirk = Quirk(location, local.date(), None, QuirkKind.BEGINS_LATE, 0, action)
            self.quirks.append(quirk)
        gone: dict[date, list[datetime]] = {}
        for second in range(first, last, HOUR_S):
            if second not in found:
                local = self._local(second)
                if not (local.fold and second - HOUR_S in found):  # the unseen second pass
                    gone.setdefault(local.date(), []).append(local)
        for day, hours in gone.items():
            span = f"{hours[0]:%H}" if len(hours) == 1 else f"{hours[0]:%H} to {hours[-1]:%H}"
            action = f"{len(hours)} hours ({span}) have no row: not observed"
            quirk = Quirk(location, day, None, QuirkKind.MISSING, len(hours), action)
            self.quirks.append(quirk)

    def _when(self, day: date, hour: int) -> tuple[int, ...]:
        """Return `instants`, remembered; CountsFileError if UTC hours do not fit the zone's."""
        found = self._instants.get((day, hour))
        if found is None:
            found = self._instants[day, hour] = instants(day, hour, self.zone)
            if any(second % HOUR_S for second in found):
                raise CountsFileError(
                    f"in {self.zone.key} hour {hour} of {day} does not begin on an hour of UTC;"
                    " hourly counts cannot be placed without dividing them"
                )
        return found

    def _local(self, second: int) -> datetime:
        return datetime.fromtimestamp(second, self.zone)


def _two_passes(counts: list[int], copies: int) -> tuple[int, int] | None:
    """Rule 5: return both passes of a repeated hour, if that many rows can only mean this."""
    if len(counts) != 2 * copies:
        return None
    if counts == counts[:2] * copies:
        return counts[0], counts[1]
    halves = counts[:copies], counts[copies:]
    if all(len(set(half)) == 1 for half in halves):
        return counts[0], counts[copies]
    return None
