"""A fleet with troubles and an operator's browser, before the pages alone: no broker, no devices.

The pages run in a thread of their own on a real socket, with the real clock; what would come from
devices is written into the database as ingest and health would have written it.
"""

import asyncio
import secrets
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from aiohttp import web
from argon2 import PasswordHasher
from playwright.sync_api import Page

from ops.services.stack import Stack
from server.app import build_pages
from server.clock import Clock, SystemClock
from server.config import Secret, Settings
from server.db.engine import open_pool
from server.db.migrate import migrate
from server.people import users
from server.people.passwords import Passwords
from server.people.roles import Grant, Role

T = TypeVar("T")
EMAIL, PASSWORD = "noc@example.com", "korrekt häst batteri häftklammer"
OWN = "/console/o/own"
DEVICES = 40
TROUBLES = (
    ("offline", "critical", 4, 412.0),
    ("no_data", "major", 7, 96.0),
    ("flatline", "major", 12, 61.4),
    ("certificate", "major", 20, 0.0),
    ("storage", "minor", 33, 0.0),
)
"""Condition, severity, which device, and what is at stake."""


_WELL = """
    update presences set state = 'healthy', session = 'open', session_at = $1, since = $1,
        heartbeat_at = $2::timestamptz - interval '9 minutes',
        data_at = $2 - interval '4 minutes', agent = 'vestibule 2.' || 2 + device_id % 3
"""


@dataclass
class Noc:
    """The pages' address, and a hand in their database."""

    base: str
    loop: asyncio.AbstractEventLoop
    owner: asyncpg.Connection
    runner: web.AppRunner
    port: int
    pools: Mapping[str, asyncpg.Pool]
    dsn: Mapping[str, str]
    passwords: Passwords
    organisation: int = 0
    incidents: list[str] = field(default_factory=list)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the pages' thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def sql(self, text: str, *values: object) -> list[asyncpg.Record]:
        """Ask the database, in the pages' thread."""
        return list(self.run(self.owner.fetch(text, *values)))

    def heal(self) -> None:
        """Let nothing be wrong, nor anything have been."""
        for table in ("incident_decisions", "incident_comments", "episodes", "incidents",
                      "command_files", "commands", "command_batches", "device_events",
                      "device_metrics", "metric_names", "segments"):  # fmt: skip
            self.sql(f"delete from {table}")
        self.sql(_WELL, datetime.now(UTC) - timedelta(days=3), datetime.now(UTC))

    def go_away(self) -> None:
        """Cut every connection, and take no other."""

        async def cut() -> None:
            for site in list(self.runner.sites):
                await site.stop()
            assert self.runner.server is not None
            for connection in list(self.runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()

        self.run(cut())

    def come_back(self) -> None:
        """Be there again, at the same address."""
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        self.run(site.start())

    def enter(self, page: Page, email: str = EMAIL) -> Page:
        """Sign an operator in, and open what needs a human."""
        page.goto(f"{self.base}/signin")
        page.locator("input[name=email]").fill(email)
        page.locator("input[name=password]").fill(PASSWORD)
        page.locator("main form button").last.click()
        page.wait_for_url(lambda url: "/signin" not in url)
        page.goto(f"{self.base}{OWN}/now")
        return page

    def open(self, condition: str, severity: str, device: int, stake: float) -> str:
        """Let something be wrong with a device, and return its incident."""
        ref = f"incident-{condition.replace('_', '')}"
        self.sql(
            "with one as (select d.id, d.organisation_id, p.site_id, p.id as spot from devices d "
            "join assignments a on a.device_id = d.id join spots p on p.id = a.spot_id "
            "order by d.id offset $1 limit 1), made as (insert into incidents (organisation_id, "
            "ref, key, subject, subject_id, condition, severity, site_id, device_id, spot_id, "
            "since, opened_at, ready_at, stake) select organisation_id, $2, $2, 'device', id, $3, "
            "$4, site_id, id, spot, $5, $5, $5, $6 from one returning id, organisation_id, "
            "site_id, device_id, spot_id), noted as (insert into incident_decisions "
            "(organisation_id, incident_id, at, decision, why, until) select organisation_id, id, "
            "$5, 'waits', 'wait', $7 from made) insert into episodes (organisation_id, "
            "incident_id, subject, subject_id, condition, site_id, device_id, spot_id, since, "
            "opened_at, evidence) select organisation_id, id, 'device', device_id, $3, site_id, "
            'device_id, spot_id, $5, $5, \'{"silent_s": 5400, "session": "lost"}\' from made',
            *(device, ref, condition, severity, datetime.now(UTC) - timedelta(minutes=47), stake),
            datetime.now(UTC) - timedelta(minutes=44),
        )
        self.incidents.append(ref)
        return ref


@contextmanager
def noc(stack: Stack, folder: Path, clock: Clock | None = None) -> Iterator[Noc]:
    """Serve the pages over a fleet in a database of its own, by the real clock or another."""
    database = f"noc_{secrets.token_hex(6)}"
    stack.postgres.create_database(database)
    ready, stop, made = threading.Event(), threading.Event(), []

    async def run() -> None:
        async with AsyncExitStack() as exits:
            made.append(await _served(exits, stack, database, folder, clock or SystemClock()))
            ready.set()
            await asyncio.to_thread(stop.wait)

    failed: list[BaseException] = []

    def thread() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            failed.append(error)
            ready.set()
            raise

    worker = threading.Thread(target=thread)
    worker.start()
    try:
        assert ready.wait(60), "the pages did not come up"
        assert not failed, failed
        yield made[0]
    finally:
        stop.set()
        worker.join(60)
        stack.postgres.drop_database(database)


async def _served(
    exits: AsyncExitStack, stack: Stack, database: str, folder: Path, clock: Clock
) -> Noc:
    await migrate(stack.endpoints.dsn("owner", database))
    roles = ("owner", "api", "desk", "ingest", "maint")
    dsn = {role: stack.endpoints.dsn(role, database) for role in roles}
    owner = await asyncpg.connect(dsn["owner"])
    exits.push_async_callback(owner.close)
    pools = {
        role: await exits.enter_async_context(open_pool(dsn[role], size=4, name=role))
        for role in roles[1:]
    }
    passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    exits.callback(passwords.close)
    settings = replace(
        Settings(Secret(""), Secret(dsn["api"]), Secret(""), folder),
        session_secret=Secret("s" * 32),
    )
    app = build_pages(
        settings, pools["api"], pools["desk"], passwords, clock, ingest=pools["ingest"]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    exits.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    loop = asyncio.get_running_loop()
    found = Noc(f"http://127.0.0.1:{port}", loop, owner, runner, port, pools, dsn, passwords)
    found.organisation = await _fill(owner, passwords)
    return found


async def _fill(owner: asyncpg.Connection, passwords: Passwords) -> int:
    now = datetime.now(UTC)
    own: int = await owner.fetchval(
        "insert into organisations (ref, name) values ('own', 'Nordhandel AB') returning id"
    )
    await owner.execute(
        """
        insert into regions (organisation_id, ref, name) values ($1, 'region-a', 'Skåne')
        """,
        own,
    )
    await owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone, region_id) "
        "select $1, 'site-' || n, (array['Lund', 'Malmö', 'Ystad', 'Kivik', 'Höör'])[n] || "
        "' Centrum', 'Europe/Stockholm', (select id from regions) from generate_series(1, 5) n",
        own,
    )
    await owner.execute(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "select $1, (select id from sites where ref = 'site-' || 1 + n % 5), 'spot-' || n, "
        "'Entré ' || n, case when n % 4 = 0 then 'kiosk' else 'counter' end "
        "from generate_series(0, $2 - 1) n order by n",
        *(own, DEVICES),
    )
    await owner.execute(
        "insert into devices (organisation_id, device, kind, model, serial, state) "
        "select $1, case when n % 4 = 0 then 'fk' else 'dc' end || '-fleet' || "
        "to_char(n, 'FM0000') || 'x', case when n % 4 = 0 then 'kiosk' else 'counter' end, "
        "case when n % 4 = 0 then 'FK1' else 'DC2' end, 'S' || 1000 + n, 'in service' "
        "from generate_series(0, $2 - 1) n order by n",
        *(own, DEVICES),
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) select $1, d.id, "
        "s.id, tstzrange($2, null) from (select id, row_number() over (order by id) as n from "
        "devices) d join (select id, row_number() over (order by id) as n from spots) s "
        "using (n)",
        *(own, now - timedelta(days=90)),
    )
    await owner.execute(_WELL, now - timedelta(days=3), now)
    await owner.execute(
        "insert into boots (device_id, boot_id, ordinal, last_stored, stored_to) "
        "select id, 1, 1, $1, $1 from devices",
        now - timedelta(minutes=4),
    )
    await operator(owner, passwords, own, EMAIL, "Kim Berg")
    return own


async def operator(
    owner: asyncpg.Connection, passwords: Passwords, organisation: int, email: str, name: str
) -> None:
    """Add somebody of the organisation's NOC, who signs in by `PASSWORD`."""
    now = datetime.now(UTC)
    row = await users.add(owner, email=email, name=name, actor="command", now=now)
    await users.grant(owner, row, Grant(Role.NOC, organisation), actor="command", now=now)
    await owner.execute(
        "update users set password_hash = $2 where id = $1", row, await passwords.hash(PASSWORD)
    )
