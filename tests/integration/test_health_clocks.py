"""Frames that come late, in a real database: they make no clock wrong, and no outbox overflow."""

import json
from datetime import datetime, timedelta

import asyncpg
import pytest

from tests.integration.api_world import NOW, World
from tests.integration.test_health_checks import a_device, look, say

pytestmark = pytest.mark.services

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


async def devices(world: World) -> list[int]:
    """Return two devices at doors of which nothing else is known."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "shop")
    return [await a_device(world, await world.spot(organisation, site, f"d-{n}")) for n in (0, 1)]


async def sent(world: World, device: int, *, until: datetime) -> None:
    """Let the last frame of a device that came be one that ends then; it came just now."""
    await world.owner.execute(
        "update boots set stored_to = $2, last_stored = $3 where device_id = $1",
        *(device, until, NOW),
    )


async def connected(world: World, device: int, *, since: datetime) -> None:
    await world.owner.execute(
        "insert into presences (device_id, organisation_id, session, session_at) "
        "select id, organisation_id, 'open', $2 from devices where id = $1 on conflict (device_id) "
        "do update set session = 'open', session_at = excluded.session_at",
        *(device, since),
    )


async def judged(world: World, device: int, condition: str) -> asyncpg.Record:
    await look(world)
    row: asyncpg.Record | None = await world.owner.fetchrow(
        "select standing, firing, evidence from judgements where device_id = $1 and condition = $2",
        *(device, condition),
    )
    assert row is not None
    return row


async def test_uploaded_history_says_nothing_of_a_clock(world: World) -> None:
    device, _ = await devices(world)
    await sent(world, device, until=NOW - timedelta(seconds=548_668))
    row = await judged(world, device, "clock_drift")
    assert (row["standing"], row["firing"]) == ("unknown", None)


async def test_an_outbox_that_was_empty_before_the_outage_makes_no_clock_wrong(
    world: World,
) -> None:
    device, _ = await devices(world)
    went = NOW - 3 * HOUR
    await say(world, device, [(went - n * 15 * MINUTE, "outbox.frames", 1.0) for n in range(4)])
    await sent(world, device, until=went + 2 * MINUTE)  # the first of three hours that it held back
    assert (await judged(world, device, "clock_drift"))["standing"] == "unknown"


async def test_a_clock_that_the_device_found_behind_is_found_however_far(world: World) -> None:
    behind, right = await devices(world)
    late = timedelta(days=6)
    for device, skew_ms in ((behind, -late / timedelta(milliseconds=1)), (right, 40.0)):
        times = [NOW - late - n * 15 * MINUTE for n in range(3)]
        await say(world, device, [(at, "clock.skew_ms", skew_ms) for at in times])
        await sent(world, device, until=NOW - late)
    row = await judged(world, behind, "clock_drift")
    assert row["firing"] is True
    assert json.loads(row["evidence"])["skew_s"] == -late.total_seconds()
    assert (await judged(world, right, "clock_drift"))["standing"] == "clear"


async def test_what_an_outbox_held_in_an_outage_is_no_backlog(world: World) -> None:
    device, _ = await devices(world)
    grown = [(NOW - n * 15 * MINUTE, "outbox.frames", 90.0 - 6 * n) for n in range(12)]
    await say(world, device, grown)
    await connected(world, device, since=NOW - 10 * MINUTE)
    assert (await judged(world, device, "backlog"))["standing"] == "unknown"
    await connected(world, device, since=NOW - 4 * HOUR)  # of who was connected, it is one
    assert (await judged(world, device, "backlog"))["firing"] is True
