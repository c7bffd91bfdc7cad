"""What starts the agent: out of the slot on trial, once, or out of the one that was committed.

    python -I -m agent.update.launch [--config FILE]

This file is the packaged one and is never updated by itself. It is a program of its own that needs
the standard library alone, decides, and becomes the agent (exec): the same process, to systemd too.

Below `<state>/update`, `agent/a` and `agent/b` are slots, `agent/current` is a link to the one that
was committed (none: the package's own code), `try.json` is the record of a trial. Decided here:

1. A trial that has a try left, in a slot that is fit: the try is used up, synced to the disk,
   before anything of the slot is run. So whatever ends that process, the next start goes by 3.
2. Where it can't be noted that the try is used up, the slot is not tried.
3. Else the committed slot, if it is fit; else the package.
4. A slot is fit if it holds exactly the files that its marker names, each with its digest. Nothing
   is run of one that is not; Python leaves no bytecode in slots, so that this stays so.
5. An alarm of the kernel's, which outlives exec, ends a trial that hangs. Who commits switches it
   off, and so does each start.

6. A committed slot that was started `MOST_STARTS` times within `LOOP_S`, the machine running on,
   and never came to an orderly end (`ended`), crashes. Then what was committed before it is the
   committed one again, if that is still there, fit, and not below the floor that it raised; else it
   is started as ever. There is one way back for each commit, so nothing goes to and fro. The server
   sees by the version that the device signs that it has reverted.

What was decided, and how to get here again, stands in the environment (`launched`).
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

STATE = Path("/var/lib/vestibule")
SETTINGS = Path("/etc/vestibule/agent.toml")
FOLDER, RECORD, MARKER, LINK = "update", "try.json", "slot.json", "current"
BEFORE, STARTS = "before.json", "starts.json"
MOST_STARTS, LOOP_S = 5, 900.0
SLOTS = ("a", "b")
PACKAGE = "package"  # the slot that was never filled: what is installed
ENTRY = {"agent": "agent/__main__.py", "kiosk": "page.html"}
TOLD = "VESTIBULE_LAUNCHED"
VARIABLES = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
GRACE_S = 60.0  # beyond the trial's own time, for an orderly way back
MAX_MARKER = 1 << 20
MOST_TRIAL_S = 86_400
_KERNEL_BOOT = Path("/proc/sys/kernel/random/boot_id")

TRIAL, COMMITTED = "trial", "committed"
CRASHED, HUNG, POWER, UNFIT, UNWRITTEN = "crashed", "hung", "power", "unfit", "unwritten"
FELL_BACK = (CRASHED, HUNG, POWER, UNFIT, UNWRITTEN)
"""Why a trial was not, or is no more, what is run."""


class UnfitError(ValueError):
    """A slot that nothing may be run of, and why."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What a slot holds: a release, and each of its files with its length and SHA-256."""

    component: str
    version: str
    floor: str
    sha256: str
    files: Mapping[str, tuple[int, str]]


@dataclass(frozen=True, slots=True)
class Record:
    """A trial: of which slot, for whom, and whether its try is `left`.

    `kernel` and `began_s` (since the machine's start) are of the start that used it up.
    """

    slot: str
    sha256: str
    execution: str
    attempt: int
    trial_s: int
    left: int = 1
    kernel: str = ""
    began_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Launched:
    """How this process came to be: out of which slot, why, and how to be launched again."""

    slot: str
    why: str
    attempt: tuple[str, int] | None  # of which execution the trial is, or was
    command: tuple[str, ...]
    before: Mapping[str, str | None]  # the variables of Python's that were set for a slot


_NO_MARKER = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


# -- slots -----------------------------------------------------------------------------------------


def marker(slot: Path) -> Marker:
    """Return what a slot says that it holds. Raises UnfitError."""
    try:
        with (slot / MARKER).open("rb") as file:
            said = json.loads(file.read(MAX_MARKER))
        files = {str(name): (int(size), str(sha)) for name, (size, sha) in said["files"].items()}
        texts = [str(said[name]) for name in ("component", "version", "floor", "sha256")]
    except (*_NO_MARKER, OSError) as error:
        raise UnfitError(f"{slot}: its marker can't be read: {error!r}") from error
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UnfitError(f"{slot}: its marker names {name!r}")
    return Marker(texts[0], texts[1], texts[2], texts[3], files)


def fit(slot: Path, component: str = "agent") -> Marker:
    """Return what a slot holds, once all of it was read and is as its marker says. UnfitError."""
    found = marker(slot)
    if found.component != component or ENTRY[component] not in found.files:
        raise UnfitError(f"{slot}: it holds no {component}")
    there: set[str] = set()
    for folder, folders, names in os.walk(slot):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                raise UnfitError(f"{path} is a link")
            if name in names:
                there.add(path.relative_to(slot).as_posix())
    if there - {MARKER} != set(found.files):
        odd = sorted((there - {MARKER}) ^ set(found.files))
        raise UnfitError(f"{slot}: {', '.join(odd[:3])} is missing, or is not part of it")
    for name, (size, sha256) in found.files.items():
        if file_digest(slot / name) != (size, sha256):
            raise UnfitError(f"{slot / name} is not as it was written")
    return found


def file_digest(path: Path) -> tuple[int, str]:
    """Return a file's length and SHA-256. Raises UnfitError where it can't be read."""
    size, digest = 0, hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 16):
                size += len(block)
                digest.update(block)
    except OSError as error:
        raise UnfitError(f"{path}: {error}") from error
    return size, digest.hexdigest()


def committed(root: Path, component: str = "agent") -> str:
    """Return the name of a component's committed slot, as the link says it."""
    try:
        named = os.readlink(root / component / LINK)
    except OSError:
        return PACKAGE
    return named if named in SLOTS else PACKAGE


# -- the record ------------------------------------------------------------------------------------


def read_record(root: Path) -> Record | None:
    """Return the trial that is recorded; None if there is none, or none that can be read."""
    try:
        said = json.loads((root / RECORD).read_bytes())
        found = Record(
            str(said["slot"]),
            str(said["sha256"]),
            str(said["execution"]),
            int(said["attempt"]),
            int(said["trial_s"]),
            int(said["left"]),
            str(said["kernel"]),
            float(said["began_s"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # whatever it is, the device starts
    right = found.slot in SLOTS and 0 <= found.left <= 1 and 0 < found.trial_s <= MOST_TRIAL_S
    return found if right else None


def write_record(root: Path, record: Record) -> None:
    """Write it so that it outlives a power cut, or fail and leave what was there. OSError."""
    _write(root / RECORD, json.dumps(asdict(record)).encode())


def sync(folder: Path) -> None:
    """Sync a folder's entries to the disk. OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- the choice ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """What is run, why, for which attempt, and after how many seconds it is ended (0: never)."""

    slot: str
    why: str
    attempt: tuple[str, int] | None = None
    alarm_s: float = 0.0


def choose(root: Path, *, kernel: str, now_s: float) -> Choice:
    """Decide by the module's rules.

    `kernel` names the machine's start, and `now_s` is the time since then.
    """
    record = read_record(root)
    why = COMMITTED
    attempt = None if record is None else (record.execution, record.attempt)
    if record is not None and record.left:
        why = _consume(root, record, kernel=kernel, now_s=now_s)  # 1
        if why == TRIAL:
            return Choice(record.slot, TRIAL, attempt, record.trial_s + GRACE_S)
    elif record is not None:
        why = _ended(record, kernel=kernel, now_s=now_s)
    slot = _lasting(root, committed(root), kernel=kernel, now_s=now_s)  # 3
    if slot != PACKAGE:
        try:
            fit(root / "agent" / slot)  # 4
        except UnfitError as error:
            _say(f"{error}; running what is installed")
            slot = PACKAGE
    return Choice(slot, why, attempt)


def _consume(root: Path, record: Record, *, kernel: str, now_s: float) -> str:
    try:
        if fit(root / "agent" / record.slot).sha256 != record.sha256:  # 4
            raise UnfitError(f"slot {record.slot} holds another release than the one to try")
    except UnfitError as error:
        _say(str(error))
        return UNFIT
    used = Record(
        record.slot,
        record.sha256,
        record.execution,
        record.attempt,
        record.trial_s,
        0,
        kernel,
        now_s,
    )
    try:
        write_record(root, used)
    except OSError as error:
        _say(f"slot {record.slot} is not tried: {error}")  # 2
        return UNWRITTEN
    return TRIAL


def _ended(record: Record, *, kernel: str, now_s: float) -> str:
    """Return what ended a trial whose try is used up, as far as can be told."""
    if kernel and record.kernel != kernel:
        return POWER
    late_s = now_s - record.began_s - record.trial_s
    return HUNG if late_s >= 0 else CRASHED


# -- what crashes after it was committed (6) -------------------------------------------------------


def note_before(root: Path, slot: str, sha256: str) -> None:
    """Write down what is committed, before something else (by its digest) is. OSError.

    Only once: a commit that is repeated must not name itself. Of the package there is a way back
    only as far as no floor was raised: which version it is the slots don't say.
    """
    now = committed(root)
    if now == slot:
        return
    was = "" if now == PACKAGE else marker(root / "agent" / now).sha256
    said = {"of": sha256, "slot": now, "sha256": was}
    _write(root / BEFORE, json.dumps(said).encode())


def ended(root: Path) -> None:
    """Note that the agent came to an orderly end: its starts so far were no crashes."""
    with suppress(OSError):
        (root / STARTS).unlink(missing_ok=True)


def _lasting(root: Path, slot: str, *, kernel: str, now_s: float) -> str:
    """Return the committed slot or, where that crashes again and again, the one before it."""
    if slot == PACKAGE or not kernel:
        return slot
    starts = [at for at in _starts(root, slot, kernel) if 0 <= now_s - at <= LOOP_S]
    if len(starts) >= MOST_STARTS and (before := _before(root, slot)) is not None:
        _say(f"slot {slot} was started {len(starts)} times in vain; going back to {before}")
        try:
            relink(root / "agent", before)
        except OSError as error:
            _say(f"slot {slot} stays: {error}")
        else:
            ended(root)
            return before
    said = {"slot": slot, "kernel": kernel, "at_s": [*starts, now_s][-MOST_STARTS:]}
    with suppress(OSError):  # what can't be counted is started all the same
        _write(root / STARTS, json.dumps(said).encode())
    return slot


def _starts(root: Path, slot: str, kernel: str) -> list[float]:
    try:
        said = json.loads((root / STARTS).read_bytes())
        if (said["slot"], said["kernel"]) != (slot, kernel):
            return []
        return [float(each) for each in said["at_s"]]
    except (*_NO_MARKER, OSError):
        return []


def _before(root: Path, slot: str) -> str | None:
    """Return what was committed before a slot, if that may be started; None if not."""
    try:
        crashing = marker(root / "agent" / slot)
        said = json.loads((root / BEFORE).read_bytes())
        if said["of"] != crashing.sha256 or said["slot"] == slot:
            return None
        if said["slot"] == PACKAGE:
            return PACKAGE if _key(crashing.floor) <= _key(_installed()) else None
        if said["slot"] not in SLOTS:
            return None
        found = fit(root / "agent" / said["slot"])
        same = found.sha256 == said["sha256"]
        return said["slot"] if same and _key(found.version) >= _key(crashing.floor) else None
    except (*_NO_MARKER, OSError) as error:
        _say(f"there is nothing to go back to: {error!r}")
        return None


def _installed() -> str:
    from importlib import metadata  # for this alone

    try:
        return metadata.version("vestibule")
    except metadata.PackageNotFoundError:
        return ""


def _key(version: str) -> tuple[int, ...]:
    """Return what versions are compared by; ValueError."""
    return tuple(int(part) for part in version.split("."))


def relink(folder: Path, slot: str) -> None:
    """Let the link name a slot, or nothing for the package, so that it outlives a power cut."""
    if slot == PACKAGE:
        (folder / LINK).unlink(missing_ok=True)
    else:
        beside = folder / f".{LINK}.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(slot)
        beside.replace(folder / LINK)
    if folder.exists():
        sync(folder)


def _write(path: Path, content: bytes) -> None:
    """Write a file whole, or leave the one that was there. OSError."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync(path.parent)


# -- becoming the agent ----------------------------------------------------------------------------


def launched(environ: Mapping[str, str] = os.environ) -> Launched | None:
    """Return how this process was launched; None if it was not."""
    try:
        said = json.loads(environ[TOLD])
        before = {name: said["before"].get(name) for name in VARIABLES}
        command = tuple(str(word) for word in said["command"])
        tried = said["attempt"]
        attempt = None if tried is None else (str(tried[0]), int(tried[1]))
        return Launched(str(said["slot"]), str(said["why"]), attempt, command, before)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        return None


def again(found: Launched, environ: Mapping[str, str] = os.environ) -> NoReturn:
    """Become the launcher again, in the environment that it had."""
    kept = {name: text for name, text in environ.items() if name not in (TOLD, *VARIABLES)}
    kept |= {name: text for name, text in found.before.items() if text is not None}
    os.execve(found.command[0], list(found.command), kept)  # noqa: S606 - ourselves


def environment(
    environ: Mapping[str, str], root: Path, choice: Choice, command: Sequence[str]
) -> dict[str, str]:
    """Return the environment of an agent that is run out of this slot."""
    before = {name: environ.get(name) for name in VARIABLES}
    told = {
        "slot": choice.slot,
        "why": choice.why,
        "attempt": choice.attempt,
        "command": list(command),
        "before": before,
    }
    made = {**environ, TOLD: json.dumps(told)}
    if choice.slot != PACKAGE:
        path = [str(root / "agent" / choice.slot), *filter(None, [environ.get("PYTHONPATH")])]
        made |= {"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}  # 4
    return made


def state_folder(settings: Path | None, environ: Mapping[str, str]) -> Path:
    """Return the agent's state folder as its settings say; the default if they can't be read."""
    if named := environ.get("VESTIBULE_AGENT_STATE"):
        return Path(named)
    settings = settings or Path(environ.get("VESTIBULE_AGENT_CONFIG") or SETTINGS)
    with suppress(OSError, ValueError):
        found = tomllib.loads(settings.read_text()).get("state")
        if isinstance(found, str) and found:
            return Path(found)
    return STATE


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Decide, and become the agent."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # 5
    parser = argparse.ArgumentParser("vestibule-launch", description="Start the agent.")
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    settings = parser.parse_args(argv).config
    root = (state_folder(settings, os.environ) / FOLDER).absolute()
    choice = choose(root, kernel=_kernel(), now_s=_uptime_s())
    given = [] if settings is None else ["--config", str(settings.absolute())]
    command = [sys.executable, "-I", str(Path(__file__).absolute()), *given]
    made = environment(os.environ, root, choice, command)
    signal.setitimer(signal.ITIMER_REAL, choice.alarm_s)  # 5
    words = [sys.executable, "-P", "-m", "agent", *given, "run"]
    os.execve(sys.executable, words, made)  # noqa: S606 - it is what this is for


def _kernel() -> str:
    try:
        return _KERNEL_BOOT.read_text().strip()
    except OSError:
        return ""


def _uptime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _say(text: str) -> None:
    sys.stderr.write(f"vestibule-launch: {text}\n")


if __name__ == "__main__":
    main()
