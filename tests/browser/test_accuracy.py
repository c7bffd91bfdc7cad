"""Recounting a counter on a phone, beside what was really ingested; and the sheets that follow."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.axe import overflow, violations
from tests.browser.conftest import Demo
from tests.browser.test_portal import NewPage, open_portal

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
BUSY = 11
"""An hour in UTC at which the demo's shops are open."""


def at_the_door(portal: Page, path: str, begin: datetime) -> None:
    """Open the phone's page as if it was then: its clock, and what the server told it."""

    def then(route: Route) -> None:
        if route.request.method != "GET":
            route.continue_()
            return
        response = route.fetch()
        now_ms = int(begin.timestamp() * 1000)
        body = re.sub(r'data-now="\d+"', f'data-now="{now_ms}"', response.text())
        route.fulfill(response=response, body=body)

    portal.route(f"**{path}", then)
    portal.clock.install(time=begin)
    portal.goto(path)


def test_a_phone_recounts_a_quarter_without_signal_and_sends_it_once(
    demo: Demo, new_page: NewPage
) -> None:
    phone = open_portal(new_page(width=360, complains="ERR_INTERNET_DISCONNECTED"), demo)
    base = phone.url.split("/", 3)
    phone.goto("/".join(base[:3]) + "/accuracy")
    assert overflow(phone) <= 0
    assert violations(phone) == []
    row = phone.locator("tr[data-spot]").first
    expect(row).to_contain_text("never audited")
    spot = str(row.get_attribute("data-spot"))
    path = f"/accuracy/recount/{spot}"
    yesterday = datetime.now(UTC) - timedelta(days=1)
    begin = yesterday.replace(hour=BUSY, minute=0, second=0, microsecond=0)
    origin = "/".join(base[:3])
    at_the_door(phone, origin + path, begin - timedelta(seconds=10))
    assert overflow(phone) <= 0
    assert violations(phone) == []
    expect(phone.locator("#tap-in")).to_be_disabled()
    for button in ("#tap-in", "#tap-out"):
        box = phone.locator(button).bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) > 120  # for a thumb
    phone.locator("#begin").click()
    expect(phone.locator("#clock")).to_contain_text("Begins at")
    phone.clock.fast_forward(15_000)
    expect(phone.locator("#tap-in")).to_be_enabled()
    for _ in range(6):
        phone.locator("#tap-in").click()
    for _ in range(2):
        phone.locator("#tap-out").click()
    phone.locator("#undo").click()
    expect(phone.locator("#n-in")).to_have_text("6")
    expect(phone.locator("#n-out")).to_have_text("1")
    phone.clock.fast_forward(900_000)
    expect(phone.locator("#blocks li")).to_have_text(re.compile("6 / 1"))
    phone.locator("#send").click()
    expect(phone.locator("#said")).to_have_text("Say who counted.")
    phone.locator("#by").fill("Ada")
    phone.context.set_offline(True)
    phone.locator("#send").click()
    expect(phone.locator("#said")).to_contain_text("kept on this phone")
    phone.context.set_offline(False)
    phone.reload()  # what was counted outlives the page
    expect(phone.locator("#blocks li")).to_have_text(re.compile("6 / 1"))
    expect(phone.locator("#by")).to_have_value("Ada")
    phone.locator("#send").click()
    expect(phone.locator("#said")).to_have_text("Kept. Thank you.")
    expect(phone.locator("#blocks li")).to_have_count(0)
    asked = (
        f"{origin}/v1/counts?bucket=15m&by=spot&spot={spot}"
        f"&from={begin:%Y-%m-%dT%H:%MZ}&to={begin + timedelta(minutes=15):%Y-%m-%dT%H:%MZ}"
    )
    [counted] = phone.request.get(asked).json()["data"]
    recounts = phone.request.get(f"{origin}/v1/recounts").json()["data"]
    [block] = [each for each in recounts if each["method"] == "manual"]  # a walk test is one too
    assert (block["in"], block["out"], block["counted_by"]) == (6, 1, "Ada")
    assert (block["counted_in"], block["counted_out"]) == (counted["visits"], counted["exits"])
    assert counted["visits"] > 0


def sheets(portal: Page) -> dict[str, str]:
    """Return the addresses of the sheets by what they are."""
    origin = "/".join(portal.url.split("/", 3)[:3])
    portal.goto(f"{origin}/accuracy")
    site = portal.locator('a[href^="/accuracy/sites/"]').first.get_attribute("href")
    return {
        "Accuracy": f"{origin}/accuracy",
        "Questions to a counting supplier": f"{origin}{site}",
        "Data map": f"{origin}/accuracy/privacy",
        "People are counted here": f"{origin}/accuracy/sign?contact=gdpr%40example.com",
    }


@pytest.mark.parametrize("width", [1280, 360])
def test_the_sheets_fit_can_be_used_by_everyone_and_are_answered(
    demo: Demo, new_page: Callable[..., Page], width: int
) -> None:
    portal = open_portal(new_page(width=width), demo)
    for says, address in sheets(portal).items():
        portal.goto(address)
        expect(portal.locator("main")).to_contain_text(says)
        assert overflow(portal) <= 0, says
        assert violations(portal) == [], says
        portal.emulate_media(media="print")
        expect(portal.locator("header.top")).to_be_hidden()
        for key in portal.locator("#curl").all():
            expect(key).to_be_hidden()  # it holds a key
        portal.emulate_media(media="screen")
