"""Rollouts of settings: laid over the devices that were granted them, moved by what devices say.

A rollout changes one layer of settings, device by device. What it brings lies in its executions
(`executions.settings`) from the grant on, in the grant's transaction, and counts for that device as
if the layer said so (`server.desired.settings`). Once the rollout has completed the layer itself is
written, with the same writings: no device is told anything else then but who was left out.

Invariants:
- Who is neither on its way nor has confirmed has nothing laid over its settings (`rows.put`): so
  whoever fails, lapses or is lost is told again what its layers say.
- An execution is accepted by the asking that is answered with the change, and ends by a report that
  has dealt with exactly what the device was told last. What we sent moves nothing.
- Going back takes away what was laid over: a device has again what its layers say, and nobody else
  could change those keys of that layer meanwhile. What it had is kept (`from_versions`).
- One rollout at a time changes a key of a layer. Where the layer has been edited since the plan,
  the rollout does not begin.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime

import asyncpg

from protocol.state import Report
from server.audit.log import record
from server.desired import settings
from server.desired.layers import Scope
from server.errors import ConflictError, NotFoundError, RefusedError
from server.firmware import carried
from server.firmware.change import (
    Change,
    SettingsChange,
    checked_change,
    judged,
    read_change,
)
from server.firmware.freezes import on_at
from server.firmware.policy import OnHalt
from server.firmware.rollout import SERVER
from server.firmware.rows import Held, ring
from server.firmware.waves import Payload, State

# -- before it begins ------------------------------------------------------------------------------


async def known(
    connection: asyncpg.Connection, organisation: int, asked: SettingsChange
) -> tuple[Change, settings.Place | None]:
    """Return a change with what its layer says now, and the layer; None: each device's own.

    Raises FieldError, NotFoundError, ConflictError where another rollout changes the same.
    """
    change = checked_change(asked)
    await _demand_alone(connection, organisation, change, but=None)
    if change.scope is Scope.DEVICE:
        return change, None
    place = await settings.place(connection, organisation, change.scope.value, change.of)
    return replace(change, was=await _was(connection, organisation, change, place)), place


async def _was(
    connection: asyncpg.Connection, organisation: int, change: Change, place: settings.Place
) -> Mapping[str, tuple[int | str, int] | None]:
    held = await settings.find(connection, organisation, place)
    return {
        key: (held.entries[key].value, held.entries[key].number) if key in held.entries else None
        for key in change.values
    }


async def _demand_alone(
    connection: asyncpg.Connection, organisation: int, change: Change, *, but: int | None
) -> None:
    ref = await connection.fetchval(
        _ALONE, *(organisation, change.scope.value, change.of, list(change.values), but)
    )
    if ref is not None:
        raise ConflictError(f"{ref} is changing the same setting of the same layer")


_ALONE = """
select ref from rollouts where organisation_id = $1 and payload = 'settings' and reverses is null
and state in ('scheduled', 'running', 'paused', 'halted', 'reverting', 'cancelling')
and content ->> 'scope' = $2 and content ->> 'of' = $3 and content -> 'values' ?| $4::text[]
and ($5::int is null or id <> $5 and state <> 'scheduled') order by id limit 1
"""


async def demand_unchanged(held: Held) -> None:
    """Let a rollout begin only where its layer is as it was planned. Raises RefusedError."""
    if held.facts.payload is not Payload.SETTINGS:
        return
    connection, organisation = held.connection, held.facts.organisation
    await settings.lock_layers(connection, organisation)  # before it nobody edits, after it we run
    change = await change_of(connection, held.facts.id)
    try:
        await _demand_alone(connection, organisation, change, but=held.facts.id)
    except ConflictError as error:
        raise RefusedError("conflict", str(error)) from error
    if change.scope is Scope.DEVICE:
        edited = await connection.fetchrow(_EDITED, held.facts.id, list(change.values))
        if edited is not None:
            since = f"of {edited['device']} was changed by somebody else since the plan"
            raise RefusedError("changed", f"{edited['key']} {since}")
        return
    place = await _place(connection, organisation, change)
    if place is None:
        raise RefusedError("changed", f"there is no {change.scope.value} {change.of} any more")
    for key, was in (await _was(connection, organisation, change, place)).items():
        if was != change.was.get(key):
            raise RefusedError("changed", f"{key} was changed by somebody else since the plan")


_EDITED = """
select d.device, key from rollouts o
join rollout_events v on v.rollout_id = o.id and v.event = 'planned'
cross join jsonb_array_elements(o.plan -> 'waves') w(devices)
cross join jsonb_array_elements_text(w.devices) m(device)
join devices d on d.id = m.device::int
join settings_layers l on l.device_id = d.id and l.organisation_id = o.organisation_id
cross join unnest($2::text[]) key
where o.id = $1 and (l.entries -> key ->> 'number')::bigint > extract(epoch from v.at) * 1000
order by d.device limit 1
"""


async def _place(
    connection: asyncpg.Connection, organisation: int, change: Change
) -> settings.Place | None:
    """Return whose layer it is; None for devices' own, and for one that is there no more."""
    if change.scope is Scope.DEVICE:
        return None
    with suppress(NotFoundError):
        return await settings.place(connection, organisation, change.scope.value, change.of)
    return None


async def change_of(connection: asyncpg.Connection, rollout: int) -> Change:
    """Return what a rollout (its row), or the one that it takes back, changes."""
    text = await connection.fetchval(
        "select coalesce(x.content, o.content) from rollouts o "
        "left join rollouts x on x.id = o.reverses where o.id = $1",
        rollout,
    )
    return read_change(json.loads(text))


# -- granted ---------------------------------------------------------------------------------------


async def bring(held: Held, executions: Sequence[tuple[int, int, int]]) -> None:
    """Lay a change over devices, or take it away again: (execution, device, attempt)."""
    if held.facts.payload is not Payload.SETTINGS or not executions:
        return
    connection, facts = held.connection, held.facts
    change = await change_of(connection, facts.id)
    devices = [device for _, device, _ in executions]
    if facts.reverses is not None:
        await connection.execute(
            "update executions set settings = null where rollout_id = $1 "
            "and device_id = any($2::int[])",
            *(facts.reverses, devices),
        )
    rows = await connection.fetch(
        "select device_id, report -> 'values' as has from device_settings "
        "where device_id = any($1::int[])",
        devices,
    )
    has = {row["device_id"]: json.loads(row["has"] or "{}") for row in rows}
    began = facts.starts_at or held.now
    brought = []
    for execution, device, attempt in executions:
        number = change.number(round(began.timestamp() * 1000), attempt)
        entries = change.entries(number, at=held.now.timestamp(), by=facts.ref)
        laid = {
            "scope": change.scope.value,
            "of": change.of,
            "entries": {key: asdict(entry) for key, entry in entries.items()},
        }
        own = has.get(device, {})
        before = {key: str(own[key]) for key in change.values if key in own}
        forwards = None if facts.reverses is not None else json.dumps(laid)
        brought.append((execution, forwards, json.dumps(before)))
    await connection.executemany(
        "update executions e set told = null, settings = case when $2::jsonb ->> 'scope' = 'device'"
        " then jsonb_set($2::jsonb, '{of}', to_jsonb(d.device)) else $2::jsonb end, "
        "from_versions = case from_versions when '{}' then $3::jsonb else from_versions end "
        "from devices d where e.id = $1 and d.id = e.device_id",
        brought,
    )


# -- what a device says ----------------------------------------------------------------------------


async def heard(
    connection: asyncpg.Connection, device: int, report: Report, *, now: datetime
) -> None:
    """Take in what a device (its row, locked) says of its settings, before it is told anew."""
    row = await carried.under_way(connection, device, Payload.SETTINGS)
    if row is None:
        return
    withdrawn = carried.withdrawn(row)
    if withdrawn and row["settings"] is not None:  # told without it, it ends by its next word
        await connection.execute(
            "update executions set settings = null, told = null where id = $1", row["id"]
        )
        return
    if row["told"] is None or not report.version == row["version"] >= row["told"]:
        return
    if withdrawn:
        await carried.cancelled(connection, device, row, now=now)
        return
    change = await change_of(connection, row["rollout_id"])
    told = await settings.merged_of(connection, device, now=now)
    by = row["rollout"] if row["reverses"] is None else ""
    outcome = judged(change, told, report, by=by)
    if outcome is None:
        return
    if outcome.phase is None:
        await carried.superseded(connection, row, now=now)
        return
    end = outcome.phase, outcome.code, outcome.kind
    await carried.ended(connection, device, row, *end, about=outcome.about, now=now)


async def told(connection: asyncpg.Connection, device: int, version: int, *, now: datetime) -> None:
    """Note that a device that asked is being answered with what its execution brings."""
    row = await carried.under_way(connection, device, Payload.SETTINGS)
    if row is None or row["told"] is not None:
        return
    await connection.execute("update executions set told = $2 where id = $1", row["id"], version)
    await carried.accepted(connection, device, row, now=now)


# -- once it is over, and the way back -------------------------------------------------------------


async def frozen(held: Held) -> bool:
    """Whether a layer that all have taken waits for the end of a freeze: others would get it."""
    facts = held.facts
    if facts.payload is not Payload.SETTINGS or facts.reverses is not None:
        return False
    if held.rollout.policy.override_freezes:
        return False
    change = await change_of(held.connection, facts.id)
    found = await _place(held.connection, facts.organisation, change)
    if found is None:
        return False
    reached = await settings.devices(held.connection, facts.organisation, found, now=held.now)
    sites = {each.site for each in reached}
    return bool(await on_at(held.connection, facts.organisation, sites, now=held.now))


async def settle(held: Held) -> None:
    """Let the layer itself say what a rollout that has ended brought; its row is written."""
    connection, facts = held.connection, held.facts
    if facts.payload is not Payload.SETTINGS or facts.reverses is not None:
        return
    change = await change_of(connection, facts.id)
    await settings.lock_layers(connection, facts.organisation)
    has = await connection.fetchval(
        "select count(*) from executions where rollout_id = $1 and settings is not null", facts.id
    )
    await connection.execute("select settle_settings($1, $2)", facts.id, held.now)
    whole = held.rollout.state in (State.COMPLETED, State.COMPLETED_WITH_STRAGGLERS)
    layer = f"{change.scope.value} {change.of}".strip()
    if not has:
        return
    was = {key: pair[0] for key, pair in change.was.items() if pair is not None}
    changed = {key: [was.get(key), value] for key, value in change.values.items()}
    place = await _place(connection, facts.organisation, change)
    if whole and place is not None:
        reached = await settings.devices(connection, facts.organisation, place, now=held.now)
        await ring(connection, await _others(connection, facts.id, [each.id for each in reached]))
    await record(
        connection,
        actor=SERVER,
        act="settings changed",
        subject=layer if whole else "device",
        detail={**changed, "rollout": facts.ref, "devices": has},
        organisation=facts.organisation,
        now=held.now,
    )


async def _others(
    connection: asyncpg.Connection, rollout: int, devices: Sequence[int]
) -> list[int]:
    """Return who of these has not confirmed: what they are told has changed just now."""
    rows = await connection.fetch(
        "select device_id from executions where rollout_id = $1 and state = 'confirmed'", rollout
    )
    there = {row["device_id"] for row in rows}
    return [device for device in devices if device not in there]


async def back(held: Held, how: OnHalt, *, but: int | None = None) -> list[tuple[int, str]]:
    """Return who is to give back what a rollout brought, or why not; not those of `but`."""
    rows = await held.connection.fetch(_BACK, *(held.facts.id, but, how is OnHalt.REVERT_ALL))
    return [(row["device_id"], "" if row["has"] else "it has what it had before") for row in rows]


_BACK = """
select e.device_id, num_nonnulls(e.settings, e.shows) > 0 as has from executions e
where e.rollout_id = $1 and e.offered_at is not null
and (e.state in ('failed', 'timed out', 'lost') or $3 and e.state = 'confirmed')
and not exists (select from executions r where r.rollout_id = $2 and r.device_id = e.device_id)
order by e.id
"""
