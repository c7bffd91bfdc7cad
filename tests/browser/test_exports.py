"""Exports, as whoever runs a chain's own systems uses them: a file, and the command beside it."""

import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.axe import overflow, violations
from tests.browser.conftest import Demo
from tests.browser.test_portal import open_portal
from tests.browser.test_signin import fine

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]


def test_a_file_holds_what_the_command_beside_it_gets(
    demo: Demo, new_page: NewPage, tmp_path: Path
) -> None:
    portal = open_portal(new_page(complains="status of 4"), demo)
    portal.get_by_role("link", name="Exports").click()
    expect(portal.locator("h1")).to_have_text("Exports")
    expect(portal.locator("#datasets tbody tr")).to_have_count(5)
    expect(portal.locator("#bi")).to_have_text("vestibule bi add 'Nordljus Mode'")
    fine(portal)
    yesterday = datetime.now(UTC).date() - timedelta(days=2)
    portal.get_by_label("First day").fill(str(yesterday - timedelta(days=2)))
    portal.get_by_label("Last day").fill(str(yesterday))
    portal.get_by_label("As", exact=True).select_option("json")
    portal.get_by_role("button", name="Show the command").click()
    command = portal.locator("#curl")
    expect(command).to_contain_text(f"-o vestibule-visits-{yesterday - timedelta(days=2)}")
    with portal.expect_download() as begun:
        portal.get_by_role("button", name="Download").click()
    assert begun.value.suggested_filename.startswith("vestibule-visits-")
    begun.value.save_as(tmp_path / "there.json")
    subprocess.run(command.inner_text(), shell=True, cwd=tmp_path, check=True)
    [answer] = tmp_path.glob("vestibule-visits-*.json")
    rows = json.loads((tmp_path / "there.json").read_text())["data"]
    assert len(rows) == 13 * 3
    assert rows == json.loads(answer.read_text())["data"]
    portal.get_by_label("Last day").fill("2020-01-01")
    portal.get_by_role("button", name="Download").click()
    expect(portal.get_by_role("alert")).to_contain_text("the last day is before the first")
    assert violations(portal) == []
    portal.set_viewport_size({"width": 360, "height": 740})
    portal.goto(re.sub(r"/exports.*", "/exports", portal.url))
    for language, title in (("sv", "Export"), ("da", "Eksport"), ("en", "Exports")):
        portal.locator(f".language[lang={language}]").click()
        expect(portal.locator("h1")).to_have_text(title)
        assert overflow(portal) <= 0
