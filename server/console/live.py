"""Live pages: a stream that tells a browser that there is something else to be seen.

A page says by its `position` what it has shown; the stream names each by the event's id. Whoever
comes back after a lost connection says by `Last-Event-ID` what was seen last, and is told at once
if that is not all. So nothing is missed between a page and its stream, nor between one connection
and the next.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg
import structlog
from aiohttp import web

from server.console.office import Here
from server.db.engine import DATABASE_AWAY
from server.web.sessions import Sessions

log = structlog.get_logger(__name__)

LOOK_S = 2.0
MOST_STREAMS = 300
MOST_STREAMS_EACH = 50

Position = Callable[[asyncpg.Connection], Awaitable[str]]
"""What a page shows by now, in few characters: two that are equal show the same."""


class Live:
    """The streams of all live pages; they end with the application."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._streams: Counter[int] = Counter()  # by organisation
        self._closing = asyncio.Event()

    async def close(self, _: web.Application) -> None:
        """End the streams, so that a stop does not wait for browsers."""
        self._closing.set()

    async def serve(
        self, request: web.Request, at: Here, position: Position
    ) -> web.StreamResponse:  # fmt: skip
        """Say `changed` whenever the page would show something else than was seen last."""
        if self._streams[at.id] >= MOST_STREAMS_EACH:
            raise web.HTTPTooManyRequests(text="too many live pages; this one stays as it is")
        if self._streams.total() >= MOST_STREAMS:
            raise web.HTTPServiceUnavailable(text="too many live pages; this one stays as it is")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        seen = request.headers.get("Last-Event-ID") or request.query.get("after", "")
        self._streams[at.id] += 1
        try:
            await response.prepare(request)
            await self._stream(response, at, position, seen)
        except ConnectionError:
            log.debug("live page gone", organisation=at.id)
        finally:
            self._streams -= Counter([at.id])  # which forgets who has none left
        return response

    async def _stream(
        self, response: web.StreamResponse, at: Here, position: Position, seen: str
    ) -> None:
        while not self._closing.is_set():
            message = b": alive\n\n"
            try:
                if await self._sessions.lasting(at.visitor.session_id) is None:
                    return
                async with at.acting("console watch") as connection:
                    found = await position(connection)
            except DATABASE_AWAY:
                log.debug("live page stays as it is", organisation=at.id)
            else:
                if found != seen:
                    seen = found
                    message = f"id: {found}\nevent: changed\ndata: {found}\n\n".encode()
            await response.write(message)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), LOOK_S)
