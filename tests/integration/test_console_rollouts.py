"""What release engineers see and do in the console: freezes, rollouts, what a device runs."""

import json
import re
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlencode

import pytest
from aiohttp import ClientSession

from ops.services.stack import Stack
from server.console.policies import PRESETS, policy_of
from server.console.policies import form_of as form_of_policy
from server.db.engine import acting, open_pool
from server.firmware import acts
from server.firmware.conductor import Conductor
from server.people.roles import Grant, Role
from tests.integration.people_world import HTML, NOW, People, form_of, load, post

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
        assert status == 200, (path, re.findall(r"(?s)id=.problem.*?</div>", text) or text[-400:])
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


@pytest.fixture
async def fleet(desk: Desk) -> Desk:
    """Three doors that run 1.0.0 at a shop without hours, and a release for them."""
    owner, own = desk.people.owner, desk.people.organisations["own"]
    await owner.execute(
        "with made as (insert into releases (ref, component, version, floor, target, length, "
        "sha256, hardware, published_at) values ('release-a', 'agent', '2.0.0', '2.0.0', 'a', "
        "1500, repeat('0', 64), '{DC2}', $1) returning id) insert into bundles (ref, name, "
        "releases, created_at) select 'bundle-a', 'Agent 2.0.0', array[id], $1 from made",
        NOW,
    )
    site = await owner.fetchval("select id from sites where ref = 'own-site'")
    for number in range(3):
        device = await owner.fetchval(
            "insert into devices (organisation_id, device, kind, model, state) "
            "values ($1, $2, 'counter', $3, 'in service') returning id",
            *(own, f"dc-doo{number}-x", "DC1" if number == 2 else "DC2"),
        )
        spot = await owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, $3, $3, 'counter') returning id",
            *(own, site, f"spot-{number}"),
        )
        await owner.execute(
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "values ($1, $2, $3, tstzrange($4, null))",
            *(own, device, spot, NOW - timedelta(days=30)),
        )
        await owner.execute(
            "insert into device_firmware (device_id, organisation_id, hardware, components, floors,"
            " slot, reported_at) values ($1, $2, 'DC2', $3, $4, 'a', $5)",
            *(device, own, '{"agent": {"version": "1.0.0"}}', '{"agent": "1.0.0"}', NOW),
        )
    return desk


WANTED = {"bundle": "bundle-a", "wave1": "1", "wave2": "rest", "when": "any", "preset": "usual"}


async def shown(fleet: Desk, **form: str) -> str:
    """Return the preview of a rollout."""
    return await fleet.get(f"/rollouts/new?{urlencode({**WANTED, **form, 'do': 'look'})}")


def digest(html: str) -> str:
    """Return what names the devices that a preview shows."""
    found: str = re.findall(r'name="shown" value="(\w+)"', html)[0]
    return found


async def test_a_preview_names_who_is_left_out_and_what_has_no_way_back(fleet: Desk) -> None:
    html = await shown(fleet)
    assert "not approved for its hardware" in html
    assert "Agent 2.0.0 raises the floor to 2.0.0: 2 devices cannot go back to 1.0.0." in html
    assert "there is no way back for 2 devices" in html  # and so a second person approves
    assert await fleet.people.owner.fetchval("select count(*) from rollouts") == 0
    closed = await shown(fleet, when="closed")
    assert "It would reach no device." in closed
    assert "no window within 14 days" in closed
    assert 'name="shown"' not in closed
    for form, said in (
        ({"fail_pct": "x"}, "expected a number"),
        ({"wave1": "10 per cent"}, "expected a number, a share such as 10 %, or: rest"),
        ({"soak_h": "1000"}, "expected 0 to 720"),
        ({"q": "model ="}, "character 8"),
        ({"bundle": ""}, "choose what is to be rolled out"),
    ):
        status, text = await load(
            fleet.kim, f"{OWN}/rollouts/new?{urlencode({**WANTED, **form, 'do': 'look'})}"
        )
        assert (status, said in text) == (422, True), form


async def test_nothing_is_asked_for_but_what_was_shown(fleet: Desk) -> None:
    seen = digest(await shown(fleet))
    await fleet.people.owner.execute("update devices set state = 'retired' where device ~ 'doo1'")
    asked = {**WANTED, "name": "Doors", "shown": seen}
    status, html = await fleet.post("/rollouts/new", **asked)
    assert (status, "it would reach other devices by now" in html) == (422, True)
    assert await fleet.people.owner.fetchval("select count(*) from rollouts") == 0
    status, to = await fleet.post("/rollouts/new", **{**asked, "shown": digest(html)})
    assert status == 303
    stored = await fleet.people.owner.fetchrow("select state, devices, ref from rollouts")
    assert (stored["state"], stored["devices"]) == ("awaiting approval", 1)
    assert to == f"{OWN}/rollouts/{stored['ref']}"


async def test_settings_and_questionnaires_are_asked_for_and_shown_as_what_they_are(
    fleet: Desk,
) -> None:
    owner, own = fleet.people.owner, fleet.people.organisations["own"]
    report = {"agent": "0.2.0", "known": ["health_s"], "values": {"health_s": 900}, "refused": {}}
    await owner.execute(
        "insert into device_settings (device_id, organisation_id, told, told_at, report) "
        "select id, $1, '{}', $2, $3 from devices where organisation_id = $1 and device ~ 'doo'",
        *(own, NOW, json.dumps(report)),
    )
    form = {"bundle": "layer:model:DC2", "settings": "health_s = 300"}
    html = await shown(fleet, **form)
    assert 'value="layer:model:DC2" selected' in html
    asked = {**WANTED, **form, "name": "Health", "shown": digest(html)}
    status, to = await fleet.post("/rollouts/new", **asked)
    assert status == 303
    html = await fleet.get(to.removeprefix(OWN))
    assert "settings of model DC2: <code>health_s</code> <strong>300</strong>" in html
    assert "settings of model DC2" in await fleet.get("/rollouts")
    for more, said in (
        ({"settings": "health_s"}, "expected name = value"),
        ({"settings": "health_s = 3"}, "expected 60 to 1200, got 3"),
        ({"settings": ""}, "name at least one setting"),
        ({"q": 'model = "DC2"'}, "a layer is changed for all of its devices"),
        ({"bundle": "layer:site:other-site"}, ""),
        ({"bundle": "layer:what:"}, "settings"),
        ({"bundle": "questionnaire-none"}, "no questionnaire"),
    ):
        query = urlencode({**WANTED, **form, **more, "do": "look"})
        status, text = await load(fleet.kim, f"{OWN}/rollouts/new?{query}")
        assert (status in (404, 422), said in text) == (True, True), more


async def test_an_author_does_not_approve_and_every_act_asks_for_its_reason(
    fleet: Desk, stack: Stack, world_database: str
) -> None:
    asked = {**WANTED, "name": "Doors", "shown": digest(await shown(fleet))}
    _, to = await fleet.post("/rollouts/new", **asked)
    path = to.removeprefix(OWN)
    html = await fleet.get(path)
    assert "there is no way back for 2 devices" in html
    assert "Devices that fit later join by themselves" in html
    status, html = await fleet.post(path, do="approve")
    assert (status, "somebody else" in html) == (422, True)
    later = "2026-04-03T12:00"
    assert (await fleet.post_as(fleet.bo, path, do="approve", starts_at=later))[0] == 303
    html = await fleet.get(path)
    assert "begins 2026-04-03 12:00 UTC" in html
    assert (await fleet.post(path, do="start"))[0] == 303
    maint = stack.endpoints.dsn("maint", world_database)
    async with open_pool(maint, size=1, name="maint") as pool:
        assert await Conductor(pool, fleet.people.clock).turn() == 1
    html = await fleet.get(path)
    assert "Pause" in html
    assert "Joined later" not in html
    own = fleet.people.organisations["own"]
    late = await fleet.people.owner.fetchval(
        "insert into devices (organisation_id, device, kind, model, state) "
        "values ($1, 'dc-late-x', 'counter', 'DC2', 'in service') returning id",
        own,
    )
    async with acting(fleet.people.desk, "join", organisation=own) as connection:
        ref = path.rpartition("/")[2]
        await acts.join(connection, own, ref, [late], actor="user ada", now=NOW)
    html = await fleet.get(path)
    assert "Joined later" in html
    for do, form, said in (
        ("pause", {"reason": " "}, "say why"),
        ("cancel", {"reason": "x"}, "tick that this is meant"),
        ("revert", {"reason": "x", "sure": "yes", "how": "x"}, "expected revert failed"),
        ("resume", {"reason": "x"}, "which this does not follow"),
    ):
        status, html = await fleet.post(path, do=do, **form)
        assert (status, said in html) == (422, True), (do, html[-2000:])
    assert (await fleet.post(path, do="pause", reason="A look first"))[0] == 303
    html = await fleet.get(path)
    assert "what is on its way goes on. A look first" in html
    assert (await fleet.post(path, do="burn"))[0] == 404
    html = await fleet.get("/devices/dc-doo0-x")
    assert "The rollout is paused." in html
    assert (await fleet.post(path, do="cancel", reason="No", sure="yes"))[0] == 303
    html = await fleet.get(f"{path}/devices")
    assert "dc-doo0-x" in html
    assert "agent 2.0.0 is approved for DC2, and this is DC1" in html


async def test_a_live_rollout_misses_nothing_and_another_organisations_is_not_there(
    fleet: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.console.live.LOOK_S", 0.01)
    asked = {**WANTED, "name": "Doors", "shown": digest(await shown(fleet))}
    _, to = await fleet.post("/rollouts/new", **asked)
    for address in (to, f"{OWN}/rollouts"):
        seen = re.findall(r'data-after="(\w+)"', await fleet.get(address.removeprefix(OWN)))[0]
        async with fleet.kim.get(f"{address}/events?after={seen}", headers=HTML) as response:
            assert await response.content.readuntil(b"\n\n") == b": alive\n\n"
            await fleet.people.owner.execute("update rollouts set since = since + interval '1 s'")
            told = b""
            while b"event: changed" not in told:
                told = await response.content.readuntil(b"\n\n")
    ref = to.rpartition("/")[2]
    for address in (f"/console/o/other/rollouts/{ref}/events", f"{OWN}/rollouts/rollout-x/events"):
        async with fleet.kim.get(address, headers=HTML) as response:
            assert response.status == 404, address


def test_a_policy_is_the_same_after_its_form() -> None:
    for name, policy in PRESETS.items():
        assert policy_of(form_of_policy(policy) | {"preset": name}) == policy, name
