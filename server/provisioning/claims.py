"""One-time claims: made once, shown once, kept as a hash.

The token a technician carries is `vst1.` and the base64url of a JSON object: `u` the server's
address, `f` the SHA-256 of the fleet root's DER, `c` the secret.
"""

import base64
import hashlib
import json
import secrets
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from server.config import Settings

CLAIM_LIFE = timedelta(days=30)


def root_fingerprint(pki: Path) -> str:
    """Return the SHA-256 of the fleet root in hexadecimal digits."""
    root = x509.load_pem_x509_certificate((pki / "root.pem").read_bytes())
    return root.fingerprint(hashes.SHA256()).hex()


def token(*, url: str, fingerprint: str, secret: str) -> str:
    """Return the text that `vestibule-agent enrol` takes."""
    body = json.dumps({"u": url, "f": fingerprint, "c": secret}, separators=(",", ":"))
    return "vst1." + base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


async def claim_token(
    connection: asyncpg.Connection, settings: Settings, device_row: int, *, now: datetime
) -> str:
    """Make a claim for the device and return the token that carries it; it is stored nowhere."""
    secret = await make_claim(connection, device_row, now=now)
    fingerprint = root_fingerprint(settings.pki)
    return token(url=settings.enrolment_url, fingerprint=fingerprint, secret=secret)


async def make_claim(
    connection: asyncpg.Connection, device_row: int, *, now: datetime, life: timedelta = CLAIM_LIFE
) -> str:
    """Make a claim for the device and return its secret, which is stored nowhere."""
    secret = secrets.token_urlsafe(24)
    await connection.execute(
        "insert into claims (organisation_id, device_id, secret_sha256, expires_at) "
        "select organisation_id, id, $2, $3 from devices where id = $1",
        device_row,
        digest(secret),
        now + life,
    )
    return secret


def digest(secret: str) -> bytes:
    """Return what the database keeps of a secret: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).digest()
