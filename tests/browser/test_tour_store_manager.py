"""The store manager's card: what the steps say one should see, is seen on a phone."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, ViewportSize, expect

from ops.demo.world import PUBLISHED
from tests.browser.axe import overflow, violations
from tests.browser.conftest import Demo
from tests.browser.test_tech import picture
from tests.browser.test_tour import account, until
from tests.browser.test_tour_retailer import STATION, opened

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
PHONE = ViewportSize(width=360, height=740)
REPEATED = "pressed again within 5 seconds"


def figure(text: str) -> int:
    """Read a number as it is written."""
    return int(re.sub(r"\D", "", text) or 0)


def pressed(phone: Page) -> tuple[int, int, int, int]:
    """Load the page again; return presses, valid ones, unhappy ones, and those pressed again."""
    phone.reload()
    asked = phone.locator("[data-question$='-0']")
    kept = asked.locator("[data-kept]")
    valid = figure(kept.evaluate("e => e.firstChild.textContent"))
    raw = figure(kept.locator("small").inner_text())
    unhappy = figure(asked.locator(".smileys li").last.locator("span").last.inner_text())
    again = phone.locator("#excluded li", has_text=REPEATED).locator("span").last
    return raw, valid, unhappy, figure(again.inner_text()) if again.count() else 0


def judged_all(phone: Page) -> bool:
    """Load the page again; return whether each press is valid, or left out with a reason."""
    phone.reload()
    kept = phone.locator("[data-question] [data-kept]")
    valid = kept.evaluate_all("all => all.map(e => e.firstChild.textContent)")
    raw = kept.locator("small").all_inner_texts()
    left_out = phone.locator("#excluded li span:last-child").all_inner_texts()
    return sum(map(figure, raw)) == sum(map(figure, [*valid, *left_out]))


def on_a_phone(page: Page) -> Page:
    """Hold that a page fits a phone and can be used by everyone."""
    page.set_viewport_size(PHONE)
    assert overflow(page) == 0
    assert violations(page) == []
    return page


def test_a_sad_face_arrives_and_one_pressed_again_is_left_out_with_the_reason(tour: Page) -> None:
    phone = on_a_phone(opened(tour, "#go-manager"))
    expect(phone.locator("h1")).to_have_text(STATION)  # the one shop, straight away
    expect(phone.get_by_role("link", name="Experiments")).to_have_count(0)
    expect(phone.locator("#alerts")).to_contain_text("alert")
    asked = phone.locator(f"[data-question='{PUBLISHED.hash.hex()}-0']")  # what its plan says
    expect(asked.locator("h2")).to_contain_text(f"How was your visit to {STATION}?")
    until(lambda: judged_all(phone))  # of the history, too
    before = pressed(phone)
    for _ in range(2):
        tour.locator("#press").click()

    def judged() -> bool:
        then = zip(pressed(phone), before, strict=True)
        raw, valid, unhappy, again = (now - earlier for now, earlier in then)
        return raw >= 2 and unhappy >= 1 and again >= 1 and raw == valid + again

    until(judged)
    expect(phone.locator("#excluded")).to_contain_text(REPEATED)
    picture(phone, "tour-manager")
    expect(tour.locator("#kiosk-waiting")).to_have_text("0")
    assert account(tour)[3] == "0"


@pytest.mark.long  # visitors press one after the other, for a minute and a half
def test_a_dozen_unhappy_visitors_raise_an_alert_that_is_taken_and_done(tour: Page) -> None:
    phone = on_a_phone(opened(tour, "#go-manager"))
    expect(phone.locator("[data-alert]")).to_have_count(0)
    tour.locator("#crowd").click()

    def raised() -> bool:
        phone.reload()
        return phone.locator("[data-alert]").count() == 1

    until(raised, timeout_s=240)
    alert = phone.locator("[data-alert]")
    expect(alert).to_contain_text(re.compile(r"\d+ of \d+ answers since .+ usual here"))
    alert.get_by_role("button", name="I take it").click()
    expect(alert).to_contain_text("Taken by Manager")
    on_a_phone(phone)
    picture(phone, "tour-alert")
    alert.get_by_label("What was done, and what came of it?").fill("Opened a second till")
    alert.get_by_role("button", name="Done").click()
    expect(phone.locator("#alerts")).to_contain_text("No open alerts")
    assert account(tour)[3] == "0"


def test_an_action_has_an_owner_and_a_date_and_is_not_closed_too_early(
    demo: Demo, new_page: NewPage
) -> None:
    tour = new_page(complains="status of 409")
    tour.goto(demo.address)
    phone = opened(tour, "#go-manager")
    phone.set_viewport_size(PHONE)
    phone.get_by_text("Plan an action").click()
    phone.get_by_label("What is to be done").fill("A second till from 16:00")
    phone.get_by_label("Touchpoint").select_option(label="Check-out")
    expect(phone.get_by_label("Owner")).to_have_value("Manager")
    due = datetime.now(UTC).date() + timedelta(days=7)
    phone.get_by_label("Due on").fill(due.isoformat())
    phone.get_by_label("Measured again on").fill((due + timedelta(days=28)).isoformat())
    assert violations(phone) == []
    phone.get_by_role("button", name="Plan it").click()
    action = phone.locator("[data-action]", has_text="A second till")
    expect(action).to_contain_text(re.compile(r"Check-out · Manager · due \d"))
    action.get_by_role("button", name="Carried out").click()
    action.get_by_role("button", name="Measure again and close").click()
    expect(phone.locator("#problem")).to_contain_text("cannot be closed before that day")
    on_a_phone(phone)
    picture(phone, "tour-action")


def test_a_survey_is_answered_by_its_link_once_and_the_answer_arrives(
    tour: Page, new_page: NewPage
) -> None:
    before = answers(opened(tour, "#go-answers"))
    link = opened(tour, "#go-survey").url
    phone = new_page(width=360)
    phone.goto(link)
    expect(phone.locator("h1")).to_have_text("Your visit")
    expect(phone.locator(".why")).to_contain_text("says what was done about it")
    assert overflow(phone) == 0
    picture(phone, "tour-survey")
    for _ in range(5):  # one question a screen: the whole, and four statements
        item = phone.locator(".item:visible")
        expect(item).to_have_count(1)
        name = item.locator("input").first.get_attribute("name")
        item.locator("label", has=phone.locator('input[value="4"]')).click()
        expect(phone.locator(f'.item:visible input[name="{name}"]')).to_have_count(0)
    phone.locator("form button:visible:not(.back)").click()
    expect(phone.locator("h1")).to_have_text("Thank you")
    assert phone.context.cookies() == []
    assert phone.request.get(link).status == 409  # it counts once
    page = on_a_phone(opened(tour, "#go-answers"))
    assert answers(page) == before + 1
    expect(page.locator("[data-factor=staff]")).to_contain_text(re.compile(rf"\b{before + 1}\b"))
    picture(page, "tour-answers")


def answers(page: Page) -> int:
    """Return how many answers a survey's page tells of."""
    found = re.search(r"(\d+) answers", page.locator(".lead").first.inner_text())
    assert found is not None
    return int(found[1])
