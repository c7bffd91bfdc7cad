"""The tour's release engineer: real agents update themselves, and one that crashes halts at wave 1.

The counters are processes that their launcher starts; their new code is built, signed, published
and rolled out while the test looks, through the console alone.
"""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Demo, demo_of
from tests.browser.test_signin import fine
from tests.browser.test_tech import picture
from tests.browser.test_tour_retailer import opened

pytestmark = [
    pytest.mark.browser,
    pytest.mark.services,
    pytest.mark.timeout(1200),
    pytest.mark.long,
]
SOON = 120_000
ROLLED_OUT = 420_000  # three trials, on a machine that runs other tests besides


@pytest.fixture(scope="module")
def one_day(chrome: Browser) -> Iterator[Demo]:
    """A demo whose history is short: nobody looks at it here."""
    with demo_of("--days", "1") as found:
        yield found


def rolled_out(tour: Page, link: str, name: str) -> Page:
    """Look at a rollout, ask for approval, and approve it."""
    page = opened(tour, link)
    expect(page.locator("#told-counts").locator("..")).to_contain_text("It cannot see any loss")
    waves = page.locator("#told-waves").locator("..").locator("tbody tr")
    expect(waves).to_have_count(2)
    fine(page)
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Ask for approval: 3").click()
    page.get_by_role("button", name="Approve").click()
    expect(page.locator("#live .lead")).to_contain_text("running", timeout=SOON)
    return page


def test_real_agents_update_themselves_and_a_crashing_version_halts_at_wave_one(
    one_day: Demo, new_page: Callable[..., Page]
) -> None:
    tour = new_page()
    tour.goto(one_day.address)
    workshop = tour.locator("#workshop")
    expect(workshop).to_contain_text("There is no workshop yet.")
    tour.locator("#engineer-begin").click()
    expect(workshop.locator(".pill.good")).to_have_count(3, timeout=SOON)
    expect(workshop).to_contain_text("Signed and published: 0.2.0", timeout=SOON)
    assert "0.2.0" not in [each.strip() for each in workshop.locator("strong").all_inner_texts()]

    good = rolled_out(tour, "#go-engineer", "Agent 0.2.0 to the workshop")
    first = good.locator(".wave", has_text="Wave 1")
    expect(first).to_contain_text("passed", timeout=ROLLED_OUT)
    expect(good.locator("#live .lead")).to_contain_text("completed", timeout=ROLLED_OUT)
    expect(good.locator(".figure", has_text="Confirmed")).to_contain_text("3")
    fine(good)
    picture(good, "tour-engineer-confirmed")
    runs = workshop.locator("strong")
    expect(runs).to_have_text(["0.2.0"] * 3, timeout=SOON)

    tour.locator("#engineer-spoil").click()
    expect(workshop).to_contain_text("Signed and published: 0.2.0, 0.3.0", timeout=SOON)
    bad = rolled_out(tour, "#go-spoilt", "Agent 0.3.0 to the workshop")
    halted = bad.get_by_role("alert").filter(has_text="A guard has halted it:")
    expect(halted).to_contain_text(re.compile("in wave 1"), timeout=ROLLED_OUT)
    failures = bad.locator("#failures-title").locator("..")
    expect(failures).to_contain_text("fell back by itself")
    expect(failures).to_contain_text("crashed")
    expect(bad.locator(".wave", has_text="Wave 2")).to_contain_text("0 of 2 confirmed")
    fine(bad)
    picture(bad, "tour-engineer-halted")
    expect(runs).to_have_text(["0.2.0"] * 3, timeout=SOON)
    expect(workshop.locator(".pill.good")).to_have_count(3, timeout=SOON)
    fine(tour)
    picture(tour, "tour-engineer")
