"""The portal's pages on feedback: what they show, to whom, and who may act there."""

import re
from datetime import timedelta

import pytest
from scipy.stats import binomtest

from server.feedback import questionnaires
from server.people.roles import Grant, Role
from server.portal.frame import CATALOGUES
from server.web.catalogue import SHARED, load, problems
from tests.integration.people_world import NOW, People, form_of, post
from tests.integration.people_world import load as page_of

pytestmark = pytest.mark.services


async def kiosk(people: People, site: str = "own-site") -> None:
    """Give a site a kiosk with presses, what is left of them, and an alert."""
    owner = people.owner
    spot = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) "
        "select organisation_id, id, ref || '-kiosk', 'By the exit', 'kiosk' from sites "
        "where ref = $1 returning id",
        site,
    )
    day = NOW.date() - timedelta(days=1)
    for answer, kept in ((0, 20), (3, 4)):
        await owner.execute(
            "insert into presses_day values ($1, 0, $2, 40, 40, 0, 0, $3)", day, spot, answer
        )
        await owner.execute(
            "insert into responses_day values ($1, 0, $2, $3, $4, 0, 0, 0, 1, 0, $5)",
            *(day, spot, kept, 40 - kept, answer),
        )
    await owner.execute(
        "insert into opinion_alerts (organisation_id, ref, site_id, spot_id, cause, questionnaire, "
        "question, raised_at, since, n, bad, expected, p, false_alarms_per_week, filter_version) "
        "select organisation_id, site_id || '-alert', site_id, id, 'dissatisfaction', 0, 0, $1, "
        "$1, 9, 8, 1, 0, 0.5, 1 from spots where id = $2",
        *(NOW - timedelta(minutes=12), spot),
    )


async def manager(people: People, role: Role = Role.STORE_MANAGER) -> int:
    site: int = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    await people.user("bo@example.com", Grant(role, people.organisations["own"], None, site))
    return site


def test_every_text_of_the_pages_is_there_in_all_languages() -> None:
    assert problems(load([SHARED, *CATALOGUES])) == []


async def test_a_store_manager_sees_one_site_and_takes_and_ends_its_alert(people: People) -> None:
    await kiosk(people)
    site = await manager(people)
    browser = await people.signed_in("bo@example.com")
    status, html = await page_of(browser, "/feedback")
    assert (status, "8 of 9 answers" in html) == (200, True)
    assert "<dd data-kept>24<small>of 80 presses" in html
    assert "56" in html[html.index('id="excluded"') :].split("</ul>")[0]  # 20 + 36 left out
    index = html[html.index("data-index>") :].split("<small>")[0]
    assert "–" in index  # under thirty the interval alone
    token = (await form_of(browser, "/feedback/own-site"))["csrf"]
    path = f"/feedback/alerts/{site}-alert"
    refused = await post(browser, path, {"csrf": token, "do": "done", "outcome": "x"})
    assert (refused.status, "faster" in await refused.text()) == (409, True)
    assert (await post(browser, path, {"csrf": token, "do": "take"})).status == 303
    assert "Taken by Ada" in (await page_of(browser, "/feedback/own-site"))[1]
    done = {"csrf": token, "do": "done", "outcome": "Opened a till"}
    assert (await post(browser, path, done)).status == 303
    _, html = await page_of(browser, "/feedback/own-site")
    assert "No open alerts" in html
    assert "done after 12 min" in html


async def test_who_only_sees_or_answers_for_another_site_acts_on_nothing(people: People) -> None:
    await kiosk(people)
    organisation = people.organisations["own"]
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'second', 'second', 'Europe/Oslo')",
        organisation,
    )
    second = await people.owner.fetchval("select id from sites where ref = 'second'")
    await people.user("noc@example.com", Grant(Role.NOC, organisation))
    await people.user("cy@example.com", Grant(Role.STORE_MANAGER, organisation, None, second))
    (alert,) = await people.owner.fetchrow("select ref from opinion_alerts")
    for email, seen in (("noc@example.com", 200), ("cy@example.com", 404)):
        browser = await people.signed_in(email)
        status, html = await page_of(browser, "/feedback/own-site")
        assert (status, "I take it" in html) == (seen, False)
        token = (await form_of(browser, "/account"))["csrf"]
        for path in (f"/feedback/alerts/{alert}", "/feedback/own-site/actions"):
            answer = await post(browser, path, {"csrf": token, "do": "take"})
            assert answer.status == 404
        answer = await post(browser, "/feedback/touchpoints", {"csrf": token, "name": "Till"})
        assert answer.status == 404
    assert await people.owner.fetchval("select count(*) from touchpoints") == 0


async def test_an_action_is_planned_and_is_not_closed_too_early(people: People) -> None:
    await kiosk(people)
    await people.analyst()
    browser = await people.signed_in()
    token = (await form_of(browser, "/account"))["csrf"]
    assert "1 open alerts" in (await page_of(browser, "/feedback"))[1]
    added = await post(browser, "/feedback/touchpoints", {"csrf": token, "name": "Check-out"})
    assert added.status == 303
    again = await post(browser, "/feedback/touchpoints", {"csrf": token, "name": "Check-out"})
    assert (again.status, "of this name already" in await again.text()) == (409, True)
    till = await people.owner.fetchval("select ref from touchpoints")
    today = NOW.date()
    form = {
        "csrf": token, "touchpoint": till, "title": "A second till", "owner": "Bo",
        "due_on": str(today), "remeasure_on": str(today),
    }  # fmt: skip
    refused = await post(browser, "/feedback/own-site/actions", form)
    assert "Measured again on" in (await refused.text()).split('id="problem"')[1][:300]
    form["remeasure_on"] = str(today + timedelta(days=14))
    assert (await post(browser, "/feedback/own-site/actions", form)).status == 303
    action = await people.owner.fetchval("select ref from actions")
    path = f"/feedback/actions/{action}"
    done = {"csrf": token, "do": "done", "done_on": str(today)}
    assert (await post(browser, path, done)).status == 303
    told = {"csrf": token, "do": "tell", "told_sv": "Ni sa: kö.", "published": "yes"}
    assert (await post(browser, path, told)).status == 303
    refused = await post(browser, path, {"csrf": token, "do": "close"})
    assert "to be measured again later" in await refused.text()
    _, html = await page_of(browser, "/feedback/own-site")
    assert "A second till" in html
    assert "Ni sa: kö." in html
    assert "may be shown" in html


async def test_a_choice_at_a_kiosk_stands_with_its_options_shares_intervals_and_n(
    people: People,
) -> None:
    await kiosk(people)
    owner, organisation = people.owner, people.organisations["own"]
    said = {"sv": "Vad saknas i {site}?", "en": "What is missing in {site}?"}
    options = [{"sv": "Storlekar", "en": "Sizes"}, {"sv": "Hjälp", "en": "Help"},
               {"sv": "Inget", "en": "Nothing"}]  # fmt: skip
    made = await questionnaires.make(
        owner, organisation, name="Missing", actor="test", now=NOW,
        value={"format": 1, "languages": ["sv", "en"], "title": {"sv": "A", "en": "A"},
               "questions": [{"kind": "choice", "text": said, "options": options}]},
    )  # fmt: skip
    spot = await owner.fetchval("select id from spots where ref = 'own-site-kiosk'")
    day = NOW.date() - timedelta(days=1)
    for answer, chosen in ((0, 12), (1, 8)):
        await owner.execute(
            "insert into presses_day values ($1, $2, $3, $4, $4, 0, 0, $5)",
            *(day, made.hash, spot, chosen + 1, answer),
        )
        await owner.execute(
            "insert into responses_day values ($1, $2, $3, $4, 1, 0, 0, 0, 1, 0, $5)",
            *(day, made.hash, spot, chosen, answer),
        )
    await people.analyst()
    browser = await people.signed_in()
    _, html = await page_of(browser, "/feedback/own-site")
    card = html[html.index(f'data-question="{made.hex}-0"') :].split("</section>")[0]
    assert "What is missing in own-site?" in card
    assert "<span data-kept>20</span>" in card
    rows = re.findall(r"<tr data-option.*?</tr>", card, re.S)
    for row, (name, chosen) in zip(rows, (("Sizes", 12), ("Help", 8), ("Nothing", 0)), strict=True):
        interval = binomtest(chosen, 20).proportion_ci(method="wilson")
        low, high = (f"{round(100 * end)}" for end in (interval.low, interval.high))
        text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", row))
        assert re.search(rf"{name} {5 * chosen}\s?% {low}\s?%–{high}\s?% {chosen} ", f"{text} "), (
            text
        )
