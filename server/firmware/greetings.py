"""What devices say at the broker that they run, held against what they have confirmed.

A device that has gone back behind our back may know nothing of updates any more: its greeting says
its version all the same. Only a change of version is looked at, and only a greeting from after the
confirmation counts: one from before says nothing of what was confirmed since.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import transaction
from server.db.turns import repeat
from server.firmware import reports

REST_S = 15.0
BEHIND = timedelta(days=7)
"""How far a server that starts looks back."""
OVERLAP = timedelta(minutes=5)
"""Greetings are noted under the time when they came, and stored a little later."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Greetings:
    """`run` until cancelled; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock
    _since: datetime | None = field(default=None, init=False)

    async def run(self) -> None:
        """Look for ever; a database that is away is tried again."""
        await repeat(self.turn, rest_s=REST_S, away="greetings not held against confirmations")

    async def turn(self) -> int:
        """Look at who changed its version lately; return how many have gone back."""
        now, found = at(self.clock.now_ms()), 0
        since = self._since or now - BEHIND
        async with self.pool.acquire() as connection:
            rows = await connection.fetch(_CHANGED, since - OVERLAP)
        for row in rows:
            async with transaction(self.pool, "compare greeting") as connection:
                versions = {"agent": row["version"]}
                said = row["device_id"], versions
                if not await reports.runs(connection, *said, now=now, said_at=row["session_at"]):
                    continue
            found += 1
            metrics.MISMATCHES.inc()
            log.warning("another version than confirmed", device=row["device"], by="greeting")
        self._since = now
        return found


_CHANGED = """
    with changed as (
        select distinct device_id from device_events where at >= $1 and kind = 'version')
    select d.id as device_id, d.device, p.session_at,
           substring(p.agent from '[^ /]*$') as version
    from changed c join presences p using (device_id) join devices d on d.id = p.device_id
    join lateral (
        select e.state, e.ended_at, coalesce(e.releases, b.releases) as releases
        from executions e join rollouts o on o.id = e.rollout_id
        left join bundles b on b.id = o.bundle_id
        where e.device_id = p.device_id and e.accepted_at is not null
        order by e.ended_at desc nulls first, e.id desc limit 1) last on true
    where last.state = 'confirmed' and p.session_at > last.ended_at
      and exists (select from releases r where r.id = any(last.releases) and r.component = 'agent'
        and version_key(r.version) <> version_key(p.agent))
    order by d.id
"""
