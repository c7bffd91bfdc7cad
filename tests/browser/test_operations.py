"""An operator's day in a real browser: what is urgent, live; an incident, a search, a device."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from ops.services.stack import Stack
from tests.browser.axe import overflow, violations
from tests.browser.noc_world import OWN, TROUBLES, Noc, noc
from tests.browser.test_signin import fine

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
SHOTS = os.environ.get("VESTIBULE_SHOTS", "")
MOST_BYTES = 300_000


@pytest.fixture(scope="module")
def served(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Noc]:
    with noc(stack, tmp_path_factory.mktemp("noc")) as found:
        yield found


@pytest.fixture
def world(served: Noc) -> Noc:
    served.heal()
    return served


def shot(page: Page, name: str) -> None:
    """Keep a picture where one is asked for."""
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"noc-{name}.png", full_page=True, caret="initial")


def test_an_operator_sees_what_is_urgent_live_and_sees_to_it(world: Noc, new_page: NewPage) -> None:
    page = world.enter(new_page(complains="ERR_INCOMPLETE"))
    expect(page.locator("#live")).to_contain_text("Nothing needs a human")
    fine(page)
    shot(page, "empty")
    expect(page.locator("[data-live]")).to_contain_text("Live")
    for trouble in reversed(TROUBLES):
        world.open(*trouble)
    world.sql("update presences set state = 'offline', since = now() where device_id % 13 = 5")
    rows = page.locator("[data-row]")
    expect(rows).to_have_count(len(TROUBLES))  # without a reload
    expect(rows.first).to_contain_text("The device is gone.")
    expect(rows.first).to_contain_text("About 412 visits at stake today")
    expect(rows.first).to_contain_text("Check power and network cable")
    fine(page)
    shot(page, "now")
    page.locator("[data-keys] summary").click()
    page.get_by_label("Use keys of one letter").check()
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("The device is gone.")
    fine(page)
    page.get_by_label("What others should know").fill("Rang the shop: a fuse")
    page.get_by_role("button", name="Keep the comment").click()
    page.get_by_role("button", name="Acknowledge").click()
    told = page.get_by_role("heading", name="Who was told, and why nobody was").locator("..")
    expect(told).to_contain_text("Kim Berg Rang the shop: a fuse")
    expect(told).to_contain_text("Kim Berg acknowledged it")
    fine(page)
    shot(page, "incident")
    page.locator(".language[lang=sv]").click()
    expect(page.locator("h1")).to_have_text("Enheten är borta.")
    assert violations(page) == []
    shot(page, "incident-sv")


def test_a_page_that_lost_its_connection_says_so_and_catches_up(
    world: Noc, new_page: NewPage
) -> None:
    page = world.enter(new_page(complains="ERR_"))
    expect(page.locator("[data-live]")).to_contain_text("Live: what changes")
    world.go_away()
    expect(page.locator("[data-live]")).to_contain_text("Not live since")
    world.open(*TROUBLES[0])  # while nobody can be told
    assert page.locator("[data-row]").count() == 0
    world.come_back()
    expect(page.locator("[data-row]")).to_have_count(1)  # without a reload
    expect(page.locator("[data-live]")).to_contain_text("Live: what changes")


def test_devices_are_searched_looked_at_and_told_together(world: Noc, new_page: NewPage) -> None:
    world.sql("update presences set state = 'offline' where device_id % 13 = 5")
    page = world.enter(new_page(complains="status of 4"))
    page.get_by_role("link", name="Devices").click()
    expect(page.locator("#devices")).to_contain_text("Devices: 40")
    fine(page)
    box = page.get_by_label("Search")
    box.fill("model = DC2 and firmwar < 2.4")
    expect(page.get_by_role("alert")).to_contain_text("character 17: no field `firmwar`")
    assert violations(page) == []
    box.fill('model = DC2 and firmware < 2.4 and site.region = "Skåne"')
    expect(page.locator("#devices")).to_contain_text("Devices: 20")
    shot(page, "devices")
    fine(page)
    page.get_by_role("button", name="Look first").click()
    expect(page.locator("h1")).to_have_text("Identify: blink or show their name")
    fine(page)
    shot(page, "bulk")
    page.get_by_role("button", name="Go ahead: 20").click()
    expect(page.get_by_role("status").first).to_contain_text("It is asked for")
    assert world.sql("select count(*) from commands")[0][0] == 20


def test_a_device_tells_its_life_in_one_line_with_its_gaps(world: Noc, new_page: NewPage) -> None:
    now, device = datetime.now(UTC), "dc-fleet0005x"
    row = world.sql("select id from devices where device = $1", device)[0][0]
    named = "insert into metric_names (name) values ('cpu_temperature_c') returning id"
    metric = world.sql(named)[0][0]
    world.sql(
        "insert into device_metrics (time, device, boot, seq, digest, metric, value) "
        "select t, $1, 1, 1, 1, $6, 40 + 6 * sin(extract(epoch from t) / 9000) "
        "from generate_series($2::timestamptz, $3, interval '15 minutes') t where t < $4 or t > $5",
        *(
            row,
            now - timedelta(days=2),
            now,
            now - timedelta(hours=20),
            now - timedelta(hours=9),
            metric,
        ),
    )
    for minutes, kind, state in (
        (700, "connected", ""),
        (90, "lost", ""),
        (88, "state", "offline"),
    ):
        world.sql(
            "insert into device_events (organisation_id, device_id, at, kind, state) "
            "values ($1, $2, $3, $4, $5)",
            *(world.organisation, row, now - timedelta(minutes=minutes), kind, state),
        )
    world.sql(
        "update presences set state = 'offline', session = 'lost', since = $2, session_at = $2 "
        "where device_id = $1",
        *(row, now - timedelta(minutes=90)),
    )
    world.open("offline", "critical", 5, 12)
    page = world.enter(new_page(width=360, scheme="dark"))
    page.goto(f"{world.base}{OWN}/devices/{device}")
    expect(page.locator("#presence-title")).to_contain_text("offline")
    page.get_by_text("Why it is so").click()
    expect(page.locator(".explain")).to_contain_text("Its connection broke at")
    expect(page.locator(".line-of-time")).to_contain_text("connection broke")
    expect(page.locator(".line-of-time")).to_contain_text("opened: The device is gone.")
    drawn = page.locator("[data-drawn]")
    expect(drawn).to_have_count(1)
    assert "null" in (drawn.get_attribute("data-metric") or "")  # the gap is one
    fine(page)
    shot(page, "device-360")
    staff = page.locator("#staff-title").locator("..").get_by_role("link")
    page.goto(staff.get_attribute("href") or "")
    expect(page.locator("h1")).to_have_text("It needs a hand.")
    fine(page)
    shot(page, "staff")
    page.get_by_role("link", name="sv Svenska").click()
    expect(page.locator("h1")).to_have_text("Den behöver en hand.")


def test_no_page_of_the_console_is_heavy(world: Noc, new_page: NewPage) -> None:
    for trouble in TROUBLES:
        world.open(*trouble)
    page = world.enter(new_page())
    for path in ("/now", "/incidents", "/incidents/incident-offline", "/devices",
                 "/devices/dc-fleet0005x", "/rollouts", "/rollouts/freezes", ""):  # fmt: skip
        page.goto(f"{world.base}{OWN}{path}")
        loaded = page.evaluate(
            "[performance.getEntriesByType('navigation')[0], "
            "...performance.getEntriesByType('resource')]"
            ".reduce((sum, each) => sum + (each.decodedBodySize || 0), 0)"
        )
        assert 0 < loaded < MOST_BYTES, (path, loaded)
        assert overflow(page) == 0
