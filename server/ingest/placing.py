"""Rendering frames after the fact, one by one: what was held, and what was re-driven.

It is the slow twin of the batch: Python's decoder, any pieces, a learnt offset; the rows and sums
are the same as if the frame had been placed when it came.
"""

from dataclasses import dataclass, field

import asyncpg

from ext import PRESS_DELTA, place
from ext.layout import PRESSES_COLUMNS, READINGS_COLUMNS
from protocol.counter import decode_lines
from protocol.frame import (
    Kind,
    Quality,
    Section,
    Span,
    decode_time,
    need,
    read_body,
    read_header,
)
from protocol.health import decode_metrics
from server.clock import at as at_time
from server.ingest.places import Boot, Piece, covering, place_in
from server.ingest.rows import COUNT_DELTA, CountDelta, Measured, PressDelta, observe
from server.ingest.writer import add_answers, add_counts, add_metrics, copy


@dataclass(slots=True)
class Placed:
    """What some frames of one boot store; `wild` are those without a believable time."""

    readings: list[bytes] = field(default_factory=list)
    presses: list[bytes] = field(default_factory=list)
    counts: list[CountDelta] = field(default_factory=list)
    answers: list[PressDelta] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    imported: set[tuple[int, int]] = field(default_factory=set)
    gaps: list[tuple[int, int, int, int]] = field(default_factory=list)  # seq, from, until, spot
    done: list[int] = field(default_factory=list)
    wild: list[int] = field(default_factory=list)
    end_ms: int = 0


def place_frame(
    turn: Placed, boot: Boot, frame: bytes, *, offset_ms: int | None, now_ms: int
) -> None:
    header = read_header(frame)
    sections = read_body(frame, header)
    span = decode_time(need(sections, Section.TIME))
    learnt = None
    if span.quality is Quality.NONE:
        if offset_ms is None:
            return
        learnt = offset_ms
        span = Span(span.start_ms, span.span_ms, learnt, Quality.ESTIMATED)
    start_ms, end_ms = span.utc_ms, span.utc_ms + span.span_ms
    first_ms = start_ms
    if header.kind == Kind.COUNTER:
        counts = decode_lines(need(sections, Section.LINES), decode_time(sections[Section.TIME]))
        first_ms = min(start_ms, counts.first_cell_ms(learnt))
        end_ms = max(end_ms, first_ms + 1)
    pieces = covering(
        boot.device.registered.pieces,
        first_ms=first_ms,
        end_ms=max(end_ms, first_ms + 1),
        now_ms=now_ms,
    )
    if not pieces:
        turn.wild.append(header.seq)
        return
    turn.done.append(header.seq)
    turn.end_ms = max(turn.end_ms, end_ms)
    if header.kind == Kind.HEALTH:
        values = decode_metrics(need(sections, Section.METRICS), span).values
        turn.measured.append(
            Measured(boot, header.seq, header.digest, end_ms, tuple(values.items()))
        )
    elif header.kind == Kind.GAP:
        turn.gaps.append((header.seq, start_ms, end_ms, pieces[0].spot))
    else:
        _render(turn, boot, frame, pieces, offset_ms=learnt, now_ms=now_ms)
        if header.kind == Kind.KIOSK:
            turn.readings.append(
                observe(
                    turn.counts,
                    boot.row,
                    pieces,
                    seq=header.seq,
                    digest=header.digest,
                    start_ms=start_ms,
                    end_ms=end_ms,
                )
            )


def _render(
    turn: Placed,
    boot: Boot,
    frame: bytes,
    pieces: list[Piece],
    *,
    offset_ms: int | None,
    now_ms: int,
) -> None:
    for piece in pieces:
        decoded = place(frame, [place_in(boot.row, piece, now_ms=now_ms)], offset_ms=offset_ms)
        turn.readings.append(decoded.readings)
        turn.presses.append(decoded.presses)
        counts = list(COUNT_DELTA.iter_unpack(decoded.count_deltas))
        turn.counts += counts
        turn.answers += PRESS_DELTA.iter_unpack(decoded.press_deltas)
        if piece.imported:
            turn.imported |= {(delta[0] & 0xFFFF_FFFF, delta[1]) for delta in counts}


async def store(
    connection: asyncpg.Connection, boot: Boot, turn: Placed, *, revise: bool = False
) -> None:
    """Write what was rendered, within the caller's transaction; `revise` revises each bucket."""
    late = {boot.row: boot.device.stored_to_ms}
    await copy(connection, "readings", READINGS_COLUMNS, b"".join(turn.readings))
    await copy(connection, "presses", PRESSES_COLUMNS, b"".join(turn.presses))
    if turn.counts:
        await add_counts(connection, turn.counts, late=late, imported=turn.imported, revise=revise)
    if turn.answers:
        await add_answers(connection, turn.answers, late=late, revise=revise)
    await add_metrics(connection, turn.measured)
    for seq, start_ms, end_ms, spot in turn.gaps:
        await connection.execute(
            "update gaps set from_at = $3, until_at = $4, spot_id = nullif($5::int, 0) "
            "where boot = $1 and $2 between from_seq and to_seq and from_at is null",
            *(boot.row, seq, at_time(start_ms), at_time(end_ms), spot),
        )
    if turn.done:
        await connection.execute(
            "update boots set stored_to = greatest(stored_to, $2) where id = $1",
            boot.row,
            at_time(turn.end_ms),
        )
