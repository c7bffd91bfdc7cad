"""A proven key becomes a certificate, exactly one, whatever is killed in between.

The steps, each a transaction or none; the same numbers stand in the code:

1. The serial is recorded, in `certificates` and in `issuance_log`: nothing is signed unrecorded.
2. The authority signs, in a thread. What is signed follows from the record alone (its serial and
   its time), so signing again after a crash gives the same certificate.
3. The certificate is filled in and becomes what it was asked for: active, the one before it then
   retiring; or staged, until a session has proved it.

Between 1 and 3 a crash leaves a row in state `recorded`. The same key asking again completes it;
`sweep` writes it off after an hour. `issue` does all three; `enrol` does 1 (`begin`) and 3 (`hold`,
`complete`) in transactions of its own, with what else is to be true then.

Invariants: a key belongs to one device for ever. The same key gets the same certificate, as long
as that is valid. A device has one active and at most one staged certificate.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.db.engine import transaction
from server.errors import UnavailableError
from server.fleet.lifecycle import State
from server.pki.authority import Authority, Proof, RequestRefusedError, proof
from server.pki.profile import LEAF_LIFE, new_serial
from server.provisioning.authorities import authority_row
from server.provisioning.refusals import refused

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
class Order:
    """Whose key is to be certified, why, and who signs it."""

    device_row: int
    device: str
    organisation: int
    key: Proof
    reason: str
    authority: Authority


@dataclass(frozen=True, slots=True)
class Recorded:
    """A serial that may be signed, and the certificate's time."""

    serial: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate and its device under their locks; `issued` once it is complete."""

    life: State
    state: str
    reason: str
    issued: Issued | None


def proved(csr_pem: str, *, device: str | None = None) -> Proof:
    """Return what a request proves; `device`: who asks, if that is known. RefusedError."""
    try:
        return proof(csr_pem.encode(), device=device)
    except RequestRefusedError as error:
        raise refused("bad_request_for_certificate") from error


async def issue(
    pool: asyncpg.Pool,
    authority: Authority,
    *,
    device_row: int,
    device: str,
    organisation: int,
    key: Proof,
    reason: str,
    now: datetime,
    stage: bool,
) -> Issued:
    """Return the device's certificate for this key, signing it if there is none yet.

    `stage`: a renewal, to be proved at the broker before it replaces the active one. Raises
    RefusedError: `key_in_use` (another device's), `key_revoked`, `device_not_admitted`.
    """
    order = Order(device_row, device, organisation, key, reason, authority.current())
    async with transaction(pool, "record certificate") as connection:
        if not await _admitted(connection, order):
            raise refused("device_not_admitted")
        recorded = await begin(connection, order, now=now)  # 1
    if isinstance(recorded, Issued):
        return recorded
    issued = await sign(order, recorded)  # 2
    async with transaction(pool, "complete certificate") as connection:
        held = await hold(connection, order, issued.serial, now=now)
        if held is not None and held.state == "revoked":
            raise UnavailableError("the certificate was withdrawn while it was signed; ask again")
        if held is not None and held.issued is None:
            await complete(connection, order, issued, now=now, stage=stage)  # 3
    if held is None:
        raise refused("device_not_admitted")
    return held.issued or issued


def key_lock(spki: bytes) -> int:
    """Return the advisory lock that serialises those who ask for one key.

    It is taken before the device's row: no two then wait for each other.
    """
    return int.from_bytes(spki[:8], signed=True)


async def begin(
    connection: asyncpg.Connection, order: Order, *, now: datetime
) -> Issued | Recorded:
    """Step 1: return the serial to sign, recorded here or begun before; or what is issued already.

    The caller's transaction holds the key's lock and the row of the device, which is admitted. What
    was begun too long ago, or for another authority, is written off.
    """
    found = await _record(connection, order, now=now)
    if isinstance(found, Recorded):
        return found
    for row in found:
        if row["device_id"] != order.device_row:
            raise refused("key_in_use")
        if row["revoked_at"] is not None or row["state"] == "revoked":
            raise refused("key_revoked")
    for row in found:
        if row["chain"] is not None and row["not_after"] > now and not row["gone"]:
            return _issued(row)
    begun = [row for row in found if row["state"] == "recorded"]
    usable = [
        row
        for row in begun
        if row["recorded_at"] > now - ABANDONED_AFTER and row["authority_id"] == row["signing"]
    ][:1]
    rest = [row["serial"] for row in begun if row not in usable]
    await _fail(connection, rest, now=now, why="abandoned")
    if usable:
        return Recorded(usable[0]["serial"], usable[0]["recorded_at"])
    again = await _record(connection, order, now=now, known=True)
    assert isinstance(again, Recorded)
    return again


async def sign(order: Order, recorded: Recorded) -> Issued:
    """Step 2: sign what is recorded, and committed."""
    signed = await asyncio.to_thread(
        order.authority.issue_device,
        order.key,
        device=order.device,
        serial=int(recorded.serial, 16),
        now=recorded.at,
    )
    return Issued(
        recorded.serial,
        signed.chain_pem.decode(),
        signed.not_after,
        renewal_time(order.device, recorded.serial, since=recorded.at),
    )


async def hold(
    connection: asyncpg.Connection, order: Order, serial: str, *, now: datetime
) -> Held | None:
    """Lock the device and its certificate until the commit, and return how they stand.

    None: the device is not admitted, and what was recorded is written off. If the same key asked
    twice at once, the other may have completed it already.
    """
    row = await connection.fetchrow(
        "select d.admitted, d.state as life, c.serial, c.state, c.reason, c.chain, c.not_after, "
        "c.renew_after from devices d, certificates c where d.id = $1 and c.serial = $2 "
        "for no key update of d, c",
        order.device_row,
        serial,
    )
    if not row["admitted"]:
        await _fail(connection, [serial], now=now, why="device_not_admitted")
        return None
    if row["chain"] is None and row["state"] not in ("recorded", "revoked"):
        raise UnavailableError("the certificate was written off while it was signed; ask again")
    issued = None if row["state"] == "recorded" or row["chain"] is None else _issued(row)
    return Held(State(row["life"]), row["state"], row["reason"], issued)


async def complete(
    connection: asyncpg.Connection,
    order: Order,
    issued: Issued,
    *,
    now: datetime,
    stage: bool,
    only: bool = False,
) -> list[str]:
    """Step 3: fill the row in, after what it supersedes has given way; `hold` has locked it.

    `only`: no other key of the device is to be good any more. Returns the serials revoked for that.
    """
    rows = await connection.fetch(
        _COMPLETE,
        issued.serial,
        order.device_row,
        order.key.spki_sha256,
        now,
        stage,
        only,
        issued.chain_pem,
        issued.not_after,
        issued.renew_after,
        order.reason,
        order.device,
        order.authority.device_authority.name,
    )
    return [row["serial"] for row in rows if row["event"] == "revoked"]


# One statement; `completed` reads `gone`, so the active one has given way before the next is.
_COMPLETE = """
with gone as (
  update certificates set
    state = case when $6 and spki_sha256 <> $3 then 'revoked'
      when state = 'staged' then 'retired' else 'retiring' end,
    revoked_at = case when $6 and spki_sha256 <> $3 then $4::timestamptz end,
    retired_at = case when state = 'staged' and not ($6 and spki_sha256 <> $3)
      then $4::timestamptz end
  where device_id = $2 and serial <> $1 and (state = 'staged' or (state = 'active' and not $5)
    or ($6 and spki_sha256 <> $3 and state = 'retiring'))
  returning serial, state, authority_id),
completed as (
  update certificates set chain = $7, not_after = $8, renew_after = $9, reason = $10,
    state = case when $5 then 'staged' else 'active' end,
    staged_at = case when $5 then $4::timestamptz end,
    activated_at = case when $5 then null else $4::timestamptz end
  from (select count(*) from gone) before where serial = $1)
insert into issuance_log (at, serial, event, subject, authority, detail)
select $4::timestamptz, serial, event, $11::text, authority, detail from (
  select 1 as number, serial, 'signed' as event, $12::text as authority,
    jsonb_build_object('not_after', $8::timestamptz) as detail
    from certificates where serial = $1 and state = 'recorded'
  union all
  select 2, g.serial, 'revoked', coalesce(a.name, 'device'), '{}'
    from gone g left join authorities a on a.id = g.authority_id where g.state = 'revoked'
) done order by number, serial returning serial, event
"""


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


async def _admitted(connection: asyncpg.Connection, order: Order) -> bool:
    """Lock key and device; return whether the device may have a certificate until the commit."""
    admitted: bool | None = await connection.fetchval(
        "with key as materialized (select pg_advisory_xact_lock($2)) "
        "select d.admitted from key, devices d where d.id = $1 for no key update of d",
        order.device_row,
        key_lock(order.key.spki_sha256),
    )
    return admitted or False


async def _record(
    connection: asyncpg.Connection, order: Order, *, now: datetime, known: bool = False
) -> Recorded | list[asyncpg.Record]:
    """Record a new serial; or return what there is of this key, unless that is `known`."""
    serial, described = f"{new_serial():x}", order.authority.device_authority
    rows: list[asyncpg.Record] = await connection.fetch(
        _RECORD,
        serial,
        order.organisation,
        order.device_row,
        order.key.spki_sha256,
        now,
        order.reason,
        order.device,
        described.name,
        described.state,
        known,
    )
    if rows[0]["recorded"] is not None:
        return Recorded(serial, now)
    if rows[0]["signing"] is None:  # this authority's first, or its first since its state changed
        await authority_row(connection, described)
        return await _record(connection, order, now=now, known=known)
    return rows


# One statement, so that the usual case, a new key, is one. Key and device were locked before it.
_RECORD = """
with signing as materialized (select id from authorities where name = $8 and state = $9),
known as materialized (
  select c.serial, c.device_id, c.state, c.chain, c.not_after, c.renew_after, c.revoked_at,
    c.recorded_at, c.authority_id, a.state = 'gone' as gone
  from certificates c left join authorities a on a.id = c.authority_id where c.spki_sha256 = $4),
recorded as (
  insert into certificates (serial, organisation_id, device_id, spki_sha256, recorded_at, state,
    authority_id, reason)
  select $1, $2, $3, $4, $5, 'recorded', id, $6::text from signing
    where $10 or not exists (select from known)
  returning serial),
logged as (
  insert into issuance_log (at, serial, event, subject, authority, detail)
  select $5, serial, 'recorded', $7, $8,
    jsonb_build_object('reason', $6::text, 'spki_sha256', encode($4, 'hex')) from recorded)
select (select serial from recorded) as recorded, (select id from signing) as signing, known.*
from (select) one left join known on true order by known.recorded_at desc, known.serial
"""


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


def _issued(row: asyncpg.Record) -> Issued:
    renew_after = row["renew_after"] or row["not_after"] - LEAF_LIFE * (1 - _LATEST)
    return Issued(row["serial"], row["chain"], row["not_after"], renew_after)
