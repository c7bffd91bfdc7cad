"""Long-lived tasks: loops that outlive what fails around them, and end when they are told to."""

import asyncio
import gc


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


def spare_the_collector() -> None:
    """Look for garbage less often, once all that lives as long as the process is there.

    A batch, or a page of many rows, makes thousands of objects that live until its end and hold no
    cycles: at the usual thresholds looking through them took a fifth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
