"""A device moves on in its life, or is taken out of it, with all that the edge does.

Within the caller's transaction, on a connection of the desk, of ingest or of the owner.
"""

from datetime import datetime

import asyncpg

from server.audit.log import record
from server.fleet.lifecycle import ENDED, HELD, WORKING, State, effects
from server.fleet.register import notify


async def advance(
    connection: asyncpg.Connection, device_row: int, to: State, *, now: datetime
) -> None:
    """Bring a working device as far as `to`; one that is there already, or further, stays."""
    row = await connection.fetchrow(
        "select device, state from devices where id = $1 for update", device_row
    )
    state = State(row["state"])
    if state in WORKING and WORKING.index(state) >= WORKING.index(to):
        return
    effects(state, to)
    await connection.execute(
        "update devices set state = $2, state_since = $3 where id = $1", device_row, to, now
    )
    await notify(connection, row["device"])


async def take_out(
    connection: asyncpg.Connection,
    device_row: int,
    to: State,
    *,
    reason: str,
    actor: str,
    now: datetime,
) -> bool:
    """Hold a device or end its life: state, certificates, spot, an order to the broker, audit.

    `to` is quarantined, suspended, returned or retired; False if it is there already.
    """
    row = await connection.fetchrow(
        "select device, state, state_before, organisation_id from devices where id = $1 for update",
        device_row,
    )
    state = State(row["state"])
    if state is to or (state in ENDED and to in HELD):
        return False
    edge = effects(state, to)
    before = row["state_before"] if state in HELD else state
    await connection.execute(
        "update devices set state = $2, state_since = $3, state_before = $4 where id = $1",
        device_row,
        to,
        now,
        before if to in HELD else None,
    )
    if to in ENDED:
        await connection.execute(
            "update certificates set state = 'revoked', revoked_at = $2 where device_id = $1 "
            "and state in ('recorded', 'staged', 'active', 'retiring')",
            device_row,
            now,
        )
    if edge.assignment_ends:
        await connection.execute(
            "update assignments set valid = tstzrange(lower(valid), $2) where device_id = $1 "
            "and upper_inf(valid) and coalesce(lower(valid), '-infinity') < $2",
            device_row,
            now,
        )
    await connection.execute(
        "insert into admissions (organisation_id, device_id, admit, reason, asked_by, asked_at) "
        "values ($1, $2, false, $3, $4, $5)",
        row["organisation_id"],
        device_row,
        reason,
        actor,
        now,
    )
    await record(
        connection,
        actor=actor,
        act=f"device {to}",
        subject=row["device"],
        detail={"reason": reason, "before": state},
        organisation=row["organisation_id"],
        now=now,
    )
    await notify(connection, row["device"])
    return True
