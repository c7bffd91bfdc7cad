"""The one that tells webhooks: queues what is new, sends what is due, tries again, gives up.

Each webhook is served by a task of its own, one delivery after the other in the feed's order, so
one that hangs delays none but itself; `MOST_AT_ONCE` bounds how many are served at a time,
`TIMEOUT_S` for how long each may keep its place. What is claimed is leased, not taken out: should
the process die, it is sent again after `LEASE`. Of a webhook that fails nothing else is tried
meanwhile.
"""

import asyncio
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import structlog
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.connector import AddrInfoType

from server.clock import Clock, at
from server.db.changes import (
    Change,
    DatasetChangedError,
    Kind,
    Place,
    PlaceExpiredError,
    changes_after,
    changes_of,
    place_now,
)
from server.db.engine import ACQUIRE_TIMEOUT_S, DATABASE_AWAY, measured, transaction
from server.errors import RefusedError
from server.feeds.sending import (
    FAILING_FOR,
    TRIED_FOR,
    body_of,
    demand_address,
    headers_of,
    is_outward,
    wait_s,
)
from server.feeds.webhooks import PURPOSE
from server.people.sealing import Seal
from server.tasks import heed_cancellation

log = structlog.get_logger(__name__)

POLL_S = 1.0
TIMEOUT_S = 10.0
LEASE = timedelta(minutes=5)
MOST_AT_ONCE = 64  # webhooks; the others' turn comes when one of these is done or timed out
MOST_A_TURN = 20  # deliveries of one webhook, within the lease even if each takes its time
MOST_QUEUED = 500  # changes of one webhook in one transaction
PLACED_EVERY = timedelta(hours=1)  # how often a place moves on where nothing happens


class InwardError(OSError):
    """A name that resolved to an address of ours, or to none that is public."""


@dataclass(frozen=True, slots=True)
class _Target:
    id: int
    organisation: int
    ref: str
    url: str
    sealed: bytes


class Webhooks:
    """Tells webhooks. `pool` is of vestibule_maint; `inward` lets them lead to this machine."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        seal: Seal,
        clock: Clock,
        *,
        chance: Callable[[], float] = random.random,  # spreads retries, and guards nothing
        inward: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._pool, self._seal, self._clock, self._chance = pool, seal, clock, chance
        self._inward = inward
        self._timeout = ClientTimeout(total=timeout_s)
        self._busy: set[int] = set()
        self._room = asyncio.Semaphore(MOST_AT_ONCE)

    async def run(self) -> None:
        """Tell until cancelled; a database that is away is passed over."""
        async with self._session() as session, asyncio.TaskGroup() as group:
            while True:
                heed_cancellation()
                try:
                    await self.queue()
                    for target in await self._due():
                        group.create_task(self._guarded(session, target), name="webhook")
                except DATABASE_AWAY as error:
                    log.warning("webhooks wait", error=str(error) or type(error).__name__)
                await asyncio.sleep(POLL_S)

    async def once(self) -> None:
        """Queue what is new and send what is due, each webhook one turn."""
        await self.queue()
        async with self._session() as session, asyncio.TaskGroup() as group:
            for target in await self._due():
                group.create_task(self._guarded(session, target), name="webhook")

    async def queue(self) -> None:
        """Queue what is new, with the webhook's place, in a transaction for each that has any."""
        now = at(self._clock.now_ms())
        for row in await self._pool.fetch(_BEHIND, now - PLACED_EVERY):
            async with (
                measured("queue deliveries"),
                self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
                connection.transaction(isolation="repeatable_read"),
            ):
                await self._queue(connection, row["id"])

    async def _queue(self, connection: asyncpg.Connection, webhook: int) -> None:
        now = at(self._clock.now_ms())
        row = await connection.fetchrow(
            "select * from webhooks where id = $1 for update skip locked", webhook
        )
        if row is None:
            return
        place = Place(
            *(row["place_dataset"], row["place_xid"], row["place_id"]),
            int(row["place_at"].timestamp()),
        )
        try:
            told = await changes_after(
                connection,
                place,
                organisation=row["organisation_id"],
                kinds=[Kind(each) for each in row["kinds"]],
                limit=MOST_QUEUED,
                now=now,
            )
            place = told.place
            found = [change.id for change in told.changes]
        except (DatasetChangedError, PlaceExpiredError) as error:
            log.warning("a webhook begins anew", webhook=row["ref"], why=error.code)
            place, found = await place_now(connection, now=now), []
        if found:
            await connection.execute(
                "insert into deliveries (organisation_id, webhook_id, change_id, queued_at, "
                "next_at) select $1, $2, c, $4, $4 from unnest($3::bigint[]) c "
                "on conflict do nothing",
                *(row["organisation_id"], webhook, found, now),
            )
        if found or now - row["place_at"] > PLACED_EVERY:
            await connection.execute(
                "update webhooks set place_dataset = $2, place_xid = $3, place_id = $4, "
                "place_at = $5 where id = $1",
                *(webhook, place.dataset, place.xid, place.id, at(place.seen_s * 1000)),
            )

    async def _due(self) -> list[_Target]:
        """Return the webhooks that have something due and are not being served."""
        rows = await self._pool.fetch(_DUE, at(self._clock.now_ms()), list(self._busy))
        return [_Target(*row) for row in rows]

    async def _guarded(self, session: ClientSession, target: _Target) -> None:
        if target.id in self._busy:
            return
        self._busy.add(target.id)
        try:
            async with self._room:
                await self._serve(session, target)
        except DATABASE_AWAY as error:  # what it had claimed is due again after the lease
            log.warning("webhook left", webhook=target.ref, error=str(error))
        finally:
            self._busy.discard(target.id)

    async def _serve(self, session: ClientSession, target: _Target) -> None:
        """Send what is due to one webhook, in order, until something fails."""
        now = at(self._clock.now_ms())
        async with transaction(self._pool, "claim deliveries") as connection:
            claimed = await connection.fetch(_CLAIM, target.id, now, now + LEASE, MOST_A_TURN)
            changes = await changes_of(connection, [row["change_id"] for row in claimed])
        for row in sorted(claimed, key=lambda each: each["id"]):
            change = changes[row["change_id"]]
            status, trouble = await self._try(session, target, change)
            now = at(self._clock.now_ms())
            async with transaction(self._pool, "note a delivery") as connection:
                if not trouble:
                    await connection.execute(_DELIVERED, row["id"], now, status, target.id)
                    continue
                failures = row["tries"] + 1
                dead = now - row["queued_at"] >= TRIED_FOR
                after = now + timedelta(seconds=wait_s(failures, self._chance()))
                await connection.execute(
                    *(_FAILED, row["id"], failures, status, trouble),
                    *(now if dead else None, None if dead else after),
                )
                ids = [each["id"] for each in claimed if each["id"] > row["id"]]
                await connection.execute(
                    "update deliveries set next_at = $2 where id = any($1::bigint[])", ids, after
                )
                await self._note_failure(connection, target, status, trouble, now=now)
            log.debug("webhook failed", webhook=target.ref, status=status, trouble=trouble)
            return

    async def _note_failure(
        self,
        connection: asyncpg.Connection,
        target: _Target,
        status: int | None,
        trouble: str,
        *,
        now: datetime,
    ) -> None:
        """Note since when a webhook fails, and disable one that has failed for too long."""
        since = await connection.fetchval(
            "update webhooks set failing_since = coalesce(failing_since, $2) where id = $1 "
            "returning failing_since",
            *(target.id, now),
        )
        why = ""
        if status == 410:
            why = "Disabled: it answered 410 Gone."
        elif since is not None and now - since >= FAILING_FOR:
            why = f"Disabled: nothing has arrived for {FAILING_FOR.days} days; last: {trouble}."
        if why:
            await connection.execute(
                "update webhooks set disabled_at = $2, disabled = $3 where id = $1",
                *(target.id, now, why),
            )
            log.warning("webhook disabled", webhook=target.ref, why=why)

    async def _try(
        self, session: ClientSession, target: _Target, change: Change
    ) -> tuple[int | None, str]:
        """Send once; return the status, and what went wrong: empty if nothing."""
        secret = self._seal.unseal(PURPOSE, target.sealed, bound=target.ref.encode())
        if secret is None:
            return None, "its secret cannot be opened: the server's own secret was changed"
        body = body_of(change)
        headers = headers_of(
            f"change-{change.id}", secret=secret, body=body, at_s=self._clock.now_ms() // 1000
        )
        try:
            demand_address(target.url, inward=self._inward)
            async with session.post(
                target.url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except TimeoutError:
            return None, f"no answer within {self._timeout.total:g} s"
        except ClientConnectorError as error:
            return None, f"no connection: {error.os_error}"[:200]
        except (ClientError, OSError, ValueError, RefusedError) as error:
            return None, (str(error) or type(error).__name__)[:200]
        return status, "" if 200 <= status < 300 else f"it answered {status}"

    def _session(self) -> ClientSession:
        connector = TCPConnector(
            socket_factory=self._socket, limit=MOST_AT_ONCE, force_close=True, use_dns_cache=False
        )
        return ClientSession(
            connector=connector,
            timeout=self._timeout,
            cookie_jar=DummyCookieJar(),
            trust_env=False,
            max_line_size=4096,
            max_field_size=4096,
        )

    def _socket(self, info: AddrInfoType) -> socket.socket:
        """Return a socket to what was resolved just now, and is connected to as it is."""
        family, kind, protocol, _, address = info
        if not self._inward and not is_outward(str(address[0])):
            raise InwardError(f"{address[0]} is no public address")
        return socket.socket(family, kind, protocol)


# As `changes_after` tells them: decided, behind the place; or a place that has to move by itself.
_BEHIND = """
    select w.id from webhooks w cross join dataset d
    where w.disabled_at is null and (w.place_at < $1 or w.place_dataset <> d.id or exists (
        select from changes c
        where c.organisation_id = w.organisation_id and c.dataset = d.id
          and (c.xid, c.id) > (w.place_xid, w.place_id)
          and c.xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint
          and (cardinality(w.kinds) = 0 or c.kind = any(w.kinds))))
    order by 1
"""
_DUE = """
    select w.id, w.organisation_id, w.ref, w.url, w.secret_sealed from webhooks w
    where w.disabled_at is null and w.id <> all($2::int[])
      and exists (select from deliveries d where d.webhook_id = w.id and d.next_at <= $1)
"""
_CLAIM = """
    update deliveries set next_at = $3 where id in (
        select id from deliveries where webhook_id = $1 and next_at <= $2
        order by id limit $4 for update skip locked)
    returning id, change_id, tries, queued_at
"""
_DELIVERED = """
    with working as (update webhooks set failing_since = null
        where id = $4 and failing_since is not null)
    update deliveries set delivered_at = $2, next_at = null, tries = tries + 1, status = $3,
        trouble = '' where id = $1
"""
_FAILED = """
    update deliveries set tries = $2, status = $3, trouble = $4, dead_at = $5, next_at = $6
    where id = $1
"""
