"""Sessions: who is signed in. They live in the database, and end there at once.

The browser holds a random token of 256 bits, the database its SHA-256 alone. What is asked of a
token, in this order; the same numbers stand in the code:

1. It has our form.
2. A session has its hash.
3. The session was not ended, began less than 12 hours ago, and was used in the last 2.
4. Its user is not disabled.

Grants are read with each request: what was revoked is gone with the next one. The token changes
whenever somebody signs in, or changes what it takes to sign in.
"""

import hashlib
import hmac
import json
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from server.people.roles import Grant, Permission, Place, Role, may

LIFE = timedelta(hours=12)
IDLE = timedelta(hours=2)
NOTED_EVERY = timedelta(minutes=1)
"""`last_seen` is written no more often."""

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_MAX_BROWSER = 200


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who is signed in, as of this request; `organisation` is the one they look at."""

    user_id: int
    user_ref: str
    name: str
    language: str
    grants: tuple[Grant, ...]
    session_id: int
    organisation: int | None
    csrf: str = field(repr=False)

    @property
    def actor(self) -> str:
        """How the audit names them."""
        return f"user {self.user_ref}"

    @property
    def oversees(self) -> bool:
        """Whether some grant covers every organisation."""
        return any(grant.organisation is None for grant in self.grants)

    @property
    def chooses(self) -> bool:
        """Whether there is more than one organisation to look at."""
        return self.oversees or len({grant.organisation for grant in self.grants}) > 1

    def may(self, permission: Permission, place: Place) -> bool:
        return may(self.grants, permission, place)


@dataclass(frozen=True, slots=True)
class Listed:
    """A session, as its user is shown it."""

    id: int
    created_at: datetime
    last_seen: datetime
    address: str
    browser: str


async def start(
    connection: asyncpg.Connection,
    user_id: int,
    *,
    address: str,
    browser: str,
    now: datetime,
) -> tuple[str, int]:
    """Begin a session; return its token, which is nowhere else, and its row."""
    token = secrets.token_urlsafe(32)
    row: int = await connection.fetchval(
        "insert into sessions (user_id, token_sha256, csrf_sha256, created_at, last_seen, "
        "expires_at, address, browser) values ($1, $2, $3, $4, $4, $5, $6, $7) returning id",
        user_id,
        _digest(token),
        _digest(csrf_token(token)),
        now,
        now + LIFE,
        address,
        browser[:_MAX_BROWSER],
    )
    return token, row


async def resolve(
    connection: asyncpg.Connection, token: str, *, used: bool = True, now: datetime
) -> Visitor | None:
    """Return whose session the token is, None if nobody's; notes that it was `used`."""
    if not _TOKEN.fullmatch(token):  # 1
        return None
    found = await _visitor(connection, token=token, session_id=None, now=now)
    if found is None:
        return None
    seen, last_seen = found
    if used and now - last_seen >= NOTED_EVERY:
        await connection.execute(
            "update sessions set last_seen = $2 where id = $1", seen.session_id, now
        )
    return seen


async def resolve_id(
    connection: asyncpg.Connection, session_id: int, *, now: datetime
) -> Visitor | None:
    """Return whose session this row is, by the same rules; it cannot prove a form."""
    found = await _visitor(connection, token=None, session_id=session_id, now=now)
    return None if found is None else found[0]


async def _visitor(
    connection: asyncpg.Connection, *, token: str | None, session_id: int | None, now: datetime
) -> tuple[Visitor, datetime] | None:
    row = await connection.fetchrow(
        "select s.id, s.organisation_id, s.last_seen, u.id as user_id, u.ref, u.name, u.language, "
        "coalesce((select json_agg(json_build_array(g.role, g.organisation_id, g.region_id, "
        "g.site_id) order by g.id) from grants g where g.user_id = u.id), '[]')::text as grants "
        "from sessions s join users u on u.id = s.user_id "
        "where (s.token_sha256 = $1 or s.id = $2) "  # 2
        "and s.ended_at is null and s.expires_at > $3 and s.last_seen > $4 "  # 3
        "and u.disabled_at is null",  # 4
        None if token is None else _digest(token),
        session_id,
        now,
        now - IDLE,
    )
    if row is None:
        return None
    grants = tuple(Grant(Role(role), *place) for role, *place in json.loads(row["grants"]))
    seen = Visitor(
        row["user_id"],
        row["ref"],
        row["name"],
        row["language"],
        grants,
        row["id"],
        looked_at(grants, row["organisation_id"]),
        "" if token is None else csrf_token(token),
    )
    return seen, row["last_seen"]


def looked_at(grants: Sequence[Grant], chosen: int | None) -> int | None:
    """Return the organisation to look at: the chosen one while a grant reaches it, or the only."""
    reached = {grant.organisation for grant in grants}
    if chosen is not None and (chosen in reached or None in reached):
        return chosen
    return next(iter(reached)) if len(reached) == 1 else None


async def look_at(connection: asyncpg.Connection, session_id: int, organisation: int) -> None:
    """Let a session look at an organisation; the caller has checked that a grant reaches it."""
    await connection.execute(
        "update sessions set organisation_id = $2 where id = $1", session_id, organisation
    )


async def rotate(connection: asyncpg.Connection, session_id: int) -> str:
    """Give the session another token and return it; the old one is worth nothing from now on."""
    token = secrets.token_urlsafe(32)
    await connection.execute(
        "update sessions set token_sha256 = $2, csrf_sha256 = $3 where id = $1",
        session_id,
        _digest(token),
        _digest(csrf_token(token)),
    )
    return token


async def end(
    connection: asyncpg.Connection, session_id: int, *, user_id: int, now: datetime
) -> bool:
    """End one of a user's sessions; False if it had ended, or is another's."""
    done: str = await connection.execute(
        "update sessions set ended_at = $3 where id = $1 and user_id = $2 and ended_at is null",
        session_id,
        user_id,
        now,
    )
    return done == "UPDATE 1"


async def end_all(
    connection: asyncpg.Connection, user_id: int, *, but: int | None = None, now: datetime
) -> int:
    """End every session of a user, `but` one; return how many."""
    done: str = await connection.execute(
        "update sessions set ended_at = $3 "
        "where user_id = $1 and ended_at is null and id is distinct from $2",
        user_id,
        but,
        now,
    )
    return int(done.split()[-1])


async def listed(connection: asyncpg.Connection, user_id: int, *, now: datetime) -> list[Listed]:
    """Return a user's sessions that have not ended, the last used first."""
    rows = await connection.fetch(
        "select id, created_at, last_seen, address, browser from sessions where user_id = $1 "
        "and ended_at is null and expires_at > $2 and last_seen > $3 order by last_seen desc, id",
        user_id,
        now,
        now - IDLE,
    )
    return [Listed(*row.values()) for row in rows]


def csrf_token(token: str) -> str:
    """Return what a form must carry; who has the cookie can make it, who has not cannot."""
    mac = hmac.digest(token.encode(), b"vestibule form", hashlib.sha256)
    return urlsafe_b64encode(mac).decode().rstrip("=")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
