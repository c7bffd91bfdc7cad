"""The portal's page on targets: set, judged by what decides, changed without loss, by who may."""

import re

import pytest

from server.people.roles import Grant, Role
from tests.integration.people_world import People, form_of, load, post
from tests.integration.test_portal_quality import shop

pytestmark = pytest.mark.services
APRIL = {
    "site": "own-site",
    "metric": "visits",
    "from": "2026-04-01",
    "to": "2026-04-30",
    "way": "least",
    "wanted": "7 500",
    "note": "spring",
}
MARCH = {**APRIL, "from": "2026-03-01", "to": "2026-03-31", "note": ""}


def cards(html: str) -> list[str]:
    """Return the text of each target's card."""
    found = re.findall(r"<article[^>]*data-target.*?</article>", html, re.S)
    return [" ".join(re.sub(r"<[^>]+>", " ", each).split()) for each in found]


async def test_a_target_is_set_and_shown_with_what_decides_it(people: People) -> None:
    """240 visits a day; an hour of the 31st of March was not observed; it is the 2nd of April."""
    await shop(people)
    await people.analyst()
    browser = await people.signed_in()
    csrf = await form_of(browser, "/targets")
    shorter = {**MARCH, "to": "2026-03-30", "way": "most", "wanted": "7199,5"}
    for form in (APRIL, {**MARCH, "wanted": "7440"}, shorter):
        assert (await post(browser, "/targets", {**csrf, **form})).status == 303
    status, html = await load(browser, "/targets")
    assert status == 200
    april, *march = cards(html)
    assert "At least 7,500 · 1 Apr 2026 – 30 Apr 2026 · opening hours spring" in april
    assert "off track" in april
    assert "So far 240 1 of 30 days are over" in april
    assert "Needed on the days left 250 a day; usual for these days is 240" in april
    assert "Projected for the whole period 7,200" in april
    missed, met = sorted(march, key=lambda text: "missed" not in text)
    assert "At most 7,200" in missed
    assert "missed" in missed
    assert "At least 7,440" in met
    assert " met " in met
    assert "98 % 30 of 31 days count as measured" in met
    stored = await people.owner.fetch("select until_day::text, scope from kpi_targets order by 1")
    ends = ("2026-03-31", "2026-04-01", "2026-05-01")
    assert [tuple(row) for row in stored] == [(each, "open") for each in ends]
    assert "/v1/targets" in html


async def test_of_two_who_edit_at_once_the_second_is_shown_both(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    csrf = await form_of(browser, "/targets")
    await post(browser, "/targets", {**csrf, **APRIL})
    ref = await people.owner.fetchval("select ref from kpi_targets")
    _, html = await load(browser, "/targets")
    [version] = re.findall(r'name="version" value="(\w+)"', html)
    one = {**csrf, "version": version, "do": "change", "note": ""}
    assert (await post(browser, f"/targets/{ref}", {**one, "wanted": "8000"})).status == 303
    second = await post(browser, f"/targets/{ref}", {**one, "wanted": "9000"})
    html = await second.text()
    assert second.status == 409
    assert "Somebody else changed this target meanwhile" in html
    assert "At least 8,000" in html
    assert 'name="wanted" inputmode="decimal" required autocomplete="off" value="9000"' in html
    given_up = await post(browser, f"/targets/{ref}", {**one, "do": "give up"})
    assert given_up.status == 409
    [version] = re.findall(r'name="version" value="(\w+)"', html)
    fresh = {**one, "version": version}
    assert (await post(browser, f"/targets/{ref}", {**fresh, "wanted": "9000"})).status == 303
    assert await people.owner.fetchval("select wanted from kpi_targets") == 9000
    [version] = re.findall(r'name="version" value="(\w+)"', (await load(browser, "/targets"))[1])
    gone = {**one, "version": version, "do": "give up"}
    assert (await post(browser, f"/targets/{ref}", gone)).status == 303
    acts = await people.owner.fetch("select act from audit where act like 'target %' order by id")
    assert [row[0] for row in acts] == [
        *("target set", "target changed", "target changed", "target given up")
    ]


REFUSED: list[tuple[dict[str, str], str]] = [
    ({"wanted": "many"}, "(Value)"),
    ({"wanted": "nan"}, "(Value)"),
    ({"to": "2026-03-31"}, "(Last day)"),
    ({"from": "soon"}, "(First day)"),
    ({"metric": "peak_hour"}, "(KPI)"),
    ({"metric": "joy"}, "Nothing was done."),
    ({"note": "x" * 301}, "(Note)"),
]


async def test_what_cannot_be_is_refused_and_what_was_entered_stays(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    csrf = await form_of(browser, "/targets")
    for change, said in REFUSED:
        answer = await post(browser, "/targets", {**csrf, **APRIL, **change})
        html = await answer.text()
        assert answer.status == 409, change
        [problem] = re.findall(r'id="problem">(.*?)</p>', html)
        assert said in problem
        assert 'value="spring"' in html or "note" in change
    assert await people.owner.fetchval("select count(*) from kpi_targets") == 0


async def test_shares_are_written_per_cent_and_kept_as_shares(people: People) -> None:
    await people.analyst()
    browser = await people.signed_in()
    csrf = await form_of(browser, "/targets")
    form = {**csrf, **APRIL, "metric": "conversion", "wanted": "24,5 %"}
    assert (await post(browser, "/targets", form)).status == 303
    assert await people.owner.fetchval("select wanted from kpi_targets") == pytest.approx(0.245)
    assert "At least 24.5 %" in (await load(browser, "/targets"))[1]


async def test_who_answers_for_one_shop_sees_its_targets_and_sets_none(people: People) -> None:
    organisation = people.organisations["own"]
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone) "
        "values ($1, 'hidden', 'Hidden shop', 'Europe/Oslo')",
        organisation,
    )
    await people.analyst()
    chief = await people.signed_in()
    csrf = await form_of(chief, "/targets")
    await post(chief, "/targets", {**csrf, **APRIL})
    await post(chief, "/targets", {**csrf, **APRIL, "site": "hidden"})
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    await people.user("bo@example.com", Grant(Role.STORE_MANAGER, organisation, None, site))
    browser = await people.signed_in("bo@example.com")
    _, html = await load(browser, "/targets")
    assert len(cards(html)) == 1
    assert "Hidden" not in html
    assert "Set the target" not in html
    assert "Give this target up" not in html
    assert (await load(browser, "/targets?site=hidden"))[0] == 404
    csrf = await form_of(browser, "/account")
    for row in await people.owner.fetch("select ref from kpi_targets"):
        answer = await post(browser, f"/targets/{row['ref']}", {**csrf, "do": "give up"})
        assert answer.status == 404
    assert (await post(browser, "/targets", {**csrf, **APRIL, "way": "most"})).status == 404
    assert await people.owner.fetchval("select count(*) from kpi_targets") == 2
