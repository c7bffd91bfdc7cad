"""Responses by quarter and local day: raw presses as the misuse filter judges them.

The rollups' deriver hands on which stretches of which kiosks changed (`responses_dirty`): presses
that came, at once or late, and opening hours that were edited. What was judged by an older version
of the filter is put there as well when this starts. Each stretch is judged anew from raw presses,
with as much on either side as a verdict may depend on; so any order of arrival ends in the same.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import asyncpg
import structlog

from server.db.engine import transaction
from server.db.turns import repeat
from server.feedback.misuse import CONTEXT_MS, VERSION, Press, Reason, closed_outside, verdicts
from server.rollup.buckets import QUARTER_S, local
from server.rollup.places import Spot, load_spots

log = structlog.get_logger(__name__)

POLL_S = 2.0
_REST_MOST_S = 60.0
_LOCK = 0x7265_7370  # "resp"
_ROWS_A_PASS = 300
_PIECE = timedelta(days=31)
_CONTEXT = timedelta(milliseconds=CONTEXT_MS)
REASONS = tuple(Reason)

Stretch = tuple[datetime, datetime]


@dataclass(frozen=True, slots=True)
class Judged:
    """One press, and why it is none; None: it counts."""

    press: Press
    reason: Reason | None


async def run(pool: asyncpg.Pool) -> None:
    """Filter for ever; a database that is away is tried again. `pool`: role vestibule_maint."""
    renewed = False

    async def turn() -> None:
        nonlocal renewed
        if not renewed:
            await renew(pool)
            renewed = True
        while await refresh(pool):
            pass

    def rest_s(taken_s: float) -> float:
        return min(max(POLL_S, 2 * taken_s), _REST_MOST_S)

    await repeat(turn, rest_s=rest_s, away="filtering failed; trying again")


async def renew(pool: asyncpg.Pool) -> int:
    """Put what an older version of the filter judged up to be judged anew; return the spots."""
    async with transaction(pool, "renew responses") as connection:
        await _lock(connection)
        done = await connection.execute(_RENEW, VERSION)
    return int(done.rpartition(" ")[2])


async def rebuild(pool: asyncpg.Pool, spot: int, since: datetime, until: datetime) -> None:
    """Judge all presses of a kiosk in [since, until) anew."""
    async with transaction(pool, "rebuild responses") as connection:
        await _lock(connection)
        for found in await load_spots(connection, ids=[spot]):
            await _derive(connection, found, [(since, until)])


async def refresh(pool: asyncpg.Pool) -> bool:
    """Work in the oldest stretches; return whether more are waiting."""
    async with transaction(pool, "derive responses") as connection:
        await _lock(connection)
        rows = await connection.fetch(
            "select id, spot, from_at, until_at from responses_dirty order by id limit $1",
            _ROWS_A_PASS,
        )
        by_spot: dict[int, list[Stretch]] = defaultdict(list)
        for _, spot, low, high in rows:
            by_spot[spot].append((low, high))
        there = await connection.fetch(
            "select id from spots where id = any($1::int[])", list(by_spot)
        )
        if there:
            for spot_there in await load_spots(connection, ids=[row[0] for row in there]):
                await _derive(connection, spot_there, by_spot[spot_there.id])
        if rows:
            await connection.execute(
                "delete from responses_dirty where id = any($1::bigint[])", [row[0] for row in rows]
            )
    return len(rows) == _ROWS_A_PASS


async def judged(
    connection: asyncpg.Connection, spot: Spot, since: datetime, until: datetime
) -> list[Judged]:
    """Return a kiosk's presses in [since, until) with their verdicts, in order."""
    low, high = since - _CONTEXT, until + _CONTEXT
    presses = [Press(*row) for row in await connection.fetch(_PRESSES, spot.id, low, high)]
    opened = spot.site.calendar.open_between(int(low.timestamp()), int(high.timestamp()) + 1)
    closed = closed_outside([(a * 1000, b * 1000) for a, b in opened])
    found = await asyncio.to_thread(verdicts, presses, closed=closed)
    begin_ms, end_ms = since.timestamp() * 1000, until.timestamp() * 1000
    return [
        Judged(press, reason)
        for press, reason in zip(presses, found, strict=True)
        if begin_ms <= press.at_ms < end_ms
    ]


async def _lock(connection: asyncpg.Connection) -> None:
    await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)


async def _derive(connection: asyncpg.Connection, spot: Spot, stretches: Sequence[Stretch]) -> None:
    """Write a kiosk's quarters, of these stretches and all whose verdicts may change, and days."""
    for low, high in _joined(stretches):
        begin, end = _quarter(low - _CONTEXT), _quarter(high + _CONTEXT, up=True)
        at = begin
        while at < end:
            stop = min(end, at + _PIECE)
            await _write(connection, spot, at, stop, await judged(connection, spot, at, stop))
            at = stop
        await _write_days(connection, spot, begin, end)


def _joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return the stretches in order, those joined that lie within each other's context."""
    found: list[Stretch] = []
    for low, high in sorted(stretches):
        if found and low - found[-1][1] <= 2 * _CONTEXT:
            before, until = found.pop()
            low, high = before, max(until, high)
        found.append((low, high))
    return found


def _quarter(at: datetime, *, up: bool = False) -> datetime:
    seconds = int(at.timestamp())
    if up:
        seconds = -(-seconds // QUARTER_S) * QUARTER_S
    return datetime.fromtimestamp(seconds // QUARTER_S * QUARTER_S, UTC)


Key = tuple[int, int, int, int]


async def _write(
    connection: asyncpg.Connection,
    spot: Spot,
    since: datetime,
    until: datetime,
    found: Sequence[Judged],
) -> None:
    """Replace a stretch of quarters."""
    cells: dict[Key, dict[Reason | None, int]] = {}
    for each in found:
        press = each.press
        bucket_s = press.at_ms // 1000 // QUARTER_S * QUARTER_S
        cell = cells.setdefault(
            (bucket_s, press.questionnaire, press.question, press.answer),
            dict.fromkeys((None, *REASONS), 0),
        )
        cell[each.reason] += 1
    await connection.execute(
        "delete from responses_15m where spot = $1 and bucket >= $2 and bucket < $3",
        *(spot.id, since, until),
    )
    await connection.executemany(
        _INSERT,
        [
            (
                datetime.fromtimestamp(bucket_s, UTC),
                questionnaire,
                spot.id,
                cell[None],
                *(cell[reason] for reason in REASONS),
                VERSION,
                question,
                answer,
            )
            for (bucket_s, questionnaire, question, answer), cell in cells.items()
        ],
    )


async def _write_days(
    connection: asyncpg.Connection, spot: Spot, since: datetime, until: datetime
) -> None:
    """Add up the local days that a stretch touches."""
    zone = spot.site.time_zone
    first = local(zone, int(since.timestamp())).date()
    last = local(zone, int(until.timestamp()) - 1).date()
    days: list[date] = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    edges = [spot.site.calendar.day(day) for day in days]
    await connection.execute(
        "delete from responses_day where spot = $1 and day >= $2 and day <= $3",
        *(spot.id, first, last),
    )
    await connection.execute(
        _DAYS,
        spot.id,
        days,
        [datetime.fromtimestamp(edge.start_s, UTC) for edge in edges],
        [datetime.fromtimestamp(edge.end_s, UTC) for edge in edges],
        datetime.fromtimestamp(edges[0].start_s, UTC),
        datetime.fromtimestamp(edges[-1].end_s, UTC),
    )


_COLUMNS = ", ".join(("kept", *REASONS))
_RENEW = """
    insert into responses_dirty (spot, from_at, until_at)
    select spot, min(bucket), max(bucket) + interval '15 minutes' from responses_15m
    where filter_version <> $1 group by spot
"""
_PRESSES = """
    select (extract(epoch from time) * 1000)::bigint, boot, visit, questionnaire, question::int,
           answer::int
    from presses where spot = $1 and time >= $2 and time < $3 order by 1, 2, 3, 4, 5, 6
"""
_INSERT = f"""
    insert into responses_15m
        (bucket, questionnaire, spot, {_COLUMNS}, filter_version, question, answer)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""  # noqa: S608 - names of ours
_DAYS = f"""
    with target as materialized (
        select * from unnest($2::date[], $3::timestamptz[], $4::timestamptz[])
        as target(day, from_at, until_at))
    insert into responses_day
        (day, questionnaire, spot, {_COLUMNS}, filter_version, question, answer)
    select target.day, r.questionnaire, r.spot,
           {", ".join(f"sum(r.{name})::int" for name in ("kept", *REASONS))},
           min(r.filter_version), r.question, r.answer
    from target join responses_15m r
      on r.spot = $1 and r.bucket >= target.from_at and r.bucket < target.until_at
    where r.bucket >= $5 and r.bucket < $6
    group by 1, 2, 3, r.question, r.answer
"""  # noqa: S608 - names of ours
