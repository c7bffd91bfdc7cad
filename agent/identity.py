"""What enrolment leaves on the device: key, chain, bundle, and who we are to which broker.

Files are written beside, synced and renamed; `identity.json` comes last, so its presence says
that enrolment is complete.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from agent.config import Kind
from agent.link import Identity
from protocol.identity import device_id


class NotEnrolledError(RuntimeError):
    """There is no complete identity here yet."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The contents of `identity.json`; `claim`: SHA-256 of the claim or label that made it."""

    device: str
    kind: Kind
    broker_host: str
    broker_port: int
    claim: str


@dataclass(frozen=True, slots=True)
class Files:
    """Where an identity's parts lie."""

    folder: Path

    @property
    def key(self) -> Path:
        """The private key, mode 0600; it never leaves."""
        return self.folder / "key.pem"

    def pending_key(self, claim: str) -> Path:
        """The key that a claim was, or will be, presented with."""
        return self.folder / f"key-{claim[:16]}.pem"

    @property
    def chain(self) -> Path:
        """Our certificate and those above it."""
        return self.folder / "chain.pem"

    @property
    def bundle(self) -> Path:
        """Whom we trust."""
        return self.folder / "bundle.pem"

    @property
    def identity(self) -> Path:
        """The file that makes it complete."""
        return self.folder / "identity.json"


def files(state: Path) -> Files:
    """Return where the identity lies under the state directory."""
    return Files(state / "identity")


def read(state: Path) -> Enrolled:
    """Return who we are; NotEnrolledError if enrolment has not been completed."""
    path = files(state).identity
    try:
        got = json.loads(path.read_text())
        kind: Kind = "kiosk" if got["kind"] == "kiosk" else "counter"
        return Enrolled(
            device_id(got["device"]),
            kind,
            str(got["broker_host"]),
            int(got["broker_port"]),
            str(got["claim"]),
        )
    except FileNotFoundError:
        raise NotEnrolledError(
            f"not enrolled: {path} is not there; run `vestibule-agent enrol TOKEN`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotEnrolledError(f"{path} can't be read: {error!r}") from error


def for_link(state: Path) -> Identity:
    """Return the identity as the link needs it."""
    enrolled, found = read(state), files(state)
    return Identity(
        device_id(enrolled.device),
        enrolled.broker_host,
        enrolled.broker_port,
        found.chain,
        found.key,
        found.bundle,
    )


def write(state: Path, enrolled: Enrolled, *, key: Path, chain: str, bundle: str) -> None:
    """Complete the identity; `key` is the pending key, which goes last."""
    found = files(state)
    put(found.key, key.read_bytes(), mode=0o600)
    put(found.chain, chain.encode())
    put(found.bundle, bundle.encode())
    put(found.identity, json.dumps(asdict(enrolled), indent=1).encode() + b"\n")
    key.unlink()


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
