"""Pages and API behind one door, with people: what the tests of signing in start from."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import asyncpg
import pytest
from aiohttp import ClientResponse, ClientSession, CookieJar, web
from aiohttp.test_utils import BaseTestServer, TestServer
from argon2 import PasswordHasher

from ops.services.stack import Stack
from server.app import build_pages
from server.clock import ManualClock, at
from server.config import Secret, Settings
from server.db.engine import open_pool
from server.people import links, users
from server.people.passwords import Passwords
from server.people.roles import Grant, Role
from tests.emptying import empty

NOW = datetime(2026, 4, 2, 12, 0, tzinfo=UTC)
GOOD = "korrekt häst batteri häftklammer"
CHEAP = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
HTML = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


@dataclass
class People:
    """A server at 2026-04-02 12:00 UTC, with two organisations of a site each."""

    owner: asyncpg.Connection
    desk: asyncpg.Pool
    app: web.Application
    server: BaseTestServer
    clock: ManualClock
    passwords: Passwords
    organisations: dict[str, int] = field(default_factory=dict)
    browsers: list[ClientSession] = field(default_factory=list)

    @property
    def now(self) -> datetime:
        return at(self.clock.now_ms())

    async def user(
        self, email: str = "ada@example.com", *grants: Grant, password: str | None = GOOD
    ) -> int:
        """Add a user, who may sign in by password unless that is None; return the row."""
        row = await users.add(self.owner, email=email, name="Ada", actor="command", now=self.now)
        for grant in grants:
            await users.grant(self.owner, row, grant, actor="command", now=self.now)
        if password is not None:
            await self.owner.execute(
                "update users set password_hash = $2 where id = $1",
                row,
                await self.passwords.hash(password),
            )
        return row

    async def analyst(self, email: str = "ada@example.com", organisation: str = "own") -> int:
        """Add somebody who reads an organisation's numbers."""
        return await self.user(email, Grant(Role.ANALYST, self.organisations[organisation]))

    async def link(self, user: int, purpose: links.Purpose) -> str:
        return await links.make(self.owner, user, purpose, now=self.now)

    def browser(self) -> ClientSession:
        """Return a browser without cookies."""
        made = ClientSession(self.server.make_url("/"), cookie_jar=CookieJar(unsafe=True))
        self.browsers.append(made)
        return made

    async def signed_in(
        self, email: str = "ada@example.com", password: str = GOOD
    ) -> ClientSession:
        """Return a browser in which somebody signed in."""
        browser = self.browser()
        response = await sign_in(browser, email, password)
        assert response.status == 303, await response.text()
        return browser


async def load(browser: ClientSession, path: str) -> tuple[int, str]:
    """Return status and text of a page, following its redirects."""
    async with browser.get(path, headers=HTML) as response:
        return response.status, await response.text()


async def form_of(browser: ClientSession, path: str) -> dict[str, str]:
    """Return the hidden fields of a page's last form."""
    _, html = await load(browser, path)
    last = html[html.rindex("<form") :]
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', last)
    return {name: unescape(value) for name, value in found}


def words_in(html: str, pattern: str) -> str:
    """Return the text, without tags, of what `pattern`'s group matches first."""
    found = re.search(pattern, html, re.S)
    assert found is not None, html
    return " ".join(re.sub(r"<[^>]+>", " ", found[1]).split())


async def post(
    browser: ClientSession, path: str, form: dict[str, str], **headers: str
) -> ClientResponse:
    """Send a form as a page of ours would; redirects are not followed."""
    response = await browser.post(
        path, data=form, headers={**HTML, **headers}, allow_redirects=False
    )
    await response.read()
    return response


async def sign_in(
    browser: ClientSession, email: str = "ada@example.com", password: str = GOOD, **headers: str
) -> ClientResponse:
    """Fill in the sign-in form."""
    form = await form_of(browser, "/signin")
    return await post(browser, "/signin", {**form, "email": email, "password": password}, **headers)


@pytest.fixture
async def people(stack: Stack, world_database: str, tmp_path: Path) -> AsyncIterator[People]:
    """An emptied database and the whole of what people see. Passwords are hashed cheaply."""
    roles = ("owner", "api", "desk", "ingest")
    dsn = {role: stack.endpoints.dsn(role, world_database) for role in roles}
    clock = ManualClock(int(NOW.timestamp() * 1000))
    settings = Settings(
        Secret(""), Secret(dsn["api"]), Secret(""), tmp_path, session_secret=Secret("s" * 32)
    )
    async with AsyncExitStack() as exits:
        owner = await asyncpg.connect(dsn["owner"])
        exits.push_async_callback(owner.close)
        await empty(owner)
        api = await exits.enter_async_context(open_pool(dsn["api"], size=4, name="api"))
        desk = await exits.enter_async_context(open_pool(dsn["desk"], size=4, name="desk"))
        ingest = await exits.enter_async_context(open_pool(dsn["ingest"], size=4, name="ingest"))
        passwords = Passwords(CHEAP)
        exits.callback(passwords.close)
        app = build_pages(replace(settings), api, desk, passwords, clock, ingest=ingest)
        server = await exits.enter_async_context(TestServer(app))
        found = People(owner, desk, app, server, clock, passwords)
        for name in ("own", "other"):
            row = await owner.fetchval(
                "insert into organisations (ref, name) values ($1, $1) returning id", name
            )
            found.organisations[name] = row
            await owner.execute(
                "insert into sites (organisation_id, ref, name, time_zone) "
                "values ($1, $2, $2, 'Europe/Stockholm')",
                row,
                f"{name}-site",
            )
        yield found
        for browser in found.browsers:
            await browser.close()
