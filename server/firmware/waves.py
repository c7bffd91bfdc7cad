"""What a rollout and its waves are, and which states they have; `rollout` moves them. Pure."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from server.firmware.life import NONE, Counters
from server.firmware.policy import OnHalt, Policy

STRAGGLERS = 0
"""The number of the wave that stragglers are counted in."""


class Payload(StrEnum):
    """What a rollout brings."""

    BUNDLE = "bundle"
    SETTINGS = "settings"
    QUESTIONNAIRE = "questionnaire"


class State(StrEnum):
    """Where a rollout stands."""

    DRAFT = "draft"
    PLANNED = "planned"
    AWAITING_APPROVAL = "awaiting approval"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    HALTED = "halted"
    REVERTING = "reverting"
    REVERTED = "reverted"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    COMPLETED_WITH_STRAGGLERS = "completed with stragglers"


PREPARING = frozenset({State.DRAFT, State.PLANNED, State.AWAITING_APPROVAL, State.SCHEDULED})
UNDER_WAY = frozenset({State.RUNNING, State.PAUSED, State.HALTED})
WITHDRAWN = frozenset({State.CANCELLING, State.CANCELLED, State.REVERTING, State.REVERTED})
OVER = frozenset(
    {State.REVERTED, State.CANCELLED, State.COMPLETED, State.COMPLETED_WITH_STRAGGLERS}
)


class WaveKind(StrEnum):
    """What a wave is for."""

    WAVE = "wave"
    STRAGGLERS = "stragglers"
    TAIL = "tail"


class WaveState(StrEnum):
    """Where a wave stands."""

    PENDING = "pending"
    OPEN = "open"
    SOAKING = "soaking"
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


ACTIVE = frozenset({WaveState.OPEN, WaveState.SOAKING})
BEHIND = frozenset({WaveState.PASSED, WaveState.SKIPPED})


@dataclass(frozen=True, slots=True)
class Wave:
    """A wave and its counters: `total` since the start, `baseline` of them acknowledged."""

    number: int
    kind: WaveKind = WaveKind.WAVE
    state: WaveState = WaveState.PENDING
    size: int = 0
    total: Counters = NONE
    baseline: Counters = NONE
    opened_at: datetime | None = None
    met_at: datetime | None = None

    @property
    def since(self) -> Counters:
        """The counters since the last acknowledgement."""
        return self.total - self.baseline

    @property
    def remaining(self) -> int:
        """How many have not ended."""
        return self.size - self.total.terminal

    @property
    def eligible(self) -> int:
        """How many count, or may yet, since the last acknowledgement."""
        acknowledged = self.baseline.ended + self.baseline.refused
        return self.size - self.total.gone - acknowledged


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout as it is decided on. `reverse`: it takes another one back.

    `devices`: how many it reaches; `revert`: what the last halt wants to be reverted, yet.
    """

    policy: Policy
    author: str
    state: State = State.DRAFT
    waves: tuple[Wave, ...] = ()
    epoch: int = 0
    devices: int = 0
    reverse: bool = False
    revert: OnHalt = OnHalt.KEEP

    @property
    def remaining(self) -> int:
        """How many executions have not ended."""
        return sum(wave.remaining for wave in self.waves)

    @property
    def total(self) -> Counters:
        """The counters of all waves since the start."""
        return sum((wave.total for wave in self.waves), NONE)

    @property
    def since(self) -> Counters:
        """The counters of all waves since the last acknowledgement."""
        return sum((wave.since for wave in self.waves), NONE)

    @property
    def flying(self) -> int:
        """How many are on their way."""
        return sum(wave.total.flying for wave in self.waves)

    @property
    def confirmed(self) -> int:
        """How many confirmed since the last acknowledgement."""
        return self.since.confirmed

    def wave(self, number: int) -> Wave:
        """Return a wave by its number. Raises KeyError."""
        for wave in self.waves:
            if wave.number == number:
                return wave
        raise KeyError(number)

    def current(self) -> Wave | None:
        """Return the wave that must pass next; None if all have."""
        for wave in self.waves:
            gated = wave.kind is WaveKind.WAVE or (wave.kind is WaveKind.TAIL and wave.size)
            if gated and wave.state not in BEHIND:
                return wave
        return None

    def offering(self) -> frozenset[int]:
        """Return the numbers of waves whose devices may be offered something now."""
        if self.state is not State.RUNNING:
            return frozenset()
        return frozenset(w.number for w in self.waves if w.state in ACTIVE or w.state in BEHIND)

    def pool(self, number: int) -> int:
        """Return where a device of a wave is counted that is offered something now."""
        wave = self.wave(number)
        late = wave.kind is WaveKind.WAVE and wave.state in BEHIND
        return STRAGGLERS if late else number
