"""Responses: what the misuse filter leaves of raw presses, whatever came when."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from server.feedback import responses
from tests.integration.api_world import World, utc
from tests.integration.opinions_world import derive, press

pytestmark = pytest.mark.services

NOON = utc("2026-03-31T10:00")
HAMMERED = [(s + s % 3 * 0.3, 3) for s in range(40)]
STUCK = [(10.0 * n, 3) for n in range(30)]


async def kiosk(world: World, *, hours: tuple[int, int] | None = (540, 1200)) -> int:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=hours)
    return await world.spot(organisation, site, "kiosk", kind="kiosk")


async def table(world: World, name: str) -> list[tuple[object, ...]]:
    return sorted(tuple(map(str, row)) for row in await world.owner.fetch(f"select * from {name}"))


async def test_raw_and_filtered_are_served_beside_each_other_with_reasons_and_version(
    world: World,
) -> None:
    spot = await kiosk(world)
    await press(world, spot, NOON, [(20 * n, n % 2) for n in range(10)])
    await press(world, spot, NOON + timedelta(minutes=20), HAMMERED)
    await press(world, spot, NOON + timedelta(minutes=40), [(0, 0), (1, 1), (2, 2), (3, 3)])
    await press(world, spot, NOON + timedelta(hours=2), STUCK)
    await press(world, spot, utc("2026-03-31T03:00"), [(0, 3)])
    await derive(world)
    asked = "/feedback?from=2026-03-31&to=2026-04-01&bucket={}&basis={}"
    for bucket in ("day", "hour"):
        raw = (await world.get(asked.format(bucket, "raw")))["data"]
        kept = (await world.get(asked.format(bucket, "filtered")))["data"]
        assert {row["basis"] for row in raw} == {"raw"}
        assert {row["filter_version"] for row in raw} == {None}
        assert sum(row["n"] or 0 for row in raw) == 85
        assert sum(row["n"] or 0 for row in kept) == 11
        assert {row["filter_version"] for row in kept if row["n"] is not None} == {1}
        reasons = {
            reason: sum(row["excluded"][reason] for row in kept if row["excluded"])
            for reason in ("repeated", "children", "stuck", "closed")
        }
        assert reasons == {"repeated": 39, "children": 4, "stuck": 30, "closed": 1}
        assert not any(row["pending"] for row in kept)
    key = {"Authorization": f"Bearer {world.keys['own']}"}
    path = f"/v1{asked.format('day', 'filtered')}&format=csv"
    async with world.client.get(path, headers=key) as response:
        assert "repeated=39;children=4;stuck=30;closed=1" in await response.text()
    assert (await world.get(asked.format("day", "raw").replace("&basis=raw", "")))["data"] == (
        await world.get(asked.format("day", "raw"))
    )["data"]


async def test_the_response_rate_is_responses_over_exits_at_the_terminals_own_door(
    world: World,
) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(540, 1200))
    kiosk = await world.spot(organisation, site, "kiosk", kind="kiosk")
    near = await world.spot(organisation, site, "near")
    far = await world.spot(organisation, site, "far")
    await world.minutes(near, utc("2026-03-31T07:00"), [(0, 1)] * 180)  # three of eleven hours
    await world.minutes(far, utc("2026-03-31T07:00"), [(0, 9)] * 180)
    await press(world, kiosk, utc("2026-03-31T08:00"), [(30.0 * n, 0) for n in range(6)])
    await press(world, kiosk, utc("2026-03-31T09:00"), HAMMERED)
    await press(world, kiosk, utc("2026-03-31T14:00"), [(0, 3)])  # when nobody counted exits
    await derive(world)
    asked = "/response-rate?from=2026-03-31&to=2026-04-01&bucket={}&by=spot"
    answer = await world.get(asked.format("day"))
    (day,) = answer["data"]
    assert (day["responses"], day["presses"]) == (8, 47)
    assert (day["exits"], day["rate"]) == (1800, pytest.approx(7 / 1800, abs=1e-6))
    assert (day["hours"], day["hours_known"], day["hours_flagged"]) == (11, 3, 0)
    (index,) = answer["indices"]
    assert (index["n"], index["n_known"], index["strata"]) == (8, 7, 2)
    assert index["unweighted"] == pytest.approx(75)
    assert index["weighted"] == pytest.approx(50)  # two hours of 600 exits each, capped nowhere
    assert index["n_eff"] == pytest.approx(1200**2 / (6 * 100**2 + 600**2), abs=1e-3)
    assert index["unanswered"] == pytest.approx(1 / 3, abs=1e-4)
    await world.owner.execute(
        "with door as (insert into doors (organisation_id, site_id, ref, name) "
        "values ($1, $2, 'door', 'door') returning id) "
        "update spots set door_id = door.id from door where spots.id = any($3)",
        *(organisation, site, [kiosk, near]),
    )
    (day,) = (await world.get(asked.format("day")))["data"]
    assert (day["exits"], day["rate"]) == (180, pytest.approx(7 / 180, abs=1e-6))
    hours = (await world.get(asked.format("hour")))["data"]
    known = [(row["exits"], row["rate"]) for row in hours if row["hours"]]
    assert known[:3] == [(60, 0), (60, pytest.approx(0.1)), (60, pytest.approx(1 / 60, abs=1e-6))]
    assert set(known[3:]) == {(None, None)}
    await world.owner.execute("delete from rollup_15m where spot = $1", near)
    for hour in (7, 8, 9):
        await world.dirty(near, utc(f"2026-03-31T{hour:02}:00"))
    await world.derive()
    answer = await world.get(asked.format("day"))
    assert (answer["data"][0]["exits"], answer["data"][0]["rate"]) == (None, None)
    assert answer["indices"][0]["weighted"] is None
    assert answer["indices"][0]["unweighted"] == pytest.approx(75)


async def test_what_waits_to_be_filtered_is_said_to_wait(world: World) -> None:
    spot = await kiosk(world)
    await press(world, spot, NOON, [(0, 0)])
    asked = "/feedback?from=2026-03-30&to=2026-04-01&basis=filtered"
    for step in (world.derive, lambda: derive(world)):
        rows = (await world.get(asked))["data"]
        assert [row["pending"] for row in rows] == [False, True]
        await step()
    rows = (await world.get(asked))["data"]
    assert [(row["pending"], row["n"]) for row in rows] == [(False, None), (False, 1)]


async def test_any_order_of_arrival_ends_in_the_same(world: World) -> None:
    spot = await kiosk(world)
    rng = random.Random(3)
    batches = [
        (utc("2026-03-30T21:30") + timedelta(minutes=rng.randrange(300)), touches)
        for touches in (
            [(7.0 * n, 2) for n in range(33)],
            HAMMERED,
            [(0.0, 0), (3.0, 1), (40.0, 2)],
        )
        for _ in range(2)
    ]
    rng.shuffle(batches)
    for start, touches in batches:
        await press(world, spot, start, touches)
        await derive(world)
    found = await table(world, "responses_15m"), await table(world, "responses_day")
    assert all(found)
    await world.owner.execute("delete from responses_15m")
    await world.owner.execute("delete from responses_day")
    await responses.rebuild(
        world.maint, spot, utc("2026-03-29T00:00"), datetime(2026, 4, 2, tzinfo=UTC)
    )
    assert (await table(world, "responses_15m"), await table(world, "responses_day")) == found
    total = "select sum(kept + repeated + children + stuck + closed) from {}"
    for name in ("responses_15m", "responses_day"):
        assert await world.owner.fetchval(total.format(name)) == sum(len(t) for _, t in batches)


async def test_what_an_older_version_judged_is_judged_anew(world: World) -> None:
    spot = await kiosk(world)
    await press(world, spot, NOON, HAMMERED)
    await derive(world)
    found = await table(world, "responses_15m")
    await world.owner.execute("update responses_15m set filter_version = 0, kept = 99")
    assert await responses.renew(world.maint) == 1
    await derive(world)
    assert await table(world, "responses_15m") == found
    assert await responses.renew(world.maint) == 0


async def test_other_opening_hours_make_other_responses(world: World) -> None:
    spot = await kiosk(world)
    await press(world, spot, NOON, [(0, 0), (60, 1)])
    await derive(world)
    assert await world.owner.fetchval("select sum(kept) from responses_day") == 2
    await world.owner.execute("update opening_hours set opens = 900")
    await derive(world)
    assert await world.owner.fetchval("select sum(kept) from responses_day") == 0
    assert await world.owner.fetchval("select sum(closed) from responses_day") == 2
