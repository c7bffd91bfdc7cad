"""The counts guard at work: each running rollout is looked at a few times a day, and halted by it.

A look reads and judges without any lock, beside the conductor; what it found is then taken by the
rollout under its lock, as any other event. It is kept in `rollouts.counted` by wave, also where
nothing was found. A wave that has halted a rollout once halts it no more: resuming acknowledges it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import DATABASE_SILENT, transaction
from server.db.turns import repeat
from server.firmware import counted
from server.firmware.counts import Judged
from server.firmware.guards import CLOCKS_DIFFER, Guard
from server.firmware.rollout import Regressed
from server.firmware.rows import hold
from server.firmware.waves import State

EVERY_S = 60.0
AGAIN = timedelta(hours=6)
"""A day is looked at soon after it is over, wherever that is, and late counts are seen."""
ROLLOUTS = 20

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CountsGuard:
    """`run` until cancelled; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock

    async def run(self) -> None:
        """Look for ever; a database that is away is tried again."""
        await repeat(self.turn, rest_s=EVERY_S, away="no counts looked at")

    async def turn(self) -> int:
        """Look at each rollout that is due, once; return how many were."""
        now = at(self.clock.now_ms())
        rows = await self.pool.fetch(_DUE, now - AGAIN, ROLLOUTS, now + CLOCKS_DIFFER)
        for row in rows:
            try:
                await self._look(row["id"], now=now)
            except DATABASE_SILENT:
                raise
            except Exception:  # one that cannot be looked at keeps no other from it
                metrics.TURNS_BROKEN.inc()
                log.exception("counts of a rollout cannot be looked at", rollout=row["id"])
                await self.pool.execute(_PUT_OFF, row["id"], now)
        return len(rows)

    async def _look(self, rollout: int, *, now: datetime) -> None:
        async with transaction(self.pool, "read counts of a rollout") as connection:
            found = await counted.look(connection, rollout, now=now)
        async with transaction(self.pool, "take counts of a rollout") as connection:
            await take(connection, rollout, found, now=now)


async def take(
    connection: asyncpg.Connection, rollout: int, found: Mapping[int, Judged], *, now: datetime
) -> None:
    """Keep what was found of each wave, and halt the rollout where that says so."""
    held = await hold(connection, rollout, now=now)
    if held is None:
        return
    known = json.loads(
        await connection.fetchval("select counted from rollouts where id = $1", rollout)
    )
    for wave, judged in found.items():
        before = known.get(str(wave), {})
        known[str(wave)] = {**judged.value(), "halted": bool(before.get("halted"))}
        running = held.rollout.state in (State.RUNNING, State.PAUSED)
        if judged.halts and running and not before.get("halted"):
            known[str(wave)]["halted"] = True
            effect = judged.looks[-1].effect
            held.take(
                Regressed(
                    at=now, wave=wave, guard=Guard.COUNTS, reason=said(judged),
                    found=round(100 * effect, 2), limit=0.0,
                )
            )  # fmt: skip
    await held.write()
    await connection.execute(
        "update rollouts set counted = $2, counted_at = $3 where id = $1",
        *(rollout, json.dumps(known), now),
    )


def said(judged: Judged) -> str:
    """Return in a sentence what the last look found."""
    last = judged.looks[-1]
    low, high = sorted((abs(last.low), abs(last.high)))
    way = "fewer" if last.effect < 0 else "more"
    return (
        f"updated doors count {abs(last.effect):.1%} {way} people than doors that wait "
        f"({low:.1%} to {high:.1%}; {last.updated} and {last.control} doors, day {last.number})"
    )


_DUE = """
    select id from rollouts
    where state in ('running', 'paused') and reverses is null
      and (counted_at is null or counted_at <= $1 or counted_at > $3)
    order by counted_at nulls first, id limit $2
"""
_PUT_OFF = "update rollouts set counted_at = $2 where id = $1"
