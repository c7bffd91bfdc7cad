"""What a counter is used to, learnt once a local day from the hours of its weeks. Pure.

The expectation of each hour of the coming week is `server.insight.profile`'s: the median of eight
comparable weeks, times the level of the last two; so holidays, hours of another length and the
second pass of a repeated hour have none. What was masked or not observed is not learnt from.

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
from server.health.series import GROUP, QUARTER_S
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
    """People in and out of each quarter of an hour from `first_s` on; see `at`.

    `days` are the last days' sums, for whoever looks for a shift of the level.
    """

    first_s: int = 0
    entered: "array[float]" = field(default_factory=lambda: array("f"))
    left: "array[float]" = field(default_factory=lambda: array("f"))
    spread: float = 10.0
    share_variance: float = 0.1
    days: Sequence[Day] = ()
    tails: Sequence[float] = ()
    silence: float = 0.0

    def at(self, start_s: int) -> tuple[float | None, float | None]:
        """Return how many come in and go out in an open quarter; None: too little is known."""
        number = (start_s - self.first_s) // QUARTER_S
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
    since = today - back_days
    ways_in, ways_out = [door.entered for door in doors], [door.left for door in doors]
    expected_in = [expectations(cells, way) for way in ways_in]
    expected_out = [expectations(cells, way) for way in ways_out]
    variances = _share_variances(cells, doors, expected_in)
    levels_in = [levels(cells, *each) for each in zip(ways_in, expected_in, strict=True)]
    levels_out = [levels(cells, *each) for each in zip(ways_out, expected_out, strict=True)]
    hours = [
        _hours(cells, door, way_in, days_in, way_out, days_out, since=today - HISTORY_DAYS)
        for door, way_in, days_in, way_out, days_out in zip(
            doors, expected_in, levels_in, expected_out, levels_out, strict=True
        )
    ]
    found: list[Usual] = []
    for number, (door, way_in, days_in, way_out, days_out, variance) in enumerate(
        zip(doors, expected_in, levels_in, expected_out, levels_out, variances, strict=True)
    ):
        others = hours[:number] + hours[number + 1 :]
        found.append(
            Usual(
                next((cell.start_s for cell in cells if cell.day >= since), 0),
                _rates(cells, way_in, days_in, since=since, today=today),
                _rates(cells, way_out, days_out, since=since, today=today),
                _spread(cells, door.entered, way_in, days_in),
                variance,
                _days(cells, door.entered, way_in, today),
                tails(hours[number], others, variance=variance) if others else (),
                longest_silence(hours[number]),
            )
        )
    return found


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
) -> "array[float]":
    """Return what the quarters of each hour hold, NaN where that is not known."""
    found = array("f")
    for cell, people in zip(cells, expected, strict=True):
        if cell.day < since:
            continue
        rate = nan
        if people is not None:
            level = _factor(days, min(cell.day, today))
            rate = people * level * QUARTER_S / cell.open_s if cell.open_s else 0.0
        found.extend([rate] * ((cell.end_s - cell.start_s) // QUARTER_S))
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


def _share_variances(
    cells: Sequence[Cell], doors: Sequence[Door], expected: Sequence[Sequence[float | None]]
) -> list[float]:
    """Return the variance of each door's share, relative to it, of one hour.

    It is its share of the doors that are known in that hour: a door that is new, or away for
    weeks, leaves it known of the others.
    """
    sums = [[0.0, 0.0, 0.0] for _ in doors]
    for at, cell in enumerate(cells):
        if not cell.open_s or len(doors) < 2:
            continue
        known: list[tuple[float, float, list[float]]] = []
        for door, each, sum_ in zip(doors, expected, sums, strict=True):
            counted, people = door.entered.measured(at), each[at]
            if counted is not None and people is not None:
                known.append((counted, people, sum_))
        whole, usual = sum(c for c, _, _ in known), sum(p for _, p, _ in known)
        for came, own, sum_ in known:
            others, usual_others = whole - came, usual - own
            if own < 1 or others < 5 or usual_others < 5:
                continue
            mean = own * others / usual_others
            chance = GROUP * mean + GROUP * mean * mean / others
            sum_[0] += (came - mean) ** 2 - chance
            sum_[1] += mean * mean
            sum_[2] += 1
    return [
        min(SHARES[1], max(SHARES[0], beyond / squares)) if hours >= _FEWEST_HOURS else 0.1
        for beyond, squares, hours in sums
    ]


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
