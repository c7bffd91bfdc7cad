"""The statements that derive: hours and days of counts, days of presses, from the quarters.

Each takes its targets as arrays, upserts what differs and deletes what has no quarters any more.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime

import asyncpg

from server.rollup.masks import UNMASKED_S
from server.rollup.places import Spot

_COUNTS = [f"{way}{line}" for line in range(4) for way in ("in", "out")]

SpotDay = tuple[Spot, date]
Stretch = tuple[int, int]


async def derive_days(
    connection: asyncpg.Connection,
    days: Sequence[SpotDay],
    changed: Mapping[tuple[int, date], Stretch] | None = None,
) -> None:
    """Derive the rollup_day rows of spots' local days.

    `changed` says which stretch of a spot's day changed since it was derived: a day whose revision
    rises by it is noted in the feed of changes. To be done before the days of presses.
    """
    if days:
        arrays = _arrays(days)
        noted = [
            (spot.id, day, *changed[spot.id, day])
            for spot, day in days
            if changed and (spot.id, day) in changed
        ]
        stretches = (
            [spot for spot, _, _, _ in noted],
            [day for _, day, _, _ in noted],
            [_at(from_s) for _, _, from_s, _ in noted],
            [_at(until_s) for _, _, _, until_s in noted],
        )
        edges = min(day for _, day in days), max(day for _, day in days)
        await connection.execute(_DAYS, *arrays, *stretches, *edges)
        await connection.execute(_EMPTY_DAYS, *arrays[:6], *stretches)


async def derive_press_days(connection: asyncpg.Connection, days: Sequence[SpotDay]) -> None:
    """Derive the presses_day rows of kiosk spots' local days."""
    if days:
        await connection.execute(_EMPTY_PRESS_DAYS, *_arrays(days)[:6])
        await connection.execute(_PRESS_DAYS, *_arrays(days))


async def derive_hours(
    connection: asyncpg.Connection, hours: Sequence[tuple[int, int, int]]
) -> None:
    """Derive the rollup_hour rows of (spot, start, end)."""
    if not hours:
        return
    arguments = (
        [spot for spot, _, _ in hours],
        [_at(start_s) for _, start_s, _ in hours],
        [_at(end_s) for _, _, end_s in hours],
        _at(min(start_s for _, start_s, _ in hours)),
        _at(max(end_s for _, _, end_s in hours)),
    )
    await connection.execute(_HOURS, *arguments)
    await connection.execute(_EMPTY_HOURS, *arguments)


def _arrays(days: Sequence[SpotDay]) -> tuple[object, ...]:
    """Return spots, days, starts, ends, least start, greatest end; then the open parts."""
    edges = [spot.site.calendar.day(day) for spot, day in days]
    parts = [
        (spot.id, day, part)
        for (spot, day), edge in zip(days, edges, strict=True)
        for part in spot.site.calendar.parts(edge.start_s, edge.end_s)
    ]
    return (
        [spot.id for spot, _ in days],
        [day for _, day in days],
        [_at(edge.start_s) for edge in edges],
        [_at(edge.end_s) for edge in edges],
        _at(min(edge.start_s for edge in edges)),
        _at(max(edge.end_s for edge in edges)),
        [spot for spot, _, _ in parts],
        [day for _, day, _ in parts],
        [_at(part.guard_s) for _, _, part in parts],
        [_at(part.from_s) for _, _, part in parts],
        [_at(part.until_s) for _, _, part in parts],
    )


def _at(instant_s: int) -> datetime:
    return datetime.fromtimestamp(instant_s, UTC)


def _each(template: str, names: Iterable[str] = _COUNTS) -> str:
    return ", ".join(template.replace("#", name) for name in names)


def _fill(sql: str) -> str:
    """Put the lists of columns into a statement; only constants of this module go into it."""
    columns = _each("#")
    opened = _each("open_#")
    rest = "observed_s, open_observed_s, revision, resolution_s, origin, masked_s"
    for name, text in {
        "columns": columns,
        "sums": _each("sum(r.#)::int as #"),
        "open_sums": _each("sum(r.#)::int as open_#"),
        "open_columns": opened,
        "day_columns": f"{columns}, {opened}, {rest}",
        "day_excluded": _each("excluded.#", f"{columns}, {opened}, {rest}".split(", ")),
        "day_old": _each("rollup_day.#", f"{columns}, {opened}, {rest}".split(", ")),
        "o_columns": _each("o.#"),
        "g_columns": _each("g.#"),
        "w_columns": _each("w.#"),
        "hour_excluded": _each("excluded.#"),
        "hour_old": _each("rollup_hour.#"),
        "observed": UNMASKED_S,
        "masked": "nullif(sum(15 * bit_count((r.observed & r.masked)::bit(64))), 0)",
        "target": """target as materialized (
        select * from unnest($1::int[], $2::date[], $3::timestamptz[], $4::timestamptz[])
        as target(spot, day, from_at, until_at))""",
        "part": """part as materialized (
        select * from unnest($7::int[], $8::date[], $9::timestamptz[], $10::timestamptz[],
            $11::timestamptz[]) as part(spot, day, guard_at, from_at, until_at))""",
    }.items():
        sql = sql.replace("{" + name + "}", text)
    return sql


_DAYS = _fill("""
    with {target}, {part},
    whole as (
        select target.spot, target.day, {sums}, sum({observed})::int as observed_s,
               sum(r.revision)::int as revision, max(r.resolution_s) as resolution_s,
               max(r.origin) as origin, {masked}::int as masked_s
        from target join rollup_15m r on r.spot = target.spot
          and r.bucket >= target.from_at and r.bucket < target.until_at
        where r.bucket >= $5 and r.bucket < $6
        group by 1, 2),
    opened as (
        select part.spot, part.day, {open_sums},
               sum({observed}) filter (where r.bucket >= part.from_at)::int as open_observed_s
        from part join rollup_15m r on r.spot = part.spot
          and r.bucket >= part.guard_at and r.bucket < part.until_at
          and r.bucket + make_interval(secs => greatest(r.resolution_s, 900)) > part.from_at
        where r.bucket >= $5 and r.bucket < $6
        group by 1, 2),
    changed as (
        select * from unnest($12::int[], $13::date[], $14::timestamptz[], $15::timestamptz[])
        as changed(spot, day, from_at, until_at)),
    written as (
        insert into rollup_day (day, spot, {day_columns})
        select whole.day, whole.spot, {columns}, {open_columns}, observed_s,
               coalesce(open_observed_s, 0), revision, resolution_s, origin, masked_s
        from whole left join opened on opened.spot = whole.spot and opened.day = whole.day
        on conflict (spot, day) do update set ({day_columns}) = row({day_excluded})
        where ({day_old}) is distinct from ({day_excluded})
        returning *)
    insert into changes (organisation_id, kind, site_id, spot_id, detail)
    select s.organisation_id, 'bucket.revised', s.site_id, s.id, jsonb_build_object(
        'day', w.day, 'from', changed.from_at, 'until', changed.until_at,
        'old', jsonb_build_object('revision', coalesce(o.revision, 0),
            'visits', was[1], 'exits', was[2], 'presses', (
                select sum(p.presses) from presses_day p where p.spot = w.spot and p.day = w.day)),
        'new', jsonb_build_object('revision', w.revision,
            'visits', now_is[1], 'exits', now_is[2], 'presses', (
                select sum(p.presses) from presses_15m p where p.spot = w.spot
                  and p.bucket >= target.from_at and p.bucket < target.until_at)))
    from written w join changed on changed.spot = w.spot and changed.day = w.day
    join target on target.spot = w.spot and target.day = w.day
    join spots s on s.id = w.spot
    -- One statement has one snapshot: this is the row as it was before `written`.
    left join rollup_day o on o.spot = w.spot and o.day = w.day and o.day >= $16 and o.day <= $17
    cross join lateral (select calibrated(w.spot, tstzrange(target.from_at, target.until_at),
        array[{o_columns}]) as was, calibrated(w.spot, tstzrange(target.from_at, target.until_at),
        array[{w_columns}]) as now_is) counted
    where w.revision > coalesce(o.revision, 0)
""")
_EMPTY_DAYS = _fill("""
    with {target},
    changed as (
        select * from unnest($7::int[], $8::date[], $9::timestamptz[], $10::timestamptz[])
        as changed(spot, day, from_at, until_at)),
    gone as (
        delete from rollup_day d using target
        where d.spot = target.spot and d.day = target.day and not exists (
            select from rollup_15m r where r.spot = target.spot
              and r.bucket >= target.from_at and r.bucket < target.until_at
              and r.bucket >= $5 and r.bucket < $6)
        returning d.*, target.from_at, target.until_at)
    insert into changes (organisation_id, kind, site_id, spot_id, detail)
    select s.organisation_id, 'bucket.revised', s.site_id, s.id, jsonb_build_object(
        'day', g.day, 'from', changed.from_at, 'until', changed.until_at,
        'old', jsonb_build_object('revision', g.revision, 'visits', was[1], 'exits', was[2]),
        'new', jsonb_build_object('revision', 0))
    from gone g join changed on changed.spot = g.spot and changed.day = g.day
    join spots s on s.id = g.spot
    cross join lateral (select calibrated(g.spot, tstzrange(g.from_at, g.until_at),
        array[{g_columns}]) as was) counted
""")
_HOUR_TARGET = """target as materialized (
        select * from unnest($1::int[], $2::timestamptz[], $3::timestamptz[])
        as target(spot, from_at, until_at))"""
_HOURS = _fill(
    """
    with {hour_target}
    insert into rollup_hour (bucket, spot, {columns}, observed_s, revision, resolution_s, origin,
        masked_s)
    select target.from_at, target.spot, {sums}, sum({observed})::int, sum(r.revision)::int,
           max(r.resolution_s), max(r.origin), {masked}::int
    from target join rollup_15m r on r.spot = target.spot
      and r.bucket >= target.from_at and r.bucket < target.until_at
    where r.bucket >= $4 and r.bucket < $5
    group by 1, 2
    on conflict (spot, bucket) do update
    set ({columns}, observed_s, revision, resolution_s, origin, masked_s) = row({hour_excluded},
        excluded.observed_s, excluded.revision, excluded.resolution_s, excluded.origin,
        excluded.masked_s)
    where ({hour_old}, rollup_hour.observed_s, rollup_hour.revision, rollup_hour.resolution_s,
           rollup_hour.origin, rollup_hour.masked_s)
      is distinct from ({hour_excluded}, excluded.observed_s, excluded.revision,
           excluded.resolution_s, excluded.origin, excluded.masked_s)
""".replace("{hour_target}", _HOUR_TARGET)
)
_EMPTY_HOURS = _fill(
    """
    with {hour_target}
    delete from rollup_hour h using target
    where h.spot = target.spot and h.bucket = target.from_at and not exists (
        select from rollup_15m r where r.spot = target.spot
          and r.bucket >= target.from_at and r.bucket < target.until_at
          and r.bucket >= $4 and r.bucket < $5)
""".replace("{hour_target}", _HOUR_TARGET)
)
_PRESS_DAYS = _fill("""
    with {target}, {part},
    whole as (
        select target.spot, target.day, r.questionnaire, r.question, r.answer,
               sum(r.presses)::int as presses, sum(r.revision)::int as revision
        from target join presses_15m r on r.spot = target.spot
          and r.bucket >= target.from_at and r.bucket < target.until_at
        where r.bucket >= $5 and r.bucket < $6
        group by 1, 2, 3, 4, 5),
    opened as (
        select part.spot, part.day, r.questionnaire, r.question, r.answer,
               sum(r.presses)::int as presses
        from part join presses_15m r on r.spot = part.spot
          and r.bucket >= part.from_at and r.bucket < part.until_at
        where r.bucket >= $5 and r.bucket < $6
        group by 1, 2, 3, 4, 5)
    insert into presses_day
        (day, questionnaire, spot, presses, open_presses, revision, question, answer)
    select whole.day, whole.questionnaire, whole.spot, whole.presses,
           coalesce(opened.presses, 0), whole.revision, whole.question, whole.answer
    from whole left join opened using (spot, day, questionnaire, question, answer)
""")
_EMPTY_PRESS_DAYS = _fill("""
    with {target}, span as (select $5::timestamptz, $6::timestamptz)
    delete from presses_day d using target where d.spot = target.spot and d.day = target.day
""")
