"""Why the agent starts, and why it stops: one small file tells the next start of the last end.

What is written at a start has no end in it; an orderly stop writes its reason. So what is found at
the next start tells an orderly end from another, and the kernel's boot id tells whether the
machine went down with it. Metric values are numbers, so each reason has one (`Start`).
"""

import importlib.metadata
import json
import subprocess
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import structlog

from agent.identity import put
from agent.update import launch
from protocol.session import MAX_BACK_S, Goodbye

RUNNING = "running.json"
LEAVING = "leaving.json"
"""Whoever means to stop the agent may say why: `{"reason": "update", "back_s": 600}`."""
REBOOT_S = 300
_SYSTEMD = Path("/run/systemd/system")
_ASK_S = 1.0

log = structlog.get_logger(__name__)


class Start(IntEnum):
    """Why it started, as the metric `boot.reason` says it."""

    UNKNOWN = 0
    FIRST = 1  # nothing of an earlier start is there
    RESTARTED = 2  # stopped in order, and started again
    CRASHED = 3  # ended without a word, the machine ran on
    REBOOTED = 4  # the machine was restarted or switched off in order
    POWER_LOST = 5  # the machine went down without a word
    UPDATED = 6  # stopped for an update


class Starts:
    """This start, and the file that tells of it; made once, before anything is recorded."""

    def __init__(self, folder: Path, *, kernel: str) -> None:
        """`kernel` names the machine's own start; '' if it cannot be named."""
        self._path = folder / RUNNING
        self._kernel = kernel
        self.reason = _reason(_read(self._path), kernel)
        self._write("")

    def ended(self, reason: str) -> None:
        """Write down that it stops in order, and why."""
        self._write(reason or "stopped")

    def _write(self, left: str) -> None:
        try:
            put(self._path, json.dumps({"kernel": self._kernel, "left": left}).encode())
        except OSError as error:  # the disk's trouble is told elsewhere; this only informs
            log.warning("the start could not be noted", error=str(error))


def _reason(last: dict[str, object] | None, kernel: str) -> Start:
    if last is None:
        return Start.FIRST
    left, before = last.get("left"), last.get("kernel")
    if not isinstance(left, str) or not isinstance(before, str):
        return Start.UNKNOWN
    if left == "update":
        return Start.UPDATED
    same = before == kernel
    if not before or not kernel:
        return Start.RESTARTED if left else Start.UNKNOWN
    if left:
        return Start.RESTARTED if same else Start.REBOOTED
    return Start.CRASHED if same else Start.POWER_LOST


def goodbye(folder: Path) -> Goodbye:
    """Return why the agent is being stopped: as somebody has said, or as systemd's jobs tell."""
    path = folder / LEAVING
    said = _read(path)
    with suppress(OSError):
        path.unlink(missing_ok=True)
    if said is not None:
        reason, back_s = said.get("reason"), said.get("back_s", 0)
        try:
            if isinstance(reason, str) and type(back_s) is int:
                return Goodbye(reason, min(max(back_s, 0), MAX_BACK_S))
        except ValueError as error:
            log.warning("no reason to stop for", error=str(error))
    return of_jobs(_jobs())


def of_jobs(jobs: str) -> Goodbye:
    """Return the goodbye that systemd's list of jobs amounts to."""
    if "reboot.target" in jobs or "kexec.target" in jobs:
        return Goodbye("reboot", REBOOT_S)
    if "poweroff.target" in jobs or "halt.target" in jobs:
        return Goodbye("power-off")
    return Goodbye("stopped")


def version() -> str:
    """Return the version of the slot that this code lies in, or else of what is installed.

    `?` if it is not installed.
    """
    with suppress(launch.UnfitError):
        return launch.marker(Path(__file__).resolve().parents[1]).version
    try:
        return importlib.metadata.version("vestibule")
    except importlib.metadata.PackageNotFoundError:
        return "?"


def _jobs() -> str:
    if not _SYSTEMD.exists():
        return ""
    try:
        asked = subprocess.run(
            ["systemctl", "list-jobs", "--no-legend", "--plain", "--no-pager"],
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout


def _read(path: Path) -> dict[str, object] | None:
    """Return what a file says, None if it is not there; {} if it cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
