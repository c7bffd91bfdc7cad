"""A release's bytes: fetched by their digest, taken up where they were cut, and held to it.

Decided here:
- What has come lies in `<sha256>.part` until it is whole, synced, and has the digest; then it is
  `<sha256>`. A part is taken up with `Range`; where the server sends all of it, from the beginning.
- Not a byte beyond the length that was signed is read, and whoever sends less than `LEAST` bytes in
  a minute is given up.
- A server whose site has used up its share (429) says when to come again; that is no failure.
"""

import asyncio
import hashlib
import http.client
import os
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from agent.update.slots import SlotError, disk_error
from protocol.assignment import Item
from protocol.update import Class

PATH = "/v1/update/artifacts/"
BLOCK = 1 << 16
LEAST, WITHIN_S = 1 << 16, 60.0
SYNC_BYTES = 4 << 20
MOST_WAIT_S = 3_600.0
MOST_CUTS = 8  # without progress
CUT_S = (5.0, 300.0)
GONE = (404, 410)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

log = structlog.get_logger(__name__)


class CutError(Exception):
    """What comes was cut off, or did not come: it may be taken up again; `code` says how."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class WaitError(Exception):
    """The server wants us to come again in `wait_s`."""

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(f"to come again in {wait_s:.0f} s")


@dataclass(frozen=True, slots=True)
class Source:
    """Where to ask: `connect` opens a connection, and has checked who answers there."""

    connect: Callable[[], http.client.HTTPSConnection]
    monotonic: Callable[[], float] = time.monotonic


def make_room(items: Sequence[Item], folder: Path, *, reserve_bytes: int) -> None:
    """Remove what is of no use to these, and see that they fit, and so much more. SlotError.

    A release needs its length twice: as an archive, and unpacked.
    """
    wanted = {each.sha256 for each in items}
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in folder.iterdir():
            if path.name.removesuffix(".part") not in wanted:
                path.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error(error) from error
    here = sum(have(each, folder) for each in items)
    needs = 2 * sum(each.length for each in items) - here + reserve_bytes
    if free < needs:
        said = f"{free >> 20} MB are free, {needs >> 20} MB are needed"
        raise SlotError(Class.STORAGE, "disk_full", said)


async def bring(
    item: Item,
    folder: Path,
    fetch: Callable[[], Awaitable[Path]],
    *,
    still: Callable[[], None],
    dice: Callable[[float, float], float],
) -> Path:
    """Fetch one release, taking up what was cut, until it is here.

    `still` may raise between attempts. Raises CutError once nothing came `MOST_CUTS` times in
    succession; SlotError.
    """
    cuts = 0
    while True:
        before = have(item, folder)
        try:
            return await fetch()
        except WaitError as error:
            await asyncio.sleep(error.wait_s * dice(1, 1.25))
        except CutError as error:
            cuts = 1 if have(item, folder) > before else cuts + 1
            if cuts >= MOST_CUTS:
                raise
            wait_s = min(CUT_S[1], CUT_S[0] * 2**cuts) * dice(0.5, 1)
            log.warning("cut off", error=str(error), again_s=round(wait_s))
            await asyncio.sleep(wait_s)
        still()


def have(item: Item, folder: Path) -> int:
    """Return how many bytes of a release are here."""
    for path in (folder / item.sha256, folder / f"{item.sha256}.part"):
        try:
            return min(path.stat().st_size, item.length)
        except OSError:
            continue
    return 0


def download(item: Item, folder: Path, source: Source, *, told: Callable[[int], None]) -> Path:
    """Return the whole release, verified; `told` hears how many bytes are here, and may raise.

    Raises CutError, WaitError: to be taken up again; SlotError: it will not do.
    """
    whole, part = folder / item.sha256, folder / f"{item.sha256}.part"
    if whole.exists():
        return whole
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with part.open("a+b") as file:
            digest = _complete(file, item, source, told)
            file.flush()
            os.fsync(file.fileno())
        if digest == item.sha256:
            part.replace(whole)
            return whole
        part.unlink()
    except OSError as error:
        raise disk_error(error) from error
    raise SlotError(Class.TRUST, "wrong_digest", f"{digest} came, expected {item.sha256}")


def _complete(file: BinaryIO, item: Item, source: Source, told: Callable[[int], None]) -> str:
    """Fetch what a part lacks; return the digest of all of it. Raises OSError of the disk."""
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    while block := file.read(BLOCK):
        digest.update(block)
        size += len(block)
    if size > item.length:
        file.truncate(0)
        digest, size = hashlib.sha256(), 0
    synced = size
    for begins, block in _blocks(item, size, source) if size < item.length else ():
        if begins != size:  # the server sends all of it
            file.truncate(0)
            digest, size, synced = hashlib.sha256(), 0, 0
        digest.update(block)
        size += file.write(block)
        if size - synced >= SYNC_BYTES:
            file.flush()
            os.fsync(file.fileno())
            synced = size
        told(size)
    return digest.hexdigest()


def _blocks(item: Item, size: int, source: Source) -> Iterator[tuple[int, bytes]]:
    """Yield what comes from `size` on, each block with where it begins.

    Raises CutError, WaitError, and SlotError where the server has something else.
    """
    try:
        connection = source.connect()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CutError("unreachable", str(error) or repr(error)) from error
    try:
        headers = {"Range": f"bytes={size}-", "If-Range": f'"{item.sha256}"'} if size else {}
        connection.request("GET", PATH + item.sha256, headers=headers)
        with connection.getresponse() as response:
            at = _begins(response, item, size)
            began_s, since = source.monotonic(), at
            while at < item.length:
                block = response.read1(min(BLOCK, item.length - at))
                if not block:
                    raise CutError("unreachable", f"it ended after {at} of {item.length} bytes")
                yield at, block
                at += len(block)
                now_s = source.monotonic()
                if now_s - began_s >= WITHIN_S:
                    if at - since < LEAST:
                        raise CutError(
                            "slow", f"{at - since} bytes came in {now_s - began_s:.0f} s"
                        )
                    began_s, since = now_s, at
    except (OSError, http.client.HTTPException) as error:
        raise CutError("unreachable", str(error) or repr(error)) from error
    finally:
        connection.close()


def _begins(response: http.client.HTTPResponse, item: Item, size: int) -> int:
    """Return where what comes begins. Raises CutError, WaitError, SlotError."""
    if response.status == 206:
        found = _RANGE.fullmatch(response.getheader("Content-Range") or "")
        if found and int(found[1]) == size and int(found[3]) == item.length:
            return size
        raise SlotError(Class.TRUST, "wrong_length", "the server has something else there")
    if response.status == 200:
        length = response.getheader("Content-Length") or ""
        if length and length != str(item.length):
            raise SlotError(
                Class.TRUST, "wrong_length", f"{length} bytes offered, expected {item.length}"
            )
        return 0
    if response.status in (429, 503):
        raise WaitError(_wait_s(response.getheader("Retry-After") or ""))
    said = f"the server refused: {response.reason} ({response.status})"
    if response.status in GONE:
        raise SlotError(Class.REFUSED, "gone", said)
    if response.status == 416:
        raise SlotError(Class.TRUST, "wrong_length", said)
    raise CutError("unreachable", said)


def _wait_s(text: str) -> float:
    wait_s = float(text) if text.isdecimal() else 60.0
    return min(max(wait_s, 1.0), MOST_WAIT_S)
