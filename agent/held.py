"""One record of the outbox: a frame, and beside it what must survive if the frame is lost.

`Meta` is stored next to each frame: the span it speaks of, the totals at its end, and the digests
under which its last frame may already have reached the server (a gap that replaced a frame that
had been sent matches that frame's receipt too).
"""

import struct
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.crc import crc32c
from protocol.frame import (
    HEADER_BYTES,
    MAX_SPAN_MS,
    FrameError,
    Quality,
    Span,
    read_body,
    read_header,
)
from protocol.gap import Cause, Gap, encode_gap

MAX_ALIASES = 16
_HEAD = struct.Struct("<QQBqBBH")
_LINE = struct.Struct("<BII")
_ANSWER = struct.Struct("<BBI")
Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals since boot: (line, in, out) and (question, answer, presses), each in order."""

    lines: tuple[Triple, ...] = ()
    answers: tuple[Triple, ...] = ()


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a record without its frame: monotonic span, offset, totals, aliases."""

    start_ms: int
    end_ms: int
    quality: Quality
    offset_ms: int
    totals: Totals = field(default_factory=Totals)
    aliases: tuple[int, ...] = ()


class Held(NamedTuple):
    """A record in sequence; a gap frame covers `seq` to `to_seq`."""

    seq: int
    to_seq: int
    frame: bytes
    meta: Meta

    @property
    def digest(self) -> int:
        """The body's CRC-32C as the frame's header states it."""
        return int.from_bytes(self.frame[24:28], "little")


def pack_meta(meta: Meta) -> bytes:
    """Return `meta` as bytes that end in their own CRC-32."""
    lines, answers = meta.totals.lines, meta.totals.answers
    data = b"".join(
        [
            _HEAD.pack(
                meta.start_ms,
                meta.end_ms,
                meta.quality,
                meta.offset_ms,
                len(meta.aliases),
                len(lines),
                len(answers),
            ),
            struct.pack(f"<{len(meta.aliases)}I", *meta.aliases),
            *(_LINE.pack(*line) for line in lines),
            *(_ANSWER.pack(*answer) for answer in answers),
        ]
    )
    return data + zlib.crc32(data).to_bytes(4, "little")


def unpack_meta(data: bytes) -> Meta | None:
    """Read what `pack_meta` wrote; None if it rotted."""
    body, check = data[:-4], data[-4:]
    if len(body) < _HEAD.size or zlib.crc32(body).to_bytes(4, "little") != check:
        return None
    start, end, quality, offset, aliases, lines, _ = _HEAD.unpack_from(body)
    at = _HEAD.size
    middle = at + 4 * aliases
    after = middle + _LINE.size * lines
    return Meta(
        start,
        end,
        Quality(quality),
        offset,
        Totals(
            tuple(_LINE.iter_unpack(body[middle:after])),
            tuple(_ANSWER.iter_unpack(body[after:])),
        ),
        struct.unpack(f"<{aliases}I", body[at:middle]),
    )


def sound(held: Held, *, boot_id: int) -> bool:
    """Return True if the frame's checksums hold and it is the one that belongs here."""
    try:
        header = read_header(held.frame)
        read_body(held.frame, header)
    except FrameError:
        return False
    return header.boot_id == boot_id and header.seq == held.seq


def renumber(frame: bytes, seq: int) -> bytes:
    """Return `frame` at another place in its boot's sequence."""
    head = frame[:16] + seq.to_bytes(4, "little") + frame[20:28]
    return head + crc32c(head).to_bytes(4, "little") + frame[HEADER_BYTES:]


def merge(rows: list[Held], cause: Cause, *, boot_id: int, ordinal: int) -> Held:
    """Return one gap record in place of `rows`, which follow each other in the sequence."""
    first, last = rows[0], rows[-1]
    end = max(row.meta.end_ms for row in rows)
    start = max(min(row.meta.start_ms for row in rows), end - MAX_SPAN_MS)
    dated = next((r.meta for r in reversed(rows) if r.meta.quality is not Quality.NONE), last.meta)
    meta = Meta(
        start,
        end,
        dated.quality,
        dated.offset_ms,
        last.meta.totals,
        (*last.meta.aliases, last.digest)[-MAX_ALIASES:],
    )
    return gap_record(meta, cause, seq=first.seq, to_seq=last.to_seq, boot=(boot_id, ordinal))


def gap_record(meta: Meta, cause: Cause, *, seq: int, to_seq: int, boot: tuple[int, int]) -> Held:
    """Return the gap record for `seq` to `to_seq` that says what `meta` knows."""
    start = max(meta.start_ms, meta.end_ms - MAX_SPAN_MS)
    gap = Gap(
        Span(start, meta.end_ms - start, meta.offset_ms, meta.quality),
        to_seq,
        cause,
        meta.totals.lines,
        meta.totals.answers,
    )
    frame = encode_gap(gap, boot_id=boot[0], seq=seq, ordinal=boot[1])
    return Held(seq, to_seq, frame, meta)
