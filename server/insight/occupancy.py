"""Who is inside: the quarters of sites, fetched, and made sense of by `drift`.

Decided here: quarters that are still coming in are left out, others that were not observed make
what follows unknown. Turns are told from `HISTORY_DAYS` before the range on, so that the drift rate
is known in it. A site's perimeter is that of the range throughout.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import asyncpg

from server.insight.drift import Account, Inside, Quarter, inside
from server.rollup.answer import ALL_ROWS, CountQuery, CountRow, TooLongError
from server.rollup.buckets import Size, day_start
from server.rollup.places import Site
from server.rollup.quality import COMPLETE, Scope
from server.rollup.query import counts

HISTORY_DAYS = 28
MOST_DAYS = 62
_LATE_S = 3_600


@dataclass(frozen=True, slots=True)
class Occupancy:
    """A site's people inside at the end of each quarter of a range, and the turns that end in it.

    The last of `turns` may last still.
    """

    site: Site
    inside: tuple[Inside, ...]
    turns: tuple[Account, ...]


async def occupancy(
    connection: asyncpg.Connection,
    sites: Sequence[Site],
    *,
    since: date,
    until: date,
    now_s: int,
) -> list[Occupancy]:
    """Return who was inside in the local days [since, until). Raises TooLongError, TooFineError."""
    if (until - since).days > MOST_DAYS:
        raise TooLongError(Size.QUARTER, MOST_DAYS * 96)
    if not sites:
        return []
    query = CountQuery(
        Size.QUARTER,
        since - timedelta(days=HISTORY_DAYS),
        until,
        Scope.ALL,
        sites=tuple(site.ref for site in sites),
        limit=ALL_ROWS,
        perimeter=(since, until),
    )
    rows: dict[str, list[CountRow]] = {site.ref: [] for site in sites}
    for row in (await counts(connection, query, now_s=now_s)).rows:
        rows[row.site].append(row)
    return await asyncio.to_thread(
        lambda: [
            occupancy_of(site, rows[site.ref], since=since, until=until, now_s=now_s)
            for site in sites
        ]
    )


def occupancy_of(
    site: Site, rows: Sequence[CountRow], *, since: date, until: date, now_s: int
) -> Occupancy:
    """Return a site's occupancy from its quarters, which begin before `since`."""
    quarters = quarters_of(rows, now_s=now_s)
    low, high = day_start(site.time_zone, since), day_start(site.time_zone, until)
    if not quarters:
        return Occupancy(site, (), ())
    began, end = quarters[0].start_s, quarters[-1].end_s
    opening = site.calendar.open_between(began, max(end, high) + 7 * 86_400)
    found, accounts = inside(quarters, opening, now_s=now_s)
    return Occupancy(
        site,
        tuple(each for each in found if low < each.at_s <= high),
        tuple(each for each in accounts if each.end_s > low and each.start_s < high),
    )


def quarters_of(rows: Sequence[CountRow], *, now_s: int) -> list[Quarter]:
    """Return the quarters that are over, without the latest that may still come in."""
    found = [
        Quarter(
            _instant(row.start),
            float(row.visits or 0),
            float(row.exits or 0),
            row.coverage is not None and row.coverage >= COMPLETE,
        )
        for row in rows
        if _instant(row.until) <= now_s
    ]
    while found and not found[-1].covered and found[-1].end_s > now_s - _LATE_S:
        found.pop()
    return found


def _instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())
