"""A technician makes a spot, and its door if the site has none of that name."""

import re
from dataclasses import replace
from datetime import datetime

import asyncpg

from server.fleet import doors, spots
from server.fleet.checks import FieldError, TakenError
from server.fleet.doors import Door
from server.fleet.spots import Spot
from server.tech.places import Where
from server.tech.refusals import refused

_REF = re.compile(r"spot-[a-z0-9]{8}")


async def add(
    connection: asyncpg.Connection,
    where: Where,
    wanted: Spot,
    *,
    ref: str,
    door: str,
    actor: str,
    now: datetime,
) -> None:
    """Make a spot under the ref that the phone drew, at a door by its name ("": at none).

    As the desk. Raises RefusedError (`bad_spot`, `spot_exists`).
    """
    if not _REF.fullmatch(ref):
        raise refused("bad_spot")
    try:
        if name := " ".join(door.split()):
            known = {d.facts.name: d.ref for d in await doors.of_site(connection, where.site)}
            if name not in known:
                made = await doors.add(
                    connection, where.organisation, where.ref, Door(name), actor=actor, now=now
                )
                known[name] = made.ref
            wanted = replace(wanted, door=known[name])
        await spots.add(
            connection, where.organisation, where.ref, wanted, ref=ref, actor=actor, now=now
        )
    except FieldError as error:
        raise refused("bad_spot") from error
    except TakenError as error:
        raise refused("spot_exists") from error
