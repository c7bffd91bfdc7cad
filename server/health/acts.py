"""What people do about incidents: see to them, say who does and by when, and comment. Audited.

An acknowledgement binds to the episodes that are open now, until each resolves or it comes due; one
that opens later is told as a new one is. An incident that is over takes comments alone.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError
from server.health.decisions import hold, note

MOST_WORDS = 2_000
MOST_DUE = timedelta(days=90)


class OverError(ConflictError):
    """The incident is over: there is nothing to see to."""

    code = "incident_over"


@dataclass(frozen=True, slots=True)
class Comment:
    """What somebody said of an incident."""

    id: int
    at: datetime
    author: str
    words: str


@dataclass(frozen=True, slots=True)
class _Locked:
    id: int
    state: str


async def acknowledge(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    until: datetime | None,
    actor: str,
    now: datetime,
) -> int:
    """See to what is open of an incident; return how many episodes that is.

    Raises NotFoundError, OverError, FieldError.
    """
    known = await _open(connection, organisation, ref)
    if until is not None:
        _demand_ahead(until, "until", now=now)
    done = await connection.execute(_ACKNOWLEDGED, known.id, actor, now, until)
    await connection.execute(
        "update incidents set owner = case when owner = '' then $2 else owner end, look_at = $3 "
        "where id = $1",
        *(known.id, actor, now),
    )
    detail = {"until": None if until is None else until.isoformat()}
    await _noted(connection, organisation, known, ref, "acknowledged", detail, actor, now, until)
    return int(done.rpartition(" ")[2])


async def withdraw(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> None:
    """See to an incident no longer: what is open is told again."""
    known = await _open(connection, organisation, ref)
    await connection.execute(_WITHDRAWN, known.id)
    await connection.execute("update incidents set look_at = $2 where id = $1", known.id, now)
    await _noted(connection, organisation, known, ref, "withdrawn", {}, actor, now)


async def assign(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    owner: str,
    *,
    actor: str,
    now: datetime,
) -> None:
    """Say who sees to an incident; an empty text: nobody does."""
    owner = checks.line(owner, "owner")
    if len(owner) > checks.MOST_NAME:
        raise FieldError("owner", f"expected at most {checks.MOST_NAME} characters")
    known = await _open(connection, organisation, ref)
    await connection.execute("update incidents set owner = $2 where id = $1", known.id, owner)
    await _noted(connection, organisation, known, ref, "assigned", {"owner": owner}, actor, now)


async def set_due(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    due_at: datetime | None,
    *,
    actor: str,
    now: datetime,
) -> None:
    """Say by when an incident is to be over."""
    known = await _open(connection, organisation, ref)
    if due_at is not None:
        _demand_ahead(due_at, "due_at", now=now)
    await connection.execute("update incidents set due_at = $2 where id = $1", known.id, due_at)
    detail = {"due_at": None if due_at is None else due_at.isoformat()}
    await _noted(connection, organisation, known, ref, "due", detail, actor, now)


async def comment(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    words: str,
    *,
    actor: str,
    now: datetime,
) -> Comment:
    """Say something of an incident."""
    words = words.strip()
    if not 0 < len(words) <= MOST_WORDS or "\0" in words:
        raise FieldError("words", f"expected 1 to {MOST_WORDS} characters")
    known = await _locked(connection, organisation, ref)
    number = await connection.fetchval(_COMMENTED, organisation, known.id, now, actor, words)
    await record(
        connection,
        actor=actor,
        act="incident commented",
        subject=ref,
        organisation=organisation,
        now=now,
    )
    return Comment(number, now, actor, words)


async def comments(connection: asyncpg.Connection, incident: int) -> list[Comment]:
    """Return what was said of an incident, in order."""
    rows = await connection.fetch(
        "select id, at, author, words from incident_comments where incident_id = $1 order by id",
        incident,
    )
    return [Comment(*row.values()) for row in rows]


def _demand_ahead(instant: datetime, field: str, *, now: datetime) -> None:
    if not now < instant <= now + MOST_DUE:
        raise FieldError(field, f"expected an instant of the next {MOST_DUE.days} days")


async def _locked(connection: asyncpg.Connection, organisation: int, ref: str) -> _Locked:
    await hold(connection)
    row = await connection.fetchrow(
        "select id, state from incidents where organisation_id = $1 and ref = $2 for update",
        *(organisation, ref),
    )
    if row is None:
        raise NotFoundError("there is nothing of this name")
    return _Locked(*row.values())


async def _open(connection: asyncpg.Connection, organisation: int, ref: str) -> _Locked:
    found = await _locked(connection, organisation, ref)
    if found.state != "open":
        raise OverError(f"{ref} is over")
    return found


async def _noted(
    connection: asyncpg.Connection,
    organisation: int,
    known: _Locked,
    ref: str,
    what: str,
    detail: dict[str, str | None],
    actor: str,
    now: datetime,
    until: datetime | None = None,
) -> None:
    """Write it into the incident's own log and into the audit."""
    await note(
        *(connection, known.id, what, "by_person"),
        organisation=organisation,
        about=actor,
        until=until,
        detail=detail,
        now=now,
    )
    await record(
        connection,
        actor=actor,
        act=_AUDITED[what],
        subject=ref,
        detail=detail,
        organisation=organisation,
        now=now,
    )


_AUDITED = {
    "acknowledged": "incident acknowledged",
    "withdrawn": "acknowledgement withdrawn",
    "assigned": "incident assigned",
    "due": "incident's due time set",
}
_ACKNOWLEDGED = """
    update episodes set acknowledged_by = $2, acknowledged_at = $3, acknowledged_until = $4
    where incident_id = $1 and resolved_at is null
"""
_WITHDRAWN = """
    update episodes set acknowledged_by = '', acknowledged_at = null, acknowledged_until = null
    where incident_id = $1 and resolved_at is null
"""
_COMMENTED = """
    insert into incident_comments (organisation_id, incident_id, at, author, words)
    values ($1, $2, $3, $4, $5) returning id
"""
