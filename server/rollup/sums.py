"""Adding up rollup rows in the database: one pass a question, calibrated on the way.

Days, weeks and months come from rollup_day, hours from rollup_hour, quarters from rollup_15m,
minutes from readings. A spot's day or hour that cannot be taken whole (a change that the deriver
has not worked in yet, a calibration that changes within it, opening hours that cut an hour) is
left out there and added from rollup_15m instead: the *patches*. So an answer is right at once,
however far behind the deriver is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import asyncpg

from server.rollup.buckets import Size, local
from server.rollup.masks import UNMASKED_S
from server.rollup.opening import Part
from server.rollup.places import Calibration

UNIT = 10_000
"""Sums are in ten-thousandths of a person, the grain of calibration factors: exact integers."""

_LINES = 4


Sum = tuple[int, int, int, int]
"""A bucket's sum: entered and left in ten-thousandths, observed seconds, and marks: the revision
above bit 16, the coarsest reading's seconds above bit 4, the origin below."""


class Column(NamedTuple):
    """An entity's sums as arrays of equal length, one element a bucket; keys: see `add_up`."""

    entity: int
    keys: Sequence[int]
    entered_e4: Sequence[int]
    left_e4: Sequence[int]
    observed_s: Sequence[int]
    marks: Sequence[int]


def marks_of(revision: int, resolution_s: int, origin: int) -> int:
    """Return a sum's marks."""
    return revision << 16 | resolution_s << 4 | origin


def revision_of(marks: int) -> int:
    return marks >> 16


def resolution_of(marks: int) -> int:
    return marks >> 4 & 0xFFF


def origin_of(marks: int) -> int:
    return marks & 0xF


def merged(one: Sum, other: Sum) -> Sum:
    """Return the sum of two sums of the same bucket."""
    marks, more = one[3], other[3]
    return (
        one[0] + other[0],
        one[1] + other[1],
        one[2] + other[2],
        marks_of(
            revision_of(marks) + revision_of(more),
            max(resolution_of(marks), resolution_of(more)),
            max(origin_of(marks), origin_of(more)),
        ),
    )


@dataclass(frozen=True, slots=True)
class Segment:
    """A spot's weights in [start_s, end_s): of in and out by line, into what counts as entered."""

    start_s: int
    end_s: int
    weights: tuple[int, ...]
    calibrations: tuple[int, ...] = ()


class Source(NamedTuple):
    """A spot to add up, for its site or for itself."""

    spot: int
    entity: int
    group: int
    zone: str
    segments: tuple[Segment, ...]


class Patch(NamedTuple):
    """Part of a bucket that is added up from quarters; `key` as the bucket's rows have it."""

    spot: int
    entity: int
    key: int
    part: Part
    weights: tuple[int, ...]


PLAIN = (UNIT, 0) * _LINES
_EVER = (-(1 << 40), 1 << 40)


_UNCUT = (Segment(*_EVER, PLAIN),)


def segments(calibrations: Sequence[Calibration]) -> tuple[Segment, ...]:
    """Cut time where a calibration begins or ends; lines without one count as they are."""
    if not calibrations:
        return _UNCUT
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


_MONDAY = date(1970, 1, 5)


def row_key(size: Size, day: date) -> int:
    """Return the key by which rows of `day` are added up: buckets in order have keys in order."""
    if size is Size.MONTH:
        return day.year * 12 + day.month
    number = (day - _MONDAY).days
    return number // 7 if size is Size.WEEK else number


async def add_up(
    connection: asyncpg.Connection,
    size: Size,
    sources: Sequence[Source],
    *,
    by_site: bool,
    start_s: int,
    end_s: int,
    days: tuple[date, date],
    left_out: Sequence[tuple[int, date | datetime]],
    scope_open: bool,
) -> list[Column]:
    """Add up whole rollup rows between `days` or instants, without those of `left_out`.

    Keys are `row_key`s for days, weeks and months, else the rows' instants.
    """
    open_ = "open_" if scope_open and size.is_days else ""
    within: tuple[date | datetime, ...] = days if size.is_days else (_at(start_s), _at(end_s))
    out = ([spot for spot, _ in left_out], [key for _, key in left_out]) if left_out else ()
    entities = {source.group: source.entity for source in sources}
    group = "site_id" if by_site else "spot"
    plain = [s.spot for s in sources if len(s.segments) == 1 and s.segments[0].weights == PLAIN]
    rows: list[asyncpg.Record] = []
    if plain:
        sql = _sql(size, group, open_, weighted=False, some_out=bool(out))
        rows += await connection.fetch(sql, plain, *within, *out)
    if len(plain) < len(sources):
        known = set(plain)
        weighted = [
            (s, g)
            for s in sources
            if s.spot not in known
            for g in s.segments
            if g.start_s < end_s and g.end_s > start_s
        ]
        rows += await connection.fetch(
            _sql(size, group, open_, weighted=True, some_out=bool(out)),
            [s.spot for s, _ in weighted],
            *within,
            [_edge(size, s, max(g.start_s, start_s)) for s, g in weighted],
            [_edge(size, s, min(g.end_s, end_s)) for s, g in weighted],
            *([g.weights[at] for _, g in weighted] for at in range(2 * _LINES)),
            *out,
        )
    return [Column(entities[row[0]], *row[1:]) for row in rows]


async def add_up_patches(connection: asyncpg.Connection, patches: Sequence[Patch]) -> list[Column]:
    """Add up quarters of an hour into the buckets that the patches name."""
    if not patches:
        return []
    rows = await connection.fetch(
        _PATCHES,
        [p.spot for p in patches],
        [p.entity for p in patches],
        [p.key for p in patches],
        [_at(p.part.guard_s) for p in patches],
        [p.part.from_s for p in patches],
        [_at(p.part.until_s) for p in patches],
        _at(min(p.part.guard_s for p in patches)),
        _at(max(p.part.until_s for p in patches)),
        *([p.weights[at] for p in patches] for at in range(2 * _LINES)),
    )
    return [Column(*row) for row in rows]


def _edge(size: Size, source: Source, instant_s: int) -> date | datetime:
    """Return a segment's edge as the rows are keyed: a day in which it changes is patched."""
    return local(source.zone, instant_s).date() if size.is_days else _at(instant_s)


def _at(instant_s: int) -> datetime:
    return datetime.fromtimestamp(instant_s, UTC)


def _entered(prefix: str, *, swapped: bool) -> str:
    names = [f"{prefix}{way}{line}" for line in range(_LINES) for way in ("in", "out")]
    at = range(2 * _LINES)
    return " + ".join(f"w{n} * coalesce(r.{names[n ^ 1 if swapped else n]}, 0)::bigint" for n in at)


def _weighted(prefix: str, *, swapped: bool) -> str:
    return f"sum({_entered(prefix, swapped=swapped)})"


def _plain(prefix: str, way: str) -> str:
    """Return one sum of additions: of hundreds of sites, a sum of each line takes a tenth more."""
    lines = " + ".join(f"coalesce(r.{prefix}{way}{line}, 0)" for line in range(_LINES))
    return f"sum({lines})"


ROW_KEYS = {
    Size.DAY: "r.day - date '1970-01-05'",
    Size.WEEK: "(r.day - date '1970-01-05') / 7",
    # date_part, which is a float: extract is a numeric and takes three times as long
    Size.MONTH: "(date_part('year', r.day) * 12 + date_part('month', r.day))::int",
    Size.HOUR: "extract(epoch from r.bucket)::bigint",
    Size.QUARTER: "extract(epoch from r.bucket)::bigint",
}
_WEIGHTS = ", ".join(f"w{n}" for n in range(2 * _LINES))
_SLOTS_S = UNMASKED_S
_MARKS = (
    "(sum(r.revision)::bigint << 16) | (max(r.resolution_s)::bigint << 4) | max(r.origin)::bigint"
)
_ARRAYS = """array_agg(key), array_agg(entered), array_agg(departed), array_agg(observed),
        array_agg(marks)"""

# Arrays, since a row a bucket takes longer to read than to add up.
_SUM = """
    with added as (
        select r.{group} as entity, {key} as key, ({entered})::bigint{scale} as entered,
               ({left})::bigint{scale} as departed, sum({observed})::bigint as observed,
               {marks} as marks
        from my_{table} r {segment}
        where r.spot = any($1::int[]) and r.{at} >= $2 and r.{at} < $3 {without}
        group by 1, 2)
    select entity, {arrays} from added group by entity
"""
_SEGMENT = """join unnest($1::int[], $4::{type}[], $5::{type}[], {types})
            as segment(spot, low, high, {weights})
            on segment.spot = r.spot and r.{at} >= low and r.{at} < high"""
# A hashed set, looked up row by row: an anti join would sort all rows first.
_WITHOUT = "and (r.spot, r.{at}) not in (select * from unnest(${n}::int[], ${m}::{type}[]))"


@cache
def _sql(size: Size, group: str, open_: str, *, weighted: bool, some_out: bool) -> str:
    """Return the adding-up statement; only constants of this module go into it."""
    return _filled(
        _SUM,
        without=_WITHOUT if some_out else "",
        segment=_SEGMENT if weighted else "",
        types=", ".join(f"${n}::int[]" for n in range(6, 14)),
        weights=_WEIGHTS,
        n="14" if weighted else "4",
        m="15" if weighted else "5",
        arrays=_ARRAYS,
        marks=_MARKS,
        group=group,
        key=ROW_KEYS[size],
        entered=_weighted(open_, swapped=False) if weighted else _plain(open_, "in"),
        left=_weighted(open_, swapped=True) if weighted else _plain(open_, "out"),
        scale="" if weighted else f" * {UNIT}",
        observed=_SLOTS_S if size is Size.QUARTER else f"r.{open_}observed_s",
        table={Size.HOUR: "rollup_hour", Size.QUARTER: "rollup_15m"}.get(size, "rollup_day"),
        type="date" if size.is_days else "timestamptz",
        at="day" if size.is_days else "bucket",
    )


def _filled(sql: str, **values: str) -> str:
    for name, value in values.items():
        sql = sql.replace("{" + name + "}", value)
    return sql


_PATCHES = _filled(
    """
    with patch as materialized (
        select * from unnest($1::int[], $2::int[], $3::bigint[], $4::timestamptz[],
            $5::bigint[], $6::timestamptz[], $9::int[], $10::int[], $11::int[],
            $12::int[], $13::int[], $14::int[], $15::int[], $16::int[])
        as patch(spot, entity, key, guard, from_s, until, {weights})),
    added as (
        select patch.entity, patch.key, sum({entered})::bigint as entered,
               sum({left})::bigint as departed,
               coalesce(sum({observed}) filter (
                   where extract(epoch from r.bucket) >= from_s), 0)::bigint as observed,
               {marks} as marks
        from patch cross join lateral (
            select * from my_rollup_15m r
            where r.spot = patch.spot and r.bucket >= $7 and r.bucket < $8
              and r.bucket >= patch.guard and r.bucket < patch.until
              and extract(epoch from r.bucket) + greatest(r.resolution_s, 900) > patch.from_s
            offset 0) r  -- an index scan a patch: joined freely, a long backlog is squared
        group by 1, 2)
    select entity, {arrays} from added group by entity
""",
    weights=_WEIGHTS,
    observed=_SLOTS_S,
    marks=_MARKS,
    arrays=_ARRAYS,
    entered=_entered("", swapped=False),
    left=_entered("", swapped=True),
)
