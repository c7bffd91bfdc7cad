"""Pop-ups have a sheet of their whole life, which says where in it they are."""

import re
from datetime import date

import pytest

from server.people.roles import Grant, Role
from tests.integration.people_world import People, load, words_in
from tests.integration.test_portal_quality import shop

pytestmark = pytest.mark.services


async def live(people: People, first: str, last: str, ref: str = "own-site") -> None:
    """Let a site have a first and a last day."""
    await people.owner.execute(
        "update sites set opens_on = $2, closes_on = $3, currency = 'SEK' where ref = $1",
        *(ref, date.fromisoformat(first), date.fromisoformat(last)),
    )


async def campaign(people: People, name: str, cost: int, *sites: str) -> None:
    row = await people.owner.fetchval(
        "insert into campaigns (organisation_id, campaign_ref, name, channel, from_day, until_day, "
        "cost, currency) values ($1, $2, $2, 'print', '2026-03-01', '2026-03-10', $3, 'SEK') "
        "returning id",
        *(people.organisations["own"], name, cost),
    )
    await people.owner.execute(
        "insert into campaign_sites (organisation_id, campaign_id, site_id) "
        "select $1, $2, id from sites where ref = any($3)",
        *(people.organisations["own"], row, list(sites)),
    )


def figure(html: str, name: str) -> str:
    return words_in(html, rf'<dd id="{name}">(.*?)</dd>')


async def test_a_popup_that_is_over_has_the_sheet_of_its_whole_life(people: People) -> None:
    """31 days of 240 visits, an hour of the last was dark; it is the 2nd of April."""
    await shop(people)
    await live(people, "2026-03-01", "2026-03-31")
    await campaign(people, "flyers", 14_640, "own-site")
    await campaign(people, "chain", 90_000)
    await people.analyst()
    browser = await people.signed_in()
    _, html = await load(browser, "/popups")
    assert re.search(r'data-popup="own-site".*?closed for good', html, re.S)
    status, html = await load(browser, "/popups/own-site")
    assert status == 200
    assert "What arrives late may change these numbers until Thursday 30 April" in html
    assert figure(html, "visits").startswith("7,320 ")
    assert figure(html, "coverage").startswith("98 % ")
    assert figure(html, "a-day").startswith("240 ")
    assert figure(html, "best") == "240 Sunday 1 March"
    assert figure(html, "peak").startswith("120 from 2026-03-01 10:00")
    assert re.search(r'id="estimated">.*7,440 visits', html)
    assert html.count('<rect class="part"') == 1
    assert "<strong>2 SEK</strong> a visit: 14,640 SEK of its own campaigns" in html
    assert "chain (90,000 SEK) was for other sites, too" in html
    assert 'id="sales"' not in html
    assert "No answers in these days" in html


async def test_before_it_opens_there_is_a_day_and_no_number(people: People) -> None:
    await shop(people)
    await live(people, "2026-04-05", "2026-04-12")
    await campaign(people, "flyers", 14_640, "own-site")
    await people.analyst()
    browser = await people.signed_in()
    _, html = await load(browser, "/popups/own-site")
    assert "It opens on Sunday 5 April, in 3 days" in html
    assert '<dd id="visits">' not in html
    assert "SEK" not in html
    await live(people, "2026-04-02", "2026-04-12")
    _, html = await load(browser, "/popups/own-site")
    assert "So far: day 1 of 11." in html
    assert figure(html, "visits").startswith("240 ")
    assert "no campaign for this site alone has a cost" in html


async def test_a_site_without_an_end_or_of_others_has_no_sheet(people: People) -> None:
    organisation = people.organisations["own"]
    await people.owner.execute(
        "insert into sites (organisation_id, ref, name, time_zone, opens_on, closes_on) "
        "values ($1, 'hidden', 'Hidden shop', 'Europe/Oslo', '2026-03-01', '2026-03-31')",
        organisation,
    )
    await live(people, "2026-03-01", "2026-03-31", "other-site")
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    await people.user("bo@example.com", Grant(Role.STORE_MANAGER, organisation, None, site))
    browser = await people.signed_in("bo@example.com")
    _, html = await load(browser, "/popups")
    assert "Hidden" not in html
    assert "No site has both" in html
    for ref in ("own-site", "hidden", "other-site", "absent"):
        assert (await load(browser, f"/popups/{ref}"))[0] == 404
