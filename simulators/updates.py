"""Simulated devices that are updated: the agent's own machine, over scripted slots.

A `Board` (`board`) is what survives when the power fails. An `UpdateDevice` is what runs on it: the
real machine, journal and hands, with downloads, trials and time scripted, so that a device lives
through nights in milliseconds. It says and hears what is said at `/v1/update` (`report`, `hear`);
`carry` takes that to a server and back, with key and certificate of the device's enrolment.

What may be wrong with one (`Conduct`): its new image crashes at once, or hangs until the kernel's
alarm; it lies, and says that it runs what it never started; it reports late; its disk is full; it
loses power, at the step that is chosen (`cut_at`), before or after that is on the disk.
"""

import asyncio
import random
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from agent import identity
from agent.enrol import exchange, refused
from agent.link import tls_context
from agent.update import telling
from agent.update.hands import SlotHands, item_of, places_of
from agent.update.journal import Journal, JournalError, Paper
from agent.update.launch import FELL_BACK, GRACE_S, TRIAL
from agent.update.slots import SlotError, Slots, highest
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
from protocol.assignment import Assignment
from protocol.update import Attempt, Class, Phase, Report, Step, read_answer
from simulators.board import Board, BoardPaper, BoardSlots, PowerCut

TICK_MS = 60_000
LATE_ASKS = 3
MOST_LEFT = 64


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
