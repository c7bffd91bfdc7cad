"""The decoder in Python: what the compiled one must equal, and what runs where it is absent.

`decode` is the hot path's twin. `place` is the slow path of both: one frame over several places
(a swap in the middle of it) or with an offset that became known later.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ext.layout import (
    BUCKET_MS,
    COUNT_DELTA,
    COUNT_ROW,
    PRESS_DELTA,
    RECORD,
    SLOT_MS,
    Decoded,
    Place,
    Status,
)
from protocol.counter import Counts, decode_lines
from protocol.crc import crc32c as crc32c
from protocol.frame import (
    FrameError,
    Header,
    Kind,
    Quality,
    Reason,
    Section,
    Span,
    decode_time,
    need,
    read_body,
    read_header,
    signed,
)
from protocol.gap import decode_gap
from protocol.health import decode_metrics
from protocol.kiosk import Presses, decode_presses
from protocol.session import decode_greeting, read_downlink

PG_EPOCH_MS = 946_684_800_000  # 2000-01-01T00:00:00Z
EARLIEST_MS = PG_EPOCH_MS  # a dated frame before this century has a wild clock
LATEST_MS = 4_102_444_800_000  # 2100-01-01T00:00:00Z
_NO_COUNTS = (0,) * 8
_ROW = struct.Struct(">hiq" + "ii" * 6 + "ihihi")
_ARRAY = struct.Struct(">iiIii")
_PRESS_ROW = struct.Struct(">hiqiQiiii" + "iI" * 3 + "ihihih")


class Read(NamedTuple):
    """A frame as read: `content` is what its kind's section says, None for session frames."""

    header: Header
    span: Span | None
    content: Counts | Presses | None
    section: tuple[int, int]


def read(data: bytes, header: Header) -> Read:
    """Read the body of a frame whose header is good; FrameError with a body's reason."""
    sections = read_body(data, header)
    kind = Kind(header.kind)
    wanted = Section(_SECTION_OF[kind])
    if wanted in (Section.RECEIPT, Section.ANSWER):
        read_downlink(header, sections)
        return Read(header, None, None, (0, 0))
    span = decode_time(need(sections, Section.TIME))
    payload = need(sections, wanted)
    content: Counts | Presses | None = None
    if kind is Kind.COUNTER:
        content = decode_lines(payload, span)
    elif kind is Kind.KIOSK:
        content = decode_presses(payload, span)
    elif kind is Kind.HEALTH:
        decode_metrics(payload, span)
    elif kind is Kind.GAP:
        decode_gap(payload, span, seq=header.seq)
    else:
        decode_greeting(payload, span)
    return Read(header, span, content, _where(data, wanted))


_SECTION_OF = {
    Kind.COUNTER: 2,
    Kind.KIOSK: 3,
    Kind.HEALTH: 4,
    Kind.GAP: 5,
    Kind.HELLO: 16,
    Kind.RECEIPT: 32,
    Kind.ANSWER: 33,
}


def _where(data: bytes, wanted: Section) -> tuple[int, int]:
    """Return the byte range of a section's payload in a frame whose framing is good."""
    at = 32
    while True:
        kind, length = data[at], int.from_bytes(data[at + 2 : at + 4], "little")
        if kind == wanted:
            return at + 4, at + 4 + length
        at += 4 + length


class _Batch:
    """The five buffers while they fill."""

    def __init__(self) -> None:
        self.records = bytearray()
        self.readings = bytearray()
        self.presses = bytearray()
        self.count_deltas = bytearray()
        self.press_deltas = bytearray()

    def done(self) -> Decoded:
        return Decoded(
            bytes(self.records),
            bytes(self.readings),
            bytes(self.presses),
            bytes(self.count_deltas),
            bytes(self.press_deltas),
        )


def decode(frames: Sequence[bytes], places: Sequence[Place]) -> Decoded:
    """Decode `frames`, the i-th into `places[i]`; never raises for what a frame holds."""
    if len(frames) != len(places):
        raise ValueError(f"{len(frames)} frames, {len(places)} places")
    batch = _Batch()
    for data, where in zip(frames, places, strict=True):
        try:
            header = read_header(data)
        except FrameError as error:
            batch.records += _refusal(error.reason, None)
            continue
        try:
            found = read(data, header)
        except FrameError as error:
            batch.records += _refusal(error.reason, header)
            continue
        _append(batch, found, [where], offset_ms=None)
    return batch.done()


_PLACE = struct.Struct("<iiqq")


def pack_places(places: Sequence[Place]) -> bytes:
    """Return `places` as `decode_packed` takes them: boot, spot, from_ms, until_ms."""
    return b"".join(_PLACE.pack(*where) for where in places)


def decode_packed(frames: Sequence[bytes], packed: bytes) -> Decoded:
    """Decode `frames` with `packed` places, as `pack_places` made them."""
    if len(packed) != len(frames) * _PLACE.size:
        raise ValueError(f"{len(frames)} frames, {len(packed) / _PLACE.size:g} places")
    return decode(frames, [Place._make(fields) for fields in _PLACE.iter_unpack(packed)])


def scan(frames: Sequence[bytes]) -> list[tuple[int, int, int, int, int]]:
    """Return (reason, kind, boot_id, seq, ordinal) a frame, from its checked header alone."""
    seen: list[tuple[int, int, int, int, int]] = []
    for data in frames:
        try:
            header = read_header(data)
        except FrameError as error:
            seen.append((int(error.reason), 0, 0, 0, 0))
        else:
            seen.append((0, header.kind, header.boot_id, header.seq, header.ordinal))
    return seen


def sum_counts(deltas: bytes, late: dict[int, int]) -> bytes:
    """Return `deltas` summed by spot and bucket, in that order, as COUNT_ROWs.

    A row is late if any of its boots had stored up to its bucket's end before: `late` is by boot,
    in ms; KeyError if one is not there. A sum above i32 is as large as i32 can tell.
    """
    sums: dict[tuple[int, int], list[int]] = {}
    for delta in COUNT_DELTA.iter_unpack(deltas):
        spot, boot, bucket_ms, observed, resolution_s, lines, *counts = delta
        row = sums.setdefault((spot, bucket_ms), [0] * 12)
        row[0] |= observed
        row[1] = max(row[1], resolution_s)
        row[2] |= bucket_ms + BUCKET_MS <= late[boot]
        row[3] |= lines
        row[4:] = [min(a + b, 0x7FFF_FFFF) for a, b in zip(row[4:], counts, strict=True)]
    return b"".join(
        COUNT_ROW.pack(spot, bucket_ms // BUCKET_MS, *row)
        for (spot, bucket_ms), row in sorted(sums.items())
    )


def place(data: bytes, pieces: Sequence[Place], *, offset_ms: int | None = None) -> Decoded:
    """Render one good frame over several places, with `offset_ms` if it carries none.

    A reading goes to the piece in which its interval begins to be observed; those in no piece are
    left out. The writer gives pieces that cover all time, unassigned ones with spot 0.
    """
    batch = _Batch()
    found = read(data, read_header(data))
    _append(batch, found, pieces, offset_ms=offset_ms, split=True)
    return batch.done()


def _refusal(reason: Reason, header: Header | None) -> bytes:
    if header is None:
        return RECORD.pack(Status.REFUSED, reason, *([0] * 31))
    return RECORD.pack(
        Status.REFUSED,
        reason,
        header.kind,
        0,
        0,
        header.seq,
        header.boot_id,
        header.ordinal,
        header.digest,
        *([0] * 24),
    )


def _append(
    batch: _Batch,
    found: Read,
    pieces: Sequence[Place],
    *,
    offset_ms: int | None,
    split: bool = False,
) -> None:
    """Render what is renderable and append the frame's record."""
    header, span, content, section_range = found
    start_ms = end_ms = quality = 0
    if span is not None:
        quality = span.quality
        start_ms = span.start_ms
        if quality is not Quality.NONE:
            start_ms = span.utc_ms
        elif offset_ms is not None:
            start_ms = span.start_ms + offset_ms
        end_ms = start_ms + span.span_ms
    rows, deltas = (batch.readings, batch.count_deltas)
    delta_size = COUNT_DELTA.size
    if isinstance(content, Presses):
        rows, deltas, delta_size = batch.presses, batch.press_deltas, PRESS_DELTA.size
    rows_at, deltas_at = len(rows), len(deltas)
    status = Status.PLAIN
    if content is not None:
        dated = quality != Quality.NONE or offset_ms is not None
        fits = dated and start_ms >= EARLIEST_MS and end_ms <= LATEST_MS
        if fits and not split:
            fits = pieces[0].from_ms <= start_ms and end_ms <= pieces[0].until_ms
        status = Status.RENDERED if fits else Status.HELD
        for piece in pieces if fits else ():
            if isinstance(content, Counts):
                first = content.first_cell_ms(offset_ms)
                _render_counts(batch, header, content, piece, first_ms=first, start_ms=start_ms)
            else:
                _render_presses(batch, header, content, piece, start_ms=start_ms)
    lines, totals, sums = _line_totals(content)
    batch.records += RECORD.pack(
        status,
        Reason.OK,
        header.kind,
        lines,
        quality,
        header.seq,
        header.boot_id,
        header.ordinal,
        header.digest,
        start_ms,
        end_ms,
        rows_at,
        len(rows),
        deltas_at // delta_size,
        len(deltas) // delta_size,
        *section_range,
        *totals,
        *sums,
    )


def _line_totals(content: Counts | Presses | None) -> tuple[int, list[int], list[int]]:
    lines, totals, sums = 0, list(_NO_COUNTS), list(_NO_COUNTS)
    if isinstance(content, Counts):
        for line in content.lines:
            at = 2 * line.line
            lines |= 1 << line.line
            totals[at : at + 2] = line.total_in, line.total_out
            sums[at : at + 2] = sum(line.counts[::2]), sum(line.counts[1::2])
    return lines, totals, sums


def _render_counts(
    batch: _Batch, header: Header, counts: Counts, piece: Place, *, first_ms: int, start_ms: int
) -> None:
    """Append the COPY rows and deltas of the cells that start within `piece`."""
    step = counts.interval_s * 1000
    observed_from = max(first_ms, start_ms)  # the first cell may be observed in part

    def beginning_before(bound_ms: int) -> int:
        """Return how many cells begin to be observed before `bound_ms`."""
        if bound_ms <= observed_from:
            return 0
        return min(-(-(bound_ms - first_ms) // step), counts.cells)

    cells = range(beginning_before(piece.from_ms), beginning_before(piece.until_ms))
    if not cells:
        return
    cell_ms = first_ms + cells.start * step
    begin = max(start_ms, cell_ms) if cells.start else start_ms
    end = start_ms + counts.span.span_ms
    if cells.stop < counts.cells:
        end = min(end, first_ms + cells.stop * step)
    for line in counts.lines:
        values = line.counts[2 * cells.start : 2 * cells.stop]
        batch.readings += _ROW.pack(
            10, 8, (cell_ms - PG_EPOCH_MS) * 1000, 4, piece.spot, 4, piece.boot,
            4, signed(header.seq, 32), 4, signed(header.digest, 32), 4, begin - cell_ms,
            4, end - begin, 2, line.line, 2, counts.interval_s, 20 + 6 * len(values),
        )  # fmt: skip
        batch.readings += _ARRAY.pack(1, 0, 21, len(values), 1)
        batch.readings += b"".join(b"\0\0\0\x02" + v.to_bytes(2, "big") for v in values)
    if piece.spot == 0:
        return
    last_cell_ms = first_ms + (cells.stop - 1) * step
    low = min(cell_ms, begin) // BUCKET_MS * BUCKET_MS
    high = max(last_cell_ms, end - 1) // BUCKET_MS * BUCKET_MS
    sums = {bucket: [0] * 8 for bucket in range(low, high + 1, BUCKET_MS)}
    mask = 0
    for line in counts.lines:
        mask |= 1 << line.line
        for cell in cells:
            into = sums[(first_ms + cell * step) // BUCKET_MS * BUCKET_MS]
            into[2 * line.line] += line.counts[2 * cell]
            into[2 * line.line + 1] += line.counts[2 * cell + 1]
    for bucket, sum_ in sums.items():
        observed = observed_slots(bucket, begin, end)
        batch.count_deltas += COUNT_DELTA.pack(
            piece.spot, piece.boot, bucket, observed, counts.interval_s, mask, *sum_
        )


def observed_slots(bucket_ms: int, begin_ms: int, end_ms: int) -> int:
    """Return the mask of a bucket's 60 slots whose middle lies in `begin_ms` <= t < `end_ms`."""
    first = min(max(0, -(-(begin_ms - bucket_ms - SLOT_MS // 2) // SLOT_MS)), 60)
    last = min(max(0, -(-(end_ms - bucket_ms - SLOT_MS // 2) // SLOT_MS)), 60)
    return (1 << last) - (1 << first) if last > first else 0


def _render_presses(
    batch: _Batch, header: Header, presses: Presses, piece: Place, *, start_ms: int
) -> None:
    questionnaire = int.from_bytes(presses.questionnaire, "big")
    sums: dict[tuple[int, int, int], int] = {}
    for press in presses.presses:
        at_ms = start_ms + press.at_ds * 100
        if not piece.from_ms <= at_ms < piece.until_ms:
            continue
        batch.presses += _PRESS_ROW.pack(
            10, 8, (at_ms - PG_EPOCH_MS) * 1000, 8, questionnaire, 4, piece.spot,
            4, piece.boot, 4, header.seq, 4, header.digest, 4, press.visit,
            2, press.question, 2, press.answer, 2, press.source,
        )  # fmt: skip
        key = (at_ms // BUCKET_MS * BUCKET_MS, press.question, press.answer)
        sums[key] = sums.get(key, 0) + 1
    if piece.spot == 0:
        return
    for (bucket, question, answer), count in sorted(sums.items()):
        batch.press_deltas += PRESS_DELTA.pack(
            piece.spot, piece.boot, bucket, questionnaire, question, answer, 0, count
        )


def rows(copy: bytes) -> Iterator[list[bytes | None]]:
    """Take COPY tuples apart into fields, for tests and for `quarantine explain`."""
    at = 0
    while at < len(copy):
        (columns,) = struct.unpack_from(">h", copy, at)
        at += 2
        row: list[bytes | None] = []
        for _ in range(columns):
            (length,) = struct.unpack_from(">i", copy, at)
            at += 4
            row.append(None if length < 0 else copy[at : at + length])
            at += max(length, 0)
        yield row
