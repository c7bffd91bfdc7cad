"""The deriver: exact, idempotent, rebuildable, and safe beside writers."""

import asyncio
import random
from datetime import date, timedelta

import pytest

from server.rollup.refresh import rebuild, refresh, run
from tests.integration.api_world import World, utc

pytestmark = pytest.mark.services

DERIVED = ("rollup_hour", "rollup_day", "presses_day")


async def derived(world: World) -> dict[str, list[tuple[object, ...]]]:
    return {
        table: sorted(
            tuple(map(str, row)) for row in await world.owner.fetch(f"select * from {table}")
        )
        for table in DERIVED
    }


async def spot_with_history(world: World, *, seed: int = 1) -> int:
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(600, 1500))
    spot = await world.spot(organisation, site, "spot", kind="kiosk")
    rng = random.Random(seed)
    for day in range(25, 32):
        for _ in range(12):
            at = utc(f"2026-03-{day}T00:00") + timedelta(minutes=15 * rng.randrange(96))
            await world.quarter(
                spot, at, rng.randrange(50), rng.randrange(50), line=rng.randrange(4)
            )
        at = utc(f"2026-03-{day}T12:00")
        await world.presses(spot, at, {answer: rng.randrange(1, 9) for answer in range(4)})
    return spot


async def test_deriving_twice_changes_nothing(world: World) -> None:
    await spot_with_history(world)
    await world.derive()
    once = await derived(world)
    assert all(once.values())
    versions = await world.owner.fetch("select xmin::text from rollup_day")
    await world.owner.execute(
        "insert into rollup_dirty (spots, buckets) "
        "select array_agg(spot), array_agg(bucket) from rollup_15m"
    )
    await world.derive()
    assert await derived(world) == once
    assert await world.owner.fetch("select xmin::text from rollup_day") == versions
    assert await world.owner.fetchval("select count(*) from rollup_dirty") == 0


async def test_a_rebuild_gives_the_same_rows(world: World) -> None:
    spot = await spot_with_history(world)
    await world.derive()
    once = await derived(world)
    for table in DERIVED:
        await world.owner.execute(f"delete from {table}")
    await rebuild(world.maint, spot, date(2026, 3, 1), date(2026, 5, 1))
    assert await derived(world) == once


async def test_derived_rows_without_quarters_are_deleted(world: World) -> None:
    spot = await spot_with_history(world)
    await world.derive()
    for table in ("rollup_15m", "presses_15m"):
        await world.owner.execute(f"delete from {table} where bucket >= '2026-03-30T00:00Z'")
    await rebuild(world.maint, spot, date(2026, 3, 25), date(2026, 4, 2))
    assert await world.owner.fetchval("select max(day) from rollup_day") <= date(2026, 3, 30)
    assert await world.owner.fetchval("select max(bucket) from rollup_hour") < utc(
        "2026-03-30T00:00"
    )
    assert await world.owner.fetchval("select max(day) from presses_day") == date(2026, 3, 29)


async def test_hours_and_days_add_up_to_the_quarters(world: World) -> None:
    await spot_with_history(world)
    await world.derive()
    for way in ("in0", "out0", "in1", "out1", "in2", "out2", "in3", "out3"):
        sums = {
            await world.owner.fetchval(f"select sum({way}) from {table}")
            for table in ("rollup_15m", "rollup_hour", "rollup_day")
        }
        assert len(sums) == 1, way
    assert await world.owner.fetchval("select sum(observed_s) from rollup_day") == 15 * (
        await world.owner.fetchval("select sum(bit_count(observed::bit(64))) from rollup_15m")
    )
    pressed = "select sum(presses) from {}"
    assert await world.owner.fetchval(pressed.format("presses_day")) == (
        await world.owner.fetchval(pressed.format("presses_15m"))
    )


async def test_a_writer_that_commits_while_a_pass_runs_is_worked_in_by_the_next(
    world: World,
) -> None:
    spot = await spot_with_history(world)
    async with world.owner.transaction():
        await world.quarter(spot, utc("2026-03-25T09:00"), 1000)
        await refresh(world.maint)  # sees neither the counts nor their dirty row
        assert await world.maint.fetchval("select max(in0) from rollup_day") < 1000
    await world.derive()
    assert await world.maint.fetchval("select max(in0) from rollup_day") >= 1000


async def test_two_derivers_and_a_writer_end_in_the_truth(world: World) -> None:
    spot = await spot_with_history(world)
    tasks = [asyncio.create_task(run(world.maint)) for _ in range(2)]
    for number in range(40):
        await world.quarter(spot, utc("2026-03-26T09:00") + timedelta(minutes=15 * number), number)
        await refresh(world.maint)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await world.derive()
    found = await derived(world)
    await rebuild(world.maint, spot, date(2026, 3, 1), date(2026, 5, 1))
    assert await derived(world) == found


async def test_a_moved_time_zone_leaves_no_hour_of_the_old_one(world: World) -> None:
    await spot_with_history(world)
    await world.derive()
    await world.owner.execute("update sites set time_zone = 'Asia/Kathmandu'")
    await world.derive()
    assert await world.owner.fetchval(
        "select array_agg(distinct extract(minute from bucket)::int) from rollup_hour"
    ) == [15]
    assert await world.owner.fetchval("select count(*) from rollup_stale") == 0


async def test_dirty_rows_of_unknown_spots_are_dropped(world: World) -> None:
    await world.dirty(4711, utc("2026-03-26T09:00"))
    await world.dirty(0, utc("2026-03-26T09:00"))
    await world.derive()
    assert await world.owner.fetchval("select count(*) from rollup_dirty") == 0
