"""From a press at the kiosk to a survey on one's own phone, and to its results, in browsers."""

from collections.abc import Callable

import msgspec
import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import overflow, violations
from tests.browser.kiosk_world import KioskOf
from tests.browser.tech_world import open_store
from tests.browser.test_kiosk import Open, answer, asks, drawn, ready, squares
from tests.browser.test_kiosk import kiosk as kiosk
from tests.browser.test_kiosk import screen as screen
from tests.integration.survey_world import battery

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(300)]
NewPage = Callable[..., Page]


@pytest.mark.long
def test_a_press_leads_on_to_a_survey_whose_answer_stands_at_its_kiosk(
    screen: Open, new_page: NewPage
) -> None:
    with open_store() as store, KioskOf(store) as site:
        made = site.ask(
            "POST", "/surveys", {"name": "Visit", "content": msgspec.to_builtins(battery())}
        )
        path = f"/surveys/{made['survey']}"
        site.ask("PATCH", path, {"state": "published"})
        portal = new_page()
        portal.goto(site.portal(path))
        portal.get_by_role("button", name="Sign in").click()
        expect(portal.locator("#offers")).to_contain_text("No kiosk offers it.")
        portal.locator("#place").select_option(label="Vasagatan · Exit")
        portal.get_by_role("button", name="Offer it there").click()
        expect(portal.locator("[data-offer]")).to_contain_text("Exit")
        assert violations(portal) == []
        portal.set_viewport_size({"width": 360, "height": 740})
        assert overflow(portal) <= 0
        page = screen(of=site.kiosk)
        url, typed = shown(page)
        phone = new_page(width=360, complains="409")
        phone.goto(url)
        fill(phone)
        again = new_page(width=360, complains="409")
        again.goto(f"{store.base}/s")
        again.locator("#code").fill(typed)
        again.get_by_role("button").click()
        expect(again.locator("[data-code]")).to_have_attribute("data-code", "answered_already")
        portal.goto(f"{store.base}{path}?by=spot")
        group = portal.locator("[data-way='one-time']")
        expect(group.locator("h2")).to_contain_text("Exit")
        expect(group).to_contain_text("terminal")
        expect(group.locator("[data-factor='overall']")).to_contain_text("8")
        expect(group.locator("[data-choice='came'] [data-option='1']")).to_contain_text("1 of 1")
        assert violations(portal) == []
        site.server.kill()  # the kiosk holds codes: it does without
        other, _ = shown(page)
        assert other != url
        page.close()
        site.kiosk.start()
        page = screen(of=site.kiosk)
        third, _ = shown(page)
        assert third not in (url, other)
        site.restart_server()
        portal.goto(f"{store.base}{path}")
        portal.locator("[data-offer] button").click()
        expect(portal.locator("#offers")).to_contain_text("No kiosk offers it.")
        offers(page, False)
        page.close()


def offers(page: Page, wanted: bool) -> None:
    """Wait until the agent offers codes to its page, or no longer."""
    page.wait_for_function(
        "wanted => fetch('/state?number=0').then(a => a.json()).then(said => said.more === wanted)",
        arg=wanted,
        polling=200,
    )


def shown(page: Page) -> tuple[str, str]:
    """Press, and ask to go on on a phone; where the code leads, and what is typed for it."""
    offers(page, True)
    asks(page, "Hur var ditt besök?")
    answer(page, 0).tap()
    asks(page, "Tack!")
    with page.expect_response("**/code") as found:
        page.locator("#more").tap()
    asks(page, "Skanna koden med mobilen")
    url = str(found.value.json()["url"])
    assert drawn(page) == squares(url)
    typed = page.locator(".typed").inner_text()
    page.locator("#done").tap()
    ready(page)
    return url, typed


def fill(phone: Page) -> None:
    """Answer a survey question by question, and send it."""
    while True:
        item = phone.locator(".item:visible")
        expect(item).to_have_count(1)
        if phone.locator(".item:visible textarea").count():
            break
        name = item.locator("input").first.get_attribute("name") or ""
        value = {"overall": "8", "came": "1"}.get(name, "4")
        item.locator("label", has=phone.locator(f'input[value="{value}"]')).click()
        expect(phone.locator(f'.item:visible input[name="{name}"]')).to_have_count(0)
    phone.locator("form button:visible:not(.back)").click()
    expect(phone.locator("form")).to_have_count(0)
