"""The technician's pages and acts: who may, what is answered, once, also after the session."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from html import unescape
from typing import Any

import pytest

from ops import register
from ops.deployment import Deployment
from ops.services.stack import Stack
from protocol.label import label
from server.config import Secret, Settings
from server.errors import NotFoundError
from server.people.roles import Grant, Role
from server.provisioning.vouchers import withdraw_voucher
from tests.integration.people_world import HTML, People, load
from tests.integration.tech_world import JSON, Shop
from tests.integration.tech_world import shop as shop

pytestmark = pytest.mark.services


# -- who sees what -----------------------------------------------------------------------------


async def test_a_technician_begins_at_the_sites_of_their_grants(shop: Shop) -> None:
    await shop.people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'far', 'Far away', 'Europe/Stockholm')",
        shop.organisation,
    )
    status, html = await load(shop.phone, "/")
    assert status == 200
    assert "own-site" in html
    assert "Far away" not in html
    for path in ("/tech/sites/far", "/tech/sites/other-site", "/tech/sites/other-site/mount"):
        assert (await load(shop.phone, path))[0] == 404


async def test_who_may_not_provision_finds_no_such_pages(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    for path in ("/tech", "/tech/sites/own-site", "/tech/claims/claim-1"):
        assert (await load(browser, path))[0] == 404


async def test_the_camera_is_for_these_pages_alone(shop: Shop) -> None:
    async with shop.phone.get("/tech/sites/own-site/mount", headers=HTML) as response:
        assert "camera=(self)" in response.headers["Permissions-Policy"]
        assert "worker-src 'self'" in response.headers["Content-Security-Policy"]
    async with shop.phone.get("/account", headers=HTML) as response:
        assert "camera=()" in response.headers["Permissions-Policy"]
        assert "worker-src" not in response.headers["Content-Security-Policy"]


async def test_the_service_worker_keeps_files_that_are_there(shop: Shop) -> None:
    async with shop.phone.get("/tech/worker.js") as response:
        assert response.headers["Service-Worker-Allowed"] == "/tech"
        text = await response.text()
    files = json.loads(text[text.index("FILES = ") + 8 : text.index("];") + 1])
    assert any("jsqr.js" in file for file in files)
    for file in files:
        async with shop.phone.get(file) as response:
            assert response.status == 200, file
    async with shop.phone.get("/tech/manifest.webmanifest") as response:
        manifest = json.loads(await response.text())
    assert (manifest["start_url"], manifest["scope"]) == ("/tech", "/tech")
    async with shop.phone.get(manifest["icons"][0]["src"]) as response:
        assert response.content_type == "image/svg+xml"


# -- claims ------------------------------------------------------------------------------------


async def test_a_scanned_device_is_claimed_and_shown(shop: Shop) -> None:
    answer = await shop.claim(await shop.device())
    assert answer["done"]
    status, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert status == 200
    assert 'data-step="asked" data-mark="waiting"' in html
    assert "Usually takes 60 s at most." in html
    assert await shop.state() == "claimed"


async def test_a_device_that_is_enrolled_is_placed_at_once(shop: Shop) -> None:
    found = await shop.device()
    await shop.enrol("DC-0001")
    answer = await shop.claim(found)
    assert await shop.stands() == [("DC-0001", "door-1", None)]
    assert await shop.state() == "installed"
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert 'data-step="certified" data-mark="done"' in html


async def test_an_act_is_done_once_however_often_it_is_sent(shop: Shop) -> None:
    act = shop.act("claim", spot="door-1", label=(await shop.device()).text)
    first = await shop.send(act, act)
    assert first[0] == first[1]
    assert await shop.send(act) == first[:1]
    assert await shop.people.owner.fetchval("select count(*) from technician_claims") == 1


async def test_what_takes_longer_than_usual_says_what_to_look_at(shop: Shop) -> None:
    answer = await shop.claim(await shop.device())
    shop.people.clock.advance(61)
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert "power light" in html
    await shop.people.owner.execute(
        "update devices set asked = 'key_in_use', asked_at = $1", shop.now
    )
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert 'data-step="asked" data-mark="failed"' in html
    assert "The memory card is a copy" in unescape(html)
    shop.people.clock.advance(900)
    _, html = await load(shop.phone, f"/tech/claims/{answer['claim']}")
    assert "This claim is over" in html


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("sv", "Serienumret är inte anmält."),
        ("da", "Serienummeret er ikke tilmeldt."),
        ("en", "This serial is not announced."),
    ],
)
async def test_a_refusal_says_what_to_do_in_the_technicians_language(
    shop: Shop, language: str, sentence: str
) -> None:
    act = shop.act("claim", spot="door-1", label=label("DC-9999", "2" * 16).text)
    async with shop.phone.get(f"/language?to={language}&back=/tech", headers=HTML):
        [answer] = await shop.send(act)
    assert not answer["done"]
    assert (answer["code"], answer["then"]) == ("unknown_serial", "ask a person")
    assert answer["sentence"].startswith(sentence)


async def test_each_act_of_a_batch_has_its_own_answer(shop: Shop) -> None:
    found = await shop.device()
    answers = await shop.send(
        {"kind": "claim", "act": "act-broken"},
        shop.act("claim", spot="elsewhere", label=found.text),
        shop.act("claim", spot="door-2", label=found.text),
        "nonsense",
    )
    assert [answer.get("code") for answer in answers] == [
        "bad_act",
        "unknown_spot",
        None,
        "bad_act",
    ]
    assert answers[2]["done"]


async def test_a_spot_is_made_and_used_in_one_batch(shop: Shop) -> None:
    found = await shop.device()
    made = shop.act(
        "spot",
        site="own-site",
        ref="spot-abcdefgh",
        name="  North   entrance ",
        door="North",
        takes="counter",
        purpose="entrance",
        height_cm=245,
    )
    claimed = shop.act("claim", spot="spot-abcdefgh", label=found.text)
    answers = await shop.send(made, claimed)
    assert [answer["done"] for answer in answers] == [True, True]
    assert (await shop.send(made))[0] == answers[0]
    row = await shop.people.owner.fetchrow(
        "select p.name, d.name as door, m.height_cm, m.purpose from spots p "
        "join doors d on d.id = p.door_id join mountings m on m.spot_id = p.id "
        "where p.ref = 'spot-abcdefgh'"
    )
    assert tuple(row.values()) == ("North entrance", "North", 245, "entrance")
    again = shop.act(
        "spot", site="own-site", ref="spot-jkmnpqrs", name="Kiosk", door="North", takes="kiosk"
    )
    assert (await shop.send(again))[0]["done"]
    assert await shop.people.owner.fetchval("select count(*) from doors") == 1


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"name": "  "}, "bad_spot"),
        ({"height_cm": 5}, "bad_spot"),
        ({"purpose": "party"}, "bad_spot"),
        ({"ref": "spot-1"}, "bad_spot"),
        ({"name": "door-1"}, "spot_exists"),
        ({"site": "other-site"}, "unknown_site"),
    ],
)
async def test_a_spot_that_cannot_be_is_refused(
    shop: Shop, said: dict[str, Any], code: str
) -> None:
    usual = {"site": "own-site", "ref": "spot-abcdefgh", "name": "North", "takes": "counter"}
    [answer] = await shop.send(shop.act("spot", **(usual | said)))
    assert answer["code"] == code


async def test_a_swap_ends_the_old_device_where_the_new_one_begins(shop: Shop) -> None:
    old, new = await shop.device(), await shop.device("DC-0002")
    for serial in ("DC-0001", "DC-0002"):
        await shop.enrol(serial)
    await shop.claim(old)
    shop.people.clock.advance(3600)
    assert (await shop.claim(new))["code"] == "spot_taken"
    swapped = shop.now
    assert (await shop.claim(new, replaces="dc-aadc-0001"))["done"]
    assert await shop.stands() == [("DC-0001", "door-1", swapped), ("DC-0002", "door-1", None)]
    assert await shop.state() == "returned"


async def test_another_technicians_claim_gives_way_for_a_reason(shop: Shop) -> None:
    found = await shop.device()
    await shop.people.user(
        "ture@example.com", Grant(Role.TECHNICIAN, shop.organisation, site=shop.site)
    )
    other = await shop.people.signed_in("ture@example.com")
    await shop.send(shop.act("claim", spot="door-1", label=found.text), phone=other)
    act = shop.act("claim", spot="door-1", label=found.text)
    assert (await shop.send(act))[0]["code"] == "claimed_by_another"
    assert (await shop.send(act | {"reason": "Ture went home"}))[0]["done"]


async def test_a_claim_is_called_off(shop: Shop) -> None:
    claim = (await shop.claim(await shop.device()))["claim"]
    _, html = await load(shop.phone, f"/tech/claims/{claim}")
    csrf = re.findall(r'name="csrf" value="([^"]+)"', html)[-1]
    async with shop.phone.post(
        f"/tech/claims/{claim}/end", data={"csrf": csrf}, headers=HTML, allow_redirects=False
    ) as response:
        assert response.headers["Location"] == "/tech/sites/own-site"
    _, html = await load(shop.phone, f"/tech/claims/{claim}")
    assert "This claim is over" in html


async def test_a_scanned_serial_is_told_before_anything_is_confirmed(shop: Shop) -> None:
    await shop.device()

    async def asked(serial: str) -> dict[str, Any]:
        path = f"/tech/sites/own-site/device?serial={serial}"
        async with shop.phone.get(path, headers=JSON) as response:
            found: dict[str, Any] = await response.json()
            return found

    assert (await asked("dc-0001"))["kind"] == "counter"
    assert "not announced" in (await asked("DC-0002"))["problem"]
    assert "not announced" in (await asked("?"))["problem"]
    await shop.people.owner.execute("update devices set state = 'suspended'")
    assert "blocked" in (await asked("DC-0001"))["problem"]


# -- by which right ----------------------------------------------------------------------------


async def test_an_act_without_the_forms_token_has_no_session(shop: Shop) -> None:
    act = shop.act("claim", spot="door-1", label=(await shop.device()).text)
    [unproved] = await shop.send(act, csrf="wrong")
    [foreign] = await shop.send(act, **{"Sec-Fetch-Site": "cross-site"})  # type: ignore[arg-type]
    assert (unproved["code"], foreign["code"]) == ("sign_in", "sign_in")
    assert await shop.people.owner.fetchval("select count(*) from technician_claims") == 0


async def test_an_act_of_another_user_of_the_phone_waits_for_them(shop: Shop) -> None:
    act = shop.act("claim", spot="door-1", label=(await shop.device()).text, user="somebody-else")
    [answer] = await shop.send(act)
    assert answer["code"] == "sign_in"


async def test_what_was_done_offline_arrives_by_its_voucher_after_the_session(shop: Shop) -> None:
    found, voucher = await shop.device(), await shop.voucher()
    made = shop.act(
        "spot",
        site="own-site",
        ref="spot-abcdefgh",
        name="Cellar",
        takes="counter",
        voucher=voucher["text"],
    )
    bound = shop.bound(found, voucher, "spot-abcdefgh")
    shop.people.clock.advance(13 * 3600)  # the session is over, the voucher not yet
    await shop.enrol("DC-0001")
    stranger = shop.people.browser()
    answers = await shop.send(made, bound, phone=stranger)
    assert [answer["done"] for answer in answers] == [True, True]
    assert await shop.send(made, bound, phone=stranger) == answers
    assert await shop.stands() == [("DC-0001", "spot-abcdefgh", None)]
    [unsigned] = await shop.send({k: v for k, v in made.items() if k != "voucher"}, phone=stranger)
    assert unsigned["code"] == "sign_in"


async def test_a_voucher_is_good_for_its_site_and_its_time(shop: Shop) -> None:
    voucher = await shop.voucher()
    await shop.people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'next', 'Next door', 'Europe/Stockholm')",
        shop.organisation,
    )
    stranger = shop.people.browser()

    async def outcome(**said: Any) -> str:
        usual = {"ref": "spot-abcdefgh", "name": "x", "takes": "counter", "site": "own-site"}
        act = shop.act("spot", **(usual | {"voucher": voucher["text"]} | said))
        return str((await shop.send(act, phone=stranger))[0].get("code", "done"))

    late = shop.now + timedelta(hours=25)
    assert await outcome(site="next") == "unknown_site"
    assert await outcome(site="other-site") == "unknown_site"
    assert await outcome(at_ms=round(late.timestamp() * 1000)) == "voucher_expired"
    assert await outcome(voucher=voucher["text"][:-4] + "AAAA") == "voucher_bad"
    assert await outcome() == "done"
    async with shop.people.owner.transaction():
        await withdraw_voucher(shop.people.owner, voucher["ref"], actor="command", now=shop.now)
    assert await outcome(ref="spot-jkmnpqrs", name="y") == "voucher_withdrawn"


async def test_a_voucher_is_withdrawn_by_a_command(
    shop: Shop, stack: Stack, world_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(Secret(""), Secret(""), Secret(""), stack.endpoints.pki)
    found = Deployment(Secret(stack.endpoints.dsn("owner", world_database)), settings)
    monkeypatch.setattr(register, "deployment", lambda **_: found)
    voucher = await shop.voucher()
    words = ["device", "voucher", "withdraw", voucher["ref"]]
    assert await asyncio.to_thread(register.main, words) == 0
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(register.main, words)
    audited = await shop.people.owner.fetch(
        "select actor, subject from audit where act = 'voucher withdrawn'"
    )
    assert [tuple(row.values()) for row in audited] == [("command", voucher["ref"])]
    assert await shop.people.owner.fetchval("select withdrawn_at is not null from vouchers")
