"""What a technician does who was dismissed, or who recorded another's request; or their phone."""

from __future__ import annotations

import json

import pytest

from server.api.keys import create_api_key
from server.db.engine import overseeing
from server.people import users
from server.people.roles import Grant, Role
from tests.integration.people_world import HTML, load
from tests.integration.provisioning_world import Key, Provisioning
from tests.integration.tech_world import JSON, Shop
from tests.integration.tech_world import shop as shop
from tests.integration.test_enrolment_web import Client, ask
from tests.integration.test_enrolment_web import client as client
from tests.integration.test_enrolment_web import known as known
from tests.integration.test_enrolment_web import place as place

pytestmark = pytest.mark.services


async def test_x23_a_recorded_request_is_of_no_use_to_who_replays_it(
    place: Provisioning, client: Client
) -> None:
    """Its sender gets what they had; under another device's label it is refused."""
    first, second, key = await place.device(), await place.device("DC-0002"), Key()
    shown = {"serial": first.serial, "secret": first.secret, "csr": key.csr}
    status, given = await ask(client, **shown)
    assert status == 200
    place.later(minutes=11)
    assert (await ask(client, **shown))[1]["chain"] == given["chain"]
    status, answer = await ask(client, serial=second.serial, secret=second.secret, csr=key.csr)
    assert status in (403, 409, 422), answer
    assert await place.owner.fetchval("select count(*) from certificates") == 1
    assert await place.owner.fetchval("select count(*) from audit where act like 'cert%'") <= 1


async def test_x24_a_dismissed_technician_ends_with_the_sentence(shop: Shop) -> None:
    """Sessions, and what the phone still holds, whenever it says that it was done."""
    people = shop.people
    found, voucher = await shop.device(), await shop.voucher()
    before = shop.act(
        "spot",
        site="own-site",
        ref="spot-abcdefgh",
        name="Cellar",
        takes="counter",
        voucher=voucher["text"],
    )
    bound = shop.bound(found, voucher)  # both done, says the phone, before the dismissal
    people.clock.advance(60)
    async with overseeing(people.desk, "disable user") as desk:  # as the console does
        assert await users.disable(desk, shop.user, actor="user eva", now=people.now) == 1
    assert "own-site" not in (await load(shop.phone, "/tech"))[1]
    async with shop.phone.get("/tech/session", headers=JSON) as response:
        assert response.status == 401
    for phone in (shop.phone, people.browser()):
        answers = await shop.send(before, bound, phone=phone, csrf="")
        assert [answer["code"] for answer in answers] == ["voucher_withdrawn"] * 2
    assert await shop.stands() == []
    assert await people.owner.fetchval("select count(*) from spots where name = 'Cellar'") == 0
    async with shop.phone.post(
        "/tech/sites/own-site/voucher", headers={**JSON, "X-CSRF-Token": "x"}
    ) as response:
        assert response.status in (401, 403)


async def test_x24_a_technician_whose_role_was_taken_ends_with_it(shop: Shop) -> None:
    """What a remaining role covers goes on; the rest is void, whenever it is said to be done."""
    people, here = shop.people, Grant(Role.TECHNICIAN, shop.organisation, site=shop.site)
    everywhere = Grant(Role.NOC, shop.organisation)
    await users.grant(people.owner, shop.user, everywhere, actor="command", now=people.now)
    found, voucher = await shop.device(), await shop.voucher()
    said = {"site": "own-site", "takes": "counter", "voucher": voucher["text"]}
    first = shop.act("spot", ref="spot-abcdefgh", name="Cellar", **said)
    second = shop.act("spot", ref="spot-jkmnpqrs", name="Attic", **said)
    bound = shop.bound(found, voucher)
    people.clock.advance(60)
    stranger = people.browser()

    async def take(grant: Grant) -> None:
        async with overseeing(people.desk, "take role") as desk:  # as the console does
            assert await users.revoke(desk, shop.user, grant, actor="user eva", now=people.now)

    await take(here)
    [answer] = await shop.send(first, phone=stranger, csrf="")
    assert answer["done"], answer
    await take(everywhere)
    for phone in (stranger, shop.phone):
        answers = await shop.send(second, bound, phone=phone)
        assert {answer["code"] for answer in answers} <= {"voucher_withdrawn", "unknown_site"}
    assert await shop.stands() == []
    assert await people.owner.fetchval("select withdrawn_at = created_at from vouchers")
    assert await people.owner.fetchval("select count(*) from technician_claims") == 0
    assert await people.owner.fetchval("select count(*) from spots where name = 'Attic'") == 0


async def test_x24_a_voucher_ends_when_its_site_leaves_the_technicians_region(shop: Shop) -> None:
    people = shop.people
    region = await people.owner.fetchval(
        "insert into regions (organisation_id, ref, name) values ($1, 'south', 'South') "
        "returning id",
        shop.organisation,
    )
    await people.owner.execute("update sites set region_id = $1 where id = $2", region, shop.site)
    there = Grant(Role.TECHNICIAN, shop.organisation, region=region)
    await users.grant(people.owner, shop.user, there, actor="command", now=people.now)
    here = Grant(Role.TECHNICIAN, shop.organisation, site=shop.site)
    await users.revoke(people.owner, shop.user, here, actor="command", now=people.now)
    found, voucher = await shop.device(), await shop.voucher()
    bound = shop.bound(found, voucher)
    await people.owner.execute("update sites set region_id = null where id = $1", shop.site)
    for phone in (people.browser(), shop.phone):
        [answer] = await shop.send(bound, phone=phone)
        assert answer["code"] == "voucher_withdrawn"
    await people.owner.execute("update sites set region_id = $1 where id = $2", region, shop.site)
    [answer] = await shop.send(bound, phone=shop.phone)
    assert "claim" in answer, answer


async def test_x45_unknown_fields_in_what_a_device_or_a_phone_sends_are_refused(
    shop: Shop,
) -> None:
    found = await shop.device()
    for extra in ({"organisation_id": 2}, {"role": "administrator"}, {"state": "in service"}):
        act = shop.act("claim", spot="door-1", label=found.text, **extra)
        [answer] = await shop.send(act)
        assert answer["code"] == "bad_act"
    assert await shop.people.owner.fetchval("select count(*) from technician_claims") == 0


@pytest.mark.usefixtures("known")
async def test_x45_unknown_fields_at_the_devices_listener_are_refused(
    place: Provisioning, client: Client
) -> None:
    label = await place.device()
    shown = {"serial": label.serial, "secret": label.secret, "csr": Key().csr}
    for extra in ("device", "organisation_id", "state", "not_after"):
        status, answer = await ask(client, **shown, **{extra: "1"})
        assert (status, answer["code"]) == (400, "malformed")
    for path in ("/v1/renew", "/v1/renew/confirm"):
        async with client.post(path, json={"csr": "", "device": "dc-other"}) as response:
            assert response.status == 400
    assert await place.owner.fetchval("select count(*) from certificates") == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sites"),
        ("PATCH", "/sites/own-site"),
        ("POST", "/regions"),
        ("POST", "/spots"),
        ("POST", "/doors"),
    ],
)
async def test_x45_unknown_fields_in_what_the_api_writes_are_refused(
    shop: Shop, method: str, path: str
) -> None:
    people = shop.people
    key = await create_api_key(people.owner, shop.organisation, scopes=("read", "register:write"))
    before = str(await people.owner.fetch("select * from sites order by id"))
    wished = {"organisation": "other", "organisation_id": people.organisations["other"]}
    async with people.browser().request(
        method,
        f"/v1{path}",
        json={"name": "x", **wished},
        headers={"Authorization": f"Bearer {key}", "If-Match": "*", "Idempotency-Key": "x" * 16},
    ) as response:
        said = await response.text()
        assert response.status in (400, 422), said
        assert "organisation" in said
    assert str(await people.owner.fetch("select * from sites order by id")) == before


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("opening", ["[", '{"csr":', '{"acts":['])
async def test_x18_nesting_without_end_is_refused_by_the_listener(
    place: Provisioning, client: Client, opening: str
) -> None:
    for path in ("/v1/enrol", "/v1/renew", "/v1/renew/confirm"):
        deep = (opening * 16_384)[: 16 * 1024 - 1]
        async with client.post(path, data=deep.encode()) as response:
            assert response.status == 400, path
        async with client.post(path, data=bytes(17 * 1024)) as response:
            assert response.status == 413, path


async def test_x18_nesting_without_end_in_a_phones_act_harms_nobody(shop: Shop) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    body = json.dumps({"acts": ["DEEP"]}).replace('"DEEP"', deep)
    async with shop.phone.post("/tech/acts", data=body.encode(), headers=JSON) as response:
        assert response.status == 400
    assert (await load(shop.phone, "/tech"))[0] == 200


async def test_x17_a_name_that_is_a_script_is_shown_as_text(shop: Shop) -> None:
    script = "<script>alert(1)</script>"
    await shop.people.owner.execute("update sites set name = $1 where ref = 'own-site'", script)
    await shop.people.owner.execute("update spots set name = $1", f'"><img src=x>{script}')
    for path in ("/tech", "/tech/sites/own-site"):
        async with shop.phone.get(path, headers=HTML) as response:
            html = await response.text()
            assert response.status == 200
            policy = response.headers["Content-Security-Policy"]
        assert "unsafe-inline" not in policy.split("script-src", 1)[-1].split(";")[0]
        assert script not in html
        assert "<img src=x>" not in html
        assert "&lt;script&gt;" in html
