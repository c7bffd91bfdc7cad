"""The truth, kept outside the product: what was generated and confirmed as journalled.

An append-only, fsynced file that a verifier reads without server or agent. It only ever adds:
several records of one minute sum up. What was handed to an agent that never confirmed it (it was
killed in that second) is *unsure*: it may or may not have been counted.

Layout, all little-endian. File: 8 bytes magic, then blocks. Block: u32 length of the payload, u32
CRC-32 of it, payload. Payload: records one after another, each a head and its entries:
- head `<BBHI`: kind, line (or 0), number of entries (or bytes), device's index in this file;
- NAME: that many bytes of UTF-8, the device's id; it stands before the device's other records;
- COUNTS, UNSURE: entries `<IHH`: minute since 1970 (UTC), in, out;
- PRESSES, UNSURE_PRESSES: entries `<IBBH`: minute, question, answer, presses.

A block counts only if it is whole: a torn tail is cut off when the file is opened to append, and
passed over when it is read. `commit` returns after the fsync.
"""

import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

MAGIC = b"VTRUTH1\n"
BLOCK = struct.Struct("<II")
HEAD = struct.Struct("<BBHI")
COUNT = struct.Struct("<IHH")
PRESS = struct.Struct("<IBBH")
_MINUTE = struct.Struct("<I")
MAX_BLOCK = 16 << 20  # a commit of 2 million minutes; longer lengths are a torn tail
_MAX_ENTRIES = 0xFFFF
_MAX_COUNT = 0xFFFF
MINUTES_A_DAY = 1440


class Kind(IntEnum):
    """What a record holds."""

    NAME = 0
    COUNTS = 1
    PRESSES = 2
    UNSURE = 3
    UNSURE_PRESSES = 4


LineMinute = tuple[str, int, int]
"""Device, line, minute since 1970."""
AnswerMinute = tuple[str, int, int, int]
"""Device, minute since 1970, question, answer."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What a truth file says: (in, out) by device, line and minute; presses by answer and minute.

    `unsure_*` are what may have been counted besides. `torn` is the bytes of a torn tail.
    """

    counts: Mapping[LineMinute, tuple[int, int]]
    presses: Mapping[AnswerMinute, int]
    unsure_counts: Mapping[LineMinute, tuple[int, int]] = field(default_factory=dict)
    unsure_presses: Mapping[AnswerMinute, int] = field(default_factory=dict)
    torn: int = 0

    def people(self) -> int:
        """Return all crossings, in and out."""
        return sum(entered + left for entered, left in self.counts.values())

    def pressed(self) -> int:
        """Return all presses."""
        return sum(self.presses.values())

    def days(self) -> dict[tuple[str, int, int], tuple[int, int]]:
        """Return (in, out) by device, line and UTC day since 1970."""
        found: dict[tuple[str, int, int], tuple[int, int]] = {}
        for (device, line, minute), (entered, left) in self.counts.items():
            key = (device, line, minute // MINUTES_A_DAY)
            before = found.get(key, (0, 0))
            found[key] = (before[0] + entered, before[1] + left)
        return found


class TruthFile:
    """The truth being written; one writer a file. Nothing is on disk before `commit`."""

    def __init__(self, path: Path) -> None:
        """Open `path` to append, or make it; a torn tail is cut off."""
        fresh = not path.exists() or path.stat().st_size < len(MAGIC)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._indices: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._pairs: dict[tuple[Kind, str, int], dict[int, list[int]]] = defaultdict(dict)
        self._answers: dict[tuple[Kind, str], dict[tuple[int, int, int], int]] = defaultdict(dict)
        if fresh:
            os.ftruncate(self._file, 0)
            _write(self._file, MAGIC)
            os.fsync(self._file)
            return
        end, _ = _whole(path)
        names: list[str] = []
        for payload in _blocks(path):
            for kind, _, index, data in _records(payload):
                if kind is Kind.NAME:
                    names.append(data.decode())
                else:  # entries ascend, and begin with the minute
                    (minute,) = _MINUTE.unpack_from(data, len(data) - COUNT.size)
                    self._last[names[index]] = max(minute, self._last.get(names[index], -1))
        self._indices = {name: index for index, name in enumerate(names)}
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        os.fsync(self._file)

    def count(
        self, device: str, line: int, *, at_ms: int, entered: int, left: int, sure: bool = True
    ) -> None:
        """Add people over a line in the minute of `at_ms` (UTC)."""
        kind = Kind.COUNTS if sure else Kind.UNSURE
        pair = self._pairs[kind, device, line].setdefault(at_ms // 60_000, [0, 0])
        pair[0] += entered
        pair[1] += left

    def press(
        self, device: str, *, at_ms: int, question: int, answer: int, sure: bool = True
    ) -> None:
        """Add one press in the minute of `at_ms` (UTC)."""
        kind = Kind.PRESSES if sure else Kind.UNSURE_PRESSES
        answers = self._answers[kind, device]
        key = (at_ms // 60_000, question, answer)
        answers[key] = answers.get(key, 0) + 1

    def last_minute(self, device: str) -> int:
        """Return the latest minute that the file held of `device` when it was opened, or -1."""
        return self._last.get(device, -1)

    def commit(self) -> None:
        """Append all that was added since, and return once it is on disk."""
        self.write(self.take())

    def take(self) -> bytes:
        """Return all that was added since as a payload for `write`, in the order of taking."""
        payload = b"".join(self._records())
        self._pairs.clear()
        self._answers.clear()
        return payload

    def write(self, payload: bytes) -> None:
        """Append what `take` gave, and return once it is on disk; a thread may do this."""
        if payload:
            _write(self._file, BLOCK.pack(len(payload), zlib.crc32(payload)) + payload)
            os.fdatasync(self._file)

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        os.close(self._file)

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Commit and close."""
        self.close()

    def _records(self) -> Iterator[bytes]:
        for (kind, device, line), minutes in self._pairs.items():
            index = yield from self._name(device)
            entries = [
                COUNT.pack(minute, *part)
                for minute, (entered, left) in sorted(minutes.items())
                for part in _parts(entered, left)
            ]
            yield from _split(kind, line, index, entries)
        for (kind, device), answers in self._answers.items():
            index = yield from self._name(device)
            entries = [PRESS.pack(*key, presses) for key, presses in sorted(answers.items())]
            yield from _split(kind, 0, index, entries)

    def _name(self, device: str) -> Generator[bytes, None, int]:
        """Yield the device's NAME record where the file has none yet; return its index."""
        index = self._indices.get(device)
        if index is None:
            index = self._indices[device] = len(self._indices)
            name = device.encode()
            yield HEAD.pack(Kind.NAME, 0, len(name), index) + name
        return index


def read(path: Path) -> Truth:
    """Read a truth file; ValueError if it is none. A torn tail is passed over."""
    names: dict[int, str] = {}
    sums: dict[Kind, dict[LineMinute, tuple[int, int]]] = {Kind.COUNTS: {}, Kind.UNSURE: {}}
    answers: dict[Kind, dict[AnswerMinute, int]] = {Kind.PRESSES: {}, Kind.UNSURE_PRESSES: {}}
    for payload in _blocks(path):
        for kind, line, index, data in _records(payload):
            if kind is Kind.NAME:
                names[index] = data.decode()
            elif kind in sums:
                _add_counts(sums[kind], (names[index], line), data)
            else:
                _add_presses(answers[kind], names[index], data)
    _, torn = _whole(path)
    return Truth(
        sums[Kind.COUNTS],
        answers[Kind.PRESSES],
        sums[Kind.UNSURE],
        answers[Kind.UNSURE_PRESSES],
        torn,
    )


def _add_counts(
    into: dict[LineMinute, tuple[int, int]], where: tuple[str, int], data: bytes
) -> None:
    for minute, entered, left in COUNT.iter_unpack(data):
        key = (*where, minute)
        before = into.get(key)
        into[key] = (entered, left) if before is None else (before[0] + entered, before[1] + left)


def _add_presses(into: dict[AnswerMinute, int], device: str, data: bytes) -> None:
    for minute, question, answer, presses in PRESS.iter_unpack(data):
        key = (device, minute, question, answer)
        into[key] = into.get(key, 0) + presses


def _parts(entered: int, left: int) -> Iterator[tuple[int, int]]:
    """Yield a pair of counts in parts that fit 16 bits; they sum up again when read."""
    while entered > _MAX_COUNT or left > _MAX_COUNT:
        part = (min(entered, _MAX_COUNT), min(left, _MAX_COUNT))
        yield part
        entered, left = entered - part[0], left - part[1]
    yield entered, left


def _split(kind: Kind, line: int, index: int, entries: list[bytes]) -> Iterator[bytes]:
    for at in range(0, len(entries), _MAX_ENTRIES):
        part = entries[at : at + _MAX_ENTRIES]
        yield HEAD.pack(kind, line, len(part), index) + b"".join(part)


def _records(payload: bytes) -> Iterator[tuple[Kind, int, int, bytes]]:
    at = 0
    while at < len(payload):
        number, line, entries, index = HEAD.unpack_from(payload, at)
        kind = Kind(number)
        at += HEAD.size
        size = entries if kind is Kind.NAME else entries * COUNT.size  # both entries have 8 bytes
        yield kind, line, index, payload[at : at + size]
        at += size


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the whole blocks, and stop at the first that is not."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no truth file: it does not begin with {MAGIC!r}")
        while len(head := file.read(BLOCK.size)) == BLOCK.size:
            length, check = BLOCK.unpack(head)
            payload = file.read(length) if length <= MAX_BLOCK else b""
            if len(payload) < length or zlib.crc32(payload) != check:
                return
            yield payload


def _whole(path: Path) -> tuple[int, int]:
    """Return where the whole blocks end, and how many bytes follow."""
    end = len(MAGIC) + sum(BLOCK.size + len(payload) for payload in _blocks(path))
    return end, path.stat().st_size - end


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
