"""API keys, and who is asking.

Verification of `Authorization: Bearer vk_<prefix>_<secret>`:
1. the header has this form, else refused;
2. the prefix names a key that is not revoked;
3. SHA-256 of the secret equals the stored one, compared in constant time (a missing key is
   compared too, so that a prefix cannot be found by timing);
4. the key has the scope that the route needs.

An address that failed too often waits before its next key is looked up (0); only a key that was
good before passes, since behind a proxy all callers have one address.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import asyncpg
from aiohttp import web

from server.api.problems import SignInError, TooManyError
from server.db.engine import ACQUIRE_TIMEOUT_S
from server.errors import RefusedError

T = TypeVar("T")
Identify = Callable[[web.Request], int | None]
"""Tells the organisation of a signed-in page session, None if there is none."""

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


async def create_api_key(
    connection: asyncpg.Connection, organisation_id: int, note: str = ""
) -> str:
    """Create a key that may read and return it; it is not shown again. The owner's connection."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = secrets.token_urlsafe(32)
    await connection.execute(
        "insert into api_keys (organisation_id, prefix, secret_sha256, note) "
        "values ($1, $2, $3, $4)",
        organisation_id,
        prefix,
        hashlib.sha256(secret.encode()).digest(),
        note,
    )
    return f"vk_{prefix}_{secret}"


async def revoke_api_key(connection: asyncpg.Connection, prefix: str) -> bool:
    """Revoke the key that begins `vk_<prefix>`; False if there is none that is valid."""
    done: str = await connection.execute(
        "update api_keys set revoked_at = now() where prefix = $1 and revoked_at is null", prefix
    )
    return done == "UPDATE 1"


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


class SignIn:
    """Who is asking, by session or key; failed keys are limited by address."""

    def __init__(
        self, pool: asyncpg.Pool, identify: Identify, *, monotonic: Callable[[], float]
    ) -> None:
        self._pool, self._identify = pool, identify
        self._failures = RateLimit(
            per_s=_FAILURES_PER_S, burst=_FAILURES_AT_ONCE, monotonic=monotonic
        )
        self._good: dict[bytes, None] = {}  # digests of headers, the first to come the first to go

    async def caller(self, request: web.Request) -> Caller:
        """Return who is asking. Raises SignInError, TooManyError."""
        organisation = self._identify(request)
        if organisation is not None:
            return Caller(organisation, f"session {organisation}", frozenset({"read"}))
        header = request.headers.get("Authorization")
        if header is None:
            raise SignInError("this route needs an API key")
        address, digest = _network(request.remote), hashlib.sha256(header.encode()).digest()
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
        return found


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


def _network(address: str | None) -> str:
    """Return what one caller has: an address of IPv4, a /64 of IPv6."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:  # a socket that has no address
        return ""
    return str(ipaddress.ip_network((found, 64), strict=False) if found.version == 6 else found)


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

    def _tokens(self, key: str) -> tuple[float, float]:
        """Return how many tokens there are now, and when that is."""
        now = self._monotonic()
        tokens, since = self._buckets.get(key, (float(self._burst), now))
        return min(self._burst, tokens + (now - since) * self._per_s), now
