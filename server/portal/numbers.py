"""Ask the rollups for a retailer's day: within one transaction that sees one organisation."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import asyncpg

from server.errors import NotFoundError
from server.feedback.query import feedback
from server.portal.view import (
    Question,
    Silent,
    SiteDay,
    SpotDay,
    Turned,
    bars_of,
    compare,
    day_to_show,
    has_begun,
    opening_of,
    smileys_of,
)
from server.rollup.answer import By, CountQuery, CountRow
from server.rollup.buckets import Size, zone
from server.rollup.places import Site, Spot, load_sites, load_spots
from server.rollup.quality import Scope
from server.rollup.query import counts

SILENT_AFTER = timedelta(minutes=20)  # four of a device's usual five-minute frames
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Organisation:
    """Who looks."""

    ref: str
    name: str


@dataclass(frozen=True, slots=True)
class SitePage:
    """A site's day with its spots and quarters; `quarters` and `before` are of 15 minutes."""

    site: SiteDay
    spots: tuple[SpotDay, ...]
    quarters: tuple[CountRow, ...]
    before: tuple[CountRow, ...]
    time_zone: str


async def organisation_of(connection: asyncpg.Connection) -> Organisation | None:
    """Return the organisation that this transaction sees."""
    row = await connection.fetchrow("select ref, name from organisations")
    return None if row is None else Organisation(row["ref"], row["name"])


async def places(connection: asyncpg.Connection) -> list[tuple[str, int, int | None]]:
    """Return ref, row and region of each site."""
    rows = await connection.fetch("select ref, id, region_id from sites")
    return [(row["ref"], row["id"], row["region_id"]) for row in rows]


async def last_stored(connection: asyncpg.Connection) -> datetime | None:
    """Return when something of this organisation was last stored: what a live page watches."""
    found: datetime | None = await connection.fetchval("select max(last_stored) from my_boots")
    return found


async def overview(connection: asyncpg.Connection, *, now: datetime) -> list[SiteDay]:
    """Return every site's today (the day before, until it opens), by name."""
    sites = await load_sites(connection)
    if not sites:
        return []
    shown = {
        site.ref: day_to_show(site.calendar, now=now.astimezone(zone(site.time_zone)))
        for site in sites
    }
    found = await _site_days(connection, sites, shown, now=now)
    return sorted((day for day, _, _ in found), key=lambda day: day.name)


async def site_page(
    connection: asyncpg.Connection, ref: str, *, day: date | None, now: datetime
) -> SitePage:
    """Return one site's day (None: its today). Raises UnknownPlaceError."""
    if "\0" in ref:
        raise NotFoundError(f"no site {ref!r}")
    sites = await load_sites(connection, [ref])
    today = now.astimezone(zone(sites[0].time_zone)).date()
    [(site_day, quarters, before)] = await _site_days(
        connection, sites, {ref: day or today}, now=now
    )
    spots = await _spot_days(connection, sites[0], site_day)
    return SitePage(site_day, spots, quarters, before, sites[0].time_zone)


_Day = tuple[SiteDay, tuple[CountRow, ...], tuple[CountRow, ...]]


async def _site_days(
    connection: asyncpg.Connection,
    sites: Sequence[Site],
    days: Mapping[str, date],
    *,
    now: datetime,
) -> list[_Day]:
    groups: dict[date, list[Site]] = defaultdict(list)
    for site in sites:
        groups[days[site.ref]].append(site)
    spots = await load_spots(connection, sites=sites)
    notes = await _notes(connection, spots, now=now)
    found: list[_Day] = []
    for when, group in groups.items():
        found += await _of_day(connection, group, notes, day=when, now=now)
    return found


async def _of_day(
    connection: asyncpg.Connection,
    sites: Sequence[Site],
    notes: "Mapping[str, _Notes]",
    *,
    day: date,
    now: datetime,
) -> list[_Day]:
    """Return the sites' one local day; all of them are asked for at once."""
    now_s = int(now.timestamp())
    refs = tuple(site.ref for site in sites)

    async def rows(size: Size, scope: Scope, on: date) -> dict[str, list[CountRow]]:
        query = CountQuery(size, on, on + timedelta(days=1), scope=scope, sites=refs)
        by_site: dict[str, list[CountRow]] = defaultdict(list)
        for row in (await counts(connection, query, now_s=now_s)).rows:
            by_site[row.site].append(row)
        return by_site

    open_days = await rows(Size.DAY, Scope.OPEN, day)
    all_days = await rows(Size.DAY, Scope.ALL, day)
    quarters = await rows(Size.QUARTER, Scope.ALL, day)
    before = await rows(Size.QUARTER, Scope.ALL, day - _WEEK)
    pressed = await _pressed(connection, refs, day=day, now_s=now_s)
    found: list[_Day] = []
    for site in sites:
        here = now.astimezone(zone(site.time_zone))
        [opened], [whole] = open_days[site.ref], all_days[site.ref]
        visits = None if opened.visits is None else round(opened.visits)
        until = here.replace(minute=here.minute // 15 * 15, second=0, microsecond=0)
        note = notes.get(site.ref, _Notes((), ()))
        site_day = SiteDay(
            ref=site.ref,
            name=site.name,
            day=day,
            now=here,
            opening=opening_of(site.calendar, now=here),
            begun=has_begun(site.calendar, day, now=here),
            visits=visits,
            outside=round(whole.visits or 0) - (visits or 0),
            coverage=opened.coverage,
            unplaced=round(whole.unplaced_visits),
            comparison=compare(quarters[site.ref], before[site.ref], until=until),
            smileys=smileys_of(pressed[site.ref]),
            bars=bars_of(quarters[site.ref], now=here),
            turned=note.turned,
            silent=note.silent,
        )
        found.append((site_day, tuple(quarters[site.ref]), tuple(before[site.ref])))
    return found


async def _spot_days(
    connection: asyncpg.Connection, site: Site, day: SiteDay
) -> tuple[SpotDay, ...]:
    spots = await load_spots(connection, sites=[site])
    counters = tuple(spot.ref for spot in spots if spot.kind == "counter")
    query = CountQuery(
        Size.DAY, day.day, day.day + timedelta(days=1), by=By.SPOT, scope=Scope.OPEN, spots=counters
    )
    page = await counts(connection, query, now_s=int(day.now.timestamp())) if counters else None
    rows = {row.spot: row for row in page.rows} if page else {}
    turned = {note.spot: note for note in day.turned}
    silent = {note.spot: note for note in day.silent}
    found: list[SpotDay] = []
    for spot in sorted(spots, key=lambda spot: (spot.kind, spot.name)):
        row = rows.get(spot.ref)
        found.append(
            SpotDay(
                ref=spot.ref,
                name=spot.name,
                kiosk=spot.kind == "kiosk",
                visits=None if row is None or row.visits is None else round(row.visits),
                exits=None if row is None or row.exits is None else round(row.exits),
                coverage=None if row is None else row.coverage,
                unplaced=0 if row is None else round(row.unplaced_visits),
                turned=turned.get(spot.name),
                silent=silent.get(spot.name),
            )
        )
    return tuple(found)


async def _pressed(
    connection: asyncpg.Connection, refs: tuple[str, ...], *, day: date, now_s: int
) -> Mapping[str, list[Question]]:
    """Return by site what was pressed in a day's opening hours."""
    query = CountQuery(Size.DAY, day, day + timedelta(days=1), scope=Scope.OPEN, sites=refs)
    found: dict[str, list[Question]] = defaultdict(list)
    for row in (await feedback(connection, query, now_s=now_s)).rows:
        found[row.site].append(Question(row.questionnaire, row.kind, row.answers))
    return found


@dataclass(frozen=True, slots=True)
class _Notes:
    turned: tuple[Turned, ...]
    silent: tuple[Silent, ...]


async def _notes(
    connection: asyncpg.Connection, spots: Sequence[Spot], *, now: datetime
) -> dict[str, _Notes]:
    """Return by site what a reader must know: counters turned round, devices not heard of."""
    by_id = {spot.id: spot for spot in spots}
    turned: dict[str, list[Turned]] = defaultdict(list)
    silent: dict[str, list[Silent]] = defaultdict(list)
    for spot_id, since in await connection.fetch(_TURNED, list(by_id)):
        spot = by_id[spot_id]
        turned[spot.site.ref].append(Turned(spot.name, _local(since, spot)))
    for spot_id, stored_to in await connection.fetch(_SILENT, list(by_id), now - SILENT_AFTER):
        spot = by_id[spot_id]
        silent[spot.site.ref].append(Silent(spot.name, spot.kind, _local(stored_to, spot)))
    return {
        ref: _Notes(tuple(turned[ref]), tuple(silent[ref])) for ref in turned.keys() | silent.keys()
    }


def _local(at: datetime | None, spot: Spot) -> datetime | None:
    return None if at is None else at.astimezone(zone(spot.site.time_zone))


_TURNED = """
    select spot_id, nullif(min(lower(valid)), '-infinity') from calibrations
    where spot_id = any($1::int[]) and reversed and (upper_inf(valid) or upper(valid) > now())
    group by spot_id order by spot_id
"""
_SILENT = """
    select a.spot_id, max(b.stored_to) from assignments a
    left join my_boots b on b.device_id = a.device_id
    where a.spot_id = any($1::int[]) and a.valid @> now()
    group by a.spot_id having coalesce(max(b.stored_to), '-infinity') < $2 order by a.spot_id
"""
