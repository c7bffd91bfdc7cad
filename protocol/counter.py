"""Counter frames: per counting line, in and out of each reading interval, and totals since boot.

Readings stand on a grid of `interval_s`: of UTC where the offset is known, else of the boot's own
monotonic time. The first cell holds the span's start, the last its end; the first and last may
be observed in part. Values are packed at one width a line, chosen by the largest: nothing (all
zero), nibbles, bytes or words; measured against varints in `ops/decisions/0002-packed-readings.md`.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.frame import (
    FrameError,
    Kind,
    Quality,
    Reason,
    Section,
    Span,
    encode,
    encode_time,
    section,
)

HEAD = struct.Struct("<HHB3x")
LINE = struct.Struct("<BBHII")
MAX_LINES = 4  # the rollup keeps a column pair a line
MAX_CELLS = 1_440  # a day of minutes
MAX_COUNT = 32_767  # a smallint; 546 people a second at a minute's interval is no door
COUNT_WRAP = 1 << 32
INTERVALS = frozenset({*(s for s in range(1, 901) if 900 % s == 0), 1800, 3600})
"""Allowed intervals in seconds: they divide a quarter of an hour, or are 1,800 or 3,600."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line's readings: `counts` is in, out, in, out ... of each cell; totals as of the end."""

    line: int
    total_in: int
    total_out: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """The readings of a counter frame."""

    span: Span
    interval_s: int
    lines: tuple[Line, ...]

    @property
    def cells(self) -> int:
        """How many intervals the frame holds."""
        return len(self.lines[0].counts) // 2

    def first_cell_ms(self, offset_ms: int | None = None) -> int:
        """UTC of the first cell's start; with `offset_ms`, as that late-known offset places it."""
        step = self.interval_s * 1000
        if self.span.quality is not Quality.NONE:
            return self.span.utc_ms // step * step
        if offset_ms is None:
            raise ValueError("this frame is undated: its boot's offset is needed")
        monotonic = self.span.start_ms // step * step
        return (monotonic + offset_ms + step // 2) // step * step


def cells_of(span: Span, interval_s: int) -> int:
    """Return how many grid cells `span` touches."""
    step = interval_s * 1000
    start = span.start_ms if span.quality is Quality.NONE else span.utc_ms
    return (start + span.span_ms - 1) // step - start // step + 1


def encode_counter(counts: Counts, *, boot_id: int, seq: int, ordinal: int) -> bytes:
    """Return a counter frame."""
    return encode(
        Kind.COUNTER,
        [encode_time(counts.span), encode_lines(counts)],
        boot_id=boot_id,
        seq=seq,
        ordinal=ordinal,
    )


def encode_lines(counts: Counts) -> bytes:
    """Return the LINES section; each line at the narrowest width that holds its largest value."""
    parts = [HEAD.pack(counts.interval_s, counts.cells, len(counts.lines))]
    for line in counts.lines:
        coding, data = _pack(line.counts)
        parts += [LINE.pack(line.line, coding, 0, line.total_in, line.total_out), data]
    return section(Section.LINES, b"".join(parts))


def decode_lines(payload: memoryview, span: Span) -> Counts:
    """Read a LINES section; FrameError LINES, SPAN or VALUE."""
    if len(payload) < HEAD.size:
        raise FrameError(Reason.LINES, f"{len(payload)} bytes")
    interval_s, cells, count = HEAD.unpack_from(payload)
    if interval_s not in INTERVALS or not 1 <= count <= MAX_LINES:
        raise FrameError(Reason.LINES, f"interval {interval_s} s, {count} lines")
    if not 1 <= cells <= MAX_CELLS or span.span_ms < 1 or cells != cells_of(span, interval_s):
        raise FrameError(Reason.SPAN, f"{cells} cells over {span.span_ms} ms")
    at = HEAD.size
    lines: list[Line] = []
    for _ in range(count):
        if at + LINE.size > len(payload):
            raise FrameError(Reason.LINES, "truncated line")
        number, coding, reserved, total_in, total_out = LINE.unpack_from(payload, at)
        at += LINE.size
        if number >= MAX_LINES or coding >= len(_WIDTHS) or reserved:
            raise FrameError(Reason.LINES, f"line {number}, coding {coding}")
        if lines and number <= lines[-1].line:
            raise FrameError(Reason.LINES, f"line {number} after {lines[-1].line}")
        size = cells * _WIDTHS[coding]
        if at + size > len(payload):
            raise FrameError(Reason.LINES, "truncated readings")
        values = _unpack(payload[at : at + size], coding, cells=cells)
        lines.append(Line(number, total_in, total_out, values))
        at += size
    if at != len(payload):
        raise FrameError(Reason.LINES, f"{len(payload) - at} trailing bytes")
    return Counts(span, interval_s, tuple(lines))


_WIDTHS = (0, 1, 2, 4)  # bytes a cell (in and out together), by coding


def _pack(counts: Sequence[int]) -> tuple[int, bytes]:
    largest = max(counts)
    if largest == 0:
        return 0, b""
    if largest < 16:
        return 1, bytes(counts[i] | counts[i + 1] << 4 for i in range(0, len(counts), 2))
    if largest < 256:
        return 2, bytes(counts)
    if largest > MAX_COUNT:
        raise ValueError(f"a reading is at most {MAX_COUNT}, got {largest}")
    return 3, struct.pack(f"<{len(counts)}H", *counts)


def _unpack(data: memoryview, coding: int, *, cells: int) -> tuple[int, ...]:
    if coding == 0:
        return (0,) * (2 * cells)
    if coding == 1:
        return tuple(half for byte in data for half in (byte & 15, byte >> 4))
    if coding == 2:
        return tuple(data)
    values = struct.unpack(f"<{2 * cells}H", data)
    if max(values) > MAX_COUNT:
        raise FrameError(Reason.VALUE, f"{max(values)}")
    return values
