"""Rounds on a page: begun, answered, ended, and each beside the first with n and interval."""

import re

import pytest

from server.people.roles import Grant, Role
from tests.integration.people_world import form_of, load, post
from tests.integration.survey_world import Counter, Phone, counter

__all__ = ["counter"]

pytestmark = pytest.mark.services


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def told(html: str, measure: str) -> list[str]:
    """Return the lines of a measure, one of each round."""
    [body] = re.findall(rf'<tbody data-measure="{measure}">(.*?)</tbody>', html, re.S)
    return [text_of(row) for row in re.findall(r"<tr>.*?</tr>", body, re.S)]


def refs(html: str) -> list[str]:
    return re.findall(r'data-round="([\w-]+)"', html)


async def test_a_survey_is_asked_again_and_set_beside_the_first_round(counter: Counter) -> None:
    people, survey = counter.people, await counter.survey()
    await people.analyst()
    browser = await people.signed_in()
    page = f"/surveys/{survey}/rounds"
    csrf = await form_of(browser, page)
    assert "No round has begun" in (await load(browser, page))[1]
    assert page in (await load(browser, f"/surveys/{survey}"))[1]
    begin = {**csrf, "do": "begin", "site": "own-site", "delay": "1-7 d"}
    assert (await post(browser, page, {**begin, "name": "Before"})).status == 303
    _, html = await load(browser, page)
    [first] = refs(html)
    assert "Nobody has answered yet" in html
    codes = {**csrf, "round": first, "site": "own-site", "delay": "1-7 d", "channel": "link"}
    handed = await post(browser, f"/surveys/{survey}/tokens", {**codes, "count": "3"})
    paths = re.findall(r'href="http[^"]+(/s/[A-Z0-9]{24})"', await handed.text())
    for path, value in zip(paths, (2, 2, 3), strict=True):
        phone = Phone(people)
        await phone.open(path)
        assert (await phone.send(phone.filled(value)))[0] == 200
    ended = await post(browser, page, {**csrf, "do": "end", "round": first})
    assert ended.status == 303
    again = {**begin, "name": "After the repair", "follows": first}
    assert (await post(browser, page, again)).status == 303
    second = refs((await load(browser, page))[1])[-1]
    await counter.answers(survey, [4, 4, 5], round=second, delay="1-7 d")
    _, html = await load(browser, page)
    assert refs(html) == [first, second]
    assert "Before ended 1 to 7 days · 2 Apr 2026 – 2 Apr 2026 · 3 answers" in text_of(html)
    assert "After the repair open 1 to 7 days · 2 Apr 2026 · 3 answers" in text_of(html)
    assert told(html, "staff") == [
        "Staff Before 2.33 1 – 3.77 3 – –",
        "After the repair 4.33 2.9 – 5 3 +2 +0.69 … +3.31",
    ]
    assert told(html, "overall")[1].startswith("After the repair 8.67")
    refused = await post(browser, f"/surveys/{survey}/tokens", {**codes, "count": "1"})
    assert refused.status == 422  # of a round that is over
    assert (await post(browser, page, {**begin, "name": ""})).status == 422
    assert (await post(browser, page, {**begin, "name": "A", "delay": "x"})).status == 422
    assert (await post(browser, page, {**begin, "name": "A", "follows": "round-x"})).status == 422
    assert (await post(browser, page, {**csrf, "do": "end", "round": "round-x"})).status == 404
    for language, title in (("sv", "Omgångar"), ("da", "Runder")):
        await browser.get(f"/language?to={language}")
        assert title in (await load(browser, page))[1]


async def test_of_a_few_colleagues_no_round_tells(counter: Counter) -> None:
    staff = await counter.survey("employees")
    body = {"survey": staff, "site": "own-site", "name": "Before", "delay": "0"}
    first = (await counter.ask("POST", "/rounds", body, status=201))["round"]
    after = {**body, "name": "After", "follows": first}
    second = (await counter.ask("POST", "/rounds", after, status=201))["round"]
    await counter.answers(staff, [2] * 6, round=first, delay="0")
    await counter.answers(staff, [4] * 2, round=second, delay="0")
    await counter.people.analyst()
    browser = await counter.people.signed_in()
    _, html = await load(browser, f"/surveys/{staff}/rounds")
    rows = told(html, "staff")
    assert [row.endswith("Too few answered to be shown apart. – –") for row in rows] == [True] * 2
    await counter.answers(staff, [4] * 3, round=second, delay="0")
    _, html = await load(browser, f"/surveys/{staff}/rounds")
    assert told(html, "staff") == [
        "Staff Before 2 1.61 – 3.17 6 – –",
        "After 4 2.7 – 4.43 5 +2 no interval can be given",
    ]


async def test_who_sees_one_site_reads_its_rounds_and_begins_none(counter: Counter) -> None:
    people, own = counter.people, counter.people.organisations["own"]
    site = await people.owner.fetchval(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'second-site', 'Second', 'Europe/Stockholm') returning id",
        own,
    )
    survey = await counter.survey()
    for place in ("own-site", "second-site"):
        body = {"survey": survey, "site": place, "name": f"At {place}", "delay": "0"}
        await counter.ask("POST", "/rounds", body, status=201)
    await people.user("mia@example.com", Grant(Role.STORE_MANAGER, own, None, site))
    browser = await people.signed_in("mia@example.com")
    status, html = await load(browser, f"/surveys/{survey}/rounds")
    assert (status, "At second-site" in html, "At own-site" in html) == (200, True, False)
    assert 'name="do"' not in html
    csrf = await form_of(browser, "/")
    form = {**csrf, "do": "begin", "name": "A", "site": "second-site", "delay": "0"}
    assert (await post(browser, f"/surveys/{survey}/rounds", form)).status == 404
