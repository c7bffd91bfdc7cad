"""A listener that waits for no slow caller: aiohttp by itself waits for a request for ever.

Decided here:
- A connection on which no whole head of a request came within the limit is closed, and so is one
  whose request's body is not there so long after its head. A handshake has as long. A body that
  says how long it is has what a phone in a cellar needs, at most `MOST_LIMITS` times the limit.
- Between requests a connection may rest for `KEEP_ALIVE_S`, half a request's head included.
- A body that says it is compressed is refused unread (415): nobody who asks us sends one, and a
  kilobyte of it may hold a megabyte.

How fast an answer is read, and how many connections an address opens, is not limited here.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler

__all__ = ["KEEP_ALIVE_S", "LIMIT_S", "listening"]

LIMIT_S = 15.0
MOST_LIMITS = 4
SLOWEST = 2_000  # bytes a second: a weak cell's edge
Later = Callable[..., asyncio.TimerHandle]
"""`call_later` of a loop, or of a clock that a test moves."""

KEEP_ALIVE_S = 75.0  # a little more than proxies keep theirs


@asynccontextmanager
async def listening(
    app: web.Application,
    *,
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    shutdown_s: float,
    limit_s: float = LIMIT_S,
    later: Later | None = None,
) -> AsyncIterator[int]:
    """Serve `app` until the block ends; gives the port (one that is free, if 0 was asked for)."""
    deadlines = _Deadlines(limit_s, later or asyncio.get_running_loop().call_later)
    app.middlewares.insert(0, deadlines.middleware())
    runner = web.AppRunner(
        app,
        access_log=None,
        shutdown_timeout=shutdown_s,
        keepalive_timeout=KEEP_ALIVE_S,
        auto_decompress=False,
    )
    await runner.setup()
    try:
        site = _Site(runner, host, port, tls=tls, deadlines=deadlines)
        await site.start()
        yield site.bound_port
    finally:
        await runner.cleanup()


class _Deadlines:
    """A timer for each connection that owes us the head or the body of a request."""

    def __init__(self, limit_s: float, later: Later) -> None:
        self.limit_s, self._later = limit_s, later
        self._heads: dict[RequestHandler, asyncio.TimerHandle] = {}

    def begin(self, connection: RequestHandler) -> None:
        """Begin to wait for a new connection's first request."""
        self._heads[connection] = self._later(self.limit_s, self._end, connection)

    def middleware(self) -> Middleware:
        @web.middleware
        async def timely(request: web.Request, handler: Handler) -> web.StreamResponse:
            if waiting := self._heads.pop(request.protocol, None):
                waiting.cancel()
            if not request.content.is_eof():
                more_s = (request.content_length or 0) / SLOWEST
                wait_s = min(self.limit_s + more_s, self.limit_s * MOST_LIMITS)
                body = self._later(wait_s, _close, request.protocol)
                request.content.on_eof(body.cancel)
            if request.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise web.HTTPUnsupportedMediaType(text="send it uncompressed")
            return await handler(request)

        return timely

    def _end(self, connection: RequestHandler) -> None:
        del self._heads[connection]
        _close(connection)


def _close(connection: RequestHandler) -> None:
    if connection.transport is not None:  # else the peer was first
        connection.transport.abort()


class _Site(web.BaseSite):
    """A TCP listener whose connections have deadlines from their handshake on."""

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None,
        deadlines: _Deadlines,
    ) -> None:
        super().__init__(runner, ssl_context=tls)
        self._address, self._deadlines = (host, port), deadlines
        self.bound_port = port

    @property
    def name(self) -> str:
        host, port = self._address
        return f"{'https' if self._ssl_context else 'http'}://{host}:{port}"

    async def start(self) -> None:
        """Listen. Raises OSError."""
        await super().start()
        make = self._runner.server
        assert make is not None, "set up"

        def connect() -> RequestHandler:
            connection = make()
            self._deadlines.begin(connection)
            return connection

        self._server = await asyncio.get_running_loop().create_server(
            connect,
            *self._address,
            ssl=self._ssl_context,
            ssl_handshake_timeout=self._deadlines.limit_s if self._ssl_context else None,
            backlog=self._backlog,
        )
        self.bound_port = self._server.sockets[0].getsockname()[1]
