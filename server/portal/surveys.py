"""The portal's pages on surveys: build, publish, hand out, and read what was answered.

Who may ask visitors builds and hands out; everybody reads the answers of the sites that they see.
A token is shown on the page that its form leads to and never again: we keep its hash alone. Each
number stands with population, channels, n and interval.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from server.errors import NotFoundError, VestibuleError
from server.feedback import surveys
from server.feedback.battery import (
    BUDGET_S,
    MOST_STATEMENTS,
    SECONDS,
    Battery,
    Factor,
    Item,
    ItemKind,
    Population,
    asked_seconds,
    seconds,
)
from server.feedback.qr import svg
from server.feedback.results import Results, Score, summed, withheld, words_of
from server.feedback.scores import drivers
from server.feedback.surveys import Survey
from server.feedback.tokens import PURPOSE, Channel, Delay
from server.fleet.checks import FieldError
from server.people.roles import Permission, Place
from server.people.sealing import Seal
from server.portal.forms import form_of
from server.portal.frame import Look, Portal, Section
from server.rollup.places import load_sites
from server.web.catalogue import LANGUAGES

E = TypeVar("E", bound=StrEnum)
FACTORS = 4
MOST_SHOWN = 50
_STATIC = Path(__file__).parent / "static"
_MOST_FIELD = 800


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    names = portal.site.static.add(_STATIC)
    assert names == ["survey-builder.js"]
    portal.sections.append(Section("/surveys", "surveys"))
    routes = portal.site.app.router
    routes.add_get("/surveys", pages.listed)
    routes.add_get("/surveys/new", pages.new)
    routes.add_post("/surveys/new", pages.build)
    routes.add_get("/surveys/{survey}", pages.show)
    routes.add_post("/surveys/{survey}", pages.move)
    routes.add_post("/surveys/{survey}/tokens", pages.hand_out)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing was done."""

    field: str
    detail: str

    @classmethod
    def of(cls, error: VestibuleError) -> "Problem":
        return cls(error.parameter if isinstance(error, FieldError) else "", str(error))


@dataclass(frozen=True, slots=True)
class Told:
    """A "you said, we did" card of a site."""

    site: str
    text: str


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._key = Seal(portal.settings.session_secret).sign(PURPOSE, b"")

    async def listed(self, request: web.Request) -> web.Response:
        """All surveys, by population, and what sites have told of what they did."""
        words = self._portal.shell.words(request)
        async with self._portal.looking(request, "portal surveys") as look:
            found = await surveys.listed(look.db, look.organisation)
            counts = dict(
                await look.db.fetch(
                    "select a.survey_id, count(*) from survey_answers a "
                    "join sites s on s.id = a.site_id where s.ref = any($1) group by 1",
                    sorted(look.seen),
                )
            )
            told = await look.db.fetch(
                "select s.ref, s.name, coalesce(a.told ->> $1, a.told ->> 'en') as text "
                "from actions a join sites s on s.id = a.site_id "
                "where a.published_at is not null order by a.published_at desc limit $2",
                *(words.language, MOST_SHOWN),
            )
        return self._portal.page(
            request,
            "surveys.html",
            look,
            populations=[
                (each, [one for one in found if one.population is each]) for each in Population
            ],
            counts=counts,
            cards=[Told(row["name"], row["text"]) for row in told
                   if row["text"] and row["ref"] in look.seen],
            may_ask=_may_ask(look),
        )  # fmt: skip

    # -- the builder -----------------------------------------------------------------------------

    async def new(self, request: web.Request) -> web.Response:
        """An empty builder."""
        async with self._portal.looking(request, "portal new survey") as look:
            _demand_ask(look)
        return self._builder(request, look, {})

    async def build(self, request: web.Request) -> web.Response:
        """Count a draft's seconds, or keep it."""
        form = await form_of(request, longest=_MOST_FIELD)
        async with self._portal.looking(request, "portal build survey") as look:
            _demand_ask(look)
        if form.get("do") != "keep":
            return self._builder(request, look, form)
        made = await self._portal.acted(
            look,
            "make survey",
            lambda db: surveys.make(
                db,
                look.organisation,
                name=form.get("name", ""),
                population=_population(form),
                battery=battery_of(form),
                actor=look.visitor.actor,
                now=self._portal.now(),
            ),
        )
        if isinstance(made, VestibuleError):
            return self._builder(request, look, form, problem=Problem.of(made))
        raise web.HTTPSeeOther(f"/surveys/{made.ref}")

    def _builder(
        self,
        request: web.Request,
        look: Look,
        form: Mapping[str, str],
        *,
        problem: Problem | None = None,
    ) -> web.Response:
        drafted = battery_of(form)
        return self._portal.page(
            request,
            "survey_builder.html",
            look,
            status=422 if problem else 200,
            form=form,
            problem=problem,
            populations=list(Population),
            spoken=list(LANGUAGES.items()),
            factors=FACTORS,
            statements=MOST_STATEMENTS,
            fixed=SECONDS,
            kinds=ItemKind,
            budget=BUDGET_S,
            total=asked_seconds(drafted) if form else None,
            costs={item.key: seconds(item) for item in drafted.items},
        )

    # -- one survey ------------------------------------------------------------------------------

    async def show(self, request: web.Request) -> web.Response:
        """Scores with their intervals, what drives them, and what visitors wrote."""
        async with self._portal.looking(request, "portal survey") as look:
            found = await _survey(look, request)
            return await self._show(request, look, found)

    async def move(self, request: web.Request) -> web.Response:
        """Publish it, or close it."""
        form = await form_of(request, longest=_MOST_FIELD)
        async with self._portal.looking(request, "portal move survey") as look:
            _demand_ask(look)
            found = await _survey(look, request)
        done = await self._portal.acted(
            look,
            "move survey",
            lambda db: surveys.move(
                db,
                look.organisation,
                found.ref,
                to=form.get("to", ""),
                actor=look.visitor.actor,
                now=self._portal.now(),
            ),
        )
        if isinstance(done, VestibuleError):
            return await self._refused(request, found, done)
        raise web.HTTPSeeOther(f"/surveys/{found.ref}")

    async def hand_out(self, request: web.Request) -> web.Response:
        """Make tokens, and show them this once: links and codes, or a poster to print."""
        form = await form_of(request, longest=_MOST_FIELD)
        async with self._portal.looking(request, "portal survey tokens") as look:
            _demand_ask(look)
            found = await _survey(look, request)
            names = {site.ref: site.name for site in await load_sites(look.db)}
        made = await self._portal.acted(
            look,
            "survey tokens",
            lambda db: surveys.mint(
                db,
                look.organisation,
                key=self._key,
                survey=found.ref,
                site=form.get("site", ""),
                channel=_channel(form),
                touchpoint=form.get("touchpoint", ""),
                delay=_delay(form),
                life=timedelta(days=_number(form, "days", 30)),
                count=_number(form, "count", 1),
                round_=None,
                random=secrets.token_bytes,
                actor=look.visitor.actor,
                now=self._portal.now(),
            ),
        )
        if isinstance(made, VestibuleError):
            return await self._refused(request, found, made)
        bound, handed = made
        base = self._portal.settings.public_url or f"http://{request.host}"
        urls = [f"{base}/s/{token.text}" for token in handed]
        pictures = [svg(url) for url in urls[:MOST_SHOWN]]
        return self._portal.page(
            request,
            "survey_poster.html" if bound.channel is Channel.POSTER else "survey_tokens.html",
            look,
            found=found,
            battery=found.battery,
            bound=bound,
            site_name=names[bound.site],
            typed_at=f"{base}/s",
            handed=[(url, token.typed, picture) for url, token, picture in
                    zip(urls, handed, [*pictures, *("",) * len(urls)], strict=False)],
        )  # fmt: skip

    async def _refused(
        self, request: web.Request, found: Survey, error: VestibuleError
    ) -> web.Response:
        async with self._portal.looking(request, "portal survey") as look:
            found = await _survey(look, request)
            return await self._show(request, look, found, problem=Problem.of(error))

    async def _show(
        self, request: web.Request, look: Look, found: Survey, *, problem: Problem | None = None
    ) -> web.Response:
        battery = found.battery
        seen = None if look.sees_all else sorted(look.seen)
        answers = await surveys.answered(look.db, found, sites=seen)
        by = "site" if request.query.get("by") == "site" else ""
        hide = withheld(found.population, answers, await surveys.cells_of(look.db, found))
        results = await asyncio.to_thread(
            summed, battery, found.population, answers, by=by, hide=hide
        )
        driven = None
        if look.sees_all:
            one_time = [each.answers for each in answers if each.channel.one_time]
            driven = await asyncio.to_thread(drivers, battery, one_time, seed=found.id)
        sites = [(site.ref, site.name) for site in await load_sites(look.db)]
        language = self._portal.shell.words(request).language
        spoken = language if language in battery.languages else battery.languages[0]
        return self._portal.page(
            request,
            "survey.html",
            look,
            status=422 if problem else 200,
            found=found,
            battery=battery,
            spoken=spoken,
            factors={factor.key: factor for factor in battery.factors},
            groups=_groups(results, dict(sites)),
            results=results,
            by=by,
            driven=driven,
            written=[] if hide else words_of(found.population, answers)[:MOST_SHOWN],
            names=dict(sites),
            sites=[(ref, name) for ref, name in sites if ref in look.seen],
            channels=list(Channel),
            delays=list(Delay),
            asked_seconds=asked_seconds(battery),
            budget=BUDGET_S,
            may_ask=_may_ask(look),
            problem=problem,
            curl=self._portal.command(request, look, f"surveys/{found.ref}/results"),
        )


@dataclass(frozen=True, slots=True)
class Group:
    """One table of scores: a way, its channels, and the site where results are parted."""

    way: str
    channels: tuple[str, ...]
    site: str
    hidden: bool
    scores: list[Score]


def _groups(results: Results, names: Mapping[str, str]) -> list[Group]:
    found: dict[tuple[str, str], Group] = {}
    for score in results.scores:
        group = found.setdefault(
            (score.way, score.group),
            Group(score.way, score.channels, names.get(score.group, score.group), score.hidden, []),
        )
        group.scores.append(score)
    return list(found.values())


def battery_of(form: Mapping[str, str]) -> Battery:
    """Return what a builder's form says, unchecked: empty rows are left out."""
    spoken = [code for code in LANGUAGES if form.get(f"title_{code}") or form.get(f"all_{code}")]

    def texts(name: str) -> dict[str, str]:
        return {code: form.get(f"{name}_{code}", "") for code in spoken}

    factors = [
        Factor(f"factor{at}", texts(f"factor{at}"), form.get(f"goal{at}", ""),
               form.get(f"action{at}", ""))
        for at in range(1, FACTORS + 1)
        if any(texts(f"factor{at}").values())
    ]  # fmt: skip
    items = [Item("overall", ItemKind.OVERALL, texts("all"))]
    items += [
        Item(
            f"item{at}",
            ItemKind.STATEMENT,
            texts(f"item{at}"),
            factor=f"factor{form.get(f'of{at}', '')}",
            reverse=form.get(f"reverse{at}") == "yes",
        )
        for at in range(1, MOST_STATEMENTS + 1)
        if any(texts(f"item{at}").values())
    ]
    if any(texts("words").values()):
        items.append(Item("words", ItemKind.TEXT, texts("words")))
    statements = sum(item.kind is ItemKind.STATEMENT for item in items)
    shown = min(_number(form, "shown", 6), max(statements, 1))
    return Battery(spoken, texts("title"), texts("why"), factors, items, shown)


def _may_ask(look: Look) -> bool:
    return look.visitor.may(Permission.ASK_VISITORS, Place(look.organisation))


def _demand_ask(look: Look) -> None:
    if not _may_ask(look):
        raise web.HTTPNotFound


async def _survey(look: Look, request: web.Request) -> Survey:
    ref = request.match_info["survey"]
    if "\0" in ref:
        raise web.HTTPNotFound
    try:
        return await surveys.find(look.db, look.organisation, ref)
    except NotFoundError as error:
        raise web.HTTPNotFound from error


def _number(form: Mapping[str, str], name: str, otherwise: int) -> int:
    text = form.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else otherwise


def _population(form: Mapping[str, str]) -> Population:
    return _one_of(Population, form, "population", Population.VISITORS)


def _channel(form: Mapping[str, str]) -> Channel:
    return _one_of(Channel, form, "channel", Channel.LINK)


def _delay(form: Mapping[str, str]) -> Delay:
    return _one_of(Delay, form, "delay", Delay.NOW)


def _one_of(kind: type[E], form: Mapping[str, str], name: str, otherwise: E) -> E:
    try:
        return kind(form[name]) if form.get(name) else otherwise
    except ValueError as error:
        raise FieldError(name, f"expected one of {', '.join(kind)}") from error
