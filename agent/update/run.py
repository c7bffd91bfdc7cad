"""The device's updates: asked for, fetched, waited with, tried, and told.

It asks at `/v1/update` (`protocol.update`): at each connection, when the bell rings, hourly, and
soon after anything has happened. What is assigned is held to its rules in a process of its own
(`trust`) before a byte of it is asked for. Decided here:

- The machine's turns (`journal`) and all that is written to slots happen in a thread, one at a
  time: the loop goes on counting.
- What takes time is one task a lane: a check, and beside it what the stage does (fetch, look,
  prove). It does its work only while the machine is where it was when the task began.
- What can't be written down is tried again each few seconds. A trial that is over ends the process
  even so: the launcher goes back.
- Nobody is using the device if nobody has for as long as the assignment says, and no lease
  (`later`) is in force; how long that may keep an assignment back is the machine's rule 7.
"""

import asyncio
import signal
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import structlog

from agent import identity
from agent.content import Asking, Terms
from agent.enrol import TIMEOUT_S, EnrolError
from agent.link import tls_context
from agent.renewal import backoff_ms
from agent.update import telling, trust
from agent.update.agreement import Installed, Refused, class_of
from agent.update.alone import Alone
from agent.update.download import CutError, Source, bring, download, have, make_room
from agent.update.hands import SlotHands, item_of, places_of
from agent.update.journal import Journal, JournalError, Paper
from agent.update.launch import COMMITTED, FELL_BACK, FOLDER, PACKAGE, TRIAL, Launched
from agent.update.slots import Held, SlotError, Slots
from agent.update.states import (
    Action,
    Cancelled,
    Checked,
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
    Stage,
    Started,
    Update,
)
from agent.update.states import Refused as NotTaken
from agent.update.trial import ASK_S, Around, StoppedError, Trial, code_of
from protocol.assignment import Assignment, Item
from protocol.content import ContentError
from protocol.frame import Quality
from protocol.update import (
    MAX_STEPS,
    Answer,
    Attempt,
    Class,
    Component,
    Phase,
    Report,
    Step,
    read_answer,
)

DOWNLOADS = "download"
LOOK_S = 10.0
SAY_S = 2.0  # after something has happened; what happens meanwhile is said with it
LEFT_S = 5.0
ROUNDS = 3
MOST_UNTOLD = 3  # checks that came to nothing, after which the server is told
PARTS = 8  # of a download that are told
UNKNOWN = "unknown"
PASSING = (Class.NETWORK, Class.STORAGE, Class.INTERNAL)
_Work = Callable[[Update], Awaitable[None]]

log = structlog.get_logger(__name__)


class Updates(Asking, SlotHands):
    """Keeps a device's code as it is to be: `await updates.run()` until cancelled."""

    what = "update"

    def __init__(
        self,
        terms: Terms,
        *,
        slots: Slots,
        paper: Paper,
        hardware: str,
        around: Around,
        launched: Launched | None,
        reserve_bytes: int,
    ) -> None:
        """`launched`: how this process came to be; `reserve_bytes` are left free on the disk."""
        Asking.__init__(self, terms)
        SlotHands.__init__(self, slots)
        self._hardware = hardware or UNKNOWN
        self._around = around
        self._launched = launched
        self._reserve = reserve_bytes
        self._downloads = terms.state / FOLDER / DOWNLOADS
        self._journal = Journal(paper, now_ms=self._now_ms)
        self._answers = ""
        self._offered = (b"", "")  # an envelope, and the nonce that we had asked with
        self._untold = 0
        self._turn, self._download, self._talk = Alone(), Alone(), asyncio.Lock()
        self._left: list[Event] = []
        self._lease = ("", 0)  # who wants to be left alone, and until when
        self._closing = self._stopping = False
        self._fetching: socket.socket | None = None
        self._asked_later: deque[Event] = deque()
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._wanted: deque[tuple[str, _Work, Update]] = deque()
        self._called = asyncio.Event()
        self._shown: tuple[str, int] | None = None
        self._said: tuple[Step, ...] = ()

    @property
    def update(self) -> Update:
        """Where the machine is."""
        return self._journal.update

    def later(self, who: str, for_s: int) -> None:
        """Leave `who` alone for so long from now on; one that ends later than this stays."""
        until_ms = self._clock.monotonic_ms() + for_s * 1000
        if until_ms > self._lease[1]:
            self._lease = (who, until_ms)
        if self.update.stage is Stage.WAIT:
            self._asked_later.append(Later(for_s * 1000))
            self._called.set()

    def status(self) -> dict[str, object]:
        """Return what `vestibule-agent status` shows of it."""
        update, running = self.update, self.slots.running()
        job, left_ms = update.job, self._lease[1] - self._clock.monotonic_ms()
        return {
            "version": self._around.version,
            "slot": running.slot,
            "update": {
                "stage": update.stage.value,
                "to": {} if job is None else {e.component: e.version for e in job.bundle},
                "execution": "" if job is None else job.execution,
                "waits_for": "" if update.reason is None else update.reason.value,
                "left_alone_for": f"{self._lease[0]}: {left_ms // 1000} s" if left_ms > 0 else "",
                "steps_waiting": len(update.steps),
                "floors": {name: floor for name, floor in self.slots.floors().items() if floor},
                "trouble": self.trouble,
            },
        }

    # -- the machine -------------------------------------------------------------------------

    async def run(self) -> None:
        """Go on where the journal stands, and ask whenever it is due; ends only by cancellation."""
        if self._around.show is not None:
            with suppress(SlotError):
                await asyncio.to_thread(self.slots.mend, "kiosk")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._serve(group), name="update lanes")
                await self._happen(self._started())
                group.create_task(super().run(), name="update asking")
        finally:
            self._closing = True
            if self._fetching is not None:  # or its thread would wait for bytes, and we for it
                with suppress(OSError):
                    self._fetching.shutdown(socket.SHUT_RDWR)
            if self._stopping and self.update.stage is Stage.TRIAL:
                self._take(Failed(Failure(Class.INTERNAL, "stopped")))

    def stop(self) -> None:
        """Somebody ends this process in order: that is no word against code on trial."""
        self._stopping = True

    def _started(self) -> Started:
        launched = self._launched
        slot = self.slots.running().slot
        if launched is None or launched.why == COMMITTED:
            return Started(slot)
        attempt = None if launched.attempt is None else Attempt(*launched.attempt)
        fell_back = launched.why if launched.why in FELL_BACK else ""
        return Started(slot, launched.why == TRIAL, fell_back, attempt)

    async def _happen(self, event: Event | None) -> None:
        """Let the machine take an event, after those that could not be written down before it."""
        await self._turn.do(self._take, event)
        self._show()
        self._tell_soon()
        self._called.set()

    def _take(self, event: Event | None) -> None:
        events = [*self._left, *([] if event is None else [event])]
        self._left = []
        if event is None and self.update.stage is Stage.COMMIT:  # it holds, and is to be ended
            came = self.do(Action.COMMIT, self.update)
            events += [] if came is None else [came]
        for at, each in enumerate(events):
            try:
                self._journal.advance(each, self)
            except JournalError as error:
                self._left = [*error.events, *events[at + 1 :]]
                log.error("the journal can't be written", error=str(error))
                if self.update.stage is Stage.TRIAL and isinstance(each, Failed):
                    self.restart(self.update)  # it is over, whatever is written of it
                break
        self.settle(self.update)

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        """Begin what the machine wants to be done, and go back to what could not be written."""
        while True:
            self._called.clear()
            while self._wanted:
                lane, work, update = self._wanted.popleft()
                if lane in self._lanes:
                    self._lanes[lane].cancel()
                task = group.create_task(self._work(work, update), name=f"update {lane}")
                self._lanes[lane] = task
            while self._asked_later:
                await self._happen(self._asked_later.popleft())
            unfinished = bool(self._left) or self.update.stage is Stage.COMMIT
            try:
                async with asyncio.timeout(LEFT_S if unfinished else None):
                    await self._called.wait()
            except TimeoutError:
                await self._happen(None)

    async def _work(self, work: _Work, update: Update) -> None:
        try:
            await work(update)
        except StoppedError:
            return
        except Exception as error:  # ours: the server is to hear of it, and the device goes on
            log.exception("an update failed", stage=update.stage.value)
            await self._happen(Failed(Failure(Class.INTERNAL, code_of(type(error).__name__))))

    def _want(self, lane: str, work: _Work, update: Update) -> None:
        """Note what is to be begun; called in the turn's thread, and begun once that is over."""
        self._wanted.append((lane, work, update))

    def _still(self, update: Update) -> None:
        """Raise StoppedError unless the machine is where it was."""
        now = self.update
        if self._closing or (now.stage, now.attempt) != (update.stage, update.attempt):
            raise StoppedError

    # -- what the machine wants --------------------------------------------------------------

    def check(self, update: Update) -> None:
        """Begin to hold an offer to its rules."""
        self._want("check", self._check, update)

    def fetch(self, update: Update) -> None:
        """Begin to fetch."""
        self._want("stage", self._fetch_all, update)

    def look(self, update: Update) -> None:
        """Begin to look."""
        self._want("stage", self._look, update)

    def prove(self, update: Update) -> None:
        """Begin the trial."""
        self._want("stage", self._prove, update)

    def restart(self, update: Update) -> None:
        """End this process in order, on the loop; once what has happened was told, if it can be."""
        self._want("stage", self._restart, update)

    def tidy(self, update: Update) -> None:
        """Remove downloads; after a failure of the network what came stays for the next time."""
        failure = update.failure
        kept = failure is not None and failure.kind is Class.NETWORK
        for path in self._downloads.glob("*") if self._downloads.exists() and not kept else ():
            path.unlink(missing_ok=True)
        if failure is None:
            signal.setitimer(signal.ITIMER_REAL, 0)  # the launcher's: the trial is over

    # -- an offer ----------------------------------------------------------------------------

    async def _check(self, update: Update) -> None:
        job = update.offer or update.job
        assert job is not None
        failure = self._cannot(job)
        if failure is None:
            failure = await self._trusted(job)
        if failure is None:
            self._untold = 0
            places = await asyncio.to_thread(places_of, job, self.slots)
            await self._happen(Checked(places))
            return
        passing = failure.kind in PASSING
        self._untold = self._untold + 1 if passing else 0
        log.warning("not taken", execution=job.execution, code=failure.code, passing=passing)
        if passing:
            self._in(backoff_ms(self._untold, self._rng.random()))
            self._wake.set()
        await self._happen(NotTaken(failure, known=not passing or self._untold >= MOST_UNTOLD))

    def _cannot(self, job: Assignment) -> Failure | None:
        """Return why nothing of the kind can be installed here."""
        if self._hardware == UNKNOWN:
            return Failure(Class.HARDWARE, "hardware_unknown")
        parts = {each.component for each in job.bundle}
        if "agent" in parts and self._launched is None:
            return Failure(Class.REFUSED, "no_launcher")
        if "kiosk" in parts and self._around.show is None:
            return Failure(Class.HARDWARE, "no_screen")
        return None

    async def _trusted(self, job: Assignment) -> Failure | None:
        assert self._server is not None
        now_ms = self._now_ms()
        envelope, nonce = self._offered
        question = trust.Question(
            envelope=envelope,
            state=self._state,
            server=self._server,
            hardware=self._hardware,
            nonce=nonce,
            installed={
                name: Installed(each.version, each.floor or "0.0.0")
                for name, each in self._components().items()
            },
            now_ms=now_ms or None,
            past_ms=self._last_utc_ms(),
        )
        try:
            verified = await trust.check(question)
        except Refused as refused:
            self.refused += 1
            log.error("refused", what=self.what, fault=refused.fault.value, error=str(refused))
            return Failure(class_of(refused.fault), refused.fault.value)
        except OSError as error:
            return Failure(Class.INTERNAL, code_of(type(error).__name__))
        same = verified.assignment == job
        return None if same else Failure(Class.INTERNAL, "another_offer")

    # -- fetching ----------------------------------------------------------------------------

    async def _fetch_all(self, update: Update) -> None:
        job, loop = update.job, asyncio.get_running_loop()
        assert job is not None
        try:
            await self._download.do(
                make_room, job.bundle, self._downloads, reserve_bytes=self._reserve
            )
            for place in update.places:
                item = item_of(job, place)
                archive = await bring(
                    item,
                    self._downloads,
                    partial(self._download.do, self._fetch_one, update, item, loop),
                    still=lambda: self._still(update),
                    dice=self._rng.uniform,
                )
                await self._turn.do(self._fill, update, place, item, archive)
        except SlotError as error:
            log.error("not fetched", error=str(error))
            await self._happen(Failed(error.failure))
        except CutError as error:
            log.error("not fetched", error=str(error))
            await self._happen(Failed(Failure(Class.NETWORK, error.code)))
        else:
            await self._happen(Fetched(sum(each.length for each in job.bundle)))

    def _fill(self, update: Update, place: Place, item: Item, archive: Path) -> None:
        self._still(update)
        self.slots.fill(place.new, item, archive)

    def _fetch_one(self, update: Update, item: Item, loop: asyncio.AbstractEventLoop) -> Path:
        """Fetch one release while the machine wants it, and tell of its eighths."""
        assert update.job is not None
        total = sum(each.length for each in update.job.bundle)
        others = sum(have(each, self._downloads) for each in update.job.bundle if each != item)
        part = max(1, total // PARTS)
        said = (others + have(item, self._downloads)) // part

        def told(size: int) -> None:
            nonlocal said
            self._still(update)
            here = others + size
            if here // part > said and here < total:
                said = here // part
                asyncio.run_coroutine_threadsafe(self._happen(Progress(here)), loop)

        return download(item, self._downloads, Source(self._connection), told=told)

    def _connection(self) -> HTTPSConnection:
        """Open a connection with our certificate to the server, and see that it is the server's."""
        assert self._server is not None
        timeless = self._clock.offset()[0] is Quality.NONE
        context = tls_context(identity.for_link(self._state), timeless=timeless)
        connection = HTTPSConnection(*self._server, timeout=TIMEOUT_S, context=context)
        connection.connect()
        try:
            self._check_server(connection.sock.getpeercert(binary_form=True) or b"")
        except ValueError:
            connection.close()
            raise
        self._fetching = connection.sock
        return connection

    # -- waiting -----------------------------------------------------------------------------

    async def _look(self, update: Update) -> None:
        counted_ms = self._clock.monotonic_ms()
        while True:
            self._still(update)
            before = self.update
            now_ms = self._clock.monotonic_ms()
            await self._happen(Looked(now_ms - counted_ms, self.busy))
            if self.update.waited_ms != before.waited_ms:
                counted_ms = now_ms
            self._still(update)
            await self._clock.sleep(LOOK_S)

    @property
    def busy(self) -> bool:
        """True if somebody has used the device of late, or has asked to be left alone."""
        job = self.update.job
        if self._clock.monotonic_ms() < self._lease[1]:
            return True
        return job is not None and self._around.idle_ms() < job.idle_s * 1000

    async def _restart(self, update: Update) -> None:
        if self._answers and update.steps:
            with suppress(EnrolError, OSError, HTTPException, ContentError, ValueError):
                async with asyncio.timeout(ASK_S[1]):
                    await self._exchange()
        log.warning("restarting for the update", stage=update.stage.value)
        self._around.restart()

    async def _prove(self, update: Update) -> None:
        """Show all that a trial has to, within its time."""
        trial = Trial(
            update,
            self._around,
            self._clock,
            proofs=lambda: self.update.proofs,
            still=self._still,
            exchange=self._exchange,
            happen=self._happen,
        )
        failed = await trial.run()
        if failed is not None:
            await self._happen(failed)

    # -- what is said ------------------------------------------------------------------------

    async def _fetch(self) -> bool:
        before = self.update
        for _ in range(ROUNDS):
            answer = await self._exchange()
            self._in(answer.again_s * 1000)
            if not self._unsaid(answer):
                break
        self._said = self.update.steps
        return self.update.stage is not before.stage

    def _unsaid(self, answer: Answer) -> bool:
        """Whether there is something to say that the server has not heard."""
        return any(step.seq > answer.heard.get(step.attempt, 0) for step in self.update.steps)

    async def _exchange(self) -> Answer:
        """Say how it is, hear what to do, and let that happen.

        Raises EnrolError, ContentError, OSError, HTTPException.
        """
        async with self._talk:
            nonce = f"{self._rng.getrandbits(128):032x}"
            report = self._report(nonce)
            body = await asyncio.to_thread(self._signed, report)
            got = await self._asked("POST", "/v1/update", body=body)
            answer = read_answer(got.text.encode())
            self._answers = answer.nonce
            await self._happen(Heard(answer.heard))
            if answer.cancel:
                await self._happen(Cancelled(answer.cancel))
            if answer.trial_ok is not None and answer.trial_ok == self.update.attempt:
                await self._happen(Proved(Proof.SERVER))
            if answer.assignment is not None:
                await self._offer(answer.assignment, nonce)
            return answer

    async def _offer(self, content: bytes, nonce: str) -> None:
        """Take an envelope to the machine, unless it says what is known. Raises ContentError."""
        offer = telling.offered(content)
        checking, job = self._lanes.get("check"), self.update.job
        if checking is not None and not checking.done():
            return
        if job is not None and telling.same_offer(job, offer, now_ms=self._now_ms()):
            return
        self._offered = (content, nonce)
        await self._happen(Offered(offer))

    def _report(self, nonce: str) -> Report:
        update = self.update
        return Report(
            self._device(),
            self._hardware,
            nonce,
            self._answers,
            self._components(),
            self.slots.running().slot,
            telling.on_trial(update),
            self.busy,
            update.steps[:MAX_STEPS] if self._answers else (),
        )

    def _components(self) -> dict[str, Component]:
        screen = None if self._around.show is None else self._screen()
        return telling.components(self.slots, self._around.version, screen)

    def _signed(self, report: Report) -> bytes:
        return telling.signed(report, self._state)

    def _tell_soon(self) -> None:
        """Ask in a moment if there is something new to be told but progress."""
        fresh = [each for each in self.update.steps if each not in self._said]
        self._said = self.update.steps
        if any(each.phase is not Phase.DOWNLOADING for each in fresh):
            self._in(round(SAY_S * 1000))
            self._wake.set()

    def _now_ms(self) -> int:
        """Return UTC in ms, 0 if it is not known."""
        quality, offset_ms = self._clock.offset()
        return 0 if quality is Quality.NONE else self._clock.monotonic_ms() + offset_ms

    # -- the screen --------------------------------------------------------------------------

    def _screen(self) -> Held:
        return telling.screen_of(self.update, self.slots)

    def _show(self) -> None:
        """Put the screen up, where it is another one than before, or no more on trial."""
        if self._around.show is None:
            return
        screen, update = self._screen(), self.update
        name = screen.sha256 or PACKAGE
        parts = {each.component for each in update.places}
        on_trial = update.stage is Stage.TRIAL and update.job is not None and "kiosk" in parts
        trial_s = update.job.trial_s if on_trial and update.job is not None else 0
        if (name, trial_s) != self._shown:
            self._shown = (name, trial_s)
            whole = screen.slot != PACKAGE and screen.sha256
            folder = self.slots.folder("kiosk", screen.slot) if whole else None
            self._around.show(folder, name, trial_s)
