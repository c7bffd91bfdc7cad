"""Targets and periods, as a chain manager sets them: on a desk, on a phone, in three languages."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import overflow
from tests.browser.conftest import Demo
from tests.browser.test_portal import open_portal
from tests.browser.test_signin import fine

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]


def test_a_target_is_set_changed_by_two_and_given_up(demo: Demo, new_page: NewPage) -> None:
    portal = open_portal(new_page(complains="status of 4"), demo)
    portal.get_by_role("link", name="Targets").click()
    expect(portal.locator("h1")).to_have_text("Targets")
    last = datetime.now(UTC).date() - timedelta(days=2)
    new = portal.locator("section", has=portal.locator("#new-title"))
    new.get_by_label("Site").select_option(label="Göteborg Avenyn")
    new.get_by_label("First day").fill(str(last - timedelta(days=4)))
    new.get_by_label("Last day").fill(str(last))
    new.get_by_label("Value").fill("1")
    new.get_by_label("Note").fill("at least somebody")
    new.get_by_role("button", name="Set the target").click()
    card = portal.locator("[data-target]", has_text="at least somebody")
    expect(card).to_contain_text("At least 1")
    expect(card.locator(".pill")).to_have_text("met")
    expect(card.locator("[data-coverage]")).to_contain_text("5 of 5 days count as measured")
    expect(card.locator("[data-so-far]")).to_contain_text("5 of 5 days are over")
    fine(portal)
    other = portal.context.new_page()
    other.goto(portal.url)
    for page, wanted in ((other, "2"), (portal, "3")):
        mine = page.locator("[data-target]", has_text="at least somebody")
        mine.get_by_text("Change or give up").click()
        mine.get_by_label("Value").fill(wanted)
        mine.get_by_role("button", name="Save").click()
    expect(other.locator("[data-target]")).to_contain_text("At least 2")
    expect(portal.get_by_role("alert")).to_contain_text("Somebody else changed this target")
    expect(card).to_contain_text("At least 2")
    expect(card.get_by_label("Value")).to_have_value("3")
    fine(portal)
    card.get_by_role("button", name="Save").click()
    expect(card).to_contain_text("At least 3")
    portal.set_viewport_size({"width": 360, "height": 740})
    for language, title in (("sv", "Mål"), ("da", "Mål"), ("en", "Targets")):
        portal.locator(f".language[lang={language}]").click()
        expect(portal.locator("h1")).to_have_text(title)
        assert overflow(portal) <= 0
    card.get_by_text("Change or give up").click()
    card.get_by_role("button", name="Give this target up").click()
    expect(portal.locator("main")).to_contain_text("No target is set")


def test_a_retail_calendar_is_chosen_and_its_year_read_on_a_phone(
    demo: Demo, new_page: NewPage
) -> None:
    portal = open_portal(new_page(), demo)
    portal.get_by_role("link", name="Periods").click()
    expect(portal.locator("main")).to_contain_text("Numbers are reported by ISO weeks")
    fine(portal)
    portal.get_by_label("Weeks to the periods").select_option("4-5-4")
    portal.get_by_label("A year begins close to").select_option("2")
    portal.get_by_label("On a").select_option("6")
    portal.get_by_role("button", name="Report by this calendar").click()
    expect(portal.locator("#periods tbody tr")).to_have_count(12)
    now = portal.locator("#periods tr[data-now]")
    expect(now).to_contain_text("under way")
    expect(now.locator("td.n").first).to_have_text(re.compile(r"^[\d,]+$"))  # visits
    portal.get_by_label("Site").select_option(label="Göteborg Avenyn")
    portal.get_by_role("button", name="Show").click()
    expect(portal.locator("#periods tr[data-now]")).to_have_count(1)
    fine(portal)
    portal.set_viewport_size({"width": 360, "height": 740})
    for language, title in (("sv", "Perioder"), ("da", "Perioder"), ("en", "Periods")):
        portal.locator(f".language[lang={language}]").click()
        expect(portal.locator("h1")).to_have_text(title)
        assert overflow(portal) <= 0
    portal.get_by_label("Weeks to the periods").select_option("iso")
    portal.get_by_role("button", name="Report by this calendar").click()
    expect(portal.locator("main")).to_contain_text("Numbers are reported by ISO weeks")
