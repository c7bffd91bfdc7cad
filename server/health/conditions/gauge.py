"""What a device says of itself at times: a gauge's values, and two thresholds. Pure.

`FRESH_S`: an older word than that says nothing of now. A threshold must be crossed by `TWICE`
values, one after the other: one odd reading of a thermometer is no fire.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from server.health.judgement import Condition, Evidence, Judgement
from server.health.verdict import Case, clear, firing, held, unknown

FRESH_S = 3 * 3_600
TWICE = 2


class Value(NamedTuple):
    """One value and its time."""

    at_s: float
    value: float


def judged(
    case: Case,
    condition: Condition,
    values: Sequence[Value],
    *,
    bad: Callable[[float], bool],
    good: Callable[[float], bool],
    evidence: Evidence,
) -> Judgement:
    """Judge by the last values, in order: what is neither bad nor good stays as it was."""
    last = values[-TWICE:]
    if len(last) < TWICE or last[-1].at_s < case.now_s - FRESH_S:
        return unknown(case, condition, "it has not said so lately", evidence)
    if all(bad(each.value) for each in last):
        since = last[-1].at_s
        for each in reversed(values):
            if not bad(each.value):
                break
            since = each.at_s
        return firing(case, condition, evidence, since_s=since)
    if all(good(each.value) for each in last):
        return clear(case, condition, evidence, since_s=last[0].at_s)
    return held(case, condition, evidence)
