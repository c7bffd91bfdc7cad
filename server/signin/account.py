"""The account's own page: name and language, password, codes, sessions; and which organisation.

What changes how one signs in asks for the password again, gives this session another token, and
ends the others.
"""

from base64 import b32encode

import asyncpg
import segno
from aiohttp import web

from server.db.engine import ACQUIRE_TIMEOUT_S, overseeing, transaction
from server.errors import NotFoundError, RefusedError, UnavailableError
from server.people import sessions, totp, users
from server.people.entrance import WrongError
from server.people.sealing import Seal
from server.people.throttle import TooManyTriesError
from server.people.users import User
from server.signin.pages import Tools, clock, demand_good_pair, text_of, why
from server.web import catalogue
from server.web.sessions import ACCOUNT, CHOOSE, Visitor, home, signed_in
from server.web.shell import keep_language
from server.web.site import Site

_SETTING_UP = "codes being set up"
_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser", "Samsung Internet"),
    ("Firefox", "Firefox"),
    ("FxiOS", "Firefox"),
    ("CriOS", "Chrome"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
)
_SYSTEMS = (
    ("Android", "Android"),
    ("iPhone", "iOS"),
    ("iPad", "iPadOS"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)
"""Marks in a User-Agent; the first that is there says it, since most pretend to be others too."""


def add_account(site: Site, tools: Tools, seal: Seal) -> None:
    """Add the account's pages."""
    pages = Account(tools, seal)
    routes = site.app.router
    routes.add_get(ACCOUNT, pages.show)
    routes.add_post(f"{ACCOUNT}/self", pages.introduce)
    routes.add_post(f"{ACCOUNT}/password", pages.change_password)
    routes.add_post(f"{ACCOUNT}/codes", pages.prepare_codes)
    routes.add_post(f"{ACCOUNT}/codes/confirm", pages.confirm_codes)
    routes.add_post(f"{ACCOUNT}/codes/end", pages.end_codes)
    routes.add_post(f"{ACCOUNT}/sessions/end", pages.end_session)
    routes.add_get(CHOOSE, pages.organisations)
    routes.add_post(CHOOSE, pages.choose_organisation)


class Account:
    """The handlers."""

    def __init__(self, tools: Tools, seal: Seal) -> None:
        self._tools, self._seal = tools, seal
        self._desk, self._now = tools.desk, tools.now

    async def show(self, request: web.Request) -> web.Response:
        return await self._page(request, signed_in(request))

    async def introduce(self, request: web.Request) -> web.Response:
        """Change name and language."""
        found, form = signed_in(request), await request.post()
        language = text_of(form, "language")
        if language not in catalogue.LANGUAGES:
            language = found.language
        try:
            async with transaction(self._desk, "introduce oneself") as connection:
                await users.introduce(
                    connection, found.user_id, name=text_of(form, "name"), language=language
                )
        except RefusedError as error:
            return await self._page(request, found, problem=error.code, status=422)
        response = web.HTTPSeeOther(ACCOUNT)
        keep_language(response, language)
        raise response

    async def change_password(self, request: web.Request) -> web.Response:
        """Set another password; every other session ends."""
        found, form = signed_in(request), await request.post()
        password = text_of(form, "password")
        try:
            user = await self._proved(found, text_of(form, "current"))
            demand_good_pair(password, text_of(form, "again"), email=user.email)
            hashed = await self._tools.passwords.hash(password)
        except (RefusedError, TooManyTriesError, UnavailableError) as error:
            return await self._refused(request, found, error)
        async with transaction(self._desk, "change password") as connection:
            await users.set_password(
                connection,
                found.user_id,
                hashed,
                keep=found.session_id,
                actor=found.actor,
                now=self._now(),
            )
            token = await sessions.rotate(connection, found.session_id)
        raise self._back(token)

    async def prepare_codes(self, request: web.Request) -> web.Response:
        """Show the secret for the phone; nothing asks for codes yet."""
        found, form = signed_in(request), await request.post()
        try:
            user = await self._proved(found, text_of(form, "current"))
        except (RefusedError, TooManyTriesError, UnavailableError) as error:
            return await self._refused(request, found, error)
        if user.codes:
            raise web.HTTPSeeOther(ACCOUNT)
        return self._codes(request, found, user, totp.new_secret())

    async def confirm_codes(self, request: web.Request) -> web.Response:
        """Ask for codes from now on, if the first one is right."""
        found, form = signed_in(request), await request.post()
        sealed = text_of(form, "secret")
        secret = self._seal.unseal(_SETTING_UP, _decoded(sealed), bound=_bound(found))
        if secret is None:
            raise web.HTTPSeeOther(ACCOUNT)
        token, now = "", self._now()
        async with transaction(self._desk, "begin codes") as connection:
            user = await users.find(connection, found.user_ref)
            if await totp.begin(
                connection, self._seal, found.user_id, secret, text_of(form, "code"), now=now
            ):
                await users.note_codes(connection, user, actor=found.actor, now=now)
                await sessions.end_all(connection, found.user_id, but=found.session_id, now=now)
                token = await sessions.rotate(connection, found.session_id)
        if token:
            raise self._back(token)
        if user.codes:
            raise web.HTTPSeeOther(ACCOUNT)
        return self._codes(request, found, user, secret, problem="code_wrong")

    async def end_codes(self, request: web.Request) -> web.Response:
        """Ask for codes no more."""
        found, form = signed_in(request), await request.post()
        try:
            user = await self._proved(found, text_of(form, "current"))
        except (RefusedError, TooManyTriesError, UnavailableError) as error:
            return await self._refused(request, found, error)
        async with transaction(self._desk, "end codes") as connection:
            await users.forget_codes(connection, user, actor=found.actor, now=self._now())
            token = await sessions.rotate(connection, found.session_id)
        raise self._back(token)

    async def end_session(self, request: web.Request) -> web.Response:
        """End one session, or every other."""
        found, form = signed_in(request), await request.post()
        wanted = text_of(form, "session")
        async with transaction(self._desk, "end session") as connection:
            if wanted == "others":
                await sessions.end_all(
                    connection, found.user_id, but=found.session_id, now=self._now()
                )
            elif wanted.isdecimal() and len(wanted) < 19:
                await sessions.end(connection, int(wanted), user_id=found.user_id, now=self._now())
        raise web.HTTPSeeOther(ACCOUNT)

    # -- organisations -------------------------------------------------------------------------

    async def organisations(self, request: web.Request) -> web.Response:
        """Every organisation that a grant reaches."""
        found = signed_in(request)
        async with overseeing(self._desk, "list organisations") as connection:
            rows = await _reached(connection, found)
        return self._tools.shell.page(request, "organisations.html", rows=rows)

    async def choose_organisation(self, request: web.Request) -> web.Response:
        """Look at another organisation."""
        found, form = signed_in(request), await request.post()
        async with overseeing(self._desk, "choose organisation") as connection:
            wanted = text_of(form, "organisation")
            chosen = [
                row["id"] for row in await _reached(connection, found) if row["ref"] == wanted
            ]
            if not chosen:
                raise web.HTTPNotFound
            await sessions.look_at(connection, found.session_id, chosen[0])
        raise web.HTTPSeeOther(home(found))

    # -- inside --------------------------------------------------------------------------------

    async def _proved(self, found: Visitor, password: str) -> User:
        """Return the user, who has given their password again. Raises as the entrance does."""
        await self._tools.entrance.prove(found.user_id, password)
        async with self._desk.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            return await users.find(connection, found.user_ref)

    async def _refused(
        self, request: web.Request, found: Visitor, error: Exception
    ) -> web.Response:
        if isinstance(error, RefusedError) and not isinstance(error, WrongError):
            return await self._page(request, found, problem=error.code, status=422)
        status, problem, wait_s = why(error)
        if problem == "wrong":
            status, problem = 422, "current_wrong"
        return await self._page(request, found, problem=problem, wait=clock(wait_s), status=status)

    def _back(self, token: str) -> web.HTTPSeeOther:
        response = web.HTTPSeeOther(ACCOUNT)
        self._tools.sessions.begin(response, token)
        return response

    def _codes(
        self, request: web.Request, found: Visitor, user: User, secret: bytes, *, problem: str = ""
    ) -> web.Response:
        """Return the page with the secret, which the form alone holds, sealed, until proved."""
        text = b32encode(secret).decode()
        code = segno.make(totp.provisioning_uri(secret, user.email), error="m", micro=False)
        sealed = self._seal.seal(_SETTING_UP, secret, bound=_bound(found))
        return self._tools.shell.page(
            request,
            "codes.html",
            status=422 if problem else 200,
            image=code.svg_data_uri(scale=5, border=4, dark="#000", light="#fff"),
            secret=" ".join(text[at : at + 4] for at in range(0, len(text), 4)),
            sealed=sealed.hex(),
            problem=problem,
        )

    async def _page(
        self,
        request: web.Request,
        found: Visitor,
        *,
        problem: str = "",
        wait: str = "",
        status: int = 200,
    ) -> web.Response:
        async with self._desk.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            try:
                user = await users.find(connection, found.user_ref)
            except NotFoundError as error:
                raise web.HTTPNotFound from error
            listed = await sessions.listed(connection, found.user_id, now=self._now())
        return self._tools.shell.page(
            request,
            "account.html",
            status=status,
            user=user,
            sessions=listed,
            browser_words=browser_words,
            current=found.session_id,
            grants=found.grants,
            problem=problem,
            wait=wait,
        )


def browser_words(user_agent: str) -> str:
    """Return a browser and its system in words, such as `Firefox, Windows`; empty if unknown."""
    found = [
        next((word for mark, word in marks if mark in user_agent), "")
        for marks in (_BROWSERS, _SYSTEMS)
    ]
    return ", ".join(filter(None, found))


async def _reached(connection: asyncpg.Connection, found: Visitor) -> list[asyncpg.Record]:
    """Return ref, row and name of each organisation that a grant of theirs reaches."""
    rows: list[asyncpg.Record] = await connection.fetch(
        "select id, ref, name from organisations where $1 or id = any($2::int[]) order by name",
        found.oversees,
        [g.organisation for g in found.grants if g.organisation is not None],
    )
    return rows


def _bound(found: Visitor) -> bytes:
    return b"session %d" % found.session_id


def _decoded(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
