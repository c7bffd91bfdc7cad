"""What makes executions of a plan: the start, who joins later, and the way back.

A plan is `{"waves": [[device, ...], ...], "excluded": [[device, why], ...]}` of devices' rows.
Between plan and start a device may have left, or have become busy in another rollout: it is
excluded then, by name. A rollout of higher priority takes over what has not begun to install.

A reverse rollout takes devices back to what they ran before (`from_versions`), all in one wave,
under the same caps and guards; what it does when it halts itself is for people to decide. There is
no way back below a floor: whom a release raised above what it ran is excluded from it, and if that
leaves nobody it is refused.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import asyncpg
import msgspec

from server.errors import RefusedError
from server.firmware import life, showing, steering
from server.firmware.life import REVOCABLE
from server.firmware.life import State as Stage
from server.firmware.policy import Gate, OnHalt, WaveRule, read_policy, write_policy
from server.firmware.reports import change
from server.firmware.rollout import (
    SERVER,
    Approved,
    Joined,
    Planned,
    Reverting,
    Started,
    Submitted,
)
from server.firmware.rows import COLUMNS, Held, Moved, execution_of, hold, put, ring
from server.firmware.waves import OVER, UNDER_WAY, Payload, State
from server.firmware.whereabouts import stands
from server.fleet.register import new_ref
from server.fleet.versions import key

MOST_DEVICES = 100_000
_REVERSE_PRIORITY = 9


@dataclass(frozen=True, slots=True)
class Member:
    """A device of a wave; `why`: it is excluded. `releases`: what it gets, if not the bundle."""

    device: int
    wave: int
    why: str = ""
    releases: tuple[int, ...] | None = None


def members(plan: Mapping[str, object]) -> list[Member]:
    """Return whom a plan names, each once. Raises RefusedError."""
    waves, excluded = plan.get("waves", []), plan.get("excluded", [])
    try:
        asked = msgspec.convert({"waves": waves, "excluded": excluded}, type=_Plan)
    except msgspec.ValidationError as error:
        raise RefusedError("bad_plan", str(error)) from error
    found = [Member(d, n) for n, wave in enumerate(asked.waves, 1) for d in wave]
    found += [Member(device, 0, why or "excluded") for device, why in asked.excluded]
    if len({each.device for each in found}) < len(found):
        raise RefusedError("bad_plan", "a device is named twice")
    if len(found) > MOST_DEVICES:
        raise RefusedError("too_many_devices", f"{len(found)} devices; at most {MOST_DEVICES}")
    return found


class _Plan(msgspec.Struct):
    waves: list[list[int]]
    excluded: list[tuple[int, str]]


# -- the start -------------------------------------------------------------------------------------


async def start(held: Held) -> None:
    """Make the executions of a scheduled rollout, and let it run. Raises RefusedError."""
    await steering.demand_unchanged(held)
    await showing.demand_fit(held)
    text = await held.connection.fetchval("select plan from rollouts where id = $1", held.facts.id)
    asked = members(json.loads(text))
    sizes = await _enlist(held, asked, waves=max((each.wave for each in asked), default=0))
    held.take(Started(at=held.now, sizes=tuple(sizes)))


async def join(
    held: Held, devices: Sequence[Member], *, actor: str = SERVER, reason: str = ""
) -> int:
    """Add devices to the tail, also who was left out before; return how many take part."""
    tail = held.rollout.waves[-1].number
    asked = [
        Member(each.device, 0 if each.why else tail, each.why, each.releases) for each in devices
    ]
    sizes = await _enlist(held, asked, waves=tail)
    if sizes[-1]:
        held.take(Joined(at=held.now, actor=actor, reason=reason, devices=sizes[-1]))
    return sizes[-1]


async def _enlist(held: Held, asked: Sequence[Member], *, waves: int) -> list[int]:
    """Make executions, and return how many of each wave take part."""
    connection, facts = held.connection, held.facts
    busy = await _make_way(held, [each.device for each in asked if not each.why])
    rows = await connection.fetch(
        _ENLIST,
        *(facts.id, facts.organisation, held.now),
        [each.device for each in asked],
        [each.wave for each in asked],
        [each.why or busy.get(each.device, "") for each in asked],
        [new_ref("exe") for _ in asked],
        [None if each.releases is None else _array(each.releases) for each in asked],
    )
    sizes = [0] * waves
    for row in rows:
        if row["state"] == "planned":
            sizes[row["wave"] - 1] += 1
    return sizes


_ENLIST = f"""
insert into executions (organisation_id, ref, rollout_id, wave, pool, device_id, site_id, spot_id,
    door_id, region_id, state, due_at, ended_at, excluded, releases)
select $2, n.ref, $1, n.wave, n.wave, d.id, w.site_id, w.spot_id, w.door_id, w.region_id,
       case why when '' then 'planned' else 'excluded' end,
       case why when '' then $3::timestamptz end, case why when '' then null else $3 end, why,
       n.releases::int[]
from unnest($4::int[], $5::smallint[], $6::text[], $7::text[], $8::text[])
     n (device, wave, said, ref, releases)
join devices d on d.id = n.device
cross join lateral (select case when n.said <> '' then n.said when d.organisation_id <> $2
    or not d.admitted then 'it is here no longer' else '' end) x (why)
{stands("d.id", "$3")}
on conflict (rollout_id, device_id) do update set wave = excluded.wave, pool = excluded.pool,
    site_id = excluded.site_id, spot_id = excluded.spot_id, door_id = excluded.door_id,
    region_id = excluded.region_id, state = 'planned', due_at = excluded.due_at, ended_at = null,
    excluded = '', releases = excluded.releases
where executions.state = 'excluded' and executions.excluded <> '' and excluded.state = 'planned'
returning wave, state
"""  # noqa: S608
"""Who was left out of the plan and fits by now takes part; who ever took part never does again."""


def _array(numbers: Iterable[int]) -> str:
    return "{" + ",".join(map(str, numbers)) + "}"


async def _make_way(held: Held, devices: Sequence[int]) -> dict[int, str]:
    """Supersede what matters less and has not begun; return why the others are busy."""
    rows = await held.connection.fetch(_ELSEWHERE, devices, held.facts.id)
    busy: dict[int, str] = {}
    weaker: dict[int, list[asyncpg.Record]] = {}
    for row in rows:
        less = read_policy(row["policy"]).priority < held.rollout.policy.priority
        if less and (row["state"] == "planned" or Stage(row["state"]) in REVOCABLE):
            weaker.setdefault(row["rollout_id"], []).append(row)
        else:
            busy[row["device_id"]] = f"busy in {row['rollout']}"
    for number in sorted(weaker):
        other = await hold(held.connection, number, now=held.now)
        assert other is not None
        moved: list[Moved] = []
        for row in weaker[number]:
            before = execution_of(row)
            after = life.superseded(before, other.here)
            change(other, row["pool"], before, after, actor=SERVER)
            moved.append(Moved(row["id"], row["pool"], after))
        await put(held.connection, moved)
        await other.write()
        await ring(held.connection, [row["device_id"] for row in weaker[number]])
    return busy


_ELSEWHERE = f"""
select e.id, e.device_id, e.rollout_id, e.pool, o.ref as rollout, o.policy, {COLUMNS}
from executions e join rollouts o on o.id = e.rollout_id
where e.device_id = any($1::int[]) and e.ended_at is null and e.rollout_id <> $2
order by e.id for no key update of e
"""  # noqa: S608

# -- the way back ----------------------------------------------------------------------------------

_FAILED = (Stage.FAILED, Stage.TIMED_OUT, Stage.LOST)


async def revert(held: Held, how: OnHalt, *, actor: str, reason: str) -> str:
    """Make the rollout that takes devices back, and run it; return its name. RefusedError."""
    if how is OnHalt.KEEP:
        raise RefusedError("bad_revert", f"say {OnHalt.REVERT_FAILED} or {OnHalt.REVERT_ALL}")
    asked = await back(held, how)
    if not any(not each.why for each in asked):
        why = sorted({each.why for each in asked})
        raise RefusedError(
            "no_way_back", "; ".join(why) or "no device runs what this rollout brought"
        )
    ref, facts = new_ref("rollout"), held.facts
    policy = msgspec.structs.replace(
        held.rollout.policy,
        waves=(WaveRule(),),
        gate=Gate(success_pct=held.rollout.policy.gate.success_pct, min_sample=1, soak_s=0),
        on_halt=OnHalt.KEEP,
        priority=_REVERSE_PRIORITY,
    )
    made = await held.connection.fetchval(
        "insert into rollouts (organisation_id, ref, name, payload, bytes, policy, since, author, "
        "reverses, due_at, content) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $7, $10) "
        "returning id",
        *(facts.organisation, ref, facts.name, facts.payload.value, facts.bytes),
        *(write_policy(policy), held.now, SERVER, facts.id, json.dumps({"how": how.value})),
    )
    reverse = await hold(held.connection, made, now=held.now)
    assert reverse is not None
    takes_part = sum(not each.why for each in asked)
    reverse.take(Planned(at=held.now, reason=f"reverses {facts.ref}", sizes=(takes_part,)))
    reverse.take(Submitted(at=held.now))
    reverse.take(Approved(at=held.now, actor=actor if actor != SERVER else facts.approver))
    sizes = await _enlist(reverse, asked, waves=1)
    reverse.take(Started(at=held.now, sizes=tuple(sizes)))
    await reverse.write()
    held.take(Reverting(at=held.now, actor=actor, reason=reason, by=ref, how=how))
    return ref


async def back(held: Held, how: OnHalt, *, but: int | None = None) -> list[Member]:
    """Return who is to go back to what, or why not; not those of rollout `but` already."""
    if held.facts.payload is not Payload.BUNDLE:
        found = await steering.back(held, how, but=but)
        return [Member(device, 0 if why else 1, why) for device, why in found]
    rows = await held.connection.fetch(_BACK, held.facts.id, _states(how), but)
    known = {
        (row["component"], row["version"]): row["id"]
        for row in await held.connection.fetch(
            "select id, component, version from releases where withdrawn_at is null"
        )
    }
    return [_member(row, known) for row in rows]


_BACK = """
select e.device_id, e.from_versions, f.components, coalesce(f.floors, '{}') as own,
       case e.state when 'confirmed' then (
           select jsonb_object_agg(r.component, r.floor) from releases r
           where r.id = any(coalesce(e.releases, b.releases))) else '{}' end as floors
from executions e join rollouts o on o.id = e.rollout_id
left join bundles b on b.id = o.bundle_id left join device_firmware f using (device_id)
where e.rollout_id = $1 and e.state = any($2) and e.offered_at is not null
  and not exists (select from executions r where r.rollout_id = $3 and r.device_id = e.device_id)
order by e.id
"""


def _member(row: asyncpg.Record, known: Mapping[tuple[str, str], int]) -> Member:
    before: dict[str, str] = json.loads(row["from_versions"])
    floors = [json.loads(row["own"]), json.loads(row["floors"] or "{}")]
    runs = {name: each["version"] for name, each in json.loads(row["components"] or "{}").items()}
    device = row["device_id"]
    if not before:
        return Member(device, 0, "it is not known what it ran before")
    if all(runs.get(name) == version for name, version in before.items()):
        return Member(device, 0, "it runs what it ran before")
    for name, version in before.items():
        for floor in (each[name] for each in floors if name in each):
            if (key(version) or ()) < (key(floor) or ()):
                return Member(device, 0, f"the floor was raised to {name} {floor}")
        if (name, version) not in known:
            return Member(device, 0, f"no release of {name} {version}")
    return Member(device, 1, "", tuple(known[each] for each in before.items()))


async def waits_for(connection: asyncpg.Connection, reverse: int, original: int) -> bool:
    """Whether more devices of what a rollout takes back may yet have to go back."""
    how = await _how(connection, reverse)
    found: bool = await connection.fetchval(_WAITS, original, reverse, _states(how))
    return found


_WAITS = """
select exists (select from executions where rollout_id = $1 and ended_at is null) or exists (
    select from executions e where e.rollout_id = $1 and e.state = any($3)
    and e.offered_at is not null and not exists (
        select from executions r where r.rollout_id = $2 and r.device_id = e.device_id))
"""


async def join_late(held: Held) -> State | None:
    """Send those back, too, that have ended since; return how the way back ended, if it has."""
    row = await held.connection.fetchrow(
        "select id, state from rollouts where reverses = $1 order by id desc limit 1",
        held.facts.id,
    )
    state = State(row["state"])
    if state in OVER:
        return state
    late = await back(held, await _how(held.connection, row["id"]), but=row["id"])
    if late and state in UNDER_WAY:
        reverse = await hold(held.connection, row["id"], now=held.now)
        assert reverse is not None
        if reverse.rollout.state in UNDER_WAY:
            await join(reverse, late)
            await reverse.write()
    return None


async def _how(connection: asyncpg.Connection, reverse: int) -> OnHalt:
    text = await connection.fetchval(
        "select content ->> 'how' from rollouts where id = $1", reverse
    )
    return OnHalt(text)


def _states(how: OnHalt) -> list[str]:
    failed = [state.value for state in _FAILED]
    return [*failed, Stage.CONFIRMED.value] if how is OnHalt.REVERT_ALL else failed
