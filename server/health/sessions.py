"""What ingest writes for presence: what was said of connections, and frames of the unwell.

All within ingest's own commits. Rows are locked in their devices' order, and who judges waits for
no row (`watch`), so nobody waits in a circle. Writing the same twice changes nothing: a closed
epoch never opens again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.db.engine import transaction_on
from server.health.presence import AT_ONCE, Kind, Presence, Said, heard
from server.health.rows import COLUMNS, presence_of

_LOCK = f"""
    select p.device_id, p.organisation_id, p.agent, p.boot_id, {COLUMNS} from presences p
    where p.device_id = any($1::int[]) order by p.device_id for update
"""  # noqa: S608 - columns of ours
_SET = """
    update presences set session = $2, epoch = $3, session_at = $4, reason = $5, until = $6,
        closed = $7, due_at = $8, noted_at = $9, agent = $10, boot_id = $11, ordinal = $12
    where device_id = $1
"""
_EVENT = """
    insert into device_events (organisation_id, device_id, at, kind, epoch, reason, detail)
    values ($1, $2, $3, $4, $5, $6, $7)
"""
_UNWELL = """
    with unwell as materialized (
        select device_id from presences
        where device_id = any($1::int[]) and state <> 'healthy' and session <> 'none'
        order by device_id for update)
    update presences p set due_at = least(coalesce(p.due_at, $2), $2), noted_at = $3
    from unwell u where p.device_id = u.device_id
"""
_MARK = """
    insert into platform (watermark, moved_at) values ($1, $2)
    on conflict (singleton) do update set moved_at = excluded.moved_at, watermark =
        case when platform.watermark > excluded.moved_at + interval '1 minute'
             then excluded.watermark -- the clock was wrong
             else greatest(platform.watermark, excluded.watermark) end
"""
_BROKER = """
    insert into platform (broker_since) values ($1)
    on conflict (singleton) do update set broker_since = excluded.broker_since
"""


@dataclass(frozen=True, slots=True)
class Told:
    """What was said of one of a device's connections; of a greeting, by whom and which boot.

    `kept`: whether it becomes an event; of a device that connects without end some are enough.
    """

    device: int
    said: Said
    agent: str = ""
    boot_id: int = 0
    ordinal: int = 0
    kept: bool = True


async def note(connection: asyncpg.Connection, told: Sequence[Told]) -> None:
    """Write down what was said, in this order; a transaction of its own."""
    if not told:
        return
    async with transaction_on(connection, "note sessions"):
        rows = {
            row["device_id"]: row
            for row in await connection.fetch(_LOCK, list({each.device for each in told}))
        }
        kept = {device: presence_of(row) for device, row in rows.items()}
        known = {device: (row["agent"], row["boot_id"]) for device, row in rows.items()}
        last: dict[int, Told] = {}
        events: list[tuple[object, ...]] = []
        for each in told:
            if each.device not in kept:
                continue
            before = kept[each.device]
            after = heard(before, each.said)
            greets = each.said.kind is Kind.HELLO and after.epoch == each.said.epoch
            anew = greets and known[each.device] != (each.agent, each.boot_id)
            if after == before and not anew:
                continue
            whose = (rows[each.device]["organisation_id"], each.device)
            happened = _events(before, after, each)
            if anew:
                happened += _started(each, *known[each.device])
                known[each.device] = (each.agent, each.boot_id)
            if each.kept:
                events += [(*whose, *event) for event in happened]
            kept[each.device] = after
            last[each.device] = each
        await connection.executemany(
            _SET, [_written(kept[device], each, known[device]) for device, each in last.items()]
        )
        await connection.executemany(_EVENT, events)


def _written(presence: Presence, told: Told, known: tuple[str, int | None]) -> tuple[object, ...]:
    return (
        *(told.device, presence.session.value, presence.epoch, presence.session_at),
        *(presence.reason, presence.until, list(presence.closed), presence.due_at, told.said.at),
        *(*known, told.ordinal or None),
    )


def _events(before: Presence, after: Presence, told: Told) -> list[tuple[object, ...]]:
    """Return what happened to the connection: nothing, if only an old one was closed."""
    if (before.session, before.epoch) == (after.session, after.epoch):
        return []
    said = told.said
    kind = {Kind.HELLO: "connected", Kind.WILL: "lost", Kind.BYE: "goodbye"}[said.kind]
    detail: dict[str, str | int] = {}
    if said.kind is Kind.HELLO:
        detail = {"agent": told.agent, "ordinal": told.ordinal}
    elif said.until is not None:
        detail = {"until": said.until.isoformat()}
    return [(said.at, kind, said.epoch, said.reason, json.dumps(detail))]


def _started(told: Told, agent: str, boot_id: int | None) -> list[tuple[object, ...]]:
    """Return that it runs another boot, or another version of its agent."""
    found: list[tuple[object, ...]] = []
    at, epoch = told.said.at, told.said.epoch
    if boot_id != told.boot_id:
        detail = {"ordinal": told.ordinal, "agent": told.agent}
        found.append((at, "boot", epoch, "", json.dumps(detail)))
    if agent and agent != told.agent:
        detail = {"from": agent, "to": told.agent}
        found.append((at, "version", epoch, "", json.dumps(detail)))
    return found


async def frames(connection: asyncpg.Connection, devices: Sequence[int], *, at: datetime) -> None:
    """Have those of `devices` looked at that are not healthy; within the transaction that stores.

    A partial index knows them, so of a healthy fleet nothing is read and nothing is written.
    """
    await connection.execute(_UNWELL, devices, at - AT_ONCE, at)


async def watermark(connection: asyncpg.Connection, mark: datetime, *, at: datetime) -> None:
    """Say that everything before `mark` is stored."""
    await connection.execute(_MARK, mark, at)


async def broker_started(connection: asyncpg.Connection, *, at: datetime) -> None:
    """Say that the broker knows nothing of us: it has been started again."""
    await connection.execute(_BROKER, at)
