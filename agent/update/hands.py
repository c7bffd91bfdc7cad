"""What is done to the slots as the machine says it; each may be done again.

What needs the network, or time, is begun here and heard of later: `run` has it for a device,
`simulators.updates` for a simulated one. Decided here:

- A commit switches the screen first and the agent last: the agent's link is where all of it holds.
  Then the record of the trial goes, and the floors are raised.
- A slot is read and held to its release when it is filled, when it is armed, by the launcher before
  it is run, and when it is committed.
"""

from abc import ABC, abstractmethod
from contextlib import suppress

import structlog

from agent.update.launch import Record
from agent.update.slots import SlotError, Slots
from agent.update.states import (
    Action,
    Armed,
    Cleaned,
    Committed,
    Event,
    Failed,
    Failure,
    Place,
    RolledBack,
    Stage,
    Told,
    Update,
    Verified,
)
from protocol.assignment import Assignment, Item
from protocol.update import Class

log = structlog.get_logger(__name__)


def item_of(job: Assignment, place: Place) -> Item:
    """Return the release that is to lie in a place."""
    return next(each for each in job.bundle if each.component == place.component)


def places_of(job: Assignment, slots: Slots) -> tuple[Place, ...]:
    """Return where a bundle is to be tried."""
    return tuple(
        Place(each.component, slots.spare(each.component), slots.committed(each.component).slot)
        for each in job.bundle
    )


class SlotHands(ABC):
    """Does what is done to slots; what takes time is for who inherits it."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    @abstractmethod
    def check(self, update: Update) -> Event | None:
        """Hold what is offered to its rules: Checked, Refused."""

    @abstractmethod
    def fetch(self, update: Update) -> Event | None:
        """Bring all into its places: Progress, Fetched, Failed."""

    @abstractmethod
    def look(self, update: Update) -> Event | None:
        """Begin to look at window and idleness: Looked."""

    @abstractmethod
    def restart(self, update: Update) -> Event | None:
        """End this process, so that it is launched anew: Started."""

    @abstractmethod
    def prove(self, update: Update) -> Event | None:
        """Begin a trial: Proved, Failed."""

    @abstractmethod
    def tidy(self, update: Update) -> None:
        """Remove downloads that are left over. OSError, SlotError."""

    def settle(self, update: Update) -> None:
        """Forget a trial's record that is of no use any more: what could not be removed before."""
        if update.stage in (Stage.IDLE, Stage.SYNC, Stage.DOWNLOAD, Stage.WAIT):
            with suppress(SlotError):
                self.slots.disarm()

    def do(self, action: Action, update: Update) -> Event | None:
        """Do an action, or begin it."""
        match action:
            case Action.CHECK:
                return self.check(update)
            case Action.FETCH:
                return self.fetch(update)
            case Action.LOOK:
                return self.look(update)
            case Action.ARM:
                return self._arm(update)
            case Action.RESTART:
                return self.restart(update)
            case Action.VERIFY:
                return self._verify(update)
            case Action.PROVE:
                return self.prove(update)
            case Action.COMMIT:
                return self._commit(update)
            case Action.ROLL_BACK:
                return self._roll_back(update)
            case Action.TELL:
                return self._tell(update)
            case Action.CLEAN:
                return self._clean(update)

    def _arm(self, update: Update) -> Event:
        job = _job(update)
        try:
            for place in update.places:
                self.slots.check(place.new, item_of(job, place))
            if update.place is not None:
                sha256 = item_of(job, update.place).sha256
                record = Record(
                    update.place.new, sha256, job.execution, job.attempt, trial_s=job.trial_s
                )
                self.slots.arm(record)
        except SlotError as error:
            return Failed(error.failure)
        return Armed()

    def _verify(self, update: Update) -> Event:
        """Say whether this process runs from where it is to, and what is committed is so, too."""
        place, running = update.place, self.slots.running()
        if update.stage is Stage.VERIFY_REBOOT:
            assert place is not None
            wanted = (place.new, item_of(_job(update), place).sha256)
            right = (running.slot, running.sha256) == wanted
        else:
            right = all(
                self.slots.committed(each.component).slot == each.old for each in update.places
            )
            right = right and (place is None or running.slot == place.old)
        if right:
            return Verified()
        return Verified(Failure(Class.INTERNAL, "did_not_start"))

    def _commit(self, update: Update) -> Event:
        job = _job(update)
        order = sorted(update.places, key=lambda place: place.component == "agent")
        try:
            for place in order:
                self.slots.commit(place.component, place.new)
            self.slots.disarm()
            for place in order:
                self.slots.raise_floor(place.component, item_of(job, place).floor)
        except SlotError as error:
            last = order[-1]
            holds = self.slots.committed(last.component).slot == last.new
            log.error("not committed yet", error=str(error), holds=holds)
            return Failed(error.failure, switched=holds)
        return Committed()

    def _roll_back(self, update: Update) -> Event:
        try:
            for place in update.places:
                if self.slots.committed(place.component).slot != place.old:
                    self.slots.commit(place.component, place.old)
            self.slots.disarm()
        except SlotError as error:  # the record's try is used up; what is committed is looked at
            log.error("the way back is not clear", error=str(error))
        agent = update.place
        return RolledBack(agent is not None and self.slots.running().slot == agent.new)

    def _tell(self, update: Update) -> Event:
        failure = update.failure or Failure(Class.INTERNAL, "")
        log.error(
            "not updated",
            execution=_job(update).execution,
            attempt=_job(update).attempt,
            failure=failure.kind.value,
            code=failure.code,
            reverted=update.booted,
            journal=list(update.tail),
        )
        return Told()

    def _clean(self, update: Update) -> Event:
        """Remove what failed; what ran before a commit stays until its slot is needed."""
        try:
            for place in update.places:
                if self.slots.committed(place.component).slot != place.new:
                    self.slots.empty(place.component, place.new)
            self.tidy(update)
        except (SlotError, OSError) as error:
            log.warning("not all could be removed", error=str(error))
        return Cleaned()


def _job(update: Update) -> Assignment:
    assert update.job is not None, update.stage
    return update.job
