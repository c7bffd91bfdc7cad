"""Delete, hourly, what serves nobody any more: ended sessions and links, answers to repeats.

What has ended, or was answered, is kept for `KEPT`: somebody may ask who was signed in, and a phone
may come back late. Nothing that says what was done is ever deleted: audit, findings, claims. What
happened to devices, and why it was told, goes after 90 days; what was wrong with them, and what
visitors answered in surveys, after two years.
"""

from datetime import datetime, timedelta

import asyncpg
import structlog

from server.clock import Clock, at
from server.db.engine import transaction
from server.db.turns import repeat

log = structlog.get_logger(__name__)

EVERY_S = 3600.0
KEPT = timedelta(days=30)

OVER = {
    "sessions": "ended_at < $1 or expires_at < $1",
    "one_time_links": "used_at < $1 or expires_at < $1",
    "phone_acts": "done_at < $1",
    "idempotency_keys": "created_at < $1",
    "notices": "coalesce(sent_at, dead_at) < $1",
    "episodes": "resolved_at < $1::timestamptz - interval '730 days'",
    "incidents": "ended_at < $1::timestamptz - interval '730 days' and not exists "
    "(select from episodes e where e.incident_id = incidents.id)",
    "incident_decisions": "at < $1::timestamptz - interval '60 days'",
    "changes": "at < $1::timestamptz - interval '61 days'",  # changes.PURGED
    "device_events": "at < $1::timestamptz - interval '60 days'",
    "command_files": "stored_at < $1",
    "commands": "ended_at < $1::timestamptz - interval '335 days'",
    "command_batches": "asked_at < $1::timestamptz - interval '335 days' and not exists "
    "(select from commands c where c.batch_id = command_batches.id)",
    "survey_tokens": "expires_at < $1",
    "survey_answers": "answered_at < $1::timestamptz - interval '730 days'",
}


async def run(pool: asyncpg.Pool, clock: Clock) -> None:
    """Purge until cancelled; a database that is away is passed over. Role vestibule_maint."""

    async def turn() -> None:
        log.info("purged", **await purge(pool, now=at(clock.now_ms())))

    await repeat(turn, rest_s=EVERY_S, away="nothing purged")


async def purge(pool: asyncpg.Pool, *, now: datetime) -> dict[str, int]:
    """Delete what has been over for `KEPT`; return how many rows of each table."""
    gone: dict[str, int] = {}
    for table, over in OVER.items():
        async with transaction(pool, f"purge {table}") as connection:
            done = await connection.execute(f"delete from {table} where {over}", now - KEPT)  # noqa: S608
        gone[table] = int(done.rpartition(" ")[2])
    return gone
