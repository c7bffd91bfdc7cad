"""End what a BI tool's login keeps open too long, whatever it has asked for.

A login's own limits (`ops.bi`) are defaults that whoever signs in may raise. A transaction that is
left open keeps the database from tidying up behind everybody, chunks from being dropped and notices
from being forgotten. So the role that derives is a member of each login's role, which lets it see
since when a login's transactions are open, and end its connections, and nothing else of it.
"""

from datetime import timedelta

import asyncpg
import structlog

from server.db.engine import ACQUIRE_TIMEOUT_S
from server.db.turns import repeat

log = structlog.get_logger(__name__)

EVERY_S = 30.0
MOST = timedelta(minutes=15)


async def run(pool: asyncpg.Pool) -> None:
    """End what lingers until cancelled; a database that is away is passed over."""

    async def turn() -> None:
        for login in await end(pool):
            log.warning("a BI login's transaction was ended", login=login)

    await repeat(turn, rest_s=EVERY_S, away="nothing that lingers was ended")


async def end(pool: asyncpg.Pool, *, most: timedelta = MOST) -> list[str]:
    """End connections of logins whose transactions are older than `most`; return whose they were.

    `pool` is of vestibule_maint.
    """
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        return [row[0] for row in await connection.fetch(_END, most)]


_END = """
    with lingering as materialized (  -- chosen first, whatever the planner thinks is cheap
        select a.pid, a.usename::text as login from pg_stat_activity a
        where a.datname = current_database() and a.xact_start < clock_timestamp() - $1::interval
          and a.usesysid in (select m.roleid from pg_auth_members m
                             join pg_roles r on r.oid = m.member
                             where r.rolname = current_user))
    select login from lingering where pg_terminate_backend(pid)
"""
