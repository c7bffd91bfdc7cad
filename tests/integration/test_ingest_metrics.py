"""Names of metrics: few are enough, and no device uses up those of the others."""

import asyncpg
import pytest

from server.ingest import writer
from tests.ingest_world import Ingesting, register

pytestmark = pytest.mark.services


def values(first: int, count: int) -> dict[str, float]:
    return {f"m{number:03}": 1.0 for number in range(first, first + count)}


async def names(owner: asyncpg.Connection) -> list[str]:
    """Return the names of what has been stored."""
    rows = await owner.fetch(
        "select distinct name from device_metrics join metric_names n on n.id = metric order by 1"
    )
    return [row["name"] for row in rows]


async def test_one_device_brings_a_hundred_names_and_the_others_have_theirs(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    greedy, modest = fleet.agent(0), fleet.agent(1)
    for first in (0, 60, 120):
        await ingest.take((greedy, greedy.health(values(first, 60))))
    assert await names(owner) == sorted(values(0, 100))
    await ingest.take((greedy, greedy.health(values(0, 10))))  # known ones are stored on
    assert await owner.fetchval("select count(*) from device_metrics") == 110
    await ingest.take((modest, modest.health({"cpu": 0.5, "m000": 2.0})))
    assert "cpu" in await names(owner)
    assert await owner.fetchval("select count(*) from device_metrics where value = 2") == 1


async def test_the_fleet_has_no_more_names_than_its_bound(
    ingest: Ingesting, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_METRIC_NAMES", 5)
    fleet = await register(owner, 2)
    one, two = fleet.agent(0), fleet.agent(1)
    await ingest.take((one, one.health(values(0, 3))), (two, two.health(values(3, 9))))
    assert len(await names(owner)) == 5
