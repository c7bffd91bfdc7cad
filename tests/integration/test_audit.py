"""The chain on a real database: it holds whatever is written, and whoever writes at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ops.services.stack import Stack
from server.audit.log import heads, holding, record, verify
from tests.ingest_world import owning

pytestmark = pytest.mark.services

NOW = datetime(2026, 3, 1, 12, 0, 0, 123457, tzinfo=UTC)
ODD = ['plain "quoted" \\ back', "Ström, 東京, 🚪", "line\nbreak\ttab\x7f", "[1,2]$1%s", ""]


async def test_a_hash_that_the_database_computes_is_the_one_that_is_checked(
    stack: Stack, database: str
) -> None:
    async with owning(stack, database) as owner:
        for number, text in enumerate(ODD):
            await record(
                owner,
                actor=text,
                act="device enrolled",
                subject=text,
                detail={"zeta": text, "alpha": [number, 1.5, None, True, {"deep": text}]},
                organisation=number % 2 or None,
                now=NOW + timedelta(microseconds=number),
            )
        assert await verify(owner) == (len(ODD), [])


@pytest.mark.parametrize("held", [False, True])
async def test_who_writes_to_one_chain_at_once_waits_in_line(
    stack: Stack, database: str, held: bool
) -> None:
    dsn = stack.endpoints.dsn("ingest", database)
    async with (
        owning(stack, database) as owner,
        asyncpg.create_pool(dsn, min_size=6, max_size=6) as pool,
    ):

        async def write() -> None:
            async with pool.acquire() as connection, connection.transaction():
                if held:
                    await connection.execute(f"select {holding('$1')}", 7)
                await record(
                    connection, actor="server", act="x done", organisation=7, now=NOW, held=held
                )

        await asyncio.gather(*(write() for _ in range(40)))
        assert await verify(owner) == (40, [])
        assert (await heads(owner))[7][0] == 40
