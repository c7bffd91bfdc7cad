"""Minutes, straight from the readings; what was observed of them from the quarters' masks.

A reading shorter than a minute is added to its minute; a longer one refuses the question. The
calibration is that of the quarter's start, so that minutes add up to quarters, hours and days.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg

from server.rollup.answer import TooFineError
from server.rollup.buckets import QUARTER_S, Size
from server.rollup.sums import Column, Source, marks_of

_MASK = 0b1111  # the four slots of 15 s in a minute
_NOBODY = [0] * 15


async def add_up_minutes(
    connection: asyncpg.Connection, sources: Sequence[Source], *, start_s: int, end_s: int
) -> list[Column]:
    """Add up readings by minute. Raises TooFineError if some are longer than a minute."""
    span = (datetime.fromtimestamp(start_s, UTC), datetime.fromtimestamp(end_s, UTC))
    spots = [source.spot for source in sources]
    entities = [source.entity for source in sources]
    found: list[Column] = []
    for entity, bucket, observed, revision, resolution, origin in await connection.fetch(
        _OBSERVED, spots, entities, *span
    ):
        if 60 % resolution:
            raise TooFineError(Size.MINUTE, resolution)
        keys = range(bucket, bucket + QUARTER_S, 60)
        seen_s = [15 * (observed >> at & _MASK).bit_count() for at in range(0, 60, 4)]
        marks = [marks_of(revision, resolution, origin)] * 15
        found.append(Column(entity, keys, _NOBODY, _NOBODY, seen_s, marks))
    weights = [
        (source.spot, source.entity, line, segment, segment.weights[2 * line : 2 * line + 2])
        for source in sources
        for segment in source.segments
        for line in range(4)
        if segment.start_s < end_s and segment.end_s > start_s
    ]
    rows = await connection.fetch(
        _READINGS,
        spots,
        *span,
        [spot for spot, _, _, _, _ in weights],
        [entity for _, entity, _, _, _ in weights],
        [line for _, _, line, _, _ in weights],
        [max(segment.start_s, start_s - QUARTER_S) for _, _, _, segment, _ in weights],
        [min(segment.end_s, end_s + QUARTER_S) for _, _, _, segment, _ in weights],
        [pair[0] for _, _, _, _, pair in weights],
        [pair[1] for _, _, _, _, pair in weights],
    )
    for entity, keys, entered, left in rows:
        nothing = [0] * len(keys)
        found.append(Column(entity, keys, entered, left, nothing, nothing))
    return found


_OBSERVED = """
    select source.entity, extract(epoch from r.bucket)::bigint,
           r.observed & ~coalesce(r.masked, 0), r.revision,
           r.resolution_s::int, r.origin::int
    from my_rollup_15m r join unnest($1::int[], $2::int[]) as source(spot, entity)
      on source.spot = r.spot
    where r.spot = any($1::int[]) and r.bucket >= date_bin('15 minutes', $3, '2000-01-01Z')
      and r.bucket < $4
"""
_READINGS = """
    with weight as materialized (
        select * from unnest($4::int[], $5::int[], $6::int[], $7::bigint[], $8::bigint[],
            $9::int[], $10::int[]) as weight(spot, entity, line, low, high, same, other)),
    reading as (
        select r.spot, r.line, r.counts[2 * n - 1] as entered, r.counts[2 * n] as left_,
               extract(epoch from r.time)::bigint + r.interval_s * (n - 1) as at_s
        from my_readings r, generate_series(1, cardinality(r.counts) / 2) n
        where r.spot = any($1::int[]) and r.time > $2::timestamptz - interval '1 day'
          and r.time < $3::timestamptz),
    added as (
        select weight.entity, at_s / 60 * 60 as key,
               sum(entered * same + left_ * other)::bigint as entered,
               sum(left_ * same + entered * other)::bigint as departed
        from reading join weight on weight.spot = reading.spot and weight.line = reading.line
          and at_s / 900 * 900 >= low and at_s / 900 * 900 < high
        where at_s >= extract(epoch from $2::timestamptz)
          and at_s < extract(epoch from $3::timestamptz)
        group by 1, 2)
    select entity, array_agg(key), array_agg(entered), array_agg(departed)
    from added group by entity
"""
