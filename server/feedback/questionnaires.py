"""Versions of questionnaires, and where they are shown when. What a device shows follows from both.

Invariants:
- A version is never edited: its content has one hash, and presses bear that hash. Another wording
  is another version of the same name; the same content again is the version that is there.
- A version is published to a site's kiosks or to one spot, with a schedule in the site's own time.
  Of several in force the spot's own come before the site's, and later published before earlier.
- What a rollout (`server.firmware.showing`) lets a kiosk show counts as its spot's own.
- Whoever is concerned is rung for after the commit (`CHANGED`); the plan itself is made anew from
  these tables whenever a device asks for it (`server.feedback.plans`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import asyncpg
import msgspec

from protocol import questionnaire as wire
from protocol.content import ContentError
from protocol.plan import MAX_ENVELOPE, MAX_SHOWN, Plan, Shown, shown
from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import lock_organisation, named_row, new_ref

CHANGED = "plans_changed"
"""The channel that carries a device's id when what it is to show has changed."""

MOST_CONTENT = MAX_ENVELOPE * 3 // 4  # of all that one device may be sent
MOST_VERSIONS = 1_000  # of an organisation; they are kept for ever


@dataclass(frozen=True, slots=True)
class Version:
    """A questionnaire as our books have it; `content` is None where only its hash is known."""

    id: int
    ref: str
    hash: int
    name: str
    version: int
    content: bytes | None = field(repr=False)
    made_at: datetime
    retired_at: datetime | None

    @property
    def hex(self) -> str:
        """The hash as it is written everywhere."""
        return f"{self.hash & (1 << 64) - 1:016x}"


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a publication is in force, in the site's time; see `protocol.questionnaire`."""

    since: date | None = None
    until: date | None = None
    weekdays: tuple[int, ...] = ()
    hours: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """A version at a site, or at one of its spots."""

    ref: str
    questionnaire: str
    site: str
    spot: str | None
    schedule: Schedule
    published_at: datetime
    ended_at: datetime | None


_VERSION = "select id, ref, hash, name, version, content, made_at, retired_at from questionnaires"
_PUBLICATION = """
select p.ref, q.ref, s.ref, spot.ref, p.from_day, p.until_day, p.weekdays, p.opens, p.closes,
       p.published_at, p.ended_at
from publications p join questionnaires q on q.id = p.questionnaire_id
join sites s on s.id = p.site_id left join spots spot on spot.id = p.spot_id
"""


async def make(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    name: str,
    value: object,
    actor: str,
    now: datetime,
) -> Version:
    """Add a version. Raises FieldError naming what is wrong in `value`; ConflictError."""
    await lock_organisation(connection, organisation)
    name = checks.name(name)
    try:
        made = wire.make(value)
    except ContentError as error:
        raise FieldError(error.where or "content", str(error)) from error
    number = int.from_bytes(made.hash, "big", signed=True)
    row = await connection.fetchrow(
        f"{_VERSION} where organisation_id = $1 and hash = $2", organisation, number
    )
    if row is not None:
        there = Version(*row)
        if there.content != made.content or there.name != name:
            raise ConflictError(f"the same is there as {there.name!r}, version {there.version}")
        return there
    versions, last = await connection.fetchrow(
        "select count(*), coalesce(max(version) filter (where name = $2), 0) "
        "from questionnaires where organisation_id = $1",
        *(organisation, name),
    )
    if versions >= MOST_VERSIONS:
        raise ConflictError(f"an organisation has at most {MOST_VERSIONS} versions")
    row = await connection.fetchrow(
        "insert into questionnaires (organisation_id, ref, hash, name, version, content, "
        "definition, made_at, made_by) values ($1, $2, $3, $4, $5, $6, $7, $8, $9) "
        "returning id, ref, hash, name, version, content, made_at, retired_at",
        *(organisation, new_ref("questionnaire"), number, name, last + 1, made.content),
        *(made.content.decode(), now, actor),
    )
    version = Version(*row)
    await record(
        connection,
        actor=actor,
        act="questionnaire made",
        subject=version.ref,
        detail={"name": name, "version": version.version, "hash": version.hex},
        organisation=organisation,
        now=now,
    )
    return version


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Version:
    """Return a version. Raises NotFoundError."""
    row = await connection.fetchrow(
        f"{_VERSION} where organisation_id = $1 and ref = $2", organisation, ref
    )
    if row is None:
        raise NotFoundError(f"no questionnaire {ref[:40]!r}")
    return Version(*row)


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    after: str = "",
    limit: int = MOST_VERSIONS,
) -> list[Version]:
    """Return the versions whose ref follows `after`."""
    rows = await connection.fetch(
        f"{_VERSION} where organisation_id = $1 and ref > $2 order by ref limit $3",
        *(organisation, after, limit),
    )
    return [Version(*row) for row in rows]


async def publish(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    questionnaire: str,
    site: str,
    spot: str | None,
    schedule: Schedule,
    actor: str,
    now: datetime,
) -> Publication:
    """Let a version be shown. Raises FieldError, ConflictError."""
    await lock_organisation(connection, organisation)
    version, site_row, spot_row = await _named(connection, organisation, questionnaire, site, spot)
    try:
        entry = shown("0" * 64, since=schedule.since, until=schedule.until,
                      weekdays=schedule.weekdays, hours=schedule.hours)  # fmt: skip
    except ContentError as error:
        raise FieldError(error.where, str(error)) from error
    open_ = await connection.fetch(
        "select distinct q.id, octet_length(q.content) as size from publications p "
        "join questionnaires q on q.id = p.questionnaire_id where p.site_id = $1 "
        "and p.ended_at is null and coalesce(p.until_day >= $2, true)",
        *(site_row, now.date() - timedelta(days=1)),
    )
    sizes = {row["id"]: row["size"] for row in open_} | {version.id: len(version.content or b"")}
    if len(open_) >= MAX_SHOWN or sum(sizes.values()) > MOST_CONTENT:
        raise ConflictError("too much is published there already; end something first")
    ref = new_ref("publication")
    opens, closes = entry.hours or (None, None)
    await connection.execute(
        "insert into publications (organisation_id, ref, questionnaire_id, site_id, spot_id, "
        "from_day, until_day, weekdays, opens, closes, published_at) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        *(organisation, ref, version.id, site_row, spot_row, entry.since, entry.until),
        *(list(entry.weekdays), opens, closes, now),
    )
    made = await find_publication(connection, organisation, ref)
    await record(
        connection,
        actor=actor,
        act="questionnaire published",
        subject=ref,
        detail={
            "questionnaire": questionnaire,
            "site": site,
            "spot": spot or "",
            "schedule": msgspec.to_builtins(schedule),
        },
        organisation=organisation,
        now=now,
    )
    await ring(connection, site_row, spot_row, now=now)
    return made


async def _named(
    connection: asyncpg.Connection,
    organisation: int,
    questionnaire: str,
    site: str,
    spot: str | None,
) -> tuple[Version, int, int | None]:
    """Return what a publication names. Raises FieldError, ConflictError."""
    try:
        version = await find(connection, organisation, questionnaire)
    except NotFoundError as error:
        raise FieldError("questionnaire", str(error)) from error
    if version.content is None or version.retired_at is not None:
        raise ConflictError(f"{questionnaire} is retired, or only its hash is known")
    site_row = await named_row(connection, organisation, "sites", site, field="site")
    if spot is None:
        return version, site_row, None
    row = await connection.fetchrow(
        "select id, kind from spots where site_id = $1 and ref = $2", site_row, spot
    )
    if row is None:
        raise FieldError("spot", f"no spot {spot[:40]!r} at this site")
    if row["kind"] != "kiosk":
        raise FieldError("spot", f"{spot} is no kiosk's")
    return version, site_row, row["id"]


async def find_publication(
    connection: asyncpg.Connection, organisation: int, ref: str
) -> Publication:
    """Return a publication. Raises NotFoundError."""
    row = await connection.fetchrow(
        _PUBLICATION + "where p.organisation_id = $1 and p.ref = $2", organisation, ref
    )
    if row is None:
        raise NotFoundError(f"no publication {ref[:40]!r}")
    return _publication(row)


async def publications(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    sites: Sequence[str] = (),
    after: str = "",
    limit: int,
) -> list[Publication]:
    """Return the publications whose ref follows `after`, those that have ended too."""
    rows = await connection.fetch(
        _PUBLICATION + "where p.organisation_id = $1 and p.ref > $2 "
        "and coalesce(s.ref = any($4::text[]), true) order by p.ref limit $3",
        *(organisation, after, limit, list(sites) or None),
    )
    return [_publication(row) for row in rows]


def _publication(row: asyncpg.Record) -> Publication:
    ref, questionnaire, site, spot, since, until, weekdays, opens, closes, at, ended = row.values()
    hours = None if opens is None else (opens, closes)
    schedule = Schedule(since, until, tuple(weekdays), hours)
    return Publication(ref, questionnaire, site, spot, schedule, at, ended)


async def end(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Publication:
    """Let it be shown no longer; one that has ended stays so. Raises NotFoundError."""
    await lock_organisation(connection, organisation)
    row = await connection.fetchrow(
        "update publications set ended_at = $3 where organisation_id = $1 and ref = $2 "
        "and ended_at is null returning site_id, spot_id",
        *(organisation, ref, now),
    )
    found = await find_publication(connection, organisation, ref)
    if row is not None:
        await record(
            connection,
            actor=actor,
            act="publication ended",
            subject=ref,
            detail={"questionnaire": found.questionnaire, "site": found.site},
            organisation=organisation,
            now=now,
        )
        await ring(connection, row["site_id"], row["spot_id"], now=now)
    return found


async def retire(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Version:
    """Publish a version nowhere any more, and end where it is. Raises NotFoundError."""
    await lock_organisation(connection, organisation)
    version = await find(connection, organisation, ref)
    if version.retired_at is not None:
        return version
    await connection.execute(
        "update questionnaires set retired_at = $2 where id = $1", version.id, now
    )
    await record(
        connection,
        actor=actor,
        act="questionnaire retired",
        subject=ref,
        detail={"name": version.name, "version": version.version},
        organisation=organisation,
        now=now,
    )
    for row in await connection.fetch(
        "select ref from publications where questionnaire_id = $1 and ended_at is null", version.id
    ):
        await end(connection, organisation, row["ref"], actor=actor, now=now)
    return await find(connection, organisation, ref)


async def ring(
    connection: asyncpg.Connection, site: int, spot: int | None, *, now: datetime
) -> None:
    """Have the bell rung at the kiosks that stand there, once this is committed."""
    await connection.execute(
        "select pg_notify($4, d.device) from assignments a join devices d on d.id = a.device_id "
        "join spots s on s.id = a.spot_id where s.site_id = $1 and coalesce(s.id = $2, true) "
        "and s.kind = 'kiosk' and a.valid @> $3::timestamptz",
        *(site, spot, now, CHANGED),
    )


_SHOWN = """
select q.content, p.from_day, p.until_day, p.weekdays, p.opens, p.closes from (
    select questionnaire_id, from_day, until_day, weekdays, opens, closes, spot_id, published_at, id
    from publications
    where site_id = $1 and (spot_id is null or spot_id = $2) and ended_at is null
    and coalesce(until_day >= $3, true)
    union all
    select e.shows, null, null, '{}', null, null, $2, e.offered_at, null
    from executions e join devices d on d.id = e.device_id
        and d.organisation_id = e.organisation_id
    join questionnaires r on r.id = e.shows and r.retired_at is null
    where e.device_id = $5 and e.shows is not null) p
join questionnaires q on q.id = p.questionnaire_id
where q.content is not null
order by p.spot_id nulls last, p.published_at desc, p.id desc limit $4
"""
"""What is published at a site or spot, and what a rollout lets this device show besides."""


# -- what a device is to show --------------------------------------------------------------------


async def plan_of(
    connection: asyncpg.Connection, device: int, *, now: datetime
) -> tuple[Plan, list[bytes]]:
    """Return what a device (its row) is to show, and the contents that the plan names.

    One that stands nowhere shows nothing of its organisation's. Of more than `MOST_CONTENT` it gets
    the first.
    """
    row = await connection.fetchrow(
        "select d.device, s.id as spot, site.id as site, site.name, site.time_zone "
        "from devices d left join assignments a on a.device_id = d.id "
        "and a.valid @> $2::timestamptz left join spots s on s.id = a.spot_id "
        "left join sites site on site.id = s.site_id where d.id = $1",
        *(device, now),
    )
    if row is None:
        raise NotFoundError("no such device")
    if row["spot"] is None:
        return Plan(row["device"], "-", "UTC", ()), []
    rows = await connection.fetch(
        _SHOWN, *(row["site"], row["spot"], now.date() - timedelta(days=1), MAX_SHOWN, device)
    )
    entries: list[Shown] = []
    contents: dict[str, bytes] = {}
    size = 0
    for content, since, until, weekdays, opens, closes in rows:
        digest = wire.read(content).digest
        if digest not in contents:
            size += len(content)
            if size > MOST_CONTENT:  # beside what rollouts add: the first comes first
                break
            contents[digest] = content
        hours = None if opens is None else (opens, closes)
        entries.append(Shown(digest, since, until, tuple(weekdays), hours))
    plan = Plan(row["device"], row["name"], row["time_zone"], tuple(entries))
    return plan, list(contents.values())
