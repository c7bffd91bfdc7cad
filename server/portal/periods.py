"""The portal's page on retail periods: a year of them beside the year before, and which they are.

Periods are of the calendar that the organisation has chosen; whoever may set targets for all of it
chooses. Numbers are those of opening hours, all days that are over beside the days they are
compared with. Whoever sees some sites alone sees each of them by itself.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import msgspec
from aiohttp import web

from server.errors import VestibuleError
from server.fleet.checks import FieldError
from server.insight.definitions import find
from server.insight.metrics import MetricRow, metrics
from server.insight.question import Bucketing, Compare, MetricQuery, Of
from server.insight.retail_calendar import calendar_of, choose, wanted_of
from server.insight.retail_year import (
    NRF,
    Pattern,
    Period,
    RetailCalendar,
    first_day,
    periods,
    week_of,
)
from server.insight.standing import parts_stood
from server.people.roles import Permission, Place
from server.portal.frame import Look, Portal, Section
from server.rollup.places import Site, load_sites
from server.rollup.quality import Scope

YEARS = 4
_FLAGS = ("week_53", "after_week_53", "doors_changed", "low_coverage")
_KPIS = tuple(map(find, ("visits", "conversion")))
_DAY = timedelta(days=1)
_JANUARY_1 = date(2024, 1, 1)  # a Monday: its week and year name weekdays and months


@dataclass(frozen=True, slots=True)
class Line:
    """A period on the page; None: nothing was measured, or it has not begun."""

    period: Period
    visits: float | None = None
    coverage: float | None = None
    before: float | None = None
    change: float | None = None
    conversion: float | None = None
    flags: tuple[str, ...] = ()
    now: bool = False

    @property
    def last(self) -> date:
        return self.period.until - _DAY


def add(portal: Portal) -> None:
    """Add the page, and its entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/periods", "periods"))
    portal.site.app.router.add_get("/periods", pages.show)
    portal.site.app.router.add_post("/periods", pages.choose)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def show(self, request: web.Request) -> web.Response:
        """A year's periods, of all sites or one."""
        return await self._page(request)

    async def choose(self, request: web.Request) -> web.Response:
        """Choose the calendar."""
        form = await request.post()
        async with self._portal.looking(request, "portal choose calendar") as look:
            if not _may_choose(look):
                raise web.HTTPNotFound

        def text(field: str) -> str:
            value = form.get(field, "")
            return value if isinstance(value, str) else ""

        try:
            wanted = wanted_of(text("pattern"), _number(text("month")), _number(text("weekday")))
        except FieldError as error:
            return await self._page(request, problem=error)
        done = await self._portal.acted(
            look,
            "choose calendar",
            lambda db: choose(
                *(db, look.organisation, wanted),
                actor=look.visitor.actor,
                now=self._portal.now(),
            ),
        )
        if isinstance(done, VestibuleError):
            return await self._page(request, problem=done)
        raise web.HTTPSeeOther("/periods")

    async def _page(
        self, request: web.Request, *, problem: VestibuleError | None = None
    ) -> web.Response:
        now = self._portal.now()
        async with self._portal.looking(request, "portal periods") as look:
            places = {s.ref: s for s in await load_sites(look.db) if s.ref in look.seen}
            sites = {ref: each.name for ref, each in places.items()}
            site = _site_of(request, look, sites)
            calendar = await calendar_of(look.db)
            this = week_of(calendar, now.date()).year
            year = this
            with suppress(ValueError):
                given = int(request.query.get("year", "")[:4])
                year = given if this - YEARS < given <= this else this
            lines: list[Line] = []
            if calendar.has_periods and sites:
                asked = [places[site]] if site else list(places.values())
                lines = await _lines(look, calendar, year, site, asked, now)
        return self._portal.page(
            request,
            "periods.html",
            look,
            status=422 if problem else 200,
            problem=problem,
            calendar=calendar,
            lines=lines,
            flags=[flag for flag in _FLAGS if any(flag in line.flags for line in lines)],
            year=year,
            years=[this - back for back in range(YEARS)],
            site=site,
            sites=sorted(sites.items(), key=lambda pair: pair[1]),
            patterns=list(Pattern),
            nrf=NRF,
            months=[_JANUARY_1.replace(month=month) for month in range(1, 13)],
            weekdays=[_JANUARY_1 + timedelta(days=day) for day in range(7)],
            begins=first_day(calendar, year),
            may_choose=_may_choose(look),
            look_all=look.sees_all,
            curl=self._curl(request, look, lines, site),
        )

    def _curl(self, request: web.Request, look: Look, lines: Sequence[Line], site: str) -> str:
        """Return the command that gets the same numbers."""
        if not lines:
            return ""
        asked = {
            "metrics": [kpi.name for kpi in _KPIS],
            "from": str(lines[0].period.first),
            "to": str(lines[-1].period.until),
            "bucket": "period",
            "scope": "open",
            "compare": "last_year",
            "by": "site" if site else "organisation",
            **({"sites": [site]} if site else {}),
        }
        body = msgspec.json.encode(asked).decode()
        return self._portal.command(request, look, "metrics:query", body=body)


async def _lines(
    look: Look,
    calendar: RetailCalendar,
    year: int,
    site: str,
    sites: Sequence[Site],
    now: datetime,
) -> list[Line]:
    """Return a year's periods, with the numbers of those that have begun."""
    found, today = periods(calendar, year), now.date()
    until = min(found[-1].until, today + _DAY)
    query = MetricQuery(
        *(_KPIS, found[0].first, until, Bucketing.PERIOD, Scope.OPEN),
        *(Of.SITE if site else Of.ORGANISATION, (site,) if site else ()),
        Compare.LAST_YEAR,
    )
    rows = (await metrics(look.db, query, now_s=int(now.timestamp()))).rows
    by_label: dict[str, list[MetricRow]] = {}
    for row in rows:
        by_label.setdefault(row.local, []).append(row)
    begun = [(each.first, min(each.until, until)) for each in found if each.first < until]
    parts = await parts_stood(look.db, sites, begun)
    stood = {
        first: sum(parts.get((each.ref, first), 1.0) for each in sites) / len(sites)
        for first, _ in begun
    }
    return [
        _line(each, by_label.get(each.label, ()), stood.get(each.first, 1.0), today)
        for each in found
    ]


def _line(period: Period, rows: Sequence[MetricRow], stood: float, today: date) -> Line:
    """Return a period's line; `stood`: in which part of it, over the sites, any counter stood."""
    visits, conversion = (
        next((row for row in rows if row.metric == kpi.id), None) for kpi in _KPIS
    )
    if visits is None:
        return Line(period)
    return Line(
        *(period, visits.value, None if visits.coverage is None else stood * visits.coverage),
        *(visits.compared, visits.change),
        None if conversion is None else conversion.value,
        tuple(flag for flag in visits.flags if flag in _FLAGS and visits.change is not None),
        period.first <= today < period.until,
    )


def _site_of(request: web.Request, look: Look, sites: Mapping[str, str]) -> str:
    """Return the site that is asked for, empty for all; 404 for what is not theirs."""
    site = request.query.get("site", "")
    if not site and not look.sees_all:
        site = min(sites, default="")
    if site and site not in sites:
        raise web.HTTPNotFound
    return site


def _may_choose(look: Look) -> bool:
    return look.visitor.may(Permission.SET_TARGETS, Place(look.organisation))


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 3 else -1
