"""A loop that outlives errors ends when it is told to, even if the telling was swallowed."""

import asyncio
import contextlib

import pytest

from server.tasks import heed_cancellation


async def test_a_swallowed_cancellation_is_heeded_at_the_next_turn() -> None:
    turns = 0

    async def loop() -> None:
        nonlocal turns
        while True:
            heed_cancellation()
            turns += 1
            with contextlib.suppress(asyncio.CancelledError):  # as a failing connection does
                await asyncio.sleep(60)

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert turns == 1


async def test_a_task_that_nobody_cancelled_goes_on() -> None:
    heed_cancellation()
