"""A device whose clock is wrong. Pure.

What a device sends cannot have happened after it arrived: its skew is at least its time less the
server's at arrival (the lower envelope: V. Paxson, SIGCOMM 1998). So a clock ahead shows in one
frame, since no delay explains it. A clock that is behind looks like delay, and a frame that is late
says nothing of it: history from an outbox, an outage, what is sent again. It shows only in what the
device itself measured against the server's receipts (`clock.skew_ms`), of whose last values the one
nearest to right counts: a receipt may be late, too.

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
    """A frame's end by the device's clock, and when it came."""

    device_s: float
    arrived_s: float


def judge(
    case: Case,
    arrivals: Sequence[Arrival],
    measured_ms: Sequence[float],
    *,
    wild: int,
    undated: int,
) -> Judgement:
    """Judge a device by its last frames.

    `measured_ms`: how far ahead of the server it found itself, lately; `wild`, `undated`: frames
    held for their time.
    """
    if wild or undated:
        evidence: dict[str, float | str] = {"wild_frames": wild, "undated_frames": undated}
        since = min((each.arrived_s for each in arrivals), default=case.now_s)
        return firing(case, CONDITION, evidence, since_s=min(since, case.now_s))
    if not arrivals:
        return unknown(case, CONDITION, "no frames have come lately")
    skew = max(each.device_s - each.arrived_s for each in arrivals)
    if measured_ms:
        skew = max(skew, min(measured_ms, key=abs) / 1000)
    elif skew <= -CLEARS_S:
        why = "frames that come late say nothing of a clock"
        return unknown(case, CONDITION, why, {"late_s": round(-skew, 1)})
    evidence = {"skew_s": round(skew, 1), "limit_s": FIRES_S, "frames": len(arrivals)}
    if abs(skew) > FIRES_S:
        since = min(each.arrived_s for each in arrivals)
        return firing(case, CONDITION, evidence, since_s=since)
    if abs(skew) < CLEARS_S:
        return clear(case, CONDITION, evidence, since_s=arrivals[0].arrived_s)
    return held(case, CONDITION, evidence)
