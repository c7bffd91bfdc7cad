"""A device's certificate begets the next one; whoever holds the key of the one may have the other.

The device shows its certificate in the TLS handshake, which proves its key. Verification, in this
order; the same numbers stand in the code. Each refusal has its row in `refusals`. To be heard:

1. The connection shows a certificate. TLS has found it signed by an authority of ours that was ever
   trusted; its dates were not looked at.
2. It is, byte for byte, a certificate that we recorded and handed out. So not even a stolen
   authority's key can make one that is heard here.
3. Its one name, the URI, is the name of the device that the record belongs to.
4. It was not revoked, and not replaced: its state is staged, active or retiring.
5. The device is admitted.
6. It ended 180 days ago at most. That grace is granted here alone: the broker has none.

To be renewed (`renew`), in addition:

7. The request proves a key, and not one that had a certificate before, except by this same request:
   the same key gets the same certificate.
8. It is time: `renew_after` has come. Too early is harmless, and says when to come back.
9. It asks for no more than a few certificates a day.
10. The serial is recorded before anything is signed, and the certificate staged (`issuing`).
11. Rules 1 to 6 still hold when it is handed out: a revocation that came meanwhile wins.

`confirm` is asked with the new certificate and so proves that the device holds it: it becomes
active, the one before it retiring. Asked again it changes nothing. Once a day each device confirms
the certificate it has: it says which roots it trusts, and hears from when on it is to renew.

Invariants: one active and at most one staged certificate a device. Nothing here ends the old
certificate before the device has said that the new one is in force with it (`promoted`), or 30 days
after it was confirmed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from server.audit.log import record
from server.db.engine import transaction
from server.errors import NotFoundError, RefusedError
from server.fleet.register import notify
from server.pki.authority import Authority, device_uri
from server.pki.profile import LEAF_LIFE
from server.provisioning.issuing import Issued, issue, proved, record_trust
from server.provisioning.refusals import TABLE, refused

GRACE = timedelta(days=180)
OVERLAP = timedelta(days=30)
MOST_A_DAY = 10  # certificates of a device whose trials of the new one keep failing
MOST_ROOTS = 8  # that a device says it trusts; a fleet has two or three
_REST = LEAF_LIFE / 4  # before its end a certificate is due that was given no time


class TooEarlyError(RefusedError):
    """It is not time yet; the certificate holds, and this says until when to leave it alone."""

    def __init__(self, renew_after: datetime) -> None:
        self.renew_after = renew_after
        super().__init__("renewal_too_early", TABLE["renewal_too_early"].en)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a device hears of the certificate it has shown."""

    device: str
    state: str
    not_after: datetime
    renew_after: datetime


@dataclass(frozen=True, slots=True)
class Expiring:
    """A device whose last certificate ends soon, or has ended."""

    device: str
    organisation: str
    not_after: datetime
    last_seen: datetime | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who shows which certificate."""

    row: int
    device: str
    organisation: int
    serial: str
    state: str
    not_after: datetime
    renew_after: datetime


async def renew(
    pool: asyncpg.Pool, authority: Authority, *, shown: bytes | None, csr_pem: str, now: datetime
) -> Issued:
    """Return a staged certificate for a new key of whoever shows this one (DER).

    Raises RefusedError with the rule's code; TooEarlyError.
    """
    async with transaction(pool, "check renewal") as connection:
        holder = await hear(connection, shown, now=now)  # 1 to 6
        key = proved(csr_pem, device=holder.device)  # 7
        if not await _asked_before(connection, holder, key.spki_sha256):
            if holder.renew_after > now:  # 8
                raise TooEarlyError(holder.renew_after)
            if await _asked_today(connection, holder, now=now) >= MOST_A_DAY:  # 9
                raise refused("too_many")
        if holder.state == "staged":  # it proves itself, whatever became of the confirmation
            await _activate(connection, holder, now=now)
    issued = await issue(  # 10
        pool,
        authority,
        device_row=holder.row,
        device=holder.device,
        organisation=holder.organisation,
        key=key,
        reason="renewal",
        now=now,
        stage=True,
    )
    try:
        async with transaction(pool, "hand out renewal") as connection:
            await hear(connection, shown, now=now)  # 11
            state = await connection.fetchval(
                "select state from certificates where serial = $1", issued.serial
            )
            if state not in ("staged", "active"):
                raise refused("key_used")
    except RefusedError:
        async with transaction(pool, "withdraw renewal") as connection:
            await connection.execute(
                "update certificates set state = 'retired', retired_at = $2 "
                "where serial = $1 and state = 'staged'",
                issued.serial,
                now,
            )
        raise
    return issued


async def confirm(
    pool: asyncpg.Pool,
    authority: Authority,
    *,
    shown: bytes | None,
    roots: Sequence[bytes] = (),
    promoted: bool = False,
    now: datetime,
) -> Confirmed:
    """Let a staged certificate be the active one, since its holder shows it; idempotent.

    `roots`: SHA-256 of the keys that the device trusts as roots; `promoted`: the device has let go
    of the pair before this. Raises RefusedError.
    """
    ours = {root.spki_sha256 for root in authority.current().described() if root.kind == "root"}
    async with transaction(pool, "confirm renewal") as connection:
        holder = await hear(connection, shown, now=now)
        state = holder.state
        if state == "staged":
            await _activate(connection, holder, now=now)
            state = "active"
        if promoted and state == "active":
            await connection.execute(
                "update certificates set state = 'retired', retired_at = $2 "
                "where device_id = $1 and state = 'retiring'",
                holder.row,
                now,
            )
        for root in ours.intersection(roots[:MOST_ROOTS]):
            await record_trust(connection, holder.row, root, now)
    return Confirmed(holder.device, state, holder.not_after, holder.renew_after)


async def retire(pool: asyncpg.Pool, *, now: datetime) -> int:
    """End what is over: old certificates 30 days after the new, and what nobody confirmed in time.

    Return how many.
    """
    async with transaction(pool, "retire certificates") as connection:
        done: str = await connection.execute(
            "update certificates c set state = 'retired', retired_at = $1 where "
            "(c.state = 'staged' and c.not_after <= $1) or (c.state = 'retiring' and exists "
            "(select from certificates a where a.device_id = c.device_id and a.state = 'active' "
            "and a.activated_at <= $2))",
            now,
            now - OVERLAP,
        )
    return int(done.split()[-1])


async def bring_forward(
    connection: asyncpg.Connection, device: str, *, actor: str, now: datetime
) -> None:
    """Let a device renew now; it hears of it when it next confirms. NotFoundError."""
    row = await connection.fetchrow(
        "update certificates c set renew_after = least(renew_after, $2) from devices d "
        "where d.id = c.device_id and d.device = $1 and c.state = 'active' "
        "returning c.serial, c.organisation_id",
        device,
        now,
    )
    if row is None:
        raise NotFoundError(f"no device {device!r} with a certificate in force")
    await record(
        connection,
        actor=actor,
        act="renewal ordered",
        subject=device,
        detail={"certificate": row["serial"]},
        organisation=row["organisation_id"],
        now=now,
    )


async def expiring(
    connection: asyncpg.Connection, *, now: datetime, within: timedelta = timedelta(days=14)
) -> list[Expiring]:
    """Return the admitted devices whose last certificate ends within that time, the next first."""
    rows = await connection.fetch(
        "select d.device, o.name, max(c.not_after) as ends, "
        "(select max(coalesce(b.last_stored, b.first_seen)) from boots b "
        "where b.device_id = d.id) as seen "
        "from certificates c join devices d on d.id = c.device_id "
        "join organisations o on o.id = d.organisation_id "
        "where c.state in ('staged', 'active', 'retiring') and d.admitted "
        "group by d.id, o.name having max(c.not_after) < $1 order by ends, d.device",
        now + within,
    )
    return [Expiring(*row.values()) for row in rows]


async def hear(connection: asyncpg.Connection, shown: bytes | None, *, now: datetime) -> Holder:
    """Return who shows a certificate by rules 1 to 6; its device stays locked. RefusedError."""
    if shown is None:  # 1
        raise refused("no_certificate")
    certificate = x509.load_der_x509_certificate(shown)
    serial = f"{certificate.serial_number:x}"
    device = await connection.fetchrow(
        "select id, device, organisation_id, admitted from devices where id = "
        "(select device_id from certificates where serial = $1) for no key update",
        serial,
    )
    row = await connection.fetchrow(
        "select state, chain, not_after, coalesce(renew_after, not_after - $2::interval) as due, "
        "revoked_at from certificates where serial = $1",
        serial,
        _REST,
    )
    if device is None or row["chain"] is None or _leaf(row["chain"]) != shown:  # 2
        raise refused("certificate_unknown")
    if names_of(certificate) != [device_uri(device["device"])]:  # 3
        raise refused("certificate_unknown")
    if row["revoked_at"] is not None or row["state"] == "revoked":  # 4
        raise refused("certificate_revoked")
    if row["state"] not in ("staged", "active", "retiring"):
        raise refused("certificate_replaced")
    if not device["admitted"]:  # 5
        raise refused("device_not_admitted")
    if row["not_after"] + GRACE < now:  # 6
        raise refused("grace_over")
    return Holder(
        device["id"],
        device["device"],
        device["organisation_id"],
        serial,
        row["state"],
        row["not_after"],
        row["due"],
    )


async def _activate(connection: asyncpg.Connection, holder: Holder, *, now: datetime) -> None:
    """Let a staged certificate be the active one; the one before it retires."""
    before = await connection.fetchval(
        "update certificates set state = 'retiring' where device_id = $1 and state = 'active' "
        "returning serial",
        holder.row,
    )
    await connection.execute(
        "update certificates set state = 'active', activated_at = $2 where serial = $1",
        holder.serial,
        now,
    )
    await record(
        connection,
        actor=f"device {holder.device}",
        act="certificate renewed",
        subject=holder.device,
        detail={"certificate": holder.serial, "before": before or ""},
        organisation=holder.organisation,
        now=now,
    )
    await notify(connection, holder.device)


async def _asked_before(connection: asyncpg.Connection, holder: Holder, spki: bytes) -> bool:
    """Rule 7: True if this key's certificate is on its way already, or asked for again.

    A key of another device is left to `issue`, which refuses it.
    """
    rows = await connection.fetch(
        "select state, serial from certificates "
        "where spki_sha256 = $1 and device_id = $2 and state <> 'failed'",
        spki,
        holder.row,
    )
    for row in rows:
        if row["serial"] == holder.serial or row["state"] not in ("recorded", "staged", "active"):
            raise refused("key_used")
    return bool(rows)


async def _asked_today(connection: asyncpg.Connection, holder: Holder, *, now: datetime) -> int:
    found: int = await connection.fetchval(
        "select count(*) from certificates where device_id = $1 and recorded_at > $2",
        holder.row,
        now - timedelta(days=1),
    )
    return found


def _leaf(chain_pem: str) -> bytes:
    first = x509.load_pem_x509_certificates(chain_pem.encode())[0]
    return first.public_bytes(serialization.Encoding.DER)


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the names that a certificate is for; a device has its URI and no other."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [str(name.value) for name in names]
