"""The 15-minute rollup of a spot, made again from its rows: to move, to repair, to verify.

What a rebuilt bucket holds is what the writer had added up: sums by line, the union of the
observed slots, the coarsest interval. A kiosk's rows of line -1 hold nothing but what it observed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from ext.layout import BUCKET_MS
from ext.reference import observed_slots

BUCKET = timedelta(milliseconds=BUCKET_MS)
LONGEST_ROW = timedelta(days=25)  # a frame's span; a row that begins so early may reach in
_COLUMNS = ("in0", "out0", "in1", "out1", "in2", "out2", "in3", "out3")


@dataclass(slots=True)
class Bucket:
    """A bucket as the rows have it."""

    counts: list[int | None] = field(default_factory=lambda: [None] * 8)
    observed: int = 0
    resolution_s: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A bucket of a spot that is not what its rows say; the values as `rollup_15m` has them."""

    spot: int
    bucket: datetime
    was: tuple[int | None, ...] | None
    should: tuple[int | None, ...]


async def rebuild(
    connection: asyncpg.Connection,
    spot: int,
    from_at: datetime,
    until_at: datetime,
    *,
    write: bool = True,
) -> list[Change]:
    """Make the buckets of [from_at, until_at) from the rows; return those that changed.

    Both ends are widened to whole buckets. With `write` off it only compares: an empty list means
    that rollup and rows agree. Within the caller's transaction; a changed bucket is revised and
    marked dirty.
    """
    low, high = floor(from_at), floor(until_at + BUCKET - timedelta(microseconds=1))
    should = await _from_readings(connection, spot, low, high)
    rows = await connection.fetch(
        "select bucket, observed, resolution_s, in0, out0, in1, out1, in2, out2, in3, out3 "
        "from rollup_15m where spot = $1 and bucket >= $2 and bucket < $3 for update",
        spot,
        low,
        high,
    )
    changes: list[Change] = []
    for row in rows:
        bucket = should.pop(row["bucket"], Bucket())
        was = (row["observed"], *(row[column] for column in _COLUMNS))
        wanted = (bucket.observed, *bucket.counts)
        if was != wanted:
            changes.append(Change(spot, row["bucket"], was, wanted))
            if write:
                await _update(connection, spot, row["bucket"], wanted, bucket.resolution_s)
    for at, bucket in sorted(should.items()):
        changes.append(Change(spot, at, None, (bucket.observed, *bucket.counts)))
        if write:
            await _insert(connection, spot, at, bucket)
    if write:
        await _rebuild_presses(connection, spot, low, high)
        await mark(connection, [(spot, change.bucket) for change in changes])
    return changes


def floor(at: datetime) -> datetime:
    """Return the start of the bucket that holds `at`."""
    ms = round(at.timestamp() * 1000)
    return at - timedelta(milliseconds=ms % BUCKET_MS, microseconds=at.microsecond % 1000)


async def mark(connection: asyncpg.Connection, buckets: list[tuple[int, datetime]]) -> None:
    """Tell the deriver of hours and days which (spot, bucket) are new."""
    if buckets:
        spots, times = zip(*buckets, strict=True)
        await connection.execute(
            "insert into rollup_dirty (spots, buckets) values ($1, $2)", spots, times
        )


async def _from_readings(
    connection: asyncpg.Connection, spot: int, low: datetime, high: datetime
) -> dict[datetime, Bucket]:
    rows = await connection.fetch(
        "select time, lead_ms, span_ms, line, interval_s, counts from readings "
        "where spot = $1 and time >= $2 and time < $3",
        spot,
        low - LONGEST_ROW,
        high,
    )
    buckets: dict[datetime, Bucket] = {}
    for row in rows:
        for at, counted, mask in _shares(row):
            if not low <= at < high:
                continue
            bucket = buckets.setdefault(at, Bucket())
            bucket.observed |= mask
            bucket.resolution_s = max(bucket.resolution_s, row["interval_s"])
            for side in (0, 1) if row["line"] >= 0 else ():
                column = 2 * row["line"] + side
                bucket.counts[column] = (bucket.counts[column] or 0) + counted[side]
    return buckets


def _shares(row: asyncpg.Record) -> Iterator[tuple[datetime, tuple[int, int], int]]:
    """Yield what a row gives to each bucket it touches: counts in and out, observed slots."""
    start_ms = round(row["time"].timestamp() * 1000)
    begin_ms = start_ms + row["lead_ms"]
    end_ms = begin_ms + row["span_ms"]
    step = row["interval_s"] * 1000
    counts = row["counts"]
    cells = len(counts) // 2
    first = min(start_ms, begin_ms) // BUCKET_MS * BUCKET_MS
    last = max(start_ms + max(cells - 1, 0) * step, end_ms - 1) // BUCKET_MS * BUCKET_MS
    sums = {bucket: [0, 0] for bucket in range(first, last + 1, BUCKET_MS)}
    for cell in range(cells):
        into = sums[(start_ms + cell * step) // BUCKET_MS * BUCKET_MS]
        into[0] += counts[2 * cell]
        into[1] += counts[2 * cell + 1]
    for bucket, (came, went) in sums.items():
        at = row["time"] + timedelta(milliseconds=bucket - start_ms)
        yield at, (came, went), observed_slots(bucket, begin_ms, end_ms)


async def _update(
    connection: asyncpg.Connection,
    spot: int,
    bucket: datetime,
    values: tuple[int | None, ...],
    resolution_s: int,
) -> None:
    await connection.execute(
        "update rollup_15m set observed = $3, in0 = $4, out0 = $5, in1 = $6, out1 = $7, in2 = $8, "
        "out2 = $9, in3 = $10, out3 = $11, revision = revision + 1, "
        "resolution_s = case when $12 > 0 then $12 else resolution_s end "
        "where spot = $1 and bucket = $2",
        *(spot, bucket, *values, resolution_s),
    )


async def _insert(connection: asyncpg.Connection, spot: int, at: datetime, bucket: Bucket) -> None:
    await connection.execute(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, in1, out1, in2, out2, in3, "
        "out3, revision, resolution_s, origin) "
        "select $2, $3, $1, $4, $5, $6, $7, $8, $9, $10, $11, 1, $12, "
        "exists (select from backfill_grants g "
        "where g.spot_id = $1 and g.valid @> $2::timestamptz)::int",
        *(spot, at, bucket.observed, *bucket.counts, bucket.resolution_s),
    )


async def _rebuild_presses(
    connection: asyncpg.Connection, spot: int, low: datetime, high: datetime
) -> None:
    changed = await connection.fetch(
        """
        with pressed as (
          select time_bucket('15 minutes', time) as bucket, questionnaire, question, answer,
            count(*)::int as n
          from presses where spot = $1 and time >= $2 and time < $3 group by 1, 2, 3, 4),
        kept as (
          select * from presses_15m where spot = $1 and bucket >= $2 and bucket < $3),
        wrong as (
          select bucket, questionnaire, question, answer, coalesce(p.n, 0) as n
          from pressed p full join kept k using (bucket, questionnaire, question, answer)
          where coalesce(p.n, 0) <> coalesce(k.presses, 0))
        insert into presses_15m as r
          (bucket, questionnaire, spot, presses, revision, question, answer)
        select bucket, questionnaire, $1, n, 1, question, answer from wrong
        on conflict (spot, bucket, questionnaire, question, answer)
          do update set presses = excluded.presses, revision = r.revision + 1
        returning bucket
        """,
        spot,
        low,
        high,
    )
    await mark(connection, [(spot, at) for at in sorted({row["bucket"] for row in changed})])
