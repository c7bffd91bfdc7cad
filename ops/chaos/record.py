"""The truth's file: each event that an agent confirmed as journalled, one line each.

    <CRC-32 of the rest, 8 hexadecimal digits> <JSON array>\\n

    ["c", device, id, line, in, out, sent_ms, stored_ms]                  people crossing a line
    ["p", device, id, question, answer, visit, sent_ms, stored_ms]        a press on a kiosk

`sent_ms` is when the event was first offered to the agent, `stored_ms` when the agent said that
its journal holds it, both UTC: the agent stamped it in between. Only whole lines count; a torn
last line was never confirmed to anybody. Standard library only, as is everything the verifier
imports besides a database driver.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


class TruthError(ValueError):
    """The truth's file cannot be believed; the message names the line."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """People crossing one line of one counter."""

    device: str
    id: int
    line: int
    entered: int
    left: int
    sent_ms: int
    stored_ms: int


@dataclass(frozen=True, slots=True)
class Touch:
    """One press on a kiosk."""

    device: str
    id: int
    question: int
    answer: int
    visit: int
    sent_ms: int
    stored_ms: int


Event = Crossing | Touch


@dataclass(frozen=True, slots=True)
class Truth:
    """All that was confirmed. `torn` is the bytes of an unfinished last line."""

    crossings: tuple[Crossing, ...]
    touches: tuple[Touch, ...]
    torn: int = 0

    @property
    def people(self) -> int:
        """Crossings, in and out together."""
        return sum(event.entered + event.left for event in self.crossings)


def encode(event: Event) -> bytes:
    """Return the event's line."""
    if isinstance(event, Crossing):
        values = ["c", event.device, event.id, event.line, event.entered, event.left]
    else:
        values = ["p", event.device, event.id, event.question, event.answer, event.visit]
    body = json.dumps([*values, event.sent_ms, event.stored_ms], separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


@dataclass(slots=True)
class Journal:
    """The truth's file, open to append; `commit` returns after the fsync."""

    path: Path
    _descriptor: int = field(init=False)

    def __post_init__(self) -> None:
        """Cut off a torn tail and open at the end."""
        torn = read(self.path).torn if self.path.exists() else 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._descriptor = os.open(self.path, flags, 0o644)
        if torn:
            os.ftruncate(self._descriptor, self.path.stat().st_size - torn)

    def commit(self, events: Iterable[Event]) -> None:
        """Append the events and wait until they are on disk."""
        data = memoryview(b"".join(encode(event) for event in events))
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


def read(path: Path) -> Truth:
    """Read a truth file. TruthError if a line but the last is broken, or an id is skipped."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    events = list(_events(whole))
    last: dict[str, int] = {}
    for event in events:
        if event.id != last.get(event.device, 0) + 1:
            raise TruthError(f"{event.device}: event {event.id} after {last.get(event.device, 0)}")
        last[event.device] = event.id
    return Truth(
        tuple(event for event in events if isinstance(event, Crossing)),
        tuple(event for event in events if isinstance(event, Touch)),
        len(data) - len(whole),
    )


def _events(data: bytes) -> Iterator[Event]:
    for number, line in enumerate(data.splitlines(), start=1):
        check, _, body = line.partition(b" ")
        if check != b"%08x" % zlib.crc32(body):
            raise TruthError(f"line {number}: checksum {check!r} does not match {body[:80]!r}")
        kind, device, *numbers = json.loads(body)
        yield Crossing(device, *numbers) if kind == "c" else Touch(device, *numbers)
