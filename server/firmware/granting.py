"""Which device may begin now: every cap at once, and the offer itself.

The conductor offers to many, the exchange to one that asks; both come here. A device is offered
what its rollout holds for it if, in this order:

1. it is still its organisation's, and admitted; it does not run all of it already;
2. its wave is open or behind, the rollout runs, and its own time has come (`due_at`);
3. it is there: its session is open, or it is asking;
4. the ramp has an offer left, and not too many are on their way;
5. none at its door is on its way or may yet begin by itself, and fewer than the cap at its site are
   on their way, of whatever rollout (`whereabouts`); and fewer than the cap in its region, of this
   one. Who asks this holds the organisation's gate until the transaction ends, so no two are let
   through at once;
6. its site is not frozen, and has a window open or, of what a device fetches and holds back itself,
   about to open (`ahead_s`): so who waits for a window for long keeps nobody from his turn.

`Waits.why` says the first that does not hold.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

import asyncpg

from server import metrics
from server.firmware import life, showing, steering
from server.firmware.guards import in_hand
from server.firmware.life import FLYING, Execution
from server.firmware.nights import shut as shut_at
from server.firmware.reports import change
from server.firmware.rollout import SERVER, Strayed
from server.firmware.rows import COLUMNS, Held, Moved, execution_of, hold, named, put, ring
from server.firmware.waves import Payload, State
from server.firmware.whereabouts import busy, stands

_GATE = 0x6677_6761  # "fwga"
LOOK_AGAIN = timedelta(minutes=1)
_AWAY = (timedelta(seconds=30), timedelta(minutes=10))
_MOST_S = 3_600


class Why(StrEnum):
    """Why a device is not offered anything yet."""

    NOT_RUNNING = "not_running"
    WAVE = "wave"
    LATER = "later"  # after a failure, a deferral or an offer that lapsed
    AWAY = "away"
    RATE = "rate"
    IN_FLIGHT = "in_flight"
    DOOR = "door"
    SITE = "site"
    REGION = "region"
    SHUT = "shut"  # a freeze, or no window soon


@dataclass(frozen=True, slots=True)
class Granted:
    """An execution (its row and name) is under way, newly or since before."""

    execution: int
    ref: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Waits:
    """A device is to wait, and to ask again then."""

    why: Why
    again_s: int


async def grant(
    connection: asyncpg.Connection,
    device: int,
    *,
    now: datetime,
    payload: Payload = Payload.BUNDLE,
) -> Granted | Waits | None:
    """Offer a device (its row) that is asking what is planned for it; None: there is nothing.

    `payload`: it asks for this, and hears of nothing else.

    What is under way already is granted again, however often. Within the caller's transaction.
    """
    row = await connection.fetchrow(
        "select e.id, e.ref, e.state, e.attempt, e.rollout_id, o.state as rollout "
        "from executions e join rollouts o on o.id = e.rollout_id "
        "where e.device_id = $1 and e.ended_at is null and o.payload = $2 for no key update of e",
        *(device, payload.value),
    )
    if row is None:
        return None
    offered = life.State(row["state"]) is life.State.OFFERED
    if offered and payload is not Payload.BUNDLE:  # of a bundle the exchange assigns nothing then
        return await _still(connection, row, now=now)
    if life.State(row["state"]) in FLYING:
        return Granted(row["id"], row["ref"], row["attempt"])
    if State(row["rollout"]) is not State.RUNNING:
        return Waits(Why.NOT_RUNNING, _MOST_S)
    held = await hold(connection, row["rollout_id"], now=now)
    assert held is not None
    (candidate,) = await candidates(held, one=row["id"])
    found = (await offer(held, [candidate], asking=True)).get(row["id"])
    await held.write()
    if found is None:
        return Granted(row["id"], row["ref"], row["attempt"])
    return found if isinstance(found, Waits) else None


async def _still(
    connection: asyncpg.Connection, row: asyncpg.Record, *, now: datetime
) -> Granted | Waits:
    """Grant what was offered; taken back where it halted, or a freeze began, before the asking.

    A way back is not: what its device had is gone from it since the offer.
    """
    held = await hold(connection, row["rollout_id"], now=now)
    assert held is not None
    (each,) = await candidates(held, one=row["id"])
    shut = await _shut(held, [each])
    running = held.rollout.state is State.RUNNING
    if held.facts.reverses is not None or (running and each.site not in shut):
        return Granted(row["id"], row["ref"], row["attempt"])
    after = life.withheld(each.execution, shut.get(each.site, now + LOOK_AGAIN))
    change(held, each.pool, each.execution, after, actor=SERVER)
    await put(connection, [Moved(each.id, each.pool, after, shut=each.site in shut)])
    await held.write()
    return Waits(Why.SHUT if running else Why.NOT_RUNNING, _MOST_S)


# -- who comes into question -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """A planned execution, with what its device is and where it stands now."""

    id: int
    device: int
    wave: int
    pool: int
    execution: Execution
    here: bool
    away_since: datetime | None
    site: int | None
    spot: int | None
    door: int | None
    region: int | None
    own: bool
    runs: Mapping[str, str]  # component to version
    wanted: Mapping[str, str]


async def candidates(
    held: Held, *, one: int | None = None, pools: Sequence[int] = (), limit: int = 1
) -> list[Candidate]:
    """Return one planned execution, or those of pools that are due, and lock them."""
    if one is not None:
        return await _candidates(held, _ONE, one)
    found: list[Candidate] = []
    for pool in pools:
        if len(found) < limit:
            found += await _candidates(held, _DUE, pool, held.now, limit - len(found))
    return found


_CANDIDATES = f"""
select e.id, e.device_id, e.wave, e.pool, {COLUMNS}, coalesce(p.session = 'open', false) as here,
       greatest(p.session_at, p.heartbeat_at) as away_since, w.site_id, w.spot_id, w.door_id,
       w.region_id, d.admitted and d.organisation_id = e.organisation_id as own, f.components,
       (select jsonb_object_agg(r.component, r.version) from releases r
        where r.id = any(coalesce(e.releases, b.releases))) as wanted
from {{chosen}} join executions e on e.id = chosen.id
join rollouts o on o.id = e.rollout_id left join bundles b on b.id = o.bundle_id
join devices d on d.id = e.device_id left join presences p on p.device_id = e.device_id
left join device_firmware f on f.device_id = e.device_id {stands("e.device_id", "$2")}
"""  # noqa: S608
_ONE = _CANDIDATES.format(
    chosen="(select id from executions where rollout_id = $1 and id = $3) chosen"
)
_DUE = _CANDIDATES.format(
    chosen="(select id from executions where rollout_id = $1 and pool = $3 and state = 'planned' "
    "and due_at <= $4 order by due_at limit $5 for no key update skip locked) chosen"
)


async def _candidates(held: Held, sql: str, *asked: object) -> list[Candidate]:
    rows = await held.connection.fetch(sql, held.facts.id, held.now, *asked)
    return [_candidate(row) for row in rows]


def _candidate(row: asyncpg.Record) -> Candidate:
    components = json.loads(row["components"] or "{}")
    return Candidate(
        id=row["id"],
        device=row["device_id"],
        wave=row["wave"],
        pool=row["pool"],
        execution=execution_of(row),
        here=row["here"],
        away_since=row["away_since"],
        site=row["site_id"],
        spot=row["spot_id"],
        door=row["door_id"],
        region=row["region_id"],
        own=row["own"],
        runs={name: each["version"] for name, each in components.items()},
        wanted=json.loads(row["wanted"] or "{}"),
    )


# -- the offer -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Room:
    """What caps have left, as it is used up."""

    offers: int
    flying: int
    sites: Counter[int]
    doors: dict[int, set[int]]  # to the devices that keep it
    regions: Counter[int]
    offered: list[Candidate] = field(default_factory=list)

    def use(self, candidate: Candidate) -> None:
        """Count one more on its way."""
        self.offers -= 1
        self.flying -= 1
        self.sites.update([candidate.site] if candidate.site is not None else [])
        self.regions.update([candidate.region] if candidate.region is not None else [])
        if candidate.door is not None:
            self.doors.setdefault(candidate.door, set()).add(candidate.device)
        self.offered.append(candidate)


async def offer(
    held: Held, chosen: Sequence[Candidate], *, asking: bool = False
) -> dict[int, Waits | Execution]:
    """Offer to whom it may be; the others, by row: why they wait, or how they have ended.

    What is decided is in `held`, whose `write` the caller awaits.
    """
    left: dict[int, Waits | Execution] = {}
    moved: list[Moved] = []
    room = await _room(held, chosen)
    shut = await _shut(held, chosen)
    for each in chosen:
        ended = _ended(held, each)
        if ended is not each.execution:
            left[each.id] = ended
            change(held, each.pool, each.execution, ended, actor=SERVER)
            moved.append(Moved(each.id, each.pool, ended))
            continue
        why = _why_not(held, each, room, asking=asking)
        if why is None and each.site in shut:
            left[each.id] = Waits(Why.SHUT, _MOST_S)
            later = life.postponed(each.execution, shut[each.site])
            moved.append(Moved(each.id, each.pool, later, shut=True))
            continue
        if why is None:
            moved.append(_offered(held, each))
            room.use(each)
            continue
        left[each.id] = Waits(why, _again_s(held, each, why))
        if not asking and (due := _postponed(held, each, why)) is not None:
            moved.append(Moved(each.id, each.pool, due))
    await put(held.connection, moved)
    await _place(held, room.offered)
    await steering.bring(held, [(e.id, e.device, e.execution.attempt) for e in room.offered])
    await showing.bring(held, [(each.id, each.device) for each in room.offered])
    if room.offered:
        await held.connection.execute(
            "update rollouts set tokens = $2, tokens_at = $3 where id = $1",
            *(held.facts.id, _tokens(held) - len(room.offered), held.now),
        )
    metrics.EXECUTIONS_OFFERED.inc(len(room.offered))
    if not asking:
        await ring(held.connection, [each.device for each in room.offered])
    return left


async def _shut(held: Held, chosen: Iterable[Candidate]) -> dict[int | None, datetime]:
    policy, fetched = held.rollout.policy, held.facts.payload is Payload.BUNDLE
    return await shut_at(
        *(held.connection, held.facts.organisation, [each.site for each in chosen], policy),
        now=held.now,
        ahead=timedelta(seconds=policy.ahead_s if fetched else 0),
    )


def _tokens(held: Held) -> float:
    rollout, facts = held.rollout, held.facts
    return in_hand(
        rollout.policy,
        confirmed=rollout.confirmed,
        bytes_each=facts.bytes,
        tokens=facts.tokens,
        tokens_at=facts.tokens_at,
        now=held.now,
    )


def budget(held: Held) -> int:
    """Return how many may be offered something now, as far as the rollout's own caps go."""
    return max(0, min(int(_tokens(held)), _free(held)))


def _free(held: Held) -> int:
    """Return how many more may be on their way: with a rollout and its way back as one."""
    return held.rollout.policy.caps.in_flight - held.rollout.flying - held.beside


async def _room(held: Held, chosen: Iterable[Candidate]) -> _Room:
    caps = held.rollout.policy.caps
    sites = sorted({each.site for each in chosen if each.site is not None})
    await held.connection.execute(
        "select pg_advisory_xact_lock($1, $2)", _GATE, held.facts.organisation
    )
    # a statement of its own after the lock's: it sees whom another let through before
    found = await busy(held.connection, sites, now=held.now)
    doors: dict[int, set[int]] = {}
    for each in found:
        if each.door is not None:
            doors.setdefault(each.door, set()).add(each.device)
    regions: Counter[int] = Counter()
    if caps.region is not None:
        rows = await held.connection.fetch(_BUSY_REGIONS, held.facts.id)
        regions.update({row["region_id"]: row["count"] for row in rows})
    return _Room(
        int(_tokens(held)),
        _free(held),
        Counter(each.site for each in found if each.site is not None),
        doors,
        regions,
    )


_BUSY_REGIONS = f"""
select region_id, count(*) from executions
where rollout_id = $1 and region_id is not null and state in ({named(FLYING)}) group by 1
"""  # noqa: S608


def _ended(held: Held, each: Candidate) -> Execution:
    """Return how an execution ends that is needed no more; itself, if it is."""
    if not each.own:
        return life.left(each.execution, held.here)
    there = each.wanted and all(each.runs.get(name) == v for name, v in each.wanted.items())
    if there:
        return life.excluded(each.execution, held.here, why="already there")
    return each.execution


def _why_not(held: Held, each: Candidate, room: _Room, *, asking: bool) -> Why | None:
    caps, due = held.rollout.policy.caps, each.execution.due_at
    if held.rollout.state is not State.RUNNING:
        return Why.NOT_RUNNING
    if each.pool not in held.rollout.offering():
        return Why.WAVE
    again = each.execution.attempt > 1 or each.execution.offered_at is not None
    if due is not None and due > held.now and (again or not asking):
        return Why.LATER  # a device that asks need not wait for the next look at who is away
    if not each.here and not asking:
        return Why.AWAY
    if room.offers < 1:
        return Why.RATE
    if room.flying < 1:
        return Why.IN_FLIGHT
    if each.door is not None and room.doors.get(each.door, set()) - {each.device}:
        return Why.DOOR
    if each.site is not None and room.sites[each.site] >= caps.site:
        return Why.SITE
    if caps.region is not None and each.region is not None:
        return Why.REGION if room.regions[each.region] >= caps.region else None
    return None


def _offered(held: Held, each: Candidate) -> Moved:
    pool = held.rollout.pool(each.wave)
    if pool != each.pool:
        held.take(Strayed(at=held.now, wave=each.pool, execution=each.execution))
    after = life.offered(each.execution, held.here)
    change(held, pool, each.execution, after, actor=SERVER)
    return Moved(each.id, pool, after)


def _postponed(held: Held, each: Candidate, why: Why) -> Execution | None:
    """Return it with the time of the next look; None if it stays next in line."""
    match why:
        case Why.AWAY:
            gone = held.now - (each.away_since or held.now - 10 * _AWAY[1])
            wait = min(_AWAY[1], max(_AWAY[0], gone / 10))
        case Why.DOOR | Why.SITE | Why.REGION:
            wait = LOOK_AGAIN
        case Why.NOT_RUNNING | Why.WAVE | Why.LATER | Why.RATE | Why.IN_FLIGHT:
            return None
        case Why.SHUT:
            return None  # it is put off where that is found
        case _:
            assert_never(why)
    return life.postponed(each.execution, held.now + wait)


def _again_s(held: Held, each: Candidate, why: Why) -> int:
    """Return when a device had better ask again."""
    due = each.execution.due_at
    if why is Why.LATER and due is not None:
        return max(1, min(_MOST_S, int((due - held.now).total_seconds()) + 1))
    if why in (Why.NOT_RUNNING, Why.WAVE):
        return _MOST_S
    return int(LOOK_AGAIN.total_seconds())


async def _place(held: Held, offered: Sequence[Candidate]) -> None:
    """Write down where those stand that were offered something, and what they ran before."""
    await held.connection.executemany(
        "update executions set site_id = $2, spot_id = $3, door_id = $4, region_id = $5, "
        "from_versions = case from_versions when '{}' then $6::jsonb else from_versions end "
        "where id = $1",
        [
            (
                *(each.id, each.site, each.spot, each.door, each.region),
                json.dumps({name: each.runs[name] for name in each.wanted if name in each.runs}),
            )
            for each in offered
        ],
    )
