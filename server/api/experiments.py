"""The routes of /v1 about experiments: their designs, draws and results; and sites compared."""

from datetime import date, datetime
from math import expm1
from secrets import token_bytes
from typing import Annotated, assert_never

import msgspec

from server.api.acts import Act, ActRoute
from server.api.pages import after, page_of
from server.api.parameters import AsFormat, Listing, Nothing
from server.api.problems import BodyError, ParameterError
from server.api.reads import Call, Route
from server.api.types import Page
from server.errors import NotFoundError
from server.insight import experiments, register
from server.insight.comparison import Compared, Measure, Reason, comparison, edges
from server.insight.experiments import SEED_BYTES, Design
from server.insight.peers import Outside, Place
from server.insight.register import Decision, Experiment, Planned, Result, State
from server.insight.weeks import Metric

WRITE = "experiments:write"

# -- designs -------------------------------------------------------------------------------------


class NewExperiment(msgspec.Struct, forbid_unknown_fields=True):
    """A design: metrics are visits, conversion, atv, spv or smileys; `sites` none: all.

    Sites are matched into pairs by the last `pre_weeks` whole weeks, within their region alone
    with `by_region`. `starts_on` is a Monday to come.
    """

    name: str
    metrics: list[str]
    starts_on: date
    weeks: int = 8
    pre_weeks: int = 12
    hypothesis: str = ""
    by_region: bool = False
    sites: list[str] = []


class PairRow(msgspec.Struct, frozen=True):
    """Two sites; `treated` is one of them once the experiment is sealed."""

    first: str
    second: str
    distance: float
    treated: str | None


class PlanAnswer(msgspec.Struct, frozen=True):
    """The pairs of a design, and the least change that it finds in 80 of 100 cases."""

    pairs: list[PairRow]
    planned: list[Planned]


class ExperimentRecord(msgspec.Struct, frozen=True):
    """An experiment. `commitment` is SHA-256 of three lines: seed in hex, `sealed_at`, `design`.

    `design` is the sealed text; the coin of pair n is the lowest bit of the first byte of SHA-256
    of the lines seed, n from 0, `design`. `seed` is shown once it is decided or archived.
    """

    experiment: str
    name: str
    hypothesis: str
    state: State
    metrics: list[Metric]
    starts_on: date
    ends_on: date
    weeks: int
    pre_weeks: int
    by_region: bool
    planned: list[Planned]
    pairs: list[PairRow]
    created_at: datetime
    sealed_at: str | None
    commitment: str | None
    design: str | None
    seed: str | None
    decided_at: datetime | None
    decision: Decision | None
    note: str
    snapshot_sha256: str | None
    archived_at: datetime | None
    version: str


class ExperimentRow(msgspec.Struct, frozen=True):
    """An experiment in the register; its effect is of the first metric, once decided."""

    experiment: str
    name: str
    hypothesis: str
    state: State
    metrics: tuple[Metric, ...]
    starts_on: date
    ends_on: date
    pairs: int
    decision: Decision | None
    change: float | None
    low: float | None
    high: float | None
    p: float | None
    note: str


class ExperimentChange(msgspec.Struct, forbid_unknown_fields=True):
    """`to`: sealed, decided (with `decision`: kept or dropped) or archived."""

    to: State
    decision: Decision | None = None
    note: str = ""


class RegisterListing(Listing, frozen=True, forbid_unknown_fields=True):
    """A page of the register."""

    q: Annotated[str, msgspec.Meta(description="Words in name, hypothesis or note.")] = ""
    state: Annotated[State | None, msgspec.Meta(description="Only those in this state.")] = None


class SnapshotAnswer(msgspec.Struct, frozen=True):
    """The weeks that a result was made of: `sha256` is of the text `snapshot`, which is JSON."""

    experiment: str
    sha256: str
    snapshot: str


class LearningRow(msgspec.Struct, frozen=True):
    """How much a year taught: experiments begun, decided, and of these kept."""

    year: int
    begun: int
    decided: int
    kept: int


def _design(body: NewExperiment) -> Design:
    return Design(
        name=body.name,
        metrics=tuple(body.metrics),
        starts_on=body.starts_on,
        weeks=body.weeks,
        pre_weeks=body.pre_weeks,
        hypothesis=body.hypothesis,
        by_region=body.by_region,
        sites=tuple(body.sites),
    )


def record_of(known: Experiment) -> ExperimentRecord:
    """Return an experiment as it is answered."""
    treated = [arm[0] for arm in known.arms] if known.treated else [None] * len(known.pairs)
    return ExperimentRecord(
        experiment=known.ref,
        name=known.name,
        hypothesis=known.hypothesis,
        state=known.state,
        metrics=list(known.metrics),
        starts_on=known.starts_on,
        ends_on=known.ends_on,
        weeks=known.weeks,
        pre_weeks=known.pre_weeks,
        by_region=known.by_region,
        planned=list(known.planned),
        pairs=[
            PairRow(pair.first, pair.second, pair.distance, site)
            for pair, site in zip(known.pairs, treated, strict=True)
        ],
        created_at=known.created_at,
        sealed_at=None if known.sealed_at is None else known.sealed_at.isoformat(),
        commitment=known.commitment,
        design=known.design,
        seed=known.seed,
        decided_at=known.decided_at,
        decision=known.decision,
        note=known.note,
        snapshot_sha256=known.snapshot_sha256,
        archived_at=known.archived_at,
        version=known.version,
    )


def _row(known: Experiment) -> ExperimentRow:
    first = known.result.metrics[0] if known.result and known.result.metrics else None
    return ExperimentRow(
        known.ref,
        known.name,
        known.hypothesis,
        known.state,
        known.metrics,
        known.starts_on,
        known.ends_on,
        len(known.pairs),
        known.decision,
        first.change if first else None,
        first.low if first else None,
        first.high if first else None,
        first.adjusted_p if first else None,
        known.note,
    )


async def _plan(call: Call, asked: NewExperiment) -> PlanAnswer:
    pairs, planned = await experiments.plan(call.connection, _design(asked), now=call.now)
    rows = [PairRow(pair.first, pair.second, pair.distance, None) for pair in pairs]
    return PlanAnswer(rows, planned)


async def _create(act: Act, body: NewExperiment) -> ExperimentRecord:
    made = await experiments.create(act.connection, act.organisation, _design(body), **act.by)
    return record_of(made)


async def _change(act: Act, body: ExperimentChange) -> ExperimentRecord:
    given = (act.connection, act.organisation, act.ref)
    match body.to:
        case State.SEALED:
            seed = token_bytes(SEED_BYTES)
            return record_of(await experiments.seal(*given, seed=seed, seen=act.seen, **act.by))
        case State.DECIDED:
            if body.decision is None:
                raise BodyError("decision", "expected kept or dropped", code="bad_value")
            decided = await experiments.decide(
                *given, body.decision, note=body.note, seen=act.seen, **act.by
            )
            return record_of(decided)
        case State.ARCHIVED:
            return record_of(
                await experiments.archive(*given, note=body.note, seen=act.seen, **act.by)
            )
        case State.DESIGN | State.RUNNING:
            raise BodyError("to", "expected sealed, decided or archived", code="bad_value")
        case _:
            assert_never(body.to)


async def _find(call: Call) -> Experiment:
    return await register.find(call.connection, call.path["ref"], now=call.now)


async def _one(call: Call, asked: Nothing) -> ExperimentRecord:
    return record_of(await _find(call))


async def _result(call: Call, asked: Nothing) -> Result:
    return await experiments.result_of(call.connection, await _find(call), now=call.now)


async def _snapshot(call: Call, asked: Nothing) -> SnapshotAnswer:
    known = await _find(call)
    text = await register.snapshot_of(call.connection, known.ref)
    if text is None or known.snapshot_sha256 is None:
        raise NotFoundError(f"{known.ref} is not decided: nothing is kept of its weeks yet")
    return SnapshotAnswer(known.ref, known.snapshot_sha256, text)


async def _list(call: Call, asked: RegisterListing) -> Page[ExperimentRow]:
    found = await register.register(
        call.connection,
        words=asked.q,
        state=asked.state,
        after=after(asked),
        limit=asked.limit + 1,
        now=call.now,
    )
    return page_of(asked, [_row(each) for each in found], lambda row: row.experiment)


async def _learning(call: Call, asked: Nothing) -> Page[LearningRow]:
    years = await register.learning(call.connection, today=call.now.date())
    return Page([LearningRow(each.year, each.begun, each.decided, each.kept) for each in years])


# -- sites beside each other ---------------------------------------------------------------------


class ComparisonParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all sites are compared by, over the whole weeks that hold the range."""

    measure: Annotated[
        Measure,
        msgspec.Meta(
            description="growth: visits against the same week a year ago; conversion; smileys."
        ),
    ] = Measure.GROWTH
    since: Annotated[str, msgspec.Meta(description="First day.", examples=["2026-01-05"])] = (
        msgspec.field(name="from")
    )
    until: Annotated[str, msgspec.Meta(description="End, exclusive.", examples=["2026-03-30"])] = (
        msgspec.field(name="to")
    )
    format: AsFormat = None

    @property
    def weeks(self) -> tuple[date, date]:
        """The whole weeks. Raises ParameterError."""
        since, until = _day("from", self.since), _day("to", self.until)
        if since >= until:
            raise ParameterError("to", "`to` is not after `from`")
        return edges(since, until)


class ComparedRow(msgspec.Struct, frozen=True):
    """A site's relative difference to the chain (0.02: 2 % above it), with its 95 % interval.

    `shrunk`: the same, drawn to the chain as far as chance alone may have moved it. `rank` is one
    place only where intervals part, else a range; 1 is the highest. `limit_95` and `limit_998`:
    how far chance alone takes a site with so many `events`; `outside` is beyond the latter.
    """

    site: str
    name: str
    weeks: int
    events: float
    difference: float
    low: float
    high: float
    shrunk: float
    shrunk_low: float
    shrunk_high: float
    rank: str
    best_rank: int
    worst_rank: int
    limit_95: float
    limit_998: float
    outside: Outside | None


class LeftOutRow(msgspec.Struct, frozen=True):
    """A site that is not compared, and why."""

    site: str
    reason: Reason


class ComparisonAnswer(msgspec.Struct, frozen=True):
    """Sites, highest first. `dispersion`: by how much weeks vary more than counting alone makes.

    `between` is the variance of ln with which sites differ.
    """

    data: list[ComparedRow]
    left_out: list[LeftOutRow]
    since: date = msgspec.field(name="from")
    until: date = msgspec.field(name="to")
    dispersion: float
    between: float


async def _comparison(call: Call, asked: ComparisonParameters) -> ComparisonAnswer:
    since, until = asked.weeks
    found = await comparison(
        call.connection, asked.measure, since=since, until=until, now_s=call.now_s
    )
    rows = [_compared(place, found) for place in found.chain.places]
    return ComparisonAnswer(
        rows,
        [LeftOutRow(ref, reason) for ref, reason in found.left_out],
        since,
        until,
        round(found.chain.dispersion, 4),
        round(found.chain.between, 6),
    )


def _compared(place: Place, found: Compared) -> ComparedRow:
    warn, alarm = found.chain.limits(place.events)
    return ComparedRow(
        site=place.ref,
        name=found.names[place.ref],
        weeks=place.weeks,
        events=round(place.events, 1),
        difference=_share(place.ratio),
        low=_share(place.low),
        high=_share(place.high),
        shrunk=_share(place.shrunk),
        shrunk_low=_share(place.shrunk_low),
        shrunk_high=_share(place.shrunk_high),
        rank=place.rank,
        best_rank=place.best_rank,
        worst_rank=place.worst_rank,
        limit_95=_share(warn),
        limit_998=_share(alarm),
        outside=place.outside,
    )


def _share(ln: float) -> float:
    return round(expm1(ln), 6)


def _day(name: str, text: str) -> date:
    try:
        found = date.fromisoformat(text)
    except ValueError as error:
        raise ParameterError(name, f"`{name}`: expected a day such as 2026-01-05") from error
    if not 1990 < found.year < 2100:
        raise ParameterError(name, f"`{name}`: expected a day from 1991 to 2099")
    return found


ROUTES: tuple[Route, ...] = (
    Route(
        "/experiments",
        "The register of experiments, by reference",
        RegisterListing,
        Page[ExperimentRow],
        ExperimentRow,
        _list,
    ),
    Route(
        "/experiments:plan",
        "Pairs of a design and what it can find, keeping nothing",
        Nothing,
        PlanAnswer,
        None,
        _plan,
        method="POST",
        body=NewExperiment,
    ),
    Route(
        "/experiments:learning",
        "How many experiments a year taught something",
        Nothing,
        Page[LearningRow],
        LearningRow,
        _learning,
    ),
    Route(
        "/experiments/{ref}", "One experiment, its pairs and seal", Nothing, ExperimentRecord,
        None, _one,
    ),
    Route(
        "/experiments/{ref}/result",
        "What may be said of it now: nothing before its horizon",
        Nothing,
        Result,
        None,
        _result,
    ),
    Route(
        "/experiments/{ref}/snapshot",
        "The weeks that a decided result was made of",
        Nothing,
        SnapshotAnswer,
        None,
        _snapshot,
    ),
    Route(
        "/comparison",
        "Sites beside each other: a funnel, and ranks where intervals part",
        ComparisonParameters,
        ComparisonAnswer,
        ComparedRow,
        _comparison,
    ),
)  # fmt: skip
ACTS: tuple[ActRoute, ...] = (
    ActRoute(
        *("POST", "/experiments", "Design an experiment: sites in pairs", ExperimentRecord),
        *(_create, NewExperiment),
        write=WRITE,
    ),
    ActRoute(
        *("PATCH", "/experiments/{ref}", "Seal, decide or archive an experiment"),
        *(ExperimentRecord, _change, ExperimentChange),
        write=WRITE,
    ),
)
