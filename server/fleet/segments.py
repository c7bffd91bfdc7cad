"""Segments: devices under a name, for whatever is to be done to them later.

One that is *live* is whichever devices its filter finds when it is used; a *snapshot* is those that
it found when it was made, and stays them. Which of the two is said when it is made and shown at
every use. A segment is never changed: what was decided about its name stays true of it.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet import checks, filters, search
from server.fleet.checks import TakenError
from server.fleet.register import Recorder, lock_organisation, new_ref


class Follows(StrEnum):
    """What becomes of devices that come to fit the filter later, or no longer do."""

    LIVE = "live"  # they join, or leave
    SNAPSHOT = "snapshot"  # nothing


@dataclass(frozen=True, slots=True)
class Segment:
    """Devices under a name. `number`: how many a snapshot holds; None: it is live."""

    id: int
    ref: str
    name: str
    filter: str
    follows: Follows
    created_at: datetime
    created_by: str
    taken_at: datetime | None
    number: int | None


_SEGMENTS = """
    select s.id, s.ref, s.name, s.filter, s.follows, s.created_at, s.created_by, s.taken_at,
           case when s.follows = 'snapshot' then
               (select count(*) from segment_devices m where m.segment_id = s.id) end as number
    from segments s where s.organisation_id = $1 and ($2::text is null or s.ref = $2)
    order by lower(s.name), s.id
"""


def _segment(row: asyncpg.Record) -> Segment:
    return Segment(**{**row, "follows": Follows(row["follows"])})


async def every(connection: asyncpg.Connection, organisation: int) -> list[Segment]:
    """Return an organisation's segments, by name."""
    return [_segment(row) for row in await connection.fetch(_SEGMENTS, organisation, None)]


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Segment:
    """Return a segment. Raises NotFoundError."""
    row = await connection.fetchrow(_SEGMENTS, organisation, ref)
    if row is None:
        raise NotFoundError(f"no segment {ref[:40]!r}")
    return _segment(row)


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    name: str,
    text: str,
    follows: Follows,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> Segment:
    """Keep a filter under a name; a snapshot with the devices that it finds now.

    Raises FilterError, FieldError, TakenError.
    """
    tree, name = filters.parse(text), checks.name(name)
    await lock_organisation(connection, organisation)
    if await connection.fetchval(
        "select true from segments where organisation_id = $1 and name = $2", organisation, name
    ):
        raise TakenError(f"there is a segment {name!r} already")
    ref, taken_at = new_ref("segment"), now if follows is Follows.SNAPSHOT else None
    row: int = await connection.fetchval(
        "insert into segments (organisation_id, ref, name, filter, follows, created_at, "
        "created_by, taken_at) values ($1, $2, $3, $4, $5, $6, $7, $8) returning id",
        *(organisation, ref, name, filters.printed(tree), follows, now, actor, taken_at),
    )
    if follows is Follows.SNAPSHOT:
        selected = search.selection(tree, organisation=organisation, now=now)
        place = len(selected.arguments) + 1
        await connection.execute(
            "insert into segment_devices (segment_id, device_id, organisation_id) "
            f"select ${place}, d.id, $1 {selected.sql}",
            *(*selected.arguments, row),
        )
    made = await find(connection, organisation, ref)
    detail: dict[str, object] = {"name": name, "filter": made.filter, "follows": follows.value}
    if made.number is not None:
        detail["devices"] = made.number
    await noted(
        connection, actor=actor, act="segment added", subject=ref, detail=detail,
        organisation=organisation, now=now,
    )  # fmt: skip
    return made


async def remove(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> None:
    """Forget a segment. Raises NotFoundError."""
    gone = await find(connection, organisation, ref)
    await connection.execute("delete from segments where id = $1", gone.id)
    await noted(
        connection, actor=actor, act="segment removed", subject=ref,
        detail={"name": gone.name, "filter": gone.filter}, organisation=organisation, now=now,
    )  # fmt: skip


def members(
    segment: Segment,
    *,
    organisation: int,
    now: datetime,
    besides: filters.Filter = filters.ALL,
    within: search.Within = search.EVERYWHERE,
) -> search.Selection:
    """Return what selects the devices that a segment is now, that a filter finds `besides`."""
    if segment.follows is Follows.LIVE:
        both = filters.every([filters.parse(segment.filter), besides])
        return search.selection(both, organisation=organisation, now=now, within=within)
    found = search.selection(besides, organisation=organisation, now=now, within=within)
    place = len(found.arguments) + 1
    sql = "d.id in (select device_id from segment_devices where segment_id = $"
    return search.Selection(
        f"{found.sql} and {sql}{place})",
        (*found.arguments, segment.id),
    )
