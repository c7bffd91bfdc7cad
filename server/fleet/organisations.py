"""Organisations and their regions. Each change is audited in its own transaction, the caller's."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet import checks
from server.fleet.checks import Known, TakenError, changes, contents
from server.fleet.register import Recorder, add_organisation, lock_organisation, new_ref

ENROLMENTS = ("allow-list", "technician")
CLONES = ("report", "quarantine")


_ORGANISATION = "select id, ref, name, enrolment, clones from organisations where ref = $1 "
_REGION = "select id, ref, name from regions where organisation_id = $1 and ref = $2 "
_LOCK = "for no key update"


@dataclass(frozen=True, slots=True)
class Organisation:
    """A retailer or mall owner; what its devices need to enrol, and what becomes of clones."""

    name: str
    enrolment: str = "allow-list"
    clones: str = "report"


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an organisation, for lists and grants."""

    name: str


async def find(
    connection: asyncpg.Connection, ref: str, *, lock: bool = False
) -> Known[Organisation]:
    """Return an organisation. Raises NotFoundError."""
    row = await connection.fetchrow(
        _ORGANISATION + (_LOCK if lock else ""),
        ref,
    )
    if row is None:
        raise NotFoundError(f"no organisation {ref!r}")
    return Known(row["id"], row["ref"], Organisation(row["name"], row["enrolment"], row["clones"]))


async def add(
    connection: asyncpg.Connection, wanted: Organisation, *, actor: str, now: datetime
) -> Known[Organisation]:
    """Add an organisation; as who oversees all. Raises FieldError, TakenError."""
    wanted = _checked(wanted)
    if await connection.fetchval(
        "select exists (select from organisations where name = $1)", wanted.name
    ):
        raise TakenError(f"there is an organisation {wanted.name!r} already")
    row = await add_organisation(connection, wanted.name)
    ref = await connection.fetchval(
        "update organisations set enrolment = $2, clones = $3 where id = $1 returning ref",
        *(row, wanted.enrolment, wanted.clones),
    )
    await record(
        connection,
        actor=actor,
        act="organisation added",
        subject=ref,
        detail=contents(wanted),
        organisation=row,
        now=now,
    )
    return Known(row, ref, wanted)


async def edit(
    connection: asyncpg.Connection,
    ref: str,
    wanted: Organisation,
    *,
    seen: str | None,
    actor: str,
    now: datetime,
) -> Known[Organisation]:
    """Change an organisation. Raises NotFoundError, ChangedError, FieldError, TakenError."""
    before = await find(connection, ref, lock=True)
    before.demand_unchanged(seen)
    wanted = _checked(wanted)
    if wanted == before.facts:
        return before
    try:
        async with connection.transaction():
            await connection.execute(
                "update organisations set name = $2, enrolment = $3, clones = $4 where id = $1",
                *(before.id, wanted.name, wanted.enrolment, wanted.clones),
            )
    except asyncpg.UniqueViolationError as error:
        raise TakenError(f"there is an organisation {wanted.name!r} already") from error
    await record(
        connection,
        actor=actor,
        act="organisation changed",
        subject=ref,
        detail=changes(before.facts, wanted),
        organisation=before.id,
        now=now,
    )
    return Known(before.id, ref, wanted)


def _checked(wanted: Organisation) -> Organisation:
    return Organisation(
        checks.name(wanted.name),
        checks.one_of(wanted.enrolment, ENROLMENTS, "enrolment"),
        checks.one_of(wanted.clones, CLONES, "clones"),
    )


async def regions(connection: asyncpg.Connection, organisation: int) -> list[Known[Region]]:
    """Return an organisation's regions, by name."""
    rows = await connection.fetch(
        "select id, ref, name from regions where organisation_id = $1 order by name", organisation
    )
    return [Known(row["id"], row["ref"], Region(row["name"])) for row in rows]


async def find_region(
    connection: asyncpg.Connection, organisation: int, ref: str, *, lock: bool = False
) -> Known[Region]:
    """Return a region. Raises NotFoundError."""
    row = await connection.fetchrow(
        _REGION + (_LOCK if lock else ""),
        *(organisation, ref),
    )
    if row is None:
        raise NotFoundError(f"no region {ref!r}")
    return Known(row["id"], row["ref"], Region(row["name"]))


async def add_region(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: Region,
    *,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Known[Region]:
    """Add a region. Raises FieldError, TakenError."""
    await lock_organisation(connection, organisation)
    wanted = Region(checks.name(wanted.name))
    row = await connection.fetchrow(
        "insert into regions (organisation_id, ref, name) values ($1, $2, $3) "
        "on conflict (organisation_id, name) do nothing returning id, ref",
        *(organisation, new_ref("region"), wanted.name),
    )
    if row is None:
        raise TakenError(f"there is a region {wanted.name!r} already")
    await noted(
        connection,
        actor=actor,
        act="region added",
        subject=row["ref"],
        detail=contents(wanted),
        organisation=organisation,
        now=now,
    )
    return Known(row["id"], row["ref"], wanted)


async def edit_region(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    wanted: Region,
    *,
    seen: str | None,
    actor: str,
    now: datetime,
) -> Known[Region]:
    """Rename a region. Raises NotFoundError, ChangedError, FieldError, TakenError."""
    await lock_organisation(connection, organisation)
    before = await find_region(connection, organisation, ref, lock=True)
    before.demand_unchanged(seen)
    wanted = Region(checks.name(wanted.name))
    if wanted == before.facts:
        return before
    try:
        async with connection.transaction():
            await connection.execute(
                "update regions set name = $2 where id = $1", before.id, wanted.name
            )
    except asyncpg.UniqueViolationError as error:
        raise TakenError(f"there is a region {wanted.name!r} already") from error
    await record(
        connection,
        actor=actor,
        act="region changed",
        subject=ref,
        detail=changes(before.facts, wanted),
        organisation=organisation,
        now=now,
    )
    return Known(before.id, ref, wanted)
