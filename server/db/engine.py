"""The pool, and named transactions: a transaction's name is its metric and its log field."""

import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from time import perf_counter

import asyncpg

from server import metrics

ACQUIRE_TIMEOUT_S = 5.0  # a pool that is busy this long is an outage, said as such
BESIDE_TIMEOUT_S = 0.1  # for what is a gain only while it costs no waiting

DATABASE_SILENT = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # it shuts down, starts, or ends what takes too long
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a connection that ends at an odd moment, or while it is made
    OSError,
    TimeoutError,
)
"""What a database that does not answer raises, and no statement that is wrong."""

DATABASE_AWAY = (*DATABASE_SILENT, asyncpg.PostgresError)
"""What a database that is away, or goes away, raises in whoever uses it, and tries again."""

_DATA_CLASSES = frozenset({"22", "23", "P0"})


def data_at_fault(error: BaseException) -> bool:
    """True if what was said is to blame: refused by the database, or breaking our own code.

    To try again would change nothing; who works off many sets the one aside.
    """
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "")[:2] in _DATA_CLASSES
    return isinstance(error, ValueError | LookupError | ArithmeticError | TypeError | struct.error)


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
async def measured(name: str) -> AsyncIterator[None]:
    """Take the time and the failures of the named transaction that is run inside."""
    started = perf_counter()
    try:
        yield
    except asyncpg.PostgresError as error:
        metrics.TRANSACTION_FAILURES.labels(name, error.sqlstate or "").inc()
        raise
    finally:
        metrics.TRANSACTION_SECONDS.labels(name).observe(perf_counter() - started)


@asynccontextmanager
async def transaction(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Run a named transaction on a connection of the pool."""
    async with (
        pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
        transaction_on(connection, name),
    ):
        yield connection


@asynccontextmanager
async def transaction_on(connection: asyncpg.Connection, name: str) -> AsyncIterator[None]:
    """Run a named transaction on a connection that is held already."""
    async with measured(name), connection.transaction():
        yield


@asynccontextmanager
async def reading(
    pool: asyncpg.Pool, name: str, *, organisation: int
) -> AsyncIterator[asyncpg.Connection]:
    """Run a named read-only transaction on one snapshot that shows only `organisation`."""
    async with (
        measured(name),
        pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        await connection.execute(
            "select set_config('app.organisation', $1, true)", str(organisation)
        )
        yield connection


@asynccontextmanager
async def reading_beside(
    pool: asyncpg.Pool, connection: asyncpg.Connection, *, organisation: int
) -> AsyncIterator[asyncpg.Connection | None]:
    """Read on a second connection what `connection`, of a `reading`, sees; None if none is free.

    One is left to whoever comes next, and one that somebody else took first is not waited for: who
    holds a connection and waits for another waits for ever once all do.
    """
    if pool.get_max_size() - pool.get_size() + pool.get_idle_size() < 2:
        yield None
        return
    snapshot = await connection.fetchval("select pg_export_snapshot()")
    async with AsyncExitStack() as exits:
        other: asyncpg.Connection | None = None
        with suppress(*DATABASE_SILENT):
            other = await exits.enter_async_context(pool.acquire(timeout=BESIDE_TIMEOUT_S))
        if other is None:
            yield None
            return
        await exits.enter_async_context(
            other.transaction(isolation="repeatable_read", readonly=True)
        )
        await other.execute(
            f"set transaction snapshot '{snapshot}'; "
            f"select set_config('app.organisation', '{organisation:d}', true)"
        )
        yield other


@asynccontextmanager
async def acting(
    pool: asyncpg.Pool, name: str, *, organisation: int
) -> AsyncIterator[asyncpg.Connection]:
    """Run a named transaction that sees and writes only `organisation`; `pool` is the desk's."""
    async with transaction(pool, name) as connection:
        await connection.execute(
            "select set_config('app.organisation', $1, true)", str(organisation)
        )
        yield connection


@asynccontextmanager
async def overseeing(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Run a named transaction that sees every organisation; `pool` is the desk's.

    For signing in, and for who holds a grant without an organisation: the caller has checked.
    """
    async with transaction(pool, name) as connection:
        await connection.execute("select set_config('app.everyone', 'yes', true)")
        yield connection
