"""The page for who runs one shop, in one hand: the shop now, and what waits for somebody."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import overflow, violations
from tests.browser.conftest import Demo
from tests.browser.shop_world import NAME, SITE, manager_of
from tests.browser.test_signin import fine

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]


def in_every_language(page: Page, titles: dict[str, str]) -> None:
    """Hold that the page says its words in each language, and fits 360 px in it."""
    page.set_viewport_size({"width": 360, "height": 740})
    for language, title in titles.items():
        page.locator(f".language[lang={language}]").click()
        expect(page.locator("main")).to_contain_text(title)
        assert overflow(page) <= 0, language


def test_a_store_manager_sees_the_shop_now_and_does_what_waits_with_a_thumb(
    demo: Demo, new_page: NewPage
) -> None:
    phone = manager_of(demo, new_page(width=360, complains="status of 4"), "shop@example.com")
    phone.get_by_role("link", name="My shop").click()
    expect(phone.locator("h1")).to_have_text(NAME)  # the one shop, straight away
    live = phone.locator("#live")
    expect(live).to_contain_text("is usual by then on a")
    expect(live).to_contain_text("last 8 such days")
    expect(live.locator("#coverage")).to_have_text(re.compile(r"\d+ %"))
    expect(phone.locator("#staff")).to_contain_text("till: 2")
    expect(phone.locator("#felt")).to_contain_text("40 pressed, most likely")
    expect(phone.locator("#felt .m0")).to_contain_text(re.compile(r"very happy\s*28"))
    fine(phone)
    take = phone.get_by_role("button", name="I take it")
    for button in (take, phone.get_by_role("button", name="Carried out today")):
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 48  # for a thumb
        assert box["width"] >= 280
    take.click()
    expect(phone.locator("h1")).to_have_text(NAME)  # back here
    expect(phone.locator("[data-alert=alert-popup]")).to_contain_text("Taken by Bo")
    phone.get_by_role("button", name="Carried out today").click()
    expect(phone.locator("#actions")).to_contain_text("Nothing is due")
    assert violations(phone) == []
    in_every_language(
        phone, {"sv": "I dag hittills", "da": "I dag indtil nu", "en": "Today so far"}
    )
    assert phone.goto(phone.url.replace(SITE, "site-none")) is not None
    expect(phone.locator("h1")).to_have_text("Not found")
