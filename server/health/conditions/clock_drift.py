"""A device whose clock is wrong. Pure.

What a device sends cannot have happened after it arrived: of the differences between its time and
the server's at arrival, the one with the least delay bounds its skew (the lower envelope: M. Allman
et al., V. Paxson, SIGCOMM 1998). A clock ahead shows in one frame, since no delay explains it. A
clock that is behind looks like delay: it shows only in frames of a device that holds nothing back.

It fires beyond `FIRES_S`, and at once where frames came from a time that cannot be (a clock reset
to 1970 or 2000) or from no known time. It clears below `CLEARS_S`. The device's own word that its
clock was never set is no fault while its server has told it the time (quality `estimated`).
"""

from collections.abc import Sequence
from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, clear, firing, held, unknown

FIRES_S = 120.0
CLEARS_S = 60.0
CONDITION = Condition.CLOCK_DRIFT


class Arrival(NamedTuple):
    """A frame's end by the device's clock, and when it came; `waiting`: how many came after it."""

    device_s: float
    arrived_s: float
    waiting: int = 0


def judge(case: Case, arrivals: Sequence[Arrival], *, wild: int, undated: int) -> Judgement:
    """Judge a device by its last frames; `wild`, `undated`: frames held for their time."""
    if wild or undated:
        evidence: dict[str, float | str] = {"wild_frames": wild, "undated_frames": undated}
        since = min((each.arrived_s for each in arrivals), default=case.now_s)
        return firing(case, CONDITION, evidence, since_s=min(since, case.now_s))
    if not arrivals:
        return unknown(case, CONDITION, "no frames have come lately")
    ahead = max(each.device_s - each.arrived_s for each in arrivals)
    at_once = [each.arrived_s - each.device_s for each in arrivals if not each.waiting]
    behind = min(at_once, default=0.0)
    skew = ahead if ahead > 0 else -max(behind, 0.0)
    evidence = {"skew_s": round(skew, 1), "limit_s": FIRES_S, "frames": len(arrivals)}
    if abs(skew) > FIRES_S:
        since = min(each.arrived_s for each in arrivals)
        return firing(case, CONDITION, evidence, since_s=since)
    if abs(skew) < CLEARS_S and (at_once or ahead > 0):
        return clear(case, CONDITION, evidence, since_s=arrivals[0].arrived_s)
    return held(case, CONDITION, evidence)
