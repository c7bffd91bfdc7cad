"""Sites with their opening hours. Each change is audited in its own transaction, the caller's.

A site and its hours have one version: who edits the address while another edits the hours is told.
Its currency is that of its sales, and stays once there are any.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import date, datetime

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet import checks, hours
from server.fleet.checks import FieldError, Known, TakenError
from server.fleet.hours import ALWAYS, Opening, OwnDay, Span
from server.fleet.register import By, Recorder, added, changed, lock_organisation, new_ref


@dataclass(frozen=True, slots=True)
class Site:
    """A store or mall; `region` by its ref. Open from `opens_on` to `closes_on`, both included."""

    name: str
    time_zone: str
    currency: str = "EUR"
    address: str = ""
    region: str | None = None
    opens_on: date | None = None
    closes_on: date | None = None
    opening: Opening = ALWAYS


_SITE = """
select s.id, s.ref, s.name, s.time_zone, s.currency, s.address, r.ref as region, s.opens_on,
       s.closes_on
from sites s left join regions r on r.id = s.region_id
where s.organisation_id = $1 and s.ref = $2
"""


async def find(
    connection: asyncpg.Connection, organisation: int, ref: str, *, lock: bool = False
) -> Known[Site]:
    """Return a site. Raises NotFoundError."""
    row = await connection.fetchrow(
        _SITE + ("for no key update of s" if lock else ""), organisation, ref
    )
    if row is None:
        raise NotFoundError(f"no site {ref!r}")
    site, ref, *facts = row.values()
    facts.append(await _opening(connection, site))
    return Known(site, ref, Site(*facts))


async def _opening(connection: asyncpg.Connection, site: int) -> Opening:
    week: dict[int, list[Span]] = defaultdict(list)
    for weekday, opens, closes in await connection.fetch(
        "select weekday, opens, closes from opening_hours where site_id = $1 order by 1, 2", site
    ):
        week[weekday].append((opens, closes))
    own: dict[date, OwnDay] = {}
    for day, opens, closes, note in await connection.fetch(
        "select day, opens, closes, note from opening_exceptions where site_id = $1 "
        "order by day, opens nulls first",
        site,
    ):
        spans = own[day].spans if day in own else ()
        own[day] = OwnDay(day, spans if opens is None else (*spans, (opens, closes)), note)
    weekly = tuple(tuple(week[number]) for number in range(7)) if week else None
    return Opening(weekly, tuple(own.values()))


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: Site,
    *,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Known[Site]:
    """Add a site. Raises FieldError, TakenError."""
    await lock_organisation(connection, organisation)
    wanted = _checked(wanted)
    await _demand_free(connection, organisation, wanted.name, but=None)
    region = await _region(connection, organisation, wanted.region)
    row = await connection.fetchrow(
        "insert into sites (organisation_id, ref, name, time_zone, currency, address, region_id, "
        "opens_on, closes_on) values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id, ref",
        *(organisation, new_ref("site"), wanted.name, wanted.time_zone, wanted.currency),
        *(wanted.address, region, wanted.opens_on, wanted.closes_on),
    )
    await _write_hours(connection, organisation, row["id"], ALWAYS, wanted.opening)
    made = Known(row["id"], row["ref"], wanted)
    by = By(actor=actor, now=now, noted=noted)
    return await added(connection, organisation, "site added", made, by=by)


async def edit(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    wanted: Site,
    *,
    seen: str | None,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Known[Site]:
    """Change a site. Raises NotFoundError, ChangedError, FieldError, TakenError."""
    await lock_organisation(connection, organisation)
    before = await find(connection, organisation, ref, lock=True)
    before.demand_unchanged(seen)
    wanted = _checked(wanted)
    if wanted == before.facts:
        return before
    if wanted.name != before.facts.name:
        await _demand_free(connection, organisation, wanted.name, but=before.id)
    if wanted.currency != before.facts.currency:
        await _demand_unsold(connection, before)
    region = await _region(connection, organisation, wanted.region)
    await connection.execute(
        "update sites set name = $2, address = $3, region_id = $4, currency = $5 where id = $1",
        *(before.id, wanted.name, wanted.address, region, wanted.currency),
    )
    if _days_of(wanted) != _days_of(before.facts):  # whose days are then computed anew
        await connection.execute(
            "update sites set time_zone = $2, opens_on = $3, closes_on = $4 where id = $1",
            *(before.id, *_days_of(wanted)),
        )
    await _write_hours(connection, organisation, before.id, before.facts.opening, wanted.opening)
    by = By(actor=actor, now=now, noted=noted)
    return await changed(connection, organisation, "site changed", before, wanted, by=by)


def _days_of(site: Site) -> tuple[str, date | None, date | None]:
    return site.time_zone, site.opens_on, site.closes_on


def _checked(wanted: Site) -> Site:
    checks.season(wanted.opens_on, wanted.closes_on)
    return replace(
        wanted,
        name=checks.name(wanted.name),
        time_zone=checks.time_zone(wanted.time_zone),
        currency=checks.currency(wanted.currency),
        address=checks.line(wanted.address, "address"),
        opening=hours.checked(wanted.opening),
    )


async def _demand_free(
    connection: asyncpg.Connection, organisation: int, name: str, *, but: int | None
) -> None:
    if await connection.fetchval(
        "select exists (select from sites where organisation_id = $1 and name = $2 "
        "and id is distinct from $3)",
        *(organisation, name, but),
    ):
        raise TakenError(f"there is a site {name!r} already")


async def _demand_unsold(connection: asyncpg.Connection, site: Known[Site]) -> None:
    """Refuse another currency once tills have said something: their amounts have no other name."""
    if await connection.fetchval(
        "select exists (select from transactions where site_id = $1)", site.id
    ):
        raise FieldError(
            "currency",
            f"sales of {site.ref} are stored in {site.facts.currency}, and would be read as "
            "another; a site that changes its currency is a new site",
        )


async def _region(connection: asyncpg.Connection, organisation: int, ref: str | None) -> int | None:
    if ref is None:
        return None
    found: int | None = await connection.fetchval(
        "select id from regions where organisation_id = $1 and ref = $2", organisation, ref
    )
    if found is None:
        raise FieldError("region", f"no region {ref[:40]!r}")
    return found


async def _write_hours(
    connection: asyncpg.Connection,
    organisation: int,
    site: int,
    before: Opening,
    after: Opening,
) -> None:
    """Replace what differs: each written row makes the site's days be computed anew."""
    if after.weekly != before.weekly:
        await connection.execute("delete from opening_hours where site_id = $1", site)
        await connection.executemany(
            "insert into opening_hours (organisation_id, site_id, weekday, opens, closes) "
            "values ($1, $2, $3, $4, $5)",
            [
                (organisation, site, weekday, *span)
                for weekday, spans in enumerate(after.weekly or ())
                for span in spans
            ],
        )
    if after.own_days != before.own_days:
        await connection.execute("delete from opening_exceptions where site_id = $1", site)
        await connection.executemany(
            "insert into opening_exceptions (organisation_id, site_id, day, opens, closes, note) "
            "values ($1, $2, $3, $4, $5, $6)",
            [
                (organisation, site, own.day, opens, closes, own.note)
                for own in after.own_days
                for opens, closes in own.spans or ((None, None),)
            ],
        )
