"""The portal's sheets of pop-ups: sites with a first and a last day, over the whole of their life.

Before a pop-up opens, and after it has closed, its sheet says so. Numbers are those of its opening
hours on its own days, from the same sources as everywhere: counts, KPIs, filtered feedback.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
from aiohttp import web

from server.feedback.query import Basis, feedback
from server.insight.definitions import find
from server.insight.metrics import MetricRow, metrics
from server.insight.question import PEAK_DAYS, Bucketing, MetricQuery
from server.portal.frame import Look, Portal, Section
from server.portal.opinions import asked_of
from server.portal.popup_view import (
    Campaign,
    Kpi,
    Life,
    Phase,
    Sheet,
    bars_of,
    best_of,
    costs_of,
    final_of,
)
from server.rollup.answer import ALL_ROWS, CountQuery
from server.rollup.buckets import Size, local
from server.rollup.places import Site, load_sites
from server.rollup.quality import Scope
from server.rollup.query import counts

_DAY = timedelta(days=1)
_SOLD = ("conversion", "spv", "atv", "net_sales", "transactions")


@dataclass(frozen=True, slots=True)
class Listed:
    """A pop-up in the list."""

    ref: str
    name: str
    life: Life


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/popups", "popups"))
    portal.site.app.router.add_get("/popups", pages.listed)
    portal.site.app.router.add_get("/popups/{site}", pages.sheet)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def listed(self, request: web.Request) -> web.Response:
        """The pop-ups that are open, that will open, and that were, in this order."""
        now = self._portal.now()
        async with self._portal.looking(request, "portal pop-ups") as look:
            sites = [site for site in await load_sites(look.db) if site.ref in look.seen]
        found = [
            Listed(site.ref, site.name, life)
            for site in sites
            if (life := life_of(site, now)) is not None
        ]
        order = (Phase.OPEN, Phase.BEFORE, Phase.AFTER)
        found.sort(key=lambda each: (order.index(each.life.phase), -each.life.first.toordinal()))
        return self._portal.page(request, "popups.html", look, popups=found)

    async def sheet(self, request: web.Request) -> web.Response:
        """One pop-up's life; a site without a first and a last day has no such sheet."""
        ref, now = request.match_info["site"], self._portal.now()
        async with self._portal.looking(request, "portal pop-up") as look:
            if ref not in look.seen:
                raise web.HTTPNotFound
            [site] = await load_sites(look.db, [ref])
            life = life_of(site, now)
            if life is None:
                raise web.HTTPNotFound
            found = await _sheet(look, site, life, now=now)
        query = f"counts?bucket=day&scope=open&from={life.first}&to={life.last + _DAY}&site={ref}"
        return self._portal.page(
            request,
            "popup.html",
            look,
            sheet=found,
            life=life,
            curl=self._portal.command(request, look, query),
        )


def life_of(site: Site, now: datetime) -> Life | None:
    """Return a site's life; None for one that is no pop-up."""
    opening = site.calendar.opening
    if opening.opens_on is None or opening.closes_on is None:
        return None
    today = local(site.time_zone, int(now.timestamp())).date()
    return Life(opening.opens_on, opening.closes_on, today)


async def _sheet(look: Look, site: Site, life: Life, *, now: datetime) -> Sheet:
    empty = Sheet(
        *(site.ref, site.name, site.currency, life, None, None, None, 0, (), None, None, (), ()),
        *((), (), False),
    )
    if life.phase is Phase.BEFORE:
        return empty
    now_s, until = int(now.timestamp()), min(life.last, life.today) + _DAY
    query = CountQuery(
        *(Size.DAY, life.first, until), scope=Scope.OPEN, sites=(site.ref,), limit=ALL_ROWS
    )
    page = await counts(look.db, query, now_s=now_s)
    known = await _kpis(look.db, site, life, ("visits", *_SOLD), now_s=now_s)
    visits = known["visits"]
    told = _kpi(visits, site)
    peak = None
    if (until - life.first).days <= PEAK_DAYS:
        peak = _kpi(
            (await _kpis(look.db, site, life, ("peak_hour",), now_s=now_s))["peak_hour"], site
        )
    campaigns = await look.db.fetch(_CAMPAIGNS, site.id, life.first, life.last)
    costs, shared = costs_of([Campaign(*row) for row in campaigns], told)
    bars = bars_of(page.rows, today=life.today)
    estimated = None
    added = visits.estimated is not None and round(visits.estimated) != round(visits.value or 0)
    if visits.estimated is not None and added:
        estimated = visits.estimated, visits.estimated_low, visits.estimated_high
    pressed = [
        (await feedback(look.db, query, now_s=now_s, basis=basis)).rows
        for basis in (Basis.RAW, Basis.FILTERED)
    ]
    return Sheet(
        *(site.ref, site.name, site.currency, life, told, visits.coverage, estimated),
        sum(round(row.unplaced_visits) for row in page.rows),
        *(bars, best_of(bars), peak),
        tuple(kpi for name in _SOLD if (kpi := _kpi(known[name], site)) is not None),
        tuple(asked_of(*pressed)),
        *(costs, shared, final_of(page.rows, life)),
    )


async def _kpis(
    connection: asyncpg.Connection, site: Site, life: Life, names: tuple[str, ...], *, now_s: int
) -> dict[str, MetricRow]:
    query = MetricQuery(
        tuple(map(find, names)),
        life.first,
        min(life.last, life.today) + _DAY,
        Bucketing.TOTAL,
        Scope.OPEN,
        sites=(site.ref,),
        estimates="visits" in names,
    )
    rows = (await metrics(connection, query, now_s=now_s)).rows
    return {find(row.metric).name: row for row in rows}


def _kpi(row: MetricRow, site: Site) -> Kpi | None:
    """Return a KPI as it is shown; None where it has no value, or nobody sold anything."""
    name = find(row.metric).name
    if row.value is None or (name in ("net_sales", "transactions") and not row.value):
        return None
    currency = row.currency or site.currency
    return Kpi(name, row.unit, row.value, row.low, row.high, currency, row.at)


_CAMPAIGNS = """
    select c.name, c.cost, c.currency,
           (select count(*)::int from campaign_sites x where x.campaign_id = c.id)
    from campaigns c
    where c.from_day <= $3 and c.until_day >= $2
      and (exists (select from campaign_sites x where x.campaign_id = c.id and x.site_id = $1)
        or not exists (select from campaign_sites x where x.campaign_id = c.id))
    order by c.from_day, c.campaign_ref
"""
