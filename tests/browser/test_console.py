"""The console in a real browser, at both widths: a site, its hours, a device, people, a file."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Demo
from tests.browser.test_signin import accept, fine, invited

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
SHOTS = os.environ.get("VESTIBULE_SHOTS", "")
CSV = "site;time_zone;hours\nFrom a file {n};Europe/Oslo;Mo-Fr 10:00-19:00\n"


def shot(page: Page, name: str) -> None:
    """Keep a picture where one is asked for."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.long), 360])
def test_the_console_is_used_from_end_to_end(
    demo: Demo, new_page: NewPage, width: int, tmp_path: Path
) -> None:
    scheme = "dark" if width == 360 else "light"
    page = new_page(width=width, scheme=scheme, complains="status of 4")
    link = invited(demo, f"console-{width}@example.com", "--role", "administrator")
    accept(page, link, "Kim")
    page.get_by_role("link", name="Console", exact=True).first.click()
    expect(page.locator("h1")).to_have_text("Organisations")
    fine(page)
    shot(page, f"overview-{width}")
    page.locator("tbody a").first.click()
    fine(page)
    shot(page, f"organisation-{width}")
    page.get_by_label("Search").fill("no site is called this")
    expect(page.locator("#sites")).to_contain_text("Nothing here")
    page.get_by_label("Search").fill("")
    expect(page.locator("#sites tbody tr").first).to_be_visible()
    kept = page.url.split("?")[0]  # other tests count what it has: this one only reads it

    page.get_by_role("link", name="Console", exact=True).first.click()
    page.get_by_text("Add an organisation").click()
    page.get_by_label("Name").fill(f"Tried out {width}")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("h1")).to_have_text(f"Tried out {width}")
    organisation = page.url.split("?")[0]
    page.get_by_role("link", name="Add a site").click()
    fine(page)
    page.get_by_label("Name").fill(f"New shop {width}")
    page.get_by_label("Opening hours").fill("Mo-Fr 10-19")
    page.get_by_role("button", name="Add").click()
    expect(page.get_by_role("alert")).to_contain_text("Opening hours")
    fine(page)
    page.get_by_label("Opening hours").fill("Mo-Fr 10:00-19:00; Sa 22:00-02:00; 2026-12-25 off")
    page.get_by_role("button", name="Add").click()
    expect(page.locator("h1")).to_have_text(f"New shop {width}")
    expect(page.get_by_role("region", name="Opening hours")).to_contain_text("Monday–Friday")
    page.get_by_text("Add door").first.click()
    page.locator("#new-door").fill("Front")
    page.get_by_role("button", name="Add door").click()
    expect(page.get_by_role("region", name="Doors")).to_contain_text("Front")
    page.get_by_text("Add spot").first.click()
    page.locator("#new-spot").fill("Above the front")
    page.get_by_role("button", name="Add spot").click()
    expect(page.locator("body")).to_contain_text("Above the front")
    page.get_by_text("Change the site and its hours").click()
    for summary in page.locator(".rows summary").all():
        summary.click()
    fine(page)
    shot(page, f"site-{width}")

    second = page.context.new_page()
    second.goto(page.url)
    second.get_by_text("Change the site and its hours").click()
    second.locator("#address").fill("Storgatan 1")
    second.get_by_role("button", name="Keep").last.click()
    expect(second.locator(".lead")).to_contain_text("Storgatan 1")
    page.locator("#site-name").fill("Another name")
    page.get_by_role("button", name="Keep").last.click()
    expect(page.get_by_role("alert")).to_contain_text("Somebody else was quicker")
    expect(page.get_by_role("alert")).to_contain_text("Storgatan 1")
    expect(page.get_by_role("alert")).to_contain_text("Another name")
    fine(page)
    shot(page, f"conflict-{width}")

    page.goto(f"{kept}/devices")
    fine(page)
    shot(page, f"devices-{width}")
    page.locator("tbody th a").first.click()
    fine(page)
    shot(page, f"device-{width}")

    page.goto(f"{organisation}/people")
    page.get_by_label("E-mail").fill(f"new-{width}@example.com")
    page.get_by_role("button", name="Invite").click()
    expect(page.locator("#link")).to_contain_text(re.compile("/invitation"))
    fine(page)
    shot(page, f"people-{width}")

    page.goto(f"{organisation}/import")
    path = tmp_path / "sites.csv"
    path.write_text(CSV.format(n=width))
    page.locator("#csv").set_input_files(path)
    page.get_by_role("button", name="Show what it would change").click()
    expect(page.locator("body")).to_contain_text("1 rows, 1 changes")
    fine(page)
    shot(page, f"import-{width}")
    page.get_by_role("button", name="Take it in").click()
    expect(page.locator("h2#found-title")).to_have_text("Taken in")

    page.goto(f"{organisation}/audit?verify=1")
    expect(page.get_by_role("status")).to_contain_text("follow each other")
    fine(page)
    shot(page, f"audit-{width}")
    base = organisation.split("/console")[0]
    page.goto(f"{base}/language?to=sv&back=/console")
    expect(page.locator("h1")).to_have_text("Organisationer")
    fine(page)
