"""What a visitor's phone has to load, and in which words."""

import re

import pytest

from server.survey.pages import HEADERS, HERE
from server.web import catalogue
from server.web.catalogue import LANGUAGES
from tests.bench.survey import LIMIT, page_bytes


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_longest_survey_weighs_less_than_60_kb_with_all_that_it_loads(language: str) -> None:
    sizes = page_bytes(language)
    assert set(sizes) == {"page", "survey.css", "survey.js", "icon.svg"}
    assert sum(sizes.values()) < LIMIT


def test_every_language_says_everything_to_visitors() -> None:
    loaded = catalogue.load([catalogue.SHARED, HERE / "catalogues"])
    assert catalogue.problems(loaded) == []


def test_every_target_is_64_pixels_high() -> None:
    css = (HERE / "static/survey.css").read_text()
    for target in (
        r"\.list label, \.scale label",
        r"textarea, input\[name=code\]",
        r"button, \.button",
    ):
        rule = re.search(target + r" {([^}]*)}", css)
        assert rule is not None
        assert "min-height: 64px" in rule[1]


def test_nothing_may_run_or_load_that_is_not_ours() -> None:
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert set(re.findall(r"'[a-z-]+'|https?:|\*|data:", policy)) == {"'none'", "'self'"}
