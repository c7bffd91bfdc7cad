"""Recounts by programs and on pages: kept once, shown beside the counter, applied by a person."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from ext.reference import observed_slots
from server.api.keys import create_api_key
from server.db import purge
from server.db.datamap import KINDS, missing
from server.db.tables import metadata
from server.insight.accuracy import NoProposal, State
from server.insight.recounts import METHODS, WALK
from server.insight.skew import Unsaid
from server.people.roles import Grant, Role
from server.portal.frame import CATALOGUES
from server.web import catalogue
from tests.integration.people_world import NOW, People, form_of, load, post

pytestmark = pytest.mark.services
FROM = datetime(2026, 4, 1, 9, tzinfo=UTC)


@pytest.fixture
async def door(people: People) -> int:
    """A counter that counted 80 in and 40 out in each of 8 quarters; the rows of its spot."""
    owner, organisation = people.owner, people.organisations["own"]
    site = await owner.fetchval("select id from sites where ref = 'own-site'")
    spot: int = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "values ($1, $2, 'spot-door', 'Main door', 'counter') returning id",
        *(organisation, site),
    )
    device = await owner.fetchval(
        "insert into devices (organisation_id, device, kind, state) "
        "values ($1, 'dc-door23456789', 'counter', 'in service') returning id",
        organisation,
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange(null, null))",
        *(organisation, device, spot),
    )
    await owner.executemany(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, resolution_s) "
        "values ($1, $2, $3, 80, 40, 60)",
        [(FROM + timedelta(minutes=15 * n), observed_slots(0, 0, 900_000), spot) for n in range(8)],
    )
    return spot


async def ask(
    people: People, method: str, path: str, body: object = None, *, status: int = 200
) -> dict[str, Any]:
    key = await create_api_key(
        people.owner, people.organisations["own"], "test", scopes=("read", "accuracy:write")
    )
    async with people.browser().request(
        method, f"/v1{path}", json=body, headers={"Authorization": f"Bearer {key}"}
    ) as response:
        answer: dict[str, Any] = await response.json(content_type=None)
        assert response.status == status, answer
        return answer


def blocks(count: int = 6, entered: int = 100, left: int = 50) -> list[dict[str, object]]:
    return [
        {"from": (FROM + timedelta(minutes=15 * n)).isoformat(), "in": entered, "out": left}
        for n in range(count)
    ]


RECOUNT: dict[str, object] = {"spot": "spot-door", "method": "video", "counted_by": "Ada"}


async def test_a_recount_by_a_program_gives_error_and_factor(people: People, door: int) -> None:
    (row,) = (await ask(people, "GET", "/accuracy"))["data"]
    assert (row["audited_on"], row["in"], row["not_proposed"]) == (None, None, "too_few")
    made = await ask(people, "POST", "/recounts", {**RECOUNT, "blocks": blocks()}, status=201)
    (row,) = (await ask(people, "GET", "/accuracy?site=own-site"))["data"]
    assert row["audited_on"] == "2026-04-01"
    assert row["in"]["error"] == pytest.approx(-0.2)
    assert row["in"]["low"] < -0.2 < row["in"]["high"] < 0
    assert row["proposed"]["factor"] == pytest.approx(1.25)
    listed = (await ask(people, "GET", "/recounts"))["data"]
    assert [(each["counted_in"], each["state"]) for each in listed] == [(80, "compared")] * 6
    await ask(people, "DELETE", f"/recounts/{made['recount']}")
    assert (await ask(people, "GET", "/recounts"))["data"] == []


async def test_a_recount_that_cannot_be_is_refused_by_its_field(people: People, door: int) -> None:
    for change, code, field in (
        ({"spot": "spot-none"}, "not_found", None),
        ({"method": "guess"}, "bad_value", "method"),
        ({"blocks": []}, "bad_value", "blocks"),
        ({"blocks": [{"from": NOW.isoformat(), "in": 1, "out": 1}]}, "bad_value", "blocks[0].from"),
    ):
        body = {**RECOUNT, "blocks": blocks(), **change}
        status = 404 if code == "not_found" else 422
        answer = await ask(people, "POST", "/recounts", body, status=status)
        assert (answer["code"], answer.get("parameter")) == (code, field)
    assert not await people.owner.fetchval("select count(*) from recounts")


# -- pages ---------------------------------------------------------------------------------------


async def send(
    people: People, browser: ClientSession, *, key: str = "phone-1234", **change: object
) -> tuple[int, dict[str, Any]]:
    """Send what a phone counted, as its page does."""
    csrf = (await form_of(browser, "/account"))["csrf"]
    sent = [
        {"from_ms": round(datetime.fromisoformat(str(b["from"])).timestamp() * 1000),
         "entered": b["in"], "departed": b["out"]}
        for b in blocks()
    ]  # fmt: skip
    body = {"key": key, "counted_by": "Ada", "blocks": sent, **change}
    async with browser.post(
        "/accuracy/recount/spot-door",
        json=body,
        headers={"X-CSRF-Token": csrf, "Sec-Fetch-Site": "same-origin"},
    ) as response:
        return response.status, await response.json()


async def test_what_a_phone_counted_is_kept_once_however_often_it_is_sent(
    people: People, door: int
) -> None:
    await people.user("ada@example.com", manager(people))
    browser = await people.signed_in()
    status, made = await send(people, browser)
    assert (status, made["site"]) == (200, "own-site")
    assert await send(people, browser) == (200, made)
    assert (await send(people, browser, counted_by="Grace"))[1] == made
    assert (await send(people, browser, blocks=[]))[0] == 422
    assert (await send(people, browser, key="x"))[1]["parameter"] == "key"
    status, refused = await send(people, browser, blocks=[{"from_ms": 0, "entered": 1}])
    assert (status, refused["code"]) == (422, "bad_body")
    assert await people.owner.fetchval("select count(*) from recounts") == 1
    assert (
        await people.owner.fetchval("select count(*) from audit where act = 'recount recorded'")
        == 1
    )


async def test_a_page_says_who_was_never_audited_and_then_by_how_much_it_errs(
    people: People, door: int
) -> None:
    await people.user("ada@example.com", manager(people))
    browser = await people.signed_in()
    for path in ("/accuracy", "/accuracy/sites/own-site"):
        assert "never audited" in (await load(browser, path))[1]
    await send(people, browser)
    sheet = (await load(browser, "/accuracy/sites/own-site"))[1]
    for html in ((await load(browser, "/accuracy"))[1], sheet):
        assert "never audited" not in html
        assert "−20 %" in html
    assert "factor 1.25" in sheet
    assert "Apply this factor" not in sheet


async def test_a_factor_is_applied_by_who_may_change_the_register_and_by_nobody_else(
    people: People, door: int
) -> None:
    await people.user("ada@example.com", manager(people))
    await people.user("root@example.com", Grant(Role.ADMINISTRATOR, people.organisations["own"]))
    staff = await people.signed_in()
    await send(people, staff)
    path = "/accuracy/recount/spot-door/factor"
    csrf = await form_of(staff, "/account")
    assert (await post(staff, path, {**csrf, "factor": "1.2500"})).status == 404
    root = await people.signed_in("root@example.com")
    csrf = await form_of(root, "/account")
    assert (await post(root, path, {**csrf, "factor": "1.3000"})).status == 409
    assert not await people.owner.fetchval("select count(*) from calibrations")
    assert (await post(root, path, {**csrf, "factor": "1.2500"})).status == 303
    row = await people.owner.fetchrow("select line, factor::float8, reason from calibrations")
    assert (row["line"], row["factor"]) == (0, 1.25)
    assert "recounted" in row["reason"]
    assert await people.owner.fetchval("select count(*) from audit where act = 'spot calibrated'")
    html = (await load(root, "/accuracy/sites/own-site"))[1]
    assert "never audited" in html  # as it is read now
    assert "calibrated otherwise now" in html


async def test_who_sees_one_site_recounts_no_other(people: People, door: int) -> None:
    other = await people.owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'own-far', 'Far', 'Europe/Oslo') returning id",
        people.organisations["own"],
    )
    await people.user(
        "ada@example.com", Grant(Role.STORE_MANAGER, people.organisations["own"], None, other)
    )
    browser = await people.signed_in()
    for path in ("/accuracy/sites/own-site", "/accuracy/recount/spot-door"):
        assert (await load(browser, path))[0] == 404
    assert "Main door" not in (await load(browser, "/accuracy"))[1]


async def test_the_sign_says_who_counts_in_the_language_asked_for(
    people: People, door: int
) -> None:
    await people.analyst()
    browser = await people.signed_in()
    asked = "organisation=Nordljus&contact=gdpr@nordljus.se&purpose=bemanning"
    for language, words in (("sv", "Här räknas"), ("da", "Her tælles"), ("en", "are counted here")):
        html = (await load(browser, f"/accuracy/sign?sign={language}&{asked}"))[1]
        assert words in html
        assert "gdpr@nordljus.se" in html
    html = (await load(browser, "/accuracy/sign?contact=%3Cscript%3Ex"))[1]
    assert "<script>x" not in html


def manager(people: People) -> Grant:
    return Grant(Role.STORE_MANAGER, people.organisations["own"])


async def test_every_table_is_in_the_data_map_with_what_is_really_purged(people: People) -> None:
    rows = await people.owner.fetch(
        "select tablename from pg_tables where schemaname = 'public' "
        "and tablename <> 'alembic_version'"
    )
    there = {row["tablename"]: None for row in rows}
    assert missing(there) == (set(), set())
    assert missing(metadata.tables) == (set(), set())
    assert missing({**there, "new_table": None})[0] == {"new_table"}
    told = [table for kind in KINDS for table in kind.tables]
    assert len(told) == len(set(told))
    assert {table for kind in KINDS for table in kind.purged} == set(purge.OVER)
    await people.analyst()
    html = (await load(await people.signed_in(), "/accuracy/privacy"))[1]
    for table in there:
        assert table in html


def test_every_word_of_the_pages_is_there_in_every_language() -> None:
    folders = [folder for folder in CATALOGUES if folder.name == "accuracy"]
    assert folders == [Path(folders[0])]
    assert catalogue.problems(catalogue.load(folders)) == []
    known = catalogue.load(folders)["en"].texts
    for kind in KINDS:
        assert f"ac_kind_{kind.key}" in known
        assert f"ac_about_{kind.about.value}" in known
    for name in (
        *(f"ac_state_{state.value}" for state in State if state is not State.COMPARED),
        *(f"ac_no_factor_{why.value}" for why in NoProposal),
        *(f"ac_skew_{why.value}" for why in Unsaid),
        *(f"ac_method_{method.replace(' ', '_')}" for method in (*METHODS, WALK)),
        *(f"ac_role_{role.value.replace(' ', '_')}" for role in Role),
    ):
        assert name in known
