"""Bytes a minute-reading costs on disk, uncompressed, with provenance and index, beside its peer.

    python -m tests.bench.storage

100 two-line counters over a week, stored in order of time as frames arrive, for frames of 5, 15
and 60 minutes; the peer is a table of one row a reading with the same provenance and index. Then
vacuumed, so that sizes are those of a table at rest. Rollups cost what they cost whatever the
frames are: their bytes are stated per reading, and apart.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import TypedDict

import asyncpg
import msgspec

from ops.services.stack import Stack
from server.db.engine import open_pool
from server.db.migrate import migrate
from server.rollup.refresh import refresh

SPOTS = 100
DAYS = 7
LINES = 2
LIMITS = {5: 34.0, 15: 14.0, 60: 7.5}
READINGS = SPOTS * DAYS * LINES * 1_440
SINCE = date(2026, 1, 5)
DURABLE = ("fsync", "full_page_writes", "synchronous_commit")
ROLLUPS = ("rollup_15m", "rollup_hour", "rollup_day")


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    ratio: float | None


def run() -> list[Row]:
    """Measure; AssertionError if the database is not durable or sums differ."""
    return asyncio.run(_run())


async def _run() -> list[Row]:
    rows: list[Row] = []
    async with _database() as (owner, stack):
        for name in DURABLE:
            assert await owner.fetchval(f"show {name}") == "on", name
        await owner.execute(_PEER)
        peer = await _filled(owner, "peer_readings", _FILL_PEER)
        rows.append(_row("storage.row_a_reading", peer, None, ""))
        for minutes, limit in LIMITS.items():
            size = await _filled(owner, "readings", _FILL.replace("{minutes}", str(minutes)))
            rows.append(_row(f"storage.{minutes}min.ours", size, limit, "bytes promised"))
            rows.append(_row(f"storage.{minutes}min.beside_peer.ours", size, peer, "row a reading"))
            await _check(owner)
            if minutes < max(LIMITS):
                await owner.execute("truncate readings")
        rows += await _rollups(owner, stack)
    return rows


async def _filled(owner: asyncpg.Connection, table: str, fill: str) -> float:
    """Fill a hypertable and return its bytes per reading, index included."""
    for offset in range(DAYS):
        day = SINCE + timedelta(days=offset)
        await owner.execute(fill.replace("{spots}", str(SPOTS)).replace("{day}", str(day)))
    await owner.execute(f"vacuum analyze {table}")
    size: int = await owner.fetchval(f"select hypertable_size('{table}')")
    return size / READINGS


async def _check(owner: asyncpg.Connection) -> None:
    found = await owner.fetchrow(
        "select sum(cardinality(counts)) / 2 as readings, "
        "sum((select sum(c) from unnest(counts) c)) as people from readings"
    )
    assert found["readings"] == READINGS
    assert found["people"] == await owner.fetchval("select sum(entered + left_) from peer_readings")


async def _rollups(owner: asyncpg.Connection, stack: Stack) -> list[Row]:
    """Add up quarters in order of time, derive hours and days, and weigh all three."""
    await owner.execute(_QUARTERS)
    async with open_pool(stack.endpoints.dsn("maint"), size=1, name="bench") as pool:
        while await refresh(pool):
            pass
    rows: list[Row] = []
    for table in ROLLUPS:
        people = await owner.fetchval(
            f"select sum(coalesce(in0, 0) + out0 + in1 + out1) from {table}"
        )
        assert people == await owner.fetchval("select sum(entered + left_) from peer_readings")
        await owner.execute(f"vacuum {table}")
        size = await owner.fetchval(f"select hypertable_size('{table}')")
        rows.append(_row(f"storage.{table}.ours", size / READINGS, None, ""))
    return rows


def _row(name: str, value: float, limit: float | None, limit_name: str) -> Row:
    return Row(
        name=name,
        value=round(value, 2),
        unit="bytes/reading",
        limit=None if limit is None else round(limit, 2),
        limit_name=limit_name,
        ratio=None if limit is None else round(value / limit, 3),
    )


@asynccontextmanager
async def _database() -> AsyncIterator[tuple[asyncpg.Connection, Stack]]:
    """A fresh migrated database with one site and its spots, on services of our own."""
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="bench")
        endpoints = await asyncio.to_thread(stack.up)
        try:
            await migrate(endpoints.dsn("owner"))
            owner = await asyncpg.connect(endpoints.dsn("owner"), command_timeout=600)
            try:
                await owner.execute(_PLACES.replace("{spots}", str(SPOTS)))
                yield owner, stack
            finally:
                await owner.close()
        finally:
            await asyncio.to_thread(stack.remove)


_PLACES = """
    insert into organisations (ref, name) values ('bench', 'bench');
    insert into sites (organisation_id, ref, name, time_zone)
    values (1, 'site', 'Site', 'Europe/Stockholm');
    insert into spots (organisation_id, site_id, ref, name, kind)
    select 1, 1, 'spot-' || n, 'Door', 'counter' from generate_series(1, {spots}) n;
"""
_PEER = """
    create table peer_readings (
        time timestamptz not null, spot int not null, boot int not null, seq int not null,
        digest int not null, line smallint not null, interval_s smallint not null,
        entered smallint not null, left_ smallint not null);
    select create_hypertable('peer_readings', by_range('time', interval '7 days'),
                             create_default_indexes => false);
    create index on peer_readings (spot, time);
"""
# People by minute are a fixed hash of spot, line and minute: all tables hold the same.
_FILL_PEER = """
    insert into peer_readings
    select at, spot, spot, extract(epoch from at)::int / 60, 1, line, 60,
           abs(hashint8(extract(epoch from at)::bigint * 1000 + spot * 4 + line)) % 7,
           abs(hashint8(extract(epoch from at)::bigint * 1000 + spot * 4 + line)) % 5
    from generate_series('{day}'::timestamptz, '{day}'::timestamptz + interval '1439 minutes',
                         '1 minute') at,
         generate_series(1, {spots}) spot, generate_series(0, 1) line
    order by at, spot, line
"""
_FILL = """
    insert into readings
    select date_bin('{minutes} minutes', time, '2000-01-01Z') as at, spot, boot,
           min(seq), min(digest), 0, {minutes} * 60000, line, 60,
           (select array_agg(v order by n, way) from (
               select ord as n, way, v from unnest(array_agg(entered order by time),
                   array_agg(left_ order by time)) with ordinality as u(e, l, ord),
                   lateral (values (0, e), (1, l)) as pair(way, v)) flat)
    from peer_readings
    where time >= '{day}'::timestamptz and time < '{day}'::timestamptz + interval '1 day'
    group by 1, spot, boot, line order by 1, spot, line
"""
_QUARTERS = """
    insert into rollup_15m (bucket, observed, spot, in0, out0, in1, out1, resolution_s)
    select date_bin('15 minutes', time, '2000-01-01Z'), (1::bigint << 60) - 1, spot,
           sum(entered) filter (where line = 0), sum(left_) filter (where line = 0),
           sum(entered) filter (where line = 1), sum(left_) filter (where line = 1), 60
    from peer_readings group by 1, spot order by 1, spot;
    insert into rollup_dirty (spots, buckets)
    select array_agg(spot), array_agg(bucket) from rollup_15m group by bucket;
"""


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(run()), indent=2).decode() + "\n")
