"""What the console shows of how a fleet is: incidents by what is at stake, devices by state.

All within one organisation, on a connection of the desk, of the places that a reader reaches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.console.office import Reach
from server.fleet.filters import PRESENCES
from server.health.ranking import WORST_FIRST

_COVERED = "($2 or s.region_id = any($3::int[]) or s.id = any($4::int[]))"
_INCIDENT = f"""
    select i.id, i.ref, i.condition, i.severity, i.subject, i.state, i.since, i.opened_at,
           i.ended_at, i.owner, i.due_at, i.told_at, i.decided, i.stake, i.stake_of, i.steps,
           i.organisation_id, s.id as site_id, s.ref as site_ref, s.name as site, s.region_id,
           s.time_zone, d.device, p.name as spot, u.name as owner_name, e.episodes,
           e.acknowledged, e.hushed
    from incidents i
    left join devices d on d.id = i.device_id left join spots p on p.id = i.spot_id
    left join assignments a on a.device_id = i.device_id and i.site_id is null
        and a.valid @> i.opened_at
    left join spots ap on ap.id = a.spot_id
    left join sites s on s.id = coalesce(i.site_id, ap.site_id)
    left join users u on i.owner = 'user ' || u.ref
    left join lateral (
        select count(*) as episodes,
               count(*) filter (where acknowledged_at is not null
                   and coalesce(acknowledged_until > $5, true)) as acknowledged,
               count(*) filter (where suppressed <> '') as hushed
        from episodes where incident_id = i.id and resolved_at is null
    ) e on true
    where i.organisation_id = $1 and i.state <> 'merged' and {_COVERED}
"""  # noqa: S608


_BY_STATE = """
    select d.model, pr.state, count(*) as many
    from devices d join presences pr on pr.device_id = d.id {join}
    where d.organisation_id = $1 and d.admitted and {covered} group by 1, 2
"""
_STANDS = """
    join assignments a on a.device_id = d.id and upper_inf(a.valid)
    join spots p on p.id = a.spot_id join sites s on s.id = p.site_id
"""


@dataclass(frozen=True, slots=True)
class Health:
    """How many devices are in which state, over all and by model."""

    states: dict[str, int]
    models: dict[str, dict[str, int]]

    @property
    def devices(self) -> int:
        return sum(self.states.values())


async def incidents(
    connection: asyncpg.Connection,
    organisation: int,
    reach: Reach,
    *,
    now: datetime,
    over: bool = False,
    site: int | None = None,
    device: int | None = None,
    limit: int,
    page: int = 0,
) -> list[asyncpg.Record]:
    """Return a page of incidents and one more: open ones by what is at stake, or those `over`."""
    state, order = ("resolved", "i.ended_at desc, i.id") if over else ("open", WORST_FIRST)
    rows: list[asyncpg.Record] = await connection.fetch(
        f"{_INCIDENT} and i.state = $6 and ($7::int is null or s.id = $7) "
        "and ($10::int is null or exists (select from episodes o where o.incident_id = i.id "
        "and o.device_id = $10 and o.resolved_at is null)) "
        f"order by {order} offset $8 limit $9",
        *(organisation, reach.all, reach.regions, reach.sites, now),
        *(state, site, page * limit, limit + 1, device),
    )
    return rows


async def incident(
    connection: asyncpg.Connection, organisation: int, reach: Reach, ref: str, *, now: datetime
) -> asyncpg.Record | None:
    """Return an incident that a reader may see."""
    return await connection.fetchrow(
        f"{_INCIDENT} and i.ref = $6",
        *(organisation, reach.all, reach.regions, reach.sites, now, ref),
    )


async def episodes(connection: asyncpg.Connection, incident: int) -> list[asyncpg.Record]:
    """Return what an incident is made of, open ones first."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "select e.id, e.condition, e.since, e.opened_at, e.resolved_at, e.resolved, e.times, "
        "e.held, e.suppressed, e.suppressed_until, e.acknowledged_by, e.acknowledged_at, "
        "e.evidence, d.device, p.name as spot from episodes e "
        "left join devices d on d.id = e.device_id left join spots p on p.id = e.spot_id "
        "where e.incident_id = $1 order by e.resolved_at is not null, e.opened_at, e.id limit 200",
        incident,
    )
    return rows


async def words(connection: asyncpg.Connection, incident: int) -> list[asyncpg.Record]:
    """Return what was decided and said about an incident, in order."""
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        select at, 'decision' as kind, decision as what, why, until,
               coalesce(u.name, about) as author, '' as words
        from incident_decisions left join users u on about = 'user ' || u.ref
        where incident_id = $1
        union all
        select at, 'comment', '', '', null, coalesce(u.name, author), words
        from incident_comments left join users u on author = 'user ' || u.ref
        where incident_id = $1
        union all
        select sent_at, 'message', c.name, '', null, '', n.subject
        from notices n join health_contacts c on c.id = n.contact_id
        where n.incident_id = $1 and n.sent_at is not null
        order by at, kind limit 500
        """,
        incident,
    )
    return rows


async def health(connection: asyncpg.Connection, organisation: int, reach: Reach) -> Health:
    """Return how many devices that speak, or should, are in which state."""
    sql = _BY_STATE.format(join="", covered="$2::bool")
    if not reach.all:
        sql = _BY_STATE.format(join=_STANDS, covered=_COVERED)
    places = () if reach.all else (reach.regions, reach.sites)
    rows = await connection.fetch(sql, organisation, reach.all, *places)
    found = Health(dict.fromkeys(PRESENCES, 0), {})
    for model, state, many in rows:
        found.states[state] += many
        found.models.setdefault(model, dict.fromkeys(PRESENCES, 0))[state] += many
    return found


async def unknown_since(connection: asyncpg.Connection) -> asyncpg.Record | None:
    """Return since when nobody can tell how devices are, and why; None: it can be told."""
    return await connection.fetchrow(
        "select since, cause from platform_unknown where until is null"
    )


async def position(connection: asyncpg.Connection, organisation: int) -> str:
    """Return a digest of all that the live pages show: two that are equal show the same."""
    found: str = await connection.fetchval(
        """
        select md5(concat_ws('/',
            (select concat_ws(' ', count(*), max(since), max(p.session_at)) from presences p
             where p.organisation_id = $1),
            (select string_agg(concat_ws(' ', p.state, p.many), ',' order by p.state) from
             (select state, count(*) as many from presences where organisation_id = $1
              group by 1) p),
            (select string_agg(concat_ws(' ', i.id, i.state, i.owner, i.told_at, i.look_at,
                 round(i.stake), (select concat_ws(' ', count(*), max(acknowledged_at))
                     from episodes where incident_id = i.id and resolved_at is null)),
                 ',' order by i.id) from incidents i
             where i.organisation_id = $1 and i.state = 'open'),
            (select max(id) from incidents where organisation_id = $1),
            (select max(c.id) from incident_comments c where c.organisation_id = $1),
            (select since from platform_unknown where until is null)))
        """,
        organisation,
    )
    return found


async def of_organisations(
    connection: asyncpg.Connection, organisations: Sequence[int], *, limit: int
) -> list[asyncpg.Record]:
    """Return the open incidents of several organisations by what is at stake; all may be read."""
    rows: list[asyncpg.Record] = await connection.fetch(
        f"""
        select i.ref, i.condition, i.severity, i.since, i.stake, o.ref as organisation,
               o.name, s.name as site, d.device, p.name as spot
        from incidents i join organisations o on o.id = i.organisation_id
        left join sites s on s.id = i.site_id left join devices d on d.id = i.device_id
        left join spots p on p.id = i.spot_id
        where i.state = 'open' and i.organisation_id = any($1::int[])
        order by {WORST_FIRST} limit $2
        """,  # noqa: S608
        *(organisations, limit),
    )
    return rows
