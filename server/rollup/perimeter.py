"""Which counters make a site's visits: its perimeter, where nobody is counted twice.

Decided here: a counter at an entrance or exit counts, one in a passage, zone or checkout does not.
Doors side by side are added up. Of doors in series the outermost that has a counter counts, and
what is behind it does not: it saw everyone who came in, also who turned round in the porch. An
outer door without a counter shadows nothing, nor does a spot at which no device stood. Of a site
whose doors and spots say nothing of this, all counters count. What a counter is for, is as at the
end of the range asked about, and whether one stood there at all is of the whole of it; where that
changed within it, `changed` says so. Which door is behind which, is as it is today.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import asyncpg

from server.rollup.places import Site, Spot

_PERIMETER = frozenset({"entrance", "exit"})


class Counter(NamedTuple):
    """A counter's spot: its door, and what it is for; `counted`: a device stood there."""

    spot: Spot
    door: int | None = None
    purpose: str = "entrance"
    counted: bool = True


class Perimeter(NamedTuple):
    """A site's counters by what they count: visits, and who passes by; by reference."""

    outer: tuple[Spot, ...] = ()
    passages: tuple[Spot, ...] = ()
    changed: bool = False

    @property
    def spots(self) -> frozenset[int]:
        return frozenset(spot.id for spot in self.outer)


def outermost(counters: Sequence[Counter], behind: Mapping[int, int | None]) -> tuple[Counter, ...]:
    """Return the counters of the perimeter; `behind` is the door before each door."""
    at_edge = [each for each in counters if each.counted and each.purpose in _PERIMETER]
    counted = {each.door for each in at_edge if each.door is not None}
    return tuple(
        each
        for each in at_edge
        if each.door not in behind or not counted & _before(each.door, behind)
    )


def _before(door: int | None, behind: Mapping[int, int | None]) -> set[int]:
    """Return the doors that one must have passed before `door`."""
    found: set[int] = set()
    at = None if door is None else behind.get(door)
    while at is not None and at not in found:
        found.add(at)
        at = behind.get(at)
    return found


async def load_perimeters(
    connection: asyncpg.Connection,
    sites: Sequence[Site],
    *,
    spans: Mapping[int, tuple[int, int]],
) -> dict[int, Perimeter]:
    """Return the perimeter of each site within its span [start, end) in seconds."""
    by_id = {site.id: site for site in sites}
    numbers = {span: number for number, span in enumerate({spans[key] for key in by_id}, 1)}
    low, high = ([datetime.fromtimestamp(span[at], UTC) for span in numbers] for at in (0, 1))
    counters: dict[int, list[Counter]] = {key: [] for key in by_id}
    behind: dict[int, int | None] = {}
    moved: set[int] = set()
    asked = [numbers[spans[key]] for key in by_id]
    rows = await connection.fetch(_COUNTERS, list(by_id), asked, low, high)
    for key, ref, name, site, door, purpose, changed, counted, inner, before in rows:
        spot = Spot(key, ref, name, "counter", by_id[site])
        if changed:
            moved.add(key)
        if inner:
            behind.update(zip(inner, before, strict=True))
        counters[site].append(Counter(spot, door, purpose, counted))
    return {key: _perimeter(own, behind, moved) for key, own in counters.items()}


def _perimeter(
    counters: Sequence[Counter], behind: Mapping[int, int | None], moved: set[int]
) -> Perimeter:
    if len(counters) > 1:
        counters = sorted(counters, key=lambda each: each.spot.ref)
    return Perimeter(
        tuple(each.spot for each in outermost(counters, behind)),
        tuple(each.spot for each in counters if each.purpose == "passage"),
        changed=bool(moved) and any(each.spot.id in moved for each in counters),
    )


_COUNTERS = """
    with asked as (
        select site_id, ($3::timestamptz[])[number] as low, ($4::timestamptz[])[number] as high
        from unnest($1::int[], $2::int[]) as asked (site_id, number)),
    counters as (
        select p.id, p.ref, p.name, p.site_id, p.door_id, low, tstzrange(low, high) as span
        from asked join spots p using (site_id) where p.kind = 'counter'),
    used as (
        select c.id, (array_agg(m.purpose order by lower(m.valid) desc nulls last))[1] as purpose,
               min(m.purpose) <> max(m.purpose) as changed
        from counters c join mountings m on m.spot_id = c.id and m.valid && c.span group by c.id),
    stood as (
        select c.id, case when not bool_or(lower_inf(a.valid)) then min(lower(a.valid)) end as since
        from counters c join assignments a on a.spot_id = c.id and a.valid && c.span group by c.id),
    series as (
        select site_id, array_agg(id) as inner_ids, array_agg(behind_id) as before_ids from doors
        where site_id = any($1::int[]) and behind_id is not null group by site_id)
    select c.id, c.ref, c.name, c.site_id, c.door_id, coalesce(used.purpose, 'entrance'),
           coalesce(used.changed, false)
               or coalesce(stood.since > c.low + interval '24 hours', false),
           stood.id is not null, series.inner_ids, series.before_ids
    from counters c left join used on used.id = c.id left join stood on stood.id = c.id
    left join series on series.site_id = c.site_id
"""
