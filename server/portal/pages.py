"""Routes of the portal: the sites' today, a site's day, its chart, and live refresh."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta

import asyncpg
import structlog
from aiohttp import web

from server.config import Settings
from server.db.engine import DATABASE_AWAY, reading
from server.errors import NotFoundError
from server.people.roles import Permission
from server.portal import (
    accuracy,
    digest,
    experiments,
    exports,
    numbers,
    opinions,
    periods,
    popups,
    quality,
    rounds,
    shop,
    surveys,
    targets,
    trends,
)
from server.portal.chart import chart_of
from server.portal.frame import Look, Portal
from server.portal.view import total
from server.web.passes import Passes
from server.web.sessions import Visitor, demand_organisation, home, visitor
from server.web.site import Site

log = structlog.get_logger(__name__)

SECTIONS = (
    *(shop, trends, periods, targets, popups, opinions, surveys, experiments, quality, accuracy),
    *(rounds, exports, digest),
)
"""What else the menu leads to, in its order."""
REFRESH_S = 2.0
MAX_STREAMS = 500  # a stream is a sleeping task; more than this is a misbehaving client
MAX_STREAMS_EACH = 50  # of one organisation, so that none takes those of the others
_FIRST_DAY = date(2000, 1, 1)


def add_portal(
    site: Site,
    *,
    pool: asyncpg.Pool,
    desk: asyncpg.Pool,
    settings: Settings,
    passes: Passes,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Add the portal's pages, at `/`; `pool` is the API's role, `desk` the one that writes."""
    portal = Portal(site, pool, desk, settings, passes, now)
    pages = Pages(portal)
    site.app.on_shutdown.append(pages.close)
    site.app.router.add_get("/", pages.overview)
    site.app.router.add_get("/sites/{site}", pages.site)
    site.app.router.add_get("/sites/{site}/chart.json", pages.chart)
    site.app.router.add_get("/events", pages.events)
    for section in SECTIONS:
        section.add(portal)


class Pages:
    """The handlers of today and of a site's day."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
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
        now = self._portal.now()
        async with self._portal.looking(request, "portal overview") as look:
            days = [day for day in await numbers.overview(look.db, now=now) if day.ref in look.seen]
        today = days[0].now.date() if days else now.date()
        return self._portal.page(
            request,
            "sites.html" if "HX-Request" in request.headers else "overview.html",
            look,
            days=days,
            total=total(days),
            presses=sum(day.smileys.presses for day in days if day.is_today),
            today=today,
            curl=self._portal.command(request, look, _counts(today)),
        )

    async def site(self, request: web.Request) -> web.Response:
        """One site's day; the live refresh asks for its figures alone."""
        async with self._portal.looking(request, "portal site") as look:
            page = await self._site_page(request, look)
        shown = page.site.day
        return self._portal.page(
            request,
            "figures.html" if "HX-Request" in request.headers else "site.html",
            look,
            page=page,
            day=page.site,
            today=shown == page.site.now.date(),
            yesterday=shown - timedelta(days=1),
            tomorrow=shown + timedelta(days=1),
            curl=self._portal.command(
                request, look, f"{_counts(shown)}&site={request.match_info['site']}"
            ),
        )

    async def chart(self, request: web.Request) -> web.Response:
        """The numbers that a site's chart draws."""
        async with self._portal.looking(request, "portal chart") as look:
            page = await self._site_page(request, look)
        headers = {"Cache-Control": "no-store"}
        words = self._portal.shell.words(request)
        return web.json_response(chart_of(page, words), headers=headers)

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
                if await self._portal.site.sessions.lasting(found.session_id) is None:
                    return
                pool = self._portal.pool
                async with reading(pool, "portal watch", organisation=organisation) as db:
                    stored = await numbers.last_stored(db)
            except DATABASE_AWAY:
                log.debug("live page stays as it is", organisation=organisation)
            else:
                changed = asked and stored != seen
                seen, asked = stored, True
            await response.write(b"event: changed\ndata: 1\n\n" if changed else b": alive\n\n")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), REFRESH_S)

    async def _site_page(self, request: web.Request, look: Look) -> numbers.SitePage:
        ref, now = request.match_info["site"], self._portal.now()
        if ref not in look.seen:
            raise web.HTTPNotFound
        try:
            return await numbers.site_page(look.db, ref, day=_day(request, now=now), now=now)
        except NotFoundError as error:
            raise web.HTTPNotFound from error


def _day(request: web.Request, *, now: datetime) -> date | None:
    """Return the wished day, None for today (also for what is no day, or yet to come)."""
    with suppress(ValueError):
        day = date.fromisoformat(request.query.get("day", ""))
        if _FIRST_DAY <= day <= now.date() + timedelta(days=1):
            return day
    return None


def _counts(day: date) -> str:
    return f"counts?bucket=day&scope=open&from={day}&to={day + timedelta(days=1)}"
