"""Counts of sites and spots in time buckets, calibrated, with what they are worth.

`counts` answers a `CountQuery` on a connection that sees one organisation. Every bucket of the
range is a row, also where nothing was measured (visits null). Buckets at the range's edges are
whole. A site's row counts its perimeter's counters, as at the end of the whole range, whatever the
page; a spot's row that spot alone, and a site's row of spots that were named those. Freshness: see
`sums`; state and coverage are as of `now_s`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import asyncpg

from server.rollup.answer import (
    By,
    CountPage,
    CountQuery,
    CountRow,
    Position,
    TooFineError,
    TooLongError,
    Unplaced,
)
from server.rollup.buckets import Bucket, Size, bucket_count, buckets, instant, local
from server.rollup.minutes import add_up_minutes
from server.rollup.patches import Behind, Entity, Key, plan
from server.rollup.perimeter import Perimeter, load_perimeters
from server.rollup.places import (
    Calibrations,
    History,
    Site,
    Spot,
    histories,
    load_calibrations,
    load_sites,
    load_spots,
    read_histories,
)
from server.rollup.quality import Scope
from server.rollup.rows import Worth, fold, place_gaps
from server.rollup.sums import (
    Column,
    Patch,
    Segment,
    Source,
    Sum,
    add_up,
    add_up_patches,
    merged,
    resolution_of,
    row_key,
    segments,
)

MOST_BUCKETS = {
    Size.MINUTE: 8 * 1_440,
    Size.QUARTER: 100 * 96,
    Size.HOUR: 3 * 366 * 24,
    Size.DAY: 20 * 366,
    Size.WEEK: 20 * 53,
    Size.MONTH: 20 * 12,
}


Beside = Callable[[asyncpg.Connection], AbstractAsyncContextManager[asyncpg.Connection | None]]
"""Gives a second connection on the same snapshot, or None if there is none to spare."""


async def counts(
    connection: asyncpg.Connection, query: CountQuery, *, now_s: int, beside: Beside | None = None
) -> CountPage:
    """Return one page of counts. Raises UnknownPlaceError, TooFineError, TooLongError.

    What is about many spots is added up on two connections, if there is one `beside`.
    """
    entities, following = await page_of(connection, query, kind="counter")
    entities = [entity for entity in entities if entity.grid]
    if not entities:
        return CountPage([], [], following)
    spots = [spot.id for entity in entities for spot in entity.spots]
    start_s = min(entity.grid[0].start_s for entity in entities)
    end_s = max(entity.grid[-1].end_s for entity in entities)
    worth = Worth(scope=query.scope, now_s=now_s)
    async with AsyncExitStack() as exits:
        page = _Page(query, entities, spots, (start_s, end_s), worth)
        page.free.put_nowait(connection)
        if beside is not None and len(spots) > _FEW:
            other = await exits.enter_async_context(beside(connection))
            if other is not None:
                await other.execute(_PLAN_EACH)
                page.free.put_nowait(other)
        rows, unplaced = await page.rows()
    return CountPage(rows, unplaced, following)


_FEW = 50
"""Spots up to which a plan made for any spots does; made for few, it is slow for hundreds."""

_PLAN_EACH = "set local plan_cache_mode = force_custom_plan"

_PART = 128
"""Entities whose sums are fetched at once. The rows of each part are made in a thread, since that
is too long for the event loop, while the database adds up others."""

_Rows = tuple[list[CountRow], list[Unplaced]]


@dataclass(slots=True)
class _Page:
    """A page whose rows are made part by part; questions wait for a connection that is `free`."""

    query: CountQuery
    entities: Sequence[Entity]
    spots: Sequence[int]
    span: tuple[int, int]
    worth: Worth
    free: asyncio.Queue[asyncpg.Connection] = field(default_factory=asyncio.Queue)
    cut: dict[int, tuple[Segment, ...]] = field(default_factory=dict)
    behind: Behind | None = None

    async def rows(self) -> _Rows:
        """Return all rows, and whoever is in none of them. Raises TooFineError."""
        async with self._turn() as connection:
            known = await load_calibrations(connection, self.spots, span=self.span)
            if self.query.size not in (Size.MINUTE, Size.QUARTER):
                self.behind = await what_is_behind(connection, self.spots, span=self.span)
        self.cut = {spot: segments(known.get(spot, ())) for spot in self.spots}
        sense = asyncio.create_task(self._histories(known))
        parts = [
            asyncio.create_task(self._part(self.entities[at : at + _PART], sense))
            for at in range(0, len(self.entities), _PART)
        ]
        try:
            found = await asyncio.gather(*parts)
        finally:
            for task in (sense, *parts):
                task.cancel()
            await asyncio.wait((sense, *parts))  # none is left to itself with a connection
        return [row for rows, _ in found for row in rows], [
            each for _, lost in found for each in lost
        ]

    async def _histories(self, known: Calibrations) -> Mapping[int, History]:
        async with self._turn() as connection:
            told = await read_histories(connection, self.spots, span=self.span)
        return await asyncio.to_thread(histories, told, known)

    async def _part(
        self, entities: Sequence[Entity], sense: asyncio.Task[Mapping[int, History]]
    ) -> _Rows:
        async with self._turn() as connection:
            sums = await sums_of(
                connection, self.query, entities, cut=self.cut, span=self.span, behind=self.behind
            )
        return await asyncio.to_thread(self._fold, entities, sums, await sense)

    def _fold(
        self, entities: Sequence[Entity], sums: Sequence[Column], known: Mapping[int, History]
    ) -> _Rows:
        rows: list[CountRow] = []
        unplaced: list[Unplaced] = []
        cells = collect(self.query.size, entities, sums)
        for entity, own_cells in zip(entities, cells, strict=True):
            own = [known[spot.id] for spot in entity.spots]
            placed, elsewhere = place_gaps(entity, own, cut=self.cut, size=self.query.size)
            expected = self.worth.of(entity, own, cut=self.cut)
            rows += fold(entity, own_cells, expected, placed=placed)
            unplaced += elsewhere
        return rows, unplaced

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await self.free.get()
        try:
            yield connection
        finally:
            self.free.put_nowait(connection)


async def page_of(
    connection: asyncpg.Connection, query: CountQuery, *, kind: str
) -> tuple[list[Entity], Position | None]:
    """Return the entities of this page with their buckets, and where the next page begins."""
    _check_length(query)
    sites = [] if query.spots else await load_sites(connection, query.sites)
    planned = len(sites) > _FEW
    if planned:
        await connection.execute(_PLAN_EACH)
    if query.by is By.SITE and not query.spots:
        if kind == "counter":
            perimeters = await perimeters_of(connection, query, sites)
            spots = [spot for site in sites for spot in perimeters[site.id].outer]
        else:
            spots = await load_spots(connection, kind=kind, sites=sites)
        entities = _by_site(sites, spots)
    else:
        spots = await load_spots(connection, kind=kind, sites=sites, refs=query.spots)
        entities = [(spot.ref, spot.site, spot, (spot,)) for spot in spots]
        if query.by is By.SITE:
            entities = _by_site(list({s.site.ref: s.site for s in spots}.values()), spots)
        entities.sort(key=lambda entity: entity[0])
    if len(spots) > _FEW and not planned:
        await connection.execute(_PLAN_EACH)
    grids: dict[str, tuple[Bucket, ...]] = {}
    chosen: list[Entity] = []
    room = query.limit
    for ref, site, spot, members in entities:
        if query.after is not None and ref < query.after.ref:
            continue
        zone = site.time_zone
        if zone not in grids:
            grids[zone] = buckets(zone, query.size, since=query.since, until=query.until)
        grid = grids[zone]
        if query.after is not None and ref == query.after.ref:
            grid = tuple(b for b in grid if b.start_s >= query.after.start_s)
        if len(grid) > room and (room == 0 or len(grid) > query.limit or chosen):
            if not chosen:
                chosen.append(Entity(ref, site, spot, members, grid[:room]))
                return chosen, Position(ref, grid[room].start_s)
            return chosen, Position(ref, grid[0].start_s)
        chosen.append(Entity(ref, site, spot, members, grid))
        room -= len(grid)
    return chosen, None


async def perimeters_of(
    connection: asyncpg.Connection, query: CountQuery, sites: Sequence[Site]
) -> dict[int, Perimeter]:
    """Return the perimeter of each site over the range of a question, or of its `perimeter`."""
    since, until = query.perimeter or (query.since, query.until)
    spans: dict[int, tuple[int, int]] = {}
    of_zones: dict[str, tuple[int, int]] = {}
    for site in sites:
        if site.time_zone not in of_zones:
            grid = buckets(site.time_zone, query.size, since=since, until=until)
            of_zones[site.time_zone] = (grid[0].start_s, grid[-1].end_s) if grid else (0, 1)
        spans[site.id] = of_zones[site.time_zone]
    return await load_perimeters(connection, sites, spans=spans)


def _by_site(
    sites: Sequence[Site], spots: Sequence[Spot]
) -> list[tuple[str, Site, Spot | None, tuple[Spot, ...]]]:
    members: dict[int, list[Spot]] = {site.id: [] for site in sites}
    for spot in spots:
        members[spot.site.id].append(spot)
    return [(site.ref, site, None, tuple(members[site.id])) for site in sites]


def _check_length(query: CountQuery) -> None:
    span_s = instant("UTC", query.until) - instant("UTC", query.since)
    if bucket_count(query.size, span_s) > (most := MOST_BUCKETS[query.size]):
        raise TooLongError(query.size, most)


async def sums_of(
    connection: asyncpg.Connection,
    query: CountQuery,
    entities: Sequence[Entity],
    *,
    cut: dict[int, tuple[Segment, ...]],
    span: tuple[int, int],
    behind: Behind | None = None,
) -> list[Column]:
    """Fetch all sums of the page: rows that can be taken whole, and patches for the rest.

    `behind` is what is behind of these spots, if it is known already.
    """
    size, (start_s, end_s) = query.size, span
    sources = [
        Source(
            spot.id,
            number,
            spot.site.id if entity.spot is None else spot.id,
            spot.site.time_zone,
            cut[spot.id],
        )
        for number, entity in enumerate(entities)
        for spot in entity.spots
    ]
    if not sources:
        return []
    if size is Size.MINUTE:
        return await add_up_minutes(connection, sources, start_s=start_s, end_s=end_s)
    left_out: list[tuple[int, Key]] = []
    patches: list[Patch] = []
    if size is not Size.QUARTER:
        if behind is None:
            behind = await what_is_behind(connection, [s.spot for s in sources], span=span)
        left_out, patches = plan(entities, size=size, scope=query.scope, cut=cut, behind=behind)
    every = {id(entity.grid): entity for entity in entities}.values()  # of a zone they are shared
    days = (
        min(entity.grid[0].start_day for entity in every),
        max(last_day(entity) for entity in every) + timedelta(days=1),
    )
    whole = await add_up(
        connection,
        size,
        sources,
        by_site=query.by is By.SITE,
        start_s=start_s,
        end_s=end_s,
        days=days,
        left_out=left_out,
        scope_open=query.scope is Scope.OPEN,
    )
    return whole + await add_up_patches(connection, patches)


def last_day(entity: Entity) -> date:
    """Return the local day that the last bucket of an entity ends in."""
    return local(entity.site.time_zone, entity.grid[-1].end_s - 1).date()


async def what_is_behind(
    connection: asyncpg.Connection, spots: Sequence[int], *, span: tuple[int, int]
) -> Behind:
    """Return what the deriver still has to do for `spots`."""
    within = (datetime.fromtimestamp(at, UTC) for at in span)
    quarters: dict[int, list[int]] = {}
    sites: set[int] = set()
    for spot, at, site in await connection.fetch(_BEHIND, spots, *within):
        if site is not None:
            sites.add(site)
        else:
            quarters.setdefault(spot, []).append(at)
    return Behind(quarters, frozenset(sites))


def collect(
    size: Size, entities: Sequence[Entity], sums: Sequence[Column]
) -> Iterator[list[Sum | None]]:
    """Sort sums into the buckets of one entity after the other. Raises TooFineError."""
    own: list[list[Column]] = [[] for _ in entities]
    for column in sums:
        own[column.entity].append(column)
    numbers: dict[int, dict[int, int]] = {}  # of buckets by key, of each grid: zones share theirs
    for entity, columns in zip(entities, own, strict=True):
        grid = entity.grid
        if id(grid) not in numbers:
            base = row_key(size, grid[0].start_day) if size.is_days else 0
            keys = range(base, base + len(grid)) if size.is_days else [b.start_s for b in grid]
            numbers[id(grid)] = {key: number for number, key in enumerate(keys)}
        yield _cells(size, grid, columns, numbers[id(grid)])


def _cells(
    size: Size, grid: Sequence[Bucket], columns: Sequence[Column], numbers: Mapping[int, int]
) -> list[Sum | None]:
    cells: list[Sum | None] = [None] * len(grid)
    for at, (_, keys, *values) in enumerate(columns):
        found = zip(keys, zip(*values, strict=True), strict=True)
        if at == 0 and size.is_days:  # all of them, mostly
            cells = list(map(dict(found).get, numbers))
            continue
        for key, each in found:
            number = numbers.get(key)
            if number is None:
                continue
            before = cells[number]
            cells[number] = each if before is None else merged(before, each)
            if not size.is_days and (resolution_s := resolution_of(each[3])) > 60:
                _check_resolution(size, grid[number], resolution_s)
    return cells


def _check_resolution(size: Size, bucket: Bucket, resolution_s: int) -> None:
    """Refuse a bucket that a reading may reach out of."""
    if size is Size.MINUTE or bucket.start_s % resolution_s or bucket.end_s % resolution_s:
        raise TooFineError(size, resolution_s)


_BEHIND = """
    (select distinct spot, extract(epoch from bucket)::bigint, null::int from my_rollup_dirty
     where spot = any($1::int[]) and bucket >= $2 and bucket < $3)
    union all select null, null, site_id from my_rollup_stale
"""
