"""Frames of a device that is not admitted: refused, and what they held recorded as a gap.

Such a frame moves no cursor and gets no receipt, so the device keeps it. What its totals say is
written down meanwhile: people who were counted and have no place yet.

Invariants:
- A boot has one such gap, from its cursor on; it grows by the frame that is next after it, as the
  cursor itself would. So repeats and holes add nothing, and its people are the difference between
  its last frame's totals and the cursor's.
- It is written under the lock of the device's row, and only if the device is not admitted then.
- A boot is made only with the frame that begins it: so each that is made has a gap, and the limit
  on gaps is the limit on boots.
- When the device is let in again and a cursor moves, the gap gives up what the cursor has taken, in
  the transaction that moves it: at each commit the people stored and those in the gap are the same
  together. What is filled wholly says when.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from ext import RECORD, Place, Status, decode
from ext.layout import BUCKET_MS
from protocol.frame import Kind, Quality, Span
from protocol.gap import decode_gap
from protocol.kiosk import decode_presses
from server import log
from server.clock import at as at_time
from server.db.engine import transaction_on
from server.ingest import closing, cursors, sequence
from server.ingest.batch import (
    BOOT_ID,
    END_MS,
    KIND,
    LINES,
    ORDINAL,
    QUALITY,
    SECTION_AT,
    SECTION_END,
    SEQ,
    START_MS,
    STATUS,
    TOTALS,
    FrameRecord,
)
from server.ingest.places import Boot, Cursor, Device, Digests
from server.ingest.rows import NO_COUNTS, Move
from server.ingest.writer import MOST_A_BUCKET

MAX_BOOTS = 32  # of a device, that begin while it is not admitted: more are not written down
_NO_TIME = 1 << 62
_log = log.get("ingest")

_OPEN = """
select boot, from_seq, to_seq, counts, answers,
  (extract(epoch from from_at) * 1000)::bigint as from_ms,
  (extract(epoch from until_at) * 1000)::bigint as until_ms
from gaps where boot = any($1::int[]) and reason = 'refused' and filled_at is null
order by boot for update
"""
_ADD = """
insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, until_at,
  reason, counts, answers)
values ($1, $2, $3, nullif($4::int, 0), $5, $6, $7, $8, 'refused', $9, $10)
"""
_GROW = """
update gaps set from_seq = $2, to_seq = $3, from_at = $4, until_at = $5, counts = $6, answers = $7
where boot = $1 and reason = 'refused' and filled_at is null
"""
_FILLED = """
update gaps set filled_at = now() where boot = $1 and reason = 'refused' and filled_at is null
"""

Answers = dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Refused:
    """A boot's frames `from_seq` to `to_seq`, and who they say was counted since the cursor."""

    from_seq: int
    to_seq: int
    from_ms: int | None
    until_ms: int | None
    counts: tuple[int, ...]
    answers: tuple[int, ...]


def grown(
    before: Refused | None, cursor: Cursor, frames: Sequence[tuple[FrameRecord, bytes]]
) -> Refused | None:
    """Return the gap with those of `frames` that are next after it; `before` if none is. Pure."""
    next_seq = cursor.next_seq if before is None else before.to_seq + 1
    taken = sequence.take(next_seq, [_range(record, frame) for record, frame in frames]).taken
    if not taken:
        return before
    start_ms = _NO_TIME if before is None or before.from_ms is None else before.from_ms
    end_ms = -_NO_TIME if before is None or before.until_ms is None else before.until_ms
    totals, answers = _base(before, cursor)
    for i in taken:
        record, frame = frames[i]
        next_seq = _range(record, frame)[1] + 1
        if record[STATUS] == Status.REFUSED:
            continue
        span_ms = record[END_MS] - record[START_MS]
        if record[QUALITY]:
            start_ms, end_ms = min(start_ms, record[START_MS]), max(end_ms, record[END_MS])
        told, told_answers = _told(record, frame, totals)
        if _believable(totals, told, answers, told_answers, span_ms=span_ms):
            totals = told
            answers |= told_answers
    return Refused(
        cursor.next_seq if before is None else before.from_seq,
        next_seq - 1,
        None if start_ms == _NO_TIME else start_ms,
        None if end_ms == -_NO_TIME else end_ms,
        sequence.difference(cursor.totals, NO_COUNTS, totals),
        _since(cursor.answers, answers),
    )


def shrunk(gap: Refused, before: Cursor, after: Cursor) -> Refused | None:
    """Return what is left of a gap when its boot's cursor moves; None if all is filled. Pure."""
    if after.next_seq > gap.to_seq:
        return None
    taken = sequence.difference(before.totals, NO_COUNTS, after.totals)
    _, answers = _base(gap, before)
    from_ms = gap.from_ms
    if from_ms is not None and gap.until_ms is not None:
        from_ms = min(max(from_ms, after.stored_to_ms), gap.until_ms)
    return Refused(
        after.next_seq,
        gap.to_seq,
        from_ms,
        gap.until_ms,
        tuple(max(0, held - n) for held, n in zip(gap.counts, taken, strict=True)),
        _since(after.answers, answers),
    )


def _range(record: FrameRecord, frame: bytes) -> tuple[int, int]:
    seq = record[SEQ]
    if record[KIND] == Kind.GAP and record[STATUS] == Status.PLAIN:
        return seq, decode_gap(_section(record, frame), _NO_SPAN, seq=seq).to_seq
    return seq, seq


_NO_SPAN = Span(0, 0, 0, Quality.NONE)


def _section(record: FrameRecord, frame: bytes) -> memoryview:
    return memoryview(frame)[record[SECTION_AT] : record[SECTION_END]]


def _base(gap: Refused | None, cursor: Cursor) -> tuple[tuple[int, ...], Answers]:
    """Return the totals at the gap's end: the cursor's and what the gap holds."""
    answers = {(q, a): total for q, a, total in cursor.answers}
    if gap is None:
        return cursor.totals, answers
    flat = gap.answers
    for q, a, n in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        answers[q, a] = (answers.get((q, a), 0) + n) & 0xFFFF_FFFF
    totals = tuple(
        (total + n) & 0xFFFF_FFFF for total, n in zip(cursor.totals, gap.counts, strict=True)
    )
    return totals, answers


def _told(
    record: FrameRecord, frame: bytes, totals: tuple[int, ...]
) -> tuple[tuple[int, ...], Answers]:
    """Return the totals after a frame; lines that it does not speak of stay as they are."""
    if record[KIND] == Kind.COUNTER:
        lines, new = record[LINES], record[TOTALS]
        return tuple(new[i] if lines >> i // 2 & 1 else totals[i] for i in range(8)), {}
    if record[KIND] == Kind.GAP:
        gap = decode_gap(_section(record, frame), _NO_SPAN, seq=record[SEQ])
        told = list(totals)
        for line, entered, left in gap.lines:
            told[2 * line : 2 * line + 2] = entered, left
        return tuple(told), {(q, a): total for q, a, total in gap.answers}
    if record[KIND] == Kind.KIOSK:
        span = Span(0, record[END_MS] - record[START_MS], 0, Quality.NONE)
        content = decode_presses(_section(record, frame), span)
        return totals, {(q, a): total for q, a, total in content.totals}
    return totals, {}


def _believable(
    totals: tuple[int, ...],
    told: tuple[int, ...],
    answers: Answers,
    told_answers: Answers,
    *,
    span_ms: int,
) -> bool:
    """False for more than anyone counts in the time: nothing else checks these totals."""
    most = MOST_A_BUCKET * (1 + max(0, span_ms) // BUCKET_MS)
    steps = [
        *sequence.difference(totals, NO_COUNTS, told),
        *sequence.difference(
            [answers.get(key, 0) for key in told_answers],
            [0] * len(told_answers),
            told_answers.values(),
        ),
    ]
    return all(0 <= step <= most for step in steps)


def _since(last: Iterable[tuple[int, int, int]], answers: Answers) -> tuple[int, ...]:
    """Return the presses since `last`, flat: question, answer, number."""
    before = {(q, a): total for q, a, total in last}
    flat: list[int] = []
    for key, total in sorted(answers.items()):
        (presses,) = sequence.difference((before.get(key, 0),), (0,), (total,))
        if presses > 0:
            flat += [*key, presses]
    return tuple(flat)


async def note(connection: asyncpg.Connection, barred: Sequence[tuple[Device, bytes]]) -> None:
    """Write down what refused frames held, of devices that are still not admitted."""
    devices = {device.row: device for device, _ in barred}
    async with transaction_on(connection, "note refused frames"):
        out = await connection.fetch(
            "select id, not admitted as out from devices where id = any($1::int[]) "
            "order by id for share",
            sorted(devices),
        )
        refused = {row["id"] for row in out if row["out"]}
        for row in out:
            if not row["out"]:
                devices[row["id"]].loaded_at = -1e9  # it is let in again: read it anew
        frames = _by_boot([(d, frame) for d, frame in barred if d.row in refused])
        for boot, open_ in (await _open(connection, frames)).items():
            after = grown(open_, boot.cursor, frames[boot])
            if after is not None and after is not open_:
                await _keep(connection, boot, after, grows=open_ is not None)
                boot.device.boots.pop(boot.boot_id, None)  # what memory holds knows of no gap
                _log.info("frames refused", device=boot.device.name, to_seq=after.to_seq)


def _by_boot(
    barred: Sequence[tuple[Device, bytes]],
) -> dict[Boot, list[tuple[FrameRecord, bytes]]]:
    if not barred:
        return {}
    places = [Place(0, 0, 0, 0)] * len(barred)
    records = RECORD.iter_unpack(decode([frame for _, frame in barred], places).records)
    boots: dict[tuple[int, int], Boot] = {}
    found: dict[Boot, list[tuple[FrameRecord, bytes]]] = {}
    for record, (device, frame) in zip(records, barred, strict=True):
        key = device.row, record[BOOT_ID]
        if key not in boots:
            boots[key] = Boot(0, device, record[BOOT_ID], record[ORDINAL], Cursor(), Digests())
        found.setdefault(boots[key], []).append((record, frame))
    return found


async def _open(
    connection: asyncpg.Connection, frames: Mapping[Boot, Sequence[tuple[FrameRecord, bytes]]]
) -> Mapping[Boot, Refused | None]:
    """Lock the frames' boots, made or opened if need be, and return each one's gap."""
    boots = list(frames)
    if not boots:
        return {}
    missing = await cursors.read(connection, boots)
    begun = [boot for boot in missing if any(record[SEQ] == 0 for record, _ in frames[boot])]
    new = await _few(connection, begun)
    if new:
        await cursors.make(connection, new)
        await cursors.read(connection, new)
    known = [boot for boot in boots if boot.row]
    await closing.reopen(connection, [boot for boot in known if boot.closed])
    if not await cursors.lock(connection, known):
        return {}  # closed just now; the device sends again
    gaps = {row["boot"]: row for row in await connection.fetch(_OPEN, [b.row for b in known])}
    return {boot: _refused(gaps.get(boot.row)) for boot in known}


async def _few(connection: asyncpg.Connection, missing: Sequence[Boot]) -> list[Boot]:
    """Return those of the boots that begin now, as many of a device as may be written down."""
    rows = await connection.fetch(
        "select device_id, count(*) as held from gaps where device_id = any($1::int[]) "
        "and reason = 'refused' and filled_at is null group by 1",
        [boot.device.row for boot in missing],
    )
    room = {row["device_id"]: MAX_BOOTS - row["held"] for row in rows}
    few: list[Boot] = []
    for boot in missing:
        room[boot.device.row] = left = room.get(boot.device.row, MAX_BOOTS) - 1
        if left >= 0:
            few.append(boot)
    return few


def _refused(row: asyncpg.Record | None) -> Refused | None:
    if row is None:
        return None
    return Refused(
        row["from_seq"],
        row["to_seq"],
        row["from_ms"],
        row["until_ms"],
        tuple(row["counts"]),
        tuple(row["answers"]),
    )


async def _keep(connection: asyncpg.Connection, boot: Boot, gap: Refused, *, grows: bool) -> None:
    instants = [None if ms is None else at_time(ms) for ms in (gap.from_ms, gap.until_ms)]
    if grows:
        values = (gap.from_seq, gap.to_seq, *instants, gap.counts, gap.answers)
        await connection.execute(_GROW, boot.row, *values)
        return
    registered = boot.device.registered
    spot = 0
    if gap.from_ms is not None:
        spot = next((p.spot for p in registered.pieces if p.from_ms <= gap.from_ms < p.until_ms), 0)
    await connection.execute(
        _ADD,
        registered.organisation,
        boot.device.row,
        boot.row,
        spot,
        gap.from_seq,
        gap.to_seq,
        *instants,
        gap.counts,
        gap.answers,
    )


async def fill(connection: asyncpg.Connection, moves: Sequence[Move]) -> None:
    """Take out of the gaps what these moves store, within the transaction that stores it."""
    by_row = {move.boot.row: move for move in moves}
    for row in await connection.fetch(_OPEN, list(by_row)):
        move, gap = by_row[row["boot"]], _refused(row)
        assert gap is not None
        left = shrunk(gap, move.before, move.after)
        if left is None:
            await connection.execute(_FILLED, move.boot.row)
        else:
            await _keep(connection, move.boot, left, grows=True)
