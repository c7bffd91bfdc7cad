"""What enrolment leaves on the device: key, chain, bundle, and who we are to which broker.

Files are written beside, synced and renamed; `identity.json` comes last, so its presence says
that enrolment is complete. It names the pair that is in force: its replacement is the one step by
which another pair, from a renewal or another enrolment, takes the place of that one. The pair with
the next number is being prepared; all others are left over and removed.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from agent.config import Kind
from agent.link import Identity
from protocol.identity import device_id


class NotEnrolledError(RuntimeError):
    """There is no complete identity here yet."""


class DamagedError(ValueError):
    """What lies on disk of a key or a pair can't be used."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The contents of `identity.json`.

    `claim`: SHA-256 of the claim or label that made it; `server_host`: where it is renewed, empty
    if that was not noted; `pair`: which pair is in force; `renew_after_ms`: UTC, 0 if nobody said.
    """

    device: str
    kind: Kind
    broker_host: str
    broker_port: int
    claim: str
    server_host: str = ""
    server_port: int = 443
    pair: int = 0
    renew_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Files:
    """Where an identity's parts lie: a pair of key and certificate, and whom to trust with it."""

    folder: Path
    pair: int = 0

    @property
    def next(self) -> "Files":
        """The pair that may take this one's place."""
        return Files(self.folder, self.pair + 1)

    @property
    def key(self) -> Path:
        """The private key, mode 0600; it never leaves."""
        return self._part("key")

    def pending_key(self, claim: str) -> Path:
        """The key that a claim was, or will be, presented with."""
        return self.folder / f"key-{claim[:16]}.pem"

    @property
    def chain(self) -> Path:
        """Our certificate and those above it."""
        return self._part("chain")

    @property
    def bundle(self) -> Path:
        """Whom we trust."""
        return self._part("bundle")

    @property
    def identity(self) -> Path:
        """The file that makes it complete."""
        return self.folder / "identity.json"

    def _part(self, name: str) -> Path:
        return self.folder / (f"{name}.{self.pair}.pem" if self.pair else f"{name}.pem")


def files(state: Path) -> Files:
    """Return where the identity that is in force lies under the state directory."""
    folder = state / "identity"
    try:
        return Files(folder, read(state).pair)
    except NotEnrolledError:
        return Files(folder)


def read(state: Path) -> Enrolled:
    """Return who we are; NotEnrolledError if enrolment has not been completed."""
    path = Files(state / "identity").identity
    try:
        got = json.loads(path.read_text())
        kind: Kind = "kiosk" if got["kind"] == "kiosk" else "counter"
        return Enrolled(
            device_id(got["device"]),
            kind,
            str(got["broker_host"]),
            int(got["broker_port"]),
            str(got["claim"]),
            str(got.get("server_host", "")),
            int(got.get("server_port", 443)),
            int(got.get("pair", 0)),
            int(got.get("renew_after_ms", 0)),
        )
    except FileNotFoundError:
        raise NotEnrolledError(
            f"not enrolled: {path} is not there; run `vestibule-agent enrol TOKEN`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotEnrolledError(f"{path} can't be read: {error!r}") from error


def for_link(state: Path) -> Identity:
    """Return the identity in force as the link needs it."""
    enrolled = read(state)
    return of_pair(enrolled, Files(state / "identity", enrolled.pair))


def server(enrolled: Enrolled, configured: str) -> tuple[str, int] | None:
    """Return host and port of the server that renews, or None: noted at enrolment, or configured.

    `configured` is https://host[:port]; what can't be read is passed over.
    """
    if enrolled.server_host:
        return enrolled.server_host, enrolled.server_port
    try:
        parts = urlsplit(configured)
        return (parts.hostname, parts.port or 443) if parts.hostname else None
    except ValueError:
        return None


def of_pair(enrolled: Enrolled, found: Files) -> Identity:
    """Return the identity with these files as the link needs it."""
    return Identity(
        device_id(enrolled.device),
        enrolled.broker_host,
        enrolled.broker_port,
        found.chain,
        found.key,
        found.bundle,
    )


def write(state: Path, enrolled: Enrolled, *, key: Path, chain: str, bundle: str) -> None:
    """Complete the identity; `key` is the pending key, which goes last.

    One that was there stays whole until the new one takes its place.
    """
    found = files(state)
    if found.identity.exists():
        discard(found)
        found = found.next
    put(found.key, key.read_bytes(), mode=0o600)
    put(found.chain, chain.encode())
    put(found.bundle, bundle.encode())
    note(state, replace(enrolled, pair=found.pair))
    key.unlink()
    tidy(found)


def note(state: Path, enrolled: Enrolled) -> None:
    """Make this the contents of `identity.json`."""
    path = Files(state / "identity").identity
    put(path, json.dumps(asdict(enrolled), indent=1).encode() + b"\n")


def promote(state: Path) -> Enrolled:
    """Let the next pair take the place of the one in force, whose files go.

    DamagedError, and nothing changed, unless the next pair is all there.
    """
    before = read(state)
    coming = Files(state / "identity", before.pair).next
    missing = [p.name for p in (coming.key, coming.chain, coming.bundle) if not p.is_file()]
    if missing:
        raise DamagedError(f"the next pair lacks {', '.join(missing)}")
    enrolled = replace(before, pair=before.pair + 1, renew_after_ms=0)
    note(state, enrolled)
    tidy(files(state))
    return enrolled


def discard(found: Files) -> None:
    """Remove the pair being prepared beside this one; its certificate first, the key last."""
    for path in (found.next.chain, found.next.bundle, found.next.key):
        path.unlink(missing_ok=True)


def tidy(found: Files) -> None:
    """Remove what is left of pairs that are neither this one nor the next."""
    kept = {found.pair, found.pair + 1}
    for path in sorted(found.folder.glob("*.pem")):
        match = re.fullmatch(r"(?:key|chain|bundle)(?:\.(\d+))?\.pem", path.name)
        if match and int(match.group(1) or 0) not in kept:
            path.unlink(missing_ok=True)


def put(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a whole file so that a power cut leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
