"""What pages and the API ask of health: states with why, one device's timeline, metrics as series.

On connections that see one organisation (the API's, or the desk's acting in one).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.errors import NotFoundError
from server.health.platform import Cause
from server.health.presence import Presence, State
from server.health.rows import COLUMNS, presence_of
from server.health.why import why

POINTS = 500
"""The most points of a series that a chart is given; more are put together."""


@dataclass(frozen=True, slots=True)
class PlatformNow:
    """Whether anybody can tell: why not and since when, if not; how far everything is stored."""

    unknown: tuple[Cause, datetime] | None
    watermark: datetime | None


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device: who it is, where it stands, and its presence with the sentence that explains it.

    `last_stored`: when its latest frame was stored, which is younger than the presence of one that
    is healthy.
    """

    device: str
    row: int
    kind: str
    model: str
    serial: str
    lifecycle: str
    site: str | None
    site_name: str | None
    spot: str | None
    spot_name: str | None
    presence: Presence
    agent: str
    last_stored: datetime | None
    why: str


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to a device; `number` is its place in the timeline."""

    number: int
    at: datetime
    kind: str
    state: str
    reason: str
    detail: Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's values in one stretch: their mean, least and most."""

    at: datetime
    mean: float
    least: float
    most: float


async def platform(connection: asyncpg.Connection) -> PlatformNow:
    """Return whether anybody can tell how devices are."""
    row = await connection.fetchrow(
        "select (select watermark from platform) as watermark, u.cause, u.since "
        "from (values (1)) one left join platform_unknown u on u.until is null"
    )
    unknown = None if row["cause"] is None else (Cause(row["cause"]), row["since"])
    return PlatformNow(unknown, row["watermark"])


async def states(
    connection: asyncpg.Connection,
    *,
    now: datetime,
    after: str = "",
    limit: int = 1_000,
    wanted: Sequence[State] = (),
    sites: Sequence[str] = (),
) -> list[DeviceState]:
    """Return up to `limit` devices whose id follows `after`; of some states or sites alone."""
    current = await platform(connection)
    rows = await connection.fetch(
        f"{_STATES} and d.device > $2 and ($3::text[] is null or p.state = any($3)) "
        "and ($4::text[] is null or si.ref = any($4)) order by d.device limit $5",
        now,
        after,
        [state.value for state in wanted] or None,
        list(sites) or None,
        limit,
    )
    return [_state(row, current, now) for row in rows]


async def find(connection: asyncpg.Connection, device: str, *, now: datetime) -> DeviceState:
    """Return one device. Raises NotFoundError."""
    row = await connection.fetchrow(f"{_STATES} and d.device = $2", now, device)
    if row is None:
        raise NotFoundError(f"no device {device!r}")
    return _state(row, await platform(connection), now)


async def counts(connection: asyncpg.Connection) -> dict[State, int]:
    """Return how many devices are in each state; those that are returned or retired in none."""
    rows = await connection.fetch(
        "select p.state, count(*) as n from presences p join devices d on d.id = p.device_id "
        "where d.organisation_id = current_organisation() "
        "and d.state not in ('returned', 'retired') group by p.state"
    )
    found = {row["state"]: row["n"] for row in rows}
    return {state: found.get(state.value, 0) for state in State}


async def timeline(
    connection: asyncpg.Connection, device: str, *, before: int | None = None, limit: int = 200
) -> list[Happening]:
    """Return what happened to a device, the latest first; `before`: the last number of a page.

    Raises NotFoundError.
    """
    row = await _row_of(connection, device)
    rows = await connection.fetch(
        "select id, at, kind, state, reason, detail from device_events where device_id = $1 "
        "and organisation_id = current_organisation() and ($2::bigint is null or id < $2) "
        "order by id desc limit $3",
        *(row, before, limit),
    )
    return [
        Happening(r["id"], r["at"], r["kind"], r["state"], r["reason"], json.loads(r["detail"]))
        for r in rows
    ]


async def metric_names(connection: asyncpg.Connection, device: str, since: datetime) -> list[str]:
    """Return the metrics that a device has sent since. Raises NotFoundError."""
    row = await _row_of(connection, device)
    rows = await connection.fetch(
        "select distinct name from my_device_metrics where device = $1 and time >= $2 order by 1",
        *(row, since),
    )
    return [each["name"] for each in rows]


async def series(
    connection: asyncpg.Connection,
    device: str,
    names: Sequence[str],
    *,
    since: datetime,
    until: datetime,
    points: int = POINTS,
) -> dict[str, list[Point]]:
    """Return a device's metrics in [since, until), each in at most `points` equal stretches.

    Stretches without a value are left out. Raises NotFoundError; ValueError if it ends before
    it begins.
    """
    if until <= since or points < 1:
        raise ValueError(f"expected a stretch of time, got {since} to {until}")
    row = await _row_of(connection, device)
    found: dict[str, list[Point]] = {name: [] for name in names}
    for name, at, mean, least, most in await connection.fetch(
        _SERIES, row, list(names), since, until, (until - since) / points
    ):
        found[name].append(Point(at, mean, least, most))
    return found


async def _row_of(connection: asyncpg.Connection, device: str) -> int:
    row: int | None = await connection.fetchval(
        "select id from devices where device = $1 and organisation_id = current_organisation()",
        device,
    )
    if row is None:
        raise NotFoundError(f"no device {device!r}")
    return row


def _state(row: asyncpg.Record, current: PlatformNow, now: datetime) -> DeviceState:
    presence = presence_of(row)
    return DeviceState(
        row["device"],
        row["device_id"],
        row["kind"],
        row["model"],
        row["serial"],
        row["lifecycle"],
        row["site"],
        row["site_name"],
        row["spot"],
        row["spot_name"],
        presence,
        row["agent"],
        row["last_stored"],
        why(presence, now=now, unknown=current.unknown),
    )


_STATES = f"""
    select d.device, p.device_id, d.kind, d.model, d.serial, d.state as lifecycle, p.agent,
           si.ref as site, si.name as site_name, sp.ref as spot, sp.name as spot_name,
           b.last_stored, {COLUMNS}
    from presences p join devices d on d.id = p.device_id
    left join assignments a on a.device_id = d.id and a.valid @> $1::timestamptz
    left join spots sp on sp.id = a.spot_id left join sites si on si.id = sp.site_id
    left join lateral (
        select max(last_stored) as last_stored from my_boots where device_id = d.id
    ) b on true
    where d.organisation_id = current_organisation()
"""  # noqa: S608 - columns of ours
_SERIES = """
    select name, $3::timestamptz + $5::interval
               * floor(extract(epoch from time - $3) / extract(epoch from $5::interval)) as at,
           avg(value), min(value), max(value)
    from my_device_metrics
    where device = $1 and name = any($2::text[]) and time >= $3 and time < $4
    group by 1, 2 order by 1, 2
"""
