"""The application that every page is part of: who asks, static files, languages, errors as pages.

What is not there and what one may not see look the same: one page, 404. A page's address with a
slash too many leads to the page.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from server.config import Settings
from server.db.engine import DATABASE_SILENT
from server.web.sessions import API, Sessions
from server.web.shell import TEMPLATES, Shell, choose_language, local_path, protect
from server.web.static_files import StaticFiles


@dataclass(frozen=True, slots=True)
class Site:
    """The application, and what its parts share."""

    app: web.Application
    sessions: Sessions
    static: StaticFiles


def build_site(
    *,
    desk: asyncpg.Pool,
    settings: Settings,
    static: StaticFiles | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Site:
    """Return the application without any page yet; `desk` is the desk's pool."""
    files = static or StaticFiles()
    sessions = Sessions(desk, settings, now=now)
    shell = Shell(templates=TEMPLATES, catalogues=[], static=files)
    app = web.Application(middlewares=[_as_pages(shell), sessions.middleware])
    app.on_response_prepare.append(protect)
    app.router.add_get("/static/{name}", files.serve)
    app.router.add_get("/language", choose_language)
    return Site(app, sessions, files)


def _as_pages(shell: Shell) -> Middleware:
    """Return the middleware that shows people a page where scripts get a sentence."""

    @web.middleware
    async def show(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound as error:
            if request.method == "GET" and _for_people(request):
                await _without_slash(request)
            return _problem(shell, request, error.status, "missing", error.text)
        except web.HTTPForbidden as error:
            return _problem(shell, request, error.status, "refused", error.text)
        except DATABASE_SILENT:  # a statement of ours that is wrong stays a fault, with a trace
            return _problem(shell, request, 503, "away", "the database does not answer just now")

    return show


async def _without_slash(request: web.Request) -> None:
    """Lead to the page whose address this is but for slashes at its end, if there is one."""
    path = local_path(request.rel_url.raw_path.rstrip("/"))
    if path in ("/", request.rel_url.raw_path):
        return
    query = request.rel_url.raw_query_string
    asked = f"{path}?{query}" if query else path
    found = await request.app.router.resolve(request.clone(rel_url=asked))
    if found.http_exception is None:
        raise web.HTTPSeeOther(asked)


def _for_people(request: web.Request) -> bool:
    """Whether a page is asked for, and not what a script reads."""
    return "text/html" in request.headers.get("Accept", "") and not request.path.startswith(API)


def _problem(
    shell: Shell, request: web.Request, status: int, what: str, text: str | None
) -> web.Response:
    if not _for_people(request):
        return web.Response(status=status, text=text)
    return shell.page(request, "problem.html", status=status, what=what)
