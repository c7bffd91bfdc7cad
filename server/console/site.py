"""A site's page: its facts and hours, doors, spots and devices, with forms to edit them."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import asyncpg
from aiohttp import web

from server.console import health_reads, reads
from server.console.office import (
    Handlers,
    Here,
    Office,
    Problem,
    form_of,
    here,
    moment_of,
    number_of,
    part,
    shown,
    tried,
)
from server.console.operations import row_of
from server.fleet import checks, doors, hours, organisations, sites, spots
from server.fleet.checks import FieldError, Known
from server.fleet.doors import Door
from server.fleet.sites import Site
from server.fleet.spots import KINDS, PURPOSES, Calibration, Spot
from server.people.roles import Permission, Place

CHANGE = Permission.CHANGE_REGISTER


def add_site_pages(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office)
    routes = app.router
    routes.add_get(f"{base}/sites", pages.new)
    routes.add_post(f"{base}/sites", pages.add)
    routes.add_get(base + "/sites/{site}", pages.show)
    routes.add_post(base + "/sites/{site}", pages.edit)
    routes.add_post(base + "/sites/{site}/doors", pages.add_door)
    routes.add_post(base + "/sites/{site}/doors/{door}", pages.edit_door)
    routes.add_post(base + "/sites/{site}/spots", pages.add_spot)
    routes.add_post(base + "/sites/{site}/spots/{spot}", pages.edit_spot)
    routes.add_post(base + "/sites/{site}/spots/{spot}/calibrate", pages.calibrate)


@dataclass(frozen=True, slots=True)
class At:
    """A site of an organisation."""

    here: Here
    ref: str
    id: int
    place: Place

    @property
    def path(self) -> str:
        return f"{self.here.path}/sites/{self.ref}"


class Pages(Handlers):
    """The handlers."""

    # -- the site itself -------------------------------------------------------------------------

    async def new(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, CHANGE)
        return await self._new(request, at, values=values_of(Site("", "Europe/Stockholm", "SEK")))

    async def add(self, request: web.Request) -> web.Response:
        """Add a site; who may change the region that it is to lie in, or all."""
        at = await here(self._office, request, CHANGE)
        form = await form_of(request)

        async def act() -> Known[Site]:
            wanted = wanted_of(form)
            async with at.acting("add site") as connection:
                await self._demand_region(connection, at, wanted.region)
                return await sites.add(
                    connection, at.id, wanted, actor=at.visitor.actor, now=self._office.now()
                )

        made = await tried(act)
        if isinstance(made, Problem):
            return await self._new(request, at, values=form, problem=made)
        raise web.HTTPSeeOther(f"{at.path}/sites/{made.ref}")

    async def _new(
        self,
        request: web.Request,
        at: Here,
        *,
        values: dict[str, str],
        problem: Problem | None = None,
    ) -> web.Response:
        async with at.acting("console new site") as connection:
            regions = await organisations.regions(connection, at.id)
        return self._office.page(
            request,
            "new_site.html",
            at=at,
            values={**values_of(Site("", "")), **values},
            regions=regions,
            problem=problem,
        )

    async def show(self, request: web.Request) -> web.Response:
        return await self._page(request, await self._at(request, Permission.READ_FLEET))

    async def edit(self, request: web.Request) -> web.Response:
        """Change facts and hours; one who comes second is shown what the first did."""
        at = await self._at(request, CHANGE)
        form = await form_of(request)

        async def act() -> None:
            async with at.here.acting("edit site") as connection:
                now = await sites.find(connection, at.here.id, at.ref)
                wanted = wanted_of(form)
                if wanted.region != now.facts.region:
                    await self._demand_region(connection, at.here, wanted.region)
                await sites.edit(
                    connection,
                    at.here.id,
                    at.ref,
                    wanted,
                    seen=form.get("version", ""),
                    actor=at.here.visitor.actor,
                    now=self._office.now(),
                )

        done = await tried(act)
        if done is None:
            raise web.HTTPSeeOther(at.path)
        if done.key == "changed_meanwhile":
            return await self._page(request, at, problem=await self._conflict(at, form))
        return await self._page(request, at, problem=done, values=form)

    async def _conflict(self, at: At, form: dict[str, str]) -> Problem:
        """Return what the other has written, and what was typed here and is not kept."""
        async with at.here.acting("console conflict") as connection:
            now = await sites.find(connection, at.here.id, at.ref)
            last = await reads.last_change(connection, at.here.id, at.ref)
        theirs = json.loads(last["detail"]) if last else {}
        return Problem(
            "changed_meanwhile",
            yours=shown(form, values_of(now.facts)),
            theirs=tuple((name, *pair) for name, pair in theirs.items() if len(pair) == 2),
            by=(last["name"] or last["actor"]) if last else "",
        )

    async def _demand_region(
        self, connection: asyncpg.Connection, at: Here, region: str | None
    ) -> None:
        """Raise 404 unless the visitor may change the register in all of the region."""
        row = None
        if region is not None:
            row = await connection.fetchval(
                "select id from regions where organisation_id = $1 and ref = $2", at.id, region
            )
            if row is None:
                raise FieldError("region", f"no region {region[:40]!r}")
        if not at.may(CHANGE, at.place(row)):
            raise FieldError("region", "this is not yours to change: choose another region")

    # -- doors -----------------------------------------------------------------------------------

    async def add_door(self, request: web.Request) -> web.Response:
        at, form = await self._at(request, CHANGE), await form_of(request)
        wanted = Door(form.get("name", ""), form.get("behind") or None)
        return await self._do(
            request,
            at,
            "add door",
            lambda connection: doors.add(
                connection, at.here.id, at.ref, wanted, actor=self._by(at), now=self._office.now()
            ),
        )

    async def edit_door(self, request: web.Request) -> web.Response:
        at, form = await self._at(request, CHANGE), await form_of(request)
        ref = part(request, "door")
        wanted = Door(form.get("name", ""), form.get("behind") or None)

        async def act(connection: asyncpg.Connection) -> None:
            site, _ = await doors.find(connection, at.here.id, ref)
            if site != at.id:
                raise web.HTTPNotFound
            await doors.edit(
                connection,
                at.here.id,
                ref,
                wanted,
                seen=form.get("version", ""),
                actor=self._by(at),
                now=self._office.now(),
            )

        return await self._do(request, at, "edit door", act)

    # -- spots -----------------------------------------------------------------------------------

    async def add_spot(self, request: web.Request) -> web.Response:
        at, form = await self._at(request, CHANGE), await form_of(request)
        return await self._do(
            request,
            at,
            "add spot",
            lambda connection: spots.add(
                connection,
                at.here.id,
                at.ref,
                spot_of(form, form.get("kind", "")),
                actor=self._by(at),
                now=self._office.now(),
            ),
        )

    async def edit_spot(self, request: web.Request) -> web.Response:
        at, form = await self._at(request, CHANGE), await form_of(request)

        async def act(connection: asyncpg.Connection) -> None:
            known = await self._spot(connection, request, at)
            await spots.edit(
                connection,
                at.here.id,
                known.ref,
                spot_of(form, known.facts.kind),
                seen=form.get("version", ""),
                since=moment_of(form.get("since", "")),
                actor=self._by(at),
                now=self._office.now(),
            )

        return await self._do(request, at, "edit spot", act)

    async def calibrate(self, request: web.Request) -> web.Response:
        """State how a line is read."""
        at, form = await self._at(request, CHANGE), await form_of(request)

        async def act(connection: asyncpg.Connection) -> None:
            known = await self._spot(connection, request, at)
            try:
                factor = float(form.get("factor", "1").replace(",", "."))
            except ValueError as error:
                raise FieldError("factor", "expected a number such as 1.05") from error
            line = number_of(form.get("line", ""))
            await spots.calibrate(
                connection,
                at.here.id,
                known.ref,
                Calibration(
                    -1 if line is None else line,
                    form.get("reversed") == "yes",
                    factor,
                    form.get("reason", ""),
                    moment_of(form.get("since", "")) or self._office.now(),
                ),
                actor=self._by(at),
                now=self._office.now(),
            )

        return await self._do(request, at, "calibrate spot", act)

    async def _spot(
        self, connection: asyncpg.Connection, request: web.Request, at: At
    ) -> Known[Spot]:
        site, known = await spots.find(
            connection, at.here.id, part(request, "spot"), now=self._office.now()
        )
        if site != at.id:
            raise web.HTTPNotFound
        return known

    # -- inside ----------------------------------------------------------------------------------

    def _by(self, at: At) -> str:
        return at.here.visitor.actor

    async def _at(self, request: web.Request, permission: Permission) -> At:
        found = await here(self._office, request, permission)
        ref = part(request, "site")
        async with found.acting("console site") as connection:
            row = await reads.place_of_site(connection, found.id, ref)
        if row is None:
            raise web.HTTPNotFound
        place = found.place(row["region_id"], row["id"])
        found.demand(permission, place)
        return At(found, ref, row["id"], place)

    async def _do(
        self,
        request: web.Request,
        at: At,
        what: str,
        act: Callable[[asyncpg.Connection], Awaitable[object]],
    ) -> web.Response:
        async def whole() -> None:
            async with at.here.acting(what) as connection:
                await act(connection)

        done = await tried(whole)
        if done is None:
            raise web.HTTPSeeOther(at.path)
        return await self._page(request, at, problem=done)

    async def _page(
        self,
        request: web.Request,
        at: At,
        *,
        problem: Problem | None = None,
        values: dict[str, str] | None = None,
    ) -> web.Response:
        now = self._office.now()
        async with at.here.acting("console site page") as connection:
            site = await sites.find(connection, at.here.id, at.ref)
            told = await doors.of_site(connection, site.id)
            mounted = await spots.of_site(connection, site.id, now=now)
            regions = await organisations.regions(connection, at.here.id)
            there = await reads.standing_at(connection, site.id, now=now)
            devices = await reads.devices(connection, there, now=now)
            reach = at.here.reach(Permission.READ_FLEET)
            open_now = await health_reads.incidents(
                connection, at.here.id, reach, now=now, site=site.id, limit=20
            )
        words = self._office.shell.words(request)
        return self._office.page(
            request,
            "site.html",
            at=at.here,
            here=at,
            site=site,
            values={**values_of(site.facts), **(values or {})},
            week=hours.stretches(site.facts.opening.weekly) if site.facts.opening.weekly else None,
            days=[words.locale.days["format"]["wide"][number] for number in range(7)],
            clock=hours.clock,
            doors=told,
            door_names={door.ref: door.facts.name for door in told},
            spots=mounted,
            standing={device["spot_ref"]: device for device in devices},
            incidents=[row_of(row) for row in open_now],
            regions=regions,
            region_names={region.ref: region.facts.name for region in regions},
            kinds=KINDS,
            purposes=PURPOSES,
            now=now,
            may_change=at.here.may(CHANGE, at.place),
            problem=problem,
        )


def values_of(site: Site) -> dict[str, str]:
    """Return a site as its form shows it."""
    return {
        "name": site.name,
        "address": site.address,
        "region": site.region or "",
        "time_zone": site.time_zone,
        "currency": site.currency,
        "hours": hours.write(site.opening),
        "opens_on": str(site.opens_on or ""),
        "closes_on": str(site.closes_on or ""),
    }


def wanted_of(form: dict[str, str]) -> Site:
    """Return the site that a form describes. Raises FieldError."""
    site = Site(form.get("name", ""), form.get("time_zone", ""), form.get("currency", ""))
    return replace(
        site,
        address=form.get("address", ""),
        region=form.get("region") or None,
        opens_on=checks.day(form.get("opens_on", ""), "opens_on"),
        closes_on=checks.day(form.get("closes_on", ""), "closes_on"),
        opening=hours.read(form.get("hours", "")),
    )


def spot_of(form: dict[str, str], kind: str) -> Spot:
    """Return the spot that a form describes. Raises FieldError."""
    height = form.get("height_cm", "")
    if height and number_of(height) is None:
        raise FieldError("height_cm", f"expected whole centimetres, got {height[:20]!r}")
    return Spot(
        form.get("name", ""),
        kind,
        form.get("door") or None,
        form.get("purpose", ""),
        number_of(height),
    )
