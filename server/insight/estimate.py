"""Estimates of what was not counted, beside the measurements and never in their column.

`estimates` answers a `CountQuery` on a connection that sees one organisation: an `Estimate` for
each bucket whose coverage in opening hours, by traffic, is below `COMPLETE`, and 0, `closed`, for
one outside opening hours that holds no measurement. A bucket that was measured has none.

Decided here: buckets of an hour and more are imputed hour by hour, quarters by themselves, so
quarters need not add up to their hour's estimate. What has not ended yet is not imputed. A bucket's
estimate depends on what is stored of the `HISTORY_DAYS` before it, not on the range asked for.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import asyncpg
import msgspec

from server.errors import RefusedError
from server.insight.imputation import MODEL, Kind, Known, Method, Missing, SiteModel
from server.insight.profile import Cell, Counter
from server.rollup.answer import ALL_ROWS, By, CountPage, CountQuery, CountRow
from server.rollup.buckets import HOUR_S, QUARTER_S, Size, buckets
from server.rollup.opening import overlap
from server.rollup.places import Site, Spot, load_histories, load_sites, load_spots
from server.rollup.quality import COMPLETE, Hours, Scope
from server.rollup.query import counts, perimeters_of
from server.rollup.rows import weigh_gap
from server.rollup.sums import UNIT, segments

HISTORY_DAYS = 190
"""What a week's spread is found in (84 days and the week), expectations (84) and levels (14)."""

Key = tuple[str, str]
"""A row's site or spot, and its bucket's start as the row has it (`from`)."""

MOST_SITE_DAYS = 100_000
"""Sites x days of one question, by hours of every counter: minutes of work."""
_CHUNK_DAYS = 90
_SITES_AT_ONCE = 8
_SURE = 0.9995


class EstimateTooFineError(RefusedError):
    """Nobody can say in which minute somebody came who was not counted."""

    def __init__(self) -> None:
        super().__init__(
            "estimate_too_fine", "estimates of minutes were asked for; ask for 15m or larger"
        )


class Estimate(msgspec.Struct, frozen=True):
    """How many people came in a bucket: those measured, and those imputed to what was missing.

    The truth lies in [low80, high80] in 80 of 100 cases, in [low95, high95] in 95. `value` and
    bounds are null where nothing may be imputed (`none`). `share` is the share that is imputed.
    """

    value: float | None
    low80: float | None
    high80: float | None
    low95: float | None
    high95: float | None
    method: Method
    model: str
    share: float | None
    coverage: float | None


CLOSED = Estimate(0.0, 0.0, 0.0, 0.0, 0.0, Method.CLOSED, MODEL, 0.0, None)
_METHODS = {
    Kind.SHARE: Method.OTHERS,
    Kind.SITE: Method.PROFILE,
    Kind.SPOT: Method.PROFILE,
    Kind.PLACE: Method.KNOWN,
}


@dataclass(frozen=True, slots=True)
class SiteCells:
    """A site's cells and the model of its counters at `spots`, in their order."""

    spots: tuple[str, ...]
    starts: Sequence[int]
    model: SiteModel


async def estimates(
    connection: asyncpg.Connection, query: CountQuery, *, now_s: int
) -> dict[Key, Estimate]:
    """Return the estimates of a page. Raises what `counts` raises, and EstimateTooFineError."""
    return (await with_counts(connection, query, now_s=now_s))[1]


async def with_counts(
    connection: asyncpg.Connection, query: CountQuery, *, now_s: int
) -> tuple[CountPage, dict[Key, Estimate]]:
    """Return a page of counts and the estimates of its buckets."""
    if query.size is Size.MINUTE:
        raise EstimateTooFineError
    page = await counts(connection, query, now_s=now_s)
    found: dict[Key, Estimate] = {}
    wanted: dict[str, list[CountRow]] = {}
    for row in page.rows:
        if row.hours is Hours.CLOSED:
            if row.visits is None and query.scope is Scope.OPEN:
                found[key_of(row)] = CLOSED
        elif row.coverage is not None and row.coverage < _SURE:
            wanted.setdefault(row.site, []).append(row)
    refs = sorted(wanted)
    _demand_few([row for rows in wanted.values() for row in rows], sites=len(refs))
    for at in range(0, len(refs), _SITES_AT_ONCE):
        part = refs[at : at + _SITES_AT_ONCE]
        rows = {ref: wanted[ref] for ref in part}
        span = _span([row for each in rows.values() for row in each])
        grain = Size.QUARTER if query.size is Size.QUARTER else Size.HOUR
        sites = await load_sites(connection, part)
        spots = await _spots_of(connection, query, sites)
        cells = await site_cells(connection, sites, spots, grain=grain, span=span, now_s=now_s)
        found |= await asyncio.to_thread(_of_rows, rows, cells, query.spots)
    return page, found


def _demand_few(rows: Sequence[CountRow], *, sites: int) -> None:
    """Raise RefusedError (range_too_long) for what would keep a connection for very long."""
    if not rows:
        return
    first, last = _span(rows)
    if sites * (last - first).days > MOST_SITE_DAYS:
        raise RefusedError(
            "range_too_long",
            f"estimates of {sites} sites over {(last - first).days} days are too many at once: "
            "ask for fewer sites, or a shorter range",
        )


async def _spots_of(
    connection: asyncpg.Connection, query: CountQuery, sites: Sequence[Site]
) -> list[Spot]:
    """Return whose counts tell of each other: a site's perimeter, or all of its counters."""
    if query.by is By.SITE and not query.spots:
        perimeters = await perimeters_of(connection, query, sites)
        return [spot for site in sites for spot in perimeters[site.id].outer]
    return await load_spots(connection, kind="counter", sites=sites)


def key_of(row: CountRow) -> Key:
    """Return the key of a row's estimate."""
    return row.spot or row.site, row.start


async def site_cells(
    connection: asyncpg.Connection,
    sites: Sequence[Site],
    spots: Sequence[Spot],
    *,
    grain: Size,
    span: tuple[date, date],
    now_s: int,
) -> dict[str, SiteCells]:
    """Return the models of the sites' `spots` over `span` (local days) and `HISTORY_DAYS` more."""
    refs = tuple(spot.ref for spot in spots)
    since, until = span[0] - timedelta(days=HISTORY_DAYS), span[1]
    columns: dict[str, tuple[list[float | None], list[float | None]]] = {
        spot.ref: ([], []) for spot in spots
    }
    low = since
    while low < until and spots:
        high = min(low + timedelta(days=_CHUNK_DAYS), until)
        query = CountQuery(grain, low, high, Scope.OPEN, By.SPOT, spots=refs, limit=ALL_ROWS)
        for row in (await counts(connection, query, now_s=now_s)).rows:
            visits, coverage = columns[row.spot or ""]
            visits.append(row.visits)
            coverage.append(row.coverage)
        low = high
    knowns = await _known(connection, spots, since=since, until=until)
    return await asyncio.to_thread(
        _models, sites, spots, columns, knowns, grain=grain, since=since, until=until, now_s=now_s
    )


def _models(
    sites: Sequence[Site],
    spots: Sequence[Spot],
    columns: Mapping[str, tuple[list[float | None], list[float | None]]],
    knowns: Mapping[str, Sequence[Known]],
    *,
    grain: Size,
    since: date,
    until: date,
    now_s: int,
) -> dict[str, SiteCells]:
    found: dict[str, SiteCells] = {}
    for site in sites:
        cells = cells_of(site, grain, since=since, until=until)
        own = tuple(spot.ref for spot in spots if spot.site.ref == site.ref)
        ended = sum(cell.end_s <= now_s for cell in cells)
        counters = [_counter(*columns[ref], ended=ended) for ref in own]
        model = SiteModel(cells, counters, [knowns.get(ref, ()) for ref in own])
        found[site.ref] = SiteCells(own, [cell.start_s for cell in cells], model)
    return found


def _counter(
    visits: Sequence[float | None], coverage: Sequence[float | None], *, ended: int
) -> Counter:
    """Return a counter of which nothing is asked in cells that have not ended."""
    return Counter(visits, [*coverage[:ended], *([None] * (len(coverage) - ended))])


def cells_of(site: Site, grain: Size, *, since: date, until: date) -> list[Cell]:
    """Return a site's hours or quarters over local days."""
    exceptional = {day for day, _ in site.calendar.opening.exceptions}
    of_hour = HOUR_S // QUARTER_S if grain is Size.QUARTER else 1
    found: list[Cell] = []
    low = since
    while low < until:  # `buckets` is asked for as it is for the counts, so the two agree
        high = min(low + timedelta(days=_CHUNK_DAYS), until)
        for bucket in buckets(site.time_zone, grain, since=low, until=high):
            day = bucket.start_day
            hour, minute = int(bucket.label[11:13]), int(bucket.label[14:16])
            slot = (day.weekday() * 24 + hour) * of_hour + minute // 15 % of_hour
            opened = overlap(site.calendar.day(day).open, bucket.start_s, bucket.end_s)
            usual = bucket.fold == 0 and day not in exceptional
            found.append(Cell(bucket.start_s, bucket.end_s, slot, day.toordinal(), opened, usual))
        low = high
    return found


async def _known(
    connection: asyncpg.Connection, spots: Sequence[Spot], *, since: date, until: date
) -> dict[str, list[Known]]:
    """Return the sums of gaps: people who were counted at no known minute."""
    a_day = 86_400
    low_s = int(datetime.fromisoformat(f"{since}T00:00Z").timestamp()) - a_day
    high_s = int(datetime.fromisoformat(f"{until}T00:00Z").timestamp()) + a_day
    histories = await load_histories(connection, spots, start_s=low_s, end_s=high_s)
    found: dict[str, list[Known]] = {}
    for spot in spots:
        history = histories[spot.id]
        cut = segments(history.calibrations)
        for gap in history.gaps:
            entered, _ = weigh_gap(gap, cut)
            if entered > 0 and gap.end_s > gap.start_s:
                each = Known(gap.start_s, gap.end_s, entered / UNIT)
                found.setdefault(spot.ref, []).append(each)
    return found


def _of_rows(
    wanted: Mapping[str, Sequence[CountRow]], cells: Mapping[str, SiteCells], spots: Sequence[str]
) -> dict[Key, Estimate]:
    found: dict[Key, Estimate] = {}
    for site, rows in wanted.items():
        here = cells[site]
        for row in rows:
            estimate = estimate_of(row, here, spots=spots)
            if estimate is not None:
                found[key_of(row)] = estimate
    return found


def estimate_of(row: CountRow, cells: SiteCells, *, spots: Sequence[str] = ()) -> Estimate | None:
    """Return a bucket's estimate; None if it was measured well enough.

    `spots` are those that a site's row counts, none: all.
    """
    model, named = cells.model, spots if row.spot is None else (row.spot,)
    only = [n for n, ref in enumerate(cells.spots) if ref in named] if named else None
    within = range(
        bisect_left(cells.starts, _instant(row.start)),
        bisect_left(cells.starts, _instant(row.until)),
    )
    coverage = model.coverage(within, only=only)
    if coverage is None or coverage >= COMPLETE:
        return None
    missing = [each for at in within if (each := model.missing(at, only=only)) is not None]
    if not missing:
        return None
    return _estimate(row.visits or 0, model, missing, coverage=round(coverage, 4))


def _estimate(
    measured: float, model: SiteModel, missing: Sequence[Missing], *, coverage: float
) -> Estimate:
    means = [each.mean for each in missing if each.mean is not None]
    if len(means) < len(missing):
        return Estimate(None, None, None, None, None, Method.NONE, MODEL, None, coverage)
    parts = [part for each in missing for part in each.parts]
    imputed = sum(means)
    methods = {_METHODS[part.kind] for part in parts}
    bounds = model.interval(parts)
    value = measured + imputed
    return Estimate(
        round(value, 1),
        round(measured + bounds.low80, 1),
        round(measured + bounds.high80, 1),
        round(measured + bounds.low95, 1),
        round(measured + bounds.high95, 1),
        methods.pop() if len(methods) == 1 else Method.MIXED,
        MODEL,
        round(imputed / value, 4) if value else 0.0,
        coverage,
    )


def _span(rows: Sequence[CountRow]) -> tuple[date, date]:
    """Return the local days that rows lie in; a day too many makes no difference."""
    first = min(date.fromisoformat(row.start[:10]) for row in rows) - timedelta(days=1)
    last = max(date.fromisoformat(row.until[:10]) for row in rows)
    return first, last + timedelta(days=2)


def _instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())
