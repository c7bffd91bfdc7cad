"""What a retailer of ours does, with a valid key or session, after another's numbers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from urllib.parse import quote

import pytest
import structlog
from aiohttp import web
from structlog.testing import capture_logs

from server.api import reads
from server.db.engine import reading
from server.log import configure
from server.people.roles import Grant, Role
from server.portal import pages
from tests.integration.api_world import World
from tests.integration.people_world import HTML, People, form_of, load
from tests.integration.test_isolation import NAMES_NOTHING, RANGE, READS, named, two

pytestmark = pytest.mark.services


# -- another's numbers ---------------------------------------------------------------------------


async def test_x44_no_export_and_no_stated_id_shows_another_organisation(world: World) -> None:
    own, other = await two(world)
    assert own != other
    for route in READS:
        fields = set(route.parameters.__struct_fields__)
        if "format" not in fields:
            continue
        span = f"&{RANGE}" if "since" in fields else ""
        for organisation, others in (("own", "other"), ("other", "own")):
            path = f"/v1{named(route.path, organisation)}?format=csv{span}"
            headers = {
                "Authorization": f"Bearer {world.keys[organisation]}",
                "X-Organisation": others,
                "Cookie": f"organisation={others}",
            }
            async with world.client.get(path, headers=headers) as response:
                text = await response.text()
                assert response.status == 200, text
                assert re.search(rf"\b{organisation}\b", text) or route.path in NAMES_NOTHING
                assert not re.search(rf"\b{others}\b", text), route.path
        for name in ("organisation", "organisation_id", "tenant_id", "app.organisation"):
            status, body = await world.ask(
                f"{named(route.path, 'own')}?format=csv{span}&{name}={other}"
            )
            assert (status, body["code"]) == (400, "unknown_parameter")


async def test_x44_a_live_page_hears_of_its_own_organisation_alone(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "REFRESH_S", 0.01)
    await people.analyst()
    browser = await people.signed_in()

    async def stores(name: str) -> None:
        await people.owner.execute(
            "with p as (insert into spots (organisation_id, site_id, ref, name, kind) "
            "select organisation_id, id, ref || gen_random_uuid(), '', 'counter' from sites "
            "where ref = $1 || '-site' returning id, organisation_id), "
            "d as (insert into devices (organisation_id, device, kind) "
            "select organisation_id, 'device-' || id, 'counter' from p returning id) "
            "insert into boots (device_id, boot_id, ordinal, last_stored) "
            "select id, id, 1, now() + id * interval '1 s' from d",
            name,
        )

    await stores("own")
    async with browser.get("/events", headers={"Accept": "text/event-stream"}) as page:

        async def told(lines: int) -> set[bytes]:
            async with asyncio.timeout(10):
                return {(await page.content.readline()).strip() for _ in range(lines)}

        await told(4)
        await stores("other")
        assert b"event: changed" not in await told(40)
        await stores("own")
        async with asyncio.timeout(10):
            while b"event: changed" not in await told(2):
                pass


async def test_x44_pages_of_another_organisation_are_those_that_do_not_exist(
    people: People,
) -> None:
    await people.analyst()
    browser = await people.signed_in()
    for path in ("/sites/{}", "/sites/{}/chart.json", "/tech/sites/{}", "/tech/sites/{}/mount"):
        theirs = await load(browser, path.format("other-site"))
        missing = await load(browser, path.format("none-site"))
        assert theirs[0] == missing[0] == 404
        assert theirs[1].replace("other-site", "none-site") == missing[1]


# -- more than one is ----------------------------------------------------------------------------

WISHES = {
    "organisation": "other",
    "organisation_id": "2",
    "tenant_id": "2",
    "role": "administrator",
    "roles": "administrator",
    "grants": "administrator",
    "user": "1",
    "user_id": "1",
    "email": "root@example.com",
    "disabled_at": "",
    "password_hash": "x",
    "site": "other-site",
    "id": "1",
    "ref": "other",
    "state": "in service",
    "expires_at": "2999-01-01",
}


KEPT = (
    "id, email, password_hash, disabled_at from users",
    "* from grants",
    "* from organisations",
    "* from sites",
    "* from devices",
    "* from api_keys",
)


@pytest.mark.parametrize("role", [Role.ANALYST, Role.TECHNICIAN])
async def test_x45_what_a_form_says_beside_its_fields_changes_nobody(
    people: People, role: Role
) -> None:
    """Every route that changes anything, those that come later too, with all that one may wish."""
    own = people.organisations["own"]
    await people.user("ada@example.com", Grant(role, own))
    await people.user("eva@example.com", Grant(Role.ADMINISTRATOR))
    browser = await people.signed_in()

    async def state() -> list[str]:
        return [str(await people.owner.fetch(f"select {what} order by 1")) for what in KEPT]

    before, asked = await state(), 0
    form = await form_of(browser, "/account")
    for resource in people.app.router.resources():
        for route in resource:
            path = re.sub(r"\{[^}]*\}", "own-site", resource.canonical)
            if route.method in ("GET", "HEAD", "OPTIONS") or path == "/signout":
                continue
            asked += 1
            async with browser.request(
                route.method, path, data={**form, **WISHES}, headers=HTML, allow_redirects=False
            ) as response:
                assert response.status < 500, path
    assert asked > 10
    assert await state() == before
    looked_at = await people.owner.fetch("select distinct organisation_id from sessions")
    assert {row[0] for row in looked_at} <= {own, None}


# -- SQL -----------------------------------------------------------------------------------------

INJECTIONS = (
    "1; set app.organisation = '2'",
    "x' or '1'='1",
    "x') union select secret_sha256::text from api_keys --",
    "site;drop table boots",
    "(select pg_sleep(9))",
    "app.organisation",
    "$1",
    "%' --",
)


async def test_x46_names_and_settings_in_parameters_are_values_or_refused(world: World) -> None:
    own, _ = await two(world)
    assert own
    before = await world.owner.fetchval("select count(*) from boots")
    for route in READS:
        fields = set(route.parameters.__struct_fields__)
        span = f"{RANGE}&" if "since" in fields else ""
        names = {"since": "from", "until": "to"}
        for field in [names.get(f, f) for f in fields] + ["sort", "order", "filter", "fields"]:
            for evil in INJECTIONS:
                asked = f"{route.path}?{span}{field}={quote(evil)}"
                status, body = await world.ask(asked)
                if (route.path, field) == ("/experiments", "q"):  # any text may be searched for
                    assert (status, body["data"]) == (200, []), asked
                    continue
                assert status in (400, 404, 422), asked
                assert "other" not in json.dumps(body).replace("another", ""), asked
    for evil in INJECTIONS:
        assert (await world.ask(f"/sites/{quote(evil, safe='')}"))[0] == 404
    assert await world.owner.fetchval("select count(*) from boots") == before


async def test_x46_the_apis_role_is_not_everyone_by_saying_so(world: World) -> None:
    own, other = await two(world)
    async with reading(world.api, "test", organisation=own) as connection:
        await connection.execute("select set_config('app.everyone', 'yes', true)")
        for table in ("sites", "spots", "devices", "my_readings", "my_rollup_15m"):
            rows = await connection.fetch(f"select * from {table}")
            text = str(rows)
            assert rows, table
            assert "other" not in text, table
            assert f"organisation_id={other}" not in text, table


# -- keys ----------------------------------------------------------------------------------------


async def test_x47_a_key_counts_in_its_header_alone_and_stands_in_no_log(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await two(world)
    key = world.keys["own"]
    caplog.set_level(logging.DEBUG)
    with capture_logs() as logs:
        for name in ("key", "api_key", "access_token", "token", "Authorization"):
            for value in (key, f"Bearer {key}"):
                status, body = await world.ask(f"/sites?{name}={quote(value)}", organisation="")
                assert (status, body["code"]) == (401, "not_signed_in")
                status, body = await world.ask(f"/sites?{name}={quote(value)}")
                assert status == 400
                assert key not in json.dumps(body)
        status, body = await world.ask("/sites", organisation="", Authorization=f"Basic {key}")
        assert status == 401
        assert key not in json.dumps(body)
        status, body = await world.ask("/sites", organisation="", Cookie=f"key={key}")
        assert status == 401

        def broken(*_: object, **__: object) -> web.Response:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(reads, "respond", broken)
        status, body = await world.ask(f"/sites?limit=1&cursor={key}")
        assert status in (400, 500)
        assert (await world.ask("/sites"))[0] == 500
    secret = key.split("_", 2)[2]
    assert any(each["event"] == "request failed" for each in logs)
    ours = [each for each in caplog.records if each.name != "aiohttp.access"]  # the test server's
    assert secret not in str(logs) + str(ours)
    assert re.fullmatch(r"vk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", key)  # what scanners look for


# -- text ----------------------------------------------------------------------------------------


async def test_x17_no_cell_of_an_export_is_a_formula(world: World) -> None:
    own = await world.organisation("own")
    for number, evil in enumerate(("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1")):
        await world.site(own, f"{evil}-{number}")
    headers = {"Authorization": f"Bearer {world.keys['own']}"}
    async with world.client.get("/v1/sites?format=csv", headers=headers) as response:
        text = await response.text()
    assert text.count("'") >= 6
    for cell in re.findall(r'(?:^|,)"?([^,"\n]*)', text, re.MULTILINE):
        assert not cell.startswith(("=", "+", "@", "\t")), cell


def test_x17_a_log_line_is_one_line_whatever_stands_in_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    try:
        configure(json=True)
        structlog.get_logger("x17").warning("refused", name='a\n{"event":"forged"}\r\x1b[2J')
    finally:
        structlog.reset_defaults()
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert [json.loads(line)["event"] for line in lines] == ["refused"]
    assert "\x1b" not in lines[0]
