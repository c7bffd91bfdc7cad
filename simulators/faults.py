"""What goes wrong between a device and the server, and inside the device; all of it seeded.

- `FaultProxy`: a TCP proxy that delays, resets, holds connections half-open or refuses them.
- `FaultySession`: the agent's own session, whose frames are lost, doubled or swapped on the way.
- `ScriptedClock`: the agent's own clock over a kernel that lies: 1970, drift, a late time service.
- `Trouble`: when which fault strikes a device; `simulators.device` acts on it.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from agent.clock import SystemClock
from agent.outbox import Outbox
from agent.session import Session

_CHUNK = 65_536


class Fault(Enum):
    """What strikes a device."""

    CUT = "cut"  # its link is down for `for_s`
    REBOOT = "reboot"  # the agent is killed and starts again: a new boot
    POWER = "power"  # the whole device loses power: new boot, new monotonic clock, no time
    WRONG = "wrong"  # its clock is a minute and a half ahead, and nobody disciplines it
    SYNC = "sync"  # the time service sets the clock right
    SNAPSHOT = "snapshot"  # somebody copies its storage
    ROLLBACK = "rollback"  # its storage is put back to the copy
    CLONE = "clone"  # a second device with a copy of its storage speaks in its name for `for_s`
    WIPE = "wipe"  # its storage is lost


@dataclass(frozen=True, slots=True)
class Trouble:
    """One fault, `at_s` seconds after the start; `for_s` is how long it lasts."""

    at_s: float
    fault: Fault
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FrameFaults:
    """Chances per frame to be lost, doubled or swapped with its neighbour on the way."""

    lose: float = 0.0
    double: float = 0.0
    swap: float = 0.0

    @property
    def any(self) -> bool:
        """True if some frame may suffer."""
        return self.lose + self.double + self.swap > 0


class FaultySession(Session):
    """A session whose frames suffer between the agent and the broker."""

    def __init__(
        self, outbox: Outbox, *, clock: SystemClock, rng: random.Random, faults: FrameFaults
    ) -> None:
        super().__init__(outbox, clock=clock, rng=rng)
        self._faults = faults
        self._luck = random.Random(rng.getrandbits(64))

    def next(self, now_ms: int) -> list[bytes]:
        """Return what arrives of the frames to send."""
        arriving: list[bytes] = []
        for frame in super().next(now_ms):
            if self._luck.random() < self._faults.lose:
                continue
            arriving.append(frame)
            if self._luck.random() < self._faults.double:
                arriving.append(frame)
        for index in range(len(arriving) - 1):
            if self._luck.random() < self._faults.swap:
                arriving[index : index + 2] = arriving[index + 1], arriving[index]
        return arriving


class ScriptedClock(SystemClock):
    """The agent's clock over a scripted kernel.

    `utc_at_zero_ms` is the true UTC at this process's boot-time zero (see `true_offset_ms`).
    `error_ms` is how wrong the kernel's wall clock is, `drift_ppm` how fast it goes wrong; a
    `synced` kernel is right. Within `at`, time stands still at a given instant.
    """

    def __init__(
        self,
        true_offset_ms: int,
        *,
        epoch: str,
        synced: bool = True,
        error_ms: int = 0,
        drift_ppm: float = 0.0,
        powered_ms: int = 0,
    ) -> None:
        super().__init__(utc_ms=self._kernel_utc_ms, synced=lambda: self.synced)
        self.true_offset_ms = true_offset_ms + powered_ms
        self.synced = synced
        self.error_ms = error_ms
        self._drift_ppm = drift_ppm
        self._powered_ms = powered_ms
        self._still_ms: int | None = None
        self._name = epoch

    @property
    def epoch(self) -> str:
        """The simulated kernel's boot."""
        return self._name

    def monotonic_ms(self) -> int:
        """Return milliseconds since power-on, or the instant at which time stands still."""
        if self._still_ms is not None:
            return self._still_ms
        return super().monotonic_ms() - self._powered_ms

    def utc_ms(self) -> int:
        """Return true UTC, whatever the device believes."""
        return self.monotonic_ms() + self.true_offset_ms

    @contextmanager
    def at(self, utc_ms: int) -> Iterator[None]:
        """Let time stand still at true `utc_ms`."""
        self._still_ms = utc_ms - self.true_offset_ms
        try:
            yield
        finally:
            self._still_ms = None

    def _kernel_utc_ms(self) -> int:
        now = self.monotonic_ms()
        if self.synced:
            return now + self.true_offset_ms
        return now + self.true_offset_ms + self.error_ms + round(now * self._drift_ppm / 1e6)


def true_offset_ms() -> int:
    """Return UTC minus the host's boot time, now; take it once, so that a fleet agrees."""
    boot_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    return time.time_ns() // 1_000_000 - boot_ms


@dataclass(slots=True)
class ProxyFaults:
    """How a proxy treats each connection; lifetimes are uniform in seconds, 0 is for ever."""

    delay_s: float = 0.0
    life_s: tuple[float, float] = (0.0, 0.0)
    half_open: float = 0.0  # chance that a life ends in silence instead of a reset
    half_open_s: float = 20.0


class FaultProxy:
    """Stands between devices and a broker on this machine: `async with proxy.serving(): ...`."""

    def __init__(
        self, host: str, port: int, *, faults: ProxyFaults | None = None, seed: int = 0
    ) -> None:
        self.faults = faults or ProxyFaults()
        self.refusing = False
        self.accepted = 0
        self.resets = 0
        self.silences = 0
        self.port = 0
        self._target = (host, port)
        self._rng = random.Random(seed)
        self._flows: set[_Flow] = set()
        self._owner: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FaultProxy"]:
        """Listen on a free port of 127.0.0.1 while the block runs."""
        async with asyncio.TaskGroup() as group:
            self._owner = group
            server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            try:
                yield self
            finally:
                server.close()
                self.refusing = True
                self.reset_all()

    def reset_all(self) -> None:
        """Reset every connection."""
        for flow in list(self._flows):
            self.resets += 1
            flow.reset()

    def silence_all(self) -> None:
        """Let every connection go half-open: it stays, and nothing passes any more."""
        for flow in list(self._flows):
            self.silences += 1
            flow.silent = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing or self._owner is None:
            writer.transport.abort()
        else:
            self._owner.create_task(self._carry(reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far = await asyncio.wait_for(asyncio.open_connection(*self._target), timeout=10)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        flow = _Flow((reader, writer), far)
        if self.refusing:  # closed while we were connecting: nobody else would end this flow
            flow.reset()
            return
        self._flows.add(flow)
        try:
            async with asyncio.timeout(None) as life:
                low, high = self.faults.life_s
                if high > 0:
                    life.reschedule(
                        asyncio.get_running_loop().time() + self._rng.uniform(low, high)
                    )
                await flow.run(lambda: self.faults.delay_s)
        except TimeoutError:
            if self._rng.random() < self.faults.half_open:
                self.silences += 1
                with suppress(TimeoutError):
                    await asyncio.wait_for(flow.over.wait(), timeout=self.faults.half_open_s)
            else:
                self.resets += 1
        finally:
            self._flows.discard(flow)
            flow.reset()


class _Flow:
    """One connection's two directions."""

    def __init__(
        self,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.silent = False
        self.over = asyncio.Event()
        self._near, self._far = near, far

    def reset(self) -> None:
        """Abort both sides."""
        self.over.set()
        for _, writer in (self._near, self._far):
            writer.transport.abort()

    async def run(self, delay_s: Callable[[], float]) -> None:
        """Carry both ways until one side ends."""
        pumps = [
            asyncio.ensure_future(self._pump(self._near[0], self._far[1], delay_s)),
            asyncio.ensure_future(self._pump(self._far[0], self._near[1], delay_s)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        delay_s: Callable[[], float],
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.silent:
                    continue
                if delay := delay_s():
                    await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
