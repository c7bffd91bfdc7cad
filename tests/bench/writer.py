"""Frames stored a second, from bytes to a durable commit, beside bare COPY of the same rows.

    python -m tests.bench.writer

Two-line counters, five-minute frames of minutes, 5,000 devices, seeded. Ours is the whole pipeline
but the broker: headers, decoding, totals, cursors, rows, rollups, dirty list, commit. Bare COPY
sends the same rows in the same batches to an equal hypertable with the same index, and nothing
else. `executemany` and `insert` are what the naive server does: Python's decoder, a statement's
row per reading, each batch or each message its own transaction.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypedDict

import asyncpg
import uvloop

import ext
from ops.services.stack import Stack
from protocol.counter import decode_lines
from protocol.frame import Section, decode_time, read_body, read_header
from server.clock import ManualClock, at
from server.db.migrate import migrate
from server.ingest.mqtt import Inbound
from server.ingest.pipeline import Pipeline
from server.ingest.places import Places
from server.ingest.worker import assert_durable
from server.ingest.writer import COPY_SIGNATURE, COPY_TRAILER
from server.tasks import spare_the_collector
from tests.ingest_world import DAY, NOON, Agent, Fleet, differences, register

DEVICES = 5_000
STEADY_ROUNDS = 20
CATCHUP_DEEP = 16
CATCHUP_ROUNDS = 2
BATCH = 1000
NAIVE_MESSAGES = 3_000
SEED = 2026


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`, which was measured in the same run."""

    name: str
    value: float
    unit: str
    limit: float | None
    ratio: float | None
    limit_name: str


def run() -> list[Row]:
    """Measure ours and the peers; AssertionError if what ours stored is not what was sent."""
    assert ext.COMPILED, "this measures the compiled decoder: build it first"
    return uvloop.run(_run())


async def _run() -> list[Row]:
    steady: dict[str, float] = {}
    catchup: dict[str, float] = {}
    async with database() as (owner, dsn):
        fleet = await register(owner, DEVICES, prefix="dc-bench", since_ms=NOON - 2 * DAY)
        rng = random.Random(SEED)
        agents = [fleet.agent(i, rng=rng, booted_ms=NOON - DAY, now_ms=NOON - DAY)
                  for i in range(DEVICES)]  # fmt: skip
        async with asyncpg.create_pool(dsn, min_size=2, max_size=4) as pool:
            places = Places(ManualClock(NOON))
            pipeline = Pipeline(pool, places, ManualClock(NOON))
            async with pool.acquire() as connection:
                await assert_durable(connection)
            first = _batches(agents, rng, deep=1, rounds=1)
            await _store(pipeline, first)  # makes chunks and cursors, warms the caches
            spare_the_collector()
            for name, into, deep, rounds in (
                ("steady", steady, 1, STEADY_ROUNDS),
                ("catchup", catchup, CATCHUP_DEEP, CATCHUP_ROUNDS),
            ):
                batches = _batches(agents, rng, deep=deep, rounds=rounds)
                frames = sum(map(len, batches))
                into["ours"] = frames / await _store(pipeline, batches)
                into["copy"] = frames / await _bare_copy(owner, batches, name)
                if name == "steady":
                    some = [m for batch in batches for m in batch][:NAIVE_MESSAGES]
                    into["executemany"] = len(some) / await _naive(owner, some, BATCH, "many")
                    into["insert"] = len(some) / await _naive(owner, some, 1, "single")
        await _verify(owner, fleet, agents)
    return [*_rows("steady", steady), *_rows("catchup", catchup)]


def _rows(part: str, measured: dict[str, float]) -> list[Row]:
    copy = measured["copy"]
    rows: list[Row] = []
    for name, value in measured.items():
        own = name == "copy"
        rows.append(
            Row(
                name=f"writer.{part}.{name}",
                value=round(value),
                unit="frames/s",
                limit=None if own else round(copy),
                ratio=None if own else round(value / copy, 3),
                limit_name="" if own else "bare binary COPY of the same rows",
            )
        )
    return rows


@asynccontextmanager
async def database() -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A fresh migrated database on services of our own: the owner's connection, ingest's DSN."""
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="bench")
        endpoints = await asyncio.to_thread(stack.up)
        try:
            dsn = endpoints.dsn("owner")
            await migrate(dsn)
            owner = await asyncpg.connect(dsn)
            try:
                yield owner, endpoints.dsn("ingest")
            finally:
                await owner.close()
        finally:
            await asyncio.to_thread(stack.remove)


def _batches(
    agents: Sequence[Agent], rng: random.Random, *, deep: int, rounds: int
) -> list[list[Inbound]]:
    """Return batches in which each device has `deep` frames; quiet minutes are the most.

    Even ones are of one half of the devices, odd ones of the other.
    """
    batches: list[list[Inbound]] = []
    devices, half = BATCH // deep, len(agents) // 2
    for _ in range(rounds):
        for start in range(0, half, devices):
            batches += [
                [
                    (agent.up, agent.counter([_minutes(rng), _minutes(rng)]), number)
                    for agent in lane[start : start + devices]
                    for number in range(deep)
                ]
                for lane in (agents[:half], agents[half:])
            ]
    return batches


def _minutes(rng: random.Random) -> list[int]:
    return [rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 7)) for _ in range(10)]


async def _store(pipeline: Pipeline, batches: Sequence[Sequence[Inbound]]) -> float:
    """Store all batches in two lanes of other devices, as the listener does."""
    start = time.perf_counter()

    async def lane(own: Sequence[Sequence[Inbound]]) -> None:
        for batch in own:
            done = await pipeline.store(await pipeline.prepare(batch))
            assert done.packets

    await asyncio.gather(lane(batches[::2]), lane(batches[1::2]))
    return time.perf_counter() - start


async def _bare_copy(
    owner: asyncpg.Connection, batches: Sequence[Sequence[Inbound]], name: str
) -> float:
    table = f"bare_{name}"
    await _table_like_readings(owner, table)
    tuples = [
        ext.decode([m[1] for m in batch], [ext.Place(1, n, -(1 << 60), 1 << 60)
                                           for n, _ in enumerate(batch, 1)]).readings
        for batch in batches
    ]  # fmt: skip
    start = time.perf_counter()
    for rows in tuples:
        await owner.copy_to_table(
            table,
            source=memoryview(COPY_SIGNATURE + rows + COPY_TRAILER),
            columns=ext.READINGS_COLUMNS,
            format="binary",
        )
    return time.perf_counter() - start


async def _table_like_readings(owner: asyncpg.Connection, table: str) -> None:
    await owner.execute(
        f"create table {table} (like readings); "
        f"select create_hypertable('{table}', by_range('time', interval '7 days'), "
        f"create_default_indexes => false); create index on {table} (spot, time)"
    )


async def _naive(
    owner: asyncpg.Connection, messages: Sequence[Inbound], batch: int, name: str
) -> float:
    """Decode in Python, insert a row per reading, `batch` messages a transaction."""
    table = f"naive_{name}"
    await owner.execute(
        f"create table {table} (time timestamptz, device text, line int, in_ int, out_ int); "
        f"select create_hypertable('{table}', by_range('time', interval '7 days'))"
    )
    insert = f"insert into {table} values ($1, $2, $3, $4, $5)"
    start = time.perf_counter()
    for first in range(0, len(messages), batch):
        rows = [row for m in messages[first : first + batch] for row in naive_readings(m)]
        await owner.executemany(insert, rows)
    return time.perf_counter() - start


def naive_readings(message: Inbound) -> list[tuple[object, ...]]:
    topic, frame, _ = message
    sections = read_body(frame, read_header(frame))
    span = decode_time(sections[Section.TIME])
    counts = decode_lines(sections[Section.LINES], span)
    device, first = topic.decode().split("/")[2], counts.first_cell_ms()
    return [
        (at(first + 60_000 * n), device, line.line, line.counts[2 * n], line.counts[2 * n + 1])
        for line in counts.lines
        for n in range(counts.cells)
    ]


async def _verify(owner: asyncpg.Connection, fleet: Fleet, agents: Sequence[Agent]) -> None:
    """Every person that was sent is in the readings and in the rollups, once."""
    found = await owner.fetch(
        "select spot, sum(in0)::bigint, sum(out0)::bigint, sum(in1)::bigint, sum(out1)::bigint "
        "from rollup_15m group by spot"
    )
    rolled = {row[0]: list(row)[1:] for row in found}
    for agent, spot in zip(agents, fleet.spots, strict=True):
        assert rolled[spot] == agent.totals[:4], (agent.device, rolled[spot], agent.totals)
    assert await differences(owner) == []
    assert await owner.fetchval("select sum(next_seq) from boots") == sum(a.seq for a in agents)
    assert await owner.fetchval("select count(*) from gaps") == 0


def main() -> int:
    """Print the rows."""
    for row in run():
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f} of {row['limit_name']}"
        sys.stdout.write(f"{row['name']:28} {row['value']:>12,.0f} {row['unit']} {ratio}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
