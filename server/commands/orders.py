"""Commands in the database: asked for, offered to devices, reported on, cancelled, expired.

Invariants:
- A command is a row before anything is sent, and its device is offered it at each asking until it
  says that it runs: neither a broker that forgets nor a server that dies loses one.
- A device does what its organisation of now has asked for, and answers to nobody else.
- Each change of a command's state locks its row, and is an edge of `server.commands.life`.
- Who counts what is under way at a site holds the organisation's lock of commands meanwhile, so no
  two devices are let through the same gate at once.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from protocol.settings import Value
from protocol.state import MAX_COMMANDS, MAX_FILE, Order, Outcome
from server.audit.log import record
from server.commands.life import KINDS, OPEN, RUN, TTL, Event, Gate, Kind, Risk, State, after
from server.desired.settings import CHANGED
from server.errors import ConflictError, NotFoundError, RefusedError
from server.firmware import freezes
from server.firmware.freezes import Span
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import lock_organisation, new_ref
from server.rollup.places import load_sites

MOST_DEVICES = 5_000
MOST_LINES = 200
RING_AGAIN = timedelta(minutes=1)
_MOST_RUNG = 500
_LOCK = 0x636D_6473  # "cmds"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be done, and by whom: devices by name, else all of `site`, else all there are.

    `override_freeze`: also while a freeze is on, for the reason that is given.
    """

    kind: str
    devices: tuple[str, ...] = ()
    site: str | None = None
    reason: str = ""
    ttl: timedelta | None = None
    lines: int = 100
    once: str | None = None
    override_freeze: bool = False


@dataclass(frozen=True, slots=True)
class Reached:
    """Whom a command would reach; sites by their names, '' for devices that stand nowhere.

    `frozen`: the freezes that are on where it would disturb, the last to end first.
    """

    devices: tuple[int, ...]
    sites: Mapping[str, int]
    open_now: tuple[str, ...]
    left_out: int  # devices that are not admitted
    at: Mapping[int, int | None] = field(default_factory=dict)  # site by device
    frozen: tuple[Span, ...] = ()

    def demand(self, kind: Kind, reason: str) -> None:
        """Raise RefusedError if this may not be asked for now."""
        if not self.devices:
            raise RefusedError("no_devices", "there is no device that may be told anything")
        if len(self.devices) > MOST_DEVICES:
            raise RefusedError(
                "too_many_devices", f"{len(self.devices)} devices; at most {MOST_DEVICES} at once"
            )
        if kind.risk is Risk.DISRUPTIVE and self.open_now and not reason:
            raise RefusedError(
                "reason_needed", f"say why it can't wait: open now: {', '.join(self.open_now[:5])}"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands that were asked for together, and how many stand where."""

    ref: str
    kind: str
    reason: str
    asked_by: str
    asked_at: datetime
    expires_at: datetime
    states: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Command:
    """What one device is to do. `waits`: why it has not been offered yet."""

    id: int
    ref: str
    batch: str
    device: str
    kind: str
    reason: str
    asked_by: str
    asked_at: datetime
    expires_at: datetime
    state: State
    sent_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    code: str
    result: Mapping[str, Value]
    ended_by: str
    has_file: bool


_DEVICE = "select exists (select from devices where organisation_id = $1 and device = $2)"
_BATCH = "select exists (select from command_batches where organisation_id = $1 and ref = $2)"
_COMMAND = """
select c.id, c.ref, b.ref as batch, d.device, b.kind, b.reason, b.asked_by, b.asked_at,
       b.expires_at, c.state, c.sent_at, c.started_at, c.ended_at, c.code, c.result, c.ended_by,
       exists (select from command_files f where f.command_id = c.id) as has_file
from commands c join command_batches b on b.id = c.batch_id join devices d on d.id = c.device_id
"""


# -- asked for -----------------------------------------------------------------------------------


async def reached(
    connection: asyncpg.Connection, organisation: int, asked: Asked, *, now: datetime
) -> Reached:
    """Return whom a command would reach. Raises FieldError."""
    if asked.devices and asked.site is not None:
        raise FieldError("site", "name either devices or a site")
    names = set(asked.devices)
    rows = await connection.fetch(
        "select d.id, d.device, d.admitted, s.id as site, s.ref, s.name from devices d "
        "left join assignments a on a.device_id = d.id and a.valid @> $2::timestamptz "
        "left join spots p on p.id = a.spot_id left join sites s on s.id = p.site_id "
        "where d.organisation_id = $1 and ($3::text[] is null or d.device = any($3)) "
        "and ($4::text is null or s.ref = $4) order by d.device",
        *(organisation, now, sorted(names) or None),
        asked.site,
    )
    if missing := names - {row["device"] for row in rows}:
        raise FieldError("devices", f"no device {min(missing)[:40]!r}")
    if asked.site is not None and not rows and not await connection.fetchval(
        "select exists (select from sites where organisation_id = $1 and ref = $2)",
        *(organisation, asked.site),
    ):  # fmt: skip
        raise FieldError("site", f"no site {asked.site[:40]!r}")
    admitted = [row for row in rows if row["admitted"]]
    sites: dict[str, int] = {}
    for row in admitted:
        sites[row["ref"] or ""] = sites.get(row["ref"] or "", 0) + 1
    where = {row["site"] for row in admitted if row["site"] is not None}
    return Reached(
        tuple(row["id"] for row in admitted),
        dict(sorted(sites.items())),
        tuple([name for _, name in await _open_now(connection, where, now=now)]),
        len(rows) - len(admitted),
        {row["id"]: row["site"] for row in admitted},
        await _frozen(connection, organisation, asked, [row["site"] for row in admitted], now=now),
    )


async def _frozen(
    connection: asyncpg.Connection,
    organisation: int,
    asked: Asked,
    sites: Collection[int | None],
    *,
    now: datetime,
) -> tuple[Span, ...]:
    """Return the freezes that keep this from being done: of what disturbs alone."""
    kind = KINDS.get(asked.kind)
    if kind is None or kind.risk is not Risk.DISRUPTIVE or not sites:
        return ()
    return tuple(await freezes.on_at(connection, organisation, sites, now=now))


async def ask(
    connection: asyncpg.Connection,
    organisation: int,
    asked: Asked,
    *,
    actor: str,
    now: datetime,
) -> Batch:
    """Ask devices to do something. Raises FieldError, RefusedError, FrozenError."""
    await lock_organisation(connection, organisation)
    if asked.once is not None and (
        known := await connection.fetchval(
            "select ref from command_batches where organisation_id = $1 and once = $2",
            *(organisation, asked.once),
        )
    ):
        return await batch(connection, organisation, known)
    kind, reason, ttl = _checked(asked)
    found = await reached(connection, organisation, asked, now=now)
    ref = new_ref("batch")
    if found.frozen:
        if asked.override_freeze:  # which the audit says: nothing is locked after its chain
            await connection.execute(_SHARED, list(found.devices))
        await freezes.heed(
            *(connection, organisation, set(found.at.values()), f"{kind.name} {ref}"),
            override=asked.override_freeze,
            reason=reason,
            actor=actor,
            now=now,
        )
    found.demand(kind, reason)
    row = await connection.fetchval(
        "insert into command_batches (organisation_id, ref, kind, lines, reason, asked_by, "
        "asked_at, expires_at, once, override_freeze) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) returning id",
        *(organisation, ref, kind.name, asked.lines, reason, actor, now, now + ttl, asked.once),
        asked.override_freeze,
    )
    await connection.executemany(
        "insert into commands (organisation_id, batch_id, ref, device_id, site_id, due_at) "
        "values ($1, $2, $3, $4, $5, $6)",
        [
            (organisation, row, new_ref("cmd"), device, found.at[device], now + ttl)
            for device in found.devices
        ],
    )
    await _ring(connection, found.devices)
    await record(
        connection,
        actor=actor,
        act="command asked",
        subject=ref,
        detail={"kind": kind.name, "devices": len(found.devices), "reason": reason},
        organisation=organisation,
        now=now,
    )
    return await batch(connection, organisation, ref)


_SHARED = "select from devices where id = any($1::int[]) order by id for key share"


def _checked(asked: Asked) -> tuple[Kind, str, timedelta]:
    """Return what is asked for, why, and how long it may take. Raises FieldError."""
    kind = KINDS.get(asked.kind)
    if kind is None:
        raise FieldError("kind", f"expected {', '.join(KINDS)}; got {asked.kind[:40]!r}")
    reason = checks.line(asked.reason, "reason")
    ttl = kind.ttl if asked.ttl is None else asked.ttl
    if not TTL[0] <= ttl <= TTL[1]:
        raise FieldError("ttl_s", f"expected {TTL[0].seconds} to {TTL[1] // timedelta(seconds=1)}")
    if not 1 <= asked.lines <= MOST_LINES:
        raise FieldError("lines", f"expected 1 to {MOST_LINES}")
    return kind, reason, ttl


async def cancel(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Command:
    """Take back what has not begun. Raises NotFoundError, ConflictError."""
    row = await connection.fetchrow(
        "select id, state, device_id from commands where organisation_id = $1 and ref = $2 "
        "for no key update",
        *(organisation, ref),
    )
    if row is None:
        raise NotFoundError(f"no command {ref[:40]!r}")
    state = State(row["state"])
    becomes = after(state, Event.CANCELLED)
    if becomes is None:
        if state is State.CANCELLED:
            return await find(connection, organisation, ref)
        raise ConflictError(f"{ref} can't be taken back: it is {state.value}")
    await connection.execute(
        "update commands set state = $2, ended_at = $3, ended_by = $4 where id = $1",
        *(row["id"], becomes.value, now, actor),
    )
    await _ring(connection, [row["device_id"]])
    await record(
        connection,
        actor=actor,
        act="command cancelled",
        subject=ref,
        organisation=organisation,
        now=now,
    )
    return await find(connection, organisation, ref)


# -- read ----------------------------------------------------------------------------------------


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Command:
    """Return a command. Raises NotFoundError."""
    row = await connection.fetchrow(
        f"{_COMMAND} where c.organisation_id = $1 and c.ref = $2",
        *(organisation, ref),
    )
    if row is None:
        raise NotFoundError(f"no command {ref[:40]!r}")
    return _command(row)


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    device: str | None = None,
    batch: str | None = None,
    state: State | None = None,
    before: int = (1 << 63) - 1,
    limit: int = 100,
) -> list[Command]:
    """Return commands whose row is before `before`, the latest first. Raises NotFoundError."""
    for name, asked, known in (("device", device, _DEVICE), ("batch", batch, _BATCH)):
        if asked is not None and not await connection.fetchval(known, organisation, asked):
            raise NotFoundError(f"no {name} {asked[:40]!r}")
    rows = await connection.fetch(
        f"{_COMMAND} where c.organisation_id = $1 and c.id < $2 "
        "and ($3::text is null or d.device = $3) and ($4::text is null or b.ref = $4) "
        "and ($5::text is null or c.state = $5) order by c.id desc limit $6",
        *(organisation, before, device, batch, state, limit),
    )
    return [_command(row) for row in rows]


async def batch(connection: asyncpg.Connection, organisation: int, ref: str) -> Batch:
    """Return what was asked for together. Raises NotFoundError."""
    row = await connection.fetchrow(
        "select id, ref, kind, reason, asked_by, asked_at, expires_at from command_batches "
        "where organisation_id = $1 and ref = $2",
        *(organisation, ref),
    )
    if row is None:
        raise NotFoundError(f"no batch {ref[:40]!r}")
    facts = dict(row)
    states = await connection.fetch(
        "select state, count(*) from commands where batch_id = $1 group by 1 order by 1",
        facts.pop("id"),
    )
    return Batch(**facts, states=dict(states))


async def file_of(connection: asyncpg.Connection, organisation: int, ref: str) -> tuple[str, bytes]:
    """Return what a device sent beside its answer, and its name. Raises NotFoundError."""
    row = await connection.fetchrow(
        "select d.device, b.kind, f.content from command_files f "
        "join commands c on c.id = f.command_id join command_batches b on b.id = c.batch_id "
        "join devices d on d.id = c.device_id where c.organisation_id = $1 and c.ref = $2",
        *(organisation, ref),
    )
    if row is None:
        raise NotFoundError(f"no file of {ref[:40]!r}")
    return f"{row['device']}-{ref}.{KINDS[row['kind']].brings}", row["content"]


def _command(row: asyncpg.Record) -> Command:
    facts = dict(row) | {"state": State(row["state"]), "result": json.loads(row["result"])}
    return Command(**facts)


# -- with its device -----------------------------------------------------------------------------


async def offer(connection: asyncpg.Connection, device: int, *, now: datetime) -> tuple[Order, ...]:
    """Return what a device (its row, locked) is to do now; it counts as sent."""
    rows = await connection.fetch(
        "select c.id, c.ref, c.state, c.organisation_id, b.kind, b.lines, b.reason, b.expires_at, "
        "b.override_freeze from commands c join command_batches b on b.id = c.batch_id "
        "join devices d on d.id = c.device_id and d.organisation_id = c.organisation_id "
        "where c.device_id = $1 and c.state in ('queued', 'sent') and c.due_at > $2 "
        "order by c.id limit $3 for no key update of c",
        *(device, now, MAX_COMMANDS),
    )
    given = []
    for row in rows:
        kind = KINDS[row["kind"]]
        if row["state"] == State.QUEUED:
            if (await _gate(connection, device, row, kind.risk, now=now)).holds:
                continue
            await connection.execute(
                "update commands set state = 'sent', sent_at = $2 where id = $1", row["id"], now
            )
        left = (row["expires_at"] - now) // timedelta(seconds=1)
        lines = row["lines"] if kind.brings == "log.gz" else 0
        given.append(Order(row["ref"], kind.name, left, lines))
    return tuple(given)


async def _gate(
    connection: asyncpg.Connection,
    device: int,
    row: asyncpg.Record,
    risk: Risk,
    *,
    now: datetime,
) -> Gate:
    await connection.execute("select pg_advisory_xact_lock($1, $2)", _LOCK, row["organisation_id"])
    kinds = [kind.name for kind in KINDS.values() if kind.risk is risk]
    site = await connection.fetchval(
        "select p.site_id from assignments a join spots p on p.id = a.spot_id "
        "where a.device_id = $1 and a.valid @> $2::timestamptz",
        *(device, now),
    )
    at_site, everywhere = await connection.fetchrow(
        "select count(*) filter (where c.site_id = $3), count(*) from commands c "
        "join command_batches b on b.id = c.batch_id where c.organisation_id = $1 "
        "and c.state in ('sent', 'running') and b.kind = any($2) and c.device_id <> $4",
        *(row["organisation_id"], kinds, site, device),
    )
    opened = await _open_now(connection, {site} if site is not None else set(), now=now)
    frozen = False
    if risk is Risk.DISRUPTIVE and not row["override_freeze"]:
        frozen = bool(await freezes.on_at(connection, row["organisation_id"], [site], now=now))
    return Gate(risk, bool(opened), bool(row["reason"]), at_site, everywhere, frozen)


async def heard(
    connection: asyncpg.Connection,
    device: int,
    outcomes: Sequence[Outcome],
    *,
    now: datetime,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keep what a device (its row, locked) says of its commands.

    Return those whose end is stored, and those said to be running that are wanted no more.
    """
    ended, withdrawn = [], []
    for said in outcomes:
        row = await connection.fetchrow(
            "select c.id, c.state, c.organisation_id, c.site_id from commands c "
            "join devices d on d.id = c.device_id and d.organisation_id = c.organisation_id "
            "where c.ref = $1 and c.device_id = $2 for no key update of c",
            *(said.command, device),
        )
        event = Event(said.state)
        if event is not Event.RUNNING:
            ended.append(said.command)  # also what we never heard of: the device may forget it
        elif row is None or State(row["state"]) not in OPEN:
            withdrawn.append(said.command)
        becomes = None if row is None else after(State(row["state"]), event)
        if becomes is None:
            continue
        if becomes in OPEN:
            await connection.execute(
                "update commands set state = $2, started_at = $3, due_at = $4, "
                "sent_at = coalesce(sent_at, $3) where id = $1",
                *(row["id"], becomes.value, now, now + RUN),
            )
            continue
        await connection.execute(
            "update commands set state = $2, ended_at = $3, code = $4, result = $5, "
            "ended_by = '', sent_at = coalesce(sent_at, $3) where id = $1",
            *(row["id"], becomes.value, now, said.code, json.dumps(dict(said.result))),
        )
        await _ring_next(connection, row["organisation_id"], row["site_id"])
    return tuple(ended), tuple(withdrawn)


async def keep_file(
    connection: asyncpg.Connection, device: int, ref: str, content: bytes, *, now: datetime
) -> None:
    """Keep what a device sends with a command of its own that is under way. NotFoundError."""
    if not 0 < len(content) <= MAX_FILE:
        raise RefusedError("too_large", f"a file has 1 to {MAX_FILE} bytes")
    row = await connection.fetchrow(
        "select c.id, c.organisation_id, b.kind from commands c "
        "join command_batches b on b.id = c.batch_id "
        "join devices d on d.id = c.device_id and d.organisation_id = c.organisation_id "
        "where c.ref = $1 and c.device_id = $2 and c.state in ('sent', 'running') "
        "for no key update of c",
        *(ref, device),
    )
    if row is None or not KINDS[row["kind"]].brings:
        raise NotFoundError(f"no command {ref[:40]!r} that brings a file")
    await connection.execute(
        "insert into command_files values ($1, $2, $3, $4) on conflict (command_id) "
        "do update set content = $3, stored_at = $4",
        *(row["id"], row["organisation_id"], content, now),
    )


# -- time passes ---------------------------------------------------------------------------------


async def sweep(connection: asyncpg.Connection, *, now: datetime) -> int:
    """End what is overdue, and ring again for what waits. Return how many ended."""
    rows = await connection.fetch(
        "update commands c set state = 'expired', ended_at = $1, "
        "code = case c.state when 'queued' then 'not_fetched' when 'sent' then 'not_begun' "
        "else 'no_answer' end where c.id in (select id from commands "
        "where state in ('queued', 'sent', 'running') and due_at <= $1 order by due_at limit $2 "
        "for no key update skip locked) returning c.organisation_id, c.site_id",
        *(now, _MOST_RUNG),
    )
    for organisation, site in {tuple(row) for row in rows}:
        await _ring_next(connection, organisation, site)
    waiting = await connection.fetch(
        "select distinct c.device_id from commands c join command_batches b on b.id = c.batch_id "
        "where c.state in ('queued', 'sent') and b.asked_at < $1 limit $2",
        *(now - RING_AGAIN, _MOST_RUNG),
    )
    await _ring(connection, [row["device_id"] for row in waiting])
    return len(rows)


async def _ring(connection: asyncpg.Connection, devices: Iterable[int]) -> None:
    await connection.execute(
        "select pg_notify($1, device) from devices where id = any($2::int[])",
        *(CHANGED, list(devices)),
    )


async def _ring_next(connection: asyncpg.Connection, organisation: int, site: int | None) -> None:
    """Ring for some whose turn may have come, those of the same site first."""
    rows = await connection.fetch(
        "select device_id from commands where organisation_id = $1 and state = 'queued' "
        "order by site_id is distinct from $2, id limit 4",
        *(organisation, site),
    )
    await _ring(connection, [row["device_id"] for row in rows])


async def _open_now(
    connection: asyncpg.Connection, sites: set[int], *, now: datetime
) -> list[tuple[int, str]]:
    """Return which of some sites are open at this moment, with their names."""
    if not sites:
        return []
    now_s = int(now.timestamp())
    found = await load_sites(connection, ids=sorted(sites))
    return [(site.id, site.name) for site in found if site.calendar.open_between(now_s, now_s + 1)]
