"""The portal's pages on surveys: publish, hand out, offer at kiosks, and read what was answered.

Who may ask visitors builds and hands out; everybody reads the answers of the sites that they see.
A token is shown on the page that its form leads to and never again: we keep its hash alone. Each
number stands with population, channels, n and interval.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from aiohttp import web

from server.errors import VestibuleError
from server.feedback import answering, handing_out, offers, surveys
from server.feedback.answering import Answered, Cell
from server.feedback.battery import BUDGET_S, Population, asked_seconds
from server.feedback.qr import svg
from server.feedback.results import Choice, Results, Score, summed, withheld, words_of
from server.feedback.scores import Drivers, drivers
from server.feedback.surveys import Survey
from server.feedback.tokens import PURPOSE, Channel, Delay
from server.people.sealing import Seal
from server.portal import survey_builder
from server.portal.frame import Look, Portal, Section
from server.portal.survey_forms import (
    Problem,
    delay_of,
    demand_ask,
    form_of,
    may_ask,
    number,
    one_of,
    survey_of,
)
from server.rollup.places import load_sites

MOST_SHOWN = 50
_STATIC = Path(__file__).parent / "static"


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    names = portal.site.static.add(_STATIC)
    assert names == ["survey-builder.js"]
    portal.sections.append(Section("/surveys", "surveys"))
    routes = portal.site.app.router
    routes.add_get("/surveys", pages.listed)
    survey_builder.add(portal)
    routes.add_get("/surveys/{survey}", pages.show)
    routes.add_post("/surveys/{survey}", pages.move)
    routes.add_post("/surveys/{survey}/tokens", pages.hand_out)
    routes.add_post("/surveys/{survey}/offers", pages.offer)
    routes.add_post("/surveys/{survey}/offers/{offer}", pages.end_offer)


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
            may_ask=may_ask(look),
        )  # fmt: skip

    # -- one survey ------------------------------------------------------------------------------

    async def show(self, request: web.Request) -> web.Response:
        """Scores with their intervals, what drives them, and what visitors wrote."""
        async with self._portal.looking(request, "portal survey") as look:
            found = await survey_of(look, request)
            return await self._show(request, look, found)

    async def move(self, request: web.Request) -> web.Response:
        """Publish it, or close it."""
        form = await form_of(request)
        async with self._portal.looking(request, "portal move survey") as look:
            demand_ask(look)
            found = await survey_of(look, request)
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
        form = await form_of(request)
        async with self._portal.looking(request, "portal survey tokens") as look:
            demand_ask(look)
            found = await survey_of(look, request)
            names = {site.ref: site.name for site in await load_sites(look.db)}
        made = await self._portal.acted(
            look,
            "survey tokens",
            lambda db: handing_out.mint(
                db,
                look.organisation,
                key=self._key,
                survey=found.ref,
                site=form.get("site", ""),
                channel=one_of(Channel, form, "channel", Channel.LINK),
                touchpoint=form.get("touchpoint", ""),
                delay=delay_of(form),
                life=timedelta(days=number(form, "days", 30)),
                count=number(form, "count", 1),
                round_=form.get("round") or None,
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

    async def offer(self, request: web.Request) -> web.Response:
        """Let a site's kiosks, or one of them, offer it after a press."""
        form = await form_of(request)
        async with self._portal.looking(request, "portal survey offer") as look:
            demand_ask(look)
            found = await survey_of(look, request)
        site, _, spot = form.get("place", "").partition("/")
        done = await self._portal.acted(
            look,
            "offer survey",
            lambda db: offers.make(
                db,
                look.organisation,
                survey=found.ref,
                site=site,
                spot=spot or None,
                actor=look.visitor.actor,
                now=self._portal.now(),
            ),
        )
        if isinstance(done, VestibuleError):
            return await self._refused(request, found, done)
        raise web.HTTPSeeOther(f"/surveys/{found.ref}#offers")

    async def end_offer(self, request: web.Request) -> web.Response:
        """Offer it there no longer."""
        async with self._portal.looking(request, "portal survey offer") as look:
            demand_ask(look)
            found = await survey_of(look, request)
            there = await offers.listed(look.db, look.organisation, survey=found.id)
        ref = request.match_info["offer"]
        if ref not in {each.ref for each in there}:
            raise web.HTTPNotFound
        done = await self._portal.acted(
            look,
            "end survey offer",
            lambda db: offers.end(
                db, look.organisation, ref, actor=look.visitor.actor, now=self._portal.now()
            ),
        )
        if isinstance(done, VestibuleError):
            return await self._refused(request, found, done)
        raise web.HTTPSeeOther(f"/surveys/{found.ref}#offers")

    async def _refused(
        self, request: web.Request, found: Survey, error: VestibuleError
    ) -> web.Response:
        async with self._portal.looking(request, "portal survey") as look:
            found = await survey_of(look, request)
            return await self._show(request, look, found, problem=Problem.of(error))

    async def _show(
        self, request: web.Request, look: Look, found: Survey, *, problem: Problem | None = None
    ) -> web.Response:
        battery = found.battery
        seen = None if look.sees_all else sorted(look.seen)
        answers = await answering.answered(look.db, found, sites=seen)
        by = request.query.get("by", "")
        by = by if by in ("site", "spot") else ""
        cells = await answering.cells_of(look.db, found)
        told = await asyncio.to_thread(_told, found, answers, cells, by=by, whole=look.sees_all)
        sites = [(site.ref, site.name) for site in await load_sites(look.db)]
        kiosks = await _kiosks(look)
        offered = await offers.listed(look.db, look.organisation, survey=found.id, open_only=True)
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
            groups=_groups(told.results, dict(sites) | {each.ref: each.name for each in kiosks}),
            asked=battery.by_key,
            results=told.results,
            by=by,
            by_kiosk=told.by_kiosk,
            kiosks=kiosks,
            offers=[each for each in offered if each.site in look.seen],
            driven=told.driven,
            written=told.written,
            names=dict(sites),
            sites=[(ref, name) for ref, name in sites if ref in look.seen],
            channels=list(Channel),
            delays=list(Delay),
            asked_seconds=asked_seconds(battery),
            budget=BUDGET_S,
            may_ask=may_ask(look),
            problem=problem,
            curl=self._portal.command(request, look, f"surveys/{found.ref}/results"),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a survey: its results, what drives them (None: not for all), what was written.

    `by_kiosk`: whether any answer came by a kiosk's code.
    """

    results: Results
    driven: Drivers | None
    written: list[Answered]
    by_kiosk: bool


def _told(
    found: Survey, answers: Sequence[Answered], cells: Mapping[Cell, int], *, by: str, whole: bool
) -> Outcome:
    """Sum up, which is for a thread: there may be `MOST_ANSWERS`."""
    hide = withheld(found.population, answers, cells)
    one_time = [each.answers for each in answers if each.channel.one_time]
    return Outcome(
        summed(found.battery, found.population, answers, by=by, hide=hide),
        drivers(found.battery, one_time, seed=found.id) if whole else None,
        [] if hide else words_of(found.population, answers)[:MOST_SHOWN],
        any(each.spot for each in answers),
    )


@dataclass(frozen=True, slots=True)
class Group:
    """One table of scores: a way, its channels, and the place where results are parted."""

    way: str
    channels: tuple[str, ...]
    place: str
    hidden: bool
    scores: list[Score]
    choices: list[Choice]


@dataclass(frozen=True, slots=True)
class Kiosk:
    """A kiosk's spot, by whose codes a survey may be answered."""

    site: str
    site_name: str
    ref: str
    name: str


async def _kiosks(look: Look) -> list[Kiosk]:
    """Return the kiosks' spots of the sites that somebody sees, by their names."""
    rows = await look.db.fetch(
        "select s.ref as site, s.name as site_name, p.ref, p.name from spots p "
        "join sites s on s.id = p.site_id where p.kind = 'kiosk' and s.ref = any($1) "
        "order by s.name, s.ref, p.name, p.ref",
        sorted(look.seen),
    )
    return [Kiosk(*row.values()) for row in rows]


def _groups(results: Results, names: Mapping[str, str]) -> list[Group]:
    found: dict[tuple[str, str], Group] = {}
    for score in results.scores:
        group = found.setdefault(
            (score.way, score.group),
            Group(
                *(score.way, score.channels, names.get(score.group, score.group), score.hidden),
                *([], []),
            ),
        )
        group.scores.append(score)
    for choice in results.choices:
        found[(choice.way, choice.group)].choices.append(choice)
    return list(found.values())
