"""A kiosk's screen that is replaced while its page is open, and one that does not work."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from agent.clock import ManualClock
from agent.kiosk import BUILT_IN, Visits
from agent.plan import OnScreen
from agent.screen import screen
from agent.screen.http import serve
from agent.update.slots import Directories
from protocol.assignment import Item
from protocol.release import target_path
from tests.browser.kiosk_world import Kiosk

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240), pytest.mark.long]
OWN = Path(screen.__file__).parent


def another(folder: Path, mark: str) -> Path:
    """Make a screen that says which it is."""
    shutil.copytree(OWN, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    page = (folder / "page.html").read_text().replace('lang="sv"', f'lang="sv" data-mark="{mark}"')
    (folder / "page.html").write_text(page)
    return folder


def committed(kiosk: Kiosk, folder: Path, archive: Path) -> None:
    """Put a screen into a slot of the device and commit it, as an update does."""
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    content = archive.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    name = target_path("kiosk", "1.0.0", sha256)
    slots = Directories(kiosk.state / "update", identity=kiosk.state / "identity")
    slots.fill("a", Item("kiosk", "1.0.0", "0.1.0", name, len(content), sha256), archive)
    slots.commit("kiosk", "a")


def test_an_open_page_takes_up_the_screen_that_was_committed(
    chrome: Browser, tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    kiosk = Kiosk(tmp_path / "home")
    page = chrome.new_page()
    try:
        kiosk.start()
        page.goto(kiosk.address)
        page.locator("body[data-ready]").wait_for()
        expect(page.locator("html[data-mark]")).to_have_count(0)
        kiosk.child.end()
        committed(kiosk, another(tmp_path / "new", "two"), tmp_path / "archive")
        kiosk.start()
        expect(page.locator("html[data-mark='two']")).to_have_count(1, timeout=60_000)
        page.locator("body[data-ready]").wait_for()
    finally:
        page.close()
        kiosk.child.end()


class Shown:
    """A plan that shows what is built in."""

    site, trouble = "Söder", ""

    def on_screen(self) -> OnScreen:
        return OnScreen(bytes(8), BUILT_IN)


@contextmanager
def served(made: Any) -> Iterator[tuple[str, asyncio.AbstractEventLoop]]:
    """Serve a screen in a thread; its address, and the loop that it belongs to."""
    found: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    ready = threading.Event()

    async def work() -> None:
        stop = asyncio.Event()

        def bound(port: int) -> None:
            found.append((f"http://127.0.0.1:{port}/", asyncio.get_running_loop(), stop))
            ready.set()

        task = asyncio.create_task(serve(made._serve, port=0, ready=bound))
        await stop.wait()
        task.cancel()
        await asyncio.wait({task})

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    assert ready.wait(30)
    address, loop, stop = found[0]
    try:
        yield address, loop
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def test_a_screen_that_does_not_work_gives_way_without_anybody_near(
    chrome: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "REFRESH_S", 1)
    made = screen.Screen(
        Shown(),  # type: ignore[arg-type]
        port=0,
        pin="",
        clock=ManualClock(),
        visits=Visits(),
        take=lambda _: None,
        flush=lambda: True,
        last_id=lambda _: 0,
        status=dict,
    )
    broken = another(tmp_path / "broken", "broken")
    (broken / "page.js").write_text("throw new Error('broken');")
    page: Page = chrome.new_page()
    with served(made) as (address, loop):
        page.goto(address)
        page.locator("body[data-ready]").wait_for()
        loop.call_soon_threadsafe(made.show, broken, "broken", 4)
        expect(page.locator("html[data-mark='broken']")).to_have_count(1, timeout=60_000)
        assert not made.drawn
        loop.call_soon_threadsafe(made.show, None, "package", 0)
        page.locator("body[data-ready]").wait_for(timeout=60_000)
        expect(page.locator("html[data-mark]")).to_have_count(0)
        page.close()
