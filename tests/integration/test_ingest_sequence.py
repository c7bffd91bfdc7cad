"""Storing exactly once: what is next, what repeats, what is beyond a hole."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.session import Receipt
from server.clock import ManualClock
from server.db.migrate import migrate
from server.ingest.pipeline import Pipeline
from server.ingest.places import Places
from tests.ingest_world import MINUTE, NOON, Ingesting, differences, people, register, said

pytestmark = pytest.mark.services


@pytest.fixture
async def owner(stack: Stack, database: str) -> AsyncIterator[asyncpg.Connection]:
    dsn = stack.endpoints.dsn("owner", database)
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def ingest(
    stack: Stack, database: str, owner: asyncpg.Connection
) -> AsyncIterator[Ingesting]:
    async with asyncpg.create_pool(
        stack.endpoints.dsn("ingest", database), min_size=1, max_size=3
    ) as pool:
        clock = ManualClock(NOON + 60 * MINUTE)
        places = Places(clock)
        yield Ingesting(Pipeline(pool, places, clock), places, clock)


async def test_a_frame_is_stored_rolled_up_and_receipted(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    frame = agent.counter([[3, 1, 0, 0, 2, 2, 0, 0, 0, 1], [1, 0] * 5])
    done = await ingest.take((agent, frame))
    (receipt,) = said(done)
    assert isinstance(receipt, Receipt)
    assert (receipt.boot_id, receipt.next_seq) == (agent.boot_id, 1)
    assert receipt.digest == int.from_bytes(frame[24:28], "little")
    assert await people(owner, fleet.spots[0]) == (10, 4)
    row = await owner.fetchrow("select * from rollup_15m")
    assert (row["in0"], row["out0"], row["in1"], row["out1"], row["in2"]) == (5, 4, 5, 0, None)
    assert int(row["observed"]).bit_count() == 20
    assert await differences(owner) == []
    assert await owner.fetchval("select count(*) from rollup_dirty") == 1
