"""A technician's word where a device is to stand: before it asks, after, or from a dead spot.

A claim is good once and for 15 minutes, for one device, one spot, from one moment on. Phone first:
the claim waits for the device. Device first: the device is answered `pending` until there is one.
A device that is enrolled already is placed at once. `complete` does all of it in one transaction:
the assignment with what was counted since, the device's life, the end of what it replaces.

Who calls: `open_claim`, `end_claim` and `bind` write as the desk, which sees one organisation;
the caller has checked that the user may provision at the site. `complete` moves counts, and
`server.provisioning.progress.status` reads them, which the desk may not: they take a connection of
ingest or of the owner.

    async with acting(desk, "open claim", organisation=organisation) as connection:
        claim = await open_claim(connection, user_id=..., device=..., ...)
    if claim.ready:
        async with transaction(ingest, "complete claim") as connection:
            await complete(connection, claim.ref, actor=visitor.actor, now=now)

If nobody does the second step, `server.provisioning.sweep` does it within the minute. Times are
aware datetimes. Every function answers the same when it is called again with the same arguments;
with `act_ref`, the phone's own number, even after everything else has changed.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg

from protocol import label
from server.admission.orders import move
from server.audit.log import record
from server.errors import ConflictError, RefusedError
from server.fleet.lifecycle import State
from server.fleet.register import new_ref
from server.ingest.reassign import reassign
from server.provisioning.acts import once
from server.provisioning.lives import advance
from server.provisioning.refusals import refused
from server.provisioning.vouchers import (
    Voucher,
    VoucherSigner,
    actor_of,
    check_voucher,
    known_voucher,
    spend,
)

CLAIM_LIFE = timedelta(minutes=15)
BOUND_LIFE = timedelta(hours=24)  # of a claim made offline: nobody stands there and waits
MOST_BACK = timedelta(days=7)
CLOCKS_DIFFER = timedelta(minutes=2)  # a phone's clock may be so much ahead; it is then now


class Claimed(StrEnum):
    """Where a claim stands."""

    OPEN = "open"
    USED = "used"
    ENDED = "ended"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class TechnicianClaim:
    """A claim. `ready`: the device is enrolled, `complete` can place it now."""

    ref: str
    device: str
    serial: str
    kind: str
    site: str
    spot: str
    replaces: str | None
    since: datetime
    created_at: datetime
    expires_at: datetime
    state: Claimed
    ready: bool


@dataclass(frozen=True, slots=True)
class _Device:
    row: int
    device: str
    serial: str
    kind: str
    organisation: int
    admitted: bool
    setup_sha256: bytes | None


@dataclass(frozen=True, slots=True)
class _Spot:
    row: int
    organisation: int
    kind: str
    site: int


async def open_claim(
    connection: asyncpg.Connection,
    *,
    user_id: int,
    device: str,
    spot_ref: str,
    since: datetime,
    now: datetime,
    replaces: str | None = None,
    reason: str = "",
    voucher: Voucher | None = None,
    act_ref: str | None = None,
) -> TechnicianClaim:
    """Let `device` stand at the spot from `since` on, as soon as it is enrolled.

    `device` and `replaces` are a label's text, a serial or a device id. `reason`: why another
    technician's claim is set aside, or a device taken from where it stands. What is checked, in
    this order; the same numbers stand in the code, each with its code of `refusals`:

    1. The device is known (`unknown_serial`), and its label's secret is right (`bad_secret`).
    2. It is admitted (`device_not_admitted`).
    3. The spot is there (`unknown_spot`), of the same organisation (`other_organisation`), at the
       voucher's site (`voucher_bad`), and takes this kind of device (`wrong_kind`).
    4. Nobody else has claimed the device or the spot just now (`claimed_by_another`), unless there
       is a reason; one's own earlier claim gives way.
    5. `since` is not in the future, not too long ago, not before a later change (`bad_time`).
    6. Who stands at the spot is replaced (`spot_taken`, `not_replaceable`).
    7. The device stands nowhere else (`stands_elsewhere`), unless there is a reason.
    """

    async def do() -> dict[str, str]:
        return {
            "claim": await _open(
                connection,
                user_id=user_id,
                device=device,
                spot_ref=spot_ref,
                since=since,
                now=now,
                replaces=replaces,
                reason=reason,
                voucher=voucher,
            )
        }

    if act_ref is None:
        answer = await do()
    else:
        answer = await once(
            connection,
            do,
            user_id=user_id,
            act_ref=act_ref,
            act="claim opened",
            organisation=await _organisation(connection, spot_ref),
            now=now,
        )
    return await find_claim(connection, answer["claim"], now=now)


async def end_claim(
    connection: asyncpg.Connection,
    claim_ref: str,
    *,
    user_id: int,
    now: datetime,
) -> TechnicianClaim:
    """End a claim that nobody has used; one that is over stays as it is. As the desk."""
    row = await connection.fetchrow(
        "update technician_claims set ended_at = $2 where ref = $1 and used_at is null "
        "and ended_at is null returning organisation_id",
        claim_ref,
        now,
    )
    claim = await find_claim(connection, claim_ref, now=now)
    if row is not None:
        await record(
            connection,
            actor=await actor_of(connection, user_id),
            act="device claim ended",
            subject=claim.device,
            detail={"claim": claim_ref},
            organisation=row["organisation_id"],
            now=now,
        )
    return claim


async def bind(
    connection: asyncpg.Connection,
    signer: VoucherSigner,
    *,
    voucher: str,
    serial: str,
    proof: str,
    spot_ref: str,
    at: datetime,
    act_ref: str,
    now: datetime,
    replaces: str | None = None,
) -> TechnicianClaim:
    """Open the claim that a phone has noted offline at `at`, under a voucher. As the desk.

    The voucher stands for the user: no session is asked for. Checked, in this order:

    1. The voucher is ours and held at `at`, which is not in the future.
    2. The phone has read the label: `proof` is `protocol.label.bind_proof`.
    3. All that `open_claim` checks; then one use is taken from the voucher.
    """
    holder = await known_voucher(connection, signer, voucher)  # 1

    async def do() -> dict[str, str]:
        held = await check_voucher(connection, signer, voucher, at=at)  # 1
        if at > now + CLOCKS_DIFFER:
            raise refused("bad_time")
        found = await _device(connection, serial)
        if found.setup_sha256 is None:
            raise refused("not_allowed_yet")
        wanted = label.bind_proof(
            found.setup_sha256,
            voucher=held.ref,
            serial=found.serial,
            spot=spot_ref,
            at_ms=round(at.timestamp() * 1000),
        )
        if not hmac.compare_digest(wanted, proof):  # 2
            raise refused("bad_secret")
        ref = await _open(  # 3
            connection,
            user_id=held.user_id,
            device=serial,
            spot_ref=spot_ref,
            since=at,
            now=now,
            replaces=replaces,
            reason="",
            voucher=held,
        )
        return {"claim": ref}

    answer = await once(
        connection,
        do,
        user_id=holder.user_id,
        act_ref=act_ref,
        act="device bound",
        organisation=holder.organisation,
        now=now,
    )
    return await find_claim(connection, answer["claim"], now=now)


async def find_claim(
    connection: asyncpg.Connection, claim_ref: str, *, now: datetime
) -> TechnicianClaim:
    """Return a claim; RefusedError (`no_such_claim`), also for one that the desk may not see."""
    row = await connection.fetchrow(
        "select t.ref, d.device, d.serial, d.kind, s.ref as site, p.ref as spot, "
        "r.device as replaces, t.since, t.created_at, t.expires_at, t.used_at, t.ended_at, "
        "exists (select from certificates c where c.device_id = d.id and c.state = 'active') "
        "as enrolled from technician_claims t join devices d on d.id = t.device_id "
        "join spots p on p.id = t.spot_id join sites s on s.id = p.site_id "
        "left join devices r on r.id = t.replaces_id where t.ref = $1",
        claim_ref,
    )
    if row is None:
        raise refused("no_such_claim")
    state = Claimed.OPEN
    if row["used_at"] is not None:
        state = Claimed.USED
    elif row["ended_at"] is not None:
        state = Claimed.ENDED
    elif row["expires_at"] <= now:
        state = Claimed.EXPIRED
    return TechnicianClaim(
        ref=row["ref"],
        device=row["device"],
        serial=row["serial"],
        kind=row["kind"],
        site=row["site"],
        spot=row["spot"],
        replaces=row["replaces"],
        since=row["since"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        state=state,
        ready=state is Claimed.OPEN and row["enrolled"],
    )


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
    devices = await _lock(connection, claim["device_id"], claim["replaces_id"])
    await connection.execute("select from spots where id = $1 for update", claim["spot_id"])
    open_still = await connection.fetchval(
        "select used_at is null and ended_at is null from technician_claims where id = $1 "
        "for update",
        claim["id"],
    )
    if not open_still:
        return False
    device = devices[claim["device_id"]]
    if not device["admitted"]:
        raise refused("device_not_admitted")
    if not await _stands(connection, claim["device_id"], claim["spot_id"]):
        await _check_place(
            connection,
            device=claim["device_id"],
            spot=claim["spot_id"],
            replaced=claim["replaces_id"],
            since=claim["since"],
            may_move=True,
            may_be_gone=True,
        )
        try:
            await reassign(
                connection, device=device["device"], spot=claim["spot"], since=claim["since"]
            )
        except ConflictError as error:
            raise refused("bad_time") from error
    await advance(connection, claim["device_id"], State.INSTALLED, now=now)
    replaced = devices.get(claim["replaces_id"])
    if replaced is not None and not await _stands(connection, replaced["id"]):
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
    places. Asks 1 to 6 of `open_claim`; that the office asks is the reason of 7. An enrolled device
    is installed by it, another is claimed.
    """
    found = await _device(connection, device)  # 1
    if not (await _lock(connection, found.row, None))[found.row]["admitted"]:  # 2
        raise refused("device_not_admitted")
    spot = await _spot(connection, spot_ref)  # 3
    _demand_fit(found, spot)
    await _give_way(connection, found, spot, user_id=user_id, reason="", now=now)  # 4
    _demand_time(since, now)  # 5
    if await _stands(connection, found.row, spot.row):
        return
    since = min(since, now)
    await _check_place(  # 5, 6
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


async def _open(
    connection: asyncpg.Connection,
    *,
    user_id: int,
    device: str,
    spot_ref: str,
    since: datetime,
    now: datetime,
    replaces: str | None,
    reason: str,
    voucher: Voucher | None,
) -> str:
    """Do what `open_claim` says; return the claim's ref."""
    found = await _device(connection, device)  # 1
    replaced = None if replaces is None else await _device(connection, replaces)
    admitted = (await _lock(connection, found.row, replaced.row if replaced else None))[found.row]
    if not admitted["admitted"]:  # 2
        raise refused("device_not_admitted")
    spot = await _spot(connection, spot_ref)  # 3
    _demand_fit(found, spot, voucher)
    again = await connection.fetchval(
        "select ref from technician_claims where device_id = $1 and spot_id = $2 and user_id = $3 "
        "and since = $4 and replaces_id is not distinct from $5 and ended_at is null "
        "and expires_at > $6",
        *(found.row, spot.row, user_id, since, replaced.row if replaced else None, now),
    )
    if again is not None:
        return str(again)
    await _give_way(connection, found, spot, user_id=user_id, reason=reason, now=now)  # 4
    _demand_time(since, now)  # 5
    if await _stands(connection, found.row, spot.row):
        if replaced is not None:  # 6
            raise refused("not_replaceable")
    else:
        await _check_place(  # 5, 6, 7
            connection,
            device=found.row,
            spot=spot.row,
            replaced=replaced.row if replaced else None,
            since=min(since, now),
            may_move=bool(reason),
        )
    ref = new_ref("claim")
    life = CLAIM_LIFE if voucher is None else BOUND_LIFE
    await connection.execute(
        "insert into technician_claims (organisation_id, ref, user_id, device_id, spot_id, "
        "replaces_id, since, created_at, expires_at, voucher_id) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        *(found.organisation, ref, user_id, found.row, spot.row),
        replaced.row if replaced else None,
        min(since, now),
        now,
        now + life,
        voucher.row if voucher else None,
    )
    await advance(connection, found.row, State.CLAIMED, now=now)
    actor = f"voucher {voucher.ref}" if voucher else await actor_of(connection, user_id)
    if voucher is not None:
        await spend(connection, voucher, device=found.device, actor=actor, now=now)
    await record(
        connection,
        actor=actor,
        act="device claimed",
        subject=found.device,
        detail={
            "claim": ref,
            "spot": spot_ref,
            "since": since.isoformat(),
            "replaces": replaced.device if replaced else "",
            "reason": reason,
        },
        organisation=found.organisation,
        now=now,
    )
    return ref


async def _device(connection: asyncpg.Connection, text: str) -> _Device:
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
    found = _Device(*row.values())
    if read is not None and (
        found.setup_sha256 is None
        or not hmac.compare_digest(found.setup_sha256, read.secret_sha256)
    ):
        raise refused("bad_secret")
    return found


async def _lock(
    connection: asyncpg.Connection, device: int, replaced: int | None
) -> dict[int, asyncpg.Record]:
    """Lock the devices of a claim, in the order that everybody does; the desk's own or none."""
    rows = await connection.fetch(
        "select id, device, admitted from devices where id = any($1) order by id for update",
        [device, *([replaced] if replaced is not None else [])],
    )
    return {row["id"]: row for row in rows}


async def _spot(connection: asyncpg.Connection, ref: str) -> _Spot:
    row = await connection.fetchrow(
        "select id, organisation_id, kind, site_id from spots where ref = $1 for update", ref
    )
    if row is None:
        raise refused("unknown_spot")
    return _Spot(*row.values())


def _demand_fit(device: _Device, spot: _Spot, voucher: Voucher | None = None) -> None:
    if spot.organisation != device.organisation:
        raise refused("other_organisation")
    if voucher is not None and voucher.site != spot.site:
        raise refused("voucher_bad")
    if spot.kind != device.kind:
        raise refused("wrong_kind")


def _demand_time(since: datetime, now: datetime) -> None:
    if since > now + CLOCKS_DIFFER or since < now - MOST_BACK:
        raise refused("bad_time")


async def _organisation(connection: asyncpg.Connection, spot_ref: str) -> int:
    found: int | None = await connection.fetchval(
        "select organisation_id from spots where ref = $1", spot_ref
    )
    if found is None:
        raise refused("unknown_spot")
    return found


async def _give_way(
    connection: asyncpg.Connection,
    device: _Device,
    spot: _Spot,
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


async def _stands(connection: asyncpg.Connection, device: int, spot: int | None = None) -> bool:
    """True if the device stands at the spot already, or anywhere."""
    found: bool = await connection.fetchval(
        "select exists (select from assignments where device_id = $1 "
        "and spot_id = coalesce($2, spot_id) and upper_inf(valid))",
        device,
        spot,
    )
    return found


async def _check_place(
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
