"""Gap frames: a stretch of the sequence that the agent no longer has, with the totals at its end.

The frame's own `seq` is the first of the range, `to_seq` the last; both are inclusive. The people
the range covered are the difference of the totals: counted, but unplaced within its time range.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from protocol.counter import MAX_LINES
from protocol.frame import FrameError, Kind, Reason, Section, Span, encode, encode_time, section
from protocol.kiosk import MAX_TOTALS, TOTAL

HEAD = struct.Struct("<IBBH")
LINE_TOTAL = struct.Struct("<BII")


class Cause(IntEnum):
    """Why the agent no longer has the records."""

    THINNED = 1
    ROTTED = 2
    FORGOTTEN = 3


@dataclass(frozen=True, slots=True)
class Gap:
    """A missing range; `lines` are (line, in, out) totals, `answers` (question, answer, total)."""

    span: Span
    to_seq: int
    cause: Cause
    lines: tuple[tuple[int, int, int], ...] = ()
    answers: tuple[tuple[int, int, int], ...] = ()


def encode_gap(gap: Gap, *, boot_id: int, seq: int, ordinal: int) -> bytes:
    """Return the gap frame that occupies `seq` to `gap.to_seq`."""
    payload = b"".join(
        [
            HEAD.pack(gap.to_seq, gap.cause, len(gap.lines), len(gap.answers)),
            *(LINE_TOTAL.pack(*line) for line in gap.lines),
            *(TOTAL.pack(*answer) for answer in gap.answers),
        ]
    )
    return encode(
        Kind.GAP,
        [encode_time(gap.span), section(Section.GAP, payload)],
        boot_id=boot_id,
        seq=seq,
        ordinal=ordinal,
    )


def decode_gap(payload: memoryview, span: Span, *, seq: int) -> Gap:
    """Read a GAP section of the frame numbered `seq`; FrameError GAP."""
    if len(payload) < HEAD.size:
        raise FrameError(Reason.GAP, f"{len(payload)} bytes")
    to_seq, cause, lines, answers = HEAD.unpack_from(payload)
    middle = HEAD.size + lines * LINE_TOTAL.size
    end = middle + answers * TOTAL.size
    if to_seq < seq or not 1 <= cause <= 3 or lines > MAX_LINES or answers > MAX_TOTALS:
        raise FrameError(Reason.GAP, f"{seq}..{to_seq}, cause {cause}")
    if end != len(payload):
        raise FrameError(Reason.GAP, f"{len(payload)} bytes, expected {end}")
    line_totals = tuple(LINE_TOTAL.iter_unpack(payload[HEAD.size : middle]))
    answer_totals = tuple(TOTAL.iter_unpack(payload[middle:end]))
    if any(left[0] >= right[0] for left, right in pairwise(line_totals)):
        raise FrameError(Reason.GAP, "lines out of order")
    if any(entry[0] >= MAX_LINES for entry in line_totals):
        raise FrameError(Reason.GAP, "a line above 3")
    if any(a[:2] >= b[:2] for a, b in pairwise(answer_totals)):
        raise FrameError(Reason.GAP, "answers out of order")
    return Gap(span, to_seq, Cause(cause), line_totals, answer_totals)
