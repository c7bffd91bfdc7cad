"""KPIs by retail weeks and periods: as sums of the days they are made of, a year beside another."""

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.integration.api_world import World
from tests.integration.metrics_world import Quarters, query, rows, store

pytestmark = pytest.mark.services
MADRID = ZoneInfo("Europe/Madrid")  # where New Year alone has a name in these weeks
DAY = timedelta(days=1)


def entered(day: date) -> int:
    """Return how many came in on a day; no two neighbours are alike, nor weeks."""
    return 1 + day.toordinal() * 7 % 31


def between(since: date, until: date) -> list[date]:
    return [since + n * DAY for n in range((until - since).days)]


async def chain(world: World) -> None:
    """Two shops count about the end of the 53-week 2023 of the NRF, and a year before."""
    own = await world.organisation("own")
    await world.organisation("other")
    for name in ("one", "two"):
        site = await world.site(own, name, zone="Europe/Madrid", hours=(600, 615))
        spot = await world.spot(own, site, f"{name}-door")
        quarters: Quarters = [
            (datetime(day.year, day.month, day.day, 10, tzinfo=MADRID), entered(day), 0)
            for since, until in (
                (date(2022, 12, 24), date(2023, 2, 28)),
                (date(2023, 12, 24), date(2024, 3, 4)),
            )
            for day in between(since, until)
        ]
        await store(world, spot, quarters)
    await world.derive()


async def choose(world: World, pattern: str, month: int = 1, weekday: int = 0) -> None:
    await world.owner.execute(
        "update organisations set calendar = $1, calendar_month = $2, calendar_weekday = $3 "
        "where ref = 'own'",
        *(pattern, month, weekday),
    )


async def test_periods_about_a_53rd_week_are_sums_of_days_beside_their_equals(
    world: World,
) -> None:
    await chain(world)
    await choose(world, "4-5-4", 2, 6)
    asked: dict[str, Any] = {
        "metrics": ["visits"], "from_": "2024-01-10", "to": "2024-02-05", "scope": "open",
        "compare": "last_year",
    }  # fmt: skip
    found = await rows(world, bucket="period", sites=["one"], **asked)
    january = between(date(2023, 12, 31), date(2024, 2, 4))
    february = between(date(2024, 2, 4), date(2024, 3, 3))
    twins = [
        [date(2022, 12, 31), date(2023, 1, 1)] + [day - 364 * DAY for day in january[2:]],
        [day - 371 * DAY for day in february],
    ]
    assert [(row["local"], row["value"], row["compared"]) for row in found] == [
        ("2023-P12", sum(map(entered, january)), sum(map(entered, twins[0]))),
        ("2024-P01", sum(map(entered, february)), sum(map(entered, twins[1]))),
    ]
    assert (found[0]["from"], found[0]["until"]) == ("2023-12-30T23:00:00Z", "2024-02-03T23:00:00Z")
    assert [("week_53" in row["flags"], "after_week_53" in row["flags"]) for row in found] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert found[1]["compared_local"] == "2023-01-29/2023-02-25"
    both = await rows(world, bucket="period", by="organisation", **asked)
    assert [row["value"] for row in both] == [2 * row["value"] for row in found]
    assert [row["compared"] for row in both] == [2 * row["compared"] for row in found]
    assert [row["coverage"] for row in both] == [1, 1]
    weeks = await rows(world, bucket="retail_week", sites=["one"], **asked)
    first = [date(2024, 1, 7) + n * 7 * DAY for n in range(5)]
    assert [row["local"] for row in weeks] == [
        "2023-R50", "2023-R51", "2023-R52", "2023-R53", "2024-R01",
    ]  # fmt: skip
    assert [row["value"] for row in weeks] == [
        sum(entered(day) for day in between(week, week + 7 * DAY)) for week in first
    ]
    assert weeks[3]["compared"] == sum(
        entered(day) for day in between(date(2023, 1, 29), date(2023, 2, 5))
    )
    assert weeks[4]["compared"] == weeks[3]["compared"]


async def test_pages_of_periods_make_up_the_whole(world: World) -> None:
    await chain(world)
    await choose(world, "4-4-5")
    asked: dict[str, Any] = {
        "metrics": ["visits"], "bucket": "period", "from_": "2023-12-01", "to": "2024-03-01",
        "compare": "last_year",
    }  # fmt: skip
    whole = await rows(world, **asked)
    parts: list[dict[str, Any]] = []
    cursor = None
    while True:
        status, body = await query(world, limit=1, cursor=cursor, **asked)
        assert status == 200
        parts += body["data"]
        if (cursor := body["next"]) is None:
            break
    assert len(whole) == 8
    assert parts == whole


async def test_without_a_retail_calendar_there_are_no_periods(world: World) -> None:
    await world.organisation("own")
    asked = {"metrics": ["visits"], "bucket": "period", "from_": "2024-01-01", "to": "2024-02-01"}
    status, body = await query(world, **asked)
    assert (status, body["code"], body["parameter"]) == (422, "not_answerable", "bucket")
    await choose(world, "4-4-5")
    status, body = await query(world, **{**asked, "from_": "2024-01-01T09:00"})
    assert (status, body["code"], body["parameter"]) == (422, "not_answerable", "from")
    assert await rows(world, **asked) == []
