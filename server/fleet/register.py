"""What every edit of the register needs, devices, and where they stand.

Organisations, sites, doors and spots have modules of their own. Every change that ingest must know
is notified. All functions act within the caller's transaction; those of devices and assignments on
a connection of the owner or of ingest.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypedDict, TypeVar

import asyncpg

from protocol.identity import DeviceId, device_id
from server.audit.log import record
from server.errors import ConflictError, NotFoundError, RefusedError
from server.fleet import checks
from server.fleet.checks import FieldError, Known, changes, contents

T = TypeVar("T")

CHANGED = "fleet_changed"
"""The channel that carries a device's id after a change that concerns its frames."""

_REF_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # no 0/o, 1/l/i
_PREFIXES = {"counter": "dc", "kiosk": "fk"}


class Recorder(Protocol):
    """Audits an act: `server.audit.log.record`, or `Later`."""

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


@dataclass(slots=True)
class Later:
    """Puts audits off: who does many acts at once takes the chains last, and for a moment only."""

    _acts: list[tuple[int, str, str, str, Mapping[str, object], datetime]] = field(
        default_factory=list
    )

    def __len__(self) -> int:
        return len(self._acts)

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
    ) -> None:
        self._acts.append((organisation, actor, act, subject, detail, now))

    def forget(self, since: int) -> None:
        """Drop what was put off since `len` was this: it was rolled back."""
        del self._acts[since:]

    async def write(self, connection: asyncpg.Connection) -> None:
        """Audit it all in its order, one organisation after another."""
        held = 0
        for organisation, actor, act, subject, detail, now in sorted(
            self._acts, key=lambda one: one[0]
        ):
            await record(
                connection,
                actor=actor,
                act=act,
                subject=subject,
                detail=detail,
                organisation=organisation,
                now=now,
                held=organisation == held,
            )
            held = organisation
        self._acts.clear()


class By(TypedDict):
    """Who acts, when, and how it is audited: what every edit is given."""

    actor: str
    now: datetime
    noted: Recorder


async def added(
    connection: asyncpg.Connection,
    organisation: int,
    act: str,
    made: Known[T],
    *,
    by: By,
    within: Mapping[str, str] | None = None,
) -> Known[T]:
    """Audit that a thing was added, with all it says and what it is `within`; return it."""
    await by["noted"](
        connection,
        actor=by["actor"],
        act=act,
        subject=made.ref,
        detail={**(within or {}), **contents(made.facts)},
        organisation=organisation,
        now=by["now"],
    )
    return made


async def changed(
    connection: asyncpg.Connection,
    organisation: int,
    act: str,
    before: Known[T],
    facts: T,
    *,
    by: By,
) -> Known[T]:
    """Audit that a thing was changed, with what differs; return it as it is now."""
    await by["noted"](
        connection,
        actor=by["actor"],
        act=act,
        subject=before.ref,
        detail=changes(before.facts, facts),
        organisation=organisation,
        now=by["now"],
    )
    return Known(before.id, before.ref, facts)


def new_ref(prefix: str) -> str:
    """Return a fresh public name such as `site-7k2m9qxw`; 8 characters of 31."""
    return f"{prefix}-" + "".join(secrets.choice(_REF_ALPHABET) for _ in range(8))


def new_device_id(kind: str) -> DeviceId:
    """Return a fresh device id; `dc-` for door counters, `fk-` for feedback kiosks."""
    return device_id(
        f"{_PREFIXES[kind]}-" + "".join(secrets.choice(_REF_ALPHABET) for _ in range(12))
    )


async def lock_organisation(connection: asyncpg.Connection, organisation: int) -> None:
    """Be the only one to edit this organisation's register: the first lock of each edit.

    Then come sites, and what they have; the audit's chain is last. So nobody crosses anybody.
    """
    await connection.execute(
        "select from organisations where id = $1 for no key update", organisation
    )


async def named_row(
    connection: asyncpg.Connection, organisation: int, table: str, ref: str, *, field: str
) -> int:
    """Return the row of what a `field` of somebody's names. Raises FieldError."""
    found: int | None = await connection.fetchval(
        f"select id from {table} where organisation_id = $1 and ref = $2",  # noqa: S608 - ours
        *(organisation, ref.replace("\0", "")),
    )
    if found is None:
        raise FieldError(field, f"no {field} {ref[:40]!r}")
    return found


async def add_device(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    kind: str,
    serial: str = "",
    model: str = "",
    device: str = "",
    actor: str,
    now: datetime,
    noted: Recorder = record,
) -> tuple[int, DeviceId]:
    """Add a device that may be claimed; return its row and its id.

    Raises FieldError, and ConflictError if its id or serial is taken.
    """
    kind = checks.one_of(kind, tuple(_PREFIXES), "kind")
    serial, model = checks.line(serial, "serial"), checks.line(model, "model")
    said = {"kind": kind, "serial": serial, "model": model}
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
        raise ConflictError(f"a device {serial or name!r} is already there") from error
    await noted(
        connection,
        actor=actor,
        act="device added",
        subject=name,
        detail={key: text for key, text in said.items() if text},
        organisation=organisation,
        now=now,
    )
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
    now: datetime,
    noted: Recorder = record,
) -> None:
    """Let `spot` take counts of [since, until) however old they are; they count as import.

    `granted_by` is the actor, as the audit names them.
    """
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
    await noted(
        connection,
        actor=granted_by,
        act="backfill granted",
        subject=spot,
        detail={"since": since.isoformat(), "until": until.isoformat(), "reason": reason},
        organisation=row["organisation_id"],
        now=now,
    )


async def notify(connection: asyncpg.Connection, device: str) -> None:
    """Tell ingest, after commit, that what it knows of `device` is old."""
    await connection.execute("select pg_notify($1, $2)", CHANGED, device)
