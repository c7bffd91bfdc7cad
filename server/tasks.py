"""Long-lived tasks: loops that outlive what fails around them, and end when they are told to."""

import asyncio


def heed_cancellation() -> None:
    """Raise CancelledError if this task was cancelled and something swallowed it.

    A cancellation can be lost: `asyncio.wait_for` of Python 3.11 drops one that comes with its
    result, and a connection that fails while it is given up replaces it by its own error. A loop
    that goes on after errors therefore asks once a turn. Not in a task that owns a TaskGroup:
    before Python 3.13 a group that fails leaves its owner counted as cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
