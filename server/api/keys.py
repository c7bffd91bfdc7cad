"""API keys, and who is asking.

Verification of `Authorization: Bearer vk_<prefix>_<secret>`:
1. the header has this form, else refused;
2. the prefix names a key that was not revoked and has not ended;
3. SHA-256 of the secret equals the stored one, compared in constant time (a missing key is
   compared too, so that a prefix cannot be found by timing);
4. the key has the scope that the route needs.

An address that failed too often waits before its next key is looked up (0); only a key that was
good before passes, since behind a proxy all callers have one address.

Each answer to a caller says what its rate leaves, in the fields of draft-ietf-httpapi-ratelimit-
headers-10: `RateLimit-Policy` the quota and its window, `RateLimit` what remains.
"""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import asyncpg
import structlog
from aiohttp import web

from server.api.problems import SignInError, TooManyError
from server.audit.log import record
from server.db.engine import ACQUIRE_TIMEOUT_S, acting
from server.errors import ConflictError, NotFoundError, RefusedError
from server.people.throttle import network

log = structlog.get_logger(__name__)

T = TypeVar("T")
Identify = Callable[[web.Request], Awaitable[tuple[int, str] | None]]
"""Tells the organisation and the user of a signed-in page session, None if there is none."""

SCOPES = frozenset(
    {
        "read",
        "register:write",
        "sources:write",
        "opinions:write",
        "experiments:write",
        "accuracy:write",
        "feeds:write",
        "health:write",
        "targets:write",
        "settings:write",
        "commands:write",
        "rollouts:write",
    }
)
NOTED_EVERY_S = 60.0
"""A key's last use is written no more often."""


_BEARER = re.compile(r"Bearer vk_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_NOBODY = bytes(32)
_MOST_BUCKETS = 10_000
_MOST_GOOD = 10_000
_FAILURES_PER_S, _FAILURES_AT_ONCE = 0.5, 30


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking: the organisation, by which key or session, with which scopes."""

    organisation: int
    by: str
    scopes: frozenset[str]


async def nobody(_: web.Request) -> None:
    """Where pages and their sessions are not served."""


async def create_api_key(
    connection: asyncpg.Connection,
    organisation_id: int,
    note: str = "",
    *,
    scopes: Sequence[str] = ("read",),
    expires_at: datetime | None = None,
    actor: str = "command",
    now: datetime | None = None,
) -> str:
    """Create a key and return it; it is not shown again. RefusedError names an unknown scope."""
    if unknown := set(scopes) - SCOPES:
        raise RefusedError("unknown_scope", f"{sorted(unknown)}: known are {sorted(SCOPES)}")
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = secrets.token_urlsafe(32)
    async with connection.transaction():
        await connection.execute(
            "insert into api_keys (organisation_id, prefix, secret_sha256, note, scopes, "
            "expires_at) values ($1, $2, $3, $4, $5, $6)",
            organisation_id,
            prefix,
            hashlib.sha256(secret.encode()).digest(),
            note,
            sorted(set(scopes)),
            expires_at,
        )
        await record(
            connection,
            actor=actor,
            act="key created",
            subject=f"key {prefix}",
            detail={"scopes": sorted(set(scopes))},
            organisation=organisation_id,
            now=now or datetime.now(UTC),
        )
    return f"vk_{prefix}_{secret}"


async def rotate_api_key(
    connection: asyncpg.Connection,
    prefix: str,
    *,
    overlap: timedelta,
    actor: str = "command",
    now: datetime,
) -> str:
    """Create a key that takes another's place, and end that one after `overlap`.

    Raises NotFoundError if there is no valid key of this prefix, ConflictError if it was rotated.
    """
    async with connection.transaction():
        old = await connection.fetchrow(
            "select id, organisation_id, note, scopes, replaced_by from api_keys "
            "where prefix = $1 and revoked_at is null and coalesce(expires_at > $2, true) "
            "for update",
            prefix,
            now,
        )
        if old is None:
            raise NotFoundError(f"no valid key vk_{prefix}")
        if old["replaced_by"] is not None:
            raise ConflictError(f"vk_{prefix} was rotated already, and ends by itself")
        key = await create_api_key(
            connection,
            old["organisation_id"],
            old["note"],
            scopes=old["scopes"],
            actor=actor,
            now=now,
        )
        made = key.split("_")[1]
        await connection.execute(
            "update api_keys set expires_at = least(expires_at, $2), "
            "replaced_by = (select id from api_keys where prefix = $3) where id = $1",
            old["id"],
            now + overlap,
            made,
        )
        await record(
            connection,
            actor=actor,
            act="key rotated",
            subject=f"key {prefix}",
            detail={"by": made, "ends": (now + overlap).isoformat(timespec="seconds")},
            organisation=old["organisation_id"],
            now=now,
        )
    return key


async def revoke_api_key(
    connection: asyncpg.Connection,
    prefix: str,
    *,
    actor: str = "command",
    now: datetime | None = None,
) -> bool:
    """Revoke the key that begins `vk_<prefix>`; False if there is none that is valid."""
    now = now or datetime.now(UTC)
    async with connection.transaction():
        organisation = await connection.fetchval(
            "update api_keys set revoked_at = $2 where prefix = $1 and revoked_at is null "
            "returning organisation_id",
            prefix,
            now,
        )
        if organisation is None:
            return False
        await record(
            connection,
            actor=actor,
            act="key revoked",
            subject=f"key {prefix}",
            organisation=organisation,
            now=now,
        )
    return True


@asynccontextmanager
async def temporary_api_key(dsn: str, organisation_id: int, *, note: str) -> AsyncIterator[str]:
    """Give a key for the length of a command; `dsn` is the owner's."""

    async def on_connection(
        act: Callable[[asyncpg.Connection], Awaitable[T]],
    ) -> T:
        connection = await asyncpg.connect(dsn)
        try:
            return await act(connection)
        finally:
            await connection.close()

    key = await on_connection(lambda c: create_api_key(c, organisation_id, note=note))
    try:
        yield key
    finally:
        await on_connection(lambda c: revoke_api_key(c, key.split("_")[1]))


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may still be asked: `left` of `quota` at once, and all of it again in `whole_s`."""

    quota: int
    window_s: int
    left: int
    whole_s: int

    @property
    def headers(self) -> dict[str, str]:
        """The fields of the draft."""
        return {
            "RateLimit-Policy": f'"key";q={self.quota};w={self.window_s}',
            "RateLimit": f'"key";r={self.left};t={self.whole_s}',
        }


ALLOWANCE = web.RequestKey("allowance", Allowance)
"""Where a request keeps what its caller may still ask."""


async def admitted(
    request: web.Request, sign_in: "SignIn", limit: "RateLimit", *, scope: str
) -> Caller:
    """Return who is asking, within its rate and with `scope`; note in the request what is left.

    Raises SignInError, TooManyError, RefusedError (missing_scope).
    """
    caller = await sign_in.caller(request)
    try:
        limit.take(caller.by)
    finally:
        request[ALLOWANCE] = limit.allowance(caller.by)
    demand_scope(caller, scope)
    return caller


class SignIn:
    """Who is asking, by session or key; failed keys are limited by address.

    `desk` is the desk's pool, which notes when a key was last used; None: nobody does.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        identify: Identify,
        *,
        desk: asyncpg.Pool | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._pool, self._identify, self._desk = pool, identify, desk
        self._monotonic = monotonic
        self._noted: dict[str, float] = {}  # when each key's last use was written
        self._failures = RateLimit(
            per_s=_FAILURES_PER_S, burst=_FAILURES_AT_ONCE, monotonic=monotonic
        )
        self._good: dict[bytes, None] = {}  # digests of headers, the first to come the first to go

    async def caller(self, request: web.Request) -> Caller:
        """Return who is asking. Raises SignInError, TooManyError."""
        signed_in = await self._identify(request)
        if signed_in is not None:
            return Caller(*signed_in, frozenset({"read"}))
        header = request.headers.get("Authorization")
        if header is None:
            raise SignInError("this route needs an API key")
        address, digest = network(request.remote), hashlib.sha256(header.encode()).digest()
        if digest not in self._good:  # 0
            self._failures.demand(address)
        try:
            found = await _holder(self._pool, header)
        except SignInError:
            self._good.pop(digest, None)
            self._failures.take(address)
            raise
        if len(self._good) >= _MOST_GOOD and digest not in self._good:
            del self._good[next(iter(self._good))]
        self._good[digest] = None
        await self._note_use(found)
        return found

    async def _note_use(self, caller: Caller) -> None:
        """Write that a key is in use, at most once a minute; an answer never fails of it."""
        now = self._monotonic()
        if self._desk is None or now - self._noted.get(caller.by, -NOTED_EVERY_S) < NOTED_EVERY_S:
            return
        if len(self._noted) >= _MOST_GOOD and caller.by not in self._noted:
            del self._noted[next(iter(self._noted))]
        self._noted[caller.by] = now
        try:
            async with acting(self._desk, "note a key", organisation=caller.organisation) as db:
                await db.execute(
                    "update api_keys set last_used_at = now() where prefix = $1",
                    caller.by.removeprefix("key "),
                )
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.debug("a key's use was not noted", error=str(error))


async def _holder(pool: asyncpg.Pool, header: str) -> Caller:
    """Return whose key this is. Raises SignInError."""
    match = _BEARER.fullmatch(header)  # 1
    if match is None:
        raise SignInError("the Authorization header is not of the form `Bearer vk_…_…`")
    prefix, secret = match.groups()
    async with pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
        holder = await connection.fetchrow("select * from api_key_holder($1)", prefix)  # 2
    digest = hashlib.sha256(secret.encode()).digest()
    expected = _NOBODY if holder is None else holder["secret_sha256"]
    if not hmac.compare_digest(digest, expected) or holder is None:  # 3
        raise SignInError("this key is not valid, or was revoked")
    return Caller(holder["organisation_id"], f"key {prefix}", frozenset(holder["scopes"]))


def demand_scope(caller: Caller, scope: str) -> None:
    """Raise RefusedError (missing_scope) unless the caller has `scope`."""
    if scope not in caller.scopes:  # 4
        raise RefusedError("missing_scope", f"this route needs the scope {scope!r}")


class RateLimit:
    """A token bucket per key: `per_s` on average, `burst` at once.

    At most 10,000 buckets are kept; the fullest are dropped first, which forgives them nothing.
    """

    def __init__(self, *, per_s: float, burst: int, monotonic: Callable[[], float]) -> None:
        self._per_s, self._burst, self._monotonic = per_s, burst, monotonic
        self._buckets: dict[str, tuple[float, float]] = {}

    def demand(self, key: str) -> None:
        """Raise TooManyError with the seconds to wait unless there is a token to take."""
        tokens, _ = self._tokens(key)
        if tokens < 1:
            raise TooManyError((1 - tokens) / self._per_s)

    def take(self, key: str) -> None:
        """Take one token. Raises TooManyError with the seconds to wait."""
        tokens, now = self._tokens(key)
        if tokens < 1:
            self._buckets[key] = tokens, now
            raise TooManyError((1 - tokens) / self._per_s)
        if key not in self._buckets and len(self._buckets) >= _MOST_BUCKETS:
            fullest = max(self._buckets, key=lambda name: self._buckets[name][0])
            del self._buckets[fullest]
        self._buckets[key] = tokens - 1, now

    def allowance(self, key: str) -> Allowance:
        """Return what is left to `key`."""
        tokens, _ = self._tokens(key)
        return Allowance(
            self._burst,
            math.ceil(self._burst / self._per_s),
            int(tokens),
            math.ceil((self._burst - tokens) / self._per_s),
        )

    def _tokens(self, key: str) -> tuple[float, float]:
        """Return how many tokens there are now, and when that is."""
        now = self._monotonic()
        tokens, since = self._buckets.get(key, (float(self._burst), now))
        return min(self._burst, tokens + (now - since) * self._per_s), now
