"""The calendar of an organisation: chosen on a page or by a program, and what follows from it."""

import re

import pytest

from server.api.keys import create_api_key
from server.people.roles import Grant, Role
from tests.integration.people_world import People, form_of, load, post
from tests.integration.test_api_register import Api
from tests.integration.test_portal_quality import shop

pytestmark = pytest.mark.services
NRF = {"pattern": "4-5-4", "month": "2", "weekday": "6"}


def lines(html: str) -> dict[str, list[str]]:
    """Return the cells of each period on the page."""
    found = re.findall(r'<tr data-period="([\w-]+)".*?</tr>', html, re.S)
    rows = re.findall(r"<tr data-period=.*?</tr>", html, re.S)
    return {
        label: [
            " ".join(re.sub(r"<[^>]+>", " ", cell).split())
            for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.S)
        ]
        for label, row in zip(found, rows, strict=True)
    }


async def test_a_calendar_is_chosen_and_its_periods_have_numbers(people: People) -> None:
    """240 visits a day since February; it is the 2nd of April, in the NRF's second period."""
    await shop(people)
    await people.analyst()
    browser = await people.signed_in()
    status, html = await load(browser, "/periods")
    assert (status, "Numbers are reported by ISO weeks" in html, lines(html)) == (200, True, {})
    csrf = await form_of(browser, "/periods")
    assert (await post(browser, "/periods", {**csrf, **NRF})).status == 303
    status, html = await load(browser, "/periods")
    assert status == 200
    found = lines(html)
    assert list(found) == [f"2026-P{number:02}" for number in range(1, 13)]
    name, visits, coverage, *_ = found["2026-P02"]
    assert name == "P02 under way 1 Mar – 4 Apr 5 weeks"
    assert int(visits.replace(",", "")) == 33 * 240 - 120  # of which an hour is dark
    assert coverage == "98 %"  # of 66 hours one was dark
    assert found["2026-P03"][1:] == ["– not known", "–", "– not known", "–", "–"]
    assert "/v1/metrics:query" in html
    [row] = await people.owner.fetch("select act, detail from audit where subject = 'calendar'")
    assert row["act"] == "calendar chosen"
    assert (await post(browser, "/periods", {**csrf, **NRF, "month": "13"})).status == 422
    status, html = await load(browser, "/periods?year=2025&site=own-site")
    assert list(lines(html))[-1] == "2025-P12"
    assert (await load(browser, "/periods?site=other-site"))[0] == 404


async def test_who_sees_one_site_reads_its_periods_and_chooses_none(people: People) -> None:
    organisation = people.organisations["own"]
    site = await shop(people)
    await people.user(
        "ada@example.com", Grant(Role.STORE_MANAGER, organisation=organisation, site=site)
    )
    await people.owner.execute("update organisations set calendar = '4-4-5' where ref = 'own'")
    browser = await people.signed_in()
    status, html = await load(browser, "/periods")
    assert (status, len(lines(html)), 'name="pattern"' in html) == (200, 12, False)
    csrf = await form_of(browser, "/")
    assert (await post(browser, "/periods", {**csrf, **NRF})).status == 404


async def test_a_program_chooses_the_calendar_and_reads_its_periods(people: People) -> None:
    scopes = ("read", "targets:write")
    api = Api(
        people, await create_api_key(people.owner, people.organisations["own"], scopes=scopes)
    )
    assert (await api.ask("GET", "/calendar"))[1] == {"pattern": "iso", "month": 1, "weekday": 0}
    assert (await api.ask("GET", "/periods"))[1]["data"] == []
    wanted = {"pattern": "4-5-4", "month": 2, "weekday": 6}
    assert (await api.ask("PUT", "/calendar", wanted))[:2] == (200, wanted)
    assert (await api.ask("PUT", "/calendar", wanted))[:2] == (200, wanted)
    assert await people.owner.fetchval("select count(*) from audit where subject = 'calendar'") == 1
    _, found, _ = await api.ask("GET", "/periods?year=2023")
    assert found["data"][-1] == {
        "period": "2023-P12", "year": 2023, "number": 12, "from": "2023-12-31",
        "to": "2024-02-04", "weeks": 5, "first_week": "2023-R49", "last_week": "2023-R53",
    }  # fmt: skip
    _, now, _ = await api.ask("GET", "/periods")
    assert [row["year"] for row in now["data"]] == [2026] * 12
    for body, field in (
        ({"pattern": "5-5-5"}, "pattern"),
        ({"pattern": "4-4-5", "month": 13}, "month"),
        ({"pattern": "4-4-5", "weekday": -1}, "weekday"),
    ):
        status, problem, _ = await api.ask("PUT", "/calendar", body)
        assert (status, problem["parameter"]) == (422, field)
    assert (await api.ask("GET", "/periods?year=1500"))[0] == 400
    assert (await api.ask("GET", "/calendar"))[1] == wanted


async def test_trends_and_digests_name_the_retail_week(people: People) -> None:
    await shop(people)
    await people.analyst()
    await people.owner.execute("update organisations set calendar = '4-4-5' where ref = 'own'")
    browser = await people.signed_in()
    _, html = await load(browser, "/trends")
    assert '<br><span class="muted">2026-R13, P03</span></th>' in html
    _, html = await load(browser, "/digest")
    assert "own: week 13 (2026-R13, P03)" in html
