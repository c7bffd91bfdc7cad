"""Questions about KPIs: what is read for them, how it is rolled up, and what a row says.

Everything is added up per site first, in buckets that the site's clock makes, and divided once, at
the end: by site, region or organisation. A row answers one KPI of one bucket.

Compared with the year before, buckets of days are made of days on both sides: each day that is
over beside the day that `calendar` aligns it with, whose flags are the row's. Sites that are not
comparable in both periods are left out of both sides of a comparison of regions and organisations;
of a single site the flags say why it is not like for like. Changed doors and low coverage are of
KPIs that counters are asked for alone: what tills say is compared alike, whatever is asked beside.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from server.insight.calendar import OF_COUNTERS, Year, aligned, country_of, incomparable
from server.insight.cells import Cell, Read, Span, heard
from server.insight.definitions import Definition, Need
from server.insight.formulas import Inputs, added
from server.insight.money import MixedCurrenciesError
from server.insight.question import (
    Compare,
    MetricQuery,
    Of,
    UnanswerableError,
    demand_answerable,
    grid_of,
    of_whole_periods,
)
from server.insight.reading import read
from server.insight.retail_calendar import calendar_of
from server.insight.retail_year import RetailCalendar
from server.insight.tally import Range
from server.insight.yearbefore import twin, year_before
from server.rollup.answer import Position
from server.rollup.buckets import Bucket, utc_text
from server.rollup.places import Site, load_sites
from server.rollup.quality import State

MOST_CELLS = 1_000_000
"""Sites x buckets of one page, both years of a comparison: some 10 seconds of work."""


class MetricRow(msgspec.Struct, frozen=True, gc=False):
    """One KPI of one bucket, at one site, in one region or in the whole organisation.

    `metric` is the id of its definition; where `value` is null, `flags` say why. `low` and `high`
    are its 95 % interval. `numerator` / `denominator` are the sums that it is made of. `at`: when
    a peak began. `coverage` weighs each door by its usual share of the people. `estimated` is the
    value with what was not covered put in by a model: never part of `value`. `compared` is the
    value of the year before (of `compared_sites` comparable sites), `difference` and `change` are
    against it, like for like. `local` is the bucket's label. `state` and `revision` are of what
    devices counted: tills and rosters may be corrected at any time.
    """

    metric: str
    unit: str
    site: str | None
    region: str | None
    sites: int
    start: str = msgspec.field(name="from")
    until: str
    local: str
    fold: int
    at: str | None
    value: float | None
    low: float | None
    high: float | None
    numerator: float | None
    denominator: float | None
    currency: str | None
    coverage: float | None
    state: State
    revision: int
    flags: tuple[str, ...]
    estimated: float | None
    estimated_low: float | None
    estimated_high: float | None
    estimated_by: str | None
    compared_local: str | None
    compared: float | None
    compared_sites: int | None
    difference: float | None
    change: float | None


@dataclass(frozen=True, slots=True)
class MetricPage:
    """Rows by place, time and KPI; `next` is None on the last page."""

    rows: list[MetricRow]
    next: Position | None


async def metrics(connection: asyncpg.Connection, query: MetricQuery, *, now_s: int) -> MetricPage:
    """Return one page of KPIs.

    Raises UnknownPlaceError, UnanswerableError, TooFineError, TooLongError; where sites of several
    currencies are put together without `currency`, MixedCurrenciesError; and NoRateError.
    """
    query, page, found = await _read(connection, query, now_s=now_s)
    before: dict[int, Read] = {}
    if query.compare is Compare.LAST_YEAR:
        before = await year_before(
            connection,
            page.query.within(now_s),
            [each.site for each in found.values()],
            whole=query.within(now_s),
            calendar=query.calendar,
            needs=query.needs,
            currency=query.currency if query.of_money else None,
        )
    regions = await _regions(connection) if query.by is Of.REGION else {}
    if query.of_money and query.by is not Of.SITE:
        _check_currencies(found, regions)
    rows = await asyncio.to_thread(_rows, page.query, found, before, regions, now_s)
    return page.cut(rows)


async def read_by_site(
    connection: asyncpg.Connection, query: MetricQuery, *, now_s: int
) -> tuple[dict[int, Read], Position | None]:
    """Return what a page of KPIs by site is made of, and where the next begins.

    Raises UnknownPlaceError, UnanswerableError, TooFineError, TooLongError, NoRateError.
    """
    _, page, found = await _read(connection, query, now_s=now_s)
    return found, page.next


async def _read(
    connection: asyncpg.Connection, query: MetricQuery, *, now_s: int
) -> tuple[MetricQuery, "_Page", dict[int, Read]]:
    """Return the question in its organisation's calendar, its page, and what that is made of."""
    query = of_whole_periods(replace(query, calendar=await calendar_of(connection)))
    demand_answerable(query)
    sites = await load_sites(connection, query.sites)
    page = _Page.of(query, sites)
    found = await read(
        connection,
        page.query.within(now_s),
        page.sites,
        needs=query.needs,
        imputed=query.estimates,
        currency=query.currency if query.of_money else None,
        spans=_spans(query.within(now_s), page.sites),
    )
    return query, page, found


@dataclass(frozen=True, slots=True)
class _Page:
    """What this page reads: whole sites, or part of one site's buckets; groups are cut after."""

    query: MetricQuery
    sites: list[Site]
    next: Position | None = None

    @classmethod
    def of(cls, query: MetricQuery, sites: list[Site]) -> "_Page":
        if not sites:
            return cls(query, sites)
        grid = len(grid_of(query, sites[0]))
        both = 1 if query.compare is Compare.NONE else 2
        days = query.within(0).grid(sites[0])
        most = max(1, MOST_CELLS // max(1, both * len(days)))
        if query.by is not Of.SITE:
            if len(sites) > most:
                raise UnanswerableError(
                    "from", f"{len(sites)} sites x {len(days)} {query.base}s are too many at once: "
                    "ask for fewer sites, a shorter range or larger buckets"
                )  # fmt: skip
            return cls(query, sites)
        ref, start_s = ("", 0) if query.after is None else (query.after.ref, query.after.start_s)
        left = [site for site in sites if site.ref >= ref]
        rows = query.limit // len(query.metrics)
        if not left:
            return cls(query, left)
        first = left[0]
        mine = grid_of(query, first)
        if first.ref == ref and start_s:
            mine = tuple(bucket for bucket in mine if bucket.start_s >= start_s)
        if mine and (len(mine) > rows or len(mine) < len(grid_of(query, first))):
            taken = mine[:rows]
            part = replace(query, since=_at(taken[0].start_s), until=_at(taken[-1].end_s))
            if len(mine) > rows:
                following: Position | None = Position(first.ref, mine[rows].start_s)
            else:
                following = _following(left[1:])
            return cls(part, [first], following)
        count = max(1, min(most, rows // max(1, grid)))
        return cls(query, left[:count], _following(left[count:]))

    def cut(self, rows: list[MetricRow]) -> MetricPage:
        """Return the page of these rows: of groups, what is after the position, and fits."""
        query = self.query
        if query.by is Of.SITE:
            return MetricPage(rows, self.next)
        if query.after is not None:
            rows = rows[_first_of(rows, query.after) :]
        room = query.limit - query.limit % len(query.metrics)
        following = _position(rows[room]) if len(rows) > room else None
        return MetricPage(rows[:room], following)


def _position(row: MetricRow) -> Position:
    """Return where a group's bucket stands: labels are its own, instants not where zones differ."""
    return Position(f"{row.local}|{row.fold}|{row.region or ''}", 0)


def _first_of(rows: Sequence[MetricRow], after: Position) -> int:
    """Return the number of a page's first row. Raises UnanswerableError if it is there no more."""
    for number, row in enumerate(rows):
        if _position(row) == after:
            return number
    raise UnanswerableError("cursor", "regions were changed meanwhile: begin without a cursor")


def _following(sites: Sequence[Site]) -> Position | None:
    return Position(sites[0].ref, 0) if sites else None


def _at(instant_s: int) -> datetime:
    return datetime.fromisoformat(utc_text(instant_s))


def _spans(within: Range, sites: Sequence[Site]) -> dict[int, Span]:
    """Return each site's whole range, of which a page is a part."""
    grids = ((site.id, within.grid(site)) for site in sites)
    return {key: (grid[0].start_s, grid[-1].end_s) for key, grid in grids if grid}


async def _regions(connection: asyncpg.Connection) -> dict[int, str | None]:
    return dict(
        await connection.fetch(
            "select s.id, r.ref from sites s left join regions r on r.id = s.region_id"
        )
    )


def _check_currencies(found: Mapping[int, Read], regions: Mapping[int, str | None]) -> None:
    """Refuse to add up several currencies: of a region, or where there are none, of all sites."""
    told: dict[str | None, set[str]] = {}
    for key, each in found.items():
        currency = each.cells[0].inputs.sales.currency
        if currency is not None:
            told.setdefault(regions.get(key), set()).add(currency)
    for currencies in told.values():
        if len(currencies) > 1:
            raise MixedCurrenciesError(currencies)


# -- rows ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Part:
    """What a site brings to a row: its sums, and both sides of its comparison."""

    cells: list[Cell]
    inputs: Inputs
    imputed: Inputs | None = None
    twins: Inputs | None = None
    alike: Inputs | None = None
    reasons: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()
    label: str | None = None


class _Sides(NamedTuple):
    """Both sides of a row's comparison, of its `sites`; `flags`: why they may not be alike."""

    sites: int = 0
    now: Inputs | None = None
    then: Inputs | None = None
    flags: frozenset[str] = frozenset()
    label: str | None = None


def _sides(parts: Sequence[_Part], *, of_visits: bool, alone: bool) -> _Sides:
    """Put the comparable parts together; a single site is compared as it is, and flagged."""
    apart = frozenset[str]() if of_visits else OF_COUNTERS
    known = [p for p in parts if p.twins is not None and (alone or not p.reasons - apart)]
    if not known:
        return _Sides()
    now, then = [p.alike for p in known if p.alike], [p.twins for p in known if p.twins]
    flags = frozenset().union(*((p.reasons - apart) | p.moved for p in known))
    return _Sides(len(known), added(now), added(then), flags, known[0].label)


class _Asked(NamedTuple):
    """A KPI, and what decides its rows' further columns."""

    metric: Definition
    of_visits: bool
    of_kiosks: bool
    of_peaks: bool


def _asked(query: MetricQuery) -> list[_Asked]:
    return [
        _Asked(
            each, Need.VISITS in each.needs, Need.FEEDBACK in each.needs, Need.PEAK in each.needs
        )
        for each in query.metrics
    ]


def _rows(
    query: MetricQuery,
    found: Mapping[int, Read],
    before: Mapping[int, Read],
    regions: Mapping[int, str | None],
    now_s: int,
) -> list[MetricRow]:
    """Return the rows of all places, by place, time and KPI."""
    asked, made = _asked(query), list[MetricRow]()
    if query.by is Of.SITE:
        for key, each in sorted(found.items(), key=lambda item: item[1].site.ref):
            for row in _parts(query, each, before.get(key), now_s):
                made += _of_place(query, (row,), asked=asked, site=each.site.ref, region=None)
        return made
    places: dict[str | None, dict[tuple[str, int], list[tuple[Bucket, _Part]]]] = {}
    for key, each in found.items():
        rows = places.setdefault(regions.get(key) if query.by is Of.REGION else None, {})
        for bucket, part in _parts(query, each, before.get(key), now_s):
            rows.setdefault((bucket.label, bucket.fold), []).append((bucket, part))
    for region, rows in sorted(places.items(), key=lambda place: place[0] or ""):
        for members in sorted(rows.values(), key=lambda row: min(b.start_s for b, _ in row)):
            made += _of_place(query, members, asked=asked, site=None, region=region)
    return made


def _parts(
    query: MetricQuery, each: Read, before: Read | None, now_s: int
) -> Iterable[tuple[Bucket, _Part]]:
    """Give a site's rows: its base buckets added up into those that were asked for."""
    known = {} if before is None else {b.label: (b, c) for b, c in _once(before)}
    grid = grid_of(query, each.site)
    if grid == each.grid and before is None and not query.estimates:
        for bucket, cell in zip(grid, each.cells, strict=True):
            yield bucket, _Part([cell], each.with_error(cell.inputs))
        return
    base = list(zip(each.grid, each.cells, strict=True))
    at = 0
    for bucket in grid:
        mine: list[tuple[Bucket, Cell]] = []
        while at < len(base) and base[at][0].start_s < bucket.end_s:
            mine.append(base[at])
            at += 1
        cells = [cell for _, cell in mine]
        part = _Part(cells, each.with_error(added([cell.inputs for cell in cells])))
        if query.estimates:
            part.imputed = _imputed(part.inputs, cells)
        if before is not None:
            _compare(part, each, before, mine, known, query.calendar, now_s)
        yield bucket, part


def _imputed(inputs: Inputs, cells: Sequence[Cell]) -> Inputs | None:
    """Return a part's sums with what was not covered put in; None where that may not be."""
    if not cells or any(cell.imputed is None for cell in cells):
        return None
    visits = sum(cell.imputed or 0 for cell in cells)
    relative = (inputs.count_variance or 0) / inputs.visits**2 if inputs.visits else 0.0
    return replace(
        inputs,
        visits=visits,
        due=None,
        matched=inputs.sales,
        observed_s=inputs.expected_s,
        count_variance=relative * visits**2 + sum(cell.imputed_variance for cell in cells),
        audited=True,  # of this sum there is an interval in any case: that of what was put in
    )


def _once(read: Read) -> Iterable[tuple[Bucket, Cell]]:
    """Give each label's first bucket: the second pass of an hour has no twin."""
    return ((b, c) for b, c in zip(read.grid, read.cells, strict=True) if b.fold == 0)


def _compare(
    part: _Part,
    each: Read,
    before: Read,
    mine: Sequence[tuple[Bucket, Cell]],
    known: Mapping[str, tuple[Bucket, Cell]],
    calendar: RetailCalendar,
    now_s: int,
) -> None:
    """Add to a part its like-for-like side, the year before's, and why they may not be alike."""
    pairs = [
        (bucket, cell, *known[label])
        for bucket, cell in mine
        if bucket.end_s <= now_s and (label := twin(bucket.label, each.site, calendar)) in known
    ]
    if not pairs:
        return
    part.alike = each.with_error(added([cell.inputs for _, cell, _, _ in pairs]))
    part.twins = before.with_error(added([cell.inputs for _, _, _, cell in pairs]))
    country = country_of(each.site.time_zone)
    days = {bucket.start_day for bucket, *_ in pairs}
    part.moved = frozenset().union(*(aligned(day, country, calendar).flags for day in days))
    labels = sorted(bucket.label for _, _, bucket, _ in pairs)
    part.label = labels[0] if len(labels) == 1 else f"{labels[0]}/{labels[-1]}"
    opening = each.site.calendar.opening
    now = _year(each, [b for b, *_ in pairs], part.alike)
    then = _year(before, [b for _, _, b, _ in pairs], part.twins)
    opens, closes = opening.opens_on, opening.closes_on
    part.reasons = frozenset(incomparable(now, then, opens_on=opens, closes_on=closes))


def _year(read: Read, grid: Sequence[Bucket], inputs: Inputs) -> Year:
    days = {bucket.start_day for bucket in grid}
    open_s = sum(read.site.calendar.day(day).open_s for day in days)
    return Year(min(days), max(days), inputs.coverage, open_s, read.perimeter.spots)


def _of_place(
    query: MetricQuery,
    members: Sequence[tuple[Bucket, _Part]],
    *,
    asked: Sequence[_Asked],
    site: str | None,
    region: str | None,
) -> list[MetricRow]:
    parts = [part for _, part in members]
    whole = added([part.inputs for part in parts])
    cells = parts[0].cells if len(parts) == 1 else [cell for part in parts for cell in part.cells]
    worst, revision = _standing(cells)
    kinds = {metric.of_visits for metric in asked}
    sides = {kind: _sides(parts, of_visits=kind, alone=site is not None) for kind in kinds}
    whole_imputed = _whole_imputed(parts)
    by = ";".join(sorted({cell.imputed_by for cell in cells if cell.imputed_by is not None}))
    bucket = members[0][0]
    start, end = _span(members)
    covered = whole.coverage
    rows: list[MetricRow] = []
    for metric, of_visits, of_kiosks, of_peaks in asked:
        value, low, high, flags, numerator, denominator = metric.compute(whole)
        side = sides[of_visits]
        then, difference, ratio = None, None, None
        if side.then is not None and side.now is not None:
            then, difference, ratio = _against(metric, side.then, side.now)
            flags = (*flags, *sorted(side.flags - set(flags)))
        estimate = None
        if whole_imputed is not None and of_visits and not metric.alone:
            estimate = metric.compute(whole_imputed)
        share = covered
        if not of_visits:
            share = heard(cells) if of_kiosks else None
        rows.append(
            MetricRow(
                metric.id,
                metric.unit,
                site,
                region,
                len(members),
                start,
                end,
                bucket.label,
                bucket.fold,
                whole.peak_at if of_peaks else None,
                _rounded(value),
                _rounded(low),
                _rounded(high),
                _rounded(numerator),
                _rounded(denominator),
                (whole.sales.currency or None) if metric.unit == "money" else None,
                share,
                worst,
                revision,
                flags,
                _rounded(estimate.value if estimate else None),
                _rounded(estimate.low if estimate else None),
                _rounded(estimate.high if estimate else None),
                by or None if estimate else None,
                side.label,
                _rounded(then),
                side.sites if query.compare is not Compare.NONE else None,
                difference,
                ratio,
            )
        )
    return rows


def _whole_imputed(parts: Sequence[_Part]) -> Inputs | None:
    """Return the sums with what was not covered put in; None unless each part has them."""
    filled = [part.imputed for part in parts if part.imputed is not None]
    return added(filled) if filled and len(filled) == len(parts) else None


def _span(members: Sequence[tuple[Bucket, _Part]]) -> tuple[str, str]:
    bucket = members[0][0]
    if len(members) == 1:
        return bucket.start_utc, bucket.end_utc
    return min(b.start_utc for b, _ in members), max(b.end_utc for b, _ in members)


def _against(
    metric: Definition, before: Inputs, after: Inputs
) -> tuple[float | None, float | None, float | None]:
    """Return a KPI the year before, by how much it changed since, and by which share of that."""
    then, now = metric.compute(before).value, metric.compute(after).value
    if now is None or then is None:
        return then, None, None
    return then, _rounded(now - then), _rounded(now / then - 1) if then > 0 else None


def _standing(cells: Sequence[Cell]) -> tuple[State, int]:
    """Return the state that is furthest from final, and all revisions together."""
    if len(cells) == 1:
        return cells[0].state, cells[0].revision
    states = {cell.state for cell in cells}
    worst = next((s for s in (State.OPEN, State.COMPLETE) if s in states), State.FINAL)
    return worst, sum(cell.revision for cell in cells)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
