"""Run database, broker and server as processes of their own, and bring back what dies.

Everything is known by process id. What the demo kills stays down for `DOWN_S`, so that a person
sees the counts wait in the outboxes; then it is started again, as a service manager would.
"""

import asyncio
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ops.deployment import environment
from ops.services.child import Child, vestibule, wait_ready
from ops.services.errors import ServiceFailedError
from ops.services.process import Daemon
from ops.services.stack import Stack
from server.config import Settings

Part = Literal["broker", "server", "database"]
PARTS: tuple[Part, ...] = ("broker", "server", "database")
DOWN_S = 3.0
STOP_S = 15.0
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Outage:
    """A part that was killed; `back_s` is how long it was away, None while it is."""

    part: Part
    at: float
    back_s: float | None = None


class Supervisor:
    """See the module."""

    def __init__(self, stack: Stack, *, log: Path, pid_path: Path) -> None:
        self.stack = stack
        self.outages: deque[Outage] = deque(maxlen=12)
        self.settings: Settings | None = None
        self._pid_path = pid_path
        self._server = Child("server", vestibule("serve"), log, own_session=True)
        self._closing = False

    @property
    def base(self) -> str:
        """The server's address."""
        assert self.settings is not None
        return f"http://{self.settings.http_host}:{self.settings.http_port}"

    def alive(self, part: Part) -> bool:
        """Whether the part's process runs now."""
        if part == "server":
            return self._server.running
        return self.stack.broker.running if part == "broker" else self.stack.postgres.running

    async def start_server(self, settings: Settings) -> None:
        """Start the server and return once it is ready; ServiceFailedError has its last words."""
        self.settings = settings
        left_over = Daemon.remembered(self._pid_path)
        if left_over is not None:  # of a demo that was itself killed
            await asyncio.to_thread(left_over.kill_with_children)
        self._server.env = environment(settings)
        await self._serve()

    def kill(self, part: Part) -> None:
        """SIGKILL a part."""
        self.outages.append(Outage(part, time.time()))
        if part == "server":
            self._server.kill()
        elif part == "broker":
            self.stack.broker.kill()
        else:
            self.stack.postgres.kill()

    async def watch(self) -> None:
        """Bring back what is down; ends only by cancellation."""
        async with asyncio.TaskGroup() as group:
            for part in PARTS:
                group.create_task(self._watch(part))

    async def stop(self) -> None:
        """Stop the server, then the services; their data stays."""
        self._closing = True
        await asyncio.to_thread(self._server.end, STOP_S)
        self._pid_path.unlink(missing_ok=True)
        await asyncio.to_thread(self.stack.down)

    async def _watch(self, part: Part) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            if self.alive(part) or self._closing:
                continue
            if not any(o.part == part and o.back_s is None for o in self.outages):
                self.outages.append(Outage(part, time.time()))
            await asyncio.sleep(DOWN_S)
            await self._bring_back(part)
            self._note_back(part)

    async def _bring_back(self, part: Part) -> None:
        if part == "server":
            with suppress(ServiceFailedError):  # looked at again soon
                await self._serve()
            return
        service = self.stack.broker if part == "broker" else self.stack.postgres
        await asyncio.to_thread(service.start)
        await asyncio.to_thread(service.wait_ready)

    def _note_back(self, part: Part) -> None:
        now = time.time()
        for index, outage in enumerate(self.outages):
            if outage.part == part and outage.back_s is None:
                self.outages[index] = replace(outage, back_s=now - outage.at)

    async def _serve(self) -> None:
        self._server.start()
        daemon = Daemon.of(self._server.pid)
        if daemon is not None:
            daemon.remember(self._pid_path)
        await asyncio.to_thread(wait_ready, self._server, self.base)
