"""Two machines with one identity: what is done as soon as ingest sees it."""

import json
from collections.abc import Mapping
from datetime import datetime

import asyncpg

from server import log, metrics
from server.admission.orders import move
from server.audit.log import record
from server.fleet.lifecycle import HELD, WORKING, State

FINDING = "cloned"
_log = log.get("provisioning")


async def suspect_clone(
    connection: asyncpg.Connection, device_row: int, detail: Mapping[str, str], now: datetime
) -> bool:
    """Note that a device was seen twice; quarantine it if its organisation wants that.

    True if it was quarantined now. Finding, audit, state and the order to the broker are one
    transaction, opened here. The audit has one line a quarantine, or a day: the finding repeats.
    """
    async with connection.transaction():
        row = await connection.fetchrow(
            "select d.device, d.state, d.organisation_id, o.clones, exists (select from findings f "
            "where f.device_id = d.id and f.finding = $2 and f.at > $3::timestamptz - "
            "interval '1 day') as known from devices d join organisations o "
            "on o.id = d.organisation_id where d.id = $1 for update of d",
            device_row,
            FINDING,
            now,
        )
        await connection.execute(
            "insert into findings (at, device_id, finding, detail) values ($1, $2, $3, $4)",
            now,
            device_row,
            FINDING,
            json.dumps(dict(detail)),
        )
        metrics.FINDINGS.labels(FINDING).inc()
        _log.warning("two machines have one identity", device=row["device"], **detail)
        state = State(row["state"])
        if not row["known"]:
            await record(
                connection,
                actor="server",
                act="device cloned",
                subject=row["device"],
                detail=dict(detail),
                organisation=row["organisation_id"],
                now=now,
            )
        if row["clones"] != "quarantine" or state in HELD or state not in WORKING:
            return False
        moved = await move(
            connection,
            device=row["device"],
            to=State.QUARANTINED,
            reason=FINDING,
            actor="server",
            now=now,
        )
        return moved.changed
