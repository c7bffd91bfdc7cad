"""A technician's claim: the word where a device is to stand, before it asks, after, or offline.

A claim is good once and for 15 minutes, for one device, one spot, from one moment on. Phone first:
the claim waits for the device. Device first: the device is answered `pending` until there is one.
A device that is enrolled already is placed at once (`server.provisioning.placing`).

Who calls: all of it is written as the desk, which sees one organisation; the caller has checked
that the user may provision at the site.

    async with acting(desk, "open claim", organisation=organisation) as connection:
        claim = await open_claim(connection, user_id=..., device=..., ...)
    if claim.ready:
        async with transaction(ingest, "complete claim") as connection:
            await placing.complete(connection, claim.ref, actor=visitor.actor, now=now)

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
from server.audit.log import record
from server.fleet.lifecycle import State
from server.fleet.register import new_ref
from server.provisioning.lives import advance
from server.provisioning.once import once
from server.provisioning.placing import (
    CLOCKS_DIFFER,
    demand_fit,
    demand_free,
    demand_time,
    find_device,
    give_way,
    is_placed,
    lock_devices,
    lock_spot,
)
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


class Claimed(StrEnum):
    """Where a claim stands."""

    OPEN = "open"
    USED = "used"
    ENDED = "ended"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class TechnicianClaim:
    """A claim. `ready`: the device is enrolled, `placing.complete` can place it now."""

    ref: str
    device: str
    spot: str
    replaces: str | None
    since: datetime
    state: Claimed
    ready: bool


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
        found = await find_device(connection, serial)
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
        "select t.ref, d.device, p.ref as spot, r.device as replaces, t.since, t.expires_at, "
        "t.used_at, t.ended_at, "
        "exists (select from certificates c where c.device_id = d.id and c.state = 'active') "
        "as enrolled from technician_claims t join devices d on d.id = t.device_id "
        "join spots p on p.id = t.spot_id "
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
        spot=row["spot"],
        replaces=row["replaces"],
        since=row["since"],
        state=state,
        ready=state is Claimed.OPEN and row["enrolled"],
    )


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
    found = await find_device(connection, device)  # 1
    replaced = None if replaces is None else await find_device(connection, replaces)
    locked = await lock_devices(connection, found.row, replaced.row if replaced else None)
    if not locked[found.row]["admitted"]:  # 2
        raise refused("device_not_admitted")
    spot = await lock_spot(connection, spot_ref)  # 3
    demand_fit(found, spot, voucher)
    again = await connection.fetchval(
        _SAME_CLAIM,
        *(found.row, spot.row, user_id, since, replaced.row if replaced else None, now),
    )
    if again is not None:
        return str(again)
    await give_way(connection, found, spot, user_id=user_id, reason=reason, now=now)  # 4
    demand_time(since, now)  # 5
    if await is_placed(connection, found.row, spot.row):
        if replaced is not None:  # 6
            raise refused("not_replaceable")
    else:
        await demand_free(  # 5, 6, 7
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
        _ADD_CLAIM,
        *(found.organisation, ref, user_id, found.row, spot.row),
        *(replaced.row if replaced else None, min(since, now), now, now + life),
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


async def _organisation(connection: asyncpg.Connection, spot_ref: str) -> int:
    found: int | None = await connection.fetchval(
        "select organisation_id from spots where ref = $1", spot_ref
    )
    if found is None:
        raise refused("unknown_spot")
    return found


_SAME_CLAIM = """
    select ref from technician_claims where device_id = $1 and spot_id = $2 and user_id = $3
    and since = $4 and replaces_id is not distinct from $5 and ended_at is null and expires_at > $6
"""
_ADD_CLAIM = """
    insert into technician_claims (organisation_id, ref, user_id, device_id, spot_id, replaces_id,
        since, created_at, expires_at, voucher_id)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""
