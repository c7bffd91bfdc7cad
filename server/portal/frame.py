"""What all of the portal's pages share: who looks, at which organisation, and which sites they see.

Whose grants cover a region or some sites sees those alone, and nothing that counts the others in.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import TypeVar

import asyncpg
from aiohttp import web

from server.config import Settings
from server.db.engine import acting, reading
from server.errors import NotFoundError, VestibuleError
from server.people.roles import Permission, Place
from server.portal import numbers
from server.web.passes import Passes
from server.web.sessions import Visitor, demand_organisation
from server.web.shell import Shell
from server.web.site import Site

T = TypeVar("T")
HERE = Path(__file__).parent
CATALOGUES = sorted(path.parent for path in HERE.glob("catalogues/**/en.json"))


@dataclass(frozen=True, slots=True)
class Look:
    """One request's look at an organisation, in one transaction that sees it alone."""

    db: asyncpg.Connection
    visitor: Visitor
    organisation: int
    owner: numbers.Organisation
    seen: frozenset[str]
    """The references of the sites whose numbers they may see."""

    @property
    def sees_all(self) -> bool:
        """Whether they may read what counts all sites in."""
        return self.visitor.may(Permission.READ_NUMBERS, Place(self.organisation))


@dataclass(frozen=True, slots=True)
class Section:
    """An entry of the portal's menu; `key` is its name in the catalogues.

    `whole`: it counts all sites together, so it is for those who see all of them.
    """

    path: str
    key: str
    whole: bool = False


@dataclass(slots=True)
class Portal:
    """The portal's pool, templates and menu; `desk` is the role that writes."""

    site: Site
    pool: asyncpg.Pool
    desk: asyncpg.Pool
    settings: Settings
    passes: Passes
    now: Callable[[], datetime]
    shell: Shell = field(init=False)
    sections: list[Section] = field(default_factory=lambda: [Section("/", "today")])

    def __post_init__(self) -> None:
        self.shell = Shell(
            templates=HERE / "templates", catalogues=CATALOGUES, static=self.site.static
        )

    @asynccontextmanager
    async def looking(self, request: web.Request, name: str) -> AsyncIterator[Look]:
        """Open a transaction for who is signed in; whom the portal is not for gets 404."""
        found, organisation = demand_organisation(request, Permission.READ_NUMBERS)
        async with reading(self.pool, name, organisation=organisation) as db:
            owner = await numbers.organisation_of(db)
            if owner is None:
                raise web.HTTPNotFound
            seen = frozenset(
                ref
                for ref, site, region in await numbers.places(db)
                if found.may(Permission.READ_NUMBERS, Place(organisation, region, site))
            )
            yield Look(db, found, organisation, owner, seen)

    async def acted(
        self, look: Look, name: str, act: Callable[[asyncpg.Connection], Awaitable[T]]
    ) -> T | VestibuleError:
        """Do what may be refused, as the desk; a refusal is returned, what is not there is 404."""
        try:
            async with acting(self.desk, name, organisation=look.organisation) as db:
                return await act(db)
        except NotFoundError as error:
            raise web.HTTPNotFound from error
        except VestibuleError as error:
            return error

    def page(
        self,
        request: web.Request,
        template: str,
        look: Look,
        *,
        status: int = 200,
        **values: object,
    ) -> web.Response:
        """Return a page in the portal's layout, with its menu."""
        return self.shell.page(
            request,
            template,
            status=status,
            owner=look.owner,
            sections=[each for each in self.sections if look.sees_all or not each.whole],
            **values,
        )

    def command(
        self, request: web.Request, look: Look, query: str, *, body: str = "", into: str = ""
    ) -> str:
        """Return a command that gets the same numbers; empty for who may not read them all.

        With a JSON `body` it posts that; `into` is the file that it writes.
        """
        if not look.sees_all:
            return ""
        key = self.passes.make(look.visitor, look.organisation)
        base = self.settings.public_url or f"http://{request.host}"
        parts = ["curl -s", f"-H 'Authorization: Bearer {key}'"]
        if body:
            parts += ["-H 'Content-Type: application/json'", f"-d {quote(body)}"]
        parts += [f"-o {quote(into)}"] if into else []
        return " ".join((*parts, f"'{base}/v1/{query}'"))
