"""Passwords: which are taken, and their hashes, whose cost is bounded whoever asks.

argon2id with OWASP's first set of parameters (46 MiB, one pass, one lane). Two threads hash and
thirty may wait, so that a flood of sign-ins takes 92 MiB and never the loop; who comes on top of
that is told to try again. A hash of older parameters is made anew when its password is next used.
"""

import asyncio
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from server.errors import RefusedError, UnavailableError

T = TypeVar("T")
LEAST, MOST = 12, 256
AT_ONCE = 2
MOST_WAITING = 30
HASHER = PasswordHasher(time_cost=1, memory_cost=47_104, parallelism=1)
_FEWEST_CHARACTERS = 4
_FORBIDDEN = frozenset((Path(__file__).parent / "forbidden_passwords.txt").read_text().split())


def demand_good(password: str, *, email: str = "") -> None:
    """Raise RefusedError (password_short, password_long, password_known) unless it will do."""
    text = _normal(password)
    if len(text) < LEAST:
        raise RefusedError("password_short", f"a password has {LEAST} characters at least")
    if len(text) > MOST:
        raise RefusedError("password_long", f"a password has {MOST} characters at most")
    plain = text.casefold()
    if plain in _FORBIDDEN or plain == email.casefold() or len(set(plain)) < _FEWEST_CHARACTERS:
        raise RefusedError("password_known", "this password is among the first that are tried")


@dataclass(frozen=True, slots=True)
class Match:
    """Whether a password was right; `rehashed`: its new hash, if its parameters were of old."""

    right: bool
    rehashed: str | None = None


class Passwords:
    """Hashes and compares, a few at a time. See the module."""

    def __init__(self, hasher: PasswordHasher = HASHER) -> None:
        self._hasher = hasher
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="passwords")
        self._waiting = 0
        self._nobodys = hasher.hash("of nobody")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, password: str) -> str:
        """Return the hash to keep. Raises UnavailableError if too many wait."""
        return await self._run(partial(self._hasher.hash, _normal(password)))

    async def matches(self, stored: str | None, password: str) -> Match:
        """Compare; for a user who is not there (None) it is as much work. UnavailableError."""
        text = _normal(password)
        return await self._run(partial(self._compare, stored if len(text) <= MOST else None, text))

    def _compare(self, stored: str | None, password: str) -> Match:
        try:
            self._hasher.verify(self._nobodys if stored is None else stored, password)
        except (VerificationError, InvalidHashError):
            return Match(False)
        if stored is None:
            return Match(False)
        stale = self._hasher.check_needs_rehash(stored)
        return Match(True, self._hasher.hash(password) if stale else None)

    async def _run(self, work: "partial[T]") -> T:
        if self._waiting >= AT_ONCE + MOST_WAITING:
            raise UnavailableError("too many are signing in just now")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1


def _normal(password: str) -> str:
    """Return one form for what keyboards write in several (NFKC); cut where none is that long."""
    return unicodedata.normalize("NFKC", password[: 2 * MOST])
