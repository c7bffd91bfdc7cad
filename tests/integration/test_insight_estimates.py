"""Estimates through the database and the API, beside what was measured."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from tests.integration.api_world import World
from tests.integration.months_world import ZONE, Quarter, quarters_of, store

pytestmark = pytest.mark.services

FIRST, DAYS = date(2026, 1, 19), 74  # to the 2nd of April, the world's today
OUT = date(2026, 3, 31)  # a Tuesday
RATES = {"main": 24, "side": 6}
Fault = Callable[[str, datetime], bool]


async def shop(world: World, fault: Fault = lambda door, at: False) -> dict[str, int]:
    """Make a shop open 10 to 14 with two doors of steady people; what `fault` says is not there."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(600, 840))
    spots = {door: await world.spot(organisation, site, door) for door in RATES}
    await store(
        world,
        [
            Quarter(spots[door], at, rate + at.hour % 2 * rate // 2, rate)
            for at in quarters_of(FIRST, DAYS, hours=(10, 14))
            for door, rate in RATES.items()
            if not fault(door, at)
        ],
        changed=False,  # the site is new: all of it is derived
    )
    await world.derive()
    return spots


async def asked(world: World, **parameters: str) -> list[dict[str, Any]]:
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    span = "" if "from" in parameters else "&from=2026-03-30&to=2026-04-02"
    found: list[dict[str, Any]] = (await world.get(f"/estimates?{query}{span}"))["data"]
    return found


def lost(door: str | None, hours: tuple[int, int]) -> Fault:
    return lambda name, at: (
        at.date() == OUT and hours[0] <= at.hour < hours[1] and door in (None, name)
    )


async def test_what_was_measured_has_no_estimate(world: World) -> None:
    await shop(world)
    for bucket in ("15m", "hour", "day", "week", "month"):
        rows = await asked(world, bucket=bucket)
        assert [row for row in rows if row["method"] != "closed"] == []


async def test_closed_hours_are_none_and_said_to_be_closed(world: World) -> None:
    await shop(world)
    rows = await asked(world, bucket="hour", **{"from": "2026-03-31", "to": "2026-04-01"})
    assert len(rows) == 20
    assert {(row["estimate"], row["high95"], row["method"]) for row in rows} == {(0, 0, "closed")}
    assert await asked(world, bucket="hour", scope="all") == []


async def test_a_dead_door_is_estimated_from_the_others_beside_its_measurement(
    world: World,
) -> None:
    await shop(world, lost("main", (11, 13)))
    hours = [row for row in await asked(world, bucket="hour") if row["method"] != "closed"]
    assert [row["local"][11:13] for row in hours] == ["11", "12"]
    assert [row["visits"] for row in hours] == [4 * 9, 4 * 6]  # the side door's alone
    assert [row["estimate"] for row in hours] == [4 * 9 + 4 * 36, 4 * 6 + 4 * 24]
    assert {row["method"] for row in hours} == {"others"}
    for row in hours:
        assert row["low95"] <= row["low80"] <= row["estimate"] <= row["high80"] <= row["high95"]
        assert row["low95"] >= row["visits"]
        assert row["coverage"] == pytest.approx(0.2)  # by traffic: it is the main door
        assert row["estimated_share"] == pytest.approx(0.8)
    [day] = await asked(world, bucket="day")
    whole = 4 * (36 + 9) * 2 + 4 * (24 + 6) * 2
    assert day["estimate"] == pytest.approx(whole)
    assert day["visits"] == whole - 4 * (36 + 24)
    assert day["coverage"] == pytest.approx(1 - 4 * (36 + 24) / whole, abs=0.001)


async def test_all_doors_dead_are_estimated_from_the_weeks_before(world: World) -> None:
    await shop(world, lost(None, (11, 12)))
    [row] = [row for row in await asked(world, bucket="hour") if row["method"] != "closed"]
    assert (row["visits"], row["estimate"], row["method"]) == (None, 4 * 45, "profile")
    assert (row["estimated_share"], row["coverage"], row["model"]) == (1, 0, "1")


async def test_a_spot_has_estimates_of_its_own(world: World) -> None:
    await shop(world, lost("side", (11, 12)))
    rows = await asked(world, bucket="hour", by="spot")
    [row] = [row for row in rows if row["method"] != "closed"]
    assert (row["spot"], row["visits"], row["estimate"]) == ("side", None, 36)


async def test_a_site_of_which_some_spots_are_asked_for_is_estimated_of_those(
    world: World,
) -> None:
    await shop(world, lost("side", (11, 12)))
    rows = await asked(world, bucket="hour", by="site", spot="main")
    assert [row for row in rows if row["method"] != "closed"] == []
    rows = await asked(world, bucket="hour", by="site", spot="side")
    [row] = [row for row in rows if row["method"] != "closed"]
    assert (row["site"], row["spot"], row["visits"], row["estimate"]) == ("site", None, None, 36)


async def test_half_an_hour_lost_is_half_an_hour_imputed(world: World) -> None:
    await shop(
        world,
        lambda door, at: at.date() == OUT and at.hour == 11 and at.minute < 30,
    )
    [row] = [row for row in await asked(world, bucket="hour") if row["method"] != "closed"]
    assert (row["visits"], row["estimate"]) == (2 * 45, 4 * 45)
    quarters = [row for row in await asked(world, bucket="15m") if row["method"] != "closed"]
    assert [(row["visits"], row["estimate"]) for row in quarters] == [(None, 45)] * 2


async def test_what_was_counted_without_its_minutes_is_spread_and_never_counted_twice(
    world: World,
) -> None:
    spots = await shop(world, lost("main", (11, 13)))
    low = datetime(2026, 3, 31, 11, tzinfo=ZONE)
    await world.owner.execute(
        "insert into gaps (organisation_id, device_id, boot, spot_id, from_seq, to_seq, from_at, "
        "until_at, reason, counts) select organisation_id, device_id, spot_id, spot_id, 1, 2, $2, "
        "$3, 'thinned', '{300,7,0,0,0,0,0,0}' from assignments where spot_id = $1",
        *(spots["main"], low, low + timedelta(hours=2)),
    )
    hours = [row for row in await asked(world, bucket="hour") if row["method"] != "closed"]
    assert [row["method"] for row in hours] == ["known", "known"]
    assert [row["estimate"] for row in hours] == [36 + 180, 24 + 120]
    [day] = await asked(world, bucket="day")
    assert day["estimate"] == day["low95"] == day["high95"] == day["visits"] + 300


async def test_nothing_is_estimated_after_seven_dead_days(world: World) -> None:
    await shop(world, lambda door, at: at.date() > date(2026, 3, 16))
    rows = await asked(world, bucket="day", **{"from": "2026-03-17", "to": "2026-04-01"})
    known = {row["local"]: row["estimate"] for row in rows}
    assert len(known) == 15
    assert all(known[f"2026-03-{day}"] for day in range(17, 24))
    assert all(known[f"2026-03-{day}"] is None for day in range(25, 32))
    assert {row["method"] for row in rows} == {"profile", "none"}


async def test_nothing_is_estimated_of_a_shop_that_nobody_knows_yet(world: World) -> None:
    await shop(
        world, lambda door, at: at.date() < date(2026, 3, 20) or lost(None, (11, 12))(door, at)
    )
    [row] = [row for row in await asked(world, bucket="hour") if row["method"] != "closed"]
    assert (row["estimate"], row["low95"], row["method"]) == (None, None, "none")


async def test_an_estimate_does_not_depend_on_the_range_asked_for(world: World) -> None:
    await shop(world, lost(None, (11, 12)))
    answers = [
        [row for row in await asked(world, bucket="hour", **span) if row["method"] != "closed"]
        for span in (
            {"from": "2026-03-31T11:00", "to": "2026-03-31T12:00"},
            {"from": "2026-03-02", "to": "2026-04-02"},
        )
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1


async def test_pages_of_estimates_go_on_where_they_ended(world: World) -> None:
    await shop(world, lost(None, (11, 12)))
    span = "from=2026-03-30&to=2026-04-02&bucket=hour"
    whole = (await world.get(f"/estimates?{span}"))["data"]
    found: list[Any] = []
    page = await world.get(f"/estimates?{span}&limit=7")
    found += page["data"]
    while page["next"]:
        page = await world.get(f"/estimates?{span}&limit=7&cursor={page['next']}")
        found += page["data"]
    assert found == whole


async def test_estimates_of_minutes_are_refused(world: World) -> None:
    await world.organisation("own")
    status, body = await world.ask("/estimates?from=2026-03-31&to=2026-04-01&bucket=1m")
    assert (status, body["code"]) == (422, "estimate_too_fine")
