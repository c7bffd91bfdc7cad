"""The pool, and named transactions: a transaction's name is its metric and its log field."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

import asyncpg
from prometheus_client import Histogram

ACQUIRE_TIMEOUT_S = 5.0  # a pool that is busy this long is an outage, said as such

TRANSACTION_SECONDS = Histogram(
    "vestibule_transaction_seconds", "Time in a named transaction.", ["transaction", "outcome"]
)


@asynccontextmanager
async def open_pool(dsn: str, *, size: int, name: str) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool of at most `size` connections to the primary; closed at the end, never cut."""
    pool = await asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=size,
        target_session_attrs="primary",
        server_settings={"application_name": f"vestibule {name}", "timezone": "UTC"},
        command_timeout=60,
    )
    try:
        yield pool
    finally:
        await pool.close()


@asynccontextmanager
async def transaction(
    pool: asyncpg.Pool, name: str, *, organisation: int | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """Run a named transaction; with `organisation`, one that sees only that organisation."""
    started = perf_counter()
    outcome = "rolled back"
    try:
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection, connection.transaction():
            if organisation is not None:
                await connection.execute(
                    "select set_config('app.organisation', $1, true)", str(organisation)
                )
            yield connection
        outcome = "committed"
    finally:
        TRANSACTION_SECONDS.labels(name, outcome).observe(perf_counter() - started)
