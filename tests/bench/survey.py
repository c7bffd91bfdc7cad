"""How heavy a survey is on a visitor's phone: every byte of it, as files are, before any gzip.

    python -m tests.bench.survey

The longest battery that the builder lets through, at 55 s: the page with all that it links to
(style, script, icon), in the language in which that is most.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict, cast

import asyncpg
from aiohttp.test_utils import make_mocked_request

from server.config import Secret, Settings
from server.feedback import tokens
from server.feedback.answering import Open
from server.feedback.battery import (
    BUDGET_S,
    Battery,
    Factor,
    Item,
    ItemKind,
    Population,
    asked_seconds,
    check,
    content_of,
    digest,
)
from server.feedback.surveys import Survey
from server.feedback.tokens import Binding, Channel, Delay
from server.survey.pages import HERE, Pages
from server.web.catalogue import LANGUAGES
from server.web.site import build_site

LIMIT = 60_000
NOW = datetime(2026, 4, 2, 12, tzinfo=UTC)
_KEY = bytes(32)


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`, measured in the same run."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    ratio: float | None


def longest() -> Battery:
    """Return the battery that takes a visitor as long as any may, with all kinds of items."""

    def text(length: int) -> dict[str, str]:
        return dict.fromkeys(LANGUAGES, "å" * length)

    def made(length: int) -> Battery:
        statements = [
            Item(f"item{at}", ItemKind.STATEMENT, text(length), factor=f"factor{at % 3}")
            for at in range(18)
        ]
        choice = Item("came", ItemKind.CHOICE, text(20), options=[text(6) for _ in range(7)])
        others = [
            Item("overall", ItemKind.OVERALL, text(20)),
            choice,
            Item("words", ItemKind.TEXT, text(20)),
        ]
        factors = [Factor(f"factor{at}", text(20)) for at in range(3)]
        return Battery(
            list(LANGUAGES), text(160), text(600), factors, [*statements, *others], shown=7
        )

    return max(
        (made(length) for length in range(1, 60) if asked_seconds(made(length)) <= BUDGET_S),
        key=asked_seconds,
    )


def page_bytes(language: str) -> dict[str, int]:
    """Return the bytes of the page and of each file that it links to, by name."""
    battery = longest()
    check(battery)
    settings = Settings(Secret(""), Secret(""), Secret(""), Path(), session_secret=Secret("s" * 32))
    site = build_site(desk=cast(asyncpg.Pool, None), settings=settings)  # no page asks it here
    site.static.add(HERE / "static")
    pages = Pages(
        site, cast(asyncpg.Pool, None), _KEY, lambda: NOW, lambda n: bytes(n), lambda: 0.0
    )
    content = content_of(battery)
    survey = Survey(
        1, "survey", "A", 1, Population.VISITORS, digest(content), content, NOW, NOW, None
    )
    bound = Binding(
        "survey", "site", Channel.RECEIPT, "t" * 60, Delay.NOW, NOW + timedelta(days=30)
    )
    found = Open(1, 1, 1, "site", "s" * 100, None, None, bytes(32), False, bound, survey)
    sheet = tokens.sheet(_KEY, found.kept, now=NOW, random=bytes(10))
    path = "/s/" + "2" * 24
    request = make_mocked_request("GET", path, headers={"Accept-Language": language})
    answer = pages.form_page(request, found, sheet, {})
    assert isinstance(answer.body, bytes)
    sizes = {"page": len(answer.body)}
    for url in re.findall(r'(?:src|href)="(/static/[^"]+)"', answer.body.decode()):
        name = url.removeprefix("/static/").partition("?")[0]
        sizes[name] = len(site.static.body(name))
    return sizes


def run() -> list[Row]:
    """Return the weight of the heaviest page."""
    worst = max(sum(page_bytes(language).values()) for language in LANGUAGES)
    return [
        Row(
            name="survey.page_bytes",
            value=worst,
            unit="bytes",
            limit=LIMIT,
            limit_name="what is promised, before gzip",
            ratio=worst / LIMIT,
        )
    ]


if __name__ == "__main__":
    for language in LANGUAGES:
        print(language, page_bytes(language))
    print(run())
