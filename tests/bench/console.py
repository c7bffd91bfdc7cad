"""How long the server takes for an operator's pages over 10,000 devices, and how heavy they are.

    python -m tests.bench.console

One organisation of 1,000 sites of ten devices, one in fifty not well, 200 open incidents of one to
nine episodes. The pages as a browser of the desk's role gets them, signed in, one after the other,
until the last byte; what is promised of the overview is 1 s, and 300 kB with all that it links to.
"""

import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import asyncpg
from aiohttp import ClientSession, CookieJar, FormData
from aiohttp.test_utils import TestServer
from argon2 import PasswordHasher

from server.app import build_pages
from server.clock import ManualClock
from server.config import Secret, Settings
from server.db.engine import open_pool
from server.people import users
from server.people.passwords import Passwords
from server.people.roles import Grant, Role
from tests.bench.api import NOW, Address, Row, served

PASSES, WARM = 20, 3
LIMIT_MS, LIMIT_BYTES = 1_000, 300_000
EMAIL, PASSWORD = "noc@example.com", "korrekt häst batteri häftklammer"
BASE = "/console/o/bench"
PAGES = {
    "now": "/now",
    "incidents": "/incidents",
    "incident": "/incidents/incident-7",
    "devices": "/devices",
    "search": "/devices?q=state%20%3D%20offline%20and%20firmware%20%3C%202.4",
    "device": "/devices/dc-0000777",
}
_SEED = """
    insert into sites (organisation_id, ref, name, time_zone)
    select 1, 'site-' || n, 'Butik ' || n, 'Europe/Stockholm' from generate_series(0, 999) n
    order by n;
    insert into spots (organisation_id, site_id, ref, name, kind)
    select 1, s.id, s.ref || '-' || n, 'Entré ' || n, 'counter'
    from sites s, generate_series(0, 9) n order by s.id, n;
    insert into devices (organisation_id, device, kind, model, serial, state)
    select 1, 'dc-' || to_char(n, 'FM0000000'), 'counter', 'DC' || n % 3, 'S-' || n, 'in service'
    from generate_series(0, 9999) n order by n;
    insert into assignments (organisation_id, device_id, spot_id, valid)
    select 1, d.id, d.id, tstzrange('2024-12-01', null) from devices d;
    insert into boots (device_id, boot_id, ordinal, last_stored)
    select id, 1, 1, '{now}' from devices;
    update presences set state = case when device_id % 50 = 7 then 'offline' else 'healthy' end,
        session = 'open', session_at = '{now}', agent = 'vestibule 2.' || device_id % 5 + 1;
    insert into device_events (organisation_id, device_id, at, kind)
    select 1, d.id, '{now}'::timestamptz - n * interval '1 hour', 'connected'
    from devices d, generate_series(1, 20) n;
    insert into incidents (organisation_id, ref, key, subject, subject_id, condition, severity,
        site_id, device_id, since, opened_at, ready_at, stake)
    select 1, 'incident-' || n, n::text, 'device', n * 50 + 7, 'offline', 'critical',
        1 + n * 5, n * 50 + 7, '{now}', '{now}', '{now}', n % 97 from generate_series(0, 199) n;
    insert into episodes (organisation_id, incident_id, subject, subject_id, condition, site_id,
        device_id, since, opened_at)
    select 1, i.id, 'device', i.device_id * 10 + n, 'offline', i.site_id, i.device_id,
        '{now}', '{now}' from incidents i, generate_series(0, 9) n where n <= i.id % 9;
"""


def run() -> list[Row]:
    """Measure every page; AssertionError if one is not what it should be."""
    return asyncio.run(_run())


async def _run() -> list[Row]:
    rows: list[Row] = []
    async with AsyncExitStack() as exits:
        address, owner = await exits.enter_async_context(served(_SEED.format(now=NOW.isoformat())))
        browser = await _browser(exits, address, owner)
        for name, path in PAGES.items():
            taken: list[float] = []
            html = ""
            for _ in range(WARM + PASSES):
                started = time.perf_counter()
                async with browser.get(BASE + path) as response:
                    html = await response.text()
                taken.append(1000 * (time.perf_counter() - started))
                assert response.status == 200, (path, html[-300:])
            rows.append(_row(f"console.{name}.p95.ours", taken[WARM:], "ms", LIMIT_MS))
            if name == "now":
                assert "200" in html
                rows.append(_row("console.now.bytes", [await _weight(browser, html)], "bytes",
                                 LIMIT_BYTES))  # fmt: skip
    return rows


async def _browser(
    exits: AsyncExitStack, address: Address, owner: asyncpg.Connection
) -> ClientSession:
    folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="vestibule-bench-")))
    api = await exits.enter_async_context(open_pool(address.dsn, size=4, name="api"))
    desk = await exits.enter_async_context(open_pool(address.desk, size=4, name="desk"))
    passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    exits.callback(passwords.close)
    settings = replace(
        Settings(Secret(""), Secret(address.dsn), Secret(""), folder),
        session_secret=Secret("s" * 32),
    )
    clock = ManualClock(int(NOW.timestamp() * 1000))
    server = await exits.enter_async_context(
        TestServer(build_pages(settings, api, desk, passwords, clock))
    )
    row = await users.add(owner, email=EMAIL, name="Kim", actor="command", now=NOW)
    await users.grant(owner, row, Grant(Role.NOC, 1), actor="command", now=NOW)
    await owner.execute(
        "update users set password_hash = $2 where id = $1", row, await passwords.hash(PASSWORD)
    )
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    browser = ClientSession(
        server.make_url("/"), cookie_jar=CookieJar(unsafe=True), headers=headers
    )
    await exits.enter_async_context(browser)
    async with browser.get("/signin") as response:
        found = re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', await response.text())
    form = FormData({**dict(found), "email": EMAIL, "password": PASSWORD})
    async with browser.post("/signin", data=form, allow_redirects=False) as response:
        assert response.status == 303, await response.text()
    return browser


async def _weight(browser: ClientSession, html: str) -> float:
    """Return how many bytes a page is with all that it links to, before gzip."""
    weight = len(html.encode())
    for url in re.findall(r'(?:src|href)="(/static/[^"]+)"', html):
        async with browser.get(url) as response:
            weight += len(await response.read())
    return float(weight)


def _row(name: str, values: list[float], unit: str, limit: float) -> Row:
    value = values[0] if len(values) == 1 else statistics.quantiles(values, n=20)[-1]
    return Row(
        name=name,
        value=round(value, 1),
        unit=unit,
        limit=limit,
        limit_name="what is promised",
        ratio=round(value / limit, 3),
    )


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=1)
