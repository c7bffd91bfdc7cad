"""One organisation's view of the database, for the length of one answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import asyncpg

from server.db.engine import ACQUIRE_TIMEOUT_S, TRANSACTION_SECONDS


@asynccontextmanager
async def reading(
    pool: asyncpg.Pool, name: str, *, organisation: int
) -> AsyncIterator[asyncpg.Connection]:
    """Run a named read-only transaction on one snapshot that shows only `organisation`."""
    started, outcome = perf_counter(), "rolled back"
    try:
        async with (
            pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await connection.execute(
                "select set_config('app.organisation', $1, true)", str(organisation)
            )
            yield connection
        outcome = "committed"
    finally:
        TRANSACTION_SECONDS.labels(name, outcome).observe(perf_counter() - started)
