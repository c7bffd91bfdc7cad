"""The routes of /v1 about KPIs: `metrics:query`, their definitions and targets."""

from datetime import date
from typing import Annotated, Literal

import msgspec

from server.api.acts import Act, ActRoute
from server.api.pages import after
from server.api.parameters import (
    AsFormat,
    Format,
    InCurrency,
    SpotListing,
    read_cursor,
    span_of,
    write_cursor,
)
from server.api.reads import Call, Route
from server.api.types import Page
from server.fleet.checks import Known
from server.insight import definitions, targets
from server.insight.metrics import MetricRow, metrics
from server.insight.projection import Outlook, Track
from server.insight.question import Bucketing, Compare, MetricQuery, Of
from server.insight.targets import Target
from server.rollup.answer import Position
from server.rollup.quality import Scope

_MOST_METRICS = 20


# -- questions -----------------------------------------------------------------------------------


class NoParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The question is the body; sent again it changes nothing. `cursor` goes into the body."""


class MetricQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which KPIs (ids, or names for the latest version), of when, of where, how rolled up.

    `from` and `to` are dates, local times of the sites, or times with offset; `to` is exclusive.
    `total` is one bucket of whole days, or of whole hours where `from` or `to` has a time.
    `retail_week` and `period` are whole ones of the organisation's calendar (`/v1/calendar`),
    labelled as `2026-R07` and `2026-P02`; they take dates.
    Sales count in all hours, also where `scope` is open. `estimates`: also say what the values
    would be with what was not covered put in, in fields of their own; that takes longer.
    `currency`: money is converted into it, day by day, by the rates that were stated, and flagged
    `converted`; it is needed where sites of several currencies are put together.
    """

    metrics: Annotated[
        tuple[str, ...],
        msgspec.Meta(min_length=1, max_length=_MOST_METRICS, examples=[["visits", "conversion"]]),
    ]
    since: str = msgspec.field(name="from")
    until: str = msgspec.field(name="to")
    bucket: Bucketing = Bucketing.DAY
    scope: Scope = Scope.ALL
    by: Of = Of.SITE
    sites: tuple[str, ...] = ()
    compare: Compare = Compare.NONE
    estimates: bool = False
    currency: InCurrency | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=50_000)] = 20_000
    cursor: str | None = None
    format: Format | None = None

    def query(self) -> MetricQuery:
        """Return the question. Raises ParameterError, BodyError, UnknownMetricError."""
        since, until = span_of(self.since, self.until)
        position = None if self.cursor is None else read_cursor(self)
        return MetricQuery(
            tuple({definitions.find(metric): None for metric in self.metrics}),
            *(since, until, self.bucket, self.scope, self.by, self.sites, self.compare),
            *(self.estimates, self.limit),
            None if position is None else Position(str(position[0]), int(position[1])),
            self.currency,
        )


async def _metrics(call: Call, asked: MetricQuestion) -> Page[MetricRow]:
    found = await metrics(call.connection, asked.query(), now_s=call.now_s)
    following = None
    if found.next is not None:
        following = write_cursor(asked, (found.next.ref, found.next.start_s))
    return Page(found.rows, following)


# -- definitions ---------------------------------------------------------------------------------


class DefinitionParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every KPI means; the same for everyone."""

    format: AsFormat = None


class DefinitionRow(msgspec.Struct, frozen=True):
    """A KPI: rows of `metrics:query` bear its id. `days`: not for buckets below a day."""

    metric: str
    name: str
    unit: str
    formula: str
    inputs: tuple[str, ...]
    interval: str
    rollup: str
    days: bool
    targets: bool


async def _definitions(_: Call, __: DefinitionParameters) -> Page[DefinitionRow]:
    return Page(
        [
            DefinitionRow(
                *(each.id, each.name, each.unit, each.formula, each.inputs, each.interval),
                *(each.rollup, each.days, each.projected),
            )
            for each in definitions.REGISTRY.values()
        ]
    )


# -- targets -------------------------------------------------------------------------------------


class TargetListing(SpotListing, frozen=True, forbid_unknown_fields=True):
    """Targets and where they stand, by reference; each page works out those on it."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=500, description="The most rows.")] = 100


class TargetRow(msgspec.Struct, frozen=True):
    """A target, and where it stands.

    `projected` is the period's value as it is likely to be, with its 80 % interval; on track: all
    of that meets the target; off track: none; at risk: part. `reason` says why nothing can be said.
    `needed` is what the days left must bring for the target to be met exactly, `usual` what they
    are expected to: per day, or as the ratio over them. `coverage` is that of the `days_done`, of
    which `days_measured` count as measured. Days on which the site is closed are none of those
    left, nor in scope `open` of those done.
    """

    target: str
    site: str
    metric: str
    since: date = msgspec.field(name="from")
    until: date = msgspec.field(name="to")
    wanted: float
    at_most: bool
    scope: str
    note: str
    track: Track
    reason: str | None
    to_date: float | None
    projected: float | None
    low: float | None
    high: float | None
    probability: float | None
    days_left: int
    days_done: int
    days_measured: int
    needed: float | None
    usual: float | None
    coverage: float | None


class TargetRecord(msgspec.Struct, frozen=True):
    """A target as it may be edited."""

    target: str
    site: str
    metric: str
    since: date = msgspec.field(name="from")
    until: date = msgspec.field(name="to")
    wanted: float
    at_most: bool
    scope: str
    note: str
    version: str


class NewTarget(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a KPI (id or name) of a site is to be over the whole days of [from, to)."""

    site: str
    metric: str
    since: date = msgspec.field(name="from")
    until: date = msgspec.field(name="to")
    wanted: float
    at_most: bool = False
    scope: Literal["all", "open"] = "all"
    note: str = ""


class TargetWrite(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What may be changed of a target; another period or KPI is another target."""

    wanted: float | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET


async def _targets(call: Call, asked: TargetListing) -> Page[TargetRow]:
    found = await targets.listed(
        call.connection, sites=asked.site, after=after(asked), limit=asked.limit + 1
    )
    more, found = len(found) > asked.limit, found[: asked.limit]
    stand = await targets.outlooks(call.connection, found, now_s=call.now_s)
    following = write_cursor(asked, (found[-1].ref, 0)) if more else None
    return Page([_row(known, stand[known.ref]) for known in found], following)


def _row(known: Known[Target], stands: Outlook) -> TargetRow:
    facts = known.facts
    return TargetRow(
        *(known.ref, facts.site, facts.metric, facts.since, facts.until, facts.wanted),
        *(facts.at_most, facts.scope, facts.note, stands.track, stands.reason),
        *(stands.to_date, stands.projected, stands.low, stands.high, stands.probability),
        *(stands.days_left, stands.days_done, stands.days_measured, stands.needed, stands.usual),
        stands.coverage,
    )


def _record(known: Known[Target]) -> TargetRecord:
    facts = known.facts
    return TargetRecord(
        *(known.ref, facts.site, facts.metric, facts.since, facts.until, facts.wanted),
        *(facts.at_most, facts.scope, facts.note, known.version),
    )


async def _add_target(act: Act, body: NewTarget) -> TargetRecord:
    wanted = Target(
        *(body.site, body.metric, body.since, body.until, body.wanted, body.at_most),
        *(body.scope, body.note),
    )
    return _record(await targets.add(act.connection, act.organisation, wanted, **act.by))


async def _get_target(act: Act) -> TargetRecord:
    return _record(await targets.find(act.connection, act.organisation, act.ref))


async def _edit_target(act: Act, body: TargetWrite) -> TargetRecord:
    found = await targets.edit(
        act.connection,
        act.organisation,
        act.ref,
        wanted=None if body.wanted is msgspec.UNSET else body.wanted,
        note=None if body.note is msgspec.UNSET else body.note,
        seen=act.seen,
        **act.by,
    )
    return _record(found)


async def _remove_target(act: Act) -> TargetRecord:
    return _record(await targets.remove(act.connection, act.organisation, act.ref, **act.by))


_WRITE = "targets:write"
ROUTES: tuple[Route, ...] = (
    Route(
        *("/metrics:query", "KPIs in buckets, rolled up and compared", NoParameters),
        *(Page[MetricRow], MetricRow, _metrics),
        method="POST",
        body=MetricQuestion,
    ),
    Route(
        *("/definitions", "What each KPI means", DefinitionParameters, Page[DefinitionRow]),
        *(DefinitionRow, _definitions),
    ),
    Route(
        *("/targets", "Targets, and where they stand", TargetListing, Page[TargetRow]),
        *(TargetRow, _targets),
    ),
)
ACTS: tuple[ActRoute, ...] = (
    ActRoute(
        "POST", "/targets", "Set a target", TargetRecord, _add_target, NewTarget, write=_WRITE
    ),
    ActRoute("GET", "/targets/{ref}", "One target, to be edited", TargetRecord, _get_target),
    ActRoute(
        *("PATCH", "/targets/{ref}", "Change a target", TargetRecord, _edit_target, TargetWrite),
        write=_WRITE,
    ),
    ActRoute(
        *("DELETE", "/targets/{ref}", "Give a target up", TargetRecord, _remove_target),
        write=_WRITE,
    ),
)
