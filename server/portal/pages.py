"""Routes of the portal: signing in, the sites' today, a site's day, its chart, and live refresh."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg
import structlog
from aiohttp import web

from server.config import Settings
from server.db.engine import reading
from server.errors import NotFoundError
from server.portal import numbers, session
from server.portal.chart import chart_of
from server.portal.view import total
from server.web.shell import Shell, choose_language, local_path, protect
from server.web.static_files import StaticFiles

log = structlog.get_logger(__name__)

HERE = Path(__file__).parent
REFRESH_S = 2.0
MAX_STREAMS = 500  # a stream is a sleeping task; more than this is a misbehaving client
MAX_STREAMS_EACH = 50  # of one organisation, so that none takes those of the others
_FIRST_DAY = date(2000, 1, 1)


def build_portal(
    *,
    pool: asyncpg.Pool,
    settings: Settings,
    static: StaticFiles | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> web.Application:
    """Return the application that is mounted at `/`; `pool` is the API's role."""
    files = static or StaticFiles()
    shell = Shell(templates=HERE / "templates", catalogues=[HERE / "catalogues"], static=files)
    pages = Pages(pool=pool, settings=settings, shell=shell, now=now)
    app = web.Application()
    app.on_response_prepare.append(protect)
    app.on_shutdown.append(pages.close)
    app.router.add_get("/static/{name}", files.serve)
    app.router.add_get("/language", choose_language)
    app.router.add_get("/signin", pages.sign_in)
    app.router.add_post("/signout", pages.sign_out)
    app.router.add_get("/", pages.overview)
    app.router.add_get("/sites/{site}", pages.site)
    app.router.add_get("/sites/{site}/chart.json", pages.chart)
    app.router.add_get("/events", pages.events)
    return app


class Pages:
    """The portal's handlers. Who is not signed in is told how to get in."""

    def __init__(
        self,
        *,
        pool: asyncpg.Pool,
        settings: Settings,
        shell: Shell,
        now: Callable[[], datetime],
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._shell = shell
        self._now = now
        self._streams: Counter[int] = Counter()  # by organisation
        self._closing = asyncio.Event()

    async def close(self, _: web.Application) -> None:
        """End the live streams, so that a stop does not wait for browsers."""
        self._closing.set()

    async def sign_in(self, request: web.Request) -> web.Response:
        """Exchange a link for a session."""
        text = request.query.get("token", "")
        now_s = self._now().timestamp()
        token = session.check(self._settings, text, session.Purpose.LINK, now_s=now_s)
        if token is None:
            return self._shell.page(request, "signin.html", status=403, failed=True)
        response = web.HTTPSeeOther(local_path(request.query.get("to", "/")))
        session.start_session(response, self._settings, token.organisation, now_s=now_s)
        log.info("signed in", organisation=token.organisation)
        raise response

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session."""
        response = web.HTTPSeeOther("/")
        response.del_cookie(session.COOKIE)
        raise response

    async def overview(self, request: web.Request) -> web.Response:
        """Every site's today; the live refresh asks for the cards alone."""
        organisation = self._who(request)
        if organisation is None:
            return self._stranger(request)
        now = self._now()
        async with reading(self._pool, "portal overview", organisation=organisation) as db:
            owner = await numbers.organisation_of(db)
            if owner is None:
                return self._stranger(request)
            days = await numbers.overview(db, now=now)
        today = days[0].now.date() if days else now.date()
        return self._shell.page(
            request,
            "sites.html" if "HX-Request" in request.headers else "overview.html",
            owner=owner,
            days=days,
            total=total(days),
            presses=sum(day.smileys.presses for day in days if day.is_today),
            today=today,
            curl=self._curl(request, organisation, today),
        )

    async def site(self, request: web.Request) -> web.Response:
        """One site's day; the live refresh asks for its figures alone."""
        organisation = self._who(request)
        if organisation is None:
            return self._stranger(request)
        day, ref = self._day(request), request.match_info["site"]
        async with reading(self._pool, "portal site", organisation=organisation) as db:
            owner = await numbers.organisation_of(db)
            try:
                page = await numbers.site_page(db, ref, day=day, now=self._now())
            except NotFoundError:
                return self._shell.page(request, "missing.html", status=404, owner=owner)
        shown = page.site.day
        return self._shell.page(
            request,
            "figures.html" if "HX-Request" in request.headers else "site.html",
            owner=owner,
            page=page,
            day=page.site,
            today=shown == page.site.now.date(),
            yesterday=shown - timedelta(days=1),
            tomorrow=shown + timedelta(days=1),
            curl=self._curl(request, organisation, shown, site=ref),
        )

    async def chart(self, request: web.Request) -> web.Response:
        """The numbers that a site's chart draws."""
        organisation = self._who(request)
        if organisation is None:
            raise web.HTTPForbidden(text="sign in first")
        async with reading(self._pool, "portal chart", organisation=organisation) as db:
            try:
                page = await numbers.site_page(
                    db, request.match_info["site"], day=self._day(request), now=self._now()
                )
            except NotFoundError as error:
                raise web.HTTPNotFound(text=str(error)) from error
        headers = {"Cache-Control": "no-store"}
        return web.json_response(chart_of(page, self._shell.words(request)), headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Say `changed` whenever something new was stored, at most every two seconds."""
        organisation = self._who(request)
        if organisation is None:
            raise web.HTTPForbidden(text="sign in first")
        if self._streams[organisation] >= MAX_STREAMS_EACH:
            raise web.HTTPTooManyRequests(text="too many live pages; this one stays as it is")
        if self._streams.total() >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(text="too many live pages; this one stays as it is")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        self._streams[organisation] += 1
        try:
            await response.prepare(request)
            await self._stream(response, organisation)
        except ConnectionError:
            log.debug("live page gone", organisation=organisation)
        finally:
            self._streams -= Counter([organisation])  # which forgets who has none left
        return response

    async def _stream(self, response: web.StreamResponse, organisation: int) -> None:
        seen: datetime | None = None
        while not self._closing.is_set():
            try:
                async with reading(self._pool, "portal watch", organisation=organisation) as db:
                    stored = await numbers.last_stored(db)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                stored = seen  # the database is away; the page stays as it is meanwhile
            changed = seen is not None and stored != seen
            await response.write(b"event: changed\ndata: 1\n\n" if changed else b": alive\n\n")
            seen = stored
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), REFRESH_S)

    def _who(self, request: web.Request) -> int | None:
        return session.identify(request, self._settings, now_s=self._now().timestamp())

    def _stranger(self, request: web.Request) -> web.Response:
        return self._shell.page(request, "signin.html", status=401, failed=False)

    def _day(self, request: web.Request) -> date | None:
        """Return the wished day, None for today (also for what is no day, or yet to come)."""
        with suppress(ValueError):
            day = date.fromisoformat(request.query.get("day", ""))
            if _FIRST_DAY <= day <= self._now().date() + timedelta(days=1):
                return day
        return None

    def _curl(self, request: web.Request, organisation: int, day: date, *, site: str = "") -> str:
        """Return a command that gets the same numbers, with a key that ends within two hours."""
        key = session.hourly_key(self._settings, organisation, now_s=time.time())
        base = self._settings.public_url or f"http://{request.host}"
        where = f"&site={site}" if site else ""
        until = day + timedelta(days=1)
        address = f"{base}/v1/counts?bucket=day&scope=open&from={day}&to={until}{where}"
        return f"curl -s -H 'Authorization: Bearer {key}' '{address}'"
