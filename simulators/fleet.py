"""Many devices in one process: one event loop, one step a second each, bounded handshakes.

Decided here:
- Devices are stepped in slices of 50 ms, so that a thousand journals do not come at once.
- As many as `handshakes` devices are connecting at a time when a fleet starts. TLS handshakes run
  in as many threads; with the links' jitter that bounds the storm after the broker was away too.
- The truth file is written by one thread of its own, once a second.
- The fleet owns its tasks: leaving `running()` has stopped steps, faults and links.
"""

import asyncio
import resource
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from simulators.device import SimDevice
from simulators.truth import TruthFile

SLICES = 20
HANDSHAKES = 100
CONNECT_S = 15.0
FILES_EACH = 3  # socket, outbox, its log
FILES_IN_MEMORY = 1
FILES_BESIDE = 512  # a proxy, the truth, sockets that are closing

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stats:
    """Where the people (and presses) of a fleet are.

    `generated` by the hardware, of these `confirmed` as journalled, of these `stored` by the
    server's receipts; `on_their_way` is confirmed and not yet receipted.
    """

    devices: int
    connected: int
    generated: int
    confirmed: int
    stored: int
    frames_waiting: int

    @property
    def on_their_way(self) -> int:
        """People journalled by an agent and not yet receipted."""
        return self.confirmed - self.stored


class Fleet:
    """See the module: `async with fleet.running(): ...`, then `drain`."""

    def __init__(
        self,
        devices: Sequence[SimDevice],
        *,
        truth: TruthFile | None = None,
        handshakes: int = HANDSHAKES,
    ) -> None:
        self.devices = list(devices)
        self.truth = truth
        self._handshakes = handshakes
        self._group: asyncio.TaskGroup | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="truth")

    def stats(self) -> Stats:
        """Return where everybody is; reads only outboxes whose mark has moved."""
        generated = confirmed = stored = waiting = connected = 0
        for device in self.devices:
            one = device.totals()
            generated += one[0]
            confirmed += one[1]
            stored += one[2]
            waiting += device.frames_waiting
            connected += device.connected
        return Stats(len(self.devices), connected, generated, confirmed, stored, waiting)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Fleet"]:
        """Step, connect and suffer while the block runs; then stop all and close the outboxes."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(
            ThreadPoolExecutor(self._handshakes, thread_name_prefix="handshake")
        )
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                tasks = [
                    group.create_task(self._step_all(), name="steps"),
                    group.create_task(self._connect_all(group), name="connects"),
                ]
                tasks += [
                    group.create_task(self._suffer(device))
                    for device in self.devices
                    if device.conditions.troubles
                ]
                try:
                    yield self
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*(device.cut() for device in self.devices))
        finally:
            for device in self.devices:
                device.close()
            if self.truth is not None:
                await loop.run_in_executor(self._writer, self.truth.commit)
            self._writer.shutdown()

    def join(self, device: SimDevice) -> None:
        """Take one more device in, while the fleet is running."""
        self.devices.append(device)
        if self._group is not None:
            device.plug(self._group)

    async def drain(self, *, timeout_s: float) -> bool:
        """Seal all open frames and wait until all is receipted; False if that took too long."""
        for device in self.devices:
            device.finish()
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while loop.time() < until:
            if not any(device.frames_waiting for device in self.devices):
                return True
            await asyncio.sleep(0.2)
        return not any(device.frames_waiting for device in self.devices)

    async def _connect_all(self, group: asyncio.TaskGroup) -> None:
        """Plug all devices in, at most `handshakes` of them between plug and connection."""
        loop = asyncio.get_running_loop()
        connecting: list[tuple[SimDevice, float]] = []
        for device in self.devices:
            while len(connecting) >= self._handshakes:
                await asyncio.sleep(0.02)
                late = loop.time() - CONNECT_S  # whoever is refused must not hold up the others
                connecting = [(d, at) for d, at in connecting if not d.connected and at > late]
            device.plug(group)
            connecting.append((device, loop.time()))

    async def _step_all(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            for first in range(SLICES):
                for device in self.devices[first::SLICES]:
                    device.step()
                due += 1 / SLICES
                await asyncio.sleep(max(0.0, due - loop.time()))
            due = max(due, loop.time() - 1)  # a second late at most, then behind is behind
            if self.truth is not None and (payload := self.truth.take()):
                await loop.run_in_executor(self._writer, self.truth.write, payload)

    async def _suffer(self, device: SimDevice) -> None:
        began = asyncio.get_running_loop().time()
        for trouble in device.conditions.troubles:
            elapsed = asyncio.get_running_loop().time() - began
            await asyncio.sleep(max(0.0, trouble.at_s - elapsed))
            log.debug("fault", device=device.spec.device, fault=trouble.fault.value)
            await device.suffer(trouble)


def raise_file_limit(devices: int, *, in_memory: bool) -> None:
    """Allow this process the files a fleet needs; OSError names the limit if it is too low."""
    wanted = devices * (FILES_IN_MEMORY if in_memory else FILES_EACH) + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise OSError(
            f"{devices} devices need {wanted} open files, and this process may have {hard};"
            " raise `ulimit -Hn`, keep outboxes in memory, or use several processes"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
