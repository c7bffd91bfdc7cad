"""What the counters and tills of sites say of each bucket, as sums that can be added up further.

Unlike `server.rollup.query.counts`, whose rows carry a coverage, these carry the seconds that it is
made of: so that sites and days can be added up, and divided once.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NamedTuple

import asyncpg

from server.insight.formulas import Takings
from server.rollup.answer import By, CountQuery
from server.rollup.buckets import Bucket, Size, buckets
from server.rollup.patches import Entity
from server.rollup.places import History, Site, Spot, load_histories
from server.rollup.quality import Hours, Scope, State, known
from server.rollup.query import collect, sums_of
from server.rollup.rows import Worth
from server.rollup.sums import UNIT, Column, Segment, revision_of, segments

_FEW = 50
"""Spots up to which a plan made for any spots does; made for few, it is slow for hundreds."""


class Tally(NamedTuple):
    """A bucket's people in and out, None where nothing was measured, and what they are worth."""

    entered: float | None
    left: float | None
    observed_s: int
    expected_s: int
    hours: Hours
    state: State
    revision: int


@dataclass(frozen=True, slots=True)
class Range:
    """Buckets of this size of [since, until), in these hours, as seen at `now_s`."""

    size: Size
    since: date | datetime
    until: date | datetime
    scope: Scope
    now_s: int

    def grid(self, site: Site) -> tuple[Bucket, ...]:
        """Return a site's buckets."""
        return buckets(site.time_zone, self.size, since=self.since, until=self.until)


async def tallies(
    connection: asyncpg.Connection, within: Range, groups: Sequence[tuple[Site, Sequence[Spot]]]
) -> dict[int, list[Tally]]:
    """Return by site, for each bucket of its grid, what the given spots of it counted together."""
    entities = [
        Entity(site.ref, site, None, tuple(spots), within.grid(site))
        for site, spots in groups
        if spots
    ]
    found = await _tallies(connection, within, entities, By.SITE)
    return {entity.site.id: rows for entity, rows in found}


async def tallies_of_each(
    connection: asyncpg.Connection, within: Range, spots: Sequence[Spot]
) -> dict[int, list[Tally]]:
    """Return by spot, for each bucket of its site's grid, what it counted by itself."""
    entities = [
        Entity(spot.ref, spot.site, spot, (spot,), within.grid(spot.site)) for spot in spots
    ]
    found = await _tallies(connection, within, entities, By.SPOT)
    return {entity.spots[0].id: rows for entity, rows in found}


async def _tallies(
    connection: asyncpg.Connection, within: Range, entities: Sequence[Entity], by: By
) -> list[tuple[Entity, list[Tally]]]:
    entities = [entity for entity in entities if entity.grid]
    if not entities:
        return []
    span = min(e.grid[0].start_s for e in entities), max(e.grid[-1].end_s for e in entities)
    spots = [spot for entity in entities for spot in entity.spots]
    if len(spots) > _FEW:
        await connection.execute("set local plan_cache_mode = force_custom_plan")
    histories = await load_histories(connection, spots, start_s=span[0], end_s=span[1])
    cut = {spot.id: segments(histories[spot.id].calibrations) for spot in spots}
    query = CountQuery(within.size, within.since, within.until, within.scope, by)
    sums = await sums_of(connection, query, entities, cut=cut, span=span)
    return await asyncio.to_thread(_tallied, within, entities, histories, cut, sums)


def _tallied(
    within: Range,
    entities: Sequence[Entity],
    histories: Mapping[int, History],
    cut: Mapping[int, tuple[Segment, ...]],
    sums: Sequence[Column],
) -> list[tuple[Entity, list[Tally]]]:
    worth = Worth(scope=within.scope, now_s=within.now_s)
    only_open = within.scope is Scope.OPEN
    found: list[tuple[Entity, list[Tally]]] = []
    for entity, cells in zip(entities, collect(within.size, entities, sums), strict=True):
        should = worth.of(entity, [histories[spot.id] for spot in entity.spots], cut=cut)
        rows: list[Tally] = []
        for cell, expected, hours, state in zip(
            cells, should.expected_s, should.hours, should.states, strict=True
        ):
            if cell is None or (only_open and hours is Hours.CLOSED):
                rows.append(Tally(None, None, 0, expected, hours, state, 0))
                continue
            entered, left, observed, marks = cell
            seen = known(entered + left, observed)
            rows.append(
                Tally(
                    entered / UNIT if seen else None,
                    left / UNIT if seen else None,
                    observed if observed < expected else expected,
                    expected,
                    hours,
                    state,
                    revision_of(marks),
                )
            )
        found.append((entity, rows))
    return found


async def takings(
    connection: asyncpg.Connection, within: Range, sites: Sequence[Site], *, spread: bool = True
) -> dict[int, list[Takings]]:
    """Return by site, for each bucket of its grid, what its tills took.

    Transactions are taken at their own time, in all hours. A site whose tills never said anything
    is left out. Without `spread` the sums of squares are 0.
    """
    found: dict[int, list[Takings]] = {}
    by_grid: dict[tuple[Bucket, ...], list[Site]] = {}
    for site in sites:
        by_grid.setdefault(within.grid(site), []).append(site)
    for grid, members in by_grid.items():
        if not grid:
            continue
        edges = [datetime.fromtimestamp(bucket.start_s, UTC) for bucket in grid]
        end = datetime.fromtimestamp(grid[-1].end_s, UTC)
        own = [site.id for site in members]
        rows = await connection.fetch(_SALES[spread], own, edges, edges[0], end)
        found |= await asyncio.to_thread(_taken, rows, members, len(grid))
        silent = list(set(own) - {row[0] for row in rows})
        if silent:
            heard = {row[0] for row in await connection.fetch(_HEARD, silent)}
            for site_id in set(silent) - heard:  # whose tills never said anything
                del found[site_id]
    return found


def _taken(
    rows: Sequence[asyncpg.Record], members: Sequence[Site], length: int
) -> dict[int, list[Takings]]:
    blank = {site.id: Takings(currency=site.currency) for site in members}
    found = {site: [nothing] * length for site, nothing in blank.items()}
    for site, number, kind, count, net, units, squares, more in rows:
        before, nothing = found[site][number - 1], blank[site]
        if kind == _SALE:
            returns, pickups, currency = before.returns, before.pickups, nothing.currency
            taken = Takings(count, net, units, pickups, returns, squares, more, currency)
        elif kind == _PICKUP:
            taken = before._replace(pickups=count)
        elif kind == _RETURN:
            taken = before._replace(returns=count)
        else:  # a void, or a sale of nothing
            continue
        found[site][number - 1] = taken
    return found


_HEARD = """
    select asked.site_id from unnest($1::int[]) as asked (site_id)
    where exists (select from transactions t where t.site_id = asked.site_id)
"""
_SALE, _PICKUP, _RETURN = 0, 1, 2
# A row of each kind: they are told apart once, not by a filter of every sum.
_KINDS = """
    select site_id, width_bucket(at, $2::timestamptz[]),
           case when counts_as_sale(kind, amount, units) then 0
                when kind = 'pickup' then 1 when kind = 'return' then 2 end,
           count(*), sum(amount), sum(units), {squares}
    from transactions where site_id = any($1::int[]) and at >= $3 and at < $4
    group by 1, 2, 3
"""
_SQUARES = "sum(amount::float8 * amount::float8), sum(units::float8 * units::float8)"
_SALES = {
    True: _KINDS.replace("{squares}", _SQUARES),
    False: _KINDS.replace("{squares}", "0.0::float8, 0.0::float8"),
}
