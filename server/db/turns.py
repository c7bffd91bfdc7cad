"""The loop of a worker: a turn, a rest, and again. One pattern for all who work off rows.

Who holds a lock for as long as it works (`admission`, the bell), or has tasks of its own beside
its turns (`feeds`), has a loop of its own. A turn lets no task of a group fail: that would leave
its own task counted as cancelled (`heed_cancellation`), and end the loop.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Never

import structlog

from server import metrics
from server.db.engine import DATABASE_AWAY
from server.tasks import heed_cancellation

log = structlog.get_logger(__name__)


async def repeat(
    turn: Callable[[], Awaitable[object]],
    *,
    rest_s: float | Callable[[float], float],
    away: str,
) -> Never:
    """Take turns until cancelled; a database that is away is tried again after the rest.

    `rest_s`: how long a rest is, or how long after a turn that took so many seconds. `away`: what
    the log says was not done. Whatever else a turn raises is a fault of ours: it is counted, logged
    whole and tried again, too. Raised, it would end the server, and ingest with it.
    """
    now_s = asyncio.get_running_loop().time
    while True:
        started_s = now_s()
        try:
            await turn()
        except DATABASE_AWAY as error:
            log.warning(away, error=str(error) or type(error).__name__)
        except Exception:
            metrics.TURNS_BROKEN.inc()
            log.exception(away)
        heed_cancellation()  # before the rest, which may be an hour
        await asyncio.sleep(rest_s(now_s() - started_s) if callable(rest_s) else rest_s)
