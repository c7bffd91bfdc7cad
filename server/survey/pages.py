"""The pages at `/s`: type a code, answer on one page, and see what came of answers before.

No cookie is set or read, no session is looked up, and no page needs a script: one form, sent once.
The token in the address is all that a visitor proves, so it goes to nobody else (`no-referrer`) and
nothing of it is logged. An address that tries many wrong codes waits; that is kept in memory alone.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import asyncpg
from aiohttp import web

from server.db.engine import ACQUIRE_TIMEOUT_S, DATABASE_SILENT, acting
from server.errors import RefusedError
from server.feedback import answering, tokens
from server.feedback.answering import Open
from server.feedback.battery import ItemKind
from server.feedback.tokens import Shown
from server.people.sealing import Seal
from server.people.throttle import Throttle, TooManyTriesError, network
from server.web import catalogue
from server.web.catalogue import Catalogue
from server.web.shell import Shell
from server.web.site import Site

HERE = Path(__file__).parent
MOST_FORM = 60_000
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Vary": "Accept-Language",
    "X-Robots-Tag": "noindex, nofollow",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}
_STATUS = {
    "mistyped_code": 422,
    "unknown_code": 404,
    "expired_code": 410,
    "closed_survey": 410,
    "answered_already": 409,
    "stale_form": 422,
    "bad_answer": 422,
    "nothing_answered": 422,
    "busy_poster": 429,
    "slow_down": 429,
    "away": 503,
}
_AGAIN = ("bad_answer", "nothing_answered", "stale_form")
"""What is mended in the form, which keeps what was answered."""


def add_survey(
    site: Site,
    *,
    desk: asyncpg.Pool,
    seal: Seal,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    random: Callable[[int], bytes] = secrets.token_bytes,
    clock: Callable[[], float] = monotonic,
) -> None:
    """Add the pages; `desk` is the pool of the role that writes."""
    pages = Pages(site, desk, seal.sign(tokens.PURPOSE, b""), now, random, clock)
    site.static.add(HERE / "static")
    site.app.router.add_get("/s", pages.code)
    site.app.router.add_get("/s/{token}", pages.ask)
    site.app.router.add_post("/s/{token}", pages.answer)


class Pages:
    """The handlers."""

    def __init__(
        self,
        site: Site,
        desk: asyncpg.Pool,
        key: bytes,
        now: Callable[[], datetime],
        random: Callable[[int], bytes],
        clock: Callable[[], float],
    ) -> None:
        self._desk, self._key, self._now, self._random = desk, key, now, random
        self._shell = Shell(
            templates=HERE / "templates", catalogues=[HERE / "catalogues"], static=site.static
        )
        self._wrong = Throttle(free=20, first_s=1, most_s=60, forget_s=600, monotonic=clock)

    async def code(self, request: web.Request) -> web.Response:
        """Type a code; one that reads well leads to its survey."""
        typed, refused = request.query.get("code", "").strip()[:60], ""
        if typed:
            try:
                tokens.read(self._key, typed)
            except RefusedError as error:
                refused = error.code
            else:
                plain = "".join(typed.upper().split()).replace("-", "")
                raise web.HTTPSeeOther(f"/s/{plain}", headers=HEADERS)
        status = 422 if refused else 200
        return self._page(request, "code.html", status=status, typed=typed, refused=refused)

    async def ask(self, request: web.Request) -> web.Response:
        """Show the form."""
        try:
            shown = self._read(request)
            async with self._acting(shown, request) as connection:
                found = await answering.opened(connection, self._key, shown, now=self._now())
        except RefusedError as error:
            return self._refused(request, error.code)
        except DATABASE_SILENT:
            return self._refused(request, "away")
        sheet = tokens.sheet(self._key, found.kept, now=self._now(), random=self._random(10))
        return self.form_page(request, found, sheet, {})

    async def answer(self, request: web.Request) -> web.Response:
        """Store what was answered, and show what came of answers before."""
        form = await _form(request)
        words = self._words(request, form.get("l", ""))
        try:
            shown = self._read(request)
        except RefusedError as error:
            return self._refused(request, error.code, form.get("l", ""))
        try:
            async with self._acting(shown, request) as connection:
                found = await self._store(connection, shown, request, form)
                told = await answering.told(connection, found.site_id, words.language)
        except RefusedError as error:
            if error.code in _AGAIN:
                return await self._again(request, shown, form, error.code)
            return self._refused(request, error.code, form.get("l", ""))
        except DATABASE_SILENT:
            return self._refused(request, "away", form.get("l", ""))
        return self._page(
            request, "thanks.html", wished=form.get("l", ""), found=found, told=told,
            survey=found.survey.battery, spoken=self._spoken(request, found, form.get("l", "")),
        )  # fmt: skip

    # -- inside ----------------------------------------------------------------------------------

    async def _store(
        self,
        connection: asyncpg.Connection,
        shown: Shown,
        request: web.Request,
        form: Mapping[str, str],
    ) -> Open:
        found = await answering.opened(connection, self._key, shown, now=self._now(), again=True)
        return await answering.answer(
            connection,
            self._key,
            shown,
            sheet=form.get("sheet", ""),
            form=form,
            locale=self._spoken(request, found, form.get("l", "")),
            now=self._now(),
        )

    async def _again(
        self, request: web.Request, shown: Shown, form: Mapping[str, str], code: str
    ) -> web.Response:
        """Show the form once more, with what was answered; a new sheet where the old is no good."""
        now = self._now()
        try:
            async with self._acting(shown, request) as connection:
                found = await answering.opened(connection, self._key, shown, now=now)
        except RefusedError as error:
            return self._refused(request, error.code, form.get("l", ""))
        sheet = form.get("sheet", "")
        if code == "stale_form":
            sheet = tokens.sheet(self._key, found.kept, now=now, random=self._random(10))
        return self.form_page(request, found, sheet, form, refused=code)

    def _read(self, request: web.Request) -> Shown:
        """Return the address's token. RefusedError: it is none, or too many were wrong."""
        try:
            self._wrong.demand(network(request.remote))
        except TooManyTriesError as error:
            raise RefusedError("slow_down", str(error)) from error
        return tokens.read(self._key, request.match_info["token"][:60])

    def _acting(self, shown: Shown, request: web.Request) -> "_Acting":
        return _Acting(self._desk, shown, lambda: self._wrong.begin(network(request.remote)))

    def form_page(
        self,
        request: web.Request,
        found: Open,
        sheet: str,
        given: Mapping[str, str],
        *,
        refused: str = "",
    ) -> web.Response:
        """Return the form as a page; `given`: what was answered before it was refused."""
        battery = found.survey.battery
        read = tokens.read_sheet(self._key, found.kept, sheet, now=self._now())
        items = battery.by_key
        return self._page(
            request,
            "ask.html",
            status=_STATUS.get(refused, 200),
            wished=given.get("l", ""),
            found=found,
            survey=battery,
            items=[items[key] for key in answering.drawn(found, read)],
            kinds=ItemKind,
            sheet=sheet,
            given=given,
            refused=refused,
            spoken=self._spoken(request, found, given.get("l", "")),
        )

    def _refused(self, request: web.Request, code: str, wished: str = "") -> web.Response:
        return self._page(
            request, "refused.html", status=_STATUS[code], wished=wished, refused=code
        )

    def _words(self, request: web.Request, wished: str) -> Catalogue:
        accepted = request.headers.get("Accept-Language", "")
        chosen = catalogue.choose(accepted, wished=wished or request.query.get("l", ""))
        return self._shell.catalogues[chosen]

    def _spoken(self, request: web.Request, found: Open, wished: str) -> str:
        """Return the language of the survey's own texts: the reader's, else its first."""
        there = found.survey.battery.languages
        accepted = request.headers.get("Accept-Language", "")
        for each in (wished or request.query.get("l", ""), *_ranked(accepted)):
            if each in there:
                return each
        return there[0]

    def _page(
        self,
        request: web.Request,
        template: str,
        *,
        status: int = 200,
        wished: str = "",
        **values: object,
    ) -> web.Response:
        words = self._words(request, wished)
        text = self._shell.fragment(template, words, path=request.path, **values)
        return web.Response(text=text, status=status, content_type="text/html", headers=HEADERS)


class _Acting:
    """A transaction of the organisation that a token is of; a token of none counts as a try."""

    def __init__(self, desk: asyncpg.Pool, shown: Shown, wrong: Callable[[], None]) -> None:
        self._desk, self._shown, self._wrong = desk, shown, wrong

    async def __aenter__(self) -> asyncpg.Connection:
        async with self._desk.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            holder = await connection.fetchval("select survey_token_holder($1)", self._shown.kept)
        if holder is None:
            self._wrong()
            raise RefusedError("unknown_code", "there is no survey behind this code")
        self._inner = acting(self._desk, "survey", organisation=holder)
        return await self._inner.__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        await self._inner.__aexit__(*raised)  # type: ignore[arg-type]


async def _form(request: web.Request) -> dict[str, str]:
    """Return a form's texts; 400 if it is none, 413 if it is too long for any of ours."""
    if (request.content_length or 0) > MOST_FORM:
        raise web.HTTPRequestEntityTooLarge(MOST_FORM, request.content_length or 0)
    try:
        form = await request.post()
    except (ValueError, LookupError, RuntimeError) as error:  # no boundary, no such encoding
        raise web.HTTPBadRequest(text="the form can't be read") from error
    return {name: value[:4_000] for name, value in form.items() if isinstance(value, str)}


def _ranked(accepted: str) -> Sequence[str]:
    """Return an Accept-Language's languages, the best first; Norwegian under one name."""
    found: list[tuple[float, int, str]] = []
    for at, part in enumerate(accepted.split(",")[:20]):
        name, _, quality = part.strip().partition(";q=")
        language = name.split("-")[0].lower()
        try:
            found.append(
                (-float(quality or 1), at, {"nb": "no", "nn": "no"}.get(language, language))
            )
        except ValueError:
            continue
    return [language for *_, language in sorted(found)]
