"""A process of ours that ends with us, and when the server in it is ready.

It is killed, frozen and ended by its own id, never by name. What outlives its starter is a
`Daemon` (`process.py`).
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from ops.services.errors import ServiceFailedError

END_S = 20.0
READY_S = 60.0
_POLL_S = 0.1
_ANSWER_S = 5.0
_DIRECT = build_opener(ProxyHandler({}))  # whatever proxy the environment names


@dataclass(slots=True)
class Child:
    """A command that can be started again after each kill; its output is appended to `log`.

    `own_session`: a Ctrl-C on the terminal is for its starter, which ends it in order.
    """

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold passwords
    own_session: bool = False
    _process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        process = self._process  # another thread may end it meanwhile
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the running process. Raises RuntimeError if there is none."""
        if self._process is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended by itself; None while it runs or after we have ended it."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it; a running one is left alone."""
        if self.running:
            return
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                start_new_session=self.own_session,
            )

    def kill(self) -> None:
        """SIGKILL it and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it stands still, its connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def end(self, timeout_s: float = END_S) -> int | None:
        """SIGTERM, then SIGKILL if it does not listen; return its exit code."""
        if self._process is None:
            return None
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(timeout_s)
            self._process = None
            return code
        self.kill()
        return -signal.SIGKILL

    def tail(self, lines: int = 15) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def wait_ready(server: Child, base: str, *, timeout_s: float = READY_S) -> None:
    """Return once the server at `base` is ready; ServiceFailedError has the end of its log."""
    deadline = time.monotonic() + timeout_s
    while not is_ready(base):
        if not server.running or time.monotonic() > deadline:
            raise ServiceFailedError(f"the {server.name} is not ready:\n{server.tail()}")
        time.sleep(_POLL_S)


def is_ready(base: str) -> bool:
    """Return whether /readyz says so."""
    try:
        with _DIRECT.open(f"{base}/readyz", timeout=_ANSWER_S) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):  # an answer of 503 is an OSError, too
        return False


def python(*arguments: str) -> list[str]:
    """Return the command that runs this interpreter with `arguments`."""
    return [sys.executable, *arguments]


def vestibule(*arguments: str) -> list[str]:
    """Return the command that runs `vestibule` of this checkout."""
    return python("-c", "import sys; from ops.command import main; sys.exit(main())", *arguments)
