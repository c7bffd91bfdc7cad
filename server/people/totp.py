"""Codes from a phone (TOTP, RFC 6238): SHA-1, six digits, 30 seconds, as every app knows them.

The phone's clock may be one step off either way. A step is used once: a code that was seen over a
shoulder opens nothing, and neither does an older one.
"""

import re
import secrets
from datetime import datetime

import asyncpg
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from server.people.sealing import Seal

STEP_S = 30
DIGITS = 6
SECRET_BYTES = 20
ISSUER = "Vestibule"
_CODE = re.compile(r"[0-9]{6}")
_PURPOSE = "totp"


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


def provisioning_uri(secret: bytes, email: str) -> str:
    """Return the `otpauth://` address that an app reads from a QR code."""
    return _totp(secret).get_provisioning_uri(email, ISSUER)


def step_of(secret: bytes, code: str, *, last_step: int, now: datetime) -> int | None:
    """Return the step that `code` is of, None if it is wrong, too old, or its step was used."""
    code = "".join(code.split())
    if not _CODE.fullmatch(code):
        return None
    current = int(now.timestamp()) // STEP_S
    found: int | None = None
    for step in (current - 1, current, current + 1):
        try:
            _totp(secret).verify(code.encode(), step * STEP_S)
        except InvalidToken:
            continue
        if step > last_step:
            found = step
    return found


async def begin(
    connection: asyncpg.Connection,
    seal: Seal,
    user_id: int,
    secret: bytes,
    code: str,
    *,
    now: datetime,
) -> bool:
    """Ask for codes of `secret` from now on; False if `code` is wrong or another was begun."""
    step = step_of(secret, code, last_step=0, now=now)
    if step is None:
        return False
    done: str = await connection.execute(
        "update users set totp_sealed = $2, totp_confirmed_at = $3, totp_last_step = $4 "
        "where id = $1 and totp_confirmed_at is null",
        user_id,
        seal.seal(_PURPOSE, secret, bound=_bound(user_id)),
        now,
        step,
    )
    return done == "UPDATE 1"


async def spend(
    connection: asyncpg.Connection, seal: Seal, user_id: int, code: str, *, now: datetime
) -> bool:
    """Use up a code: True once for each step, whoever else tries at the same time."""
    row = await connection.fetchrow(
        "select totp_sealed, totp_last_step from users "
        "where id = $1 and totp_confirmed_at is not null",
        user_id,
    )
    if row is None or row["totp_sealed"] is None:
        return False
    secret = seal.unseal(_PURPOSE, row["totp_sealed"], bound=_bound(user_id))
    if secret is None:
        return False
    step = step_of(secret, code, last_step=row["totp_last_step"], now=now)
    if step is None:
        return False
    done: str = await connection.execute(
        "update users set totp_last_step = $2 where id = $1 and totp_last_step < $2", user_id, step
    )
    return done == "UPDATE 1"


async def forget(connection: asyncpg.Connection, user_id: int) -> None:
    """Ask for no codes any more."""
    await connection.execute(
        "update users set totp_sealed = null, totp_confirmed_at = null, totp_last_step = 0 "
        "where id = $1",
        user_id,
    )


def _totp(secret: bytes) -> TOTP:
    return TOTP(secret, DIGITS, SHA1(), STEP_S)  # noqa: S303 - what apps speak; HMAC needs no better


def _bound(user_id: int) -> bytes:
    return b"user %d" % user_id
