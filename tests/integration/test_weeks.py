"""Weeks beside those of the year before, where years have 52 weeks or 53."""

from datetime import UTC, date, datetime, timedelta

import pytest

from server.db.engine import reading
from server.insight.weeks import WEEK, Metric, WeekQuery, weeks_before, weeks_of
from tests.integration.api_world import World
from tests.integration.metrics_world import ZONE, hour, sell

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
            await ask(connection, WeekQuery(frozenset({Metric.VISITS}), since, until), now_s=now_s)
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


async def test_a_weeks_sales_are_those_that_count(world: World) -> None:
    """Returns, pick-ups, voids and sales of nothing are none; silent tills sold nothing."""
    own = await world.organisation("own")
    site = await world.site(own, "shop")
    await world.site(own, "silent")
    monday = date(2026, 3, 2)
    await hour(world, await world.spot(own, site, "door"), monday, 50)
    await sell(world, own, site, monday, 10, 20, 30, -40)
    await sell(world, own, site, monday + timedelta(days=6), 60, at=23)
    await sell(world, own, site, monday + WEEK, 70, at=0)
    for kind, amount, units in (("pickup", 5, 1), ("void", 5, 1), ("sale", 0, 1), ("sale", 5, 0)):
        await world.owner.execute(
            "insert into transactions (organisation_id, site_id, transaction_ref, at, kind, amount,"
            " units) values ($1, $2, gen_random_uuid()::text, $3, $4, $5, $6)",
            *(own, site, datetime(2026, 3, 3, 12, tzinfo=UTC), kind, amount, units),
        )
    await world.derive()
    asked = WeekQuery(frozenset({Metric.CONVERSION}), monday, monday + 2 * WEEK)
    async with reading(world.api, "test", organisation=own) as connection:
        now_s = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
        weeks = await weeks_of(connection, asked, now_s=now_s)
    first, second = weeks["shop"]
    assert (first.transactions, first.net_sales) == (4, 120)
    assert (second.transactions, second.net_sales) == (1, 70)
    assert first.value(Metric.CONVERSION) == 4 / 50
    assert (first.value(Metric.ATV), first.value(Metric.SPV)) == (30, 120 / 50)
    assert second.value(Metric.CONVERSION) is None  # nobody was counted
    assert [week.transactions for week in weeks["silent"]] == [0, 0]
    assert weeks["silent"][0].value(Metric.CONVERSION) is None


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
        asked = WeekQuery(frozenset({Metric.VISITS}), date(2026, 2, 23), date(2026, 3, 30))
        now_s = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
        found = await weeks_of(connection, asked, now_s=now_s)
    weeks = found["shop"]
    assert [each.visits for each in weeks] == [None, 280, 560, 160, None]
    assert [each.coverage for each in weeks] == [None, 0.5, 1, 0.2857, None]
