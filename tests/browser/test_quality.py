"""The pages on data quality and the Monday digest, in a browser: readable by everyone."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import overflow, violations
from tests.browser.conftest import Demo
from tests.browser.test_portal import open_portal

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]


def test_the_months_quality_is_readable_by_everyone_in_every_language(
    demo: Demo, new_page: NewPage
) -> None:
    portal = open_portal(new_page(), demo)
    portal.get_by_role("link", name="Data quality").click()
    expect(portal.locator("h1")).to_have_text("Data quality")
    expect(portal.locator(".site")).to_have_count(13)
    assert violations(portal) == []
    portal.get_by_role("link", name="Centralstationen").click()
    expect(portal.locator("#days tbody tr").first).to_be_visible()
    expect(portal.locator("#one-title")).to_have_text(re.compile("Centralstationen"))
    assert violations(portal) == []
    portal.set_viewport_size({"width": 360, "height": 740})
    assert overflow(portal) <= 0
    for language, title in (("sv", "Datakvalitet"), ("da", "Datakvalitet"), ("en", "Data quality")):
        portal.locator(f".language[lang={language}]").click()
        expect(portal.locator("h1")).to_have_text(title)
        assert overflow(portal) <= 0


def test_the_monday_digest_is_asked_for_and_readable_by_everyone_in_every_language(
    demo: Demo, new_page: NewPage
) -> None:
    portal = open_portal(new_page(), demo)
    portal.get_by_role("link", name="Monday digest").click()
    expect(portal.locator("h1")).to_have_text("Monday digest")
    expect(portal.locator("main")).to_contain_text("VESTIBULE_SMTP_URL")
    expect(portal.locator("main h3").first).to_have_text("All your sites")
    portal.get_by_role("button", name="Send it to me").click()
    expect(portal.get_by_role("button", name="Stop sending it")).to_be_visible()
    assert violations(portal) == []
    portal.set_viewport_size({"width": 360, "height": 740})
    for language, title in (("sv", "Måndagsbrev"), ("da", "Mandagsbrev"), ("en", "Monday digest")):
        portal.locator(f".language[lang={language}]").click()
        expect(portal.locator("h1")).to_have_text(title)
        assert overflow(portal) <= 0
    portal.get_by_role("button", name="Stop sending it").click()
    expect(portal.get_by_role("button", name="Send it to me")).to_be_visible()
    assert violations(portal) == []
