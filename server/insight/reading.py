"""What KPIs are made of, read for sites and put into the buckets of their clocks.

Each source is read once for all sites and only if a KPI needs it. What is measured stays apart from
what is imputed: `imputed` has the visits with what was not covered put in.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from math import exp

import asyncpg

from server.feedback.indices import Z
from server.feedback.query import Basis, FeedbackRow, feedback
from server.feedback.response_rate import ResponseRate, response_rates
from server.insight import formulas
from server.insight.cells import Cell, Read, Span, empty, whole_span
from server.insight.definitions import Need
from server.insight.doors import REACH_WEEKS, Seen, Shares, weighed
from server.insight.estimate import Estimate, estimates
from server.insight.exchange import takings_in
from server.insight.formulas import Takings, busiest_hour, taken_together
from server.insight.occupancy import Occupancy, occupancy_of
from server.insight.recounts import CountingError, counting_errors
from server.insight.rosters import staffed_in
from server.insight.stays import later_purchases, shifted
from server.insight.tally import Range, Tally, tallies, tallies_of_each
from server.rollup.answer import ALL_ROWS, CountQuery, CountRow
from server.rollup.buckets import QUARTER_S, Bucket, Size, local, utc_text
from server.rollup.perimeter import load_perimeters
from server.rollup.places import Site
from server.rollup.quality import Scope
from server.rollup.query import counts

MEDIAN_STAY_MIN = 12.0
"""How long people stay where nothing better is known: the median of a lognormal, sigma 1."""
MEDIAN_OF_MEAN = exp(-0.5)
"""The median of that lognormal by its mean: Little's law gives the mean."""
_STAY_SITES, _STAY_DAYS = 50, 14
_LOOK_BACK_S = 6 * 3_600
_NOTHING_MISSED = 0.999


async def read(
    connection: asyncpg.Connection,
    within: Range,
    sites: Sequence[Site],
    *,
    needs: Collection[Need],
    imputed: bool = False,
    currency: str | None = None,
    spans: Mapping[int, Span] | None = None,
) -> dict[int, Read]:
    """Return by site what KPIs with these needs are made of, in the buckets of `within`.

    Sales are in `currency`, None: in each site's own. `spans` are those of the whole question by
    site, None: of `within`. Raises NoRateError.
    """
    found = await asyncio.to_thread(empty, within, sites, spans or {})
    if not found:
        return found
    if Need.VISITS in needs:
        await _read_visits(connection, within, found, needs=needs)
    if Need.SALES in needs:
        spread = Need.SPREAD in needs
        await _read_sales(connection, within, found, spread=spread, currency=currency)
        if Need.VISITS in needs and within.size in (Size.WEEK, Size.MONTH):
            await _match_by_day(connection, within, found, spread=spread, currency=currency)
    if Need.FEEDBACK in needs:
        await _read_feedback(connection, within, found)
    if Need.RESPONSES in needs:
        await _read_responses(connection, within, found)
    if Need.STAFF in needs:
        await _read_rosters(connection, found)
    if Need.DUE in needs and not within.size.is_days:
        await _read_due(connection, within, found)
    if Need.PEAK in needs and within.size.is_days:
        await _read_peaks(connection, within, found)
    if Need.STAY in needs:
        await _read_stays(connection, within, found)
    if imputed and Need.VISITS in needs:
        await _impute(connection, within, found)
    return found


def _at(instant_s: int) -> datetime:
    return datetime.fromisoformat(utc_text(instant_s))


# -- counters ------------------------------------------------------------------------------------


async def _read_visits(
    connection: asyncpg.Connection,
    within: Range,
    found: Mapping[int, Read],
    *,
    needs: Collection[Need],
) -> None:
    reads = found.values()
    sites = [each.site for each in reads]
    spans = {key: each.span for key, each in found.items()}
    perimeters = await load_perimeters(connection, sites, spans=spans)
    errors = await _errors(connection, found, now_s=within.now_s)
    for key, each in found.items():
        each.perimeter, each.error = perimeters[key], errors.get(key)
    outer = await tallies(connection, within, [(r.site, r.perimeter.outer) for r in reads])
    passing: dict[int, list[Tally]] = {}
    if Need.PASSERS in needs:
        groups = [(r.site, r.perimeter.passages) for r in reads]
        passing = await tallies(connection, within, groups)
    await asyncio.to_thread(_fill_visits, found, outer, passing)
    await _weigh_doors(connection, within, found)


async def _errors(
    connection: asyncpg.Connection, found: Mapping[int, Read], *, now_s: int
) -> dict[int, CountingError]:
    """Return the counting error of each site as it was known when its question's range ended."""
    by_day: dict[date, list[int]] = {}
    for key, each in found.items():
        day = datetime.fromtimestamp(min(each.span[1], now_s), UTC).date()
        by_day.setdefault(day, []).append(key)
    errors: dict[int, CountingError] = {}
    for day, keys in by_day.items():
        errors |= await counting_errors(connection, keys, day=day)
    return errors


def _fill_visits(
    found: Mapping[int, Read],
    outer: Mapping[int, Sequence[Tally]],
    passing: Mapping[int, Sequence[Tally]],
) -> None:
    for key, each in found.items():
        notes = frozenset({"doors_changed"}) if each.perimeter.changed else frozenset[str]()
        for number, tally in enumerate(outer.get(key, ())):
            cell = each.cells[number]
            cell.state, cell.revision = tally.state, cell.revision + tally.revision
            cell.inputs.visits = tally.entered
            cell.inputs.exits = tally.left
            cell.inputs.observed_s = tally.observed_s
            cell.inputs.expected_s = tally.expected_s
            cell.inputs.passers = _both(passing.get(key), number)
            cell.inputs.notes = notes


def _both(rows: Sequence[Tally] | None, number: int) -> float | None:
    if rows is None or rows[number].entered is None:
        return None
    return (rows[number].entered or 0) + (rows[number].left or 0)


async def _weigh_doors(
    connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]
) -> None:
    """Give each door's seconds its usual share, where a site's doors were not observed alike."""
    partial = [
        each
        for each in found.values()
        if len(each.perimeter.outer) > 1 and any(map(_is_partial, each.cells))
    ]
    if not partial:
        return
    size = Size.DAY if within.size.is_days else Size.HOUR
    first = min(each.grid[0].start_s for each in partial) - REACH_WEEKS * 7 * 86_400 - 86_400
    last = max(each.grid[-1].end_s for each in partial)
    spots = [spot for each in partial for spot in each.perimeter.outer]
    usual = replace(within, size=size, since=_at(first), until=_at(last))
    history = await tallies_of_each(connection, usual, spots)
    fine, seconds = usual, history
    if within.size is Size.QUARTER:
        fine = replace(within, since=_at(min(each.grid[0].start_s for each in partial)),
                       until=_at(last))  # fmt: skip
        seconds = await tallies_of_each(connection, fine, spots)
    await asyncio.to_thread(_fill_shares, partial, (usual, history), (fine, seconds))


def _is_partial(cell: Cell) -> bool:
    return cell.inputs.observed_s < cell.inputs.expected_s


_Told = tuple[Range, Mapping[int, Sequence[Tally]]]


def _fill_shares(partial: Sequence[Read], usual: _Told, fine: _Told) -> None:
    for each in partial:
        grid = fine[0].grid(each.site)
        shares = Shares(usual[0].grid(each.site), _seen(each, usual[1]))
        doors = list(zip(*_seen(each, fine[1]), strict=True))
        starts = [bucket.start_s for bucket in grid]
        for bucket, cell in zip(each.grid, each.cells, strict=True):
            if not _is_partial(cell):
                continue
            observed = expected = 0.0
            for at in range(bisect_left(starts, bucket.start_s), bisect_left(starts, bucket.end_s)):
                seen, wanted = weighed(doors[at], shares.at(grid[at]))
                observed, expected = observed + seen, expected + wanted
            cell.inputs.expected_s = round(expected)
            cell.inputs.observed_s = min(round(observed), cell.inputs.expected_s)


def _seen(each: Read, rows: Mapping[int, Sequence[Tally]]) -> list[list[Seen]]:
    return [
        [Seen(row.entered, row.observed_s, row.expected_s) for row in rows[spot.id]]
        for spot in each.perimeter.outer
    ]


async def _read_peaks(
    connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]
) -> None:
    """Find the busiest 60 minutes of opening time in each bucket."""
    first, last = whole_span(found)
    quarters = Range(Size.QUARTER, _at(first), _at(last), Scope.OPEN, within.now_s)
    groups = [(each.site, each.perimeter.outer) for each in found.values()]
    counted = await tallies(connection, quarters, groups)
    await asyncio.to_thread(_fill_peaks, found, quarters, counted)


def _fill_peaks(
    found: Mapping[int, Read], quarters: Range, counted: Mapping[int, Sequence[Tally]]
) -> None:
    for key, rows in counted.items():
        each = found[key]
        shares = [
            (b.start_s, t.entered, t.observed_s / t.expected_s if t.expected_s else None)
            for b, t in zip(quarters.grid(each.site), rows, strict=True)
        ]
        at = 0
        for bucket, cell in zip(each.grid, each.cells, strict=True):
            mine = []
            while at < len(shares) and shares[at][0] < bucket.end_s:
                if shares[at][0] >= bucket.start_s:
                    mine.append(shares[at])
                at += 1
            best = busiest_hour(mine)
            if best is not None:
                shown = local(each.site.time_zone, best[0]).isoformat(timespec="minutes")
                cell.inputs.peak = best[1]
                cell.inputs.peak_at = shown


# -- stays ---------------------------------------------------------------------------------------


async def _occupancies(
    connection: asyncpg.Connection, reads: Sequence[Read], *, since: date, until: date, now_s: int
) -> dict[int, Occupancy]:
    """Return who was inside, by the perimeter's counters, and the turns of the range's days."""
    refs = tuple(spot.ref for each in reads for spot in each.perimeter.outer)
    if not refs:
        return {}
    query = CountQuery(
        Size.QUARTER, since - timedelta(days=_STAY_DAYS), until, spots=refs, limit=ALL_ROWS
    )
    page = await counts(connection, query, now_s=now_s)

    def told() -> dict[int, Occupancy]:
        rows: dict[str, list[CountRow]] = {each.site.ref: [] for each in reads}
        for row in page.rows:
            rows[row.site].append(row)
        return {
            each.site.id: occupancy_of(
                each.site, rows[each.site.ref], since=since, until=until, now_s=now_s
            )
            for each in reads
        }

    return await asyncio.to_thread(told)


async def _read_stays(
    connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]
) -> None:
    """Add up people inside by quarters, and the stays of the turns that end in each bucket."""
    reads = list(found.values())
    since = min(local(r.site.time_zone, r.span[0]).date() for r in reads)
    until = max(local(r.site.time_zone, r.span[1] - 1).date() for r in reads)
    stays = await _occupancies(
        connection, reads, since=since, until=until + timedelta(days=1), now_s=within.now_s
    )
    await asyncio.to_thread(_fill_stays, found, stays)


def _fill_stays(found: Mapping[int, Read], stays: Mapping[int, Occupancy]) -> None:
    for key, occupancy in stays.items():
        each = found[key]
        starts = [at.at_s - QUARTER_S for at in occupancy.inside]
        turns = [turn for turn in occupancy.turns if turn.dwell_s is not None]
        ends = [turn.end_s for turn in turns]
        for bucket, cell in zip(each.grid, each.cells, strict=True):
            first, last = bisect_left(starts, bucket.start_s), bisect_left(starts, bucket.end_s)
            people = [i.people for i in occupancy.inside[first:last] if i.people is not None]
            first, last = bisect_right(ends, bucket.start_s), bisect_right(ends, bucket.end_s)
            ended = turns[first:last]
            cell.inputs.inside_s = QUARTER_S * sum(people) if people else None
            cell.inputs.inside_of_s = QUARTER_S * len(people)
            cell.inputs.stayed_s = cell.inputs.stayers = None
            if ended:
                cell.inputs.stayed_s = sum((turn.dwell_s or 0) * turn.entered for turn in ended)
                cell.inputs.stayers = sum(turn.entered for turn in ended)


async def _read_due(
    connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]
) -> None:
    """Shift visits to when they buy, by what came in the hours before, too."""
    first, last = whole_span(found)
    earlier = replace(within, since=_at(first - _LOOK_BACK_S), until=_at(last))
    medians = await _median_stays(connection, within, found)
    groups = [(each.site, each.perimeter.outer) for each in found.values()]
    counted = await tallies(connection, earlier, groups)
    await asyncio.to_thread(_fill_due, found, earlier, counted, medians)


def _fill_due(
    found: Mapping[int, Read],
    earlier: Range,
    counted: Mapping[int, Sequence[Tally]],
    medians: Mapping[int, float],
) -> None:
    for key, rows in counted.items():
        each, median = found[key], medians.get(key)
        note = "dwell_derived"
        if median is None:
            median, note = MEDIAN_STAY_MIN, "dwell_assumed"
        elif median > formulas.MOST_DWELL_MIN:
            note = "dwell_too_long"
        shares = later_purchases(median, bucket_min=60 if earlier.size is Size.HOUR else 15)
        starts = [bucket.start_s for bucket in earlier.grid(each.site)]
        due = dict(zip(starts, shifted([r.entered for r in rows], shares), strict=True))
        for bucket, cell in zip(each.grid, each.cells, strict=True):
            cell.inputs.due = due.get(bucket.start_s)
            cell.inputs.notes |= {note}


async def _median_stays(
    connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]
) -> dict[int, float]:
    """Return the median stay in minutes over the two weeks before the question's range, or now.

    By Little's law, of the turns that are known. It takes all quarters: of a few sites at a time.
    """
    by_day: dict[date, list[Read]] = {}
    for each in found.values():
        first = local(each.site.time_zone, min(each.span[0], within.now_s)).date()
        by_day.setdefault(first, []).append(each)
    stays: dict[int, Occupancy] = {}
    for until, reads in by_day.items():
        since = until - timedelta(days=_STAY_DAYS)
        for at in range(0, len(reads), _STAY_SITES):
            part = reads[at : at + _STAY_SITES]
            stays |= await _occupancies(
                connection, part, since=since, until=until, now_s=within.now_s
            )
    medians: dict[int, float] = {}
    for key, occupancy in stays.items():
        known = [t for t in occupancy.turns if t.dwell_s is not None]
        entered = sum(turn.entered for turn in known)
        if entered:
            mean_s = sum((turn.dwell_s or 0) * turn.entered for turn in known) / entered
            medians[key] = MEDIAN_OF_MEAN * mean_s / 60
    return medians


# -- tills, rosters, kiosks ----------------------------------------------------------------------


async def _read_sales(
    connection: asyncpg.Connection,
    within: Range,
    found: Mapping[int, Read],
    *,
    spread: bool,
    currency: str | None,
) -> None:
    sites = [each.site for each in found.values()]
    taken = await takings_in(connection, within, sites, currency=currency, spread=spread)
    await asyncio.to_thread(_fill_sales, found, taken)


def _fill_sales(found: Mapping[int, Read], taken: Mapping[int, Sequence[Takings]]) -> None:
    for key, sales in taken.items():
        for cell, each in zip(found[key].cells, sales, strict=True):
            inputs = cell.inputs
            inputs.sales = each
            if each.net_sales and each.currency != found[key].site.currency:
                inputs.notes |= {"converted"}
            inputs.matched = Takings(currency=each.currency) if inputs.visits is None else each


async def _match_by_day(
    connection: asyncpg.Connection,
    within: Range,
    found: Mapping[int, Read],
    *,
    spread: bool,
    currency: str | None,
) -> None:
    """Match sales with visits by the day, where a week or month was not covered throughout."""
    partial = [
        each
        for each in found.values()
        if any(
            cell.inputs.sales.transactions and (cell.inputs.coverage or 0) < _NOTHING_MISSED
            for cell in each.cells
        )
    ]
    if not partial:
        return
    by_day = replace(
        within,
        size=Size.DAY,
        since=_at(min(each.grid[0].start_s for each in partial)),
        until=_at(max(each.grid[-1].end_s for each in partial)),
    )
    counted = await tallies(connection, by_day, [(r.site, r.perimeter.outer) for r in partial])
    sites = [each.site for each in partial]
    sold = await takings_in(connection, by_day, sites, currency=currency, spread=spread)
    await asyncio.to_thread(_fill_matched, partial, by_day, counted, sold, currency)


def _fill_matched(
    partial: Sequence[Read],
    by_day: Range,
    counted: Mapping[int, Sequence[Tally]],
    sold: Mapping[int, Sequence[Takings]],
    currency: str | None,
) -> None:
    for each in partial:
        key = each.site.id
        days = list(zip(by_day.grid(each.site), counted.get(key, ()), sold[key], strict=False))
        nothing = Takings(currency=currency or each.site.currency)
        at = 0
        for bucket, cell in zip(each.grid, each.cells, strict=True):
            matched = [nothing]
            while at < len(days) and days[at][0].start_s < bucket.end_s:
                day, tally, taken = days[at]
                if day.start_s >= bucket.start_s and tally.entered is not None:
                    matched.append(taken)
                at += 1
            cell.inputs.matched = taken_together(matched)


async def _read_rosters(connection: asyncpg.Connection, found: Mapping[int, Read]) -> None:
    by_grid: dict[tuple[Bucket, ...], list[int]] = {}
    for key, each in found.items():
        by_grid.setdefault(each.grid, []).append(key)
    for grid, members in by_grid.items():
        edges = [_at(bucket.start_s) for bucket in grid] + [_at(grid[-1].end_s)]
        for key, rows in (await staffed_in(connection, members, edges)).items():
            for cell, staffed in zip(found[key].cells, rows, strict=True):
                cell.inputs.staffed_hours = staffed.hours
                cell.inputs.shifts = float(staffed.shifts)


async def _read_feedback(
    connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]
) -> None:
    """Add up answers by kind of question over a site's kiosks, as the misuse filter left them."""
    asked = CountQuery(
        *(within.size, within.since, within.until, within.scope),
        sites=tuple(each.site.ref for each in found.values()),
        limit=ALL_ROWS,
    )
    page = await feedback(connection, asked, now_s=within.now_s, basis=Basis.FILTERED)
    await asyncio.to_thread(_fill_feedback, found, page.rows)


def _fill_feedback(found: Mapping[int, Read], rows: Sequence[FeedbackRow]) -> None:
    by_ref = {each.site.ref: each for each in found.values()}
    at = {ref: {b.start_utc: n for n, b in enumerate(r.grid)} for ref, r in by_ref.items()}
    for row in rows:
        number = at[row.site].get(row.start)
        if number is None:
            continue
        cell = by_ref[row.site].cells[number]
        inputs = cell.inputs
        if row.pending:
            inputs.notes |= {"filter_pending"}
        if row.n is None:
            continue
        if row.kind is not None:
            before = inputs.answers.get(row.kind, ())
            inputs.answers = {**inputs.answers, row.kind: formulas.longest(before, row.answers)}
        cell.revision += row.revision
        if row.coverage is not None:
            cell.heard, cell.asked_of = cell.heard + row.coverage, cell.asked_of + 1


async def _read_responses(
    connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]
) -> None:
    """Set responses against exits, of the opening hours in which exits were observed."""
    refs = tuple(each.site.ref for each in found.values())
    asked = CountQuery(within.size, within.since, within.until, sites=refs, limit=ALL_ROWS)
    page = await response_rates(connection, asked, now_s=within.now_s)
    await asyncio.to_thread(_fill_responses, found, page.rows)


def _fill_responses(found: Mapping[int, Read], rows: Sequence[ResponseRate]) -> None:
    cells = {
        (each.site.ref, bucket.start_utc): cell
        for each in found.values()
        for bucket, cell in zip(each.grid, each.cells, strict=True)
    }
    for row in rows:
        cell = cells[row.site, row.start]
        exits = None if row.exits is None else float(row.exits)
        of_known = 0 if row.rate is None or exits is None else round(row.rate * exits)
        cell.inputs.responses = of_known
        cell.inputs.asked = exits


# -- what was not covered ------------------------------------------------------------------------


async def _impute(connection: asyncpg.Connection, within: Range, found: Mapping[int, Read]) -> None:
    """Put in what was not covered; errors of buckets are taken for independent."""
    whole = {each.site.ref: each for each in found.values() if each.perimeter.outer}
    if not whole:
        return
    query = CountQuery(
        *(within.size, within.since, within.until, within.scope), sites=tuple(whole), limit=ALL_ROWS
    )
    known = await estimates(connection, query, now_s=within.now_s)
    await asyncio.to_thread(_fill_imputed, whole, known)


def _fill_imputed(whole: Mapping[str, Read], known: Mapping[tuple[str, str], Estimate]) -> None:
    for ref, each in whole.items():
        for bucket, cell in zip(each.grid, each.cells, strict=True):
            estimate = known.get((ref, bucket.start_utc))
            if estimate is None:
                cell.imputed = cell.inputs.visits
                continue
            cell.imputed, cell.imputed_by = estimate.value, str(estimate.model)
            if estimate.low95 is not None and estimate.high95 is not None:
                cell.imputed_variance = ((estimate.high95 - estimate.low95) / (2 * Z)) ** 2
