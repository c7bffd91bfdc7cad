"""The portal's pages on trials in some sites against others.

An experiment counts all sites, so these pages are for who sees all of them; who may also run
experiments there designs, seals and decides. The page before the start says what the design can
find; between start and horizon it shows no number.
"""

import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import asyncpg
from aiohttp import web

from server.errors import NotFoundError, VestibuleError
from server.fleet.checks import ChangedError
from server.insight import experiments, register
from server.insight.experiments import (
    PRE_WEEKS,
    SEED_BYTES,
    WEEKS,
    Design,
    OverlapError,
    StateError,
    TooEarlyError,
    TooFewPairsError,
    TooSoonError,
)
from server.insight.register import Decision, Experiment, MetricResult, Result, State
from server.insight.trial import MOST_METRICS
from server.insight.weeks import WEEK, Metric, monday
from server.people.roles import Permission, Place
from server.portal.frame import Look, Portal, Section
from server.rollup.places import load_sites

MOST_SHOWN = 200
STARTS = 12  # Mondays to choose from
_MOST_FIELD = 400


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing was done: a key of the catalogues, and what is put in."""

    key: str
    values: Mapping[str, object]


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/experiments", "experiments", whole=True))
    routes = portal.site.app.router
    routes.add_get("/experiments", pages.listed)
    routes.add_post("/experiments", pages.design)
    routes.add_get("/experiments/new", pages.new)
    routes.add_get("/experiments/{experiment}", pages.show)
    routes.add_post("/experiments/{experiment}", pages.change)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def listed(self, request: web.Request) -> web.Response:
        """The register, newest first, and how much each year taught."""
        words = request.query.get("q", "").replace("\0", "").strip()[:100]
        now = self._portal.now()
        async with self._looking(request, "portal experiments") as look:
            found = await register.register(look.db, words=words, limit=MOST_SHOWN, now=now)
            years = await register.learning(look.db, today=now.date())
        return self._portal.page(
            request,
            "experiments.html",
            look,
            searched=words,
            found=sorted(found, key=lambda each: (each.starts_on, each.ref), reverse=True),
            years=years,
            may_run=_may_run(look),
            first_of=first_of,
        )

    async def new(self, request: web.Request) -> web.Response:
        """The form of a design, with all sites chosen."""
        async with self._looking(request, "portal new experiment", runs=True) as look:
            return await self._form(request, look, Asked.at_first(self._today()))

    async def design(self, request: web.Request) -> web.Response:
        """Show what a design can find, or keep it."""
        form = await _form_of(request)
        asked = Asked.of(form, self._today())
        async with self._looking(request, "portal plan experiment", runs=True) as look:
            if form.get("do") != ["keep"]:
                return await self._plan(request, look, asked)
        now = self._portal.now()
        made = await self._portal.acted(
            look,
            "design experiment",
            lambda db: experiments.create(
                db, look.organisation, asked.design, actor=look.visitor.actor, now=now
            ),
        )
        if isinstance(made, VestibuleError):
            async with self._looking(request, "portal new experiment", runs=True) as look:
                return await self._form(request, look, asked, problem=problem_of(made))
        raise web.HTTPSeeOther(f"/experiments/{made.ref}")

    async def _plan(self, request: web.Request, look: Look, asked: "Asked") -> web.Response:
        try:
            async with look.db.transaction():
                pairs, planned = await experiments.plan(
                    look.db, asked.design, now=self._portal.now()
                )
        except VestibuleError as error:
            return await self._form(request, look, asked, problem=problem_of(error))
        return await self._form(request, look, asked, pairs=pairs, planned=planned)

    async def _form(
        self,
        request: web.Request,
        look: Look,
        asked: "Asked",
        *,
        problem: Problem | None = None,
        pairs: object = (),
        planned: object = (),
    ) -> web.Response:
        sites = [(site.ref, site.name) for site in await load_sites(look.db)]
        return self._portal.page(
            request,
            "new_experiment.html",
            look,
            status=422 if problem else 200,
            asked=asked,
            sites=sorted(sites, key=lambda pair: pair[1]),
            names=dict(sites),
            metrics=list(Metric),
            starts=_starts(self._today()),
            weeks=range(WEEKS[0], WEEKS[1] + 1),
            pre_weeks=range(PRE_WEEKS[0], PRE_WEEKS[1] + 1),
            pairs=pairs,
            planned=planned,
            problem=problem,
        )

    async def show(self, request: web.Request) -> web.Response:
        """One experiment: its design and seal; from its horizon on, its result."""
        async with self._looking(request, "portal experiment") as look:
            return await self._page(request, look)

    async def change(self, request: web.Request) -> web.Response:
        """Seal, decide or archive it; one who comes second is told."""
        form = await _form_of(request)
        async with self._looking(request, "portal change experiment", runs=True) as look:
            pass
        ref, now = request.match_info["experiment"], self._portal.now()
        given: dict[str, Any] = {
            "seen": _first(form, "version"),
            "actor": look.visitor.actor,
            "now": now,
        }

        async def act(db: asyncpg.Connection) -> Experiment:
            match _first(form, "do"):
                case "seal":
                    seed = secrets.token_bytes(SEED_BYTES)
                    return await experiments.seal(db, look.organisation, ref, seed=seed, **given)
                case "kept" | "dropped" as decision:
                    return await experiments.decide(
                        *(db, look.organisation, ref, Decision(decision)),
                        note=_first(form, "note"),
                        **given,
                    )
                case "archive":
                    return await experiments.archive(
                        db, look.organisation, ref, note=_first(form, "note"), **given
                    )
                case _:
                    raise web.HTTPNotFound

        done = await self._portal.acted(look, "change experiment", act)
        if isinstance(done, VestibuleError):
            async with self._looking(request, "portal experiment") as look:
                return await self._page(request, look, problem=problem_of(done))
        raise web.HTTPSeeOther(f"/experiments/{ref}")

    async def _page(
        self, request: web.Request, look: Look, *, problem: Problem | None = None
    ) -> web.Response:
        now = self._portal.now()
        try:
            known = await register.find(look.db, request.match_info["experiment"], now=now)
        except NotFoundError as error:
            raise web.HTTPNotFound from error
        result = None
        if known.result is not None or known.state in (State.SEALED, State.RUNNING):
            result = await experiments.result_of(look.db, known, now=now)
        names = {pair.first: pair.first_name for pair in known.pairs}
        names |= {pair.second: pair.second_name for pair in known.pairs}
        return self._portal.page(
            request,
            "experiment.html",
            look,
            status=422 if problem else 200,
            known=known,
            result=result,
            scale=scale_of(result),
            over=known.over(now),
            names=names,
            may_run=_may_run(look),
            problem=problem,
        )

    @asynccontextmanager
    async def _looking(
        self, request: web.Request, name: str, *, runs: bool = False
    ) -> AsyncIterator[Look]:
        """Look at the organisation as who sees all of it (and `runs` experiments), else 404."""
        if "\0" in request.match_info.get("experiment", ""):
            raise web.HTTPNotFound
        async with self._portal.looking(request, name) as look:
            if not look.sees_all or (runs and not _may_run(look)):
                raise web.HTTPNotFound
            yield look

    def _today(self) -> date:
        return self._portal.now().date()


def _may_run(look: Look) -> bool:
    return look.visitor.may(Permission.RUN_EXPERIMENTS, Place(look.organisation))


def problem_of(error: VestibuleError) -> Problem:
    """Return a refusal as the pages say it, in the reader's language."""
    match error:
        case TooFewPairsError():
            values = {"pairs": error.pairs, "least": error.least, "p": f"{error.least_p:.4g}"}
            return Problem("ex_too_few_pairs", values)
        case OverlapError():
            return Problem("ex_overlap", {"site": error.site_name, "other": error.other_name})
        case TooSoonError():
            return Problem("ex_too_soon", {"day": error.starts_on})
        case TooEarlyError():
            return Problem("ex_too_early", {"day": error.over_on})
        case ChangedError() | StateError():
            return Problem("ex_changed", {})
        case _:
            field = getattr(error, "parameter", None) or ""
            return Problem("ex_field", {"field": field, "detail": str(error)})


# -- the form ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """A design as the form has it; no sites: all."""

    design: Design

    @classmethod
    def at_first(cls, today: date) -> "Asked":
        return cls(Design("", (Metric.VISITS,), _starts(today)[0]))

    @classmethod
    def of(cls, form: Mapping[str, list[str]], today: date) -> "Asked":
        """Return what was sent; what is no number or day is left as it is at first."""
        first = cls.at_first(today).design
        try:
            starts_on = date.fromisoformat(_first(form, "starts_on"))
        except ValueError:
            starts_on = first.starts_on
        return cls(
            Design(
                name=_first(form, "name"),
                metrics=tuple(form.get("metric", []))[: MOST_METRICS + 1],
                starts_on=starts_on,
                weeks=_number(_first(form, "weeks"), first.weeks),
                pre_weeks=_number(_first(form, "pre_weeks"), first.pre_weeks),
                hypothesis=_first(form, "hypothesis"),
                by_region=_first(form, "by_region") == "yes",
                sites=tuple(form.get("site", [])) or ("",),
            )
        )

    def takes(self, site: str) -> bool:
        """Whether a site is ticked."""
        return not self.design.sites or site in self.design.sites


def _starts(today: date) -> list[date]:
    """Return the Mondays that an experiment may begin on."""
    return [monday(today) + n * WEEK for n in range(1, STARTS + 1)]


def _number(text: str, default: int) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else default


def _first(form: Mapping[str, list[str]], name: str) -> str:
    return (form.get(name) or [""])[0]


async def _form_of(request: web.Request) -> dict[str, list[str]]:
    """Return a form's texts by name, without what no text has."""
    form = await request.post()
    found: dict[str, list[str]] = {}
    for name, value in form.items():
        if isinstance(value, str):
            found.setdefault(name, []).append(value.replace("\0", "").strip()[:_MOST_FIELD])
    return found


# -- the result ----------------------------------------------------------------------------------


def first_of(known: Experiment) -> MetricResult | None:
    """Return the effect on the first metric of a decided experiment."""
    return known.result.metrics[0] if known.result and known.result.metrics else None


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a change stands on a result's axis, 0 to 100; `edge` is the largest shown."""

    edge: float

    def at(self, change: float) -> float:
        return round(50 + 50 * max(-1.0, min(1.0, change / self.edge)), 2)


def scale_of(result: Result | None) -> Scale:
    """Return an axis on which all intervals of a result lie, the same way both sides of 0."""
    ends = [
        abs(value)
        for each in (result.metrics if result else [])
        for value in (each.low, each.high, each.change)
        if value is not None
    ]
    return Scale(1.1 * max(ends, default=0.01) or 0.01)
