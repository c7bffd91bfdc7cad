"""The portal's pages on what visitors answered, and what is done about it.

A site's page fits a phone: whoever runs one shop opens it straight away. Raw presses stand beside
those that count, with the reasons for the others. Alerts are taken and done here, and actions
planned, by who may act on feedback at that very site; all others see the same page without buttons.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import asyncpg
from aiohttp import web

from protocol.frame import signed
from server.errors import NotFoundError, VestibuleError
from server.feedback import actions, alerts
from server.feedback.actions import LANGUAGES, Action, Plan
from server.feedback.alerts import Alert
from server.feedback.answers import Question
from server.feedback.indices import Index, Kind, index_of
from server.feedback.misuse import VERSION, Reason
from server.feedback.query import Basis, FeedbackRow, feedback
from server.feedback.response_rate import Rates, response_rates
from server.feedback.results import Share, shares
from server.feedback.wording import worded
from server.people.roles import Permission, Place
from server.portal import numbers
from server.portal.forms import day_of, form_of
from server.portal.frame import Look, Portal, Section
from server.rollup.answer import CountQuery
from server.rollup.buckets import Size, local
from server.rollup.places import Site, load_sites
from server.rollup.quality import Scope

T = TypeVar("T")
DAYS = 28
_DONE_SHOWN = 5
_ACTIONS_SHOWN = 20
_MOST_FIELD = 2_000


@dataclass(frozen=True, slots=True)
class Asked:
    """One question's answers of the last weeks: those that count, beside all that was pressed."""

    questionnaire: str
    question: int
    kind: Kind
    answers: tuple[int, ...]
    index: Index | None
    raw: int
    raw_index: Index | None

    @property
    def kept(self) -> int:
        return sum(self.answers)

    @property
    def key(self) -> Question:
        return Question(signed(int(self.questionnaire, 16), 64), self.question)

    def shares(self, options: int) -> tuple[Share, ...]:
        """Return a choice's shares, of so many options; 0: of those that were chosen."""
        return shares((self.answers + (0,) * options)[: options or None])


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing was done: the code of the rule, and the field it is about."""

    code: str
    field: str
    detail: str

    @classmethod
    def of(cls, error: VestibuleError) -> "Problem":
        return cls(error.code, getattr(error, "parameter", ""), str(error))


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/feedback", "feedback"))
    routes = portal.site.app.router
    routes.add_get("/feedback", pages.listed)
    routes.add_post("/feedback/touchpoints", pages.add_touchpoint)
    routes.add_post("/feedback/alerts/{alert}", pages.answer_alert)
    routes.add_post("/feedback/actions/{action}", pages.change_action)
    routes.add_get("/feedback/{site}", pages.show)
    routes.add_post("/feedback/{site}/actions", pages.plan)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def listed(self, request: web.Request) -> web.Response:
        """Every site with its open alerts; who sees one site alone is led to it."""
        return await self._list(request)

    async def _list(self, request: web.Request, *, problem: Problem | None = None) -> web.Response:
        async with self._portal.looking(request, "portal feedback") as look:
            sites = [site for site in await load_sites(look.db) if site.ref in look.seen]
            found = await alerts.listed(look.db, look.organisation, open_only=True)
            touchpoints = await actions.touchpoints(look.db, look.organisation)
        if len(sites) == 1 and not look.sees_all:
            raise web.HTTPSeeOther(f"/feedback/{sites[0].ref}")
        waiting = Counter(alert.site for alert in found)
        return self._portal.page(
            request,
            "feedback.html",
            look,
            status=409 if problem else 200,
            problem=problem,
            sites=sorted(sites, key=lambda site: (-waiting[site.ref], site.name)),
            waiting=waiting,
            touchpoints=touchpoints,
            may_add=look.visitor.may(Permission.ACT_ON_FEEDBACK, Place(look.organisation)),
        )

    async def show(self, request: web.Request) -> web.Response:
        return await self._page(request, request.match_info["site"])

    async def answer_alert(self, request: web.Request) -> web.Response:
        """Take an alert, or end it with its outcome."""
        form = await form_of(request, longest=_MOST_FIELD, lines=True)
        ref, look = await self._at_work(request, request.match_info["alert"], _alert_place)

        async def act(db: asyncpg.Connection) -> object:
            one = {"actor": look.visitor.actor, "now": self._portal.now()}
            organisation, alert = look.organisation, request.match_info["alert"]
            if form.get("do") == "done":
                outcome = form.get("outcome", "")
                return await alerts.finish(db, organisation, alert, outcome=outcome, **one)  # type: ignore[arg-type]
            name = look.visitor.name or look.visitor.user_ref
            return await alerts.take(db, organisation, alert, assignee=name, **one)  # type: ignore[arg-type]

        return await self._done(request, look, ref, "answer alert", act, _back(form, ref))

    async def plan(self, request: web.Request) -> web.Response:
        """Plan an action at a site."""
        form = await form_of(request, longest=_MOST_FIELD, lines=True)
        ref, look = await self._at_work(request, request.match_info["site"], _site_place)

        async def act(db: asyncpg.Connection) -> object:
            wanted = Plan(
                ref,
                form.get("touchpoint", ""),
                form.get("title", ""),
                form.get("owner", ""),
                day_of(form, "due_on"),
                day_of(form, "remeasure_on"),
                form.get("alert") or None,
            )
            return await actions.plan(
                db, look.organisation, wanted, actor=look.visitor.actor, now=self._portal.now()
            )

        return await self._done(request, look, ref, "plan action", act)

    async def change_action(self, request: web.Request) -> web.Response:
        """Say that an action was done, what visitors may be told of it, or close it."""
        form = await form_of(request, longest=_MOST_FIELD, lines=True)
        action = request.match_info["action"]
        ref, look = await self._at_work(request, action, _action_place)

        async def act(db: asyncpg.Connection) -> object:
            actor, now = look.visitor.actor, self._portal.now()
            organisation = look.organisation
            if form.get("do") == "close":
                return await actions.close(db, organisation, action, actor=actor, now=now)
            if form.get("do") == "tell":
                told = {language: form.get(f"told_{language}", "") for language in LANGUAGES}
                published = form.get("published") == "yes"
                return await actions.tell(
                    db, organisation, action, told, published=published, actor=actor, now=now
                )
            done_on = day_of(form, "done_on")
            return await actions.carry_out(db, organisation, action, done_on, actor=actor, now=now)

        return await self._done(request, look, ref, "change action", act, _back(form, ref))

    async def add_touchpoint(self, request: web.Request) -> web.Response:
        """Add a touchpoint: for who may act in all of the organisation."""
        form = await form_of(request, longest=_MOST_FIELD, lines=True)
        async with self._portal.looking(request, "portal touchpoint") as look:
            if not look.visitor.may(Permission.ACT_ON_FEEDBACK, Place(look.organisation)):
                raise web.HTTPNotFound
        by = {"actor": look.visitor.actor, "now": self._portal.now()}
        done = await self._portal.acted(
            look,
            "add touchpoint",
            lambda db: actions.add_touchpoint(db, look.organisation, form.get("name", ""), **by),  # type: ignore[arg-type]
        )
        if isinstance(done, VestibuleError):
            return await self._list(request, problem=Problem.of(done))
        raise web.HTTPSeeOther("/feedback#touchpoints")

    async def _at_work(
        self,
        request: web.Request,
        ref: str,
        place: Callable[[Look, str], Awaitable[tuple[str, Place]]],
    ) -> tuple[str, Look]:
        """Return the site and who acts there; 404 for what they do not see or may not act on."""
        async with self._portal.looking(request, "portal act on feedback") as look:
            try:
                site, where = await place(look, ref.replace("\0", ""))
            except NotFoundError as error:
                raise web.HTTPNotFound from error
        if site not in look.seen or not look.visitor.may(Permission.ACT_ON_FEEDBACK, where):
            raise web.HTTPNotFound
        return site, look

    async def _done(
        self,
        request: web.Request,
        look: Look,
        ref: str,
        what: str,
        act: Callable[[asyncpg.Connection], Awaitable[object]],
        back: str = "",
    ) -> web.Response:
        """Act, and go `back`, or to the site's page; what is refused is said there."""
        done = await self._portal.acted(look, what, act)
        if isinstance(done, VestibuleError):
            return await self._page(request, ref, problem=Problem.of(done))
        raise web.HTTPSeeOther(back or f"/feedback/{ref}")

    async def _page(
        self, request: web.Request, ref: str, *, problem: Problem | None = None
    ) -> web.Response:
        async with self._portal.looking(request, "portal site feedback") as look:
            if ref not in look.seen:
                raise web.HTTPNotFound
            (site,) = await load_sites(look.db, [ref])
            language = self._portal.shell.words(request).language
            found = await self._found(look, site, language)
            _, where = await _site_place(look, ref)
        return self._portal.page(
            request,
            "feedback_site.html",
            look,
            status=409 if problem else 200,
            site=site,
            problem=problem,
            may_act=look.visitor.may(Permission.ACT_ON_FEEDBACK, where),
            languages_told=LANGUAGES,
            version=VERSION,
            days=DAYS,
            **found,
        )

    async def _found(self, look: Look, site: Site, language: str) -> dict[str, object]:
        now_s = int(self._portal.now().timestamp())
        today = local(site.time_zone, now_s).date()
        since, until = today - timedelta(days=DAYS - 1), today + timedelta(days=1)
        query = CountQuery(Size.DAY, since, until, Scope.ALL, sites=(site.ref,))
        raw = await feedback(look.db, query, now_s=now_s)
        kept = await feedback(look.db, query, now_s=now_s, basis=Basis.FILTERED)
        rates = await response_rates(look.db, query, now_s=now_s)
        asked = asked_of(raw.rows, kept.rows)
        wordings = await worded(
            look.db, {each.key.questionnaire for each in asked}, language=language, site=site.name
        )
        told = await alerts.listed(look.db, look.organisation, sites=(site.ref,), limit=50)
        planned = await actions.listed(
            look.db, look.organisation, sites=(site.ref,), limit=_ACTIONS_SHOWN
        )
        return {
            "today": today,
            "asked": asked,
            "worded": wordings,
            "excluded": excluded_of(kept.rows),
            "pending": any(row.pending for row in kept.rows),
            "rate": rate_of(rates),
            "weighted": {(each.questionnaire, each.question): each for each in rates.indices},
            "open_alerts": [alert for alert in told if alert.done_at is None],
            "done_alerts": [alert for alert in told if alert.done_at is not None][:_DONE_SHOWN],
            "actions": planned,
            "touchpoints": await actions.touchpoints(look.db, look.organisation),
            "at": lambda moment: local(site.time_zone, int(moment.timestamp())),
        }


def asked_of(raw: list[FeedbackRow], kept: list[FeedbackRow]) -> list[Asked]:
    """Return the questions with an index, the most answered first."""
    counts: dict[tuple[str, int, Kind], tuple[Counter[int], Counter[int]]] = {}
    for basis, rows in enumerate((kept, raw)):
        for row in rows:
            if row.questionnaire is None or row.question is None or row.kind is None:
                continue
            key = (row.questionnaire, row.question, row.kind)
            into = counts.setdefault(key, (Counter(), Counter()))[basis]
            into.update(dict(enumerate(row.answers)))
    found = []
    for (questionnaire, question, kind), (valid, everything) in counts.items():
        width = max((*everything, *valid), default=-1) + 1
        answers = tuple(valid[number] for number in range(width))
        pressed = tuple(everything[number] for number in range(width))
        found.append(
            Asked(
                questionnaire,
                question,
                kind,
                answers,
                index_of(kind, answers),
                sum(pressed),
                index_of(kind, pressed),
            )
        )
    return sorted(found, key=lambda each: (-each.raw, each.questionnaire, each.question))


def excluded_of(kept: list[FeedbackRow]) -> dict[str, int]:
    """Return how many presses were left out, by reason; reasons without any are left out."""
    found: Counter[str] = Counter()
    for row in kept:
        if row.excluded is not None:
            found.update({reason.value: getattr(row.excluded, reason.value) for reason in Reason})
    return {reason: presses for reason, presses in found.items() if presses}


def rate_of(rates: Rates) -> tuple[float | None, int]:
    """Return responses per exit over all hours with known exits, and the hours flagged."""
    exits = sum(row.exits for row in rates.rows if row.exits is not None)
    answered = sum((row.rate or 0) * row.exits for row in rates.rows if row.exits is not None)
    flagged = sum(row.hours_flagged for row in rates.rows)
    return (answered / exits if exits else None), flagged


async def _site_place(look: Look, ref: str) -> tuple[str, Place]:
    for site, row, region in await numbers.places(look.db):
        if site == ref:
            return site, Place(look.organisation, region, row)
    raise NotFoundError("no such site")


async def _alert_place(look: Look, ref: str) -> tuple[str, Place]:
    found: Alert = await alerts.find(look.db, look.organisation, ref)
    return found.site, Place(look.organisation, found.region_id, found.site_id)


async def _action_place(look: Look, ref: str) -> tuple[str, Place]:
    found: Action = await actions.find(look.db, look.organisation, ref)
    return found.site, Place(look.organisation, found.region_id, found.site_id)


def _back(form: Mapping[str, str], ref: str) -> str:
    """Return the page that a form on the shop's own page leads back to."""
    return f"/shop/{ref}" if form.get("back") == "shop" else ""
