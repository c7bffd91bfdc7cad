"""A phone in the store's network, where pages come without HTTPS: mounting goes all the same."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from ops.services.browser import chromium
from tests.browser.conftest import _QUIET
from tests.browser.tech_world import Store, open_store

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(420)]
HOST = "server.shop.test"  # 127.0.0.1 itself counts as safe


@pytest.fixture
def store(chrome: Browser) -> Iterator[Store]:
    with open_store() as made:
        yield made


@pytest.fixture
def page(chrome: Browser) -> Iterator[Page]:
    """A phone's page; what it complains of fails the test."""
    found = chromium()
    browser = chrome.browser_type.launch(
        executable_path=str(found.executable),
        env={**found.env},
        args=[*_QUIET, f"--host-resolver-rules=MAP {HOST} 127.0.0.1"],
    )
    complaints: list[str] = []
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    browser.close()
    assert complaints == []


@pytest.mark.long
def test_without_https_one_types_and_the_act_is_done(store: Store, page: Page) -> None:
    spot, shown = store.spot("Main entrance"), store.device()
    to = f"/tech/sites/{store.site}"
    page.goto(store.link(to=to).replace("127.0.0.1", HOST))
    page.locator("main form button").click()
    page.wait_for_url(f"http://{HOST}:*{to}")
    assert page.evaluate("isSecureContext") is False
    page.locator(f"[data-spot='{spot}'] a.button").click()
    expect(page.locator("#scan-say")).to_contain_text("camera cannot be used")
    page.locator("#serial").fill(shown.serial)
    page.locator("#code").fill(shown.typed)
    page.get_by_role("button", name="Mount at Main entrance").click()
    page.wait_for_url("**/tech/claims/*")
    expect(page.locator("main")).to_contain_text("Main entrance")
    assert store.value("select count(*) from phone_acts") == 1
