"""What conditions find of faults that were put in, how soon, and how often they cry wolf.

Simulated shops (`ops.evaluations.shops`) are looked at as the server looks at them: through
`server.health.rounds`, quarter by quarter while open and hourly while closed. Times are from the
fault to the first look that finds it, in the data's own time; delivery, and the server's next look,
come on top (some minutes). A false alarm is an episode that begins where no fault was put in.
"""

import math
import random
from collections import Counter as Tally
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from operator import add
from typing import NamedTuple

from ops.evaluations import shops
from ops.evaluations.shops import Fault, Seen, Shop
from server.health.conditions import blocked_view
from server.health.conditions.stuck_counter import WINDOWS, Reading
from server.health.judgement import Condition, Judgement, Standing, Subject, SubjectKind
from server.health.rounds import DAILY_DAYS, QUICK_DAYS, Counter, daily, quick, quick_of
from server.health.series import GROUP, QUARTER_S, Series, deviation
from server.health.usual import Usual
from server.health.verdict import NEVER, Before

WARM_DAYS = 56
_DAY = 96
_TRIES = 100_000


@dataclass(slots=True)
class Memory:
    """What is known of each condition from look to look, as the server keeps it."""

    known: dict[tuple[Subject, Condition], Before] = field(default_factory=dict)
    begun: list[Judgement] = field(default_factory=list)
    fired_s: list[int] = field(default_factory=list)
    """When each of `begun` fired."""

    def __call__(self, subject: Subject, condition: Condition) -> Before:
        return self.known.get((subject, condition), NEVER)

    def take(self, judgements: Sequence[Judgement], *, now_s: int) -> None:
        """Remember what is known; unknown changes nothing."""
        for each in judgements:
            if each.standing is Standing.UNKNOWN:
                continue
            key = each.subject, each.condition
            firing = each.standing is Standing.FIRING
            if firing and not self(*key).firing:
                self.begun.append(each)
                self.fired_s.append(now_s)
            from_s = None if each.affected_from is None else int(each.affected_from.timestamp())
            self.known[key] = Before(firing, int(each.since.timestamp()), from_s)


@dataclass(slots=True)
class Watched:
    """A shop that is being looked at, its counters perhaps changed."""

    place: Shop
    doors: Sequence[Seen]
    memory: Memory = field(default_factory=Memory)
    peers: Mapping[int, Sequence[float]] = field(default_factory=dict)
    only: int | None = None
    """The one counter that is judged; the others stand beside it."""
    _day: int = -1
    _whole: list[Series] = field(default_factory=list)
    _usual: list[Usual] = field(default_factory=list)
    _low: int = 0
    _hours: list[list[Reading]] = field(default_factory=list)

    def look(self, number: int) -> None:
        """Look after quarter `number` has ended, or in it: the next is not there yet."""
        self._learn(number)
        now_s = self.place.start_s + (number + 1) * QUARTER_S
        counters = self._counters(number, QUICK_DAYS * _DAY)
        if self.only is None:
            found = quick(counters, self.memory, now_s=now_s)
        else:
            found = quick_of(self.only, counters, self.memory, now_s=now_s)
        self.memory.take(found, now_s=now_s)

    def knows(self, number: int) -> bool:
        """Return whether it is known what is usual of the one counter in a quarter."""
        self._learn(number)
        at_s = self.place.start_s + number * QUARTER_S
        return self.only is None or self._usual[self.only].at(at_s)[0] is not None

    def close(self, number: int) -> None:
        """Look at the days, once the shop has been closed for more than an hour, or at midnight."""
        self._learn(number)
        now_s = self.place.start_s + (number + 1) * QUARTER_S
        site = Subject(SubjectKind.SITE, 1)
        counters = self._counters(number, DAILY_DAYS * _DAY)
        found = daily(site, counters, self.peers, self.memory, now_s=now_s)
        self.memory.take(found, now_s=now_s)

    def _counters(self, number: int, length: int) -> list[Counter]:
        high = number + 1 - self._low
        return [
            Counter(
                Subject(SubjectKind.SPOT, at + 1),
                replace(whole, quarters=whole.quarters[max(0, high - length) : high]),
                self._readings(at, number + 1),
                days=usual.days,
            )
            for at, (whole, usual) in enumerate(zip(self._whole, self._usual, strict=True))
        ]

    def _readings(self, door: int, high: int) -> list[Reading]:
        """Return a counter's last hours before a quarter."""
        if not self._hours:
            self._hours = [self.place.readings(each) for each in self.doors]
        last = self._hours[door][max(0, high // 4 - WINDOWS[-1]) : high // 4]
        return [each for each in last if each.length_s]

    def _learn(self, number: int) -> None:
        day = self.place.day(number)
        if day.toordinal() == self._day:
            return
        self._day = day.toordinal()
        self._usual = shops.learnt(self.place, self.doors, day, back_days=DAILY_DAYS)
        first = self.place.number(day)
        self._low = max(0, first - DAILY_DAYS * _DAY)
        high = min(self.place.quarters, self.place.number(day + timedelta(days=1)))
        self._whole = shops.series(self.place, self.doors, self._usual, low=self._low, high=high)


def looks(place: Shop, low: int, high: int, *, every: int | None = None) -> list[tuple[int, bool]]:
    """Return after which quarters to look, and whether it is the look at the days.

    `every`: so many quarters pass from one to the next, where it is not what a reading holds.
    """
    found = []
    never_closes = all(place.is_open)
    step = every or place.every
    for number in range(low, high):
        if number % step != step - 1:
            continue
        if place.is_open[number] or number % 4 == 3:
            found.append((number, False))
        before = place.is_open[max(0, number - 6) : number + 1]
        if before == [True, *[False] * 6] or (
            never_closes and place.day(number + 1) != place.day(number + 1 - step)
        ):
            found.append((number, True))
    return found


def run(
    watched: Watched,
    low: int,
    high: int,
    *,
    until: Condition | None = None,
    of: Sequence[Subject] = (),
    every: int | None = None,
) -> int | None:
    """Look from quarter to quarter; return the first after which `until` fires of one of these."""
    for number, whole in looks(watched.place, low, high, every=every):
        if whole:
            watched.close(number)
        elif until not in _BY_THE_DAY:
            watched.look(number)
        if until is not None and any(
            each.condition is until and each.subject in of for each in watched.memory.begun
        ):
            return number
    return None


class Alarms(NamedTuple):
    """What fired where no fault was put in: what is `false`, what is `proven` in real data."""

    false: Tally[Condition]
    proven: Tally[Condition]
    years: float
    """Device years that were observed."""


def _none(judgement: Judgement, fired_s: int) -> bool:
    return False


def false_alarms(
    places: Sequence[Shop],
    *,
    warm_days: int = WARM_DAYS,
    proven: Callable[[Judgement, int], bool] = _none,
) -> Alarms:
    """Look at shops in which nothing is wrong, but for what is `proven` of real ones."""
    found = Alarms(Tally(), Tally(), 0.0)
    watched = [Watched(place, place.doors) for place in places]
    for each in watched:
        place = each.place
        low = place.number(place.day(0) + timedelta(days=warm_days))
        run(each, low, place.quarters)
        for judgement, fired_s in zip(each.memory.begun, each.memory.fired_s, strict=True):
            kind = found.proven if proven(judgement, fired_s) else found.false
            kind[judgement.condition] += 1
        observed_s = sum(sum(door.observed_s[low:]) for door in place.doors)
        found = found._replace(years=found.years + observed_s / 86_400 / 365)
    return found


@dataclass(slots=True)
class Found:
    """Of faults of one kind: how long each took to be found, in seconds; None: it was not."""

    times_s: list[float | None] = field(default_factory=list)

    @property
    def share(self) -> float:
        known = [each for each in self.times_s if each is not None]
        return len(known) / len(self.times_s) if self.times_s else 0.0

    def quantile(self, share: float) -> float:
        """Return the time within which such a share was found; infinite if fewer were."""
        ordered = sorted(math.inf if each is None else each for each in self.times_s)
        if not ordered:
            return math.inf
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def put_in(
    place: Shop,
    fault: Fault,
    condition: Condition,
    rng: random.Random,
    *,
    within: timedelta,
    busy: float = 0.0,
    part: float = 0.0,
    busy_h: int = 1,
    warm_days: int = WARM_DAYS,
    every: int | None = None,
    beside: int | None = None,
) -> float | None:
    """Put a fault into one counter of a shop while it is open; return how long it went unfound.

    `busy`: only where so many people an hour come in and out, now and in `busy_h` hours to come,
    and `part` of the busiest hour of the week before.
    It is where one knows what is usual: of others nothing is said. `every`: see `looks`. `beside`:
    only where so many others are there; None: all. Of what shows only while people come, it is the
    time in which the shop was open.
    """
    doors = list(place.doors)
    first = place.number(place.day(0) + timedelta(days=warm_days))
    last = place.quarters - int(within.total_seconds()) // QUARTER_S
    for _ in range(_TRIES):
        ill, at = rng.randrange(len(doors)), rng.randrange(first, last)
        chosen = doors[ill]
        if (
            place.is_open[at]
            and chosen.observed_s[at]
            and _beside(doors, at) >= (len(doors) if beside is None else beside + 1)
            and _an_hour(chosen, at, hours=busy_h) >= max(busy, part * _busiest(chosen, at))
        ):
            watched = Watched(place, doors, only=ill)
            if watched.knows(at):
                break
    else:
        raise ValueError(f"{place.name} has no such moment")
    high = min(place.quarters, at + int(within.total_seconds()) // QUARTER_S)
    doors[ill] = chosen.changed(fault, at, high, rng)
    watched = Watched(place, doors, only=ill)
    right = Subject(SubjectKind.SPOT, ill + 1), Subject(SubjectKind.SITE, 1)
    number = run(watched, at, high, until=condition, of=right, every=every)
    if number is None:
        return None
    opened = sum(place.is_open[at : number + 1])  # time while closed tells nothing of a door
    return opened * QUARTER_S if condition in _OPEN_TIME else (number + 1 - at) * QUARTER_S


def _beside(doors: Sequence[Seen], number: int) -> int:
    """Return how many counters observed a quarter."""
    return sum(door.observed_s[number] > 0 for door in doors)


def _busiest(seen: Seen, number: int) -> float:
    """Return how many come in or go out in the busiest hour of the week before."""
    low = max(0, number - 7 * _DAY)
    return 4 * max(map(add, seen.entered[low:number], seen.left[low:number]), default=0.0)


def _an_hour(seen: Seen, number: int, *, hours: int) -> float:
    """Return how many come in or go out in an hour, for hours from here on: the least half hour."""
    halves = [
        sum(seen.entered[low : low + 2]) + sum(seen.left[low : low + 2])
        for low in range(number, number + 4 * hours, 2)
    ]
    return 2 * min(halves)


def crossings_needed(part: float, *, share_variance: float, hours: float, sure: float) -> float:
    """Return how many crossings an hour let a door that sees `part` be found in its first `hours`.

    Derived, of one of two doors alike: the mean of the stabilised count under the fault must lie
    `sure` standard deviations (1.645: in 95 %) beyond `blocked_view.FIRES`. Half of the crossings
    are of one direction, which is what is judged. Infinite where no number is enough.
    """
    crossings = 1.0
    while crossings < 1e6:
        expected = hours * crossings / 2
        variance = share_variance + 2 * GROUP / (2 * expected)
        off = deviation(part * expected, expected, factor=GROUP, variance=variance)
        if off <= blocked_view.FIRES - sure:
            return crossings
        crossings *= 1.01
    return math.inf


_BY_THE_DAY = {Condition.IMBALANCE, Condition.LEVEL_SHIFT}
_OPEN_TIME = {Condition.FLATLINE, Condition.BLOCKED_VIEW}
