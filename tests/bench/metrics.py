"""How long a question about KPIs takes, through HTTP, beside the bare SQL of the same sums.

    python -m tests.bench.metrics

1,000 sites of one counter with two years of days, and a sale in the hour of each day: the chain by
month, over both years, in one page; one site by day, over one year; a chain's week against the same
week a year before. And an export: all days of a quarter as CSV, page after page, in rows a second,
read and added up by the client.
A local aiohttp server, and one client in a process of its own that keeps its connection, one
request at a time, until the last byte has come. The bare SQL are two statements, on the hypertable
itself and on the sales, that add up the same rows by site and bucket.
"""

import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import asyncpg
import msgspec

from server.api.answers import NEXT_CURSOR
from server.tasks import spare_the_collector
from tests.bench.api import Address, Row, beside_bare, served

SITES = 1_000
KPIS = ["visits", "conversion", "net_sales"]
PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Question:
    """A question, how many rows it has, how often it is asked, and the SQL of the same sums."""

    name: str
    asked: dict[str, Any]
    rows: int
    passes: int
    sql: tuple[str, ...]


_VISITS = """
    select s.site_id, {key}, sum(coalesce(in0, 0)), sum(observed_s)
    from rollup_day r join spots s on s.id = r.spot where {where} group by 1, 2
"""
_SALES = """
    select site_id, {key}, count(*), sum(amount) from transactions
    where kind = 'sale' and amount > 0 and units > 0 and {where} group by 1, 2
"""
_MONTH = "date_trunc('month', {at})"
_TWO_YEARS = "{at} >= '2024-01-01' and {at} < '2026-01-01'"
_ONE_SITE = "site_id = 7 and {at} >= '2025-01-01' and {at} < '2026-01-01'"
_TILLS = "at at time zone 'Europe/Stockholm'"


def _sql(key: str, where: str) -> tuple[str, str]:
    """Return the statements for visits and sales; `{at}` is a row's day."""
    return (
        _VISITS.format(key=key.format(at="r.day"), where=where.format(at="r.day")),
        _SALES.format(key=key.format(at=f"({_TILLS})::date"), where=where.format(at="at")),
    )


QUESTIONS = (
    Question(
        "1000_sites_two_years_by_month",
        {"metrics": KPIS, "from": "2024-01-01", "to": "2026-01-01", "bucket": "month",
         "by": "organisation"},
        24 * len(KPIS),
        8,
        _sql(_MONTH, _TWO_YEARS),
    ),
    Question(
        "site_year_by_day",
        {"metrics": KPIS, "from": "2025-01-01", "to": "2026-01-01", "sites": ["site-0007"]},
        365 * len(KPIS),
        30,
        _sql("{at}", _ONE_SITE),
    ),
    Question(
        "1000_sites_week_against_last_year",
        {"metrics": KPIS, "from": "2025-11-03", "to": "2025-11-10", "bucket": "week",
         "by": "organisation", "compare": "last_year"},
        len(KPIS),
        8,
        (
            *_sql("{at}", "{at} >= '2025-11-03' and {at} < '2025-11-10'"),
            *_sql("{at}", "{at} >= '2024-11-04' and {at} < '2024-11-11'"),
        ),
    ),
)  # fmt: skip


def run() -> list[Row]:
    """Measure every question; AssertionError if a sum differs or the database is not durable."""
    return asyncio.run(_run())


async def _run() -> list[Row]:
    rows: list[Row] = []
    async with _world() as (address, owner):
        spare_the_collector()
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as client:
            for question in QUESTIONS:
                asking = client.submit(ask, address, question)
                ours = await asyncio.wrap_future(asking)
                bare = await _fetch(owner, question)
                rows += beside_bare(f"api.metrics.{question.name}", ours, bare)
            per_s = await asyncio.wrap_future(client.submit(export, address))
        bare_per_s = await _copied(owner)
        rows.append(
            Row(
                name="api.metrics.export.ours",
                value=round(per_s),
                unit="rows/s",
                limit=round(bare_per_s),
                limit_name="bare SQL of the same sums, a row each",
                ratio=round(per_s / bare_per_s, 3),
            )
        )
    return rows


def ask(address: Address, question: Question) -> list[float]:
    """Ask, check the first answer, and return how long each took after two to warm up."""
    connection = HTTPConnection("127.0.0.1", address.port)
    taken: list[float] = []
    for number in range(question.passes + 2):
        started = time.perf_counter()
        body = _answer(connection, address, question.asked)
        taken.append(time.perf_counter() - started)
        if number == 0:
            data = msgspec.json.decode(body)["data"]
            assert len(data) == question.rows, len(data)
            for row in data:
                if row["metric"] == "conversion.v1":
                    assert row["value"] == 1 / 8, row
    connection.close()
    return taken[2:]


def export(address: Address) -> float:
    """Fetch a quarter of days of all sites, a page after the other; return rows a second."""
    connection = HTTPConnection("127.0.0.1", address.port)
    asked: dict[str, Any] = {
        "metrics": ["visits"], "from": "2025-10-01", "to": "2026-01-01", "limit": PAGE,
        "format": "csv",
    }  # fmt: skip
    started, rows, visits = time.perf_counter(), 0, 0.0
    while True:
        body, following = _page(connection, address, asked)
        lines = body.decode().splitlines()
        at = lines[0].split(",").index("value")
        rows += len(lines) - 1
        visits += sum(float(line.split(",")[at]) for line in lines[1:])
        if following is None:
            break
        asked["cursor"] = following
    taken_s = time.perf_counter() - started
    assert (rows, visits) == (SITES * 92, SITES * 92 * 8), (rows, visits)
    return rows / taken_s


def _answer(connection: HTTPConnection, address: Address, asked: dict[str, Any]) -> bytes:
    return _page(connection, address, asked)[0]


def _page(
    connection: HTTPConnection, address: Address, asked: dict[str, Any]
) -> tuple[bytes, str | None]:
    """Return an answer's bytes, and the cursor of the page after it."""
    headers = {"Authorization": f"Bearer {address.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/metrics:query", json.dumps(asked), headers)
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, body
    return body, response.headers.get(NEXT_CURSOR)


async def _fetch(owner: asyncpg.Connection, question: Question) -> list[float]:
    taken: list[float] = []
    for _ in range(question.passes + 2):
        started = time.perf_counter()
        for sql in question.sql:
            assert await owner.fetch(sql)
        taken.append(time.perf_counter() - started)
    return taken[2:]


async def _copied(owner: asyncpg.Connection) -> float:
    sql = _VISITS.format(key="r.day", where="r.day >= '2025-10-01' and r.day < '2026-01-01'")
    await owner.fetch(sql)
    started = time.perf_counter()
    rows = await owner.fetch(sql)
    assert len(rows) == SITES * 92
    return len(rows) / (time.perf_counter() - started)


@asynccontextmanager
async def _world() -> AsyncIterator[tuple[Address, asyncpg.Connection]]:
    async with served(_SEED.replace("{sites}", str(SITES))) as world:
        yield world


_SEED = """
    insert into sites (organisation_id, ref, name, time_zone)
    select 1, 'site-' || to_char(n, 'FM0000'), 'Site ' || n, 'Europe/Stockholm'
    from generate_series(1, {sites}) n;
    insert into opening_hours
    select 1, s.id, d, 600, 1200 from sites s, generate_series(0, 6) d;
    insert into spots (organisation_id, site_id, ref, name, kind)
    select 1, s.id, s.ref || '-1', 'Door', 'counter' from sites s order by s.id;
    insert into devices (organisation_id, device, kind)
    select 1, 'device-' || to_char(id, 'FM0000'), 'counter' from spots order by id;
    insert into assignments (organisation_id, device_id, spot_id, valid)
    select 1, id, id, tstzrange('2022-12-01', null) from devices;
    insert into boots (device_id, boot_id, ordinal, stored_to)
    select id, 1, 1, '2026-01-01T06:00Z' from devices;
    insert into rollup_day
    select day::date, s.id, 8, 7, null, null, null, null, null, null,
           8, 7, null, null, null, null, null, null,
           extract(epoch from (day::date + 1)::timestamp at time zone 'Europe/Stockholm'
                   - day::date::timestamp at time zone 'Europe/Stockholm'), 36000, 0, 60, 0
    from generate_series('2024-01-01'::timestamp, '2025-12-31', '1 day') day, spots s;
    insert into transactions (organisation_id, site_id, transaction_ref, at, amount, units)
    select 1, s.id, day::date::text, (day + interval '12 hours') at time zone 'Europe/Stockholm',
           100, 2
    from generate_series('2024-01-01'::timestamp, '2025-12-31', '1 day') day, sites s;
    delete from rollup_stale;
"""


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(run()), indent=2).decode() + "\n")
