"""The portal's page of what can be downloaded: which rows, of when, as what, also by programs.

Who sees some sites alone downloads those. Whoever sees all is shown the command that gets the same
from the API, and how a BI tool is connected. One file is made at a time for an organisation.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from shlex import quote
from typing import IO, TypeVar
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from server.api.parameters import Format
from server.api.parquet import MEDIA_TYPE, available
from server.api.reads import Call
from server.db.engine import reading_beside
from server.errors import RefusedError, VestibuleError
from server.fleet.checks import day
from server.insight import definitions
from server.portal.export_files import BUCKETS, MOST_ROWS, Dataset, Wish, write
from server.portal.frame import Look, Portal, Section
from server.rollup.quality import Scope

E = TypeVar("E", Dataset, Format, Scope)
DAYS = 28
MOST_AT_ONCE = 3  # files being made; each holds a connection of the API's pool
_FIRST_KPIS = ("visits", "conversion", "atv", "spv")
_MOST_KPIS = 20
_DAY = timedelta(days=1)
_CHUNK = 1 << 18
_TYPES = {
    Format.CSV: "text/csv; charset=utf-8",
    Format.JSON: "application/json",
    Format.PARQUET: MEDIA_TYPE,
}


class BusyError(RefusedError):
    """A file is being made already."""

    def __init__(self) -> None:
        super().__init__("busy", "another file is being made: try again in a minute")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the page's form says; what it does not say, or says wrongly, is as it is at first."""

    wish: Wish

    @classmethod
    def of(cls, query: Mapping[str, str], many: Mapping[str, list[str]], today: date) -> "Asked":
        first, last = _day(query, "from"), _day(query, "to")
        last = last or today - _DAY
        first = first or last - timedelta(days=DAYS - 1)
        kpis = tuple(name for name in many["kpi"] if name in _names())[:_MOST_KPIS]
        bucket = query.get("bucket", "")
        return cls(
            Wish(
                _one_of(Dataset, query.get("dataset", ""), Dataset.VISITS),
                first,
                last + _DAY,
                tuple(dict.fromkeys(many["site"])),
                bucket if bucket in BUCKETS else "day",
                _one_of(Scope, query.get("scope", ""), Scope.OPEN),
                kpis or _FIRST_KPIS,
                _one_of(Format, query.get("format", ""), Format.CSV),
            )
        )

    @property
    def last(self) -> date:
        return self.wish.until - _DAY


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/exports", "exports"))
    portal.site.app.router.add_get("/exports", pages.show)
    portal.site.app.router.add_get("/exports/file", pages.file)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._making: set[int] = set()  # organisations, of each one file

    async def show(self, request: web.Request) -> web.Response:
        """What there is, and the command that gets what the form says."""
        return await self._page(request)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """The file that the form asks for; what is refused is said on the page instead."""
        with tempfile.TemporaryFile(prefix="vestibule-export-") as file:
            async with self._portal.looking(request, "portal export") as look:
                wish = self._wish(request, look).wish
                refused = await self._made(look, wish, file)
            if refused is not None:
                return await self._page(request, problem=refused)
            return await _sent(request, wish, file)

    async def _made(self, look: Look, wish: Wish, file: IO[bytes]) -> VestibuleError | None:
        organisation = look.organisation
        if organisation in self._making or len(self._making) >= MOST_AT_ONCE:
            return BusyError()
        self._making.add(organisation)
        beside = partial(reading_beside, self._portal.pool, organisation=organisation)
        call = Call(look.db, self._portal.now(), {}, beside)
        if not wish.sites and not look.sees_all:
            wish = replace(wish, sites=tuple(sorted(look.seen)))
        try:
            await write(call, wish, file)
        except VestibuleError as error:
            return error
        finally:
            self._making.discard(organisation)
        return None

    def _wish(self, request: web.Request, look: Look) -> Asked:
        query = request.query
        many = {name: query.getall(name, []) for name in ("site", "kpi")}
        many["site"] = [ref for ref in many["site"] if ref]
        if not set(many["site"]) <= look.seen or not look.seen:
            raise web.HTTPNotFound
        return Asked.of(query, many, self._portal.now().date())

    async def _page(
        self, request: web.Request, *, problem: VestibuleError | None = None
    ) -> web.Response:
        async with self._portal.looking(request, "portal exports") as look:
            rows = await look.db.fetch("select ref, name from sites order by name, ref")
        names = [(row["ref"], row["name"]) for row in rows if row["ref"] in look.seen]
        if not names:
            return self._portal.page(request, "exports.html", look, names=[], asked=None)
        asked = self._wish(request, look)
        return self._portal.page(
            request,
            "exports.html",
            look,
            status=422 if problem else 200,
            problem=problem,
            names=names,
            asked=asked,
            datasets=list(Dataset),
            buckets=BUCKETS,
            scopes=list(Scope),
            formats=[each for each in Format if each is not Format.PARQUET or available()],
            parquet=available(),
            kpis=_names(),
            most_rows=MOST_ROWS,
            curl=self._curl(request, look, asked.wish),
            bi=f"vestibule bi add {quote(look.owner.name)}" if look.sees_all else "",
        )

    def _curl(self, request: web.Request, look: Look, wish: Wish) -> str:
        """Return the command that gets the first page of the same rows."""
        given = msgspec.to_builtins(wish.question)
        asked = {name: value for name, value in given.items() if value not in (None, (), [])}
        path = wish.dataset.path.removeprefix("/")
        asked["format"] = wish.format.value
        if wish.route.body is not None:
            body = msgspec.json.encode(asked).decode()
            return self._portal.command(request, look, path, body=body, into=wish.name)
        query = urlencode(asked, doseq=True)
        return self._portal.command(request, look, f"{path}?{query}", into=wish.name)


async def _sent(request: web.Request, wish: Wish, file: IO[bytes]) -> web.StreamResponse:
    length = await asyncio.to_thread(file.tell)
    response = web.StreamResponse(
        headers={
            "Content-Type": _TYPES[wish.format],
            "Content-Disposition": f'attachment; filename="{wish.name}"',
            "Content-Length": str(length),
            "Cache-Control": "no-store",
        }
    )
    file.seek(0)
    await response.prepare(request)
    while chunk := await asyncio.to_thread(file.read, _CHUNK):
        await response.write(chunk)
    await response.write_eof()
    return response


def _names() -> list[str]:
    """Return the KPIs that any shop may have, in the order of their definitions."""
    return [each.name for each in definitions.REGISTRY.values() if each.projected]


def _day(query: Mapping[str, str], field: str) -> date | None:
    try:
        return day(query.get(field, ""), field)
    except VestibuleError:
        return None


def _one_of(kind: type[E], text: str, otherwise: E) -> E:
    return kind(text) if text in tuple(kind) else otherwise
