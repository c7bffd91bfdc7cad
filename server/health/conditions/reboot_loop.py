"""A device that starts again and again. Pure.

Each start of an agent is a boot. It fires at more than `MOST` boots within an hour, the limit from
which a rollout halts and a technician is sent; one start a release and one a power cut are usual.
It clears when the hour after the last start has passed and the device sent something in it.
"""

from bisect import bisect_left
from collections.abc import Sequence

from server.health.judgement import Condition, Judgement
from server.health.series import HOUR_S
from server.health.verdict import Case, clear, firing, held, unknown

MOST = 3
CONDITION = Condition.REBOOT_LOOP


def judge(case: Case, starts_s: Sequence[float], *, heard_s: float | None) -> Judgement:
    """Judge a device by when its boots began, in order; `heard_s`: up to when it has stored."""
    most, since = densest(starts_s, HOUR_S)
    last = starts_s[-1] if starts_s else None
    recent = len(starts_s) - bisect_left(starts_s, case.now_s - HOUR_S)
    evidence: dict[str, float | str] = {"boots_an_hour": recent, "limit": MOST}
    if recent > MOST:
        return firing(case, CONDITION, evidence | {"most_an_hour": most}, since_s=since)
    if heard_s is None:
        return unknown(case, CONDITION, "it was never heard", evidence)
    if case.before.firing and (last is None or heard_s < last + HOUR_S):
        return held(case, CONDITION, evidence)
    return clear(case, CONDITION, evidence, since_s=last if last is not None else heard_s)


def densest(times_s: Sequence[float], within_s: float) -> tuple[int, float]:
    """Return the most events in any stretch of `within_s`, and when the last such one began."""
    most, since = 0, 0.0
    for high in range(len(times_s)):
        low = bisect_left(times_s, times_s[high] - within_s)
        if high - low + 1 >= most:
            most, since = high - low + 1, times_s[low]
    return most, since
