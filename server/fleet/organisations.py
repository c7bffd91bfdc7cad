"""Organisations and their regions. Each change is audited in its own transaction, the caller's."""

import re
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet import checks
from server.fleet.checks import Known, TakenError
from server.fleet.register import By, Recorder, added, changed, lock_organisation, new_ref

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


async def find_named(connection: asyncpg.Connection, name: str) -> Known[Organisation] | None:
    """Return the organisation of this name, if there is one."""
    ref = await connection.fetchval("select ref from organisations where name = $1", name)
    return None if ref is None else await find(connection, ref)


async def add(
    connection: asyncpg.Connection,
    wanted: Organisation,
    *,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Known[Organisation]:
    """Add an organisation; as who oversees all. Raises FieldError, TakenError."""
    wanted = _checked(wanted)
    readable = re.sub(r"[^a-z0-9]+", "-", wanted.name.lower()).strip("-")[:32]
    row = await connection.fetchrow(
        "insert into organisations (ref, name, enrolment, clones) values ($1, $2, $3, $4) "
        "on conflict (name) do nothing returning id, ref",
        *(new_ref(readable or "org"), wanted.name, wanted.enrolment, wanted.clones),
    )
    if row is None:
        raise TakenError(f"there is an organisation {wanted.name!r} already")
    made = Known(row["id"], row["ref"], wanted)
    by = By(actor=actor, now=now, noted=noted)
    return await added(connection, row["id"], "organisation added", made, by=by)


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
    by = By(actor=actor, now=now, noted=record)
    return await changed(connection, before.id, "organisation changed", before, wanted, by=by)


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
    made = Known(row["id"], row["ref"], wanted)
    by = By(actor=actor, now=now, noted=noted)
    return await added(connection, organisation, "region added", made, by=by)


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
    by = By(actor=actor, now=now, noted=record)
    return await changed(connection, organisation, "region changed", before, wanted, by=by)
