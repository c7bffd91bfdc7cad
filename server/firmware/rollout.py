"""A rollout: its states, its waves, and what moves them. Pure.

    draft -> planned -> awaiting approval -> scheduled -> running <-> paused
    running, paused -> halted(guard)         halted, paused -> running: resuming acknowledges
    running, paused, halted -> reverting -> reverted | halted
    any that has not ended -> cancelling -> cancelled
    running -> completed | completed with stragglers

    wave: pending -> open -> soaking -> passed; open, soaking -> failed -> open | skipped

`decide` takes a rollout and what happened, and returns the rollout and its transitions. `apply` is
the only thing that changes a state: so a rollout's state is the fold of the rows that its
transitions are written as (`replayed`), with the counters at that moment.

Decided here, beside what `guards` and `life` decide:
- Waves follow one another; one opens once the one before has passed or somebody has skipped it.
- The soak begins with the word that meets the gate. Who ends without success below it ends the
  soak; who is merely on its way delays the passing until it has ended.
- A wave of which all have ended below its gate has failed: the rollout halts.
- Whoever is offered something after its wave has passed is counted among the stragglers, number 0,
  who have no gate and the same guards. Who joins later is in the tail: a wave after all others.
- Resuming acknowledges: what has ended until then is the baseline that guards and gates count
  from, and the ramp begins anew. A failed wave of which nobody is left is thereby skipped. What
  somebody acknowledged and turns out otherwise later is taken out of the baseline again.
- It has completed without stragglers if somebody has confirmed, and nobody was unreachable or has
  rejected it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from server.errors import RefusedError
from server.firmware.guards import Guard, Tripped, met, tripped
from server.firmware.life import NONE, Counters, Execution, tally
from server.firmware.life import State as Stage
from server.firmware.policy import OnHalt
from server.firmware.waves import (
    ACTIVE,
    BEHIND,
    PREPARING,
    STRAGGLERS,
    UNDER_WAY,
    Rollout,
    State,
    Wave,
    WaveKind,
    WaveState,
)

SERVER = "server"


# -- what happens ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, when, and by whom."""

    at: datetime
    actor: str = SERVER
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Event):
    """It is known whom it would reach, in waves of these sizes."""

    sizes: tuple[int, ...]


class Submitted(Event):
    """The author asks for approval."""

    __slots__ = ()


class Approved(Event):
    """`actor` approves it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """Its time has come; `sizes`: of its waves, without whom is left out by now."""

    sizes: tuple[int, ...]


class Paused(Event):
    """Nothing more is offered; what is on its way goes on."""

    __slots__ = ()


class Resumed(Event):
    """What failed so far is acknowledged; the reason is mandatory."""

    __slots__ = ()


class Cancelled(Event):
    """It is to end; what has not begun to install does not."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reverting(Event):
    """A reverse rollout was made."""

    by: str
    how: OnHalt


class RevertRefused(Event):
    """There is no way back; the reason says why."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertEnded(Event):
    """The reverse rollout has ended; `whole`: it went through."""

    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed(Event):
    """An execution of pool `wave` is another now."""

    wave: int
    before: Execution
    after: Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Strayed(Event):
    """A planned execution of a wave that has passed is counted among the stragglers from now on."""

    wave: int
    execution: Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined(Event):
    """So many devices more, in the tail."""

    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Regressed(Event):
    """Health or counts of a wave's devices got worse than those of the others."""

    wave: int
    guard: Guard
    found: float
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticked(Event):
    """Time has passed. `awaited`: more devices may join, so it does not complete."""

    awaited: bool = False


# -- what becomes of it ----------------------------------------------------------------------------


Json = str | int | float | list[int] | dict[str, int]


class Kind(StrEnum):
    """What a transition is: the `event` of a row of rollout_events."""

    PLANNED = "planned"
    SUBMITTED = "submitted"
    APPROVED = "approved"
    STARTED = "started"
    OPENED = "wave opened"
    MET = "wave soaking"
    UNMET = "wave open again"
    PASSED = "wave passed"
    PAUSED = "paused"
    HALTED = "halted"
    RESUMED = "resumed"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    REVERTING = "reverting"
    REVERT_REFUSED = "revert refused"
    REVERTED = "reverted"
    REVERT_FAILED = "revert failed"
    JOINED = "joined"
    REOPENED = "reopened"
    COMPLETED = "completed"
    STRAGGLED = "completed with stragglers"


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of rollout_events: what changed, why, and the counters at that moment by wave."""

    kind: Kind
    at: datetime
    actor: str
    reason: str
    detail: Mapping[str, Json]
    counters: Mapping[str, Mapping[str, int]]


Decided = tuple[Rollout, tuple[Transition, ...]]


def decide(rollout: Rollout, event: Event) -> Decided:
    """Return the rollout after an event, and its transitions. Raises RefusedError."""
    deciding = _Deciding(rollout, event)
    deciding.take(event)
    return deciding.rollout, tuple(deciding.transitions)


def replayed(rollout: Rollout, rows: Iterable[Transition]) -> Rollout:
    """Return what a draft became by its transitions, but for counters that no transition shows."""
    for row in rows:
        rollout = apply(rollout, row)
    return rollout


class _Deciding:
    """One decision: the rollout as it is by now, and the transitions that led there."""

    def __init__(self, rollout: Rollout, event: Event) -> None:
        self.rollout = rollout
        self.event = event
        self.transitions: list[Transition] = []

    def take(self, event: Event) -> None:
        match event:
            case Planned():
                self._demand(State.DRAFT, State.PLANNED)
                self._demand_somebody(event.sizes)
                self._transition(Kind.PLANNED, sizes=list(event.sizes))
            case Submitted():
                self._demand(State.PLANNED)
                self._transition(Kind.SUBMITTED)
            case Approved():
                self._demand(State.AWAITING_APPROVAL)
                self._demand_four_eyes()
                self._transition(Kind.APPROVED)
            case Started():
                self._demand(State.SCHEDULED)
                self._demand_somebody(event.sizes)
                self._transition(Kind.STARTED, sizes=list(event.sizes))
            case Paused():
                self._demand(State.RUNNING)
                self._demand_reason()
                self._transition(Kind.PAUSED)
            case Resumed():
                self._demand(State.PAUSED, State.HALTED)
                self._demand_reason()
                self._transition(Kind.RESUMED, skipped=self._spent())
            case Cancelled():
                self._demand(*PREPARING, *UNDER_WAY)
                self._demand_reason()
                early = self.rollout.state in PREPARING
                self._transition(Kind.CANCELLED if early else Kind.CANCELLING)
            case Reverting() | RevertRefused() | RevertEnded():
                self._revert(event)
            case Changed():
                self._changed(event)
            case Strayed():
                self._strayed(event)
            case Joined():
                self._demand(*UNDER_WAY)
                self._transition(Kind.JOINED, devices=event.devices)
            case Regressed():
                numbers = Tripped(event.guard, event.found, event.limit)
                self._halt(event.wave, numbers, reason=event.reason)
            case Ticked():
                self._tick(event)
            case _:
                raise TypeError(f"{type(event).__name__} happens to no rollout")

    # -- what somebody does

    def _spent(self) -> list[int]:
        """Return the waves that have not done enough and of which nobody is left."""
        unmet = (WaveState.OPEN, WaveState.FAILED)
        gated = [w for w in self.rollout.waves if w.kind is not WaveKind.STRAGGLERS]
        return [w.number for w in gated if w.state in unmet and w.remaining == 0]

    def _demand(self, *states: State) -> None:
        state = self.rollout.state
        if state not in states:
            raise RefusedError("bad_transition", f"it is {state.value}, which this does not follow")

    def _demand_reason(self) -> None:
        if not self.event.reason.strip():
            raise RefusedError("reason_needed", "say why")

    def _demand_somebody(self, sizes: tuple[int, ...]) -> None:
        if sum(sizes) == 0:
            raise RefusedError("nobody", "there is no device that it could reach")

    def _demand_four_eyes(self) -> None:
        limit, devices = self.rollout.policy.blast_radius, self.rollout.devices
        if devices > limit and self.event.actor == self.rollout.author:
            raise RefusedError(
                "four_eyes",
                f"{devices} devices: above {limit} somebody else than its author approves",
            )

    def _revert(self, event: Reverting | RevertRefused | RevertEnded) -> None:
        match event:
            case Reverting():
                self._demand(*UNDER_WAY)
                if self.rollout.reverse:
                    raise RefusedError("reverse", "a reverse rollout is not reverted itself")
                self._transition(Kind.REVERTING, rollout=event.by, how=event.how.value)
            case RevertRefused():
                self._demand(State.HALTED)
                self._transition(Kind.REVERT_REFUSED)
            case RevertEnded():
                self._demand(State.REVERTING)
                self._transition(Kind.REVERTED if event.whole else Kind.REVERT_FAILED)
            case _:
                assert_never(event)

    # -- what executions and time do

    def _changed(self, event: Changed) -> None:
        before, after = tally(event.before), tally(event.after)
        wave = self.rollout.wave(event.wave)
        self._put(replace(wave, total=wave.total + after - before))
        if event.before.ended:
            known = event.before.epoch < self.rollout.epoch
            self._transition(
                Kind.REOPENED,
                wave=event.wave,
                was=event.before.state.value,
                now=event.after.state.value,
                baseline=_acknowledged(before).value() if known else {},
            )
        if event.after.ended:
            found = tripped(
                self.rollout.policy.guards,
                self.rollout.wave(event.wave).since,
                everywhere=self.rollout.since,
            )
            if found is not None:
                self._halt(event.wave, found)
            self._gate(event.wave, worse=event.after.state is not Stage.CONFIRMED)

    def _strayed(self, event: Strayed) -> None:
        wave, late = self.rollout.wave(event.wave), self.rollout.wave(STRAGGLERS)
        share = tally(event.execution)
        self._put(replace(wave, size=wave.size - 1, total=wave.total - share))
        self._put(replace(late, size=late.size + 1, total=late.total + share))

    def _tick(self, event: Ticked) -> None:
        state = self.rollout.state
        if state is State.CANCELLING and self.rollout.remaining == 0:
            self._transition(Kind.CANCELLED)
        if state is not State.RUNNING:
            return
        wave = self.rollout.current()
        if wave is not None and wave.state in ACTIVE:
            self._gate(wave.number, worse=False)
            self._pass(wave.number)
            wave = self.rollout.current()
        if wave is not None and wave.state is WaveState.PENDING and self._running:
            self._transition(Kind.OPENED, wave=wave.number)
            self._gate(wave.number, worse=False)
        if wave is None and self.rollout.remaining == 0 and not event.awaited:
            total = self.rollout.total
            whole = total.confirmed and not total.unreachable + total.rejected
            self._transition(Kind.COMPLETED if whole else Kind.STRAGGLED)

    @property
    def _running(self) -> bool:
        return self.rollout.state is State.RUNNING

    def _pass(self, number: int) -> None:
        wave = self.rollout.wave(number)
        soak = timedelta(seconds=self.rollout.policy.gate.soak_s)
        soaked = wave.met_at is not None and self.event.at - wave.met_at >= soak
        if wave.state is WaveState.SOAKING and soaked and self._met(wave):
            self._transition(Kind.PASSED, wave=number)

    def _gate(self, number: int, *, worse: bool) -> None:
        """Judge whether a wave's gate is met, or cannot be met any more."""
        wave = self.rollout.wave(number)
        gated = wave.kind is not WaveKind.STRAGGLERS and wave.state in ACTIVE
        if not gated or self.rollout.state not in UNDER_WAY:
            return
        enough = self._met(wave)
        if wave.state is WaveState.OPEN and enough:
            self._transition(Kind.MET, wave=number)
        elif wave.state is WaveState.SOAKING and worse and not enough:
            self._transition(Kind.UNMET, wave=number)
        if not enough and wave.remaining == 0:
            gate, since = self.rollout.policy.gate, wave.since
            share = round(100 * since.confirmed / since.attempted, 2) if since.attempted else 0.0
            self._halt(number, Tripped(Guard.EXHAUSTED, share, gate.success_pct))

    def _met(self, wave: Wave) -> bool:
        was_met = wave.state is WaveState.SOAKING
        gate = self.rollout.policy.gate
        return met(gate, wave.since, eligible=wave.eligible, was_met=was_met)

    def _halt(self, wave: int, found: Tripped, *, reason: str = "") -> None:
        if self.rollout.state not in (State.RUNNING, State.PAUSED):
            return
        revert = OnHalt.KEEP if self.rollout.reverse else self.rollout.policy.on_halt
        judged = found.guard in (Guard.COUNTS, Guard.HEALTH)
        if revert is OnHalt.REVERT_FAILED and judged:
            revert = OnHalt.REVERT_ALL  # whoever is to blame has confirmed
        last = self.rollout.wave(wave)
        if not judged and last.kind is WaveKind.TAIL and found.by(last.since):
            revert = OnHalt.KEEP  # who joined late says nothing of those who passed
        said = reason or f"{found.guard.value}: {found.found:g} of {found.limit:g} in wave {wave}"
        self._transition(Kind.HALTED, said, wave=wave, revert=revert.value, **found.value())

    # -- written down

    def _put(self, wave: Wave) -> None:
        self.rollout = _with(self.rollout, wave)

    def _transition(self, kind: Kind, reason: str | None = None, **detail: Json) -> None:
        made = Transition(
            kind,
            self.event.at,
            self.event.actor,
            self.event.reason if reason is None else reason,
            detail,
            {str(wave.number): wave.total.value() for wave in self.rollout.waves},
        )
        self.rollout = apply(self.rollout, made)
        self.transitions.append(made)


# -- the fold --------------------------------------------------------------------------------------

_STATES = {
    Kind.PLANNED: State.PLANNED,
    Kind.SUBMITTED: State.AWAITING_APPROVAL,
    Kind.APPROVED: State.SCHEDULED,
    Kind.STARTED: State.RUNNING,
    Kind.PAUSED: State.PAUSED,
    Kind.HALTED: State.HALTED,
    Kind.RESUMED: State.RUNNING,
    Kind.CANCELLING: State.CANCELLING,
    Kind.CANCELLED: State.CANCELLED,
    Kind.REVERTING: State.REVERTING,
    Kind.REVERTED: State.REVERTED,
    Kind.REVERT_FAILED: State.HALTED,
    Kind.COMPLETED: State.COMPLETED,
    Kind.STRAGGLED: State.COMPLETED_WITH_STRAGGLERS,
}


def apply(rollout: Rollout, row: Transition) -> Rollout:
    """Return a rollout after one of its transitions."""
    rollout = replace(rollout, state=_STATES.get(row.kind, rollout.state))
    match row.kind:
        case Kind.PLANNED:
            return replace(rollout, devices=sum(_numbers(row, "sizes")))
        case Kind.STARTED:
            sizes = _numbers(row, "sizes")
            return replace(rollout, devices=sum(sizes), waves=_waves(sizes))
        case Kind.OPENED:
            wave = replace(_wave(rollout, row), state=WaveState.OPEN, opened_at=row.at)
            return _with(rollout, wave)
        case Kind.MET:
            wave = replace(_wave(rollout, row), state=WaveState.SOAKING, met_at=row.at)
            return _with(rollout, wave)
        case Kind.UNMET:
            return _with(rollout, replace(_wave(rollout, row), state=WaveState.OPEN, met_at=None))
        case Kind.PASSED:
            return _with(rollout, replace(_wave(rollout, row), state=WaveState.PASSED))
        case Kind.HALTED:
            return _halted(rollout, row)
        case Kind.RESUMED:
            return _resumed(rollout, row)
        case Kind.JOINED:
            return _joined(rollout, row)
        case Kind.REOPENED:
            wave, known = _wave(rollout, row), row.detail["baseline"]
            assert isinstance(known, dict)
            return _with(rollout, replace(wave, baseline=wave.baseline - Counters(**known)))
        case Kind.REVERTING | Kind.REVERT_REFUSED | Kind.CANCELLING | Kind.REVERT_FAILED:
            return replace(rollout, revert=OnHalt.KEEP)
        case _:
            return rollout


def _waves(sizes: list[int]) -> tuple[Wave, ...]:
    late = Wave(STRAGGLERS, WaveKind.STRAGGLERS, WaveState.OPEN)
    waves = [Wave(number, size=size) for number, size in enumerate(sizes, 1)]
    return (late, *waves, Wave(len(waves) + 1, WaveKind.TAIL))


def _halted(rollout: Rollout, row: Transition) -> Rollout:
    wave = _wave(rollout, row)
    if wave.state in ACTIVE:
        wave = replace(wave, state=WaveState.FAILED, met_at=None)
    revert = row.detail["revert"]
    assert isinstance(revert, str)
    return replace(_with(rollout, wave), revert=OnHalt(revert))


def _resumed(rollout: Rollout, row: Transition) -> Rollout:
    skipped = _numbers(row, "skipped")
    for wave in rollout.waves:
        total = Counters(**row.counters.get(str(wave.number), {}))
        state = wave.state
        if wave.number in skipped:
            state = WaveState.SKIPPED
        elif state is WaveState.FAILED:
            state = WaveState.OPEN
        rollout = _with(rollout, replace(wave, state=state, baseline=_acknowledged(total)))
    return replace(rollout, epoch=rollout.epoch + 1, revert=OnHalt.KEEP)


def _joined(rollout: Rollout, row: Transition) -> Rollout:
    joined = row.detail["devices"]
    assert isinstance(joined, int)
    tail = rollout.waves[-1]
    again = tail.state in BEHIND
    tail = replace(
        tail,
        size=tail.size + joined,
        state=WaveState.PENDING if again else tail.state,
        met_at=None if again else tail.met_at,
    )
    return replace(_with(rollout, tail), devices=rollout.devices + joined)


def _acknowledged(total: Counters) -> Counters:
    """Return what of the counters is over and known: who is on the way counts from now on."""
    return replace(
        NONE,
        attempted=total.ended,
        ended=total.ended,
        confirmed=total.confirmed,
        failed=total.failed,
        lost=total.lost,
        refused=total.refused,
    )


def _with(rollout: Rollout, wave: Wave) -> Rollout:
    waves = tuple(wave if each.number == wave.number else each for each in rollout.waves)
    return replace(rollout, waves=waves)


def _wave(rollout: Rollout, row: Transition) -> Wave:
    number = row.detail["wave"]
    assert isinstance(number, int)
    return rollout.wave(number)


def _numbers(row: Transition, name: str) -> list[int]:
    numbers = row.detail[name]
    assert isinstance(numbers, list)
    return numbers
