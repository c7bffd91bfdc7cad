"""Who is told of incidents by mail: from which severity on, and in which hours."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import new_ref
from server.health.judgement import Severity

MOST_CONTACTS = 50
"""Of an organisation."""
EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)
_ADDRESS = re.compile(r"[^@\s<>,;:\"()\[\]\\]{1,64}@[A-Za-z0-9.-]{1,190}")
_TIME = re.compile(r"([01]\d|2[0-4]):([0-5]\d)")
_DAY_MIN = 1440


@dataclass(frozen=True, slots=True)
class Contact:
    """Somebody who is told. `since` and `until` are times of day of the zone; both empty: always.

    `weekdays`: 0 is Monday; `digest`: wants what is open once a day, at seven.
    """

    name: str
    email: str
    severity: Severity
    time_zone: str = "UTC"
    weekdays: tuple[int, ...] = EVERY_DAY
    since: str = ""
    until: str = ""
    digest: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """A contact's row."""

    id: int
    ref: str
    organisation: int | None
    contact: Contact
    created_at: datetime


def hears_at(contact: Contact, *, now: datetime) -> datetime:
    """Return when somebody may be told: now, or when their hours begin next. Pure."""
    low, high = minutes_of(contact)
    zone = ZoneInfo(contact.time_zone)
    here = now.astimezone(zone)
    if low == high == 0:
        low, high = 0, _DAY_MIN
    for ahead in range(9):
        day = (here + timedelta(days=ahead - 1)).date()
        if day.weekday() not in contact.weekdays:
            continue
        midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
        begins = _wall(midnight, low)
        ends = _wall(midnight, high if high > low else high + _DAY_MIN)
        if now < ends:
            return max(now, begins.astimezone(now.tzinfo))
    return now  # of no weekday at all: refused when it is entered


def _wall(midnight: datetime, minute: int) -> datetime:
    """Return that minute by the wall clock of that day, or of the next."""
    day = midnight + timedelta(days=minute // _DAY_MIN)  # wall arithmetic within one zone
    return day.replace(hour=minute % _DAY_MIN // 60, minute=minute % 60)


def minutes_of(contact: Contact) -> tuple[int, int]:
    """Return the hours as minutes of the day. Raises FieldError."""
    if not contact.since and not contact.until:
        return 0, 0
    return _minute(contact.since, "since", most=_DAY_MIN - 1), _minute(
        contact.until, "until", most=_DAY_MIN
    )


def _minute(text: str, field: str, *, most: int) -> int:
    match = _TIME.fullmatch(text)
    found = -1 if match is None else int(match[1]) * 60 + int(match[2])
    if not 0 <= found <= most:
        raise FieldError(field, f"expected a time of day such as 07:30, got {text[:20]!r}")
    return found


def checked(wanted: Contact) -> Contact:
    """Return a contact that can be told. Raises FieldError."""
    name, email = checks.name(wanted.name), wanted.email.strip()
    if not _ADDRESS.fullmatch(email) or not email.isascii():
        raise FieldError("email", "expected an address such as noc@example.com")
    if not wanted.weekdays or not set(wanted.weekdays) <= set(EVERY_DAY):
        raise FieldError("weekdays", "expected some of 0 (Monday) to 6 (Sunday)")
    low, high = minutes_of(wanted)
    if low == high != 0:
        raise FieldError("until", "hours end at another time than they begin")
    zone = checks.time_zone(wanted.time_zone)
    days = tuple(sorted(set(wanted.weekdays)))
    return Contact(
        name, email, wanted.severity, zone, days, wanted.since, wanted.until, wanted.digest
    )


async def listed(
    connection: asyncpg.Connection, organisation: int | None, *, ref: str | None = None
) -> list[Known]:
    """Return an organisation's contacts (None: the platform's), in the order they were made."""
    rows = await connection.fetch(_LISTED, organisation, ref)
    return [_known(row) for row in rows]


async def all_of(connection: asyncpg.Connection) -> list[Known]:
    """Return everybody who wants a digest."""
    return [_known(row) for row in await connection.fetch(_DIGESTED)]


def _known(row: asyncpg.Record) -> Known:
    low, high = row["from_min"], row["until_min"]
    hours = ("", "") if low == high == 0 else (_text(low), _text(high))
    contact = Contact(
        *(row["name"], row["email"], Severity(row["severity"]), row["time_zone"]),
        *(tuple(row["weekdays"]), *hours, row["digest"]),
    )
    return Known(row["id"], row["ref"], row["organisation_id"], contact, row["created_at"])


def _text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


async def add(
    connection: asyncpg.Connection,
    organisation: int | None,
    wanted: Contact,
    *,
    actor: str,
    now: datetime,
) -> Known:
    """Add a contact. Raises FieldError, ConflictError at `MOST_CONTACTS`."""
    wanted = checked(wanted)
    if organisation is not None:
        await connection.execute("select from organisations where id = $1 for update", organisation)
    if len(await listed(connection, organisation)) >= MOST_CONTACTS:
        raise ConflictError(f"there are at most {MOST_CONTACTS} contacts")
    ref = new_ref("contact")
    await connection.execute(
        _ADDED,
        *(organisation, ref, wanted.name, wanted.email, wanted.severity.value, wanted.time_zone),
        *(list(wanted.weekdays), *minutes_of(wanted), wanted.digest, now),
    )
    await _record(connection, organisation, "contact added", ref, wanted.name, actor, now)
    return (await listed(connection, organisation, ref=ref))[0]


async def remove(
    connection: asyncpg.Connection,
    organisation: int | None,
    ref: str,
    *,
    actor: str,
    now: datetime,
) -> Known:
    """Forget a contact, and what was still to be told. Raises NotFoundError."""
    found: Sequence[Known] = await listed(connection, organisation, ref=ref)
    if not found:
        raise NotFoundError("there is nothing of this name")
    await connection.execute("delete from health_contacts where id = $1", found[0].id)
    await _record(
        connection, organisation, "contact removed", ref, found[0].contact.name, actor, now
    )
    return found[0]


async def _record(
    connection: asyncpg.Connection,
    organisation: int | None,
    act: str,
    ref: str,
    name: str,
    actor: str,
    now: datetime,
) -> None:
    await record(
        connection,
        actor=actor,
        act=act,
        subject=ref,
        detail={"name": name},
        organisation=organisation,
        now=now,
    )


_COLUMNS = """
    select id, ref, organisation_id, name, email, severity, time_zone, weekdays, from_min,
        until_min, digest, created_at from health_contacts
"""
_LISTED = f"""
    {_COLUMNS} where organisation_id is not distinct from $1 and ($2::text is null or ref = $2)
    order by id
"""
_DIGESTED = f"{_COLUMNS} where digest order by id"
_ADDED = """
    insert into health_contacts (organisation_id, ref, name, email, severity, time_zone, weekdays,
        from_min, until_min, digest, created_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
