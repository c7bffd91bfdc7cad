"""Links that work once: an invitation, a new password, a sign-in without one.

A link is 256 random bits, of which the database keeps SHA-256. What is asked of one, in this order;
the same numbers stand in the code:

1. It has our form.
2. It was made for this purpose, was not used, and has not ended.
3. Its user is not disabled.

Using one is a single update, so of two who try at once one gets in.

Who is invited where they have an account gets a hollow link: it opens the page of any invitation,
and chooses nothing. It is one that was used before it was made.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg


class Purpose(StrEnum):
    """What a link is good for."""

    INVITATION = "invitation"
    PASSWORD = "password"  # noqa: S105
    SIGN_IN = "sign-in"


LIVES = {
    Purpose.INVITATION: timedelta(days=7),
    Purpose.PASSWORD: timedelta(hours=24),
    Purpose.SIGN_IN: timedelta(minutes=10),
}
PATHS = {
    Purpose.INVITATION: "/invitation",
    Purpose.PASSWORD: "/password",
    Purpose.SIGN_IN: "/link",
}
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose link it is."""

    user_id: int
    ref: str
    email: str
    name: str
    language: str
    hollow: bool = False


async def make(
    connection: asyncpg.Connection, user_id: int, purpose: Purpose, *, now: datetime
) -> str:
    """Return a new link's token; earlier ones for the same purpose are worth nothing any more."""
    token = secrets.token_urlsafe(32)
    if purpose is not Purpose.SIGN_IN:
        await void(connection, user_id, purpose, now=now)
    await connection.execute(
        "insert into one_time_links (token_sha256, user_id, purpose, created_at, expires_at) "
        "values ($1, $2, $3, $4, $5)",
        _digest(token),
        user_id,
        purpose,
        now,
        now + LIVES[purpose],
    )
    return token


async def make_hollow(connection: asyncpg.Connection, user_id: int, *, now: datetime) -> str:
    """Return the token of an invitation that lets nobody choose; earlier such ones have ended."""
    token = secrets.token_urlsafe(32)
    await connection.execute(
        "update one_time_links set used_at = $2 where user_id = $1 and used_at < created_at",
        *(user_id, now),
    )
    await connection.execute(
        "insert into one_time_links (token_sha256, user_id, purpose, created_at, expires_at, "
        "used_at) values ($1, $2, $3, $4, $5, $6)",
        *(_digest(token), user_id, Purpose.INVITATION, now, now + LIVES[Purpose.INVITATION]),
        now - timedelta(seconds=1),
    )
    return token


def address(base: str, purpose: Purpose, token: str) -> str:
    """Return where the link leads, below `base`."""
    return f"{base}{PATHS[purpose]}?token={token}"


async def look(
    connection: asyncpg.Connection, token: str, purpose: Purpose, *, now: datetime
) -> Holder | None:
    """Return whose link it is without using it, for a page that asks first; hollow ones too."""
    if not _TOKEN.fullmatch(token):  # 1
        return None
    row = await connection.fetchrow(
        "select u.id, u.ref, u.email, u.name, u.language, l.used_at is not null as hollow "
        "from one_time_links l join users u on u.id = l.user_id "
        "where l.token_sha256 = $1 and l.purpose = $2 and l.expires_at > $3 "
        "and (l.used_at < l.created_at or (l.used_at is null and u.disabled_at is null))",  # 2, 3
        _digest(token),
        purpose,
        now,
    )
    return None if row is None else Holder(*row.values())


async def use(
    connection: asyncpg.Connection, token: str, purpose: Purpose, *, now: datetime
) -> Holder | None:
    """Use the link up and return whose it is; None if it is not to be used (any more)."""
    if not _TOKEN.fullmatch(token):  # 1
        return None
    row = await connection.fetchrow(
        "update one_time_links l set used_at = $3 from users u where u.id = l.user_id "
        "and l.token_sha256 = $1 and l.purpose = $2 and l.used_at is null and l.expires_at > $3 "
        "and u.disabled_at is null "  # 2, 3
        "returning u.id, u.ref, u.email, u.name, u.language",
        _digest(token),
        purpose,
        now,
    )
    return None if row is None else Holder(*row.values())


async def void(
    connection: asyncpg.Connection, user_id: int, purpose: Purpose | None = None, *, now: datetime
) -> None:
    """Make a user's unused links worthless: of one purpose, or all."""
    await connection.execute(
        "update one_time_links set used_at = $3 "
        "where user_id = $1 and used_at is null and ($2::text is null or purpose = $2)",
        user_id,
        purpose,
        now,
    )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
