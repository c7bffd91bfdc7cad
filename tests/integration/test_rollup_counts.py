"""Counts through the database and the API: conserved, calibrated, revised, never invented."""

from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from server.db.engine import reading, reading_beside
from tests.integration.api_world import World, utc

pytestmark = pytest.mark.services

SIZES = ("1m", "15m", "hour", "day", "week", "month")


async def one_spot(world: World, *, zone: str = "Europe/Stockholm", **site: Any) -> int:
    organisation = await world.organisation("own")
    return await world.spot(
        organisation, await world.site(organisation, "site", zone=zone, **site), "spot"
    )


def total(answer: Any, field: str = "visits") -> float:
    return sum(row[field] or 0 for row in answer["data"])


@pytest.mark.parametrize("derived", [False, True])
async def test_counts_are_the_same_at_every_size_and_before_deriving(
    world: World, derived: bool
) -> None:
    spot = await one_spot(world)
    # Stockholm's clock goes forward on 29 March 2026 at 02:00.
    for offset in range(0, 48 * 60, 60):
        start = utc("2026-03-28T00:00") + timedelta(minutes=offset)
        await world.minutes(spot, start, [(n % 3, n % 2) for n in range(offset, offset + 60)])
    if derived:
        await world.derive()
    expected = sum(n % 3 for n in range(48 * 60))
    for size in SIZES:
        answer = await world.get(f"/counts?from=2026-03-27&to=2026-03-31&bucket={size}")
        assert total(answer) == expected, size
        assert total(answer, "exits") == 24 * 60, size


@pytest.mark.parametrize("zone", ["Europe/London", "Australia/Lord_Howe", "Asia/Kathmandu"])
async def test_days_are_the_sites_own(world: World, zone: str) -> None:
    spot = await one_spot(world, zone=zone)
    start = utc("2026-03-28T00:00")
    for offset in range(48 * 4):
        await world.quarter(spot, start + timedelta(minutes=15 * offset), offset)
    await world.derive()
    days = await world.get("/counts?from=2026-03-27&to=2026-03-31&bucket=day")
    quarters = await world.get("/counts?from=2026-03-27&to=2026-03-31&bucket=15m")
    hours = await world.get("/counts?from=2026-03-27&to=2026-03-31&bucket=hour")
    assert total(days) == sum(range(48 * 4))
    for day in days["data"]:
        within = [q for q in quarters["data"] if day["from"] <= q["from"] < day["until"]]
        assert sum(q["visits"] or 0 for q in within) == (day["visits"] or 0)
        within = [h for h in hours["data"] if day["from"] <= h["from"] < day["until"]]
        assert sum(h["visits"] or 0 for h in within) == (day["visits"] or 0)
        assert all(h["local"].startswith(day["local"]) for h in within)


async def test_missing_is_null_and_an_observed_empty_shop_is_0(world: World) -> None:
    spot = await one_spot(world)
    await world.quarter(spot, utc("2026-03-03T10:00"), 0)
    await world.quarter(spot, utc("2026-03-04T10:00"), 7, slots=0)
    answer = await world.get("/counts?from=2026-03-03&to=2026-03-06")
    assert [row["visits"] for row in answer["data"]] == [0, 7, None]
    assert [row["exits"] for row in answer["data"]] == [0, 0, None]
    assert [row["coverage"] for row in answer["data"]] == [round(900 / 86_400, 4), 0.0, 0.0]
    assert [row["origin"] for row in answer["data"]] == ["device", "device", None]


async def test_coverage_is_of_the_time_a_device_was_assigned(world: World) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(600, 1200))
    spot = await world.spot(organisation, site, "spot", assigned=utc("2026-03-03T11:00"))
    for quarter in range(20):  # 12:00 to 17:00 in Stockholm
        await world.quarter(spot, utc("2026-03-03T11:00") + timedelta(minutes=15 * quarter), 1)
    await world.derive()
    for scope, seconds in (("all", 12 * 3600), ("open", 8 * 3600)):
        answer = await world.get(f"/counts?from=2026-03-02&to=2026-03-04&scope={scope}")
        before, day = answer["data"]
        assert (before["coverage"], before["visits"]) == (None, None)
        assert day["coverage"] == round(20 * 900 / seconds, 4)


@pytest.mark.parametrize("derived", [False, True])
async def test_opening_hours_alone(world: World, derived: bool) -> None:
    spot = await one_spot(world, hours=(9 * 60 + 30, 18 * 60))
    for hour in range(24):
        for minute in (0, 30):
            await world.quarter(spot, utc(f"2026-03-03T{hour:02}:{minute:02}"), 1, 1)
    if derived:
        await world.derive()
    expected = 17  # 09:30 to 17:30 local, each half hour
    for size in SIZES[1:]:
        opened = await world.get(f"/counts?from=2026-03-02&to=2026-03-06&bucket={size}&scope=open")
        assert total(opened) == expected, size
    hours = await world.get("/counts?from=2026-03-03&to=2026-03-04&bucket=hour&scope=open")
    by_hour = {row["local"][11:13]: row for row in hours["data"]}
    assert (by_hour["09"]["visits"], by_hour["09"]["hours"]) == (1, "mixed")
    assert (by_hour["08"]["visits"], by_hour["08"]["coverage"]) == (None, None)
    assert by_hour["08"]["hours"] == "closed"


async def test_changed_opening_hours_change_the_past_at_once_and_when_derived(
    world: World,
) -> None:
    spot = await one_spot(world, hours=(600, 1200))
    for hour in range(24):
        await world.quarter(spot, utc(f"2026-03-03T{hour:02}:00"), 1)
    await world.derive()
    path = "/counts?from=2026-03-03&to=2026-03-04&scope=open"
    assert total(await world.get(path)) == 10
    await world.owner.execute("update opening_hours set closes = 720")
    assert total(await world.get(path)) == 2
    await world.derive()
    assert total(await world.get(path)) == 2
    assert await world.owner.fetchval("select open_in0 from rollup_day where in0 = 23") == 2


async def test_late_data_changes_a_day_and_raises_its_revision(world: World) -> None:
    spot = await one_spot(world)
    await world.quarter(spot, utc("2026-03-03T10:00"), 5)
    await world.derive()
    path = "/counts?from=2026-03-03&to=2026-03-04"
    before = (await world.get(path))["data"][0]
    await world.quarter(spot, utc("2026-03-03T10:00"), 2, revision=1)
    late = (await world.get(path))["data"][0]
    await world.derive()
    after = (await world.get(path))["data"][0]
    assert (before["visits"], late["visits"], after["visits"]) == (5, 7, 7)
    assert (before["revision"], late["revision"], after["revision"]) == (0, 1, 1)


async def test_states_are_open_complete_and_final(world: World) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site")
    await world.spot(organisation, site, "spot", stored_to=utc("2026-03-31T22:30"))
    answer = await world.get("/counts?from=2026-03-01&to=2026-04-04")
    states = {row["local"]: row["state"] for row in answer["data"]}
    assert states["2026-03-02"] == "final"
    assert states["2026-03-31"] == "complete"
    assert states["2026-04-01"] == "open"  # the device has not told of its end
    assert states["2026-04-03"] == "open"


async def test_a_reversed_door_counts_in_as_out(world: World) -> None:
    spot = await one_spot(world)
    await world.minutes(spot, utc("2026-03-03T10:00"), [(3, 1)] * 60, line=0)
    await world.minutes(spot, utc("2026-03-03T12:00"), [(2, 5)] * 60, line=1)
    key = await world.owner.fetchval(
        "insert into calibrations (organisation_id, spot_id, line, reversed) "
        "select organisation_id, id, 1, true from spots returning id"
    )
    for derived in (False, True):
        for size in SIZES:
            answer = await world.get(f"/counts?from=2026-03-03&to=2026-03-04&bucket={size}")
            assert (total(answer), total(answer, "exits")) == (180 + 300, 60 + 120), size
            assert answer["data"][0]["calibrations"] == [key]
        if not derived:
            await world.derive()


async def test_a_calibration_that_changes_within_a_day(world: World) -> None:
    spot = await one_spot(world)
    await world.minutes(spot, utc("2026-03-03T10:00"), [(10, 0)] * 180)
    await world.derive()
    await world.owner.execute(
        "insert into calibrations (organisation_id, spot_id, line, valid, factor) "
        "select organisation_id, id, 0, tstzrange('2026-03-03T11:30Z', '2026-03-03T12:00Z'), 1.025 "
        "from spots"
    )
    expected = 10 * 150 + 10 * 30 * 1.025
    for size in SIZES:
        answer = await world.get(f"/counts?from=2026-03-03&to=2026-03-04&bucket={size}")
        assert total(answer) == pytest.approx(expected, abs=1e-9), size
        assert sum(bool(row["calibrations"]) for row in answer["data"]) == {
            "1m": 30, "15m": 2, "hour": 1,
        }.get(size, 1)  # fmt: skip


async def test_people_of_a_gap_stand_beside_the_days_that_hold_it(world: World) -> None:
    spot = await one_spot(world)
    await world.owner.execute(
        "insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, "
        "until_at, reason, counts) "
        "select organisation_id, device_id, $1, spot_id, 1, 2, f, u, 'thinned', "
        "array[n, 1, 0, 0, 0, 0, 0, 0] from assignments, (values "
        "('2026-03-03T10:00Z'::timestamptz, '2026-03-03T12:00Z'::timestamptz, 5), "
        "('2026-03-04T10:00Z', '2026-03-05T12:00Z', 40)) v (f, u, n) where spot_id = $1",
        spot,
    )
    answer = await world.get("/counts?from=2026-03-02&to=2026-03-09")
    by_day = {row["local"]: row for row in answer["data"]}
    assert (by_day["2026-03-03"]["unplaced_visits"], by_day["2026-03-03"]["visits"]) == (5, None)
    assert by_day["2026-03-04"]["unplaced_visits"] == 0
    assert [each["visits"] for each in answer["unplaced"]] == [40]
    week = await world.get("/counts?from=2026-03-02&to=2026-03-09&bucket=week")
    assert (week["data"][0]["unplaced_visits"], week["unplaced"]) == (45, [])
    hours = await world.get("/counts?from=2026-03-03&to=2026-03-04&bucket=hour")
    assert total(hours, "unplaced_visits") == 0
    assert [each["visits"] for each in hours["unplaced"]] == [5]


async def test_a_question_finer_than_the_readings_is_refused(world: World) -> None:
    spot = await one_spot(world)
    await world.minutes(spot, utc("2026-03-03T10:00"), [(30, 20)] * 4, interval_s=3600)
    for size in ("1m", "15m"):
        status, problem = await world.ask(f"/counts?from=2026-03-03&to=2026-03-04&bucket={size}")
        assert (status, problem["code"]) == (422, "finer_than_readings")
        assert "3600 s" in problem["detail"]
    answer = await world.get("/counts?from=2026-03-03&to=2026-03-04&bucket=hour")
    assert total(answer) == 120
    # On another day there are no such readings.
    assert total(await world.get("/counts?from=2026-03-05&to=2026-03-06&bucket=15m")) == 0


async def test_an_hourly_reading_that_reaches_into_opening_hours_counts_as_open(
    world: World,
) -> None:
    spot = await one_spot(world, hours=(10 * 60 + 30, 12 * 60))  # 09:30 to 11:00 UTC
    await world.minutes(spot, utc("2026-03-03T08:00"), [(1, 0), (10, 0), (100, 0), (1000, 0)],
                        interval_s=3600)  # fmt: skip
    path = "/counts?from=2026-03-03&to=2026-03-04&scope=open"
    assert total(await world.get(path)) == 110
    assert total(await world.get(path + "&bucket=hour")) == 110
    await world.derive()
    answer = await world.get(path)
    assert (total(answer), answer["data"][0]["coverage"]) == (110, 1.0)
    assert total(await world.get(path + "&bucket=hour")) == 110


async def test_a_site_adds_its_spots_and_spots_stand_alone(world: World) -> None:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site")
    for name, count in (("east", 3), ("west", 4)):
        spot = await world.spot(organisation, site, name)
        await world.quarter(spot, utc("2026-03-03T10:00"), count)
    path = "/counts?from=2026-03-03&to=2026-03-04"
    assert [row["visits"] for row in (await world.get(path))["data"]] == [7]
    by_spot = (await world.get(path + "&by=spot"))["data"]
    assert [(row["spot"], row["visits"]) for row in by_spot] == [("east", 3), ("west", 4)]
    assert [row["visits"] for row in (await world.get(path + "&spot=west"))["data"]] == [4]


async def test_pages_put_together_are_the_whole(world: World) -> None:
    organisation = await world.organisation("own")
    for name in ("a", "b", "c"):
        site = await world.site(organisation, name)
        spot = await world.spot(organisation, site, f"spot-{name}")
        await world.quarter(spot, utc("2026-03-03T10:00"), 1)
    for size in ("day", "hour", "week"):
        path = f"/counts?from=2026-03-01&to=2026-03-08&bucket={size}"
        whole = (await world.get(path))["data"]
        for limit in (1, 5, 7, 100, 5_000):
            rows: list[Any] = []
            cursor = ""
            while True:
                page = await world.get(f"{path}&limit={limit}{cursor}")
                rows += page["data"]
                assert len(page["data"]) <= limit
                if page["next"] is None:
                    break
                cursor = f"&cursor={page['next']}"
            assert rows == whole, (size, limit)
            if size == "hour":
                break


async def test_rows_made_in_parts_are_those_made_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = await _five_sites(world)
    whole = [await world.get(path) for path in paths]
    assert [total(answer) for answer in whole] == [10] * len(paths)
    monkeypatch.setattr("server.rollup.query._PART", 2)
    assert [await world.get(path) for path in paths] == whole
    monkeypatch.setattr("server.rollup.query._FEW", 2)  # on two connections, from here on
    assert [await world.get(path) for path in paths] == whole
    async with AsyncExitStack() as exits:
        for _ in range(world.api.get_max_size() - 1):
            await exits.enter_async_context(world.api.acquire())
        assert [await world.get(path) for path in paths] == whole


async def test_a_question_that_is_refused_in_parts_leaves_no_connection_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = (await _five_sites(world))[0]
    monkeypatch.setattr("server.rollup.query._PART", 1)
    monkeypatch.setattr("server.rollup.query._FEW", 2)
    whole = await world.get(path)
    await world.owner.execute("update rollup_15m set resolution_s = 3600")
    for _ in range(2 * world.api.get_max_size()):
        status, refused = await world.ask(path)
        assert (status, refused["code"]) == (422, "finer_than_readings")
    await world.owner.execute("update rollup_15m set resolution_s = 60")
    assert await world.get(path) == whole


async def test_a_connection_beside_sees_what_the_first_sees_and_is_never_waited_for(
    world: World,
) -> None:
    own = await world.organisation("own")
    await world.site(await world.organisation("foreign"), "foreign")
    sites = "select array_agg(ref) from sites"
    async with reading(world.api, "test", organisation=own) as first:
        assert await first.fetchval(sites) is None
        await world.site(own, "late")
        async with reading_beside(world.api, first, organisation=own) as other:
            assert other is not None
            assert await other.fetchval(sites) is None
        async with AsyncExitStack() as exits:
            for _ in range(world.api.get_max_size() - 2):
                await exits.enter_async_context(world.api.acquire())
            async with reading_beside(world.api, first, organisation=own) as other:
                assert other is None
    async with (
        reading(world.api, "test", organisation=own) as first,
        reading_beside(world.api, first, organisation=own) as other,
    ):
        assert other is not None
        assert await other.fetchval(sites) == ["late"]


async def _five_sites(world: World) -> list[str]:
    organisation = await world.organisation("own")
    for number, name in enumerate("abcde"):
        site = await world.site(organisation, name)
        spot = await world.spot(organisation, site, f"spot-{name}")
        await world.quarter(spot, utc("2026-03-03T10:00"), number)
        if number % 2:
            await world.derive()
    return [f"/counts?from=2026-03-01&to=2026-03-08&bucket={size}" for size in SIZES[1:]]
