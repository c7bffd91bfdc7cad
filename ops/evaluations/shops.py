"""Simulated shops as their counters see them, quarter by quarter, and what may be wrong with these.

The people are those of `simulators.traffic`: everyone takes one of the shop's doors, in and out by
themselves, and each door's counter misses some. A fault changes what one counter says from an
instant on; what it says before, and what the others say, stays.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from math import sqrt
from zoneinfo import ZoneInfo

from server.health.conditions.stuck_counter import Reading
from server.health.series import HOUR_S, QUARTER_S, Quarter, Series
from server.health.usual import AHEAD_DAYS, NOTHING, Door, Usual, learn
from server.insight.profile import Cell, Counter
from server.rollup.buckets import day_start, hour_edges, local
from server.rollup.opening import Calendar, Opening
from simulators.shapes import ALWAYS, SHOP
from simulators.traffic import people, random_door, random_sensor, sense

ZONE = "Europe/Stockholm"
FIRST = date(2026, 8, 31)  # a Monday: the time the clock goes back lies within
_HOUR_QUARTERS = 4
_MANY = 400


@dataclass(slots=True)
class Seen:
    """What a counter saw, by quarter: people in and out, and the seconds that it observed."""

    entered: list[float]
    left: list[float]
    observed_s: list[int]

    def changed(self, fault: "Fault", at: int, high: int, rng: random.Random) -> "Seen":
        """Return what it sees with a fault in the quarters [at, high)."""
        ill = Seen(self.entered[:high], self.left[:high], self.observed_s[:high])
        fault(ill, at, rng)
        return Seen(
            ill.entered + self.entered[high:],
            ill.left + self.left[high:],
            ill.observed_s + self.observed_s[high:],
        )


@dataclass(slots=True)
class Shop:
    """A shop's calendar, and its counters on one grid of quarters from `start_s` on."""

    name: str
    calendar: Calendar
    start_s: int
    doors: list[Seen]
    is_open: list[bool]
    every: int = 1
    """Quarters that a reading holds: nobody can look at a part of one."""

    @property
    def quarters(self) -> int:
        return len(self.is_open)

    def day(self, number: int) -> date:
        """Return the local day of a quarter."""
        return local(self.calendar.zone, self.start_s + number * QUARTER_S).date()

    def number(self, day: date) -> int:
        """Return the first quarter of a local day."""
        return (day_start(self.calendar.zone, day) - self.start_s) // QUARTER_S

    def readings(self, door: Seen) -> list[Reading]:
        """Return a counter's hours, where it is read by the hour, those without one among them."""
        if self.every != _HOUR_QUARTERS:
            return []
        return [
            Reading(
                self.start_s + low * QUARTER_S,
                HOUR_S if all(door.observed_s[low : low + 4]) else 0,
                (int(sum(door.entered[low : low + 4]) + sum(door.left[low : low + 4])),),
            )
            for low in range(0, self.quarters - _HOUR_QUARTERS + 1, _HOUR_QUARTERS)
        ]


def shop(seed: int, number: int, *, days: int, doors: int, busy: float | None = None) -> Shop:
    """Return a shop of so many doors; `busy`: people who enter on a median day."""
    rng = random.Random(f"{seed}/shop/{number}")  # noqa: S311 - draws shops, no secrets
    door = random_door(rng, f"shop-{number}", zone=ZONE)
    volume = busy if busy is not None else min(4_000.0, max(60.0, door.median_day))
    door = replace(door, median_day=volume)
    start = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=ZoneInfo(ZONE))
    start_s = int(start.timestamp())
    end_s = day_start(ZONE, FIRST + timedelta(days=days))
    count = (end_s - start_s) // QUARTER_S
    closed = [FIRST + timedelta(days=offset) for offset in range(days) if rng.random() < 0.01]
    weekly = tuple((hours,) if hours is not None else () for hours in SHOP)
    calendar = Calendar(ZONE, Opening(weekly, tuple((day, ()) for day in closed)))
    shares = [rng.gammavariate(6.0, 1.0) for _ in range(doors)]
    sensors = [random_sensor(rng) for _ in range(doors)]
    passages: list[list[object]] = [[] for _ in range(doors)]
    shut = [(d.start_s * 1000, d.end_s * 1000) for d in map(calendar.day, closed)]
    crowd = people(door, seed=seed, start_ms=start_s * 1000, end_ms=end_s * 1000)
    chosen = rng.choices(range(doors), shares, k=100_003) if doors > 1 else [0]
    seen = [Seen([0.0] * count, [0.0] * count, [QUARTER_S] * count) for _ in range(doors)]
    for at, passage in enumerate(crowd):
        if any(low <= passage.at_ms < high for low, high in shut):
            continue
        passages[chosen[at % len(chosen)]].append(passage)
    for mine, sensor, own in zip(passages, sensors, seen, strict=True):
        for crossing in sense(mine, sensor):  # type: ignore[arg-type]
            quarter = (crossing.at_ms // 1000 - start_s) // QUARTER_S
            own.entered[quarter] += crossing.entered
            own.left[quarter] += crossing.left
    starts = range(start_s, end_s, QUARTER_S)
    opened = {at for day in range(days) for at in _open(calendar, FIRST + timedelta(days=day))}
    found = Shop(door.name, calendar, start_s, seen, [at in opened for at in starts])
    for own in seen:
        _lose(own, rng)
    return found


def _open(calendar: Calendar, day: date) -> list[int]:
    return [at for low, high in calendar.day(day).open for at in range(low, high, QUARTER_S)]


def _lose(seen: Seen, rng: random.Random) -> None:
    """Let a counter be away for an hour to six, once in three weeks: no fault, nothing known."""
    at = 0
    while (at := at + round(rng.expovariate(1 / (21 * 96)))) < len(seen.entered):
        for number in range(at, min(len(seen.entered), at + rng.randint(4, 24))):
            seen.entered[number] = seen.left[number] = 0.0
            seen.observed_s[number] = 0


def always_open(
    name: str, start_s: int, hours: Sequence[Sequence[float | None]], zone: str
) -> Shop:
    """Return a place that never closes, whose counters are known by the hour alone.

    An hour's people are spread over its quarters, and half of them go out.
    """
    weekly = tuple((day,) for day in ALWAYS if day is not None)
    doors = []
    for counts in hours:
        own = Seen([], [], [])
        for count in counts:
            for part in range(_HOUR_QUARTERS):
                people_here = 0 if count is None else (int(count) + part) // _HOUR_QUARTERS
                own.entered.append(float(people_here - people_here // 2))
                own.left.append(float(people_here // 2))
                own.observed_s.append(0 if count is None else QUARTER_S)
        doors.append(own)
    calendar = Calendar(zone, Opening(weekly))
    is_open = [True] * len(doors[0].entered)
    return Shop(name, calendar, start_s, doors, is_open, every=_HOUR_QUARTERS)


def learnt(place: Shop, doors: Sequence[Seen], day: date, *, back_days: int) -> list[Usual]:
    """Return what the counters are used to at the beginning of a day."""
    first = max(place.day(0), day - timedelta(days=119))
    stop = place.number(day)
    cells: list[Cell] = []
    numbers: list[tuple[int, int]] = []
    for offset in range((day - first).days + AHEAD_DAYS):
        for cell in _cells(place.calendar, first + timedelta(days=offset)):
            cells.append(cell)
            at = (cell.start_s - place.start_s) // QUARTER_S
            numbers.append((at, at + (cell.end_s - cell.start_s) // QUARTER_S))
    known = [each for each in numbers if each[1] <= stop]
    ahead = [None] * (len(numbers) - len(known))
    found = []
    for door in doors:
        coverage = [sum(door.observed_s[a:b]) / (900 * (b - a)) for a, b in known] + ahead
        came = [sum(door.entered[a:b]) for a, b in known] + ahead
        went = [sum(door.left[a:b]) for a, b in known] + ahead
        found.append(Door(Counter(came, coverage), Counter(went, coverage)))
    return learn(cells, found, today=day.toordinal(), back_days=back_days)


_CELLS: dict[tuple[str, Opening, date], list[Cell]] = {}


def _cells(calendar: Calendar, day: date) -> list[Cell]:
    """Return a day's hours; a calendar's are the same each time, and asked for often."""
    key = calendar.zone, calendar.opening, day
    if key not in _CELLS:
        edges = [*hour_edges(calendar.zone, day), day_start(calendar.zone, day + timedelta(days=1))]
        usual = day not in dict(calendar.opening.exceptions)
        found = []
        for low, high in pairwise(edges):
            shown = local(calendar.zone, low)
            open_s = sum(b - a for a, b in calendar.open_between(low, high))
            slot = shown.weekday() * 24 + shown.hour
            found.append(Cell(low, high, slot, day.toordinal(), open_s, usual and not shown.fold))
        _CELLS[key] = found
    return _CELLS[key]


def series(
    place: Shop, doors: Sequence[Seen], usual: Sequence[Usual], *, low: int, high: int
) -> list[Series]:
    """Return the counters' quarters [low, high)."""
    found = []
    for door, used in zip(doors, usual or [NOTHING] * len(doors), strict=True):
        quarters = []
        for number in range(max(0, low), high):
            start_s = place.start_s + number * QUARTER_S
            opened = place.is_open[number]
            usual_in, usual_out = used.at(start_s) if opened else (None, None)
            quarters.append(
                Quarter(
                    start_s,
                    door.entered[number],
                    door.left[number],
                    door.observed_s[number],
                    opened,
                    usual_in,
                    usual_out,
                )
            )
        found.append(Series(quarters, used.spread, used.share_variance, used.tails, used.silence))
    return found


# -- faults --------------------------------------------------------------------------------------

Fault = Callable[[Seen, int, random.Random], None]
"""Changes what a counter says from a quarter on; within that quarter from a random moment."""


def dead(seen: Seen, at: int, rng: random.Random) -> None:
    """Count nobody any more."""
    covered(0.0, 0.0)(seen, at, rng)


def covered(part_in: float, part_out: float) -> Fault:
    """Return a counter that sees a part of those who come in, and of those who go out."""

    def fault(seen: Seen, at: int, rng: random.Random) -> None:
        when = rng.random()
        for number in range(at, len(seen.entered)):
            before = when if number == at else 0.0
            for counts, part in ((seen.entered, part_in), (seen.left, part_out)):
                chance = before + (1 - before) * part
                counts[number] = _thinned(int(counts[number]), chance, rng)

    return fault


def _thinned(people: int, chance: float, rng: random.Random) -> float:
    """Return how many of these are seen; of many, as the normal law has it."""
    if people > _MANY:
        drawn = round(rng.gauss(people * chance, sqrt(people * chance * (1 - chance))))
        return float(min(people, max(0, drawn)))
    return float(sum(rng.random() < chance for _ in range(people)))


def stuck(seen: Seen, at: int, rng: random.Random) -> None:
    """Count as many in each quarter, from the next whole hour on, as in the one before."""
    first = at + -at % _HOUR_QUARTERS
    for counts in (seen.entered, seen.left):
        counts[first:] = [counts[first - 1]] * len(counts[first:])


def swapped(seen: Seen, at: int, rng: random.Random) -> None:
    """Take in for out."""
    seen.entered[at:], seen.left[at:] = seen.left[at:], seen.entered[at:]


def haunted(seen: Seen, at: int, rng: random.Random) -> None:
    """Count somebody every few minutes, day and night."""
    for number in range(at, len(seen.entered)):
        seen.entered[number] += rng.randint(2, 6)
        seen.left[number] += rng.randint(2, 6)


def louder(factor: float) -> Fault:
    """Return a counter that counts so many times as many."""

    def fault(seen: Seen, at: int, rng: random.Random) -> None:
        for number in range(at, len(seen.entered)):
            seen.entered[number] = float(round(factor * seen.entered[number]))
            seen.left[number] = float(round(factor * seen.left[number]))

    return fault
