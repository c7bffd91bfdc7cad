"""A device that keeps more and more, though it is connected: it counts faster than it is rid of it.

Pure. Judged by the frames in its outbox over the last hours. A healthy outbox holds a few; after an
outage it holds many and becomes emptier. It fires where at least `LEAST` wait, more than an hour
before, and the median slope between all pairs of values (H. Theil, 1950; P. Sen, JASA 63, 1379,
1968) rises by `RISE` frames an hour or more. It clears below half of `LEAST`, or while it falls.
"""

from collections.abc import Sequence
from statistics import median

from server.health.conditions.gauge import FRESH_S, Value
from server.health.judgement import Condition, Judgement
from server.health.series import HOUR_S
from server.health.verdict import Case, clear, firing, held, unknown

LEAST = 40.0
RISE = 6.0
FEWEST = 5
CONDITION = Condition.BACKLOG


def judge(case: Case, frames: Sequence[Value]) -> Judgement:
    """Judge a device by how many frames its outbox held, in order of time."""
    last = [each for each in frames if each.at_s >= case.now_s - FRESH_S]
    if len(last) < FEWEST or last[-1].at_s - last[0].at_s < HOUR_S:
        return unknown(case, CONDITION, "it has not said so for an hour")
    slope = slope_an_hour(last)
    now = last[-1].value
    evidence: dict[str, float | str] = {
        "frames": now,
        "rise_an_hour": round(slope, 1),
        "limit": LEAST,
    }
    if now >= LEAST and slope >= RISE:
        return firing(case, CONDITION, evidence, since_s=last[0].at_s)
    if now < LEAST / 2 or slope < 0:
        return clear(case, CONDITION, evidence, since_s=last[-1].at_s)
    return held(case, CONDITION, evidence)


def slope_an_hour(values: Sequence[Value]) -> float:
    """Return the median slope of all pairs."""
    slopes = [
        (b.value - a.value) / (b.at_s - a.at_s)
        for n, a in enumerate(values)
        for b in values[n + 1 :]
        if b.at_s > a.at_s
    ]
    return HOUR_S * median(slopes) if slopes else 0.0
