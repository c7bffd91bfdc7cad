"""What an operator looks at: what needs a human now, an incident from its first sign, live."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
from aiohttp import web

from server.console import health_reads as reads
from server.console.live import Live
from server.console.office import (
    Here,
    Office,
    Problem,
    form_of,
    here,
    number_of,
    paged,
    part,
    tried,
)
from server.health import acts
from server.people.roles import Permission

DOES = ("acknowledge", "take", "leave", "comment")
TOP = 12
"""More than these nobody sees to at once; the rest is a page away."""
PAGE = 50


@dataclass(frozen=True, slots=True)
class Row:
    """An incident as lists show it."""

    ref: str
    condition: str
    severity: str
    since: datetime
    place: tuple[str, ...]
    stake: int
    owner: str
    acknowledged: bool
    hushed: bool
    episodes: int


def row_of(found: asyncpg.Record) -> Row:
    """Return an incident's row as a list shows it."""
    place = tuple(part for part in (found["site"], found["spot"], found["device"]) if part)
    return Row(
        *(found["ref"], found["condition"], found["severity"], found["since"], place),
        *(round(found["stake"]), found["owner_name"] or found["owner"]),
        acknowledged=0 < found["episodes"] == found["acknowledged"],
        hushed=0 < found["episodes"] == found["hushed"],
        episodes=found["episodes"],
    )


def add_operations(app: web.Application, office: Office, base: str, *, live: Live) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office, live)
    app.router.add_get(f"{base}/now", pages.now)
    app.router.add_get(f"{base}/events", pages.events)
    app.router.add_get(f"{base}/incidents", pages.listing)
    app.router.add_get(base + "/incidents/{incident}", pages.show)
    app.router.add_post(base + "/incidents/{incident}", pages.act)


class Pages:
    """The handlers."""

    def __init__(self, office: Office, live: Live) -> None:
        self._office = office
        self._live = live

    async def now(self, request: web.Request) -> web.Response:
        """What needs a human, and the fleet at a glance; live, the part alone is asked for."""
        at = await here(self._office, request, Permission.READ_FLEET)
        reach, now = at.reach(Permission.READ_FLEET), self._office.now()
        async with at.acting("console now") as connection:
            position = await reads.position(connection, at.id)
            found = await reads.incidents(connection, at.id, reach, now=now, limit=TOP)
            health = await reads.health(connection, at.id, reach)
            unknown = await reads.unknown_since(connection)
        return self._office.page(
            request,
            "now.html",
            alone="now_live.html",
            at=at,
            rows=[row_of(row) for row in found[:TOP]],
            more=len(found) > TOP,
            health=health,
            unknown=unknown,
            position=position,
            now=now,
        )

    async def listing(self, request: web.Request) -> web.Response:
        """Open incidents by what is at stake, or those that are over."""
        at = await here(self._office, request, Permission.READ_FLEET)
        over, page, now = request.query.get("over") == "1", paged(request), self._office.now()
        async with at.acting("console incidents") as connection:
            position = await reads.position(connection, at.id)
            found = await reads.incidents(
                connection,
                at.id,
                at.reach(Permission.READ_FLEET),
                now=now,
                over=over,
                limit=PAGE,
                page=page,
            )
        return self._office.page(
            request,
            "incidents.html",
            alone="incident_rows.html",
            at=at,
            rows=[row_of(row) for row in found[:PAGE]],
            more=len(found) > PAGE,
            over=over,
            page=page,
            position=position,
        )

    async def show(self, request: web.Request) -> web.Response:
        """One incident: what it is, why, what to do, and who was told, or why nobody was."""
        at = await here(self._office, request, Permission.READ_FLEET)
        return await self._page(request, at)

    async def act(self, request: web.Request) -> web.Response:
        """See to an incident, take it or leave it, or say something of it."""
        at = await here(self._office, request, Permission.ADMIT)
        form, ref, now = await form_of(request), part(request, "incident"), self._office.now()
        do, actor = form.get("do", ""), at.visitor.actor
        if do not in DOES:
            raise web.HTTPNotFound

        async def act() -> None:
            async with at.acting(f"console incident {do}") as connection:
                row = await reads.incident(
                    connection, at.id, at.reach(Permission.ADMIT), ref, now=now
                )
                if row is None:
                    raise web.HTTPNotFound
                if do == "comment":
                    words = form.get("words", "")
                    await acts.comment(connection, at.id, ref, words, actor=actor, now=now)
                elif do == "acknowledge":
                    hours = number_of(form.get("hours", ""))
                    until = None if hours is None else now + timedelta(hours=hours)
                    await acts.acknowledge(
                        connection, at.id, ref, until=until, actor=actor, now=now
                    )
                else:
                    owner = actor if do == "take" else ""
                    await acts.assign(connection, at.id, ref, owner, actor=actor, now=now)

        done = await tried(act)
        if isinstance(done, Problem):
            return await self._page(request, at, problem=done)
        raise web.HTTPSeeOther(f"{at.path}/incidents/{ref}")

    async def _page(
        self, request: web.Request, at: Here, *, problem: Problem | None = None
    ) -> web.Response:
        reach, now = at.reach(Permission.READ_FLEET), self._office.now()
        async with at.acting("console incident") as connection:
            row = await reads.incident(connection, at.id, reach, part(request, "incident"), now=now)
            if row is None:
                raise web.HTTPNotFound
            position = await reads.position(connection, at.id)
            episodes = await reads.episodes(connection, row["id"])
            said = await reads.words(connection, row["id"])
        return self._office.page(
            request,
            "incident.html",
            alone="incident_live.html",
            at=at,
            incident=row,
            row=row_of(row),
            stake=json.loads(row["stake_of"]),
            episodes=[(each, json.loads(each["evidence"])) for each in episodes],
            said=said,
            position=position,
            problem=problem,
            may_act=at.may(Permission.ADMIT, at.place(row["region_id"], row["site_id"])),
        )

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Say `changed` whenever these pages would show something else."""
        at = await here(self._office, request, Permission.READ_FLEET)
        return await self._live.serve(request, at, lambda db: reads.position(db, at.id))
