"""A technician makes a spot: its door, what it is for, how high it hangs."""

import re
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.fleet import register
from server.tech.places import Where
from server.tech.refusals import refused

PURPOSES = ("entrance", "passage", "zone", "exit", "checkout")
HEIGHTS_CM = (50, 2000)
_MOST_NAME = 60
_REF = re.compile(r"spot-[a-z0-9]{8}")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A spot as a phone asks for it; `ref` is the phone's draw."""

    ref: str
    name: str
    kind: str
    door: str
    purpose: str
    height_cm: int | None


async def add(
    connection: asyncpg.Connection, where: Where, wanted: Wanted, *, actor: str, now: datetime
) -> None:
    """Make a spot at a site, and its door if there is none of that name. As the desk.

    Raises RefusedError (`bad_spot`, `spot_exists`).
    """
    name, door = " ".join(wanted.name.split()), " ".join(wanted.door.split())
    low, high = HEIGHTS_CM
    if (
        not _REF.fullmatch(wanted.ref)
        or wanted.kind not in ("counter", "kiosk")
        or wanted.purpose not in PURPOSES
        or not (0 < len(name) <= _MOST_NAME and len(door) <= _MOST_NAME)
        or not (name + door).isprintable()
        or not (wanted.height_cm is None or low <= wanted.height_cm <= high)
    ):
        raise refused("bad_spot")
    if await connection.fetchval(
        "select exists (select from spots where ref = $1 or (site_id = $2 and name = $3))",
        *(wanted.ref, where.site, name),
    ):
        raise refused("spot_exists")
    door_row = await connection.fetchval(
        "select id from doors where site_id = $1 and name = $2 order by id limit 1",
        *(where.site, door),
    )
    try:
        spot = await register.add_spot(
            connection,
            where.organisation,
            site=where.site,
            name=name,
            kind=wanted.kind,
            door="" if door_row is not None else door,
            ref=wanted.ref,
        )
    except asyncpg.UniqueViolationError as error:  # of another organisation, or just now
        raise refused("spot_exists") from error
    if door_row is not None:
        await connection.execute("update spots set door_id = $2 where id = $1", spot, door_row)
    await connection.execute(
        "insert into mountings (organisation_id, spot_id, purpose, height_cm) "
        "values ($1, $2, $3, $4)",
        *(where.organisation, spot, wanted.purpose, wanted.height_cm),
    )
    await record(
        connection,
        actor=actor,
        act="spot added",
        subject=wanted.ref,
        detail={"site": where.ref, "kind": wanted.kind, "purpose": wanted.purpose},
        organisation=where.organisation,
        now=now,
    )
