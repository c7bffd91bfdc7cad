"""A daemon below a stack's root: known again by its process id, started, asked, ended."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from ops.services.account import Account
from ops.services.errors import NotOursError, ServiceFailedError
from ops.services.packages import Progress
from ops.services.process import Daemon, log_tail, wait_until


class Service(ABC):
    """One of ours; `name` is also that of its log, its folder and the note of its process id."""

    name: ClassVar[str]
    title: ClassVar[str]
    ends_on: ClassVar[signal.Signals]
    """The signal after which it ends by itself, nothing lost."""
    patience_s: ClassVar[float]
    """How long that, or its start, may take."""

    def __init__(self, root: Path, account: Account) -> None:
        self.log_path = root / f"logs/{self.name}.log"
        self._root = root
        self._account = account
        self._pid_path = root / f"{self.name}.pid"

    @property
    def pid(self) -> int | None:
        """Its process id, None if it does not run."""
        daemon = Daemon.remembered(self._pid_path)
        return None if daemon is None else daemon.pid

    @property
    def running(self) -> bool:
        return self.pid is not None

    @abstractmethod
    def start(self, progress: Progress = lambda text: None) -> None:
        """Start it; a running one is left alone."""

    @abstractmethod
    def _answers(self) -> bool: ...

    def wait_ready(self) -> None:
        """Return once it answers. Raises ServiceFailedError."""
        ready = wait_until(lambda: not self.running or self._answers(), timeout_s=self.patience_s)
        if not ready or not self.running:
            raise ServiceFailedError(f"{self.title} is not ready: {log_tail(self.log_path)}")

    def stop(self) -> None:
        """End it in good order; one that does not end is killed."""
        daemon = Daemon.remembered(self._pid_path)
        if daemon is not None:
            daemon.signal(self.ends_on)
            if not daemon.wait_gone(timeout_s=self.patience_s):
                daemon.kill_with_children()
        self._pid_path.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL it and all its children, as a power cut would."""
        daemon = Daemon.remembered(self._pid_path)
        if daemon is not None:
            daemon.kill_with_children()
        self._pid_path.unlink(missing_ok=True)


class Configured(Service):
    """Someone else's, named in `setting`: used, never started or stopped."""

    setting: ClassVar[str]

    @property
    def pid(self) -> int | None:
        return None

    @property
    def running(self) -> bool:
        return self._answers()

    def start(self, progress: Progress = lambda text: None) -> None:
        progress(f"using the one in {self.setting}")

    def wait_ready(self) -> None:
        if not wait_until(self._answers, timeout_s=self.patience_s):
            raise ServiceFailedError(f"{self.title} in {self.setting} does not answer.")

    def stop(self) -> None:
        """Leave it running."""

    def kill(self) -> None:
        raise NotOursError(f"{self.title} in {self.setting} is not ours to kill.")
