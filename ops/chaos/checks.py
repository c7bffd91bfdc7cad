"""The questions that the verifier asks the database, each a query that returns what is wrong.

They take nothing from the product's code: sums are taken again from the rows themselves, and
compared with each place that states the same number. All run in one snapshot (`prepare`).
"""

from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from ops.chaos.differences import Difference, Wrong

# Each reading as a row of its own, with its device: what all else must be the sum of.
_CELLS = """
create temporary table verify_cells on commit drop as
select d.device, d.id as device_row, r.boot, r.seq, r.spot, r.line, r.interval_s,
       r.time + make_interval(secs => r.interval_s * (n - 1)) as at,
       r.time + r.lead_ms * interval '1 ms' as observed_from,
       r.counts[2 * n - 1]::bigint as entered, r.counts[2 * n]::bigint as left_
from readings r
join all_boots b on b.id = r.boot join devices d on d.id = b.device_id,
generate_series(1, cardinality(r.counts) / 2) n
"""

# A frame that reaches over a change of spot is a row for each; no reading may stand in two.
_ROWS_TWICE = """
select device, line, boot_id, seq, min(at) as at, max(rows) as rows
from (select c.device, c.line, b.boot_id, c.seq, c.at, count(*) as rows
      from verify_cells c join all_boots b on b.id = c.boot group by 1, 2, 3, 4, 5) each
where rows > 1 group by 1, 2, 3, 4 order by 1, 3, 4, 2
"""

# Every frame of a counter must be somewhere: a row, a metric, a gap, or held aside.
_FRAMES_MISSING = """
with ours as (
    select b.id, b.boot_id, b.next_seq, d.device from all_boots b
    join devices d on d.id = b.device_id where d.kind = 'counter'),
kept as (
    select boot, seq::bigint from readings
    union select boot, seq::bigint from device_metrics
    union select boot, seq from undated_frames
    union select g.boot, s from gaps g, generate_series(g.from_seq, g.to_seq) s
        where g.reason not in ('totals', 'refused'))  -- refused: the device still has them
select o.device, o.boot_id, seq,
    (select max(r.time) from readings r where r.boot = o.id and r.seq < seq) as after
from ours o, generate_series(0, o.next_seq - 1) seq
where not exists (select from kept k where k.boot = o.id and k.seq = seq.seq)
order by 1, 2, 3
"""

# The cursor states the device's own totals since boot: the rows and gaps of the boot must give it.
_TOTALS = """
with lines as (select generate_series(0, 3) as line),
stated as (
    select b.id as boot, b.boot_id, d.device, l.line,
        b.totals[2 * l.line + 1] as entered, b.totals[2 * l.line + 2] as left_
    from all_boots b join devices d on d.id = b.device_id, lines l),
counted as (
    select boot, line::int, sum(entered)::bigint as entered, sum(left_)::bigint as left_
    from (select boot, line, entered, left_ from verify_cells
          union all
          select g.boot, l.line, g.counts[2 * l.line + 1], g.counts[2 * l.line + 2]
          from gaps g, lines l where g.filled_at is null and g.reason <> 'refused') x
    group by 1, 2)
select s.device, s.boot_id, s.line, s.entered, s.left_,
    coalesce(c.entered, 0) as entered_found, coalesce(c.left_, 0) as left_found
from stated s left join counted c on c.boot = s.boot and c.line = s.line
where not exists (select from undated_frames u where u.boot = s.boot)
  and ((s.entered - coalesce(c.entered, 0)) % (1::bigint << 32) <> 0
       or (s.left_ - coalesce(c.left_, 0)) % (1::bigint << 32) <> 0)
order by 1, 2, 3
"""

# A reading belongs to the spot where its observation began.
_WRONG_SPOT = """
select c.device, c.line, c.spot, c.at, c.entered + c.left_ as people, then_.spot as spot_then
from verify_cells c, lateral (select coalesce((select a.spot_id from assignments a
    where a.device_id = c.device_row and a.valid @> greatest(c.at, c.observed_from)), 0)
    as spot) then_
where c.spot <> then_.spot order by 1, 2, 4
"""

# A rollup against the sums of the readings, line by line.
_ROLLUP = """
with sums as (
    select {bucket} as bucket, c.spot, c.line::int, sum(c.entered) as entered, sum(c.left_) as left_
    from verify_cells c join spots p on p.id = c.spot join sites s on s.id = p.site_id
    where {site_is_ours} group by 1, 2, 3),
told as (
    select t.{key} as bucket, t.spot, l.line, l.entered::bigint, l.left_::bigint
    from {table} t join spots p on p.id = t.spot join sites s on s.id = p.site_id,
        lateral (values {columns}) l (line, entered, left_)
    where {site_is_ours} and (l.entered is not null or l.left_ is not null))
select coalesce(a.bucket, b.bucket)::text as bucket, coalesce(a.line, b.line) as line, p.ref,
    (select string_agg(distinct d.device, ' ') from assignments x join devices d
        on d.id = x.device_id where x.spot_id = p.id) as devices,
    a.entered, a.left_, b.entered as entered_found, b.left_ as left_found
from sums a full join told b on a.bucket = b.bucket and a.spot = b.spot and a.line = b.line
left join spots p on p.id = coalesce(a.spot, b.spot)
where (a.entered, a.left_) is distinct from (b.entered, b.left_)
order by 3, 1, 2
"""

_PRESSES = """
with sums as (
    select {bucket} as bucket, r.spot, r.questionnaire, r.question, r.answer, count(*) as presses
    from presses r join spots p on p.id = r.spot join sites s on s.id = p.site_id
    group by 1, 2, 3, 4, 5)
select coalesce(a.bucket, b.{key})::text as bucket, p.ref,
    (select string_agg(distinct d.device, ' ') from assignments x join devices d
        on d.id = x.device_id where x.spot_id = p.id) as devices,
    coalesce(a.question, b.question) as question, coalesce(a.answer, b.answer) as answer,
    a.presses, b.{presses} as found
from sums a full join {table} b on a.bucket = b.{key} and a.spot = b.spot
    and a.questionnaire = b.questionnaire and a.question = b.question and a.answer = b.answer
left join spots p on p.id = coalesce(a.spot, b.spot)
where a.presses is distinct from b.{presses}
order by 2, 1, 4, 5
"""

_HELD = """
select d.device, b.boot_id, u.seq, u.reason from undated_frames u
join all_boots b on b.id = u.boot join devices d on d.id = b.device_id order by 1, 2, 3
"""

_BROKEN_TOTALS = """
select d.device, b.boot_id, g.from_seq, g.counts::text, g.answers::text from gaps g
join all_boots b on b.id = g.boot join devices d on d.id = g.device_id
where g.reason = 'totals' and g.filled_at is null order by 1, 2, 3
"""

_LOCAL_DAY = "(({at} at time zone s.time_zone)::date)"
_QUARTER = "to_timestamp(floor(extract(epoch from {at}) / 900) * 900)"
# opening hours are the product's to know; where there are none, open hours are all hours
_NEVER_CLOSES = "not exists (select from opening_hours h where h.site_id = s.id)"
_HOUR = "to_timestamp(floor(extract(epoch from {at}) / 3600) * 3600)"


async def prepare(connection: asyncpg.Connection) -> None:
    """Lay the readings out, one row each; needs a transaction, best repeatable read."""
    await connection.execute(_CELLS)


async def rows_twice(connection: asyncpg.Connection) -> list[Difference]:
    """Each reading, known by boot, seq, line and time, stands in one row."""
    return [
        Difference(
            Wrong.DUPLICATED,
            row["rows"] - 1,
            f"{row['device']} line {row['line']} at {row['at']:%F %T} "
            f"(boot {_boot(row['boot_id'])} seq {row['seq']})",
            "1 row",
            f"{row['rows']} rows",
        )
        for row in await connection.fetch(_ROWS_TWICE)
    ]


async def frames_missing(connection: asyncpg.Connection) -> list[Difference]:
    """Each sequence number below a counter's cursor is kept somewhere."""
    return [
        Difference(
            Wrong.LOST,
            1,
            f"{row['device']} boot {_boot(row['boot_id'])} seq {row['seq']}, after {row['after']}",
            "a row, a metric, a gap or a held frame",
            "nothing",
        )
        for row in await connection.fetch(_FRAMES_MISSING)
    ]


async def totals(connection: asyncpg.Connection) -> list[Difference]:
    """The rows of a boot add up to the totals that the device itself stated."""
    return [
        _difference(
            row, f"{row['device']} line {row['line']} of boot {_boot(row['boot_id'])} (totals)"
        )
        for row in await connection.fetch(_TOTALS)
    ]


async def wrong_spots(connection: asyncpg.Connection) -> list[Difference]:
    """Each reading stands at the spot where its device was."""
    return [
        Difference(
            Wrong.ALTERED,
            int(row["people"]),
            f"{row['device']} line {row['line']} at {row['at']:%F %T}",
            f"spot {row['spot_then']}",
            f"spot {row['spot']}",
        )
        for row in await connection.fetch(_WRONG_SPOT)
    ]


async def rollups(connection: asyncpg.Connection) -> list[Difference]:
    """Quarters, hours and days are the sums of the readings, by spot, bucket and line."""
    found: list[Difference] = []
    for table, key, bucket, prefix in (
        ("rollup_15m", "bucket", _QUARTER, ""),
        ("rollup_hour", "bucket", _HOUR, ""),
        ("rollup_day", "day", _LOCAL_DAY, ""),
        ("rollup_day", "day", _LOCAL_DAY, "open_"),
    ):
        sql = _ROLLUP.format(
            table=table,
            key=key,
            bucket=bucket.format(at="c.at"),
            columns=", ".join(f"({n}, t.{prefix}in{n}, t.{prefix}out{n})" for n in range(4)),
            site_is_ours=_NEVER_CLOSES if prefix else "true",
        )
        what = f"{table} in opening hours" if prefix else table
        found += [
            _difference(
                row,
                f"{what} {row['bucket']} line {row['line']} of {row['ref']} ({row['devices']})",
            )
            for row in await connection.fetch(sql)
        ]
    return found


async def press_rollups(connection: asyncpg.Connection) -> list[Difference]:
    """Quarters and days of presses are the numbers of presses."""
    found: list[Difference] = []
    for table, key, bucket in (
        ("presses_15m", "bucket", _QUARTER),
        ("presses_day", "day", _LOCAL_DAY),
    ):
        sql = _PRESSES.format(
            table=table, key=key, bucket=bucket.format(at="r.time"), presses="presses"
        )
        for row in await connection.fetch(sql):
            expected, got = row["presses"] or 0, row["found"] or 0
            found.append(
                Difference(
                    Wrong.ALTERED,
                    max(1, abs(expected - got)),
                    f"{table} {row['bucket']} question {row['question']} answer {row['answer']} "
                    f"of {row['ref']} ({row['devices']})",
                    f"{row['presses']} presses",
                    f"{row['found']}",
                )
            )
    return found


async def held_or_broken(connection: asyncpg.Connection) -> list[Difference]:
    """No frame is still held aside, and no device's totals have ever failed to add up."""
    held = [
        Difference(
            Wrong.LOST,
            1,
            f"{row['device']} boot {_boot(row['boot_id'])} seq {row['seq']}",
            "placed",
            f"held: {row['reason']}",
        )
        for row in await connection.fetch(_HELD)
    ]
    broken = [
        Difference(
            Wrong.ALTERED,
            1,
            f"{row['device']} boot {_boot(row['boot_id'])} seq {row['from_seq']}",
            "last totals + counts = totals",
            f"off by {row['counts']} {row['answers']}",
        )
        for row in await connection.fetch(_BROKEN_TOTALS)
    ]
    return held + broken


def _difference(row: asyncpg.Record, place: str) -> Difference:
    pairs = ((row["entered"], row["entered_found"]), (row["left_"], row["left_found"]))
    amount = sum(abs(int(a or 0) - int(b or 0)) for a, b in pairs)
    return Difference(
        Wrong.ALTERED,
        max(1, amount),
        place,
        f"in {row['entered']} out {row['left_']}",
        f"in {row['entered_found']} out {row['left_found']}",
    )


def _boot(boot_id: int) -> str:
    return f"{boot_id & 0xFFFF_FFFF_FFFF_FFFF:016x}"


QUESTIONS: Sequence[Callable[[asyncpg.Connection], Awaitable[list[Difference]]]] = (
    rows_twice,
    frames_missing,
    totals,
    wrong_spots,
    rollups,
    press_rollups,
    held_or_broken,
)
