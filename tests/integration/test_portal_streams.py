"""Live pages: one organisation cannot take those of the others."""

import asyncio
import time
from pathlib import Path

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from server.config import Secret, Settings
from server.portal import pages, session
from tests.integration.api_world import World

pytestmark = pytest.mark.services

NONE = Secret("")
SETTINGS = Settings(NONE, NONE, NONE, Path(), session_secret=Secret("s" * 32))


async def test_one_organisation_cannot_take_every_live_page(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_STREAMS_EACH", 2)
    monkeypatch.setattr(pages, "REFRESH_S", 0.01)
    own, other = await world.organisation("own"), await world.organisation("other")
    app = pages.build_portal(pool=world.api, settings=SETTINGS)
    async with TestClient[web.Request, web.Application](TestServer(app)) as client:

        async def watch(organisation: int) -> ClientResponse:
            token = session.issue(
                SETTINGS, organisation, session.Purpose.SESSION, until_s=int(time.time()) + 60
            )
            return await client.get("/events", headers={"Cookie": f"{session.COOKIE}={token}"})

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
