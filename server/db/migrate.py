"""Move a database to this release's schema, or say why it cannot be used.

`SCHEMA_VERSION` is what this release writes; a database states in `schema_compatibility` the
oldest release that may still run on it, so a rolling upgrade knows what it may leave running.

What migrates is imported when it does: it takes a third of the time that a server takes to start.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from server.errors import VestibuleError

if TYPE_CHECKING:
    from sqlalchemy import Connection

SCHEMA_VERSION = 15
_HERE = Path(__file__).parent / "migrations"


class SchemaMismatch(VestibuleError):
    """The database's schema and this release do not fit; the message says what to run."""

    code = "schema_mismatch"


async def migrate(dsn: str) -> None:
    """Apply every migration that is missing; safe to run twice and at once. `dsn`: the owner's."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", dsn),
                                 poolclass=NullPool)  # fmt: skip
    try:
        async with engine.connect() as connection:
            await connection.run_sync(_upgrade)
    finally:
        await engine.dispose()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def run_sql_file(name: str) -> None:
    """Run a migration's SQL file, many statements at once, on the migration's connection."""
    from alembic import op

    op.execute("select 1")  # the driver begins its transaction with the first statement
    adapted = op.get_bind().connection.dbapi_connection
    assert adapted is not None
    sql = (_HERE / name).read_text()
    # execute() would prepare, and a prepared statement is one statement; this is simple query
    adapted.run_async(lambda connection: connection.execute(sql))


async def check_schema(connection: asyncpg.Connection) -> None:
    """Raise SchemaMismatch unless this release may run on the connected database."""
    try:
        row = await connection.fetchrow("select version, compatible_from from schema_compatibility")
    except asyncpg.UndefinedTableError:
        row = None
    if row is None or row["version"] < SCHEMA_VERSION:
        found = "none" if row is None else row["version"]
        raise SchemaMismatch(f"schema {found}, need {SCHEMA_VERSION}: run `vestibule migrate`")
    if row["compatible_from"] > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database needs release schema {row['compatible_from']} or newer, "
            f"this is {SCHEMA_VERSION}: upgrade the server"
        )
