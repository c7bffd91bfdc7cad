"""The routes of /v1 about what was not counted, or not only counted: estimates and occupancy."""

from typing import Annotated

import msgspec

from server.api.acts import ActRoute
from server.api.parameters import Bucketed, write_cursor
from server.api.reads import Call, Route
from server.api.types import Page
from server.insight.estimate import Estimate, key_of, with_counts
from server.insight.imputation import Method
from server.rollup.answer import CountRow
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


ROUTES: tuple[Route, ...] = (
    Route(
        "/estimates",
        "What was not counted, estimated, beside what was",
        EstimateParameters,
        Page[EstimateRow],
        EstimateRow,
        _estimates,
    ),
)
ACTS: tuple[ActRoute, ...] = ()
