"""A process that we started: killed, frozen, ended by its own id, never by name."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

END_S = 20.0


@dataclass(slots=True)
class Child:
    """A command that can be started again after each kill; its output is appended to `log`."""

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

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
        self.starts += 1
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                cwd=self.cwd,
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


def python(*arguments: str) -> list[str]:
    """Return the command that runs this interpreter with `arguments`."""
    return [sys.executable, *arguments]


def vestibule(*arguments: str) -> list[str]:
    """Return the command that runs `vestibule` of this checkout."""
    return python("-c", "import sys; from ops.command import main; sys.exit(main())", *arguments)
