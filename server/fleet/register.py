"""Create and change the fleet's register. Every change that ingest must know is notified.

All functions act within the caller's transaction, on a connection of the owner or of ingest.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import asyncpg

from protocol.identity import DeviceId, device_id
from server.errors import ConflictError, NotFoundError, RefusedError

CHANGED = "fleet_changed"
"""The channel that carries a device's id after a change that concerns its frames."""

_REF_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # no 0/o, 1/l/i


@dataclass(frozen=True, slots=True)
class Hours:
    """Opening hours of one weekday (0 Monday); minutes after local midnight, may pass 1440."""

    weekday: int
    opens: int
    closes: int


class Recorder(Protocol):
    """Audits an act: `server.audit.log.record`, or what puts it off to the transaction's end."""

    async def __call__(
        self,
        connection: asyncpg.Connection,
        *,
        actor: str,
        act: str,
        subject: str,
        detail: Mapping[str, object],
        organisation: int,
        now: datetime,
    ) -> None: ...


def new_ref(prefix: str) -> str:
    """Return a fresh public name such as `site-7k2m9qxw`; 8 characters of 31."""
    return f"{prefix}-" + "".join(secrets.choice(_REF_ALPHABET) for _ in range(8))


def new_device_id(kind: str) -> DeviceId:
    """Return a fresh device id; `dc-` for door counters, `fk-` for feedback kiosks."""
    prefix = {"counter": "dc", "kiosk": "fk"}[kind]
    return device_id(f"{prefix}-" + "".join(secrets.choice(_REF_ALPHABET) for _ in range(12)))


async def lock_organisation(connection: asyncpg.Connection, organisation: int) -> None:
    """Be the only one to edit this organisation's register: the first lock of each edit.

    Then come sites, and what they have; the audit's chain is last. So nobody crosses anybody.
    """
    await connection.execute(
        "select from organisations where id = $1 for no key update", organisation
    )


async def add_organisation(connection: asyncpg.Connection, name: str) -> int:
    """Return the row id of the organisation of this name, made if it is new."""
    if not name.strip():
        raise RefusedError("no_name", "an organisation needs a name")
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32]
    await connection.execute(
        "insert into organisations (ref, name) values ($1, $2) on conflict (name) do nothing",
        new_ref(readable or "org"),
        name,
    )
    found: int = await connection.fetchval("select id from organisations where name = $1", name)
    return found


async def add_site(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    name: str,
    time_zone: str,
    currency: str = "EUR",
    ref: str = "",
    hours: Sequence[Hours] = (),
) -> int:
    """Create a site and return its row id. No hours: it never closes."""
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise RefusedError("unknown_time_zone", f"no time zone {time_zone!r}") from error
    try:
        site: int = await connection.fetchval(
            "insert into sites (organisation_id, ref, name, time_zone, currency) "
            "values ($1, $2, $3, $4, $5) returning id",
            organisation,
            ref or new_ref("site"),
            name,
            time_zone,
            currency,
        )
    except asyncpg.UniqueViolationError as error:
        raise ConflictError(f"a site {ref!r} is already there") from error
    await connection.executemany(
        "insert into opening_hours (organisation_id, site_id, weekday, opens, closes) "
        "values ($1, $2, $3, $4, $5)",
        [(organisation, site, h.weekday, h.opens, h.closes) for h in hours],
    )
    return site


async def add_spot(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    site: int,
    name: str,
    kind: str,
    door: str = "",
    ref: str = "",
) -> int:
    """Create a spot (and its door, if named) at a site; return the spot's row id."""
    door_id = None
    if door:
        door_id = await connection.fetchval(
            "insert into doors (organisation_id, site_id, ref, name) values ($1, $2, $3, $4) "
            "returning id",
            organisation,
            site,
            new_ref("door"),
            door,
        )
    spot: int = await connection.fetchval(
        "insert into spots (organisation_id, site_id, door_id, ref, name, kind) "
        "values ($1, $2, $3, $4, $5, $6) returning id",
        organisation,
        site,
        door_id,
        ref or new_ref("spot"),
        name,
        kind,
    )
    return spot


async def add_device(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    kind: str,
    serial: str = "",
    model: str = "",
    device: str = "",
) -> tuple[int, DeviceId]:
    """Create a device that may be claimed; return its row id and its id."""
    name = device_id(device) if device else new_device_id(kind)
    try:
        row: int = await connection.fetchval(
            "insert into devices (organisation_id, device, kind, serial, model) "
            "values ($1, $2, $3, $4, $5) returning id",
            organisation,
            name,
            kind,
            serial,
            model,
        )
    except asyncpg.UniqueViolationError as error:
        raise ConflictError(f"a device {name!r} is already there") from error
    return row, name


async def assign(
    connection: asyncpg.Connection, *, device: str, spot: str, since: datetime
) -> set[int]:
    """Let `device` stand at `spot` from `since` on; what stood there or where it stood, ends.

    Returns the rows of all devices that moved; what they have counted already is moved by
    `server.ingest.reassign.reassign`, which is what callers want. Raises NotFoundError,
    RefusedError (another organisation, another kind of device), ConflictError.
    """
    row = await connection.fetchrow(
        "select d.id as device, d.organisation_id, d.kind = s.kind as fits, s.id as spot, "
        "d.organisation_id = s.organisation_id as own "
        "from devices d, spots s where d.device = $1 and s.ref = $2 for update of d, s",
        device,
        spot,
    )
    if row is None:
        raise NotFoundError(f"no device {device!r} or no spot {spot!r}")
    if not row["own"]:
        raise RefusedError("other_organisation", "device and spot are of two organisations")
    if not row["fits"]:
        raise RefusedError("wrong_kind", f"{device} is not the kind of device that {spot} takes")
    ended = await connection.fetch(
        "update assignments a set valid = tstzrange(lower(valid), $3) from devices d "
        "where d.id = a.device_id and (a.device_id = $1 or a.spot_id = $2) "
        "and upper_inf(valid) and coalesce(lower(valid), '-infinity') < $3 "
        "returning d.id, d.device",
        row["device"],
        row["spot"],
        since,
    )
    try:
        await connection.execute(
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "values ($1, $2, $3, tstzrange($4, null))",
            row["organisation_id"],
            row["device"],
            row["spot"],
            since,
        )
    except asyncpg.ExclusionViolationError as error:
        raise ConflictError(f"{device} or {spot} is taken at some time after {since}") from error
    for changed in {device, *(r["device"] for r in ended)}:
        await notify(connection, changed)
    return {row["device"], *(r["id"] for r in ended)}


async def vacate(connection: asyncpg.Connection, device: int, *, since: datetime) -> None:
    """End the stay of a device (its row) from `since` on: its spot is free.

    What it counted after that is moved by `server.ingest.reassign.settle`.
    """
    await connection.execute(
        "update assignments set valid = tstzrange(lower(valid), $2) where device_id = $1 "
        "and upper_inf(valid) and coalesce(lower(valid), '-infinity') < $2",
        device,
        since,
    )


async def grant_backfill(
    connection: asyncpg.Connection,
    *,
    spot: str,
    since: datetime,
    until: datetime,
    reason: str,
    granted_by: str,
) -> None:
    """Let `spot` take counts of [since, until) however old they are; they count as import."""
    row = await connection.fetchrow("select id, organisation_id from spots where ref = $1", spot)
    if row is None:
        raise NotFoundError(f"no spot {spot!r}")
    await connection.execute(
        "insert into backfill_grants (organisation_id, spot_id, valid, reason, granted_by) "
        "values ($1, $2, tstzrange($3, $4), $5, $6)",
        row["organisation_id"],
        row["id"],
        since,
        until,
        reason,
        granted_by,
    )
    for device in await connection.fetch(
        "select distinct d.device from assignments a join devices d on d.id = a.device_id "
        "where a.spot_id = $1",
        row["id"],
    ):
        await notify(connection, device["device"])


async def calibrate(
    connection: asyncpg.Connection,
    *,
    spot: str,
    line: int,
    reversed_: bool,
    factor: float,
    since: datetime | None,
    reason: str,
) -> None:
    """State how `line` of `spot` is to be read from `since` (None: always)."""
    row = await connection.fetchrow("select id, organisation_id from spots where ref = $1", spot)
    if row is None:
        raise NotFoundError(f"no spot {spot!r}")
    await connection.execute(
        "update calibrations set valid = tstzrange(lower(valid), $3) where spot_id = $1 "
        "and line = $2 and upper_inf(valid) and coalesce(lower(valid), '-infinity') < $3",
        row["id"],
        line,
        since,
    )
    await connection.execute(
        "insert into calibrations (organisation_id, spot_id, line, valid, reversed, factor, reason)"
        " values ($1, $2, $3, tstzrange($4, null), $5, $6::float8::numeric(6,4), $7)",
        row["organisation_id"],
        row["id"],
        line,
        since,
        reversed_,
        factor,
        reason,
    )


async def notify(connection: asyncpg.Connection, device: str) -> None:
    """Tell ingest, after commit, that what it knows of `device` is old."""
    await connection.execute("select pg_notify($1, $2)", CHANGED, device)
