"""Simulated devices that are updated: the agent's own machine, over scripted slots.

A `Board` is what survives when the power fails: journal, slots, links, the launcher's record,
floors. An `UpdateDevice` is what runs on it: the real machine, journal and hands, with downloads,
trials and time scripted, so that a device lives through nights in milliseconds. It says and hears
what is said at `/v1/update` (`report`, `hear`); `carry` takes that to a server and back, with key
and certificate of the device's enrolment.

What may be wrong with one (`Conduct`): its new image crashes at once, or hangs until the kernel's
alarm; it lies, and says that it runs what it never started; it reports late; its disk is full; it
loses power, at the step that is chosen (`cut_at`), before or after that is on the disk.
"""

import asyncio
import errno
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from agent import identity
from agent.enrol import exchange, refused
from agent.link import tls_context
from agent.update import telling
from agent.update.hands import SlotHands, item_of, places_of
from agent.update.journal import Journal, JournalError, Paper
from agent.update.launch import (
    COMMITTED,
    CRASHED,
    FELL_BACK,
    GRACE_S,
    HUNG,
    PACKAGE,
    POWER,
    TRIAL,
    UNFIT,
    Record,
)
from agent.update.slots import Held, SlotError, Slots, disk_error, highest
from agent.update.states import (
    Action,
    Cancelled,
    Checked,
    Event,
    Failed,
    Failure,
    Fetched,
    Heard,
    Looked,
    Offered,
    Proof,
    Proved,
    Refused,
    Stage,
    Started,
    Update,
)
from protocol.assignment import Assignment, Item
from protocol.release import COMPONENTS
from protocol.update import Attempt, Class, Phase, Report, Step, read_answer

TICK_MS = 60_000
LATE_ASKS = 3
MOST_LEFT = 64


class PowerCut(BaseException):
    """The power fails here."""


class Restarted(BaseException):
    """The process ends, to be launched anew."""


class Conduct(Enum):
    """How a device behaves when it is updated."""

    GOOD = "good"
    CRASHES = "crashes"  # the new image ends at its start
    HANGS = "hangs"  # the new image does nothing at all
    FAILS = "fails"  # the new image finds that it is not well
    LIES = "lies"  # says that it runs what it never started
    LATE = "late"  # what it says comes long after
    FULL = "full"  # no room for what is to be installed


@dataclass(frozen=True, slots=True)
class Boot:
    """A start: which version, why, and of a trial for which attempt."""

    version: str
    why: str
    attempt: Attempt | None


@dataclass
class Board:
    """What a power cut leaves; `package` is the version that was installed by hand.

    Each change counts as two instants, before and after it; at the instant `cut_at` the power
    fails, once. `writable` False: the disk refuses everything.
    """

    package: str = "0.1.0"
    journal: bytes | None = None
    slots: dict[tuple[str, str], Item | None] = field(default_factory=dict)  # None: half of it
    links: dict[str, str] = field(default_factory=dict)
    record: Record | None = None
    floors: dict[str, str] = field(default_factory=dict)
    kernel: int = 1
    cut_at: int = -1
    instants: int = 0
    writable: bool = True
    boots: list[Boot] = field(default_factory=list)

    def change(self, act: Callable[[], None]) -> None:
        """Make one change that is on the disk once it is made. Raises PowerCut, OSError."""
        self._instant()
        if not self.writable:
            raise OSError(errno.ENOSPC, "no space left on device")
        act()
        self._instant()

    def _instant(self) -> None:
        self.instants += 1
        if self.instants == self.cut_at:
            raise PowerCut

    def version(self, component: str, slot: str) -> str:
        """Return what lies in a slot."""
        held = self.slots.get((component, slot))
        if held is not None:
            return held.version
        return self.package if slot == PACKAGE else ""

    def launch(self, now_s: float) -> tuple[str, str]:
        """Do what the launcher does (`agent.update.launch`): slot, and why. PowerCut."""
        record, why = self.record, COMMITTED
        if record is not None and record.left:
            held = self.slots.get(("agent", record.slot))
            if held is None or held.sha256 != record.sha256:
                why = UNFIT
            else:
                used = replace(record, left=0, kernel=str(self.kernel), began_s=now_s)
                try:
                    self.change(lambda: setattr(self, "record", used))
                    why = TRIAL
                except OSError:
                    why = "unwritten"
        elif record is not None:
            late = now_s - record.began_s >= record.trial_s
            why = POWER if record.kernel != str(self.kernel) else HUNG if late else CRASHED
        slot = self.links.get("agent", PACKAGE)
        if why == TRIAL and record is not None:
            slot = record.slot
        elif slot != PACKAGE and self.slots.get(("agent", slot)) is None:
            slot = PACKAGE
        tried = Attempt(record.execution, record.attempt) if why == TRIAL and record else None
        self.boots.append(Boot(self.version("agent", slot), why, tried))
        return slot, why


class BoardPaper:
    """A journal on a board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def read(self) -> bytes | None:
        """Return what the power cut has left."""
        return self._board.journal

    def write(self, content: bytes) -> None:
        """Replace it."""
        self._board.change(lambda: setattr(self._board, "journal", content))

    def put_aside(self) -> None:
        """Forget it."""
        self._board.journal = None


class BoardSlots(Slots):
    """Slots on a board, of the process that runs from `slot`."""

    def __init__(self, board: Board, slot: str) -> None:
        self._board = board
        self._slot = slot

    def folder(self, component: str, slot: str) -> Path:
        """Return a name: nothing lies there."""
        return Path(component, slot)

    def running(self) -> Held:
        """Return the slot of this process."""
        return self._held("agent", self._slot)

    def committed(self, component: str) -> Held:
        """Return the slot that the link names."""
        return self._held(component, self._board.links.get(component, PACKAGE))

    def _held(self, component: str, slot: str) -> Held:
        item = self._board.slots.get((component, slot))
        return Held(slot) if item is None else Held(slot, item.version, item.sha256, item.floor)

    def fill(self, slot: str, item: Item, archive: Path) -> None:
        """Put it there: for a while there is half of it."""
        del archive
        if self._board.slots.get((item.component, slot)) == item:
            return
        self.empty(item.component, slot)
        for part in (None, item):
            self._change(self._board.slots.__setitem__, (item.component, slot), part)

    def check(self, slot: str, item: Item) -> None:
        """Compare."""
        if self._board.slots.get((item.component, slot)) != item:
            raise SlotError(Class.STORAGE, "unfit_slot", f"slot {slot} is not {item.version}")

    def arm(self, record: Record) -> None:
        """Keep the record."""
        self._change(setattr, self._board, "record", record)

    def disarm(self) -> None:
        """Forget the record."""
        if self._board.record is not None:
            self._change(setattr, self._board, "record", None)

    def commit(self, component: str, slot: str) -> None:
        """Set the link."""
        if slot != PACKAGE and self._board.slots.get((component, slot)) is None:
            raise SlotError(Class.STORAGE, "unfit_slot", f"nothing whole lies in {slot}")
        if self._board.links.get(component, PACKAGE) != slot:
            self._change(self._board.links.__setitem__, component, slot)

    def empty(self, component: str, slot: str) -> None:
        """Forget what lies there."""
        if self._board.links.get(component) == slot:
            raise SlotError(Class.INTERNAL, "committed_slot", f"slot {slot} is committed")
        if (component, slot) in self._board.slots:
            self._change(self._board.slots.__delitem__, (component, slot))

    def floors(self) -> dict[str, str]:
        """Return the floors that are kept, or committed."""
        kept = self._board.floors
        return {
            name: highest(kept.get(name, ""), self.committed(name).floor) for name in COMPONENTS
        }

    def raise_floor(self, component: str, floor: str) -> None:
        """Keep the higher one."""
        now = highest(self._board.floors.get(component, ""), floor)
        if now != self._board.floors.get(component):
            self._change(self._board.floors.__setitem__, component, now)

    def mend(self, component: str) -> bool:
        """Nothing rots here."""
        return False

    def _change(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            self._board.change(lambda: act(*arguments))
        except OSError as error:
            raise disk_error(error) from error


class UpdateDevice(SlotHands):
    """One device: `tick` it as time goes by, carry its `report` to a server, let it `hear`."""

    def __init__(
        self,
        device: str,
        hardware: str = "DC2",
        *,
        rng: random.Random,
        conduct: Conduct = Conduct.GOOD,
        board: Board | None = None,
        bad: Iterable[str] = (),
    ) -> None:
        """`bad`: versions that crash; of a device that crashes, hangs or fails, all new ones."""
        self.device, self.hardware, self.conduct = device, hardware, conduct
        self.board = board or Board()
        self.busy = False
        self.bad = frozenset(bad)
        self.archive = Path()
        self.asks = 0
        self._rng = rng
        self._now_ms = 0
        self._nonce = self._answers = ""
        self._trial_ms: int | None = None
        self._looked_ms = 0
        self._lies: tuple[Step, ...] = ()
        self._lied = ""
        self.power_cuts = 0
        self.start()

    @property
    def version(self) -> str:
        """What runs now, whatever the device says."""
        return self.board.version("agent", self.slots.running().slot)

    @property
    def update(self) -> Update:
        """Where its machine is."""
        return self._journal.update

    # -- the process -------------------------------------------------------------------------

    def start(self) -> None:
        """Launch a process, again and again until one lives."""
        while True:
            try:
                if self._launch():
                    return
            except PowerCut:
                self.power_cut()
            except Restarted:
                continue

    def _launch(self) -> bool:
        slot, why = self.board.launch(self._now_ms / 1000)
        record = self.board.record
        attempt = None if record is None else (record.execution, record.attempt)
        return self.begin(BoardSlots(self.board, slot), BoardPaper(self.board), slot, why, attempt)

    def begin(
        self,
        slots: Slots,
        paper: Paper,
        slot: str,
        why: str,
        attempt: tuple[str, int] | None,
    ) -> bool:
        """Be a process that was launched out of `slot`; False if it ends at once."""
        super().__init__(slots)
        self._trial_ms = None
        self._left: tuple[Event, ...] = ()
        self._answers = ""
        crashes = self.version in self.bad or self.conduct is Conduct.CRASHES
        if crashes and why == TRIAL:
            return False
        self._journal = Journal(paper, now_ms=lambda: self._now_ms)
        self._hangs = why == TRIAL and self.conduct is Conduct.HANGS
        if self._hangs:
            self._trial_ms = self._now_ms  # until the alarm
            return True
        fell_back = why if why in FELL_BACK else ""
        tried = None if attempt is None else Attempt(*attempt)
        self._advance(Started(slot, why == TRIAL, fell_back, tried))
        self.settle(self.update)
        return True

    def power_cut(self) -> None:
        """The machine goes down, and comes back."""
        self.power_cuts += 1
        self.board.kernel += 1

    def cut_power(self) -> None:
        """Let the power fail now."""
        self.power_cut()
        self.start()

    def _advance(self, event: Event) -> None:
        """Take an event, after those that could not be written down before."""
        left, self._left = (*self._left, event), ()
        for at, each in enumerate(left):
            try:
                self._journal.advance(each, self)
            except JournalError as error:
                self._left = (*error.events, *left[at + 1 :])[:MOST_LEFT]
                return

    def happen(self, event: Event) -> None:
        """Let something happen, and the process end where it has to."""
        try:
            self._advance(event)
        except Restarted:
            self.start()
        except PowerCut:
            self.cut_power()

    # -- time --------------------------------------------------------------------------------

    def tick(self, now_ms: int) -> None:
        """Let it be `now_ms` (UTC)."""
        self._now_ms = max(self._now_ms, now_ms)
        if self._hangs:
            self._alarm()
            return
        try:
            left, self._left = self._left, ()
            for event in left:
                self._advance(event)
            self._live()
        except Restarted:
            self.start()
        except PowerCut:
            self.cut_power()

    def _alarm(self) -> None:
        job = self.update.job
        limit_ms = 0 if job is None else round((job.trial_s + GRACE_S) * 1000)
        if self._trial_ms is not None and self._now_ms - self._trial_ms >= limit_ms:
            self.start()

    def _live(self) -> None:
        update = self.update
        self.settle(update)
        if update.stage is Stage.WAIT:
            self._advance(Looked(self._now_ms - self._looked_ms, self.busy))
            self._looked_ms = self._now_ms
        elif update.stage is Stage.COMMIT:
            came = self.do(Action.COMMIT, update)
            if came is not None:
                self._advance(came)
        elif update.stage is Stage.TRIAL and update.job is not None:
            began_ms = self._trial_ms = self._now_ms if self._trial_ms is None else self._trial_ms
            if self._now_ms - began_ms > update.job.trial_s * 1000:
                self._advance(Failed(Failure(Class.TIMEOUT, "trial_timeout")))
                if self._left:
                    raise Restarted  # what can't be written down ends all the same
            elif self.conduct is Conduct.FAILS:
                self._advance(Failed(Failure(Class.SELF_TEST, "doctor.sensor")))
            else:
                for proof in (Proof.HEALTH, Proof.SELF_TEST, Proof.SESSION):
                    self._advance(Proved(proof))

    # -- what is done ------------------------------------------------------------------------

    def check(self, update: Update) -> Event:
        """Hold an offer to what a simulated device can tell."""
        job = update.offer or update.job
        assert job is not None
        floors = self.slots.floors()
        failure = None
        if (job.device, job.hardware) != (self.device, self.hardware):
            failure = Failure(Class.HARDWARE, "wrong_hardware")
        elif job.nonce != self._nonce:
            failure = Failure(Class.TRUST, "wrong_nonce")
        elif [e for e in job.bundle if highest(e.version, floors[e.component]) != e.version]:
            failure = Failure(Class.REFUSED, "below_floor")
        if failure is not None:
            return Refused(failure)
        return Checked(places_of(job, self.slots))

    def fetch(self, update: Update) -> Event:
        """Have it all at once."""
        job = update.job
        assert job is not None
        total = sum(each.length for each in job.bundle)
        if self.conduct is Conduct.FULL:
            return Failed(Failure(Class.STORAGE, "disk_full"))
        try:
            for place in update.places:
                self.slots.fill(place.new, item_of(job, place), self.archive)
        except SlotError as error:
            return Failed(error.failure)
        return Fetched(total)

    def look(self, update: Update) -> None:
        """Look from the next tick on."""
        del update
        self._looked_ms = self._now_ms

    def restart(self, update: Update) -> Event | None:
        """End the process; a liar goes on, and says that it has not."""
        if self.conduct is Conduct.LIES and update.stage is Stage.REBOOT:
            assert update.attempt is not None
            seqs = range(update.seq + 1, update.seq + 3)
            phases = (Phase.TRIAL, Phase.CONFIRMED)
            self._lies = tuple(
                Step(update.attempt, seq, phase, at_ms=self._now_ms)
                for seq, phase in zip(seqs, phases, strict=True)
            )
            return None
        raise Restarted

    def prove(self, update: Update) -> None:
        """Be on trial from now on."""
        del update
        self._trial_ms = self._now_ms

    def tidy(self, update: Update) -> None:
        """Have nothing left over."""

    # -- what is said ------------------------------------------------------------------------

    def report(self) -> Report | None:
        """Return what it says when it asks now; None while it says nothing."""
        self.asks += 1
        if self._hangs or (self.conduct is Conduct.LATE and self.asks % LATE_ASKS):
            return None
        update = self.update
        self._nonce = f"{self._rng.getrandbits(128):032x}"
        screen = self.slots.committed("kiosk")
        on_trial = update.stage in (Stage.TRIAL, Stage.COMMIT) or bool(self._lies)
        return Report(
            self.device,
            self.hardware,
            self._nonce,
            self._answers,
            telling.components(self.slots, self.version, screen if screen.version else None),
            self.slots.running().slot,
            update.attempt if on_trial else None,
            self.busy,
            (*update.steps, *self._lies) if self._answers else (),
        )

    def hear(
        self,
        nonce: str,
        *,
        heard: dict[Attempt, int],
        offer: Assignment | None = None,
        trial_ok: Attempt | None = None,
        cancel: tuple[str, ...] = (),
    ) -> None:
        """Take the server's answer to the last report."""
        self._answers = nonce
        if self.conduct is Conduct.LIES:  # its own machine has not said so much
            heard = {attempt: min(seq, self.update.seq or seq) for attempt, seq in heard.items()}
        self._lies = tuple(step for step in self._lies if step.seq > heard.get(step.attempt, 0))
        try:
            self._advance(Heard(heard))
            if cancel:
                self._advance(Cancelled(cancel))
            if offer is not None:
                self._advance(Offered(offer))
            if trial_ok is not None and trial_ok == self.update.attempt:
                self._advance(Proved(Proof.SERVER))
        except Restarted:
            self.start()
        except PowerCut:
            self.cut_power()


async def carry(device: UpdateDevice, state: Path, server: tuple[str, int]) -> bool:
    """Let a device that is enrolled in `state` ask once; False while it says nothing.

    Raises EnrolError, ContentError, OSError, HTTPException.
    """
    report = device.report()
    if report is None:
        return False
    body = telling.signed(report, state)
    context = tls_context(identity.for_link(state))
    got = await asyncio.to_thread(
        exchange, *server, context, method="POST", path="/v1/update", body=body
    )
    if got.status != 200:
        raise refused(got)
    answer, offer = read_answer(got.text.encode()), None
    if answer.assignment is not None:
        offer = telling.offered(answer.assignment)
    device.hear(
        answer.nonce,
        heard=dict(answer.heard),
        offer=offer,
        trial_ok=answer.trial_ok,
        cancel=answer.cancel,
    )
    return True
