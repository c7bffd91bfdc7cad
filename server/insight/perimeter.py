"""Which counters make a site's visits: its perimeter, where nobody is counted twice.

Decided here: a counter at an entrance or exit counts, one in a passage, zone or checkout does not.
Doors side by side are added up. Of doors in series the outermost that has a counter counts, and
what is behind it does not: it saw everyone who came in, also who turned round in the porch. An
outer door without a counter shadows nothing, nor does a spot at which no device stood. What a
counter is for and which door is behind which, is as at the end of the range asked about; where that
changed within it, `changed` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from server.rollup.places import Site, Spot, load_spots

_PERIMETER = frozenset({"entrance", "exit"})
_SETTLED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter's spot: its door, and what it is for; `counted`: a device stood there."""

    spot: Spot
    door: int | None = None
    purpose: str = "entrance"
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Perimeter:
    """A site's counters by what they count: visits, and who passes by.

    `whole`: all of its counters count visits, and none is left out.
    """

    outer: tuple[Spot, ...] = ()
    passages: tuple[Spot, ...] = ()
    changed: bool = False
    whole: bool = False

    @property
    def spots(self) -> frozenset[int]:
        return frozenset(spot.id for spot in self.outer)


def outermost(counters: Sequence[Counter], behind: Mapping[int, int | None]) -> tuple[Counter, ...]:
    """Return the counters of the perimeter; `behind` is the door before each door."""
    at_edge = [each for each in counters if each.counted and each.purpose in _PERIMETER]
    counted = {each.door for each in at_edge if each.door is not None}
    return tuple(each for each in at_edge if not counted & _before(each.door, behind))


def _before(door: int | None, behind: Mapping[int, int | None]) -> set[int]:
    """Return the doors that one must have passed before `door`."""
    found: set[int] = set()
    at = None if door is None else behind.get(door)
    while at is not None and at not in found:
        found.add(at)
        at = behind.get(at)
    return found


async def load_perimeters(
    connection: asyncpg.Connection, sites: Sequence[Site], *, start_s: int, end_s: int
) -> dict[int, Perimeter]:
    """Return the perimeter of each site within [start_s, end_s)."""
    spots = await load_spots(connection, kind="counter", sites=sites)
    ids, wanted = [spot.id for spot in spots], [site.id for site in sites]
    span = datetime.fromtimestamp(start_s, UTC), datetime.fromtimestamp(end_s, UTC)
    behind = dict(await connection.fetch(_BEHIND, wanted))
    told = {row[0]: row[1:] for row in await connection.fetch(_COUNTERS, ids, *span)}
    counters: dict[int, list[Counter]] = {site.id: [] for site in sites}
    moved: set[int] = set()
    for spot in spots:
        door, used, counted, since = told[spot.id]
        if len(set(used or ())) > 1 or (since is not None and since > span[0] + _SETTLED):
            moved.add(spot.id)
        counters[spot.site.id].append(
            Counter(spot, door, used[-1] if used else "entrance", counted=counted)
        )
    return {site.id: _perimeter(counters[site.id], behind, moved) for site in sites}


def _perimeter(
    counters: Sequence[Counter], behind: Mapping[int, int | None], moved: set[int]
) -> Perimeter:
    outer = outermost(counters, behind)
    return Perimeter(
        tuple(each.spot for each in outer),
        tuple(each.spot for each in counters if each.purpose == "passage"),
        changed=any(each.spot.id in moved for each in counters),
        whole=bool(outer) and len(outer) == len(counters),
    )


_BEHIND = "select id, behind_id from doors where site_id = any($1::int[])"
_COUNTERS = """
    with used as (
        select spot_id, array_agg(purpose order by lower(valid) nulls first) as purposes
        from mountings where spot_id = any($1::int[]) and valid && tstzrange($2, $3) group by 1),
    stood as (
        select spot_id,
               case when bool_or(lower_inf(valid)) then null else min(lower(valid)) end as since
        from assignments where spot_id = any($1::int[]) and valid && tstzrange($2, $3) group by 1)
    select p.id, p.door_id, used.purposes, stood.spot_id is not null, stood.since
    from spots p left join used on used.spot_id = p.id left join stood on stood.spot_id = p.id
    where p.id = any($1::int[])
"""
