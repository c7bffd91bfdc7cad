"""At closing time more came in than went out, or fewer, than this site is used to. Pure.

The imbalance of a day is (in - out) / in over the site's counters, from an hour before opening to
an hour after closing. Each counter leans a little, always the same way; so a day is set against the
median of the site's last `USUAL_DAYS` (fewer than `FEWEST`: against none, and `STRANGE` in all).
The limit is max(0.02, 3 / sqrt(in)) as in the reference formulas, widened by the scatter of the
site's own days. It fires when `DAYS` days that were observed throughout, one after the other, lie
beyond it on one side. It clears when the last day, and the one before, lie within half of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median
from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.series import HOUR_S, QUARTER_S, Quarter, Series, Turn, turns
from server.health.verdict import Case, clear, firing, held, unknown

DAYS = 2
USUAL_DAYS = 28
FEWEST = 7
STRANGE = 0.25
LEAST = 50
_SCATTER = 4.0
_AROUND = HOUR_S // QUARTER_S
CONDITION = Condition.IMBALANCE


class _Day(NamedTuple):
    opened_s: int
    closed_s: int
    entered: float
    imbalance: float


@dataclass(slots=True)
class _Sum:
    """A day's people over the doors so far; `whole`: each of them observed all of it."""

    turn: Turn
    opened_s: int
    closed_s: int
    quarters: int
    whole: bool = True
    entered: float = 0.0
    left: float = 0.0


@dataclass(slots=True)
class Days:
    """A site's days, summed up door by door."""

    _sums: list[_Sum] | None = None

    def add(self, door: Series) -> None:
        """Take in a door that makes the site's visits."""
        quarters = door.quarters
        if self._sums is None:
            self._sums = [_sum_of(quarters, turn) for turn in turns(quarters) if turn.closes]
        for each in self._sums:
            part = _part(quarters, each.turn)
            each.whole = each.whole and all(
                quarter.observed_s == QUARTER_S and not quarter.masked
                for quarter in part
                if quarter.is_open
            )
            for quarter in part:
                each.entered += quarter.entered
                each.left += quarter.left

    def observed(self) -> list[_Day]:
        """Return the days that every counter observed throughout, in order."""
        return [
            _Day(
                each.opened_s,
                each.closed_s,
                each.entered,
                (each.entered - each.left) / each.entered,
            )
            for each in self._sums or ()
            if each.whole
            and each.entered >= LEAST
            and each.quarters >= each.turn.high - each.turn.low + _AROUND
        ]


def _part(quarters: Sequence[Quarter], turn: Turn) -> Sequence[Quarter]:
    return quarters[max(0, turn.low - _AROUND) : turn.high + _AROUND]


def _sum_of(quarters: Sequence[Quarter], turn: Turn) -> _Sum:
    first, last = quarters[turn.low], quarters[turn.high - 1]
    return _Sum(turn, first.start_s, last.end_s, len(_part(quarters, turn)))


def judge(case: Case, site: Days) -> Judgement:
    """Judge a site by all of its counters."""
    days = site.observed()
    if len(days) < DAYS:
        return unknown(case, CONDITION, "no two days were observed throughout")
    last, before = days[-DAYS:], days[:-DAYS][-USUAL_DAYS:]
    known = len(before) >= FEWEST
    usual = median(day.imbalance for day in before) if known else 0.0
    scatter = median(abs(day.imbalance - usual) for day in before) if known else 0.0
    limits = [
        max(0.02, 3 / sqrt(day.entered), _SCATTER * 1.4826 * scatter)
        if known
        else max(STRANGE, 3 / sqrt(day.entered))
        for day in last
    ]
    off = [day.imbalance - usual for day in last]
    evidence: dict[str, float | str] = {
        "imbalance": round(last[-1].imbalance, 4),
        "usual": round(usual, 4),
        "limit": round(limits[-1], 4),
        "entered": last[-1].entered,
    }
    beyond = [abs(each) > limit for each, limit in zip(off, limits, strict=True)]
    if all(beyond) and (min(off) > 0 or max(off) < 0):
        since = last[0].opened_s
        return firing(case, CONDITION, evidence, since_s=since, from_s=since)
    if all(abs(each) < limit / 2 for each, limit in zip(off, limits, strict=True)):
        return clear(case, CONDITION, evidence, since_s=last[0].opened_s)
    return held(case, CONDITION, evidence)
