"""How late a device's state is: 10,000 devices greet, vanish and say goodbye, for real.

    python -m tests.bench.presence

Their frames go through ingest's own pipeline to the real database, and the real worker judges them
in its own rhythm. Lateness is read from what was written: of a word that a device said (a greeting,
a goodbye) from its event to the state that it made; of a deadline (a will and its grace) from when
the watermark had reached it. The limit is what is promised: 2 s behind the watermark.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import asyncpg
import uvloop

from ops.bench import Row
from ops.services.stack import Stack
from protocol.session import Goodbye
from server.clock import SystemClock, at
from server.db.migrate import migrate
from server.health import sessions
from server.health.platform import CANARY
from server.health.presence import GRACE
from server.health.watch import Watch
from server.ingest.pipeline import Pipeline
from server.ingest.places import Places
from tests.ingest_world import Agent, register

DEVICES = 10_000
LOST, LEFT = 2_000, 1_000
STORM_S, VANISH_S = 30.0, 20.0
BATCH = 200
PROMISED_S = 2.0
SEED = 2026
EPOCH = 1 << 32


def run() -> list[Row]:
    """Measure; AssertionError if a state is not what was said."""
    return uvloop.run(_run())


async def _run() -> list[Row]:
    clock = SystemClock()
    async with database() as (owner, stack):
        fleet = await register(owner, DEVICES, prefix="dc-bench", since_ms=clock.now_ms())
        agents = [fleet.agent(i) for i in range(DEVICES)]
        dsn = stack.endpoints.dsn
        async with (
            asyncpg.create_pool(dsn("ingest", "presence"), min_size=2, max_size=4) as pool,
            asyncpg.create_pool(dsn("maint", "presence"), min_size=1, max_size=2) as maint,
        ):
            pipeline = Pipeline(pool, Places(clock), clock)
            marks: list[tuple[datetime, datetime]] = []
            workers = [
                asyncio.create_task(Watch(maint, clock).run()),
                asyncio.create_task(_mark(owner, clock, marks)),
            ]
            try:
                await _say(pipeline, [(a, a.hello(nonce=EPOCH + 1)) for a in agents], STORM_S)
                await _until(maint, "healthy", DEVICES)
                rng = random.Random(SEED)
                going = rng.sample(agents, LOST + LEFT)
                said = [(a, a.hello(nonce=EPOCH, name="will")) for a in going[:LOST]]
                bye = Goodbye("stopped").name
                said += [(a, a.hello(nonce=EPOCH + 2, name=bye)) for a in going[LOST:]]
                rng.shuffle(said)
                await _say(pipeline, said, VANISH_S)
                await _until(maint, "offline", LOST)
                await _until(maint, "offline planned", LEFT)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        words = await owner.fetch(_WORDS)
        deadlines = await owner.fetch(_DEADLINES)
    assert len(words) == DEVICES + LEFT, len(words)
    assert len(deadlines) == LOST, len(deadlines)
    word_s = sorted((row["judged"] - row["said"]).total_seconds() for row in words)
    late_s = sorted(_behind(row["lost"] + GRACE, row["judged"], marks) for row in deadlines)
    return [
        _row("presence.word.p50.ours", _part(word_s, 50), None),
        _row("presence.word.p99.ours", _part(word_s, 99), PROMISED_S),
        _row("presence.deadline.p50.ours", _part(late_s, 50), None),
        _row("presence.deadline.p99.ours", _part(late_s, 99), PROMISED_S),
    ]


async def _say(pipeline: Pipeline, said: Sequence[tuple[Agent, bytes]], over_s: float) -> None:
    """Bring frames in, in batches spread evenly over a time."""
    began, batches = time.monotonic(), range(0, len(said), BATCH)
    for number, first in enumerate(batches):
        due = began + over_s * number / len(batches)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        some = said[first : first + BATCH]
        batch = await pipeline.prepare([(a.up, f, n) for n, (a, f) in enumerate(some, 1)])
        await pipeline.store(batch)


async def _mark(
    owner: asyncpg.Connection, clock: SystemClock, marks: list[tuple[datetime, datetime]]
) -> None:
    """Move the watermark as the canary does, and remember when it was moved."""
    while True:
        mark = at(clock.now_ms())
        await sessions.watermark(owner, mark, at=mark)
        marks.append((mark, at(clock.now_ms())))
        await asyncio.sleep(CANARY.total_seconds())


async def _until(pool: asyncpg.Pool, state: str, count: int) -> None:
    """Return once so many devices are in a state; TimeoutError."""
    async with asyncio.timeout(120):
        asked = "select count(*) from presences where state = $1"
        while await pool.fetchval(asked, state) < count:  # noqa: ASYNC110 - asks the database
            await asyncio.sleep(0.5)


def _behind(due: datetime, judged: datetime, marks: Sequence[tuple[datetime, datetime]]) -> float:
    reached = next(moved for mark, moved in marks if mark >= due)
    return max(0.0, (judged - reached).total_seconds())


def _part(values: Sequence[float], percent: int) -> float:
    return values[min(len(values) - 1, len(values) * percent // 100)]


def _row(name: str, value: float, limit: float | None) -> Row:
    return Row(
        name=name,
        value=value,
        unit="s",
        limit=limit,
        limit_name="" if limit is None else "promised",
        ratio=None if limit is None else value / limit,
    )


@asynccontextmanager
async def database() -> AsyncIterator[tuple[asyncpg.Connection, Stack]]:
    """A migrated database of this benchmark's own."""
    with tempfile.TemporaryDirectory(prefix="vestibule-presence-") as work:
        Path(work).chmod(0o755)
        stack = Stack(Path(work) / "stack", role="bench")
        try:
            await asyncio.to_thread(stack.up)
            await asyncio.to_thread(stack.postgres.create_database, "presence")
            await migrate(stack.endpoints.dsn("owner", "presence"))
            owner = await asyncpg.connect(stack.endpoints.dsn("owner", "presence"))
            try:
                yield owner, stack
            finally:
                await owner.close()
        finally:
            await asyncio.to_thread(stack.remove)


_WORDS = """
    select w.at as said, s.at as judged from device_events w
    join lateral (select s.at from device_events s where s.device_id = w.device_id
        and s.kind = 'state' and s.id > w.id order by s.id limit 1) s on true
    where w.kind in ('connected', 'goodbye')
"""
_DEADLINES = """
    select w.at as lost, s.at as judged from device_events w
    join lateral (select s.at from device_events s where s.device_id = w.device_id
        and s.kind = 'state' and s.id > w.id order by s.id limit 1) s on true
    where w.kind = 'lost'
"""


def main() -> int:
    """Print the rows; 1 if one is later than promised."""
    rows = run()
    for row in rows:
        sys.stdout.write(f"{row['name']:28} {row['value']:8.3f} {row['unit']}\n")
    return int(any(row["ratio"] is not None and row["ratio"] > 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
