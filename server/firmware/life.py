"""One device in one rollout: an execution, from planned to its end. Pure.

    planned -> offered -> accepted -> downloading -> ready -> waiting window | waiting idle
            -> installing -> rebooting -> trial -> confirmed
    any of them -> failed | reverted by device | timed out | lost | rejected | superseded
                 | cancelled | unreachable

Decided here:
- What a device says moves its execution forwards only: a late or repeated word changes nothing, and
  the order in which words arrive does not matter. Words of an earlier attempt count no more, but
  those that say that it was installed (`confirmed`, `reverted`) while nothing of a later one has
  begun: then that attempt is the one that the device was at.
- It is attempted once the device has accepted it, or said anything that implies so.
- A failure of a class with budget left is planned again, later, as another attempt; trust and
  refusals never are. `deferred` is no failure: the device has what it was
  offered, waits, and installs by itself; so it stays on its way, for no longer than a total.
- A phase's clock begins with the device's word, begins anew with progress or when the device comes
  back, and stands while it is away; then the clock of the lost runs instead, while its site is
  open. All phases together end with `attempt_s`, so nothing proceeds for ever.
- What we only supposed (timed out, lost, unreachable, cancelled, superseded) gives way to how the
  device says that it ended. Nothing else follows an end, but: what had confirmed reverted if the
  device says so with a later word (by attempt and number), or runs another version.
- A device that leaves after it has accepted counts as lost: somebody may swap what we broke.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from protocol.update import Class, Phase
from server.firmware.policy import Policy


class State(StrEnum):
    """Where an execution stands."""

    PLANNED = "planned"
    EXCLUDED = "excluded"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    DOWNLOADING = "downloading"
    READY = "ready"
    WAITING_WINDOW = "waiting window"
    WAITING_IDLE = "waiting idle"
    INSTALLING = "installing"
    REBOOTING = "rebooting"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    REVERTED_BY_DEVICE = "reverted by device"
    TIMED_OUT = "timed out"
    LOST = "lost"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"
    UNREACHABLE = "unreachable"


_RANK = {
    State.PLANNED: 0,
    State.OFFERED: 1,
    State.ACCEPTED: 2,
    State.DOWNLOADING: 3,
    State.READY: 4,
    State.WAITING_WINDOW: 5,
    State.WAITING_IDLE: 5,
    State.INSTALLING: 6,
    State.REBOOTING: 7,
    State.TRIAL: 8,
}
OPEN = frozenset(_RANK)
FLYING = OPEN - {State.PLANNED}
"""On their way: what caps count."""
REVOCABLE = frozenset(state for state in FLYING if _RANK[state] < _RANK[State.INSTALLING])
"""On their way and not yet installing: what can be taken back, or superseded."""
RECALLABLE = REVOCABLE | {State.TRIAL}
"""Whom a rollout that is taken back asks to end: also who only tries the new version yet."""
SUPPOSED = frozenset(
    {State.TIMED_OUT, State.LOST, State.UNREACHABLE, State.CANCELLED, State.SUPERSEDED}
)
FAILURES = frozenset({State.FAILED, State.REVERTED_BY_DEVICE, State.TIMED_OUT})
_GONE = frozenset({State.EXCLUDED, State.SUPERSEDED, State.CANCELLED, State.UNREACHABLE})
_PROGRESS = {
    Phase.ACCEPTED: State.ACCEPTED,
    Phase.DOWNLOADING: State.DOWNLOADING,
    Phase.READY: State.READY,
    Phase.WAITING_WINDOW: State.WAITING_WINDOW,
    Phase.WAITING_IDLE: State.WAITING_IDLE,
    Phase.INSTALLING: State.INSTALLING,
    Phase.REBOOTING: State.REBOOTING,
    Phase.TRIAL: State.TRIAL,
}
_ENDS = {
    Phase.CONFIRMED: State.CONFIRMED,
    Phase.FAILED: State.FAILED,
    Phase.REVERTED: State.REVERTED_BY_DEVICE,
    Phase.REJECTED: State.REJECTED,
}
_INSTALLED = (Phase.CONFIRMED, Phase.REVERTED)
CANCELLED_CODE = "cancelled"
DEFERRED_CODE = "deferred too long"
NO_TRIES: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Counters:
    """How many executions stand how; `attempted` and what follows it as guards count them.

    Who is gone (excluded, superseded, cancelled, unreachable) is in none of the others but
    `terminal`; `refused`: rejected without having been attempted.
    """

    attempted: int = 0
    ended: int = 0
    confirmed: int = 0
    failed: int = 0
    lost: int = 0
    refused: int = 0
    gone: int = 0
    unreachable: int = 0
    terminal: int = 0
    flying: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, n) + getattr(other, n) for n in COUNTED))

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*(getattr(self, n) - getattr(other, n) for n in COUNTED))

    @property
    def hurt(self) -> int:
        """How many are worse off for it: failed or lost."""
        return self.failed + self.lost

    @property
    def rejected(self) -> int:
        """How many would not have it, attempted or not."""
        return self.refused + self.ended - self.confirmed - self.hurt

    def value(self) -> dict[str, int]:
        """Return those that are not 0, for JSON."""
        return {name: getattr(self, name) for name in COUNTED if getattr(self, name)}


COUNTED = tuple(each.name for each in fields(Counters))
NONE = Counters()


@dataclass(frozen=True, slots=True)
class Execution:
    """What is known of one device in one rollout. `kind`: the class of its failure.

    `epoch`: how often the rollout's failures had been acknowledged when it ended.
    """

    state: State = State.PLANNED
    attempt: int = 1
    seq: int = 0
    attempted: bool = False
    epoch: int = 0
    due_at: datetime | None = None
    offered_at: datetime | None = None
    accepted_at: datetime | None = None
    phase_at: datetime | None = None
    deferred_at: datetime | None = None
    ended_at: datetime | None = None
    code: str = ""
    kind: str = ""
    bytes: int = 0
    tries: Mapping[str, int] = field(default_factory=lambda: NO_TRIES)

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state not in OPEN

    @property
    def attempts(self) -> int:
        """How many attempts there were."""
        return 1 + sum(self.tries.values())


@dataclass(frozen=True, slots=True)
class Said:
    """One step as a device said it. `fresh`: its report answers our last nonce."""

    attempt: int
    seq: int
    phase: Phase
    code: str = ""
    kind: str = ""
    bytes: int = 0
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class Contact:
    """How a device is reached. `since`: since when, if it is; `away_s`: open time without it.

    `asked`: it has asked since it was offered something, and so it may have it.
    """

    since: datetime | None
    away_s: float = 0.0
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Here:
    """What an execution is judged by. `withdrawn`: its rollout is being cancelled or reverted."""

    policy: Policy
    now: datetime
    epoch: int = 0
    withdrawn: bool = False

    def later(self, seconds: float) -> datetime:
        """Return so much later than now."""
        return self.now + timedelta(seconds=seconds)


def tally(execution: Execution) -> Counters:
    """Return what one execution adds to the counters of its wave."""
    state, ended = execution.state, execution.ended
    if state in _GONE:
        return Counters(gone=1, unreachable=int(state is State.UNREACHABLE), terminal=1)
    tried = execution.attempted
    return Counters(
        attempted=int(tried),
        ended=int(tried and ended),
        confirmed=int(state is State.CONFIRMED),
        failed=int(state in FAILURES),
        lost=int(state is State.LOST),
        refused=int(state is State.REJECTED and not tried),
        terminal=int(ended),
        flying=int(state in FLYING),
    )


# -- what we do ------------------------------------------------------------------------------------


def offered(execution: Execution, here: Here) -> Execution:
    """Offer what is planned."""
    assert execution.state is State.PLANNED, execution.state
    due = here.later(here.policy.timers.offered_s)
    return replace(execution, state=State.OFFERED, offered_at=here.now, due_at=due)


def postponed(execution: Execution, due: datetime) -> Execution:
    """Look at what is planned at another time."""
    return replace(execution, due_at=due)


def withheld(execution: Execution, due: datetime) -> Execution:
    """Take an offer back that nobody has taken yet, and look again at another time."""
    assert execution.state is State.OFFERED, execution.state
    return replace(execution, state=State.PLANNED, due_at=due)


def cancelled(execution: Execution, here: Here) -> Execution:
    """Take back what is not known to have begun; what has is asked to, by the exchange."""
    if execution.state in (State.PLANNED, State.OFFERED):
        return _end(execution, State.CANCELLED, here, code=CANCELLED_CODE)
    return execution


def superseded(execution: Execution, here: Here) -> Execution:
    """Give way to something more important; what installs already goes on."""
    if execution.state is State.PLANNED or execution.state in REVOCABLE:
        return _end(execution, State.SUPERSEDED, here)
    return execution


def excluded(execution: Execution, here: Here, *, why: str) -> Execution:
    """Leave out what needs nothing any more, before it was ever accepted."""
    if execution.state is State.PLANNED and not execution.attempted:
        return _end(execution, State.EXCLUDED, here, code=why)
    return execution


def expired(execution: Execution, here: Here) -> Execution:
    """End what is still not, or not again, accepted at its wave's deadline."""
    if execution.state is not State.PLANNED:
        return execution
    if execution.attempted:
        return _end(execution, State.FAILED, here, code=execution.code, kind=execution.kind)
    return _end(execution, State.UNREACHABLE, here)


def left(execution: Execution, here: Here) -> Execution:
    """End what belongs to a device that is here no longer."""
    if execution.ended:
        return execution
    state = State.LOST if execution.attempted else State.CANCELLED
    return _end(execution, state, here, code="left")


def mismatched(execution: Execution, here: Here) -> Execution:
    """Reopen what had confirmed: the device runs another version than it had confirmed."""
    if execution.state is not State.CONFIRMED:
        return execution
    return _end(execution, State.REVERTED_BY_DEVICE, here, code="version")


# -- what the clock does ---------------------------------------------------------------------------


def looked_at(execution: Execution, contact: Contact, here: Here) -> Execution:
    """Look at what is due: it goes on waiting, is tried again, or has ended."""
    timers = here.policy.timers
    if execution.state is State.OFFERED:
        return _lapsed(execution, contact, here)
    if execution.state not in FLYING:
        return execution
    if contact.since is None and contact.away_s >= timers.lost_s:
        return _end(execution, State.LOST, here, code=execution.state.value)
    limit = _limit(execution, here)
    if here.now >= limit:
        return _end(execution, State.TIMED_OUT, here, code=execution.state.value)
    if contact.since is None:
        return replace(execution, due_at=min(limit, here.later(timers.lost_s - contact.away_s)))
    due = max(execution.phase_at or here.now, contact.since) + _timer(execution.state, here.policy)
    if here.now < due:
        return replace(execution, due_at=min(limit, due))
    if execution.state in REVOCABLE and not here.withdrawn:
        again = _again(execution, Class.TIMEOUT.value, execution.state.value, here)
        if again is not None:
            return again
    return _end(execution, State.TIMED_OUT, here, code=execution.state.value)


def _lapsed(execution: Execution, contact: Contact, here: Here) -> Execution:
    """Take an offer back; one that the device may have is left to it for as long as an answer."""
    timers = here.policy.timers
    until = (execution.offered_at or here.now) + timedelta(seconds=timers.accepted_s)
    if contact.asked and here.now < until:
        return replace(execution, due_at=until)
    return withheld(execution, here.later(timers.defer_s))


def _timer(state: State, policy: Policy) -> timedelta:
    return timedelta(seconds=getattr(policy.timers, f"{state.name.lower()}_s"))


def _limit(execution: Execution, here: Here) -> datetime:
    begun = execution.accepted_at or here.now
    return begun + timedelta(seconds=here.policy.timers.attempt_s)


# -- what the device says --------------------------------------------------------------------------


def heard(execution: Execution, said: Said, here: Here) -> Execution:
    """Take one step of a device in; unchanged if it says nothing new."""
    if said.phase is Phase.CONFIRMED and not said.fresh:
        return execution
    if said.attempt < execution.attempt:
        return _heard_of_earlier(execution, said, here)
    if execution.ended:
        return _heard_late(execution, said, here)
    if said.attempt > execution.attempt or execution.offered_at is None:
        return execution  # nobody told it to
    if said.phase in _PROGRESS:
        return _moved(execution, said, here)
    if said.phase is Phase.DEFERRED:
        return _deferred(execution, said, here)
    return _ended(execution, said, here)


def _moved(execution: Execution, said: Said, here: Here) -> Execution:
    after = _PROGRESS[said.phase]
    ahead = _RANK[after] - _RANK[execution.state]
    other = ahead == 0 and after is not execution.state and said.seq > execution.seq
    further = after is execution.state and said.bytes > execution.bytes
    if ahead < 0 or not (ahead or other or further):
        return execution
    begun = execution.accepted_at or here.now
    moved = replace(
        execution,
        state=after,
        attempted=True,
        seq=max(execution.seq, said.seq),
        bytes=max(execution.bytes, said.bytes),
        accepted_at=begun,
        phase_at=here.now,
    )
    due = here.now + _timer(after, here.policy)
    return replace(moved, due_at=min(_limit(moved, here), due))


def _deferred(execution: Execution, said: Said, here: Here) -> Execution:
    if execution.state not in REVOCABLE:
        return execution
    timers, since = here.policy.timers, execution.deferred_at or here.now
    if here.now - since >= timedelta(seconds=timers.most_deferred_s):
        return _end(execution, State.REJECTED, here, code=DEFERRED_CODE)
    if here.withdrawn:
        return _end(execution, State.CANCELLED, here, code=CANCELLED_CODE)
    waits = replace(said, phase=Phase.WAITING_IDLE, bytes=0)
    return replace(_moved(execution, waits, here), deferred_at=since)


def _ended(execution: Execution, said: Said, here: Here) -> Execution:
    state = _ENDS[said.phase]
    if state is not State.CONFIRMED and said.code == CANCELLED_CODE and here.withdrawn:
        return _end(execution, State.CANCELLED, here, code=said.code)
    if state is State.FAILED and not here.withdrawn:
        again = _again(execution, said.kind, said.code, here)
        if again is not None:
            return again
    tried = replace(
        execution,
        attempted=execution.attempted or state is not State.REJECTED,
        seq=max(execution.seq, said.seq),
    )
    return _end(tried, state, here, code=said.code, kind=said.kind)


def _heard_of_earlier(execution: Execution, said: Said, here: Here) -> Execution:
    """Take in that an attempt had installed which we had given up, while no later one has begun."""
    waits = execution.state in (State.PLANNED, State.OFFERED)
    supposed = execution.state in SUPPOSED and execution.accepted_at is None
    installed = said.phase in _INSTALLED and said.code != CANCELLED_CODE
    if not installed or not (waits or supposed):
        return execution
    was = replace(
        execution,
        attempt=said.attempt,
        seq=said.seq,
        attempted=True,
        offered_at=execution.offered_at or here.now,
        accepted_at=execution.accepted_at or here.now,
    )
    return _end(was, _ENDS[said.phase], here, code=said.code, kind=said.kind)


def _heard_late(execution: Execution, said: Said, here: Here) -> Execution:
    """Take in what a device says of an end that we supposed, or of one it has undone."""
    end = _ENDS.get(said.phase)
    if end is None or said.attempt > execution.attempts or execution.offered_at is None:
        return execution
    undone = execution.state is State.CONFIRMED and end is State.REVERTED_BY_DEVICE
    if undone and (said.attempt, said.seq) > (execution.attempt, execution.seq):
        after = replace(execution, attempt=said.attempt, seq=said.seq)
        return _end(after, end, here, code=said.code, kind=said.kind)
    supposed = execution.state in SUPPOSED and said.code != CANCELLED_CODE
    if not supposed or said.attempt != execution.attempt:
        return execution
    tried = execution.attempted or end is not State.REJECTED
    after = replace(execution, attempted=tried, seq=max(execution.seq, said.seq))
    return _end(after, end, here, code=said.code, kind=said.kind)


# -- ends ------------------------------------------------------------------------------------------


def _again(execution: Execution, kind: str, code: str, here: Here) -> Execution | None:
    """Return it as planned once more; None if the budget of this class is used up."""
    tried = execution.tries.get(kind, 0)
    if tried >= here.policy.retries.budget(kind):
        return None
    due = here.later(here.policy.retries.backoff(tried + 1))
    tries = {**execution.tries, kind: tried + 1}
    return replace(_next(execution, due), tries=tries, code=code, kind=kind, attempted=True)


def _next(execution: Execution, due: datetime) -> Execution:
    return replace(
        execution,
        state=State.PLANNED,
        attempt=execution.attempt + 1,
        seq=0,
        bytes=0,
        due_at=due,
        offered_at=None,
        accepted_at=None,
        phase_at=None,
    )


def _end(
    execution: Execution, state: State, here: Here, *, code: str = "", kind: str = ""
) -> Execution:
    begun = execution.accepted_at
    if state is State.CONFIRMED:  # whoever says so alone is held to it like any other
        begun = begun or here.now
    return replace(
        execution,
        state=state,
        accepted_at=begun,
        ended_at=here.now,
        epoch=here.epoch,
        due_at=None,
        code=code,
        kind=kind,
    )
