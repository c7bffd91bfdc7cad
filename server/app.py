"""Opens everything in order, runs it, closes in reverse; the only module that knows all others.

One process with all roles by default; each role asks for a pool of its own, so that a slow
reader cannot keep the writer waiting.
"""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import asyncpg
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ext import COMPILED
from server.admission.probe import Listener
from server.admission.worker import Admission
from server.api.routes import build_api
from server.audit import anchor
from server.clock import Clock, SystemClock, at
from server.commands.listener import add_state, sweeping
from server.config import Secret, Settings
from server.console.pages import add_console
from server.db import lingering, purge
from server.db.engine import DATABASE_AWAY, DATABASE_SILENT, open_pool
from server.db.migrate import check_schema
from server.feedback.alerts import Watch
from server.feedback.codes import Handing, add_codes
from server.feedback.plans import add_plans
from server.feedback.responses import run as filter_presses
from server.feedback.tokens import PURPOSE
from server.feeds.mail import sender_of, smtp_of
from server.feeds.worker import Webhooks
from server.firmware.conductor import Conductor
from server.firmware.fetching import Files
from server.firmware.greetings import Greetings
from server.firmware.joining import Joiners
from server.firmware.office import Office
from server.firmware.repository import Repository
from server.firmware.signing import Signing
from server.firmware.watching import CountsGuard
from server.firmware.web import add_updates
from server.health import canary, ranking
from server.health.checks import Checks
from server.health.engine import Engine
from server.health.sending import Notices
from server.health.watch import Watch as PresenceWatch
from server.ingest.mqtt import BrokerSettings
from server.ingest.state import State
from server.ingest.worker import Ingest
from server.people.entrance import Entrance
from server.people.passwords import Passwords
from server.people.sealing import Seal
from server.portal.digest_sending import Digests
from server.portal.frame import CATALOGUES
from server.portal.pages import add_portal
from server.provisioning.bell import Bell
from server.provisioning.listener import listener_tls
from server.provisioning.web import build_enrolment
from server.rollup.refresh import run as refresh_rollups
from server.signin.account import add_account
from server.signin.pages import add_signin
from server.staff.pages import add_staff
from server.survey.pages import add_survey
from server.tasks import spare_the_collector
from server.tech.pages import add_tech
from server.web import catalogue
from server.web.deadline import listening
from server.web.passes import Passes
from server.web.site import build_site

log = structlog.get_logger(__name__)

T = TypeVar("T")
SHUTDOWN_S = 10.0
_WAIT_FIRST_S = 0.5
_WAIT_MOST_S = 10.0


@dataclass(frozen=True, slots=True)
class Running:
    """What a started server can be asked."""

    settings: Settings
    pool: asyncpg.Pool
    ingest: Ingest | None


async def run(settings: Settings, *, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is called once everything listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings):
        spare_the_collector()
        ready()
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Running]:
    """Open pools, workers and listeners; a worker that fails takes the server down with it."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        crew = _Crew(settings, SystemClock(), stack, group, [])
        pool = await crew.pool(settings.dsn_ingest, size=6, name="ingest")
        ingest = None
        if "ingest" in settings.roles:
            ingest = Ingest(pool, _broker(settings), crew.clock)
            crew.employ(ingest.run(), name="ingest")
        running = Running(settings, pool, ingest)
        for role, work in _WORK.items():
            if role in settings.roles:
                await work(crew)
        try:
            pages = web.Application()
            if "api" in settings.roles:
                pages = await _answer(crew, running)
            _add_operations(pages, running)
            await _start(stack, pages, host=settings.http_host, port=settings.http_port, tls=None)
            log.info("serving", http_port=settings.http_port, compiled_decoder=COMPILED)
            yield running
        finally:
            for worker in crew.workers:
                worker.cancel()


@dataclass(frozen=True, slots=True)
class _Crew:
    """The workers of this process, and what they are opened with."""

    settings: Settings
    clock: Clock
    stack: AsyncExitStack
    group: asyncio.TaskGroup
    workers: list[asyncio.Task[None]]

    async def pool(self, dsn: Secret, *, size: int, name: str) -> asyncpg.Pool:
        return await _open(self.stack, dsn.reveal(), size=size, name=name)

    def employ(self, work: Coroutine[None, None, None], *, name: str) -> None:
        self.workers.append(self.group.create_task(work, name=name))


async def _admit(crew: _Crew) -> None:
    settings, clock = crew.settings, crew.clock
    orders = await crew.pool(settings.dsn_ingest, size=2, name="admission")
    control = _broker(settings, "svc-control")
    crew.employ(Admission(orders, control, _devices(settings), clock).run(), name="admission")
    bells = await crew.pool(settings.dsn_ingest, size=1, name="bell")
    crew.employ(Bell(bells, _broker(settings, "svc-downlink")).run(), name="bell")


async def _watch_health(crew: _Crew) -> None:
    settings, clock = crew.settings, crew.clock
    health = await crew.pool(settings.dsn_maint, size=2, name="health")
    crew.employ(PresenceWatch(health, clock).run(), name="presence")
    crew.employ(canary.run(_broker(settings, canary.IDENTITY), clock), name="canary")
    checks = await crew.pool(settings.dsn_maint, size=1, name="checks")
    crew.employ(Checks(checks, clock).run(), name="checks")
    incidents = await crew.pool(settings.dsn_maint, size=3, name="incidents")
    crew.employ(Engine(incidents, clock).run(), name="incidents")
    crew.employ(ranking.run(incidents, clock), name="stakes")
    if settings.smtp_url.reveal():
        crew.employ(_notices(settings, incidents, clock).run(), name="notices")


async def _roll_out(crew: _Crew) -> None:
    clock = crew.clock
    rollouts = await crew.pool(crew.settings.dsn_maint, size=2, name="rollouts")
    crew.employ(Conductor(rollouts, clock).run(), name="rollouts")
    crew.employ(CountsGuard(rollouts, clock).run(), name="counts")
    crew.employ(Joiners(rollouts, clock).run(), name="joiners")
    crew.employ(Greetings(rollouts, clock).run(), name="greetings")
    crew.employ(Signing(Repository(crew.settings.firmware), clock).run(), name="releases")


async def _derive(crew: _Crew) -> None:
    settings, clock = crew.settings, crew.clock
    maint = await crew.pool(settings.dsn_maint, size=2, name="rollup")
    crew.employ(refresh_rollups(maint), name="rollup")
    crew.employ(filter_presses(maint), name="misuse filter")
    crew.employ(Watch(maint, clock).run(), name="alerts")
    crew.employ(anchor.run(maint), name="audit heads")
    crew.employ(purge.run(maint, clock), name="purge")
    crew.employ(lingering.run(maint), name="lingering")
    crew.employ(sweeping(maint, clock), name="commands")
    if settings.session_secret.reveal():  # which opens the webhooks' own
        told = await crew.pool(settings.dsn_maint, size=4, name="webhooks")
        webhooks = Webhooks(told, Seal(settings.session_secret), clock)
        crew.employ(webhooks.run(), name="webhooks")
    else:
        log.warning("webhooks are told nothing here: VESTIBULE_SESSION_SECRET is not set")


_WORK: Mapping[str, Callable[[_Crew], Awaitable[None]]] = {
    "admission": _admit,
    "health": _watch_health,
    "firmware": _roll_out,
    "rollup": _derive,
}
"""What each role does beside ingest and what is asked of the API, in the order of opening."""


async def _answer(crew: _Crew, running: Running) -> web.Application:
    """Listen for devices; return what people and their programs are answered with."""
    settings, clock = crew.settings, crew.clock
    api = await crew.pool(settings.dsn_api, size=10, name="api")
    desk = await crew.pool(settings.dsn_desk, size=8, name="desk")
    passwords = Passwords()
    crew.stack.callback(passwords.close)
    pages = build_pages(settings, api, desk, passwords, clock, ingest=running.pool)
    await _listen_for_devices(crew.stack, running)
    if settings.smtp_url.reveal():
        crew.employ(_digests(settings, api, desk, clock).run(), name="digests")
    return pages


def build_pages(
    settings: Settings,
    pool: asyncpg.Pool,
    desk: asyncpg.Pool,
    passwords: Passwords,
    clock: Clock,
    *,
    ingest: asyncpg.Pool | None = None,
) -> web.Application:
    """Return all that people and their programs see: pages and API, behind one door.

    Without `ingest`, which places devices, there are no technician's pages.
    """

    def now() -> datetime:
        return at(clock.now_ms())

    seal = Seal(settings.session_secret)
    site = build_site(desk=desk, settings=settings, now=now)
    entrance = Entrance(desk, passwords, seal, now=now, monotonic=clock.monotonic)
    passes = Passes(seal, site.sessions, now=now)
    tools = add_signin(site, desk=desk, entrance=entrance, passwords=passwords, now=now)
    add_account(site, tools, seal)
    add_portal(site, pool=pool, desk=desk, settings=settings, passes=passes, now=now)
    add_console(site, desk=desk, ingest=ingest, settings=settings, now=now)
    add_survey(site, desk=desk, seal=seal, now=now, clock=clock.monotonic)
    add_staff(site, desk=desk, seal=seal, now=now, clock=clock.monotonic)
    if ingest is not None:
        add_tech(site, desk=desk, api=pool, ingest=ingest, settings=settings, now=now)
    api = build_api(
        pool=pool,
        desk=desk,
        clock=clock,
        identify=passes.asker,
        seal=seal,
        base=settings.public_url,
    )
    site.app.add_subapp("/v1/", api)
    return site.app


def _digests(settings: Settings, pool: asyncpg.Pool, desk: asyncpg.Pool, clock: Clock) -> Digests:
    """Return the one that sends digests. Raises SettingsError if mail is set up wrongly."""
    return Digests(
        desk,
        pool,
        Seal(settings.session_secret),
        clock,
        smtp=smtp_of(settings.smtp_url.reveal()),
        sender=sender_of(settings.mail_from),
        pages=settings.pages_url,
        catalogues=catalogue.load([catalogue.SHARED, *CATALOGUES]),
    )


def _notices(settings: Settings, pool: asyncpg.Pool, clock: Clock) -> Notices:
    """Return the one that sends mail about incidents. Raises SettingsError as `_digests` does."""
    return Notices(
        pool,
        clock,
        smtp=smtp_of(settings.smtp_url.reveal()),
        sender=sender_of(settings.mail_from),
        pages=settings.pages_url,
    )


def _add_operations(app: web.Application, running: Running) -> None:
    """Add what operators and their tools ask, whatever this process's roles are."""
    app.router.add_get("/healthz", _healthy)
    app.router.add_get("/readyz", _readiness(running))
    app.router.add_get("/metrics", _metrics)


async def _listen_for_devices(stack: AsyncExitStack, running: Running) -> None:
    settings = running.settings
    enrolment = build_enrolment(
        pool=running.pool,
        pki=settings.pki,
        broker=(settings.device_broker_host, settings.device_broker_port),
        now=lambda: datetime.now(UTC),
        releases=Repository(settings.firmware).first_trust,
    )
    add_plans(enrolment, pool=running.pool, pki=settings.pki, now=lambda: datetime.now(UTC))
    key = Seal(settings.session_secret).sign(PURPOSE, b"")
    add_codes(
        enrolment,
        pool=running.pool,
        pki=settings.pki,
        handing=Handing(key, f"{settings.pages_url}/s"),
        now=lambda: datetime.now(UTC),
    )
    add_state(enrolment, pool=running.pool, now=lambda: datetime.now(UTC))
    # of its own: who waits for a rollout's lock keeps no frame from being stored
    asking = await _open(stack, settings.dsn_ingest.reveal(), size=4, name="updates")
    office = Office(asking, settings.pki, lambda: datetime.now(UTC))
    add_updates(enrolment, office=office, files=Files(settings.firmware))
    tls = listener_tls(settings.pki)
    await _start(stack, enrolment, host=settings.https_host, port=settings.https_port, tls=tls)


async def _start(
    stack: AsyncExitStack,
    app: web.Application,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
) -> None:
    listener = listening(app, host=host, port=port, tls=tls, shutdown_s=SHUTDOWN_S)
    await stack.enter_async_context(listener)


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="alive\n")


def _readiness(running: Running) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def ready(_: web.Request) -> web.Response:
        """200 when the database answers and ingest is connected; else 503 with what is missing."""
        wrong: dict[str, str] = {}
        try:
            await running.pool.fetchval("select 1", timeout=2)
        except DATABASE_AWAY as error:
            wrong["database"] = str(error) or type(error).__name__
        if running.ingest is not None and running.ingest.state is not State.RUNNING:
            wrong["ingest"] = running.ingest.state.value
        return web.json_response({"ready": not wrong, **wrong}, status=503 if wrong else 200)

    return ready


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _open(stack: AsyncExitStack, dsn: str, *, size: int, name: str) -> asyncpg.Pool:
    """Open a pool and check the schema; a database that is away, or goes away, is waited for."""
    pool = await _when_there(
        lambda: stack.enter_async_context(open_pool(dsn, size=size, name=name))
    )

    async def check() -> None:
        async with pool.acquire() as connection:
            await check_schema(connection)

    await _when_there(check)
    return pool


async def _when_there(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until the database is there; any other failure is raised."""
    wait_s = _WAIT_FIRST_S
    while True:
        try:
            return await attempt()
        except asyncpg.ClientConfigurationError:
            raise  # an InterfaceError that no waiting mends
        except DATABASE_SILENT as error:  # no waiting mends a wrong password or schema
            said = str(error) or type(error).__name__
            log.warning("database away", error=said, wait_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _WAIT_MOST_S)


def _broker(settings: Settings, identity: str = "svc-ingest") -> BrokerSettings:
    return BrokerSettings(
        host=settings.broker_host,
        port=settings.broker_service_port,
        cafile=settings.pki / "bundle.pem",
        certfile=settings.pki / f"{identity}.pem",
        keyfile=settings.pki / f"{identity}.key",
    )


def _devices(settings: Settings) -> Listener:
    return Listener(settings.device_broker_host, settings.device_broker_port, settings.pki)
