"""The retailer's card: what the steps say one should see, is seen."""

import json
import re
import subprocess
from collections.abc import Callable
from datetime import date, timedelta

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import in_each_look, overflow, violations
from tests.browser.conftest import Demo

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]


def open_portal(page: Page, demo: Demo, number: int = 0) -> Page:
    """Follow a card's link, which signs in."""
    page.goto(demo.address)
    with page.context.expect_page() as opened:
        page.locator(f"#portal-{number}").click()
    portal = opened.value
    portal.wait_for_load_state()
    return portal


def card(portal: Page, site: str) -> str:
    """Return the text of a site's card."""
    return portal.locator(".site", has=portal.get_by_role("link", name=site)).inner_text()


def figure(text: str, pattern: str) -> str:
    """Return what the pattern's group finds in a text."""
    found = re.search(pattern, text)
    assert found is not None, text
    return found[1]


@pytest.mark.parametrize(
    ("number", "name", "sites"),
    [(0, "Nordljus Mode", 13), (1, "Hjemkær", 6), (2, "Kvarnporten Galleria", 1)],
)
def test_each_organisation_sees_its_own_sites(
    demo: Demo, new_page: NewPage, number: int, name: str, sites: int
) -> None:
    portal = open_portal(new_page(), demo, number)
    expect(portal).to_have_title(re.compile(name))
    expect(portal.locator("h1")).to_have_text("Today")
    expect(portal.locator(".site")).to_have_count(sites)
    for text in portal.locator(".site").all_inner_texts():
        assert re.search(r"visits", text)
        assert "Coverage" in text
        assert "Smileys" in text
        assert re.search(r"Open until|Closed|Never closes", text)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_day_is_like_the_same_part_of_the_weekday_before(
    demo: Demo, new_page: NewPage, number: int
) -> None:
    portal = open_portal(new_page(), demo, number)
    for text in portal.locator(".site").all_inner_texts():
        visits = int(re.sub(r"\D", "", figure(text, r"(?m)^([\d,]+)\s+visits")))
        change = re.search(r"([+−]?)(\d+) % against the", text)
        if visits >= 400:  # of fewer, chance alone may make more of it
            assert change or "not comparable yet" in text, text
            assert change is None or int(change[2]) <= 35, text


def test_the_gap_is_drawn_as_a_gap(demo: Demo, new_page: NewPage) -> None:
    page = new_page()
    portal = open_portal(page, demo)
    told = page.locator("#card-retailer li", has_text="Find Centralstationen").inner_text()
    today = "go back to that day" not in told  # the two hours may have begun before midnight
    if today:
        assert int(figure(card(portal, "Centralstationen"), r"Coverage:?\s*(\d+)\s*%")) < 100
    portal.get_by_role("link", name="Centralstationen").click()
    if not today:
        portal.locator(".days a").first.click()
    covered = portal.locator(".figure", has_text="Coverage").inner_text()
    assert int(figure(covered, r"(\d+)\s*%")) < 100
    chart = portal.locator("[data-chart]")
    expect(chart).to_have_attribute("data-drawn", re.compile(r"\d+"))
    expect(chart.locator("canvas")).to_be_visible()
    drawn = portal.request.get(
        portal.url.split("/sites")[0] + str(chart.get_attribute("data-chart"))
    ).json()
    gaps = [band for band in drawn["bands"] if band[2] == "gap"]
    assert gaps, "a blind sensor leaves a band"
    inside = [
        now
        for at, now in zip(drawn["at"], drawn["now"], strict=True)
        if any(low + 900 <= at < high - 900 for low, high, _ in gaps)
    ]
    assert inside
    assert set(inside) == {None}
    expect(portal.get_by_text("not observed", exact=True)).to_be_visible()


def test_the_counter_mounted_backwards_is_explained(demo: Demo, new_page: NewPage) -> None:
    portal = open_portal(new_page(), demo)
    assert "reversed, corrected since" in card(portal, "Malmö Stortorget")
    portal.get_by_role("link", name="Malmö Stortorget").click()
    expect(portal.get_by_text("reversed, corrected since")).to_be_visible()


def test_the_silent_terminal_is_named(demo: Demo, new_page: NewPage) -> None:
    portal = open_portal(new_page(), demo)
    assert re.search(r"Feedback by the exit:\s*nothing heard since", card(portal, "Uppsala"))


def test_the_command_answers_with_the_pages_numbers(demo: Demo, new_page: NewPage) -> None:
    portal = open_portal(new_page(), demo)
    portal.get_by_role("link", name="Göteborg").click()
    portal.locator(".days a").first.click()  # the day before: it changes no more
    expect(portal.locator("#visits")).to_be_visible()
    shown = portal.locator("#visits").evaluate("e => e.firstChild.textContent")
    done = subprocess.run(
        portal.locator("#curl").inner_text(), shell=True, capture_output=True, text=True, check=True
    )
    [row] = json.loads(done.stdout)["data"]
    assert round(row["visits"]) == int(re.sub(r"\D", "", shown)) > 0


def test_the_smileys_are_those_that_the_api_serves(demo: Demo, new_page: NewPage) -> None:
    portal = open_portal(new_page(), demo)
    portal.get_by_role("link", name="Göteborg").click()
    portal.locator(".days a").first.click()  # the day before: it changes no more
    expect(portal.locator(".smileys")).to_be_visible()
    site, day = re.findall(r"sites/(.+?)\?day=(.+)", portal.url)[0]
    [key] = re.findall(r"Bearer [^']+", portal.locator("#curl").inner_text())
    until = date.fromisoformat(day) + timedelta(days=1)
    served = portal.request.get(
        f"{portal.url.split('/sites')[0]}/v1/feedback?bucket=day&scope=open&site={site}"
        f"&from={day}&to={until}",
        headers={"Authorization": key},
    ).json()
    [row] = [row for row in served["data"] if row["kind"] == "smiley4"]
    shown = portal.locator(".smileys li > span").all_inner_texts()
    assert [int(re.sub(r"\D", "", text)) for text in shown] == row["answers"]
    figure = portal.locator(".figure", has_text="Smiley index").inner_text()
    assert f"{row['n']} pressed" in figure
    wanted = round(row["low"]) if row["small"] else round(row["index"])
    assert re.search(rf"^{wanted}\b", figure, re.MULTILINE)


def test_the_page_follows_what_is_stored(demo: Demo, new_page: NewPage) -> None:
    portal = open_portal(new_page(), demo)
    portal.get_by_role("link", name="Centralstationen").click()
    visits = portal.locator("#visits")
    before = visits.evaluate("e => e.firstChild.textContent")
    portal.wait_for_function(
        "before => document.querySelector('#visits').firstChild.textContent !== before", arg=before
    )


@pytest.mark.parametrize(
    ("language", "today", "coverage"),
    [("sv-SE", "I dag", "Täckning"), ("da-DK", "I dag", "Dækning"), ("en-GB", "Today", "Coverage")],
)
def test_the_reader_is_spoken_to_in_their_language(
    demo: Demo, new_page: NewPage, language: str, today: str, coverage: str
) -> None:
    portal = open_portal(new_page(language=language), demo)
    expect(portal.locator("h1")).to_have_text(today)
    expect(portal.locator(".site").first).to_contain_text(coverage)
    assert portal.locator("html").get_attribute("lang") == language[:2]
    portal.get_by_role("link", name="Svenska").click()
    expect(portal.locator("h1")).to_have_text("I dag")


def test_a_stranger_is_told_how_to_get_in(demo: Demo, new_page: NewPage) -> None:
    signed_in = open_portal(new_page(complains="status of 401"), demo)  # once it signed out
    stranger = new_page()
    stranger.goto(signed_in.url)
    expect(stranger.locator("h1")).to_have_text("Sign in")
    assert violations(stranger) == []
    signed_in.get_by_role("button", name="Sign out").click()
    expect(signed_in.locator("h1")).to_have_text("Sign in")


def test_another_organisations_site_does_not_exist(demo: Demo, new_page: NewPage) -> None:
    page = new_page(complains="status of 404")
    theirs = open_portal(page, demo, 1).locator(".site").first.get_attribute("data-site")
    portal = open_portal(page, demo, 0)
    response = portal.goto(f"{portal.url.rstrip('/')}/sites/{theirs}")
    assert response is not None
    assert response.status == 404
    expect(portal.locator("h1")).to_have_text("Not found")


@in_each_look
def test_the_portal_is_for_everyone(demo: Demo, new_page: NewPage, width: int, scheme: str) -> None:
    portal = open_portal(new_page(width=width, scheme=scheme), demo)
    assert violations(portal) == []
    assert overflow(portal) == 0
    for site in ("Centralstationen", "Malmö Stortorget", "Uppsala"):
        portal.goto(portal.url.split("/sites")[0])
        portal.get_by_role("link", name=site).click()
        portal.locator("[data-drawn]").wait_for()
        assert violations(portal) == []
        assert overflow(portal) == 0
