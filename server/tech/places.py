"""Where a technician may work, and what stands there: sites, spots, devices and their last minute.

Every function reads within a transaction that sees one organisation: the API's role where minutes
are told, the desk's where claims are.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

ALIVE_FOR = timedelta(minutes=35)
"""A quiet door's frames come every 30 minutes; the rest is the way here."""
RECENT = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Where:
    """A site as grants are asked for it."""

    organisation: int
    region: int | None
    site: int
    ref: str


@dataclass(frozen=True, slots=True)
class SiteRow:
    """A site in the list."""

    where: Where
    name: str
    address: str
    spots: int
    empty: int  # spots without a device
    silent: int  # with one that has not been heard of for long


@dataclass(frozen=True, slots=True)
class Stand:
    """A spot and the device at it, if any; `told_to` is the end of its last stored minute."""

    ref: str
    name: str
    kind: str
    door: str
    purpose: str
    height_cm: int | None
    device: str
    serial: str
    model: str
    admitted: bool
    since: datetime | None
    told_to: datetime | None

    def alive(self, now: datetime) -> bool:
        return self.told_to is not None and now - self.told_to < ALIVE_FOR


@dataclass(frozen=True, slots=True)
class SitePage:
    """A site with all its spots, and its doors' names."""

    where: Where
    name: str
    address: str
    time_zone: str
    stands: tuple[Stand, ...]
    doors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A device that a label names: what it is, and where it stands."""

    device: str
    serial: str
    kind: str
    model: str
    admitted: bool
    spot: str
    spot_name: str
    site_name: str


_STANDS = """
select p.site_id, p.ref, p.name, p.kind, coalesce(d.name, '') as door,
  coalesce(m.purpose, '') as purpose, m.height_cm, coalesce(v.device, '') as device,
  coalesce(v.serial, '') as serial, coalesce(v.model, '') as model,
  coalesce(v.admitted, false) as admitted, nullif(lower(a.valid), '-infinity') as since,
  (select max(b.stored_to) from my_boots b where b.device_id = v.id) as told_to
from spots p
left join doors d on d.id = p.door_id
left join mountings m on m.spot_id = p.id and m.valid @> $1::timestamptz
left join assignments a on a.spot_id = p.id and a.valid @> $1::timestamptz
left join devices v on v.id = a.device_id
"""


async def sites(connection: asyncpg.Connection, *, now: datetime) -> list[SiteRow]:
    """Return the organisation's sites by name; the caller leaves out what one may not see."""
    rows = await connection.fetch(
        f"with stands as ({_STANDS}) "  # noqa: S608
        "select s.organisation_id, s.region_id, s.id, s.ref, s.name, s.address, "
        "count(t.ref) as spots, count(*) filter (where t.device = '') as empty, count(*) filter "
        "(where t.device <> '' and coalesce(t.told_to, '-infinity') < $2) as silent "
        "from sites s left join stands t on t.site_id = s.id group by s.id order by s.name, s.id",
        now,
        now - ALIVE_FOR,
    )
    return [
        SiteRow(
            Where(row["organisation_id"], row["region_id"], row["id"], row["ref"]),
            *(row[name] for name in ("name", "address", "spots", "empty", "silent")),
        )
        for row in rows
    ]


async def site_page(connection: asyncpg.Connection, ref: str, *, now: datetime) -> SitePage | None:
    """Return a site with its spots; None if the organisation has none of that ref."""
    row = await connection.fetchrow(
        "select id, organisation_id, region_id, ref, name, address, time_zone from sites "
        "where ref = $1",
        ref,
    )
    if row is None:
        return None
    stands = await connection.fetch(
        f"{_STANDS} where p.site_id = $2 order by p.kind, p.name, p.id", now, row["id"]
    )
    doors = await connection.fetch(
        "select distinct name from doors where site_id = $1 order by 1", row["id"]
    )
    return SitePage(
        Where(row["organisation_id"], row["region_id"], row["id"], row["ref"]),
        row["name"],
        row["address"],
        row["time_zone"],
        tuple(Stand(*list(stand.values())[1:]) for stand in stands),
        tuple(door["name"] for door in doors),
    )


async def known(connection: asyncpg.Connection, serial: str, *, now: datetime) -> Known | None:
    """Return the organisation's device of a serial."""
    row = await connection.fetchrow(
        "select v.device, v.serial, v.kind, v.model, v.admitted, coalesce(p.ref, '') as spot, "
        "coalesce(p.name, '') as spot_name, coalesce(s.name, '') as site_name from devices v "
        "left join assignments a on a.device_id = v.id and a.valid @> $2::timestamptz "
        "left join spots p on p.id = a.spot_id left join sites s on s.id = p.site_id "
        "where v.serial = $1 and v.serial <> ''",
        serial,
        now,
    )
    return None if row is None else Known(*row.values())


async def site_of(
    connection: asyncpg.Connection, *, site: str = "", spot: str = "", claim: str = ""
) -> Where | None:
    """Return the site of that ref, or of the spot or the claim of that ref. As the desk."""
    row = await connection.fetchrow(
        "select s.organisation_id, s.region_id, s.id, s.ref from sites s where s.ref = $1 "
        "or s.id = (select site_id from spots where ref = $2) "
        "or s.id = (select p.site_id from technician_claims t join spots p on p.id = t.spot_id "
        "where t.ref = $3)",
        *(site, spot, claim),
    )
    return None if row is None else Where(*row.values())


async def visited(connection: asyncpg.Connection, user_id: int) -> dict[int, datetime]:
    """Return when a technician last began something at each site. As the desk."""
    rows = await connection.fetch(
        "select p.site_id, max(t.created_at) as at from technician_claims t "
        "join spots p on p.id = t.spot_id where t.user_id = $1 group by 1",
        user_id,
    )
    return {row["site_id"]: row["at"] for row in rows}
