"""Slots: where a component lies that runs, and where the next one is put.

Below `<state>/update`, for each component: the folders `a` and `b`, and `current`, a link to the
one that is committed (none: `package`, what was installed). The slot that is not committed is the
spare one. The link is replaced by one rename, which is the commit. Decided here:

1. A slot is filled from an archive whose length and digest were seen to be the release's, over the
   same open file; anything else in it goes first, its marker before all.
2. Of an archive these are taken: files and folders, with short relative names of plain characters,
   none twice, in the folders that the component has; no link, no device, nothing that is longer
   than the archive promises. The rest is refused whole.
3. Each file is synced, then read again and held to what was written; the marker comes last.
4. Only a slot that is fit (`launch.fit`) and holds the release that is meant is armed or committed.
5. What a component has committed as its highest floor stands in `floors.json` beside the identity,
   and only rises. What is committed counts even where the file does not say it any more.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tarfile
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import structlog

from agent.identity import put
from agent.update import launch
from agent.update.launch import MARKER, PACKAGE, SLOTS, Record, UnfitError, sync
from agent.update.states import Failure
from protocol.assignment import Item
from protocol.content import ContentError
from protocol.release import COMPONENTS, version_key
from protocol.update import Class

FLOORS = "floors.json"
NAMEPLATE = "release.json"  # what an archive says of itself; believed is what was signed
MOST_FILES = 4_096
MOST_NAME = 200
PARTS = {"agent": ("agent", "protocol", NAMEPLATE), "kiosk": None}
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]*")
_FULL = (errno.ENOSPC, errno.EDQUOT)

log = structlog.get_logger(__name__)


class SlotError(Exception):
    """What can't be done with a slot; `failure` says of what kind that is."""

    def __init__(self, kind: Class, code: str, message: str) -> None:
        self.failure = Failure(kind, code)
        super().__init__(message)


def disk_error(error: OSError) -> SlotError:
    """Return what the disk refused: it is full, or it fails."""
    code = "disk_full" if error.errno in _FULL else "disk_error"
    return SlotError(Class.STORAGE, code, str(error))


@dataclass(frozen=True, slots=True)
class Held:
    """What a slot holds; version, digest and floor are empty of the package's."""

    slot: str
    version: str = ""
    sha256: str = ""
    floor: str = ""


class Slots(ABC):
    """What the update needs of a device's slots. Raises SlotError."""

    @abstractmethod
    def folder(self, component: str, slot: str) -> Path:
        """Return where a slot's files lie."""

    @abstractmethod
    def running(self) -> Held:
        """Return which slot of the agent this process runs from, as its own files say."""

    @abstractmethod
    def committed(self, component: str) -> Held:
        """Return what is committed."""

    @abstractmethod
    def fill(self, slot: str, item: Item, archive: Path) -> None:
        """Put a release into a slot, whole and synced (1, 2, 3). May be repeated."""

    @abstractmethod
    def check(self, slot: str, item: Item) -> None:
        """Hold a slot to the release that it is to hold (4)."""

    @abstractmethod
    def arm(self, record: Record) -> None:
        """Let the next start try a slot of the agent, once."""

    @abstractmethod
    def disarm(self) -> None:
        """Try nothing any more. May be repeated."""

    @abstractmethod
    def commit(self, component: str, slot: str) -> None:
        """Let a slot be the one that is started, from now on. May be repeated."""

    @abstractmethod
    def empty(self, component: str, slot: str) -> None:
        """Remove what a slot holds. May be repeated."""

    @abstractmethod
    def floors(self) -> dict[str, str]:
        """Return the highest floor that each component has committed."""

    @abstractmethod
    def raise_floor(self, component: str, floor: str) -> None:
        """Keep a floor, if it is higher than the one that is kept (5)."""

    @abstractmethod
    def mend(self, component: str) -> bool:
        """Go back to the package where what is committed is not fit; True if that was so."""

    def spare(self, component: str) -> str:
        """Return the slot to put the next one into."""
        return SLOTS[1] if self.committed(component).slot == SLOTS[0] else SLOTS[0]


class Directories(Slots):
    """Slots as folders of `root`; `floors` lies in `identity`."""

    def __init__(self, root: Path, *, identity: Path, code: Path | None = None) -> None:
        """`code`: the folder that this process's own packages lie in."""
        self.root = root
        self._floors = identity / FLOORS
        self._code = code or Path(__file__).resolve().parents[2]

    def folder(self, component: str, slot: str) -> Path:
        """Return where a slot lies."""
        return self.root / component / slot

    def running(self) -> Held:
        """Return the slot that our own code lies in."""
        for slot in SLOTS:
            if self._code == self.folder("agent", slot).resolve():
                return self._held("agent", slot)
        return Held(PACKAGE)

    def committed(self, component: str) -> Held:
        """Return what the link names."""
        slot = launch.committed(self.root, component)
        return Held(PACKAGE) if slot == PACKAGE else self._held(component, slot)

    def _held(self, component: str, slot: str) -> Held:
        try:
            found = launch.marker(self.folder(component, slot))
        except UnfitError:
            return Held(slot)
        return Held(slot, found.version, found.sha256, found.floor)

    def fill(self, slot: str, item: Item, archive: Path) -> None:
        """Fill a folder from an uncompressed tar."""
        folder = self.folder(item.component, slot)
        with suppress(SlotError):
            self.check(slot, item)
            return
        try:
            self.empty(item.component, slot)
            folder.mkdir(parents=True)
            with archive.open("rb") as file:
                _same(file, item)  # 1
                files = _unpack(file, folder, item)
            _sync_all(folder)
            said = {
                "component": item.component,
                "version": item.version,
                "floor": item.floor,
                "sha256": item.sha256,
                "files": files,
            }
            put(folder / MARKER, json.dumps(said, sort_keys=True).encode())
            sync(folder.parent)
        except OSError as error:
            raise disk_error(error) from error
        self.check(slot, item)  # 3

    def check(self, slot: str, item: Item) -> None:
        """Read the whole slot."""
        try:
            found = launch.fit(self.folder(item.component, slot), item.component)
        except UnfitError as error:
            raise SlotError(Class.STORAGE, "unfit_slot", str(error)) from error
        if (found.version, found.sha256, found.floor) != (item.version, item.sha256, item.floor):
            raise SlotError(
                Class.STORAGE,
                "unfit_slot",
                f"slot {slot} holds {found.version}, expected {item.version}",
            )

    def arm(self, record: Record) -> None:
        """Write the launcher's record."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            launch.write_record(self.root, record)
        except OSError as error:
            raise disk_error(error) from error

    def disarm(self) -> None:
        """Remove the launcher's record."""
        try:
            if (self.root / launch.RECORD).exists():
                (self.root / launch.RECORD).unlink(missing_ok=True)
                sync(self.root)
        except OSError as error:
            raise disk_error(error) from error

    def commit(self, component: str, slot: str) -> None:
        """Replace the link, or remove it: the package's is none."""
        try:
            if slot != PACKAGE:
                found = launch.fit(self.folder(component, slot), component)  # 4
                if component == "agent":
                    launch.note_before(self.root, slot, found.sha256)
            launch.relink(self.root / component, slot)
        except UnfitError as error:
            raise SlotError(Class.STORAGE, "unfit_slot", str(error)) from error
        except OSError as error:
            raise disk_error(error) from error

    def empty(self, component: str, slot: str) -> None:
        """Remove the folder, its marker first: half of it is never taken for a whole."""
        folder = self.folder(component, slot)
        if launch.committed(self.root, component) == slot:
            raise SlotError(Class.INTERNAL, "committed_slot", f"slot {slot} is the committed one")
        try:
            if folder.is_symlink():
                folder.unlink()
            if folder.exists():
                (folder / MARKER).unlink(missing_ok=True)
                sync(folder)
                shutil.rmtree(folder)
        except OSError as error:
            raise disk_error(error) from error

    def mend(self, component: str) -> bool:
        """Read the committed slot; of the agent's the launcher does."""
        slot = launch.committed(self.root, component)
        try:
            if slot != PACKAGE:
                launch.fit(self.folder(component, slot), component)
        except UnfitError as error:
            log.error("going back to what was installed", component=component, error=str(error))
            self.commit(component, PACKAGE)
            return True
        return False

    def floors(self) -> dict[str, str]:
        """Return the file's floors, or those of what is committed, whichever is higher."""
        found: dict[str, str] = {}
        with suppress(OSError, ValueError, TypeError, RecursionError):
            said = json.loads(self._floors.read_bytes())
            found = {name: str(said[name]) for name in COMPONENTS if name in said}
        return {
            name: highest(found.get(name, ""), self.committed(name).floor) for name in COMPONENTS
        }

    def raise_floor(self, component: str, floor: str) -> None:
        """Replace the file, if that raises it."""
        now = self.floors()
        now[component] = highest(now[component], floor)
        try:
            put(self._floors, json.dumps(now, sort_keys=True).encode())
        except OSError as error:
            raise disk_error(error) from error


def highest(one: str, other: str) -> str:
    """Return the higher of two versions; "" if neither is one."""
    found = max(one, other, key=_key)
    return found if _key(found) else ""


def _key(version: str) -> tuple[int, ...]:
    try:
        return version_key(version)
    except ContentError:
        return ()


# -- archives --------------------------------------------------------------------------------------


def _same(file: BinaryIO, item: Item) -> None:
    """Hold an open archive to its release, and go back to its beginning. SlotError, OSError."""
    digest, length = hashlib.sha256(), 0
    while block := file.read(1 << 18):
        digest.update(block)
        length += len(block)
        if length > item.length:
            break
    if length != item.length:
        raise SlotError(
            Class.TRUST, "wrong_length", f"{length} bytes or more, expected {item.length}"
        )
    if digest.hexdigest() != item.sha256:
        raise SlotError(
            Class.TRUST, "wrong_digest", f"{digest.hexdigest()}, expected {item.sha256}"
        )
    file.seek(0)


def _unpack(file: BinaryIO, folder: Path, item: Item) -> dict[str, tuple[int, str]]:
    """Write the archive's files, and return what each is (2). SlotError, OSError."""
    files: dict[str, tuple[int, str]] = {}
    seen: set[str] = set()
    promised = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = _name(member, item, seen)
                if member.isdir():
                    continue
                promised += member.size
                if promised > item.length:
                    raise _unfit("it unpacks to more than its own length")
                source = archive.extractfile(member)
                if source is None:
                    raise _unfit(f"{member.name!r} has no content")
                files[name] = _write(source, folder / name, member.size)
    except (tarfile.TarError, ValueError, LookupError, EOFError) as error:
        raise _unfit(str(error)) from error
    if launch.ENTRY[item.component] not in files:
        raise _unfit(f"{launch.ENTRY[item.component]} is missing")
    return files


def _name(member: tarfile.TarInfo, item: Item, seen: set[str]) -> str:
    """Return a member's name, if it may be one (2)."""
    name = member.name.removeprefix("./").rstrip("/")
    plain_type = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
    if not plain_type or member.issparse():
        raise _unfit(f"{name[:80]!r} is neither a file nor a folder")
    parts = name.split("/")
    plain = len(name) <= MOST_NAME and all(_PART.fullmatch(part) for part in parts)
    if not plain or member.name.startswith("/"):
        raise _unfit(f"{member.name[:80]!r} is no name for a part of a release")
    allowed = PARTS[item.component]
    if allowed is not None and parts[0] not in allowed:
        raise _unfit(f"{name!r} lies in none of {', '.join(allowed)}")
    if name.casefold() in seen or name == MARKER or len(seen) >= MOST_FILES:
        raise _unfit(f"{name!r} is there twice, is ours to write, or is one too many")
    if not 0 <= member.size <= item.length or (member.isdir() and member.size):
        raise _unfit(f"{name!r} is said to have {member.size} bytes")
    seen.add(name.casefold())
    return name


def _write(source: IO[bytes], path: Path, size: int) -> tuple[int, str]:
    """Write one file, synced; its length and digest."""
    digest, written = hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        while block := source.read(1 << 16):
            digest.update(block)
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if written != size:
        raise _unfit(f"{path.name!r} ends after {written} of {size} bytes")
    return written, digest.hexdigest()


def _sync_all(folder: Path) -> None:
    for place, _, _ in os.walk(folder):
        sync(Path(place))


def _unfit(message: str) -> SlotError:
    return SlotError(Class.TRUST, "unfit_archive", message)
