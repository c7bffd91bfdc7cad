"""A site's doors, side by side or one behind another. Each change is audited as it is made.

A door behind another is in series with it: whoever passes it has passed that one. Doors of one site
form a forest; a circle is refused, under the lock of the site, so that no two edits make one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError, Known, TakenError
from server.fleet.register import By, Recorder, added, changed, lock_organisation, new_ref


@dataclass(frozen=True, slots=True)
class Door:
    """An opening in a site; `behind` is the ref of the door before it, None: to the outside."""

    name: str
    behind: str | None = None


def demand_no_circle(behind: Mapping[str, str | None], door: str) -> None:
    """Raise FieldError (`behind`) if the way out from `door` comes back to it."""
    seen, at = {door}, behind.get(door)
    while at is not None:
        if at in seen:
            raise FieldError("behind", "a door cannot be behind itself, nor behind one behind it")
        seen.add(at)
        at = behind.get(at)


async def of_site(connection: asyncpg.Connection, site: int) -> list[Known[Door]]:
    """Return a site's doors, by name."""
    rows = await connection.fetch(
        "select d.id, d.ref, d.name, b.ref as behind from doors d "
        "left join doors b on b.id = d.behind_id where d.site_id = $1 order by d.name, d.id",
        site,
    )
    return [Known(row["id"], row["ref"], Door(row["name"], row["behind"])) for row in rows]


async def find(
    connection: asyncpg.Connection, organisation: int, ref: str
) -> tuple[int, Known[Door]]:
    """Return a door and the row of its site. Raises NotFoundError."""
    row = await connection.fetchrow(
        "select d.site_id, d.id, d.name, b.ref as behind from doors d "
        "left join doors b on b.id = d.behind_id where d.organisation_id = $1 and d.ref = $2",
        *(organisation, ref),
    )
    if row is None:
        raise NotFoundError(f"no door {ref!r}")
    return row["site_id"], Known(row["id"], ref, Door(row["name"], row["behind"]))


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    site: str,
    wanted: Door,
    *,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Known[Door]:
    """Add a door to a site. Raises NotFoundError, FieldError, TakenError."""
    await lock_organisation(connection, organisation)
    row = await lock_site(connection, organisation, site)
    wanted = Door(checks.name(wanted.name), wanted.behind)
    doors = {door.ref: door for door in await of_site(connection, row)}
    _demand_free(doors, wanted.name, but="")
    ref = new_ref("door")
    behind = _behind(doors, wanted.behind)
    door = await connection.fetchval(
        "insert into doors (organisation_id, site_id, ref, name, behind_id) "
        "values ($1, $2, $3, $4, $5) returning id",
        *(organisation, row, ref, wanted.name, behind),
    )
    made = Known(door, ref, wanted)
    by = By(actor=actor, now=now, noted=noted)
    return await added(connection, organisation, "door added", made, by=by, within={"site": site})


async def edit(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    wanted: Door,
    *,
    seen: str | None,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Known[Door]:
    """Change a door. Raises NotFoundError, ChangedError, FieldError, TakenError."""
    await lock_organisation(connection, organisation)
    site, _ = await find(connection, organisation, ref)
    await connection.execute("select from sites where id = $1 for no key update", site)
    doors = {door.ref: door for door in await of_site(connection, site)}
    before = doors[ref]
    before.demand_unchanged(seen)
    wanted = Door(checks.name(wanted.name), wanted.behind)
    if wanted == before.facts:
        return before
    _demand_free(doors, wanted.name, but=ref)
    behind = _behind(doors, wanted.behind)
    demand_no_circle(
        {each: door.facts.behind for each, door in doors.items()} | {ref: wanted.behind}, ref
    )
    await connection.execute(
        "update doors set name = $2, behind_id = $3 where id = $1",
        *(before.id, wanted.name, behind),
    )
    by = By(actor=actor, now=now, noted=noted)
    return await changed(connection, organisation, "door changed", before, wanted, by=by)


async def lock_site(connection: asyncpg.Connection, organisation: int, site: str) -> int:
    """Return a site's row, which nobody else edits meanwhile. Raises NotFoundError."""
    row: int | None = await connection.fetchval(
        "select id from sites where organisation_id = $1 and ref = $2 for no key update",
        *(organisation, site),
    )
    if row is None:
        raise NotFoundError(f"no site {site!r}")
    return row


def _demand_free(doors: Mapping[str, Known[Door]], name: str, *, but: str) -> None:
    if any(door.facts.name == name and ref != but for ref, door in doors.items()):
        raise TakenError(f"this site has a door {name!r} already")


def _behind(doors: Mapping[str, Known[Door]], behind: str | None) -> int | None:
    if behind is None:
        return None
    if behind not in doors:
        raise FieldError("behind", f"this site has no door {behind[:40]!r}")
    return doors[behind].id
