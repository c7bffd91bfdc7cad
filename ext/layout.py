"""What a decoded batch looks like in memory: the contract of both decoders, bit for bit.

All buffers are little-endian packed structs except the COPY rows, which are PostgreSQL's binary
COPY tuples (big-endian, without signature and trailer), ready to be joined and sent.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

RECORD = struct.Struct("<BBBBB3xIQIIqqIIIIII8I8I")
COUNT_DELTA = struct.Struct("<iiqQHBx8I")
PRESS_DELTA = struct.Struct("<iiqQBBHI")
COUNT_ROW = struct.Struct(">iiQHBB8i")
"""spot, bucket_ms / BUCKET_MS, observed, resolution_s, late, lines, in and out by line.

Big-endian, so that SQL reads the fields out of one bit string: an array a column costs the driver
and the database seven times as much.
"""

BUCKET_MS = 900_000
SLOT_MS = 15_000  # 60 slots a bucket; a slot is observed if its middle is


class Status(IntEnum):
    """What became of a frame."""

    RENDERED = 0  # its rows and deltas are in the buffers
    HELD = 1  # good, but undated or outside its place: `ext.reference.place` renders it
    PLAIN = 2  # good frame of a kind without COPY rows (health, gap, hello ...)
    REFUSED = 3  # see its reason


class Place(NamedTuple):
    """Where frames of one boot go: rows of `boot` at `spot` (0: unassigned).

    What the frame observed must lie in `from_ms` <= UTC milliseconds <= `until_ms`; else it is
    HELD. Its first interval may begin before: it was not observed then.
    """

    boot: int
    spot: int
    from_ms: int
    until_ms: int


class Record(NamedTuple):
    """One frame's outcome. Times are UTC ms (monotonic if `quality` is 0).

    `rows` bytes lie in `Decoded.readings` (counter) or `.presses` (kiosk), `deltas` (counted in
    structs) in `.count_deltas` or `.press_deltas`. `totals` and `sums` are in, out by line;
    `lines` is the bit mask of lines present. `body_at` is where the kind's section begins.
    """

    status: int
    reason: int
    kind: int
    lines: int
    quality: int
    seq: int
    boot_id: int
    ordinal: int
    digest: int
    start_ms: int
    end_ms: int
    rows_at: int
    rows_end: int
    deltas_at: int
    deltas_end: int
    section_at: int
    section_end: int
    totals: tuple[int, ...]
    sums: tuple[int, ...]


class CountDelta(NamedTuple):
    """What a frame adds to one 15-minute bucket of a spot; `counts` is in, out by line."""

    spot: int
    boot: int
    bucket_ms: int
    observed: int
    resolution_s: int
    lines: int
    counts: tuple[int, ...]


class PressDelta(NamedTuple):
    """Presses of one answer that a frame adds to one 15-minute bucket of a spot."""

    spot: int
    boot: int
    bucket_ms: int
    questionnaire: int
    question: int
    answer: int
    presses: int


class Decoded(NamedTuple):
    """A decoded batch; all five are bytes."""

    records: bytes
    readings: bytes
    presses: bytes
    count_deltas: bytes
    press_deltas: bytes

    def frames(self) -> list[Record]:
        """Unpack the records, one a frame, in the order given."""
        return [Record._make((*r[:17], r[17:25], r[25:])) for r in RECORD.iter_unpack(self.records)]

    def counts(self) -> list[CountDelta]:
        """Unpack the counter deltas."""
        return [
            CountDelta._make((*d[:6], d[6:])) for d in COUNT_DELTA.iter_unpack(self.count_deltas)
        ]

    def answers(self) -> list[PressDelta]:
        """Unpack the press deltas."""
        return [
            PressDelta._make((*d[:6], d[7])) for d in PRESS_DELTA.iter_unpack(self.press_deltas)
        ]


READINGS_COLUMNS = (
    "time",
    "spot",
    "boot",
    "seq",
    "digest",
    "lead_ms",
    "span_ms",
    "line",
    "interval_s",
    "counts",
)
PRESSES_COLUMNS = (
    "time",
    "questionnaire",
    "spot",
    "boot",
    "seq",
    "digest",
    "visit",
    "question",
    "answer",
    "source",
)
