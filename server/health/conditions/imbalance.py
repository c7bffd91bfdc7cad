"""At closing time more came in than went out, or fewer, than this site is used to. Pure.

The imbalance of a day is (in - out) / in over the site's counters, from an hour before opening to
an hour after closing. Each counter leans a little, always the same way; so a day is set against the
median of the site's last `USUAL_DAYS` (fewer than `FEWEST`: against none, and `STRANGE` in all).
The limit is max(0.02, 3 / sqrt(in)) as in the reference formulas, widened by the scatter of the
site's own days. It fires when `DAYS` days that were observed throughout, one after the other, lie
beyond it on one side. It clears when the last day, and the one before, lie within half of it.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import median
from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.series import HOUR_S, QUARTER_S, Quarter, Series, turns
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


def judge(case: Case, doors: Sequence[Series]) -> Judgement:
    """Judge a site by all of its counters."""
    days = _days(doors)
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


def _days(doors: Sequence[Series]) -> list[_Day]:
    """Return the days that every counter observed throughout, in order."""
    found: list[_Day] = []
    if not doors:
        return found
    for low, high, closes in turns(doors[0].quarters):
        if not closes:
            continue
        parts = [door.quarters[max(0, low - _AROUND) : high + _AROUND] for door in doors]
        whole = all(
            each.observed_s == QUARTER_S and not each.masked
            for part in parts
            for each in part
            if each.is_open
        )
        entered = sum(each.entered for part in parts for each in part)
        left = sum(each.left for part in parts for each in part)
        if whole and entered >= LEAST and len(parts[0]) >= high - low + _AROUND:
            first, last = doors[0].quarters[low], doors[0].quarters[high - 1]
            found.append(_Day(first.start_s, _end(last), entered, (entered - left) / entered))
    return found


def _end(quarter: Quarter) -> int:
    return quarter.end_s
