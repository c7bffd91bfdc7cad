"""A counter that takes in for out: people leave before anybody came, and stay after closing. Pure.

Before opening a shop is empty, after closing it is empty again. Whatever was missed between, the
first people of a morning come in, the last of an evening go out; a counter that is the wrong way
round says the opposite at both ends. Looked at are the first `EDGE` crossings from an hour before
opening on, and the last `EDGE` up to an hour after closing, in whole quarters. The net of a day is
in less out in the morning, and out less in in the evening.

It fires when the last two mornings that can be told were the wrong way round, and the evenings
between in sum, and all together lie `FIRES` standard deviations (of chance, for people in groups)
on the wrong side; where few come by, the mornings of up to a week are taken together until they do.
A door by which people only leave has mornings of the wrong kind and evenings of the right one: it
does not fire. It clears when the last two mornings were right, and all together by `CLEARS`.

A morning with fewer than `LEAST` crossings by `LATE_S` after opening tells nothing. A shop that
never closes has no mornings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from server.health.judgement import Condition, Judgement
from server.health.series import GROUP, HOUR_S, QUARTER_S, Quarter, Series, Turn, turns
from server.health.verdict import Case, clear, firing, held, unknown

EDGE = 20
LEAST = 8
LATE_S = 2 * HOUR_S
FIRES = -2.0
CLEARS = 1.0
MORNINGS = 2
MOST = 7
_AROUND = HOUR_S // QUARTER_S
CONDITION = Condition.REVERSED


@dataclass(frozen=True, slots=True)
class _Edge:
    """The crossings at one end of a day: how many, and by how many they were the right way."""

    crossings: float
    net: float


@dataclass(frozen=True, slots=True)
class _Day:
    """A turn's ends; None where nothing can be told."""

    opened_s: int
    closed_s: int
    morning: _Edge | None
    evening: _Edge | None


def judge(case: Case, door: Series) -> Judgement:
    """Judge a counter by the mornings and evenings of its last days."""
    days = [_day(door.quarters, turn) for turn in turns(door.quarters)]
    told = [day for day in days if day.morning is not None]
    if not days:
        return unknown(case, CONDITION, "the shop does not close")
    if len(told) < MORNINGS:
        return unknown(case, CONDITION, "too few mornings with people", {"mornings": len(told)})
    looks = [_look(days, told[-size:]) for size in range(MORNINGS, min(MOST, len(told)) + 1)]
    worst, best = min(looks, key=_all), max(looks, key=_all)
    last = [day.morning.net for day in told[-MORNINGS:] if day.morning is not None]
    if max(last) < 0 and worst.all <= FIRES:
        since = _since_s(told)
        return firing(case, CONDITION, worst.evidence(), since_s=since, from_s=since)
    if min(last) > 0 and best.all >= CLEARS:
        return clear(case, CONDITION, best.evidence(), since_s=_right_s(door, told))
    return held(case, CONDITION, worst.evidence())


@dataclass(frozen=True, slots=True)
class _Look:
    """Some days taken together: how far on the right side, in standard deviations of chance."""

    mornings: int
    crossings: float
    net: float
    evenings: float

    @property
    def all(self) -> float:
        """The whole; none of it where the evenings contradict the mornings."""
        off = self.net / sqrt(GROUP * max(1.0, self.crossings))
        return max(0.0, off) if self.evenings > 0 else off

    def evidence(self) -> dict[str, float | str]:
        return {
            "mornings": self.mornings,
            "crossings": self.crossings,
            "net": self.net,
            "deviations": round(self.all, 2),
        }


def _all(look: _Look) -> float:
    return look.all


def _look(days: Sequence[_Day], last: Sequence[_Day]) -> _Look:
    between = [
        day.evening
        for day in days
        if last[0].opened_s <= day.opened_s < last[-1].opened_s and day.evening is not None
    ]
    edges = [*(day.morning for day in last if day.morning is not None), *between]
    return _Look(
        len(last),
        sum(each.crossings for each in edges),
        sum(each.net for each in edges),
        sum(each.net for each in between),
    )


def _since_s(told: Sequence[_Day]) -> int:
    """Return when the first of the wrong mornings, up to the last, opened."""
    since = told[-1].opened_s
    for day in reversed(told):
        if day.morning is None or day.morning.net >= 0:
            break
        since = day.opened_s
    return since


def _right_s(door: Series, told: Sequence[_Day]) -> int:
    """Return when the first of the right mornings, up to the last, was about to open.

    What was put right was so after the evening before; what a calibration turned round, was always.
    """
    since = told[-1].opened_s
    for day in reversed(told):
        if day.morning is None or day.morning.net <= 0:
            break
        since = day.opened_s
    return max(door.quarters[0].start_s, since - HOUR_S)


def _day(quarters: Sequence[Quarter], turn: Turn) -> _Day:
    low, high, closes = turn
    first = max(0, low - _AROUND)
    morning = _edge(quarters[first : min(high, low + LATE_S // QUARTER_S)], inward=True)
    evening = None
    if closes:
        tail = quarters[max(low, high - LATE_S // QUARTER_S) : high + _AROUND]
        evening = _edge(tail[::-1], inward=False)
    closed_s = quarters[high - 1].end_s
    return _Day(quarters[low].start_s, closed_s, morning, evening)


def _edge(quarters: Sequence[Quarter], *, inward: bool) -> _Edge | None:
    crossings = net = 0.0
    for each in quarters:
        if each.observed_s < QUARTER_S:
            if each.is_open:
                break  # who came first is not known
            continue
        crossings += each.people
        net += each.entered - each.left if inward else each.left - each.entered
        if crossings >= EDGE:
            break
    return _Edge(crossings, net) if crossings >= LEAST else None
