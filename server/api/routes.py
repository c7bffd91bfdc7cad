"""The routes of /v1, in one table: what is asked, what is answered, and what the OpenAPI says.

A request passes, in order: its id, who is asking (`keys`), the key's rate, its parameters
(`parameters`), one read-only transaction of its organisation (`reads`), its answer (`answers`).
Errors of all of these become problem+json in one place.
"""

import re
import uuid
from datetime import date
from functools import cache
from weakref import WeakValueDictionary

import asyncpg
import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from server.api import (
    accuracy,
    acts,
    calendars,
    commands,
    desired,
    estimates,
    experiments,
    feeds,
    fleet,
    freezes,
    incidents,
    listings,
    metrics,
    offers,
    opinions,
    presence,
    questionnaires,
    reads,
    register,
    releases,
    rollouts,
    sources,
    surveys,
    telling,
)
from server.api.keys import ALLOWANCE, Identify, RateLimit, SignIn, nobody
from server.api.openapi import Described, describe, page
from server.api.pages import after, numbered, page_of
from server.api.parameters import (
    ConversionParameters,
    CountParameters,
    FeedbackParameters,
    GapParameters,
    Listing,
    MaskParameters,
    Nothing,
    Ranged,
    SpotListing,
    read_cursor,
    write_cursor,
)
from server.api.problems import is_unexpected, problem_response
from server.api.reads import AT_ONCE, Call, Route, Turns
from server.api.types import (
    CountAnswer,
    GapRow,
    MaskRow,
    Page,
    SiteDetail,
    SiteRow,
    SpotRow,
)
from server.clock import Clock
from server.feedback.query import FeedbackRow, feedback
from server.insight.conversion import ConversionRow, conversion
from server.metrics import HTTP_SECONDS
from server.people.sealing import Seal
from server.rollup.answer import CountRow, Position
from server.rollup.buckets import instant
from server.rollup.query import counts

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")


def build_api(
    *,
    pool: asyncpg.Pool,
    clock: Clock,
    identify: Identify = nobody,
    desk: asyncpg.Pool | None = None,
    seal: Seal | None = None,
    base: str = "",
    per_s: float = 20,
    burst: int = 60,
) -> web.Application:
    """Return the application to be mounted at /v1; `pool` is the API's role, `desk` the desk's.

    `seal` signs what is handed out, at `base`, the pages' public address (empty: the request's).
    """
    limit = RateLimit(per_s=per_s, burst=burst, monotonic=clock.monotonic)
    sign_in = SignIn(pool, identify, desk=desk, monotonic=clock.monotonic)
    turns: Turns = WeakValueDictionary()
    app = web.Application(middlewares=[_guarded(clock)])
    for route in READS:
        handler = reads.served(route, pool, clock, sign_in, limit, turns)
        if route.method == "GET":
            app.router.add_get(route.path, handler)  # and HEAD
        else:
            app.router.add_route(route.method, route.path, handler)
    for each in ACTS:
        handler = acts.served(
            each,
            desk=desk,
            clock=clock,
            sign_in=sign_in,
            limit=limit,
            turns=turns,
            at_once=AT_ONCE,
            seal=seal,
            base=base,
        )
        app.router.add_route(each.method, each.path, handler)
    document, readable = _described()
    app.router.add_get("/openapi.json", _static(document, "application/json"))
    app.router.add_get("/docs", _static(readable, "text/html"))
    return app


@cache
def _described() -> tuple[bytes, bytes]:
    """Return the OpenAPI document and its page; made once, as the tables never change."""
    everything: tuple[Described, ...] = (*READS, *ACTS)
    document = describe(everything)
    return msgspec.json.format(msgspec.json.encode(document), indent=2), page(document)


def _guarded(clock: Clock) -> Middleware:
    """Return the middleware that gives each request an id, a metric, and errors their form."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = clock.monotonic()
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        try:
            response = await handler(request)
        except Exception as error:
            if is_unexpected(error):
                log.exception("request failed", path=request.path, request_id=request_id)
            response = problem_response(error, request_id=request_id)
        response.headers["X-Request-Id"] = request_id
        allowance = request.get(ALLOWANCE)
        if allowance is not None:
            response.headers.update(allowance.headers)
        resource = request.match_info.route.resource
        name = "unknown" if resource is None else resource.canonical
        HTTP_SECONDS.labels(name, f"{response.status // 100}xx").observe(
            clock.monotonic() - started
        )
        return response

    return guard


def _static(body: bytes, content_type: str) -> Handler:
    async def serve(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, content_type=content_type, charset="utf-8")

    return serve


async def _sites(call: Call, asked: Listing) -> Page[SiteRow]:
    rows = await listings.sites(call.connection, after=after(asked), limit=asked.limit + 1)
    return page_of(asked, rows, lambda row: row.site)


async def _site(call: Call, asked: Nothing) -> SiteDetail:
    return await listings.site(call.connection, call.path["ref"], now=call.now)


async def _spots(call: Call, asked: SpotListing) -> Page[SpotRow]:
    rows = await listings.spots(
        call.connection,
        sites=asked.site,
        after=after(asked),
        limit=asked.limit + 1,
        now=call.now,
    )
    return page_of(asked, rows, lambda row: row.spot)


async def _counts(call: Call, asked: CountParameters) -> CountAnswer:
    found = await counts(call.connection, asked.query(), now_s=call.now_s, beside=call.beside)
    following = None
    if found.next is not None:
        following = write_cursor(asked, (found.next.ref, found.next.start_s))
    return CountAnswer(found.rows, found.unplaced, following)


async def _feedback(call: Call, asked: FeedbackParameters) -> Page[FeedbackRow]:
    found = await feedback(call.connection, asked.query(), now_s=call.now_s, basis=asked.basis)
    following = None
    if found.next is not None:
        following = write_cursor(asked, (found.next.ref, found.next.start_s))
    return Page(found.rows, following)


async def _conversion(call: Call, asked: ConversionParameters) -> Page[ConversionRow]:
    position = None if asked.cursor is None else read_cursor(asked)
    since, until = asked.span
    rows, following = await conversion(
        call.connection,
        asked.site,
        since=since,
        until=until,
        limit=asked.limit,
        after=None if position is None else Position(str(position[0]), int(position[1])),
        now_s=call.now_s,
    )
    if following is None:
        return Page(rows)
    return Page(rows, write_cursor(asked, (following.ref, following.start_s)))


async def _gaps(call: Call, asked: GapParameters) -> Page[GapRow]:
    rows = await listings.gaps(call.connection, _touching(asked))
    return numbered(asked, rows, lambda row: row.id)


async def _masks(call: Call, asked: MaskParameters) -> Page[MaskRow]:
    rows = await listings.masks(call.connection, _touching(asked))
    return numbered(asked, rows, lambda row: row.id)


def _touching(asked: Ranged) -> listings.Touching:
    last = 0 if asked.cursor is None else int(read_cursor(asked)[1])
    span = _around(*asked.span)
    return listings.Touching(asked.site, asked.spot, span, after=last, limit=asked.limit + 1)


def _around(since: date, until: date) -> tuple[int, int]:
    """Return a range of local times in any zone: a gap too many explains itself."""
    return instant("UTC", since) - 14 * 3600, instant("UTC", until) + 14 * 3600


_COUNTS = (
    Route("/sites", "Sites, by reference", Listing, Page[SiteRow], SiteRow, _sites),
    Route("/sites/{ref}", "One site, its hours and spots", Nothing, SiteDetail, None, _site),
    Route("/spots", "Spots, by reference", SpotListing, Page[SpotRow], SpotRow, _spots),
    Route(
        "/counts", "Visits and exits in buckets", CountParameters, CountAnswer, CountRow, _counts
    ),
    Route(
        "/feedback",
        "Kiosk results, raw or without misuse",
        FeedbackParameters,
        Page[FeedbackRow],
        FeedbackRow,
        _feedback,
    ),
    Route(
        "/conversion",
        "Sales against visits, by site and day",
        ConversionParameters,
        Page[ConversionRow],
        ConversionRow,
        _conversion,
    ),
    Route("/gaps", "What is known to be missing", GapParameters, Page[GapRow], GapRow, _gaps),
    Route(
        "/masks",
        "What was counted and is not true, and why",
        MaskParameters,
        Page[MaskRow],
        MaskRow,
        _masks,
    ),
)
_PARTS = (
    *(metrics, estimates, sources, opinions, questionnaires, surveys, offers, experiments),
    *(desired, commands),
    *(accuracy, calendars, feeds, presence),
    *(fleet, incidents, telling),
    *(releases, rollouts, freezes),
)
READS: tuple[Route, ...] = (*_COUNTS, *(route for part in _PARTS for route in part.ROUTES))
ACTS: tuple[acts.ActRoute, ...] = (
    *register.ACTS,
    *(route for part in _PARTS for route in part.ACTS),
)
