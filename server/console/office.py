"""What all handlers of the console share: who asks, of which organisation, and what a form says.

Every address names its organisation, so that a page looks at one whatever the session looks at. An
organisation that no grant reaches is not found, just as one that does not exist.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import asyncpg
from aiohttp import web

from server.config import Settings
from server.db.engine import acting, overseeing
from server.errors import NotFoundError, VestibuleError
from server.fleet.checks import ChangedError
from server.people.roles import Permission, Place, scopes
from server.people.sessions import Visitor
from server.web.sessions import signed_in
from server.web.shell import Shell

T = TypeVar("T")
CONSOLE = "/console"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MOST_FORM = 20_000


@dataclass(frozen=True, slots=True)
class Office:
    """What handlers work with; `ingest` moves what devices have counted, None: devices stay."""

    desk: asyncpg.Pool
    ingest: asyncpg.Pool | None
    shell: Shell
    settings: Settings
    now: Callable[[], datetime]

    def page(
        self,
        request: web.Request,
        template: str,
        *,
        alone: str = "",
        problem: "Problem | None" = None,
        **values: object,
    ) -> web.Response:
        """Return a page, or if all is well the part of it `alone` that a live refresh asks for."""
        refreshed = alone and problem is None and "HX-Request" in request.headers
        return self.shell.page(
            request,
            alone if refreshed else template,
            status=problem.status if problem else 200,
            problem=problem,
            **values,
        )


class Handlers:
    """The handlers of one subject's pages."""

    def __init__(self, office: Office) -> None:
        self._office = office


@dataclass(frozen=True, slots=True)
class Here:
    """The organisation of a page, and who looks at it."""

    office: Office
    visitor: Visitor
    id: int
    ref: str
    name: str

    @property
    def path(self) -> str:
        return f"{CONSOLE}/o/{self.ref}"

    @property
    def menu(self) -> list[tuple[str, str]]:
        """Return what there is to look at of the organisation: words and addresses."""
        found = [
            ("now_title", f"{self.path}/now"),
            ("incidents", f"{self.path}/incidents"),
            ("devices", f"{self.path}/devices"),
            ("sites", self.path),
        ]
        if self.may(Permission.READ_FLEET):
            found.insert(3, ("rollouts", f"{self.path}/rollouts"))
        if self.may(Permission.MANAGE_PEOPLE):
            found.append(("people", f"{self.path}/people"))
        if self.may(Permission.READ_AUDIT):
            found.append(("audit", f"{self.path}/audit"))
        return found

    def acting(self, what: str) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Return a transaction that sees and writes this organisation alone."""
        return acting(self.office.desk, what, organisation=self.id)

    def place(self, region: int | None = None, site: int | None = None) -> Place:
        return Place(self.id, region, site)

    def may(self, permission: Permission, place: Place | None = None) -> bool:
        return self.visitor.may(permission, place or Place(self.id))

    def demand(self, permission: Permission, place: Place | None = None) -> None:
        """Raise 404 unless the visitor may do this there."""
        if not self.may(permission, place):
            raise web.HTTPNotFound

    def reach(self, permission: Permission) -> "Reach":
        """Return the sites at which the visitor may do this."""
        places = [
            place
            for place in scopes(self.visitor.grants, permission)
            if place.organisation in (None, self.id)
        ]
        return Reach(
            any(place.region is None and place.site is None for place in places),
            [place.region for place in places if place.region is not None],
            [place.site for place in places if place.site is not None],
        )


@dataclass(frozen=True, slots=True)
class Reach:
    """Some of an organisation's sites: all, or those of some regions, and some by themselves."""

    all: bool
    regions: list[int]
    sites: list[int]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing was done: `key` for the catalogue, the rest about this case."""

    key: str
    field: str = ""
    detail: str = ""
    yours: tuple[tuple[str, str], ...] = ()
    theirs: tuple[tuple[str, str, str], ...] = ()
    by: str = ""

    @property
    def status(self) -> int:
        return 409 if self.key == "changed_meanwhile" else 422


def problem_of(error: VestibuleError) -> Problem:
    """Return an error as a page shows it."""
    if isinstance(error, NotFoundError):
        raise web.HTTPNotFound from error
    if isinstance(error, ChangedError):
        return Problem("changed_meanwhile")
    parameter = getattr(error, "parameter", "")
    return Problem("field" if parameter else "not_done", parameter, str(error))


def part(request: web.Request, name: str) -> str:
    """Return a part of the address; 404 if it is none that we give out."""
    found = request.match_info[name]
    if not _PART.fullmatch(found):
        raise web.HTTPNotFound
    return found


async def here(office: Office, request: web.Request, permission: Permission) -> Here:
    """Return the address's organisation, at some place of which the visitor may do this, or 404."""
    found = signed_in(request)
    reached = [place.organisation for place in scopes(found.grants, permission)]
    async with overseeing(office.desk, "console organisation") as connection:
        row = await connection.fetchrow(
            "select id, ref, name from organisations where ref = $1 and ($2 or id = any($3))",
            *(part(request, "organisation"), None in reached, [r for r in reached if r]),
        )
    if row is None:
        raise web.HTTPNotFound
    return Here(office, found, *row.values())


async def form_of(request: web.Request) -> dict[str, str]:
    """Return a form's texts, without what no text has."""
    form = await request.post()
    return {
        name: value.replace("\0", "")[:_MOST_FORM].strip()
        for name, value in form.items()
        if isinstance(value, str)
    }


def number_of(text: str) -> int | None:
    """Return a whole number, None for an empty text or none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 8 else None


def moment_of(text: str) -> datetime | None:
    """Return the UTC moment of a form's `2026-04-02T12:00`, None for an empty text or none."""
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def asked(request: web.Request, name: str, *, most: int = 100) -> str:
    """Return what a filter asks for."""
    return request.query.get(name, "").replace("\0", "").strip()[:most]


def paged(request: web.Request) -> int:
    return number_of(request.query.get("page", "")) or 0


async def tried(act: Callable[[], Awaitable[T]]) -> T | Problem:
    """Do what may be refused; a refusal is returned."""
    try:
        return await act()
    except VestibuleError as error:
        return problem_of(error)


def shown(values: Mapping[str, str], now: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return what was typed and is not there now."""
    return tuple((n, text) for n, text in values.items() if n in now and now[n] != text)
