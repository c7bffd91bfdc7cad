"""How long a device's heartbeats and data may be missing: set by people, audited."""

from datetime import datetime, timedelta

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet.checks import FieldError
from server.health.presence import Limits

LEAST_S, MOST_S = 60, 604_800
SECOND = timedelta(seconds=1)


async def edit(
    connection: asyncpg.Connection,
    organisation: int,
    device: str,
    wanted: Limits,
    *,
    actor: str,
    now: datetime,
) -> Limits:
    """Set a device's limits, whole seconds; it is looked at anew. FieldError, NotFoundError."""
    heartbeat_s, data_s = (span // SECOND for span in (wanted.heartbeat, wanted.data))
    for name, value in (("heartbeat_s", heartbeat_s), ("data_s", data_s)):
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
    if (row["heartbeat_s"], row["data_s"]) == (heartbeat_s, data_s):
        return wanted
    await connection.execute(
        "update presences set heartbeat_s = $2, data_s = $3, noted_at = $4, "
        "due_at = least(coalesce(due_at, $4), $4) where device_id = $1",
        *(row["device_id"], heartbeat_s, data_s, now),
    )
    await record(
        connection,
        actor=actor,
        act="limits changed",
        subject=device,
        detail={
            "heartbeat_s": [row["heartbeat_s"], heartbeat_s],
            "data_s": [row["data_s"], data_s],
        },
        organisation=organisation,
        now=now,
    )
    return wanted
