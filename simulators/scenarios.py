"""Named, seeded scenarios: what the public does, what goes wrong, and what must be true afterwards.

A scenario never changes the true clock: its public lives at another local time (`local`), so that
a Saturday afternoon can be watched on a Tuesday night.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from simulators.faults import Fault, FrameFaults, ProxyFaults, Trouble
from simulators.shapes import ALWAYS, OFFICES, Hours, Shape

Plan = Callable[[random.Random, float], tuple[Trouble, ...]]
"""From a device's dice and the run's seconds to what strikes this device."""


def _nothing(rng: random.Random, duration_s: float) -> tuple[Trouble, ...]:
    del rng, duration_s
    return ()


@dataclass(frozen=True, slots=True)
class Expect:
    """What must hold when a run has drained. Nothing may ever be lost, doubled or altered.

    `minutes`: each minute's counts are exact (else only each device's totals: its clock was off).
    `undated`: frames may be held undated. `conflicts`: outboxes are reported as cloned.
    `reconnects`: devices were off the broker in between, and all are back.
    """

    minutes: bool = True
    undated: bool = False
    conflicts: bool = False
    reconnects: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """See the module. `local` is (weekday, hour) of the public, None for now."""

    name: str
    about: str
    expect: Expect
    local: tuple[int, int] | None = (5, 14)
    shape: Shape | None = None
    hours: Hours | None = None
    scale: float = 1.0
    plan: Plan = _nothing
    frames: FrameFaults = field(default_factory=FrameFaults)
    proxy: ProxyFaults | None = None
    needs_files: bool = False  # storage is copied or lost: outboxes cannot be in memory

    def shift_ms(self, now_ms: int, zone: str) -> int:
        """Return how much later than true UTC `now_ms` the public lives, in ms."""
        if self.local is None:
            return 0
        weekday, hour = self.local
        local = datetime.fromtimestamp(now_ms / 1000, ZoneInfo(zone))
        there = local.replace(hour=hour, minute=0, second=0, microsecond=0)
        there += timedelta(days=(weekday - local.weekday()) % 7)
        return round(there.timestamp() * 1000) - now_ms


def _reboots(rng: random.Random, duration_s: float) -> tuple[Trouble, ...]:
    """A third of the agents are killed once to four times."""
    if rng.random() >= 1 / 3:
        return ()
    times = sorted(rng.uniform(0.1, 0.9) * duration_s for _ in range(rng.randint(1, 4)))
    return tuple(Trouble(at_s, Fault.REBOOT) for at_s in times)


def _clocks(rng: random.Random, duration_s: float) -> tuple[Trouble, ...]:
    """A third wake up in 1970, a third are 90 s ahead; most are set right later."""
    luck = rng.random()
    if luck >= 2 / 3:
        return ()
    wrong = Fault.POWER if luck < 1 / 3 else Fault.WRONG
    first = Trouble(rng.uniform(0.0, 0.3) * duration_s, wrong)
    if rng.random() < 0.2:
        return (first,)
    return first, Trouble(rng.uniform(0.4, 0.8) * duration_s, Fault.SYNC)


def _outage(rng: random.Random, duration_s: float) -> tuple[Trouble, ...]:
    """Everyone loses the link at once and comes back at once."""
    del rng
    return (Trouble(0.25 * duration_s, Fault.CUT, 0.35 * duration_s),)


def _clones(rng: random.Random, duration_s: float) -> tuple[Trouble, ...]:
    """A fifth are cloned, a fifth rolled back to a copy, a fifth lose their storage."""
    luck = rng.random()
    early, late = 0.15 * duration_s, 0.5 * duration_s
    if luck < 0.2:
        return (Trouble(early, Fault.CLONE, 0.2 * duration_s),)
    if luck < 0.4:
        return Trouble(early, Fault.SNAPSHOT), Trouble(late, Fault.ROLLBACK)
    if luck < 0.6:
        return (Trouble(late, Fault.WIPE),)
    return ()


def _flaky(rng: random.Random, duration_s: float) -> tuple[Trouble, ...]:
    """A quarter are cut for a while on top of what the proxy does to all."""
    if rng.random() >= 0.25:
        return ()
    return (Trouble(rng.uniform(0.1, 0.6) * duration_s, Fault.CUT, 0.15 * duration_s),)


_ALL = (
    Scenario(
        "quiet-night",
        "Shops are closed: hardly anybody comes, frames say so all the same.",
        Expect(),
        local=(1, 3),
    ),
    Scenario("saturday", "A Saturday at two in the afternoon, nothing goes wrong.", Expect()),
    Scenario(
        "morning-rush",
        "A Monday at eight among offices, at doors that never close; eight times the people.",
        Expect(),
        local=(0, 8),
        shape=OFFICES,
        hours=ALWAYS,
        scale=8.0,
    ),
    Scenario(
        "flaky-links",
        "Connections are reset or fall silent; frames are lost, doubled and swapped.",
        Expect(reconnects=True),
        plan=_flaky,
        frames=FrameFaults(lose=0.05, double=0.10, swap=0.10),
        proxy=ProxyFaults(delay_s=0.02, life_s=(10.0, 60.0), half_open=0.2),
    ),
    Scenario(
        "reboots",
        "A third of the agents are killed and start again, some more than once.",
        Expect(reconnects=True),
        plan=_reboots,
    ),
    Scenario(
        "clock-trouble",
        "Clocks at 1970 and clocks ahead; most are set right later.",
        Expect(minutes=False, undated=True, reconnects=True),
        plan=_clocks,
    ),
    Scenario(
        "outage",
        "All links are down for a third of the time and come back at once.",
        Expect(reconnects=True),
        plan=_outage,
    ),
    Scenario(
        "clones",
        "Storage is copied, put back or lost; a twin speaks in a device's name.",
        Expect(conflicts=True, reconnects=True),
        plan=_clones,
        needs_files=True,
    ),
)
SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
