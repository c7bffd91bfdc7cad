"""Live pages: one organisation cannot take those of the others, and one ends with its session."""

import asyncio
from datetime import datetime

import asyncpg
import pytest
from aiohttp import ClientResponse, ClientSession

from server.portal import numbers, pages
from tests.integration.people_world import NOW, People

pytestmark = pytest.mark.services


async def watch(browser: ClientSession) -> ClientResponse:
    """Open a live page."""
    return await browser.get("/events", headers={"Accept": "text/event-stream"})


async def test_one_organisation_cannot_take_every_live_page(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_STREAMS_EACH", 2)
    monkeypatch.setattr(pages, "REFRESH_S", 0.01)
    await people.analyst()
    await people.analyst("eva@example.com", "other")
    own, other = await people.signed_in(), await people.signed_in("eva@example.com")
    open_ = [await watch(own), await watch(own)]
    assert [each.status for each in open_] == [200, 200]
    assert (await watch(own)).status == 429
    elsewhere = await watch(other)
    assert elsewhere.status == 200
    open_[0].close()
    async with asyncio.timeout(10):
        while (again := await watch(own)).status != 200:
            again.close()  # the server has not noticed yet
    for each in (open_[1], elsewhere, again):
        each.close()


async def test_a_live_page_opened_before_anything_was_stored_shows_the_first_change(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "REFRESH_S", 0.01)
    stored: list[datetime | Exception] = [asyncpg.InternalClientError("odd moment")]

    async def last_stored(_: asyncpg.Connection) -> datetime | None:
        match stored:
            case [Exception() as error]:
                raise error
            case [datetime() as at]:
                return at
            case _:
                return None

    monkeypatch.setattr(numbers, "last_stored", last_stored)
    await people.analyst()
    page = await watch(await people.signed_in())
    async with asyncio.timeout(10):
        assert await said(page, 2) == [": alive"] * 2  # while the database is away
        stored.clear()
        assert await said(page, 4) == [": alive"] * 4
        stored.append(NOW)
        while (event := await said(page, 1)) == [": alive"]:
            pass
        assert event == ["event: changed"]
        stored[:] = [asyncpg.InternalClientError("odd moment")]
        await said(page, 3)
        stored[:] = [NOW]
        assert await said(page, 3) == [": alive"] * 3
    page.close()


async def said(page: ClientResponse, count: int) -> list[str]:
    """Return the first lines of the next events."""
    found: list[str] = []
    while len(found) < count:
        line = (await page.content.readline()).decode().strip()
        if line and not line.startswith("data"):
            found.append(line)
    return found


async def test_a_live_page_ends_with_its_session(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "REFRESH_S", 0.01)
    await people.analyst()
    browser = await people.signed_in()
    page = await watch(browser)
    await page.content.readline()
    await people.owner.execute("update sessions set ended_at = now()")
    async with asyncio.timeout(10):
        await page.read()  # to its end
    assert (await watch(browser)).status == 401
