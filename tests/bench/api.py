"""How long the API takes, through HTTP, beside the bare SQL of the same answer.

    python -m tests.bench.api

500 sites of two counters with a year of days and of open hours, every spot a device that reports
all the time, half of the sites in one chain's opening hours and half each with their own. A local
aiohttp server, and one client in a process of its own that keeps its connection, one request at a
time, until the last byte has come. The bare SQL is one statement, on the hypertable itself, that
adds up the same rows by site and day. The garbage collector is set as in a server of all roles,
whose ingest worker sets it.
"""

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple, TypedDict

import asyncpg
import msgspec
from aiohttp import web

from ops.services.stack import Stack
from server.api.keys import create_api_key
from server.api.routes import build_api
from server.clock import ManualClock
from server.db.engine import open_pool
from server.db.migrate import migrate
from server.tasks import spare_the_collector

SITES = 500
NOW = datetime(2026, 1, 1, 6, tzinfo=UTC)
PASSES = 60
WARM = 8
DURABLE = ("fsync", "full_page_writes", "synchronous_commit")


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`, measured in the same run."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    ratio: float | None


class Address(NamedTuple):
    """Where the API is, and who asks; the database, as the API's role and as the desk's."""

    port: int
    key: str
    dsn: str
    desk: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the API, and the bare SQL that adds up the same rows."""

    name: str
    path: str
    sql: str
    rows: int
    total: int


_DAYS = """
    select s.site_id, r.day, sum(coalesce(in0, 0)), sum(coalesce(out0, 0)), sum(observed_s)
    from rollup_day r join spots s on s.id = r.spot
    where {where} and r.day >= '{since}' and r.day < '{until}' group by 1, 2
"""
_HOURS = """
    select s.site_id, r.bucket, sum(coalesce(in0, 0)), sum(coalesce(out0, 0)), sum(observed_s)
    from rollup_hour r join spots s on s.id = r.spot
    where s.site_id = 7 and r.bucket >= '2025-11-30T23:00Z' and r.bucket < '2025-12-31T23:00Z'
    group by 1, 2
"""
_YEAR, _MONTH = ("2025-01-01", "2026-01-01"), ("2025-12-01", "2026-01-01")
QUESTIONS = (
    Question(
        "site_year_by_day",
        "/v1/counts?from=2025-01-01&to=2026-01-01&bucket=day&site=site-0007",
        _DAYS.format(where="s.site_id = 7", since=_YEAR[0], until=_YEAR[1]),
        365,
        365 * 2 * 24 * 7,
    ),
    Question(
        "site_year_by_month",
        "/v1/counts?from=2025-01-01&to=2026-01-01&bucket=month&site=site-0007&scope=open",
        _DAYS.format(where="s.site_id = 7", since=_YEAR[0], until=_YEAR[1]),
        12,
        365 * 2 * 10 * 7,
    ),
    Question(
        "site_month_by_hour",
        "/v1/counts?from=2025-12-01&to=2026-01-01&bucket=hour&site=site-0007",
        _HOURS,
        31 * 24,
        31 * 2 * 24 * 7,
    ),
    Question(
        "500_sites_month_by_day",
        "/v1/counts?from=2025-12-01&to=2026-01-01&bucket=day",
        _DAYS.format(where="true", since=_MONTH[0], until=_MONTH[1]),
        SITES * 31,
        SITES * 31 * 2 * 24 * 7,
    ),
)


def run() -> list[Row]:
    """Measure every question; AssertionError if the database is not durable or sums differ."""
    return asyncio.run(_run())


async def _run() -> list[Row]:
    rows: list[Row] = []
    async with served() as (address, owner):
        spare_the_collector()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as client:
            for question in QUESTIONS:
                asking = client.submit(ask, address, question, WARM, PASSES)
                ours = await asyncio.wrap_future(asking)
                bare = await _fetch(owner, question)
                rows += beside_bare(f"api.{question.name}", ours, bare)
    return rows


def ask(address: Address, question: Question, warm: int, passes: int) -> list[float]:
    """Ask the API, check its first answer, and return how long it took after `warm` questions."""
    connection = HTTPConnection("127.0.0.1", address.port)
    taken: list[float] = []
    for number in range(warm + passes):
        started = time.perf_counter()
        connection.request("GET", question.path, headers={"Authorization": f"Bearer {address.key}"})
        response = connection.getresponse()
        body = response.read()
        taken.append(time.perf_counter() - started)
        assert response.status == 200, body
        if number == 0:
            data = msgspec.json.decode(body)["data"]
            assert len(data) == question.rows, len(data)
            assert sum(row["visits"] for row in data) == question.total
    connection.close()
    return taken[warm:]


async def _fetch(owner: asyncpg.Connection, question: Question) -> list[float]:
    taken: list[float] = []
    for _ in range(WARM + PASSES):
        started = time.perf_counter()
        rows = await owner.fetch(question.sql)
        taken.append(time.perf_counter() - started)
        assert rows
    return taken[WARM:]


def beside_bare(name: str, ours_s: list[float], bare_s: list[float]) -> list[Row]:
    """Return p50 and p95 of what our answers took, beside those of the bare SQL."""
    ours, bare = _quantiles(ours_s), _quantiles(bare_s)
    return [
        Row(
            name=f"{name}.{quantile}.ours",
            value=round(ours[quantile], 2),
            unit="ms",
            limit=round(bare[quantile], 2),
            limit_name="bare SQL",
            ratio=round(ours[quantile] / bare[quantile], 2),
        )
        for quantile in ours
    ]


def _quantiles(taken_s: list[float]) -> dict[str, float]:
    """Return p50 and p95 in milliseconds."""
    taken = [1000 * each for each in taken_s]
    return {"p50": statistics.median(taken), "p95": statistics.quantiles(taken, n=20)[-1]}


@asynccontextmanager
async def served(seed: str = "") -> AsyncIterator[tuple[Address, asyncpg.Connection]]:
    """Serve the API over a seeded database, and give its address and the owner's connection.

    `seed` fills the organisation 1; unless given, with a year of SITES sites.
    """
    async with AsyncExitStack() as exits:
        folder = exits.enter_context(tempfile.TemporaryDirectory(prefix="vestibule-bench-"))
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="bench")
        endpoints = await asyncio.to_thread(stack.up)
        exits.callback(stack.remove)
        await migrate(endpoints.dsn("owner"))
        owner = await asyncpg.connect(endpoints.dsn("owner"), timeout=60, command_timeout=600)
        exits.push_async_callback(owner.close)
        for name in DURABLE:
            assert await owner.fetchval(f"show {name}") == "on", name
        key = await _seed(owner, seed)
        pool = await exits.enter_async_context(
            open_pool(endpoints.dsn("api"), size=4, name="bench")
        )
        app = web.Application()
        clock = ManualClock(int(NOW.timestamp() * 1000))
        app.add_subapp("/v1/", build_api(pool=pool, clock=clock, per_s=1e6, burst=1_000_000))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        exits.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        dsn = endpoints.dsn("api"), endpoints.dsn("desk")
        yield Address(runner.addresses[0][1], key, *dsn), owner


async def _seed(owner: asyncpg.Connection, seed: str) -> str:
    """Fill a year: 7 people in and 6 out each hour at each of two spots of each site."""
    await owner.execute("insert into organisations (ref, name) values ('bench', 'bench')")
    await owner.execute(seed or _SEED.replace("{sites}", str(SITES)))
    await owner.execute("vacuum analyze")
    return await create_api_key(owner, 1, "bench")


_SEED = """
    insert into sites (organisation_id, ref, name, time_zone)
    select 1, 'site-' || to_char(n, 'FM0000'), 'Site ' || n, 'Europe/Stockholm'
    from generate_series(1, {sites}) n;
    insert into opening_hours
    select 1, s.id, d, case when s.id % 2 = 0 then 600 else 600 + 15 * (s.id % 20) end,
           case when s.id % 2 = 0 then 1200 else 1200 + 15 * (s.id % 20) end
    from sites s, generate_series(0, 6) d;
    insert into spots (organisation_id, site_id, ref, name, kind)
    select 1, s.id, s.ref || '-' || n, 'Door', 'counter' from sites s, generate_series(1, 2) n
    order by s.id, n;
    insert into devices (organisation_id, device, kind)
    select 1, 'device-' || to_char(id, 'FM0000'), 'counter' from spots order by id;
    insert into assignments (organisation_id, device_id, spot_id, valid)
    select 1, id, id, tstzrange('2024-12-01', null) from devices;
    insert into boots (device_id, boot_id, ordinal, stored_to)
    select id, 1, 1, '2026-01-01T06:00Z' from devices;
    insert into rollup_day
    select day::date, s.id, 168, 144, null, null, null, null, null, null,
           70, 60, null, null, null, null, null, null, 86400, 36000, 0, 60, 0
    from generate_series('2025-01-01'::timestamp, '2025-12-31', '1 day') day, spots s;
    insert into rollup_hour
    select hour, s.id, 7, 6, null, null, null, null, null, null, 3600, 0, 60, 0
    from generate_series('2024-12-31T23:00Z'::timestamptz, '2025-12-31T22:00Z', '1 hour') hour,
         spots s;
    delete from rollup_stale;
"""


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(run()), indent=2).decode() + "\n")
