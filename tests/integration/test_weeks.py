"""Weeks beside those of the year before, where years have 52 weeks or 53."""

from datetime import UTC, date, datetime, timedelta

import pytest

from server.db.engine import reading
from server.insight.weeks import WEEK, Metric, weeks_before, weeks_of
from tests.integration.api_world import World
from tests.integration.metrics_world import ZONE, hour

pytestmark = pytest.mark.services


def week(year: int, number: int) -> date:
    return date.fromisocalendar(year, number, 1)


async def test_each_week_stands_beside_the_same_iso_week_a_year_before(world: World) -> None:
    """2026 has 53 weeks: 52 weeks before the first of 2027 is the second of 2026."""
    own = await world.organisation("own")
    spot = await world.spot(own, await world.site(own, "shop"), "door")
    for number in (*range(1, 13), 51, 52, 53):
        await hour(world, spot, week(2026, number) + timedelta(days=number % 7), 100 + number)
    await world.derive()
    since, until = week(2026, 51), week(2027, 11)
    now_s = int(datetime(2027, 6, 1, tzinfo=UTC).timestamp())
    async with reading(world.api, "test", organisation=own) as connection:
        now, before = [
            await ask(connection, (), [Metric.VISITS], since=since, until=until, now_s=now_s)
            for ask in (weeks_of, weeks_before)
        ]
    assert [each.start for each in now["shop"]] == [since + n * WEEK for n in range(13)]
    assert [each.visits for each in now["shop"][:3]] == [151, 152, 153]
    beside = dict(zip((each.start for each in now["shop"]), before["shop"], strict=True))
    assert beside[week(2027, 1)].start == week(2026, 1)
    assert beside[week(2027, 10)].start == week(2026, 10)
    assert [beside[week(2027, n)].visits for n in range(1, 11)] == [100 + n for n in range(1, 11)]
    assert beside[week(2026, 52)].start == week(2025, 52)
    assert beside[week(2026, 53)].start == week(2026, 1)  # 2025 had no such week


async def test_a_counters_first_part_week_is_covered_in_part(world: World) -> None:
    """It is hung up on a Thursday at noon, and taken down on a Tuesday evening two weeks later."""
    own = await world.organisation("own")
    await world.organisation("other")
    site = await world.site(own, "shop", hours=(600, 840))  # four hours a day
    first, last = datetime(2026, 3, 5, 12, tzinfo=ZONE), datetime(2026, 3, 17, 20, tzinfo=ZONE)
    spot = await world.spot(own, site, "door", assigned=first)
    await world.owner.execute(
        "update assignments set valid = tstzrange($2, $3) where spot_id = $1", spot, first, last
    )
    for offset in range(13):
        day = date(2026, 3, 5) + timedelta(days=offset)
        if offset == 0:
            await hour(world, spot, day, *[5] * 8, at=12)
        else:
            await hour(world, spot, day, *[5] * 16)
    await world.derive()
    async with reading(world.api, "test", organisation=own) as connection:
        found = await weeks_of(
            *(connection, (), [Metric.VISITS]),
            since=date(2026, 2, 23),
            until=date(2026, 3, 30),
            now_s=int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()),
        )
    weeks = found["shop"]
    assert [each.visits for each in weeks] == [None, 280, 560, 160, None]
    assert [each.coverage for each in weeks] == [None, 0.5, 1, 0.2857, None]
