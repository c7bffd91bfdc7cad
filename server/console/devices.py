"""Devices: the list, one's life with its next steps, moves between spots, unannounced serials.

A step that takes a device out or lets it in again asks for the permission `admit`; one forwards,
and a move, for `change register`. Where a device stands decides whose it is to look after; one that
stands nowhere is the whole organisation's.
"""

from datetime import datetime

import asyncpg
from aiohttp import web

from server.admission.orders import move
from server.audit.log import record
from server.console import reads
from server.console.office import (
    CONSOLE,
    Here,
    Office,
    Problem,
    asked,
    form_of,
    here,
    moment_of,
    paged,
    part,
    tried,
)
from server.db.engine import overseeing, transaction
from server.errors import RefusedError
from server.fleet.checks import FieldError
from server.fleet.lifecycle import ENDED, HELD, State, effects
from server.people.roles import EVERYWHERE, Permission, Place
from server.provisioning.placing import stand
from server.web.sessions import demand


def add_devices(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address, and the platform's."""
    pages = Pages(office)
    routes = app.router
    routes.add_get(f"{base}/devices", pages.listing)
    routes.add_get(base + "/devices/{device}", pages.show)
    routes.add_post(base + "/devices/{device}/state", pages.step)
    routes.add_post(base + "/devices/{device}/spot", pages.stand)
    routes.add_get(f"{CONSOLE}/unknown", pages.unknown)
    routes.add_post(f"{CONSOLE}/unknown/dismiss", pages.dismiss)


def next_states(state: State, returns_to: State | None) -> list[State]:
    """Return what a device may become by hand; its certificate alone makes it `provisioned`."""
    found: list[State] = []
    for after in State:
        if after is State.PROVISIONED and after is not returns_to:
            continue
        try:
            effects(state, after, returns_to=returns_to)
        except RefusedError:
            continue
        found.append(after)
    return found


def needed(before: State, after: State) -> Permission:
    """Return what it takes to bring a device from one state to another."""
    if after in HELD or after in ENDED or before in HELD:
        return Permission.ADMIT
    return Permission.CHANGE_REGISTER


class Pages:
    """The handlers."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def listing(self, request: web.Request) -> web.Response:
        """The organisation's devices; the filter asks for the table alone."""
        at = await here(self._office, request, Permission.READ_FLEET)
        words, state, page = asked(request, "q"), asked(request, "state"), paged(request)
        async with at.acting("console devices") as connection:
            rows = await reads.devices(
                connection,
                at.id,
                at.reach(Permission.READ_FLEET),
                words=words,
                state=state,
                page=page,
                now=self._office.now(),
            )
        return self._office.shell.page(
            request,
            "device_rows.html" if "HX-Request" in request.headers else "devices.html",
            at=at,
            rows=rows[: reads.PAGE],
            more=len(rows) > reads.PAGE,
            wanted=words,
            state=state,
            states=list(State),
            page=page,
        )

    async def show(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, Permission.READ_FLEET)
        return await self._page(request, at)

    async def step(self, request: web.Request) -> web.Response:
        """Bring a device into another state, with all that the edge does."""
        at = await here(self._office, request, Permission.READ_FLEET)
        form, row = await form_of(request), await self._device(request, at)
        to = form.get("to", "")
        if to not in list(State):
            raise web.HTTPNotFound
        at.demand(needed(State(row["state"]), State(to)), _place(at, row))

        async def act() -> None:
            if State(row["state"]) is not State(to) and form.get("seen") != row["state"]:
                raise RefusedError("changed", f"it is {row['state']} by now: look again")
            async with at.acting("move device") as connection:
                await move(
                    connection,
                    device=row["device"],
                    to=State(to),
                    reason=form.get("reason", "")[:300],
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )

        return await self._done(request, at, await tried(act))

    async def stand(self, request: web.Request) -> web.Response:
        """Let a device stand at a free spot from a moment on, with what it has counted since."""
        at = await here(self._office, request, Permission.CHANGE_REGISTER)
        form, row = await form_of(request), await self._device(request, at)
        pool, now = self._office.ingest, self._office.now()
        if pool is None:
            raise web.HTTPNotFound
        spot, since = form.get("spot", ""), form.get("since", "")

        async def act() -> None:
            moment = moment_of(since) if since else now
            if moment is None:
                raise FieldError("since", f"expected a time, got {since[:40]!r}")
            async with transaction(pool, "stand device") as connection:
                await self._demand_move(connection, at, row["device"], spot)
                await stand(
                    connection,
                    user_id=at.visitor.user_id,
                    device=row["device"],
                    spot_ref=spot,
                    since=moment,
                    actor=at.visitor.actor,
                    now=now,
                )

        return await self._done(request, at, await tried(act))

    async def _demand_move(
        self, connection: asyncpg.Connection, at: Here, device: str, spot: str
    ) -> None:
        """Lock a device, and demand that the visitor may take it from here and put it there."""
        await connection.execute("select from devices where device = $1 for update", device)
        row = await reads.device(connection, at.id, device, now=self._office.now())
        if row is None:
            raise web.HTTPNotFound
        at.demand(Permission.CHANGE_REGISTER, _place(at, row))
        there = await reads.place_of_spot(connection, at.id, spot)
        place = None if there is None else at.place(there["region_id"], there["id"])
        if there is None or not at.may(Permission.CHANGE_REGISTER, place):
            raise FieldError("spot", f"no spot {spot[:40]!r}")

    async def _device(self, request: web.Request, at: Here) -> asyncpg.Record:
        async with at.acting("console device") as connection:
            row = await reads.device(
                connection, at.id, part(request, "device"), now=self._office.now()
            )
        if row is None or not at.may(Permission.READ_FLEET, _place(at, row)):
            raise web.HTTPNotFound
        return row

    async def _done(self, request: web.Request, at: Here, done: Problem | None) -> web.Response:
        if done is None:
            raise web.HTTPSeeOther(f"{at.path}/devices/{part(request, 'device')}")
        return await self._page(request, at, problem=done)

    async def _page(
        self, request: web.Request, at: Here, *, problem: Problem | None = None
    ) -> web.Response:
        row = await self._device(request, at)
        place, state = _place(at, row), State(row["state"])
        returns_to = State(row["state_before"] or State.PROVISIONED) if state in HELD else None
        async with at.acting("console device's life") as connection:
            life = await reads.life(connection, row["id"])
            spots = await reads.free_spots(
                connection, at.id, at.reach(Permission.CHANGE_REGISTER), kind=row["kind"]
            )
        movable = self._office.ingest is not None and row["admitted"]
        return self._office.shell.page(
            request,
            "device.html",
            status=problem.status if problem else 200,
            at=at,
            device=row,
            states=[
                after
                for after in next_states(state, returns_to)
                if at.may(needed(state, after), place)
            ],
            held=HELD,
            ended=ENDED,
            life=life,
            spots=spots if movable and at.may(Permission.CHANGE_REGISTER, place) else [],
            problem=problem,
        )

    # -- devices that nobody announced -----------------------------------------------------------

    async def unknown(self, request: web.Request) -> web.Response:
        """Serials that asked and were announced by nobody."""
        demand(request, Permission.PROVISION, EVERYWHERE)
        async with overseeing(self._office.desk, "console unknown devices") as connection:
            rows = await connection.fetch(
                "select serial, first_seen, last_seen, times, address, dismissed_at "
                "from unknown_devices order by dismissed_at is not null, last_seen desc limit 500"
            )
        return self._office.shell.page(request, "unknown.html", rows=rows)

    async def dismiss(self, request: web.Request) -> web.Response:
        """Say that a serial is seen to."""
        found = demand(request, Permission.PROVISION, EVERYWHERE)
        form, now = await form_of(request), self._office.now()
        await _dismiss(self._office, form.get("serial", ""), actor=found.actor, now=now)
        raise web.HTTPSeeOther(f"{CONSOLE}/unknown")


def _place(at: Here, row: asyncpg.Record) -> Place:
    """Return where a device stands, or is to stand; nowhere: the whole organisation."""
    return at.place(row["region_id"], row["site_id"])


async def _dismiss(office: Office, serial: str, *, actor: str, now: datetime) -> None:
    async with overseeing(office.desk, "dismiss unknown device") as connection:
        done = await connection.fetchval(
            "update unknown_devices set dismissed_at = $2 "
            "where serial = $1 and dismissed_at is null returning serial",
            *(serial, now),
        )
        if done is not None:
            await record(
                connection, actor=actor, act="unknown device dismissed", subject=serial, now=now
            )
