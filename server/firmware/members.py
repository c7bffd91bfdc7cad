"""The devices of a rollout: how far each is, what it runs, and why it waits. Changes nothing.

What holds a device back is decided in `why`; here is what it is decided by, read as `granting`
reads it, without a lock: between two looks it may have changed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.errors import NotFoundError
from server.firmware.freezes import load as load_freezes
from server.firmware.guards import in_hand
from server.firmware.joiners import Outlook, room
from server.firmware.joining import outlook
from server.firmware.life import FLYING
from server.firmware.life import State as Stage
from server.firmware.nights import instant, nights
from server.firmware.reads import Loaded, find, load, plan
from server.firmware.rows import COLUMNS, execution_of
from server.firmware.waves import PREPARING, UNDER_WAY
from server.firmware.whereabouts import busy, stands
from server.firmware.why import Facts, Freeze, Why, why
from server.firmware.windows import Night
from server.fleet import filters, search
from server.rollup.places import load_sites


@dataclass(frozen=True, slots=True)
class Member:
    """One device in one rollout; `excluded`: why it is left out. `number` is its place."""

    number: int
    ref: str
    rollout: str
    device: str
    site: str | None
    site_name: str | None
    spot: str | None
    wave: int
    pool: int
    state: Stage
    attempt: int
    kind: str
    code: str
    excluded: str
    bytes: int
    due_at: datetime | None
    offered_at: datetime | None
    accepted_at: datetime | None
    phase_at: datetime | None
    ended_at: datetime | None
    before: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Explained:
    """Why a device does not run what a rollout brings, the nearest reason first.

    `member` is None where the rollout has no execution for it: it has not begun, or leaves it out.
    """

    device: str
    rollout: str
    member: Member | None
    reasons: tuple[Why, ...]


@dataclass(frozen=True, slots=True)
class Component:
    """What a device runs of one component, as it last signed; nothing below `floor` follows it."""

    version: str
    sha256: str
    floor: str


@dataclass(frozen=True, slots=True)
class Running:
    """What a device runs, and what is under way of it or was last."""

    device: str
    hardware: str
    slot: str
    components: Mapping[str, Component]
    reported_at: datetime | None
    now: Explained | None


async def members(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    now: datetime,
    states: Sequence[Stage] = (),
    kind: str | None = None,
    wave: int | None = None,
    site: str | None = None,
    expression: str = "",
    after: int = 0,
    limit: int = 1_000,
) -> list[Member]:
    """Return a rollout's devices, in the order of the plan.

    `kind`: a class of failure; `expression`: a filter that finds devices. Raises NotFoundError,
    UnknownPlaceError, FilterError.
    """
    line = await find(connection, organisation, ref)
    if site is not None:
        await load_sites(connection, [site])
    chosen = None
    if expression:
        selected = search.selection(filters.parse(expression), organisation=organisation, now=now)
        chosen = [row for row, _ in await search.found(connection, selected)]
    rows = await connection.fetch(
        f"{_MEMBER} {_CHOSEN}",
        *(line.id, after, [state.value for state in states] or None, kind, wave, site, chosen),
        limit,
    )
    return [_member(row) for row in rows]


_MEMBER = """
    select e.id as number, e.ref, o.ref as rollout, d.device, s.ref as site, s.name as site_name,
           p.ref as spot, e.wave, e.pool, e.state, e.attempt, e.class as kind, e.code,
           case when e.state = 'excluded' then coalesce(nullif(e.excluded, ''), e.code) else '' end
               as excluded,
           e.bytes, e.due_at, e.offered_at, e.accepted_at, e.phase_at, e.ended_at,
           e.from_versions as before
    from executions e join devices d on d.id = e.device_id join rollouts o on o.id = e.rollout_id
    left join sites s on s.id = e.site_id left join spots p on p.id = e.spot_id
"""
_CHOSEN = """
    where e.rollout_id = $1 and e.id > $2 and ($3::text[] is null or e.state = any($3))
      and ($4::text is null or e.class = $4) and ($5::int is null or e.wave = $5)
      and ($6::text is null or s.ref = $6) and ($7::int[] is null or e.device_id = any($7))
    order by e.id limit $8
"""


def _member(row: asyncpg.Record) -> Member:
    return Member(**{**row, "state": Stage(row["state"]), "before": json.loads(row["before"])})


# -- one device ------------------------------------------------------------------------------------


async def explain(
    connection: asyncpg.Connection, organisation: int, ref: str, device: str, *, now: datetime
) -> Explained:
    """Return why a device does not run what a rollout brings it. Raises NotFoundError."""
    known = await load(connection, organisation, ref)
    row = await connection.fetchrow(_DEVICE, organisation, device, now, known.line.id)
    if row is None:
        raise NotFoundError(f"no device {device[:40]!r}")
    found = await connection.fetchrow(
        f"{_MEMBER} where e.rollout_id = $1 and e.device_id = $2", known.line.id, row["id"]
    )
    member = None if found is None else _member(found)
    facts = await _facts(connection, organisation, known, row, member, now=now)
    return Explained(device, ref, member, why(facts))


async def of_device(
    connection: asyncpg.Connection, organisation: int, device: str, *, now: datetime
) -> Running:
    """Return what a device runs, and why it does not run what is planned for it. NotFoundError."""
    row = await connection.fetchrow(_RUNS, organisation, device)
    if row is None:
        raise NotFoundError(f"no device {device[:40]!r}")
    explained = None
    if row["rollout"] is not None:
        explained = await explain(connection, organisation, row["rollout"], device, now=now)
    components = {
        name: Component(each["version"], each.get("sha256", ""), each.get("floor", ""))
        for name, each in sorted(json.loads(row["components"] or "{}").items())
    }
    return Running(
        *(device, row["hardware"] or "", row["slot"] or "", components, row["reported_at"]),
        explained,
    )


_RUNS = """
    select f.hardware, f.slot, f.components, f.reported_at,
           (select o.ref from executions e join rollouts o on o.id = e.rollout_id
            where e.device_id = d.id and e.organisation_id = d.organisation_id
            order by e.ended_at is not null, e.id desc limit 1) as rollout
    from devices d left join device_firmware f
        on f.device_id = d.id and f.organisation_id = d.organisation_id
    where d.organisation_id = $1 and d.device = $2
"""
_DEVICE = f"""
    select d.id, coalesce(p.session = 'open', false) as here,
           greatest(p.session_at, p.heartbeat_at) as away_since, w.site_id, w.door_id, w.region_id,
           e.id as execution, {COLUMNS}
    from devices d left join presences p on p.device_id = d.id
    left join executions e on e.device_id = d.id and e.rollout_id = $4 {stands("d.id", "$3")}
    where d.organisation_id = $1 and d.device = $2
"""  # noqa: S608 - columns of ours
_FLYING = [state.value for state in FLYING]
_NAMES = "select id, device from devices where id = any($1::int[])"
_IN_REGION = """
    select count(*) from executions where rollout_id = $1 and region_id = $2 and state = any($3)
"""


async def _facts(
    connection: asyncpg.Connection,
    organisation: int,
    known: Loaded,
    row: asyncpg.Record,
    member: Member | None,
    *,
    now: datetime,
) -> Facts:
    """Return what is known of a device (`_DEVICE`) and its rollout."""
    line, rollout, site = known.line, known.rollout, row["site_id"]
    caps, door = rollout.policy.caps, row["door_id"]
    found = [] if site is None else await busy(connection, [site], now=now)
    near = [each for each in found if each.device != row["id"]]
    names = dict(await connection.fetch(_NAMES, [each.device for each in near]))
    in_region = None
    if caps.region is not None and row["region_id"] is not None:
        in_region = await connection.fetchval(_IN_REGION, line.id, row["region_id"], _FLYING)
    here = [] if site is None else [site]
    frozen = await load_freezes(connection, organisation, now=now, sites=here)
    on = frozen.at(site, int(now.timestamp()))
    wave, left_out = await _planned(connection, known, row["id"], member)
    return Facts(
        now=now,
        rollout=rollout.state,
        since=line.since,
        policy=rollout.policy,
        said=line.reason,
        starts_at=line.starts_at,
        execution=None if member is None else execution_of(row),
        wave=wave,
        waves=rollout.waves,
        current=rollout.current(),
        left_out=left_out,
        payload=line.payload,
        bytes=line.bytes,
        here=row["here"],
        away_since=row["away_since"],
        offers=_offers(known, now=now),
        flying=rollout.flying,
        at_door=tuple(names[e.device] for e in near if door is not None and e.door == door),
        at_site=tuple(names[each.device] for each in near if each.site is not None),
        in_region=in_region,
        night=await _night(connection, organisation, known, site, now=now),
        frozen=None if on is None else Freeze(on.ref, on.name, instant(on.end_s)),
        outlook=await _outlook(connection, known, row["id"], member, now=now),
    )


async def _outlook(
    connection: asyncpg.Connection,
    known: Loaded,
    device: int,
    member: Member | None,
    *,
    now: datetime,
) -> Outlook | None:
    """Return whether a device that takes no part joins by itself; None: nobody does any more."""
    part = member is not None and member.state is not Stage.EXCLUDED
    if part or known.rollout.state not in UNDER_WAY:
        return None
    found = await outlook(connection, known.line.id, device, now=now)
    if found is not None and found.joins and not room(known.rollout, known.line.approver):
        return Outlook(False, "as many have joined as was approved")
    return found


async def _planned(
    connection: asyncpg.Connection, known: Loaded, device: int, member: Member | None
) -> tuple[int | None, str]:
    """Return a device's wave and why it is left out, by its execution or, before, by the plan."""
    if member is not None:
        return member.wave, member.excluded
    if known.rollout.state not in PREPARING:
        return None, ""
    kept = await plan(connection, known.line.id)
    waves, excluded = kept.get("waves", []), kept.get("excluded", [])
    assert isinstance(waves, list)
    assert isinstance(excluded, list)
    said = next((str(each[1]) for each in excluded if each[0] == device), "")
    found = next((number for number, wave in enumerate(waves, 1) if device in wave), None)
    return found, said


def _offers(known: Loaded, *, now: datetime) -> int:
    return int(
        in_hand(
            known.rollout.policy,
            confirmed=known.rollout.confirmed,
            bytes_each=known.line.bytes,
            tokens=known.tokens,
            tokens_at=known.tokens_at,
            now=now,
        )
    )


async def _night(
    connection: asyncpg.Connection,
    organisation: int,
    known: Loaded,
    site: int | None,
    *,
    now: datetime,
) -> Night | None:
    """Return a site's windows; None where there is no site, or any time will do."""
    policy = known.rollout.policy
    if site is None or policy.urgent or policy.windows is None:
        return None
    found = await nights(
        connection,
        organisation,
        [site],
        policy.windows,
        now=now,
        overriding=policy.override_freezes,
    )
    return found.get(site)
