"""What a counter is used to, learnt once a local day from the hours of its weeks. Pure.

The expectation of each hour of the coming week is `server.insight.profile`'s: the median of eight
comparable weeks, times the level of the last two; so holidays, hours of another length and the
second pass of a repeated hour have none. What was masked or not observed is not learnt from.

A site's doors are gone through twice, `add` and `learn`, in parts if they are many: what is summed
up over all of them does not grow with them.

Beside it, how counts scatter around that: `spread`, k of a negative binomial count, and the
variance of each door's share of its site's people from hour to hour, both by the method of moments,
within bounds that keep a few odd weeks from making a counter seem certain, or hopeless. What a
counter that was well did at worst is `server.health.tails`'.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan

from server.health.conditions.level_shift import Day
from server.health.series import GROUP, HOUR_S, QUARTER_S
from server.health.tails import Hour, longest_silence, tails
from server.insight.profile import NO_LEVEL, Cell, Counter, Level, expectations, levels

HISTORY_DAYS = 84
AHEAD_DAYS = 2
"""Days, today the first, whose cells are given though nothing is known of them yet."""
SPREADS = (2.0, 60.0)
SHARES = (0.003, 0.3)
LEVELS = (0.5, 2.0)
_FEWEST_HOURS = 40
_SHIFT_DAYS = 14


@dataclass(frozen=True, slots=True)
class Usual:
    """People in and out of a quarter of an hour, one value each `step_s` from `first_s` on; see
    `at`.

    `days` are the last days' sums, for whoever looks for a shift of the level.
    """

    first_s: int = 0
    step_s: int = HOUR_S
    entered: "array[float]" = field(default_factory=lambda: array("f"))
    left: "array[float]" = field(default_factory=lambda: array("f"))
    spread: float = 10.0
    share_variance: float = 0.1
    days: Sequence[Day] = ()
    tails: Sequence[float] = ()
    silence: float = 0.0

    def at(self, start_s: int) -> tuple[float | None, float | None]:
        """Return how many come in and go out in an open quarter; None: too little is known."""
        number = (start_s - self.first_s) // self.step_s
        if not 0 <= number < len(self.entered):
            return None, None
        came, went = self.entered[number], self.left[number]
        return None if isnan(came) else came, None if isnan(went) else went


NOTHING = Usual()
"""Of a counter of which too little is known."""


@dataclass(frozen=True, slots=True)
class Door:
    """A counter's hours, as `Counter`s of those who came in and who went out."""

    entered: Counter
    left: Counter


def learn(
    cells: Sequence[Cell], doors: Sequence[Door], *, today: int, back_days: int = 2
) -> list[Usual]:
    """Return what each counter of a site is used to, from `back_days` before today on.

    `cells` go on for `AHEAD_DAYS`, today the first, of which the counters must hold nothing.
    """
    shared = Shared(cells, today, back_days)
    known = [shared.expect(door) for door in doors]
    for each in known:
        shared.add(each)
    return [shared.learn(each) for each in known]


@dataclass(frozen=True, slots=True)
class Expected:
    """A door with what was to be expected of it: by cell in and out, and `hours` of opening."""

    door: Door
    entered: Sequence[float | None]
    left: Sequence[float | None]
    levels_in: Mapping[int, Level]
    levels_out: Mapping[int, Level]
    hours: Sequence[Hour | None]


@dataclass(slots=True)
class Shared:
    """What the doors of a site did together, of however many: `add` all before any is learnt."""

    cells: Sequence[Cell]
    today: int
    back_days: int
    _doors: int = 0
    _entered: "array[float]" = field(init=False)
    _expected: "array[float]" = field(init=False)
    _people: "array[float]" = field(init=False)
    _usual: "array[float]" = field(init=False)

    def __post_init__(self) -> None:
        nothing = array("d", bytes(8 * len(self.cells)))
        self._entered, self._expected, self._people, self._usual = (nothing[:] for _ in range(4))

    def expect(self, door: Door) -> Expected:
        """Return a door with what was to be expected of it."""
        cells, since = self.cells, self.today - HISTORY_DAYS
        way_in, way_out = expectations(cells, door.entered), expectations(cells, door.left)
        days_in, days_out = levels(cells, door.entered, way_in), levels(cells, door.left, way_out)
        hours = _hours(cells, door, way_in, days_in, way_out, days_out, since=since)
        return Expected(door, way_in, way_out, days_in, days_out, hours)

    def add(self, known: Expected) -> None:
        """Sum up what a door counted, where it is known what was to be expected."""
        self._doors += 1
        for at, (cell, people) in enumerate(zip(self.cells, known.entered, strict=True)):
            counted = known.door.entered.measured(at) if cell.open_s else None
            if counted is not None and people is not None:
                self._entered[at] += counted
                self._expected[at] += people
        for at, hour in enumerate(known.hours):
            if hour is not None:
                self._people[at] += hour.people
                self._usual[at] += hour.usual

    def learn(self, known: Expected) -> Usual:
        """Return what a door is used to beside the others."""
        cells, today, since = self.cells, self.today, self.today - self.back_days
        variance = self._share_variance(known)
        others = [
            Hour(people - hour.people, usual - hour.usual) if hour else Hour(people, usual)
            for hour, people, usual in zip(known.hours, self._people, self._usual, strict=False)
        ]
        step_s = HOUR_S
        if any((cell.end_s - cell.start_s) % HOUR_S for cell in cells if cell.day >= since):
            step_s = QUARTER_S  # clocks that go back by half an hour
        return Usual(
            next((cell.start_s for cell in cells if cell.day >= since), 0),
            step_s,
            _rates(cells, known.entered, known.levels_in, since=since, today=today, step_s=step_s),
            _rates(cells, known.left, known.levels_out, since=since, today=today, step_s=step_s),
            _spread(cells, known.door.entered, known.entered, known.levels_in),
            variance,
            _days(cells, known.door.entered, known.entered, today),
            tails(known.hours, others, variance=variance) if self._doors > 1 else (),
            longest_silence(known.hours),
        )

    def _share_variance(self, known: Expected) -> float:
        """Return the variance of a door's share, relative to it, of one hour.

        It is its share of the doors that are known in that hour: a door that is new, or away for
        weeks, leaves it known of the others.
        """
        beyond = squares = 0.0
        hours = 0
        for at, (cell, own) in enumerate(zip(self.cells, known.entered, strict=True)):
            came = known.door.entered.measured(at) if cell.open_s and self._doors > 1 else None
            if came is None or own is None:
                continue
            others, usual_others = self._entered[at] - came, self._expected[at] - own
            if own < 1 or others < 5 or usual_others < 5:
                continue
            mean = own * others / usual_others
            chance = GROUP * mean + GROUP * mean * mean / others
            beyond += (came - mean) ** 2 - chance
            squares += mean * mean
            hours += 1
        if hours < _FEWEST_HOURS:
            return 0.1
        return min(SHARES[1], max(SHARES[0], beyond / squares))


def _hours(
    cells: Sequence[Cell],
    door: Door,
    way_in: Sequence[float | None],
    days_in: Mapping[int, Level],
    way_out: Sequence[float | None],
    days_out: Mapping[int, Level],
    *,
    since: int,
) -> list[Hour | None]:
    """Return the hours since a day: what was counted both ways, and what was to be expected."""
    found: list[Hour | None] = []
    for at, cell in enumerate(cells):
        if cell.day < since or not cell.open_s:
            continue
        came, went = door.entered.measured(at), door.left.measured(at)
        came_usual, went_usual = way_in[at], way_out[at]
        if came is None or went is None or came_usual is None or went_usual is None:
            found.append(None)
            continue
        usual = came_usual * _factor(days_in, cell.day) + went_usual * _factor(days_out, cell.day)
        found.append(Hour(came + went, usual))
    return found


def _factor(days: Mapping[int, Level], day: int) -> float:
    """Return the level of a day within its bounds."""
    return min(LEVELS[1], max(LEVELS[0], days.get(day, NO_LEVEL).factor))


def _rates(
    cells: Sequence[Cell],
    expected: Sequence[float | None],
    days: Mapping[int, Level],
    *,
    since: int,
    today: int,
    step_s: int,
) -> "array[float]":
    """Return what the quarters of each step hold, NaN where that is not known."""
    found = array("f")
    for cell, people in zip(cells, expected, strict=True):
        if cell.day < since:
            continue
        rate = nan
        if people is not None:
            level = _factor(days, min(cell.day, today))
            rate = people * level * QUARTER_S / cell.open_s if cell.open_s else 0.0
        found.extend([rate] * ((cell.end_s - cell.start_s) // step_s))
    return found


def _spread(
    cells: Sequence[Cell],
    counter: Counter,
    expected: Sequence[float | None],
    days: Mapping[int, Level],
) -> float:
    beyond = squares = 0.0
    hours = 0
    for at, cell in enumerate(cells):
        counted, people = counter.measured(at), expected[at]
        if counted is None or people is None or not cell.open_s or people < 1:
            continue
        mean = people * days.get(cell.day, NO_LEVEL).factor
        beyond += (counted - mean) ** 2 - GROUP * mean
        squares += mean * mean
        hours += 1
    if hours < _FEWEST_HOURS:
        return 10.0
    return SPREADS[1] if beyond <= 0 else min(SPREADS[1], max(SPREADS[0], squares / beyond))


def _days(
    cells: Sequence[Cell], counter: Counter, expected: Sequence[float | None], today: int
) -> list[Day]:
    """Return the last days' sums over what was observed, level apart."""
    found: dict[int, Day] = {}
    for at, cell in enumerate(cells):
        counted, people = counter.measured(at), expected[at]
        if not today - _SHIFT_DAYS <= cell.day < today or counted is None or not people:
            continue
        before = found.get(cell.day, Day(cell.day, cell.start_s, 0.0, 0.0))
        found[cell.day] = before._replace(
            counted=before.counted + counted, usual=before.usual + people
        )
    return [found[day] for day in sorted(found)]
