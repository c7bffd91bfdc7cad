"""Chromium from the cache starts and renders text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ops.services.browser import chromium

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]  # it may have to be fetched


def test_chromium_renders_text_in_a_real_font(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<meta charset=utf-8><body style='font: 20px sans-serif'><span id=s>Besöksräknare</span>"
        "<script>document.title = s.offsetWidth > 100 ? 'drawn' : 'blank'</script>"
    )
    browser = chromium()
    done = subprocess.run(
        [
            *(str(browser.executable), "--headless", "--no-sandbox", "--disable-gpu"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()),
        ],
        env=browser.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>drawn</title>" in done.stdout
