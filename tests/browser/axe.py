"""Ask axe whether a page can be used by everyone."""

import json
from typing import cast

import pytest
from playwright.sync_api import Page

from ops.assets.fetch import DEFAULT_FOLDER

in_each_look = pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "dark"),
        (1280, "light"),
        pytest.param(360, "light", marks=pytest.mark.long),
        pytest.param(1280, "dark", marks=pytest.mark.long),
    ],
)
"""A test of a page on a phone and on a desk, light and dark; two of the four are soaked."""
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")


def violations(page: Page) -> list[str]:
    """Return each violation with the elements concerned."""
    page.evaluate((DEFAULT_FOLDER / "axe.js").read_text())
    # of what is in order it need say nothing: that takes a fifth of the time
    asked = {"runOnly": {"type": "tag", "values": list(TAGS)}, "resultTypes": ["violations"]}
    options = json.dumps(asked)
    found = cast(
        list[dict[str, object]],
        page.evaluate(f"axe.run(document, {options}).then((result) => result.violations)"),
    )
    return [
        f"{violation['id']}: {violation['help']}: "
        + "; ".join(
            str(node["html"])[:160] for node in cast(list[dict[str, str]], violation["nodes"])
        )
        for violation in found
    ]


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )
