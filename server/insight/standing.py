"""In which part of a stretch of days any of a site's counters stood, in its opening hours.

Coverage is of the time in which counters were to observe. Before the first of a site's is hung up,
and after the last is taken down, none was; so a stretch that holds such time is covered in part,
though all that stood saw everybody.
"""

from collections.abc import Sequence
from datetime import date

import asyncpg

from server.rollup.buckets import day_start
from server.rollup.opening import joined, overlap
from server.rollup.perimeter import load_perimeters
from server.rollup.places import Site, load_histories

Stretch = tuple[date, date]
"""Days [from, to), local to each site."""


async def parts_stood(
    connection: asyncpg.Connection, sites: Sequence[Site], stretches: Sequence[Stretch]
) -> dict[tuple[str, date], float]:
    """Return, by site and first day of a stretch, the part of it at which any counter stood.

    Stretches at which one stood throughout, or the site was shut, are left out.
    """
    if not sites or not stretches:
        return {}
    first, last = min(since for since, _ in stretches), max(until for _, until in stretches)
    spans = {
        site.id: (day_start(site.time_zone, first), day_start(site.time_zone, last))
        for site in sites
    }
    perimeters = await load_perimeters(connection, sites, spans=spans)
    spots = [spot for site in sites for spot in perimeters[site.id].outer]
    start_s = min(start for start, _ in spans.values())
    end_s = max(end for _, end in spans.values())
    known = await load_histories(connection, spots, start_s=start_s, end_s=end_s)
    found: dict[tuple[str, date], float] = {}
    for site in sites:
        own = [known[spot.id].assigned for spot in perimeters[site.id].outer]
        stood = joined(interval for each in own for interval in each)
        start_s, end_s = spans[site.id]
        if any(low <= start_s and end_s <= high for low, high in stood):
            continue
        for since, until in stretches:
            edges = (day_start(site.time_zone, day) for day in (since, until))
            hours = site.calendar.open_between(*edges)
            total = sum(high - low for low, high in hours)
            part = sum(overlap(stood, low, high) for low, high in hours)
            if part < total:
                found[site.ref, since] = part / total
    return found
