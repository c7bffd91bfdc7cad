"""The tour: a page of the demo's own that shows the account, and breaks things on request.

It listens on this machine alone, and only for who holds the key in the printed address; what
changes anything must come from the page itself.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlencode

import asyncpg
import segno
from aiohttp import web
from aiohttp.typedefs import Handler
from markupsafe import Markup

from ops.demo.build import EMPTY_SITE, EMPTY_SPOT
from ops.demo.engineer import BAD, GOOD
from ops.demo.impostor import speak_as
from ops.demo.kiosk import CROWD_MS, SAD
from ops.demo.machine import Machine
from ops.demo.state import DAY_MS
from ops.demo.supervisor import PARTS
from ops.demo.survey import TOUCHPOINTS, survey_link
from ops.demo.world import DEAD, MALL, UNNOTICED, UNPLUGGED, blind_stretch, moment
from protocol.identity import DeviceId, device_id
from server.api import parquet
from server.db.engine import acting
from server.people import links, users
from server.people.roles import Grant, Role
from server.web.catalogue import Catalogue
from server.web.shell import Shell, protect
from server.web.static_files import OWN, PACKAGES, StaticFiles

T = TypeVar("T")
HERE = Path(__file__).parent
ACTOR = "demo"
COOKIE = "vestibule_tour"
REFRESH_S = 1.0
PROFILE_MS = 21 * DAY_MS  # with less history before it, nothing that was missed is estimated
PROVED_AGO_MIN = 3  # devices are live: what is younger may still be on its way
CARE = {
    "preset": "usual",
    "wave1": "1",
    "wave2": "rest",
    "gate_sample": "1",
    "soak_h": "0",
    "fail_abs": "1",
    "site": "3",
    "trial_min": "2",
    "when": "any",
    "on_halt": "keep",
    "health": "yes",
    "counts": "yes",
}
"""A rollout's form for the workshop: one counter first, and its shop is nobody's to disturb."""
_HOSTS = ("127.0.0.1", "localhost")


class Tour:
    """See the module."""

    def __init__(self, machine: Machine) -> None:
        self.address = ""
        self._machine = machine
        self._key = secrets.token_urlsafe(16)
        self._static = StaticFiles([PACKAGES, OWN, HERE / "static"])
        self._shell = Shell(
            templates=HERE / "templates", catalogues=[], static=self._static, language="en"
        )
        self._closing = asyncio.Event()
        self._acting = asyncio.Lock()
        self._linking = asyncio.Lock()

    @asynccontextmanager
    async def serving(self, *, port: int) -> AsyncIterator[None]:
        """Listen while the block runs; `port` 0: any."""
        runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=2)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        bound = runner.addresses[0][1]
        self.address = f"http://127.0.0.1:{bound}/?key={self._key}"
        try:
            yield
        finally:
            self._closing.set()
            await runner.cleanup()

    def _application(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.on_response_prepare.append(protect)
        app.router.add_get("/static/{name}", self._static.serve)
        app.router.add_get("/", self._page)
        app.router.add_get("/events", self._events)
        app.router.add_get("/go/technician", self._go_technician)
        app.router.add_get("/go/manager", self._go_manager)
        app.router.add_get("/go/survey", self._go_survey)
        app.router.add_get("/go/operator", self._go_operator)
        app.router.add_get("/go/engineer", self._go_engineer)
        app.router.add_get("/go/{number}", self._go)
        app.router.add_post("/cable", self._cable)
        app.router.add_post("/mall", self._mall)
        app.router.add_post("/kill/{part}", self._kill)
        app.router.add_post("/impostor", self._impostor)
        app.router.add_post("/pass/{way}", self._pass)
        app.router.add_post("/press", self._press)
        app.router.add_post("/crowd", self._crowd)
        app.router.add_post("/proof", self._proof)
        app.router.add_post("/engineer/{do}", self._engineer)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let nobody in but the holder of the key, and no other site's page act."""
        if request.url.host not in _HOSTS:
            raise web.HTTPForbidden(text="ask by this machine's own name")
        given = request.query.get("key", "")
        if secrets.compare_digest(given.encode(), self._key.encode()):
            entered = web.HTTPSeeOther("/")
            entered.set_cookie(COOKIE, self._key, httponly=True, samesite="Strict")
            raise entered
        if not request.path.startswith("/static/"):
            held = request.cookies.get(COOKIE, "")
            if not secrets.compare_digest(held.encode(), self._key.encode()):
                raise web.HTTPForbidden(text="open the address that `vestibule demo` printed")
        if request.method == "POST" and request.headers.get("Origin") != f"http://{request.host}":
            raise web.HTTPForbidden(text="only the tour's own page may do this")
        return await handler(request)

    # -- looking -----------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.Response:
        machine = self._machine
        html = self._fragment(
            "tour",
            path=request.path,
            organisations=list(machine.state.organisations),
            curl=self._curl(),
            question=self._question(),
            parquet=self._parquet() if parquet.available() else "",
            estimated=self._estimated(),
            quality=self._quality(),
            touchpoints=TOUCHPOINTS,
            victim=self._victim(),
            label_image=self._label_image(),
            empty=(EMPTY_SITE, EMPTY_SPOT),
            blind=self._blind(),
        )
        return _html(html)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Send what changes, once a second."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        await response.prepare(request)
        last: dict[str, str] = {}
        with suppress(ConnectionError):
            while not self._closing.is_set():
                for name in ("strip", "parts", "door", "frames", "newcomer", "kiosk", "workshop"):
                    html = self._fragment(name)
                    if last.get(name) != html:
                        last[name] = html
                        await response.write(_event(name, html))
                await response.write(b": alive\n\n")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), REFRESH_S)
        return response

    async def _go(self, request: web.Request) -> NoReturn:
        """Lead to the portal, signed in as an analyst of one of the organisations."""
        machine = self._machine
        rows = list(machine.state.organisations.values())
        number = request.match_info["number"]
        if not number.isdigit() or int(number) >= len(rows):
            raise web.HTTPNotFound(text="no such organisation")
        grant = Grant(Role.ANALYST, rows[int(number)])
        await self._lead("Analyst", grant, to=request.query.get("to", "/"))

    async def _go_technician(self, _: web.Request) -> NoReturn:
        """Lead to the technician's pages, signed in as one of the first organisation's."""
        await self._lead("Technician", Grant(Role.TECHNICIAN, self._first), to="/tech")

    async def _go_manager(self, request: web.Request) -> NoReturn:
        """Lead to the portal, signed in as who runs the shop of the kiosk that may be pressed."""
        find = "select id from sites where ref = $1"
        site = await self._as_desk(
            "demo site", self._first, lambda db: db.fetchval(find, self._shop)
        )
        grant = Grant(Role.STORE_MANAGER, self._first, site=site)
        await self._lead("Manager", grant, to=request.query.get("to", "/feedback"))

    async def _go_operator(self, request: web.Request) -> NoReturn:
        """Lead to what needs a human, of all organisations, or of the mall's or the first one."""
        owners = {"mall": list(self._machine.state.organisations.values())[-1],
                  "first": self._first}  # fmt: skip
        owner, to = owners.get(request.query.get("of", "")), "/console"
        if owner is not None:
            find = "select ref from organisations where id = $1"
            ref = await self._as_desk("demo operator", owner, lambda db: db.fetchval(find, owner))
            to = f"/console/o/{ref}/now"
        await self._lead("Operator", Grant(Role.NOC), to=to)

    async def _go_engineer(self, request: web.Request) -> NoReturn:
        """Lead to a new rollout of a version in the workshop, looked at; or to all of them."""
        engineer = self._machine.engineer
        owner, version = engineer.organisation, request.query.get("version", "")
        if owner is None:
            raise web.HTTPNotFound(text="there is no workshop yet: set it up first")
        find = "select ref from organisations where id = $1"
        ref = await self._as_desk("demo engineer", owner, lambda db: db.fetchval(find, owner))
        to = f"/console/o/{ref}/rollouts"
        if version in engineer.ready:
            to += "/new?" + urlencode({"do": "look", "bundle": engineer.ready[version], **CARE})
        await self._lead("Engineer", Grant(Role.NOC, owner), to=to)

    async def _go_survey(self, _: web.Request) -> NoReturn:
        """Lead to the survey by a link of one visitor's own, made for this."""
        machine = self._machine
        settings, survey = machine.supervisor.settings, machine.state.survey
        if settings is None or not survey:
            raise web.HTTPNotFound(text="there is no survey in this demo")
        path = await self._as_desk(
            "demo survey link",
            self._first,
            lambda db: survey_link(
                db, self._first, survey=survey, site=self._shop, settings=settings, actor=ACTOR
            ),
        )
        raise web.HTTPSeeOther(machine.supervisor.base + path)

    async def _lead(self, name: str, grant: Grant, *, to: str) -> NoReturn:
        owner = grant.organisation or self._first
        token = await self._as_desk(
            "demo sign-in link", owner, lambda db: _sign_in_link(db, name, grant)
        )
        base, purpose = self._machine.supervisor.base, links.Purpose.SIGN_IN
        raise web.HTTPSeeOther(f"{links.address(base, purpose, token)}&{urlencode({'to': to})}")

    async def _as_desk(
        self, name: str, owner: int, act: Callable[[asyncpg.Connection], Awaitable[T]]
    ) -> T:
        """Act as the desk does, in a transaction that sees one organisation; 503 without one."""
        try:
            async with (
                self._linking,
                asyncpg.create_pool(
                    self._machine.endpoints.dsn("desk"), min_size=1, max_size=1
                ) as pool,
                acting(pool, name, organisation=owner) as connection,
            ):
                return await act(connection)
        except (OSError, asyncpg.PostgresError) as error:
            raise web.HTTPServiceUnavailable(text="the database is away: try again soon") from error

    # -- acting ------------------------------------------------------------------------------

    async def _cable(self, _: web.Request) -> web.Response:
        """Pull the inspected device's cable, or plug it back."""
        self._machine.plug_cable(not self._machine.cable_in)
        return _html(self._fragment("cable"))

    async def _mall(self, _: web.Request) -> web.Response:
        """Cut the line of all the mall's devices, or mend it."""
        self._machine.link_mall(not self._machine.mall_linked)
        return _html(self._fragment("mall"))

    async def _kill(self, request: web.Request) -> web.Response:
        """SIGKILL a part."""
        part = request.match_info["part"]
        if part not in PARTS:
            raise web.HTTPNotFound(text="no such part")
        supervisor = self._machine.supervisor
        async with self._acting:
            if supervisor.alive(part):
                await asyncio.to_thread(supervisor.kill, part)
        return _html(self._fragment("parts"))

    async def _impostor(self, _: web.Request) -> web.Response:
        """Try to speak as another device, with the inspected one's certificate."""
        machine = self._machine
        identity = machine.identities[device_id(machine.inspected.spec.device)]
        dsn = machine.endpoints.dsn("maint")
        try:
            async with self._acting, asyncio.timeout(20):
                attempt = await speak_as(identity, self._victim(), dsn=dsn)
        except (OSError, TimeoutError) as error:
            return _html(self._fragment("away", error=str(error) or "no answer"))
        return _html(self._fragment("attempt", attempt=attempt))

    async def _pass(self, request: web.Request) -> web.Response:
        """Let somebody through the newcomer's door."""
        new, way = self._machine.newcomer, request.match_info["way"]
        if new is None or new.device is None or way not in ("in", "out"):
            raise web.HTTPNotFound(text="there is no such door yet")
        new.device.pass_by(entered=int(way == "in"), left=int(way == "out"))
        return _html(self._fragment("newcomer"))

    async def _press(self, _: web.Request) -> web.Response:
        """Let one more visitor press the unhappiest face."""
        self._machine.kiosk.press(SAD)
        return _html(self._fragment("kiosk"))

    async def _crowd(self, _: web.Request) -> web.Response:
        """Let a dozen visitors press it, one after the other."""
        for after_ms in CROWD_MS:
            self._machine.kiosk.press(SAD, after_ms=after_ms)
        return _html(self._fragment("kiosk"))

    async def _engineer(self, request: web.Request) -> web.Response:
        """Set the workshop up, or sign there what crashes."""
        engineer = self._machine.engineer
        acts = {"begin": engineer.prepare, "spoil": engineer.spoil}
        act = acts.get(request.match_info["do"])
        if act is None:
            raise web.HTTPNotFound(text="no such act")
        await act()
        return _html(self._fragment("workshop"))

    async def _proof(self, _: web.Request) -> web.Response:
        """Verify every minute that is old enough, now."""
        before = int(time.time()) // 60 - PROVED_AGO_MIN
        started = time.monotonic()
        try:
            async with self._acting:
                proof = await self._machine.prove(before_minute=before)
        except Exception as error:  # whatever is away: the page says so
            return _html(self._fragment("away", error=str(error) or type(error).__name__))
        seconds = time.monotonic() - started
        until = datetime.fromtimestamp(before * 60, UTC)
        return _html(self._fragment("proof", proof=proof, seconds=seconds, until=until))

    # -- inside ------------------------------------------------------------------------------

    def _values(self) -> dict[str, object]:
        machine = self._machine
        supervisor = machine.supervisor
        return {
            "balance": machine.meter.last,
            "parts": [(part, supervisor.alive(part)) for part in PARTS],
            "outages": list(reversed(supervisor.outages))[:5],
            "clock": lambda at: datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S UTC"),
            "cable_in": machine.cable_in,
            "mall_linked": machine.mall_linked,
            "mall": MALL,
            "unplugged": UNPLUGGED,
            "unnoticed": UNNOTICED,
            "dead": DEAD,
            "door": machine.spots[machine.inspected.spec.device],
            "device": machine.inspected.spec.device,
            "connected": machine.inspected.connected,
            "frames": list(machine.inspected.shoulder.frames)[:6],
            "newcomer": machine.newcomer,
            "kiosk": machine.kiosk,
            "engineer": machine.engineer,
            "good": GOOD,
            "bad": BAD,
            "shop": machine.spots[machine.kiosk.spec.device],
            "survey": machine.state.survey,
            "moment": moment(time.time_ns() // 1_000_000),
        }

    def _blind(self) -> tuple[datetime, datetime, bool]:
        """Return from and to when the station's sensor was blind, and whether that was today."""
        machine = self._machine
        station = machine.state.places()[device_id(machine.inspected.spec.device)].site
        began, ended = map(station.local, blind_stretch(machine.state.until_ms))
        return began, ended, began.date() == station.local(time.time_ns() // 1_000_000).date()

    def _fragment(self, name: str, **values: object) -> Markup:
        words: Catalogue = self._shell.catalogues["en"]
        return self._shell.fragment(f"{name}.html", words, **self._values(), **values)

    def _victim(self) -> DeviceId:
        """Return the device as which the inspected one tries to speak: a counter elsewhere."""
        return next(
            device
            for device, place in self._machine.state.places().items()
            if place.device.corrected
        )

    def _label_image(self) -> str:
        """Return the newcomer's QR code as an image's address."""
        if self._machine.newcomer is None:
            return ""
        text = self._machine.newcomer.label.text.upper()
        image: str = segno.make(text, error="m", micro=False).svg_data_uri(scale=5, light="white")
        return image

    @property
    def _first(self) -> int:
        return next(iter(self._machine.state.organisations.values()))

    @property
    def _shop(self) -> str:
        """The site of the kiosk that may be pressed."""
        return self._machine.state.sites[self._machine.kiosk.spec.device]

    def _estimated(self) -> bool:
        """Return whether there is history enough to estimate what the blind sensor missed."""
        state = self._machine.state
        return blind_stretch(state.until_ms)[0] - state.since_ms >= PROFILE_MS

    def _quality(self) -> str:
        """Return where the portal tells of the month in which the station's sensor was blind."""
        began, _, _ = self._blind()
        site = self._machine.state.sites[self._machine.inspected.spec.device]
        return "/go/0?" + urlencode({"to": f"/quality?site={site}&month={began:%Y-%m}"})

    def _curl(self) -> str:
        """Return the command that asks for the first organisation's last seven days."""
        return f"{self._asking()} '{self._counts()}&format=csv'"

    def _parquet(self) -> str:
        """Return the command that keeps the same as a file for analysis."""
        return f"{self._asking()} -o visits.parquet '{self._counts()}&format=parquet'"

    def _question(self) -> str:
        """Return the command that asks for two KPIs of the station's last two days."""
        today = self._today()
        question = {
            "metrics": ["visits", "nps"],
            "bucket": "day",
            "sites": [self._shop],
            "from": str(today - timedelta(days=2)),
            "to": str(today),
        }
        return (
            f"{self._asking()} -H 'Content-Type: application/json' "
            f"{self._machine.supervisor.base}/v1/metrics:query "
            f"-d '{json.dumps(question)}' | python3 -m json.tool"
        )

    def _asking(self) -> str:
        key = next(iter(self._machine.state.keys.values()))
        return f"curl -s -H 'Authorization: Bearer {key}'"

    def _counts(self) -> str:
        today = datetime.now().astimezone().date()
        since, until = today - timedelta(days=6), today + timedelta(days=1)
        base = self._machine.supervisor.base
        return f"{base}/v1/counts?bucket=day&from={since}&to={until}"

    def _today(self) -> date:
        """Return the station's date."""
        machine = self._machine
        station = machine.state.places()[device_id(machine.kiosk.spec.device)].site
        return station.local(time.time_ns() // 1_000_000).date()


async def _sign_in_link(connection: asyncpg.Connection, name: str, grant: Grant) -> str:
    """Return a sign-in link for somebody with this grant, who is made at the first call."""
    email = f"{name.lower()}-{grant.organisation}@demo.invalid"
    now = datetime.now(UTC)
    if not await users.listed(connection, wanted=email):
        row = await users.add(connection, email=email, name=name, actor=ACTOR, now=now)
        await users.grant(connection, row, grant, actor=ACTOR, now=now)
    user = await users.find(connection, email)
    return await users.link(connection, user, links.Purpose.SIGN_IN, actor=ACTOR, now=now)


def _event(name: str, html: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in html.splitlines())
    return f"event: {name}\n{lines}\n".encode()


def _html(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/html", headers={"Cache-Control": "no-store"})
