"""Keys of the releases' roles: Ed25519, a PEM file each, and beside it what others may know of it.

A person's key is encrypted under a password and never on the server. The server's two, of snapshot
and timestamp, are not: it signs by itself. A key is known to all by its public file's name.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Root

from server.errors import VestibuleError

NAME = "x-vestibule-name"
MAX_FILE = 8_192


class KeyFileError(VestibuleError):
    """A key's file cannot be used."""

    code = "release_key"


def make_key(path: Path, *, password: bytes | None) -> SSlibKey:
    """Make a key in `path` and its public half beside it, `.pub`. Raises KeyFileError."""
    public_path = path.with_suffix(".pub")
    if path.suffix != ".pem" or path.exists() or public_path.exists():
        raise KeyFileError(f"{path}: expected a new file that ends in .pem")
    key = Ed25519PrivateKey.generate()
    kept: KeySerializationEncryption = NoEncryption()
    if password is not None:
        kept = BestAvailableEncryption(password)
    content = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, kept)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    public_path.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return read_public(public_path)


def read_public(path: Path) -> SSlibKey:
    """Return a public key under its file's name. Raises KeyFileError."""
    try:
        key = load_pem_public_key(_content(path))
    except ValueError as error:
        raise KeyFileError(f"{path} is no public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: expected an Ed25519 key")
    public = SSlibKey.from_crypto(key)
    public.unrecognized_fields[NAME] = path.stem
    return public


def read_signer(path: Path, *, password: bytes | None) -> CryptoSigner:
    """Open a private key. Raises KeyFileError."""
    try:
        key = load_pem_private_key(_content(path), password)
    except TypeError as error:
        said = "is encrypted: its password is needed" if password is None else "is not encrypted"
        raise KeyFileError(f"{path} {said}") from error
    except ValueError as error:
        raise KeyFileError(f"{path} cannot be opened: another password, or damaged") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: expected an Ed25519 key")
    return CryptoSigner(key)


def demand_genuine(root: Root) -> None:
    """Refuse a root in which a key is not the one that its id says. Raises KeyFileError.

    An id is only a name to TUF. Here it is the key's digest, so that one key has one id, what
    people compare is the key, and none takes the place of another unseen.
    """
    if not root.consistent_snapshot:
        raise KeyFileError(f"root {root.version}: expected consistent snapshots")
    for keyid, key in root.keys.items():
        said = f"root {root.version}: the key {keyid[:16]} ({name_of(key)})"
        try:
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(key.keyval["public"])))
        except (KeyError, ValueError) as error:
            raise KeyFileError(f"{said} is no Ed25519 key") from error
        genuine = SSlibKey.from_crypto(public)
        if (key.keytype, key.scheme) != (genuine.keytype, genuine.scheme):
            raise KeyFileError(f"{said} is no Ed25519 key")
        if keyid != genuine.keyid or key.keyval != genuine.keyval:
            raise KeyFileError(f"{said} is another than its id says: somebody put it there")


def name_of(key: Key) -> str:
    """Return what people call a key."""
    return str(key.unrecognized_fields.get(NAME) or key.keyid[:8])


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE:
        raise KeyFileError(f"{path} is longer than any key's file")
    return content
