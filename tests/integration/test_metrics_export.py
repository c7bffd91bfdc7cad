"""Answers about KPIs as tables: page after page, and of more rows than are written at once."""

import csv
import io
from typing import Any

import pytest

from server.api.answers import NEXT_CURSOR
from tests.integration.api_world import World
from tests.integration.metrics_world import chain, post, rows

pytestmark = pytest.mark.services


async def test_tables_followed_by_their_cursor_are_the_whole(world: World) -> None:
    await chain(world)
    asked: dict[str, Any] = {
        "metrics": ["visits", "conversion"], "from_": "2025-03-02", "to": "2026-03-12",
    }  # fmt: skip
    whole = await rows(world, **asked, bucket="day")
    assert len(whole) > 500, "so many are written aside from the event loop"
    found: list[dict[str, str]] = []
    more: dict[str, Any] = {}
    for _ in range(50):
        status, text, headers = await post(world, **asked, limit=200, format="csv", **more)
        assert status == 200, text
        found += csv.DictReader(io.StringIO(text))
        if NEXT_CURSOR not in headers:
            break
        more = {"cursor": headers[NEXT_CURSOR]}
    assert [(row["site"], row["from"], row["metric"]) for row in found] == [
        (row["site"], row["from"], row["metric"]) for row in whole
    ]
    assert [row["value"] for row in found] == [
        "" if row["value"] is None else str(row["value"]) for row in whole
    ]
    _, text, headers = await post(world, **asked, format="csv")
    assert NEXT_CURSOR not in headers
    assert list(csv.DictReader(io.StringIO(text))) == found
