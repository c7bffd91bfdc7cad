"""What the conditions need of a site's counters and of a device, read from the database.

Counts are as the calibrations of their time make them, so a counter that was turned round in the
register is right again from there on. What is usual leaves masked time out; what is judged does
not.

What many counters are read at once is packed into arrays, and unpacked one by one where it is
looked at (`server.health.looking`).
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import NamedTuple

import asyncpg

from server.feedback.misuse import Press
from server.health.conditions.certificate import Certificate
from server.health.conditions.clock_drift import Arrival
from server.health.conditions.duplicate_identity import Finding
from server.health.conditions.gauge import Value
from server.health.conditions.stuck_counter import Reading
from server.health.series import QUARTER_S, Quarter, Series
from server.health.usual import AHEAD_DAYS, HISTORY_DAYS, Door, Usual
from server.insight.profile import Cell
from server.insight.profile import Counter as Counted
from server.rollup.buckets import day_start, hour_edges, local
from server.rollup.places import Site, Spot, load_calibrations
from server.rollup.sums import UNIT, Segment, segments, weigh

READINGS = timedelta(hours=3)
GAUGES = timedelta(hours=4)
PRESSES = timedelta(hours=1)
MOST_PRESSES = 3_600
"""One a second for the whole hour: no hand does that, and a stuck button shows in the last."""
_FULL = (1 << 60) - 1
_PREFETCH = 500
"""Rows that are packed before others have their turn: some milliseconds."""


class Column(NamedTuple):
    """One counter's quarters as it counted them, on its site's grid, packed: 18 bytes each.

    `seen` are the slots of 15 s that were observed, `masked` is 1 where one of them is masked.
    """

    entered: "array[float]"
    left: "array[float]"
    seen: bytearray
    masked: bytearray


@dataclass(frozen=True, slots=True)
class Counters:
    """Quarters of some of a site's counters, on one grid; `is_open` by quarter."""

    starts: range
    is_open: bytearray
    columns: Mapping[int, Column]


async def counters(
    connection: asyncpg.Connection, spots: Sequence[Spot], *, now_s: int, days: int
) -> Counters:
    """Read the quarters of the last `days`, whole days of the site.

    Within a transaction: rows are streamed, and packed as they come.
    """
    ids = [spot.id for spot in spots]
    zone, calendar = spots[0].site.time_zone, spots[0].site.calendar
    low_s = day_start(zone, local(zone, now_s).date() - timedelta(days=days))
    starts = range(low_s, now_s // QUARTER_S * QUARTER_S + 1, QUARTER_S)
    is_open = bytearray(len(starts))
    for opens, closes in calendar.open_between(low_s, starts[-1] + QUARTER_S):
        for at_s in range(opens, closes, QUARTER_S):
            if (at_s - low_s) % QUARTER_S == 0:
                is_open[(at_s - low_s) // QUARTER_S] = 1
    found = {
        spot: Column(_zeros(len(starts)), _zeros(len(starts)), bytearray(len(starts)),
                     bytearray(len(starts)))
        for spot in ids
    }  # fmt: skip
    weights = await _weights(connection, ids, span=(low_s, now_s))
    sql = connection.cursor(_QUARTERS, ids, _at(low_s), _at(now_s), prefetch=_PREFETCH)
    async for spot, at_s, observed, masked, *counts in sql:
        column, number = found[spot], (at_s - low_s) // QUARTER_S
        column.entered[number], column.left[number] = _weighed(counts, weights[spot], at_s)
        column.seen[number] = (observed & _FULL).bit_count()
        column.masked[number] = bool(observed & (masked or 0))
    return Counters(starts, is_open, found)


def series(counters: Counters, spot: Spot, usual: Usual) -> Series:
    """Return one counter's quarters with what is usual in them; of many, that is for a thread."""
    quarters = []
    columns = zip(counters.starts, counters.is_open, *counters.columns[spot.id], strict=True)
    for start_s, is_open, came, went, seen, masked in columns:
        usual_in, usual_out = usual.at(start_s) if is_open else (None, None)
        quarters.append(
            Quarter(
                start_s, came, went, 15 * seen, bool(is_open), usual_in, usual_out, bool(masked)
            )
        )
    return Series(quarters, usual.spread, usual.share_variance, usual.tails, usual.silence)


def _zeros(length: int) -> "array[float]":
    return array("d", bytes(8 * length))


async def _weights(
    connection: asyncpg.Connection, ids: Sequence[int], *, span: tuple[int, int]
) -> dict[int, tuple[Segment, ...]]:
    known = await load_calibrations(connection, ids, span=span)
    return {spot: segments(known.get(spot, ())) for spot in ids}


def _weighed(
    counts: Sequence[int | None], cut: Sequence[Segment], at_s: int
) -> tuple[float, float]:
    segment = next(each for each in cut if each.start_s <= at_s < each.end_s)
    entered, left = weigh([count or 0 for count in counts], segment.weights)
    return entered / UNIT, left / UNIT


async def readings(
    connection: asyncpg.Connection, spots: Sequence[Spot], *, now_s: int
) -> dict[int, list[Reading]]:
    """Return the latest readings by spot, every line's in and out in one row of columns."""
    ids = [spot.id for spot in spots]
    rows = await connection.fetch(_READINGS, ids, _at(now_s) - READINGS, _at(now_s))
    merged: dict[int, dict[tuple[int, int], list[int]]] = {each: {} for each in ids}
    for spot, start_s, interval_s, line, counts in rows:
        for number in range(len(counts) // 2):
            at = start_s + number * interval_s
            into = merged[spot].setdefault((at, interval_s), [0] * 8)
            into[2 * line] += counts[2 * number]
            into[2 * line + 1] += counts[2 * number + 1]
    return {
        spot: [
            Reading(at, length, tuple(columns)) for (at, length), columns in sorted(rows.items())
        ]
        for spot, rows in merged.items()
    }


# -- what is usual -------------------------------------------------------------------------------


class Hours(NamedTuple):
    """One counter's hours, packed, cell by cell; `observed_s` is -1 where nothing is known."""

    entered: "array[float]"
    left: "array[float]"
    observed_s: "array[int]"


@dataclass(frozen=True, slots=True)
class Weeks:
    """Hours of some of a site's counters: of its last weeks, and of today and tomorrow, which hold
    nothing yet."""

    cells: Sequence[Cell]
    end_s: int
    columns: Mapping[int, Hours]

    def door(self, spot: int) -> Door:
        """Return one counter's hours as they are learnt from; of many, that is for a thread."""
        came: list[float | None] = []
        went: list[float | None] = []
        coverage: list[float | None] = []
        for cell, *counts, observed_s in zip(self.cells, *self.columns[spot], strict=True):
            if observed_s < 0:
                came.append(None)
                went.append(None)
                coverage.append(None if cell.start_s >= self.end_s else 0.0)
                continue
            came.append(counts[0])
            went.append(counts[1])
            coverage.append(observed_s / (cell.end_s - cell.start_s))
        return Door(Counted(came, coverage), Counted(went, coverage))


async def weeks(
    connection: asyncpg.Connection, cells: Sequence[Cell], spots: Sequence[Spot], today: date
) -> Weeks:
    """Read what is learnt from: the hours of the weeks before `today`; `cells`: see there.

    Within a transaction: rows are streamed, and packed as they come.
    """
    since, end_s = cells[0].start_s, day_start(spots[0].site.time_zone, today)
    ids, length = [spot.id for spot in spots], len(cells)
    weights = await _weights(connection, ids, span=(since, end_s))
    found = {spot: Hours(_zeros(length), _zeros(length), array("i", [-1]) * length) for spot in ids}
    numbers = {cell.start_s: number for number, cell in enumerate(cells)}
    sql = connection.cursor(_HOURS, ids, _at(since), _at(end_s), prefetch=_PREFETCH)
    async for spot, at_s, observed_s, *counts in sql:
        number = numbers.get(at_s)
        if number is not None:
            hours = found[spot]
            hours.entered[number], hours.left[number] = _weighed(counts, weights[spot], at_s)
            hours.observed_s[number] = observed_s
    return Weeks(cells, end_s, found)


async def hours_known(connection: asyncpg.Connection, spots: Sequence[Spot]) -> int:
    """Return how many hours of these counters anything is known of."""
    sql = "select count(*) from rollup_hour where spot = any($1::int[])"
    found: int = await connection.fetchval(sql, [spot.id for spot in spots])
    return found


def cells(site: Site, today: date) -> list[Cell]:
    """Return the hours to learn from and to expect; that is for a thread."""
    found: list[Cell] = []
    exceptions = {day for day, _ in site.calendar.opening.exceptions}
    first = today - timedelta(days=HISTORY_DAYS + 35)
    day = first
    while day < today + timedelta(days=AHEAD_DAYS):
        following = day + timedelta(days=1)
        edges = (*hour_edges(site.time_zone, day), day_start(site.time_zone, following))
        for low, high in pairwise(edges):
            shown = local(site.time_zone, low)
            open_s = sum(b - a for a, b in site.calendar.open_between(low, high))
            usual = day not in exceptions and not shown.fold
            slot = shown.weekday() * 24 + shown.hour
            found.append(Cell(low, high, slot, day.toordinal(), open_s, usual))
        day = following
    return found


# -- a device ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of one device: its gauges, boots, losses, findings, certificate, presses."""

    starts_s: Sequence[float]
    heard_s: float | None
    stored_s: float | None
    gauges: Mapping[str, Sequence[Value]]
    losses_s: Sequence[float]
    findings: Sequence[Finding]
    wild: int
    undated: int
    certificate: Certificate | None
    presses: Sequence[Press] = ()
    connected_s: float | None = None
    skews_ms: Sequence[float] = ()

    @property
    def arrivals(self) -> list[Arrival]:
        """The last frame of its running boot."""
        if self.heard_s is None or self.stored_s is None:
            return []
        return [Arrival(self.stored_s, self.heard_s)]

    @property
    def waiting(self) -> list[Value]:
        """How many frames its outbox held while it was connected, as it is now.

        What it held before may be history, or an outage, and says nothing of how fast it sends.
        """
        if self.connected_s is None:
            return []
        values = self.gauges.get("outbox.frames", ())
        return [each for each in values if each.at_s >= self.connected_s]


SKEWS = 3
"""The last measurements of its clock that a device is judged by."""
GAUGE_NAMES = ("outbox.frames", "outbox.trouble", "disk.free", "cpu.celsius")


async def device(
    connection: asyncpg.Connection, row: int, kiosk_spot: int | None, *, now: datetime
) -> Device:
    """Read what is known of a device; `kiosk_spot`: where it stands, if it is a kiosk."""
    told = await connection.fetchrow(_DEVICE, row, now, now - timedelta(hours=4))
    gauges: dict[str, list[Value]] = {}
    for name, at_s, value in await connection.fetch(_GAUGES, row, now - GAUGES, list(GAUGE_NAMES)):
        gauges.setdefault(name, []).append(Value(at_s, value))
    skews = []
    if told["stored"] is not None:
        said = _at(told["stored"])  # in its own time, as its gauges are
        skews = await connection.fetch(_SKEWS, row, said - GAUGES, said + GAUGES, SKEWS)
    found = await connection.fetch(_FINDINGS, row, now - timedelta(days=3))
    pressed = []
    if kiosk_spot is not None:
        rows = await connection.fetch(_PRESSES, kiosk_spot, now - PRESSES, now, MOST_PRESSES)
        pressed = [Press(*each) for each in rows]
    begins, ends = told["begins"], told["ends"]
    return Device(
        told["starts"] or [],
        told["heard"],
        told["stored"],
        gauges,
        told["losses"] or [],
        [Finding(at_s, what) for at_s, what in found],
        told["wild"],
        told["undated"],
        Certificate(begins, ends) if begins is not None and ends is not None else None,
        pressed,
        told["connected"],
        [each for (each,) in skews],
    )


def _at(instant_s: float) -> datetime:
    return datetime.fromtimestamp(instant_s, UTC)


_QUARTERS = """
    select spot, extract(epoch from bucket)::bigint, observed, masked,
           in0, out0, in1, out1, in2, out2, in3, out3
    from rollup_15m where spot = any($1::int[]) and bucket >= $2 and bucket <= $3
"""
_HOURS = """
    select spot, extract(epoch from bucket)::bigint, observed_s::int,
           in0, out0, in1, out1, in2, out2, in3, out3
    from rollup_hour where spot = any($1::int[]) and bucket >= $2 and bucket < $3
"""
_READINGS = """
    select spot, extract(epoch from time)::bigint, interval_s::int, line::int, counts
    from readings
    where spot = any($1::int[]) and time >= $2 and time < $3 and line >= 0
"""
_DEVICE = """
    select
        (select array_agg(extract(epoch from first_seen)::float8 order by first_seen)
         from boots where device_id = $1 and first_seen > $3) as starts,
        b.heard, b.stored,
        (select array_agg(extract(epoch from at)::float8 order by at) from device_events
         where device_id = $1 and kind = 'lost' and at > $3) as losses,
        coalesce(u.wild, 0)::int as wild, coalesce(u.undated, 0)::int as undated,
        extract(epoch from c.recorded_at)::float8 as begins,
        extract(epoch from c.not_after)::float8 as ends,
        (select extract(epoch from session_at)::float8 from presences
         where device_id = $1 and session = 'open') as connected
    from (select 1) one
    left join lateral (
        select extract(epoch from last_stored)::float8 as heard,
               extract(epoch from stored_to)::float8 as stored
        from boots where device_id = $1 and last_stored is not null
        order by last_stored desc limit 1) b on true
    left join lateral (
        select count(*) filter (where u.reason = 'wild clock') as wild,
               count(*) filter (where u.reason = 'undated' and u.received_at < $2::timestamptz
                   - interval '1 hour') as undated
        from undated_frames u join boots b on b.id = u.boot
        where b.device_id = $1) u on true
    left join lateral (
        select recorded_at, not_after from certificates
        where device_id = $1 and state = 'active') c on true
"""
# Of each minute the last value: however often a device says so, it takes no more time to judge.
_GAUGES = """
    select name, at_s, value from (
        select distinct on (n.name, date_trunc('minute', m.time))
            n.name, extract(epoch from m.time)::float8 as at_s, m.value
        from device_metrics m join metric_names n on n.id = m.metric
        where m.device = $1 and m.time > $2 and n.name = any($3::text[])
          and m.value between -1e15 and 1e15
        order by n.name, date_trunc('minute', m.time), m.time desc) last
    order by at_s
"""
_SKEWS = """
    select m.value
    from device_metrics m join metric_names n on n.id = m.metric
    where m.device = $1 and m.time > $2 and m.time < $3 and n.name = 'clock.skew_ms'
      and m.value between -1e15 and 1e15
    order by m.time desc limit $4
"""
_FINDINGS = """
    select extract(epoch from at)::float8, finding from findings
    where device_id = $1 and at > $2 and finding in ('cloned', 'digest mismatch')
    order by at
"""
_PRESSES = """
    select at_ms, boot, visit, questionnaire, question, answer from (
        select (extract(epoch from time) * 1000)::bigint as at_ms, boot, visit, questionnaire,
               question::int, answer::int
        from presses where spot = $1 and time >= $2 and time < $3 order by time desc limit $4) last
    order by at_ms
"""
