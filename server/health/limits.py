"""How long a device's heartbeats and data may be missing: set by people, audited."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet.checks import FieldError

LEAST_S, MOST_S = 60, 604_800


@dataclass(frozen=True, slots=True)
class Silence:
    """For how many seconds a signal may be missing; data's are of opening time."""

    heartbeat_s: int
    data_s: int


async def edit(
    connection: asyncpg.Connection,
    organisation: int,
    device: str,
    wanted: Silence,
    *,
    actor: str,
    now: datetime,
) -> Silence:
    """Set a device's limits; it is looked at anew. Raises FieldError, NotFoundError."""
    for name, value in (("heartbeat_s", wanted.heartbeat_s), ("data_s", wanted.data_s)):
        if not LEAST_S <= value <= MOST_S:
            raise FieldError(name, f"expected {LEAST_S} to {MOST_S} seconds, got {value}")
    row = await connection.fetchrow(
        "select p.device_id, p.heartbeat_s, p.data_s from presences p "
        "join devices d on d.id = p.device_id where d.device = $1 and d.organisation_id = $2 "
        "for no key update of p",
        *(device, organisation),
    )
    if row is None:
        raise NotFoundError(f"no device {device!r}")
    before = Silence(row["heartbeat_s"], row["data_s"])
    if before == wanted:
        return before
    await connection.execute(
        "update presences set heartbeat_s = $2, data_s = $3, noted_at = $4, "
        "due_at = least(coalesce(due_at, $4), $4) where device_id = $1",
        *(row["device_id"], wanted.heartbeat_s, wanted.data_s, now),
    )
    await record(
        connection,
        actor=actor,
        act="silence changed",
        subject=device,
        detail={
            "heartbeat_s": [before.heartbeat_s, wanted.heartbeat_s],
            "data_s": [before.data_s, wanted.data_s],
        },
        organisation=organisation,
        now=now,
    )
    return wanted
