"""A device moves on in its working life; what takes it out is in `server.admission.orders`."""

from datetime import datetime

import asyncpg

from server.fleet.lifecycle import WORKING, State, effects
from server.fleet.register import notify


async def advance(
    connection: asyncpg.Connection, device_row: int, to: State, *, now: datetime
) -> None:
    """Bring a working device as far as `to`; one that is there already, or further, stays.

    Within the caller's transaction, whose own act is the audit's; on a connection of the desk, of
    ingest or of the owner. RefusedError (`bad_transition`) for a device that does not work.
    """
    row = await connection.fetchrow(
        "select device, state from devices where id = $1 for update", device_row
    )
    state = advanced(State(row["state"]), to)
    if state is not to or row["state"] == to:
        return
    await connection.execute(
        "update devices set state = $2, state_since = $3 where id = $1", device_row, to, now
    )
    await notify(connection, row["device"])


def advanced(state: State, to: State) -> State:
    """Return where a working device is once it is as far as `to`. RefusedError as above. Pure."""
    if state in WORKING and WORKING.index(state) >= WORKING.index(to):
        return state
    effects(state, to)
    return to
