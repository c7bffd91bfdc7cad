"""Tell each chain's head in the log, hourly: what left this machine cannot be changed with it."""

import asyncpg
import structlog

from server.audit.log import heads
from server.db.engine import ACQUIRE_TIMEOUT_S
from server.db.turns import repeat

log = structlog.get_logger(__name__)

EVERY_S = 3600.0


async def run(pool: asyncpg.Pool) -> None:
    """Log the heads until cancelled; a database that is away is passed over."""

    async def turn() -> None:
        async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            found = await heads(connection)
        for chain, (number, digest) in found.items():
            log.info("audit head", chain=chain, number=number, hash=digest.hex())

    await repeat(turn, rest_s=EVERY_S, away="no audit heads")
