"""What the tills' clocks are worth: read, and given to the pure rules of `skew`."""

import asyncio
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg

from server.insight.skew import BIN_MIN, BINS, DAYS, Skew, estimate
from server.rollup.buckets import day_start
from server.rollup.minutes import add_up_minutes
from server.rollup.perimeter import load_perimeters
from server.rollup.places import Site, load_histories
from server.rollup.sums import UNIT, Source, segments

_BIN_S = BIN_MIN * 60
_MINUTE_S = 60


async def skew_of(connection: asyncpg.Connection, site: Site, *, now: datetime) -> Skew:
    """Estimate by how much a site's tills are ahead, from its last 14 whole days.

    People out are those at the counters that make its visits. Raises TooFineError where readings
    are longer than a minute.
    """
    today = now.astimezone(ZoneInfo(site.time_zone)).date()
    days = [today - timedelta(days=back) for back in range(DAYS, 0, -1)]
    starts = [day_start(site.time_zone, day) for day in days]
    end_s = day_start(site.time_zone, today)
    rows = await connection.fetch(
        _SALES, site.id, datetime.fromtimestamp(starts[0], UTC), datetime.fromtimestamp(end_s, UTC)
    )
    sold = {row["bin"]: float(row["sales"]) for row in rows}
    out = await _people_out(connection, site, start_s=starts[0], end_s=end_s) if sold else {}
    both = [
        (
            [sold.get((start + n * _BIN_S) // _BIN_S, 0.0) for n in range(BINS)],
            [out.get((start + n * _BIN_S) // _BIN_S) for n in range(BINS)],
        )
        for start in starts
    ]
    return await asyncio.to_thread(estimate, both)


async def _people_out(
    connection: asyncpg.Connection, site: Site, *, start_s: int, end_s: int
) -> dict[int, float]:
    """Return people out by number of the 5 minutes; left out where not all of it was observed."""
    perimeter = (await load_perimeters(connection, [site], spans={site.id: (start_s, end_s)}))[
        site.id
    ]
    if not perimeter.outer:
        return {}
    histories = await load_histories(connection, perimeter.outer, start_s=start_s, end_s=end_s)
    sources = [
        Source(spot.id, spot.id, spot.id, site.time_zone, segments(histories[spot.id].calibrations))
        for spot in perimeter.outer
    ]
    left: dict[int, float] = {}
    seen_s: dict[int, int] = {}
    for column in await add_up_minutes(connection, sources, start_s=start_s, end_s=end_s):
        for key, count, seen in zip(column.keys, column.left_e4, column.observed_s, strict=True):
            number = key // _BIN_S
            left[number] = left.get(number, 0.0) + count / UNIT
            seen_s[number] = seen_s.get(number, 0) + seen
    whole = len(sources) * BIN_MIN * _MINUTE_S
    return {number: count for number, count in left.items() if seen_s.get(number, 0) >= whole}


_SALES = """
    select floor(extract(epoch from at) / 300)::bigint as bin, count(*) as sales
    from transactions
    where site_id = $1 and at >= $2 and at < $3 and counts_as_sale(kind, amount, units)
    group by 1
"""
