"""Webhooks: who is told what, and what became of each telling.

Invariants:
- What a webhook is to be told is queued in one transaction with its place in the feed, so nothing
  is skipped or queued twice; it is sent at least once, and bears the change's own number.
- The secret is stored sealed, under a key that is outside the database, and shown once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.db.changes import Kind, Place, place_now
from server.errors import ConflictError, NotFoundError, RefusedError, UnavailableError
from server.feeds.sending import demand_address, new_secret, secret_text
from server.fleet.checks import ChangedError
from server.fleet.register import new_ref
from server.people.sealing import Seal

PURPOSE = "webhook secret"
MOST_WEBHOOKS = 20  # of an organisation


@dataclass(frozen=True, slots=True)
class Webhook:
    """Somebody who is told; `kinds` empty: all."""

    id: int
    ref: str
    url: str
    kinds: tuple[Kind, ...]
    created_at: datetime
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled: str
    waiting: int
    dead: int

    @property
    def version(self) -> str:
        """Which state this is; `seen` of an edit."""
        facts = repr((self.url, self.kinds, self.disabled_at))
        return hashlib.sha256(facts.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of telling a webhook a change."""

    id: int
    change: int
    kind: Kind
    tries: int
    status: int | None
    trouble: str
    queued_at: datetime
    next_at: datetime | None
    delivered_at: datetime | None
    dead_at: datetime | None


async def listed(
    connection: asyncpg.Connection, organisation: int, *, ref: str | None = None
) -> list[Webhook]:
    """Return an organisation's webhooks, by reference."""
    rows = await connection.fetch(_LISTED, organisation, ref)
    return [
        Webhook(**{**dict(row), "kinds": tuple(Kind(each) for each in row["kinds"])})
        for row in rows
    ]


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Webhook:
    """Return one. Raises NotFoundError."""
    found = await listed(connection, organisation, ref=ref)
    if not found:
        raise NotFoundError("there is nothing of this name")
    return found[0]


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    url: str,
    kinds: Sequence[Kind],
    seal: Seal | None,
    actor: str,
    now: datetime,
    inward: bool = False,
) -> tuple[Webhook, str]:
    """Register a webhook, which is told what happens from now on; return its secret, too."""
    demand_address(url, inward=inward)
    if seal is None:
        raise UnavailableError("nothing is sealed here")
    await connection.execute("select from organisations where id = $1 for update", organisation)
    have = await connection.fetchval(
        "select count(*) from webhooks where organisation_id = $1", organisation
    )
    if have >= MOST_WEBHOOKS:
        raise ConflictError(f"an organisation has at most {MOST_WEBHOOKS} webhooks")
    ref, secret = new_ref("webhook"), new_secret()
    place = await place_now(connection, now=now)
    await connection.execute(
        "insert into webhooks (organisation_id, ref, url, kinds, secret_sealed, created_at, "
        "place_dataset, place_xid, place_id, place_at) values ($1, $2, $3, $4, $5, $6, $7, $8, "
        "$9, $6)",
        *(organisation, ref, url, sorted({kind.value for kind in kinds})),
        *(seal.seal(PURPOSE, secret, bound=ref.encode()), now, place.dataset, place.xid, place.id),
    )
    await record(
        connection,
        actor=actor,
        act="webhook added",
        subject=ref,
        detail={"url": url},
        organisation=organisation,
        now=now,
    )
    return await find(connection, organisation, ref), secret_text(secret)


async def change(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    enabled: bool | None,
    kinds: Sequence[Kind] | None,
    replay: tuple[Place, Place] | None,
    seen: str | None,
    actor: str,
    now: datetime,
) -> Webhook:
    """Enable or disable a webhook, tell it other kinds, or tell it a stretch of the feed again."""
    await connection.execute(
        "select from webhooks where organisation_id = $1 and ref = $2 for update",
        *(organisation, ref),
    )
    known = await find(connection, organisation, ref)
    if seen is not None and seen != known.version:
        raise ChangedError(f"{ref} was changed by somebody else meanwhile")
    if enabled is not None:
        await connection.execute(
            "update webhooks set failing_since = null, "
            "disabled = case when $2 then '' else $4 end, "
            "disabled_at = case when $2 then null else coalesce(disabled_at, $3) end where id = $1",
            *(known.id, enabled, now, "Somebody disabled it."),
        )
    if kinds is not None:
        await connection.execute(
            "update webhooks set kinds = $2 where id = $1",
            *(known.id, sorted({kind.value for kind in kinds})),
        )
    again = 0
    if replay is not None:
        again = await _replay(connection, known.id, organisation, replay=replay, now=now)
    detail = {"enabled": enabled, "kinds": kinds, "replayed": again}
    await record(
        connection,
        actor=actor,
        act="webhook changed",
        subject=ref,
        detail={name: value for name, value in detail.items() if value is not None},
        organisation=organisation,
        now=now,
    )
    return await find(connection, organisation, ref)


async def _replay(
    connection: asyncpg.Connection,
    webhook: int,
    organisation: int,
    *,
    replay: tuple[Place, Place],
    now: datetime,
) -> int:
    """Queue again what lies between two places of the feed; return how much that is."""
    first, last = replay
    here = await place_now(connection, now=now)
    if {first.dataset, last.dataset} != {here.dataset}:
        raise RefusedError("bad_value", "these cursors are of before a restore")
    done = await connection.execute(
        _REPLAY,
        *(webhook, organisation, here.dataset, first.xid, first.id, last.xid, last.id, now),
        here.xid,
    )
    return int(done.rpartition(" ")[2])


async def remove(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Webhook:
    """Forget a webhook and what was to be told to it."""
    known = await find(connection, organisation, ref)
    await connection.execute("delete from webhooks where id = $1", known.id)
    await record(
        connection,
        actor=actor,
        act="webhook removed",
        subject=ref,
        organisation=organisation,
        now=now,
    )
    return known


async def deliveries(
    connection: asyncpg.Connection,
    webhook: int,
    *,
    dead: bool | None = None,
    before: int | None = None,
    limit: int,
) -> list[Delivery]:
    """Return a webhook's deliveries, latest first; `dead`: those given up, or the others."""
    rows = await connection.fetch(_DELIVERIES, webhook, dead, before, limit)
    return [Delivery(**{**dict(row), "kind": Kind(row["kind"])}) for row in rows]


_LISTED = """
    select w.id, w.ref, w.url, w.kinds, w.created_at, w.failing_since, w.disabled_at, w.disabled,
      (select count(*) from deliveries d where d.webhook_id = w.id and d.next_at is not null)
          as waiting,
      (select count(*) from deliveries d where d.webhook_id = w.id and d.dead_at is not null)
          as dead
    from webhooks w where w.organisation_id = $1 and ($2::text is null or w.ref = $2)
    order by w.ref
"""
_REPLAY = """
    insert into deliveries (organisation_id, webhook_id, change_id, queued_at, next_at)
    select c.organisation_id, w.id, c.id, $8, $8
    from changes c join webhooks w on w.id = $1
    where c.organisation_id = $2 and c.dataset = $3 and (c.xid, c.id) > ($4, $5)
      and (c.xid, c.id) <= ($6, $7) and c.xid < $9
      and (cardinality(w.kinds) = 0 or c.kind = any(w.kinds))
    on conflict (webhook_id, change_id) do update set queued_at = $8, next_at = $8, tries = 0,
      status = null, trouble = '', delivered_at = null, dead_at = null
"""
_DELIVERIES = """
    select d.id, d.change_id as change, c.kind, d.tries, d.status, d.trouble, d.queued_at,
      d.next_at, d.delivered_at, d.dead_at
    from deliveries d join changes c on c.id = d.change_id
    where d.webhook_id = $1 and ($2::bool is null or (d.dead_at is not null) = $2)
      and ($3::bigint is null or d.id < $3)
    order by d.id desc limit $4
"""
