"""The update machine: where a device is with an assignment, and what it does next. Pure.

    IDLE -> SYNC -> DOWNLOAD -> WAIT -> INSTALL -> REBOOT -> VERIFY_REBOOT -> TRIAL -> COMMIT
         -> CLEANUP -> IDLE
    on failure from INSTALL on: ROLLBACK -> ROLLBACK_REBOOT -> VERIFY_ROLLBACK -> FAILURE -> CLEANUP
    on failure before: FAILURE -> CLEANUP

`step` takes where we are and what happened, and returns where we are now and what is to be done.
What it returns is on disk (`journal`) before any of that is done. Decided here:

1. Each action may be done again: a start goes on where the journal stands (`Started`).
2. Until INSTALL there is nothing to undo. From INSTALL on, whatever ends the process before COMMIT
   ends in the slot of before: nothing is tried twice.
3. COMMIT is begun only in the process that is on trial, once all of `Proof` is there. Whether a
   commit that was interrupted holds is said by the slot that the next start runs from.
4. `confirmed` is noted after COMMIT, and nowhere else; `reverted` once the slot of before was seen
   to run; what cannot be seen to is `failed`, with `inconsistent`.
5. An attempt is ended once. Offered again, it is told how it ended.
6. The steps of an attempt are numbered from 1; they are told until the server has heard them.
7. A lease (somebody uses the device, "ask me later") keeps an assignment back for `delay_s` in all,
   and then no more. Windows are not a lease: they are the store's hours.
"""

from dataclasses import replace
from typing import assert_never

from agent.update.states import (
    Action,
    Armed,
    Cancelled,
    Checked,
    Cleaned,
    Committed,
    Ended,
    Event,
    Failed,
    Failure,
    Fetched,
    Heard,
    Later,
    Looked,
    Offered,
    Place,
    Progress,
    Proof,
    Proved,
    Refused,
    RolledBack,
    Stage,
    Started,
    Told,
    Update,
    Verified,
    attempt_of,
)
from protocol.assignment import Assignment
from protocol.update import MAX_STEPS, Attempt, Class, Phase, Step
from protocol.windows import fits

MARGIN_MS = 60_000  # beyond a trial's time: two starts, and the way back
PERSIST_MS = 300_000  # waiting is written down at least so often
MOST_ENDED = 16
MOST_TAIL = 12
MOST_TRIES = 3  # of the way back

Actions = tuple[Action, ...]
_NOTHING: Actions = ()


def step(update: Update, event: Event, *, now_ms: int) -> tuple[Update, Actions]:
    """Return what becomes of an event; `now_ms` is UTC, 0 if it is not known.

    An event that does not belong to the stage changes nothing: it came late.
    """
    match event:
        case Started():
            return _started(update, event, now_ms)
        case Heard():
            return _heard(update, event), _NOTHING
        case Offered():
            return _offered(update, event.job, now_ms)
        case Checked():
            return _checked(update, event.places, now_ms)
        case Refused():
            return _refused(update, event, now_ms)
        case Cancelled():
            return _cancelled(update, event, now_ms)
        case Progress() | Fetched():
            return _fetching(update, event, now_ms)
        case Looked() | Later():
            return _waiting(update, event, now_ms)
        case Armed():
            return _armed(update, now_ms)
        case Verified():
            return _verified(update, event, now_ms)
        case Proved():
            return _proved(update, event.proof, now_ms)
        case Failed():
            return _failed(update, event, now_ms)
        case Committed() | RolledBack() | Told() | Cleaned():
            return _done(update, event, now_ms)
        case _:
            assert_never(event)


# -- a start ---------------------------------------------------------------------------------------


def _started(update: Update, event: Started, now_ms: int) -> tuple[Update, Actions]:
    """Go on where the journal stands, in a new process (1, 2, 3)."""
    update = replace(update, offer=None)
    ours = event.attempt == update.attempt
    if event.on_trial and (update.stage in _UNBEGUN or not ours):
        return update, (Action.RESTART,)  # a try that the journal does not know of (2)
    if not ours:
        event = replace(event, fell_back="")  # a record of old
    place = update.place
    in_new = place is not None and event.slot == place.new
    match update.stage:
        case Stage.IDLE:
            return update, _NOTHING
        case Stage.SYNC:
            return _to(replace(update, job=None), Stage.IDLE, now_ms), _NOTHING
        case Stage.DOWNLOAD:
            return update, (Action.FETCH,)
        case Stage.WAIT:
            return update, (Action.LOOK,)
        case Stage.INSTALL | Stage.REBOOT if in_new and event.on_trial:
            booted = replace(update, booted=True)
            return _to(booted, Stage.VERIFY_REBOOT, now_ms), (Action.VERIFY,)
        case Stage.INSTALL if not event.fell_back:
            return _to(update, Stage.WAIT, now_ms), (Action.LOOK,)
        case Stage.COMMIT if place is None or in_new:
            return update, (Action.COMMIT,)
        case Stage.INSTALL | Stage.REBOOT | Stage.VERIFY_REBOOT | Stage.TRIAL | Stage.COMMIT:
            booted = replace(update, booted=update.booted or event.fell_back in _STARTED)
            return _roll_back(booted, fallen(event.fell_back, update.stage), now_ms)
        case Stage.CLEANUP:
            return update, (Action.CLEAN,)
        case Stage.ROLLBACK:
            return update, (Action.ROLL_BACK,)
        case Stage.ROLLBACK_REBOOT:
            return _to(update, Stage.VERIFY_ROLLBACK, now_ms), (Action.VERIFY,)
        case Stage.VERIFY_ROLLBACK:
            return update, (Action.VERIFY,)
        case Stage.FAILURE:
            return update, (Action.TELL,)
        case _:
            assert_never(update.stage)


_STARTED = ("crashed", "hung", "power")  # words of the launcher's after which it had been started
_UNBEGUN = frozenset({Stage.IDLE, Stage.SYNC, Stage.DOWNLOAD, Stage.WAIT, Stage.CLEANUP})


def fallen(why: str, stage: Stage) -> Failure:
    """Return the failure that a launcher's word amounts to (`launch`).

    A crash speaks against the code, and is not tried again; a power cut does not.
    """
    match why:
        case "crashed":
            return Failure(Class.SELF_TEST, "crashed")
        case "hung":
            return Failure(Class.TIMEOUT, "hung")
        case "power":
            return Failure(Class.INTERNAL, "power_lost")
        case "unfit":
            return Failure(Class.STORAGE, "unfit_slot")
        case "unwritten":
            return Failure(Class.STORAGE, "disk_error")
        case _ if stage in (Stage.TRIAL, Stage.VERIFY_REBOOT, Stage.COMMIT):
            return Failure(Class.INTERNAL, "interrupted")
        case _:
            return Failure(Class.INTERNAL, "did_not_start")


# -- an assignment ---------------------------------------------------------------------------------


def _offered(update: Update, job: Assignment, now_ms: int) -> tuple[Update, Actions]:
    attempt = attempt_of(job)
    if (ended := _ended(update, attempt)) is not None:  # 5
        known = any(each.attempt == attempt and each.seq == ended.seq for each in update.steps)
        again = Step(attempt, ended.seq, ended.phase, ended.code, ended.kind, 0, now_ms)
        return (update if known else _append(update, again)), _NOTHING
    match update.stage:
        case Stage.IDLE:
            return _to(replace(update, job=job), Stage.SYNC, now_ms), (Action.CHECK,)
        case Stage.SYNC:
            return replace(update, job=job), (Action.CHECK,)
        case Stage.DOWNLOAD | Stage.WAIT:
            return replace(update, offer=job), (Action.CHECK,)
        case _:
            return update, _NOTHING  # what is under way comes to its end first


def _ended(update: Update, attempt: Attempt) -> Ended | None:
    return next((each for each in update.ended if each.attempt == attempt), None)


def _checked(update: Update, places: tuple[Place, ...], now_ms: int) -> tuple[Update, Actions]:
    if update.stage is Stage.SYNC:
        return _begin(update, places, now_ms)
    offer, job = update.offer, update.job
    if update.stage not in (Stage.DOWNLOAD, Stage.WAIT) or offer is None or job is None:
        return update, _NOTHING
    if attempt_of(offer) == attempt_of(job) and offer.bundle == job.bundle:
        return replace(update, job=offer, offer=None), _NOTHING  # the same, with other terms
    replaced = _end(update, Phase.FAILED, Failure(Class.REFUSED, "replaced"), now_ms)
    return _begin(replace(_fresh(replaced), job=offer), places, now_ms)


def _begin(update: Update, places: tuple[Place, ...], now_ms: int) -> tuple[Update, Actions]:
    taken = _note(replace(update, places=places), Phase.ACCEPTED, now_ms)
    downloading = _note(taken, Phase.DOWNLOADING, now_ms)
    return _to(downloading, Stage.DOWNLOAD, now_ms), (Action.FETCH,)


def _refused(update: Update, event: Refused, now_ms: int) -> tuple[Update, Actions]:
    if update.stage is Stage.SYNC:
        if event.known:
            update = _end(update, Phase.REJECTED, event.failure, now_ms)
        return _to(_fresh(update), Stage.IDLE, now_ms), _NOTHING
    offer, job = update.offer, update.job
    if update.stage not in (Stage.DOWNLOAD, Stage.WAIT) or offer is None or job is None:
        return update, _NOTHING
    update = replace(update, offer=None)
    if not event.known:
        return update, _NOTHING
    if attempt_of(offer) == attempt_of(job):  # what was good is so no more
        return _fail(update, event.failure, now_ms)
    return _reject(update, attempt_of(offer), event.failure, now_ms), _NOTHING


def _reject(update: Update, attempt: Attempt, failure: Failure, now_ms: int) -> Update:
    """Note that another assignment than the one under way is refused."""
    said = Step(attempt, 1, Phase.REJECTED, failure.code, failure.kind, 0, now_ms)
    ended = Ended(attempt, 1, Phase.REJECTED, failure.code, failure.kind)
    return replace(_append(update, said), ended=(*update.ended, ended)[-MOST_ENDED:])


def _cancelled(update: Update, event: Cancelled, now_ms: int) -> tuple[Update, Actions]:
    if update.job is None or update.job.execution not in event.executions:
        return update, _NOTHING
    failure = Failure(Class.REFUSED, "cancelled")
    match update.stage:
        case Stage.SYNC:
            return _refused(update, Refused(failure), now_ms)
        case Stage.DOWNLOAD | Stage.WAIT:
            return _fail(update, failure, now_ms)
        case Stage.TRIAL:
            return _roll_back(update, failure, now_ms)
        case _:
            return update, _NOTHING


# -- before the first byte of it is run ------------------------------------------------------------


def _fetching(update: Update, event: Progress | Fetched, now_ms: int) -> tuple[Update, Actions]:
    if update.stage is not Stage.DOWNLOAD:
        return update, _NOTHING
    if isinstance(event, Progress):
        if event.bytes <= update.told_bytes:
            return update, _NOTHING
        noted = _note(update, Phase.DOWNLOADING, now_ms, bytes_=event.bytes)
        return replace(noted, told_bytes=event.bytes), _NOTHING
    ready = _note(update, Phase.READY, now_ms, bytes_=event.bytes)
    return _to(replace(ready, ready_ms=now_ms), Stage.WAIT, now_ms), (Action.LOOK,)


def _waiting(update: Update, event: Looked | Later, now_ms: int) -> tuple[Update, Actions]:
    job = update.job
    if update.stage is not Stage.WAIT or job is None:
        return update, _NOTHING
    if isinstance(event, Later):
        until = min(update.waited_ms + max(0, event.for_ms), job.delay_s * 1000)
        if until <= update.later_ms:
            return update, _NOTHING
        deferred = replace(update, later_ms=until, reason=Phase.DEFERRED)
        return _note(deferred, Phase.DEFERRED, now_ms), _NOTHING
    waited_ms = update.waited_ms + max(0, event.elapsed_ms)
    if now_ms and update.ready_ms:
        waited_ms = max(waited_ms, now_ms - update.ready_ms)
    reason = _held_back(update, job, waited_ms, busy=event.busy, now_ms=now_ms)
    if reason is None:
        return _install(replace(update, waited_ms=waited_ms, reason=None), now_ms)
    if reason is update.reason and waited_ms - update.waited_ms < PERSIST_MS:
        return update, _NOTHING
    waited = replace(update, waited_ms=waited_ms, reason=reason)
    return (waited if reason is update.reason else _note(waited, reason, now_ms)), _NOTHING


def _held_back(
    update: Update, job: Assignment, waited_ms: int, *, busy: bool, now_ms: int
) -> Phase | None:
    """Return why it can't be installed at this moment; None if it can (7)."""
    if now_ms and now_ms > job.not_after_ms:
        return Phase.WAITING_WINDOW  # until the server says again that it is wanted
    if job.urgent:
        return None
    needs_ms = job.trial_s * 1000 + MARGIN_MS
    if job.window and not (now_ms and fits(job.window, at_ms=now_ms, needs_ms=needs_ms)):
        return Phase.WAITING_WINDOW
    if waited_ms >= job.delay_s * 1000:
        return None
    if waited_ms < update.later_ms:
        return Phase.DEFERRED
    return Phase.WAITING_IDLE if busy else None


def _install(update: Update, now_ms: int) -> tuple[Update, Actions]:
    noted = _note(update, Phase.INSTALLING, now_ms)
    return _to(noted, Stage.INSTALL, now_ms), (Action.ARM,)


def _armed(update: Update, now_ms: int) -> tuple[Update, Actions]:
    if update.stage is not Stage.INSTALL:
        return update, _NOTHING
    if update.place is None:  # a screen is tried by the agent that runs
        return _try(replace(update, booted=True), now_ms)
    noted = _note(update, Phase.REBOOTING, now_ms)
    return _to(noted, Stage.REBOOT, now_ms), (Action.RESTART,)


# -- the trial -------------------------------------------------------------------------------------


def _verified(update: Update, event: Verified, now_ms: int) -> tuple[Update, Actions]:
    if update.stage is Stage.VERIFY_REBOOT:
        if event.failure is not None:
            return _roll_back(update, event.failure, now_ms)
        return _try(update, now_ms)
    if update.stage is not Stage.VERIFY_ROLLBACK:
        return update, _NOTHING
    if event.failure is None:
        return _give_up(update, now_ms)
    if update.tries + 1 < MOST_TRIES:
        again = replace(update, tries=update.tries + 1)
        return _to(again, Stage.ROLLBACK, now_ms), (Action.ROLL_BACK,)
    wrong = replace(update, failure=Failure(Class.INTERNAL, "inconsistent"), booted=False)
    return _give_up(wrong, now_ms)


def _try(update: Update, now_ms: int) -> tuple[Update, Actions]:
    noted = _note(replace(update, proofs=frozenset()), Phase.TRIAL, now_ms)
    return _to(noted, Stage.TRIAL, now_ms), (Action.PROVE,)


def _proved(update: Update, proof: Proof, now_ms: int) -> tuple[Update, Actions]:
    if update.stage is not Stage.TRIAL:
        return update, _NOTHING
    proved = replace(update, proofs=update.proofs | {proof})
    if proved.proofs != frozenset(Proof):
        return proved, _NOTHING
    return _to(proved, Stage.COMMIT, now_ms), (Action.COMMIT,)  # 3


# -- ends ------------------------------------------------------------------------------------------


def _failed(update: Update, event: Failed, now_ms: int) -> tuple[Update, Actions]:
    match update.stage:
        case Stage.DOWNLOAD | Stage.WAIT:
            return _fail(update, event.failure, now_ms)
        case Stage.COMMIT if event.switched:
            return update, _NOTHING  # it holds; the rest is tried again at the next start or look
        case Stage.INSTALL | Stage.REBOOT | Stage.VERIFY_REBOOT | Stage.TRIAL | Stage.COMMIT:
            return _roll_back(update, event.failure, now_ms)
        case _:
            return update, _NOTHING


def _done(
    update: Update, event: Committed | RolledBack | Told | Cleaned, now_ms: int
) -> tuple[Update, Actions]:
    match update.stage, event:
        case Stage.COMMIT, Committed():
            confirmed = _end(update, Phase.CONFIRMED, None, now_ms)  # 4
            return _to(confirmed, Stage.CLEANUP, now_ms), (Action.CLEAN,)
        case Stage.ROLLBACK, RolledBack(running_new=True):
            return _to(update, Stage.ROLLBACK_REBOOT, now_ms), (Action.RESTART,)
        case Stage.ROLLBACK, RolledBack():
            return _to(update, Stage.VERIFY_ROLLBACK, now_ms), (Action.VERIFY,)
        case Stage.FAILURE, Told():
            return _to(update, Stage.CLEANUP, now_ms), (Action.CLEAN,)
        case Stage.CLEANUP, Cleaned():
            return _to(_fresh(update), Stage.IDLE, now_ms), _NOTHING
        case _:
            return update, _NOTHING


def _fail(update: Update, failure: Failure, now_ms: int) -> tuple[Update, Actions]:
    """End before anything was done that has to be undone (2)."""
    return _give_up(replace(update, failure=failure, booted=False), now_ms)


def _roll_back(update: Update, failure: Failure, now_ms: int) -> tuple[Update, Actions]:
    failed = replace(update, failure=failure, tries=0)
    return _to(failed, Stage.ROLLBACK, now_ms), (Action.ROLL_BACK,)


def _give_up(update: Update, now_ms: int) -> tuple[Update, Actions]:
    assert update.failure is not None
    phase = Phase.REVERTED if update.booted else Phase.FAILED  # 4
    ended = _end(update, phase, update.failure, now_ms)
    return _to(ended, Stage.FAILURE, now_ms), (Action.TELL,)


def _end(update: Update, phase: Phase, failure: Failure | None, now_ms: int) -> Update:
    """Note an attempt's last step, and that it has ended (5)."""
    noted = _note(update, phase, now_ms, failure=failure)
    attempt = noted.attempt
    assert attempt is not None
    code, kind = ("", None) if failure is None else (failure.code, failure.kind)
    ended = (*noted.ended, Ended(attempt, noted.seq, phase, code, kind))
    return replace(noted, ended=ended[-MOST_ENDED:])


def _fresh(update: Update) -> Update:
    """Return it without any job."""
    return Update(steps=update.steps, ended=update.ended, tail=update.tail, stage=update.stage)


# -- steps -----------------------------------------------------------------------------------------


def _to(update: Update, stage: Stage, now_ms: int) -> Update:
    tail = (*update.tail, f"{stage.value} {now_ms // 1000}")
    return replace(update, stage=stage, tail=tail[-MOST_TAIL:])


def _note(
    update: Update,
    phase: Phase,
    now_ms: int,
    *,
    failure: Failure | None = None,
    bytes_: int = 0,
) -> Update:
    """Number a step of the attempt under way (6)."""
    attempt = update.attempt
    assert attempt is not None
    seq = update.seq + 1
    code, kind = ("", None) if failure is None else (failure.code, failure.kind)
    tail = " ".join(update.tail)[-300:] if phase in (Phase.FAILED, Phase.REVERTED) else ""
    said = Step(attempt, seq, phase, code, kind, bytes_, now_ms, tail)
    return replace(_append(update, said), seq=seq)


def _append(update: Update, said: Step) -> Update:
    """Add a step to be told; of progress nobody heard of, and of too many, the oldest go."""
    kept = [
        each
        for each in update.steps
        if not (each.phase is said.phase is Phase.DOWNLOADING and each.attempt == said.attempt)
    ]
    while len(kept) >= MAX_STEPS:
        light = (each for each in kept if each.phase not in _LAST)
        kept.remove(next(light, kept[0]))
    return replace(update, steps=(*kept, said))


_LAST = (Phase.CONFIRMED, Phase.FAILED, Phase.REVERTED, Phase.REJECTED)


def _heard(update: Update, event: Heard) -> Update:
    """Forget what the server has stored; where it knows more than we do, number on from there.

    It knows more where our journal was lost: what it had heard of this attempt came from before.
    """
    last = {each.attempt: each.seq for each in update.ended}
    if update.attempt is not None:
        last[update.attempt] = update.seq
    ahead = {
        attempt: known for attempt, known in event.upto.items() if known > last.get(attempt, known)
    }
    kept: list[Step] = []
    for each in update.steps:
        if each.attempt in ahead:
            ahead[each.attempt] += 1
            kept.append(replace(each, seq=ahead[each.attempt]))
        elif each.seq > event.upto.get(each.attempt, 0):
            kept.append(each)
    if tuple(kept) == update.steps and not ahead:
        return update
    ended = tuple(replace(each, seq=ahead.get(each.attempt, each.seq)) for each in update.ended)
    seq = update.seq if update.attempt is None else ahead.get(update.attempt, update.seq)
    return replace(update, steps=tuple(kept), ended=ended, seq=seq)
