"""The card of the retailer who looks closer: what the steps say one should see, is seen."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from server.portal.trends import DRAWN
from tests.browser.axe import violations
from tests.browser.conftest import Demo
from tests.browser.test_tech import picture
from tests.browser.test_tour import until

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
STATION = "Centralstationen"


def opened(tour: Page, link: str) -> Page:
    """Follow a card's link, which opens a page of its own."""
    with tour.context.expect_page() as found:
        tour.locator(link).click()
    page = found.value
    page.wait_for_load_state()
    return page


def answer(tour: Page, command: str, folder: Path) -> str:
    """Run a card's copyable command in a folder; return what it prints."""
    text = tour.locator(command).inner_text()
    done = subprocess.run(text, shell=True, capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout


def test_pages_tell_what_was_missed_what_errs_and_what_cannot_be_compared(tour: Page) -> None:
    missed(tour)
    never_audited(tour)
    weeks(tour)


def missed(tour: Page) -> None:
    """A gap stands beside what was measured, with an estimate or why there is none."""
    told = tour.locator("#card-analyst li", has_text="data quality").inner_text()
    page = opened(tour, "#go-quality")
    expect(page.locator("#one-title")).to_have_text(STATION)
    partly = page.locator("#days tbody tr[data-cell=part]").all()
    told_of = [row.locator("td").all_inner_texts()[:3] for row in partly]
    coverage, measured, estimate = next(of for of in told_of if of[2])  # of today nothing is said
    assert 0 < int(re.sub(r"\D", "", coverage)) < 100
    assert int(re.sub(r"\D", "", measured)) > 0
    if "cannot be estimated" in told:
        assert estimate == "cannot be estimated"
    else:
        value, low, high = (int(each.replace(",", "")) for each in re.findall(r"[\d,]+", estimate))
        assert low <= value <= high
        assert value > int(re.sub(r"\D", "", measured))
    picture(page, "tour-quality")


def never_audited(tour: Page) -> None:
    page = opened(tour, "#go-accuracy")
    station = page.locator("section", has=page.get_by_role("heading", name=STATION))
    expect(station.locator("tr[data-spot]")).to_contain_text("never audited")
    expect(station.get_by_role("link", name="Recount Platform entrance")).to_be_visible()


def weeks(tour: Page) -> None:
    """Weeks without a measurement are gaps, and few weeks compare no sites."""
    page = opened(tour, "#go-trends")
    page.get_by_text("The numbers").click()
    rows = page.locator("#weeks-table tbody tr")
    expect(rows).to_have_count(26)
    visits, covered = rows.first.locator("td").first, rows.first.locator("td").last
    share = re.search(r"\d+", covered.inner_text())  # by the weekday, of three days' history
    assert share is not None, covered.inner_text()
    drawn = int(share[0]) >= 100 * DRAWN
    assert bool(re.search(r"\d", visits.inner_text())) == drawn, covered.inner_text()
    expect(rows.last).to_have_attribute("data-cell", "gap")
    assert not re.search(r"\d", rows.last.locator("td").first.inner_text())
    expect(page.locator("#chain")).to_contain_text("Sites are compared once five of them have")
    picture(page, "tour-trends")


def test_the_copyable_commands_answer_with_coverage_interval_revision_and_state_and_a_file(
    tour: Page, tmp_path: Path
) -> None:
    until(lambda: "filter_pending" not in answer(tour, "#question", tmp_path))
    rows = json.loads(answer(tour, "#question", tmp_path))["data"]
    assert [row["metric"] for row in rows] == ["visits.v1", "nps.v1"] * 2
    for row in rows:
        assert 0 < row["coverage"] <= 1
        assert row["state"] in ("open", "complete")  # final after 30 days
        assert row["revision"] >= 0
        assert row["value"] is not None
    for visits, nps in (rows[:2], rows[2:]):
        assert (visits["low"], visits["high"]) == (None, None)
        assert "never_audited" in visits["flags"]
        assert nps["low"] < nps["value"] < nps["high"]
    answer(tour, "#parquet", tmp_path)
    table = pq.read_table(tmp_path / "visits.parquet")
    assert table.num_rows == 13 * 7
    assert pa.types.is_timestamp(table.schema.field("from").type)
    assert sum(visits or 0 for visits in table["visits"].to_pylist()) > 5_000


def test_an_experiment_of_too_few_pairs_is_refused_and_why(demo: Demo, new_page: NewPage) -> None:
    tour = new_page(complains="status of 422")
    tour.goto(demo.address)
    page = opened(tour, "#go-experiment")
    page.get_by_label("Name", exact=True).fill("Longer hours")
    page.get_by_role("button", name="Show what it can find").click()
    said = page.locator("main").get_by_text("pairs can be made")
    expect(said).to_contain_text("6 are needed")
    expect(said).to_contain_text("no outcome could be told from chance")
    assert violations(page) == []
    picture(page, "tour-experiment")
