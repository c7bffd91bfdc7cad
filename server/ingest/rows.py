"""What a transaction stores beside the readings: values that `plan` makes and `writer` writes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ext.layout import BUCKET_MS
from ext.reference import PG_EPOCH_MS, observed_slots
from server.ingest.places import Boot, Cursor, Piece, Registered

REFUSED_BY_DATABASE = 200  # a reason of ours, beside those of `protocol.frame.Reason`
MAX_FINDINGS = 100  # a batch; the counter has them all
NO_COUNTS = (0,) * 8

GapReason = Literal["thinned", "rotted", "forgotten", "quarantined", "totals", "refused"]
COUNT_DELTA = struct.Struct("<qqqi4q")
"""ext.layout.COUNT_DELTA read in pairs.

spot | boot << 32, bucket_ms, observed, resolution_s | lines << 16, and in | out << 32 by line.
"""
CountDelta = tuple[int, ...]
PressDelta = tuple[int, ...]
"""ext.layout.PressDelta, flat; its seventh field is a reserved zero, its eighth the presses."""


class Move(NamedTuple):
    """A cursor's step, by what the register said of its device when the batch was placed."""

    boot: Boot
    before: Cursor
    after: Cursor
    registered: Registered


@dataclass(frozen=True, slots=True)
class GapRow:
    """A missing range, with what is known of the people it covers."""

    boot: Boot
    spot: int
    from_seq: int
    to_seq: int
    reason: GapReason
    from_ms: int | None = None
    until_ms: int | None = None
    counts: tuple[int, ...] = NO_COUNTS
    answers: tuple[int, ...] = ()


class Attribution(NamedTuple):
    """People whom the totals of frame `seq` tell to be in the unread frame before it."""

    boot: Boot
    seq: int
    counts: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A frame that could not be read, and the gap it leaves."""

    boot: Boot
    seq: int
    reason: int
    detail: str
    frame: bytes


@dataclass(frozen=True, slots=True)
class Held:
    """A good frame that has no believable time yet."""

    boot: Boot
    seq: int
    why: Literal["undated", "wild clock"]
    frame: bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """A health frame's values at a time."""

    boot: Boot
    seq: int
    digest: int
    at_ms: int
    values: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not have been seen."""

    finding: str
    boot: Boot
    seq: int | None
    detail: dict[str, str | int | list[int]]


@dataclass(slots=True)
class Plan:
    """All of one transaction, and what follows it."""

    moves: list[Move] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    readings: bytes = b""
    presses: bytes = b""
    counts: bytes = b""  # ext.layout.COUNT_DELTAs
    answers: list[PressDelta] = field(default_factory=list)
    imported: set[tuple[int, int]] = field(default_factory=set)  # (spot, bucket_ms)
    late: dict[int, int] = field(default_factory=dict)  # boot row -> stored to, before this
    gaps: list[GapRow] = field(default_factory=list)
    attributions: list[Attribution] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unverified: list[tuple[Boot, int, int]] = field(default_factory=list)  # boot, frame, digest
    repeats: int = 0
    beyond: int = 0
    touched: list[Boot] = field(default_factory=list)  # all that get a receipt


OBSERVED_LINE = -1
"""The line of a row of `readings` that says only that a kiosk was there to be pressed."""
_ROW = struct.Struct(">hiqiiiiiIiIiiiiihihiiii")


def observe(
    into: list[CountDelta],
    boot_row: int,
    pieces: Sequence[Piece],
    *,
    seq: int,
    digest: int,
    start_ms: int,
    end_ms: int,
) -> bytes:
    """Append the deltas of a stretch that was observed without counts; return its COPY rows."""
    rows: list[bytes] = []
    for piece in pieces:
        low, high = max(start_ms, piece.from_ms), min(end_ms, piece.until_ms)
        if low >= high:
            continue
        rows.append(
            _ROW.pack(
                10, 8, (low - PG_EPOCH_MS) * 1000, 4, piece.spot, 4, boot_row, 4, seq, 4, digest,
                4, 0, 4, high - low, 2, OBSERVED_LINE, 2, 1, 12, 0, 0, 21,
            )
        )  # fmt: skip
        for bucket in range(low // BUCKET_MS * BUCKET_MS, high, BUCKET_MS) if piece.spot else ():
            mask = observed_slots(bucket, low, high)
            into.append((piece.spot | boot_row << 32, bucket, mask, 1, 0, 0, 0, 0))
    return b"".join(rows)
