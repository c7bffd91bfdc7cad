"""The files of an authority's directory. Whole or not at all; keys are readable by us only.

authorities.json    which roots and authorities there are, and their states: the truth
authorities/        <name>.pem; authorities also <name>.key, and <name>.anchor.pem, the same
                    self-signed; root-<n>.cross.pem: that root, signed by the one before
offline/            <root>.key, encrypted: to be taken away from this machine
root.pem            the present root: what claims and labels name by its fingerprint
bundle.pem          every root that is not gone: what devices and services trust
device-anchor.pem, service-anchor.pem   what one listener of the broker trusts alone
device.crl          revoked device certificates, a list of each device authority
broker.pem, https.pem, svc-...          services, each followed by its authority
issuance.log        every signature, recorded before it is made
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from server.pki.generations import Generation, Generations, Kind, State, first, of, signing
from server.pki.signer import FileSigner

LIST = "authorities.json"
LOG = "issuance.log"
FORGOTTEN = "roots-forgotten"
"""There from the first day, if the roots' keys were not kept."""


class AuthorityError(Exception):
    """The authority's directory is not what it should be."""


@dataclass(frozen=True, slots=True)
class Files:
    """A directory as its list says; made by `read` or `begin`."""

    directory: Path
    generations: Generations

    @classmethod
    def read(cls, directory: Path) -> "Files":
        """Read the list. Raises AuthorityError."""
        try:
            text = (directory / LIST).read_text()
            rows = json.loads(text)
            generations = tuple(
                Generation(Kind(r["kind"]), r["number"], State(r["state"]), r["root"]) for r in rows
            )
        except FileNotFoundError:
            return cls(directory, adopted(directory))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AuthorityError(f"{directory / LIST} cannot be read: {error}") from error
        return cls(directory, generations)

    @property
    def roots_forgotten(self) -> bool:
        """Whether the roots' keys were never kept: nobody can sign with a root again."""
        return (self.directory / FORGOTTEN).exists()

    def stamp(self) -> tuple[int, int]:
        """Return what changes when the list does."""
        found = (self.directory / LIST).stat()
        return found.st_mtime_ns, found.st_ino

    def path(self, name: str) -> Path:
        """Return where a root's or an authority's file lies, such as `device-1.pem`."""
        return self.directory / "authorities" / name

    def certificate(self, name: str) -> x509.Certificate:
        """Return the certificate of a root or an authority. Raises AuthorityError."""
        try:
            return x509.load_pem_x509_certificate(self.path(f"{name}.pem").read_bytes())
        except (OSError, ValueError) as error:
            raise AuthorityError(f"{self.directory} holds no readable {name}: {error}") from error

    def signer(self, name: str) -> FileSigner:
        """Open an authority whose key lies here. Raises AuthorityError."""
        return open_signer(self.certificate(name), self.path(f"{name}.key"), password=None)

    def root_signer(self, name: str, *, keys: Path, password: bytes) -> FileSigner:
        """Open a root whose encrypted key lies in the folder `keys`. Raises AuthorityError."""
        return open_signer(self.certificate(name), keys / f"{name}.key", password=password)

    def write_list(self, generations: Generations) -> "Files":
        """Make these the directory's; everything they name has been written before."""
        rows = [
            {"kind": g.kind, "number": g.number, "state": g.state, "root": g.root}
            for g in generations
        ]
        write(self.directory / LIST, (json.dumps(rows, indent=1) + "\n").encode())
        return Files(self.directory, generations)

    def derive(self) -> None:
        """Write what follows from the list: root, bundle and anchors. Repeatable."""
        present = signing(self.generations, Kind.ROOT).name
        self._write_if_new("root.pem", self.path(f"{present}.pem").read_bytes())
        roots = [self.path(f"{g.name}.pem") for g in of(self.generations, Kind.ROOT)]
        self._write_if_new("bundle.pem", b"".join(path.read_bytes() for path in roots))
        for kind in (Kind.DEVICE, Kind.SERVICE):
            anchors = [self.path(f"{g.name}.anchor.pem") for g in of(self.generations, kind)]
            self._write_if_new(f"{kind}-anchor.pem", b"".join(p.read_bytes() for p in anchors))
        for gone in (g for g in self.generations if g.state is State.GONE):
            self.path(f"{gone.name}.key").unlink(missing_ok=True)

    def chain_above(self, authority: Generation) -> bytes:
        """Return what a certificate of this authority is sent with: it, and a bridge between roots.

        While the root before is not gone, whoever trusts only that one can follow the bridge.
        """
        chain = self.path(f"{authority.name}.pem").read_bytes()
        bridge = self.path(f"{authority.root}.cross.pem")
        leaving = of(self.generations, Kind.ROOT, State.LEAVING)
        return chain + bridge.read_bytes() if leaving and bridge.exists() else chain

    def _write_if_new(self, name: str, content: bytes) -> None:
        path = self.directory / name
        if not path.exists() or path.read_bytes() != content:
            write(path, content)


def open_signer(certificate: x509.Certificate, path: Path, *, password: bytes | None) -> FileSigner:
    """Return the signer of a certificate and the file of its key. Raises AuthorityError."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=password)
    except FileNotFoundError as error:
        raise AuthorityError(f"{path} is not here") from error
    except (OSError, ValueError, TypeError) as error:
        raise AuthorityError(f"{path} cannot be opened: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{path} is not an elliptic-curve key")
    if key.public_key() != certificate.public_key():
        raise AuthorityError(f"{path} does not belong to its certificate")
    return FileSigner(certificate, key)


def adopted(directory: Path) -> Generations:
    """Bring the files of 0.1, which had no list, to their places. Raises AuthorityError."""
    if not (directory / "device-ca.pem").exists():
        raise AuthorityError(f"{directory} holds no authority")
    moves = {
        "root.pem": "authorities/root-1.pem",
        "root-next.pem": "authorities/root-2.pem",
        "root.key": "offline/root-1.key",
        "root-next.key": "offline/root-2.key",
    }
    for kind in (Kind.DEVICE, Kind.SERVICE):
        moves |= {
            f"{kind}-ca.key": f"authorities/{kind}-1.key",
            f"{kind}-anchor.pem": f"authorities/{kind}-1.anchor.pem",
            f"{kind}-ca.pem": f"authorities/{kind}-1.pem",
        }
    for folder in ("authorities", "offline"):
        (directory / folder).mkdir(mode=0o700, exist_ok=True)
    for before, after in moves.items():
        if (directory / before).exists():
            write(
                directory / after,
                (directory / before).read_bytes(),
                mode=0o600 if after.endswith(".key") else 0o644,
            )
    adopted = Files(directory, first()).write_list(first())
    for before in moves:
        (directory / before).unlink(missing_ok=True)
    adopted.derive()
    return adopted.generations


@contextmanager
def logged(
    directory: Path, *, serial: int, subject: str, authority: str, now: datetime
) -> Iterator[None]:
    """Record a signature in the log before it is made, and that it was made afterwards."""
    line = {"at": now.isoformat(), "serial": f"{serial:x}"}
    rest = {"subject": subject, "authority": authority}
    _append(directory / LOG, json.dumps({**line, "event": "recorded", **rest}))
    yield
    _append(directory / LOG, json.dumps({**line, "event": "signed", **rest}))


def key_pem(key: ec.EllipticCurvePrivateKey, *, password: bytes | None = None) -> bytes:
    """Return a key as PKCS#8, encrypted if there is a password."""
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace a file as a whole; it never exists with a wider mode than `mode`."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
