"""People are counted while the shop is closed. Pure.

Whoever works there comes in the hour before opening and leaves in the hour after closing: those
hours are left out. Of the rest of a closed stretch, more than `FIRES` crossings and more than
`TIMES` the usual of such nights (their median: cleaners come every night) fire while it lasts.
It clears once a later closed stretch of at least `CLEARS_S` held no more than half of that. What
was counted is not touched: somebody was there. If nobody was, hours or clock are wrong, and the
remedy says so.
"""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.series import HOUR_S, QUARTER_S, Quarter, Series
from server.health.verdict import Case, clear, firing, held, unknown

FIRES = 12.0
TIMES = 3.0
CLEARS_S = 4 * HOUR_S
_AROUND_S = HOUR_S
CONDITION = Condition.CLOSED_COUNTING


class _Night(NamedTuple):
    start_s: int
    observed_s: int
    people: float
    first_s: int


def judge(case: Case, door: Series) -> Judgement:
    """Judge a counter by its closed stretches."""
    nights = [night for night in _nights(door.quarters) if night.observed_s]
    if not nights:
        return unknown(case, CONDITION, "no closed time was observed")
    last, before = nights[-1], nights[:-1]
    usual = median(night.people for night in before) if len(before) >= 3 else 0.0
    limit = max(FIRES, TIMES * usual)
    evidence: dict[str, float | str] = {
        "people": last.people,
        "usual": usual,
        "limit": limit,
        "closed_h": round(last.observed_s / HOUR_S, 1),
    }
    if last.people > limit:
        return firing(case, CONDITION, evidence, since_s=last.first_s)
    if case.before.firing:
        if last.people <= limit / 2 and last.observed_s >= CLEARS_S:
            return clear(case, CONDITION, evidence, since_s=last.start_s)
        return held(case, CONDITION, evidence)
    return clear(case, CONDITION, evidence, since_s=last.start_s)


def _nights(quarters: Sequence[Quarter]) -> list[_Night]:
    """Return the closed stretches, without the hours beside opening time."""
    found: list[_Night] = []
    low = 0
    while low < len(quarters):
        if quarters[low].is_open:
            low += 1
            continue
        high = low
        while high < len(quarters) and not quarters[high].is_open:
            high += 1
        skip = _AROUND_S // QUARTER_S
        first = low + skip if low else low
        # how long it stays closed is not known of the last stretch: the calendar ends with now
        part = quarters[first : high - skip if high < len(quarters) else high]
        people, observed_s, since_s = 0.0, 0, quarters[low].start_s
        for start_s, entered, left, seen_s, *_ in part:
            if not people:
                since_s = start_s if entered + left else since_s
            people += entered + left
            observed_s += seen_s
        found.append(_Night(quarters[low].start_s, observed_s, people, since_s))
        low = high
    return found
