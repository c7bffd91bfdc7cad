"""A site's visits are those of its perimeter, whoever asks, and a spot's are its own."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from server.db.engine import reading
from server.insight.weeks import Metric, WeekQuery, weeks_of
from server.portal import numbers, quality_numbers
from tests.integration.api_world import World, utc
from tests.integration.metrics_world import ZONE, hour, mall, quarters_of, rows, sell, store
from tests.integration.opinions_world import derive, press

pytestmark = pytest.mark.services

DAY = date(2026, 3, 4)
SPAN = "from=2026-03-04&to=2026-03-05"
VISITS = 1 + 100 + 10**5  # outer, side, and the porch behind a door without a counter
NOW = datetime(2026, 3, 5, 12, 0, tzinfo=ZONE)
NOW_S = int(NOW.timestamp())


async def test_every_answer_about_a_site_counts_at_its_perimeter(world: World) -> None:
    own, site, spots = await mall(world)
    kiosk = await world.spot(own, site, "kiosk", kind="kiosk")
    for number, spot in enumerate(spots.values()):
        await hour(world, spot, DAY, 10**number, 0, 0, 0, left=number)
        await store(world, spot, quarters_of(DAY, *[0] * 40, at=0))
        await store(world, spot, quarters_of(DAY, *[0] * 52, at=11))
    await sell(world, own, site, DAY, 10.0, 10.0)
    await press(world, kiosk, utc("2026-03-04T09:20"), [(0, 0)])
    await derive(world)
    exits = 4 * (0 + 2 + 5)

    for bucket in ("day", "hour", "15m"):
        answer = await world.get(f"/counts?{SPAN}&bucket={bucket}&scope=open")
        told = [row for row in answer["data"] if row["visits"] is not None]
        assert sum(row["visits"] for row in told) == VISITS, bucket
        assert sum(row["exits"] for row in told) == exits, bucket
        assert {row["coverage"] for row in told} == {1.0}, bucket
    week = await world.get("/counts?from=2026-03-02&to=2026-03-09&bucket=week")
    assert [row["visits"] for row in week["data"]] == [VISITS]
    alone = await world.get(f"/counts?{SPAN}&by=spot")
    assert {row["spot"]: row["visits"] for row in alone["data"]} == {
        name: 10**number for number, name in enumerate(spots)
    }
    named = await world.get(f"/counts?{SPAN}&spot=inner&spot=mall")
    assert [(row["site"], row["visits"]) for row in named["data"]] == [("shop", 10 + 10**3)]

    metrics = await rows(world, metrics=["visits", "conversion"], from_="2026-03-04",
                         to="2026-03-05")  # fmt: skip
    assert [row["value"] for row in metrics] == [VISITS, pytest.approx(2 / VISITS, abs=1e-6)]
    conversion = await world.get(f"/conversion?{SPAN}")
    assert [row["visits"] for row in conversion["data"]] == [VISITS]
    inside = await world.get(f"/occupancy?{SPAN}")
    assert {row["raw"] for row in inside["data"] if row["local"][11:16] == "11:00"} == {
        VISITS - exits
    }
    responses = await world.get(f"/response-rate?{SPAN}&bucket=day")
    assert [(row["responses"], row["exits"]) for row in responses["data"]] == [(1, exits)]

    async with reading(world.api, "test", organisation=own) as connection:
        asked = WeekQuery(frozenset({Metric.VISITS}), date(2026, 3, 2), date(2026, 3, 9))
        weeks = await weeks_of(connection, asked, now_s=NOW_S)
        page = await numbers.site_page(connection, "shop", day=DAY, now=NOW)
        [month] = await quality_numbers.month_of(
            connection, ["shop"], month=date(2026, 3, 1), now=NOW
        )
    assert weeks["shop"][0].visits == VISITS
    assert page.site.visits == VISITS
    assert {spot.ref: spot.visits for spot in page.spots if not spot.kiosk} == {
        name: 10**number for number, name in enumerate(spots)
    }
    assert [day.visits for day in month.days if day.day == DAY] == [VISITS]


async def test_what_a_site_missed_is_estimated_of_its_perimeter_alone(world: World) -> None:
    """A passage without a counter for a day is no visits, and the doors' estimate is not of it."""
    _, _, spots = await mall(world)
    for offset in range(8 * 7 + 1):
        day = date(2026, 1, 7) + timedelta(days=offset)
        for name, people in (("outer", 20), ("inner", 900), ("side", 10), ("mall", 500)):
            silent = day == DAY and name in ("outer", "mall")
            counted = quarters_of(day, *[people + offset % 3] * (2 if silent else 4))
            await store(world, spots[name], counted)
    for name in ("zone", "porch", "deep"):
        await world.owner.execute("delete from assignments where spot_id = $1", spots[name])
    await world.derive()
    answer = await world.get(f"/estimates?{SPAN}&bucket=day&scope=open")
    [found] = answer["data"]
    assert found["visits"] == 2 * 22 + 4 * 12
    assert 120 < found["estimate"] < 150
    assert found["low95"] < found["estimate"] < found["high95"]
    by_spot = await world.get(f"/estimates?{SPAN}&bucket=day&scope=open&by=spot")
    assert {row["spot"] for row in by_spot["data"]} == {"outer", "mall"}
    [visits] = await rows(world, metrics=["visits"], from_="2026-03-04", to="2026-03-05",
                          scope="open", estimates=True)  # fmt: skip
    assert (visits["value"], visits["estimated"]) == (2 * 22 + 4 * 12, found["estimate"])


async def test_the_perimeter_is_that_of_the_range_on_every_page(world: World) -> None:
    own = await world.organisation("own")
    for name, zone in (("here", "Europe/Stockholm"), ("there", "Pacific/Auckland")):
        site = await world.site(own, name, zone=zone)
        spots = [await world.spot(own, site, f"{name}-{ref}") for ref in ("door", "late")]
        for spot in spots:
            for day in range(1, 5):
                noon = datetime(2026, 3, day, 12, tzinfo=ZoneInfo(zone))
                await store(world, spot, [(noon.astimezone(UTC), 5, 1)])
        for purpose, low, high in (
            ("entrance", None, "2026-03-03T12:00"),
            ("passage", "2026-03-03T12:00", None),
        ):
            await world.owner.execute(
                "insert into mountings (organisation_id, spot_id, purpose, valid) "
                "values ($1, $2, $3, tstzrange($4, $5))",
                *(own, spots[1], purpose, low and utc(low), high and utc(high)),
            )
    await world.derive()
    whole = (await world.get("/counts?from=2026-03-01&to=2026-03-05"))["data"]
    assert [row["visits"] for row in whole] == [5] * 8
    path = "/counts?from=2026-03-01&to=2026-03-05&limit=3"
    page = await world.get(path)
    paged = list(page["data"])
    while page["next"]:
        page = await world.get(f"{path}&cursor={page['next']}")
        paged += page["data"]
    assert paged == whole
    early = (await world.get("/counts?from=2026-03-01&to=2026-03-03"))["data"]
    assert [row["visits"] for row in early] == [10] * 4


async def test_without_a_word_about_doors_all_counters_of_a_site_count(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop")
    for number in range(3):
        await hour(world, await world.spot(own, site, f"spot-{number}"), DAY, 10**number)
    await world.derive()
    [row] = (await world.get(f"/counts?{SPAN}"))["data"]
    assert row["visits"] == 111
    assert (await world.get(f"/occupancy?{SPAN}"))["data"]
