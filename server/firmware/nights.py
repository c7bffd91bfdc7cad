"""The windows of sites, from the database: opening hours, freezes, and where asked the usual day.

Runs as any role that may read an organisation's numbers: the desk through its views, the rollout's
conductor and the devices' listener on the tables themselves.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg

from server.firmware import windows
from server.firmware.freezes import Frozen, load
from server.firmware.policy import Policy
from server.firmware.windows import Always, Night, Rules
from server.rollup.buckets import local
from server.rollup.opening import Interval
from server.rollup.places import Site, load_sites

LOOK_AGAIN = timedelta(hours=1)
USUAL = timedelta(days=28)
"""What a site's usual day is learnt from."""


async def nights(
    connection: asyncpg.Connection,
    organisation: int,
    sites: Sequence[int],
    rules: Rules,
    *,
    now: datetime,
    overriding: bool = False,
) -> dict[int, Night]:
    """Return the windows of sites within the horizon, by row; `overriding`: freezes are ignored.

    Whoever overrides has had it approved by a second person (`acts.approve`).
    """
    if not sites:
        return {}
    frozen = Frozen()
    if not overriding:
        frozen = await load(connection, organisation, now=now, sites=sites)
    return await _nights(connection, sites, rules, frozen, now=now)


async def _nights(
    connection: asyncpg.Connection,
    sites: Sequence[int],
    rules: Rules,
    frozen: Frozen,
    *,
    now: datetime,
) -> dict[int, Night]:
    known = await load_sites(connection, ids=list(sites))
    quiet = await usually_quiet(connection, known, rules, now=now)
    return told(known, rules, frozen, quiet, now=now)


async def shut(
    connection: asyncpg.Connection,
    organisation: int,
    sites: Iterable[int | None],
    policy: Policy,
    *,
    now: datetime,
    ahead: timedelta = timedelta(0),
) -> dict[int | None, datetime]:
    """Return where nothing is to begin yet, and when to look again: soon, as freezes end early.

    `ahead`: what is to begin may do so that long before a window opens.
    """
    here, found = sorted({site for site in sites if site is not None}), dict[int | None, datetime]()
    soon = now + LOOK_AGAIN
    frozen = Frozen()
    if not policy.override_freezes:
        frozen = await load(connection, organisation, now=now, sites=here)
    for site in {None, *here}:
        on = frozen.at(site, int(now.timestamp()))
        if on is not None:
            found[site] = min(soon, instant(on.end_s))
    if policy.windows is None or policy.urgent or not here:
        return found
    resting = await _nights(connection, here, policy.windows, frozen, now=now)
    for site in here:
        night = resting.get(site)
        opens = instant(night.windows[0][0]) if night is not None and night.windows else None
        if opens is None or opens - ahead > now:
            found[site] = soon if opens is None else min(soon, opens - ahead)
        else:
            found.pop(site, None)  # what is on now ends in time
    return found


def told(
    sites: Iterable[Site],
    rules: Rules,
    frozen: Frozen,
    quiet: dict[int, Interval | None],
    *,
    now: datetime,
) -> dict[int, Night]:
    """Return the windows of sites; those that share hours and freezes share the work."""
    now_s = int(now.timestamp())
    same: dict[tuple[int, tuple[Interval, ...], Interval | None], Night] = {}
    found: dict[int, Night] = {}
    for site in sites:
        spans, rest = frozen.of(site.id), quiet.get(site.id)
        key = id(site.calendar), spans, rest
        if key not in same:
            same[key] = windows.windows(site.calendar, rules, spans, now_s=now_s, quiet=rest)
        found[site.id] = same[key]
    return found


async def usually_quiet(
    connection: asyncpg.Connection, sites: Sequence[Site], rules: Rules, *, now: datetime
) -> dict[int, Interval | None]:
    """Return the quietest stretch of each site that never closes, where the rules ask for it."""
    if rules.always is not Always.QUIET:
        return {}
    awake = {site.id: site for site in sites if site.calendar.opening.weekly is None}
    if not awake:
        return {}
    name = await readable(connection, "rollup_hour")
    rows = await connection.fetch(
        _USUAL.replace("{rollup_hour}", name), list(awake), now - USUAL, now
    )  # fmt: skip
    hours: dict[int, list[float]] = defaultdict(lambda: [0.0] * 24)
    for site, at_s, people in rows:
        hours[site][local(awake[site].time_zone, at_s).hour] += people
    return {site: windows.quietest(hours[site]) if site in hours else None for site in awake}


async def readable(connection: asyncpg.Connection, table: str) -> str:
    """Return how this role reads a hypertable: as it is, or through its organisation's view."""
    direct = await connection.fetchval("select has_table_privilege($1, 'select')", table)
    return table if direct else f"my_{table}"


def instant(at_s: int) -> datetime:
    """Return seconds since 1970 as the database takes them."""
    return datetime.fromtimestamp(at_s, UTC)


_USUAL = """
    select s.site_id, extract(epoch from r.bucket)::bigint,
           sum(coalesce(r.in0, 0) + coalesce(r.in1, 0) + coalesce(r.in2, 0) + coalesce(r.in3, 0)
               + coalesce(r.out0, 0) + coalesce(r.out1, 0) + coalesce(r.out2, 0)
               + coalesce(r.out3, 0))::float8
    from {rollup_hour} r join spots s on s.id = r.spot
    where s.site_id = any($1::int[]) and r.bucket >= $2 and r.bucket < $3
    group by 1, 2
"""
