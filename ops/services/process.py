"""Daemons that outlive their starter, known by process id and start time.

A process id alone can be reused by a stranger; with the kernel's start time beside it, we only
ever signal what we started.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ops.services.account import Account
from ops.services.errors import AccountError, PortTakenError, ServiceFailedError

__all__ = [
    "Daemon",
    "demand_free_port",
    "log_tail",
    "port_answers",
    "spawn",
    "wait_until",
]

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running process; `started` is its start time in clock ticks since boot."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Daemon | None:
        """Return the live process with this id, None if there is none."""
        started = _start_time(pid)
        return None if started is None else cls(pid=pid, started=started)

    @classmethod
    def remembered(cls, path: Path) -> Daemon | None:
        """Return the process noted in `path` if it still runs."""
        try:
            noted = json.loads(path.read_text())
            daemon = cls(pid=int(noted["pid"]), started=int(noted["started"]))
        except (OSError, ValueError, KeyError):
            return None
        return daemon if daemon.alive else None

    def remember(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"pid": self.pid, "started": self.started}))
        partial.replace(path)

    @property
    def alive(self) -> bool:
        return _start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def children(self) -> list[Daemon]:
        """Return the direct children that live now."""
        found = (Daemon.of(pid) for pid in _process_ids() if _parent(pid) == self.pid)
        return [daemon for daemon in found if daemon is not None]

    def kill_with_children(self) -> None:
        """SIGKILL this process and its children; no child can be born in between."""
        self.signal(signal.SIGSTOP)
        family = [self, *self.children()]
        for daemon in family:
            daemon.signal(signal.SIGKILL)
        wait_until(lambda: not any(daemon.alive for daemon in family), timeout_s=30)
        self.wait_gone(timeout_s=5)

    def wait_gone(self, *, timeout_s: float) -> bool:
        """Wait until the process has ended and its id is free again; return whether it is."""
        return wait_until(lambda: not Path(f"/proc/{self.pid}").exists(), timeout_s=timeout_s)


def spawn(
    command: Sequence[str], *, account: Account, log: Path, env: Mapping[str, str], cwd: Path
) -> Daemon:
    """Start `command` as a daemon that appends to `log`. Raises AccountError, ServiceFailedError.

    A shell in the background waits for it, so that it never remains as a zombie (whose id
    PostgreSQL would take for a running postmaster) where no init collects orphans. It gets as
    many file descriptors as the system allows.
    """
    script = (
        "ulimit -n 65536 2>/dev/null || ulimit -n $(ulimit -Hn) 2>/dev/null; umask 077; "
        f"( {shlex.join(command)} </dev/null >&2 & echo $!; exec >&2; wait ) &"
    )
    try:
        with log.open("ab") as output:
            done = subprocess.run(
                ["/bin/sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                env=dict(env),
                cwd=cwd,
                text=True,
                start_new_session=True,
                check=True,
                user=account.uid if account.switch else None,
                group=account.gid if account.switch else None,
                extra_groups=[] if account.switch else None,
            )
    except PermissionError as error:
        raise AccountError(
            f"Cannot become user {account.uid} to run the services ({error}); "
            "run this as an ordinary user instead of root."
        ) from error
    daemon = Daemon.of(int(done.stdout))
    if daemon is None:
        raise ServiceFailedError(f"{command[0]} did not start: {log_tail(log)}")
    return daemon


def wait_until(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Poll until `condition` holds; return whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def port_answers(host: str, port: int) -> bool:
    """Return whether something accepts TCP connections there."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def demand_free_port(host: str, port: int, *, service: str, remembered_in: Path) -> None:
    """Raise PortTakenError if another program holds the port that a service is about to take."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise PortTakenError(
                f"Port {port} of {service} is taken by another program; stop that program, "
                f"or delete {remembered_in} to have new ports chosen."
            ) from None


def log_tail(log: Path, *, lines: int = 3) -> str:
    """Return the last lines of a log as one line of text."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "(no log)"
    return " | ".join(text.strip().splitlines()[-lines:])


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat after the name, which may itself hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _start_time(pid: int) -> int | None:
    fields = _stat_fields(pid)
    if fields is None or fields[0] in ("Z", "X"):  # a zombie holds nothing any more
        return None
    return int(fields[19])


def _parent(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return None if fields is None else int(fields[1])


def _process_ids() -> Iterable[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
