"""One simulated device: the real agent (recorder, outbox, link, plan) with scripted hardware.

`SimDevice.step` is called each second. It hands the sensor's events of that second to the
recorder at their own instants, flushes, and only then tells the truth file what is journalled.
A kiosk with a disk of its own fetches its plan over HTTPS with its certificate, rung for as any,
and its visitors answer what that shows; one without asks what it was given (`DeviceSpec`).
Faults act as they do on hardware: an agent that is killed loses what was not flushed (nothing is,
between two steps), storage is copied, put back or lost.

Invariants: what the truth file holds is in an outbox; storage is replaced or lost only after the
server has receipted what it held, since what only a dead disk knew cannot be counted by anyone.
"""

import asyncio
import random
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from agent import identity as identities
from agent.content import Terms
from agent.link import Identity, Link, LinkOptions
from agent.outbox import Boot, Outbox
from agent.plan import Plans
from agent.recorder import Recorder
from simulators.asked import Asked
from simulators.faults import Fault, FaultySession, FrameFaults, ScriptedClock, Trouble
from simulators.hardware import DeviceSpec, Event, people_in, record, size, tell
from simulators.traffic import Touch
from simulators.truth import TruthFile

WRONG_MS = 90_000
DRAIN_S = 60.0
POLL_S = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a device's surroundings are like in a run."""

    shift_ms: int = 0  # its public lives this much later than the true clock
    frames: FrameFaults = field(default_factory=FrameFaults)
    troubles: tuple[Trouble, ...] = ()
    options: LinkOptions = field(default_factory=LinkOptions)
    interval_s: int = 60
    frame_s: int = 300
    quiet_frame_s: int = 1_800
    durable: bool = True  # fsync at each flush; without, SIGKILL is survived, a power cut is not


ORDINARY = Conditions()


class SimDevice:
    """See the module. `outbox_path` None keeps the outbox in memory, for large fleets."""

    def __init__(
        self,
        spec: DeviceSpec,
        identity: Identity | None,
        *,
        outbox_path: Path | None,
        disk: Path | None = None,
        true_offset_ms: int,
        truth: TruthFile | None = None,
        conditions: Conditions = ORDINARY,
    ) -> None:
        self.spec = spec
        self.identity = identity
        self.conditions = conditions
        self.generated = 0  # people or presses the hardware reported
        self.confirmed = 0  # of these, journalled
        self.link: Link | None = None
        self._past = (0, 0)  # connects and conflicts of links that are gone
        self.twin: SimDevice | None = None
        self._path = outbox_path
        self._disk = disk if spec.kiosk is not None else None
        self._answering = Asked()
        self.plans: Plans | None = None
        self._truth = truth
        self._rng = random.Random(f"{spec.seed}/{spec.device}/device")
        self._clock = ScriptedClock(true_offset_ms, epoch=f"{self._rng.getrandbits(64):x}")
        self._zero_offset_ms = true_offset_ms
        self._marks: dict[int, tuple[int, int]] = {}  # by boot: its mark, people receipted below
        self._inherited: frozenset[int] = frozenset()  # boots that the original answers for
        self._events: Iterator[Event] = iter(())
        self._next: Event | None = None
        self._paused = False
        self._tasks: list[asyncio.Task[None]] = []
        self._group: asyncio.TaskGroup | None = None
        self._copy: Path | None = None
        self._open()
        self._last_ms = self._clock.utc_ms()
        self._listen_from(self._last_ms)
        self.confirmed = self.generated = self._held()

    # -- the run -----------------------------------------------------------------------------

    def step(self) -> None:
        """Record what the hardware has reported since the last step, and journal it."""
        if self.twin is not None:
            self.twin.step()
        now_ms = self._clock.utc_ms()
        if self._paused:
            self._last_ms = now_ms
            while self._next is not None and self._next.at_ms <= now_ms:
                self._next = next(self._events, None)  # nobody counts while the device is open
            return
        told: list[Event] = []
        while (event := self._next) is not None and event.at_ms <= now_ms:
            at_ms = self._last_ms = max(event.at_ms, self._last_ms)
            self._next = next(self._events, None)
            with self._clock.at(at_ms):
                fitted = self._shown(event)
                if fitted is None:
                    continue
                record(self.recorder, fitted)
            self.generated += size(fitted)
            told.append(fitted._replace(at_ms=at_ms))
        self._last_ms = max(now_ms, self._last_ms)
        with self._clock.at(self._last_ms):
            self.recorder.tick()
            sure = self.recorder.flush() if told else True
        self._confirm(told, sure=sure)

    def finish(self) -> None:
        """Seal the open frame: the hardware reports nothing more."""
        if self._paused:
            return
        self._paused = True
        with self._clock.at(max(self._last_ms, self._clock.utc_ms())):
            self.recorder.close()

    def close(self) -> None:
        """Close the outbox; the link must have stopped."""
        if self.twin is not None:
            self.twin.close()
        self.outbox.close()

    # -- the link ----------------------------------------------------------------------------

    def plug(self, group: asyncio.TaskGroup) -> None:
        """Start the link; it runs in `group` until `cut`."""
        self._group = group
        if self._tasks or self.link is None:
            return
        name = self.spec.device
        self._tasks = [group.create_task(self.link.run(), name=f"link {name}")]
        if self.plans is not None:
            self._tasks.append(group.create_task(self.plans.run(), name=f"plan {name}"))

    async def cut(self) -> None:
        """Stop the link, and whatever else asks the server."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @property
    def connected(self) -> bool:
        """True while the broker has us."""
        return self.link is not None and self.link.connected

    @property
    def connects(self) -> int:
        """How often the broker took us."""
        return self._past[0] + (0 if self.link is None else self.link.connects)

    @property
    def conflicts(self) -> int:
        """How often the server knew more of a boot than we did."""
        tally = None if self.link is None else self.link.session.tally
        return self._past[1] + (0 if tally is None else tally.conflicts)

    @property
    def frames_waiting(self) -> int:
        """How many frames have no receipt yet."""
        waiting = sum(boot.next_seq - boot.acked for boot in self.outbox.boots)
        return waiting + (0 if self.twin is None else self.twin.frames_waiting)

    def totals(self) -> tuple[int, int, int]:
        """Return people or presses: generated, confirmed as journalled, receipted."""
        mine = (self.generated, self.confirmed, self.receipted())
        if self.twin is None:
            return mine
        its = self.twin.totals()
        return mine[0] + its[0], mine[1] + its[1], mine[2] + its[2]

    def receipted(self) -> int:
        """Return how many people or presses the server has said it stored."""
        for boot in self.outbox.boots:
            acked, number = self._marks.get(boot.boot_id, (0, 0))
            if boot.acked != acked and boot.boot_id not in self._inherited:
                number = max(number, self._below(boot, boot.acked))
                self._marks[boot.boot_id] = (boot.acked, number)
        return sum(number for _, number in self._marks.values())

    # -- faults ------------------------------------------------------------------------------

    async def suffer(self, trouble: Trouble) -> None:
        """Let one fault strike, and return when it is over."""
        match trouble.fault:
            case Fault.CUT:
                await self.cut()
                await asyncio.sleep(trouble.for_s)
                self._replug()
            case Fault.REBOOT:
                await self._restart()
            case Fault.POWER:
                now_ms = self._clock.utc_ms()
                powered_ms = now_ms - self._zero_offset_ms
                self._clock = ScriptedClock(
                    self._zero_offset_ms,
                    epoch=f"{self._rng.getrandbits(64):x}",
                    synced=False,
                    error_ms=-now_ms,  # the board wakes up in 1970
                    powered_ms=powered_ms,
                )
                await self._restart()
            case Fault.WRONG:
                self._clock.synced, self._clock.error_ms = False, WRONG_MS
            case Fault.SYNC:
                self._clock.synced = True
            case Fault.SNAPSHOT:
                await self.cut()
                self._copy = self._copied("copy")
                self._replug()
            case Fault.ROLLBACK | Fault.WIPE:
                await self._replace_storage(trouble.fault)
            case Fault.CLONE:
                await self._be_cloned(trouble.for_s)

    async def _restart(self) -> None:
        """The agent is killed and starts again; what was flushed is all there is."""
        await self.cut()
        self.outbox.close()
        self._open()
        self._replug()

    async def _replace_storage(self, fault: Fault) -> None:
        """Stop counting, wait until all is stored, then lose the storage or put the copy back."""
        if self._path is None:
            raise ValueError("an outbox in memory cannot be replaced")
        self.finish()
        if await self._drained():
            self.receipted()
            await self.cut()
            self.outbox.close()
            _remove(self._path)
            if fault is Fault.ROLLBACK and self._copy is not None:
                _copy(self._copy, self._path)
            self._open()
            self._replug()
        else:
            log.warning("storage stays: not all was stored in time", device=self.spec.device)
            self._record_from_now()
        self._paused = False

    async def _be_cloned(self, for_s: float) -> None:
        """Fall silent while a twin with a copy of the storage speaks in our name."""
        await self.cut()
        path = self._copied("twin")
        self.twin = twin = SimDevice(
            replace(self.spec, seed=self.spec.seed + 1),
            self.identity,
            outbox_path=path,
            disk=self._copied_disk(path.with_name("disk")),
            true_offset_ms=self._zero_offset_ms,
            truth=self._truth,
            conditions=replace(self.conditions, troubles=()),
        )
        twin._inherited = frozenset(boot.boot_id for boot in twin.outbox.boots[:-1])
        twin.generated = twin.confirmed = 0
        if self._group is not None:
            twin.plug(self._group)
        await asyncio.sleep(for_s)
        twin.finish()
        if not await twin._drained():
            log.warning("the twin could not send all in time", device=self.spec.device)
        await twin.cut()
        twin.receipted()
        self.twin = None
        self.generated += twin.generated
        self.confirmed += twin.confirmed
        self._marks.update(twin._marks)
        twin.close()
        self._replug()

    async def _drained(self) -> bool:
        for _ in range(round(DRAIN_S / POLL_S)):
            if not self.frames_waiting:
                return True
            await asyncio.sleep(POLL_S)
        return False

    # -- inside ------------------------------------------------------------------------------

    def _open(self) -> None:
        """Start an agent on what the storage holds."""
        conditions = self.conditions
        self._past = (self.connects, self.conflicts)
        where = ":memory:" if self._path is None else self._path
        self.outbox = Outbox(where, durable=conditions.durable and self._path is not None)
        self._record_from_now()
        if self.identity is not None:
            session = None
            if conditions.frames.any:
                session = FaultySession(
                    self.outbox, clock=self._clock, rng=self._rng, faults=conditions.frames
                )
            self.link = Link(
                self.identity,
                self.outbox,
                clock=self._clock,
                rng=self._rng,
                session=session,
                options=conditions.options,
            )
            self._open_plans()

    def _open_plans(self) -> None:
        """Start on the plan that the disk holds, if this is a kiosk with a disk."""
        if self._disk is None or self.link is None:
            return
        terms = Terms(
            self._disk,
            server=identities.server(identities.read(self._disk), ""),
            clock=self._clock,
            rng=self._rng,
            last_utc_ms=lambda: self.outbox.last_utc_ms,
            spread_s=self.conditions.options.spread_s,
        )
        self.plans = Plans(terms, built_in=self.spec.questionnaire)
        self.link.on_bell, self.link.on_connect = self.plans.ring, self.plans.connected

    def _shown(self, event: Event) -> Event | None:
        """Return an event as it happens before what the screen shows now; None: it does not."""
        if self.plans is None or not isinstance(event, Touch):
            return event
        shown = self.plans.on_screen()
        fitted = self._answering.fitted(event, shown.questionnaire)
        if fitted is not None:
            self.recorder.show(shown.hash)
        return fitted

    def _record_from_now(self) -> None:
        conditions = self.conditions
        self.recorder = Recorder(
            self.outbox,
            clock=self._clock,
            profile=self.spec.profile(
                interval_s=conditions.interval_s,
                frame_s=conditions.frame_s,
                quiet_frame_s=conditions.quiet_frame_s,
            ),
            new_boot_id=lambda: secrets.randbits(64),
        )

    def _replug(self) -> None:
        if self._group is not None:
            self.plug(self._group)

    def _listen_from(self, now_ms: int) -> None:
        """Follow the door from now on; its public lives at the shifted time."""
        shift = self.conditions.shift_ms
        ahead = now_ms + shift
        self._events = (
            event._replace(at_ms=event.at_ms - shift)
            for event in self.spec.events(ahead, ahead + 400 * 86_400_000)
        )
        self._next = next(self._events, None)

    def _confirm(self, told: list[Event], *, sure: bool) -> None:
        for event in told:
            if self._truth is not None:
                tell(self._truth, self.spec.device, event, sure=sure)
            if sure:
                self.confirmed += size(event)

    def _held(self) -> int:
        """Return how many people or presses the outbox has ever known."""
        return sum(self._below(boot, boot.next_seq) for boot in self.outbox.boots)

    def _below(self, boot: Boot, seq: int) -> int:
        """Return the boot's people below `seq`."""
        if seq == 0:
            return 0
        rows = self.outbox.read(boot, seq - 1, limit=1)
        if rows:
            return people_in(rows[0].meta.totals)
        return 0 if boot.floor is None else people_in(boot.floor.totals)

    def _copied_disk(self, copy: Path) -> Path | None:
        """Return a copy of the disk, but for the outbox; None if there is none."""
        if self._disk is None:
            return None
        return Path(
            shutil.copytree(
                self._disk, copy, ignore=shutil.ignore_patterns("*outbox*", copy.name),
                dirs_exist_ok=True,
            )
        )  # fmt: skip

    def _copied(self, name: str) -> Path:
        """Turn the device off, copy its storage, and turn it on; the link must be cut."""
        if self._path is None:
            raise ValueError("an outbox in memory cannot be copied")
        self.outbox.close()
        copy = self._path.with_name(f"{self._path.name}.{name}")
        _remove(copy)
        _copy(self._path, copy)
        self._open()
        return copy


def _copy(source: Path, target: Path) -> None:
    for suffix in ("", "-wal"):
        if Path(f"{source}{suffix}").exists():
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
