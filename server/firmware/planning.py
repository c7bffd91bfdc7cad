"""The dry run: a plan of a bundle for devices of an organisation, made from the database.

`dry_run` reads and writes nothing down; a draft is made of its answer. It runs as any role that may
read an organisation's numbers (the desk does). What it says before anybody approves: who in which
wave, who not and why, what comes first, bytes, times, who else must approve, what cannot be taken
back, and the least loss of counts that the guard would find.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import asyncpg

from server.errors import NotFoundError, RefusedError
from server.firmware import counts, life, plan, reach, showing
from server.firmware.change import Change, SettingsChange
from server.firmware.counted import LATE, Place, doors, formats_of
from server.firmware.counts import Sensitivity
from server.firmware.forecast import Forecast, forecast, needs_s
from server.firmware.freezes import Frozen, load
from server.firmware.nights import told, usually_quiet
from server.firmware.plan import Device, Plan, Release
from server.firmware.policy import Policy
from server.firmware.reach import Reach
from server.firmware.showing import Showing
from server.firmware.waves import State
from server.firmware.windows import Night
from server.fleet import filters, search, segments
from server.rollup.places import load_sites

MOST_DEVICES = 200_000
MOST_DOORS = 160
"""Doors of either side whose weeks are read to say what the guard would find."""
_FIRM = 99
"""The priority of who cannot be superseded any more: it is installing."""
_WAITING = [State.PLANNED.value, State.AWAITING_APPROVAL.value, State.SCHEDULED.value]
_INSTALLING = [life.State.INSTALLING.value, life.State.REBOOTING.value, life.State.TRIAL.value]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be planned: devices that a filter finds, or a segment that fits it too.

    `seed`: 64 hex digits of the lot; empty: a fresh one. `back`: newer devices go back to this.
    `change`: settings instead of a bundle; of a layer other than devices' own it is for all of it.
    `questionnaire`: its ref, instead of either.
    """

    bundle: str
    filter: str = ""
    segment: str | None = None
    policy: Policy = field(default_factory=Policy)
    seed: str = ""
    back: bool = False
    change: SettingsChange | None = None
    questionnaire: str | None = None


@dataclass(frozen=True, slots=True)
class DryRun:
    """A plan with all that is said of it; `detects`: what the guard would find, or why nothing.

    `pending`: rollouts that have not started, and how many of these devices they want, too: who
    starts first has them, and the other one leaves them out then.
    """

    plan: Plan
    bundle: tuple[Release, ...]
    policy: Policy
    filter: str
    segment: str | None
    back: bool
    seed: str
    forecast: Forecast
    detects: Sensitivity | str
    second_person: tuple[str, ...]
    pending: Mapping[str, int]
    change: Change | Showing | None = None

    def kept(self) -> dict[str, object]:
        """Return what a rollout keeps of its plan, as JSON; devices are kept as its executions."""
        made = self.plan
        detects: object = self.detects
        if isinstance(self.detects, Sensitivity):
            detects = {
                "loss_80": round(self.detects.loss_80, 4),
                "loss_90": round(self.detects.loss_90, 4),
                "updated": self.detects.updated,
                "control": self.detects.control,
                "looks": self.detects.looks,
            }
        return {
            "seed": self.seed,
            "commitment": made.commitment,
            "filter": self.filter,
            "segment": self.segment,
            "back": self.back,
            "controls": [device.id for device in made.controls],
            "devices": made.devices,
            "sites": made.sites,
            "bytes": made.bytes,
            "waves": [
                {"number": w.number, "devices": len(w.devices), "bytes": w.bytes,
                 "opens": t.opens_s, "done": t.done_s}
                for w, t in zip(made.waves, self.forecast.waves, strict=True)
            ],
            "excluded": {why.value: number for why, number in sorted(made.reasons.items())},
            "legs": [
                {"component": leg.release.component, "version": leg.release.version,
                 "devices": len(leg.devices)}
                for leg in made.legs
            ],
            "one_way": [
                {"component": each.release.component, "version": each.release.version,
                 "floor": each.release.floor, "devices": each.devices,
                 "versions": list(each.versions)}
                for each in made.one_way
            ],
            "conflicts": {ref: list(pair) for ref, pair in made.conflicts.items()},
            "pending": dict(self.pending),
            "detects": detects,
            "second_person": list(self.second_person),
        }  # fmt: skip


async def dry_run(
    connection: asyncpg.Connection, organisation: int, asked: Asked, *, now: datetime
) -> DryRun:
    """Return the plan. Raises NotFoundError, FilterError, RefusedError (`EmptyPlanError` not)."""
    policy, seed = asked.policy, asked.seed or secrets.token_hex(32)
    brought = await _brought(connection, organisation, asked, now=now)
    if len(brought.rows) > MOST_DEVICES:
        raise RefusedError("too_many", f"more than {MOST_DEVICES} devices: narrow the filter")
    known = replace(asked, seed=seed)
    made, nights = await _made(connection, organisation, known, brought, now=now)
    second_person = made.second_person(policy)
    if brought.to is not None:
        reach.demand_waves(brought.to.change, made)
        second_person += reach.second_person(brought.to.change, made, policy)
    return DryRun(
        made,
        tuple(brought.bundle),
        policy,
        filters.printed(filters.parse(asked.filter)),
        asked.segment,
        asked.back,
        seed,
        forecast(made, nights, policy, now_s=int(now.timestamp())),
        await _detects(connection, made, policy, seed, now=now),
        tuple(second_person),
        await _pending(connection, organisation, made),
        None if brought.to is None else brought.to.change,
    )


async def found(
    connection: asyncpg.Connection, organisation: int, asked: Asked, *, now: datetime
) -> list[int]:
    """Return the devices (rows) that are asked for, by name: at most one more than may be.

    Raises NotFoundError, FilterError.
    """
    chosen = await _chosen(connection, organisation, asked, now=now)
    return [row for row, _ in await search.found(connection, chosen, limit=MOST_DEVICES + 1)]


async def again(
    connection: asyncpg.Connection,
    organisation: int,
    asked: Asked,
    rows: Sequence[int],
    *,
    now: datetime,
) -> tuple[Plan, tuple[Release, ...]]:
    """Plan these devices (rows) of an organisation alone; return the bundle's releases, too.

    Raises NotFoundError, RefusedError.
    """
    brought = _Brought(rows, *await _releases(connection, asked.bundle))
    made, _ = await _made(connection, organisation, asked, brought, now=now)
    return made, tuple(brought.bundle)


@dataclass(frozen=True, slots=True)
class _Brought:
    """What is brought to which devices (rows): a bundle, or what says itself whom it reaches.

    `stones`: all releases that may be offered.
    """

    rows: Sequence[int]
    bundle: Sequence[Release] = ()
    stones: Sequence[Release] = ()
    to: Reach | None = None


async def _brought(
    connection: asyncpg.Connection, organisation: int, asked: Asked, *, now: datetime
) -> _Brought:
    """Return what is asked for, and whom it is for."""
    if asked.change is not None:
        chosen = None
        if asked.filter or asked.segment is not None:
            chosen = await found(connection, organisation, asked, now=now)
        to = await reach.reach(connection, organisation, asked.change, chosen, now=now)
        return _Brought(to.rows, to=to)
    if asked.questionnaire is not None:
        shown = asked.questionnaire
        rows = await found(connection, organisation, asked, now=now)
        given = await showing.reach(connection, organisation, shown, rows, now=now)
        return _Brought(rows, to=Reach(Showing(shown), tuple(rows), given))
    bundle, stones = await _releases(connection, asked.bundle)
    return _Brought(await found(connection, organisation, asked, now=now), bundle, stones)


async def _made(
    connection: asyncpg.Connection,
    organisation: int,
    asked: Asked,
    brought: _Brought,
    *,
    now: datetime,
) -> tuple[Plan, Mapping[int, Night] | None]:
    """Return the plan of devices, and the windows of where they stand; None: at any time."""
    policy, to = asked.policy, brought.to
    devices, nights = await _devices(connection, organisation, brought.rows, policy, now=now)
    found_by = {
        rule.filter: await _found_by(connection, organisation, rule.filter, now=now)
        for rule in policy.waves
        if rule.filter
    }
    made = await asyncio.to_thread(
        plan.plan, devices, brought.bundle, brought.stones, nights, policy,
        seed=asked.seed, found_by=found_by, back=asked.back,
        given=None if to is None else to.given,
    )  # fmt: skip
    return made, nights


async def _releases(
    connection: asyncpg.Connection, bundle: str
) -> tuple[list[Release], list[Release]]:
    """Return a bundle's releases in order, and all that may be offered."""
    wanted = await connection.fetchval("select releases from bundles where ref = $1", bundle)
    if wanted is None:
        raise NotFoundError(f"no bundle {bundle[:40]!r}")
    rows = {row["id"]: row for row in await connection.fetch(_RELEASES)}
    gone = [rows[each] for each in wanted if rows[each]["withdrawn_at"] is not None]
    if gone:
        name = f"{gone[0]['component']} {gone[0]['version']}"
        raise RefusedError("withdrawn", f"{name} was withdrawn: it is offered to nobody")
    offered = {key: _release(row) for key, row in rows.items() if row["withdrawn_at"] is None}
    return [offered[each] for each in wanted], list(offered.values())


def _release(row: asyncpg.Record) -> Release:
    return Release(
        row["id"], row["component"], row["version"], row["floor"], row["requires"],
        frozenset(row["hardware"]), row["length"],
    )  # fmt: skip


async def _chosen(
    connection: asyncpg.Connection, organisation: int, asked: Asked, *, now: datetime
) -> search.Selection:
    wanted = filters.parse(asked.filter)
    if asked.segment is None:
        return search.selection(wanted, organisation=organisation, now=now)
    known = await segments.find(connection, organisation, asked.segment)
    return segments.members(known, organisation=organisation, now=now, besides=wanted)


async def _found_by(
    connection: asyncpg.Connection, organisation: int, text: str, *, now: datetime
) -> frozenset[int]:
    chosen = search.selection(filters.parse(text), organisation=organisation, now=now)
    return frozenset(row for row, _ in await search.found(connection, chosen))


async def _devices(
    connection: asyncpg.Connection,
    organisation: int,
    rows: Sequence[int],
    policy: Policy,
    *,
    now: datetime,
) -> tuple[list[Device], Mapping[int, Night] | None]:
    """Return devices as plans see them, and the windows of where they stand; None: at any time."""
    told_of = await connection.fetch(_DEVICES, list(rows), now, _INSTALLING, _FIRM)
    places = sorted({row["site"] for row in told_of if row["site"] is not None})
    sites = await load_sites(connection, ids=places) if places else []
    formats = await formats_of(connection, sites)
    devices = [_device(row, formats) for row in told_of]
    if policy.windows is None or policy.urgent:
        return devices, None
    frozen = Frozen()
    if not policy.override_freezes:
        frozen = await load(connection, organisation, now=now)
    rules = replace(policy.windows, least_s=max(policy.windows.least_s, needs_s(policy)))
    quiet = await usually_quiet(connection, sites, rules, now=now)
    return devices, await asyncio.to_thread(told, sites, rules, frozen, quiet, now=now)


def _device(row: asyncpg.Record, formats: Mapping[int, str]) -> Device:
    components = json.loads(row["components"] or "{}")
    return Device(
        id=row["id"],
        name=row["device"],
        kind=row["kind"],
        model=row["model"] or row["hardware"] or "",
        state=row["state"],
        site=row["site"],
        spot=row["spot"],
        door=row["door_id"],
        region=row["region_id"],
        site_name=row["site_name"] or "",
        format=formats.get(row["site"], ""),
        network=row["region"] or "",
        reported=row["reported_at"] is not None,
        running={name: said["version"] for name, said in components.items()},
        floors=json.loads(row["floors"] or "{}"),
        other=None if row["other"] is None else (row["other"], row["priority"]),
    )


async def _pending(
    connection: asyncpg.Connection, organisation: int, made: Plan
) -> Mapping[str, int]:  # fmt: skip
    """Return which rollouts wait to start with how many of a plan's devices."""
    wanted = [device.id for wave in made.waves for device in wave.devices]
    rows = await connection.fetch(_PENDING, organisation, _WAITING, wanted)
    return {row["ref"]: row["devices"] for row in rows}


async def _detects(
    connection: asyncpg.Connection, made: Plan, policy: Policy, seed: str, *, now: datetime
) -> Sensitivity | str:
    """Return what the counts guard would find in the waves before the last, or why nothing.

    There are as many looks at the last of them as its soak has days: then the controls' wave opens.
    """
    if not policy.guards.counts:
        return "the policy wants no guard by counts"
    if not made.waves:
        return "nobody would get it"
    if len(made.waves) < 2:
        return "all devices are in one wave: nobody waits whom they could be held against"
    updated = [d for w in made.waves[:-1] for d in w.devices if d.kind == "counter"]
    control = {device.id for device in made.controls}
    chosen = [*updated[:MOST_DOORS], *made.controls[:MOST_DOORS]]
    places = [
        Place(device.spot, device.site, None if device.id in control else 0)
        for device in chosen
        if device.spot is not None and device.site is not None
    ]
    found, today = await doors(connection, [replace(p, since=None) for p in places], now=now)
    acted = [
        replace(door, since=place.since) for door, place in zip(found, places, strict=True)
    ]  # fmt: skip
    looks = int((policy.gate.soak_s - LATE.total_seconds()) // 86_400)
    return await asyncio.to_thread(
        counts.sensitivity, acted, today=today, seed=seed, looks=looks
    )  # fmt: skip


_PENDING = """
    select r.ref, count(*)::int as devices from rollouts r
    cross join lateral jsonb_array_elements(coalesce(r.plan -> 'waves', '[]')) as w(devices)
    cross join lateral jsonb_array_elements(w.devices) as d(id)
    where r.organisation_id = $1 and r.state = any($2::text[]) and d.id::int = any($3::int[])
    group by r.ref order by r.ref
"""
_RELEASES = """
    select id, component, version, floor, requires, hardware, length, withdrawn_at from releases
"""
_DEVICES = """
    select d.id, d.device, d.kind, d.model, d.state, sp.site_id as site, sp.id as spot, sp.door_id,
           si.region_id, si.name as site_name, r.name as region, f.hardware, f.components, f.floors,
           f.reported_at, o.ref as other, o.priority
    from devices d
    left join assignments a on a.device_id = d.id and a.valid @> $2::timestamptz
    left join spots sp on sp.id = a.spot_id
    left join sites si on si.id = sp.site_id
    left join regions r on r.id = si.region_id
    left join device_firmware f on f.device_id = d.id
    left join (
        select e.device_id, w.ref,
               case when e.state = any($3::text[]) then $4::int
                    else coalesce((w.policy ->> 'priority')::int, 5) end as priority
        from executions e join rollouts w on w.id = e.rollout_id
        where e.ended_at is null and e.device_id = any($1::int[])) o on o.device_id = d.id
    where d.id = any($1::int[])
"""
