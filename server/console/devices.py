"""Devices: the list, one's life with its next steps, moves between spots, unannounced serials.

A step that takes a device out or lets it in again asks for the permission `admit`; one forwards,
and a move, for `change register`. Where a device stands decides whose it is to look after; one that
stands nowhere is the whole organisation's.
"""

from datetime import UTC, datetime
from urllib.parse import urlencode

import asyncpg
from aiohttp import web
from markupsafe import Markup

from server.admission.orders import move
from server.audit.log import record
from server.console import explain, health_reads, metrics, reads, timeline
from server.console.office import (
    CONSOLE,
    Handlers,
    Here,
    Office,
    Problem,
    asked,
    form_of,
    here,
    moment_of,
    part,
    tried,
)
from server.console.operations import row_of
from server.console.searching import selected, wished
from server.db.engine import overseeing, transaction
from server.errors import NotFoundError, RefusedError
from server.feedback.qr import svg
from server.firmware import members
from server.fleet import checks, search, segments
from server.fleet.checks import FieldError
from server.fleet.filters import FIELDS, MOST_CHARACTERS, FilterError, every, parse, printed
from server.fleet.lifecycle import ENDED, HELD, State, effects
from server.fleet.segments import Follows
from server.health import reads as health
from server.people.roles import EVERYWHERE, Permission, Place
from server.people.sealing import Seal
from server.provisioning.placing import stand
from server.web.sessions import demand
from server.web.spot_codes import token

_FOLLOWS = tuple(each.value for each in Follows)


def add_devices(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address, and the platform's."""
    pages = Pages(office)
    routes = app.router
    routes.add_get(f"{base}/devices", pages.listing)
    routes.add_post(f"{base}/segments", pages.keep)
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


class Pages(Handlers):
    """The handlers."""

    async def listing(self, request: web.Request) -> web.Response:
        """The organisation's devices; the filter asks for the table alone."""
        at = await here(self._office, request, Permission.READ_FLEET)
        words, state = asked(request, "q", most=MOST_CHARACTERS), asked(request, "state")
        after, now = asked(request, "after"), self._office.now()
        segment = asked(request, "segment")
        problem, rows, many = None, [], 0
        async with at.acting("console devices") as connection:
            try:
                wanted = wished(words)
                if state in list(State):
                    wanted = every([wanted, parse(f'lifecycle = "{state}"')])
                chosen = await selected(
                    connection, at, Permission.READ_FLEET, wanted, segment=segment, now=now
                )
            except FilterError as error:
                problem = Problem("filter", "filter", str(error))
            except NotFoundError as error:
                raise web.HTTPNotFound from error
            else:
                found = await search.found(connection, chosen, after=after, limit=reads.PAGE + 1)
                rows = await reads.devices(connection, [row for row, _ in found], now=now)
                many = await search.number(connection, chosen)
            kept = await segments.every(connection, at.id)
        return self._office.shell.page(
            request,
            "device_rows.html" if "HX-Request" in request.headers else "devices.html",
            at=at,
            rows=rows[: reads.PAGE],
            more=len(rows) > reads.PAGE,
            many=many,
            wanted=words,
            state=state,
            states=list(State),
            after=after,
            kept=kept,
            segment=segment,
            fields=FIELDS,
            done=asked(request, "done"),
            may_act=at.may(Permission.ADMIT),
            may_keep=at.may(Permission.CHANGE_REGISTER),
            problem=problem,
        )

    async def keep(self, request: web.Request) -> web.Response:
        """Keep a search under a name, or forget it."""
        at = await here(self._office, request, Permission.CHANGE_REGISTER)
        at.demand(Permission.CHANGE_REGISTER)
        form, now = await form_of(request), self._office.now()

        async def act() -> None:
            async with at.acting("keep segment") as connection:
                actor = at.visitor.actor
                if form.get("do") == "forget":
                    await segments.remove(
                        connection, at.id, form.get("segment", ""), actor=actor, now=now
                    )
                    return
                await segments.add(
                    connection,
                    at.id,
                    name=form.get("name", ""),
                    text=printed(wished(form.get("q", ""))),
                    follows=Follows(checks.one_of(form.get("follows", ""), _FOLLOWS, "follows")),
                    actor=actor,
                    now=now,
                )

        done = await tried(act)
        if isinstance(done, Problem):
            return self._office.shell.page(
                request, "kept.html", status=done.status, at=at, problem=done
            )
        raise web.HTTPSeeOther(f"{at.path}/devices?{urlencode({'q': form.get('q', '')})}")

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
        place, state, now = _place(at, row), State(row["state"]), self._office.now()
        only = asked(request, "kind")
        before = moment_of(asked(request, "before")) or datetime(2100, 1, 1, tzinfo=UTC)
        returns_to = State(row["state_before"] or State.PROVISIONED) if state in HELD else None
        async with at.acting("console device's life") as connection:
            life = await reads.life(connection, row["id"])
            state_now = await health.find(connection, row["device"], now=now)
            unknown = (await health.platform(connection)).unknown
            kinds = [kind for kind in timeline.KINDS if not only or kind == only]
            line = await timeline.events(connection, row["id"], kinds=kinds, before=before)
            open_now = await health_reads.incidents(
                connection, at.id, at.reach(Permission.READ_FLEET), now=now,
                device=row["id"], limit=20,
            )  # fmt: skip
            since = now - metrics.SPAN
            names = await health.metric_names(connection, row["device"], since)
            firmware = await members.of_device(connection, at.id, row["device"], now=now)
            series = await health.series(
                connection, row["device"], names, since=since, until=now, points=metrics.POINTS
            )
            spots = await reads.free_spots(
                connection, at.id, at.reach(Permission.CHANGE_REGISTER), kind=row["kind"]
            )
        movable = self._office.ingest is not None and row["admitted"]
        return self._office.page(
            request,
            "device.html",
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
            state_now=state_now,
            firmware=firmware,
            may_rollouts=at.may(Permission.READ_FLEET),
            unknown=unknown and {"since": unknown[1], "cause": unknown[0].value},
            incidents=[row_of(each) for each in open_now],
            why=explain.presence(state_now.presence, judged_at=None),
            line=line[: timeline.MOST],
            older=line[timeline.MOST - 1].at if len(line) > timeline.MOST else None,
            only=only if only in timeline.KINDS else "",
            kinds=timeline.KINDS,
            charts=metrics.charts(series, since=since, until=now),
            may_act=at.may(Permission.ADMIT, place),
            staff=self._staff_page(request, row["spot_ref"]),
            spots=spots if movable and at.may(Permission.CHANGE_REGISTER, place) else [],
            problem=problem,
        )

    def _staff_page(self, request: web.Request, spot: str | None) -> tuple[str, str] | None:
        """Return the address of the staff's page of a spot, and its code; None without a spot."""
        if spot is None:
            return None
        settings = self._office.settings
        base = settings.public_url or f"{request.scheme}://{request.host}"
        address = f"{base}/w/{token(Seal(settings.session_secret), spot)}"
        return address, Markup(svg(address))  # noqa: S704 - made here

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
