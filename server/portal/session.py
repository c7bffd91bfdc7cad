"""Who looks at the portal: links that sign in, and the cookie they are exchanged for.

A token is `<base64url of {organisation, purpose, expiry}>.<HMAC-SHA-256>`. Verification, in this
order; the same numbers stand in the code:

1. The signature is ours (constant time), under a key for this purpose alone: a link is no session.
2. It has not expired.

This holds until users and roles exist: whoever holds a link reads that organisation's numbers.
Without `session_secret` nobody can sign in.
"""

import base64
import binascii
import hashlib
import hmac
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from urllib.parse import urlencode

from aiohttp import web

from server.config import Settings

COOKIE = "vestibule_session"
LINK_LIFE_S = 600
SESSION_LIFE_S = 12 * 3600
KEY_LIFE_S = 3600
_KEY_PREFIX = "vsk."
_MAX_TOKEN = 256
_MIN_SECRET = 16


class Purpose(StrEnum):
    """What a token is good for."""

    LINK = "link"
    SESSION = "session"
    KEY = "key"


class Bearer(Protocol):
    """What may carry a session: a request's cookies and headers."""

    @property
    def cookies(self) -> "_Texts": ...
    @property
    def headers(self) -> "_Texts": ...


class _Texts(Protocol):
    def get(self, key: str, default: str, /) -> str: ...


@dataclass(frozen=True, slots=True)
class Token:
    """A checked token."""

    organisation: int
    expires_s: int


def sign_in_link(
    settings: Settings, organisation: int, *, base: str, now_s: float, to: str = "/"
) -> str:
    """Return an address below `base` that signs in for `organisation` within ten minutes."""
    token = issue(settings, organisation, Purpose.LINK, until_s=int(now_s) + LINK_LIFE_S)
    return f"{base}/signin?{urlencode({'token': token, 'to': to})}"


def hourly_key(settings: Settings, organisation: int, *, now_s: float) -> str:
    """Return a bearer key for the API that ends within two hours; stable within the hour."""
    until = (int(now_s) // KEY_LIFE_S + 2) * KEY_LIFE_S
    return _KEY_PREFIX + issue(settings, organisation, Purpose.KEY, until_s=until)


def issue(settings: Settings, organisation: int, purpose: Purpose, *, until_s: int) -> str:
    """Return a token. Raises ValueError if there is no secret to sign with."""
    body = f"{organisation}.{until_s}"
    signature = _sign(settings, purpose, body)
    if not signature:
        raise ValueError("VESTIBULE_SESSION_SECRET is not set (16 characters at least)")
    return f"{_encode(body.encode())}.{_encode(signature)}"


def check(settings: Settings, text: str, purpose: Purpose, *, now_s: float) -> Token | None:
    """Return what a token says, None if it is not to be believed (1, 2)."""
    encoded, _, signature = text[:_MAX_TOKEN].partition(".")
    try:
        body, signed = _decode(encoded).decode("ascii"), _decode(signature)
    except (ValueError, binascii.Error):
        return None
    wanted = _sign(settings, purpose, body)
    if not wanted or not hmac.compare_digest(wanted, signed):  # 1
        return None
    organisation, _, until = body.partition(".")
    token = Token(int(organisation), int(until))
    return token if now_s < token.expires_s else None  # 2


def identify(request: Bearer, settings: Settings, *, now_s: float | None = None) -> int | None:
    """Return the organisation of the request's session or hourly key, None without either."""
    now = time.time() if now_s is None else now_s
    cookie = request.cookies.get(COOKIE, "")
    token = check(settings, cookie, Purpose.SESSION, now_s=now) if cookie else None
    if token is None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and key.startswith(_KEY_PREFIX):
            token = check(settings, key.removeprefix(_KEY_PREFIX), Purpose.KEY, now_s=now)
    return None if token is None else token.organisation


def start_session(
    response: web.StreamResponse, settings: Settings, organisation: int, *, now_s: float
) -> None:
    """Give the browser its session; over HTTPS alone where the server's address is HTTPS."""
    token = issue(settings, organisation, Purpose.SESSION, until_s=int(now_s) + SESSION_LIFE_S)
    response.set_cookie(
        COOKIE,
        token,
        max_age=SESSION_LIFE_S,
        httponly=True,
        samesite="Lax",
        secure=settings.public_url.startswith("https://"),
    )


def _sign(settings: Settings, purpose: Purpose, body: str) -> bytes:
    secret = settings.session_secret.reveal()
    if len(secret) < _MIN_SECRET:
        return b""
    key = hmac.digest(secret.encode(), f"portal {purpose}".encode(), hashlib.sha256)
    return hmac.digest(key, body.encode(), hashlib.sha256)


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
