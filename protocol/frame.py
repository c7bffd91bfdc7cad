"""The frame: a frozen 32-byte header, then typed sections. Layouts: `protocol/README.md`.

Invariants:
- The header is the same in all versions, so a reader can always say whose turn a frame is.
- Reading never allocates what a header merely promises, and refuses trailing bytes.
- An unknown optional section is skipped; an unknown critical one refuses the body.
- A frame's digest is its body's CRC-32C: with (boot, seq) it tells a repeat from a forgery of
  oneself; it is not a defence against others, which is what the certificate is for.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from protocol.crc import crc32c

MAGIC = 0x4556  # "VE" as little-endian u16
VERSION = 1
HEADER = struct.Struct("<HBBIQIIII")
HEADER_BYTES = HEADER.size  # 32
MAX_FRAME = 61_440  # fits the broker's 65,536-byte packet with topic and properties to spare
SECTION = struct.Struct("<BBH")
CRITICAL = 0x01


class Kind(IntEnum):
    """What a frame is. 1 to 15 stand in the boot's sequence; others are about it."""

    COUNTER = 1
    KIOSK = 2
    HEALTH = 3
    GAP = 4
    HELLO = 16
    RECEIPT = 32
    ANSWER = 33

    @property
    def sequenced(self) -> bool:
        """True if the frame has a place in its boot's sequence and gets a receipt."""
        return self < 16


class Section(IntEnum):
    """Section types of version 1."""

    TIME = 1
    LINES = 2
    PRESSES = 3
    METRICS = 4
    GAP = 5
    HELLO = 16
    RECEIPT = 32
    ANSWER = 33


class Reason(IntEnum):
    """Why a frame was refused. Below 16 not even the header can be believed."""

    OK = 0
    SHORT = 1
    MAGIC = 2
    HEADER_CRC = 3
    VERSION = 16
    LENGTH = 17
    KIND = 18
    BODY_CRC = 19
    SECTION = 20
    CRITICAL = 21
    MISSING = 22
    TIME = 23
    SPAN = 24
    LINES = 25
    VALUE = 26
    PRESSES = 27
    METRICS = 28
    GAP = 29
    HELLO = 30
    TOTALS = 31

    @property
    def header_bad(self) -> bool:
        """True if no cursor may move for this frame."""
        return 0 < self < 16


EXPLAIN: dict[Reason, str] = {
    Reason.OK: "the frame is good",
    Reason.SHORT: "fewer than the header's 32 bytes arrived",
    Reason.MAGIC: "it does not begin with 'VE', so it is no frame of ours",
    Reason.HEADER_CRC: "the header's checksum does not match: damaged before it was sent",
    Reason.VERSION: "its version is newer or older than this server reads",
    Reason.LENGTH: "its length is not the one its header states: truncated, or with trailing bytes",
    Reason.KIND: "its kind is unknown",
    Reason.BODY_CRC: "the body's checksum does not match: damaged after it was made",
    Reason.SECTION: "a section runs past the end of the body, or stands twice",
    Reason.CRITICAL: "it holds a section that must be understood, and is not",
    Reason.MISSING: "a section that its kind needs is not there",
    Reason.TIME: "its time section is malformed or beyond its caps",
    Reason.SPAN: "its observed span does not fit its number of readings",
    Reason.LINES: "its counting lines are malformed, repeated or out of order",
    Reason.VALUE: "a reading is above 32,767",
    Reason.PRESSES: "its presses are malformed or outside the observed span",
    Reason.METRICS: "its metrics are malformed or not finite numbers",
    Reason.GAP: "its gap is malformed or ends before it begins",
    Reason.HELLO: "its hello is malformed",
    Reason.TOTALS: "last totals plus its counts are not its totals",
}


class FrameError(ValueError):
    """A frame that cannot be read, with the typed reason and what was found."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason.name}: {detail or EXPLAIN[reason]}")


class Header(NamedTuple):
    """The frozen header, checked. `digest` is the body's CRC-32C."""

    version: int
    kind: int
    length: int
    boot_id: int
    seq: int
    ordinal: int
    digest: int


def signed(value: int, bits: int) -> int:
    """Return an unsigned integer of the wire as databases keep it: the signed one of its bits."""
    return value - (1 << bits) if value >> bits - 1 else value


def encode(kind: Kind, sections: Iterable[bytes], *, boot_id: int, seq: int, ordinal: int) -> bytes:
    """Return a whole frame around ready `sections` (see `section`)."""
    body = b"".join(sections)
    length = HEADER_BYTES + len(body)
    if length > MAX_FRAME:
        raise ValueError(f"a frame has at most {MAX_FRAME} bytes, this one {length}")
    head = HEADER.pack(MAGIC, VERSION, kind, length, boot_id, seq, ordinal, crc32c(body), 0)[:28]
    return head + crc32c(head).to_bytes(4, "little") + body


def section(kind: Section, payload: bytes, *, critical: bool = True) -> bytes:
    """Return `payload` under its section head: type, flags, length."""
    return SECTION.pack(kind, CRITICAL if critical else 0, len(payload)) + payload


def read_header(data: bytes) -> Header:
    """Check and return the header alone; FrameError SHORT, MAGIC or HEADER_CRC."""
    if len(data) < HEADER_BYTES:
        raise FrameError(Reason.SHORT, f"{len(data)} bytes")
    magic, version, kind, length, boot_id, seq, ordinal, digest, check = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(Reason.MAGIC, f"0x{magic:04x}")
    if crc32c(data[:28]) != check:
        raise FrameError(Reason.HEADER_CRC)
    return Header(version, kind, length, boot_id, seq, ordinal, digest)


def read_body(data: bytes, header: Header) -> dict[Section, memoryview]:
    """Check length, version, kind and checksum in this order; return the known sections."""
    if header.version != VERSION:
        raise FrameError(Reason.VERSION, f"version {header.version}")
    if header.length != len(data) or header.length > MAX_FRAME:
        raise FrameError(Reason.LENGTH, f"header says {header.length}, {len(data)} arrived")
    if header.kind not in _KINDS:
        raise FrameError(Reason.KIND, f"kind {header.kind}")
    body = memoryview(data)[HEADER_BYTES:]
    if crc32c(body) != header.digest:
        raise FrameError(Reason.BODY_CRC)
    found: dict[Section, memoryview] = {}
    for kind, critical, payload in _sections(body):
        if kind not in _SECTIONS:
            if critical:
                raise FrameError(Reason.CRITICAL, f"section type {kind}")
            continue
        if kind in found:
            raise FrameError(Reason.SECTION, f"section type {kind} stands twice")
        found[Section(kind)] = payload
    return found


def need(sections: dict[Section, memoryview], kind: Section) -> memoryview:
    """Return the section of this kind, or raise FrameError MISSING."""
    try:
        return sections[kind]
    except KeyError:
        raise FrameError(Reason.MISSING, kind.name) from None


def _sections(body: memoryview) -> Iterator[tuple[int, bool, memoryview]]:
    at = 0
    while at < len(body):
        if at + SECTION.size > len(body):
            raise FrameError(Reason.SECTION, f"{len(body) - at} trailing bytes")
        kind, flags, length = SECTION.unpack_from(body, at)
        at += SECTION.size
        if at + length > len(body):
            raise FrameError(Reason.SECTION, f"section type {kind} claims {length} bytes")
        yield kind, bool(flags & CRITICAL), body[at : at + length]
        at += length


_KINDS = frozenset(int(kind) for kind in Kind)
_SECTIONS = frozenset(int(kind) for kind in Section)


class Quality(IntEnum):
    """How well the agent knew UTC when it sealed the frame."""

    NONE = 0
    ESTIMATED = 1
    SYNCED = 2


@dataclass(frozen=True, slots=True)
class Span:
    """The stretch a frame speaks of, in the boot's monotonic milliseconds.

    `offset_ms` is UTC minus monotonic; it means nothing when `quality` is NONE.
    """

    start_ms: int
    span_ms: int
    offset_ms: int
    quality: Quality

    @property
    def utc_ms(self) -> int:
        """The start in UTC milliseconds (1970-01-01 is 0)."""
        return self.start_ms + self.offset_ms


TIME = struct.Struct("<QIB3xq")
MAX_MONOTONIC_MS = 1 << 44  # 557 years: no boot lasts longer
MAX_OFFSET_MS = 1 << 47  # the year 6429
MAX_SPAN_MS = (1 << 31) - 1  # 24 days, an SQL integer; longer silences are several frames


def encode_time(span: Span) -> bytes:
    """Return the TIME section of `span`."""
    return section(
        Section.TIME, TIME.pack(span.start_ms, span.span_ms, span.quality, span.offset_ms)
    )


def decode_time(payload: memoryview) -> Span:
    """Read a TIME section; FrameError TIME."""
    if len(payload) != TIME.size:
        raise FrameError(Reason.TIME, f"{len(payload)} bytes")
    start, span, quality, offset = TIME.unpack(payload)
    if quality > 2 or start > MAX_MONOTONIC_MS or span > MAX_SPAN_MS or abs(offset) > MAX_OFFSET_MS:
        raise FrameError(Reason.TIME, f"start {start} span {span} offset {offset} q {quality}")
    return Span(start, span, offset, Quality(quality))
