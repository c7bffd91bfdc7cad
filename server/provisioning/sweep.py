"""What a crash left half done, finished or written off within minutes; one loop a listener."""

import asyncio
from collections.abc import Callable
from datetime import datetime

import asyncpg
import structlog

from server.db.engine import DATABASE_AWAY, transaction
from server.errors import RefusedError
from server.provisioning import issuing, renew
from server.provisioning.placing import complete_or_end
from server.tasks import heed_cancellation

EVERY_S = 30.0
log = structlog.get_logger(__name__)


async def sweep(pool: asyncpg.Pool, *, now: datetime) -> int:
    """Place enrolled devices whose claims nobody completed; return how many."""
    await issuing.sweep(pool, now=now)
    await renew.retire(pool, now=now)
    async with transaction(pool, "find claims") as connection:
        rows = await connection.fetch(
            "select t.ref from technician_claims t where t.used_at is null and t.ended_at is null "
            "and t.expires_at > $1 and exists (select from certificates c "
            "where c.device_id = t.device_id and c.state = 'active') order by t.id",
            now,
        )
    placed = 0
    for row in rows:
        try:
            async with transaction(pool, "complete claim") as connection:
                placed += await complete_or_end(connection, row["ref"], actor="server", now=now)
        except RefusedError as error:  # it is held: the claim waits, or expires
            log.debug("claim not completed", claim=row["ref"], code=error.code)
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            raise  # away: the others would find the same
        except Exception:  # the claims after it are not to wait for its mending
            log.exception("claim not completed", claim=row["ref"])
    return placed


async def sweeping(pool: asyncpg.Pool, *, now: Callable[[], datetime]) -> None:
    """Sweep until cancelled; whatever a turn raises, the next one is tried."""
    while True:
        try:
            await sweep(pool, now=now())
        except DATABASE_AWAY as error:
            log.warning("sweep put off", error=str(error) or type(error).__name__)
        except Exception:  # unforeseen, but nobody else does what this loop does
            log.exception("sweep failed")
        heed_cancellation()
        await asyncio.sleep(EVERY_S)
