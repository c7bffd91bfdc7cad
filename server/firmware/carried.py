"""Executions of what is no bundle: granted, taken and ended where a device asks for that alone.

Such an attempt has two steps: it is accepted by the asking that is answered with it, and ended by a
later one that shows what became of it (`steering` of settings, `showing` of questionnaires).
"""

from datetime import datetime

import asyncpg

from protocol.update import Attempt, Class, Phase, Step
from server.firmware import life, reports
from server.firmware.life import FLYING
from server.firmware.life import State as Stage
from server.firmware.rows import COLUMNS, Moved, execution_of, hold, named, put
from server.firmware.waves import WITHDRAWN, Payload, State

_ACCEPTED, _ENDED = 1, 2  # the numbers of the steps

_OPEN = f"""
select e.id, e.ref, e.pool, e.settings, e.shows, e.told, e.rollout_id, o.ref as rollout, o.reverses,
       o.state as stands, s.version, d.device, {COLUMNS}
from executions e join rollouts o on o.id = e.rollout_id
join devices d on d.id = e.device_id and d.organisation_id = e.organisation_id
left join device_settings s on s.device_id = e.device_id
where e.device_id = $1 and e.state in ({named(FLYING)}) and o.payload = $2
for no key update of e
"""  # noqa: S608


async def concerns(connection: asyncpg.Connection, device: int, payload: Payload) -> bool:
    """Whether a rollout of this has anything open for a device (its row); mostly none has."""
    found: bool = await connection.fetchval(
        "select exists (select from executions e join rollouts o on o.id = e.rollout_id "
        "where e.device_id = $1 and e.ended_at is null and o.payload = $2)",
        *(device, payload.value),
    )
    return found


async def under_way(
    connection: asyncpg.Connection, device: int, payload: Payload
) -> asyncpg.Record | None:
    """Return a device's (its row's) execution that is on its way, if it brings this; locked."""
    return await connection.fetchrow(_OPEN, device, payload.value)


def withdrawn(row: asyncpg.Record) -> bool:
    """Whether what an execution (`under_way`) brings is taken away again."""
    return State(row["stands"]) in WITHDRAWN and row["reverses"] is None


async def accepted(
    connection: asyncpg.Connection, device: int, row: asyncpg.Record, *, now: datetime
) -> None:
    """Note that a device is being answered with what its execution (`under_way`) brings."""
    if Stage(row["state"]) is Stage.OFFERED:
        step = Step(_attempt(row), _ACCEPTED, Phase.ACCEPTED)
        await reports.hear(connection, device, [step], fresh=True, now=now)


async def ended(
    connection: asyncpg.Connection,
    device: int,
    row: asyncpg.Record,
    phase: Phase,
    code: str = "",
    kind: Class | None = None,
    *,
    about: str = "",
    now: datetime,
) -> None:
    """Take in how an execution (`under_way`) ended at its device."""
    step = Step(_attempt(row), _ENDED, phase, code, kind, tail=about)
    await reports.hear(connection, device, [step], fresh=True, now=now)


async def cancelled(
    connection: asyncpg.Connection, device: int, row: asyncpg.Record, *, now: datetime
) -> None:
    """Take in that a device has dealt with being told without what was withdrawn."""
    end = Phase.FAILED, life.CANCELLED_CODE, Class.REFUSED
    await ended(connection, device, row, *end, now=now)


async def superseded(connection: asyncpg.Connection, row: asyncpg.Record, *, now: datetime) -> None:
    """End what somebody nearer to the device has decided meanwhile: it counts for nothing."""
    held = await hold(connection, row["rollout_id"], now=now)
    assert held is not None
    before = execution_of(row)
    after = life.superseded(before, held.here)
    reports.change(held, row["pool"], before, after, actor=f"device {row['device']}")
    await put(connection, [Moved(row["id"], row["pool"], after)])
    await held.write()


def _attempt(row: asyncpg.Record) -> Attempt:
    return Attempt(row["ref"], row["attempt"])
