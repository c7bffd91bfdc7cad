"""Everyone means the same by a database that is away: who waits for it, and who answers people."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import asyncpg
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs

from server import app as server
from server.api.problems import Problem, problem_response
from server.audit import anchor
from server.config import Secret, Settings
from server.web.site import build_site

POOL = cast("asyncpg.Pool", None)  # nobody signs in
SILENT = [
    asyncpg.InternalClientError("odd moment"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.AdminShutdownError("57P01"),
    asyncpg.IdleSessionTimeoutError("57P05"),
    asyncpg.TooManyConnectionsError("53300"),
    ConnectionRefusedError(),
    TimeoutError(),
]
OURS = [asyncpg.UniqueViolationError("23505"), asyncpg.UndefinedTableError("42P01")]


def named(error: Exception) -> str:
    return type(error).__name__


@pytest.mark.parametrize("error", SILENT, ids=named)
def test_the_api_says_that_the_database_is_away(error: Exception) -> None:
    assert _code(error) == "database_away"


@pytest.mark.parametrize("error", OURS, ids=named)
def test_the_api_calls_a_wrong_statement_a_fault_of_ours(error: Exception) -> None:
    assert _code(error) == "internal_error"


@pytest.mark.parametrize(
    ("error", "status"), [*((e, 503) for e in SILENT), *((e, 500) for e in OURS)]
)
async def test_a_page_says_that_the_database_is_away_and_nothing_else(
    error: Exception, status: int
) -> None:
    async def fails(_: web.Request) -> web.Response:
        raise error

    settings = Settings(Secret(""), Secret(""), Secret(""), Path())
    site = build_site(desk=POOL, settings=settings)
    site.app.router.add_get("/fails", fails)
    async with TestClient(TestServer(site.app)) as browser:
        assert (await browser.get("/fails")).status == status


@pytest.mark.parametrize("error", SILENT, ids=named)
async def test_a_start_waits_for_a_database_that_is_away(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_WAIT_FIRST_S", 0.0)
    told = [error]

    async def attempt() -> str:
        if told:
            raise told.pop()
        return "there"

    assert await server._when_there(attempt) == "there"


@pytest.mark.parametrize("error", OURS, ids=named)
async def test_a_start_does_not_wait_for_what_waiting_does_not_mend(error: Exception) -> None:
    async def attempt() -> None:
        raise error

    with pytest.raises(type(error)):
        await server._when_there(attempt)


@pytest.mark.parametrize("error", [*SILENT, *OURS], ids=named)
async def test_a_worker_goes_on_whatever_the_database_raises(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = asyncio.Event()
    tries = 0

    class Pool:
        def acquire(self, *, timeout: float) -> None:
            nonlocal tries
            tries += 1
            if tries == 2:
                again.set()
            raise error

    monkeypatch.setattr(anchor, "EVERY_S", 0.0)
    with capture_logs() as logs:
        task = asyncio.create_task(anchor.run(cast("asyncpg.Pool", Pool())))
        async with asyncio.timeout(10):
            await again.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert {one["event"] for one in logs} == {"no audit heads"}


def _code(error: Exception) -> str:
    body = problem_response(error, request_id="r").body
    assert isinstance(body, bytes)
    return msgspec.json.decode(body, type=Problem).code
