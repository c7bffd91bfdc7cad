"""The loop of workers goes on while the database is away, and ends when it is told to."""

import asyncio
import contextlib

import pytest
from structlog.testing import capture_logs

from server import metrics
from server.db.turns import repeat


class Over(BaseException):
    """What ends a test's loop."""


async def test_a_database_that_is_away_is_tried_again_and_said_so() -> None:
    turns: list[None] = []

    async def turn() -> None:
        turns.append(None)
        if len(turns) < 3:
            raise TimeoutError
        raise Over

    with capture_logs() as said, pytest.raises(Over):
        await repeat(turn, rest_s=0, away="nothing done")
    assert len(turns) == 3
    assert [(each["event"], each["error"]) for each in said] == [
        ("nothing done", "TimeoutError")
    ] * 2


async def test_a_fault_of_our_own_is_counted_logged_whole_and_ends_no_other_worker() -> None:
    turns: list[None] = []
    before = metrics.TURNS_BROKEN._value.get()

    async def turn() -> None:
        turns.append(None)
        if len(turns) < 3:
            raise KeyError("of a row that nobody thought of")
        raise Over

    with capture_logs() as said, pytest.raises(Over):
        await repeat(turn, rest_s=0, away="nothing done")
    assert [(each["log_level"], each["exc_info"]) for each in said] == [("error", True)] * 2
    assert metrics.TURNS_BROKEN._value.get() == before + 2


async def test_the_rest_is_asked_for_after_each_turn_even_one_that_failed() -> None:
    taken: list[float] = []

    def rest_s(turn_s: float) -> float:
        taken.append(turn_s)
        return 0

    async def turn() -> None:
        if len(taken) == 2:
            raise Over
        raise OSError

    with pytest.raises(Over):
        await repeat(turn, rest_s=rest_s, away="nothing done")
    assert len(taken) == 2
    assert min(taken) >= 0


async def test_a_cancellation_that_a_turn_swallowed_ends_the_loop_before_its_rest() -> None:
    async def turn() -> None:
        with contextlib.suppress(asyncio.CancelledError):  # as a failing connection does
            await asyncio.sleep(60)

    task = asyncio.create_task(repeat(turn, rest_s=3_600, away="nothing done"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
