"""What a site's month of counts is worth, day by day: asked of the rollups, and told from chance.

Decided here:
- A day's coverage is that of its opening hours so far; a day that has not begun has none.
- In and out are a day's whole, for who came in before opening goes out after closing; their drift
  is (in - out) / (in + out) of days that were observed to `COMPLETE`, the month's is their median.
- A day is out of balance if in and out differ by more than 2 % and more than chance makes.
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from statistics import median

import asyncpg

from server.insight.drift import ALERT, imbalance, imbalanced
from server.insight.estimate import Estimate, with_counts
from server.rollup.answer import ALL_ROWS, CountQuery, CountRow
from server.rollup.buckets import Size, day_start, zone
from server.rollup.places import Site, load_calibrations, load_sites, load_spots
from server.rollup.quality import COMPLETE, Hours, Scope, State
from server.rollup.query import counts
from server.rollup.sums import UNIT, segments, weigh

SILENT_AFTER = timedelta(minutes=20)  # four of a device's usual five-minute frames
MOST_GAPS = 100


class Cell(StrEnum):
    """What is known of a day."""

    WHOLE = "bar"
    PARTLY = "part"
    GAP = "gap"
    CLOSED = "closed"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class QualityDay:
    """A day: its coverage, what came to no minute, its balance, and whether more may come."""

    day: date
    cell: Cell
    coverage: float | None
    visits: float | None
    unplaced: float
    imbalance: float | None
    out_of_balance: bool
    state: State
    revision: int
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class GapNote:
    """A stretch that is missing, in local time; `filled`: it came after all.

    Of one that is masked, `reason` is the condition by which its counts are not true: they stand
    where they were counted. `goes_on`: it has no end yet.
    """

    spot: str
    since: datetime | None
    until: datetime | None
    reason: str
    visits: int | None = None
    filled: bool = False
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Silent:
    """A device of which nothing has been stored `since` (local; None: never)."""

    spot: str
    device: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class SiteQuality:
    """A site's month."""

    ref: str
    name: str
    days: tuple[QualityDay, ...]
    drift: float | None
    silent: tuple[Silent, ...] = ()
    gaps: tuple[GapNote, ...] = field(default=())

    @property
    def coverage(self) -> float | None:
        """The month's coverage, a day as much as another."""
        known = [day.coverage for day in self.days if day.coverage is not None]
        return sum(known) / len(known) if known else None

    @property
    def missing(self) -> int:
        """How many days were not observed throughout."""
        return sum(day.cell in (Cell.PARTLY, Cell.GAP) for day in self.days)

    @property
    def unfinal(self) -> int:
        """How many days that are over may still change."""
        return sum(day.cell is not Cell.REST and day.state is not State.FINAL for day in self.days)

    @property
    def late(self) -> int:
        """How many days something came to after they were complete."""
        return sum(day.revision > 0 for day in self.days)

    @property
    def unplaced(self) -> float:
        return sum(day.unplaced for day in self.days)

    @property
    def unbalanced(self) -> tuple[QualityDay, ...]:
        return tuple(day for day in self.days if day.out_of_balance)

    @property
    def drifts(self) -> bool:
        """Whether the counters drift by more than they should."""
        return self.drift is not None and abs(self.drift) > ALERT

    @property
    def estimated_share(self) -> float | None:
        """What share of the month's people is imputed; None where some may not be."""
        whole = imputed = 0.0
        for day in self.days:
            if day.estimate is None:
                whole += day.visits or 0
            elif day.estimate.value is None:
                return None
            else:
                whole += day.estimate.value
                imputed += day.estimate.value * (day.estimate.share or 0)
        return imputed / whole if whole else None


async def month_of(
    connection: asyncpg.Connection,
    refs: Sequence[str],
    *,
    month: date,
    now: datetime,
    closely: bool = False,
) -> list[SiteQuality]:
    """Return sites' months, by name; `closely`: with estimates and gaps."""
    if not refs:
        return []
    until = (month + timedelta(days=32)).replace(day=1)
    now_s = int(now.timestamp())
    sites = await load_sites(connection, refs)
    opened = CountQuery(Size.DAY, month, until, Scope.OPEN, sites=tuple(refs), limit=ALL_ROWS)
    whole = CountQuery(Size.DAY, month, until, Scope.ALL, sites=tuple(refs), limit=ALL_ROWS)
    estimates: Mapping[tuple[str, str], Estimate] = {}
    if closely:
        page, estimates = await with_counts(connection, opened, now_s=now_s)
    else:
        page = await counts(connection, opened, now_s=now_s)
    everything = {
        (row.site, row.start): row for row in (await counts(connection, whole, now_s=now_s)).rows
    }
    silent = await _silent(connection, sites, now=now)
    gaps = await _gaps(connection, sites, month=month, until=until) if closely else {}

    def told() -> list[SiteQuality]:
        days: dict[str, list[QualityDay]] = defaultdict(list)
        for row in page.rows:
            key = row.site, row.start
            days[row.site].append(day_of(row, everything[key], estimates.get(key), now_s=now_s))
        whole_days: dict[str, list[CountRow]] = defaultdict(list)
        for row in everything.values():
            whole_days[row.site].append(row)
        found = [
            SiteQuality(
                site.ref,
                site.name,
                tuple(days[site.ref]),
                drift_of(whole_days[site.ref]),
                tuple(silent[site.ref]),
                tuple(gaps.get(site.ref, ())),
            )
            for site in sites
        ]
        return sorted(found, key=lambda site: site.name)

    return await asyncio.to_thread(told)


def day_of(row: CountRow, whole: CountRow, estimate: Estimate | None, *, now_s: int) -> QualityDay:
    """Return what a day is worth, of its opening hours (`row`) and all of it."""
    known = whole.coverage is not None and whole.coverage >= COMPLETE
    entered, left = float(whole.visits or 0), float(whole.exits or 0)
    over = _instant(row.until) <= now_s
    return QualityDay(
        date.fromisoformat(row.local[:10]),
        _cell(row, now_s=now_s),
        row.coverage,
        row.visits,
        whole.unplaced_visits,
        imbalance(entered, left) if known and over else None,
        known and over and imbalanced(entered, left),
        row.state,
        row.revision,
        None if row.hours is Hours.CLOSED else estimate,
    )


def _cell(row: CountRow, *, now_s: int) -> Cell:
    if row.hours is Hours.CLOSED:
        return Cell.CLOSED
    if row.coverage is None:  # it is yet to come, or no counter stood there
        return Cell.REST
    if row.coverage >= COMPLETE:
        return Cell.WHOLE
    return Cell.PARTLY if row.coverage > 0 else Cell.GAP


def drift_of(rows: Sequence[CountRow]) -> float | None:
    """Return the median of (in - out) / (in + out) of days that were observed throughout."""
    drifts = [
        ((row.visits or 0) - (row.exits or 0)) / crossed
        for row in rows
        if row.coverage is not None
        and row.coverage >= COMPLETE
        and (crossed := (row.visits or 0) + (row.exits or 0)) > 0
    ]
    return median(drifts) if drifts else None


async def _silent(
    connection: asyncpg.Connection, sites: Sequence[Site], *, now: datetime
) -> dict[str, list[Silent]]:
    """Return by site the devices that should be heard of and are not."""
    by_id = {spot.id: spot for spot in await load_spots(connection, sites=sites)}
    found: dict[str, list[Silent]] = defaultdict(list)
    for spot_id, device, stored_to in await connection.fetch(
        _SILENT, list(by_id), now - SILENT_AFTER, now
    ):
        spot = by_id[spot_id]
        since = None if stored_to is None else stored_to.astimezone(zone(spot.site.time_zone))
        found[spot.site.ref].append(Silent(spot.name, device, since))
    return found


async def _gaps(
    connection: asyncpg.Connection, sites: Sequence[Site], *, month: date, until: date
) -> dict[str, list[GapNote]]:
    """Return by site what is missing of a month, or not true, the latest first."""
    by_id = {spot.id: spot for spot in await load_spots(connection, sites=sites)}
    starts = [day_start(site.time_zone, month) for site in sites]
    ends = [day_start(site.time_zone, until) for site in sites]
    rows = await connection.fetch(
        _GAPS,
        [site.id for site in sites],
        *([datetime.fromtimestamp(at, UTC) for at in edge] for edge in (starts, ends)),
        MOST_GAPS,
    )
    span = min(starts, default=0), max(ends, default=0)
    missing = list({row["spot_id"] for row in rows})
    calibrations = await load_calibrations(connection, missing, span=span)
    cut = {spot: segments(calibrations.get(spot, ())) for spot in missing}
    found: dict[str, list[GapNote]] = defaultdict(list)
    for spot_id, low, high, reason, counted, filled in rows:
        spot, at_s = by_id[spot_id], int(low.timestamp())
        weights = next(s.weights for s in cut[spot_id] if s.start_s <= at_s < s.end_s)
        entered, _ = weigh(counted, weights)
        local = zone(spot.site.time_zone)
        since, to = (None if at is None else at.astimezone(local) for at in (low, high))
        people = round(entered / UNIT)
        found[spot.site.ref].append(GapNote(spot.name, since, to, reason, people, filled))
    for spot_id, low, high, condition in await connection.fetch(
        _MASKS,
        [site.id for site in sites],
        *([datetime.fromtimestamp(at, UTC) for at in edge] for edge in (starts, ends)),
        MOST_GAPS,
    ):
        spot = by_id[spot_id]
        local = zone(spot.site.time_zone)
        until_at = None if high is None else high.astimezone(local)
        since = low.astimezone(local)
        note = GapNote(spot.name, since, until_at, condition, goes_on=high is None)
        found[spot.site.ref].append(note)
    for notes in found.values():
        notes.sort(key=lambda note: note.since.timestamp() if note.since else 0.0, reverse=True)
    return found


def _instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


_SILENT = """
    select a.spot_id, d.device, max(b.stored_to) from assignments a
    join devices d on d.id = a.device_id
    left join my_boots b on b.device_id = a.device_id
    where a.spot_id = any($1::int[]) and a.valid @> $3::timestamptz
    group by a.spot_id, d.device having coalesce(max(b.stored_to), '-infinity') < $2
    order by a.spot_id
"""
_GAPS = """
    select late.* from unnest($1::int[], $2::timestamptz[], $3::timestamptz[])
        with ordinality as asked(site, low, high, number)
    cross join lateral (
        select g.spot_id, g.from_at, g.until_at, g.reason, g.counts, g.filled_at is not null
        from spots p join gaps g on g.spot_id = p.id
        where p.site_id = asked.site and coalesce(g.until_at, g.from_at) >= asked.low
          and g.from_at < asked.high and g.reason <> 'totals'
        order by g.from_at desc limit $4) late
    order by asked.number, late.from_at desc
"""
_MASKS = """
    select late.* from unnest($1::int[], $2::timestamptz[], $3::timestamptz[])
        with ordinality as asked(site, low, high, number)
    cross join lateral (
        select m.spot_id, m.from_at, m.until_at, m.condition
        from spots p join masks m on m.spot_id = p.id
        where p.site_id = asked.site and m.withdrawn_at is null
          and m.from_at < asked.high and (m.until_at is null or m.until_at > asked.low)
        order by m.from_at desc limit $4) late
    order by asked.number, late.from_at desc
"""
