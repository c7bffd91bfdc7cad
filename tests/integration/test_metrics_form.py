"""The form of the API's answers about KPIs: pages, columns, refusals, and whose sites they are."""

import csv
import io
import json
import re
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from server.insight import recounts
from server.insight.definitions import REGISTRY
from tests.integration.api_world import World, utc
from tests.integration.metrics_world import chain, post, query, rows, sell, stay

pytestmark = pytest.mark.services


async def test_pages_put_together_are_the_whole(world: World) -> None:
    await chain(world)
    asked: dict[str, Any] = {"metrics": ["visits", "conversion"], "from_": "2026-03-02"}
    for by, limit in product(("site", "region", "organisation"), (7, 20, 33)):
        asked |= {"to": "2026-03-12", "by": by}
        whole = await rows(world, **asked)
        found: list[Any] = []
        cursor: dict[str, Any] = {}
        for _ in range(200):
            _, page = await query(world, **asked, limit=limit, **cursor)
            assert len(page["data"]) <= limit
            found += page["data"]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert found == whole, (by, limit)
    status, body = await query(world, **{**asked, "metrics": ["exits"]}, cursor="abcd")
    assert (status, body["code"]) == (400, "bad_cursor")


async def test_an_hours_numbers_do_not_depend_on_where_a_page_is_cut(world: World) -> None:
    """What people stay, the perimeter and the counters' error are those of the whole question."""
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=(600, 780))
    spot = await world.spot(own, site, "door")
    late = await world.spot(own, site, "late", assigned=utc("2026-03-05T12:00"))
    for number, quarters in ((3, 1), (4, 6), (5, 6)):
        await stay(world, spot, date(2026, 3, number), quarters)
        await stay(world, late, date(2026, 3, number), quarters)
        await sell(world, own, site, date(2026, 3, number), *[10.0] * 5, at=11)
    await world.owner.execute(
        "insert into mountings (organisation_id, spot_id, purpose, valid) values "
        "($1, $2, 'entrance', tstzrange(null, $3)), ($1, $2, 'passage', tstzrange($3, null))",
        *(own, late, utc("2026-03-05T11:30")),
    )
    async with world.owner.transaction():
        await recounts.add(
            world.owner, own, "door", method="video", counted_by="Ada",
            blocks=[recounts.Counted(utc("2026-03-05T09:00"), 100, 90)],
            actor="user ada", now=utc("2026-03-06T09:00"),
        )  # fmt: skip
    await world.derive()
    asked: dict[str, Any] = {
        "metrics": ["visits", "conversion", "occupancy"], "from_": "2026-03-04", "to": "2026-03-06",
        "bucket": "hour", "compare": "last_year",
    }  # fmt: skip
    whole = await rows(world, **asked)
    assert len(whole) == 3 * 48
    by_hour = {row["local"][:16]: row["value"] for row in whole if row["metric"] == "visits.v1"}
    assert by_hour["2026-03-04T10:00"] == 80  # of the door alone, the other is a passage by now
    for limit in (33, 70):
        found: list[Any] = []
        cursor: dict[str, Any] = {}
        while True:
            _, page = await query(world, **asked, limit=limit, **cursor)
            found += page["data"]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert found == whole, limit


async def test_an_answer_has_an_etag_and_is_csv_of_the_same_columns(world: World) -> None:
    await chain(world)
    asked: dict[str, Any] = {
        "metrics": ["visits", "atv"],
        "from_": "2026-03-02",
        "to": "2026-03-04",
    }
    status, body, headers = await post(world, **asked)
    assert "Link" not in headers
    again, *_ = await post(world, **asked, headers={"If-None-Match": headers["ETag"]})
    assert (status, again) == (200, 304)
    status, text, _ = await post(world, **asked, headers={"Accept": "text/csv"})
    table = list(csv.DictReader(io.StringIO(text)))
    assert status == 200
    assert list(table[0]) == list(body["data"][0])
    assert [row["value"] for row in table] == [
        "" if row["value"] is None else str(row["value"]) for row in body["data"]
    ]


REFUSED: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
    ({"metrics": ["happiness"]}, (422, "unknown_metric", "metrics")),
    ({"metrics": []}, (422, "bad_body", "metrics")),
    ({"metrics": ["visits"], "buckets": "day"}, (422, "unknown_field", "buckets")),
    ({"metrics": ["visits"], "bucket": "year"}, (422, "bad_body", "bucket")),
    ({"metrics": ["visits"], "to": "2026-03-01"}, (400, "bad_parameter", "to")),
    ({"metrics": ["visits"], "to": "2099-01-01"}, (422, "range_too_long", None)),
    ({"metrics": ["visits"], "sites": ["x\0"]}, (422, "bad_body", "sites")),
    ({"metrics": ["visits"], "sites": ["nowhere"]}, (404, "unknown_place", None)),
    ({"metrics": ["dwell"], "bucket": "hour"}, (422, "not_answerable", "metrics")),
    ({"metrics": ["visits", "atv"], "limit": 1}, (422, "not_answerable", "limit")),
    ({"metrics": ["peak_hour"], "to": "2027-03-02"}, (422, "not_answerable", "from")),
]


async def test_what_cannot_be_answered_is_refused_by_name(world: World) -> None:
    await world.organisation("own")
    for asked, wanted in REFUSED:
        status, body = await query(world, **{"from": "2026-03-02", "to": "2026-03-04", **asked})
        assert (status, body["code"], body.get("parameter")) == wanted, asked


async def test_another_organisations_sites_are_unknown(world: World) -> None:
    await chain(world)
    asked: dict[str, Any] = {"metrics": ["visits"], "from": "2026-03-02", "to": "2026-03-04"}
    status, body, _ = await post(world, organisation="other", **asked, sites=["shop-1"])
    assert (status, body["code"]) == (404, "unknown_place")
    for by in ("site", "region", "organisation"):
        _, body, _ = await post(world, organisation="other", **asked, by=by)
        assert body["data"] == []


async def test_every_definition_is_published(world: World) -> None:
    await world.organisation("own")
    found = await world.get("/definitions")
    assert [row["metric"] for row in found["data"]] == list(REGISTRY)
    every = [name for name, each in REGISTRY.items() if not each.alone and not each.days]
    for at in range(0, len(every), 20):
        assert (await query(world, metrics=every[at : at + 20], from_="2026-03-02",
                            to="2026-03-03"))[0] == 200  # fmt: skip


async def test_the_readmes_question_is_one_that_is_answered(world: World) -> None:
    await chain(world)
    text = (Path(__file__).parents[2] / "README.md").read_text()
    body = re.search(r"metrics:query.*?-d '(\{.*?\})' \\\n", text, re.S)
    assert body is not None
    days = iter(("2026-03-02", "2026-03-09"))
    asked = json.loads(re.sub(r"'\$\(date[^)]*\)'", lambda _: next(days), body[1]))
    found = await rows(world, **asked)
    assert len(found) == 7 * len(asked["metrics"])
    assert found[0]["value"] > 0
