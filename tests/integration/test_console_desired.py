"""The console's page of one device's settings and commands, through the real pages and database."""

from __future__ import annotations

import gzip
import re
from datetime import timedelta
from html import unescape

import pytest
from aiohttp import ClientSession

from protocol.settings import TABLE
from protocol.state import COMMANDS
from server.commands.life import State
from server.console.pages import CATALOGUES, LANGUAGES
from server.desired.layers import Scope, Standing
from server.people.roles import Grant, Role
from server.web import catalogue
from tests.integration.people_world import HTML, NOW, People, load, post

pytestmark = pytest.mark.services
DEVICE = "dc-7k2m9qxw4fpn"
BASE = f"/console/o/own/devices/{DEVICE}"
PAGE = f"{BASE}/desired"


@pytest.fixture
async def boss(people: People) -> ClientSession:
    """Somebody who administers an organisation whose one device stands at its open site."""
    own = people.organisations["own"]
    await people.owner.execute(
        "with d as (insert into devices (organisation_id, device, kind, state) values "
        "($1, $2, 'counter', 'in service') returning id), s as (insert into spots "
        "(organisation_id, site_id, ref, name, kind) select $1, id, 'spot-1', 'Door', 'counter' "
        "from sites where ref = 'own-site' returning id) insert into assignments "
        "(organisation_id, device_id, spot_id, valid) select $1, d.id, s.id, "
        "tstzrange(null, null) from d, s",
        *(own, DEVICE),
    )
    await people.user("boss@example.com", Grant(Role.ADMINISTRATOR, own))
    return await people.signed_in("boss@example.com")


def hidden(html: str, action: str) -> dict[str, str]:
    """Return the hidden fields of the form to `action`."""
    form = html[html.index(f'action="{action}"') :]
    found = re.findall(
        r'type="hidden" name="([^"]+)" value="([^"]*)"', form[: form.index("</form")]
    )
    return {name: unescape(value) for name, value in found}


async def send(browser: ClientSession, action: str, **form: str) -> tuple[int, str]:
    _, html = await load(browser, PAGE)
    fields = hidden(html, action) if f'action="{action}"' in html else {"csrf": "x"}
    response = await post(browser, action, {**fields, **form})
    return response.status, await response.text()


def test_every_setting_kind_and_state_has_its_words() -> None:
    texts = catalogue.load([catalogue.SHARED, *CATALOGUES], LANGUAGES)
    for language in LANGUAGES:
        there = set(texts[language].texts)
        assert {f"setting_{key}" for key in TABLE} <= there
        assert {f"command_{kind}" for kind in COMMANDS} <= there
        assert {f"command_state_{state.value}" for state in State} <= there
        assert {f"standing_{each.value.replace(' ', '_')}" for each in Standing} <= there
        assert {f"from_{scope.value}" for scope in Scope} <= there


async def test_a_setting_is_kept_for_one_device_and_the_second_operator_is_told(
    people: People, boss: ClientSession
) -> None:
    for language, word in (("en", "Settings and commands"), ("sv", "Inställningar och kommandon")):
        async with boss.get(PAGE, headers=HTML, cookies={"language": language}) as response:
            assert response.status == 200
            assert word in await response.text()
    action = f"{BASE}/settings"
    _, html = await load(boss, PAGE)
    fields = hidden(html, action)
    assert await send(boss, action, health_s="600", log_level="debug") == (303, "303: See Other")
    _, html = await load(boss, PAGE)
    assert "600 s" in html
    assert "on its way" in html
    late = await post(boss, action, {**fields, "health_s": "300"})
    assert late.status == 409
    status, html = await send(boss, action, health_s="5")
    assert status == 422
    assert "expected 60 to 1200" in html
    assert (await send(boss, action, health_s="many", broker="nowhere"))[0] == 422
    assert (await send(boss, action, health_s="", broker="-"))[0] == 303
    rows = await people.owner.fetch("select entries from settings_layers")
    assert '"broker"' in rows[0]["entries"]
    assert '"health_s"' not in rows[0]["entries"]
    _, html = await load(boss, f"/console/o/own/devices/{DEVICE}")
    assert PAGE in html


async def test_a_command_is_asked_for_with_a_tick_and_a_reason_once(
    people: People, boss: ClientSession
) -> None:
    action = f"{BASE}/commands"
    assert (await send(boss, action, kind="dance"))[0] == 422
    assert (await send(boss, action, kind="reboot"))[0] == 422
    status, html = await send(boss, action, kind="reboot", sure="yes")
    assert status == 422
    assert "why it can" in html
    _, html = await load(boss, PAGE)
    form = {**hidden(html, action), "kind": "reboot", "sure": "yes", "reason": "it hangs"}
    for _ in range(2):  # a double click
        assert (await post(boss, action, form)).status == 303
    assert (await send(boss, action, kind="log-tail"))[0] == 303
    rows = await people.owner.fetch("select ref from commands order by id")
    assert len(rows) == 2
    first, second = (row["ref"] for row in rows)
    await people.owner.execute(
        "update commands set state = 'done', ended_at = $2, result = '{\"lines\": 3}' "
        "where ref = $1",
        *(second, NOW),
    )
    await people.owner.execute(
        "insert into command_files select id, organisation_id, $2, $3 from commands where ref = $1",
        *(second, gzip.compress(b"a line"), NOW),
    )
    _, html = await load(boss, PAGE)
    assert "lines: 3" in html
    async with boss.get(f"{BASE}/commands/{second}/file", headers=HTML) as response:
        assert gzip.decompress(await response.read()) == b"a line"
        assert f"{DEVICE}-{second}.log.gz" in response.headers["Content-Disposition"]
    assert (await load(boss, f"{BASE}/commands/{first}/file"))[0] == 404
    assert (await send(boss, f"{BASE}/commands/{first}/cancel"))[0] == 303
    assert await people.owner.fetchval("select state from commands where ref = $1", first) == (
        "cancelled"
    )


async def test_a_freeze_is_named_on_the_page_and_overridden_with_a_reason(
    people: People, boss: ClientSession
) -> None:
    assert "override_freeze" not in (await load(boss, PAGE))[1]
    await people.owner.execute(
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, "
        "created_at) values ($1, 'freeze-friday42', 'Black Friday', $2, $3, 'sales', 'user ada', "
        "$2)",
        *(people.organisations["own"], NOW, NOW + timedelta(days=7)),
    )
    action = f"{BASE}/settings"
    _, html = await load(boss, PAGE)
    assert html.count('name="override_freeze"') == 2
    assert "Frozen by Black Friday until" in html
    status, html = await send(boss, action, health_s="600")
    assert status == 422
    assert "before the end of &#39;Black Friday&#39; (freeze-friday42)" in html
    why = {"override_freeze": "yes", "reason": "it floods us"}
    assert (await send(boss, action, health_s="600", **why))[0] == 303
    restart = {"kind": "reboot", "sure": "yes", "reason": "it hangs"}
    assert (await send(boss, f"{BASE}/commands", **restart))[0] == 422
    assert (await send(boss, f"{BASE}/commands", **restart, override_freeze="yes"))[0] == 303
    assert await people.owner.fetchval(
        "select count(*) from audit where act = 'freeze overridden'"
    ) == 2  # fmt: skip


async def test_who_looks_after_devices_on_site_tells_them_but_does_not_set_them(
    people: People, boss: ClientSession
) -> None:
    own = people.organisations["own"]
    await people.user("tove@example.com", Grant(Role.TECHNICIAN, own))
    await people.user("manager@example.com", Grant(Role.STORE_MANAGER, own))
    tove = await people.signed_in("tove@example.com")
    _, html = await load(tove, PAGE)
    assert f"{BASE}/commands" in html
    assert 'name="health_s"' not in html
    assert (await send(tove, f"{BASE}/commands", kind="identify"))[0] == 303
    _, html = await load(boss, PAGE)
    csrf = hidden((await load(tove, PAGE))[1], f"{BASE}/commands")["csrf"]
    refused = await post(tove, f"{BASE}/settings", {"csrf": csrf, "version": "0"})
    assert refused.status == 404
    manager = await people.signed_in("manager@example.com")
    _, html = await load(manager, PAGE)
    assert "waits" in html
    assert f'action="{BASE}/commands"' not in html
