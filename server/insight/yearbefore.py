"""The days that a question's own are compared with: read of the year before, site by site."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import date, timedelta

import asyncpg

from server.insight.calendar import aligned, country_of
from server.insight.cells import Read, Span
from server.insight.definitions import Need
from server.insight.reading import read
from server.insight.retail_year import RetailCalendar
from server.insight.tally import Range
from server.rollup.buckets import day_start
from server.rollup.places import Site


def twin(label: str, site: Site, calendar: RetailCalendar) -> str:
    """Return the label of the day, or time of day, that a bucket is compared with."""
    day = aligned(date.fromisoformat(label[:10]), country_of(site.time_zone), calendar).day
    return day.isoformat() + label[10:16]


async def year_before(
    connection: asyncpg.Connection,
    within: Range,
    sites: Sequence[Site],
    *,
    whole: Range,
    calendar: RetailCalendar,
    needs: Collection[Need],
    currency: str | None,
) -> dict[int, Read]:
    """Return what the twins of the buckets of `within`, a part of `whole`, are made of."""
    days = _twin_days(within, sites, calendar)
    if not days:
        return {}
    since, until = min(low for low, _ in days.values()), max(high for _, high in days.values())
    spans: dict[int, Span] = {}
    edges = _twin_days(whole, sites, calendar)
    for site in sites:
        low, high = edges[site.time_zone]
        spans[site.id] = day_start(site.time_zone, low), day_start(site.time_zone, high)
    earlier = replace(within, since=since, until=until)
    return await read(connection, earlier, sites, needs=needs, currency=currency, spans=spans)


def _twin_days(
    within: Range, sites: Sequence[Site], calendar: RetailCalendar
) -> dict[str, tuple[date, date]]:
    """Return by time zone the days [from, to) that hold those a range is compared with."""
    found: dict[str, tuple[date, date]] = {}
    for site in sites:
        if site.time_zone not in found and (grid := within.grid(site)):
            days = {twin(bucket.label, site, calendar)[:10] for bucket in grid}
            first, last = date.fromisoformat(min(days)), date.fromisoformat(max(days))
            found[site.time_zone] = first, last + timedelta(days=1)
    return found
