"""The routes of /v1 about what was not counted, or not only counted: estimates and occupancy."""

from datetime import date, datetime, timedelta
from typing import Annotated

import msgspec

from server.api.acts import ActRoute
from server.api.pages import after
from server.api.parameters import Bucketed, Spanned, write_cursor
from server.api.reads import Call, Route
from server.api.types import Page
from server.insight.drift import Account, Inside, Kind
from server.insight.estimate import Estimate, key_of, with_counts
from server.insight.imputation import Method
from server.insight.occupancy import Occupancy, occupancy
from server.rollup.answer import CountRow
from server.rollup.buckets import local, utc_text
from server.rollup.places import Site, load_sites
from server.rollup.quality import Hours, Scope, State


class EstimateParameters(Bucketed, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Estimates in buckets of 15m and larger; `limit` counts buckets, estimated or not."""

    scope: Annotated[
        Scope,
        msgspec.Meta(description="Opening hours; `all`: what is measured outside them, too."),
    ] = Scope.OPEN
    limit: Annotated[
        int, msgspec.Meta(ge=1, le=5_000, description="The most buckets of this page.")
    ] = 2_000


class EstimateRow(msgspec.Struct, frozen=True):
    """A bucket that was not measured throughout, with what is estimated beside what was measured.

    `visits` is the measurement, null where there is none. `estimate` is that and what is imputed;
    the truth lies in [low80, high80] in 80 of 100 cases, in [low95, high95] in 95; null where
    nothing may be imputed. `method`: others (the site's other doors), profile (the same hours of
    the weeks before), known (people counted in a gap at no known minute), mixed, closed, none.
    `coverage` weighs doors and hours by their usual traffic.
    """

    site: str
    spot: str | None
    start: str = msgspec.field(name="from")
    until: str
    local: str
    fold: int
    visits: int | float | None
    estimate: float | None
    low80: float | None
    high80: float | None
    low95: float | None
    high95: float | None
    method: Method
    model: str
    estimated_share: float | None
    coverage: float | None
    hours: Hours
    state: State
    revision: int


async def _estimates(call: Call, asked: EstimateParameters) -> Page[EstimateRow]:
    page, found = await with_counts(call.connection, asked.query(), now_s=call.now_s)
    rows = [
        _row(row, estimate) for row in page.rows if (estimate := found.get(key_of(row))) is not None
    ]
    if page.next is None:
        return Page(rows)
    return Page(rows, write_cursor(asked, (page.next.ref, page.next.start_s)))


def _row(row: CountRow, estimate: Estimate) -> EstimateRow:
    return EstimateRow(
        row.site,
        row.spot,
        row.start,
        row.until,
        row.local,
        row.fold,
        row.visits,
        estimate.value,
        estimate.low80,
        estimate.high80,
        estimate.low95,
        estimate.high95,
        estimate.method,
        estimate.model,
        estimate.share,
        estimate.coverage,
        row.hours,
        row.state,
        row.revision,
    )


class OccupancyParameters(Spanned, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who was inside on local days, at most 62; `limit` ends a page after the site that passes it.

    People in and out are those of a site's perimeter, as in `/v1/counts`.
    """


class InsideRow(msgspec.Struct, frozen=True):
    """How many people were inside at the end of a quarter of an hour, and the band of 95 %.

    `kind`: back_corrected (the day is over, what its counters were off by is taken out), live (the
    usual drift is), raw (in - out, where too little is known of the drift), unknown (a counter was
    out since the site was empty; `occupancy` is null). `raw` is in - out since then.
    """

    site: str
    at: str
    local: str
    occupancy: float | None
    low: float | None
    high: float | None
    raw: int | float | None
    kind: Kind


class TurnRow(msgspec.Struct, frozen=True):
    """What was counted from one moment at which a site was empty to the next.

    `drift` is (in - out) / (in + out) of a turn whose end is `verified`: nobody had crossed for
    half an hour. `drift_alert`: above 1.5 %. `mean_dwell_s` is `derived`: the people's time inside
    over those who entered (Little), of doors alone.
    """

    site: str
    start: str = msgspec.field(name="from")
    until: str
    visits: int | float
    exits: int | float
    covered: bool
    verified: bool
    drift: float | None
    drift_alert: bool
    mean_dwell_s: float | None
    dwell: str = "derived"


class OccupancyAnswer(msgspec.Struct, frozen=True):
    """Who was inside, and the turns that tell how far the counters are off."""

    data: list[InsideRow]
    turns: list[TurnRow]
    next: str | None = None


async def _occupancy(call: Call, asked: OccupancyParameters) -> OccupancyAnswer:
    since, until = (_day(each) for each in asked.span)
    if isinstance(asked.span[1], datetime):
        until += timedelta(days=1)
    sites = await load_sites(call.connection, asked.site)
    begin = after(asked)
    rows: list[InsideRow] = []
    turns: list[TurnRow] = []
    following: str | None = None
    for site in sites:
        if site.ref <= begin:
            continue
        if len(rows) >= asked.limit:
            following = write_cursor(asked, (rows[-1].site, 0))
            break
        [found] = await occupancy(
            call.connection, [site], since=since, until=until, now_s=call.now_s
        )
        rows += [_inside(site, each) for each in found.inside]
        turns += _turns(found)
    return OccupancyAnswer(rows, turns, following)


def _day(value: date | datetime) -> date:
    return value.date() if isinstance(value, datetime) else value


def _inside(site: Site, each: Inside) -> InsideRow:
    shown = local(site.time_zone, each.at_s).isoformat(timespec="minutes")
    people, low, high = (None if v is None else round(v, 1) for v in each[2:5])
    raw = None if each.raw is None else round(each.raw, 4)
    return InsideRow(site.ref, utc_text(each.at_s), shown, people, low, high, raw, each.kind)


def _turns(found: Occupancy) -> list[TurnRow]:
    return [_turn(found.site, each) for each in found.turns]


def _turn(site: Site, each: Account) -> TurnRow:
    return TurnRow(
        site.ref,
        utc_text(each.start_s),
        utc_text(each.end_s),
        each.entered,
        each.left,
        each.covered,
        each.verified,
        None if each.drift is None else round(each.drift, 5),
        each.alert,
        None if each.dwell_s is None else round(each.dwell_s),
    )


ROUTES: tuple[Route, ...] = (
    Route(
        "/estimates",
        "What was not counted, estimated, beside what was",
        EstimateParameters,
        Page[EstimateRow],
        EstimateRow,
        _estimates,
    ),
    Route(
        "/occupancy",
        "Who was inside, and how far the counters drift",
        OccupancyParameters,
        OccupancyAnswer,
        InsideRow,
        _occupancy,
    ),
)
ACTS: tuple[ActRoute, ...] = ()
