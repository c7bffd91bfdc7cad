"""Whose turn it is: who can't install for long keeps nobody from his, and waiting costs nothing."""

from datetime import timedelta

import msgspec
import pytest

from server.firmware import freezes, granting
from server.firmware.granting import Waits, Why
from server.firmware.policy import Caps
from server.firmware.windows import Always, Rules
from tests.firmware_world import QUICK, World
from tests.firmware_world import world as world

pytestmark = pytest.mark.services


async def freeze(world: World, *, sites: int) -> None:
    """Freeze the first sites for ten days."""
    await world.owner.execute(
        "update sites set name = 'Frozen' where id in (select id from sites order by id limit $1)",
        sites,
    )
    await world.owner.execute(
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, sites, reason, "
        "author, created_at) values ($1, 'freeze-1', 'Sale', $2::timestamptz, "
        "$2::timestamptz + interval '10 days', 'site.name = \"Frozen\"', 'x', 'x', $2)",
        *(world.organisation, world.now),
    )


@pytest.mark.parametrize("windows", [None, Rules(always=Always.CLOCK, clock=(1_260, 420))])
async def test_who_is_frozen_holds_no_place_and_is_offered_as_soon_as_its_freeze_is_ended(
    world: World, windows: Rules | None
) -> None:
    devices = await world.fleet(6)
    await freeze(world, sites=3)
    policy = msgspec.structs.replace(QUICK, caps=Caps(in_flight=1), windows=windows)
    ref = await world.rollout([devices], policy=policy)
    await world.pass_time(150)
    assert await world.states(ref) == {"confirmed": 3, "planned": 3}
    backs_off = (
        "update executions set shut = false, due_at = $1 where device_id = $2 returning shut"
    )
    held = world.now + timedelta(minutes=30), devices[0]
    assert await world.owner.fetchval(backs_off, *held) is False  # waits for something else
    async with world.act() as connection:
        await freezes.end(connection, world.organisation, "freeze-1", actor="x", now=world.now)
    await world.pass_time(150)
    assert await world.states(ref) == {"confirmed": 5, "planned": 1}
    await world.pass_time(2_400, step_s=60)
    assert await world.states(ref) == {"confirmed": 6}


async def test_who_is_offered_something_has_a_window_soon(world: World) -> None:
    devices = await world.fleet(2)
    rules = Rules(always=Always.CLOCK, clock=(240, 360))  # it is 22:00
    policy = msgspec.structs.replace(QUICK, windows=rules, ahead_s=5 * 3_600)
    ref = await world.rollout([devices], policy=policy)
    await world.pass_time(3_600 - 60, step_s=60)
    assert await world.states(ref) == {"planned": 2}
    await world.pass_time(3_600, step_s=60)
    assert await world.states(ref) == {"confirmed": 2}


async def test_a_device_that_asks_while_it_waits_spends_nothing_of_the_ramp(world: World) -> None:
    devices = await world.fleet(1, each=2)
    ref = await world.rollout([devices])
    await world.pass_time(5)
    bucket = "select tokens, tokens_at, xmin from rollouts where ref = $1"
    before = await world.owner.fetchrow(bucket, ref)
    world.clock.advance(1)
    found = await granting.grant(world.owner, devices[1], now=world.now)
    assert found == Waits(Why.DOOR, 60)
    assert await world.owner.fetchrow(bucket, ref) == before
