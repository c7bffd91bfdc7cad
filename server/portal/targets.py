"""The portal's page on targets: what a KPI of a site is to be, whether it will, and what decides.

Whoever reads a site's numbers sees its targets; who may set targets at that very site has the forms
beside them. A change says which state it has seen: of two who edit at once the second is shown what
the first has written, with their own words still in the form. Targets that are set here count
opening hours, as the portal's numbers do; days are entered as the first and the last one.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from math import isfinite

import asyncpg
from aiohttp import web

from server.errors import NotFoundError, VestibuleError
from server.fleet.checks import FieldError, Known, day
from server.insight import definitions, targets
from server.insight.definitions import Definition
from server.insight.projection import Outlook, Track
from server.insight.targets import Target
from server.people.roles import Permission, Place
from server.portal import numbers
from server.portal.forms import day_of, form_of
from server.portal.frame import Look, Portal, Section
from server.rollup.buckets import local
from server.rollup.places import Site, load_sites
from server.rollup.quality import Scope

MOST_SHOWN = 60
SHOWN_AFTER_END = timedelta(days=31)
_DAY = timedelta(days=1)
_MOST_FIELD = 400
_BLANKS = str.maketrans("", "", " \u00a0\u202f")
_ORDER = (Track.OFF_TRACK, Track.AT_RISK, Track.CANNOT_BE_SAID, Track.ON_TRACK)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing was done: the rule's code, its field, and the form as it was sent."""

    code: str
    field: str
    form: Mapping[str, str]
    target: str = ""

    @classmethod
    def of(cls, error: VestibuleError, form: Mapping[str, str], target: str = "") -> "Problem":
        return cls(error.code, getattr(error, "parameter", ""), form, target)


@dataclass(frozen=True, slots=True)
class Shown:
    """A target on the page: where it stands, and on what axis that is drawn."""

    known: Known[Target]
    site: Site
    kpi: Definition
    stands: Outlook
    over: bool
    may_set: bool

    @property
    def last(self) -> date:
        return self.known.facts.until - _DAY

    @property
    def state(self) -> str:
        """What its pill says: of a period that is over, that it was met or missed."""
        if self.over and self.stands.track in (Track.ON_TRACK, Track.OFF_TRACK):
            return "met" if self.stands.track is Track.ON_TRACK else "missed"
        return self.stands.track.value

    def at(self, value: float) -> float:
        """Return where a value stands on the axis, 0 to 100."""
        low, high = self._ends
        return round(100 * (value - low) / (high - low), 2)

    @property
    def _ends(self) -> tuple[float, float]:
        known = [self.known.facts.wanted, self.stands.low, self.stands.high]
        ends = [value for value in known if value is not None]
        margin = 0.1 * (max(ends) - min(ends)) or 0.1 * abs(ends[0]) or 1.0
        return min(ends) - margin, max(ends) + margin


def add(portal: Portal) -> None:
    """Add the page, and its entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/targets", "targets"))
    routes = portal.site.app.router
    routes.add_get("/targets", pages.show)
    routes.add_post("/targets", pages.add)
    routes.add_post("/targets/{target}", pages.change)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def show(self, request: web.Request) -> web.Response:
        """Targets under way and lately over, those that need somebody first."""
        return await self._page(request)

    async def add(self, request: web.Request) -> web.Response:
        """Set a target."""
        form = await form_of(request, longest=_MOST_FIELD)
        async with self._portal.looking(request, "portal set target") as look:
            if not _may_set(look, await _places(look), form.get("site", "")):
                raise web.HTTPNotFound

        async def act(db: asyncpg.Connection) -> object:
            return await targets.add(
                *(db, look.organisation, wanted_of(form)),
                actor=look.visitor.actor,
                now=self._portal.now(),
            )

        return await self._done(request, look, act, form)

    async def change(self, request: web.Request) -> web.Response:
        """Change what is wanted, or give it up; one who comes second is told."""
        form = await form_of(request, longest=_MOST_FIELD)
        ref = request.match_info["target"].replace("\0", "")
        async with self._portal.looking(request, "portal change target") as look:
            try:
                known = await targets.find(look.db, look.organisation, ref)
            except NotFoundError as error:
                raise web.HTTPNotFound from error
            if not _may_set(look, await _places(look), known.facts.site):
                raise web.HTTPNotFound

        async def act(db: asyncpg.Connection) -> object:
            actor, now, seen = look.visitor.actor, self._portal.now(), form.get("version", "")
            organisation = look.organisation
            if form.get("do") == "give up":
                return await targets.remove(db, organisation, ref, seen=seen, actor=actor, now=now)
            kpi = definitions.find(known.facts.metric)
            wanted, note = number_of(form.get("wanted", ""), kpi), form.get("note", "")
            return await targets.edit(
                *(db, organisation, ref),
                wanted=wanted,
                note=note,
                seen=seen,
                actor=actor,
                now=now,
            )

        return await self._done(request, look, act, form, ref)

    async def _done(
        self,
        request: web.Request,
        look: Look,
        act: Callable[[asyncpg.Connection], Awaitable[object]],
        form: Mapping[str, str],
        ref: str = "",
    ) -> web.Response:
        done = await self._portal.acted(look, "portal targets", act)
        if isinstance(done, VestibuleError):
            return await self._page(request, problem=Problem.of(done, form, ref))
        raise web.HTTPSeeOther("/targets")

    async def _page(self, request: web.Request, *, problem: Problem | None = None) -> web.Response:
        now = self._portal.now()
        wanted, after = request.query.get("site", ""), request.query.get("after", "")
        past = request.query.get("over") == "yes"
        async with self._portal.looking(request, "portal targets") as look:
            sites = {site.ref: site for site in await load_sites(look.db) if site.ref in look.seen}
            if wanted and wanted not in sites:
                raise web.HTTPNotFound
            places = await _places(look)
            found: list[Known[Target]] = []
            if sites:
                found = await targets.listed(
                    look.db,
                    sites=[wanted] if wanted else sorted(sites),
                    after=after,
                    limit=MOST_SHOWN + 1,
                    ends_after=None if past else now.date() - SHOWN_AFTER_END,
                )
            more = found[MOST_SHOWN - 1].ref if len(found) > MOST_SHOWN else ""
            found = found[:MOST_SHOWN]
            if problem and problem.target and problem.target not in {each.ref for each in found}:
                found.append(await targets.find(look.db, look.organisation, problem.target))
            stand = await targets.outlooks(look.db, found, now_s=int(now.timestamp()))
        shown = [
            _shown(look, places, sites[known.facts.site], known, stand[known.ref], now.timestamp())
            for known in found
        ]
        return self._portal.page(
            request,
            "targets.html",
            look,
            status=409 if problem else 200,
            problem=problem,
            shown=sorted(shown, key=_urgency),
            more=more,
            past=past,
            site=wanted,
            names=sorted((site.name, ref) for ref, site in sites.items()),
            settable=sorted(
                (site.name, ref) for ref, site in sites.items() if _may_set(look, places, ref)
            ),
            kpis=[each for each in definitions.REGISTRY.values() if each.projected],
            drafted=problem.form if problem and not problem.target else {},
            curl=self._portal.command(
                request, look, f"targets?site={wanted}" if wanted else "targets"
            ),
        )


def wanted_of(form: Mapping[str, str]) -> Target:
    """Return the target that a form asks for. Raises FieldError, UnknownMetricError."""
    kpi = definitions.find(form.get("metric", ""))
    return Target(
        form.get("site", ""),
        kpi.id,
        day_of(form, "from"),
        day_of(form, "to") + _DAY,
        number_of(form.get("wanted", ""), kpi),
        form.get("way") == "most",
        Scope.OPEN.value,
        form.get("note", ""),
    )


def number_of(text: str, kpi: Definition) -> float:
    """Return a number as people write it; shares are written per cent. Raises FieldError."""
    try:
        found = float(text.translate(_BLANKS).replace(",", ".").removesuffix("%"))
    except ValueError as error:
        raise FieldError("wanted", "expected a number such as 12500 or 24.5") from error
    if not isfinite(found):
        raise FieldError("wanted", "expected a number such as 12500 or 24.5")
    return found / 100 if kpi.unit == "share" else found


def _shown(
    look: Look,
    places: Mapping[str, Place],
    site: Site,
    known: Known[Target],
    stands: Outlook,
    now_s: float,
) -> Shown:
    over = local(site.time_zone, int(now_s)).date() >= known.facts.until
    kpi = definitions.find(known.facts.metric)
    return Shown(known, site, kpi, stands, over, _may_set(look, places, site.ref))


def _urgency(each: Shown) -> tuple[bool, int, str, date, str]:
    """Sort by what needs somebody: under way first, then those that are off track."""
    facts = each.known.facts
    return each.over, _ORDER.index(each.stands.track), each.site.name, facts.since, each.known.ref


async def _places(look: Look) -> dict[str, Place]:
    return {
        ref: Place(look.organisation, region, site)
        for ref, site, region in await numbers.places(look.db)
        if ref in look.seen
    }


def _may_set(look: Look, places: Mapping[str, Place], ref: str) -> bool:
    return ref in places and look.visitor.may(Permission.SET_TARGETS, places[ref])


def _day(form: Mapping[str, str], field: str) -> date:
    found = day(form.get(field, ""), field)
    if found is None:
        raise FieldError(field, "expected a day such as 2026-12-24")
    return found
