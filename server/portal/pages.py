"""Routes of the portal: the sites' today, a site's day, its chart, and live refresh.

Whose grants cover a region or some sites sees those alone, and nothing that counts the others in.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg
import structlog
from aiohttp import web

from server.config import Settings
from server.db.engine import DATABASE_AWAY, reading
from server.errors import NotFoundError
from server.people.roles import Permission, Place
from server.portal import numbers
from server.portal.chart import chart_of
from server.portal.view import total
from server.web.passes import Passes
from server.web.sessions import Visitor, demand_organisation, home, visitor
from server.web.shell import Shell
from server.web.site import Site

log = structlog.get_logger(__name__)

HERE = Path(__file__).parent
REFRESH_S = 2.0
MAX_STREAMS = 500  # a stream is a sleeping task; more than this is a misbehaving client
MAX_STREAMS_EACH = 50  # of one organisation, so that none takes those of the others
_FIRST_DAY = date(2000, 1, 1)


def add_portal(
    site: Site,
    *,
    pool: asyncpg.Pool,
    settings: Settings,
    passes: Passes,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Add the portal's pages, at `/`; `pool` is the API's role."""
    pages = Pages(site, pool=pool, settings=settings, passes=passes, now=now)
    site.app.on_shutdown.append(pages.close)
    site.app.router.add_get("/", pages.overview)
    site.app.router.add_get("/sites/{site}", pages.site)
    site.app.router.add_get("/sites/{site}/chart.json", pages.chart)
    site.app.router.add_get("/events", pages.events)


class Pages:
    """The portal's handlers."""

    def __init__(
        self,
        site: Site,
        *,
        pool: asyncpg.Pool,
        settings: Settings,
        passes: Passes,
        now: Callable[[], datetime],
    ) -> None:
        self._sessions = site.sessions
        self._shell = Shell(
            templates=HERE / "templates", catalogues=[HERE / "catalogues"], static=site.static
        )
        self._pool, self._settings, self._passes, self._now = pool, settings, passes, now
        self._streams: Counter[int] = Counter()  # by organisation
        self._closing = asyncio.Event()

    async def close(self, _: web.Application) -> None:
        """End the live streams, so that a stop does not wait for browsers."""
        self._closing.set()

    async def overview(self, request: web.Request) -> web.Response:
        """Every site's today; the live refresh asks for the cards alone."""
        found = visitor(request)
        if found is not None and home(found) != "/":
            raise web.HTTPSeeOther(home(found))
        found, organisation = demand_organisation(request, Permission.READ_NUMBERS)
        now = self._now()
        async with reading(self._pool, "portal overview", organisation=organisation) as db:
            owner = await self._owner(db)
            days = await numbers.overview(db, now=now)
            seen = await self._seen(db, found, organisation)
        days = [day for day in days if day.ref in seen]
        today = days[0].now.date() if days else now.date()
        return self._shell.page(
            request,
            "sites.html" if "HX-Request" in request.headers else "overview.html",
            owner=owner,
            days=days,
            total=total(days),
            presses=sum(day.smileys.presses for day in days if day.is_today),
            today=today,
            curl=self._curl(request, found, organisation, today),
        )

    async def site(self, request: web.Request) -> web.Response:
        """One site's day; the live refresh asks for its figures alone."""
        found, organisation = demand_organisation(request, Permission.READ_NUMBERS)
        ref = request.match_info["site"]
        async with reading(self._pool, "portal site", organisation=organisation) as db:
            owner = await self._owner(db)
            page = await self._site_page(db, request, found, organisation)
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
            curl=self._curl(request, found, organisation, shown, site=ref),
        )

    async def chart(self, request: web.Request) -> web.Response:
        """The numbers that a site's chart draws."""
        found, organisation = demand_organisation(request, Permission.READ_NUMBERS)
        async with reading(self._pool, "portal chart", organisation=organisation) as db:
            page = await self._site_page(db, request, found, organisation)
        headers = {"Cache-Control": "no-store"}
        return web.json_response(chart_of(page, self._shell.words(request)), headers=headers)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Say `changed` whenever something new was stored, at most every two seconds."""
        found, organisation = demand_organisation(request, Permission.READ_NUMBERS)
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
            await self._stream(response, found, organisation)
        except ConnectionError:
            log.debug("live page gone", organisation=organisation)
        finally:
            self._streams -= Counter([organisation])  # which forgets who has none left
        return response

    async def _stream(
        self, response: web.StreamResponse, found: Visitor, organisation: int
    ) -> None:
        seen: datetime | None = None  # nothing was ever stored, or nobody could say yet
        asked = False
        while not self._closing.is_set():
            changed = False
            try:
                if await self._sessions.lasting(found.session_id) is None:
                    return
                async with reading(self._pool, "portal watch", organisation=organisation) as db:
                    stored = await numbers.last_stored(db)
            except DATABASE_AWAY:
                log.debug("live page stays as it is", organisation=organisation)
            else:
                changed = asked and stored != seen
                seen, asked = stored, True
            await response.write(b"event: changed\ndata: 1\n\n" if changed else b": alive\n\n")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), REFRESH_S)

    async def _owner(self, db: asyncpg.Connection) -> numbers.Organisation:
        owner = await numbers.organisation_of(db)
        if owner is None:
            raise web.HTTPNotFound
        return owner

    async def _site_page(
        self, db: asyncpg.Connection, request: web.Request, found: Visitor, organisation: int
    ) -> numbers.SitePage:
        ref = request.match_info["site"]
        if ref not in await self._seen(db, found, organisation):
            raise web.HTTPNotFound
        try:
            return await numbers.site_page(db, ref, day=self._day(request), now=self._now())
        except NotFoundError as error:
            raise web.HTTPNotFound from error

    async def _seen(
        self, db: asyncpg.Connection, found: Visitor, organisation: int
    ) -> frozenset[str]:
        """Return the refs of the sites whose numbers they may see."""
        return frozenset(
            ref
            for ref, site, region in await numbers.places(db)
            if found.may(Permission.READ_NUMBERS, Place(organisation, region, site))
        )

    def _day(self, request: web.Request) -> date | None:
        """Return the wished day, None for today (also for what is no day, or yet to come)."""
        with suppress(ValueError):
            day = date.fromisoformat(request.query.get("day", ""))
            if _FIRST_DAY <= day <= self._now().date() + timedelta(days=1):
                return day
        return None

    def _curl(
        self, request: web.Request, found: Visitor, organisation: int, day: date, *, site: str = ""
    ) -> str:
        """Return a command that gets the same numbers; empty for who may not read them all."""
        if not found.may(Permission.READ_NUMBERS, Place(organisation)):
            return ""
        key = self._passes.make(found, organisation)
        base = self._settings.public_url or f"http://{request.host}"
        where = f"&site={site}" if site else ""
        until = day + timedelta(days=1)
        address = f"{base}/v1/counts?bucket=day&scope=open&from={day}&to={until}{where}"
        return f"curl -s -H 'Authorization: Bearer {key}' '{address}'"
