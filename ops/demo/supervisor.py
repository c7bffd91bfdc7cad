"""Run database, broker and server as processes of their own, and bring back what dies.

Everything is known by process id. What the demo kills stays down for `DOWN_S`, so that a person
sees the counts wait in the outboxes; then it is started again, as a service manager would.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import aiohttp

from ops.deployment import environment
from ops.services.errors import ServiceFailedError
from ops.services.process import Daemon, log_tail
from ops.services.stack import Stack
from server.config import Settings

Part = Literal["broker", "server", "database"]
PARTS: tuple[Part, ...] = ("broker", "server", "database")
DOWN_S = 3.0
READY_S = 60.0
STOP_S = 15.0
_POLL_S = 0.25
_SERVE = "import sys; from ops.command import main; sys.exit(main(['serve']))"


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
        self._log = log
        self._pid_path = pid_path
        self._server: subprocess.Popen[bytes] | None = None
        self._closing = False

    @property
    def base(self) -> str:
        """The server's address."""
        assert self.settings is not None
        return f"http://{self.settings.http_host}:{self.settings.http_port}"

    def alive(self, part: Part) -> bool:
        """Whether the part's process runs now."""
        if part == "server":
            return self._server is not None and self._server.poll() is None
        return self.stack.broker.running if part == "broker" else self.stack.postgres.running

    async def start_server(self, settings: Settings) -> None:
        """Start the server and return once it is ready; ServiceFailedError has its last words."""
        self.settings = settings
        left_over = Daemon.remembered(self._pid_path)
        if left_over is not None:  # of a demo that was itself killed
            await asyncio.to_thread(left_over.kill_with_children)
        self._spawn()
        if not await self._ready():
            raise ServiceFailedError(f"the server did not become ready: {log_tail(self._log)}")

    def kill(self, part: Part) -> None:
        """SIGKILL a part."""
        self.outages.append(Outage(part, time.time()))
        if part == "server":
            if self._server is not None:
                self._server.send_signal(signal.SIGKILL)
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
        server = self._server
        if server is not None and server.poll() is None:
            server.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(server.wait, STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                await asyncio.to_thread(server.wait)
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
            self._spawn()
            await self._ready()
            return
        service = self.stack.broker if part == "broker" else self.stack.postgres
        await asyncio.to_thread(service.start)
        await asyncio.to_thread(service.wait_ready)

    def _note_back(self, part: Part) -> None:
        now = time.time()
        for index, outage in enumerate(self.outages):
            if outage.part == part and outage.back_s is None:
                self.outages[index] = replace(outage, back_s=now - outage.at)

    def _spawn(self) -> None:
        assert self.settings is not None
        with self._log.open("ab") as output:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVE],
                env={**os.environ, **environment(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C is for the demo, which stops it in order
            )
        daemon = Daemon.of(self._server.pid)
        if daemon is not None:
            daemon.remember(self._pid_path)

    async def _ready(self) -> bool:
        """Poll /readyz; False if it does not come or the process has ended."""
        until = time.monotonic() + READY_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=3)) as session:
            while time.monotonic() < until and self.alive("server"):
                try:
                    async with session.get(f"{self.base}/readyz") as response:
                        if response.status == 200:
                            return True
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(_POLL_S / 2)
        return False
