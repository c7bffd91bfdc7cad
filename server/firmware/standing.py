"""How far a rollout is from its guards and gates, and what people may do with it now. Pure.

Counted as `guards` counts, since the last acknowledgement: a share of one wave, the others of all
waves together. A share is judged from its minimum sample on; until then it is told beside how many
are missing to it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from server.firmware.guards import Guard, met
from server.firmware.policy import Gate, Guards, OnHalt
from server.firmware.waves import (
    OVER,
    PREPARING,
    Rollout,
    State,
    Wave,
    WaveKind,
    WaveState,
)


class Act(StrEnum):
    """What people do with a rollout."""

    SUBMIT = "submit"
    APPROVE = "approve"
    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    REVERT = "revert"


@dataclass(frozen=True, slots=True)
class Standing:
    """One guard: what it looks at, its limit, and how many more it takes to be judged.

    `wave` is None where it looks at all waves together. `missing` is how many have to end before a
    share counts at all.
    """

    wave: int | None
    guard: Guard
    found: float
    limit: float
    missing: int = 0

    @property
    def tripped(self) -> bool:
        """Whether it halts."""
        return self.missing == 0 and self.found >= self.limit


@dataclass(frozen=True, slots=True)
class Passing:
    """What a wave has done of its gate; `soaked_at`: when it passes, if nothing gets worse."""

    share: float | None
    share_needed: float
    sample: int
    sample_needed: int
    met: bool
    soaked_at: datetime | None


def standings(rollout: Rollout) -> tuple[Standing, ...]:
    """Return the guards that look at all waves, then at each in which anybody was attempted.

    Nothing counts but what came since somebody acknowledged; before anybody was attempted there is
    nothing to look at.
    """
    guards, everywhere = rollout.policy.guards, rollout.since
    attempted = [wave for wave in rollout.waves if wave.since.attempted]
    if not attempted:
        return ()
    return (
        Standing(None, Guard.FAIL_ABS, everywhere.hurt, guards.fail_abs),
        Standing(None, Guard.LOST_ABS, everywhere.lost, guards.lost_abs),
        *(_share_failed(guards, wave) for wave in attempted),
    )


def _share_failed(guards: Guards, wave: Wave) -> Standing:
    since = wave.since
    share = round(100 * since.failed / since.ended, 2) if since.ended else 0.0
    missing = max(0, guards.min_sample - since.ended)
    return Standing(wave.number, Guard.FAIL_PCT, share, guards.fail_pct, missing)


def passing(gate: Gate, wave: Wave) -> Passing | None:
    """Return what a wave has done of its gate; None where it has none."""
    if wave.kind is WaveKind.STRAGGLERS or wave.state is WaveState.PENDING:
        return None
    since, soaking = wave.since, wave.state is WaveState.SOAKING
    soaked = None
    if soaking and wave.met_at is not None:
        soaked = wave.met_at + timedelta(seconds=gate.soak_s)
    share = round(100 * since.confirmed / since.attempted, 2) if since.attempted else None
    needed = min(wave.eligible, gate.min_sample)
    reached = met(gate, since, eligible=wave.eligible, was_met=soaking)
    return Passing(share, gate.success_pct, since.attempted, needed, reached, soaked)


def possible(state: State, *, reverse: bool) -> tuple[Act, ...]:
    """Return what may be done with a rollout that stands so; `reverse`: it takes one back."""
    found = _POSSIBLE[state]
    return tuple(act for act in found if act is not Act.REVERT or not reverse)


_POSSIBLE: dict[State, tuple[Act, ...]] = {
    State.DRAFT: (Act.CANCEL,),
    State.PLANNED: (Act.SUBMIT, Act.CANCEL),
    State.AWAITING_APPROVAL: (Act.APPROVE, Act.CANCEL),
    State.SCHEDULED: (Act.START, Act.CANCEL),
    State.RUNNING: (Act.PAUSE, Act.CANCEL, Act.REVERT),
    State.PAUSED: (Act.RESUME, Act.CANCEL, Act.REVERT),
    State.HALTED: (Act.RESUME, Act.CANCEL, Act.REVERT),
    State.REVERTING: (),
    State.CANCELLING: (),
    **dict.fromkeys(OVER, ()),
}


def waits_for_people(rollout: Rollout) -> bool:
    """Whether nothing more happens to a rollout by itself before somebody acts."""
    if rollout.state is State.HALTED:
        return rollout.revert is OnHalt.KEEP
    return rollout.state in PREPARING - {State.SCHEDULED} or rollout.state is State.PAUSED


def ended(rollout: Rollout) -> bool:
    """Whether who watches a rollout has seen its end: it is over, or halted and left so."""
    return rollout.state in OVER or (rollout.state is State.HALTED and waits_for_people(rollout))
