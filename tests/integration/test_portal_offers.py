"""Surveys offered at kiosks, from the portal: who may, where, and what is refused."""

import pytest

from server.people.roles import Grant, Role
from tests.integration.people_world import form_of, load, post
from tests.integration.survey_world import Counter
from tests.integration.survey_world import counter as counter

pytestmark = pytest.mark.services


async def kiosk(counter: Counter) -> None:
    await counter.people.owner.execute(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "select organisation_id, id, 'spot-exit', 'By the exit', 'kiosk' from sites "
        "where ref = 'own-site'"
    )


async def test_a_survey_is_offered_at_a_sites_kiosks_or_one_and_ended_on_its_page(
    counter: Counter,
) -> None:
    people, survey = counter.people, await counter.survey()
    await people.analyst()
    browser = await people.signed_in()
    page = f"/surveys/{survey}"
    _, html = await load(browser, page)
    assert "There is no kiosk yet." in html
    await kiosk(counter)
    csrf = {"csrf": (await form_of(browser, page))["csrf"]}
    for place in ("own-site", "own-site/spot-exit"):
        done = await post(browser, f"{page}/offers", csrf | {"place": place})
        assert done.status == 303, await done.text()
    _, html = await load(browser, page)
    shown = html[html.index('id="offers"') :].split("</section>")[0]
    assert ("all kiosks" in shown, "By the exit" in shown) == (True, True)
    again = await post(browser, f"{page}/offers", csrf | {"place": "own-site"})
    assert (again.status, "offered there already" in await again.text()) == (422, True)
    for place in ("", "own-site/spot-x", "other-site"):
        refused = await post(browser, f"{page}/offers", csrf | {"place": place})
        assert refused.status == 422, place
    found = (await counter.ask("GET", "/survey-offers?site=own-site"))["data"]
    assert [(each["survey"], each["site"], each["ended_at"]) for each in found] == [
        (survey, "own-site", None)
    ] * 2
    assert {each["spot"] for each in found} == {None, "spot-exit"}
    one, other = (each["offer"] for each in found)
    assert (await post(browser, f"{page}/offers/{one}", csrf)).status == 303
    assert (await post(browser, f"{page}/offers/offer-x", csrf)).status == 404
    await counter.ask("DELETE", f"/survey-offers/{other}")
    ended = (await counter.ask("GET", "/survey-offers"))["data"]
    assert all(each["ended_at"] is not None for each in ended)
    assert "No kiosk offers it." in (await load(browser, page))[1]
    acts = await people.owner.fetch("select act from audit where act like 'survey offer%'")
    assert sorted(row["act"] for row in acts) == ["survey offer ended"] * 2 + ["survey offered"] * 2


async def test_who_asks_nobody_offers_nothing_and_only_visitors_are_offered_anything(
    counter: Counter,
) -> None:
    people, survey = counter.people, await counter.survey()
    await kiosk(counter)
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    grant = Grant(Role.STORE_MANAGER, people.organisations["own"], None, site)
    await people.user("bo@example.com", grant)
    await counter.ask("POST", "/survey-offers", {"survey": survey, "site": "own-site"}, status=201)
    browser = await people.signed_in("bo@example.com")
    _, html = await load(browser, f"/surveys/{survey}")
    assert ("data-offer" in html, 'name="place"' in html) == (True, False)
    csrf = {"csrf": (await form_of(browser, "/account"))["csrf"]}
    for path in ("offers", "offers/offer-x"):
        refused = await post(browser, f"/surveys/{survey}/{path}", csrf | {"place": "own-site"})
        assert refused.status == 404
    staff = await counter.survey("employees", "At work")
    _, html = await load(browser, f"/surveys/{staff}")
    assert 'id="offers"' not in html
    body = {"survey": staff, "site": "own-site"}
    await counter.ask("POST", "/survey-offers", body, status=409)
    assert await people.owner.fetchval("select count(*) from survey_offers") == 1
