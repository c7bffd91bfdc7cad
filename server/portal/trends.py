"""The portal's pages on how visits and sales go from week to week, and one site beside another.

A week is drawn where most of it was observed; one that was observed partly is hatched, one that
was not is a gap, and nothing of it is made up. The year before stands beside where there is any.
What counts all sites, and the sites beside each other, is for who sees all of them.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from math import expm1, sqrt
from typing import TypeVar

from aiohttp import web

from server.feedback.indices import Z
from server.insight.comparison import Compared, Measure, TooFewSitesError, comparison
from server.insight.formulas import conversion_of
from server.insight.peers import Place
from server.insight.retail_calendar import calendar_of
from server.insight.retail_year import of_iso_week
from server.insight.weeks import WEEK, Metric, SiteWeek, WeekQuery, monday, weeks_before, weeks_of
from server.portal.frame import Look, Portal, Section
from server.portal.numbers import places
from server.rollup.places import load_sites
from server.rollup.quality import COMPLETE
from server.web.catalogue import Catalogue

SHOWN = (Metric.VISITS, Metric.CONVERSION, Metric.SMILEYS)
LENGTHS = (13, 26, 53)
COMPARED_WEEKS = 13
DRAWN = 0.5
"""A week of which less was observed is a gap."""
_LIMIT_POINTS = 40


class Cell(StrEnum):
    """What is known of a week."""

    WHOLE = "whole"
    PARTLY = "part"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class Point:
    """One week of the curve, with its interval where the metric has one."""

    week: date
    value: float | None
    low: float | None
    high: float | None
    coverage: float | None
    before: float | None

    @property
    def cell(self) -> Cell:
        if self.value is None:
            return Cell.GAP
        return Cell.WHOLE if (self.coverage or 0) >= COMPLETE else Cell.PARTLY


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/trends", "trends"))
    portal.site.app.router.add_get("/trends", pages.trends)
    portal.site.app.router.add_get("/trends/chart.json", pages.chart)
    portal.site.app.router.add_get("/trends/funnel.json", pages.funnel)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a visitor chose: one site (empty: all), a metric, how many weeks, up to which Monday."""

    site: str
    metric: Metric
    weeks: int
    until: date

    @property
    def query(self) -> str:
        return f"site={self.site}&metric={self.metric}&weeks={self.weeks}"


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def trends(self, request: web.Request) -> web.Response:
        """Weeks of one site or all, and for who sees all sites the chain beside them."""
        measure = _choice(Measure, request.query.get("measure", ""), Measure.GROWTH)
        async with self._portal.looking(request, "portal trends") as look:
            asked = await self._asked(request, look)
            points = await self._points(look, asked)
            calendar = await calendar_of(look.db)
            sites = [(s.ref, s.name) for s in await load_sites(look.db) if s.ref in look.seen]
            chain = await self._compared(look, measure) if look.sees_all else None
        return self._portal.page(
            request,
            "trends.html",
            look,
            asked=asked,
            points=points,
            retail={each.week: of_iso_week(calendar, each.week) for each in points},
            sites=sorted(sites, key=lambda pair: pair[1]),
            metrics=SHOWN,
            lengths=LENGTHS,
            measure=measure,
            measures=list(Measure),
            chain=chain,
            percent_of=expm1,
            outside_of=outside_of,
            look_all=look.sees_all,
            curl=self._portal.command(request, look, _counts(asked)),
        )

    async def chart(self, request: web.Request) -> web.Response:
        """The numbers that the curve draws."""
        async with self._portal.looking(request, "portal trends chart") as look:
            asked = await self._asked(request, look)
            points = await self._points(look, asked)
        words = self._portal.shell.words(request)
        return web.json_response(
            curve_of(points, asked, words), headers={"Cache-Control": "no-store"}
        )

    async def funnel(self, request: web.Request) -> web.Response:
        """The numbers that the funnel draws; only for who sees all sites."""
        measure = _choice(Measure, request.query.get("measure", ""), Measure.GROWTH)
        async with self._portal.looking(request, "portal funnel") as look:
            found = await self._compared(look, measure) if look.sees_all else None
        if found is None:
            raise web.HTTPNotFound
        return web.json_response(funnel_of(found), headers={"Cache-Control": "no-store"})

    async def _asked(self, request: web.Request, look: Look) -> Asked:
        """Return what is asked for; 404 for a site, or a sum of sites, that is not theirs."""
        site = request.query.get("site", "")
        if not site and not look.sees_all:
            refs = sorted(ref for ref, _, _ in await places(look.db) if ref in look.seen)
            site = refs[0] if refs else ""
        if (site and site not in look.seen) or (not site and not look.sees_all):
            raise web.HTTPNotFound
        weeks = LENGTHS[1]
        with suppress(ValueError):
            given = int(request.query.get("weeks", "")[:4])
            weeks = given if given in LENGTHS else weeks
        metric = _choice(Metric, request.query.get("metric", ""), Metric.VISITS)
        metric = metric if metric in SHOWN else Metric.VISITS
        return Asked(site, metric, weeks, monday(self._portal.now().date()))

    async def _points(self, look: Look, asked: Asked) -> list[Point]:
        """Return the last whole weeks, each with the same week a year before."""
        now_s = int(self._portal.now().timestamp())
        since = asked.until - asked.weeks * WEEK
        sites = (asked.site,) if asked.site else ()
        query = WeekQuery(frozenset({asked.metric}), since, asked.until, sites)
        now, before = [await ask(look.db, query, now_s=now_s) for ask in (weeks_of, weeks_before)]
        return points_of(now, before, asked.metric)

    async def _compared(self, look: Look, measure: Measure) -> Compared | None:
        """Return the chain's last weeks, None where too few sites can be compared."""
        now = self._portal.now()
        until = monday(now.date())
        try:
            return await comparison(
                look.db,
                measure,
                since=until - COMPARED_WEEKS * WEEK,
                until=until,
                now_s=int(now.timestamp()),
            )
        except TooFewSitesError:
            return None


def points_of(
    now: Mapping[str, Sequence[SiteWeek]], before: Mapping[str, Sequence[SiteWeek]], metric: Metric
) -> list[Point]:
    """Return the curve of some sites together; `before` are the weeks of a year before."""
    ours = [_together(rows, metric) for rows in zip(*now.values(), strict=True)]
    theirs = [_together(rows, metric) for rows in zip(*before.values(), strict=True)]
    return [
        Point(week, value, low, high, coverage, earlier)
        for (week, value, low, high, coverage), (_, earlier, _, _, _) in zip(
            ours, theirs, strict=True
        )
    ]


_Sum = tuple[date, float | None, float | None, float | None, float | None]


def _together(rows: Sequence[SiteWeek], metric: Metric) -> _Sum:
    """Return week, value, low, high and coverage of one week of all `rows`.

    Of several sites the sum of visits, and ratios of sums. Each site weighs the same in coverage;
    one at which nothing stood that week (its coverage is None) is not in it.
    """
    shares = [share for row in rows if (share := row.covered(metric)) is not None]
    coverage = sum(shares) / len(shares) if shares else None
    if coverage is None or coverage < DRAWN:
        return rows[0].start, None, None, None, coverage
    value, low, high = _value(rows, metric)
    return rows[0].start, value, low, high, coverage


def _value(
    rows: Sequence[SiteWeek], metric: Metric
) -> tuple[float | None, float | None, float | None]:
    known = [row for row in rows if row.value(metric) is not None]
    if not known:
        return None, None, None
    if metric is Metric.SMILEYS:
        heard = [row.smileys for row in known if row.smileys is not None]
        if len(heard) == 1:
            return heard[0].value, heard[0].low, heard[0].high
        n = sum(index.n for index in heard)
        value = sum(index.value * index.n for index in heard) / n
        if any(index.se is None for index in heard):
            return value, None, None
        half = Z * sqrt(sum((index.n * (index.se or 0.0)) ** 2 for index in heard)) / n
        return value, max(0.0, value - half), min(100.0, value + half)
    visits = sum(row.visits or 0 for row in known)
    if metric is Metric.VISITS:
        return visits, None, None
    return conversion_of(sum(row.transactions for row in known), visits)


def curve_of(points: Sequence[Point], asked: Asked, words: Catalogue) -> dict[str, object]:
    """Return what the curve needs, as JSON for `trends.js`; null where nothing was measured."""
    scale = 100 if asked.metric is Metric.CONVERSION else 1

    def scaled(value: float | None) -> float | None:
        return None if value is None else round(value * scale, 2)

    return {
        "at": [_seconds(point.week) for point in points],
        "labels": [f"{words.week(point.week)}, {words.short_day(point.week)}" for point in points],
        "days": [words.short_day(point.week) for point in points],
        "now": [scaled(point.value) for point in points],
        "before": [scaled(point.before) for point in points],
        "low": [scaled(point.low) for point in points],
        "high": [scaled(point.high) for point in points],
        "bands": [
            (_seconds(point.week) - 302_400, _seconds(point.week) + 302_400, point.cell)
            for point in points
            if point.cell is not Cell.WHOLE
        ],
        "coverage": [point.coverage for point in points],
        "names": {
            "week": words("tr_week"),
            "now": words(f"tr_metric_{asked.metric}"),
            "before": words("tr_year_before"),
            "low": words("tr_low"),
            "high": words("tr_high"),
        },
    }


def funnel_of(found: Compared) -> dict[str, object]:
    """Return what the funnel needs: sites by events, in %, and the limits at any events."""
    places_ = sorted(found.chain.places, key=lambda place: place.events)
    low, high = places_[0].events * 0.8, places_[-1].events * 1.1
    steps = [low * (high / low) ** (n / (_LIMIT_POINTS - 1)) for n in range(_LIMIT_POINTS)]
    limits = [found.chain.limits(events) for events in steps]
    return {
        "events": [place.events for place in places_],
        "values": [_percent(place.ratio) for place in places_],
        "outside": [place.outside is not None for place in places_],
        "sites": [found.names[place.ref] for place in places_],
        "steps": steps,
        "upper95": [_percent(warn) for warn, _ in limits],
        "lower95": [_percent(-warn) for warn, _ in limits],
        "upper998": [_percent(alarm) for _, alarm in limits],
        "lower998": [_percent(-alarm) for _, alarm in limits],
    }


def outside_of(place: Place) -> str:
    """Return the catalogue's key of where a site is."""
    return f"tr_{place.outside}" if place.outside else "tr_inside"


def _percent(ln: float) -> float:
    return round(100 * expm1(ln), 3)


def _seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) + 3 * 86_400


def _counts(asked: Asked) -> str:
    since = asked.until - asked.weeks * WEEK
    site = f"&site={asked.site}" if asked.site else ""
    return f"counts?bucket=week&scope=open&from={since}&to={asked.until}{site}"


C = TypeVar("C", bound=StrEnum)


def _choice(kind: type[C], text: str, default: C) -> C:
    return kind(text) if text in [str(each) for each in kind] else default
