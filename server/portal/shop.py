"""A store manager's page for a phone in one hand: one shop, now, and what waits for somebody.

Whoever reads a site's numbers may look; alerts are taken and actions carried out by the forms of
the feedback pages, under their rules, and lead back here. Whoever sees one site is led to it.
"""

from datetime import date, datetime, timedelta

import asyncpg
from aiohttp import web

from server.errors import NotFoundError
from server.feedback import actions, alerts
from server.insight.rosters import next_shift, on_shift
from server.people.roles import Permission, Place
from server.portal import numbers
from server.portal.frame import Look, Portal, Section
from server.portal.shop_view import WEEKS, Shop, Staff, due_of, usual_of
from server.rollup.answer import CountQuery, CountRow
from server.rollup.buckets import Size, zone
from server.rollup.places import load_sites
from server.rollup.query import counts

_WEEK = timedelta(days=7)
_DAY = timedelta(days=1)


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/shop", "shop"))
    portal.site.app.router.add_get("/shop", pages.choose)
    portal.site.app.router.add_get("/shop/{site}", pages.show)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def choose(self, request: web.Request) -> web.Response:
        """The shops to choose from; who sees one alone is led to it."""
        async with self._portal.looking(request, "portal shops") as look:
            rows = await look.db.fetch("select ref, name from sites order by name, ref")
        names = [(row["ref"], row["name"]) for row in rows if row["ref"] in look.seen]
        if len(names) == 1 and not look.sees_all:
            raise web.HTTPSeeOther(f"/shop/{names[0][0]}")
        return self._portal.page(request, "shops.html", look, names=names)

    async def show(self, request: web.Request) -> web.Response:
        """One shop's now; the live refresh asks for what changes alone."""
        ref, now = request.match_info["site"], self._portal.now()
        async with self._portal.looking(request, "portal shop") as look:
            if ref not in look.seen:
                raise web.HTTPNotFound
            found = await _shop_of(look, ref, now=now)
            [where] = [
                Place(look.organisation, region, row)
                for site, row, region in await numbers.places(look.db)
                if site == ref
            ]
        return self._portal.page(
            request,
            "shop_now.html" if "HX-Request" in request.headers else "shop.html",
            look,
            shop=found,
            may_act=look.visitor.may(Permission.ACT_ON_FEEDBACK, where),
            several=len(look.seen) > 1,
        )


async def _shop_of(look: Look, ref: str, *, now: datetime) -> Shop:
    try:
        page = await numbers.site_page(look.db, ref, day=None, now=now)
    except NotFoundError as error:
        raise web.HTTPNotFound from error
    here, now_s = page.site.now, int(now.timestamp())
    days = [page.site.day - weeks * _WEEK for weeks in range(2, WEEKS + 1)]
    earlier = [page.before, *[await _quarters(look.db, ref, day, now_s=now_s) for day in days]]
    until = here.replace(minute=here.minute // 15 * 15, second=0, microsecond=0)
    open_alerts = await alerts.listed(look.db, look.organisation, sites=(ref,), open_only=True)
    planned = await actions.listed(look.db, look.organisation, sites=(ref,), open_only=True)
    return Shop(
        page.site,
        usual_of(page.quarters, earlier, until=until),
        tuple(open_alerts),
        due_of(planned, today=here.date()),
        await _staff_of(look.db, ref, now=now),
        here.date(),
    )


async def _quarters(
    connection: asyncpg.Connection, ref: str, day: date, *, now_s: int
) -> tuple[CountRow, ...]:
    query = CountQuery(Size.QUARTER, day, day + _DAY, sites=(ref,))
    return tuple((await counts(connection, query, now_s=now_s)).rows)


async def _staff_of(connection: asyncpg.Connection, ref: str, *, now: datetime) -> Staff | None:
    [site] = await load_sites(connection, [ref])
    there = await on_shift(connection, site.id, now)
    if there is None:
        return None
    follows = await next_shift(connection, site.id, now)
    return Staff(
        tuple(each.at(zone(site.time_zone)) for each in there),
        None if follows is None else follows.astimezone(zone(site.time_zone)),
    )
