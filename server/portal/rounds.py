"""The portal's page on rounds: a survey asked again, each time beside the first.

A round is asked at one site; what follows it asks the same there, with codes of its own. Each
number stands with n and interval, and with how it moved since the first round. Answers to posters
are nobody's once, and are counted, not compared. What is too few to be shown stays hidden here too.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from aiohttp import web

from server.errors import VestibuleError
from server.feedback import answering, surveys
from server.feedback.answering import Answered, Cell
from server.feedback.battery import Battery, Population
from server.feedback.results import ONE_TIME, Score, summed, withheld
from server.feedback.scores import Change, changes
from server.feedback.surveys import Round, Survey
from server.feedback.tokens import Channel, Delay
from server.portal.frame import Look, Portal
from server.portal.survey_forms import (
    Problem,
    delay_of,
    demand_ask,
    form_of,
    may_ask,
    survey_of,
)
from server.rollup.places import load_sites

CODES = [each for each in Channel if each.one_time]


class Do(StrEnum):
    """What a form asks for."""

    BEGIN = "begin"
    END = "end"


@dataclass(frozen=True, slots=True)
class Told:
    """What a round says of one measure, and how that moved since the first."""

    round: Round
    score: Score | None = None
    change: Change | None = None


@dataclass(slots=True)
class Course:
    """A first round and those that follow it; `measures`: of each factor ("": overall) all."""

    rounds: list[Round]
    answers: Mapping[str, int] = field(default_factory=dict)
    posters: int = 0
    measures: dict[str, list[Told]] = field(default_factory=dict)

    @property
    def first(self) -> Round:
        return self.rounds[0]

    @property
    def latest(self) -> Round:
        return self.rounds[-1]


def add(portal: Portal) -> None:
    """Add the page, which the survey's own leads to."""
    pages = Pages(portal)
    portal.site.app.router.add_get("/surveys/{survey}/rounds", pages.show)
    portal.site.app.router.add_post("/surveys/{survey}/rounds", pages.act)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def show(self, request: web.Request) -> web.Response:
        """All rounds of a survey at the sites that they see."""
        return await self._page(request)

    async def act(self, request: web.Request) -> web.Response:
        """Begin a round, or end one."""
        form = await form_of(request)
        async with self._portal.looking(request, "portal act on rounds") as look:
            demand_ask(look)
            found = await survey_of(look, request)
            known = [each for each in await surveys.rounds(look.db, look.organisation)
                     if each.survey == found.ref]  # fmt: skip
        actor, now = look.visitor.actor, self._portal.now()
        if form.get("do") == Do.END:
            ref = form.get("round", "")
            if ref not in {each.ref for each in known}:
                raise web.HTTPNotFound
            done = await self._portal.acted(
                look,
                "end round",
                lambda db: surveys.end_round(db, look.organisation, ref, actor=actor, now=now),
            )
        else:
            done = await self._portal.acted(
                look,
                "begin round",
                lambda db: surveys.begin_round(
                    db,
                    look.organisation,
                    survey=found.ref,
                    site=form.get("site", ""),
                    name=form.get("name", ""),
                    delay=delay_of(form),
                    follows=form.get("follows") or None,
                    actor=actor,
                    now=now,
                ),
            )
        if isinstance(done, VestibuleError):
            return await self._page(request, problem=Problem.of(done))
        raise web.HTTPSeeOther(f"/surveys/{found.ref}/rounds")

    async def _page(self, request: web.Request, *, problem: Problem | None = None) -> web.Response:
        async with self._portal.looking(request, "portal rounds") as look:
            found = await survey_of(look, request)
            courses = await self._courses(look, found)
            sites = [(s.ref, s.name) for s in await load_sites(look.db) if s.ref in look.seen]
        battery = found.battery
        language = self._portal.shell.words(request).language
        return self._portal.page(
            request,
            "rounds.html",
            look,
            status=422 if problem else 200,
            found=found,
            spoken=language if language in battery.languages else battery.languages[0],
            factors={factor.key: factor for factor in battery.factors},
            courses=courses,
            names=dict(sites),
            sites=sorted(sites, key=lambda pair: pair[1]),
            delays=list(Delay),
            channels=CODES,
            may_ask=may_ask(look),
            problem=problem,
            curl=self._portal.command(request, look, f"surveys/{found.ref}/results?by=round"),
        )

    async def _courses(self, look: Look, found: Survey) -> list[Course]:
        known = [
            each
            for each in await surveys.rounds(look.db, look.organisation)
            if each.survey == found.ref and each.site in look.seen
        ]
        seen = None if look.sees_all else sorted(look.seen)
        answers = await answering.answered(look.db, found, sites=seen)
        cells = await answering.cells_of(look.db, found)
        return await asyncio.to_thread(
            courses_of, known, found.battery, found.population, answers, cells
        )


def courses_of(
    rounds: Sequence[Round],
    battery: Battery,
    population: Population,
    answers: Sequence[Answered],
    cells: Mapping[Cell, int],
) -> list[Course]:
    """Return each first round with those that follow it and what they say, the latest first."""
    by_ref = {each.ref: each for each in rounds}

    def back(each: Round) -> list[Round]:
        """Return a round and those before it, down to the first."""
        found = [each]
        while (follows := found[-1].follows) in by_ref:
            found.append(by_ref[follows])
        return found

    courses: dict[str, Course] = {}
    for way in sorted(map(back, rounds), key=lambda way: (way[0].opened_at, len(way))):
        courses.setdefault(way[-1].ref, Course([])).rounds.append(way[0])
    hide = withheld(population, answers, cells, by="round")
    found = summed(battery, population, answers, by="round", hide=hide)
    scores: dict[tuple[str, str], Score] = {}
    hidden = {score.group for score in found.scores if score.way == ONE_TIME and score.hidden}
    for score in found.scores:
        if score.way == ONE_TIME and not score.hidden:
            scores[score.group, score.factor or ""] = score
    once: dict[str, list[Answered]] = {}
    for answer in answers:
        if answer.channel.one_time and answer.round is not None:
            once.setdefault(answer.round, []).append(answer)
    for course in courses.values():
        refs = {each.ref for each in course.rounds}
        course.answers = {ref: len(once.get(ref, ())) for ref in refs}
        course.posters = sum(a.round in refs and not a.channel.one_time for a in answers)
        _measure(course, battery, scores, hidden, once)
    return sorted(courses.values(), key=lambda each: each.latest.opened_at, reverse=True)


def _measure(
    course: Course,
    battery: Battery,
    scores: Mapping[tuple[str, str], Score],
    hidden: set[str],
    once: Mapping[str, Sequence[Answered]],
) -> None:
    """Set what a course's rounds say of each measure; nothing where nobody answered."""
    if not any(course.answers.values()):
        return
    first = course.first.ref
    moved: dict[str, Mapping[str, Change | None]] = {}
    for each in course.rounds[1:]:
        if not hidden & {first, each.ref}:
            both = [[row.answers for row in once.get(ref, ())] for ref in (first, each.ref)]
            moved[each.ref] = changes(battery, *both)
    for measure in ("", *(factor.key for factor in battery.factors)):
        course.measures[measure] = [
            Told(
                each, scores.get((each.ref, measure)), moved.get(each.ref, {}).get(measure)
            )
            for each in course.rounds
        ]  # fmt: skip
