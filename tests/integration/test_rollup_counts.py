"""Counts through the database and the API: conserved, calibrated, revised, never invented."""

from datetime import timedelta
from typing import Any

import pytest

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
