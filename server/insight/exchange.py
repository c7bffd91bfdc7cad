"""What tills took, all in one currency: of sites with another one, day by day, by stated rates.

Each day's sales are converted by the rate of that day, as `money` finds it, before days are added
up: so a month's is the sum of its days', whatever the rate was at its end. Nothing is rounded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import asyncpg

from server.insight.formulas import Takings, taken_together
from server.insight.money import STALE, Amount, Rate, Table, Total, add_up
from server.insight.tally import Range, takings
from server.rollup.buckets import Bucket, Size
from server.rollup.places import Site


async def takings_in(
    connection: asyncpg.Connection,
    within: Range,
    sites: Sequence[Site],
    *,
    currency: str | None,
    spread: bool = True,
) -> dict[int, list[Takings]]:
    """Return what `takings` does, in `currency`; None: in each site's own. Raises NoRateError."""
    own = [site for site in sites if currency is None or site.currency == currency]
    found = await takings(connection, within, own, spread=spread) if own else {}
    grids = {s.id: grid for s in sites if s.currency != currency and (grid := within.grid(s))}
    if currency is None or not grids:
        return found
    foreign = [site for site in sites if site.id in grids]
    first = min(grid[0].start_day for grid in grids.values())
    until = max(grid[-1].end_s for grid in grids.values())
    by_day = within
    if within.size in (Size.WEEK, Size.MONTH):
        last = max(_last_day(grid) for grid in grids.values())
        by_day = replace(within, size=Size.DAY, since=first, until=last + timedelta(days=1))
    table = Table(await _rates(connection, first, _after(until)))
    taken = await takings(connection, by_day, foreign, spread=spread)
    for site in foreign:
        if site.id in taken:
            days = by_day.grid(site)
            each = _converted(days, taken[site.id], table, site.currency, currency)
            found[site.id] = _put_into(grids[site.id], days, each, currency)
    return found


def _last_day(grid: Sequence[Bucket]) -> date:
    """Return the last day of weeks or months: none is longer than 31 days."""
    at = grid[-1]
    return at.start_day + timedelta(days=round((at.end_s - at.start_s) / 86_400) - 1)


async def _rates(connection: asyncpg.Connection, since: date, until: date) -> list[Rate]:
    """Return the rates that days of [since, until) may be converted by."""
    return [Rate(*row) for row in await connection.fetch(_RATES, since - STALE, until)]


def _after(instant_s: int) -> date:
    """Return a day that has not begun anywhere at this instant."""
    return datetime.fromtimestamp(instant_s, UTC).date() + timedelta(days=2)


async def net_sales(
    connection: asyncpg.Connection,
    site_ids: Sequence[int],
    since: date,
    until: date,
    *,
    to: str | None,
) -> tuple[Total, int]:
    """Return what sites took in [since, until), and in how many sales.

    Days are the sites' own. Raises MixedCurrenciesError, NoRateError.
    """
    rows = await connection.fetch(_TAKEN, list(site_ids), since, until)
    rates: list[Rate] = []
    if to is not None and any(row["currency"] != to for row in rows):
        rates = await _rates(connection, since, until)
    amounts = [Amount(row["day"], row["amount"], row["currency"]) for row in rows]
    return add_up(amounts, Table(rates), to=to), sum(row["sales"] for row in rows)


def _converted(
    days: Sequence[Bucket], taken: Sequence[Takings], table: Table, base: str, to: str
) -> list[Takings]:
    """Convert what was taken in each bucket by its day's rate; where nothing was, none is asked."""
    factors: dict[date, Decimal] = {}
    found: list[Takings] = []
    for bucket, each in zip(days, taken, strict=True):
        if not each.net_sales:
            found.append(each._replace(currency=to))
            continue
        day = bucket.start_day
        if day not in factors:
            factors[day], _ = table.convert(Amount(day, Decimal(1), base), to)
        factor = factors[day]
        net, squares = each.net_sales * factor, each.net_squares * float(factor) ** 2
        found.append(each._replace(net_sales=net, net_squares=squares, currency=to))
    return found


def _put_into(
    grid: Sequence[Bucket], days: Sequence[Bucket], taken: Sequence[Takings], currency: str
) -> list[Takings]:
    """Add days up into the buckets that they begin in; of the same grid nothing changes."""
    if len(grid) == len(days) and grid[0].start_s == days[0].start_s:
        return list(taken)
    into: Mapping[int, list[Takings]] = {n: [Takings(currency=currency)] for n in range(len(grid))}
    at = 0
    for day, each in zip(days, taken, strict=True):
        while at < len(grid) and day.start_s >= grid[at].end_s:
            at += 1
        if at < len(grid) and day.start_s >= grid[at].start_s:
            into[at].append(each)
    return [taken_together(parts) for parts in into.values()]


_RATES = """
    select day, base, quote, rate, source from exchange_rates where day >= $1 and day < $2
"""
_TAKEN = """
    select s.currency, (t.at at time zone s.time_zone)::date as day, sum(t.amount) as amount,
           count(*)::int as sales
    from sites s join transactions t on t.site_id = s.id
    where s.id = any($1::int[]) and t.at >= $2::date - interval '14 hours'
      and t.at < $3::date + interval '14 hours'
      and (t.at at time zone s.time_zone)::date >= $2
      and (t.at at time zone s.time_zone)::date < $3
      and counts_as_sale(t.kind, t.amount, t.units)
    group by 1, 2 order by 2, 1
"""
