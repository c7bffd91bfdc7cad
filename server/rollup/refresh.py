"""The deriver: hours and local days, computed from the quarters that `rollup_dirty` names.

Invariants: a derived row is a function of the 15-minute rows and the site's calendar alone, so
deriving twice changes nothing and `rebuild` gives the same rows; a dirty row is deleted in the
transaction that derives what it names; one deriver works at a time (an advisory lock), and it
takes the lock before it reads, so no older view of the quarters ever overwrites a newer one. What
lies under a mask (`server.rollup.masks`) is masked before it is derived, however late it came.

How far behind it may be is nobody's worry but the queries' speed: they add up the quarters of
what is dirty themselves. It therefore rests after each pass for as long as keeps it below a
fifth of the time, which under load lets many changes of one spot's day become one pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import asyncpg
import structlog

from server.db.engine import transaction
from server.db.turns import repeat
from server.metrics import DERIVE_SECONDS, DIRTY_ROWS
from server.rollup import masks
from server.rollup.buckets import hour_edges, local
from server.rollup.derive import derive_days, derive_hours, derive_press_days
from server.rollup.places import Spot, load_sites, load_spots

log = structlog.get_logger(__name__)

LOCK = masks.LOCK

POLL_S = 1.0
_REST_FACTOR = 4
_REST_MOST_S = 30.0
_ROWS_A_PASS = 2_000
_DAYS_A_STATEMENT = 1_000
_QUARTER_S = 900


@dataclass(slots=True)
class Targets:
    """Spot-days and spot-hours to derive; hours by their start and end instants.

    `changed`: between which instants the quarters of a spot's day changed, where that is known.
    """

    days: dict[tuple[int, date], Spot] = field(default_factory=dict)
    hours: dict[tuple[int, int], int] = field(default_factory=dict)
    changed: dict[tuple[int, date], tuple[int, int]] = field(default_factory=dict)

    def add_quarter(self, spot: Spot, instant_s: int) -> None:
        """Add the day and the hour of a quarter that changed."""
        key = spot.id, self.add(spot, instant_s)
        from_s, until_s = self.changed.get(key, (instant_s, instant_s))
        self.changed[key] = min(from_s, instant_s), max(until_s, instant_s + _QUARTER_S)

    def add(self, spot: Spot, instant_s: int) -> date:
        """Add the day and the hour that hold an instant; return the day."""
        zone = spot.site.time_zone
        day = local(zone, instant_s).date()
        self.days[spot.id, day] = spot
        edges = (*hour_edges(zone, day), spot.site.calendar.day(day).end_s)
        for start_s, end_s in pairwise(edges):
            if start_s <= instant_s < end_s:
                self.hours[spot.id, start_s] = end_s
        return day

    def add_day(self, spot: Spot, day: date) -> None:
        """Add a day and all its hours."""
        self.days[spot.id, day] = spot
        edges = (*hour_edges(spot.site.time_zone, day), spot.site.calendar.day(day).end_s)
        for start_s, end_s in pairwise(edges):
            self.hours[spot.id, start_s] = end_s


async def run(pool: asyncpg.Pool) -> None:
    """Derive for ever; a database that is away is tried again. `pool`: role vestibule_maint."""

    async def turn() -> None:
        while await refresh(pool):
            pass

    def rest_s(taken_s: float) -> float:
        DERIVE_SECONDS.observe(taken_s)
        return min(max(POLL_S, _REST_FACTOR * taken_s), _REST_MOST_S)

    await repeat(turn, rest_s=rest_s, away="deriving failed; trying again")


async def refresh(pool: asyncpg.Pool) -> bool:
    """Work in the oldest dirty rows, and one stale site; return whether more are waiting."""
    async with transaction(pool, "derive stale site") as connection:
        await masks.hold(connection)
        # Deleting first waits for a change of the hours under way, and lets the next one in after.
        site = await connection.fetchval(
            "delete from rollup_stale where site_id = "
            "(select site_id from rollup_stale order by site_id limit 1) returning site_id"
        )
        if site is not None:
            await _rebuild_site(connection, site)
    async with transaction(pool, "derive rollups") as connection:
        await masks.hold(connection)
        rows = await connection.fetch(
            "select id, spots, buckets from rollup_dirty order by id limit $1", _ROWS_A_PASS
        )
        DIRTY_ROWS.set(len(rows))
        if rows:
            await masks.apply(connection, _quarters(rows))
            await _derive(connection, await _named(connection, rows))
            await connection.execute(
                "delete from rollup_dirty where id = any($1::bigint[])", [row["id"] for row in rows]
            )
    return site is not None or len(rows) == _ROWS_A_PASS


async def rebuild(pool: asyncpg.Pool, spot: int, since: date, until: date) -> None:
    """Derive anew every local day of a spot in [since, until), a transaction each 31 days."""
    at = since
    while at < until:
        stop = min(until, at + timedelta(days=31))
        async with transaction(pool, "rebuild rollups") as connection:
            await masks.hold(connection)
            (found,) = await load_spots(connection, ids=[spot])
            targets = Targets()
            for offset in range((stop - at).days):
                targets.add_day(found, at + timedelta(days=offset))
            await _derive(connection, targets)
        at = stop


async def _named(connection: asyncpg.Connection, rows: Sequence[asyncpg.Record]) -> Targets:
    """Return the days and hours that dirty rows name; spots that are gone are left out."""
    quarters = _quarters(rows)
    ids = sorted({spot for spot, _ in quarters if spot})
    spots = {spot.id: spot for spot in await load_spots(connection, ids=ids)} if ids else {}
    targets = Targets()
    for spot, bucket in quarters:
        if spot in spots:
            targets.add_quarter(spots[spot], int(bucket.timestamp()))
    return targets


def _quarters(rows: Sequence[asyncpg.Record]) -> set[tuple[int, datetime]]:
    return {
        (spot, bucket)
        for row in rows
        for spot, bucket in zip(row["spots"], row["buckets"], strict=True)
    }


async def _rebuild_site(connection: asyncpg.Connection, site: int) -> None:
    """Derive all days of a site whose opening hours or zone changed."""
    (found,) = await load_sites(connection, ids=[site])
    spots = await load_spots(connection, sites=[found])
    targets = Targets()
    for spot in spots:
        # A day derived under another zone may have hours where this one has none.
        await connection.execute("delete from rollup_hour where spot = $1", spot.id)
        await connection.execute("delete from rollup_day where spot = $1", spot.id)
        await connection.execute("delete from presses_day where spot = $1", spot.id)
        for (at,) in await connection.fetch(_HELD, spot.id):
            targets.add(spot, int(at.timestamp()))
    await _derive(connection, targets)
    log.info("site derived anew", site=found.ref, spot_days=len(targets.days))


_HELD = """
    select bucket from rollup_15m where spot = $1
    union select bucket from presses_15m where spot = $1
"""


async def _derive(connection: asyncpg.Connection, targets: Targets) -> None:
    """Compute the targets' rows from the quarters, in order of spot and day."""
    days = sorted(targets.days)
    for chunk in _chunks(days):
        chosen = [(targets.days[key], key[1]) for key in chunk]
        await derive_days(connection, chosen, targets.changed)
    kiosks = [key for key in days if targets.days[key].kind == "kiosk"]
    for chunk in _chunks(kiosks):
        await derive_press_days(connection, [(targets.days[key], key[1]) for key in chunk])
    await _hand_on(connection, [(targets.days[key], key[1]) for key in kiosks])
    hours = sorted(targets.hours)
    for start in range(0, len(hours), _DAYS_A_STATEMENT):
        part = hours[start : start + _DAYS_A_STATEMENT]
        await derive_hours(connection, [(spot, at, targets.hours[spot, at]) for spot, at in part])


async def _hand_on(connection: asyncpg.Connection, days: Sequence[tuple[Spot, date]]) -> None:
    """Say that presses of these kiosks' days are to be filtered anew (server.feedback)."""
    edges = [spot.site.calendar.day(day) for spot, day in days]
    if days:
        await connection.execute(
            "insert into responses_dirty (spot, from_at, until_at) "
            "select * from unnest($1::int[], $2::timestamptz[], $3::timestamptz[])",
            [spot.id for spot, _ in days],
            [datetime.fromtimestamp(edge.start_s, UTC) for edge in edges],
            [datetime.fromtimestamp(edge.end_s, UTC) for edge in edges],
        )


def _chunks(keys: Sequence[tuple[int, date]]) -> Iterable[Sequence[tuple[int, date]]]:
    for start in range(0, len(keys), _DAYS_A_STATEMENT):
        yield keys[start : start + _DAYS_A_STATEMENT]
