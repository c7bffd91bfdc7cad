"""The coverage of a site with several doors: each weighs what it usually lets in."""

from datetime import date, timedelta
from typing import Any

import pytest

from tests.integration.api_world import World
from tests.integration.metrics_world import TEN, hour, quarters_of, rows, store

pytestmark = pytest.mark.services

FIRST = date(2026, 2, 2)
DAY = FIRST + timedelta(weeks=4)
ASKED: dict[str, Any] = {"metrics": ["visits"], "scope": "open"}


async def test_a_blind_main_door_hurts_more_than_a_blind_side_door(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=TEN)
    main, side = await world.spot(own, site, "main"), await world.spot(own, site, "side")
    days = [FIRST + timedelta(days=n) for n in range(28)]
    await store(world, main, [q for day in days for q in quarters_of(day, 9, 9, 9, 9)])
    await store(world, side, [q for day in days for q in quarters_of(day, 1, 1, 1, 1)])
    await hour(world, side, DAY, 1, 1, 1, 1)  # the main door is blind on a Monday,
    await hour(world, main, DAY + timedelta(days=1), 9, 9, 9, 9)  # the side door on a Tuesday,
    await hour(world, main, DAY + timedelta(days=2), 9, 9)  # both for a while on a Wednesday
    await hour(world, side, DAY + timedelta(days=2), 1, 1, 1)
    await hour(world, main, DAY + timedelta(days=3), 9, 9, 9, 9)
    await hour(world, side, DAY + timedelta(days=3), 1, 1, 1, 1)
    await world.derive()
    asked = {**ASKED, "from_": "2026-03-02", "to": "2026-03-06"}
    wanted = [0.1, 0.9, 0.9 * 0.5 + 0.1 * 0.75, 1.0]
    found = await rows(world, **asked)
    assert [row["coverage"] for row in found] == pytest.approx(wanted, abs=6e-5)
    assert [row["value"] for row in found] == [4, 36, 21, 40]
    (whole,) = await rows(world, **asked, bucket="total")
    assert whole["coverage"] == pytest.approx(sum(wanted) / 4, abs=6e-5)
    (whole,) = await rows(world, **asked, bucket="total", by="organisation")
    assert whole["coverage"] == pytest.approx(sum(wanted) / 4, abs=6e-5)
    hours = [
        row for row in await rows(world, **asked, bucket="hour") if row["coverage"] is not None
    ]
    assert [row["coverage"] for row in hours] == pytest.approx(wanted, abs=6e-5)
    quarters = await rows(
        world, **{**asked, "from_": "2026-03-04", "to": "2026-03-05"}, bucket="15m"
    )
    covered = [row["coverage"] for row in quarters if row["coverage"] is not None]
    assert covered == pytest.approx([1.0, 1.0, 0.1, 0.0])


async def test_before_enough_weeks_are_known_all_doors_weigh_alike(world: World) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=TEN)
    main, side = await world.spot(own, site, "main"), await world.spot(own, site, "side")
    for n in range(14):
        await hour(world, main, FIRST + timedelta(days=n), 9, 9, 9, 9)
        await hour(world, side, FIRST + timedelta(days=n), 1, 1, 1, 1)
    await hour(world, side, FIRST + timedelta(days=14), 1, 1, 1, 1)
    await world.derive()
    (row,) = await rows(world, **ASKED, from_="2026-02-16", to="2026-02-17")
    assert row["coverage"] == 0.5
