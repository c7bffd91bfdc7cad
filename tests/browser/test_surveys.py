"""A survey from the portal's builder to a visitor's phone and back, in a browser."""

import re
from collections.abc import Callable
from urllib.parse import urljoin

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.axe import overflow, violations
from tests.browser.conftest import Demo
from tests.browser.test_portal import open_portal

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]

TEXTS = {
    "title": ("Ditt besök", "Dit besøg", "Your visit"),
    "why": ("Butiken läser det.", "Butikken læser det.", "The shop reads it."),
    "factor1": ("Personal", "Personale", "Staff"),
    "factor2": ("Kassa", "Kasse", "Check-out"),
    "all": ("Som helhet?", "Alt i alt?", "All in all?"),
    "item1": ("Jag blev väl bemött.", "Jeg blev mødt godt.", "I was met well."),
    "item2": ("Det gick fort i kassan.", "Det gik hurtigt i kassen.", "Check-out was fast."),
    "choice1": ("Hur ofta?", "Hvor ofte?", "How often?"),
    "words": ("Något mer?", "Andet?", "Anything else?"),
}
OPTIONS = ("Ofta\nSällan", "Ofte\nSjældent", "Often\nSeldom")
PHONE = "070-123 45 67"
LANGUAGES = ("sv", "da", "en")


def built(portal: Page) -> str:
    """Build and publish a survey; return its page's path."""
    portal.get_by_role("link", name="Surveys").click()
    assert violations(portal) == []
    portal.get_by_role("link", name="New survey").click()
    portal.get_by_label("Name", exact=True).fill("Phones")
    for name, texts in TEXTS.items():
        for language, text in zip(LANGUAGES, texts, strict=True):
            portal.locator(f"#{name}_{language}").fill(text)
    for language, lines in zip(LANGUAGES, OPTIONS, strict=True):
        portal.locator(f"#options1_{language}").fill(lines)
    portal.locator("#of2").select_option("2")
    # 3.5 + 2.4 + 2.4 + 3.0 + 9.0 to answer, and 0.06 for each character of the longest wordings
    asked = ("all", "item1", "item2", "choice1", "words")
    characters = sum(max(map(len, TEXTS[name])) for name in asked)
    characters += len("Often") + len("Sjældent")
    expect(portal.locator("#seconds")).to_have_text(f"{20.3 + 0.06 * characters:.1f}")
    assert violations(portal) == []
    portal.set_viewport_size({"width": 360, "height": 740})
    assert overflow(portal) <= 0
    portal.set_viewport_size({"width": 1280, "height": 900})
    portal.get_by_role("button", name="Keep as a draft").click()
    portal.get_by_role("button", name="Publish").click()
    expect(portal.locator(".pill.open")).to_have_text("asked")
    return portal.url


def handed(portal: Page, survey: str, count: int) -> list[str]:
    """Make tokens of a survey; return their addresses."""
    portal.goto(survey)
    portal.locator("#channel").select_option("receipt")
    portal.locator("#count").fill(str(count))
    portal.get_by_role("button", name="Make codes").click()
    assert violations(portal) == []
    links = portal.locator("#tokens a")
    found = [links.nth(at).get_attribute("href") or "" for at in range(links.count())]
    assert len(found) == count
    return found


def test_a_visitor_answers_on_a_phone_in_each_language_with_and_without_script(
    demo: Demo, chrome: Browser, new_page: NewPage
) -> None:
    portal = open_portal(new_page(), demo)
    survey = built(portal)
    links = handed(portal, survey, 6)
    for language, link in zip(LANGUAGES, links[:3], strict=True):
        with_script(new_page(width=360, language=language), link, language)
    for language, link in zip(LANGUAGES, links[3:], strict=True):
        without_script(chrome, link, language)
    portal.goto(survey)
    row = portal.locator('[data-way="one-time"] [data-factor="factor1"]')
    expect(row).to_have_text(re.compile(r"Staff\s+4\s+\d"))
    overall = portal.locator('[data-factor="overall"]')
    for scored, value in ((row, 4), (overall, 8)):  # all said the same, which makes six not certain
        found = re.search(r"([\d.]+)–([\d.]+)[^–]*?\s6\s", scored.inner_text())
        assert found is not None
        assert float(found[1]) < value < float(found[2])
    chosen = portal.locator('[data-choice="choice1"] [data-option="1"]')
    expect(chosen).to_have_text(re.compile(r"Seldom\s*100\s%\s*61\s%–100\s%\s*6 of 6"))
    expect(portal.locator("[data-seconds]")).to_have_text(re.compile("an estimate: 6 of 200"))
    expect(portal.get_by_text("[phone]").first).to_be_visible()
    expect(portal.get_by_text(PHONE)).to_have_count(0)
    assert violations(portal) == []
    portal.set_viewport_size({"width": 360, "height": 740})
    assert overflow(portal) <= 0
    asked_again(portal)


def asked_again(portal: Page) -> None:
    """Begin a first round and one that follows it, on a phone."""
    portal.get_by_role("link", name="Rounds").click()
    expect(portal.locator("main")).to_contain_text("No round has begun")
    portal.get_by_label("What it is called").fill("Before")
    portal.get_by_role("button", name="Begin the round").click()
    course = portal.locator("[data-course]")
    course.get_by_text("Ask again").click()
    course.get_by_label("What it is called").fill("After")
    course.get_by_role("button", name="Begin the next round").click()
    expect(course.locator("[data-round]")).to_have_count(2)
    course.get_by_text("Before: make codes, or end it").click()
    assert (violations(portal), overflow(portal)) == ([], 0)
    course.get_by_role("button", name="End this round").click()
    expect(course.locator("[data-round]").first).to_contain_text("ended")
    for language, title in zip(LANGUAGES, ("Omgångar", "Runder", "Rounds"), strict=True):
        portal.locator(f".language[lang={language}]").click()
        expect(portal.locator("h1")).to_have_text(title)
        assert overflow(portal) == 0


def with_script(phone: Page, link: str, language: str) -> None:
    """Answer one question a screen, with a finger's size, and try to answer again."""
    at = LANGUAGES.index(language)
    phone.goto(link)
    expect(phone.locator("h1")).to_have_text(TEXTS["title"][at])
    expect(phone.locator(".why")).to_have_text(TEXTS["why"][at])
    assert overflow(phone) <= 0
    assert violations(phone) == []
    for label in phone.locator(".item:visible label").all():
        box = label.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 64
    for _ in range(4):
        item = phone.locator(".item:visible")
        expect(item).to_have_count(1)
        before = item.locator("input").first.get_attribute("name") or ""
        value = {"overall": "8", "choice1": "1"}.get(before, "4")
        item.locator("label", has=phone.locator(f'input[value="{value}"]')).click()
        expect(phone.locator(f'.item:visible input[name="{before}"]')).to_have_count(0)
    phone.locator("textarea").fill(f"Ring {PHONE}")
    assert violations(phone) == []
    phone.locator("form button:visible:not(.back)").click()
    expect(phone.locator("form")).to_have_count(0)
    assert violations(phone) == []
    assert phone.context.cookies() == []
    answer = phone.request.get(link)
    assert answer.status == 409
    assert 'data-code="answered_already"' in answer.text()


def without_script(chrome: Browser, link: str, language: str) -> None:
    """Answer on one page, with scripts off, and send it twice."""
    context = chrome.new_context(
        viewport={"width": 320, "height": 700}, locale=language, java_script_enabled=False
    )
    try:
        phone = context.new_page()
        phone.goto(link)
        expect(phone.locator(".item")).to_have_count(5)
        answers = (("overall", "8"), ("item1", "4"), ("item2", "4"), ("choice1", "1"))
        for name, value in answers:
            phone.locator(f'input[name="{name}"][value="{value}"]').check()
        phone.locator("textarea").fill(f"Ring {PHONE}")
        phone.locator("form button").click()
        expect(phone.locator("form")).to_have_count(0)
        thanks = phone.locator("h1").inner_text()
        assert thanks == {"sv": "Tack", "da": "Tak", "en": "Thank you"}[language]
        phone.reload()  # sends the same form again
        expect(phone.locator("h1")).to_have_text(thanks)
        assert context.cookies() == []
    finally:
        context.close()


def test_a_code_is_typed_and_a_wrong_one_is_told(demo: Demo, new_page: NewPage) -> None:
    phone = new_page(width=320, complains="422")
    phone.goto(urljoin(open_portal(new_page(), demo).url, "/s"))
    assert violations(phone) == []
    assert overflow(phone) <= 0
    phone.get_by_label("Your code").fill("abcd-efgh-jkm3")
    phone.get_by_role("button").click()
    expect(phone.get_by_role("alert")).to_have_attribute("data-code", "mistyped_code")
    assert violations(phone) == []
