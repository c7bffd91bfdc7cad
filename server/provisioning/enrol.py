"""A claim and a device's key become a certificate, once.

Verification, in this order; the same numbers stand in the code:

1. The request proves possession of a P-256 key; a claim is not spent on one that does not.
2. The claim's secret is known (compared by its hash).
3. It has not expired, unless this same key already used it.
4. It is unused, or was used by this same key: then the same certificate is answered again, so a
   device that lost power after asking may ask again.
5. The device is admitted: when its certificate is recorded, and again, under its row's lock, when
   it is given out.
6. The serial is recorded before anything is signed, and nothing but the key is taken from the
   request.
"""

import asyncio
import hashlib
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from cryptography.hazmat.primitives import serialization

from server.db.engine import transaction
from server.errors import RefusedError
from server.fleet.register import notify
from server.pki.authority import Authority, RequestRefusedError, proven_key
from server.pki.profile import new_serial
from server.provisioning.claims import digest


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What a device gets: who it is, and the proof of it."""

    device: str
    kind: str
    chain_pem: str


async def enrol(
    pool: asyncpg.Pool, authority: Authority, *, secret: str, csr_pem: str, now: datetime
) -> Enrolment:
    """Enrol the device that holds the claim. Raises RefusedError with the rule's code."""
    spki = _key_hash(csr_pem)  # 1
    async with transaction(pool, "record enrolment") as connection:
        claim = await _check(connection, secret=secret, spki=spki, now=now)
        chain = await connection.fetchval(
            "select chain from certificates where device_id = $1 and spki_sha256 = $2 "
            "and chain is not null and revoked_at is null order by recorded_at desc limit 1",
            claim["device_id"],
            spki,
        )
        if chain is not None:  # 4
            return Enrolment(claim["device"], claim["kind"], chain)
        serial = new_serial()
        await connection.execute(  # 6
            "insert into certificates (serial, organisation_id, device_id, spki_sha256) "
            "values ($1, $2, $3, $4)",
            f"{serial:x}",
            claim["organisation_id"],
            claim["device_id"],
            spki,
        )
        await connection.execute(
            "update claims set used_at = coalesce(used_at, $2), spki_sha256 = $3 where id = $1",
            claim["id"],
            now,
            spki,
        )
    try:
        issued = await asyncio.to_thread(
            authority.issue_device,
            csr_pem.encode(),
            device=claim["device"],
            serial=serial,
            now=now,
        )
    except RequestRefusedError as error:
        raise RefusedError("bad_request_for_certificate", str(error)) from error
    chain = issued.chain_pem.decode()
    async with transaction(pool, "complete enrolment") as connection:
        admitted = await connection.fetchval(  # 5
            "select admitted from devices where id = $1 for update", claim["device_id"]
        )
        await connection.execute(
            "update certificates set chain = $2, not_after = $3, "
            "state = case when $4 then state else 'failed' end where serial = $1",
            f"{serial:x}",
            chain if admitted else None,
            issued.not_after,
            admitted,
        )
        if admitted:
            await _provisioned(connection, claim["device_id"], now=now)
            await notify(connection, claim["device"])
    if not admitted:
        raise _not_admitted(claim["device"])
    return Enrolment(claim["device"], claim["kind"], chain)


async def _provisioned(connection: asyncpg.Connection, device: int, *, now: datetime) -> None:
    """Note that a device is enrolled; one that was further in its life stays there."""
    await connection.execute(
        "update devices set enrolled_at = coalesce(enrolled_at, $2) where id = $1", device, now
    )
    await connection.execute(
        "update devices set state = 'provisioned', state_since = $2 "
        "where id = $1 and state in ('manufactured', 'claimed')",
        device,
        now,
    )


async def _check(
    connection: asyncpg.Connection, *, secret: str, spki: bytes, now: datetime
) -> asyncpg.Record:
    """Steps 2 to 5; the claim's row stays locked until the transaction ends."""
    claim = await connection.fetchrow(
        "select c.id, c.organisation_id, c.device_id, c.expires_at, c.used_at, c.spki_sha256, "
        "d.device, d.kind, d.admitted from claims c join devices d on d.id = c.device_id "
        "where c.secret_sha256 = $1 for update of c",
        digest(secret),
    )
    if claim is None:  # 2
        raise RefusedError("unknown_claim", "this claim is not one of ours; ask for a new one")
    again = claim["spki_sha256"] == spki
    if claim["expires_at"] <= now and not again:  # 3
        raise RefusedError("claim_expired", f"this claim ended {claim['expires_at']:%Y-%m-%d}")
    if claim["used_at"] is not None and not again:  # 4
        raise RefusedError("claim_used", "this claim was used with another key; ask for a new one")
    if not claim["admitted"]:  # 5
        raise _not_admitted(claim["device"])
    return claim


def _not_admitted(device: str) -> RefusedError:
    return RefusedError("device_revoked", f"{device} is not admitted")


def _key_hash(csr_pem: str) -> bytes:
    """SHA-256 of the key that the request proves to hold; RefusedError if it proves none."""
    try:
        key = proven_key(csr_pem.encode())
    except RequestRefusedError as error:
        raise RefusedError("bad_request_for_certificate", str(error)) from error
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).digest()
