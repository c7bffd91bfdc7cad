"""From an invitation to a code from the phone, as a person does it, at both widths."""

import os
import re
import subprocess
import sys
import time
from base64 import b32decode
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from ops.deployment import embedded, environment
from ops.services.stack import Stack
from tests.authenticator import STEP_S, code_at
from tests.browser.axe import overflow, violations
from tests.browser.conftest import Demo

pytestmark = [pytest.mark.browser, pytest.mark.services, pytest.mark.timeout(600)]
NewPage = Callable[..., Page]
PASSWORD = "korrekt häst batteri häftklammer"
_RUN = "import sys; from ops.command import main; sys.exit(main(sys.argv[1:]))"


def vestibule(demo: Demo, *words: str) -> str:
    """Run a command on the demo's deployment."""
    found = embedded(Stack(demo.root), start=False)
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *words],
        env={
            **os.environ,
            **environment(found.settings),
            "VESTIBULE_DSN_OWNER": found.owner_dsn.reveal(),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def invited(demo: Demo, email: str, *scope: str) -> str:
    """Add a user; return the address of their invitation."""
    return vestibule(demo, "user", "add", email, *scope).splitlines()[0]


def fine(page: Page) -> None:
    """Hold that the page can be used by everyone, and fits, on a phone and on a desk."""
    assert violations(page) == []
    usual = page.viewport_size
    assert usual is not None
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": usual["height"]})
        assert overflow(page) == 0, width
    page.set_viewport_size(usual)


def accept(page: Page, link: str, name: str) -> None:
    """Take an invitation."""
    page.goto(link)
    fine(page)
    page.get_by_label("Your name").fill(name)
    page.get_by_label("New password", exact=True).fill(PASSWORD)
    page.get_by_label("The new password again").fill(PASSWORD)
    page.get_by_role("button", name="Begin").click()


def test_somebody_is_invited_signs_in_and_asks_for_codes(demo: Demo, new_page: NewPage) -> None:
    email = "eva@example.com"
    [organisation] = re.findall(r"^(.+?)\tsite-", vestibule(demo, "site", "list"), re.MULTILINE)[:1]
    link = invited(demo, email, "--role", "analyst", "--organisation", organisation)
    page = new_page(width=360, complains="status of 4")
    accept(page, link, "Eva")
    expect(page.locator("h1")).to_have_text("Today")
    expect(page.locator(".whose")).to_contain_text(organisation)

    page.get_by_role("link", name="Account").click()
    fine(page)
    codes = page.get_by_role("region", name="Codes from your phone")
    codes.get_by_label("Your password now").fill(PASSWORD)
    codes.get_by_role("button", name="Set up codes").click()
    expect(page.locator("img.qr")).to_be_visible()
    assert page.locator("img.qr").evaluate("image => image.naturalWidth") > 100
    fine(page)
    secret = b32decode(page.locator("#secret").inner_text().replace(" ", ""))
    step = int(time.time()) // STEP_S
    page.get_by_label("Code", exact=True).fill(code_at(secret, step))
    page.get_by_role("button", name="Ask for codes from now on").click()
    expect(codes).to_contain_text("asks for a code")

    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("h1")).to_have_text("Sign in")
    fine(page)
    page.get_by_label("E-mail").fill(email)
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("do not belong together")
    fine(page)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("h1")).to_have_text("Code")
    fine(page)
    page.get_by_label("Code", exact=True).fill("000000")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not right")
    page.get_by_label("Code", exact=True).fill(code_at(secret, step + 1))
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("h1")).to_have_text("Today")
    page.goto(link)
    expect(page.locator("h1")).to_have_text("This link has ended")
    fine(page)


def test_who_oversees_all_chooses_an_organisation(demo: Demo, new_page: NewPage) -> None:
    page = new_page(scheme="dark")
    link = invited(demo, "root@example.com", "--role", "administrator")
    accept(page, link, "Root")
    expect(page.locator("h1")).to_have_text("Organisations")
    fine(page)
    names = page.locator(".rows strong").all_inner_texts()
    assert {"Hjemkær", "Kvarnporten Galleria", "Nordljus Mode"} <= set(names)
    page.get_by_role("button", name="Look at Nordljus Mode").click()
    expect(page.locator("h1")).to_have_text("Today")
    expect(page.locator(".whose")).to_contain_text("Nordljus Mode")
    fine(page)
    page.get_by_role("link", name="Account").click()
    fine(page)


def test_a_session_is_ended_from_another_browser(demo: Demo, new_page: NewPage) -> None:
    link = invited(demo, "two@example.com", "--role", "administrator")
    first, second = new_page(complains="status of 4"), new_page()
    accept(first, link, "Two")
    base = first.url.split("/organisations")[0]
    second.goto(f"{base}/account")
    second.get_by_label("E-mail").fill("two@example.com")
    second.get_by_label("Password").fill(PASSWORD)
    second.get_by_role("button", name="Sign in").click()
    expect(second.locator("h1")).to_have_text("Account")
    second.get_by_role("button", name="End", exact=True).click()
    expect(second.get_by_role("button", name="End", exact=True)).to_have_count(0)
    first.goto(f"{base}/account")
    expect(first.locator("h1")).to_have_text("Sign in")
