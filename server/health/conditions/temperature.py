"""A device that is too hot, or too cold, to last. Pure.

Fires above `HOT` (a processor slows down at 80 to 85 degrees, and storage cards are rated to 85 at
their surface) or below `COLD`; clears `MARGIN` within.
"""

from collections.abc import Sequence

from server.health.conditions.gauge import Value, judged
from server.health.judgement import Condition, Judgement
from server.health.verdict import Case

HOT = 80.0
COLD = -15.0
MARGIN = 8.0
CONDITION = Condition.TEMPERATURE


def judge(case: Case, celsius: Sequence[Value]) -> Judgement:
    """Judge a device by its processor's temperature."""
    evidence: dict[str, float | str] = {"hot_celsius": HOT, "cold_celsius": COLD}
    if celsius:
        evidence["celsius"] = celsius[-1].value
    return judged(
        case,
        CONDITION,
        celsius,
        bad=lambda value: not COLD <= value <= HOT,
        good=lambda value: COLD + MARGIN <= value <= HOT - MARGIN,
        evidence=evidence,
    )
