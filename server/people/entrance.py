"""Signing in: a password, then a code where the user has set one up.

What is asked, in this order; the same numbers stand in the code:

1. Neither this network nor this account failed too often of late. A browser that signed in to the
   account before has a count of its own, so that nobody's guesses keep its owner out.
2. There is such a user, who has a password and is not disabled. Where not, the work and the answer
   are those of a wrong password.
3. The password is right.
4. Where codes were set up: the code is right, and its step was not used before. Between the two
   stands a sealed ticket: this user, this password, this browser, five minutes.

Then the session the browser had ends, and another begins, under a token it never had.

A try that was not heard to its end, such as without the database, counts as none.
"""

import hashlib
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from server.audit.log import record
from server.db.engine import ACQUIRE_TIMEOUT_S, transaction
from server.errors import RefusedError
from server.people import links, sessions, totp
from server.people.passwords import Passwords
from server.people.sealing import Seal
from server.people.throttle import Throttle, TooManyTriesError, network

TICKET_LIFE = timedelta(minutes=5)
_TICKET = struct.Struct("<qq16s")
_MOST_EMAIL = 300


class WrongError(RefusedError):
    """It is not them, or not yet; nothing says which part is wrong."""

    def __init__(self) -> None:
        super().__init__("wrong_sign_in", "e-mail, password or code are not right")


@dataclass(frozen=True, slots=True)
class Browser:
    """Who tries. `mark`: the cookie of a browser that signed in before; `nonce`: its form's."""

    address: str
    name: str
    mark: str = field(default="", repr=False)
    nonce: str = field(default="", repr=False)
    session_id: int | None = None


@dataclass(frozen=True, slots=True)
class Entered:
    """They are in: a session's token, and the mark by which the browser is known from now on."""

    user_ref: str
    language: str
    by: str
    token: str = field(repr=False)
    mark: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CodeWanted:
    """The password was right; a code is wanted with this ticket."""

    ticket: str = field(repr=False)


class Entrance:
    """Lets people in. `pool` is the desk's."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        passwords: Passwords,
        seal: Seal,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._pool, self._passwords, self._seal = pool, passwords, seal
        self._now = now

        def throttle(free: int, most_s: float) -> Throttle:
            return Throttle(
                free=free, first_s=1, most_s=most_s, forget_s=6 * 3600, monotonic=monotonic
            )

        self._networks = throttle(20, 300)  # a shop's whole staff has one address
        self._accounts = throttle(5, 900)
        self._known = throttle(5, 60)
        self._proofs = throttle(5, 900)  # of who is half in, or in: codes, and passwords again

    async def sign_in(self, email: str, password: str, browser: Browser) -> Entered | CodeWanted:
        """Try e-mail and password. Raises WrongError, TooManyTriesError, UnavailableError."""
        account = email.strip().lower()[:_MOST_EMAIL]
        attempt = self._begin(account, browser)  # 1
        with _undone_unless_wrong(attempt.undo):
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                row = await connection.fetchrow(
                    "select id, password_hash, totp_confirmed_at from users "
                    "where lower(email) = $1 and disabled_at is null",
                    account,
                )
            stored = None if row is None else row["password_hash"]  # 2
            match = await self._passwords.matches(stored, password)
            if not match.right or row is None:  # 3
                raise WrongError
        attempt.succeeded()
        async with transaction(self._pool, "sign in") as connection:
            kept = match.rehashed or stored
            if match.rehashed:
                await connection.execute(
                    "update users set password_hash = $2 where id = $1 and password_hash = $3",
                    row["id"],
                    match.rehashed,
                    stored,
                )
            if row["totp_confirmed_at"] is not None:
                return CodeWanted(self._ticket(row["id"], kept, browser.nonce))
            return await self.enter(connection, row["id"], browser, by="password")

    async def give_code(self, ticket: str, code: str, browser: Browser) -> Entered:
        """Try a code with the ticket of the password. Raises WrongError, TooManyTriesError."""
        held = self._held(ticket, browser.nonce)
        if held is None:
            raise WrongError
        user_id, password = held
        key = f"code {user_id}"
        self._proofs.begin(key)  # 1
        with _undone_unless_wrong(lambda: self._proofs.undo(key)):
            entered = await self._enter_by_code(user_id, password, code, browser)
        self._proofs.forgive(key)
        return entered

    async def _enter_by_code(
        self, user_id: int, password: bytes, code: str, browser: Browser
    ) -> Entered:
        async with transaction(self._pool, "sign in by code") as connection:
            row = await connection.fetchrow(
                "select password_hash from users where id = $1 and disabled_at is null", user_id
            )
            if row is None or _fingerprint(row["password_hash"]) != password:  # 2, 3
                raise WrongError
            right = await totp.spend(connection, self._seal, user_id, code, now=self._now())  # 4
            if not right:
                raise WrongError
            return await self.enter(connection, user_id, browser, by="password and code")

    async def prove(self, user_id: int, password: str) -> None:
        """Ask who is signed in for their password again. Raises as `sign_in` does."""
        key = f"password {user_id}"
        self._proofs.begin(key)
        with _undone_unless_wrong(lambda: self._proofs.undo(key)):
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
                stored = await connection.fetchval(
                    "select password_hash from users where id = $1", user_id
                )
            if not (await self._passwords.matches(stored, password)).right:
                raise WrongError
        self._proofs.forgive(key)

    async def follow(self, token: str, browser: Browser) -> Entered | None:
        """Sign in by a link that works once; None if it does not (any more)."""
        async with transaction(self._pool, "sign in by link") as connection:
            purpose = links.Purpose.SIGN_IN
            holder = await links.use(connection, token, purpose, now=self._now())
            if holder is None:
                return None
            return await self.enter(connection, holder.user_id, browser, by="link")

    async def enter(
        self, connection: asyncpg.Connection, user_id: int, browser: Browser, *, by: str
    ) -> Entered:
        """Begin a session in the caller's transaction, which has proved who it is."""
        now = self._now()
        if browser.session_id is not None:
            await connection.execute(
                "update sessions set ended_at = $2 where id = $1 and ended_at is null",
                browser.session_id,
                now,
            )
        token, session_id = await sessions.start(
            connection, user_id, address=browser.address, browser=browser.name, now=now
        )
        user = await connection.fetchrow(
            "select ref, email, language from users where id = $1", user_id
        )
        seen = await sessions.resolve_id(connection, session_id, now=now)
        if seen is None:
            raise WrongError  # disabled in this instant
        await record(
            connection,
            actor=seen.actor,
            act="user signed in",
            subject=seen.actor,
            detail={"by": by},
            organisation=seen.organisation,
            now=now,
        )
        mark = self._mark(user["email"].lower())
        return Entered(user["ref"], user["language"], by, token, mark)

    # -- who failed too often ------------------------------------------------------------------

    def _begin(self, account: str, browser: Browser) -> "_Attempt":
        """Count a try. Raises TooManyTriesError."""
        if browser.mark and self._is_known(browser.mark, account):
            key = hashlib.sha256(browser.mark.encode()).hexdigest()
            self._known.begin(key)
            return _Attempt(None, "", self._known, key)
        name, key = network(browser.address), hashlib.sha256(account.encode()).hexdigest()
        self._accounts.demand(key)
        self._networks.begin(name)
        try:
            self._accounts.begin(key)
        except TooManyTriesError:
            self._networks.undo(name)
            raise
        return _Attempt(self._networks, name, self._accounts, key)

    def _mark(self, account: str) -> str:
        return _text(self._seal.seal("known browser", _account_digest(account)))

    def _is_known(self, mark: str, account: str) -> bool:
        """Whether we gave the mark to a browser that signed in to this account."""
        return self._seal.unseal("known browser", _bytes(mark)) == _account_digest(account)

    # -- between password and code -------------------------------------------------------------

    def _ticket(self, user_id: int, password_hash: str | None, nonce: str) -> str:
        until = int((self._now() + TICKET_LIFE).timestamp())
        data = _TICKET.pack(user_id, until, _fingerprint(password_hash))
        return _text(self._seal.seal("sign-in ticket", data, bound=nonce.encode()))

    def _held(self, ticket: str, nonce: str) -> tuple[int, bytes] | None:
        data = self._seal.unseal("sign-in ticket", _bytes(ticket), bound=nonce.encode())
        if data is None:
            return None
        user_id, until, password = _TICKET.unpack(data)
        return None if self._now().timestamp() >= until else (user_id, password)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try under its counts."""

    networks: Throttle | None
    network: str
    accounts: Throttle
    account: str

    def undo(self) -> None:
        """It was not heard: it counts for nothing."""
        if self.networks is not None:
            self.networks.undo(self.network)
        self.accounts.undo(self.account)

    def succeeded(self) -> None:
        """The account's failures are forgiven; the network's other failures stay."""
        if self.networks is not None:
            self.networks.undo(self.network)
        self.accounts.forgive(self.account)


@contextmanager
def _undone_unless_wrong(undo: Callable[[], None]) -> Iterator[None]:
    """Take a try back that failed for another reason than being wrong."""
    try:
        yield
    except WrongError:
        raise
    except Exception:
        undo()
        raise


def _account_digest(account: str) -> bytes:
    return hashlib.sha256(account.encode()).digest()


def _fingerprint(password_hash: str | None) -> bytes:
    return hashlib.sha256((password_hash or "").encode()).digest()[:16]


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text[:512] + "=" * (-len(text[:512]) % 4))
    except (Base64Error, ValueError):
        return b""
