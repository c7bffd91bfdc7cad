"""The key in a command that a page shows: good while its session lasts, two hours at most.

`vsk.<session>.<organisation>.<until>.<HMAC-SHA-256>`. What is asked of one, in this order; the same
numbers stand in the code:

1. We signed it (constant time).
2. It has not ended.
3. Its session lasts, and its user may still read all of the organisation's numbers.
"""

import binascii
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime

from aiohttp import web

from server.people.roles import Permission, Place
from server.people.sealing import Seal
from server.web.sessions import Sessions, Visitor, visitor

LIFE_S = 3600
_PURPOSE = "command on a page"
_PASS = re.compile(r"Bearer vsk\.(\d{1,18})\.(\d{1,9})\.(\d{1,12})\.([A-Za-z0-9_-]{43})", re.I)


class Passes:
    """Makes such keys, and tells on whose behalf a request of the API is made."""

    def __init__(self, seal: Seal, sessions: Sessions, *, now: Callable[[], datetime]) -> None:
        self._seal, self._sessions, self._now = seal, sessions, now

    def make(self, found: Visitor, organisation: int) -> str:
        """Return a bearer key; the same within the hour."""
        until = (int(self._now().timestamp()) // LIFE_S + 2) * LIFE_S
        body = f"{found.session_id}.{organisation}.{until}"
        return f"vsk.{body}.{_text(self._seal.sign(_PURPOSE, body.encode()))}"

    async def asker(self, request: web.Request) -> tuple[int, str] | None:
        """Return the organisation and who asks, by session or by such a key; None without."""
        found = visitor(request)
        if found is not None and found.organisation is not None:
            return _allowed(found, found.organisation)
        match = _PASS.fullmatch(request.headers.get("Authorization", ""))
        if match is None:
            return None
        session, organisation, until, signature = match.groups()
        wanted = self._seal.sign(_PURPOSE, f"{session}.{organisation}.{until}".encode())
        if not hmac.compare_digest(_bytes(signature), wanted):  # 1
            return None
        if self._now().timestamp() >= int(until):  # 2
            return None
        holder = await self._sessions.lasting(int(session))  # 3
        return None if holder is None else _allowed(holder, int(organisation))


def _allowed(found: Visitor, organisation: int) -> tuple[int, str] | None:
    may = found.may(Permission.READ_NUMBERS, Place(organisation))
    return (organisation, found.actor) if may else None


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    try:
        return urlsafe_b64decode(text + "=")
    except (ValueError, binascii.Error):
        return b""
