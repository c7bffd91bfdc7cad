"""The folder in which releases are approved: what people sign, before the server has it.

    metadata/   N.root.json, N.targets.json: every version that there was; the newest may be a
                draft, signed by too few
    artifacts/  the bytes of releases, `<sha256>.tar`

It travels between the people who sign, on a stick or in a repository; no secret is in it. Nothing
here needs the server or the network.

Decided here:
- Each person signs once, one after the other; a draft that is changed loses its signatures.
- What is signed is said in words made from the signed bytes themselves, next to what was approved
  before; and the artifact's bytes, where they are here, are hashed anew.
"""

import hashlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Role, Root, Snapshot, TargetFile, Targets, Timestamp

from ops.archive import Archive, inspect
from protocol.content import ContentError
from protocol.release import Release, read_release, target_path, version_key
from server.errors import ConflictError, NotFoundError, RefusedError
from server.firmware.keys import demand_genuine, name_of
from server.firmware.repository import ROLES, Target, read_targets
from server.pki.files import write

ROOT_LIFE = timedelta(days=730)
TARGETS_LIFE = timedelta(days=365)
ONLINE = "online"
"""Snapshot and timestamp: their keys are changed together, or devices would not forget versions."""

S = TypeVar("S", Root, Targets)
Draft = Metadata[Root] | Metadata[Targets]


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the newest version of a role is: who signed it, and how many more must."""

    role: str
    version: int
    signed: tuple[str, ...]
    may_sign: tuple[str, ...]
    missing: int

    @property
    def complete(self) -> bool:
        """True if enough have signed."""
        return self.missing == 0


class Folder:
    """What is approved, and what is to be. Raises RefusedError where files make no sense."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = path / "metadata"
        self.artifacts = path / "artifacts"

    # -- what there is -------------------------------------------------------------------------

    def root(self) -> Metadata[Root]:
        """Return the newest root, signed or not. Raises NotFoundError."""
        return self._newest(Root)

    def targets(self) -> Metadata[Targets]:
        """Return the newest targets, signed or not. Raises NotFoundError."""
        return self._newest(Targets)

    def standings(self) -> tuple[Standing, Standing]:
        """Return how far root and targets are."""
        return self._root_standing(), self._targets_standing(self.targets())

    def approved(self) -> tuple[Target, ...]:
        """Return the releases of the newest targets that enough have signed.

        Enough by a root that itself is signed by enough: a draft makes nobody an approver.
        """
        roots = self._complete_roots()
        for number in reversed(self._numbers(Targets)):
            found = self._read(number, Targets)
            payload, signatures = found.signed_bytes, found.signatures
            for root in roots:
                if root.get_verification_result(Targets.type, payload, signatures).verified:
                    return read_targets(found.signed)
        return ()

    def roots(self) -> dict[int, bytes]:
        """Return every root's file."""
        return {n: self._path(n, Root).read_bytes() for n in self._numbers(Root)}

    def targets_file(self) -> bytes:
        """Return the newest targets' file."""
        return self._path(self._numbers(Targets)[-1], Targets).read_bytes()

    def artifact(self, sha256: str) -> Path | None:
        """Return the file with the bytes of a release, if it is here."""
        path = self.artifacts / f"{sha256}.tar"
        return path if path.is_file() else None

    # -- what is drafted -----------------------------------------------------------------------

    def begin(
        self,
        *,
        root: Sequence[SSlibKey],
        targets: Sequence[SSlibKey],
        snapshot: SSlibKey,
        timestamp: SSlibKey,
        threshold: int,
        now: datetime,
    ) -> None:
        """Draft the first root and empty targets. Raises ConflictError, RefusedError."""
        if self.metadata.exists() and any(self.metadata.iterdir()):
            raise ConflictError(f"{self.path} holds releases already")
        first = Root(version=1, expires=_second(now + ROOT_LIFE), consistent_snapshot=True)
        for role, keys, needed in (
            (Root.type, root, threshold),
            (Targets.type, targets, threshold),
            (Snapshot.type, [snapshot], 1),
            (Timestamp.type, [timestamp], 1),
        ):
            first.roles[role] = Role([], needed)
            for key in keys:
                first.add_key(key, role)
        _demand_sound(first)
        self.metadata.mkdir(parents=True, exist_ok=True)
        self.artifacts.mkdir(exist_ok=True)
        self._write(Metadata(first))
        self._write(Metadata(Targets(version=1, expires=_second(now + TARGETS_LIFE))))

    def add(self, file: Path, release: Release, *, now: datetime) -> Target:
        """Draft the approval of one more release. Raises RefusedError, ConflictError."""
        archive = inspect(file)
        _demand_same(archive, release)
        path = target_path(release.component, release.version, archive.sha256)
        draft = self._next_targets(now=now)
        for each in read_targets(draft.signed):
            if (each.release.component, each.release.version) == (
                archive.component,
                archive.version,
            ):
                said = f"{release.component} {release.version} stands there already: {each.path}"
                raise ConflictError(said)
        draft.signed.targets[path] = TargetFile(
            archive.length, {"sha256": archive.sha256}, path, {"custom": release.custom()}
        )
        self.artifacts.mkdir(exist_ok=True)
        kept = self.artifacts / f"{archive.sha256}.tar"
        if not kept.exists():
            shutil.copyfile(file, kept)
        self._write(draft)
        return Target(path, archive.length, archive.sha256, release)

    def remove(self, component: str, version: str, *, now: datetime) -> Target:
        """Draft that a release is approved no longer. Raises NotFoundError."""
        draft = self._next_targets(now=now)
        for each in read_targets(draft.signed):
            if (each.release.component, each.release.version) == (component, version):
                del draft.signed.targets[each.path]
                self._write(draft)
                return each
        raise NotFoundError(f"no release {component} {version} in {self.path}")

    def rotate(
        self,
        role: str,
        *,
        add: Sequence[SSlibKey],
        remove: Iterable[str],
        threshold: int | None,
        now: datetime,
    ) -> None:
        """Draft a root that names other keys for a role. Raises NotFoundError, RefusedError.

        `remove`: names or the first digits of key ids. `role` may be `online`: with two keys,
        snapshot's and timestamp's, which take the place of those before.
        """
        draft = self._next_root(now=now)
        after = self._next_targets(now=now)
        if role == ONLINE:
            if len(add) != 2:
                raise RefusedError("release_keys", "name two new keys: snapshot's, timestamp's")
            for each, key in zip((Snapshot.type, Timestamp.type), add, strict=True):
                for keyid in list(draft.signed.roles[each].keyids):
                    draft.signed.revoke_key(keyid, each)
                draft.signed.add_key(key, each)
        else:
            for name in remove:
                draft.signed.revoke_key(_called(draft.signed, name, role), role)
            for key in add:
                draft.signed.add_key(key, role)
            if threshold is not None:
                draft.signed.roles[role].threshold = threshold
        _demand_sound(draft.signed)
        self._write(draft)
        if not self._targets_standing(self.targets()).complete:
            self._write(after)

    def renew(self, *, now: datetime) -> None:
        """Draft root and targets that say the same and are good for longer."""
        self._write(self._next_targets(now=now))
        self._write(self._next_root(now=now))

    # -- what is signed ------------------------------------------------------------------------

    def to_sign(self, keyid: str) -> list[Draft]:
        """Return the drafts that a key may sign and has not. Raises RefusedError."""
        root, targets = self.root(), self.targets()
        found: list[Draft] = []
        mine = keyid in self._root_keys(root.signed) and keyid not in root.signatures
        if mine and not self._root_standing().complete:
            found.append(root)
        mine = keyid in root.signed.roles[Targets.type].keyids and keyid not in targets.signatures
        if mine and not self._targets_standing(targets).complete:
            self._demand_bytes(targets.signed)
            found.append(targets)
        return found

    def sign(self, drafts: Iterable[Draft], by: CryptoSigner) -> None:
        """Add a person's signature to drafts."""
        for draft in drafts:
            draft.sign(by, append=True)
            self._write(draft)

    def words(self, draft: Draft) -> list[str]:
        """Say what somebody approves who signs this draft."""
        if isinstance(draft.signed, Root):
            return root_words(self._before(draft.signed), draft.signed)
        after = read_targets(draft.signed)
        absent = {each.path for each in after if self.artifact(each.sha256) is None}
        return targets_words(self.approved(), after, draft.signed, absent=absent)

    # -- files ---------------------------------------------------------------------------------

    def _before(self, root: Root) -> Root | None:
        return None if root.version == 1 else self._read(root.version - 1, Root).signed

    def _complete_roots(self) -> list[Root]:
        """Return the newest first; none from the first on that too few have signed."""
        found: list[Root] = []
        for number in self._numbers(Root):
            root = self._read(number, Root)
            payload, signatures = root.signed_bytes, root.signatures
            before = found[0] if found else None
            if not root.signed.get_root_verification_result(before, payload, signatures).verified:
                break
            found.insert(0, root.signed)
        return found

    def _root_keys(self, root: Root) -> set[str]:
        """Return who may sign a root: its own keys, and those of the one before."""
        keys = set(root.roles[Root.type].keyids)
        before = self._before(root)
        return keys | set(before.roles[Root.type].keyids) if before else keys

    def _root_standing(self) -> Standing:
        root = self.root()
        payload, signatures = root.signed_bytes, root.signatures
        before = self._before(root.signed)
        found = root.signed.get_root_verification_result(before, payload, signatures)
        missing = max(found.first.missing, found.second.missing)
        version = root.signed.version
        return Standing(Root.type, version, _names(found.signed), _names(found.unsigned), missing)

    def _targets_standing(self, targets: Metadata[Targets]) -> Standing:
        payload, signatures = targets.signed_bytes, targets.signatures
        root = self.root().signed
        found = root.get_verification_result(Targets.type, payload, signatures)
        return Standing(
            Targets.type,
            targets.signed.version,
            _names(found.signed),
            _names(found.unsigned),
            found.missing,
        )

    def _demand_bytes(self, targets: Targets) -> None:
        for each in read_targets(targets):
            path = self.artifact(each.sha256)
            if path is None:
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != each.sha256 or path.stat().st_size != each.length:
                raise RefusedError("release_bytes", f"{path} is not what the draft says of it")
            _demand_same(inspect(path), each.release)

    def _next_root(self, *, now: datetime) -> Metadata[Root]:
        """Return an unsigned root to be changed: the draft there is, or the version after."""
        draft = Metadata(deepcopy(self.root().signed))
        draft.signed.version += self._root_standing().complete
        draft.signed.expires = _second(now + ROOT_LIFE)
        return draft

    def _next_targets(self, *, now: datetime) -> Metadata[Targets]:
        targets = self.targets()
        draft = Metadata(deepcopy(targets.signed))
        draft.signed.version += self._targets_standing(targets).complete
        draft.signed.expires = _second(now + TARGETS_LIFE)
        return draft

    def _newest(self, kind: type[S]) -> Metadata[S]:
        numbers = self._numbers(kind)
        if not numbers:
            raise NotFoundError(f"{self.path} holds no releases: `vestibule release init` first")
        return self._read(numbers[-1], kind)

    def _numbers(self, kind: type[S]) -> list[int]:
        found = self.metadata.glob(f"*.{kind.type}.json")
        return sorted(int(path.name.split(".")[0]) for path in found)

    def _path(self, number: int, kind: type[Root] | type[Targets]) -> Path:
        return self.metadata / f"{number}.{kind.type}.json"

    def _read(self, number: int, kind: type[S]) -> Metadata[S]:
        path = self._path(number, kind)
        try:
            found: Metadata[S] = Metadata.from_bytes(path.read_bytes())
        except (OSError, RepositoryError) as error:
            raise RefusedError("release_damaged", f"{path} cannot be read: {error}") from error
        if not isinstance(found.signed, kind) or found.signed.version != number:
            raise RefusedError("release_damaged", f"{path} is not what its name says")
        if isinstance(found.signed, Root):
            demand_genuine(found.signed)
        return found

    def _write(self, metadata: Draft) -> None:
        write(self._path(metadata.signed.version, type(metadata.signed)), metadata.to_bytes())


# -- words -------------------------------------------------------------------------------------


def root_words(before: Root | None, root: Root) -> list[str]:
    """Say what a root names, and what it changes."""
    lines = [f"root {root.version}, good until {root.expires:%Y-%m-%d}:"]
    for role in ROLES:
        named = root.roles[role]
        who = ", ".join(name_of(root.keys[each]) for each in named.keyids)
        lines.append(f"  {role}: {named.threshold} of {who}")
        for sign, keyid, keys in _changed(before, root, role):
            lines.append(f"    {sign} {name_of(keys[keyid])} ({keyid[:16]})")
    return lines


def _changed(
    before: Root | None, root: Root, role: str
) -> Iterator[tuple[str, str, dict[str, Key]]]:
    new = root.roles[role].keyids
    old = before.roles[role].keyids if before is not None else []
    for keyid in new:
        if keyid not in old:
            yield "named anew:", keyid, root.keys
    for keyid in old:
        if before is not None and keyid not in new:
            yield "no longer:", keyid, before.keys


def targets_words(
    before: Sequence[Target],
    after: Sequence[Target],
    targets: Targets,
    *,
    absent: Collection[str] = (),
) -> list[str]:
    """Say what targets approve that was not, and what they approve no longer."""
    lines = [f"targets {targets.version}, good until {targets.expires:%Y-%m-%d}:"]
    known, now = {each.path for each in before}, {each.path for each in after}
    for target in after:
        if target.path not in known:
            lines += _approval(target, before)
            if target.path in absent:
                lines.append("    ITS BYTES ARE NOT HERE: who signs approves the digest alone")
    for target in before:
        if target.path not in now:
            release = target.release
            lines.append(f"  WITHDRAW {release.component} {release.version}: no device takes it")
    same = [f"{e.release.component} {e.release.version}" for e in after if e.path in known]
    lines.append(f"  as before: {', '.join(same) or 'nothing'}")
    return lines


def _approval(target: Target, before: Sequence[Target]) -> Iterator[str]:
    release = target.release
    yield f"  APPROVE {release.component} {release.version} for {', '.join(release.hardware)}"
    yield f"    {target.length:,} bytes, SHA-256 {target.sha256}"
    if release.notes:
        yield f"    {release.notes}"
    if release.requires:
        yield f"    it is installed from {release.requires} on"
    floors = [e.release.floor for e in before if e.release.component == release.component]
    highest = max(floors, key=version_key, default="0.0.0")
    if version_key(release.floor) > version_key(highest):
        yield f"    IT RAISES THE FLOOR from {highest} to {release.floor}: a device that has"
        yield f"    confirmed it cannot be reversed below {release.floor}, by anybody, ever"
    else:
        yield f"    floor {release.floor}: it can be reversed to any release from there on"


# -- rules -------------------------------------------------------------------------------------


def _demand_same(archive: Archive, release: Release) -> None:
    try:
        read_release(release.custom())
    except ContentError as error:
        raise RefusedError("release_malformed", str(error)) from error
    if (archive.component, archive.version) != (release.component, release.version):
        said = f"the file is {archive.component} {archive.version}"
        raise RefusedError(
            "release_malformed", f"{said}, not {release.component} {release.version}"
        )


def _demand_sound(root: Root) -> None:
    """Refuse a root that locks everybody out, or in which the server's keys could approve."""
    for role in ROLES:
        named = root.roles[role]
        if not 1 <= named.threshold <= len(named.keyids):
            said = f"{role}: {named.threshold} of {len(named.keyids)} keys cannot be"
            raise RefusedError("release_keys", said)
    online = {each for role in (Snapshot.type, Timestamp.type) for each in root.roles[role].keyids}
    for role in (Root.type, Targets.type):
        if online & set(root.roles[role].keyids):
            raise RefusedError("release_keys", f"{role}: the server's keys approve nothing")


def _called(root: Root, name: str, role: str) -> str:
    found = [
        each
        for each in root.roles[role].keyids
        if name_of(root.keys[each]) == name or (len(name) >= 6 and each.startswith(name))
    ]
    if len(found) != 1:
        who = ", ".join(name_of(root.keys[each]) for each in root.roles[role].keyids)
        raise NotFoundError(f"{role} has no one key {name!r}: it has {who}")
    return found[0]


def _names(keys: Mapping[str, Key]) -> tuple[str, ...]:
    return tuple(sorted(name_of(key) for key in keys.values()))


def _second(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)
