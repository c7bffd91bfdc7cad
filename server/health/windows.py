"""Windows of silence: maintenance, and visits. Each has a reason, an author, a place, and an end.

What is silenced stays known and shown; only nobody is told. Silence always ends, at most after
`MOST`, and can be ended before; nothing makes one longer but another.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import new_ref
from server.health.decisions import hold
from server.rollup.places import UnknownPlaceError

MOST = timedelta(days=30)


class Kind(StrEnum):
    """Why it is silent."""

    MAINTENANCE = "maintenance"
    VISIT = "visit"


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of silence of a region, a site, a device (refs), or else the organisation."""

    ref: str
    kind: Kind
    reason: str
    author: str
    region: str | None
    site: str | None
    device: str | None
    starts_at: datetime
    ends_at: datetime
    ended_at: datetime | None
    ended_by: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A window as it is to be."""

    kind: Kind
    reason: str
    starts_at: datetime | None
    ends_at: datetime
    region: str | None = None
    site: str | None = None
    device: str | None = None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a window would silence: sites and devices, and what of theirs is open."""

    sites: int
    devices: int
    episodes: int
    incidents: int


@dataclass(frozen=True, slots=True)
class Silence:
    """A window that silences now, by rows."""

    ref: str
    kind: Kind
    organisation: int
    region: int | None
    site: int | None
    device: int | None
    ends_at: datetime

    def covers(self, organisation: int, region: int | None, site: int | None,
               device: int | None) -> bool:  # fmt: skip
        """Whether it silences what is there."""
        if organisation != self.organisation:
            return False
        pairs = ((self.region, region), (self.site, site), (self.device, device))
        return all(own is None or own == other for own, other in pairs)


@dataclass(frozen=True, slots=True)
class Silences:
    """All windows that silence now."""

    found: Sequence[Silence] = field(default=())

    def of(
        self, organisation: int | None, region: int | None, site: int | None, device: int | None
    ) -> Silence | None:
        """Return what silences something that is there, the one that ends last."""
        if organisation is None:
            return None
        found = [each for each in self.found if each.covers(organisation, region, site, device)]
        return max(found, key=lambda each: (each.ends_at, each.ref), default=None)


async def silences(
    connection: asyncpg.Connection, organisations: Iterable[int], *, now: datetime
) -> Silences:
    """Return the windows of some organisations that silence now."""
    rows = await connection.fetch(_NOW, sorted(organisations), now)
    return Silences([Silence(row["ref"], Kind(row["kind"]), *list(row.values())[2:])
                     for row in rows])  # fmt: skip


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    now: datetime,
    past: bool = False,
    before: str | None = None,
    limit: int = 1_000,
) -> list[Window]:
    """Return windows that silence or will, or with `past` all of them, the latest first."""
    rows = await connection.fetch(
        _LISTED + "order by w.id desc limit $6",
        *(organisation, None, now, past, before, limit),
    )
    return [_window(row) for row in rows]


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Window:
    """Return one. Raises NotFoundError."""
    row = await connection.fetchrow(_LISTED, organisation, ref, None, True, None)
    if row is None:
        raise NotFoundError("there is nothing of this name")
    return _window(row)


def _window(row: asyncpg.Record) -> Window:
    ref, kind, *rest = row.values()
    return Window(ref, Kind(kind), *rest)


async def preview(
    connection: asyncpg.Connection, organisation: int, wanted: Wanted, *, now: datetime
) -> Preview:
    """Return what a window would silence. Raises FieldError, UnknownPlaceError."""
    _checked(wanted, now=now)
    place = await _place(connection, organisation, wanted)
    row = await connection.fetchrow(_PREVIEW, organisation, *place, now)
    return Preview(*row.values())


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: Wanted,
    *,
    actor: str,
    now: datetime,
) -> Window:
    """Begin a silence, now or later. Raises FieldError, UnknownPlaceError."""
    reason, starts_at = _checked(wanted, now=now)
    place = await _place(connection, organisation, wanted)
    await hold(connection)
    ref = new_ref("window")
    await connection.execute(
        _ADDED,
        *(organisation, ref, wanted.kind.value, reason, actor, *place, starts_at, wanted.ends_at),
    )
    await _look(connection, organisation, now=now)
    detail = {
        "kind": wanted.kind.value,
        "reason": reason,
        "from": starts_at.isoformat(),
        "until": wanted.ends_at.isoformat(),
        **{
            name: value
            for name in ("region", "site", "device")
            if (value := getattr(wanted, name)) is not None
        },
    }
    await record(
        connection,
        actor=actor,
        act="window added",
        subject=ref,
        detail=detail,
        organisation=organisation,
        now=now,
    )
    return await find(connection, organisation, ref)


async def end(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Window:
    """End a silence now; one that is over stays as it is."""
    await hold(connection)
    known = await find(connection, organisation, ref)
    if known.ended_at is not None or known.ends_at <= now:
        return known
    await connection.execute(
        "update health_windows set ended_at = $2, ended_by = $3 where ref = $1", ref, now, actor
    )
    await _look(connection, organisation, now=now)
    await record(
        connection,
        actor=actor,
        act="window ended",
        subject=ref,
        organisation=organisation,
        now=now,
    )
    return await find(connection, organisation, ref)


def _checked(wanted: Wanted, *, now: datetime) -> tuple[str, datetime]:
    """Return reason and start. Raises FieldError."""
    reason = checks.line(wanted.reason, "reason")
    if not reason:
        raise FieldError("reason", "say why nobody is to be told")
    if sum(each is not None for each in (wanted.region, wanted.site, wanted.device)) > 1:
        raise FieldError("site", "a window is of a region, a site, a device, or of everything")
    starts_at = max(now, wanted.starts_at or now)
    if wanted.ends_at <= starts_at:
        raise FieldError("ends_at", "silence ends after it begins, and not in the past")
    if wanted.ends_at - now > MOST:
        raise FieldError("ends_at", f"silence ends within {MOST.days} days")
    return reason, starts_at


async def _place(
    connection: asyncpg.Connection, organisation: int, wanted: Wanted
) -> tuple[int | None, int | None, int | None]:
    """Return the rows of its place. Raises UnknownPlaceError."""
    found: list[int | None] = []
    for kind, ref, sql in (
        ("region", wanted.region, "select id from regions where organisation_id = $1 and ref = $2"),
        ("site", wanted.site, "select id from sites where organisation_id = $1 and ref = $2"),
        (
            "device",
            wanted.device,
            "select id from devices where organisation_id = $1 and device = $2",
        ),
    ):
        row = None
        if ref is not None:
            row = None if "\0" in ref else await connection.fetchval(sql, organisation, ref)
            if row is None:
                raise UnknownPlaceError(kind, ref)
        found.append(row)
    region, site, device = found
    return region, site, device


async def _look(connection: asyncpg.Connection, organisation: int, *, now: datetime) -> None:
    """Let what is open be decided on again."""
    await connection.execute(
        "update incidents set look_at = $2 where organisation_id = $1 and state = 'open'",
        *(organisation, now),
    )


_NOW = """
    select ref, kind, organisation_id, region_id, site_id, device_id, ends_at
    from health_windows
    where organisation_id = any($1::int[]) and starts_at <= $2 and ends_at > $2
      and ended_at is null
"""
_LISTED = """
    select w.ref, w.kind, w.reason, w.author, r.ref as region, s.ref as site, d.device,
        w.starts_at, w.ends_at, w.ended_at, w.ended_by
    from health_windows w left join regions r on r.id = w.region_id
    left join sites s on s.id = w.site_id left join devices d on d.id = w.device_id
    where w.organisation_id = $1 and ($2::text is null or w.ref = $2)
      and ($4::bool or (w.ended_at is null and w.ends_at > $3))
      and ($5::text is null or w.id < (select id from health_windows where ref = $5))
"""
_PREVIEW = """
    with there as (
        select d.id as device, p.site_id as site from devices d
        left join assignments a on a.device_id = d.id and a.valid @> $5::timestamptz
        left join spots p on p.id = a.spot_id left join sites s on s.id = p.site_id
        where d.organisation_id = $1 and ($2::int is null or s.region_id = $2)
          and ($3::int is null or s.id = $3) and ($4::int is null or d.id = $4)),
    open as (
        select e.id, e.incident_id from episodes e left join sites s on s.id = e.site_id
        where e.organisation_id = $1 and e.resolved_at is null
          and ($2::int is null or s.region_id = $2) and ($3::int is null or s.id = $3)
          and ($4::int is null or e.device_id = $4))
    select
        (select count(*) from sites where organisation_id = $1 and $4::int is null
           and ($2::int is null or region_id = $2) and ($3::int is null or id = $3))::int,
        (select count(*) from there)::int, (select count(*) from open)::int,
        (select count(distinct incident_id) from open)::int
"""
_ADDED = """
    insert into health_windows (organisation_id, ref, kind, reason, author, region_id, site_id,
        device_id, starts_at, ends_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""
