"""Conversion and its relatives, by site and local day (`reference/retail.md` 2.4).

C = T / visits; ATV = net sales / T; UPT = units / T; SPV = net sales / visits = C x ATV. T are
sales above zero with at least one unit; pickups, returns and voids are counted beside. C above 1
is flagged, never clipped; no visits give null, never infinity or 0.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from math import exp, sqrt

import asyncpg
import msgspec

from server.rollup.answer import CountQuery, CountRow, Position
from server.rollup.buckets import Size, buckets
from server.rollup.places import Site, load_sites
from server.rollup.quality import State
from server.rollup.query import counts

_Z = 1.959964
_COMPLETE = 0.98


@dataclass(frozen=True, slots=True)
class Sales:
    """A site's day at the tills."""

    transactions: int = 0
    net_sales: Decimal = Decimal(0)
    units: int = 0
    pickups: int = 0
    returns: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Ratios of sums; None where there is nothing to divide by."""

    conversion: float | None
    low: float | None
    high: float | None
    atv: float | None
    upt: float | None
    spv: float | None
    flags: tuple[str, ...]


class ConversionRow(msgspec.Struct, frozen=True):
    """A site's day: visits, sales and their ratios, the conversion with its 95 % interval.

    `flags`: undercount_suspected (more sales than visits), no_visits, visits_missing,
    partial_coverage. The interval holds the noise of counting, no error of the counter. `state`
    and `revision` are of what devices counted: tills may be corrected at any time.
    """

    site: str
    local: str
    start: str = msgspec.field(name="from")
    until: str
    visits: int | float | None
    transactions: int
    net_sales: float
    units: int
    pickups: int
    returns: int
    currency: str
    conversion: float | None
    conversion_low: float | None
    conversion_high: float | None
    atv: float | None
    upt: float | None
    spv: float | None
    coverage: float | None
    state: State
    revision: int
    flags: tuple[str, ...]


def rates(
    sales: Sales, visits: float | None, *, coverage: float | None = 1.0, s_cal: float = 0.0
) -> Rates:
    """Return the rates; `s_cal` is the counter's relative standard error, from audits.

    Var(ln C) = (1 - C) / T + s_cal^2; nothing is imputed, so imputation adds nothing.
    """
    t, net = sales.transactions, float(sales.net_sales)
    flags: list[str] = []
    c = low = high = spv = None
    if visits is None:
        flags.append("visits_missing")
    elif visits <= 0:
        flags.append("no_visits")
    else:
        c, spv = t / visits, net / visits
        if c > 1:
            flags.append("undercount_suspected")
        if t:
            half = _Z * sqrt(max(0.0, 1 - c) / t + s_cal**2)
            low, high = c * exp(-half), c * exp(half)
    if coverage is not None and coverage < _COMPLETE and visits is not None:
        flags.append("partial_coverage")
    atv, upt = (net / t, sales.units / t) if t else (None, None)
    return Rates(c, low, high, atv, upt, spv, tuple(flags))


async def conversion(
    connection: asyncpg.Connection, query: CountQuery, *, now_s: int
) -> tuple[list[ConversionRow], Position | None]:
    """Return a page of sites' local days, and where the next begins; `query` is of days by site.

    Raises UnknownPlaceError, TooLongError.
    """
    page = await counts(connection, query, now_s=now_s)
    if not page.rows:
        return [], page.next
    refs = list(dict.fromkeys(row.site for row in page.rows))
    places = {site.ref: site for site in await load_sites(connection, refs)}
    sales = await _sales(connection, list(places.values()), since=query.since, until=query.until)
    return await asyncio.to_thread(_rows, page.rows, places, sales), page.next


def _rows(
    visits: Sequence[CountRow], places: Mapping[str, Site], sales: Mapping[tuple[str, str], Sales]
) -> list[ConversionRow]:
    return [
        _row(places[row.site], row, sales.get((row.site, row.start), Sales())) for row in visits
    ]


def _row(site: Site, row: CountRow, sales: Sales) -> ConversionRow:
    found = rates(sales, row.visits, coverage=row.coverage)
    return ConversionRow(
        row.site,
        row.local,
        row.start,
        row.until,
        row.visits,
        sales.transactions,
        float(sales.net_sales),
        sales.units,
        sales.pickups,
        sales.returns,
        site.currency,
        found.conversion,
        found.low,
        found.high,
        found.atv,
        found.upt,
        found.spv,
        row.coverage,
        row.state,
        row.revision,
        found.flags,
    )


async def _sales(
    connection: asyncpg.Connection,
    sites: Sequence[Site],
    *,
    since: date | datetime,
    until: date | datetime,
) -> dict[tuple[str, str], Sales]:
    """Return sales by site and the start of their local day."""
    days = [
        (site, bucket)
        for site in sites
        for bucket in buckets(site.time_zone, Size.DAY, since=since, until=until)
    ]
    if not days:
        return {}
    rows = await connection.fetch(
        _SALES,
        [site.id for site, _ in days],
        [datetime.fromtimestamp(bucket.start_s, UTC) for _, bucket in days],
        [datetime.fromtimestamp(bucket.end_s, UTC) for _, bucket in days],
    )
    return {
        (days[row[0] - 1][0].ref, days[row[0] - 1][1].start_utc): Sales(*row[1:]) for row in rows
    }


_SALES = """
    with day as (
        select * from unnest($1::int[], $2::timestamptz[], $3::timestamptz[])
        with ordinality as day(site, low, high, number)),
    sold as (
        select *, t.kind = 'sale' and t.amount > 0 and t.units > 0 as counts
        from day join transactions t on t.site_id = day.site and t.at >= low and t.at < high)
    select number, count(*) filter (where counts), coalesce(sum(amount) filter (where counts), 0),
           coalesce(sum(units) filter (where counts), 0)::bigint,
           count(*) filter (where kind = 'pickup'), count(*) filter (where kind = 'return')
    from sold group by number
"""
