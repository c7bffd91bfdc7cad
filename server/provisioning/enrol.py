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

import hashlib
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from cryptography.hazmat.primitives import serialization

from server.db.engine import transaction
from server.errors import RefusedError
from server.fleet.register import notify
from server.pki.authority import Authority, RequestRefusedError, proven_key
from server.provisioning.claims import digest
from server.provisioning.issuing import issue


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
        await connection.execute(
            "update claims set used_at = coalesce(used_at, $2), spki_sha256 = $3 where id = $1",
            claim["id"],
            now,
            spki,
        )
    issued = await issue(  # 4, 6
        pool,
        authority,
        device_row=claim["device_id"],
        device=claim["device"],
        organisation=claim["organisation_id"],
        csr_pem=csr_pem,
        spki=spki,
        reason="enrolment",
        now=now,
        stage=False,
    )
    async with transaction(pool, "complete enrolment") as connection:
        await _provisioned(connection, claim["device_id"], now=now)
        await notify(connection, claim["device"])
    return Enrolment(claim["device"], claim["kind"], issued.chain_pem)


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
    return RefusedError("device_not_admitted", f"{device} is not admitted")


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
