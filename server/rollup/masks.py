"""Stretches in which a counter's counts are not true: masked, with their cause, never removed.

A mask is a row of `masks`: a spot, from when to when (no end: it goes on), and the condition that
is its cause. `rollup_15m.masked` holds the slots of 15 s of each quarter that lie under one, and is
a function of the masks alone; so a mask that is withdrawn leaves no trace but the revisions. What
is masked does not count as observed, in coverage and in all that learns from counts; sums stay as
they were counted. Whatever changes `masked` raises the quarter's revision and notes it as dirty.

Quarters that come, or change, under a mask are masked by the deriver as it works them in: ingest
knows nothing of masks. The deriver sees no mask before its commit; so whoever changes one holds the
deriver up from before the quarters are read until then, and none slips through between the two.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

UNMASKED_S = "15 * bit_count((r.observed & ~coalesce(r.masked, 0))::bit(64))"
"""The seconds of a quarter `r` that were observed and are not masked."""

LOCK = 7_120_015
"""The advisory lock of whoever derives, or changes what is masked."""

_QUARTER = timedelta(minutes=15)
_EVER = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Mask:
    """A stretch of a spot's time in which its counts are not true, and why."""

    id: int
    spot: int
    condition: str
    from_at: datetime
    until_at: datetime | None


async def begin(
    connection: asyncpg.Connection,
    spot: int,
    condition: str,
    *,
    from_at: datetime,
    now: datetime,
) -> None:
    """Mask a spot from an instant on; one that goes on already begins then, if that is earlier."""
    changed = await connection.fetchval(_BEGIN, spot, condition, from_at, now)
    if changed:
        await renew(connection, spot, from_at, None)


async def end(
    connection: asyncpg.Connection, spot: int, condition: str, *, until_at: datetime
) -> None:
    """End the mask that goes on: what comes from `until_at` on is true again."""
    from_at = await connection.fetchval(_END, spot, condition, until_at)
    if from_at is not None:
        await renew(connection, spot, max(from_at, until_at), None)


async def withdraw(
    connection: asyncpg.Connection, spot: int, condition: str, *, since: datetime, now: datetime
) -> int:
    """Undo the masks of a cause that end after `since`: it was not so. Return how many."""
    rows = await connection.fetch(_WITHDRAW, spot, condition, since, now)
    for from_at, until_at in rows:
        await renew(connection, spot, from_at, until_at)
    return len(rows)


async def masks_of(
    connection: asyncpg.Connection, spot: int, from_at: datetime, until_at: datetime
) -> list[Mask]:
    """Return the masks that hold in a stretch of a spot's time, by their beginning."""
    rows = await connection.fetch(_MASKS, spot, from_at, until_at)
    return [Mask(*row) for row in rows]


async def hold(connection: asyncpg.Connection) -> None:
    """Wait until nobody else derives or masks; held until the transaction ends."""
    await connection.execute("select pg_advisory_xact_lock($1)", LOCK)


async def renew(
    connection: asyncpg.Connection, spot: int, from_at: datetime, until_at: datetime | None
) -> None:
    """Mask or unmask the quarters of a stretch as the masks say, and note what changed."""
    await hold(connection)
    rows = await connection.fetch(_BUCKETS, spot, from_at - _QUARTER, until_at or _EVER)
    changed = await apply(connection, {(spot, row["bucket"]) for row in rows})
    if changed:
        spots, buckets = zip(*sorted(changed), strict=True)
        await connection.execute(
            "insert into rollup_dirty (spots, buckets) values ($1, $2)", spots, buckets
        )


async def apply(
    connection: asyncpg.Connection, quarters: Collection[tuple[int, datetime]]
) -> set[tuple[int, datetime]]:
    """Mask quarters as the masks say; return those that changed. Spots without any cost nothing."""
    spots = {spot for spot, _ in quarters}
    known = await connection.fetch(_WITH_MASKS, list(spots))
    wanted = {row["spot_id"] for row in known}
    chosen = sorted(each for each in quarters if each[0] in wanted)
    if not chosen:
        return set()
    buckets = [bucket for _, bucket in chosen]
    rows = await connection.fetch(
        _APPLY, [spot for spot, _ in chosen], buckets, min(buckets), max(buckets)
    )
    return {(row["spot"], row["bucket"]) for row in rows}


_BEGIN = """
    insert into masks as m (organisation_id, spot_id, condition, from_at, set_at)
    select s.organisation_id, s.id, $2, $3, $4 from spots s where s.id = $1
    on conflict (spot_id, condition) where until_at is null and withdrawn_at is null
    do update set from_at = excluded.from_at where m.from_at > excluded.from_at
    returning true
"""
_END = """
    update masks set until_at = greatest(from_at, $3)
    where spot_id = $1 and condition = $2 and until_at is null and withdrawn_at is null
    returning from_at
"""
_WITHDRAW = """
    update masks set withdrawn_at = $4
    where spot_id = $1 and condition = $2 and withdrawn_at is null
      and (until_at is null or until_at > $3)
    returning from_at, until_at
"""
_MASKS = """
    select id, spot_id, condition, from_at, until_at from masks
    where spot_id = $1 and withdrawn_at is null and from_at < $3
      and (until_at is null or until_at > $2)
    order by from_at, id
"""
_BUCKETS = "select bucket from rollup_15m where spot = $1 and bucket > $2 and bucket < $3"
_WITH_MASKS = "select distinct spot_id from masks where spot_id = any($1::int[])"
# Locked in order, as ingest locks them.
_APPLY = """
    with named as (
        select distinct spot, bucket from unnest($1::int[], $2::timestamptz[]) as n(spot, bucket)),
    should as (
        select n.spot, n.bucket,
               nullif(bit_or(masked_slots(n.bucket, m.from_at, m.until_at)), 0) as slots
        from named n left join masks m on m.spot_id = n.spot and m.withdrawn_at is null
          and m.from_at < n.bucket + interval '15 minutes'
          and (m.until_at is null or m.until_at > n.bucket)
        group by n.spot, n.bucket),
    held as (
        select r.spot, r.bucket, should.slots from rollup_15m r
        join should on should.spot = r.spot and should.bucket = r.bucket
        where r.bucket >= $3 and r.bucket <= $4 and r.masked is distinct from should.slots
        order by r.spot, r.bucket for update of r)
    update rollup_15m r set masked = held.slots, revision = r.revision + 1
    from held where r.spot = held.spot and r.bucket = held.bucket
      and r.bucket >= $3 and r.bucket <= $4
    returning r.spot, r.bucket
"""
