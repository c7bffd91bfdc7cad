"""Tell each chain's head in the log, hourly: what left this machine cannot be changed with it."""

import asyncio

import asyncpg
import structlog

from server.audit.log import heads
from server.db.engine import ACQUIRE_TIMEOUT_S, DATABASE_AWAY

log = structlog.get_logger(__name__)

EVERY_S = 3600.0


async def run(pool: asyncpg.Pool) -> None:
    """Log the heads until cancelled; a database that is away is passed over."""
    while True:
        try:
            async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                found = await heads(connection)
        except DATABASE_AWAY as error:
            log.warning("no audit heads", error=str(error) or type(error).__name__)
            found = {}
        for chain, (number, digest) in found.items():
            log.info("audit head", chain=chain, number=number, hash=digest.hex())
        await asyncio.sleep(EVERY_S)
