"""Who asks for a page: the session's cookie in, a `Visitor` in the request, forms proved.

What changes anything (every method but GET, HEAD and OPTIONS) passes, in this order; the same
numbers stand in the code:

1. It comes from a page of ours: `Sec-Fetch-Site` says same-origin, and `Origin` is ours; a browser
   that sends neither is refused.
2. It carries the session's form token, in the field `csrf` or the header `X-CSRF-Token`. Who is
   not signed in has a nonce in a cookie instead, whose token the sign-in form carries.

What another site's page loads into itself (0), a live page or a file, has no session; only who
follows a link from there keeps theirs.

Under `/v1/` a request that does not pass is one without a session; its key still counts. So do the
vouchers in what a technician's phone sends.
"""

import hmac
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import NoReturn
from urllib.parse import urlencode, urlsplit

import asyncpg
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from server.config import Settings
from server.db.engine import ACQUIRE_TIMEOUT_S
from server.people.roles import Permission, Place, scopes
from server.people.sessions import LIFE, Visitor, csrf_token, resolve, resolve_id

__all__ = [
    "Sessions",
    "Visitor",
    "demand",
    "demand_organisation",
    "form_token",
    "home",
    "signed_in",
    "stranger",
    "visitor",
]

CSRF_FIELD = "csrf"
CSRF_HEADER = "X-CSRF-Token"
SIGN_IN = "/signin"
CHOOSE = "/organisations"
ACCOUNT = "/account"
HOMES = ((Permission.READ_NUMBERS, "/"), (Permission.PROVISION, "/tech"))
"""Where somebody begins: the first of these pages that is for them."""
API = "/v1/"
_OTHERWISE_PROVED = (API, "/tech/acts")
"""Where what does not pass may bring another right than a session."""
_MARK_LIFE_S = 180 * 24 * 3600
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = ("/static/", "/healthz", "/readyz", "/metrics", "/s/", "/unsubscribe/")
"""What asks no one's name, and so not the database either: a survey is proved by its address; so is
the end of a digest, which a mail program asks for by itself (RFC 8058)."""
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_VISITOR = web.RequestKey("visitor", Visitor)
_NONCE = web.RequestKey("nonce", str)
_NEW_NONCE = web.RequestKey("new nonce", str)


def visitor(request: web.Request) -> Visitor | None:
    """Return who is signed in, None if nobody."""
    return request.get(_VISITOR)


def signed_in(request: web.Request) -> Visitor:
    """Return who is signed in; leads to the sign-in page (or says 401) if nobody."""
    found = visitor(request)
    if found is None:
        stranger(request)
    return found


def demand(request: web.Request, permission: Permission, place: Place) -> Visitor:
    """Return who is signed in and may do this there.

    Raises the way to the sign-in page for who is not signed in, and for who may not the same 404 as
    for what does not exist.
    """
    found = signed_in(request)
    if not found.may(permission, place):
        raise web.HTTPNotFound
    return found


def demand_organisation(request: web.Request, permission: Permission) -> tuple[Visitor, int]:
    """Return who is signed in and the organisation they look at, at some place of which they may.

    Raises as `demand`; leads who has yet to choose an organisation to where that is done.
    """
    found = signed_in(request)
    if found.organisation is None and found.chooses:
        raise web.HTTPSeeOther(CHOOSE)
    if found.organisation is None or not any(
        place.organisation in (None, found.organisation)
        for place in scopes(found.grants, permission)
    ):
        raise web.HTTPNotFound
    return found, found.organisation


def home(found: Visitor) -> str:
    """Return the page where `found` begins."""
    for permission, path in HOMES:
        if scopes(found.grants, permission):
            return path
    return ACCOUNT


def stranger(request: web.Request) -> NoReturn:
    """Lead who is not signed in to the sign-in page and back; a script gets 401 instead."""
    to = urlencode({"to": request.path_qs}) if request.method in _SAFE else ""
    if "HX-Request" in request.headers:
        back = urlencode({"to": _path_of(request.headers.get("HX-Current-URL", "/"))})
        raise web.HTTPUnauthorized(
            text="sign in first", headers={"HX-Redirect": f"{SIGN_IN}?{back}"}
        )
    if "text/html" in request.headers.get("Accept", ""):
        raise web.HTTPSeeOther(f"{SIGN_IN}?{to}" if to else SIGN_IN)
    raise web.HTTPUnauthorized(text="sign in first")


def _path_of(url: str) -> str:
    """Return the path of a page, with its query; / of what is no address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "/"
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def form_token(request: web.Request) -> str:
    """Return what a form on this page must carry; makes the nonce of who is not signed in."""
    found = visitor(request)
    if found is not None:
        return found.csrf
    if _NONCE not in request:
        request[_NONCE] = request[_NEW_NONCE] = secrets.token_urlsafe(32)
    return csrf_token(request[_NONCE])


class Sessions:
    """The middleware that knows who asks, and the cookies; `pool` is the desk's."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: Settings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool, self._now = pool, now
        self._origin = _origin(settings.public_url)
        self._secure = settings.public_url.startswith("https://")
        # __Host-: over HTTPS alone, from this host alone, for all of it
        self.cookie = "__Host-vestibule" if self._secure else "vestibule"
        self._nonce_cookie = f"{self.cookie}-form"
        self._mark_cookie = f"{self.cookie}-known"

    @property
    def middleware(self) -> Middleware:
        """For the outermost application."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            if not request.path.startswith(_OPEN) and request.path != "/s":
                await self._enter(request)
            response = await handler(request)
            if _NEW_NONCE in request and not response.prepared:
                self._keep(response, self._nonce_cookie, request[_NEW_NONCE])
            return response

        return guard

    def begin(self, response: web.StreamResponse, token: str) -> None:
        """Give the browser a session's token."""
        self._keep(response, self.cookie, token, max_age=int(LIFE.total_seconds()))
        self._forget(response, self._nonce_cookie)

    def mark(self, request: web.Request) -> str:
        """Return the mark of a browser that signed in before."""
        return request.cookies.get(self._mark_cookie, "")

    def keep_mark(self, response: web.StreamResponse, mark: str) -> None:
        """Let the browser be known again."""
        self._keep(response, self._mark_cookie, mark, max_age=_MARK_LIFE_S)

    def nonce(self, request: web.Request) -> str:
        """Return what this browser's forms are bound to while nobody is signed in."""
        return str(request.get(_NONCE, ""))

    def forget(self, response: web.StreamResponse) -> None:
        """Take the browser's token away; the session itself is ended in the database."""
        self._forget(response, self.cookie)

    async def lasting(self, session_id: int) -> Visitor | None:
        """Return who a session is of, if it still lasts: for what goes on after its request."""
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return await resolve_id(connection, session_id, now=self._now())

    async def _enter(self, request: web.Request) -> None:
        token, nonce = request.cookies.get(self.cookie), request.cookies.get(self._nonce_cookie)
        if nonce:
            request[_NONCE] = nonce
        # what a page asks by itself, to stay fresh, does not keep a session awake
        by_itself = request.method == "GET" and "HX-Request" in request.headers
        if token is None or _from_elsewhere(request):  # 0
            found = None
        else:
            found = await self._visitor(token, used=not by_itself)
        if request.method not in _SAFE:
            if not self._from_our_page(request):  # 1
                if not request.path.startswith(_OTHERWISE_PROVED):
                    raise web.HTTPForbidden(text="only a page of this server may do this")
                found = None
            elif not await self._proved(request, found):  # 2
                if not request.path.startswith(_OTHERWISE_PROVED):
                    if found is None:
                        stranger(request)
                    raise web.HTTPForbidden(text="this form has ended: load its page again")
                found = None
        if found is not None:
            request[_VISITOR] = found

    async def _visitor(self, token: str, *, used: bool) -> Visitor | None:
        async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return await resolve(connection, token, used=used, now=self._now())

    def _from_our_page(self, request: web.Request) -> bool:
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        ours = self._origin or f"http://{request.host}"
        if site is not None:
            return site == "same-origin" and origin in (None, "null", ours)
        return origin == ours

    async def _proved(self, request: web.Request, found: Visitor | None) -> bool:
        form = await _form(request) if request.content_type in _FORMS else {}
        given = request.headers.get(CSRF_HEADER, form.get(CSRF_FIELD))
        if found is None and _NONCE not in request:
            return False
        wanted = csrf_token(request[_NONCE]) if found is None else found.csrf
        return isinstance(given, str) and hmac.compare_digest(given.encode(), wanted.encode())

    def _keep(
        self, response: web.StreamResponse, name: str, value: str, *, max_age: int | None = None
    ) -> None:
        response.set_cookie(
            name,
            value,
            max_age=max_age,
            path="/",
            httponly=True,
            samesite="Lax",
            secure=self._secure,
        )

    def _forget(self, response: web.StreamResponse, name: str) -> None:
        response.del_cookie(name, path="/", httponly=True, samesite="Lax", secure=self._secure)


def _from_elsewhere(request: web.Request) -> bool:
    """Whether the browser says that another site's page asks, and not for a page to go to."""
    site, mode = request.headers.get("Sec-Fetch-Site"), request.headers.get("Sec-Fetch-Mode")
    return request.method in _SAFE and site in ("cross-site", "same-site") and mode != "navigate"


async def _form(request: web.Request) -> Mapping[str, object]:
    """Return a form's fields; 400 if it is none, or holds what no text in the database may."""
    try:
        form = await request.post()
        text = "".join(value for value in form.values() if isinstance(value, str))
        text.encode()  # some encodings write half a surrogate pair, which is no text
    except (ValueError, LookupError, RuntimeError) as error:  # no boundary, no such encoding
        raise web.HTTPBadRequest(text="the form can't be read") from error
    if "\0" in text:
        raise web.HTTPBadRequest(text="the form holds a NUL")
    return form


def _origin(url: str) -> str:
    """Return the scheme and host of `url`, as a browser writes them; empty for an empty one."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower() if parts.netloc else ""
