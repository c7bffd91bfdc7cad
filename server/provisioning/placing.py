"""A device stands at a spot: it is placed by a technician's claim, or from an office.

Who claims only says where a device is to stand (`server.provisioning.technician`); what makes it
stand there is here: the assignment with what was counted since, the device's life, the end of what
it replaces, in one transaction. That moves counts, which the desk may not: `complete`,
`complete_or_end` and `stand` take a connection of ingest or of the owner. A claim that nobody
completes is completed by `server.provisioning.sweep` within the minute.

Below them is what device, spot and time have to be for it. Claiming asks the same, as the desk, so
that it is refused while the technician stands there. Devices are locked by id, then the spot, then
its claims: no two then wait for each other. Times are aware datetimes.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from protocol import label
from server.admission.orders import move
from server.audit.log import record
from server.errors import ConflictError, RefusedError
from server.fleet.lifecycle import State
from server.ingest.reassign import reassign
from server.provisioning.lives import advance
from server.provisioning.refusals import refused
from server.provisioning.vouchers import Voucher

MOST_BACK = timedelta(days=7)
CLOCKS_DIFFER = timedelta(minutes=2)  # a phone's clock may be so much ahead; it is then now


@dataclass(frozen=True, slots=True)
class FoundDevice:
    """The device that is to stand; `setup_sha256` of its label's secret, if it has one."""

    row: int
    device: str
    serial: str
    kind: str
    organisation: int
    admitted: bool
    setup_sha256: bytes | None


@dataclass(frozen=True, slots=True)
class FoundSpot:
    """The spot it is to stand at; `site` is a row."""

    row: int
    organisation: int
    kind: str
    site: int


async def complete(
    connection: asyncpg.Connection, claim_ref: str, *, actor: str, now: datetime
) -> bool:
    """Place the enrolled device as the claim says; False if that is done, or the claim is over.

    On a connection of ingest or the owner. In one transaction: the device's assignment begins at
    the claim's `since` and what it has counted since comes with it; what it replaces ends at the
    same instant, is returned, and is denied to the broker. Raises RefusedError (`spot_taken`,
    `bad_time`, `device_not_admitted`) if the world has changed since the claim was opened.
    """
    claim = await connection.fetchrow(
        "select t.id, t.organisation_id, t.device_id, t.spot_id, t.replaces_id, t.since, "
        "p.ref as spot from technician_claims t join spots p on p.id = t.spot_id "
        "where t.ref = $1",
        claim_ref,
    )
    if claim is None:
        raise refused("no_such_claim")
    devices = await lock_devices(connection, claim["device_id"], claim["replaces_id"])
    if not await _is_open(connection, claim):
        return False
    device = devices[claim["device_id"]]
    if not device["admitted"]:
        raise refused("device_not_admitted")
    if not await is_placed(connection, claim["device_id"], claim["spot_id"]):
        await _place(connection, claim, device["device"])
    await advance(connection, claim["device_id"], State.INSTALLED, now=now)
    replaced = devices.get(claim["replaces_id"])
    if replaced is not None and not await is_placed(connection, replaced["id"]):
        await move(
            connection,
            device=replaced["device"],
            to=State.RETURNED,
            reason="replaced",
            actor=actor,
            now=now,
        )
    await connection.execute(
        "update technician_claims set used_at = $2 where id = $1", claim["id"], now
    )
    await record(
        connection,
        actor=actor,
        act="device installed",
        subject=device["device"],
        detail={
            "claim": claim_ref,
            "spot": claim["spot"],
            "since": claim["since"].isoformat(),
            "replaces": "" if replaced is None else replaced["device"],
        },
        organisation=claim["organisation_id"],
        now=now,
    )
    return True


async def _is_open(connection: asyncpg.Connection, claim: asyncpg.Record) -> bool:
    """Lock a claim's spot and then the claim; True if it is not over."""
    await connection.execute("select from spots where id = $1 for update", claim["spot_id"])
    is_open: bool = await connection.fetchval(
        "select used_at is null and ended_at is null from technician_claims where id = $1 "
        "for update",
        claim["id"],
    )
    return is_open


async def _place(connection: asyncpg.Connection, claim: asyncpg.Record, device: str) -> None:
    await demand_free(
        connection,
        device=claim["device_id"],
        spot=claim["spot_id"],
        replaced=claim["replaces_id"],
        since=claim["since"],
        may_move=True,
        may_be_gone=True,
    )
    try:
        await reassign(connection, device=device, spot=claim["spot"], since=claim["since"])
    except ConflictError as error:
        raise refused("bad_time") from error


async def complete_or_end(
    connection: asyncpg.Connection, claim_ref: str, *, actor: str, now: datetime
) -> bool:
    """Complete a claim; one that the world has made impossible is ended, and the audit says why.

    So a claim that has gone stale keeps no device out. Raises RefusedError `device_not_admitted`.
    """
    try:
        async with connection.transaction():
            return await complete(connection, claim_ref, actor=actor, now=now)
    except RefusedError as error:
        if error.code == "device_not_admitted":
            raise
        row = await connection.fetchrow(
            "update technician_claims t set ended_at = $2 from devices d where t.ref = $1 "
            "and d.id = t.device_id and t.used_at is null and t.ended_at is null "
            "returning d.device, t.organisation_id",
            claim_ref,
            now,
        )
        if row is not None:
            await record(
                connection,
                actor=actor,
                act="device claim ended",
                subject=row["device"],
                detail={"claim": claim_ref, "why": error.code},
                organisation=row["organisation_id"],
                now=now,
            )
        return False


async def stand(
    connection: asyncpg.Connection,
    *,
    user_id: int,
    device: str,
    spot_ref: str,
    since: datetime,
    actor: str,
    now: datetime,
) -> None:
    """Place a device at a free spot without a claim, from an office; there already: do nothing.

    On a connection of ingest or the owner; the caller has checked that the user may do it at both
    places. Asks 1 to 6 of `technician.open_claim`; that the office asks is the reason of 7. An
    enrolled device is installed by it, another is claimed.
    """
    found = await find_device(connection, device)  # 1
    if not (await lock_devices(connection, found.row, None))[found.row]["admitted"]:  # 2
        raise refused("device_not_admitted")
    spot = await lock_spot(connection, spot_ref)  # 3
    demand_fit(found, spot)
    await give_way(connection, found, spot, user_id=user_id, reason="", now=now)  # 4
    demand_time(since, now)  # 5
    if await is_placed(connection, found.row, spot.row):
        return
    since = min(since, now)
    await demand_free(  # 5, 6
        connection, device=found.row, spot=spot.row, replaced=None, since=since, may_move=True
    )
    moved = await reassign(connection, device=found.device, spot=spot_ref, since=since)
    enrolled = await connection.fetchval(
        "select exists (select from certificates where device_id = $1 and state = 'active')",
        found.row,
    )
    to = State.INSTALLED if enrolled else State.CLAIMED
    await advance(connection, found.row, to, now=now)
    await record(
        connection,
        actor=actor,
        act="device assigned",
        subject=found.device,
        detail={"spot": spot_ref, "since": since.isoformat(), "rows": moved},
        organisation=found.organisation,
        now=now,
    )


async def find_device(connection: asyncpg.Connection, text: str) -> FoundDevice:
    """Return the device that a label, a serial or an id names; a label's secret must be right."""
    read: label.Label | None = None
    if text.strip().lower().startswith(label.PREFIX):
        try:
            read = label.parse(text)
        except label.LabelError as error:
            raise refused("bad_secret") from error
    serial = read.serial if read else text.strip()
    row = await connection.fetchrow(
        "select id, device, serial, kind, organisation_id, admitted, setup_sha256 from devices "
        "where (serial <> '' and serial in ($1, upper($1))) or device = lower($1) "
        "order by serial = $1 desc limit 1",
        serial,
    )
    if row is None:
        raise refused("unknown_serial")
    found = FoundDevice(*row.values())
    if read is not None and (
        found.setup_sha256 is None
        or not hmac.compare_digest(found.setup_sha256, read.secret_sha256)
    ):
        raise refused("bad_secret")
    return found


async def lock_devices(
    connection: asyncpg.Connection, device: int, replaced: int | None
) -> dict[int, asyncpg.Record]:
    """Lock the devices of a claim, in the order that everybody does; the desk's own or none."""
    rows = await connection.fetch(
        "select id, device, admitted from devices where id = any($1) order by id for update",
        [device, *([replaced] if replaced is not None else [])],
    )
    return {row["id"]: row for row in rows}


async def lock_spot(connection: asyncpg.Connection, ref: str) -> FoundSpot:
    """Return the spot, locked. RefusedError (`unknown_spot`)."""
    row = await connection.fetchrow(
        "select id, organisation_id, kind, site_id from spots where ref = $1 for update", ref
    )
    if row is None:
        raise refused("unknown_spot")
    return FoundSpot(*row.values())


def demand_fit(device: FoundDevice, spot: FoundSpot, voucher: Voucher | None = None) -> None:
    """Refuse a spot of another organisation, not at the voucher's site, or for another kind."""
    if spot.organisation != device.organisation:
        raise refused("other_organisation")
    if voucher is not None and voucher.site != spot.site:
        raise refused("voucher_bad")
    if spot.kind != device.kind:
        raise refused("wrong_kind")


def demand_time(since: datetime, now: datetime) -> None:
    """Refuse a time in the future, or too long ago."""
    if since > now + CLOCKS_DIFFER or since < now - MOST_BACK:
        raise refused("bad_time")


async def give_way(
    connection: asyncpg.Connection,
    device: FoundDevice,
    spot: FoundSpot,
    *,
    user_id: int,
    reason: str,
    now: datetime,
) -> None:
    """End open claims on the device or the spot: over, one's own, or another's for a reason."""
    rows = await connection.fetch(
        "select id, user_id, expires_at from technician_claims where (device_id = $1 "
        "or spot_id = $2) and used_at is null and ended_at is null order by id for update",
        device.row,
        spot.row,
    )
    for row in rows:
        if row["user_id"] != user_id and row["expires_at"] > now and not reason:
            raise refused("claimed_by_another")
        await connection.execute(
            "update technician_claims set ended_at = least($2, expires_at) where id = $1",
            row["id"],
            now,
        )


async def is_placed(connection: asyncpg.Connection, device: int, spot: int | None = None) -> bool:
    """True if the device stands at the spot already, or anywhere."""
    found: bool = await connection.fetchval(
        "select exists (select from assignments where device_id = $1 "
        "and spot_id = coalesce($2, spot_id) and upper_inf(valid))",
        device,
        spot,
    )
    return found


async def demand_free(
    connection: asyncpg.Connection,
    *,
    device: int,
    spot: int,
    replaced: int | None,
    since: datetime,
    may_move: bool,
    may_be_gone: bool = False,
) -> None:
    """Refuse unless device and spot are free from `since` on, but for what is to be replaced.

    `may_be_gone`: what is to be replaced may have been taken away meanwhile.
    """
    rows = await connection.fetch(
        "select device_id, spot_id, upper_inf(valid) and coalesce(lower(valid), '-infinity') < $3 "
        "as ends from assignments where (device_id = $1 or spot_id = $2) "
        "and valid && tstzrange($3, null)",
        device,
        spot,
        since,
    )
    if not all(row["ends"] for row in rows):
        raise refused("bad_time")
    holders = {row["device_id"] for row in rows if row["spot_id"] == spot}
    if replaced is None and holders:
        raise refused("spot_taken")
    if replaced is not None and (
        replaced == device or (holders != {replaced} and not (may_be_gone and not holders))
    ):
        raise refused("not_replaceable")
    if not may_move and any(row["spot_id"] != spot for row in rows):
        raise refused("stands_elsewhere")
