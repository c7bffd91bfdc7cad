"""People: who may what in an organisation and on the platform; invitations by one-time links.

Who manages an organisation's people sees and changes their grants there alone. What concerns the
whole account (its links, whether it may sign in) takes the right to give all that the account
holds: else a link for somebody's password would be a way into another organisation.

Nor is it told who has an account elsewhere. Whom it invites looks the same whether there is one or
not: an e-mail and roles, until somebody has come whose whole account is theirs to manage.
"""

from dataclasses import dataclass

import asyncpg
from aiohttp import web

from server.console.office import (
    CONSOLE,
    Handlers,
    Here,
    Office,
    Problem,
    form_of,
    here,
    part,
    tried,
)
from server.db.engine import overseeing
from server.errors import RefusedError
from server.fleet import organisations
from server.people import links, users
from server.people.links import Purpose
from server.people.roles import EVERYWHERE, Grant, Permission, Role
from server.people.sessions import Visitor
from server.people.users import User, may_give
from server.web import catalogue
from server.web.sessions import demand

MANAGE = Permission.MANAGE_PEOPLE
_SCOPES = {
    "organisation": "select id from organisations where ref = $1 and coalesce(id = $2, true)",
    "region": "select id from regions where ref = $1 and organisation_id = $2",
    "site": "select id from sites where ref = $1 and organisation_id = $2",
}
"""How a form says a scope: `site:<ref>`; nothing is the page's organisation, or everything."""


def add_people(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address, and the platform's."""
    pages = Pages(office)
    for root in (CONSOLE, base):
        app.router.add_get(f"{root}/people", pages.show)
        app.router.add_post(f"{root}/people", pages.invite)
        app.router.add_post(root + "/people/{user}/grant", pages.give)
        app.router.add_post(root + "/people/{user}/revoke", pages.take)
        app.router.add_post(root + "/people/{user}/link", pages.link)
        app.router.add_post(root + "/people/{user}/disable", pages.disable)
        app.router.add_post(root + "/people/{user}/enable", pages.enable)


@dataclass(frozen=True, slots=True)
class Where:
    """Whose people: an organisation's, or (`at` None) the platform's."""

    visitor: Visitor
    at: Here | None

    @property
    def path(self) -> str:
        return f"{self.at.path if self.at else CONSOLE}/people"

    @property
    def everywhere(self) -> bool:
        """Whether the visitor manages all people, and so knows who has an account."""
        return self.visitor.may(MANAGE, EVERYWHERE)

    @property
    def organisation(self) -> int | None:
        return self.at.id if self.at else None


@dataclass(frozen=True, slots=True)
class Listed:
    """A user as the page shows them; `whole`: the visitor may do all to the account.

    `bare`: by e-mail and roles alone. It may be new, or somebody's who has another elsewhere.
    """

    user: User
    grants: list[tuple[Grant, str, str]]  # with the scope's name, and as a form says it
    whole: bool
    itself: bool
    bare: bool

    @property
    def email(self) -> str:
        """The e-mail; a bare one not as somebody wrote it elsewhere."""
        return self.user.email.lower() if self.bare else self.user.email

    @property
    def name(self) -> str:
        return (not self.bare and self.user.name) or self.email


class Pages(Handlers):
    """The handlers."""

    async def show(self, request: web.Request) -> web.Response:
        return await self._page(request, await self._where(request))

    async def invite(self, request: web.Request) -> web.Response:
        """Give somebody a role, and show their link once.

        Whether the e-mail has an account already is told to nobody but who manages all people.
        """
        where, form = await self._where(request), await form_of(request)
        made: list[str] = []

        async def act() -> None:
            email = users.demand_email(form.get("email", ""))
            async with overseeing(self._office.desk, "invite") as connection:
                token = await users.invite(
                    connection,
                    email,
                    await self._grant(connection, where, form),
                    name=form.get("name", ""),
                    language=_language(form),
                    openly=where.everywhere,
                    actor=where.visitor.actor,
                    now=self._office.now(),
                )
                if token is not None:
                    made.append(self._address(Purpose.INVITATION, token))

        problem = await tried(act)
        if problem is None and not made:
            raise web.HTTPSeeOther(where.path)
        return await self._page(request, where, problem=problem, link="".join(made))

    async def give(self, request: web.Request) -> web.Response:
        """Give a user another role."""
        where, form = await self._where(request), await form_of(request)

        async def act() -> None:
            async with overseeing(self._office.desk, "give role") as connection:
                user = (await self._user(connection, request, where)).user
                given = await self._grant(connection, where, form)
                await users.grant(
                    connection, user.id, given, actor=where.visitor.actor, now=self._office.now()
                )

        return await self._done(request, where, await tried(act))

    async def take(self, request: web.Request) -> web.Response:
        """Take a role away."""
        where, form = await self._where(request), await form_of(request)

        async def act() -> None:
            async with overseeing(self._office.desk, "take role") as connection:
                user = (await self._user(connection, request, where)).user
                taken = await self._grant(connection, where, form)
                await users.revoke(
                    connection, user.id, taken, actor=where.visitor.actor, now=self._office.now()
                )

        return await self._done(request, where, await tried(act))

    async def link(self, request: web.Request) -> web.Response:
        """Make a new link: an invitation, or for who has a password another one."""
        where = await self._where(request)
        made: list[str] = []

        async def act() -> None:
            async with overseeing(self._office.desk, "make link") as connection:
                listed = await self._user(connection, request, where)
                user, by = listed.user, where.visitor.actor
                invited = listed.bare or user.invited
                purpose = Purpose.INVITATION if invited else Purpose.PASSWORD
                if listed.whole:
                    token = await users.link(
                        connection, user, purpose, actor=by, now=self._office.now()
                    )
                else:
                    token = await users.hollow_link(
                        connection, user, actor=by, now=self._office.now()
                    )
                made.append(self._address(purpose, token))

        problem = await tried(act)
        return await self._page(request, where, problem=problem, link="".join(made))

    async def disable(self, request: web.Request) -> web.Response:
        """Shut a user out at once; nobody shuts themselves out."""
        where = await self._where(request)

        async def act() -> None:
            async with overseeing(self._office.desk, "disable user") as connection:
                user = await self._whole(connection, request, where)
                if user.id == where.visitor.user_id:
                    raise RefusedError("yourself", "you cannot shut yourself out")
                await users.disable(
                    connection, user.id, actor=where.visitor.actor, now=self._office.now()
                )

        return await self._done(request, where, await tried(act))

    async def enable(self, request: web.Request) -> web.Response:
        """Let a user in again."""
        where = await self._where(request)

        async def act() -> None:
            async with overseeing(self._office.desk, "enable user") as connection:
                user = await self._whole(connection, request, where)
                await users.enable(
                    connection, user.id, actor=where.visitor.actor, now=self._office.now()
                )

        return await self._done(request, where, await tried(act))

    # -- inside ----------------------------------------------------------------------------------

    async def _where(self, request: web.Request) -> Where:
        if "organisation" not in request.match_info:
            return Where(demand(request, MANAGE, EVERYWHERE), None)
        at = await here(self._office, request, MANAGE)
        at.demand(MANAGE)
        return Where(at.visitor, at)

    async def _user(
        self, connection: asyncpg.Connection, request: web.Request, where: Where
    ) -> Listed:
        """Return the address's user, who has some role here; else 404."""
        found = await self._listed(connection, where, ref=part(request, "user"))
        if not found:
            raise web.HTTPNotFound
        return found[0]

    async def _whole(
        self, connection: asyncpg.Connection, request: web.Request, where: Where
    ) -> User:
        listed = await self._user(connection, request, where)
        if listed.bare:
            raise RefusedError(
                "elsewhere",
                "this account is not begun, or has roles that are not yours to give: "
                "take away the roles it has here",
            )
        return listed.user

    async def _listed(
        self, connection: asyncpg.Connection, where: Where, *, ref: str | None = None
    ) -> list[Listed]:
        """Return the users who have some role here, or of them the one of this ref."""
        names = await self._names(connection, where)
        found: list[Listed] = []
        for user, grants in await users.listed_with_grants(
            connection, organisation=where.organisation, ref=ref
        ):
            shown = [
                grant
                for grant in grants
                if where.organisation is None or grant.organisation == where.organisation
            ]
            whole = all(may_give(where.visitor.grants, grant) for grant in grants)
            told = [
                (grant, *names.get((grant.organisation, grant.region, grant.site), ("", "")))
                for grant in shown
            ]
            itself = user.id == where.visitor.user_id
            bare = not (where.everywhere or itself) and (user.invited or not whole)
            found.append(Listed(user, told, whole, itself, bare))
        return found

    async def _names(
        self, connection: asyncpg.Connection, where: Where
    ) -> dict[tuple[int | None, int | None, int | None], tuple[str, str]]:
        """Return each scope's name, and how a form says it."""
        rows = await connection.fetch(
            "select id as o, null::int as r, null::int as s, name, 'organisation:' || ref as said "
            "from organisations where $1::int is null or id = $1 union all "
            "select organisation_id, id, null, name, 'region:' || ref from regions "
            "where $1::int is null or organisation_id = $1 union all "
            "select organisation_id, null, id, name, 'site:' || ref from sites "
            "where $1::int is null or organisation_id = $1",
            where.organisation,
        )
        return {(row["o"], row["r"], row["s"]): (row["name"], row["said"]) for row in rows}

    async def _grant(
        self, connection: asyncpg.Connection, where: Where, form: dict[str, str]
    ) -> Grant:
        """Return the grant that a form describes, which the visitor may give."""
        if form.get("role") not in list(Role):
            raise RefusedError("bad_role", "expected a role")
        kind, _, ref = form.get("scope", "").partition(":")
        organisation, region, site = where.organisation, None, None
        if kind:
            row = await connection.fetchval(
                _SCOPES.get(kind, _SCOPES["site"]), ref, where.organisation
            )
            if row is None or kind not in _SCOPES:
                raise RefusedError("bad_scope", "region and site must be the organisation's own")
            if kind == "organisation":
                organisation = row
            else:
                region, site = (row, None) if kind == "region" else (None, row)
        given = Grant(Role(form["role"]), organisation, region, site)
        if not may_give(where.visitor.grants, given):
            raise RefusedError("not_yours", "this role is not yours to give")
        return given

    def _address(self, purpose: Purpose, token: str) -> str:
        return links.address(self._office.settings.pages_url, purpose, token)

    async def _done(self, request: web.Request, where: Where, done: Problem | None) -> web.Response:
        if done is None:
            raise web.HTTPSeeOther(where.path)
        return await self._page(request, where, problem=done)

    async def _page(
        self,
        request: web.Request,
        where: Where,
        *,
        problem: Problem | None = None,
        link: str = "",
    ) -> web.Response:
        async with overseeing(self._office.desk, "console people") as connection:
            listed = await self._listed(connection, where)
            regions, sites = [], []
            if where.organisation is not None:
                regions = await organisations.regions(connection, where.organisation)
                sites = await connection.fetch(
                    "select ref, name from sites where organisation_id = $1 "
                    "order by lower(name) limit 2000",
                    where.organisation,
                )
        return self._office.page(
            request,
            "people.html",
            at=where.at,
            base=where.path,
            people=listed,
            roles=list(reversed(Role)),  # what gives least is what is chosen by mistake
            regions=regions,
            sites=sites,
            all_languages=catalogue.LANGUAGES,
            link=link,
            problem=problem,
        )


def _language(form: dict[str, str]) -> str:
    chosen = form.get("language", "")
    return chosen if chosen in catalogue.LANGUAGES else catalogue.DEFAULT_LANGUAGE
