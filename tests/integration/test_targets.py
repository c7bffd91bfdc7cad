"""Targets through the API: set once, changed without loss, isolated, and judged by the numbers."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from server.api.keys import create_api_key
from tests.integration.api_world import World
from tests.integration.metrics_world import TEN, ZONE, quarters_of, rows, sell, store
from tests.integration.people_world import People
from tests.integration.test_api_register import Api

pytestmark = pytest.mark.services
MARCH = {"from": "2026-03-01", "to": "2026-04-01"}


@pytest.fixture
async def api(people: People) -> Api:
    scopes = ("read", "targets:write")
    key = await create_api_key(people.owner, people.organisations["own"], scopes=scopes)
    return Api(people, key)


def visits(**more: object) -> dict[str, object]:
    return {"site": "own-site", "metric": "visits", "wanted": 5_000, **MARCH, **more}


async def test_a_target_is_set_changed_and_given_up(api: Api) -> None:
    status, made, etag = await api.ask("POST", "/targets", visits(note="spring"))
    assert (status, made["metric"], made["at_most"]) == (201, "visits.v1", False)
    path = f"/targets/{made['target']}"
    assert (await api.ask("GET", path))[1:] == (made, etag)
    status, found, second = await api.ask("PATCH", path, {"wanted": 6_000}, If_Match=etag)
    assert (status, found["wanted"], found["note"]) == (200, 6_000, "spring")
    status, problem, _ = await api.ask("PATCH", path, {"wanted": 1}, If_Match=etag)
    assert (status, problem["code"]) == (412, "changed_meanwhile")
    _, listed, _ = await api.ask("GET", "/targets?site=own-site")
    assert [(row["wanted"], row["track"]) for row in listed["data"]] == [(6_000, "cannot_be_said")]
    assert (await api.ask("DELETE", path))[0] == 200
    assert (await api.ask("GET", path))[0] == 404
    assert (await api.ask("PATCH", path, {"wanted": 1}, If_Match=second))[0] == 404
    acts = await api.people.owner.fetch("select act from audit where act like 'target %'")
    assert [row[0] for row in acts] == ["target set", "target changed", "target given up"]


REFUSED: list[tuple[dict[str, Any], tuple[int, str, str | None]]] = [
    ({"site": "other-site"}, (404, "not_found", None)),
    ({"metric": "happiness"}, (422, "unknown_metric", "metrics")),
    ({"metric": "peak_hour"}, (422, "bad_value", "metric")),
    ({"to": "2026-03-01"}, (422, "bad_value", "to")),
    ({"to": "2036-03-01"}, (422, "bad_value", "to")),
    ({"from": "soon"}, (422, "bad_body", "from")),
    ({"scope": "closed"}, (422, "bad_body", "scope")),
    ({"wanted": None}, (422, "bad_body", "wanted")),
    ({"wished": 5}, (422, "unknown_field", "wished")),
]


async def test_a_target_that_means_nothing_is_refused(api: Api) -> None:
    for body, wanted in REFUSED:
        status, problem, _ = await api.ask("POST", "/targets", visits(**body))
        assert (status, problem["code"], problem.get("parameter")) == wanted, body


async def test_a_second_target_of_the_same_is_refused_and_who_may_only_read_sets_none(
    api: Api,
) -> None:
    assert (await api.ask("POST", "/targets", visits()))[0] == 201
    status, problem, _ = await api.ask("POST", "/targets", visits(metric="visits.v1"))
    assert (status, problem["code"]) == (409, "conflict")
    assert (await api.ask("POST", "/targets", visits(scope="open")))[0] == 201
    key = await create_api_key(api.people.owner, api.people.organisations["own"])
    status, problem, _ = await Api(api.people, key).ask("POST", "/targets", visits())
    assert (status, problem["code"]) == (403, "missing_scope")


async def test_no_visits_are_invented_for_days_on_which_a_shop_is_closed(world: World) -> None:
    """Now is Thursday, the 2nd of April; the shop closes at weekends, at Easter, once before."""
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=TEN)
    await world.owner.execute("delete from opening_hours where weekday >= 5")
    shut = {date(2026, 3, 24), date(2026, 4, 3), date(2026, 4, 6)}
    await world.owner.executemany(
        "insert into opening_exceptions (organisation_id, site_id, day) values ($1, $2, $3)",
        [(own, site, day) for day in shut],
    )
    spot = await world.spot(own, site, "door")
    first, quarters = datetime(2026, 2, 23, tzinfo=ZONE).astimezone(UTC), []
    for number in range(38 * 96):
        start = first + number * timedelta(minutes=15)
        at = start.astimezone(ZONE)
        busy = at.hour == 10 and at.weekday() < 5 and at.date() not in shut
        quarters.append((start, 25 if busy else 0, 0))
    await store(world, spot, quarters)
    for day in (date(2026, 2, 23) + timedelta(days=offset) for offset in range(38)):
        if day.weekday() < 5 and day not in shut:
            await sell(world, own, site, day, *[10.0] * 20)
    await sell(world, own, site, date(2026, 3, 29), 50.0)  # on a Sunday, and real all the same
    await world.derive()
    for ref, metric, scope in (
        ("t1", "visits.v1", "open"),
        ("t2", "visits.v1", "all"),
        ("t3", "conversion.v1", "open"),
        ("t4", "net_sales.v1", "open"),
    ):
        await world.owner.execute(
            "insert into kpi_targets (organisation_id, site_id, ref, metric, from_day, until_day, "
            "wanted, at_most, scope) values ($1, $2, $3, $4, $5, $6, 1000, false, $7)",
            *(own, site, ref, metric, date(2026, 3, 23), date(2026, 4, 13), scope),
        )
    found = (await world.get("/targets"))["data"]
    tuesday = 500 / 6  # over all days, of which one was closed
    assert [row["reason"] for row in found] == [None] * 4
    assert [row["to_date"] for row in found] == [700, 700, 0.2, 1_450]
    assert [row["projected"] for row in found] == pytest.approx(
        [1_200, 1_100 + tuesday, 0.2, 2_450]
    )
    assert {row["days_left"] for row in found} == {5}  # the 2nd, and the 7th to the 10th
    assert [row["days_measured"] for row in found] == [7, 10, 7, 8]
    assert [row["days_done"] for row in found] == [7, 10, 7, 8]
    assert found[0]["usual"] == pytest.approx(100)


async def test_targets_are_judged_by_the_numbers_that_metrics_answers(world: World) -> None:
    """Now is the 2nd of April; a period runs from the 23rd of March to the 12th of April."""
    own = await world.organisation("own")
    await world.organisation("other")
    site = await world.site(own, "shop", hours=TEN)
    spot = await world.spot(own, site, "door")
    days = [date(2026, 2, 23) + timedelta(days=offset) for offset in range(38)]
    await store(world, spot, [q for day in days for q in quarters_of(day, 25, 25, 25, 25)])
    for day in days:
        await sell(world, own, site, day, *[10.0] * 20)
    await world.derive()
    for ref, metric, wanted, at_most, first, until in (
        ("t1", "visits.v1", 2_000, False, "2026-03-23", "2026-04-13"),
        ("t2", "visits.v1", 2_200, False, "2026-03-22", "2026-04-13"),
        ("t3", "conversion.v1", 0.2, False, "2026-03-23", "2026-04-13"),
        ("t4", "visits.v1", 700, False, "2026-03-23", "2026-03-30"),
        ("t5", "visits.v1", 700, True, "2026-05-01", "2026-05-08"),
        ("t6", "nps.v1", 10, False, "2026-03-23", "2026-04-13"),
    ):
        await world.owner.execute(
            "insert into kpi_targets (organisation_id, site_id, ref, metric, from_day, until_day, "
            "wanted, at_most, scope) values ($1, $2, $3, $4, $5, $6, $7, $8, 'open')",
            *(own, site, ref, metric, date.fromisoformat(first), date.fromisoformat(until)),
            *(wanted, at_most),
        )
    found = {row["target"]: row for row in (await world.get("/targets"))["data"]}
    assert {ref: (row["track"], row["projected"]) for ref, row in found.items()} == {
        "t1": ("on_track", pytest.approx(2_100)),
        "t2": ("on_track", pytest.approx(2_200)),
        "t3": ("on_track", pytest.approx(0.2)),
        "t4": ("on_track", 700),
        "t5": ("on_track", pytest.approx(700)),
        "t6": ("cannot_be_said", None),
    }
    assert (found["t1"]["to_date"], found["t1"]["days_left"]) == (1_000, 11)
    assert (found["t5"]["to_date"], found["t5"]["days_left"]) == (None, 7)
    [known] = await rows(
        world, metrics=["visits"], from_="2026-03-23", to="2026-04-02", bucket="total",
        scope="open",
    )  # fmt: skip
    assert known["value"] == found["t1"]["to_date"]
    pages: list[dict[str, Any]] = []
    cursor, following = "", None
    for _ in range(6):
        page = await world.get(f"/targets?limit=1{cursor}")
        pages, following = [*pages, *page["data"]], page["next"]
        cursor = f"&cursor={following}"
    assert following is None
    assert pages == list(found.values())
    assert (await world.get("/targets", organisation="other"))["data"] == []
