"""A listener that waits for no slow caller, and tells one that speaks no HTTP so, and no log.

aiohttp by itself waits for a request for ever, and logs each malformed one with a trace.

Decided here:
- A connection on which no whole head of a request came within the limit is closed, and so is one
  whose request's body is not there so long after its head. A handshake has as long. A body that
  says how long it is has what a phone in a cellar needs, at most `MOST_LIMITS` times the limit.
- Between requests a connection may rest for `KEEP_ALIVE_S`, half a request's head included.
- A body that says it is compressed is refused unread (415): nobody who asks us sends one, and a
  kilobyte of it may hold a megabyte.
- A request whose address or Host names nothing, or holds a NUL (no text in the database may), or
  whose Authorization is not ASCII or another field not UTF-8, is refused (400). Neither that nor
  what is no HTTP leaves a trace: anyone may send it.

How fast an answer is read, and how many connections an address opens, is not limited here.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestHandler

__all__ = ["KEEP_ALIVE_S", "LIMIT_S", "listening"]

LIMIT_S = 15.0
MOST_LIMITS = 4
SLOWEST = 2_000  # bytes a second: a weak cell's edge
Later = Callable[..., asyncio.TimerHandle]
"""`call_later` of a loop, or of a clock that a test moves."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(:[0-9]*)?")

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
        logger=_faults_of_ours(),
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
            if not _well_formed(request):
                raise web.HTTPBadRequest(text="the request is malformed")
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


def _well_formed(request: web.BaseRequest) -> bool:
    """Whether a request's address can be one of ours, and who asks somebody."""
    if not request.headers.get("Authorization", "").isascii():
        return False
    if not _HOST.fullmatch(request.headers.get("Host", "")):
        return False
    try:
        "".join(request.headers.values()).encode()  # bytes that are no text come as surrogates
        return "\0" not in request.url.path + request.url.query_string  # unquoted, both
    except ValueError:
        return False


def _faults_of_ours() -> logging.Logger:
    """Return the logger of what aiohttp can't answer, but for what was no request."""
    made = logging.getLogger("server.web.listener")
    made.addFilter(_is_ours)
    return made


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


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
