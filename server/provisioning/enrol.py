"""A device and its key become an identity, once: by a claim, or by its label.

Verification, in this order; the same numbers stand in the code. Each refusal has its row in
`refusals`. By either way:

1. The request proves possession of a P-256 key; nothing is spent on one that does not.

By a claim (`vst1.`, made for one device):

2. The claim's secret is known (compared by its hash).
3. It has not expired, unless this same key already used it.
4. It is unused, or was used by this same key: then the same certificate is answered again, so a
   device that lost power after asking may ask again.

By its label (serial and set-up secret, from the factory's list):

5. The serial has not just failed too often from there.
6. The serial is known; one that is not is noted, visibly (`unknown`).
7. The secret is right, in constant time. Of wrong ones a network may show only so many.
8. A key that is certified for this device already gets the same certificate again. For any other:
9. The device may be set up, and still.
10. Another key is in force only until a technician's claim made since then replaces it.
11. A voucher that comes along holds; it is as good as a technician's claim.
12. Where the organisation wants a technician's word, there is one; else the answer is `Pending`.

By either way again:

13. The device is admitted: before its certificate is recorded, and again, under its row's lock,
    when it is given out.
14. The serial is recorded before anything is signed, and nothing but the key is taken from the
    request (`issuing`).
15. One transaction completes it: the device's life, the older keys' end, the voucher's use, the
    audit. A crash before it leaves a serial and no certificate: the same key asking again completes
    it.
16. Another transaction places the device if a technician's claim waits: it locks what is replaced
    and the spot, which nobody may do who holds the chain of the audit (`server.audit.log`). A crash
    before it leaves that to the same key asking again, or to the `sweep`.

The right (2 to 12) is used in the transaction that records the serial (14), or not at all; and the
certificate is filled in by the one that completes (15). So an exchange is two transactions, and a
third where a claim waits.
"""

import hmac
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

import asyncpg

from protocol.label import digest as label_digest
from server.admission.orders import CHANGED
from server.audit.log import holding, record
from server.db.engine import transaction
from server.errors import RefusedError
from server.fleet import register
from server.fleet.lifecycle import State
from server.people.throttle import Throttle, TooManyTriesError, network
from server.pki.authority import Authority, Proof
from server.provisioning import placing, technician, unknown
from server.provisioning.claims import digest
from server.provisioning.issuing import (
    Held,
    Issued,
    Order,
    Recorded,
    begin,
    complete,
    hold,
    key_lock,
    proved,
    sign,
)
from server.provisioning.lives import advanced
from server.provisioning.refusals import refused
from server.provisioning.vouchers import VoucherSigner, check_voucher, spend

ASK_AGAIN_S = 15
_BEGUN = "enrolling"  # a certificate's reason until step 15 is done


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a device gets: who it is, and the proof of it."""

    device: str
    kind: str
    chain_pem: str
    renew_after: datetime


@dataclass(frozen=True, slots=True)
class Pending:
    """The device waits for a technician; it asks again after so many seconds."""

    retry_after_s: int = ASK_AGAIN_S


@dataclass(frozen=True, slots=True)
class Shown:
    """What a device shows of its label; `voucher` and `spot` if a technician has handed it one."""

    serial: str
    secret: str = field(repr=False)
    voucher: str = field(default="", repr=False)
    spot: str = ""


class Guesses:
    """Who failed to show a right secret lately: by serial and network, and by network alone.

    A network stands for a whole warehouse behind one address, so it may fail more often, and has
    to wait only with a secret that is wrong: nobody's right one waits for what a neighbour does.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._pair = Throttle(free=5, first_s=2, most_s=300, forget_s=3600, monotonic=monotonic)
        self._network = Throttle(free=50, first_s=1, most_s=60, forget_s=600, monotonic=monotonic)

    def demand(self, serial: str, address: str | None) -> None:
        """Raise TooManyTriesError if this serial has failed too often from there."""
        self._pair.demand(f"{serial} {network(address)}")

    def unknown(self, serial: str, address: str | None) -> None:
        """Count a serial that is not on the list: it was nobody's secret that was guessed."""
        with suppress(TooManyTriesError):  # several at once: it waits already
            self._pair.begin(f"{serial} {network(address)}")

    def wrong(self, serial: str, address: str | None) -> None:
        """Count a wrong secret. Raises TooManyTriesError if the network has to wait."""
        self.unknown(serial, address)
        self._network.begin(network(address))

    def wrong_claim(self, address: str | None) -> None:
        """Count a claim that nobody made. Raises TooManyTriesError if the network has to wait."""
        self._network.begin(network(address))

    def right(self, serial: str, address: str | None) -> None:
        """Forget what this serial did from there: it has shown the right secret."""
        self._pair.forgive(f"{serial} {network(address)}")


@dataclass(frozen=True, slots=True)
class _Device:
    """Who is to be enrolled, by which right."""

    row: int
    device: str
    kind: str
    organisation: int
    right: Literal["claim", "label"]
    voucher: str = field(default="", repr=False)


async def enrol(
    pool: asyncpg.Pool, authority: Authority, *, secret: str, csr_pem: str, now: datetime
) -> Enrolment:
    """Enrol the device that holds the claim. Raises RefusedError with the rule's code."""
    key = proved(csr_pem)  # 1
    async with transaction(pool, "begin enrolment") as connection:
        device = await _check_claim(connection, secret=secret, spki=key.spki_sha256, now=now)
        order = _order(authority, device, key)
        begun = await begin(connection, order, now=now)  # 14
    return await _certify(pool, None, device, order, begun, now=now)


async def enrol_by_label(
    pool: asyncpg.Pool,
    authority: Authority,
    signer: VoucherSigner,
    *,
    shown: Shown,
    csr_pem: str,
    now: datetime,
    guesses: Guesses,
    address: str | None = None,
) -> Enrolment | Pending:
    """Enrol the device that shows its label, or let it wait. Raises RefusedError."""
    guesses.demand(shown.serial, address)  # 5
    key = proved(csr_pem)  # 1
    spki = key.spki_sha256
    try:
        async with transaction(pool, "begin enrolment") as connection:
            device = await _check_label(connection, signer, shown=shown, spki=spki, now=now)
            guesses.right(shown.serial, address)
            if isinstance(device, Pending):
                return device
            order = _order(authority, device, key)
            begun = await begin(connection, order, now=now)  # 14
        return await _certify(pool, signer, device, order, begun, now=now)
    except RefusedError as error:
        try:
            if error.code == "unknown_serial":
                guesses.unknown(shown.serial, address)
            elif error.code == "bad_secret":
                guesses.wrong(shown.serial, address)  # 7
        finally:
            async with transaction(pool, "note refusal") as connection:
                if error.code == "unknown_serial":
                    await unknown.note(
                        connection, shown.serial, address=address or "", spki=spki, now=now
                    )
                else:
                    await _note(connection, shown.serial, error.code, now=now)
        raise


async def _check_claim(
    connection: asyncpg.Connection, *, secret: str, spki: bytes, now: datetime
) -> _Device:
    """Steps 2 to 4, and 13. Claim, key and device stay locked until the transaction ends.

    The claim is marked as used at once; a refusal takes that back with the transaction.
    """
    claim = await connection.fetchrow(_USE_CLAIM, digest(secret), spki, now, key_lock(spki))
    if claim is None:  # 2
        raise refused("unknown_claim")
    again = claim["spki_sha256"] == spki
    if claim["expires_at"] <= now and not again:  # 3
        raise refused("claim_expired")
    if claim["used_at"] is not None and not again:  # 4
        raise refused("claim_used")
    if not claim["admitted"]:  # 13
        raise refused("device_not_admitted")
    return _Device(claim["id"], claim["device"], claim["kind"], claim["organisation_id"], "claim")


# Locks the claim, then its key, then the device; `was` is the claim as it was before.
_USE_CLAIM = """
with was as materialized (
  select id, device_id, expires_at, used_at, spki_sha256 from claims where secret_sha256 = $1
  for update),
used as (
  update claims c set used_at = coalesce(c.used_at, $3), spki_sha256 = $2 from was
  where c.id = was.id),
key as materialized (select was.*, pg_advisory_xact_lock($4) from was)
select k.expires_at, k.used_at, k.spki_sha256, d.id, d.organisation_id, d.device, d.kind, d.admitted
from key k join devices d on d.id = k.device_id for no key update of d
"""


async def _check_label(
    connection: asyncpg.Connection,
    signer: VoucherSigner,
    *,
    shown: Shown,
    spki: bytes,
    now: datetime,
) -> _Device | Pending:
    """Steps 6 to 13. Key and device stay locked until the transaction ends."""
    row = await connection.fetchrow(
        "with key as materialized (select pg_advisory_xact_lock($2)) "
        "select d.id, d.device, d.kind, d.organisation_id, d.admitted, d.setup_sha256, "
        "d.allowed_until, o.enrolment from key, devices d join organisations o "
        "on o.id = d.organisation_id where d.serial = $1 and d.serial <> '' for update of d",
        shown.serial,
        key_lock(spki),
    )
    if row is None:  # 6
        raise refused("unknown_serial")
    if row["setup_sha256"] is None:
        raise refused("not_allowed_yet")
    if not hmac.compare_digest(row["setup_sha256"], label_digest(shown.secret)):  # 7
        raise refused("bad_secret")
    if not row["admitted"]:  # 13
        raise refused("device_not_admitted")
    device = _Device(row["id"], row["device"], row["kind"], row["organisation_id"], "label")
    if await _certified(connection, device.row, spki, now=now):  # 8
        # step 15 may be due still, and with it the voucher's use
        return device if shown.spot else replace(device, voucher=shown.voucher)
    if row["allowed_until"] is not None and row["allowed_until"] <= now:  # 9
        raise refused("allowance_expired")
    claimed = await _claimed(connection, device.row, now=now)
    if not claimed and await _another_key(connection, device.row, spki):  # 10
        raise refused("reenrol_required")
    if shown.voucher and not claimed:  # 11
        return await _by_voucher(connection, signer, device, shown, now=now)
    if row["enrolment"] == "technician" and not claimed:  # 12
        await _note(connection, shown.serial, "pending", now=now)
        return Pending()
    return device


async def _by_voucher(
    connection: asyncpg.Connection,
    signer: VoucherSigner,
    device: _Device,
    shown: Shown,
    *,
    now: datetime,
) -> _Device:
    """Take the voucher as a technician's word; with a spot it becomes a claim on it at once."""
    voucher = await check_voucher(connection, signer, shown.voucher, at=now)
    if voucher.organisation != device.organisation:
        raise refused("other_organisation")
    if not shown.spot:
        return replace(device, voucher=shown.voucher)
    await technician.open_claim(
        connection,
        user_id=voucher.user_id,
        device=shown.serial,
        spot_ref=shown.spot,
        since=now,
        now=now,
        voucher=voucher,
    )
    return device


def _order(authority: Authority, device: _Device, key: Proof) -> Order:
    return Order(device.row, device.device, device.organisation, key, _BEGUN, authority.current())


async def _certify(
    pool: asyncpg.Pool,
    signer: VoucherSigner | None,
    device: _Device,
    order: Order,
    begun: Issued | Recorded,
    *,
    now: datetime,
) -> Enrolment:
    """Steps 14 to 16, for a device that has passed all others, and whose serial is recorded."""
    issued, claim = begun, None
    if isinstance(issued, Recorded):
        issued = await sign(order, issued)  # 14
    async with transaction(pool, "complete enrolment") as connection:  # 15
        held = await hold(connection, order, issued.serial, now=now)
        if held is not None:
            issued = held.issued or issued
            claim = await _complete(connection, signer, device, order, issued, held, now=now)
    if held is None:  # 13
        raise refused("device_not_admitted")
    if claim is not None:
        async with transaction(pool, "complete claim") as connection:  # 16
            await placing.complete_or_end(
                connection, claim, actor=f"device {device.device}", now=now
            )
    return Enrolment(device.device, device.kind, issued.chain_pem, issued.renew_after)


async def _complete(
    connection: asyncpg.Connection,
    signer: VoucherSigner | None,
    device: _Device,
    order: Order,
    issued: Issued,
    held: Held,
    *,
    now: datetime,
) -> str | None:
    """Step 15; what is done already is not done again. Returns the technician's claim in force."""
    if held.state == "revoked":  # another key has come since
        raise refused("certificate_withdrawn")
    if held.issued is None or held.reason == _BEGUN:
        return await _begin(connection, signer, device, order, issued, held, now=now)
    claim: str | None = await connection.fetchval(f"select ({_CLAIM})", device.row, now)
    return claim


async def _begin(
    connection: asyncpg.Connection,
    signer: VoucherSigner | None,
    device: _Device,
    order: Order,
    issued: Issued,
    held: Held,
    *,
    now: datetime,
) -> str | None:
    """Let the new key be the only one, and the device be provisioned.

    Returns the technician's claim in force; the chain of the audit is held.
    """
    actor = f"device {device.device}"
    reason = f"enrolment by {device.right}"
    voucher = None
    if device.voucher and signer is not None:
        voucher = await check_voucher(connection, signer, device.voucher, at=now)
        reason = f"enrolment by {voucher.ref}"
    order = replace(order, reason=reason)
    older = await complete(connection, order, issued, now=now, stage=False, only=True)
    if voucher is not None:  # after the certificates: it takes the chain
        await spend(connection, voucher, device=device.device, actor=actor, now=now)
    if older:
        await connection.execute("select pg_notify($1, $2)", CHANGED, device.device)
    claim: str | None = await connection.fetchval(
        _PROVISION,
        device.row,
        now,
        advanced(held.life, State.PROVISIONED),
        register.CHANGED,
        device.organisation,
    )
    await record(  # last: the next of this organisation waits until we commit
        connection,
        actor=actor,
        act="device enrolled",
        subject=device.device,
        detail={
            "certificate": issued.serial,
            "reason": reason,
            "revoked": older,
        },
        organisation=device.organisation,
        now=now,
        held=True,
    )
    return claim


_CLAIM = """select ref from technician_claims where device_id = $1 and used_at is null
  and ended_at is null and expires_at > $2"""

_PROVISION = f"""
with device as (
  update devices set enrolled_at = coalesce(enrolled_at, $2), greeted_at = null, asked_at = $2,
    asked = 'enrolled', state = $3,
    state_since = case when state = $3 then state_since else $2 end
  where id = $1 returning device)
select ({_CLAIM}), pg_notify($4, device), {holding("$5")} from device
"""  # noqa: S608


async def _certified(
    connection: asyncpg.Connection, device_row: int, spki: bytes, *, now: datetime
) -> bool:
    found: bool = await connection.fetchval(
        "select exists (select from certificates where device_id = $1 and spki_sha256 = $2 "
        "and state in ('active', 'retiring') and not_after > $3)",
        device_row,
        spki,
        now,
    )
    return found


async def _another_key(connection: asyncpg.Connection, device_row: int, spki: bytes) -> bool:
    found: bool = await connection.fetchval(
        "select exists (select from certificates where device_id = $1 and spki_sha256 <> $2 "
        "and state = 'active')",
        device_row,
        spki,
    )
    return found


async def _claimed(connection: asyncpg.Connection, device_row: int, *, now: datetime) -> bool:
    """True if a technician's claim is in force, and no key has been certified under it yet.

    One that has placed a device with an older key is still good for a new key of that device.
    """
    found: bool = await connection.fetchval(
        "select exists (select from technician_claims t where t.device_id = $1 "
        "and t.ended_at is null and t.expires_at > $2 and not exists (select from certificates c "
        "where c.device_id = $1 and c.recorded_at >= t.created_at and c.activated_at is not null))",
        device_row,
        now,
    )
    return found


async def _note(connection: asyncpg.Connection, serial: str, code: str, *, now: datetime) -> None:
    """Keep what a known device was answered, for the technician who wonders."""
    await connection.execute(
        "update devices set asked_at = $2, asked = $3 where serial = $1 and serial <> ''",
        serial,
        now,
        code,
    )
