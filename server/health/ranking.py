"""What is worth doing first: open incidents by the people who will not be counted today.

The stake of an incident is the open minutes that are left of the local day, times the usual visits
of their hour, over every counter it concerns. What is usual is the expectation of
`server.insight.profile` times its level, learnt once a local day for sites with something open. It
is kept with what it is made of, and ranks; of equal stakes the worse comes first, then the older.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import transaction
from server.db.turns import repeat
from server.health.judgement import Condition, Severity
from server.health.rows import ROOT
from server.insight.estimate import cells_of
from server.insight.profile import NO_LEVEL, Counter, expectations, levels
from server.rollup.answer import ALL_ROWS, By, CountQuery
from server.rollup.buckets import HOUR_S, Size, local
from server.rollup.opening import Interval, overlap
from server.rollup.places import Site, load_sites
from server.rollup.quality import Scope
from server.rollup.query import counts

log = structlog.get_logger(__name__)

HISTORY_DAYS = 84
EVERY_S = 60.0
_SITES_A_TURN = 20
_LEVELS = (0.5, 2.0)
WORST_FIRST = """i.stake desc,
    array_position(array['critical', 'major', 'minor', 'info'], i.severity), i.since, i.id"""
"""Of `incidents i`: the order in which lists, mails and pages show them."""


# -- the number ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stake:
    """People who will not be counted today, and what that is made of."""

    visits: float
    open_minutes: float
    spots: int
    hours: tuple[tuple[int, float, float], ...]
    """(start, open minutes left, usual visits of that hour) of each hour that is left."""


def stake_of(
    usual: Sequence[Mapping[int, float]], open_: Sequence[Interval], *, now_s: int
) -> Stake:
    """Return what is at stake; `usual`: by counter, its usual visits of hours by their start.

    `open_`: the open intervals of the day. Pure.
    """
    left = [(max(low, now_s), high) for low, high in open_ if high > now_s]
    starts = sorted({start for each in usual for start in each})
    hours: list[tuple[int, float, float]] = []
    visits = 0.0
    for start in starts:
        open_s = overlap(open_, start, start + HOUR_S)
        left_s = overlap(left, start, start + HOUR_S)
        if not open_s or not left_s:
            continue
        people = sum(each.get(start, 0.0) for each in usual)
        hours.append((start, left_s / 60, round(people, 1)))
        visits += people * left_s / open_s
    minutes = sum(high - low for low, high in left) / 60
    return Stake(round(visits, 1), round(minutes, 1), len(usual), tuple(hours))


# -- the worker ------------------------------------------------------------------------------------


async def refresh(pool: asyncpg.Pool, clock: Clock) -> int:
    """Learn what is usual where it is not known, and weigh what is open; return how many."""
    now = at(clock.now_ms())
    async with transaction(pool, "find what is not usual yet") as connection:
        rows = await connection.fetch(_UNKNOWN)
        wanted = {
            row["site_id"]: row["organisation_id"]
            for row in rows
            if row["day"] != local(row["time_zone"], int(now.timestamp())).date()
        }
        sites = await load_sites(connection, ids=sorted(wanted)[:_SITES_A_TURN] or [0])
    for site in sites:
        async with transaction(pool, "learn usual visits") as connection:
            await connection.execute(
                "select set_config('app.organisation', $1, true)", str(wanted[site.id])
            )
            await _learn(connection, site, now=now)
    async with transaction(pool, "weigh incidents") as connection:
        open_ = dict(await connection.fetch(_OPEN))
        for severity in Severity:
            metrics.INCIDENTS.labels(severity.value).set(open_.get(severity.value, 0))
        return await _weigh(connection, now=now)


async def run(pool: asyncpg.Pool, clock: Clock) -> None:
    """Weigh until cancelled; a database that is away is passed over."""
    await repeat(lambda: refresh(pool, clock), rest_s=EVERY_S, away="nothing weighed")


async def _learn(connection: asyncpg.Connection, site: Site, *, now: datetime) -> None:
    """Write down what each counter of a site usually counts in the hours of its local day."""
    today = local(site.time_zone, int(now.timestamp())).date()
    since, until = today - timedelta(days=HISTORY_DAYS), today + timedelta(days=1)
    spots = {row["ref"]: row["id"] for row in await connection.fetch(_COUNTERS, site.id)}
    query = CountQuery(*(Size.HOUR, since, today, Scope.OPEN, By.SPOT, (site.ref,)), limit=ALL_ROWS)
    columns: dict[str, tuple[list[float | None], list[float | None]]] = {
        ref: ([], []) for ref in spots
    }
    if spots:
        for each in (await counts(connection, query, now_s=int(now.timestamp()))).rows:
            visits, coverage = columns[each.spot or ""]
            visits.append(each.visits)
            coverage.append(each.coverage)
    cells = cells_of(site, Size.HOUR, since=since, until=until)
    for ref, (visits, coverage) in columns.items():
        blank: list[float | None] = [None] * (len(cells) - len(visits))
        counter = Counter(visits + blank, coverage + blank)
        expected = expectations(cells, counter)
        level = levels(cells, counter, expected).get(today.toordinal(), NO_LEVEL)
        factor = min(_LEVELS[1], max(_LEVELS[0], level.factor))
        usual = [
            (cell.start_s, people * factor)
            for cell, people in zip(cells, expected, strict=True)
            if cell.day == today.toordinal() and people
        ]
        await connection.execute(
            *(_LEARNT, spots[ref], today, [start for start, _ in usual]),
            [people for _, people in usual],
        )


async def _weigh(connection: asyncpg.Connection, *, now: datetime) -> int:
    """Write each open incident's stake."""
    rows = await connection.fetch(_CONCERNED)
    usual = {
        row["spot_id"]: (row["day"], dict(zip(row["starts_s"], row["visits"], strict=True)))
        for row in await connection.fetch(
            "select * from usual_visits where spot_id = any($1::int[])",
            sorted({spot for row in rows for spot in row["spots"]}),
        )
    }
    ids = sorted({row["site_id"] for row in rows})
    sites = {site.id: site for site in await load_sites(connection, ids=ids or [0])}
    now_s, weighed = int(now.timestamp()), []
    for row in rows:
        site = sites[row["site_id"]]
        today = local(site.time_zone, now_s).date()
        found = [
            hours for spot in row["spots"] if (known := usual.get(spot)) is not None
            for day, hours in (known,) if day == today
        ]  # fmt: skip
        stake = stake_of(found, site.calendar.day(today).open, now_s=now_s)
        made = {
            "open_minutes_left": stake.open_minutes,
            "counters": stake.spots,
            "hours": [
                {"from_s": start, "open_minutes_left": minutes, "usual_visits": people}
                for start, minutes, people in stake.hours
            ],
        }
        weighed.append((row["id"], stake.visits, json.dumps(made)))
    await connection.executemany(
        "update incidents set stake = $2, stake_of = $3::text::jsonb where id = $1", weighed
    )
    return len(weighed)


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Incident:
    """An incident as it is shown. `root` is what is wrong, by its name; `episodes` those open."""

    id: int
    ref: str
    state: str
    subject: str
    condition: Condition
    severity: Severity
    root: str
    site: str | None
    site_name: str | None
    region_id: int | None
    site_id: int | None
    device: str | None
    spot: str | None
    since: datetime
    opened_at: datetime
    ended_at: datetime | None
    merged_into: str | None
    told_at: datetime | None
    steps: int
    decided: str
    owner: str
    due_at: datetime | None
    acknowledged: bool
    episodes: int
    devices: int
    held: bool
    stake: float
    stake_of: Mapping[str, object]

    @property
    def cause(self) -> str:
        return self.condition.meaning.cause

    @property
    def remedy(self) -> str:
        return self.condition.meaning.remedy

    def age_s(self, now: datetime) -> float:
        """How long it has been so."""
        return ((self.ended_at or now) - self.since).total_seconds()


async def ranked(
    connection: asyncpg.Connection,
    organisation: int | None,
    *,
    sites: Sequence[str] = (),
    now: datetime,
    limit: int = 1_000,
) -> list[Incident]:
    """Return an organisation's open incidents (None: the platform's), what matters most first."""
    rows = await connection.fetch(
        f"{_INCIDENTS} and i.state = 'open' and ($3::text[] is null or s.ref = any($3)) "
        f"order by {WORST_FIRST} limit $4",
        *(organisation, None, list(sites) or None, limit),
    )
    return [incident_of(row) for row in rows]


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    sites: Sequence[str] = (),
    open_only: bool = False,
    before: str | None = None,
    limit: int = 1_000,
) -> list[Incident]:
    """Return incidents, the latest first; `before` is the ref that the page before ended with."""
    rows = await connection.fetch(
        f"{_INCIDENTS} and ($3::text[] is null or s.ref = any($3)) "  # noqa: S608 - texts of ours
        "and (not $4 or i.state = 'open') "
        "and ($5::text is null or i.id < (select id from incidents where ref = $5)) "
        "order by i.id desc limit $6",
        *(organisation, None, list(sites) or None, open_only, before, limit),
    )
    return [incident_of(row) for row in rows]


async def find(
    connection: asyncpg.Connection, organisation: int | None, ref: str
) -> Incident | None:
    """Return one incident."""
    row = await connection.fetchrow(_INCIDENTS, organisation, ref)
    return None if row is None else incident_of(row)


def incident_of(row: asyncpg.Record) -> Incident:
    values = dict(row)
    values["condition"] = Condition(values["condition"])
    values["severity"] = Severity(values["severity"])
    values["stake_of"] = json.loads(values["stake_of"])
    return Incident(**values)


def line_of(incident: Incident, *, now: datetime) -> str:
    """Return an incident in a line of text."""
    hours = incident.age_s(now) / 3600
    parts = [f"[{incident.severity}] {incident.condition.value.replace('_', ' ')}: {incident.root}"]
    if incident.site_name and incident.site_name != incident.root:
        parts[0] += f" at {incident.site_name}"
    parts.append(f"for {hours:.0f} h" if hours >= 1 else f"for {hours * 60:.0f} min")
    if incident.stake >= 1:
        parts.append(f"about {round(incident.stake)} visits at stake today")
    parts.append(f"seen to by {incident.owner}" if incident.owner else "nobody sees to it")
    return f"- {', '.join(parts)}. {incident.remedy}"


_INCIDENTS = f"""
    select i.id, i.ref, i.state, i.subject, i.condition, i.severity,
        {ROOT} as root,
        s.ref as site, s.name as site_name, s.region_id, i.site_id, d.device, p.ref as spot,
        i.since, i.opened_at, i.ended_at, m.ref as merged_into, i.told_at, i.steps, i.decided,
        i.owner, i.due_at,
        coalesce(e.open > 0 and e.acknowledged = e.open, false) as acknowledged,
        coalesce(e.open, 0)::int as episodes, coalesce(e.devices, 0)::int as devices,
        coalesce(e.held, false) as held, i.stake, i.stake_of::text as stake_of
    from incidents i left join sites s on s.id = i.site_id
    left join devices d on d.id = i.device_id left join spots p on p.id = i.spot_id
    left join incidents m on m.id = i.merged_into
    left join lateral (
        select count(*) as open,
            count(*) filter (where acknowledged_at is not null) as acknowledged,
            count(distinct device_id) as devices, bool_or(held) as held
        from episodes where incident_id = i.id and resolved_at is null) e on true
    where i.organisation_id is not distinct from $1 and ($2::text is null or i.ref = $2)
"""  # noqa: S608 - a text of ours
_UNKNOWN = """
    select distinct p.site_id, p.organisation_id, s.time_zone, u.day from incidents i
    join sites s on s.id = i.site_id join spots p on p.site_id = s.id and p.kind = 'counter'
    left join usual_visits u on u.spot_id = p.id
    where i.state = 'open'
"""
_OPEN = "select severity, count(*) from incidents where state = 'open' group by severity"
_COUNTERS = "select id, ref from spots where site_id = $1 and kind = 'counter' order by ref"
_LEARNT = """
    insert into usual_visits (spot_id, organisation_id, day, starts_s, visits)
    select id, organisation_id, $2, $3, $4 from spots where id = $1
    on conflict (spot_id) do update set day = $2, starts_s = $3, visits = $4
"""
_CONCERNED = """
    select i.id, i.site_id, array(
        select distinct p.id from episodes e join spots p on p.kind = 'counter' and
            case when e.subject = 'site' then p.site_id = e.site_id else p.id = e.spot_id end
        where e.incident_id = i.id and e.resolved_at is null order by 1) as spots
    from incidents i where i.state = 'open' and i.site_id is not null
"""
