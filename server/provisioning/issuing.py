"""A proven key becomes a certificate, exactly one, whatever is killed in between.

The steps, each a transaction or none; the same numbers stand in the code:

1. The serial is recorded, in `certificates` and in `issuance_log`: nothing is signed unrecorded.
2. The authority signs, in a thread. What is signed follows from the record alone (its serial and
   its time), so signing again after a crash gives the same certificate.
3. The certificate is filled in and becomes what it was asked for: active, the one before it then
   retiring; or staged, until a session has proved it.

Between 1 and 3 a crash leaves a row in state `recorded`. The same key asking again completes it;
`sweep` writes it off after an hour.

Invariants: a key belongs to one device for ever. The same key gets the same certificate, as long
as that is valid. A device has one active and at most one staged certificate.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.db.engine import transaction
from server.errors import RefusedError, UnavailableError
from server.pki.authority import Authority, Described, RequestRefusedError
from server.pki.profile import LEAF_LIFE, new_serial
from server.provisioning.authorities import authority_row

ABANDONED_AFTER = timedelta(hours=1)
_EARLIEST, _LATEST = 0.5, 0.75  # of a certificate's life, in which its renewal begins


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate as a device gets it; `serial` in hexadecimal digits."""

    serial: str
    chain_pem: str
    not_after: datetime
    renew_after: datetime


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be certified, why, and who signs it."""

    device_row: int
    device: str
    organisation: int
    spki: bytes
    reason: str
    authority: Described

    @property
    def key_lock(self) -> int:
        """Serialises those who ask for one key, and before the device's row: no two then wait
        for each other."""
        return int.from_bytes(self.spki[:8], signed=True)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A serial that may be signed, and the certificate's time."""

    serial: str
    at: datetime


async def issue(
    pool: asyncpg.Pool,
    authority: Authority,
    *,
    device_row: int,
    device: str,
    organisation: int,
    csr_pem: str,
    spki: bytes,
    reason: str,
    now: datetime,
    stage: bool,
) -> Issued:
    """Return the device's certificate for this key, signing it if there is none yet.

    `spki` is the SHA-256 of the key that the request has proved; `stage`: a renewal, to be proved
    before it replaces the active one. Raises RefusedError: `bad_request_for_certificate`,
    `key_in_use` (another device's), `key_revoked`, `device_not_admitted`.
    """
    authority = authority.current()
    order = _Order(device_row, device, organisation, spki, reason, authority.device_authority)
    async with transaction(pool, "record certificate") as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", order.key_lock)
        if not await _admitted(connection, order):
            raise _not_admitted(device)
        found = await _found(connection, order, now=now)
        if isinstance(found, Issued):
            return found
        recorded = await _record(connection, order, found, now=now)  # 1
    try:
        signed = await asyncio.to_thread(  # 2
            authority.issue_device,
            csr_pem.encode(),
            device=device,
            serial=int(recorded.serial, 16),
            now=recorded.at,
        )
    except RequestRefusedError as error:
        async with transaction(pool, "refuse certificate") as connection:
            await _fail(connection, [recorded.serial], now=now, why=error.code)
        raise RefusedError(error.code, str(error)) from error
    issued = Issued(
        recorded.serial,
        signed.chain_pem.decode(),
        signed.not_after,
        renewal_time(device, recorded.serial, since=recorded.at),
    )
    async with transaction(pool, "complete certificate") as connection:
        if admitted := await _admitted(connection, order):
            issued = await _complete(connection, order, issued, now=now, stage=stage)  # 3
        else:
            await _fail(connection, [recorded.serial], now=now, why="device_not_admitted")
    if not admitted:
        raise _not_admitted(device)
    return issued


def renewal_time(device: str, serial: str, *, since: datetime) -> datetime:
    """Return when a device is to renew: 50 to 75 % into its life, spread by device and serial."""
    digest = hashlib.sha256(f"{device} {serial}".encode()).digest()
    share = _EARLIEST + (_LATEST - _EARLIEST) * int.from_bytes(digest[:8]) / 2**64
    return since + LEAF_LIFE * share


async def sweep(pool: asyncpg.Pool, *, now: datetime) -> int:
    """Write off what was recorded over an hour ago and never completed; return how many."""
    async with transaction(pool, "sweep certificates") as connection:
        rows = await connection.fetch(
            "select serial from certificates where state = 'recorded' and recorded_at < $1 "
            "for update skip locked",
            now - ABANDONED_AFTER,
        )
        await _fail(connection, [row["serial"] for row in rows], now=now, why="abandoned")
    return len(rows)


async def record_trust(
    connection: asyncpg.Connection, device_row: int, root_spki: bytes, now: datetime
) -> None:
    """Note that the device has proved to trust the root with this SHA-256 of its key."""
    await connection.execute(
        "insert into trust_proofs (device_id, root_spki_sha256, proved_at) values ($1, $2, $3) "
        "on conflict (device_id, root_spki_sha256) do update set proved_at = excluded.proved_at",
        device_row,
        root_spki,
        now,
    )


async def _admitted(connection: asyncpg.Connection, order: _Order) -> bool:
    """Return whether the device may have a certificate now; that stands until the commit."""
    admitted: bool | None = await connection.fetchval(
        "select admitted from devices where id = $1 for no key update", order.device_row
    )
    return admitted or False


async def _found(
    connection: asyncpg.Connection, order: _Order, *, now: datetime
) -> Issued | list[asyncpg.Record]:
    """Return the key's valid certificate, or what was recorded for it and not completed."""
    rows = await connection.fetch(
        "select c.serial, c.device_id, c.state, c.chain, c.not_after, c.renew_after, c.revoked_at, "
        "c.recorded_at, c.authority_id, a.state = 'gone' as gone from certificates c "
        "left join authorities a on a.id = c.authority_id where c.spki_sha256 = $1 "
        "order by c.recorded_at desc, c.serial",
        order.spki,
    )
    for row in rows:
        if row["device_id"] != order.device_row:
            raise RefusedError("key_in_use", "this key belongs to another device; make a new one")
        if row["revoked_at"] is not None or row["state"] == "revoked":
            raise RefusedError("key_revoked", "this key was revoked; make a new one")
    for row in rows:
        if row["chain"] is not None and row["not_after"] > now and not row["gone"]:
            return _issued(row)
    return [row for row in rows if row["state"] == "recorded"]


async def _record(
    connection: asyncpg.Connection, order: _Order, begun: list[asyncpg.Record], *, now: datetime
) -> _Recorded:
    """Return the serial to sign: one that was begun, or a new one, recorded here.

    What was begun too long ago, or for another authority, is written off.
    """
    authority = await authority_row(connection, order.authority)
    usable = [
        row
        for row in begun
        if row["recorded_at"] > now - ABANDONED_AFTER and row["authority_id"] == authority
    ][:1]
    rest = [row["serial"] for row in begun if row not in usable]
    await _fail(connection, rest, now=now, why="abandoned")
    if usable:
        return _Recorded(usable[0]["serial"], usable[0]["recorded_at"])
    serial = f"{new_serial():x}"
    await connection.execute(
        "with recorded as (insert into certificates (serial, organisation_id, device_id, "
        "spki_sha256, recorded_at, state, authority_id, reason) "
        "values ($1, $2, $3, $4, $5, 'recorded', $6, $7)) "
        "insert into issuance_log (at, serial, event, subject, authority, detail) "
        "values ($5, $1, 'recorded', $8, $9, "
        "jsonb_build_object('reason', $7, 'spki_sha256', encode($4, 'hex')))",
        serial,
        order.organisation,
        order.device_row,
        order.spki,
        now,
        authority,
        order.reason,
        order.device,
        order.authority.name,
    )
    return _Recorded(serial, now)


async def _complete(
    connection: asyncpg.Connection, order: _Order, issued: Issued, *, now: datetime, stage: bool
) -> Issued:
    """Fill the recorded row in, after what it supersedes has given way; return what stands there.

    If the same key asked twice at once, the other may have been first.
    """
    row = await connection.fetchrow(
        "select serial, state, chain, not_after, renew_after from certificates "
        "where serial = $1 for update",
        issued.serial,
    )
    if row["state"] != "recorded":
        if row["chain"] is None or row["state"] == "revoked":
            raise UnavailableError("the certificate was withdrawn while it was signed; ask again")
        return _issued(row)
    await connection.execute(
        "update certificates set state = case state when 'staged' then 'retired' else 'retiring' "
        "end, retired_at = case state when 'staged' then $2::timestamptz end "
        "where device_id = $1 and (state = 'staged' or (state = 'active' and not $3))",
        order.device_row,
        now,
        stage,
    )
    await connection.execute(
        "with completed as (update certificates set chain = $2, not_after = $3, renew_after = $4, "
        "state = case when $5 then 'staged' else 'active' end, "
        "staged_at = case when $5 then $6::timestamptz end, "
        "activated_at = case when $5 then null else $6::timestamptz end where serial = $1) "
        "insert into issuance_log (at, serial, event, subject, authority, detail) "
        "values ($6, $1, 'signed', $7, $8, jsonb_build_object('not_after', $3::timestamptz))",
        issued.serial,
        issued.chain_pem,
        issued.not_after,
        issued.renew_after,
        stage,
        now,
        order.device,
        order.authority.name,
    )
    return issued


async def _fail(
    connection: asyncpg.Connection, serials: list[str], *, now: datetime, why: str
) -> None:
    """Write recorded serials off: they were never handed out."""
    if not serials:
        return
    await connection.execute(
        "with failed as (update certificates set state = 'failed', retired_at = $2 "
        "where serial = any($1) and state = 'recorded' returning serial, device_id, authority_id) "
        "insert into issuance_log (at, serial, event, subject, authority, detail) "
        "select $2, f.serial, 'refused', d.device, coalesce(a.name, ''), "
        "jsonb_build_object('why', $3::text) from failed f join devices d on d.id = f.device_id "
        "left join authorities a on a.id = f.authority_id",
        serials,
        now,
        why,
    )


def _not_admitted(device: str) -> RefusedError:
    return RefusedError("device_not_admitted", f"{device} is not admitted")


def _issued(row: asyncpg.Record) -> Issued:
    renew_after = row["renew_after"] or row["not_after"] - LEAF_LIFE * (1 - _LATEST)
    return Issued(row["serial"], row["chain"], row["not_after"], renew_after)
