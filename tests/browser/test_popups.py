"""A pop-up's sheet, on a desk, on a phone and on paper: its whole life so far."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Demo
from tests.browser.shop_world import NAME, SITE, analyst_of
from tests.browser.test_shop import in_every_language
from tests.browser.test_signin import fine

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]


def test_a_popups_sheet_tells_its_life_and_what_a_visit_cost(demo: Demo, new_page: NewPage) -> None:
    page = analyst_of(demo, new_page(), "sheet@example.com")
    page.get_by_role("link", name="Pop-ups").click()
    expect(page.locator(f"[data-popup={SITE}]")).to_contain_text("open: day 64 of 69")
    fine(page)
    page.get_by_role("link", name=NAME).click()
    expect(page.locator("#phase")).to_have_text(re.compile(r"So far: day 64 of 69\."))
    expect(page.locator("#visits")).to_contain_text(re.compile(r"3\d,\d{3}"))
    expect(page.locator("#a-day")).to_contain_text("576")
    expect(page.locator("#cost")).to_contain_text(re.compile(r"1\.\d+ SEK a visit: 50,000 SEK"))
    expect(page.locator("main")).to_contain_text("Coverage")
    fine(page)
    page.emulate_media(media="print")
    expect(page.locator("#curl")).to_be_hidden()  # it holds a key
    page.emulate_media(media="screen")
    in_every_language(
        page,
        {"sv": "Vad ett besök kostade", "da": "Hvad et besøg kostede", "en": "What a visit cost"},
    )
