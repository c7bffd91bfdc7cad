"""One demo and one Chromium for the browser tests of a worker.

Package scope: Playwright holds its thread's event loop, so it must be gone before other tests.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    expect,
    sync_playwright,
)

from ops.assets.fetch import DEFAULT_FOLDER, fetch
from ops.services.browser import chromium
from ops.services.errors import ServicesError
from ops.services.stack import Stack

LIVE_S = 300
expect.set_options(timeout=30_000)  # machines that run other tests besides are slow
STREAM_ENDED = "[object Event]"  # htmx, of a stream whose page is left; it connects again by itself
_RUN = "import sys; from ops.command import main; sys.exit(main(['demo', *sys.argv[1:]]))"
_QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
)


@dataclass(frozen=True)
class Demo:
    """A running demo."""

    address: str
    root: Path

    @property
    def base(self) -> str:
        return self.address.split("?")[0].rstrip("/")


@pytest.fixture(scope="package")
def chrome() -> Iterator[Browser]:
    """Chromium, started; NOT RUN where it cannot be had."""
    try:
        found = chromium()
        fetch(DEFAULT_FOLDER)
    except ServicesError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no Chromium: {error}")
        pytest.skip(f"NOT RUN: {error}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(found.executable), env={**found.env}, args=list(_QUIET)
        )
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def demo(chrome: Browser) -> Iterator[Demo]:
    """A demo with nine days of history, live: yesterday too has its weekday before."""
    with demo_of("--days", "9") as found:
        yield found


@contextmanager
def demo_of(*options: str) -> Iterator[Demo]:
    """Run `vestibule demo` with these options until it is live, and stop it afterwards."""
    home = Path(tempfile.mkdtemp(prefix="vestibule-browser-"))
    log = home / "out.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", _RUN, *options],
            env={**os.environ, "VESTIBULE_HOME": str(home), "DEMO_SECONDS": ""},
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
    try:
        yield Demo(_address(process, log), home / "demo")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 0, log.read_text()[-2000:]
        finally:
            process.kill()
            Stack(home / "demo").remove()
            shutil.rmtree(home, ignore_errors=True)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + LIVE_S
    while time.monotonic() < until and process.poll() is None:
        found = re.search(r"the tour:\s+(http://\S+)", log.read_text())
        if found:
            return found[1]
        time.sleep(0.2)
    raise AssertionError(f"the demo did not become live:\n{log.read_text()[-2000:]}")


@pytest.fixture
def new_page(chrome: Browser) -> Iterator[Callable[..., Page]]:
    """Make pages; what any of them complains of fails the test, unless it holds `complains`."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def make(
        *,
        width: int = 1280,
        scheme: str = "light",
        language: str = "en-GB",
        complains: str | None = None,
    ) -> Page:
        def heard(text: str) -> None:
            if complains is None or complains not in text:
                complaints.append(text)

        def logged(said: ConsoleMessage) -> None:
            if said.type in ("error", "warning") and said.text != STREAM_ENDED:
                heard(said.text)

        context = chrome.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
            locale=language,
        )
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        context.on("console", logged)  # also of the pages that this one opens
        context.on("weberror", lambda found: heard(str(found.error)))
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def tour(demo: Demo, new_page: Callable[..., Page]) -> Page:
    """The tour, opened by its printed address, with everything up and nobody waiting for long."""
    page = new_page()
    page.goto(demo.address)
    for part in ("broker", "server", "database"):
        page.locator(f"#part-{part}", has_text="up").wait_for()
    return page
