"""Dissatisfaction on a store manager's phone: pressed, ingested, raised, taken, done."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
from playwright.sync_api import Page, expect

from ops.deployment import embedded
from ops.services.stack import Stack
from protocol.kiosk import Press
from server.clock import ManualClock, at
from server.feedback.alerts import Watch
from server.ingest.pipeline import Pipeline
from server.ingest.places import Places
from tests.browser.conftest import Demo
from tests.browser.test_signin import accept, fine, invited
from tests.ingest_world import DAY, MINUTE, Agent, Fleet, Ingesting, register

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
PREFIX = "fk-unhappy"


async def usual(owner: asyncpg.Connection, fleet: Fleet, now_ms: int) -> None:
    """Let the kiosk have had eight ordinary weeks: one answer in ten was bad."""
    questionnaire = await owner.fetchval(
        "select questionnaire from presses where spot = $1 limit 1", fleet.spots[0]
    )
    await owner.execute(
        "insert into questionnaires (organisation_id, hash, name, definition) "
        'values ($1, $2, \'Smileys\', \'{"questions": [{"kind": "smiley4"}]}\')',
        *(fleet.organisation, questionnaire),
    )
    await owner.execute(
        "insert into responses_15m select time_bucket('15 minutes', $2::timestamptz) "
        "- n * interval '1 hour', $3, $1, case answer when 0 then 9 else 1 end, 0, 0, 0, 0, 1, 0, "
        "answer from generate_series(1, 56 * 24) n, unnest(array[0, 3]) answer",
        *(fleet.spots[0], at(now_ms), questionnaire),
    )


async def unhappy(stack: Stack) -> list[str]:
    """Store what a kiosk sends: one ordinary answer, then fifteen bad ones. What was raised."""
    found = embedded(stack, start=False)
    now_ms = int(time.time() * 1000)
    clock = ManualClock(now_ms)
    async with (
        asyncpg.create_pool(found.settings.dsn_ingest.reveal(), min_size=1, max_size=2) as ingest,
        asyncpg.create_pool(found.settings.dsn_maint.reveal(), min_size=1, max_size=2) as maint,
    ):
        owner = await asyncpg.connect(found.owner_dsn.reveal())
        try:
            fleet = await register(owner, 1, kind="kiosk", since_ms=now_ms - DAY, prefix=PREFIX)
            places = Places(clock)
            pipeline = Ingesting(Pipeline(ingest, places, clock), places, clock)
            begun_ms = now_ms - 14 * MINUTE
            agent: Agent = fleet.agent(0, booted_ms=begun_ms, now_ms=begun_ms)
            await pipeline.take((agent, agent.kiosk([Press(0, 1, 0, 0)], minutes=1)))
            await usual(owner, fleet, now_ms)
            watch = Watch(maint, clock)
            raised = await watch.look()  # from now on it is fresh
            seconds = (7 * number + number * number % 5 for number in range(15))
            bad = [Press(10 * s, number + 2, 0, 3) for number, s in enumerate(seconds)]
            await pipeline.take((agent, agent.kiosk(bad, minutes=12)))
            return raised + await watch.look()
        finally:
            await owner.close()


def test_an_alert_of_what_was_pressed_is_taken_and_done_on_a_phone(
    demo: Demo, new_page: NewPage
) -> None:
    with ThreadPoolExecutor(1) as thread:  # Playwright holds this one's loop
        raised = thread.submit(asyncio.run, unhappy(Stack(demo.root))).result(120)
    (ref,) = raised or [""]  # or the demo's own watch was faster
    page = new_page(width=360, complains="status of 4")
    scope = ("--site", f"site-{PREFIX}")
    accept(page, invited(demo, "bo@example.com", "--role", "store-manager", *scope), "Bo")
    expect(page.locator("h1")).to_have_text("Today")
    page.get_by_role("link", name="Feedback", exact=True).click()
    expect(page.locator("h1")).to_have_text("Test")  # the one site, straight away
    alert = page.locator(f"[data-alert='{ref}']" if ref else "[data-alert]")
    expect(alert).to_contain_text("answers since")
    fine(page)
    alert.get_by_role("button", name="I take it").click()
    expect(alert).to_contain_text("Taken by Bo")
    fine(page)
    alert.get_by_label("What was done, and what came of it?").fill("Opened a second till")
    alert.get_by_role("button", name="Done").click()
    expect(page.locator("#alerts")).to_contain_text("No open alerts")
    page.get_by_text("Alerts that are done").click()
    expect(page.locator("#alerts")).to_contain_text("Opened a second till")
    fine(page)
