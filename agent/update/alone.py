"""One thing at a time, in a thread, to its end: even where who asked for it is cancelled meanwhile.

So nobody begins while a thread is still at it.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Alone:
    """What may not be done twice at once."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def do(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Do it, and return or raise what came of it."""
        result: list[T] = []
        raised: list[Exception] = []

        async def held() -> None:
            async with self._lock:
                try:
                    result.append(await asyncio.to_thread(work, *arguments, **named))
                except Exception as error:  # for who asked, if he is still there
                    raised.append(error)

        task = asyncio.create_task(held())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)
        if raised:
            raise raised[0]
        return result[0]
