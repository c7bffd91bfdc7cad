"""Routes of the technician's pages, at `/tech`: sites, mounting, coming alive, walk test, sheet.

Pages are read; whatever changes anything is an act (`server.tech.acts`), sent to `/tech/acts`. The
camera is allowed on these pages alone. A phone's service worker keeps the shell and the pages it
has seen, so nothing here may depend on a query string that it cannot leave out.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import structlog
from aiohttp import web

from protocol.label import LabelError, serial_number
from server.config import Settings
from server.db.engine import ACQUIRE_TIMEOUT_S, acting, reading
from server.errors import NotFoundError, RefusedError
from server.fleet.spots import PURPOSES
from server.people.roles import Permission, Place
from server.people.sessions import Visitor
from server.provisioning.progress import StepStatus, status
from server.provisioning.technician import Claimed, end_claim
from server.provisioning.vouchers import VoucherSigner, make_voucher
from server.tech import places
from server.tech.acts import MOST_ACTS, Acts, doer_of
from server.tech.installation import (
    Installation,
    Told,
    begun,
    installation,
    read_walk,
    result_of,
    stretch,
    told,
)
from server.tech.places import RECENT, SiteRow, Where
from server.tech.refusals import TABLE
from server.tech.steps import shown
from server.tech.walk import TOLERANCE, Result, Verdict
from server.web.catalogue import Catalogue
from server.web.sessions import demand_organisation, signed_in, visitor
from server.web.shell import HEADERS, Shell
from server.web.site import Site

log = structlog.get_logger(__name__)

HERE = Path(__file__).parent
WORKER = HERE / "worker.js"
MAX_BODY = 512 * 1024  # a hundred acts, a long walk test among them
_SHARED_FILES = ("vestibule.css", "htmx.js", "jsqr.js", "icon.svg")
_HEADERS = {
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Content-Security-Policy": HEADERS["Content-Security-Policy"]
    + "; worker-src 'self'; manifest-src 'self'",
}
_NO_STORE = {"Cache-Control": "no-store"}


class Taps(msgspec.Struct, forbid_unknown_fields=True):
    """A walk test under way, as its page asks about it; `until_ms` 0: it goes on."""

    begun_ms: int = 0
    until_ms: int = 0
    taps: list[tuple[int, str]] = []


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """Acts in the order in which they were done."""

    acts: list[msgspec.Raw]


def add_tech(
    site: Site,
    *,
    desk: asyncpg.Pool,
    api: asyncpg.Pool,
    ingest: asyncpg.Pool,
    settings: Settings,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> None:
    """Add the technician's pages; the pools are of the roles that they are named after."""
    signer = VoucherSigner.load(settings.pki)
    acts = Acts(desk=desk, api=api, ingest=ingest, signer=signer, now=now)
    pages = Pages(site, acts, desk=desk, api=api, ingest=ingest, signer=signer, now=now)
    routes = site.app.router
    routes.add_get("/tech", pages.sites)
    routes.add_get("/tech/sites/{site}", pages.site)
    routes.add_get("/tech/sites/{site}/mount", pages.mount)
    routes.add_get("/tech/sites/{site}/device", pages.device)
    routes.add_post("/tech/sites/{site}/voucher", pages.voucher)
    routes.add_get("/tech/claims/{claim}", pages.claim)
    routes.add_post("/tech/claims/{claim}/end", pages.end)
    routes.add_post("/tech/claims/{claim}/compare", pages.compare)
    routes.add_get("/tech/claims/{claim}/sheet", pages.sheet)
    routes.add_get("/tech/walk", pages.walk)
    routes.add_get("/tech/outbox", pages.outbox)
    routes.add_get("/tech/away", pages.away)
    routes.add_post("/tech/acts", pages.acts)
    routes.add_get("/tech/session", pages.session)
    routes.add_get("/tech/manifest.webmanifest", pages.manifest)
    routes.add_get("/tech/worker.js", pages.worker)


@dataclass(frozen=True, slots=True)
class Found:
    """Who looks at what: a claim, and whose it is."""

    visitor: Visitor
    where: Where
    installation: Installation


class Pages:
    """The handlers."""

    def __init__(
        self,
        site: Site,
        acts: Acts,
        *,
        desk: asyncpg.Pool,
        api: asyncpg.Pool,
        ingest: asyncpg.Pool,
        signer: VoucherSigner,
        now: Callable[[], datetime],
    ) -> None:
        own = site.static.add(HERE / "static")
        self._static = site.static
        self._shell = Shell(
            templates=HERE / "templates", catalogues=[HERE / "catalogues"], static=site.static
        )
        self._acts, self._desk, self._api, self._ingest = acts, desk, api, ingest
        self._signer, self._now = signer, now
        self._worker = self._write_worker(own)

    # -- sites ---------------------------------------------------------------------------------

    async def sites(self, request: web.Request) -> web.Response:
        """The sites that one may provision at: those visited last first, then by name."""
        found, organisation = demand_organisation(request, Permission.PROVISION)
        now = self._now()
        wanted = request.query.get("q", "").strip().casefold()[:60]
        async with reading(self._api, "tech sites", organisation=organisation) as db:
            rows = await places.sites(db, now=now)
        async with acting(self._desk, "tech visits", organisation=organisation) as db:
            visited = await places.visited(db, found.user_id)
        rows = [
            row
            for row in rows
            if _may(found, row.where) and wanted in f"{row.name} {row.address}".casefold()
        ]

        def latest(row: SiteRow) -> float:
            at = visited.get(row.where.site)
            return 0.0 if at is None else -at.timestamp()

        return self._page(
            request,
            "list.html",
            rows=sorted(rows, key=latest),
            visited=set(visited),
            wanted=request.query.get("q", ""),
        )

    async def site(self, request: web.Request) -> web.Response:
        """A site: its spots, who stands there and is alive, what is under way."""
        page = await self._site(request)
        now = self._now()
        async with acting(
            self._desk, "tech site", organisation=page.where.organisation
        ) as connection:
            under_way = await begun(connection, page.where.site, now=now, within=RECENT)
        return self._page(
            request,
            "site.html",
            page=page,
            under_way=under_way,
            now=now.astimezone(ZoneInfo(page.time_zone)),
        )

    async def mount(self, request: web.Request) -> web.Response:
        """Scan a label, choose or make the spot, confirm. The same page for every spot."""
        page = await self._site(request)
        return self._page(request, "mount.html", page=page, purposes=PURPOSES)

    async def device(self, request: web.Request) -> web.Response:
        """What a scanned serial is, so that the phone can say it before anything is confirmed."""
        where, _ = await self._where(request, site=request.match_info["site"])
        words = self._shell.words(request)
        try:
            serial = serial_number(request.query.get("serial", ""))
        except LabelError:
            return self._json({"problem": _sentence("unknown_serial", words)})
        async with reading(self._api, "tech device", organisation=where.organisation) as db:
            found = await places.known(db, serial, now=self._now())
        if found is None:
            return self._json({"problem": _sentence("unknown_serial", words)})
        problem = "" if found.admitted else _sentence("device_not_admitted", words)
        stands = ""
        if found.spot:
            stands = words("stands_at", spot=found.spot_name, site=found.site_name)
        return self._json(
            {
                "kind": found.kind,
                "model": found.model,
                "spot": found.spot,
                "stands": stands,
                "problem": problem,
            }
        )

    async def voucher(self, request: web.Request) -> web.Response:
        """Make a voucher to take along."""
        where, found = await self._where(request, site=request.match_info["site"])
        async with acting(self._desk, "make voucher", organisation=where.organisation) as db:
            made, text = await make_voucher(
                db, self._signer, user_id=found.user_id, site_ref=where.ref, now=self._now()
            )
        return self._json(
            {
                "site": where.ref,
                "ref": made.ref,
                "text": text,
                "until_ms": round(made.expires_at.timestamp() * 1000),
            }
        )

    # -- an installation -----------------------------------------------------------------------

    async def claim(self, request: web.Request) -> web.Response:
        """Watch the device come alive; the page asks for its steps again every two seconds."""
        found = await self._claim(request)
        now = self._now()
        words = self._shell.words(request)
        steps: list[StepStatus] = []
        async with self._ingest.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection:
            steps = await status(
                connection,
                found.installation.ref,
                organisation=found.where.organisation,
                now=now,
            )
        waited = now - found.installation.created_at
        return self._page(
            request,
            "steps.html" if "HX-Request" in request.headers else "claim.html",
            found=found.installation,
            steps=shown(steps, waited=waited, kind=found.installation.kind, words=words),
            over=found.installation.claimed in (Claimed.ENDED, Claimed.EXPIRED),
            used=found.installation.claimed is Claimed.USED,
            zone=ZoneInfo(found.installation.time_zone),
        )

    async def end(self, request: web.Request) -> web.Response:
        """Call a claim off that has come to nothing."""
        found = await self._claim(request)
        async with acting(
            self._desk, "end claim", organisation=found.where.organisation
        ) as connection:
            await end_claim(
                connection, found.installation.ref, user_id=found.visitor.user_id, now=self._now()
            )
        raise web.HTTPSeeOther(f"/tech/sites/{found.where.ref}")

    async def walk(self, request: web.Request) -> web.Response:
        """The walk test and the sign-off: one page for every claim, which its script looks up."""
        signed_in(request)
        return self._page(request, "walk.html")

    async def compare(self, request: web.Request) -> web.Response:
        """Say what the device has counted since a walk test began, beside what was tapped."""
        found = await self._claim(request)
        now = self._now()
        try:
            asked = msgspec.json.decode(await request.read(), type=Taps)
            begun_ms = asked.begun_ms or round(now.timestamp() * 1000)
            walk = read_walk(begun_ms, asked.until_ms, asked.taps, now=now)
        except (msgspec.DecodeError, RefusedError) as error:
            raise web.HTTPUnprocessableEntity(text="no walk test") from error
        since, until = stretch(walk, now=now)
        async with reading(self._api, "walk test", organisation=found.where.organisation) as db:
            heard = await told(db, found.installation, since=since, until=until)
        result = result_of(walk, heard)
        html = self._shell.fragment(
            "result.html", self._shell.words(request), **_result_values(result, heard, now=now)
        )
        return self._json(
            {
                "html": str(html) if asked.begun_ms else "",
                "cell_s": heard.cell_s,
                "verdict": result.verdict.value,
                "whole": result.whole,
                "counts": found.installation.counts,
                "title": f"{found.installation.serial or found.installation.device} · "
                f"{found.installation.spot_name}",
                "site": found.where.ref,
                "zone": found.installation.time_zone,
                "signed": found.installation.signed_off_at is not None,
            }
        )

    async def sheet(self, request: web.Request) -> web.Response:
        """Who mounted what, where, when, and how well it counts: to print, or to show."""
        found = await self._claim(request)
        shown_one = found.installation
        now = self._now()
        heard: Told | None = None
        result = None if shown_one.walk is None else shown_one.walk.result
        if shown_one.walk is not None and result is None:
            await self._acts.write_down(shown_one, found.where.organisation)
            since, until = stretch(shown_one.walk, now=now)
            async with reading(self._api, "walk test", organisation=found.where.organisation) as db:
                heard = await told(db, shown_one, since=since, until=until)
            result = result_of(shown_one.walk, heard)
        shown_result = {} if result is None else _result_values(result, heard, now=now)
        return self._page(
            request,
            "sheet.html",
            found=shown_one,
            zone=ZoneInfo(shown_one.time_zone),
            walked=result is not None,
            **shown_result,
        )

    # -- the phone ----------------------------------------------------------------------------

    async def outbox(self, request: web.Request) -> web.Response:
        """What was not sent yet; the phone's script fills it."""
        signed_in(request)
        return self._page(request, "outbox.html")

    async def away(self, request: web.Request) -> web.Response:
        """What the service worker shows for a page that it has never seen."""
        return self._page(request, "away.html")

    async def session(self, request: web.Request) -> web.Response:
        """Who is signed in, and what their acts must carry; pages that were kept have neither."""
        found = signed_in(request)
        return self._json(
            {"user": found.user_ref, "csrf": found.csrf, "now_ms": self._now_ms()},
        )

    async def acts(self, request: web.Request) -> web.Response:
        """Carry out a batch of acts; each has its own answer, at its own place."""
        try:
            if (request.content_length or 0) > MAX_BODY:
                raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0)
            batch = msgspec.json.decode(await request.read(), type=Batch)
        except (msgspec.DecodeError, RecursionError) as error:  # nested without end
            raise web.HTTPBadRequest(text="expected {acts: [...]}") from error
        words, found = self._shell.words(request), visitor(request)
        answers: list[dict[str, object]] = []
        for raw in batch.acts[:MOST_ACTS]:
            try:
                answers.append({"done": True, **await self._acts.carry_out(raw, found)})
            except RefusedError as error:
                answers.append({"done": False, **_refusal(error.code, words)})
            except NotFoundError:
                answers.append({"done": False, **_refusal("unknown_spot", words)})
        return self._json({"answers": answers, "now_ms": self._now_ms()})

    async def manifest(self, request: web.Request) -> web.Response:
        """What a phone needs to install the pages as an app."""
        words = self._shell.words(request)
        icon = self._static.url("tech-icon.svg")
        body = {
            "name": words("app_name"),
            "short_name": "Vestibule",
            "lang": words.language,
            "id": "/tech",
            "start_url": "/tech",
            "scope": "/tech",
            "display": "standalone",
            "orientation": "portrait",
            "background_color": "#f4f5f1",
            "theme_color": "#0b6b5d",
            "icons": [{"src": icon, "sizes": "any", "type": "image/svg+xml", "purpose": purpose}
                      for purpose in ("any", "maskable")],
        }  # fmt: skip
        return web.json_response(
            body, content_type="application/manifest+json", headers={"Cache-Control": "no-cache"}
        )

    async def worker(self, request: web.Request) -> web.Response:
        """The service worker; its text changes with any file that it keeps."""
        headers = {"Cache-Control": "no-cache", "Service-Worker-Allowed": "/tech", **_HEADERS}
        return web.Response(text=self._worker, content_type="text/javascript", headers=headers)

    # -- inside --------------------------------------------------------------------------------

    def _write_worker(self, own: list[str]) -> str:
        files = [self._static.url(name) for name in (*_SHARED_FILES, *own)]
        # scripts name each other without a digest
        files += [f"/static/{name}" for name in own if name.endswith(".js")]
        digest = hashlib.sha256("".join(files).encode()).hexdigest()[:12]
        head = f'const VERSION = "{digest}";\nconst FILES = {json.dumps(files, indent=1)};\n'
        return head + WORKER.read_text()

    def _now_ms(self) -> int:
        return round(self._now().timestamp() * 1000)

    def _json(self, body: Mapping[str, object]) -> web.Response:
        return web.json_response(body, headers=_NO_STORE)

    def _page(self, request: web.Request, template: str, **values: object) -> web.Response:
        words = self._shell.words(request)
        said = {
            key.removeprefix("js."): text
            for key, text in words.texts.items()
            if key.startswith("js.")
        }
        response = self._shell.page(request, template, status=200, said=said, **values)
        response.headers.update(_HEADERS)
        return response

    async def _where(self, request: web.Request, **named: str) -> tuple[Where, Visitor]:
        """Return a site that one may provision at; else the same 404 as for what is not there."""
        found = signed_in(request)
        try:
            return await self._acts.where(doer_of(found), **named), found
        except RefusedError as error:
            raise web.HTTPNotFound from error

    async def _site(self, request: web.Request) -> places.SitePage:
        where, _ = await self._where(request, site=request.match_info["site"])
        async with reading(self._api, "tech site", organisation=where.organisation) as db:
            page = await places.site_page(db, where.ref, now=self._now())
        if page is None:
            raise web.HTTPNotFound
        return page

    async def _claim(self, request: web.Request) -> Found:
        ref = request.match_info["claim"]
        where, found = await self._where(request, claim=ref)
        async with acting(self._desk, "tech claim", organisation=where.organisation) as db:
            one = await installation(db, ref, now=self._now())
        if one is None:
            raise web.HTTPNotFound
        return Found(found, where, one)


def _may(found: Visitor, where: Where) -> bool:
    return found.may(Permission.PROVISION, Place(where.organisation, where.region, where.site))


def _refusal(code: str, words: Catalogue) -> dict[str, object]:
    row = TABLE.get(code)
    if row is None:
        log.warning("phone act refused by an unknown rule", code=code)
        row = TABLE["unavailable"]
    return {"code": code, "sentence": _sentence(code, words), "then": row.then.value}


def _sentence(code: str, words: Catalogue) -> str:
    row = TABLE.get(code, TABLE["unavailable"])
    return {"sv": row.sv, "da": row.da, "en": row.en}[words.language]


def _result_values(result: Result, heard: Told | None, *, now: datetime) -> dict[str, object]:
    """Return what `result.html` shows; `in_s`: seconds until the device's next frame, if known."""
    in_s: int | None = None
    if heard is not None and heard.due is not None and not result.whole:
        in_s = max(0, round((heard.due - now) / timedelta(seconds=1)))
    return {
        "result": result,
        "in_s": in_s,
        "tolerance": TOLERANCE,
        "told": heard is not None and heard.told_to is not None,
        "good": result.verdict is Verdict.GOOD,
    }
