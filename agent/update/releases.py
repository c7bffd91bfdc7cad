"""The releases as a device knows them: python-tuf's client over files of its own, and the time.

It is loaded in the check's own process (`agent.update.trust`, which numbers the rules T1 to T3).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tuf.api import exceptions as tuf
from tuf.api.metadata import Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from agent.clock import BUILD_MS
from agent.identity import put
from agent.update.agreement import Approved, Fault, Refused
from agent.update.fetch import METADATA
from protocol.content import ContentError
from protocol.release import read_release, target_path

AHEAD_MS = 86_400_000
JUMP_MS = 550 * 86_400_000
MOST = {
    Root.type: 65_536,
    Timestamp.type: 8_192,
    Snapshot.type: 16_384,
    Targets.type: 2_097_152,  # four thousand releases
}
LIMITS = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=0,  # nobody approves but the targets' own keys
    root_max_length=MOST[Root.type],
    timestamp_max_length=MOST[Timestamp.type],
    snapshot_max_length=MOST[Snapshot.type],
    targets_max_length=MOST[Targets.type],
    prefix_targets_with_hash=False,
)


@dataclass
class Times:
    """What is known of the time: a clock, what is past, and the floor that is kept at `path`."""

    path: Path
    now_ms_given: int | None
    past_ms: int
    floor_ms: int = 0
    keys: list[str] = field(default_factory=list)

    def __init__(self, path: Path, *, now_ms: int | None, past_ms: int) -> None:
        self.path = path
        self.now_ms_given = now_ms
        self.past_ms = max(BUILD_MS, past_ms)
        self.floor_ms, self.keys = _kept(path)

    def own_ms(self) -> int:
        """Return what is known without the releases: no floor that somebody ran ahead with."""
        return max(self.past_ms, self.now_ms_given or 0)

    def now_ms(self) -> int:
        """Return what is taken for now."""
        return max(self.floor_ms, self.own_ms())  # T1

    def under(self, keys: list[str]) -> None:
        """The timestamp's keys are these."""
        if keys != self.keys:  # T3
            self.floor_ms, self.keys = 0, keys

    def judge(self, issued_ms: int) -> None:
        """Refuse a time that is too far ahead. Raises Refused."""
        ahead_ms = JUMP_MS if self.now_ms_given is None else AHEAD_MS  # T2
        most_ms = self.own_ms() + ahead_ms
        if issued_ms > most_ms:
            days = (issued_ms - most_ms) / 86_400_000
            said = f"the releases were signed {days:.1f} days later than can be true"
            raise Refused(Fault.TIME_JUMP, "", said)

    def heard(self, issued_ms: int) -> None:
        """Keep a time that was believed."""
        if issued_ms <= self.floor_ms and _kept(self.path)[1] == self.keys:
            return
        self.floor_ms = max(self.floor_ms, issued_ms)
        put(self.path, json.dumps({"floor_ms": self.floor_ms, "keys": self.keys}).encode())


def _kept(path: Path) -> tuple[int, list[str]]:
    try:
        data = json.loads(path.read_text())
        return int(data["floor_ms"]), [str(each) for each in data["keys"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # damaged: as after T3
        return 0, []
    except OSError as error:
        raise Refused(Fault.STORAGE, "", f"{path} can't be read: {error.strerror}") from error


class Client(Updater):
    """python-tuf's client, by our time, and on disk before it goes on."""

    def __init__(
        self, folder: Path, *, root: bytes, fetcher: FetcherInterface, times: Times
    ) -> None:
        self._times = times
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(str(folder), METADATA, fetcher=fetcher, config=LIMITS, bootstrap=root)
        self._refer()

    def _refer(self) -> None:
        now = datetime.fromtimestamp(self._times.now_ms() / 1000, UTC)
        self._trusted_set.reference_time = now

    def _load_timestamp(self) -> None:
        trusted = self._trusted_set
        self._times.under(sorted(trusted.root.roles[Timestamp.type].keyids))
        self._refer()
        super()._load_timestamp()
        self._times.heard(_issued_ms(trusted.timestamp))
        self._refer()
        if trusted.root.is_expired(trusted.reference_time):
            raise tuf.ExpiredMetadataError("Final root.json is expired")

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        """Fetch no more than we take of a role, however long the file before said that it is."""
        return super()._download_metadata(rolename, min(length, MOST[rolename]), version)

    def _persist_metadata(self, rolename: str, data: bytes) -> None:
        if rolename == Timestamp.type:
            self._times.judge(_issued_ms(self._trusted_set.timestamp))
        super()._persist_metadata(rolename, data)

    def _persist_file(self, filename: str, data: bytes) -> None:
        put(Path(filename), data)


def _issued_ms(timestamp: Timestamp) -> int:
    issued = timestamp.unrecognized_fields.get("issued")
    if type(issued) is not int or not 0 < issued < 1 << 48:
        raise tuf.RepositoryError("the timestamp does not say when it was signed")
    return issued


def approved(
    folder: Path, targets: Iterable[str], *, fetcher: FetcherInterface, times: Times
) -> dict[str, Approved]:
    """Bring the releases up to date, and return those of some targets that there are.

    Raises Refused.
    """
    try:
        root = (folder / "root.json").read_bytes()
    except OSError as error:
        said = "this device was given no root of releases: `vestibule-agent trust root.json`"
        raise Refused(Fault.NO_ROOT, "", said) from error
    try:
        client = Client(folder / "metadata", root=root, fetcher=fetcher, times=times)
        client.refresh()
        found = [client.get_targetinfo(each) for each in targets]
    except (tuf.RepositoryError, tuf.DownloadError) as error:
        raise Refused(_fault(error), "", str(error) or type(error).__name__) from error
    except OSError as error:
        raise Refused(Fault.STORAGE, "", f"{folder}: {error.strerror or error}") from error
    return {target.path: _approved(target) for target in found if target is not None}


def _approved(target: TargetFile) -> Approved:
    try:
        release = read_release(target.custom)
    except ContentError as error:
        raise Refused(Fault.BAD_RELEASE, "", f"{target.path}: {error}") from error
    digest = target.hashes.get("sha256", "")
    if target.path != target_path(release.component, release.version, digest):
        raise Refused(Fault.BAD_RELEASE, "", f"{target.path} is not the name of what it says")
    return Approved(target.length, digest, release)


def _fault(error: tuf.RepositoryError | tuf.DownloadError) -> Fault:
    """Return what a refusal of python-tuf's is; the narrowest first."""
    for kind, fault in (
        (tuf.SlowRetrievalError, Fault.SLOW),
        (tuf.DownloadLengthMismatchError, Fault.ENDLESS),
        (tuf.DownloadError, Fault.UNREACHABLE),
        (tuf.UnsignedMetadataError, Fault.UNSIGNED),
        (tuf.BadVersionNumberError, Fault.ROLLED_BACK),
        (tuf.ExpiredMetadataError, Fault.STALE),
        (tuf.LengthOrHashMismatchError, Fault.MIXED),
    ):
        if isinstance(error, kind):
            return fault
    return Fault.BAD_METADATA
