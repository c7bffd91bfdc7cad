"""Adding up rollup rows in the database: one pass a question, calibrated on the way.

Days, weeks and months come from rollup_day, hours from rollup_hour, quarters from rollup_15m,
minutes from readings. A spot's day or hour that cannot be taken whole (a change that the deriver
has not worked in yet, a calibration that changes within it, opening hours that cut an hour) is
left out there and added from rollup_15m instead: the *patches*. So an answer is right at once,
however far behind the deriver is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import NamedTuple

import asyncpg

from server.rollup.buckets import Size, local
from server.rollup.opening import Part
from server.rollup.places import Calibration

UNIT = 10_000
"""Sums are in ten-thousandths of a person, the grain of calibration factors: exact integers."""

_LINES = 4


class Cell(NamedTuple):
    """A sum over the rows of one bucket of one entity."""

    entered_e4: int
    left_e4: int
    observed_s: int
    revision: int
    resolution_s: int
    origin: int


def merged(one: Cell, other: Cell) -> Cell:
    """Return the sum of two cells."""
    return Cell(
        one.entered_e4 + other.entered_e4,
        one.left_e4 + other.left_e4,
        one.observed_s + other.observed_s,
        one.revision + other.revision,
        max(one.resolution_s, other.resolution_s),
        max(one.origin, other.origin),
    )


class Found(NamedTuple):
    """A cell with its place: entity number, and the key (bucket number, or start instant)."""

    entity: int
    key: int
    cell: Cell


@dataclass(frozen=True, slots=True)
class Segment:
    """A spot's weights in [start_s, end_s): of in and out by line, into what counts as entered."""

    start_s: int
    end_s: int
    weights: tuple[int, ...]
    calibrations: tuple[int, ...] = ()


class Source(NamedTuple):
    """A spot to add up for an entity; `base` is the first day of the entity's first bucket."""

    spot: int
    entity: int
    zone: str
    base: date
    segments: tuple[Segment, ...]


class Patch(NamedTuple):
    """Part of a bucket that is added up from quarters."""

    spot: int
    entity: int
    key: int
    part: Part
    weights: tuple[int, ...]


PLAIN = (UNIT, 0) * _LINES
_EVER = (-(1 << 40), 1 << 40)


def segments(calibrations: Sequence[Calibration]) -> tuple[Segment, ...]:
    """Cut time where a calibration begins or ends; lines without one count as they are."""
    if not calibrations:
        return (Segment(*_EVER, PLAIN),)
    edges = sorted({*_EVER, *(c.start_s for c in calibrations), *(c.end_s for c in calibrations)})
    edges = [edge for edge in edges if _EVER[0] <= edge <= _EVER[1]]
    found: list[Segment] = []
    for low, high in pairwise(edges):
        weights, used = list(PLAIN), []
        for each in calibrations:
            if each.start_s <= low and high <= each.end_s:
                at = 2 * each.line
                pair = (0, each.factor_e4) if each.reversed else (each.factor_e4, 0)
                weights[at : at + 2] = pair
                used.append(each.id)
        found.append(Segment(low, high, tuple(weights), tuple(used)))
    return tuple(found)


def weigh(counts: Sequence[int], weights: Sequence[int]) -> tuple[int, int]:
    """Return entered and left, in ten-thousandths, of in and out by line."""
    entered = sum(c * w for c, w in zip(counts, weights, strict=True))
    swapped = (counts[at ^ 1] for at in range(len(counts)))
    return entered, sum(c * w for c, w in zip(swapped, weights, strict=True))


async def add_up(
    connection: asyncpg.Connection,
    size: Size,
    sources: Sequence[Source],
    *,
    start_s: int,
    end_s: int,
    days: tuple[date, date],
    left_out: Sequence[tuple[int, date | datetime]],
    scope_open: bool,
) -> list[Found]:
    """Add up whole rollup rows between `days` or instants, without those of `left_out`.

    Keys are bucket numbers for days, weeks and months, else the rows' instants.
    """
    open_ = "open_" if scope_open and size.is_days else ""
    within: tuple[date | datetime, ...] = days if size.is_days else (_at(start_s), _at(end_s))
    out = ([spot for spot, _ in left_out], [key for _, key in left_out])
    found: list[Found] = []
    plain = [s for s in sources if len(s.segments) == 1 and s.segments[0].weights == PLAIN]
    if plain:
        rows = await connection.fetch(
            _sql(size, open_=open_, weighted=False),
            [s.spot for s in plain],
            [s.entity for s in plain],
            [s.base for s in plain],
            *within,
            *out,
        )
        found += _found(rows)
    plain_spots = {s.spot for s in plain}
    weighted = [
        (s, g)
        for s in sources
        if s.spot not in plain_spots
        for g in s.segments
        if g.start_s < end_s and g.end_s > start_s
    ]
    if weighted:
        rows = await connection.fetch(
            _sql(size, open_=open_, weighted=True),
            [s.spot for s, _ in weighted],
            [s.entity for s, _ in weighted],
            [s.base for s, _ in weighted],
            *within,
            *out,
            [_edge(size, s, max(g.start_s, start_s)) for s, g in weighted],
            [_edge(size, s, min(g.end_s, end_s)) for s, g in weighted],
            *([g.weights[at] for _, g in weighted] for at in range(2 * _LINES)),
        )
        found += _found(rows)
    return found


async def add_up_patches(connection: asyncpg.Connection, patches: Sequence[Patch]) -> list[Found]:
    """Add up quarters of an hour into the buckets that the patches name."""
    if not patches:
        return []
    rows = await connection.fetch(
        _PATCHES,
        [p.spot for p in patches],
        [p.entity for p in patches],
        [p.key for p in patches],
        [p.part.guard_s for p in patches],
        [p.part.from_s for p in patches],
        [p.part.until_s for p in patches],
        _at(min(p.part.guard_s for p in patches)),
        _at(max(p.part.until_s for p in patches)),
        *([p.weights[at] for p in patches] for at in range(2 * _LINES)),
    )
    return _found(rows)


def _found(rows: Iterable[asyncpg.Record]) -> list[Found]:
    return [Found(row[0], row[1], Cell(*row[2:])) for row in rows]


def _edge(size: Size, source: Source, instant_s: int) -> date | datetime:
    """Return a segment's edge as the rows are keyed: a day in which it changes is patched."""
    return local(source.zone, instant_s).date() if size.is_days else _at(instant_s)


def _at(instant_s: int) -> datetime:
    return datetime.fromtimestamp(instant_s, UTC)


def _entered(prefix: str, *, swapped: bool) -> str:
    names = [f"{prefix}{way}{line}" for line in range(_LINES) for way in ("in", "out")]
    at = range(2 * _LINES)
    return " + ".join(f"w{n} * coalesce(r.{names[n ^ 1 if swapped else n]}, 0)::bigint" for n in at)


def _plain(prefix: str, way: str) -> str:
    return " + ".join(f"coalesce(r.{prefix}{way}{line}, 0)" for line in range(_LINES))


_KEYS = {
    Size.DAY: "r.day - source.base",
    Size.WEEK: "(r.day - source.base) / 7",
    Size.MONTH: "(extract(year from r.day) * 12 + extract(month from r.day) "
    "- extract(year from source.base) * 12 - extract(month from source.base))::int",
    Size.HOUR: "extract(epoch from r.bucket)::bigint",
    Size.QUARTER: "extract(epoch from r.bucket)::bigint",
}
_WEIGHTS = ", ".join(f"w{n}" for n in range(2 * _LINES))
_SLOTS_S = "15 * bit_count(r.observed::bit(64))"

_SUM = """
    with source as materialized (
        select * from unnest({arrays}) as source(spot, entity, base{more})),
    left_out as materialized (select * from unnest($6::int[], $7::{type}[]) as l(spot, at))
    select source.entity, {key} as key, sum({entered})::bigint{scale}, sum({left})::bigint{scale},
           sum({observed})::bigint, sum(r.revision)::bigint, max(r.resolution_s)::int,
           max(r.origin)::int
    from my_{table} r join source on source.spot = r.spot {segment}
    where r.spot = any($1::int[]) and r.{at} >= $4 and r.{at} < $5
      and not exists (select from left_out l where l.spot = r.spot and l.at = r.{at})
    group by 1, 2
"""


def _sql(size: Size, *, open_: str, weighted: bool) -> str:
    """Return the adding-up statement; only constants of this module go into it."""
    table = {Size.HOUR: "rollup_hour", Size.QUARTER: "rollup_15m"}.get(size, "rollup_day")
    at, kind = ("day", "date") if size.is_days else ("bucket", "timestamptz")
    arrays, more, segment = "$1::int[], $2::int[], $3::date[]", "", ""
    if weighted:
        arrays += f", $8::{kind}[], $9::{kind}[]"
        arrays += "".join(f", ${n}::int[]" for n in range(10, 18))
        more = f", low, high, {_WEIGHTS}"
        segment = f"and r.{at} >= low and r.{at} < high"
    values = {
        "arrays": arrays,
        "more": more,
        "type": kind,
        "key": _KEYS[size],
        "entered": _entered(open_, swapped=False) if weighted else _plain(open_, "in"),
        "left": _entered(open_, swapped=True) if weighted else _plain(open_, "out"),
        "scale": "" if weighted else f" * {UNIT}",
        "observed": _SLOTS_S if size is Size.QUARTER else f"r.{open_}observed_s",
        "table": table,
        "at": at,
        "segment": segment,
    }
    sql = _SUM
    for name, value in values.items():
        sql = sql.replace("{" + name + "}", value)
    return sql


_PATCHES = (
    """
    with patch as materialized (
        select * from unnest($1::int[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[],
            $6::bigint[], $9::int[], $10::int[], $11::int[], $12::int[], $13::int[], $14::int[],
            $15::int[], $16::int[])
        as patch(spot, entity, key, guard_s, from_s, until_s, {weights}))
    select patch.entity, patch.key, sum({entered})::bigint, sum({left})::bigint,
           coalesce(sum({observed}) filter (
               where extract(epoch from r.bucket) >= from_s), 0)::bigint,
           sum(r.revision)::bigint, max(r.resolution_s)::int, max(r.origin)::int
    from patch join my_rollup_15m r on r.spot = patch.spot
      and r.bucket >= to_timestamp(guard_s) and r.bucket < to_timestamp(until_s)
      and extract(epoch from r.bucket) + greatest(r.resolution_s, 900) > from_s
    where r.bucket >= $7 and r.bucket < $8
    group by 1, 2
""".replace("{weights}", _WEIGHTS)
    .replace("{observed}", _SLOTS_S)
    .replace("{entered}", _entered("", swapped=False))
    .replace("{left}", _entered("", swapped=True))
)
