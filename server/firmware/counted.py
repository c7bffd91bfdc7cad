"""What the counts guard looks at, from the database: doors of a rollout and their days.

A door's days are those of its spot's day rollups in open hours, as calibrated, with the seconds
that were observed and not masked. A *format of store* is what the register knows: how many
counters a site has, and whether it ever closes.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import asyncpg

from server.firmware import counts
from server.firmware.counts import Day, Door, Judged, Rule
from server.firmware.nights import readable
from server.rollup.buckets import day_start, local
from server.rollup.places import Site, load_calibrations, load_sites
from server.rollup.sums import UNIT, segments, weigh

LATE = timedelta(hours=3)
"""A day is looked at once it is over for so long: by then what was counted has arrived."""


@dataclass(frozen=True, slots=True)
class Place:
    """A counter of a plan: its spot, and since when it counts updated; None: it waits."""

    spot: int
    site: int
    since: int | None


def format_of(site: Site, counters: int) -> str:
    """Return a site's format of store, as far as the register knows."""
    if site.calendar.opening.weekly is None:
        return "always open"
    return "one counter" if counters < 2 else "2 to 4 counters" if counters < 5 else "5 or more"


async def formats_of(
    connection: asyncpg.Connection, sites: Sequence[Site]
) -> dict[int, str]:  # fmt: skip
    """Return the format of store of each site."""
    rows = await connection.fetch(_COUNTERS, [site.id for site in sites])
    number = {row["site_id"]: row["counters"] for row in rows}
    return {site.id: format_of(site, number.get(site.id, 0)) for site in sites}


async def doors(
    connection: asyncpg.Connection, places: Sequence[Place], *, now: datetime
) -> tuple[list[Door], int]:
    """Return doors with the whole days of their last weeks, and today as an ordinal number.

    Today is the earliest of the sites' own: no day is looked at before it is over everywhere.
    """
    sites = {s.id: s for s in await load_sites(connection, ids=[p.site for p in places] or [0])}
    if not places:
        return [], 0
    at_s = int((now - LATE).timestamp())
    today = min(local(site.time_zone, at_s).date() for site in sites.values())
    first = min([today.toordinal(), *(p.since for p in places if p.since is not None)])
    since = date.fromordinal(first - 7 * (counts.WEEKS + 1))
    formats = await formats_of(connection, list(sites.values()))
    spots = [place.spot for place in places]
    counted = await _days(connection, spots, since=since, until=today)
    span = (
        min(day_start(site.time_zone, since) for site in sites.values()),
        max(day_start(site.time_zone, today) for site in sites.values()),
    )
    cuts = {
        k: segments(v) for k, v in (await load_calibrations(connection, spots, span=span)).items()
    }
    made = []
    for place in places:
        site, cut = sites[place.site], cuts.get(place.spot, segments(()))
        rows = counted.get(place.spot, {})
        days = []
        for number in range(since.toordinal(), today.toordinal()):
            day = site.calendar.day(date.fromordinal(number))
            own = next((c for c in cut if c.start_s <= day.start_s and day.end_s <= c.end_s), None)
            observed, values = rows.get(number, (0, [0] * 8))
            if own is None:  # the calibration changed in the middle of it
                observed, entered = 0, 0
            else:
                entered, _ = weigh(values, own.weights)
            days.append(Day(number, entered / UNIT, min(observed, day.open_s), day.open_s))
        made.append(Door(str(place.spot), site.ref, formats[site.id], place.since, tuple(days)))
    return made, today.toordinal()


async def _days(
    connection: asyncpg.Connection, spots: Sequence[int], *, since: date, until: date
) -> Mapping[int, Mapping[int, tuple[int, list[int]]]]:
    name = await readable(connection, "rollup_day")
    found: dict[int, dict[int, tuple[int, list[int]]]] = defaultdict(dict)
    sql = _DAYS.replace("{rollup_day}", name)
    for spot, day, observed, *values in await connection.fetch(sql, list(spots), since, until):
        found[spot][day.toordinal()] = observed, [value or 0 for value in values]
    return found


async def look(connection: asyncpg.Connection, rollout: int, *, now: datetime) -> dict[int, Judged]:
    """Judge the counts of each wave of a rollout that has confirmed counters, beside who waits.

    Nothing: the policy wants no guard, nobody waits, or no counter has been updated yet. The stated
    error is shared by the waves that can be looked at, so it is that of the whole rollout.
    """
    row = await connection.fetchrow(_ROLLOUT, rollout)
    if row is None or not json.loads(row["policy"])["guards"]["counts"]:
        return {}
    planned, guarded = json.loads(row["plan"]), row["waves"] - 1
    waiting = await connection.fetch(_WAITING, rollout, planned.get("controls", []))
    updated = await connection.fetch(_UPDATED, rollout, guarded)
    if not waiting or not updated:
        return {}
    controls = [Place(each["spot_id"], each["site_id"], None) for each in waiting]
    waves: dict[int, list[Place]] = defaultdict(list)
    ids = sorted({each["site_id"] for each in updated})
    sites = {site.id: site for site in await load_sites(connection, ids=ids)}
    for each in updated:
        since = _since(sites[each["site_id"]], int(each["ended_at"].timestamp()))
        waves[each["wave"]].append(Place(each["spot_id"], each["site_id"], since))
    rule = Rule()
    shared = replace(
        rule, error_loss=rule.error_loss / guarded, error_gain=rule.error_gain / guarded
    )  # fmt: skip
    found: dict[int, Judged] = {}
    for wave, places in sorted(waves.items()):
        both, today = await doors(connection, [*places, *controls], now=now)
        first = counts.first_look([place.since for place in places if place.since is not None])
        found[wave] = await asyncio.to_thread(
            counts.judge, both, first=first, today=today,
            seed=f"{planned['seed']}/{wave}", rule=shared,
        )  # fmt: skip
    return found


def _since(site: Site, at_s: int) -> int:
    """Return the first day whose open hours all come after an instant: that day, or the next."""
    today = local(site.time_zone, at_s).date()
    opened = site.calendar.day(today).open
    return today.toordinal() + (not opened or opened[0][0] < at_s)


_COUNTERS = """
    select site_id, count(*)::int as counters from spots
    where kind = 'counter' and site_id = any($1::int[]) group by site_id
"""
_DAYS = """
    select spot, day, open_observed_s::int, open_in0, open_out0, open_in1, open_out1,
           open_in2, open_out2, open_in3, open_out3
    from {rollup_day} where spot = any($1::int[]) and day >= $2 and day < $3
"""
_ROLLOUT = """
    select r.plan, r.policy, (select coalesce(max(w.number), 0) from waves w
        where w.rollout_id = r.id and w.kind = 'wave')::int as waves
    from rollouts r where r.id = $1
"""
_WAITING = """
    select e.spot_id, e.site_id from executions e join spots s on s.id = e.spot_id
    where e.rollout_id = $1 and e.device_id = any($2::int[]) and e.state = 'planned'
      and not e.attempted and s.kind = 'counter'
    order by e.id
"""
_UPDATED = """
    select e.wave, e.spot_id, e.site_id, e.ended_at from executions e
    join spots s on s.id = e.spot_id and s.kind = 'counter'
    where e.rollout_id = $1 and e.state = 'confirmed' and e.wave between 1 and $2::int
      and e.site_id is not null
    order by e.spot_id
"""
