"""History: what a device would have recorded while nobody looked, in virtual time.

The same people as live, through the same recorder and outbox; only the clock is virtual and a
counter's crossings arrive summed per minute. What is recorded waits in the outbox for a link.
"""

import random
from collections.abc import Callable
from pathlib import Path

from agent.clock import ManualClock
from agent.outbox import Outbox
from agent.recorder import Feed, Profile, Recorder
from simulators.hardware import DeviceSpec, record, size, tell
from simulators.truth import TruthFile

FEED = "history"  # its ids are minutes since 1970
DAY_MS = 86_400_000


def record_history(
    spec: DeviceSpec,
    path: Path,
    *,
    truth: TruthFile | None,
    start_ms: int,
    end_ms: int,
    profile: Profile | None = None,
    on_day: Callable[[], None] = lambda: None,
) -> int:
    """Record from `start_ms` to `end_ms`; return how many people or presses that were.

    An interrupted call may be repeated: what it recorded is not recorded again, and what it had
    no time to tell the truth file is told now, since the same seed gives the same people.
    """
    outbox = Outbox(path)
    last = outbox.last_id(FEED)
    begin = max(start_ms, (last + 1) * 60_000) if last else start_ms
    if truth is not None and last:
        told_ms = (truth.last_minute(spec.device) + 1) * 60_000
        for event in spec.minutes(start_ms, begin):
            if event.at_ms >= told_ms:
                tell(truth, spec.device, event)
    clock = ManualClock(utc_ms=begin)
    recorder = Recorder(
        outbox,
        clock=clock,
        profile=profile or spec.profile(frame_s=3_600, quiet_frame_s=3_600),
        new_boot_id=lambda: random.getrandbits(64),
    )
    number = 0
    day_ms = begin + DAY_MS
    with outbox.bulk():
        for event in spec.minutes(begin, end_ms):
            while event.at_ms >= day_ms:
                day_ms += DAY_MS
                on_day()
            clock.advance(event.at_ms - begin - clock.now_ms)
            record(recorder, event, feed=Feed(FEED, event.at_ms // 60_000))
            number += size(event)
            if truth is not None:
                tell(truth, spec.device, event)
        clock.advance(end_ms - begin - clock.now_ms)
        recorder.close()
    outbox.close()
    if truth is not None:
        truth.commit()
    return number
