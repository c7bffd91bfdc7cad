"""Experiments, from the design to the register, and the chain beside itself, on every screen.

The clock is the real one; what has been is written as history: one experiment was sealed eleven
weeks ago, and is over.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from playwright.sync_api import Browser, Page, expect

from server.insight import experiments
from server.insight.experiments import Design
from server.insight.weeks import monday
from server.people import links, users
from server.people.roles import Grant, Role
from tests.browser.axe import overflow, violations
from tests.browser.tech_world import Store, open_store
from tests.integration.chain_world import ChainOf

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
WEEK = timedelta(weeks=1)


@dataclass
class Shop:
    """A chain of twelve shops with a past, and one experiment that is over."""

    store: Store
    finished: str

    def open(self, page: Page, path: str) -> Page:
        """Sign an analyst in and go to a page."""

        async def make(connection: asyncpg.Connection) -> str:
            now = datetime.now(UTC)
            if not await users.listed(connection, wanted="ada@example.com"):
                row = await users.add(
                    connection, email="ada@example.com", name="Ada", actor="test", now=now
                )
                grant = Grant(Role.ANALYST, self.store.organisation)
                await users.grant(connection, row, grant, actor="test", now=now)
            user = await users.find(connection, "ada@example.com")
            purpose = links.Purpose.SIGN_IN
            token = await users.link(connection, user, purpose, actor="test", now=now)
            return f"{links.address(self.store.base, purpose, token)}&to={path}"

        page.goto(self.store.ask(make))
        page.get_by_role("button", name=re.compile("Sign in")).click()
        page.wait_for_url(f"**{path}")
        return page


async def past(connection: asyncpg.Connection, organisation: int) -> str:
    """Write two years of twelve shops, and an experiment that ran for eight weeks of them."""
    this_week = monday(datetime.now(UTC).date())
    starts_on = this_week - 9 * WEEK
    await connection.execute("select set_config('app.organisation', $1, true)", str(organisation))
    chain = ChainOf(connection, organisation)
    await chain.open(12, since=this_week - 80 * WEEK)
    await chain.history(this_week - 80 * WEEK, starts_on)
    then = datetime(starts_on.year, starts_on.month, starts_on.day, tzinfo=UTC) - timedelta(days=4)
    by: dict[str, Any] = {"actor": "user-ada", "now": then}
    made = await experiments.create(
        connection,
        organisation,
        Design(
            "Ny skylt", ("visits",), starts_on, hypothesis="Fler ser oss", sites=tuple(chain.spots)
        ),
        **by,
    )
    sealed = await experiments.seal(
        connection, organisation, made.ref, seed=bytes(range(32)), seen=None, **by
    )
    treated = dict.fromkeys((arm[0] for arm in sealed.arms), 1.08)
    await chain.history(starts_on, starts_on + 8 * WEEK, effects=treated, seed=2)
    await chain.history(starts_on + 8 * WEEK, this_week, seed=3)
    return sealed.ref


@pytest.fixture(scope="module")
def shop(chrome: Browser) -> Iterator[Shop]:
    with open_store() as store:
        finished = store.ask(lambda connection: past(connection, store.organisation))
        yield Shop(store, finished)


def everyone_can_read(page: Page) -> None:
    assert violations(page) == []
    assert overflow(page) == 0


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.long), 360])
def test_an_experiment_is_designed_sealed_and_read(
    shop: Shop, new_page: NewPage, width: int
) -> None:
    page = shop.open(new_page(width=width), "/experiments")
    everyone_can_read(page)
    page.get_by_role("link", name="Design an experiment").click()
    page.get_by_label("Name").fill(f"Longer hours {width}")
    starts = page.get_by_label("First Monday").locator("option")
    page.get_by_label("First Monday").select_option(index=0 if width == 1280 else 9)
    assert starts.count() == 12
    everyone_can_read(page)
    page.get_by_role("button", name="Show what it can find").click()
    expect(page.locator("#pairs tbody tr")).to_have_count(6)
    [found] = page.locator("#detectable dd").all_inner_texts()
    assert re.match(r"±\d+(\.\d)? %", found), found
    expect(page.get_by_label("Name")).to_have_value(f"Longer hours {width}")
    everyone_can_read(page)
    page.get_by_role("button", name="Keep this design").click()
    expect(page.locator("h1")).to_have_text(f"Longer hours {width}")
    expect(page.get_by_text("treated", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Draw the lots and seal").click()
    expect(page.locator("#commitment")).to_have_text(re.compile("^[0-9a-f]{64}$"))
    expect(page.get_by_text("treated", exact=True)).to_have_count(6)
    expect(page.locator("#result")).to_contain_text("No decision before")
    expect(page.locator(".effect")).to_have_count(0)
    everyone_can_read(page)


@pytest.mark.parametrize("width", [360, pytest.param(1280, marks=pytest.mark.long)])
def test_what_is_over_has_a_result_card(shop: Shop, new_page: NewPage, width: int) -> None:
    page = shop.open(new_page(width=width), "/experiments")
    page.get_by_role("link", name="Ny skylt").click()
    card = page.locator("#result")
    expect(card).to_have_attribute("data-standing", "difference")
    change, low, high = (
        float(each) for each in re.findall(r"\+(\d+(?:\.\d)?) %", card.inner_text())[:3]
    )
    assert low - 2 < 8 < high + 2, "the draw is a real one: 1 interval in 20 misses it"
    assert low < change < high
    expect(card).to_contain_text("p = 0.031")
    everyone_can_read(page)
    if width == 360:
        expect(page.locator("#seed")).to_have_count(0)
        return
    card.get_by_label("What you make of it").fill("In every shop")
    card.get_by_role("button", name="Keep the treatment").click()
    expect(page.locator("#seed")).to_have_text(bytes(range(32)).hex())
    expect(card).to_contain_text("The treatment was kept: In every shop")
    everyone_can_read(page)
    page.goto(f"{shop.store.base}/experiments?q=every")
    expect(page.locator("#register li")).to_have_count(1)
    expect(page.locator("#learning tbody tr").first).to_contain_text(str(datetime.now(UTC).year))
    everyone_can_read(page)


@pytest.mark.parametrize(
    ("width", "scheme"), [pytest.param(1280, "light", marks=pytest.mark.long), (360, "dark")]
)
def test_the_chain_is_shown_beside_itself(
    shop: Shop, new_page: NewPage, width: int, scheme: str
) -> None:
    page = shop.open(new_page(width=width, scheme=scheme), "/trends")
    expect(page.locator("[data-weeks]")).to_have_attribute("data-drawn", "26")
    expect(page.locator("[data-funnel]")).to_have_attribute("data-drawn", "12")
    expect(page.locator("#ranks tbody tr")).to_have_count(12)
    page.get_by_text("The numbers").click()
    expect(page.locator("#weeks-table tbody tr")).to_have_count(26)
    everyone_can_read(page)
    page.get_by_label("Site", exact=True).select_option(label="Butik 03")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("[data-weeks]")).to_have_attribute("data-drawn", "26")
    for language, title in (("sv", "Trender"), ("da", "Udvikling")):
        page.locator(".language", has_text=re.compile(f"^{language}", re.I)).click()
        expect(page.locator("h1")).to_have_text(title)
        assert overflow(page) == 0
