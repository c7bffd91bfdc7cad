"""The tour's cards: each step does what it says, and nobody is lost meanwhile."""

import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import in_each_look, overflow, violations
from tests.browser.conftest import Demo

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]


def number(page: Page, name: str) -> int:
    """Read a figure."""
    text = page.locator(f"#{name}").evaluate("e => e.firstChild.textContent")
    return int(re.sub(r"\D", "", text) or -1)


def account(page: Page) -> tuple[int, int, int, str]:
    """Read the proof strip at one instant: generated, stored, on their way, lost."""
    texts = page.evaluate(
        "['generated', 'stored', 'waiting', 'lost'].map("
        "id => document.getElementById(id).firstChild.textContent)"
    )
    figures = [int(re.sub(r"\D", "", text) or -1) for text in texts[:3]]
    return figures[0], figures[1], figures[2], texts[3].strip()


def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Wait for what the page shows to come true."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.1)


def test_generated_is_stored_and_on_its_way(tour: Page) -> None:
    generated, stored, waiting, lost = account(tour)
    assert lost == "0"
    assert generated == stored + waiting > 5_000
    until(lambda: account(tour)[0] > generated)
    assert account(tour)[3] == "0"
    expect(tour.locator("#online")).to_contain_text("58")


def test_the_strip_moves_every_second_and_says_who_is_open(tour: Page) -> None:
    said = tour.locator(".asof")
    expect(said).to_contain_text(
        re.compile(r"\d\d:\d\d:\d\d in Stockholm: \d+ of 20 sites are open")
    )
    for _ in range(3):
        before = said.inner_text()
        until(lambda before=before: said.inner_text() != before)  # type: ignore[misc]


def test_frames_are_seen_with_their_receipts(tour: Page) -> None:
    newest = tour.locator(".frames li").first
    before = newest.inner_text()
    until(lambda: newest.inner_text() != before)
    until(lambda: "stored, receipt after" in newest.inner_text())
    assert re.search(r"counter \d+", newest.inner_text())
    assert newest.locator("pre").inner_text().startswith("56450101 ")
    assert "in," in newest.inner_text()
    assert "since boot" in newest.inner_text()


def test_a_pulled_cable_makes_the_outbox_grow_and_loses_nobody(tour: Page) -> None:
    tour.locator("#cable-button", has_text="Pull").click()
    expect(tour.locator("#door")).to_contain_text("offline")
    stored = number(tour, "door-stored")
    until(lambda: number(tour, "door-frames") >= 2 and number(tour, "door-waiting") > 0)
    assert number(tour, "door-stored") <= stored + 20  # what was under way when the cable went
    assert account(tour)[3] == "0"
    held = number(tour, "door-generated")
    tour.locator("#cable-button", has_text="Plug").click()
    expect(tour.locator("#door")).to_contain_text("online")
    until(lambda: number(tour, "door-stored") >= held and number(tour, "door-frames") <= 1)
    texts = tour.evaluate(
        "['door-generated', 'door-stored', 'door-waiting'].map("
        "id => document.getElementById(id).textContent.replace(/[^0-9]/g, ''))"
    )
    assert int(texts[0]) == int(texts[1]) + int(texts[2])
    assert account(tour)[3] == "0"


@pytest.mark.parametrize("part", ["broker", "server", "database"])
def test_what_is_killed_comes_back_and_nobody_is_lost(tour: Page, part: str) -> None:
    tour.locator(f"#kill-{part}").click()
    expect(tour.locator(f"#part-{part}")).to_contain_text("down")
    generated = account(tour)[0]
    expect(tour.locator(f"#part-{part}")).to_contain_text("up", timeout=90_000)
    expect(tour.locator(".outage").first).to_contain_text(f"{part} killed")
    expect(tour.locator(".outage").first).to_contain_text("back after", timeout=90_000)
    until(lambda: number(tour, "online") == 58, timeout_s=90)
    until(lambda: account(tour)[1] > generated, timeout_s=90)
    assert account(tour)[3] == "0"


def test_speaking_as_another_device_is_refused_and_why(tour: Page) -> None:
    tour.locator("#impostor").click()
    attempt = tour.locator("#attempt")
    expect(attempt).to_contain_text("Refused")
    expect(attempt).to_contain_text("Not authorized")
    expect(attempt).to_contain_text("0x87")
    expect(attempt).to_contain_text("Frames stored of it: 0")
    expect(attempt).to_contain_text("from its certificate")
    assert account(tour)[3] == "0"


def test_every_minute_is_verified_on_request(tour: Page) -> None:
    until(lambda: number(tour, "online") == 58, timeout_s=90)
    tour.get_by_role("button", name="Verify every minute now").click()
    expect(tour.locator("#proved")).to_contain_text("Exact.", timeout=60_000)


def test_what_cannot_be_told_yet_is_said_to_be_so(tour: Page) -> None:
    card = tour.locator("#card-operator")
    expect(card).to_contain_text("takes three weeks of history to say, and this demo has fewer")


def test_the_copyable_command_answers(tour: Page) -> None:
    command = tour.locator("#curl").inner_text()
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("site,spot,from,until")
    assert len(lines) == 1 + 13 * 7
    tour.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tour.locator("#card-retailer").get_by_role("button", name="Copy").click()
    expect(tour.get_by_text("Copied")).to_be_visible()
    assert tour.evaluate("navigator.clipboard.readText()") == command


@in_each_look
def test_the_tour_is_for_everyone(demo: Demo, new_page: NewPage, width: int, scheme: str) -> None:
    page = new_page(width=width, scheme=scheme)
    page.goto(demo.address)
    page.locator(".frames li").first.wait_for()
    page.locator("#impostor").click()
    page.locator("#attempt .note").wait_for()
    assert violations(page) == []
    assert overflow(page) == 0


def test_the_tour_is_only_for_who_holds_its_address(demo: Demo) -> None:
    for address, headers in (
        (demo.base, {}),
        (f"{demo.base}/?key=guess", {}),
        (demo.address.replace("127.0.0.1", "localhost"), {"Host": "evil.example"}),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address, headers=headers))
        assert refused.value.code == 403
        refused.value.close()


def test_another_sites_page_cannot_kill_anything(demo: Demo) -> None:
    key = demo.address.split("key=")[1]
    request = urllib.request.Request(
        f"{demo.base}/kill/server",
        method="POST",
        headers={"Cookie": f"vestibule_tour={key}", "Origin": "http://evil.example"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403
    refused.value.close()
