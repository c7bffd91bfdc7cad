"""Leeds' streets as the doors of one place that never closes, and what is wrong with their counts.

The file is real, so are its faults. Two rules tell them, by the counts alone and before any
detector has looked; what they do not prove counts as a false alarm.

1. *Invented*: a day whose hours are those of another day of its street, within `REACH` days, all
   times one factor, to the rounding, in `ALIKE` hours or more that hold `MANY` people (of whom
   chance alone makes ten more or fewer). Nobody was counted: such days, and those of the same
   street between two that lie `BETWEEN` days apart at most, are taken for not observed.
2. *Dead*: hours without anybody at one street, in which `LOST` people are usual (the median of its
   last eight such hours of the week) while the other streets hold half of their usual or more. An
   alarm at that street which judges such hours is a finding, and no false alarm.
"""

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median
from zoneinfo import ZoneInfo

from ops.evaluations import shops
from ops.evaluations.shops import Shop
from server.health.judgement import Judgement
from simulators.counts_file import interpret, read_rows

ZONE = "Europe/London"
REACH = 70
ALIKE = 10
MANY = 100
BETWEEN = 7
LOST = 200
_WEEKS = 8
_FEWEST = 3
_HOUR_S = 3_600

Counts = Mapping[int, int]
"""People by the instant at which their hour begins."""
Stretch = tuple[int, int]


def read(path: Path) -> dict[str, Counts]:
    """Return the counts of each street, by name."""
    file = interpret(read_rows(path), zone=ZONE, duplicates="first")
    return {
        name: {each.start_s: each.people for each in file.readings[name]}
        for name in sorted(file.readings)
    }


def first_day(streets: Mapping[str, Counts]) -> date:
    """Return the first whole day on which every street is counted."""
    first = max(min(counts) for counts in streets.values())
    return datetime.fromtimestamp(first, ZoneInfo(ZONE)).date() + timedelta(days=1)


def last_day(streets: Mapping[str, Counts]) -> date:
    """Return the day after the last that any street is counted."""
    last = max(max(counts) for counts in streets.values())
    return datetime.fromtimestamp(last, ZoneInfo(ZONE)).date() + timedelta(days=1)


def invented(counts: Counts) -> set[date]:
    """Return the days of a street on which nobody was counted (rule 1)."""
    zone = ZoneInfo(ZONE)
    days: dict[date, dict[int, int]] = defaultdict(dict)
    for at, people in counts.items():
        shown = datetime.fromtimestamp(at, zone)
        if not shown.fold:
            days[shown.date()][shown.hour] = people
    ordered = sorted(days)
    found: set[date] = set()
    for number, day in enumerate(ordered):
        until = bisect_right(ordered, day + timedelta(days=REACH))
        for other in ordered[number + 1 : until]:
            if _alike(days[day], days[other]):
                found |= {day, other}
    for low, high in pairwise(sorted(found)):
        if (high - low).days <= BETWEEN:
            found |= {low + timedelta(days=n) for n in range(1, (high - low).days)}
    return found


def _alike(one: Mapping[int, int], other: Mapping[int, int]) -> bool:
    """Return whether the hours of two days are the same but for one factor."""
    hours = one.keys() & other.keys()
    whole, other_whole = sum(one[h] for h in hours), sum(other[h] for h in hours)
    many = [h for h in hours if one[h] >= MANY and other[h] >= MANY]
    if len(many) < ALIKE:
        return False
    factor = other_whole / whole
    most = 1.5 * max(1.0, factor) + 0.5  # both are rounded
    return all(abs(other[h] - factor * one[h]) <= most for h in many)


def dead(streets: Mapping[str, Counts]) -> dict[str, list[Stretch]]:
    """Return by street the stretches without anybody that are faults (rule 2)."""
    usual = {name: _usual(counts) for name, counts in streets.items()}
    found: dict[str, list[Stretch]] = {}
    for name, counts in streets.items():
        others = [each for each in streets if each != name]
        found[name] = [
            (low, high)
            for low, high in _zeros(counts)
            if sum(usual[name].get(at, 0.0) for at in range(low, high, _HOUR_S)) >= LOST
            and _busy([(streets[each], usual[each]) for each in others], low, high) >= 0.5
        ]
    return found


def _usual(counts: Counts) -> dict[int, float]:
    zone = ZoneInfo(ZONE)
    last: dict[tuple[int, int], deque[int]] = defaultdict(lambda: deque(maxlen=_WEEKS))
    found = {}
    for at in sorted(counts):
        shown = datetime.fromtimestamp(at, zone)
        known = last[shown.weekday(), shown.hour]
        if len(known) >= _FEWEST:
            found[at] = float(median(known))
        known.append(counts[at])
    return found


def _zeros(counts: Counts) -> list[Stretch]:
    found: list[Stretch] = []
    for at in sorted(at for at, people in counts.items() if not people):
        if found and found[-1][1] == at:
            found[-1] = found[-1][0], at + _HOUR_S
        else:
            found.append((at, at + _HOUR_S))
    return found


def _busy(others: Sequence[tuple[Counts, Mapping[int, float]]], low: int, high: int) -> float:
    """Return what the others hold of their usual, in the middle; 0 if that is not known."""
    parts = []
    for counts, usual in others:
        hours = [at for at in range(low, high, _HOUR_S) if at in counts and usual.get(at)]
        if hours:
            parts.append(sum(counts[at] for at in hours) / sum(usual[at] for at in hours))
    return median(parts) if parts else 0.0


def place(
    streets: Mapping[str, Counts],
    *,
    first: date | None = None,
    until: date | None = None,
    gone: Mapping[str, Set[date]] | None = None,
) -> Shop:
    """Return the streets as doors, without invented days, from `first` to before `until`.

    `gone`: the invented days by street, where they are known; else those that this stretch tells.
    """
    zone = ZoneInfo(ZONE)
    instants = [at for counts in streets.values() for at in (min(counts), max(counts))]
    low = first or datetime.fromtimestamp(min(instants), zone).date()
    high = until or datetime.fromtimestamp(max(instants), zone).date() + timedelta(days=1)
    start_s, end_s = _midnight(low, zone), _midnight(high, zone)
    hours: list[list[float | None]] = []
    for name, counts in streets.items():
        if gone is None:
            days: Set[date] = invented({at: n for at, n in counts.items() if start_s <= at < end_s})
        else:
            days = gone[name]
        hours.append(
            [
                None if datetime.fromtimestamp(at, zone).date() in days else counts.get(at)
                for at in range(start_s, end_s, _HOUR_S)
            ]
        )
    return shops.always_open("streets", start_s, hours, ZONE)


def proof(streets: Mapping[str, Counts]) -> Callable[[Judgement, int], bool]:
    """Return what tells whether an alarm, and when it fired, is about hours that were dead."""
    stretches = list(dead(streets).values())

    def proven(judgement: Judgement, fired_s: int) -> bool:
        since_s = judgement.since.timestamp()
        own = stretches[judgement.subject.row - 1]
        return any(since_s < high and low < fired_s for low, high in own)

    return proven


def _midnight(day: date, zone: ZoneInfo) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
