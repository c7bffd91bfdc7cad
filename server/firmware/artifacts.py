"""Artifacts: the bytes of releases, each under its own digest, and how fast a site may fetch them.

Decided here:
- A file's name is the SHA-256 of its content: `<aa>/<sha256>`. It appears under that name only when
  it is whole, hashed and on disk; so what is there is what it says, whoever was cut off when.
- What is put again is hashed anew, and replaced if it has rotted.
- A site's devices share one allowance of bytes (`Allowance`): a bucket that fills at so many bytes
  a second. What was begun is finished at that pace; nobody begins while others have used it up.
  It is kept in this process: servers beside each other have one each.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from server.errors import VestibuleError

CHUNK = 65_536
BURST_S = 10.0  # a bucket holds what flows into it in so long
MOST_SITES = 50_000
_DIGEST = re.compile("[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArtifactError(VestibuleError):
    """An artifact cannot be kept: `mismatch`, `disk_full`, `unreadable` or `not_written`."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class Store:
    """Files below one folder, by their digests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Return where the bytes with this digest lie, or would. ValueError: it is none."""
        if not _DIGEST.fullmatch(sha256):
            raise ValueError("expected 64 hexadecimal digits")
        return self.folder / sha256[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        """Return where the bytes with this digest lie; None if they are not here."""
        if not _DIGEST.fullmatch(sha256):
            return None
        path = self.path(sha256)
        return path if path.is_file() else None

    def put(self, content: BinaryIO, *, sha256: str, length: int) -> Path:
        """Keep bytes, which must be `length` and have this digest. Raises ArtifactError.

        After an error nothing of them is left, and what was there before is untouched.
        """
        path = self.path(sha256)
        if self._is_whole(path, sha256, length):
            return path
        partial = path.with_name(f".{sha256}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                _copied(content, file, sha256=sha256, length=length)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            for folder in (path.parent, self.folder):
                sync(folder)
        except OSError as error:
            if error.errno in _FULL:
                message = f"the disk of {self.folder} is full: {length} bytes have no room"
                raise ArtifactError("disk_full", message) from error
            said = f"{self.folder}: {error.strerror or error}"
            raise ArtifactError("not_written", said) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return path

    def missing(self, sha256s: Iterable[str]) -> list[str]:
        """Return which of some digests have no bytes here."""
        return [each for each in sha256s if self.find(each) is None]

    def _is_whole(self, path: Path, sha256: str, length: int) -> bool:
        try:
            if path.stat().st_size != length:
                return False
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False


def _copied(content: BinaryIO, file: BinaryIO, *, sha256: str, length: int) -> None:
    """Copy what is to be `length` bytes of a digest; not one byte more is read than would tell."""
    digest, size = hashlib.sha256(), 0
    while chunk := _read(content, min(CHUNK, length + 1 - size)):
        size += len(chunk)
        if size > length:
            raise ArtifactError("mismatch", f"more than the {length} bytes that were said")
        digest.update(chunk)
        file.write(chunk)
    if size != length:
        raise ArtifactError("mismatch", f"{size} bytes; {length} were said")
    if digest.hexdigest() != sha256:
        raise ArtifactError("mismatch", f"their digest is {digest.hexdigest()}, not {sha256}")


def _read(content: BinaryIO, most: int) -> bytes:
    try:
        return content.read(most)
    except OSError as error:
        raise ArtifactError("unreadable", f"cannot be read: {error}") from error


def sync(folder: Path) -> None:
    """Sync a folder's entries to the disk. OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- which bytes are asked for -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes from `start` up to, and without, `end`."""

    start: int
    end: int


class UnsatisfiableError(ValueError):
    """None of the bytes asked for is there (416)."""


_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


def span_of(header: str, *, size: int, condition: str, etag: str) -> Span | None:
    """Return the bytes that a Range header asks for; None: all of them, as if it was not there.

    `condition`: If-Range, empty if there was none; with another tag the bytes are others, and so
    all are sent. What is no single range of bytes is passed over, as RFC 9110 (14.2) lets us.
    Raises UnsatisfiableError.
    """
    found = _RANGE.fullmatch(header.strip().lower())
    if found is None or (condition and condition.strip() != etag):
        return None
    first, last = found[1], found[2]
    if not first and not last:
        return None
    if not first:  # the last so many
        if int(last) == 0 or size == 0:
            raise UnsatisfiableError(header)
        return Span(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None  # no range at all
    if int(first) >= size:
        raise UnsatisfiableError(header)
    return Span(int(first), min(size, int(last) + 1) if last else size)


# -- how fast ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Bucket:
    """What a site may take: `level` bytes at `at_s`; below 0: taken before it flowed in."""

    level: float
    at_s: float


class Allowance:
    """How much each may take: bytes a site, whoever of its devices does; times are monotonic.

    A bucket that nobody has used for a while holds `least`, or what flows in within `BURST_S`.
    """

    def __init__(self, monotonic: Callable[[], float], *, least: int = CHUNK) -> None:
        self._monotonic = monotonic
        self._least = least
        self._buckets: dict[int, _Bucket] = {}

    def wait_s(self, site: int, *, rate: int) -> float:
        """Return after how long a device of this site may begin; 0: now. `rate`: bytes a second."""
        bucket = self._filled(site, rate)
        return 0.0 if bucket.level > 0 else (1 - bucket.level) / rate

    def take(self, site: int, size: int, *, rate: int) -> float:
        """Take bytes that are about to be sent; return how long to wait before they are."""
        bucket = self._filled(site, rate)
        bucket.level -= size
        return max(0.0, -bucket.level / rate)

    def _filled(self, site: int, rate: int) -> _Bucket:
        now_s, most = self._monotonic(), max(float(self._least), rate * BURST_S)
        bucket = self._buckets.get(site)
        if bucket is None:
            if len(self._buckets) >= MOST_SITES:
                self._forget(now_s)
            bucket = self._buckets[site] = _Bucket(most, now_s)
            return bucket
        bucket.level = min(most, bucket.level + (now_s - bucket.at_s) * rate)
        bucket.at_s = now_s
        return bucket

    def _forget(self, now_s: float) -> None:
        """Let go of the half that nobody has used for the longest: theirs have long filled."""
        oldest = sorted(self._buckets, key=lambda site: self._buckets[site].at_s)
        for site in oldest[: len(oldest) // 2]:
            del self._buckets[site]
