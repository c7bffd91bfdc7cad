"""The releases' metadata on the server (TUF): what people signed, and what the server adds to it.

    metadata/   N.root.json, N.targets.json (signed by people, offline), N.snapshot.json,
                timestamp.json (signed here, by the keys in `keys/`)
    artifacts/  the releases' bytes (`artifacts`)

Decided here:
- Nothing takes effect before python-tuf's own client has taken it: one that is new, and one that
  holds all that is served now. So nothing is published that a device would refuse.
- A file's version is written once. What is served changes with `timestamp.json`, which is replaced
  last: whoever is cut off before has changed nothing.
- Snapshot and timestamp say only which of the files signed by people are the newest, and that they
  were so a short while ago. `issued` in the timestamp is when it was signed, for devices that have
  no clock.
- The versions of both are seconds since 1970, or one more than before: files that were lost or
  restored from a backup are followed by newer ones all the same. Of what the newest root's keys
  did not sign, the version counts for nothing: so how far somebody ran ahead who had the keys of
  before is forgotten here, as devices forget it, once a root has named others.
"""

import fcntl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from protocol.content import ContentError
from protocol.release import MAX_LENGTH, Release, read_release, target_path
from server.errors import RefusedError
from server.firmware.artifacts import Store, sync
from server.firmware.keys import demand_genuine, make_key, read_signer
from server.pki.files import write

SNAPSHOT_LIFE = timedelta(days=14)
TIMESTAMP_LIFE = timedelta(days=3)  # how long whoever withholds news can pass for us
TIMESTAMP_AGE = timedelta(hours=1)
MAX_METADATA = 2_097_152
KEPT_SNAPSHOTS = 8
ONLINE = (Snapshot.type, Timestamp.type)
ROLES = (Root.type, Targets.type, *ONLINE)

S = TypeVar("S", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class Target:
    """A release, and its bytes."""

    path: str
    length: int
    sha256: str
    release: Release


@dataclass(frozen=True, slots=True)
class Published:
    """What is approved now, and which versions say so."""

    targets: tuple[Target, ...]
    versions: Mapping[str, int]


class Repository:
    """The files below one folder. Each act holds a lock that other processes heed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = folder / "metadata"
        self.keys = folder / "keys"
        self.store = Store(folder / "artifacts")

    def make_keys(self) -> list[Path]:
        """Make the server's two keys; returns the public files, for who makes a root."""
        self.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = []
        for role in ONLINE:
            number = len(list(self.keys.glob(f"{role}-*.pem"))) + 1
            path = self.keys / f"{role}-{number}.pem"
            make_key(path, password=None)
            made.append(path.with_suffix(".pub"))
        return made

    def root(self) -> Metadata[Root] | None:
        """Return the newest root; None before the first publication."""
        numbers = self._root_numbers()
        return self._read(f"{numbers[-1]}.root.json", Root) if numbers else None

    def first_trust(self) -> bytes | None:
        """Return the newest root as it is served: what a device begins with that enrols now."""
        numbers = self._root_numbers()
        return (self.metadata / f"{numbers[-1]}.root.json").read_bytes() if numbers else None

    def targets(self) -> tuple[Target, ...]:
        """Return what is approved now."""
        timestamp = self._present()
        if timestamp is None:
            return ()
        snapshot = self._read(f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)
        number = snapshot.signed.meta["targets.json"].version
        return read_targets(self._read(f"{number}.targets.json", Targets).signed)

    def publish(
        self,
        roots: Mapping[int, bytes],
        targets: bytes,
        *,
        artifact: Callable[[str], Path | None],
        now: datetime,
    ) -> Published:
        """Take what people signed into effect: all of it, or nothing. Raises RefusedError.

        `artifact` gives the file with a digest, if it came along. The same again changes nothing.
        """
        with self._held():
            chain = self._chain(roots)
            root = _parsed(chain[max(chain)], Root, f"{max(chain)}.root.json")
            for number in roots:
                demand_genuine(_parsed(roots[number], Root, f"{number}.root.json").signed)
            signed = _parsed(targets, Targets, "targets.json")
            approved = read_targets(signed.signed)
            if self._stands(chain, signed, targets):
                return Published(approved, _versions(self._served()))
            files = {f"{number}.root.json": content for number, content in chain.items()}
            files[f"{signed.signed.version}.targets.json"] = targets
            files |= self._online(root, signed.signed.version, targets, now=now)
            self._tried(files, now=now)
            self._keep(approved, artifact)
            self._write(files)
            return Published(approved, _versions(files))

    def resign(self, *, now: datetime) -> list[str]:
        """Sign what is due: returns which roles. Raises RefusedError if it can't."""
        with self._held():
            root, present = self.root(), self._present()
            if root is None or present is None:
                return []
            number = present.signed.snapshot_meta.version
            snapshot = self._read(f"{number}.snapshot.json", Snapshot)
            known = snapshot.signed.meta["targets.json"].version
            valid = _by(root.signed, snapshot) and _by(root.signed, present)
            if valid and snapshot.signed.expires - now >= SNAPSHOT_LIFE / 2:
                if now - _issued(present.signed) < TIMESTAMP_AGE:
                    return []
                content = (self.metadata / f"{number}.snapshot.json").read_bytes()
                files = self._timestamp(root, number, content, now=now)
            else:
                targets = (self.metadata / f"{known}.targets.json").read_bytes()
                files = self._online(root, known, targets, now=now)
            self._tried(self._served() | files, now=now)
            self._write(files)
            return [role for role in ONLINE if any(role in name for name in files)]

    def left(self, *, now: datetime) -> dict[str, timedelta]:
        """Return for how long what is served of each role is good; nothing before the first."""
        root, timestamp = self.root(), self._present()
        if root is None or timestamp is None:
            return {}
        snapshot = self._read(f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)
        number = snapshot.signed.meta["targets.json"].version
        targets = self._read(f"{number}.targets.json", Targets)
        parts: tuple[Signed, ...] = (root.signed, targets.signed, snapshot.signed, timestamp.signed)
        return {each.type: each.expires - now for each in parts}

    def demand_keys(self) -> None:
        """Raise RefusedError unless both keys are here that the root names for the server."""
        root = self.root()
        for role in ONLINE if root is not None else ():
            assert root is not None
            self._signer(root.signed, role)

    # -- what is signed here -------------------------------------------------------------------

    def _online(
        self, root: Metadata[Root], number: int, targets: bytes, *, now: datetime
    ) -> dict[str, bytes]:
        """Return a snapshot that names these targets, and its timestamp."""
        present = self._present()
        before = 0
        if present is not None and _by(root.signed, present):
            before = present.signed.snapshot_meta.version
        version = max(before + 1, int(now.timestamp()))
        snapshot = Metadata(
            Snapshot(
                version=version,
                expires=_second(now + SNAPSHOT_LIFE),
                meta={"targets.json": MetaFile.from_data(number, targets, ["sha256"])},
            )
        )
        snapshot.sign(self._signer(root.signed, Snapshot.type))
        content = snapshot.to_bytes()
        files = {f"{version}.snapshot.json": content}
        return files | self._timestamp(root, version, content, now=now)

    def _timestamp(
        self, root: Metadata[Root], number: int, snapshot: bytes, *, now: datetime
    ) -> dict[str, bytes]:
        present = self._present()
        before = 0
        if present is not None and _by(root.signed, present):
            before = present.signed.version
        timestamp = Metadata(
            Timestamp(
                version=max(before + 1, int(now.timestamp())),
                expires=_second(now + TIMESTAMP_LIFE),
                snapshot_meta=MetaFile.from_data(number, snapshot, ["sha256"]),
                unrecognized_fields={"issued": round(now.timestamp() * 1000)},
            )
        )
        timestamp.sign(self._signer(root.signed, Timestamp.type))
        return {"timestamp.json": timestamp.to_bytes()}

    def _signer(self, root: Root, role: str) -> CryptoSigner:
        for path in sorted(self.keys.glob("*.pem")):
            signer = read_signer(path, password=None)
            if signer.public_key.keyid in root.roles[role].keyids:
                return signer
        raise RefusedError(
            "release_key_missing",
            f"none of the keys in {self.keys} is the root's for {role}: make some with"
            " `vestibule release key --online` and name them in a root",
        )

    # -- what comes in -------------------------------------------------------------------------

    def _chain(self, roots: Mapping[int, bytes]) -> dict[int, bytes]:
        """Return every root from the first, ours and those that came."""
        ours = {
            number: (self.metadata / f"{number}.root.json").read_bytes()
            for number in self._root_numbers()
        }
        for number, content in roots.items():
            if number in ours and ours[number] != content:
                raise RefusedError(
                    "release_conflict", f"root {number} is another than the one that is served"
                )
        chain = {**ours, **roots}
        if sorted(chain) != list(range(1, len(chain) + 1)):
            raise RefusedError("release_conflict", f"there is a gap in the roots {sorted(chain)}")
        return chain

    def _stands(
        self, chain: Mapping[int, bytes], signed: Metadata[Targets], content: bytes
    ) -> bool:
        """True if all of this is served already. Raises RefusedError if something newer is."""
        present = self._present()
        if present is None:
            return False
        snapshot = self._read(f"{present.signed.snapshot_meta.version}.snapshot.json", Snapshot)
        number = snapshot.signed.meta["targets.json"].version
        if signed.signed.version < number:
            said = f"targets {signed.signed.version} is older than {number}, which is served"
            raise RefusedError("release_conflict", said)
        if signed.signed.version > number or len(chain) > len(self._root_numbers()):
            return False
        ours = (self.metadata / f"{number}.targets.json").read_bytes()
        if _parsed(ours, Targets, "targets.json").signed != signed.signed:
            said = f"targets {number} is another than the one that is served"
            raise RefusedError("release_conflict", said)
        return ours == content

    def _keep(self, approved: tuple[Target, ...], artifact: Callable[[str], Path | None]) -> None:
        for target in approved:
            if self.store.find(target.sha256) is not None:
                continue
            path = artifact(target.sha256)
            if path is None:
                said = f"the bytes of {target.path} are neither here nor did they come along"
                raise RefusedError("release_bytes_missing", said)
            with path.open("rb") as file:
                self.store.put(file, sha256=target.sha256, length=target.length)

    def _tried(self, files: Mapping[str, bytes], *, now: datetime) -> None:
        """Let a device that is new, and one that has all that is served, take these files."""
        held = self._served() if self._present() is not None else None
        for before in (None, held) if held else (None,):
            with tempfile.TemporaryDirectory(prefix="vestibule-") as folder:
                try:
                    client = _Client(Path(folder), before, files["1.root.json"], files, now)
                    client.refresh()
                except (RepositoryError, DownloadError) as error:
                    who = "a new device" if before is None else "a device in the field"
                    said = f"{who} would refuse this: {str(error) or type(error).__name__}"
                    raise RefusedError("release_refused", said) from error

    # -- files ---------------------------------------------------------------------------------

    def _present(self) -> Metadata[Timestamp] | None:
        if not (self.metadata / "timestamp.json").exists():
            return None
        return self._read("timestamp.json", Timestamp)

    def _served(self) -> dict[str, bytes]:
        """Return the files that a device which asks now would get."""
        timestamp = self._present()
        assert timestamp is not None
        number = timestamp.signed.snapshot_meta.version
        snapshot = self._read(f"{number}.snapshot.json", Snapshot)
        names = [f"{each}.root.json" for each in self._root_numbers()]
        names += [f"{number}.snapshot.json", "timestamp.json"]
        names.append(f"{snapshot.signed.meta['targets.json'].version}.targets.json")
        return {name: (self.metadata / name).read_bytes() for name in names}

    def _root_numbers(self) -> list[int]:
        found = self.metadata.glob("*.root.json")
        return sorted(int(path.name.split(".")[0]) for path in found)

    def _read(self, name: str, kind: type[S]) -> Metadata[S]:
        try:
            content = (self.metadata / name).read_bytes()
        except OSError as error:
            said = f"{self.metadata / name}: {error.strerror or error}"
            raise RefusedError("release_damaged", said) from error
        return _parsed(content, kind, name)

    def _write(self, files: Mapping[str, bytes]) -> None:
        """Write what is new; the timestamp, by which it takes effect, last."""
        self.metadata.mkdir(parents=True, exist_ok=True)
        for name in sorted(files, key=lambda name: (name == "timestamp.json", name)):
            path = self.metadata / name
            if not path.exists() or path.read_bytes() != files[name]:
                write(path, files[name])
        sync(self.metadata)
        snapshots = self.metadata.glob("*.snapshot.json")
        for old in sorted(snapshots, key=lambda path: path.stat().st_mtime_ns)[:-KEPT_SNAPSHOTS]:
            old.unlink()

    @contextmanager
    def _held(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def read_targets(targets: Targets) -> tuple[Target, ...]:
    """Return the releases that targets approve. Raises RefusedError if one is none of ours."""
    found = []
    for path, target in sorted(targets.targets.items()):
        try:
            release = read_release(target.custom)
        except ContentError as error:
            raise RefusedError("release_malformed", f"{path}: {error}") from error
        sha256 = target.hashes.get("sha256", "")
        if path != target_path(release.component, release.version, sha256):
            raise RefusedError("release_malformed", f"{path} is not the name of what it says")
        if not 0 < target.length <= MAX_LENGTH:
            raise RefusedError("release_malformed", f"{path} has {target.length} bytes")
        found.append(Target(path, target.length, sha256, release))
    if len({(each.release.component, each.release.version) for each in found}) != len(found):
        raise RefusedError("release_malformed", "a version stands there twice, with other bytes")
    if targets.delegations is not None:
        raise RefusedError("release_malformed", "targets delegate to nobody")
    return tuple(found)


def _parsed(content: bytes, kind: type[S], name: str) -> Metadata[S]:
    if len(content) > MAX_METADATA:
        raise RefusedError("release_damaged", f"{name} has {len(content)} bytes")
    try:
        metadata: Metadata[S] = Metadata.from_bytes(content)
    except RepositoryError as error:
        raise RefusedError("release_damaged", f"{name} cannot be read: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise RefusedError("release_damaged", f"{name} is no {kind.type}")
    return metadata


def _by(root: Root, metadata: Metadata[S]) -> bool:
    """True if enough of the keys that a root names for its role signed this."""
    payload, signatures = metadata.signed_bytes, metadata.signatures
    return root.get_verification_result(metadata.signed.type, payload, signatures).verified


def _issued(timestamp: Timestamp) -> datetime:
    issued = timestamp.unrecognized_fields.get("issued")
    return datetime.fromtimestamp((issued if type(issued) is int else 0) / 1000, UTC)


def _second(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _versions(files: Mapping[str, bytes]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, content in files.items():
        role = name.split(".")[-2]
        found[role] = max(Metadata.from_bytes(content).signed.version, found.get(role, 0))
    return found


class _Files(FetcherInterface):
    """Serves files from memory, as our listener would."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name not in self._files:
            raise DownloadHTTPError(f"{name} is not there", 404)
        yield self._files[name]


class _Client(Updater):
    """A device's client, by our time, that may hold what is served already."""

    def __init__(
        self,
        folder: Path,
        held: Mapping[str, bytes] | None,
        root: bytes,
        files: Mapping[str, bytes],
        now: datetime,
    ) -> None:
        (folder / "root_history").mkdir()
        for name, content in (held or {}).items():
            role = name.split(".")[-2]
            into = f"root_history/{name}" if role == Root.type else f"{role}.json"
            (folder / into).write_bytes(content)
        config = UpdaterConfig(prefix_targets_with_hash=False, max_delegations=0)
        super().__init__(
            str(folder), "metadata", fetcher=_Files(files), config=config, bootstrap=root
        )
        self._trusted_set.reference_time = now
