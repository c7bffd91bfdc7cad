"""What halts a rollout, when a wave has done enough, and how fast offers may go. Pure.

Decided here:
- A guard looks at counters since the last acknowledgement, and is tripped by a limit that is
  reached: `>=` everywhere. It is asked in the transaction in which an execution ends.
- The absolute ones look at all waves together, stragglers and tail too: whoever is hurt is hurt in
  this rollout. `fail_abs` counts the lost as well, so that, of those acknowledged apart, at most
  `fail_abs` and those in flight besides are ever hurt.
- The share of failures is of those who were attempted and have ended, so neither devices that were
  never contacted nor those still on their way dilute it; it waits for its minimum sample.
- A gate is met by confirmations of those attempted, with a minimum sample of those eligible. What
  ended without success never meets one.
- Offers come from a bucket that fills at the ramp's pace and holds `BURST_S` of it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from server.firmware.life import Counters
from server.firmware.policy import Caps, Gate, Guards, Policy, Ramp

BURST_S = 10.0
CLOCKS_DIFFER = timedelta(hours=1)
"""What lies so far ahead was written by a clock that ran ahead."""


class Guard(StrEnum):
    """What can halt a rollout."""

    FAIL_ABS = "fail_abs"
    FAIL_PCT = "fail_pct"
    LOST_ABS = "lost_abs"
    HEALTH = "health"
    COUNTS = "counts"
    EXHAUSTED = "exhausted"  # all of a wave have ended, and it has not passed


@dataclass(frozen=True, slots=True)
class Tripped:
    """A guard that halts, the number that it looked at, and its limit."""

    guard: Guard
    found: float
    limit: float

    def by(self, since: Counters) -> bool:
        """Whether a wave's counters are enough for it, without those of all others."""
        match self.guard:
            case Guard.FAIL_ABS:
                return since.hurt >= self.limit
            case Guard.LOST_ABS:
                return since.lost >= self.limit
            case _:
                return True  # it looks at no other

    def value(self) -> dict[str, str | float]:
        """Return it for JSON."""
        return {"guard": self.guard.value, "found": self.found, "limit": self.limit}


def tripped(guards: Guards, since: Counters, *, everywhere: Counters) -> Tripped | None:
    """Return the first guard that a wave's counters trip, with those of all waves together."""
    if everywhere.hurt >= guards.fail_abs:
        return Tripped(Guard.FAIL_ABS, everywhere.hurt, guards.fail_abs)
    if everywhere.lost >= guards.lost_abs:
        return Tripped(Guard.LOST_ABS, everywhere.lost, guards.lost_abs)
    sampled = since.ended >= guards.min_sample and since.failed > 0
    if sampled and 100 * since.failed >= guards.fail_pct * since.ended:
        share = round(100 * since.failed / since.ended, 2)
        return Tripped(Guard.FAIL_PCT, share, guards.fail_pct)
    return None


def met(gate: Gate, since: Counters, *, eligible: int, was_met: bool) -> bool:
    """Return whether a wave has done enough, its soak apart.

    A wave in which nobody was attempted since the last acknowledgement has done enough only if it
    had before, and nobody is left.
    """
    if since.attempted < min(eligible, gate.min_sample):
        return False
    if since.attempted == 0:
        return was_met
    return 100 * since.confirmed >= gate.success_pct * since.attempted


def pace(ramp: Ramp, caps: Caps, *, confirmed: int, bytes_each: int) -> float:
    """Return how many offers a minute there may be, after so many confirmations."""
    steps = max(0, confirmed) // ramp.step
    wanted = float(ramp.top)
    if ramp.factor > 1 and steps < 64:
        wanted = min(wanted, ramp.base * ramp.factor**steps)
    elif ramp.factor <= 1:
        wanted = float(ramp.base)
    if caps.bytes_per_minute is not None and bytes_each > 0:
        wanted = min(wanted, caps.bytes_per_minute / bytes_each)
    return wanted


def in_hand(
    policy: Policy,
    *,
    confirmed: int,
    bytes_each: int,
    tokens: float,
    tokens_at: datetime | None,
    now: datetime,
) -> float:
    """Return the offers that a rollout may make now, by its ramp and what it had left then."""
    speed = pace(policy.ramp, policy.caps, confirmed=confirmed, bytes_each=bytes_each)
    return filled(tokens, tokens_at, per_minute=speed, now=now)


def filled(tokens: float, tokens_at: datetime | None, *, per_minute: float, now: datetime) -> float:
    """Return the offers that may be made now; a bucket that is new holds one."""
    most = max(1.0, per_minute * BURST_S / 60)
    if tokens_at is None:
        return 1.0
    if tokens_at > now + CLOCKS_DIFFER:
        return min(most, max(1.0, tokens))
    passed_s = max(0.0, (now - tokens_at).total_seconds())
    return min(most, tokens + per_minute * passed_s / 60)
