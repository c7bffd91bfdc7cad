"""When a site is open, as instants: weekly hours, exceptions, past midnight, both passes of a fold.

Decided here: an instant is open if its local wall time lies in an opening interval, so an interval
in a spring gap is shortened and in an autumn fold both passes count. Opening times that are not on
a quarter of an hour are rounded outward to the quarters that contain them: counts are kept by
quarters and never interpolated. A site without weekly rows is always open.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import NamedTuple

from server.rollup.buckets import QUARTER_S, day_start, has_transition, local

Interval = tuple[int, int]
"""[start, end) in whole seconds (instants) or minutes (wall), as the name says."""

Weekly = tuple[tuple[Interval, ...], ...]
"""Opening intervals in wall minutes by weekday, Monday first."""

_DAY_MIN = 1440
_CACHED_DAYS = 20_000


MAX_RESOLUTION_S = 3600


class Part(NamedTuple):
    """Quarters [from_s, until_s) to add up.

    A reading longer than a quarter is counted in the quarter that it begins in; if it reaches
    from [guard_s, from_s) into the part it belongs to it: opening is rounded outward to readings.
    """

    guard_s: int
    from_s: int
    until_s: int


@dataclass(frozen=True, slots=True)
class Opening:
    """A site's rules, in wall minutes; `weekly` None: always open. Days are inclusive."""

    weekly: Weekly | None = None
    exceptions: tuple[tuple[date, tuple[Interval, ...]], ...] = ()
    opens_on: date | None = None
    closes_on: date | None = None


@dataclass(frozen=True, slots=True)
class Day:
    """A local day: its edges, its open intervals and their seconds."""

    start_s: int
    end_s: int
    open: tuple[Interval, ...]
    open_s: int


@dataclass(slots=True)
class Calendar:
    """A zone and its opening rules; remembers the days it has been asked for."""

    zone: str
    opening: Opening
    _exceptions: Mapping[date, tuple[Interval, ...]] = field(init=False)
    _days: dict[date, Day] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._exceptions = dict(self.opening.exceptions)

    @property
    def remembered(self) -> int:
        """How many days it remembers."""
        return len(self._days)

    def day(self, day: date) -> Day:
        """Return a local day with its open intervals."""
        found = self._days.get(day)
        if found is None:
            if len(self._days) >= _CACHED_DAYS:
                self._days.clear()
            found = self._days[day] = self._compute(day)
        return found

    def open_between(self, start_s: int, end_s: int) -> list[Interval]:
        """Return the open intervals within [start_s, end_s), in order and joined."""
        found: list[Interval] = []
        day, last = local(self.zone, start_s).date(), local(self.zone, end_s - 1).date()
        while day <= last:
            for low, high in self.day(day).open:
                low, high = max(low, start_s), min(high, end_s)
                if low >= high:
                    continue
                if found and found[-1][1] == low:
                    low = found.pop()[0]
                found.append((low, high))
            day += timedelta(days=1)
        return found

    def open_s(self, start_s: int, end_s: int, *, day: date) -> int:
        """Return how many seconds of [start_s, end_s), which begins in a local `day`, are open."""
        whole = self.day(day)
        if whole.start_s == start_s and whole.end_s == end_s:
            return whole.open_s
        return sum(high - low for low, high in self.open_between(start_s, end_s))

    def parts(self, start_s: int, end_s: int) -> list[Part]:
        """Return the open parts of [start_s, end_s), each with its guard."""
        found: list[Part] = []
        guard = start_s
        for low, high in self.open_between(start_s, end_s):
            found.append(Part(max(guard, low - MAX_RESOLUTION_S + QUARTER_S), low, high))
            guard = high
        return found

    def _compute(self, day: date) -> Day:
        start_s, end_s = day_start(self.zone, day), day_start(self.zone, day + timedelta(days=1))
        wall = self._wall(day)
        if wall == ((0, _DAY_MIN),):
            instants: tuple[Interval, ...] = ((start_s, end_s),)
        elif has_transition(self.zone, day):
            instants = self._walk(start_s, end_s, wall=wall)
        else:
            instants = tuple((start_s + low * 60, start_s + high * 60) for low, high in wall)
        return Day(start_s, end_s, instants, sum(high - low for low, high in instants))

    def _wall(self, day: date) -> tuple[Interval, ...]:
        """Return a day's open wall minutes, the evening before's tail included."""
        today = [(low, min(high, _DAY_MIN)) for low, high in self._hours(day)]
        before = self._hours(day - timedelta(days=1))
        tail = [(0, high - _DAY_MIN) for _, high in before if high > _DAY_MIN]
        return joined([*tail, *today])

    def _hours(self, day: date) -> tuple[Interval, ...]:
        """Return the intervals that begin on `day`, rounded outward to quarters."""
        rules = self.opening
        if rules.opens_on is not None and day < rules.opens_on:
            return ()
        if rules.closes_on is not None and day > rules.closes_on:
            return ()
        hours = self._exceptions.get(day)
        if hours is None:
            hours = ((0, _DAY_MIN),) if rules.weekly is None else rules.weekly[day.weekday()]
        return tuple((low // 15 * 15, -(-high // 15) * 15) for low, high in hours)

    def _walk(
        self, start_s: int, end_s: int, *, wall: tuple[Interval, ...]
    ) -> tuple[Interval, ...]:
        quarters: list[Interval] = []
        for at in range(start_s, end_s, QUARTER_S):
            shown = local(self.zone, at)
            minute = shown.hour * 60 + shown.minute
            if any(low <= minute < high for low, high in wall):
                quarters.append((at, at + QUARTER_S))
        return joined(quarters)


def joined(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the union of intervals: in order, apart from each other."""
    found: list[Interval] = []
    for low, high in sorted(intervals):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        elif low < high:
            found.append((low, high))
    return tuple(found)


def without(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """Return what is left of intervals outside the holes: in order, apart from each other."""
    found: list[Interval] = []
    cut = joined(holes)
    for low, high in joined(intervals):
        for start, end in cut:
            if end <= low or start >= high:
                continue
            if start > low:
                found.append((low, start))
            low = max(low, end)
        if low < high:
            found.append((low, high))
    return found


def overlap(intervals: Iterable[Interval], start_s: int, end_s: int) -> int:
    """Return how much of [start_s, end_s) the (disjoint) intervals cover."""
    return sum(max(0, min(high, end_s) - max(low, start_s)) for low, high in intervals)
