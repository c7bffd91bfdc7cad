"""The kiosk's page as a visitor and the staff use it, on a device that no server answers."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import segno
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Route,
    ViewportSize,
    expect,
)

from protocol.codes import Code
from protocol.questionnaire import Questionnaire, read
from tests.browser.axe import overflow, violations
from tests.browser.kiosk_world import DEVICE, PIN, Device, Kiosk, KioskOf, Pressed
from tests.browser.tech_world import open_store

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]
DOWN = ("ERR_CONNECTION_REFUSED", "ERR_EMPTY_RESPONSE", "ERR_CONNECTION_RESET")
VECTORS = Path(__file__).parents[1] / "vectors"
SIZE = ViewportSize(width=800, height=1280)
PHONE = ViewportSize(width=360, height=740)
TARGET = 64
BUILT_IN = "0" * 16
Open = Callable[..., Page]


def questionnaire() -> Questionnaire:
    return read((VECTORS / "questionnaires" / "every-kind.json").read_bytes())


@pytest.fixture
def kiosk(tmp_path: Path) -> Iterator[Kiosk]:
    made = Kiosk(tmp_path)
    yield made
    made.child.end()


@pytest.fixture
def screen(chrome: Browser, kiosk: Kiosk) -> Iterator[Open]:
    """Open the page on the device's screen; what it complains of fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_page(
        *, complains: tuple[str, ...] = (), clock: bool = False, of: Device | None = None
    ) -> Page:
        def logged(said: ConsoleMessage) -> None:
            if said.type in ("error", "warning") and not any(c in said.text for c in complains):
                complaints.append(said.text)

        context = chrome.new_context(viewport=SIZE, has_touch=True, locale="sv-SE")
        context.set_default_timeout(30_000)
        contexts.append(context)
        page = context.new_page()
        context.on("console", logged)
        context.on("weberror", lambda found: complaints.append(str(found.error)))
        if clock:
            page.clock.install()
        device = of or kiosk
        device.start()
        page.goto(device.address)
        ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def ready(page: Page) -> None:
    """Wait until the page takes answers: it takes none that nobody can have read."""
    page.locator("body[data-ready]").wait_for()


def asks(page: Page, text: str) -> None:
    expect(page.locator("h1")).to_have_text(text)
    ready(page)


def answer(page: Page, number: int) -> Locator:
    return page.locator(f"button.answer[data-answer='{number}']")


def waiting(page: Page) -> int:
    """Return how many presses the agent has not said to be on its disk."""
    found: int = page.evaluate("JSON.parse(localStorage.getItem('presses')).queue.length")
    return found


def delivered(page: Page) -> None:
    until = time.monotonic() + 30
    while waiting(page):
        assert time.monotonic() < until, "presses are not taken"
        page.wait_for_timeout(50)


def fits(page: Page, name: str) -> None:
    """At both sizes everyone can use it: axe finds nothing, it fits, its targets are large."""
    for size in (PHONE, SIZE):
        page.set_viewport_size(size)
        assert overflow(page) == 0, (name, size)
        small = page.locator("button:visible").evaluate_all(
            "all => all.map(e => [e.textContent, e.getBoundingClientRect()])"
            f".filter(([, r]) => r.width < {TARGET} || r.height < {TARGET}).map(([t]) => t)"
        )
        assert small == [], (name, size)
        if shots := os.environ.get("VESTIBULE_SHOTS"):
            page.screenshot(path=f"{shots}/kiosk-{name}-{size['width']}.png")
    assert violations(page) == [], name


def test_each_kind_of_question_is_asked_and_each_answer_journalled(
    kiosk: Kiosk, screen: Open
) -> None:
    shown = questionnaire()
    kiosk.keep(shown)
    page = screen()
    asks(page, "Välkommen till Söder! Hur var det?")
    fits(page, "welcome")
    page.get_by_role("button", name="Börja").tap()
    steps = [
        ("Hur var besöket?", 3),
        ("Vad gick fel?", 1),
        ("Hur nöjd är du?", 4),
        ("Det var lätt att hitta.", 7),
        ("Jag kände mig sedd.", 1),
        ("Och kassan?", 1),
    ]
    for text, number in steps:
        asks(page, text)
        fits(page, f"{number}-{text[:5]}")
        answer(page, number).tap()
    asks(page, "Och priserna?")
    fits(page, "smiley4")
    page.locator("#skip").tap()
    asks(page, "Tack, det hjälper oss.")
    fits(page, "thanks")
    page.get_by_role("button", name="Klar").tap()
    asks(page, "Välkommen till Söder! Hur var det?")
    page.locator("nav button[lang=da]").tap()
    asks(page, "Velkommen til Söder! Hvordan var det?")
    expect(page.locator("html")).to_have_attribute("lang", "da")
    page.get_by_role("button", name="Begynd").tap()
    asks(page, "Hvordan var besøget?")
    expect(answer(page, 0)).to_have_text("Meget godt")
    page.keyboard.press("1")  # a button on the case that is a keyboard
    asks(page, "Hvor sandsynligt er det, at du anbefaler os?")
    fits(page, "nps")
    page.locator("nav button[lang=en]").tap()
    asks(page, "How likely are you to recommend us?")
    expect(answer(page, 10)).to_have_attribute("aria-label", "10: Very likely")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")  # from the first to the last
    page.keyboard.press("Enter")
    asks(page, "How satisfied are you?")
    page.close()
    found = kiosk.pressed()
    touches = [Pressed(shown.hash.hex(), q, a, 1, 1)
               for q, a in ((0, 3), (1, 1), (3, 4), (4, 7), (5, 1), (6, 1))]  # fmt: skip
    assert found == [
        *touches,
        Pressed(shown.hash.hex(), 0, 0, 2, 2),
        Pressed(shown.hash.hex(), 2, 10, 2, 1),
    ]


def test_who_goes_away_leaves_a_fresh_screen_and_a_double_tap_is_one_press(
    kiosk: Kiosk, screen: Open
) -> None:
    page = screen(clock=True)
    asks(page, "Hur var ditt besök?")  # nothing is published: the four smileys
    expect(page.locator(".faces > button")).to_have_count(4)
    fits(page, "built-in")
    page.emulate_media(reduced_motion="reduce")
    assert page.locator(".faces svg").first.evaluate("e => getComputedStyle(e).animationName") == (
        "none"
    )
    answer(page, 1).dblclick()
    asks(page, "Tack!")
    page.clock.fast_forward(4_000)
    asks(page, "Hur var ditt besök?")
    page.locator("nav button[lang=en]").tap()
    asks(page, "How was your visit?")
    page.clock.fast_forward(29_000)
    expect(page.locator("h1")).to_have_text("How was your visit?")
    page.clock.fast_forward(1_500)
    asks(page, "Hur var ditt besök?")
    expect(page.locator("html")).to_have_attribute("lang", "sv")
    page.clock.fast_forward(1_000)
    answer(page, 3).tap()
    asks(page, "Tack!")
    page.close()
    assert kiosk.pressed() == [Pressed(BUILT_IN, 0, 1, 1, 1), Pressed(BUILT_IN, 0, 3, 2, 1)]


def test_who_wants_to_go_on_on_a_phone_is_shown_a_code_that_nobody_is_shown_again(
    kiosk: Kiosk, screen: Open
) -> None:
    codes = [Code(f"{at:024d}", f"ABCD-EFGH-000{at}") for at in range(2)]
    kiosk.hold(*codes)
    page = screen(clock=True, complains=("409",))
    for number, code in enumerate(codes):
        answer(page, 1).tap()
        asks(page, "Tack!")
        if not number:
            fits(page, "thanks-more")
            page.clock.fast_forward(10_000)  # most walk on: no code is used up
            asks(page, "Hur var ditt besök?")
            page.clock.fast_forward(1_000)
            answer(page, 1).tap()
            asks(page, "Tack!")
        page.get_by_role("button", name="Fortsätt på din egen mobil").tap()
        asks(page, "Skanna koden med mobilen")
        expect(page.locator(".typed")).to_have_text(code.typed)
        expect(page.get_by_text("eller gå till shop.example/s och skriv")).to_be_visible()
        assert drawn(page) == squares(f"https://shop.example/s/{code.token}")
        if not number:
            fits(page, "code")
            page.locator("nav button[lang=da]").tap()
            asks(page, "Scan koden med mobilen")
            page.clock.fast_forward(61_000)
        else:
            page.locator("#done").tap()
        asks(page, "Hur var ditt besök?")
        page.clock.fast_forward(1_000)
    answer(page, 1).tap()
    asks(page, "Tack!")
    expect(page.locator("#more")).to_have_count(0)  # none is left
    page.close()
    assert len(kiosk.pressed()) == 4


def drawn(page: Page) -> list[list[int]]:
    """Return the squares of the code on the screen, without its margin."""
    path = page.locator(".qr path").get_attribute("d") or ""
    runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path)
    side = int((page.locator(".qr").get_attribute("viewBox") or "").split()[2]) - 8
    found = [[0] * side for _ in range(side)]
    for x, y, width, back in runs:
        assert width == back
        for at in range(int(x) - 4, int(x) - 4 + int(width)):
            found[int(y) - 4][at] = 1
    return found


def squares(text: str) -> list[list[int]]:
    """Return the squares of a text's QR code, as another program draws it."""
    made = segno.make(text, error="m", micro=False, boost_error=False)
    return [[int(dark) for dark in row] for row in made.matrix]


@pytest.mark.long
def test_a_visitor_notices_nothing_of_an_agent_that_is_killed_and_no_press_is_lost(
    kiosk: Kiosk, screen: Open
) -> None:
    shown = questionnaire()
    kiosk.keep(shown)
    page = screen(complains=DOWN)
    page.get_by_role("button", name="Börja").tap()
    asks(page, "Hur var besöket?")
    answer(page, 4).tap()
    asks(page, "Vad gick fel?")
    kiosk.child.kill()
    answer(page, 2).tap()
    asks(page, "Hur nöjd är du?")
    answer(page, 5).tap()
    asks(page, "Det var lätt att hitta.")
    assert waiting(page) == 2
    kiosk.keep()  # and while it was down everything was ended: these still count
    (kiosk.state / "plan.json").replace(kiosk.state / "plan.after.json")
    kiosk.keep(shown)
    (kiosk.state / "plan.json").replace(kiosk.state / "plan.before.json")
    (kiosk.state / "plan.after.json").replace(kiosk.state / "plan.json")
    kiosk.start()
    delivered(page)
    answer(page, 6).tap()
    asks(page, "Jag kände mig sedd.")
    delivered(page)
    page.close()
    found = [(p.hash, p.question, p.answer) for p in kiosk.pressed()]
    hash_ = shown.hash.hex()
    assert found == [(hash_, 0, 4), (hash_, 1, 2), (hash_, 3, 5), (hash_, 4, 6)]


def test_the_staff_see_how_it_is_by_a_pin_and_try_the_screen_without_being_counted(
    kiosk: Kiosk, screen: Open
) -> None:
    page = screen(complains=("403", "429", "409"))
    page.get_by_role("button", name="Personal").tap()
    asks(page, "Ange PIN-kod")
    fits(page, "pin")
    for key in ("1", "1", "1", "1"):
        page.get_by_role("button", name=key, exact=True).tap()
    page.get_by_role("button", name="Öppna").tap()
    expect(page.get_by_role("alert")).to_have_text("Fel PIN-kod")
    for key in PIN:
        page.get_by_role("button", name=key, exact=True).tap()
    page.get_by_role("button", name="Öppna").tap()
    asks(page, "Personal")
    fits(page, "staff")
    for words in (DEVICE, "nej", BUILT_IN, "bra"):
        expect(page.locator("dl")).to_contain_text(words)
    page.locator("#test").tap()
    asks(page, "Hur var ditt besök?")
    expect(page.locator("#badge")).to_have_text("Test: inget räknas")
    answer(page, 0).tap()
    asks(page, "Tack!")
    refused = page.evaluate(
        """async () => {
            const press = (more) => fetch("/press", {
                method: "POST",
                headers: {"Content-Type": "application/json"},
                body: JSON.stringify({client: "0123456789abcdef", id: 1, hash: "0000000000000000",
                    question: 0, answer: 0, visit: "a", ...more}),
            }).then((answered) => answered.status);
            return [await press({hash: "0123456789abcdef"}), await press({question: 1}),
                    await press({answer: 4}), await press({hash: "x"})];
        }"""
    )
    assert refused == [409] * 4
    tries = page.evaluate(
        """async () => {
            const found = [];
            for (let n = 0; n < 6; n += 1)
                found.push((await fetch("/staff", {method: "POST", body: '{"pin": "0000"}',
                    headers: {"Content-Type": "application/json"}})).status);
            return found;
        }"""
    )
    assert tries == [403] * 5 + [429]
    page.close()
    assert kiosk.pressed() == []


def test_a_page_that_is_looked_for_is_framed_for_a_while_and_takes_answers_all_the_same(
    kiosk: Kiosk, screen: Open
) -> None:
    page = screen()
    framed = page.locator("body[data-identify]")
    expect(framed).to_have_count(0)
    told: list[str] = []

    def look_for(route: Route) -> None:
        said = {**route.fetch().json(), "identify": 0 if told else 1_500}
        told.append(route.request.url)
        route.fulfill(json=said)

    page.route("**/state?*", look_for)
    page.reload()
    framed.wait_for()
    page.unroute_all(behavior="ignoreErrors")
    ready(page)
    answer(page, 1).click()
    delivered(page)
    expect(framed).to_have_count(0)


def test_messages_are_shown_as_the_examples_say(kiosk: Kiosk, screen: Open) -> None:
    page = screen()
    examples = json.loads((VECTORS / "messages.json").read_text())
    shown = page.evaluate(
        """async (texts) => {
            const { format } = await import("/message.js");
            return texts.map((text) => format(text, {site: "Söder", n: 3}, "en"));
        }""",
        [each["text"] for each in examples],
    )
    assert shown == [each["shown"] for each in examples]


@pytest.mark.long
@pytest.mark.services
def test_what_is_published_comes_to_the_screen_and_is_answered_without_a_server_too(
    screen: Open,
) -> None:
    shown = questionnaire()
    with open_store() as store, KioskOf(store) as site:
        page = screen(of=site.kiosk)
        asks(page, "Hur var ditt besök?")
        answer(page, 2).tap()
        asks(page, "Tack!")
        ref = site.published(shown)
        asks(page, "Välkommen till Vasagatan! Hur var det?")  # rung for: no need to wait a day
        page.get_by_role("button", name="Börja").tap()
        asks(page, "Hur var besöket?")
        site.server.kill()
        answer(page, 0).tap()
        asks(page, "Hur troligt är det att du rekommenderar oss?")
        answer(page, 9).tap()
        asks(page, "Hur nöjd är du?")
        page.close()
        site.kiosk.start()  # it starts without a server, and still knows what to show
        page = screen(of=site.kiosk)
        asks(page, "Välkommen till Vasagatan! Hur var det?")
        site.restart_server()
        hash_ = shown.hash.hex()
        wanted = [(BUILT_IN, 0, 2), (hash_, 0, 0), (hash_, 2, 9)]
        assert site.stored(len(wanted)) == wanted
        site.end(ref)
        asks(page, "Hur var ditt besök?")
        page.close()
