"""A rollout in a real browser: planned, approved by another, watched, halted, taken back."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ops.services.stack import Stack
from tests.browser.noc_world import OWN
from tests.browser.rollout_world import SECOND, Engineers, engineers
from tests.browser.test_signin import fine
from tests.firmware_world import BAD

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
SHOTS = os.environ.get("VESTIBULE_SHOTS", "")


@pytest.fixture(scope="module")
def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engineers]:
    with engineers(stack, tmp_path_factory.mktemp("rollouts")) as found:
        yield found


def shot(page: Page, name: str) -> None:
    """Keep pictures, on a desk and on a phone, where they are asked for."""
    if not SHOTS:
        return
    usual = page.viewport_size
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        page.screenshot(
            path=Path(SHOTS) / f"rollout-{name}-{width}.png", full_page=True, caret="initial"
        )
    if usual is not None:
        page.set_viewport_size(usual)


def test_a_rollout_is_planned_approved_watched_halted_and_taken_back(
    world: Engineers, new_page: NewPage
) -> None:
    kim = world.noc.enter(new_page(complains="status of 4"))
    kim.get_by_role("link", name="Rollouts").click()
    expect(kim.locator("#live")).to_contain_text("No rollout is under way.")
    fine(kim)
    shot(kim, "none")
    kim.get_by_role("link", name="New rollout").click()
    kim.get_by_label("What", exact=True).select_option(label="Agent 2.0.0 (1.4 MB)")
    kim.get_by_label("Wave 1", exact=True).fill("4")
    kim.get_by_label("Wave 2", exact=True).fill("10")
    kim.get_by_label("then waited, hours").fill("0")
    kim.get_by_label("tried, at least").fill("4")
    kim.get_by_label("failed or lost, all waves").fill("2")
    kim.get_by_label("Then", exact=True).select_option("keep")
    shot(kim, "new")
    kim.get_by_role("button", name="Preview").last.click()
    expect(kim.locator("#look-title")).to_be_visible()
    left_out = kim.locator("#told-out").locator("..")
    expect(left_out).to_contain_text("not approved for its hardware 10")
    expect(left_out).to_contain_text("no window within 14 days 6")
    expect(kim.locator("#told-counts").locator("..")).to_contain_text("It cannot see any loss")
    fine(kim)
    shot(kim, "preview")
    kim.get_by_label("Name").fill("Agent 2 to all doors")
    kim.get_by_role("button", name="Ask for approval: 24").click()
    expect(kim.locator("#live .lead")).to_contain_text("awaits approval")
    expect(kim.locator("#live")).to_contain_text("You planned it: ask a colleague.")
    expect(kim.get_by_role("button", name="Approve")).to_have_count(0)
    fine(kim)
    shot(kim, "awaits")

    bo = world.noc.enter(new_page(), SECOND)
    bo.goto(kim.url)
    bo.get_by_role("button", name="Approve").click()
    expect(kim.locator("#live")).to_contain_text("approved by Bo Ek")  # without a reload
    world.pass_time(40)
    first = kim.locator(".wave", has_text="Wave 1")
    expect(first).to_contain_text("on their way")
    expect(kim.locator("#funnel-title").locator("../..")).to_contain_text("downloading")
    fine(kim)
    shot(kim, "running")
    world.pass_time(120)
    expect(first).to_contain_text("passed")
    expect(first).to_contain_text("4 of 4 confirmed")

    counted = {"verdict": "watching", "effect": -0.013, "low": -0.042, "high": 0.017, "look": 2}
    world.noc.sql("update rollouts set counted = $1", json.dumps({"1": counted}))
    world.spoil(BAD)
    world.until("halted")
    halted = kim.get_by_role("alert").filter(has_text="A guard has halted it:")
    expect(halted).to_contain_text("the limit is 2,")  # without a reload
    failures = kim.locator("#failures-title").locator("..")
    expect(failures).to_contain_text("fell back by itself")
    guards = kim.locator("#guards-title").locator("..")
    expect(guards).to_contain_text("halts")
    expect(guards).to_contain_text("Wave 1: −1 % 95 % between −4 % and +2 %")
    fine(kim)
    shot(kim, "halted")
    device = failures.get_by_role("link").first.get_attribute("href") or ""
    resume = kim.locator("#reason-resume")
    resume.fill("Known: two doors with the old sensor")
    kim.get_by_role("button", name="Resume").click()
    expect(kim.locator("#live .lead")).to_contain_text("running")
    kim.locator(".acts summary", has_text="Take it back").click()
    kim.get_by_label("Which devices").select_option("revert all")
    kim.locator("#reason-revert").fill("Worse than known")
    kim.locator("#sure-revert").check()
    kim.get_by_role("button", name="Take it back").click()
    expect(kim.locator("#live .lead")).to_contain_text("takes back")
    world.until("completed")
    expect(kim.locator("#live .lead")).to_contain_text("completed")
    shot(kim, "reverse")
    kim.locator("#live .lead a").click()
    expect(kim.locator("#live .lead")).to_contain_text("taken back")
    expect(kim.locator("#history-title").locator("..")).to_contain_text("Worse than known")
    kim.goto(f"{world.noc.base}{device}")
    expect(kim.locator("#firmware-title").locator("../..")).to_contain_text("1.0.0")
    expect(kim.locator(".line-of-time")).to_contain_text("fell back: Agent 2 to all doors")
    fine(kim)
    shot(kim, "device")


def test_releases_and_freezes_are_seen_by_whoever_plans(
    world: Engineers, new_page: NewPage
) -> None:
    page = world.noc.enter(new_page(complains="status of 4"))
    page.goto(f"{world.noc.base}{OWN}/rollouts/releases")
    expect(page.locator("#releases-title").locator("..")).to_contain_text(
        "Cannot be reversed below 2.0.0"
    )
    fine(page)
    shot(page, "releases")
    page.locator("[data-keys] summary").click()
    page.get_by_label("Use keys of one letter").check()
    page.locator("h1").click()
    page.keyboard.press("r")
    expect(page.locator("h1")).to_have_text("Rollouts")
    page.get_by_role("link", name="Freezes").click()
    expect(page.locator("main")).to_contain_text("Nothing is frozen.")
    page.get_by_label("Name").fill("Black week")
    page.get_by_label("Reason").fill("Nothing may touch counts")
    page.get_by_label("Until").fill("2099-01-01T00:00")
    page.get_by_role("button", name="Add a freeze").click()
    expect(page.get_by_role("alert")).to_contain_text("a freeze lasts at most 92 days")
    day = world.firmware.now.replace(hour=0).strftime("%Y-%m-")
    page.get_by_label("From").fill(f"{day}27T00:00")
    page.get_by_label("Until").fill(f"{day}28T12:00")
    page.get_by_label("Shops").fill('site.region = "Skåne"')
    page.get_by_role("button", name="Add a freeze").click()
    expect(page.locator(".months .some")).to_have_count(2)
    fine(page)
    shot(page, "freezes")
