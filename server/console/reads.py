"""What the console's lists show. All within one organisation, on a connection of the desk."""

from collections.abc import Iterable, Sequence
from datetime import datetime

import asyncpg

from server.console.office import Reach

PAGE = 50
_COVERED = "($2 or s.region_id = any($3::int[]) or s.id = any($4::int[]))"


async def sites(
    connection: asyncpg.Connection,
    organisation: int,
    reach: Reach,
    *,
    words: str,
    region: str,
    page: int,
    now: datetime,
) -> list[asyncpg.Record]:
    """Return a page of sites, and one more if there are more."""
    rows: list[asyncpg.Record] = await connection.fetch(
        f"""
        select s.ref, s.name, s.address, s.time_zone, s.closes_on, r.name as region,
               (select count(*) from spots p where p.site_id = s.id) as spots,
               (select count(*) from spots p join assignments a on a.spot_id = p.id
                and a.valid @> $9::timestamptz where p.site_id = s.id) as devices,
               (select count(*) from spots p join assignments a on a.spot_id = p.id
                and a.valid @> $9::timestamptz join devices d on d.id = a.device_id
                where p.site_id = s.id and not d.admitted) as held,
               (select count(*) from spots p join assignments a on a.spot_id = p.id
                and a.valid @> $9::timestamptz join presences pr on pr.device_id = a.device_id
                where p.site_id = s.id and pr.state in ('offline', 'no data', 'no heartbeat')
               ) as unwell,
               (select count(*) from incidents i where i.site_id = s.id and i.state = 'open'
               ) as incidents
        from sites s left join regions r on r.id = s.region_id
        where s.organisation_id = $1 and {_COVERED}
          and ($5 = '' or position(lower($5) in lower(s.name || ' ' || s.address || ' ' || s.ref))
               > 0)
          and ($6 = '' or r.ref = $6)
        order by lower(s.name), s.id offset $7 limit $8
        """,  # noqa: S608
        *(organisation, reach.all, reach.regions, reach.sites),
        *(words, region, page * PAGE, PAGE + 1, now),
    )
    return rows


async def place_of_site(
    connection: asyncpg.Connection, organisation: int, ref: str
) -> asyncpg.Record | None:
    """Return a site's row and its region's."""
    return await connection.fetchrow(
        "select id, region_id from sites where organisation_id = $1 and ref = $2",
        *(organisation, ref),
    )


async def devices(
    connection: asyncpg.Connection, rows: Sequence[int], *, now: datetime
) -> list[asyncpg.Record]:
    """Return some devices (their rows), by name, with where they stand and how they are."""
    found: list[asyncpg.Record] = await connection.fetch(
        """
        select d.device, d.kind, d.serial, d.model, d.state, d.state_since, p.name as spot,
               p.ref as spot_ref, s.name as site, s.ref as site_ref, pr.state as presence,
               pr.agent,
               (select max(b.last_stored) from my_boots b where b.device_id = d.id) as last_stored
        from devices d join presences pr on pr.device_id = d.id
        left join assignments a on a.device_id = d.id and a.valid @> $2::timestamptz
        left join spots p on p.id = a.spot_id left join sites s on s.id = p.site_id
        where d.id = any($1::int[]) order by d.device
        """,
        *(list(rows), now),
    )
    return found


async def standing_at(connection: asyncpg.Connection, site: int, *, now: datetime) -> list[int]:
    """Return the rows of the devices that stand at a site."""
    rows = await connection.fetch(
        "select a.device_id from spots p join assignments a on a.spot_id = p.id "
        "and a.valid @> $2::timestamptz where p.site_id = $1",
        *(site, now),
    )
    return [row["device_id"] for row in rows]


async def device(
    connection: asyncpg.Connection, organisation: int, name: str, *, now: datetime
) -> asyncpg.Record | None:
    """Return a device with the place where it stands."""
    return await connection.fetchrow(
        "select d.*, p.ref as spot_ref, p.name as spot, s.id as site_id, s.ref as site_ref, "
        "s.name as site, s.region_id, (select max(b.last_stored) from my_boots b "
        "where b.device_id = d.id) as last_stored "
        "from devices d left join assignments a on a.device_id = d.id "
        "and a.valid @> $3::timestamptz left join spots p on p.id = a.spot_id "
        "left join sites s on s.id = coalesce(p.site_id, d.intended_site_id) "
        "where d.organisation_id = $1 and d.device = $2",
        *(organisation, name, now),
    )


async def life(connection: asyncpg.Connection, row: int) -> dict[str, list[asyncpg.Record]]:
    """Return what there is to know of a device: certificates, orders, stays, findings."""
    return {
        "certificates": await connection.fetch(
            "select serial, state, recorded_at, not_after, revoked_at from certificates "
            "where device_id = $1 order by recorded_at desc limit 20",
            row,
        ),
        "orders": await connection.fetch(
            "select id, admit, reason, asked_by, asked_at, broker_at, crl_at, proved_at, trouble "
            "from admissions where device_id = $1 order by id desc limit 20",
            row,
        ),
        "stays": await connection.fetch(
            "select s.name as site, s.ref as site_ref, p.name as spot, lower(a.valid) as since, "
            "upper(a.valid) as until from assignments a join spots p on p.id = a.spot_id "
            "join sites s on s.id = p.site_id where a.device_id = $1 "
            "order by lower(a.valid) desc nulls last limit 50",
            row,
        ),
        "findings": await connection.fetch(
            "select at, finding, seq from my_findings where device_id = $1 "
            "order by at desc limit 20",
            row,
        ),
    }


async def free_spots(
    connection: asyncpg.Connection, organisation: int, reach: Reach, *, kind: str
) -> list[asyncpg.Record]:
    """Return the spots at which a device of this kind may stand, and none does."""
    rows: list[asyncpg.Record] = await connection.fetch(
        f"select p.ref, p.name, s.name as site from spots p join sites s on s.id = p.site_id "  # noqa: S608
        f"where s.organisation_id = $1 and {_COVERED} and p.kind = $5 "
        "and not exists (select from assignments a where a.spot_id = p.id and upper_inf(a.valid)) "
        "order by lower(s.name), p.name limit 2000",
        *(organisation, reach.all, reach.regions, reach.sites, kind),
    )
    return rows


async def place_of_spot(
    connection: asyncpg.Connection, organisation: int, ref: str
) -> asyncpg.Record | None:
    """Return a spot's kind with its site's row and region."""
    return await connection.fetchrow(
        "select p.kind, s.id, s.ref, s.region_id from spots p join sites s on s.id = p.site_id "
        "where p.organisation_id = $1 and p.ref = $2",
        *(organisation, ref),
    )


async def last_change(
    connection: asyncpg.Connection, organisation: int, subject: str
) -> asyncpg.Record | None:
    """Return the last edit of a thing: who, and which fields from what to what."""
    return await connection.fetchrow(
        "select a.actor, a.detail, u.name from audit a "
        "left join users u on a.actor = 'user ' || u.ref "
        "where a.chain = $1 and a.subject = $2 and a.act like '% changed' "
        "order by a.number desc limit 1",
        *(organisation, subject),
    )


async def names(connection: asyncpg.Connection, actors: Iterable[str]) -> dict[str, str]:
    """Return how people read who did something: a person's name, or the actor as it is."""
    found = {actor: actor for actor in actors}
    rows = await connection.fetch(
        "select 'user ' || ref as actor, name from users where 'user ' || ref = any($1::text[])",
        list(found),
    )
    return found | {row["actor"]: row["name"] for row in rows if row["name"]}
