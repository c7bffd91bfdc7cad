"""A device is taken out, or let in again: state, certificates, spot, audit and an order, at once.

Within the caller's transaction, on a connection of the desk, of ingest or of the owner.

Invariants:
- The device's row is locked first, then its boots; both get a new `assignment_version`. A batch
  that ingest has planned before fails and is read anew (decision 0003), so after the commit
  nothing of a device that is not admitted is stored.
- An order's `asked_at` is the database's own clock, read when the boots are locked: whatever of
  the device was stored, was so by a transaction that began before it.
- What the broker is to do follows from the device's state and certificates, never from the orders.
  An order says that there is something to do, and when it was done and proved (see `worker`).
"""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError, RefusedError
from server.fleet.lifecycle import HELD, WORKING, Certificate, Effects, State, effects
from server.fleet.register import notify, vacate

CHANGED = "admission_changed"
"""The channel that carries a device's id when the broker may have to be told something of it."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A device's step in its life; `order` is its row of `admissions`, None if it needs none."""

    device: str
    before: State
    after: State
    order: int | None

    @property
    def changed(self) -> bool:
        """False if the device was there already, and nothing was done."""
        return self.before is not self.after


async def find(connection: asyncpg.Connection, name: str) -> str:
    """Return the id of the device with this id or serial number; NotFoundError."""
    found: str | None = await connection.fetchval(
        "select device from devices where device = $1 or (serial = $1 and serial <> '') "
        "order by device = $1 desc limit 1",
        name,
    )
    if found is None:
        raise NotFoundError(f"no device {name!r}")
    return found


async def move(
    connection: asyncpg.Connection,
    *,
    device: str,
    to: State,
    reason: str,
    actor: str,
    now: datetime,
) -> Moved:
    """Bring a device into state `to` with all that the edge does; done before, it does nothing.

    Raises NotFoundError; RefusedError (`bad_transition`; `no_reason` where one is owed).
    """
    row = await _lock(connection, device)
    return await _move(connection, row, to, reason=reason, actor=actor, now=now)


async def reinstate(
    connection: asyncpg.Connection, *, device: str, reason: str, actor: str, now: datetime
) -> Moved:
    """Let a suspended or quarantined device back to where it was taken from.

    Raises as `move` does; ConflictError if its life has ended. One that works stays as it is.
    """
    row = await _lock(connection, device)
    state = State(row["state"])
    if state in HELD:
        return await _move(connection, row, _returns_to(row), reason=reason, actor=actor, now=now)
    if state not in WORKING:
        raise ConflictError(f"{device} is {state}: that cannot be undone")
    return Moved(device, state, state, await _last_order(connection, row["id"]))


async def _lock(connection: asyncpg.Connection, device: str) -> asyncpg.Record:
    row = await connection.fetchrow(
        "select id, device, organisation_id, state, state_before, admitted from devices "
        "where device = $1 for update",
        device,
    )
    if row is None:
        raise NotFoundError(f"no device {device!r}")
    return row


def _returns_to(row: asyncpg.Record) -> State:
    """Return where a held device goes back to; one that was held before that was kept: enrolled."""
    return State(row["state_before"] or State.PROVISIONED)


async def _move(
    connection: asyncpg.Connection,
    row: asyncpg.Record,
    to: State,
    *,
    reason: str,
    actor: str,
    now: datetime,
) -> Moved:
    before, device = State(row["state"]), row["id"]
    if before is to:
        return Moved(row["device"], before, to, await _last_order(connection, device))
    edge = effects(before, to, returns_to=_returns_to(row) if before in HELD else None)
    if edge.certificate is not Certificate.KEEP and not reason.strip():
        raise RefusedError("no_reason", "say why: it is written down")
    kept = row["state_before"] if before in HELD else before
    admitted = await connection.fetchval(
        "update devices set state = $2, state_since = $3, state_before = $4 where id = $1 "
        "returning admitted",
        device,
        to,
        now,
        kept if to in HELD else None,
    )
    order = None
    if admitted != row["admitted"] or edge.certificate is not Certificate.KEEP:
        await _outdate_plans(connection, device)
        order = await _order(connection, row, edge, reason=reason, actor=actor)
    if edge.certificate is Certificate.REVOKE:
        await _revoke(connection, device, now=now)
    if edge.assignment_ends:
        await vacate(connection, device, since=now)
    await record(
        connection,
        actor=actor,
        act="device reinstated" if before in HELD and to in WORKING else f"device {to}",
        subject=row["device"],
        detail={"before": before, "after": to, "reason": reason},
        organisation=row["organisation_id"],
        now=now,
    )
    await notify(connection, row["device"])
    await connection.execute("select pg_notify($1, $2)", CHANGED, row["device"])
    return Moved(row["device"], before, to, order)


async def _outdate_plans(connection: asyncpg.Connection, device: int) -> None:
    """Make every batch fail that was planned with the device's frames, and wait for those begun."""
    version = await connection.fetchval(
        "update devices set assignment_version = assignment_version + 1 where id = $1 "
        "returning assignment_version",
        device,
    )
    await connection.fetch(
        "select id from boots where device_id = $1 order by id for update", device
    )
    await connection.execute(
        "update boots set assignment_version = $2 where device_id = $1", device, version
    )


async def _order(
    connection: asyncpg.Connection, row: asyncpg.Record, edge: Effects, *, reason: str, actor: str
) -> int | None:
    """Write the order down; None where the edge leaves the broker as it is."""
    if edge.certificate is Certificate.KEEP:
        return None
    order: int = await connection.fetchval(
        "insert into admissions (organisation_id, device_id, admit, reason, asked_by, asked_at) "
        "values ($1, $2, $3, $4, $5, clock_timestamp()) returning id",
        row["organisation_id"],
        row["id"],
        edge.certificate is Certificate.ADMIT,
        reason.strip(),
        actor,
    )
    return order


async def _revoke(connection: asyncpg.Connection, device: int, *, now: datetime) -> None:
    """Revoke every certificate that may still open a door, for good, and log each."""
    await connection.execute(
        "with gone as (update certificates set state = 'revoked', revoked_at = $2 "
        "where device_id = $1 and revoked_at is null and state <> 'failed' "
        "and (not_after is null or not_after > $2) returning serial, device_id, authority_id) "
        "insert into issuance_log (at, serial, event, subject, authority) "
        "select $2, g.serial, 'revoked', d.device, coalesce(a.name, 'device') from gone g "
        "join devices d on d.id = g.device_id left join authorities a on a.id = g.authority_id",
        device,
        now,
    )


async def _last_order(connection: asyncpg.Connection, device: int) -> int | None:
    order: int | None = await connection.fetchval(
        "select max(id) from admissions where device_id = $1", device
    )
    return order
