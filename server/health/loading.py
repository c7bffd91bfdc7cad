"""What the conditions need of a site's counters and of a device, read from the database.

Counts are as the calibrations of their time make them, so a counter that was turned round in the
register is right again from there on. What is usual leaves masked time out; what is judged does
not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

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


@dataclass(frozen=True, slots=True)
class Counters:
    """A site's quarters as its counters counted them, on one grid."""

    starts: range
    counted: Mapping[int, Mapping[int, tuple[float, float, int, bool]]]
    readings: Mapping[int, Sequence[Reading]]


async def counters(
    connection: asyncpg.Connection, spots: Sequence[Spot], *, now_s: int, days: int
) -> Counters:
    """Read the quarters of the last `days`, whole days of the site, and the latest readings."""
    ids = [spot.id for spot in spots]
    zone = spots[0].site.time_zone
    low_s = day_start(zone, local(zone, now_s).date() - timedelta(days=days))
    starts = range(low_s, now_s // QUARTER_S * QUARTER_S + 1, QUARTER_S)
    weights = await _weights(connection, ids, span=(low_s, now_s))
    found: dict[int, dict[int, tuple[float, float, int, bool]]] = {each: {} for each in ids}
    rows = await connection.fetch(_QUARTERS, ids, _at(low_s), _at(now_s))
    for spot, at_s, observed, masked, *counts in rows:
        came, went = _weighed(counts, weights[spot], at_s)
        seen_s = 15 * (observed & _FULL).bit_count()
        found[spot][at_s] = came, went, seen_s, bool(observed & (masked or 0))
    return Counters(starts, found, await _readings(connection, ids, now_s=now_s))


def series(counters: Counters, spot: Spot, usual: Usual) -> Series:
    """Return one counter's quarters with what is usual in them; of many, that is for a thread."""
    counted = counters.counted[spot.id]
    calendar = spot.site.calendar
    opened = {
        at
        for low, high in calendar.open_between(counters.starts[0], counters.starts[-1] + QUARTER_S)
        for at in range(low, high, QUARTER_S)
    }
    quarters = []
    for start_s in counters.starts:
        came, went, observed_s, masked = counted.get(start_s, (0.0, 0.0, 0, False))
        is_open = start_s in opened
        usual_in, usual_out = usual.at(start_s) if is_open else (None, None)
        quarters.append(
            Quarter(start_s, came, went, observed_s, is_open, usual_in, usual_out, masked)
        )
    return Series(quarters, usual.spread, usual.share_variance, usual.tails, usual.silence)


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


async def _readings(
    connection: asyncpg.Connection, ids: Sequence[int], *, now_s: int
) -> dict[int, list[Reading]]:
    """Return the latest readings by spot, every line's in and out in one row of columns."""
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


@dataclass(frozen=True, slots=True)
class Weeks:
    """A site's hours of its last weeks, and of today and tomorrow, which hold nothing yet."""

    cells: Sequence[Cell]
    doors: Sequence[Door]
    today: int


async def weeks(
    connection: asyncpg.Connection, site: Site, spots: Sequence[Spot], today: date
) -> Weeks:
    """Read what is learnt from: the hours of the weeks before `today`."""
    cells, since = _cells(site, today)
    end_s = day_start(site.time_zone, today)
    ids = [spot.id for spot in spots]
    weights = await _weights(connection, ids, span=(since, end_s))
    hours: dict[int, dict[int, tuple[float, float, float]]] = {each: {} for each in ids}
    for spot, at_s, observed_s, *counts in await connection.fetch(
        _HOURS, ids, _at(since), _at(end_s)
    ):
        hours[spot][at_s] = (*_weighed(counts, weights[spot], at_s), observed_s)
    return Weeks(cells, [_door(cells, hours[spot], end_s) for spot in ids], today.toordinal())


async def hours_known(connection: asyncpg.Connection, spots: Sequence[Spot]) -> int:
    """Return how many hours of these counters anything is known of."""
    sql = "select count(*) from rollup_hour where spot = any($1::int[])"
    found: int = await connection.fetchval(sql, [spot.id for spot in spots])
    return found


def _cells(site: Site, today: date) -> tuple[list[Cell], int]:
    """Return the hours to learn from and to expect, and the first instant of them."""
    cells: list[Cell] = []
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
            cells.append(Cell(low, high, slot, day.toordinal(), open_s, usual))
        day = following
    return cells, cells[0].start_s


def _door(
    cells: Sequence[Cell], hours: Mapping[int, tuple[float, float, float]], end_s: int
) -> Door:
    came: list[float | None] = []
    went: list[float | None] = []
    coverage: list[float | None] = []
    for cell in cells:
        known = hours.get(cell.start_s)
        if cell.start_s >= end_s or known is None:
            came.append(None)
            went.append(None)
            coverage.append(None if cell.start_s >= end_s else 0.0)
            continue
        came.append(known[0])
        went.append(known[1])
        coverage.append(known[2] / (cell.end_s - cell.start_s))
    return Door(Counted(came, coverage), Counted(went, coverage))


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
