"""The one that sends mail about incidents, and once a day what is open, to who wants that.

What is claimed is leased, not taken out: should the process die between handing in and marking, it
is sent again after `LEASE` under the same Message-ID. Of one incident a contact gets messages in
their order; nobody waits for another's: `AT_ONCE` are handed in at a time, each within its time.
What does not arrive within `TRIED_FOR` is dead, and listed (`GET /v1/notices`),
until somebody has it sent again (`vestibule contact resend`).
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import aiosmtplib
import asyncpg
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import DATABASE_AWAY, transaction
from server.db.turns import repeat
from server.feeds.mail import TIMEOUT_S, Smtp, hand_in, is_permanent, words_of
from server.health import contacts, ranking
from server.health.contacts import Known
from server.health.notices import message_of

log = structlog.get_logger(__name__)

POLL_S = 2.0
LEASE = timedelta(minutes=5)
TRIED_FOR = timedelta(days=1)
AT_ONCE = 4
DIGEST_HOUR = 7
_LATE = timedelta(hours=6)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 20.0, 3600.0
_MOST_RANKED = 30


@dataclass(frozen=True, slots=True)
class _Claimed:
    id: int
    dedupe: str
    subject: str
    body: str
    email: str
    queued_at: datetime
    tries: int


class Notices:
    """Sends. `pool` is of vestibule_maint."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        clock: Clock,
        *,
        smtp: Smtp,
        sender: str,
        pages: str,
        chance: Callable[[], float] = random.random,  # spreads retries, and guards nothing
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._pool, self._clock, self._smtp = pool, clock, smtp
        self._sender, self._pages, self._chance = sender, pages, chance
        self._timeout_s = timeout_s

    async def run(self) -> None:
        """Send until cancelled; a database that is away is passed over."""
        await repeat(self.once, rest_s=POLL_S, away="notices wait")

    async def once(self) -> None:
        """Queue the digests that are due, and send all that is due."""
        await self.plan()
        while claimed := await self._claim():
            async with asyncio.TaskGroup() as group:
                for each in claimed:
                    group.create_task(self._guarded(each), name="notice")

    async def plan(self) -> None:
        """Queue what is open for everybody who wants it once a day, once."""
        now = at(self._clock.now_ms())
        async with transaction(self._pool, "plan fleet digests") as connection:
            for known in await contacts.all_of(connection):
                day = _due_day(known, now=now)
                if day is not None:
                    await _queue_digest(connection, known, day, now=now)

    async def _claim(self) -> list[_Claimed]:
        now = at(self._clock.now_ms())
        async with transaction(self._pool, "claim notices") as connection:
            oldest = await connection.fetchval("select min(next_at) from notices")
            rows = await connection.fetch(_CLAIM, now, now + LEASE, AT_ONCE)
        late = 0.0 if oldest is None else (now - oldest).total_seconds()
        metrics.NOTICES_LATE.set(max(0.0, late))
        return [_Claimed(*row) for row in rows]

    async def _guarded(self, claimed: _Claimed) -> None:
        try:
            await self._send(claimed)
        except DATABASE_AWAY as error:  # a group that fails would end the loop; the lease holds
            log.warning("notice left", notice=claimed.dedupe, error=str(error))

    async def _send(self, claimed: _Claimed) -> None:
        now = at(self._clock.now_ms())
        try:
            message = message_of(
                dedupe=claimed.dedupe,
                subject=claimed.subject,
                body=claimed.body,
                sender=self._sender,
                to=claimed.email,
                pages=self._pages,
                now=now,
            )
            await hand_in(self._smtp, message, timeout_s=self._timeout_s)
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            await self._failed(claimed, error)
            return
        except Exception as error:  # a fault of ours: nobody else's mail waits for its mending
            log.exception("notice not made", notice=claimed.dedupe)
            await self._failed(claimed, error)
            return
        async with transaction(self._pool, "mark a notice") as connection:
            await connection.execute(_SENT, claimed.id, at(self._clock.now_ms()))
        metrics.NOTICES.labels("sent").inc()
        log.info("notice sent", notice=claimed.dedupe)

    async def _failed(self, claimed: _Claimed, error: Exception) -> None:
        now = at(self._clock.now_ms())
        wait_s = min(_FIRST_WAIT_S * 2.0 ** min(claimed.tries - 1, 20), _LONGEST_WAIT_S)
        after = now + timedelta(seconds=wait_s * (0.5 + self._chance()))
        dead = is_permanent(error) or after - claimed.queued_at >= TRIED_FOR
        trouble = words_of(error)
        metrics.NOTICES.labels("dead" if dead else "put_off").inc()
        log.warning("notice not sent", notice=claimed.dedupe, error=trouble, dead=dead)
        async with transaction(self._pool, "put a notice off") as connection:
            await connection.execute(
                *(_FAILED, claimed.id, None if dead else after, trouble, now if dead else None)
            )


def _due_day(known: Known, *, now: datetime) -> date | None:
    """Return the local day whose digest is due, None if none is."""
    here = now.astimezone(ZoneInfo(known.contact.time_zone))
    due = here.replace(hour=DIGEST_HOUR, minute=0, second=0, microsecond=0)
    fresh = timedelta(0) <= here - due < _LATE and due > known.created_at
    return here.date() if fresh else None


async def _queue_digest(
    connection: asyncpg.Connection, known: Known, day: date, *, now: datetime
) -> None:
    dedupe = f"fleet.{day}.{known.ref}"
    if await connection.fetchval("select exists (select from notices where dedupe = $1)", dedupe):
        return
    found = await ranking.ranked(connection, known.organisation, limit=_MOST_RANKED + 1, now=now)
    if not found:
        return
    more = len(found) > _MOST_RANKED
    lines = [ranking.line_of(each, now=now) for each in found[:_MOST_RANKED]]
    if more:
        lines.append("and more")
    subject = f"What is open in your fleet: {len(found)}{' or more' if more else ''}"
    body = "\n".join(["Most visits at stake first.", "", *lines, ""])
    await connection.execute(_DIGEST, known.organisation, known.id, dedupe, subject, body, now)


# Of one incident and contact the earliest comes first, whatever its time.
_CLAIM = """
    with next as (
        select n.id from notices n where n.next_at <= $1
          and not exists (select from notices b where b.incident_id = n.incident_id
              and b.contact_id = n.contact_id and b.id < n.id and b.next_at is not null)
        order by n.next_at, n.id limit $3 for update skip locked)
    update notices n set next_at = $2, tries = n.tries + 1
    from health_contacts c where c.id = n.contact_id and n.id in (select id from next)
    returning n.id, n.dedupe, n.subject, n.body, c.email, n.queued_at, n.tries
"""
_SENT = """
    update notices set sent_at = $2, next_at = null, trouble = '' where id = $1
"""
_FAILED = """
    update notices set next_at = $2, trouble = $3, dead_at = $4 where id = $1
"""
_DIGEST = """
    insert into notices (organisation_id, contact_id, dedupe, subject, body, queued_at, next_at)
    values ($1, $2, $3, $4, $5, $6, $6) on conflict (dedupe) do nothing
"""
