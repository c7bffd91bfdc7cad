"""The portal's pages on how far the counters can be trusted, and what is stored of whom.

Whoever may read a site's numbers may recount its counters: on a phone at the door, by two buttons.
Every recount is audited, and may be withdrawn. A factor that follows from recounts is applied by a
person who may change the register, by the same rule as in the console.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from server.db.datamap import KINDS
from server.db.engine import acting
from server.db.purge import KEPT
from server.errors import ConflictError, NotFoundError, RefusedError
from server.fleet import spots
from server.fleet.spots import Calibration
from server.insight import recounts
from server.insight.accuracy import Proposal
from server.insight.recounts import Counted
from server.insight.supplier import answers, counters_of
from server.people.roles import Permission, Place
from server.portal.frame import Look, Portal, Section
from server.portal.numbers import places
from server.rollup.places import Spot, load_sites, load_spots
from server.web.catalogue import LANGUAGES

_MOST_BODY = 20_000
_MOST_SIGN = 200


class Block(msgspec.Struct, forbid_unknown_fields=True):
    """A quarter of an hour as the phone counted it."""

    from_ms: int
    entered: int
    departed: int


class Sent(msgspec.Struct, forbid_unknown_fields=True):
    """What a phone counted; `key` is drawn by it once, and sent again until it is answered."""

    key: str
    counted_by: str
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class Sign:
    """What the sign at an entrance says beside its fixed words."""

    language: str
    organisation: str
    contact: str
    purpose: str


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    pages = Pages(portal)
    portal.sections.append(Section("/accuracy", "accuracy"))
    routes = portal.site.app.router
    routes.add_get("/accuracy", pages.listed)
    routes.add_get("/accuracy/privacy", pages.privacy)
    routes.add_get("/accuracy/sign", pages.sign)
    routes.add_get("/accuracy/sites/{site}", pages.sheet)
    routes.add_get("/accuracy/recount/{spot}", pages.recount)
    routes.add_post("/accuracy/recount/{spot}", pages.keep)
    routes.add_post("/accuracy/recount/{spot}/factor", pages.apply)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def listed(self, request: web.Request) -> web.Response:
        """Every site's counters with their errors."""
        async with self._portal.looking(request, "portal accuracy") as look:
            sites = [site for site in await load_sites(look.db) if site.ref in look.seen]
            found = await counters_of(look.db, sites, now=self._portal.now())
        shown = sorted(sites, key=lambda site: (site.name, site.ref))
        return self._portal.page(
            request,
            "accuracy.html",
            look,
            sites=[(site, found[site.id]) for site in shown],
            curl=self._portal.command(request, look, "accuracy"),
        )

    async def sheet(self, request: web.Request) -> web.Response:
        """One site's answers to a buyer's questions."""
        ref = request.match_info["site"]
        async with self._portal.looking(request, "portal accuracy sheet") as look:
            if ref not in look.seen:
                raise web.HTTPNotFound
            found = await answers(look.db, ref, now=self._portal.now())
            place = await _place(look, ref)
        async with acting(
            self._portal.desk, "portal who may see", organisation=look.organisation
        ) as connection:
            who = await connection.fetch(_WHO, look.organisation, place.region, place.site)
        return self._portal.page(
            request,
            "accuracy_sheet.html",
            look,
            found=found,
            who=[(row["role"].replace(" ", "_"), row["people"]) for row in who],
            may_change=look.visitor.may(Permission.CHANGE_REGISTER, place),
            zone=ZoneInfo(found.site.time_zone),
            now=self._portal.now().astimezone(ZoneInfo(found.site.time_zone)),
            kept_days=KEPT.days,
            curl=self._portal.command(request, look, f"accuracy?site={ref}"),
        )

    async def recount(self, request: web.Request) -> web.Response:
        """The phone's page: two buttons and a clock."""
        async with self._portal.looking(request, "portal recount") as look:
            spot = await _spot(look, request.match_info["spot"])
        return self._portal.page(
            request,
            "recount.html",
            look,
            spot=spot,
            now_ms=round(self._portal.now().timestamp() * 1000),
        )

    async def keep(self, request: web.Request) -> web.Response:
        """Keep what a phone counted, once; JSON, with the problem's code where it is refused."""
        async with self._portal.looking(request, "portal recount") as look:
            spot = await _spot(look, request.match_info["spot"])
        raw = await request.content.read(_MOST_BODY + 1)
        try:
            sent = msgspec.json.decode(raw[:_MOST_BODY], type=Sent)
            blocks = [
                Counted(datetime.fromtimestamp(b.from_ms / 1000, UTC), b.entered, b.departed)
                for b in sent.blocks
            ]
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, OverflowError, OSError):
            return web.json_response({"code": "bad_body"}, status=422)
        try:
            async with acting(
                self._portal.desk, "portal recount", organisation=look.organisation
            ) as connection:
                made = await recounts.add(
                    connection,
                    look.organisation,
                    spot.ref,
                    method="manual",
                    counted_by=sent.counted_by,
                    blocks=blocks,
                    actor=look.visitor.actor,
                    now=self._portal.now(),
                    send_key=sent.key,
                )
        except ConflictError:
            return web.json_response({"code": "conflict"}, status=409)
        except RefusedError as error:
            field = getattr(error, "parameter", "")
            return web.json_response({"code": error.code, "parameter": field}, status=422)
        return web.json_response({"recount": made.ref, "site": spot.site.ref})

    async def apply(self, request: web.Request) -> web.Response:
        """Apply the factor that recounts ask for, from now on, to the lines that were recounted."""
        now = self._portal.now()
        async with self._portal.looking(request, "portal factor") as look:
            spot = await _spot(look, request.match_info["spot"])
            if not look.visitor.may(Permission.CHANGE_REGISTER, await _place(look, spot.site.ref)):
                raise web.HTTPNotFound
            counters = (await counters_of(look.db, [spot.site], now=now))[spot.site.id]
            [counter] = [each for each in counters if each.spot.id == spot.id]
            rows = await look.db.fetch(_IN_FORCE, spot.id, now)
        proposed = counter.proposed
        form = await request.post()
        if not isinstance(proposed, Proposal) or form.get("factor") != f"{proposed.factor:.4f}":
            raise web.HTTPConflict(text="another factor follows from the recounts by now")
        in_force = {row["line"]: (row["reversed"], float(row["factor"])) for row in rows}
        async with acting(
            self._portal.desk, "portal factor", organisation=look.organisation
        ) as connection:
            for line in counter.lines:
                turned, factor = in_force.get(line, (False, 1.0))
                await spots.calibrate(
                    connection,
                    look.organisation,
                    spot.ref,
                    Calibration(
                        line,
                        turned,
                        round(factor * proposed.factor, 4),
                        f"recounted: {proposed.low:.3f} to {proposed.high:.3f}",
                        now,
                    ),
                    actor=look.visitor.actor,
                    now=now,
                )
        raise web.HTTPSeeOther(f"/accuracy/sites/{spot.site.ref}")

    async def privacy(self, request: web.Request) -> web.Response:
        """What is stored of whom and how long, and the form of the entrance's sign."""
        async with self._portal.looking(request, "portal privacy") as look:
            pass
        return self._portal.page(
            request,
            "privacy.html",
            look,
            kinds=KINDS,
            kept_days=KEPT.days,
            sign_languages=LANGUAGES,
            asked=_sign_of(request, look, self._portal.shell.words(request).language),
        )

    async def sign(self, request: web.Request) -> web.Response:
        """The entrance's sign, in the language that was asked for; to be printed."""
        async with self._portal.looking(request, "portal sign") as look:
            asked = _sign_of(request, look, self._portal.shell.words(request).language)
        words = self._portal.shell.catalogues[asked.language]
        return self._portal.page(request, "sign.html", look, sign=asked, say=words)


def _sign_of(request: web.Request, look: Look, language: str) -> Sign:
    def field(name: str, default: str = "") -> str:
        found = " ".join(request.query.get(name, default).split())[:_MOST_SIGN]
        return found if found.isprintable() else ""

    wanted = request.query.get("sign", language)
    return Sign(
        wanted if wanted in LANGUAGES else language,
        field("organisation", look.owner.name),
        field("contact"),
        field("purpose"),
    )


async def _spot(look: Look, ref: str) -> Spot:
    """Return a counter's spot at a site that they see; absent ones are not found."""
    try:
        [spot] = await load_spots(look.db, kind="counter", refs=[ref.replace("\0", "")])
    except NotFoundError as error:
        raise web.HTTPNotFound from error
    if spot.site.ref not in look.seen:
        raise web.HTTPNotFound
    return spot


async def _place(look: Look, ref: str) -> Place:
    [place] = [
        Place(look.organisation, region, site)
        for each, site, region in await places(look.db)
        if each == ref
    ]
    return place


_IN_FORCE = """
    select line, reversed, factor from calibrations where spot_id = $1 and valid @> $2::timestamptz
"""
_WHO = """
    select g.role, count(distinct g.user_id)::int as people
    from grants g join users u on u.id = g.user_id
    where u.disabled_at is null and (g.organisation_id is null or g.organisation_id = $1
      and (g.region_id is null or g.region_id = $2) and (g.site_id is null or g.site_id = $3))
    group by 1 order by 1
"""
