"""Rollouts on the real database: waves, halts, retries, the way back, and what is written down."""

from collections.abc import AsyncIterator

import pytest

from ops.services.stack import Stack
from tests.firmware_world import (
    World,
    firmware_world,
    without_counters,
)

pytestmark = pytest.mark.services


@pytest.fixture
async def world(stack: Stack, database: str) -> AsyncIterator[World]:
    """A world of firmware."""
    async with firmware_world(stack, database) as found:
        yield found


async def test_a_rollout_goes_through_its_waves_and_its_rows_fold_to_its_state(
    world: World,
) -> None:
    devices = await world.fleet(8)
    ref = await world.rollout([devices[:3], devices[3:]])
    await world.pass_time(600)
    assert await world.state(ref) == "completed"
    assert await world.states(ref) == {"confirmed": 8}
    assert {device.version for device in world.devices.values()} == {"2.0.0"}
    assert await world.turns(ref) == [
        *("planned", "submitted", "approved", "started", "wave opened", "wave soaking"),
        *("wave passed", "wave opened", "wave soaking", "wave passed", "completed"),
    ]
    held = await world.held(ref)
    assert without_counters(await world.folded(ref)) == without_counters(held.rollout)
