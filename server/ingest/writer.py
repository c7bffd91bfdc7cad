"""The one transaction that stores a batch: cursors, rows, rollups, gaps, all or nothing.

Invariants:
- A cursor moves by compare-and-swap on what it was when the batch was planned, and only if its
  device's assignments are those by which the batch was placed. If any differs (another worker, a
  restored database, a swap recorded just now), nothing is stored: `CursorMovedError`.
- Rows are copied without looking for duplicates, since the cursor proves each of them new.
- Nothing is said to anyone before the commit has returned.
See `ops/decisions/0003-cursor-compare-and-swap.md`.
"""

import json
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import asyncpg

from ext.layout import BUCKET_MS, PRESSES_COLUMNS, READINGS_COLUMNS
from server import metrics
from server.clock import at as at_time
from server.ingest.cursors import signed
from server.ingest.places import EVER_MS, Cursor
from server.ingest.plan import CountDelta, GapRow, Measured, Move, Plan, PressDelta

COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_TRAILER = b"\xff\xff"
MAX_METRIC_NAMES = 1000  # of the whole fleet; values of further names are not kept

_MOVE = """
update boots b set next_seq = v.next_seq, digest = v.digest,
  totals = ($4::bigint[])[v.i * 8 - 7 : v.i * 8],
  answers = coalesce(v.answers::bigint[], b.answers), totals_open = v.open,
  stored_to = case when v.stored_to is null then b.stored_to
    else greatest(b.stored_to, timestamptz 'epoch' + v.stored_to * interval '1 ms') end,
  last_stored = now()
from rows from (unnest($1::int[]), unnest($2::bigint[]), unnest($3::bigint[]),
    unnest($5::bigint[]), unnest($6::text[]), unnest($7::bool[]), unnest($8::bigint[]),
    unnest($9::bigint[]), unnest($10::int[]))
  with ordinality v (id, expected, next_seq, digest, answers, open, stored_to, boot_id, assignment_version, i)
where b.id = v.id and b.next_seq = v.expected and b.boot_id = v.boot_id and b.assignment_version = v.assignment_version
"""

_COUNTS = """
with changed as (
  insert into rollup_15m as r (bucket, observed, spot, in0, out0, in1, out1, in2, out2, in3, out3,
    revision, resolution_s, origin)
  select timestamptz 'epoch' + bucket * interval '1 ms', bit_or(observed), spot,
    case when bit_or(lines) & 1 > 0 then sum(a)::int end,
    case when bit_or(lines) & 1 > 0 then sum(b)::int end,
    case when bit_or(lines) & 2 > 0 then sum(c)::int end,
    case when bit_or(lines) & 2 > 0 then sum(d)::int end,
    case when bit_or(lines) & 4 > 0 then sum(e)::int end,
    case when bit_or(lines) & 4 > 0 then sum(f)::int end,
    case when bit_or(lines) & 8 > 0 then sum(g)::int end,
    case when bit_or(lines) & 8 > 0 then sum(h)::int end,
    max(flags & 1), max(resolution), max(flags >> 1)
  from unnest($1::int[], $2::bigint[], $3::bigint[], $4::int[], $5::int[], $6::int[], $7::int[],
    $8::int[], $9::int[], $10::int[], $11::int[], $12::int[], $13::int[], $14::int[])
    v (spot, bucket, observed, resolution, lines, flags, a, b, c, d, e, f, g, h)
  group by spot, bucket order by spot, bucket
  on conflict (spot, bucket) do update set
    observed = r.observed | excluded.observed,
    in0 = coalesce(r.in0 + excluded.in0, r.in0, excluded.in0),
    out0 = coalesce(r.out0 + excluded.out0, r.out0, excluded.out0),
    in1 = coalesce(r.in1 + excluded.in1, r.in1, excluded.in1),
    out1 = coalesce(r.out1 + excluded.out1, r.out1, excluded.out1),
    in2 = coalesce(r.in2 + excluded.in2, r.in2, excluded.in2),
    out2 = coalesce(r.out2 + excluded.out2, r.out2, excluded.out2),
    in3 = coalesce(r.in3 + excluded.in3, r.in3, excluded.in3),
    out3 = coalesce(r.out3 + excluded.out3, r.out3, excluded.out3),
    revision = r.revision + excluded.revision,
    resolution_s = greatest(r.resolution_s, excluded.resolution_s),
    origin = greatest(r.origin, excluded.origin)
  returning spot, bucket)
insert into rollup_dirty (spots, buckets) select array_agg(spot), array_agg(bucket) from changed
"""

_ANSWERS = """
with changed as (
  insert into presses_15m as r (bucket, questionnaire, spot, presses, revision, question, answer)
  select timestamptz 'epoch' + bucket * interval '1 ms', questionnaire, spot, sum(presses)::int,
    max(flags), question, answer
  from unnest($1::int[], $2::bigint[], $3::bigint[], $4::int[], $5::int[], $6::int[], $7::int[])
    v (spot, bucket, questionnaire, question, answer, presses, flags)
  group by spot, bucket, questionnaire, question, answer order by spot, bucket
  on conflict (spot, bucket, questionnaire, question, answer) do update set
    presses = r.presses + excluded.presses, revision = r.revision + excluded.revision
  returning spot, bucket)
insert into rollup_dirty (spots, buckets) select array_agg(spot), array_agg(bucket) from
  (select distinct spot, bucket from changed) once
"""

_GAP = """
insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, until_at,
  reason, counts, answers)
values ($1, $2, $3, nullif($4::int, 0), $5, $6, $7, $8, $9, $10, $11) returning id
"""

_ATTRIBUTE = """
update gaps set counts = $2, answers = $3 where id = (
  select id from gaps where boot = $1 and reason = 'quarantined' and filled_at is null
  order by from_seq desc limit 1)
"""

_QUARANTINE = """
insert into quarantine (device, boot, seq, reason, detail, frame, gap)
values ($1, $2, $3, $4, $5, $6, $7)
"""

_METRICS = """
insert into device_metrics (time, device, boot, seq, digest, metric, value)
select v.at, v.device, v.boot, v.seq, v.digest, n.id, v.value
from unnest($1::timestamptz[], $2::int[], $3::int[], $4::int[], $5::int[], $6::text[], $7::float8[])
  v (at, device, boot, seq, digest, name, value) join metric_names n on n.name = v.name
"""


class CursorMovedError(Exception):
    """A cursor is not where the batch was planned from; nothing was stored."""


@asynccontextmanager
async def transaction(connection: asyncpg.Connection, name: str) -> AsyncIterator[None]:
    """A named transaction: its time and its failures are metrics."""
    start = perf_counter()
    try:
        async with connection.transaction():
            yield
    except asyncpg.PostgresError as error:
        metrics.TRANSACTION_FAILURES.labels(name, error.sqlstate or "").inc()
        raise
    finally:
        metrics.TRANSACTION_SECONDS.labels(name).observe(perf_counter() - start)


async def write(connection: asyncpg.Connection, plan: Plan) -> None:
    """Do all of `plan` within the caller's transaction; CursorMovedError if it is outdated."""
    if plan.moves:
        await move_cursors(connection, plan.moves)
    await copy(connection, "readings", READINGS_COLUMNS, plan.readings)
    await copy(connection, "presses", PRESSES_COLUMNS, plan.presses)
    if plan.counts:
        await add_counts(connection, plan.counts, late=plan.late, imported=plan.imported)
    if plan.answers:
        await add_answers(connection, plan.answers, late=plan.late)
    if plan.measured:
        await add_metrics(connection, plan.measured)
    await _exceptions(connection, plan)


async def _exceptions(connection: asyncpg.Connection, plan: Plan) -> None:
    """Write what a day without trouble has none of."""
    for boot, counts, answers in plan.attributions:
        await connection.execute(_ATTRIBUTE, boot.row, counts, answers)
    for gap in plan.gaps:
        await add_gap(connection, gap)
    for bad in plan.quarantined:
        row = GapRow(bad.boot, 0, bad.seq, bad.seq, "quarantined")
        gap_id = await add_gap(connection, row)
        await connection.execute(
            _QUARANTINE,
            *(bad.boot.device.name, bad.boot.row, bad.seq, bad.reason, bad.detail, bad.frame),
            gap_id,
        )
    if plan.held:
        await connection.executemany(
            "insert into undated_frames (boot, seq, reason, frame) values ($1, $2, $3, $4) "
            "on conflict do nothing",
            [(held.boot.row, held.seq, held.why, held.frame) for held in plan.held],
        )
    if plan.findings:
        await connection.executemany(
            "insert into findings (device_id, boot, seq, finding, detail) "
            "values ($1, nullif($2::int, 0), $3, $4, $5)",
            [
                (f.boot.device.row, f.boot.row, f.seq, f.finding, json.dumps(f.detail))
                for f in plan.findings
            ],
        )


async def move_cursors(connection: asyncpg.Connection, moves: Sequence[Move]) -> None:
    """Move each cursor from where it was to where it is now, all or none."""
    after: list[Cursor] = [move.after for move in moves]
    done = await connection.execute(
        _MOVE,
        [move.boot.row for move in moves],
        [move.before.next_seq for move in moves],
        [cursor.next_seq for cursor in after],
        [total for cursor in after for total in cursor.totals],
        [cursor.digest for cursor in after],
        [_array(move) for move in moves],
        [cursor.open for cursor in after],
        [None if c.stored_to_ms == -EVER_MS else c.stored_to_ms for c in after],
        [signed(move.boot.boot_id) for move in moves],
        [move.boot.device.standing.assignment_version for move in moves],
    )
    if done != f"UPDATE {len(moves)}":
        raise CursorMovedError(f"{done}, expected {len(moves)} cursors")


def _array(move: Move) -> str | None:
    """Return the answers' totals as an array literal, None if they are what they were."""
    if move.after.answers == move.before.answers:
        return None
    return "{" + ",".join(str(n) for entry in move.after.answers for n in entry) + "}"


async def copy(
    connection: asyncpg.Connection, table: str, columns: Sequence[str], rows: bytes
) -> None:
    """Copy ready binary tuples into a hypertable."""
    if rows:
        await connection.copy_to_table(
            table,
            source=memoryview(b"".join((COPY_SIGNATURE, rows, COPY_TRAILER))),  # bytes: a path
            columns=columns,
            format="binary",
        )
        metrics.READING_BYTES.inc(len(rows))


async def add_counts(
    connection: asyncpg.Connection,
    deltas: Sequence[CountDelta],
    *,
    late: dict[int, int],
    imported: set[tuple[int, int]],
    revise: bool = False,
) -> None:
    """Add to the 15-minute rollup; a bucket that ended before `late` is revised.

    `late` is by boot: up to when its device had stored before; `revise` revises all.
    """
    spots, boots, buckets, observed, resolution, lines, *counts = zip(*deltas, strict=True)
    if revise:
        flags = [1] * len(spots)
    else:
        flags = [int(b + BUCKET_MS <= late[r]) for b, r in zip(buckets, boots, strict=True)]
    if imported:
        for i, key in enumerate(zip(spots, buckets, strict=True)):
            flags[i] |= (key in imported) << 1
    await connection.execute(_COUNTS, spots, buckets, observed, resolution, lines, flags, *counts)


async def add_answers(
    connection: asyncpg.Connection,
    deltas: Sequence[PressDelta],
    *,
    late: dict[int, int],
    revise: bool = False,
) -> None:
    """Add to the kiosks' 15-minute rollup, as `add_counts` does."""
    spots, boots, buckets, hashes, questions, answers, _, presses = zip(*deltas, strict=True)
    flags = [int(revise or b + BUCKET_MS <= late[r]) for b, r in zip(buckets, boots, strict=True)]
    signed = [h - (1 << 64) if h >> 63 else h for h in hashes]
    await connection.execute(_ANSWERS, spots, buckets, signed, questions, answers, presses, flags)


async def add_metrics(connection: asyncpg.Connection, measured: Iterable[Measured]) -> None:
    """Store health frames' values under their names' numbers."""
    rows = [
        (
            at_time(m.at_ms),
            m.boot.device.row,
            m.boot.row,
            _signed(m.seq),
            _signed(m.digest),
            name,
            value,
        )
        for m in measured
        for name, value in m.values
    ]
    if not rows:
        return
    columns = list(zip(*rows, strict=True))
    await connection.execute(
        "insert into metric_names (name) select n from unnest($1::text[]) n "
        "where not exists (select from metric_names m where m.name = n) "
        "and (select count(*) from metric_names) < $2 "
        "group by n order by n on conflict do nothing",
        columns[5],
        MAX_METRIC_NAMES,
    )
    await connection.execute(_METRICS, *columns)


async def add_gap(connection: asyncpg.Connection, gap: GapRow) -> int:
    """Record a gap; return its number."""
    number: int = await connection.fetchval(
        _GAP,
        gap.boot.device.standing.organisation,
        gap.boot.device.row,
        gap.boot.row,
        gap.spot,
        gap.from_seq,
        gap.to_seq,
        None if gap.from_ms is None else at_time(gap.from_ms),
        None if gap.until_ms is None else at_time(gap.until_ms),
        gap.reason,
        gap.counts,
        gap.answers,
    )
    return number


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value
