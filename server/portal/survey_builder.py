"""The portal's builder of surveys: a draft is counted while it is made, and kept as a version.

Statements, the overall score, choices and a free text, in up to three languages. A choice's options
stand one to a line; the n-th lines of all languages are one option.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

from aiohttp import web

from server.errors import VestibuleError
from server.feedback import surveys
from server.feedback.battery import (
    BUDGET_S,
    MOST_CHOICES,
    MOST_OPTIONS,
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
from server.portal.frame import Look, Portal
from server.portal.survey_forms import Problem, demand_ask, form_of, number, one_of
from server.web.catalogue import LANGUAGES

FACTORS = 4


def add(portal: Portal) -> None:
    """Add the builder's page."""
    builder = Builder(portal)
    routes = portal.site.app.router
    routes.add_get("/surveys/new", builder.new)
    routes.add_post("/surveys/new", builder.build)


class Builder:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def new(self, request: web.Request) -> web.Response:
        """An empty builder."""
        async with self._portal.looking(request, "portal new survey") as look:
            demand_ask(look)
        return self._page(request, look, {})

    async def build(self, request: web.Request) -> web.Response:
        """Count a draft's seconds, or keep it."""
        form = await form_of(request)
        async with self._portal.looking(request, "portal build survey") as look:
            demand_ask(look)
        if form.get("do") != "keep":
            return self._page(request, look, form)
        made = await self._portal.acted(
            look,
            "make survey",
            lambda db: surveys.make(
                db,
                look.organisation,
                name=form.get("name", ""),
                population=one_of(Population, form, "population", Population.VISITORS),
                battery=battery_of(form),
                actor=look.visitor.actor,
                now=self._portal.now(),
            ),
        )
        if isinstance(made, VestibuleError):
            return self._page(request, look, form, problem=Problem.of(made))
        raise web.HTTPSeeOther(f"/surveys/{made.ref}")

    def _page(
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
            choices=MOST_CHOICES,
            most_options=MOST_OPTIONS,
            fixed=SECONDS,
            kinds=ItemKind,
            budget=BUDGET_S,
            total=asked_seconds(drafted) if form else None,
            costs={item.key: seconds(item) for item in drafted.items},
        )


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
    items += [
        Item(
            f"choice{at}", ItemKind.CHOICE, texts(f"choice{at}"), options=_options(form, at, spoken)
        )
        for at in range(1, MOST_CHOICES + 1)
        if any(texts(f"choice{at}").values())
    ]
    if any(texts("words").values()):
        items.append(Item("words", ItemKind.TEXT, texts("words")))
    statements = sum(item.kind is ItemKind.STATEMENT for item in items)
    shown = min(number(form, "shown", 6), max(statements, 1))
    return Battery(spoken, texts("title"), texts("why"), factors, items, shown)


def _options(form: Mapping[str, str], at: int, spoken: Sequence[str]) -> list[dict[str, str]]:
    """Return a choice's options: line by line in each language; what one lacks is empty."""
    lines = [
        [line for line in form.get(f"options{at}_{code}", "").split("\n") if line]
        for code in spoken
    ]
    return [dict(zip(spoken, each, strict=True)) for each in zip_longest(*lines, fillvalue="")]
