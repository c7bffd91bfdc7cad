"""The log of decisions: why somebody was told, and why nobody was. One row for each that is new.

Who decides, or does anything about incidents, holds one lock first (`hold`): so nobody waits for
another's rows in another order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import asyncpg

_LOCK = 0x6570_6973  # "epis"


async def hold(connection: asyncpg.Connection) -> None:
    """Wait until nobody else decides; held until the transaction ends."""
    await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided of an incident, why, until when; `about`: a contact, window or incident."""

    at: datetime
    decision: str
    why: str
    about: str
    until: datetime | None
    detail: Mapping[str, object]


WORDS: Mapping[str, str] = {
    "new": "It is told for the first time.",
    "changed": "What belongs to it has changed since the last message.",
    "still_open": "It is still open, so it is told again.",
    "all_clear": "All of it is clear again.",
    "cleared_untold": "It was clear again before anybody was to be told.",
    "platform_unknown": "Nobody can tell how devices are just now; see the platform's incident.",
    "inhibited": "Something above it explains it, and that is told instead.",
    "closed": "The site is closed, and this is told in its opening hours.",
    "maintenance": "There is maintenance, and it ends by itself.",
    "visit": "Somebody is there.",
    "acknowledged": "Somebody sees to it.",
    "wait": "It waits a little, in case it clears or turns out to be part of something larger.",
    "interval": "The last message is fresh; changes are collected.",
    "repeat": "It was told, and is told again if it lasts.",
    "no_longer_explained": "What explained it is over, and it is not: it has its time anew.",
    "severity": "The rules tell nobody at once of what is no worse.",
    "no_contact": "No contact wants to hear of this severity.",
    "contact_hours": "It is outside the contact's hours.",
    "contact": "The contact wants to hear of it.",
    "feed": "It is in the feed of changes, and told to webhooks.",
    "over_before": "It was over before the contact's hours began.",
    "by_person": "Somebody did so.",
}
"""Each reason in words."""


async def note(
    connection: asyncpg.Connection,
    incident: int,
    decision: str,
    why: str,
    *,
    organisation: int | None,
    about: str = "",
    until: datetime | None = None,
    detail: Mapping[str, object] | None = None,
    now: datetime,
) -> None:
    """Write a decision down."""
    if why not in WORDS:
        raise ValueError(f"no reason {why!r}")
    await connection.execute(
        _NOTED,
        *(organisation, incident, now, decision, why, about, until, json.dumps(detail or {})),
    )


async def of_incident(connection: asyncpg.Connection, incident: int) -> list[Decision]:
    """Return what was decided of an incident, in order."""
    return [
        Decision(
            *(row["at"], row["decision"], row["why"], row["about"], row["until"]),
            detail=json.loads(row["detail"]),
        )
        for row in await connection.fetch(_OF, incident)
    ]


_NOTED = """
    insert into incident_decisions (organisation_id, incident_id, at, decision, why, about, until,
        detail)
    values ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb)
"""
_OF = """
    select at, decision, why, about, until, detail::text as detail from incident_decisions
    where incident_id = $1 order by id
"""
