"""The sweep goes on, whatever a turn raises; that it has ended is never a secret."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import cast

import asyncpg
import pytest
from structlog.testing import capture_logs

from server.provisioning import sweep as module
from server.provisioning import web
from server.provisioning.sweep import sweeping

POOL = cast("asyncpg.Pool", None)  # no turn of these tests gets so far


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (asyncpg.InternalClientError("odd moment"), "sweep put off"),
        (asyncpg.DeadlockDetectedError("40P01"), "sweep put off"),
        (TimeoutError(), "sweep put off"),
        (LookupError("unforeseen"), "sweep failed"),
    ],
)
async def test_the_sweep_goes_on_after_whatever_a_turn_raises(
    monkeypatch: pytest.MonkeyPatch, error: Exception, event: str
) -> None:
    turns = 0
    again = asyncio.Event()

    async def turn(_: asyncpg.Pool, *, now: datetime) -> int:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise error
        again.set()
        return 0

    monkeypatch.setattr(module, "sweep", turn)
    monkeypatch.setattr(module, "EVERY_S", 0.0)
    with capture_logs() as logs:
        task = asyncio.create_task(sweeping(POOL, now=lambda: datetime.now(UTC)))
        try:
            async with asyncio.timeout(10):
                await again.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert [one["event"] for one in logs] == [event]


async def test_a_sweep_that_ends_by_itself_is_an_error_and_one_that_is_told_to_is_none() -> None:
    async def dies() -> None:
        raise MemoryError

    async def waits() -> None:
        await asyncio.Event().wait()

    with capture_logs() as logs:
        for doing in (dies(), waits()):
            task = asyncio.create_task(doing)
            task.add_done_callback(web._ended)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0)
    assert [(one["event"], one["log_level"]) for one in logs] == [("sweep ended", "error")]
