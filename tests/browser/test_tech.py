"""The technician's phone: from a label before the camera to a signed sheet, also without signal."""

import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from ops.services.browser import chromium
from protocol.label import Label
from tests.browser.axe import in_each_look, overflow, violations
from tests.browser.conftest import _QUIET
from tests.browser.tech_world import Agent, Store, film, open_store

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(420)]
OFFLINE = ("ERR_INTERNET_DISCONNECTED", "Failed to fetch")
FAR_AWAY = "America/New_York"
Phone = Callable[..., Page]


@pytest.fixture(scope="module")
def store(chrome: Browser) -> Iterator[Store]:
    with open_store() as made:
        yield made


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the phone's camera sees."""
    path = tmp_path_factory.mktemp("camera") / "film.y4m"
    film(path, None)
    return path


@pytest.fixture(scope="module")
def phone_chrome(chrome: Browser, lens: Path) -> Iterator[Browser]:
    """Chromium with a camera."""
    found = chromium()
    browser = chrome.browser_type.launch(
        executable_path=str(found.executable),
        env={**found.env},
        args=[
            *_QUIET,
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={lens}",
        ],
    )
    yield browser
    browser.close()


@pytest.fixture
def phone(phone_chrome: Browser, store: Store) -> Iterator[Phone]:
    """Make signed-in phones; what their pages complain of fails the test, but for `complains`."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def make(
        *,
        width: int = 360,
        scheme: str = "light",
        language: str = "en-GB",
        email: str = "tove@example.com",
        to: str = "/tech",
        camera: bool = True,
        complains: tuple[str, ...] = (),
    ) -> Page:
        def heard(text: str) -> None:
            if not any(known in text for known in complains):
                complaints.append(text)

        def logged(said: ConsoleMessage) -> None:
            if said.type in ("error", "warning"):
                heard(said.text)

        context = phone_chrome.new_context(
            viewport={"width": width, "height": 740},
            color_scheme="dark" if scheme == "dark" else "light",
            locale=language,
            timezone_id=FAR_AWAY,  # a phone that still keeps the time of another place
            has_touch=True,
            permissions=["camera"] if camera else [],
        )
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        context.on("console", logged)
        context.on("weberror", lambda found: heard(str(found.error)))
        page.goto(store.link(email, to))
        button = page.locator("main form button")
        if button.count():  # a link that came by mail asks first
            button.click()
        page.wait_for_url(f"**{to}")
        if language[:2] != page.locator("html").get_attribute("lang"):
            page.locator(f".language[lang={language[:2]}]").click()
        return page

    yield make
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def fresh(store: Store) -> Iterator[Callable[[Label], Agent]]:
    """Switch devices on, and off again after the test."""
    begun: list[Agent] = []

    def start(shown: Label) -> Agent:
        begun.append(store.start(shown))
        return begun[-1]

    yield start
    for agent in begun:
        agent.stop()


def picture(page: Page, name: str) -> None:
    """Keep a picture, where somebody wants to look at it."""
    if shots := os.environ.get("VESTIBULE_SHOTS"):
        page.screenshot(path=f"{shots}/{name}.png", full_page=True, caret="initial")


def ready(page: Page) -> Page:
    """Wait until the page's script has begun."""
    page.locator("[data-page][data-ready]").wait_for()
    return page


def scan(page: Page, lens: Path, shown: Label, spot: str) -> None:
    """From the site's page: hold a label before the camera, at a spot's button."""
    film(lens, shown.text.upper())
    page.locator(f"[data-spot='{spot}'] a.button").click()
    expect(page.locator("#device")).to_have_text(shown.serial)


def steps_done(page: Page) -> set[str]:
    """Return the steps that have come true."""
    done = page.locator("[data-step][data-mark=done]")
    return set(done.evaluate_all("all => all.map(e => e.dataset.step)"))


def wait_step(page: Page, step: str) -> None:
    page.locator(f"[data-step={step}][data-mark=done]").wait_for(timeout=90_000)


def pass_by(page: Page, agent: Agent, *, entered: int, left: int) -> None:
    """Let people pass, each tapped and each counted."""
    for button, number in (("#tap-in", entered), ("#tap-out", left)):
        for _ in range(number):
            page.locator(button).click()
    agent.count(entered, left)


def test_a_device_is_mounted_watched_walked_through_and_signed_off(
    store: Store, phone: Phone, lens: Path, fresh: Callable[[Label], Agent]
) -> None:
    spot, shown = store.spot("Main entrance"), store.device()
    page = phone()
    page.locator("#q").fill("vasa")
    expect(page.locator(".place:visible")).to_have_count(1)
    page.locator(".place:visible").click()
    expect(page.locator(f"[data-spot={spot}]")).to_contain_text("empty")
    scan(page, lens, shown, spot)
    expect(page.locator("#device-note")).to_contain_text("Tröskel 2")
    page.get_by_role("button", name="Mount at Main entrance").click()
    page.wait_for_url("**/tech/claims/*")
    assert steps_done(page) == {"claimed"}
    agent = fresh(shown)  # phone first: the device is switched on after
    for step in ("asked", "certified", "connected"):
        wait_step(page, step)
    agent.count(1)
    for step in ("clock", "stored", "counted"):
        wait_step(page, step)
    page.get_by_role("link", name="Walk test").click()
    ready(page)
    page.get_by_role("button", name="Begin the test").click()
    expect(page.locator("#walk-zone")).to_have_text("Times are the site's own: Europe/Stockholm.")
    expect(page.locator("#tap-in")).to_be_enabled()
    said = re.search(r"since (\d\d):(\d\d):\d\d", page.locator("#walk-clock").inner_text())
    assert said is not None
    now = datetime.now(ZoneInfo("Europe/Stockholm"))
    late = (now.hour * 60 + now.minute - int(said[1]) * 60 - int(said[2])) % 1440
    assert late <= 2, said[0]
    pass_by(page, agent, entered=15, left=10)
    page.locator("#tap-out").click()
    page.get_by_role("button", name="Undo the last").click()
    expect(page.locator("#n-out")).to_have_text("10")
    page.get_by_role("button", name="Finish the test").click()
    verdict = page.locator(".verdict")
    expect(verdict).to_have_attribute("data-verdict", "good", timeout=60_000)
    expect(verdict).to_contain_text("15 of 15 counted")
    picture(page, "verdict")
    page.get_by_role("button", name="Sign off", exact=True).click()
    expect(page.locator("#sign-problem")).to_contain_text("Write the name")
    page.locator("#staff").fill("Disa Dahl")
    page.get_by_role("button", name="Sign off", exact=True).click()
    page.wait_for_url("**/sheet")
    for words in (shown.serial, "Main entrance", "Disa Dahl", "Tove", "15 of 15 counted"):
        expect(page.locator("main")).to_contain_text(words)
    picture(page, "signed")
    assert state_of(store, shown) == "in service"
    page.locator("a.tool", has_text="Vasagatan").click()
    expect(page.locator(f"[data-spot={spot}]")).to_contain_text("alive")


def test_a_broken_device_is_swapped_within_a_minute_and_counts_go_on(
    store: Store, phone: Phone, lens: Path, fresh: Callable[[Label], Agent]
) -> None:
    spot, old_label, new_label = store.spot("Side door"), store.device(), store.device()
    page = phone(to=f"/tech/sites/{store.site}")
    old = fresh(old_label)
    scan(page, lens, old_label, spot)
    page.locator("#confirm").click()
    wait_step(page, "connected")
    truth = [0, 0]
    for entered, left in ((3, 1), (2, 2)):
        old.count(entered, left)
        truth[0] += entered
        truth[1] += left
    until(lambda: store.counted(spot) == (5, 3))
    old.stop()  # it breaks
    new = fresh(new_label)  # device first: it waits for the technician's word
    until(
        lambda: (
            store.value("select asked from devices where serial = $1", new_label.serial)
            == "pending"
        )
    )
    page.goto(f"{store.base}/tech/sites/{store.site}")
    film(lens, new_label.text.upper())
    began = time.monotonic()
    page.locator(f"[data-spot='{spot}'] a.button").click()  # 1: swap
    page.get_by_role("button", name=f"Swap {old_label.serial}").click()  # 2, once it was scanned
    wait_step(page, "certified")
    new.count(1, 0)
    truth[0] += 1
    wait_step(page, "counted")
    assert time.monotonic() - began < 60
    for entered, left in ((4, 0), (0, 2)):
        new.count(entered, left)
        truth[0] += entered
        truth[1] += left
    until(lambda: store.counted(spot) == tuple(truth))
    owners = store.sql(
        "select r.time, count(distinct b.device_id) as n from readings r "
        "join spots p on p.id = r.spot join boots b on b.id = r.boot where p.ref = $1 group by 1",
        spot,
    )
    assert {row["n"] for row in owners} == {1}
    stays = store.sql(
        "select d.serial, d.state, lower(a.valid) as low, upper(a.valid) as high "
        "from assignments a join devices d on d.id = a.device_id "
        "join spots p on p.id = a.spot_id where p.ref = $1 order by low",
        spot,
    )
    assert [(row["serial"], row["state"]) for row in stays] == [
        (old_label.serial, "returned"),
        (new_label.serial, "installed"),
    ]
    assert stays[0]["high"] == stays[1]["low"]


@pytest.mark.long
def test_a_kiosk_is_signed_off_without_a_walk(
    store: Store, phone: Phone, lens: Path, fresh: Callable[[Label], Agent]
) -> None:
    spot, shown = store.spot("Till", kind="kiosk"), store.device("FK-0001", kind="kiosk")
    page = phone(to=f"/tech/sites/{store.site}")
    fresh(shown)
    scan(page, lens, shown, spot)
    page.locator("#confirm").click()
    wait_step(page, "connected")
    expect(page.locator("[data-step=counted]")).to_contain_text("Somebody has pressed")
    page.get_by_role("link", name="Sign off").click()
    expect(page.locator("#before")).to_be_hidden()
    page.locator("#staff").fill("Disa")
    page.get_by_role("button", name="Sign off", exact=True).click()
    page.wait_for_url("**/sheet")
    expect(page.locator("main")).to_contain_text("feedback kiosk")
    assert state_of(store, shown) == "in service"


def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.2)


def test_who_types_is_told_at_once_what_is_wrong(store: Store, phone: Phone, lens: Path) -> None:
    shown, spot = store.device(), store.spot("Back door")
    film(lens, "https://example.com/not-a-label")
    page = phone(to=f"/tech/sites/{store.site}")
    page.locator(f"[data-spot='{spot}'] a.button").click()
    expect(page.locator("#scan-say")).to_contain_text("not one of our labels")
    page.get_by_text("Type it instead").click()
    page.locator("#serial").fill(shown.serial.lower())
    say = page.locator("#typed-say")
    page.locator("#code").fill(shown.typed[:6])
    expect(say).to_have_text("5 of 17 characters.")
    page.locator("#code").fill(shown.typed[:6] + "O")
    expect(say).to_have_text("The code never has O.")
    wrong = ("3" if shown.typed[0] != "3" else "4") + shown.typed[1:]
    page.locator("#code").fill(wrong)
    expect(say).to_contain_text("do not belong together")
    expect(page.locator("#confirm")).to_be_disabled()
    page.locator("#code").fill(shown.typed.lower())
    expect(page.locator("#device")).to_have_text(shown.serial)
    expect(page.locator("#confirm")).to_have_text("Mount at Back door")


def test_without_a_camera_one_types(store: Store, phone: Phone) -> None:
    page = ready(phone(to=f"/tech/sites/{store.site}/mount"))
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error('none')); }"
    )
    page.locator("#again").evaluate("e => e.click()")
    expect(page.locator("#scan-say")).to_contain_text("camera cannot be used")
    expect(page.locator("#serial")).to_be_visible()


def test_a_refusal_is_told_in_ones_own_language_and_may_be_overruled(
    store: Store, phone: Phone, lens: Path
) -> None:
    spot, shown = store.spot("Loading dock"), store.device()
    first = phone(to=f"/tech/sites/{store.site}")
    scan(first, lens, shown, spot)
    first.locator("#confirm").click()
    first.wait_for_url("**/tech/claims/*")
    page = phone(email="ture@example.com", to=f"/tech/sites/{store.site}", language="sv-SE")
    scan(page, lens, shown, spot)
    page.get_by_role("button", name="Montera vid Loading dock").click()
    expect(page.locator("#problem-say")).to_contain_text("En annan tekniker håller på med enheten")
    page.locator("#reason").fill("Tove gick hem")
    page.get_by_role("button", name="Gör det ändå").click()
    page.wait_for_url("**/tech/claims/*")
    expect(page.locator("main")).to_contain_text("Platsen är bestämd")


def claims_of(store: Store, shown: Label) -> int:
    """Return how many claims there are for a device."""
    return int(
        str(
            store.value(
                "select count(*) from technician_claims t join devices d on d.id = t.device_id "
                "where d.serial = $1",
                shown.serial,
            )
        )
    )


def state_of(store: Store, shown: Label) -> str:
    return str(store.value("select state from devices where serial = $1", shown.serial))


def sign_in_again(page: Page, store: Store, to: str) -> None:
    page.goto(store.link(to=to))
    button = page.locator("main form button", has_text="Sign in")
    if button.count():
        button.click()
    page.wait_for_url(f"**{to}")
    ready(page)


def wait_kept(page: Page, store: Store) -> None:
    """Wait until the phone keeps what mounting at the site takes."""
    path = f"/tech/sites/{store.site}/mount"
    until(lambda: bool(page.evaluate("async (path) => !!(await caches.match(path))", path)))


def wait_worker(page: Page) -> None:
    """Wait until the service worker is in charge of the page."""
    page.wait_for_function("() => navigator.serviceWorker.controller !== null")


def test_in_a_cellar_everything_is_noted_and_sent_once_there_is_signal(
    store: Store, phone: Phone, lens: Path, fresh: Callable[[Label], Agent]
) -> None:
    shown = store.device()
    page = phone(to=f"/tech/sites/{store.site}", complains=(*OFFLINE, "status of 401"))
    ready(page)
    wait_worker(page)
    page.get_by_role("button", name="Take this site along").click()
    expect(page.locator("#along-say")).to_contain_text("On this phone until")
    page.context.set_offline(True)
    page.reload()
    ready(page)
    expect(page.locator("#offline")).to_be_visible()
    film(lens, shown.text.upper())
    page.get_by_role("link", name="Scan a label").click()
    expect(page.locator("#device")).to_have_text(shown.serial)
    page.get_by_text("A new spot").click()
    page.locator("#name").fill("Cellar stairs")
    page.locator("#door").fill("Stairs")
    page.locator("#height").fill("230")
    page.get_by_role("button", name="Mount at Cellar stairs").click()
    expect(page.locator("#noted")).to_contain_text("It is sent when there is signal")
    expect(page.locator("#unsent")).to_have_text("Not yet sent: 2")
    picture(page, "noted")
    assert violations(page) == []
    kept = page.evaluate(KEPT)
    assert shown.secret not in kept, "a proof is kept, the secret is not"
    page.get_by_role("button", name="Go on to the walk test").click()
    ready(page)
    expect(page.locator("#walk-of")).to_contain_text("Cellar stairs")
    page.get_by_role("button", name="Sign off without a walk test").click()
    page.locator("#staff").fill("Disa")
    page.get_by_role("button", name="Sign off", exact=True).click()
    expect(page.locator("#unsent")).to_have_text("Not yet sent: 3")
    store.sql("update sessions set ended_at = now()")  # meanwhile
    page.context.set_offline(False)
    page.evaluate("dispatchEvent(new Event('online'))")
    until(lambda: claims_of(store, shown) == 1)  # by the voucher alone
    agent = fresh(shown)
    agent.count(2)
    until(lambda: state_of(store, shown) in ("installed", "in service"))
    page.goto(f"{store.base}/tech/outbox")
    expect(page.locator("h1")).to_have_text("Sign in")
    sign_in_again(page, store, "/tech/outbox")
    until(lambda: state_of(store, shown) == "in service")
    expect(page.locator("#unsent")).to_be_hidden(timeout=60_000)
    row = store.sql(
        "select p.name, d.name as door, m.height_cm, t.signed_off_by from technician_claims t "
        "join spots p on p.id = t.spot_id join doors d on d.id = p.door_id "
        "join mountings m on m.spot_id = p.id join devices v on v.id = t.device_id "
        "where v.serial = $1",
        shown.serial,
    )
    assert [tuple(one.values()) for one in row] == [("Cellar stairs", "Stairs", 230, "Disa")]


KEPT = """async () => {
  const database = await new Promise((done) => {
    const asked = indexedDB.open("vestibule-tech"); asked.onsuccess = () => done(asked.result);
  });
  const all = (store) => new Promise((done) => {
    const asked = database.transaction(store).objectStore(store).getAll();
    asked.onsuccess = () => done(asked.result);
  });
  return JSON.stringify([await all("acts"), await all("notes")]).toUpperCase();
}"""


def test_without_a_voucher_what_waits_outlives_the_session(
    store: Store, phone: Phone, lens: Path
) -> None:
    spot, shown = store.spot("Garage"), store.device()
    page = phone(to=f"/tech/sites/{store.site}", complains=(*OFFLINE, "status of 401"))
    ready(page)
    wait_worker(page)
    wait_kept(page, store)
    page.context.set_offline(True)
    scan(page, lens, shown, spot)
    page.locator("#confirm").click()
    expect(page.locator("#unsent")).to_have_text("Not yet sent: 1")
    page.goto(f"{store.base}/tech/outbox")
    ready(page)
    expect(page.locator(".waiting li")).to_contain_text(f"{shown.serial} at Garage")
    store.sql("update sessions set ended_at = now()")
    page.context.set_offline(False)
    page.get_by_role("button", name="Send now").click()
    page.get_by_role("link", name="Sign in again: nothing is lost").wait_for()
    sign_in_again(page, store, "/tech/outbox")
    expect(page.locator("#outbox-say")).to_have_text("Everything is sent.")
    assert claims_of(store, shown) == 1
    assert shown.secret not in page.evaluate(KEPT)


def test_what_is_refused_on_arrival_says_what_to_do(store: Store, phone: Phone, lens: Path) -> None:
    spot, shown = store.spot("Atrium"), store.device()
    page = phone(to=f"/tech/sites/{store.site}", complains=OFFLINE)
    ready(page)
    wait_worker(page)
    wait_kept(page, store)
    page.context.set_offline(True)
    scan(page, lens, shown, spot)
    page.locator("#confirm").click()
    expect(page.locator("#unsent")).to_have_text("Not yet sent: 1")
    store.sql("update devices set state = 'suspended' where serial = $1", shown.serial)
    page.context.set_offline(False)
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#unsent")).to_have_text("Refused by the server: 1. See what to do.")
    page.locator("#unsent a").click()
    ready(page)
    expect(page.locator(".waiting li")).to_contain_text("This device is blocked")
    picture(page, "refused")
    assert violations(page) == []
    store.sql("update devices set state = 'manufactured' where serial = $1", shown.serial)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#outbox-say")).to_have_text("Everything is sent.")


@in_each_look
def test_the_pages_are_for_everyone(
    store: Store, phone: Phone, lens: Path, width: int, scheme: str
) -> None:
    spot, shown = store.spot(f"Gate {width} {scheme}"), store.device()
    page = phone(width=width, scheme=scheme)

    def check(name: str) -> None:
        assert violations(page) == [], name
        assert overflow(page) == 0, name
        small = page.evaluate(SMALL)
        assert small == [], name
        picture(page, f"{name}-{width}-{scheme}")

    check("list")
    page.locator(".place", has_text="Vasagatan").click()
    ready(page)
    check("site")
    film(lens, None)
    page.locator(f"[data-spot='{spot}'] a.button").click()
    ready(page)
    page.get_by_text("Type it instead").click()
    check("mount")
    page.locator("#serial").fill(shown.serial)
    page.locator("#code").fill(shown.typed)
    page.locator("#change").click()
    page.get_by_text("A new spot").click()
    check("mount-new")
    page.locator(f"input[value='{spot}']").check()
    page.locator("#confirm").click()
    page.wait_for_url("**/tech/claims/*")
    check("claim")
    claim = page.url.split("/")[-1]
    page.get_by_role("link", name="Walk test").click()
    ready(page)
    check("walk")
    page.get_by_role("button", name="Begin the test").click()
    expect(page.locator("#during")).to_be_visible()
    check("walking")
    page.goto(f"{store.base}/tech/claims/{claim}/sheet")
    check("sheet")
    page.goto(f"{store.base}/tech/outbox")
    ready(page)
    check("outbox")


SMALL = """() => {
  const wanted = "main :is(a, button, input:not([type=radio]), select, summary)";
  const all = document.querySelectorAll(wanted);
  return [...all].filter((e) => e.checkVisibility()).map((e) => [e, e.getBoundingClientRect()])
    .filter(([, box]) => box.height < 47.5 || box.width < 44)
    .map(([e, box]) => `${e.outerHTML.slice(0, 80)} ${box.width}x${box.height}`);
}"""


def test_the_pages_speak_three_languages(store: Store, phone: Phone) -> None:
    for language, sites, spots in (
        ("sv-SE", "Platser", "Mätpunkter"),
        ("da-DK", "Steder", "Målepunkter"),
        ("en-GB", "Sites", "Spots"),
    ):
        page = phone(language=language)
        expect(page.locator("h1")).to_have_text(sites)
        page.locator(".place", has_text="Vasagatan").click()
        expect(page.locator("h2").first).to_have_text(spots)
        assert page.locator("html").get_attribute("lang") == language[:2]
