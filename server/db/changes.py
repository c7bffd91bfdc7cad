"""The feed of changes: noted in the transaction that changes something, told in its order.

Invariants:
- A change is noted in the transaction that makes it: there is none without the other.
- The order is that of the transactions' numbers. A reader stops before the oldest transaction that
  is open anywhere (`pg_snapshot_xmin`), so what it has passed is decided, and nothing appears
  behind it; a transaction left open for long therefore holds the feed up, and never breaks it.
- A place in the feed belongs to one dataset. A restore begins another: numbers may then be given
  again, so places of the old one are refused (`DatasetChangedError`), and its changes not told.
- Changes are kept for `KEPT`. Who comes back later has missed some, and is told so
  (`PlaceExpiredError`) rather than left to believe that nothing happened.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg
import msgspec

from server.errors import RefusedError, VestibuleError

KEPT = timedelta(days=90)
_GRACE = timedelta(hours=12)
PURGED = KEPT + 2 * _GRACE
"""Purged later than promised: who reads page by page is not cut off, and a transaction may have
begun long before it committed."""


class Kind(StrEnum):
    """What happened."""

    BUCKET_REVISED = "bucket.revised"
    GAP_OPENED = "gap.opened"
    GAP_FILLED = "gap.filled"
    ALERT_RAISED = "alert.raised"
    ALERT_CLOSED = "alert.closed"
    INCIDENT_OPENED = "incident.opened"
    INCIDENT_UPDATED = "incident.updated"
    INCIDENT_RESOLVED = "incident.resolved"


class Counted(msgspec.Struct, frozen=True):
    """A spot's local day, calibrated; null: not known, or calibrated anew within that day."""

    revision: int
    visits: float | None = None
    exits: float | None = None
    presses: int | None = None


class Revised(msgspec.Struct, frozen=True):
    """Late data changed buckets of `day` in [from, until) that were complete: before and after."""

    day: str
    since: str = msgspec.field(name="from")
    until: str
    old: Counted
    new: Counted


class GapNote(msgspec.Struct, frozen=True):
    """A gap, as `/v1/gaps` has it."""

    gap: int
    reason: str
    since: str | None = msgspec.field(name="from", default=None)
    until: str | None = None


class AlertNote(msgspec.Struct, frozen=True):
    """An alert; `outcome` is empty while it is open."""

    alert: str
    cause: str
    raised_at: str
    outcome: str = ""


class IncidentNote(msgspec.Struct, frozen=True):
    """An incident as it was told: the `step`-th message of it, `told` as the first, a change, again
    (repeated) or resolved. `root` is what is wrong, `devices` how many are concerned; `stake`:
    people who would not be counted today.
    """

    incident: str
    step: int
    told: str
    condition: str
    severity: str
    root: str
    since: str
    devices: int
    cause: str
    remedy: str
    stake: float = 0.0


Detail = Revised | GapNote | AlertNote | IncidentNote
_DETAILS: dict[Kind, type[Detail]] = {
    Kind.BUCKET_REVISED: Revised,
    Kind.GAP_OPENED: GapNote,
    Kind.GAP_FILLED: GapNote,
    Kind.ALERT_RAISED: AlertNote,
    Kind.ALERT_CLOSED: AlertNote,
    Kind.INCIDENT_OPENED: IncidentNote,
    Kind.INCIDENT_UPDATED: IncidentNote,
    Kind.INCIDENT_RESOLVED: IncidentNote,
}


class DatasetChangedError(VestibuleError):
    """A place in the feed of another dataset: what follows it was lost, or may differ."""

    code = "dataset_changed"


class PlaceExpiredError(VestibuleError):
    """A place in the feed that is older than the feed."""

    code = "cursor_expired"


class BadPlaceError(RefusedError):
    """No place in the feed."""

    parameter = "cursor"

    def __init__(self) -> None:
        super().__init__("bad_cursor", "this is no cursor of the feed of changes")


class Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in the feed: behind the change `id` of transaction `xid`, as of `seen_s`."""

    dataset: int
    xid: int
    id: int
    seen_s: int

    def text(self) -> str:
        """Return it as an opaque cursor."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")


def place_of(text: str) -> Place:
    """Return the place that a cursor names. Raises BadPlaceError."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        found = msgspec.json.decode(raw, type=Place)
    except (ValueError, binascii.Error, msgspec.MsgspecError) as error:
        raise BadPlaceError from error
    if not all(0 <= each < 1 << 63 for each in (found.dataset, found.xid, found.id, found.seen_s)):
        raise BadPlaceError
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened; `id` is its number for ever, by which repeats are known."""

    id: int
    kind: Kind
    at: datetime
    site: str | None
    spot: str | None
    detail: Detail


@dataclass(frozen=True, slots=True)
class Told:
    """Changes in order, the place behind them, and whether there are more already."""

    changes: list[Change]
    place: Place
    more: bool


async def note_change(
    connection: asyncpg.Connection,
    kind: Kind,
    *,
    organisation: int,
    site: int | None = None,
    spot: int | None = None,
    detail: Detail,
    now: datetime,
) -> None:
    """Note a change within the caller's transaction. `site` and `spot` are rows."""
    if not isinstance(detail, _DETAILS[kind]):
        raise TypeError(f"{kind} has a {_DETAILS[kind].__name__}, not {detail!r}")
    await connection.execute(
        "insert into changes (organisation_id, at, kind, site_id, spot_id, detail) "
        "values ($1, $2, $3, $4, $5, $6::text::jsonb)",
        *(organisation, now, kind.value, site, spot, msgspec.json.encode(detail).decode()),
    )


async def place_now(connection: asyncpg.Connection, *, now: datetime) -> Place:
    """Return the place from which all is told that is not decided yet."""
    row = await connection.fetchrow(_NOW)
    return Place(row["dataset"], row["xmin"], 0, int(now.timestamp()))


async def place_first(connection: asyncpg.Connection, *, now: datetime) -> Place:
    """Return the place before all that is kept."""
    row = await connection.fetchrow(_NOW)
    return Place(row["dataset"], 0, 0, int(now.timestamp()))


async def changes_after(
    connection: asyncpg.Connection,
    place: Place,
    *,
    organisation: int,
    kinds: Sequence[Kind] = (),
    limit: int,
    now: datetime,
) -> Told:
    """Return an organisation's changes behind `place`, on one snapshot (repeatable read).

    Raises DatasetChangedError, PlaceExpiredError.
    """
    end = await place_now(connection, now=now)
    if place.dataset != end.dataset:
        raise DatasetChangedError(
            "the database was restored since: read the numbers anew, then follow without a cursor"
        )
    if place.seen_s < (now - KEPT - _GRACE).timestamp():
        raise PlaceExpiredError(f"changes are kept for {KEPT.days} days, and some are gone")
    rows = await connection.fetch(
        _AFTER,
        *(organisation, end.dataset, place.xid, place.id, end.xid),
        *([kind.value for kind in kinds] or None, limit + 1, now - KEPT),
    )
    more, rows = len(rows) > limit, rows[:limit]
    found = [_change(row) for row in rows]
    if more:
        last = rows[-1]
        return Told(
            found, Place(end.dataset, last["xid"], last["id"], int(last["at"].timestamp())), True
        )
    xid, number = max((place.xid, place.id), (end.xid, end.id))
    return Told(found, Place(end.dataset, xid, number, end.seen_s), False)


async def changes_of(connection: asyncpg.Connection, ids: Sequence[int]) -> dict[int, Change]:
    """Return changes by their numbers."""
    return {row["id"]: _change(row) for row in await connection.fetch(_OF, ids)}


def _change(row: asyncpg.Record) -> Change:
    kind = Kind(row["kind"])
    detail = msgspec.json.decode(row["detail"], type=_DETAILS[kind])
    return Change(row["id"], kind, row["at"], row["site"], row["spot"], detail)


_NOW = """
    select id as dataset, pg_snapshot_xmin(pg_current_snapshot())::text::bigint as xmin
    from dataset
"""
_OF = """
    select c.id, c.at, c.kind, s.ref as site, p.ref as spot, c.detail::text as detail
    from changes c left join sites s on s.id = c.site_id left join spots p on p.id = c.spot_id
    where c.id = any($1::bigint[])
"""
_AFTER = """
    select c.id, c.xid, c.at, c.kind, s.ref as site, p.ref as spot, c.detail::text as detail
    from changes c left join sites s on s.id = c.site_id left join spots p on p.id = c.spot_id
    where c.organisation_id = $1 and c.dataset = $2 and (c.xid, c.id) > ($3, $4) and c.xid < $5
      and ($6::text[] is null or c.kind = any($6)) and (c.at >= $8 or $3 > 0)
    order by c.xid, c.id limit $7
"""
