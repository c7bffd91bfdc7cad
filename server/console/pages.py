"""Routes of the console, at `/console`: the organisations, and one's regions and sites."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
from aiohttp import web

from server.config import Settings
from server.console import health_reads, reads
from server.console.audit import add_audit
from server.console.bulk import add_bulk
from server.console.desired import add_desired
from server.console.devices import add_devices
from server.console.files import add_files
from server.console.freezes import add_freezes
from server.console.live import Live
from server.console.office import (
    CONSOLE,
    Handlers,
    Here,
    Office,
    Problem,
    asked,
    form_of,
    here,
    paged,
    part,
    tried,
)
from server.console.operations import TOP, add_operations
from server.console.people import add_people
from server.console.rollout_new import add_rollout_new
from server.console.rollouts import add_rollouts
from server.console.site import add_site_pages
from server.db.engine import overseeing
from server.fleet import organisations
from server.fleet.checks import Known
from server.fleet.organisations import CLONES, ENROLMENTS, Organisation, Region
from server.people.roles import EVERYWHERE, Permission, Place, scopes
from server.web.sessions import demand, signed_in
from server.web.shell import Shell
from server.web.site import Site

HERE = Path(__file__).parent
CATALOGUES = sorted(path.parent for path in HERE.glob("catalogues/**/en.json"))
LANGUAGES = ("sv", "en")


def console_shell(site: Site) -> Shell:
    return Shell(
        templates=HERE / "templates",
        catalogues=CATALOGUES,
        static=site.static,
        languages=LANGUAGES,
    )


def add_console(
    site: Site,
    *,
    desk: asyncpg.Pool,
    settings: Settings,
    ingest: asyncpg.Pool | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Add the console's pages; the pools are of the roles that they are named after."""
    site.static.add(HERE / "static")
    office = Office(desk, ingest, console_shell(site), settings, now)
    pages = Pages(office)
    routes = site.app.router
    routes.add_get(CONSOLE, pages.overview)
    routes.add_post(f"{CONSOLE}/organisations", pages.add_organisation)
    base = CONSOLE + "/o/{organisation}"
    routes.add_get(base, pages.organisation)
    routes.add_post(base, pages.edit_organisation)
    routes.add_post(f"{base}/regions", pages.add_region)
    routes.add_post(base + "/regions/{region}", pages.edit_region)
    live = Live(site.sessions)
    site.app.on_shutdown.append(live.close)
    add_operations(site.app, office, base, live=live)
    add_site_pages(site.app, office, base)
    add_devices(site.app, office, base)
    add_desired(site.app, office, base)
    add_bulk(site.app, office, base)
    add_freezes(site.app, office, base)
    add_rollout_new(site.app, office, base)
    add_rollouts(site.app, office, base, live=live)
    add_files(site.app, office, base)
    add_people(site.app, office, base)
    add_audit(site.app, office, base)


class Pages(Handlers):
    """The handlers of the first two pages."""

    async def overview(self, request: web.Request) -> web.Response:
        """The organisations that one's grants cover."""
        return await self._overview(request)

    async def add_organisation(self, request: web.Request) -> web.Response:
        """Add an organisation; who may change the register everywhere."""
        found = demand(request, Permission.CHANGE_REGISTER, EVERYWHERE)
        form = await form_of(request)

        async def act() -> Known[Organisation]:
            async with overseeing(self._office.desk, "add organisation") as connection:
                return await organisations.add(
                    connection,
                    Organisation(form.get("name", "")),
                    actor=found.actor,
                    now=self._office.now(),
                )

        made = await tried(act)
        if isinstance(made, Problem):
            return await self._overview(request, problem=made)
        raise web.HTTPSeeOther(f"{CONSOLE}/o/{made.ref}")

    async def _overview(
        self, request: web.Request, *, problem: Problem | None = None
    ) -> web.Response:
        found = signed_in(request)
        reached = [place.organisation for place in scopes(found.grants, Permission.READ_FLEET)]
        if not reached:
            raise web.HTTPNotFound
        async with overseeing(self._office.desk, "console overview") as connection:
            rows = await connection.fetch(
                "select o.ref, o.name, "
                "(select count(*) from sites s where s.organisation_id = o.id) as sites, "
                "(select count(*) from devices d where d.organisation_id = o.id) as devices, "
                "(select count(*) from devices d where d.organisation_id = o.id "
                "and not d.admitted) as held, "
                "(select count(*) from presences p where p.organisation_id = o.id "
                "and p.state in ('offline', 'no data', 'no heartbeat')) as unwell, "
                "(select count(*) from incidents i where i.organisation_id = o.id "
                "and i.state = 'open') as incidents "
                "from organisations o where $1 or o.id = any($2::int[]) order by lower(o.name)",
                *(None in reached, [row for row in reached if row is not None]),
            )
            whole = await connection.fetch("select id from organisations order by id")
            urgent = await health_reads.of_organisations(
                connection,
                [row["id"] for row in whole if found.may(Permission.READ_FLEET, Place(row["id"]))],
                limit=TOP,
            )
            unknown = await health_reads.unknown_since(connection)
        return self._office.page(
            request,
            "overview.html",
            rows=rows,
            urgent=urgent,
            unknown=unknown,
            platform={
                "register": found.may(Permission.CHANGE_REGISTER, EVERYWHERE),
                "unknown": found.may(Permission.PROVISION, EVERYWHERE),
                "people": found.may(Permission.MANAGE_PEOPLE, EVERYWHERE),
                "audit": found.may(Permission.READ_AUDIT, EVERYWHERE),
            },
            problem=problem,
        )

    # -- an organisation -------------------------------------------------------------------------

    async def organisation(self, request: web.Request) -> web.Response:
        """Its regions and sites; the filter asks for the table alone."""
        return await self._page(request, await here(self._office, request, Permission.READ_FLEET))

    async def edit_organisation(self, request: web.Request) -> web.Response:
        """Change its name, what its devices need to enrol, and what becomes of clones."""
        at = await here(self._office, request, Permission.CHANGE_REGISTER)
        at.demand(Permission.CHANGE_REGISTER)
        form = await form_of(request)

        async def act() -> None:
            async with at.acting("edit organisation") as connection:
                await organisations.edit(
                    connection,
                    at.ref,
                    Organisation(
                        form.get("name", ""), form.get("enrolment", ""), form.get("clones", "")
                    ),
                    seen=form.get("version", ""),
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )

        return await self._done(request, at, await tried(act))

    async def add_region(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, Permission.CHANGE_REGISTER)
        at.demand(Permission.CHANGE_REGISTER)
        form = await form_of(request)

        async def act() -> None:
            async with at.acting("add region") as connection:
                await organisations.add_region(
                    connection,
                    at.id,
                    Region(form.get("name", "")),
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )

        return await self._done(request, at, await tried(act))

    async def edit_region(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, Permission.CHANGE_REGISTER)
        at.demand(Permission.CHANGE_REGISTER)
        form, ref = await form_of(request), part(request, "region")

        async def act() -> None:
            async with at.acting("edit region") as connection:
                await organisations.edit_region(
                    connection,
                    at.id,
                    ref,
                    Region(form.get("name", "")),
                    seen=form.get("version", ""),
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )

        return await self._done(request, at, await tried(act))

    async def _done(self, request: web.Request, at: Here, done: Problem | None) -> web.Response:
        if done is None:
            raise web.HTTPSeeOther(at.path)
        return await self._page(request, at, problem=done)

    async def _page(
        self, request: web.Request, at: Here, *, problem: Problem | None = None
    ) -> web.Response:
        words, region, page = asked(request, "q"), asked(request, "region"), paged(request)
        async with at.acting("console organisation") as connection:
            rows = await reads.sites(
                connection,
                at.id,
                at.reach(Permission.READ_FLEET),
                words=words,
                region=region,
                page=page,
                now=self._office.now(),
            )
            regions = await organisations.regions(connection, at.id)
            known = await organisations.find(connection, at.ref)
        return self._office.page(
            request,
            "organisation.html",
            alone="sites.html",
            at=at,
            rows=rows[: reads.PAGE],
            more=len(rows) > reads.PAGE,
            wanted=words,
            region=region,
            page=page,
            regions=regions,
            known=known,
            enrolments=ENROLMENTS,
            clones=CLONES,
            may_change=at.may(Permission.CHANGE_REGISTER),
            may_people=at.may(Permission.MANAGE_PEOPLE),
            may_audit=at.may(Permission.READ_AUDIT),
            problem=problem,
        )
