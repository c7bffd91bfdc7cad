"""What pages, API and command line ask of releases and rollouts. Nothing here changes anything.

Each question names the organisation, so that it may be asked on the API's connection, on the
desk's and on the owner's. Releases and bundles are the operator's: everybody sees the same.
Devices, and why one of them waits, are `members`.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from server.errors import NotFoundError
from server.firmware.change import SettingsChange, read_change
from server.firmware.life import FAILURES, FLYING, OPEN, Counters
from server.firmware.life import State as Stage
from server.firmware.nights import nights
from server.firmware.policy import OnHalt, Policy, read_policy
from server.firmware.rows import WAVE, wave_of
from server.firmware.standing import (
    Act,
    Passing,
    Standing,
    ended,
    passing,
    possible,
    standings,
    waits_for_people,
)
from server.firmware.waves import OVER, Payload, Rollout, State, Wave, WaveKind

MOST_SITES = 100
"""Sites that a rollout is shown with, those in trouble first; of how many windows are looked up."""
MOST_EXAMPLES = 3
_UNWELL = frozenset({*FAILURES, Stage.LOST, Stage.REJECTED})


@dataclass(frozen=True, slots=True)
class Part:
    """A release: one version of one component. Nothing below `floor` follows it."""

    ref: str
    component: str
    version: str
    floor: str
    requires: str | None
    hardware: tuple[str, ...]
    bytes: int
    sha256: str
    notes: str
    published_at: datetime
    withdrawn_at: datetime | None


@dataclass(frozen=True, slots=True)
class Bundle:
    """Releases that are installed together, in this order."""

    ref: str
    name: str
    created_at: datetime
    parts: tuple[Part, ...]

    @property
    def fit(self) -> bool:
        """Whether it may be rolled out: none of it was withdrawn."""
        return all(part.withdrawn_at is None for part in self.parts)

    @property
    def bytes(self) -> int:
        """What a device fetches that has none of it."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class Line:
    """A rollout in a list. `wave`: the one that must pass next, of `waves`; None: none is left.

    `settings`, `questionnaire`: what it brings, or the one that it takes back did.
    """

    id: int
    ref: str
    name: str
    payload: Payload
    bundle: str | None
    bundle_name: str | None
    settings: SettingsChange | None
    questionnaire: str | None
    state: State
    since: datetime
    reason: str
    author: str
    approver: str
    approved_at: datetime | None
    starts_at: datetime | None
    devices: int
    bytes: int
    reverses: str | None
    reversed_by: str | None
    wave: int | None
    waves: int
    totals: Counters


@dataclass(frozen=True, slots=True)
class WaveNow:
    """A wave, with what it has done of its gate."""

    wave: Wave
    passing: Passing | None


@dataclass(frozen=True, slots=True)
class Failure:
    """Executions that ended alike, or are tried again after ending so; some of their devices.

    `said`: the end of the journal of the latest device that sent one.
    """

    state: Stage
    kind: str
    code: str
    number: int
    latest_at: datetime | None
    devices: tuple[str, ...]
    said: str


@dataclass(frozen=True, slots=True)
class SiteNow:
    """A site with devices in a rollout, and how they fare."""

    ref: str
    name: str
    of: int
    flying: int
    confirmed: int
    failed: int


@dataclass(frozen=True, slots=True)
class NextWindow:
    """When a site may install next: `open_now` of `sites` may at once, `never` have no window."""

    opens: datetime | None
    until: datetime | None
    sites: int
    open_now: int
    never: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedWave:
    """What the counts guard last saw of a wave: the share by which updated doors count more (or,
    below 0, less) than doors that wait, with its interval, at its look number `look`.

    `why`: why it cannot tell; `left_out`: doors that it could not use.
    """

    wave: int
    verdict: str
    left_out: int = 0
    why: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    spent: float | None = None
    look: int | None = None
    updated: int | None = None
    control: int | None = None
    halted: bool = False


@dataclass(frozen=True, slots=True)
class One:
    """One rollout. `version` changes with each transition: what a change has to have seen."""

    line: Line
    version: str
    policy: Policy
    bundle: Bundle | None
    waves: tuple[WaveNow, ...]
    funnel: Mapping[Stage, int]
    failures: tuple[Failure, ...]
    sites: tuple[SiteNow, ...]
    sites_in_all: int
    guards: tuple[Standing, ...]
    counted: tuple[CountedWave, ...]
    counted_at: datetime | None
    next_window: NextWindow | None
    acts: tuple[Act, ...]
    second_person: bool
    waits_for_people: bool
    ended: bool


@dataclass(frozen=True, slots=True)
class Happened:
    """A transition, as it was written down; `number` is its place."""

    number: int
    at: datetime
    event: str
    actor: str
    reason: str
    counters: Mapping[str, Mapping[str, int]]
    detail: Mapping[str, object]


# -- what there is ---------------------------------------------------------------------------------


async def releases(connection: asyncpg.Connection) -> list[Part]:
    """Return every release, the latest first."""
    return [_part(row) for row in await connection.fetch(f"{_PART} order by id desc")]


async def bundles(connection: asyncpg.Connection, *, ref: str | None = None) -> list[Bundle]:
    """Return bundles, the latest first; of one name alone, if any."""
    rows = await connection.fetch(
        "select ref, name, created_at, releases from bundles "
        "where $1::text is null or ref = $1 order by id desc limit 1000",
        ref,
    )
    wanted = sorted({each for row in rows for each in row["releases"]})
    known = {
        row["id"]: _part(row)
        for row in await connection.fetch(f"{_PART} where id = any($1::int[])", wanted)
    }
    return [
        Bundle(
            *(row["ref"], row["name"], row["created_at"]),
            tuple(known[each] for each in row["releases"] if each in known),
        )
        for row in rows
    ]


_PART = """
    select id, ref, component, version, floor, requires, hardware, length as bytes, sha256, notes,
           published_at, withdrawn_at from releases
"""


def _part(row: asyncpg.Record) -> Part:
    return Part(**{**dict(list(row.items())[1:]), "hardware": tuple(row["hardware"])})


# -- rollouts --------------------------------------------------------------------------------------


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    over: bool | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[Line]:
    """Return rollouts, the latest first; `over`: those alone that are, or are not."""
    return await _lines(connection, organisation, None, over, before, limit)


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Line:
    """Return one of them as it stands in lists. Raises NotFoundError."""
    found = await _lines(connection, organisation, ref, None, None, 1)
    if not found:
        raise NotFoundError(f"no rollout {ref[:40]!r}")
    return found[0]


async def _lines(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str | None,
    over: bool | None,
    before: str | None,
    limit: int,
) -> list[Line]:
    done = [state.value for state in OVER]
    rows = await connection.fetch(_LINES, organisation, ref, over, done, before, limit)
    waves = await _waves(connection, [row["id"] for row in rows])
    return [_line(row, waves.get(row["id"], ())) for row in rows]


_LINES = """
    select o.id, o.ref, o.name, o.payload, b.ref as bundle, b.name as bundle_name,
           case o.payload when 'settings' then coalesce(origin.content, o.content) end as settings,
           case o.payload when 'questionnaire'
               then coalesce(origin.content, o.content) ->> 'questionnaire' end as questionnaire,
           o.state, o.since, o.reason, o.author, o.approver, o.approved_at, o.starts_at, o.devices,
           o.bytes, origin.ref as reverses, back.ref as reversed_by
    from rollouts o left join bundles b on b.id = o.bundle_id
    left join rollouts origin on origin.id = o.reverses
    left join lateral (select ref from rollouts r where r.reverses = o.id
                       order by r.state = 'cancelled', r.id desc limit 1) back on true
    where o.organisation_id = $1 and ($2::text is null or o.ref = $2)
      and ($3::bool is null or (o.state = any($4)) = $3)
      and ($5::text is null or o.id < (select id from rollouts
                                       where organisation_id = $1 and ref = $5))
    order by o.id desc limit $6
"""


def _line(row: asyncpg.Record, waves: Sequence[Wave]) -> Line:
    rollout = Rollout(_ANY, "", State(row["state"]), tuple(waves))
    current = rollout.current() if waves else None
    said = row["settings"]
    change = None if said is None else read_change(json.loads(said)).asked()
    return Line(
        **{**row, "payload": Payload(row["payload"]), "state": rollout.state, "settings": change},
        wave=None if current is None else current.number,
        waves=sum(wave.kind is WaveKind.WAVE for wave in waves),
        totals=rollout.total,
    )


_ANY = Policy()


async def _waves(
    connection: asyncpg.Connection, rollouts: Sequence[int]
) -> dict[int, tuple[Wave, ...]]:
    rows = await connection.fetch(
        f"select rollout_id, {WAVE} from waves "  # noqa: S608 - columns of ours
        "where rollout_id = any($1::int[]) order by rollout_id, number",
        list(rollouts),
    )
    found: dict[int, list[Wave]] = defaultdict(list)
    for row in rows:
        found[row["rollout_id"]].append(wave_of(row))
    return {rollout: tuple(waves) for rollout, waves in found.items()}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A rollout as it is decided on, and what of its row is not part of that.

    `second`: why its plan is for a second person to approve, its size and policy apart.
    """

    line: Line
    rollout: Rollout
    version: str
    second: tuple[str, ...]
    tokens: float
    tokens_at: datetime | None
    counted: tuple[CountedWave, ...]
    counted_at: datetime | None

    @property
    def second_person(self) -> bool:
        """Whether somebody else than its author approves it."""
        policy = self.rollout.policy
        many = self.line.devices > policy.blast_radius
        return many or policy.override_freezes or bool(self.second)


async def load(connection: asyncpg.Connection, organisation: int, ref: str) -> Loaded:
    """Return a rollout with its waves, locking nothing. Raises NotFoundError."""
    line = await find(connection, organisation, ref)
    row = await connection.fetchrow(_REST, line.id)
    waves = (await _waves(connection, [line.id])).get(line.id, ())
    rollout = Rollout(
        read_policy(row["policy"]),
        line.author,
        line.state,
        waves,
        row["epoch"],
        line.devices,
        line.reverses is not None,
        OnHalt(row["revert"]),
    )
    second: list[str] = json.loads(row["second"] or "[]")
    counted = msgspec.json.decode(row["counted"], type=dict[str, dict[str, Any]])
    return Loaded(
        *(line, rollout, str(row["version"]), tuple(second), row["tokens"], row["tokens_at"]),
        tuple(
            msgspec.convert({"wave": int(wave), **said}, type=CountedWave)
            for wave, said in sorted(counted.items(), key=lambda each: int(each[0]))
        ),
        row["counted_at"],
    )


_REST = """
    select policy, epoch, revert, tokens, tokens_at, counted, counted_at,
           plan -> 'told' -> 'second_person' as second,
           coalesce((select max(id) from rollout_events where rollout_id = $1), 0) as version
    from rollouts where id = $1
"""


async def plan(connection: asyncpg.Connection, rollout: int) -> Mapping[str, object]:
    """Return what a rollout (its row) keeps of its plan: large, and asked for only where needed."""
    text = await connection.fetchval("select plan from rollouts where id = $1", rollout)
    found: dict[str, object] = json.loads(text)
    return found


async def one(connection: asyncpg.Connection, organisation: int, ref: str, *, now: datetime) -> One:
    """Return all of one rollout. Raises NotFoundError."""
    known = await load(connection, organisation, ref)
    line, rollout = known.line, known.rollout
    bundle = None if line.bundle is None else (await bundles(connection, ref=line.bundle))[0]
    sites, in_all = await _sites(connection, line.id)
    return One(
        line=line,
        version=known.version,
        policy=rollout.policy,
        bundle=bundle,
        waves=tuple(WaveNow(wave, passing(rollout.policy.gate, wave)) for wave in rollout.waves),
        funnel=await _funnel(connection, line.id),
        failures=await _failures(connection, line.id),
        sites=sites,
        sites_in_all=in_all,
        guards=standings(rollout),
        counted=known.counted,
        counted_at=known.counted_at,
        next_window=await _next_window(connection, organisation, known, now=now),
        acts=possible(line.state, reverse=rollout.reverse),
        second_person=known.second_person,
        waits_for_people=waits_for_people(rollout),
        ended=ended(rollout),
    )


async def position(connection: asyncpg.Connection, organisation: int, ref: str) -> str:
    """Return a text that is another one once `one` shows something else. Raises NotFoundError."""
    known = await connection.fetchrow(_POSITION, organisation, ref)
    if known is None:
        raise NotFoundError(f"no rollout {ref[:40]!r}")
    return hashlib.sha256(repr(tuple(known)).encode()).hexdigest()[:16]


_POSITION = """
    select o.state, o.since, o.devices, o.starts_at, o.counted_at, o.counted::text,
           (select max(id) from rollout_events where rollout_id = o.id),
           (select jsonb_agg(f order by f.state)::text from (
                select state, count(*) as n, max(offered_at) as offered, max(phase_at) as moved,
                       max(ended_at) as ended
                from executions where rollout_id = o.id group by state
            ) f),
           (select jsonb_agg(total order by number)::text from waves where rollout_id = o.id),
           (select max(r.withdrawn_at) from bundles b join releases r on r.id = any(b.releases)
            where b.id = o.bundle_id),
           (select array_agg(r.ref || r.state order by r.id)::text from rollouts r
            where r.reverses = o.id)
    from rollouts o where o.organisation_id = $1 and o.ref = $2
"""


async def _funnel(connection: asyncpg.Connection, rollout: int) -> dict[Stage, int]:
    rows = await connection.fetch(
        "select state, count(*) as n from executions where rollout_id = $1 group by state", rollout
    )
    found = {row["state"]: row["n"] for row in rows}
    return {state: found[state.value] for state in Stage if state.value in found}


async def _failures(connection: asyncpg.Connection, rollout: int) -> tuple[Failure, ...]:
    rows = await connection.fetch(
        _FAILURES, rollout, [state.value for state in _UNWELL], MOST_EXAMPLES
    )
    return tuple(
        Failure(
            Stage(row["state"]),
            *(row["class"], row["code"], row["n"], row["latest_at"]),
            tuple(row["devices"]),
            row["said"] or "",
        )
        for row in rows
    )


_FAILURES = """
    select e.state, e.class, e.code, count(*) as n, max(e.ended_at) as latest_at,
           (array_agg(d.device order by e.ended_at desc nulls last, d.device))[:$3] as devices,
           (array_agg(t.tail order by e.ended_at desc nulls last)
                filter (where t.tail <> ''))[1] as said
    from executions e join devices d on d.id = e.device_id
    left join lateral (
        select r.detail ->> 'tail' as tail from execution_reports r
        where r.execution_id = e.id order by r.attempt desc, r.seq desc limit 1) t on true
    where e.rollout_id = $1 and (e.state = any($2) or (e.state = 'planned' and e.class <> ''))
    group by e.state, e.class, e.code
    order by e.state = 'planned', n desc, e.state, e.class, e.code limit 100
"""


async def _sites(connection: asyncpg.Connection, rollout: int) -> tuple[tuple[SiteNow, ...], int]:
    rows = await connection.fetch(
        _SITES,
        rollout,
        [state.value for state in FLYING],
        [state.value for state in _UNWELL],
        MOST_SITES,
    )
    found = [
        SiteNow(*(row[name] for name in ("ref", "name", "of", "flying", "confirmed", "failed")))
        for row in rows
    ]
    return tuple(found), rows[0]["in_all"] if rows else 0


_SITES = """
    select s.ref, s.name, count(*) as of, count(*) filter (where e.state = any($2)) as flying,
           count(*) filter (where e.state = 'confirmed') as confirmed,
           count(*) filter (where e.state = any($3)) as failed, count(*) over () as in_all
    from executions e join sites s on s.id = e.site_id
    where e.rollout_id = $1 and e.state <> 'excluded'
    group by s.id order by failed desc, flying desc, s.ref limit $4
"""


async def _next_window(
    connection: asyncpg.Connection, organisation: int, known: Loaded, *, now: datetime
) -> NextWindow | None:
    """Return when a site that still waits may install; None if nobody waits for windows."""
    policy, rollout = known.rollout.policy, known.rollout
    if policy.urgent or policy.windows is None or rollout.state in OVER:
        return None
    waiting = [state.value for state in OPEN]
    rows = await connection.fetch(
        "select distinct site_id from executions where rollout_id = $1 and site_id is not null "
        "and state = any($2) and (state <> 'planned' or pool = any($3::smallint[])) "
        "order by site_id limit $4",
        *(known.line.id, waiting, sorted(rollout.offering()), MOST_SITES),
    )
    if not rows:
        return None
    found = await nights(
        connection,
        organisation,
        [row["site_id"] for row in rows],
        policy.windows,
        now=now,
        overriding=policy.override_freezes,
    )
    first = sorted(night.windows[0] for night in found.values() if night.windows)
    now_s = now.timestamp()
    return NextWindow(
        opens=datetime.fromtimestamp(first[0][0], UTC) if first else None,
        until=datetime.fromtimestamp(first[0][1], UTC) if first else None,
        sites=len(found),
        open_now=sum(low <= now_s for low, _ in first),
        never=len(found) - len(first),
    )


# -- what happened ---------------------------------------------------------------------------------


async def history(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    before: int | None = None,
    limit: int = 200,
) -> list[Happened]:
    """Return a rollout's transitions, the latest first. Raises NotFoundError."""
    line = await find(connection, organisation, ref)
    rows = await connection.fetch(
        "select id, at, event, actor, reason, counters, detail from rollout_events "
        "where rollout_id = $1 and ($2::bigint is null or id < $2) order by id desc limit $3",
        *(line.id, before, limit),
    )
    return [
        Happened(
            *(row["id"], row["at"], row["event"], row["actor"], row["reason"]),
            json.loads(row["counters"]),
            json.loads(row["detail"]),
        )
        for row in rows
    ]
