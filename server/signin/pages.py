"""Routes of signing in: e-mail, password and code; links that work once; signing out.

What a form may do is asked by `server.web.sessions` before any handler runs, what a try may do by
`server.people.entrance`. A wrong e-mail and a wrong password get the same page after the same work.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from server.db.engine import ACQUIRE_TIMEOUT_S, transaction
from server.errors import RefusedError, UnavailableError
from server.metrics import SIGN_INS
from server.people import links, sessions, users
from server.people.entrance import Browser, CodeWanted, Entered, Entrance, WrongError
from server.people.links import Holder, Purpose
from server.people.passwords import Passwords, demand_good
from server.people.throttle import TooManyTriesError
from server.web import catalogue
from server.web.sessions import SIGN_IN, Sessions, home, signed_in, visitor
from server.web.shell import LANGUAGE_COOKIE, Shell, keep_language, local_path
from server.web.site import Site

log = structlog.get_logger(__name__)

HERE = Path(__file__).parent
_OURS = ("same-origin", "same-site")


@dataclass(frozen=True, slots=True)
class Tools:
    """What the handlers of signing in and of the account share; `desk` is the desk's pool."""

    desk: asyncpg.Pool
    sessions: Sessions
    shell: Shell
    entrance: Entrance
    passwords: Passwords
    now: Callable[[], datetime]


def signin_shell(site: Site) -> Shell:
    return Shell(templates=HERE / "templates", catalogues=[HERE / "catalogues"], static=site.static)


def add_signin(
    site: Site,
    *,
    desk: asyncpg.Pool,
    entrance: Entrance,
    passwords: Passwords,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Tools:
    """Add the pages of signing in; return what the account's pages need too."""
    tools = Tools(desk, site.sessions, signin_shell(site), entrance, passwords, now)
    pages = Pages(tools)
    routes = site.app.router
    routes.add_get(SIGN_IN, pages.show)
    routes.add_post(SIGN_IN, pages.sign_in)
    routes.add_post(f"{SIGN_IN}/code", pages.give_code)
    routes.add_post("/signout", pages.sign_out)
    routes.add_get(links.PATHS[Purpose.SIGN_IN], pages.show_link)
    routes.add_post(links.PATHS[Purpose.SIGN_IN], pages.follow)
    for purpose in (Purpose.INVITATION, Purpose.PASSWORD):
        routes.add_get(links.PATHS[purpose], pages.show_choosing(purpose))
        routes.add_post(links.PATHS[purpose], pages.choose(purpose))
    return tools


class Pages:
    """The handlers."""

    def __init__(self, tools: Tools) -> None:
        self._desk, self._sessions, self._shell = tools.desk, tools.sessions, tools.shell
        self._entrance, self._passwords, self._now = tools.entrance, tools.passwords, tools.now

    # -- e-mail, password, code ----------------------------------------------------------------

    async def show(self, request: web.Request) -> web.Response:
        """The sign-in form; who is signed in goes on."""
        found = visitor(request)
        if found is not None:
            raise web.HTTPSeeOther(self._onward(request.query.get("to", "")) or home(found))
        notes = {"changed": "password_changed", "known": "account_there"}
        note = next((note for asked, note in notes.items() if asked in request.query), "")
        to = request.query.get("to", "")
        return self._form(request, "signin.html", to=to, email="", note=note)

    async def sign_in(self, request: web.Request) -> web.Response:
        """Try e-mail and password."""
        form = await request.post()
        email, to = text_of(form, "email"), text_of(form, "to")
        try:
            found = await self._entrance.sign_in(
                email, text_of(form, "password"), browser_of(request, self._sessions)
            )
        except (WrongError, TooManyTriesError, UnavailableError) as error:
            return self._refused(request, error, "signin.html", to=to, email=email, note="")
        if isinstance(found, CodeWanted):
            return self._form(request, "code.html", ticket=found.ticket, to=to)
        raise await self._enter(request, found, to=to)

    async def give_code(self, request: web.Request) -> web.Response:
        """Try a code after the password."""
        form = await request.post()
        ticket, to = text_of(form, "ticket"), text_of(form, "to")
        try:
            found = await self._entrance.give_code(
                ticket, text_of(form, "code"), browser_of(request, self._sessions)
            )
        except (WrongError, TooManyTriesError) as error:
            return self._refused(request, error, "code.html", ticket=ticket, to=to)
        raise await self._enter(request, found, to=to)

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session."""
        found = signed_in(request)
        async with transaction(self._desk, "sign out") as connection:
            await sessions.end(connection, found.session_id, user_id=found.user_id, now=self._now())
        response = web.HTTPSeeOther(SIGN_IN)
        self._sessions.forget(response)
        raise response

    # -- links ---------------------------------------------------------------------------------

    async def show_link(self, request: web.Request) -> web.Response:
        """Sign in by a link; one that another site or a mail brought asks first.

        Else whoever sends a link could let somebody act, unknowing, in the sender's account.
        """
        token, to = request.query.get("token", ""), request.query.get("to", "")
        if request.headers.get("Sec-Fetch-Site") in _OURS:
            return await self._follow(request, token, to=to)
        holder = await self._look(token, Purpose.SIGN_IN)
        if holder is None:
            return self._link_is_old(request)
        return self._shell.page(request, "link.html", holder=holder, token=token, to=to)

    async def follow(self, request: web.Request) -> web.Response:
        """Sign in by a link, asked."""
        form = await request.post()
        return await self._follow(request, text_of(form, "token"), to=text_of(form, "to"))

    async def _follow(self, request: web.Request, token: str, *, to: str) -> web.Response:
        found = await self._entrance.follow(token, browser_of(request, self._sessions))
        if found is None:
            return self._link_is_old(request)
        raise await self._enter(request, found, to=to)

    def show_choosing(self, purpose: Purpose) -> Handler:
        async def show(request: web.Request) -> web.Response:
            """Who has the link chooses a password (an invitation: name and language too)."""
            token = request.query.get("token", "")
            holder = await self._look(token, purpose)
            if holder is None:
                return self._link_is_old(request)
            return self._choosing(request, purpose, holder, token)

        return show

    def choose(self, purpose: Purpose) -> Handler:
        async def act(request: web.Request) -> web.Response:
            """Use the link up and set what was chosen."""
            form = await request.post()
            token, password = text_of(form, "token"), text_of(form, "password")
            holder = await self._look(token, purpose)
            if holder is None:
                return self._link_is_old(request)
            name, language = text_of(form, "name"), text_of(form, "language")
            try:
                if purpose is Purpose.INVITATION:
                    name = users.demand_name(name)
                demand_good_pair(password, text_of(form, "again"), email=holder.email)
                hashed = await self._passwords.hash(password)
            except (RefusedError, UnavailableError) as error:
                return self._choosing(
                    request, purpose, holder, token, name=name, problem=error.code
                )
            entered = await self._chosen(
                request, purpose, token, hashed, name=name, language=language
            )
            if entered is None and holder.hollow:
                raise web.HTTPSeeOther(f"{SIGN_IN}?known=1")
            if entered is None:
                return self._link_is_old(request)
            if isinstance(entered, Entered):
                raise await self._enter(request, entered, to="")
            raise web.HTTPSeeOther(f"{SIGN_IN}?changed=1")

        return act

    async def _chosen(
        self,
        request: web.Request,
        purpose: Purpose,
        token: str,
        hashed: str,
        *,
        name: str,
        language: str,
    ) -> Entered | Holder | None:
        """Set it all in one transaction; None if the link was used meanwhile."""
        now = self._now()
        async with transaction(self._desk, f"{purpose} link") as connection:
            holder = await links.use(connection, token, purpose, now=now)
            if holder is None:
                return None
            await users.set_password(
                connection, holder.user_id, hashed, actor=f"user {holder.ref}", now=now
            )
            if purpose is Purpose.PASSWORD:
                return holder  # they sign in with it: a code may be wanted
            spoken = language if language in catalogue.LANGUAGES else holder.language
            await users.introduce(connection, holder.user_id, name=name, language=spoken)
            return await self._entrance.enter(
                connection, holder.user_id, browser_of(request, self._sessions), by="invitation"
            )

    async def _look(self, token: str, purpose: Purpose) -> Holder | None:
        async with self._desk.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return await links.look(connection, token, purpose, now=self._now())

    # -- answers -------------------------------------------------------------------------------

    async def _enter(self, request: web.Request, found: Entered, *, to: str) -> web.HTTPSeeOther:
        """Return the way on, with the new session's cookie."""
        SIGN_INS.labels("entered").inc()
        response = web.HTTPSeeOther(self._onward(to) or "/")
        self._sessions.begin(response, found.token)
        self._sessions.keep_mark(response, found.mark)
        chosen = LANGUAGE_COOKIE in request.cookies or found.by == "link"
        if not chosen or found.by == "invitation":
            keep_language(response, found.language)
        log.info("signed in", user=found.user_ref)
        return response

    def _onward(self, to: str) -> str:
        """Return where to go on, empty if nowhere in particular."""
        path = local_path(to) if to else ""
        return "" if path.startswith((SIGN_IN, "/signout")) else path

    def _refused(
        self, request: web.Request, error: Exception, template: str, **values: object
    ) -> web.Response:
        """Return the form again with what to do; the same for every reason that is a secret."""
        status, problem, wait_s = why(error)
        SIGN_INS.labels(problem).inc()
        response = self._form(
            request, template, status=status, problem=problem, wait=clock(wait_s), **values
        )
        if wait_s:
            response.headers["Retry-After"] = str(wait_s)
        return response

    def _form(
        self,
        request: web.Request,
        template: str,
        *,
        status: int = 200,
        problem: str = "",
        wait: str = "",
        **values: object,
    ) -> web.Response:
        return self._shell.page(
            request, template, status=status, problem=problem, wait=wait, **values
        )

    def _choosing(
        self,
        request: web.Request,
        purpose: Purpose,
        holder: Holder,
        token: str,
        *,
        name: str = "",
        problem: str = "",
    ) -> web.Response:
        """Return the form; an invitation's says nothing of an account that may be there."""
        invitation = purpose is Purpose.INVITATION
        return self._shell.page(
            request,
            "choose.html",
            status=422 if problem else 200,
            invitation=invitation,
            action=links.PATHS[purpose],
            email=holder.email.lower() if invitation else holder.email,
            token=token,
            name=name,
            problem=problem,
        )

    def _link_is_old(self, request: web.Request) -> web.Response:
        return self._shell.page(request, "old.html", status=403)


def browser_of(request: web.Request, known: Sessions) -> Browser:
    """Return who tries, as the entrance wants to know it."""
    found = visitor(request)
    return Browser(
        address=request.remote or "",
        name=request.headers.get("User-Agent", ""),
        mark=known.mark(request),
        nonce=known.nonce(request),
        session_id=None if found is None else found.session_id,
    )


def demand_good_pair(password: str, again: str, *, email: str) -> None:
    """Raise RefusedError unless the password will do and was written the same twice."""
    demand_good(password, email=email)
    if password != again:
        raise RefusedError("password_differs", "the two passwords are not the same")


def text_of(form: Mapping[str, object], name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""


def why(error: Exception) -> tuple[int, str, int]:
    """Return status, problem and seconds to wait of a try that failed."""
    if isinstance(error, TooManyTriesError):
        return 429, "too_many", math.ceil(error.wait_s)
    if isinstance(error, UnavailableError):
        return 503, "busy", 5
    return 401, "wrong", 0


def clock(seconds: int) -> str:
    """Return minutes and seconds, as a clock writes them."""
    return f"{seconds // 60}:{seconds % 60:02}"
