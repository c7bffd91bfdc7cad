"""Presence through the real broker: an agent's process, ingest, the canary and who judges."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.identity import DeviceId
from server.clock import SystemClock
from server.health import canary
from server.health.watch import Watch
from server.ingest.state import State
from server.ingest.worker import Ingest
from tests.ingest_world import register
from tests.integration.test_agent_link import Process, identity
from tests.integration.test_ingest_broker import broker_settings, eventually, until

pytestmark = pytest.mark.services

QUICK_S = 0.1  # between canaries, and between turns


@asynccontextmanager
async def serving(stack: Stack, database: str) -> AsyncIterator[None]:
    """Ingest, canary and watch until the block ends."""
    clock, pki = SystemClock(), stack.endpoints.pki
    settings = broker_settings(stack)
    own = replace(
        settings, certfile=pki / f"{canary.IDENTITY}.pem", keyfile=pki / f"{canary.IDENTITY}.key"
    )
    dsn = stack.endpoints.dsn
    async with (
        asyncpg.create_pool(dsn("ingest", database), min_size=2, max_size=5) as pool,
        asyncpg.create_pool(dsn("maint", database), min_size=1, max_size=2) as maint,
    ):
        ingest, watch = Ingest(pool, settings, clock), Watch(maint, clock)

        async def judge() -> None:
            while True:
                await watch.turn()
                await asyncio.sleep(QUICK_S)

        tasks = [
            asyncio.create_task(ingest.run()),
            asyncio.create_task(canary.run(own, clock, every_s=QUICK_S)),
            asyncio.create_task(judge()),
        ]
        try:
            await until(lambda: ingest.state is State.RUNNING)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_agent_that_starts_is_healthy_and_one_that_stops_has_said_why(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    await register(owner, 1, prefix="dc-live")
    device = DeviceId("dc-live-000000")
    agent = Process(identity(stack, tmp_path, device), tmp_path)

    async def state() -> str:
        found: str = await owner.fetchval("select state from presences")
        return found

    async def is_healthy() -> bool:
        return await state() == "healthy"

    async def has_left() -> bool:
        return await state() == "offline planned"

    async with serving(stack, database):
        await agent.start()
        await eventually(is_healthy)
        name = await owner.fetchval("select agent from presences")
        assert name.startswith("vestibule ")
        (tmp_path / "state" / "leaving.json").write_text('{"reason": "update", "back_s": 600}')
        assert await agent.stop() == 0
        await eventually(has_left)
        row = await owner.fetchrow("select reason, until - session_at as back from presences")
        assert (row["reason"], row["back"].total_seconds()) == ("update", 600)
        await agent.start()
        await eventually(is_healthy)
        assert await agent.stop() == 0
        await eventually(has_left)
    kinds = [row[0] for row in await owner.fetch("select kind from device_events order by id")]
    assert kinds.count("connected") == kinds.count("boot") == kinds.count("goodbye") == 2
    assert "lost" not in kinds  # who has said goodbye leaves no will behind
    assert await owner.fetchval("select count(*) from platform_unknown") == 0
