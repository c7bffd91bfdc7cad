"""What one transaction does with a batch: decided here, done by `writer`. Pure.

For each boot: what is next in sequence is taken, the cursor moves past it, its totals are checked.
A frame that cannot be read moves the cursor too: its bytes go to quarantine and its range becomes
a gap, whose people the next totals tell. What has no time, or an unbelievable one, is held.
"""

from collections.abc import Iterable, Sequence
from operator import sub
from typing import Literal

from ext import PRESS_DELTA, Decoded, Status
from ext.layout import BUCKET_MS
from protocol.frame import EXPLAIN, Kind, Quality, Reason, Span
from protocol.gap import HEAD as GAP_HEAD
from protocol.gap import Cause, decode_gap
from protocol.health import decode_metrics
from protocol.kiosk import decode_presses
from server.ingest import sequence
from server.ingest.batch import (
    DELTAS_AT,
    DELTAS_END,
    DIGEST,
    END_MS,
    KIND,
    LINES,
    QUALITY,
    REASON,
    ROWS_AT,
    ROWS_END,
    SECTION_AT,
    SECTION_END,
    SEQ,
    START_MS,
    STATUS,
    SUMS,
    TOTALS,
    Batch,
    FrameRecord,
)
from server.ingest.places import Boot, Cursor, Piece, covering
from server.ingest.rows import (
    COUNT_DELTA,
    MAX_FINDINGS,
    NO_COUNTS,
    REFUSED_BY_DATABASE,
    Attribution,
    CountDelta,
    Finding,
    GapReason,
    GapRow,
    Held,
    Measured,
    Move,
    Plan,
    Quarantined,
    observe,
)

_COUNTER, _RENDERED = int(Kind.COUNTER), int(Status.RENDERED)  # compared a frame: no enum
MAX_ANSWERS = 1024  # of a boot: a frame tells of 256 at most, and a questionnaire may change


def plan(batch: Batch, *, only: set[int] | None = None) -> Plan:
    """Decide what of `batch` (of its frames `only`, if given) one transaction stores.

    Nothing is changed here: the boots' cursors move when the plan has been committed.
    """
    result = Plan()
    usual = only is None and not batch.condemned
    for (boot, start, end), registered in zip(batch.runs, batch.registered, strict=True):
        before = boot.cursor
        result.touched.append(boot)
        after = _straight(batch.records[start:end], before) if usual else None
        if after is not None:
            result.taken.extend(range(start, end))
        else:
            after = before
            for at in _next(result, batch, range(start, end), before, only):
                after = _take(result, batch, at, after)
        if after is not before:
            result.moves.append(Move(boot, before, after, registered))
            result.late[boot.row] = boot.device.stored_to_ms
    _collect(result, batch, whole=only is None)
    return result


def _straight(records: Sequence[FrameRecord], cursor: Cursor) -> Cursor | None:
    """Return the cursor after a run of counter frames if all is in order: the hot path.

    None if any is not next in sequence, not rendered, or its totals differ from the last.
    """
    next_seq, digest, totals, answers, _, stored_to_ms = cursor
    for record in records:
        if record[SEQ] != next_seq or record[KIND] != _COUNTER or record[STATUS] != _RENDERED:
            return None
        told = record[TOTALS]
        if tuple(map(sub, told, record[SUMS])) != totals:
            return None
        totals, digest = told, record[DIGEST]
        next_seq += 1
        if record[END_MS] > stored_to_ms:
            stored_to_ms = record[END_MS]
    return Cursor(next_seq, digest, totals, answers, False, stored_to_ms)


def _next(
    result: Plan, batch: Batch, run: range, cursor: Cursor, only: set[int] | None
) -> Iterable[int]:
    """Return the positions of a run's frames that are next; note repeats and holes."""
    run_ = [at for at in run if only is None or at in only]
    ranges = [_range(batch, at) for at in run_]
    found = sequence.take(cursor.next_seq, ranges)
    result.beyond += len(found.beyond)
    first: dict[int, int] = {
        batch.records[run_[i]][SEQ]: batch.records[run_[i]][DIGEST] for i in found.taken
    }
    for i in found.repeats:
        at = run_[i]
        _repeat(result, batch, at, first.get(batch.records[at][SEQ]))
    return [run_[i] for i in found.taken]


def _range(batch: Batch, at: int) -> tuple[int, int]:
    record = batch.records[at]
    seq = record[SEQ]
    if record[KIND] == Kind.GAP and record[STATUS] == Status.PLAIN and at not in batch.condemned:
        (to_seq,) = GAP_HEAD.unpack_from(batch.frames[at], record[SECTION_AT])[:1]
        return seq, to_seq
    return seq, seq


def _repeat(result: Plan, batch: Batch, at: int, twin: int | None) -> None:
    """Compare a repeated frame with what was stored; another digest is an incident."""
    boot, record = batch.boots[at], batch.records[at]
    result.repeats += 1
    if record[KIND] == Kind.GAP:
        return  # an agent may thin or lose what we have stored already
    stored = boot.digests.get(record[SEQ]) if twin is None else twin
    if stored is None:
        if boot.cursor.next_seq - record[SEQ] <= boot.digests.CHECKED:
            result.unverified.append((boot, at, record[DIGEST]))
    elif stored != record[DIGEST]:
        note(result, "digest mismatch", boot, record[SEQ], stored=stored, came=record[DIGEST])


def note(
    result: Plan, finding: str, boot: Boot, seq: int | None, **detail: str | int | list[int]
) -> None:
    """Add a finding, as far as there is room."""
    if len(result.findings) < MAX_FINDINGS:
        result.findings.append(Finding(finding, boot, seq, detail))


def _counter(result: Plan, batch: Batch, at: int, cursor: Cursor) -> Cursor:
    """Take a counter frame that is the next one."""
    record = batch.records[at]
    totals = record[TOTALS]
    if tuple(map(sub, totals, record[SUMS])) != cursor.totals:
        totals = _check_lines(result, batch, at, cursor)
    result.taken.append(at)
    end_ms = record[END_MS]
    stored_to_ms = end_ms if end_ms > cursor.stored_to_ms else cursor.stored_to_ms
    return Cursor(record[SEQ] + 1, record[DIGEST], totals, cursor.answers, False, stored_to_ms)


def _take(result: Plan, batch: Batch, at: int, cursor: Cursor) -> Cursor:
    """Take the frame at `at`, whatever it is; return the cursor after it."""
    record = batch.records[at]
    if at in batch.condemned:
        return _quarantine(result, batch, at, cursor)
    if record[STATUS] == Status.REFUSED:
        return _quarantine(result, batch, at, cursor)
    if record[KIND] == Kind.GAP:
        return _gap(result, batch, at, cursor)
    if record[KIND] == Kind.HEALTH:
        return _health(result, batch, at, cursor)
    if record[KIND] == Kind.COUNTER:
        if record[STATUS] == Status.RENDERED:
            return _counter(result, batch, at, cursor)
        after = _counter(result, batch, at, cursor)
    else:
        after = _kiosk(result, batch, at, cursor)
    if record[STATUS] == Status.HELD and at not in batch.split:
        _hold(result, batch, at)
        return after._replace(stored_to_ms=cursor.stored_to_ms)
    return after


def _hold(result: Plan, batch: Batch, at: int) -> None:
    record = batch.records[at]
    why: Literal["undated", "wild clock"] = "wild clock" if record[QUALITY] else "undated"
    result.held.append(Held(batch.boots[at], record[SEQ], why, batch.frames[at]))


def _quarantine(result: Plan, batch: Batch, at: int, cursor: Cursor) -> Cursor:
    record, boot = batch.records[at], batch.boots[at]
    reason, detail = record[REASON], batch.condemned.get(at, "")
    if detail:
        reason = REFUSED_BY_DATABASE
    else:
        detail = EXPLAIN[Reason(reason)]
    result.taken.append(at)
    result.quarantined.append(
        Quarantined(boot, record[SEQ], reason, detail, batch.frames[at][:61_440])
    )
    return cursor._replace(next_seq=record[SEQ] + 1, digest=record[DIGEST], open=True)


def _check_lines(result: Plan, batch: Batch, at: int, cursor: Cursor) -> tuple[int, ...]:
    """Compare a counter frame's totals with the last ones; return the new last ones."""
    record = batch.records[at]
    totals, sums = list(record[TOTALS]), list(record[SUMS])
    for line in range(4):
        if not record[LINES] >> line & 1:  # a line that this frame does not speak of
            totals[2 * line : 2 * line + 2] = cursor.totals[2 * line : 2 * line + 2]
    missing = sequence.difference(cursor.totals, sums, totals)
    if any(missing) or cursor.open:
        _unaccounted(result, batch, at, cursor, missing, ())
    return tuple(totals)


def _unaccounted(
    result: Plan,
    batch: Batch,
    at: int,
    cursor: Cursor,
    missing: tuple[int, ...],
    answers: tuple[int, ...],
) -> None:
    """Record people whom the totals hold and no frame does."""
    boot, record = batch.boots[at], batch.records[at]
    if cursor.open:  # they stand in the frame that could not be read
        if any(missing) or answers:
            result.attributions.append(Attribution(boot, record[SEQ], missing, answers))
        return
    dated = bool(record[QUALITY])
    result.gaps.append(
        GapRow(
            boot,
            _spot_at(batch, at),
            record[SEQ],
            record[SEQ],
            "totals",
            record[START_MS] if dated else None,
            record[END_MS] if dated else None,
            missing,
            answers,
        )
    )
    note(result, "totals do not add up", boot, record[SEQ], missing=[*missing, *answers])


def _spot_at(batch: Batch, at: int) -> int:
    """Return the spot where a frame's time begins, 0 if it is unassigned or undated."""
    record = batch.records[at]
    if not record[QUALITY]:
        return 0
    for piece in batch.boots[at].device.registered.pieces:
        if piece.from_ms <= record[START_MS] < piece.until_ms:
            return piece.spot
    return 0


def _kiosk(result: Plan, batch: Batch, at: int, cursor: Cursor) -> Cursor:
    record, frame = batch.records[at], batch.frames[at]
    section = memoryview(frame)[record[SECTION_AT] : record[SECTION_END]]
    span = Span(0, record[END_MS] - record[START_MS], 0, Quality.NONE)
    content = decode_presses(section, span)
    sums: dict[tuple[int, int], int] = {}
    for press in content.presses:
        key = (press.question, press.answer)
        sums[key] = sums.get(key, 0) + 1
    last = {(q, a): total for q, a, total in cursor.answers}
    told = {(q, a): total for q, a, total in content.totals}
    new = last | told
    answers: list[int] = []
    for key in sorted(told.keys() | sums.keys()):
        (missing,) = sequence.difference(
            (last.get(key, 0),), (sums.get(key, 0),), (new.get(key, 0),)
        )
        if missing:
            answers += [*key, missing]
    if answers or cursor.open:
        _unaccounted(result, batch, at, cursor, NO_COUNTS, tuple(answers))
    result.taken.append(at)
    return Cursor(
        record[SEQ] + 1,
        record[DIGEST],
        cursor.totals,
        _kept(new, told),
        False,
        max(cursor.stored_to_ms, record[END_MS]) if record[QUALITY] else cursor.stored_to_ms,
    )


def _kept(
    answers: dict[tuple[int, int], int], told: dict[tuple[int, int], int]
) -> tuple[tuple[int, int, int], ...]:
    """Return a cursor's answers; beyond MAX_ANSWERS those that were `told` last."""
    kept = answers if len(answers) <= MAX_ANSWERS else told
    return tuple((q, a, total) for (q, a), total in sorted(kept.items()))


def _gap(result: Plan, batch: Batch, at: int, cursor: Cursor) -> Cursor:
    record, boot = batch.records[at], batch.boots[at]
    section = memoryview(batch.frames[at])[record[SECTION_AT] : record[SECTION_END]]
    span = Span(0, record[END_MS] - record[START_MS], 0, Quality.NONE)
    gap = decode_gap(section, span, seq=record[SEQ])
    totals = list(cursor.totals)
    for line, total_in, total_out in gap.lines:
        totals[2 * line : 2 * line + 2] = total_in, total_out
    missing = sequence.difference(cursor.totals, NO_COUNTS, totals)
    answers = {(q, a): total for q, a, total in cursor.answers}
    told = {(q, a): total for q, a, total in gap.answers}
    unplaced: list[int] = []
    for question, answer, total in gap.answers:
        last = answers.get((question, answer), 0)
        if total != last:
            unplaced += [question, answer, *sequence.difference((last,), (0,), (total,))]
        answers[question, answer] = total
    dated = bool(record[QUALITY]) and _believable(batch, at)
    result.gaps.append(
        GapRow(
            boot,
            _spot_at(batch, at) if dated else 0,
            max(record[SEQ], cursor.next_seq),
            gap.to_seq,
            _GAP_REASON[gap.cause],
            record[START_MS] if dated else None,
            record[END_MS] if dated else None,
            missing,
            tuple(unplaced),
        )
    )
    if not dated:
        _hold(result, batch, at)
    result.taken.append(at)
    return Cursor(
        gap.to_seq + 1,
        record[DIGEST],
        tuple(totals),
        _kept(answers, told),
        False,
        max(cursor.stored_to_ms, record[END_MS]) if dated else cursor.stored_to_ms,
    )


_GAP_REASON: dict[Cause, GapReason] = {
    Cause.THINNED: "thinned",
    Cause.ROTTED: "rotted",
    Cause.FORGOTTEN: "forgotten",
}


def _believable(batch: Batch, at: int) -> bool:
    """True if a dated frame without readings lies within the window its device may speak of."""
    record = batch.records[at]
    pieces = batch.boots[at].device.registered.pieces
    return bool(
        covering(
            pieces,
            first_ms=record[START_MS],
            end_ms=max(record[END_MS], record[START_MS] + 1),
            now_ms=batch.now_ms,
        )
    )


def _health(result: Plan, batch: Batch, at: int, cursor: Cursor) -> Cursor:
    record, boot = batch.records[at], batch.boots[at]
    after = cursor._replace(next_seq=record[SEQ] + 1, digest=record[DIGEST])
    result.taken.append(at)
    if not record[QUALITY] or not _believable(batch, at):
        _hold(result, batch, at)
        return after
    section = memoryview(batch.frames[at])[record[SECTION_AT] : record[SECTION_END]]
    values = decode_metrics(section, Span(0, 0, 0, Quality.NONE)).values
    result.measured.append(
        Measured(boot, record[SEQ], record[DIGEST], record[END_MS], tuple(values.items()))
    )
    return after._replace(stored_to_ms=max(cursor.stored_to_ms, record[END_MS]))


def _collect(result: Plan, batch: Batch, *, whole: bool) -> None:
    """Gather the rows and deltas of the frames that were taken."""
    decoded, records = batch.decoded, batch.records
    assert decoded is not None
    taken = result.taken
    odd = bool(batch.split) or bool(batch.condemned)
    if whole and len(taken) == len(batch.frames) and not odd:
        result.readings, result.presses = decoded.readings, decoded.presses
        result.counts = decoded.count_deltas
        result.answers = list(PRESS_DELTA.iter_unpack(decoded.press_deltas))
    else:
        _collect_some(result, batch, decoded)
    if any(piece.imported for piece in {id(p): p for p in batch.pieces}.values()):
        _note_imports(result, batch)
    stretches: list[CountDelta] = []
    observed = [
        _observe(stretches, batch, at)
        for at in taken
        if records[at][KIND] == Kind.KIOSK and at not in batch.condemned
    ]
    if observed:
        result.readings = b"".join((result.readings, *observed))
        result.counts += b"".join(COUNT_DELTA.pack(*delta) for delta in stretches)


def _collect_some(result: Plan, batch: Batch, decoded: Decoded) -> None:
    readings: list[bytes] = []
    presses: list[bytes] = []
    counts: list[bytes] = []
    answers: list[bytes] = []
    for at in result.taken:
        if at in batch.condemned:
            continue
        record = batch.records[at]
        source = decoded
        if at in batch.split:
            source = batch.split[at][0]
            (record,) = _records(source)
        elif record[STATUS] != Status.RENDERED:
            continue
        rows = slice(record[ROWS_AT], record[ROWS_END])
        if record[KIND] == Kind.COUNTER:
            size = COUNT_DELTA.size
            readings.append(source.readings[rows])
            counts.append(source.count_deltas[record[DELTAS_AT] * size : record[DELTAS_END] * size])
        else:
            size = PRESS_DELTA.size
            presses.append(source.presses[rows])
            answers.append(
                source.press_deltas[record[DELTAS_AT] * size : record[DELTAS_END] * size]
            )
    result.readings, result.presses = b"".join(readings), b"".join(presses)
    result.counts = b"".join(counts)
    result.answers = list(PRESS_DELTA.iter_unpack(b"".join(answers)))


def _records(decoded: Decoded) -> list[FrameRecord]:
    return [(*r[:17], *r[17], *r[18]) for r in decoded.frames()]


def _note_imports(result: Plan, batch: Batch) -> None:
    """Note which buckets hold counts that came under a backfill grant."""
    windows = {
        (batch.boots[at].row, piece.from_ms, piece.until_ms)
        for at in result.taken
        for piece in (batch.split[at][1] if at in batch.split else [batch.pieces[at]])
        if piece.imported
    }
    by_boot: dict[int, list[tuple[int, int]]] = {}
    for row, low, high in windows:
        by_boot.setdefault(row, []).append((low, high))
    for key, bucket, *_ in COUNT_DELTA.iter_unpack(result.counts):
        if any(low <= bucket + BUCKET_MS - 1 and bucket < high
               for low, high in by_boot.get(key >> 32, ())):  # fmt: skip
            result.imported.add((key & 0xFFFF_FFFF, bucket))


def _observe(into: list[CountDelta], batch: Batch, at: int) -> bytes:
    """Add what a kiosk frame observed: no counts, but the stretch in which presses were heard."""
    record, boot = batch.records[at], batch.boots[at]
    pieces: Sequence[Piece]
    if at in batch.split:
        pieces = batch.split[at][1]
    elif record[STATUS] == Status.RENDERED:
        pieces = [batch.pieces[at]]
    else:
        return b""
    return observe(
        into,
        boot.row,
        pieces,
        seq=record[SEQ],
        digest=record[DIGEST],
        start_ms=record[START_MS],
        end_ms=record[END_MS],
    )
