"""The one transaction that stores a batch: cursors, rows, rollups, gaps, all or nothing.

Invariants:
- A cursor moves by compare-and-swap on what it was when the batch was planned, and only if its
  device's assignments are those by which the batch was placed. If any differs (another worker, a
  restored database, a swap recorded just now), nothing is stored: `CursorMovedError`.
- What a device may do is read with the number of its assignments, and changes with it: so nothing
  of a device is stored after the commit that takes it out.
- Rows are copied without looking for duplicates, since the cursor proves each of them new.
- Nothing is said to anyone before the commit has returned.
See `ops/decisions/0003-cursor-compare-and-swap.md`.
"""

import json
import struct
from collections.abc import Iterable, Sequence

import asyncpg

from ext import sum_counts
from ext.layout import BUCKET_MS, COUNT_ROW, PRESSES_COLUMNS, READINGS_COLUMNS
from protocol.frame import signed
from server import metrics
from server.clock import at as at_time
from server.ingest.places import EVER_MS
from server.ingest.rows import COUNT_DELTA, CountDelta, GapRow, Measured, Move, Plan, PressDelta

COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_TRAILER = b"\xff\xff"
MOST_A_BUCKET = ((1 << 31) - 1) // 400
"""Nobody counts five million people at a door in 15 minutes; a local day of 100 such buckets, and
its four lines together, still fit the derived rollups' integers."""
MAX_METRIC_NAMES = 1000  # of the whole fleet; values of further names are not kept
MAX_METRIC_NAMES_EACH = 100  # that one device may bring, so that none uses up the fleet's

_MOVED = struct.Struct(">iQiqqqq8Q")  # 896 bits, as _MOVE reads them
_MOVE = """
update boots b set next_seq = v.next_seq, digest = v.digest, totals = v.totals,
  stored_to = greatest(b.stored_to, to_timestamp(v.stored_to_ms / 1e3::float8)),
  totals_open = false, last_stored = now()
from (
  select substring($1, at + 1, 32)::int as id,
    substring($1, at + 33, 64)::bigint as boot_id, substring($1, at + 97, 32)::int as version,
    substring($1, at + 129, 64)::bigint as expected,
    substring($1, at + 193, 64)::bigint as next_seq,
    substring($1, at + 257, 64)::bigint as digest,
    nullif(substring($1, at + 321, 64)::bigint, 0) as stored_to_ms,
    array[substring($1, at + 385, 64)::bigint, substring($1, at + 449, 64)::bigint,
      substring($1, at + 513, 64)::bigint, substring($1, at + 577, 64)::bigint,
      substring($1, at + 641, 64)::bigint, substring($1, at + 705, 64)::bigint,
      substring($1, at + 769, 64)::bigint, substring($1, at + 833, 64)::bigint] as totals
  from generate_series(0, bit_length($1::varbit) - 1, 896) at limit $2) v
where b.id = v.id and b.boot_id = v.boot_id and b.assignment_version = v.version
  and b.next_seq = v.expected
"""

_MOVE_REST = """
update boots b set answers = v.answers::bigint[], totals_open = v.open
from unnest($1::int[], $2::text[], $3::bool[]) v (id, answers, open) where b.id = v.id
"""

_COUNTS = """
with changed as (
  insert into rollup_15m as r (bucket, observed, spot, in0, out0, in1, out1, in2, out2, in3, out3,
    revision, resolution_s, origin)
  select to_timestamp(quarter * 900::float8), observed, spot,
    case when lines & 1 > 0 then in0 end, case when lines & 1 > 0 then out0 end,
    case when lines & 2 > 0 then in1 end, case when lines & 2 > 0 then out1 end,
    case when lines & 4 > 0 then in2 end, case when lines & 4 > 0 then out2 end,
    case when lines & 8 > 0 then in3 end, case when lines & 8 > 0 then out3 end,
    lines >> 8 & 1, (lines >> 16)::smallint, (lines >> 9 & 1)::smallint
  from (
    select substring($1, at + 1, 32)::int as spot,
      substring($1, at + 33, 32)::int as quarter, substring($1, at + 65, 64)::bigint as observed,
      substring($1, at + 129, 32)::int as lines,
      substring($1, at + 161, 32)::int as in0, substring($1, at + 193, 32)::int as out0,
      substring($1, at + 225, 32)::int as in1, substring($1, at + 257, 32)::int as out1,
      substring($1, at + 289, 32)::int as in2, substring($1, at + 321, 32)::int as out2,
      substring($1, at + 353, 32)::int as in3, substring($1, at + 385, 32)::int as out3
    from generate_series(0, bit_length($1::varbit) - 1, 416) at limit $2) v
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
  returning spot, bucket, greatest(in0, out0, in1, out1, in2, out2, in3, out3) as most),
dirty as (
  insert into rollup_dirty (spots, buckets) select array_agg(spot), array_agg(bucket) from changed)
select max(most) from changed
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
  returning spot, bucket, presses as most),
dirty as (
  insert into rollup_dirty (spots, buckets) select array_agg(spot), array_agg(bucket) from
    (select distinct spot, bucket from changed) once)
select max(most) from changed
"""

_GAP = """
insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, until_at,
  reason, counts, answers)
values ($1, $2, $3, nullif($4::int, 0), $5, $6, $7, $8, $9, $10, $11) returning id
"""

_ATTRIBUTE = """
update gaps set counts = $2, answers = $3 where id = (
  select id from gaps where boot = $1 and reason = 'quarantined' and filled_at is null
    and from_seq < $4 order by from_seq desc limit 1)
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

_NEW_NAMES = """
with fresh as (
  select name, min(device) as device from unnest($1::int[], $2::text[]) v (device, name)
  where not exists (select from metric_names m where m.name = v.name) group by name),
numbered as (
  select name, device, row_number() over (partition by device order by name) as nth from fresh),
within as (
  select name, device, row_number() over (order by name) as nth from numbered f
  where f.nth + (select count(*) from metric_names m where m.introduced_by = f.device) <= $3)
insert into metric_names (name, introduced_by) select name, device from within
where nth + (select count(*) from metric_names) <= $4 order by name on conflict do nothing
"""


class AbsurdCountError(ValueError):
    """A bucket would hold more than MOST_A_BUCKET: the data is at fault; nothing was stored."""


class CursorMovedError(Exception):
    """A cursor is not where the batch was planned from; nothing was stored."""


async def write(connection: asyncpg.Connection, plan: Plan) -> None:
    """Do all of `plan` within the caller's transaction; CursorMovedError if it is outdated."""
    if plan.moves:
        await move_cursors(connection, plan.moves)
    await copy(connection, "readings", READINGS_COLUMNS, plan.readings)
    await copy(connection, "presses", PRESSES_COLUMNS, plan.presses)
    if plan.counts:
        await _add_counts(connection, plan.counts, late=plan.late, imported=plan.imported)
    if plan.answers:
        await add_answers(connection, plan.answers, late=plan.late)
    if plan.measured:
        await add_metrics(connection, plan.measured)
    await _exceptions(connection, plan)


async def _exceptions(connection: asyncpg.Connection, plan: Plan) -> None:
    """Write what a day without trouble has none of."""
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
    for boot, seq, counts, answers in plan.attributions:
        await connection.execute(_ATTRIBUTE, boot.row, counts, answers, seq)
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
    if any(move.registered.revoked for move in moves):  # an order given while it was being read
        raise CursorMovedError("a device is not admitted")
    pack = _MOVED.pack
    packed = [
        pack(
            boot.row,
            boot.boot_id,
            registered.assignment_version,
            before.next_seq,
            after.next_seq,
            after.digest,
            max(after.stored_to_ms, 0),
            *after.totals,
        )
        for boot, before, after, registered in moves
    ]
    done = await connection.execute(_MOVE, b"".join(packed), len(moves))
    if done != f"UPDATE {len(moves)}":
        raise CursorMovedError(f"{done}, expected {len(moves)} cursors")
    rest = [m for m in moves if m.after.open or m.after.answers != m.before.answers]
    if rest:
        await connection.execute(
            _MOVE_REST,
            [move.boot.row for move in rest],
            [_literal(move.after.answers) for move in rest],
            [move.after.open for move in rest],
        )


def _literal(answers: Iterable[tuple[int, int, int]]) -> str:
    """Return the answers' totals as an array literal: an array of arrays must be rectangular."""
    return "{" + ",".join(str(number) for entry in answers for number in entry) + "}"


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
    """Add deltas that were made one by one, as `_add_counts` does; `revise` revises all."""
    packed = b"".join(COUNT_DELTA.pack(*delta) for delta in deltas)
    if revise:
        late = {delta[0] >> 32: EVER_MS for delta in deltas}
    await _add_counts(connection, packed, late=late, imported=imported)


async def _add_counts(
    connection: asyncpg.Connection,
    deltas: bytes,
    *,
    late: dict[int, int],
    imported: set[tuple[int, int]],
) -> None:
    """Add to the 15-minute rollup; a bucket that ended before `late` is revised.

    `late` is by boot: up to when its device had stored before.
    """
    rows = sum_counts(deltas, late)
    if imported:
        rows = b"".join(
            COUNT_ROW.pack(
                *row[:4], row[4] | ((row[0], row[1] * BUCKET_MS) in imported) << 1, *row[5:]
            )
            for row in COUNT_ROW.iter_unpack(rows)
        )
    _believe(await connection.fetchval(_COUNTS, rows, len(rows) // COUNT_ROW.size))


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
    values = (spots, buckets, [signed(h, 64) for h in hashes], questions, answers, presses, flags)
    _believe(await connection.fetchval(_ANSWERS, *values))


def _believe(most: int | None) -> None:
    if most is not None and most > MOST_A_BUCKET:
        raise AbsurdCountError(f"{most} in 15 minutes")


async def add_metrics(connection: asyncpg.Connection, measured: Iterable[Measured]) -> None:
    """Store health frames' values under their names' numbers."""
    rows = [
        (
            at_time(m.at_ms),
            m.boot.device.row,
            m.boot.row,
            signed(m.seq, 32),
            signed(m.digest, 32),
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
        _NEW_NAMES, columns[1], columns[5], MAX_METRIC_NAMES_EACH, MAX_METRIC_NAMES
    )
    await connection.execute(_METRICS, *columns)


async def add_gap(connection: asyncpg.Connection, gap: GapRow) -> int:
    """Record a gap; return its number."""
    number: int = await connection.fetchval(
        _GAP,
        gap.boot.device.registered.organisation,
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
