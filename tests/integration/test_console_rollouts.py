"""What release engineers see and do in the console: freezes, rollouts, what a device runs."""

from dataclasses import dataclass

import pytest
from aiohttp import ClientSession

from server.people.roles import Grant, Role
from tests.integration.people_world import HTML, People, form_of, load, post

pytestmark = pytest.mark.services
OWN = "/console/o/own"


@dataclass
class Desk:
    """Two people who may roll out, each in a browser of their own."""

    people: People
    kim: ClientSession
    bo: ClientSession

    async def get(self, path: str, who: ClientSession | None = None) -> str:
        status, text = await load(who or self.kim, f"{OWN}{path}")
        assert status == 200, (path, text[-400:])
        return text

    async def post(self, path: str, **form: str) -> tuple[int, str]:
        """Send a form as Kim; return status and text, or where it leads."""
        return await self.post_as(self.kim, path, **form)

    async def post_as(self, browser: ClientSession, path: str, **form: str) -> tuple[int, str]:
        csrf = (await form_of(browser, OWN))["csrf"]
        response = await post(browser, f"{OWN}{path}", {"csrf": csrf, **form})
        if response.status == 303:
            return 303, response.headers["Location"]
        return response.status, await response.text()


@pytest.fixture
async def desk(people: People) -> Desk:
    own = people.organisations["own"]
    for name in ("kim", "bo"):
        await people.user(f"{name}@example.com", Grant(Role.NOC, own))
    return Desk(
        people, await people.signed_in("kim@example.com"), await people.signed_in("bo@example.com")
    )


async def test_a_freeze_stands_in_the_calendar_and_its_author_alone_ends_it(desk: Desk) -> None:
    assert "Nothing is frozen." in await desk.get("/rollouts/freezes")
    black = {"name": "Black week", "reason": "No change", "ends_at": "2026-04-13T00:00"}
    status, text = await desk.post("/rollouts/freezes", **black | {"ends_at": ""})
    assert (status, "say when it ends" in text, 'value="Black week"' in text) == (422, True, True)
    assert (await desk.post("/rollouts/freezes", **black, starts_at="2026-04-10T00:00"))[0] == 303
    text = await desk.get("/rollouts/freezes")
    assert text.count('class="day whole"') == 3 + 1  # 10 to 12 April, and the key
    ref = await desk.people.owner.fetchval("select ref from freezes")
    status, text = await desk.post_as(desk.bo, f"/rollouts/freezes/{ref}/end")
    assert (status, "alone ends it early" in text) == (422, True)
    assert (await desk.post(f"/rollouts/freezes/{ref}/end"))[0] == 303
    assert "ended by Ada" in await desk.get("/rollouts/freezes?past=1")


async def test_who_reads_a_shop_alone_sees_no_freezes_and_others_see_none_of_ours(
    desk: Desk,
) -> None:
    people = desk.people
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    await people.user(
        "shop@example.com", Grant(Role.STORE_MANAGER, people.organisations["own"], site=site)
    )
    shop = await people.signed_in("shop@example.com")
    for browser, path in (
        (shop, f"{OWN}/rollouts/freezes"),
        (desk.kim, "/console/o/other/rollouts/freezes"),
    ):
        async with browser.get(path, headers=HTML) as response:
            assert response.status == 404, path
