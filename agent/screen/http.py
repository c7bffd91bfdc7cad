"""As much HTTP/1.1 as one browser on the same device needs; no more, and no package for it.

Decided here:
- Loopback alone, and only under our own names (`Host`): a page of another name that resolves to
  this device is refused, and so is a request that another page makes (`Origin`).
- One request a connection; a head of at most 8 kB, a body of at most 4 kB with its length, both
  within ten seconds; at most 32 connections, beyond which one is closed at once.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

import structlog

MAX_HEAD, MAX_BODY = 8_192, 4_096
MAX_CONNECTIONS = 32
READ_S = 10.0
_HEADERS = (
    ("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `query` is what stands behind the question mark, as it came."""

    method: str
    path: str
    query: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """One answer; a page is loaded anew after `refresh_s`, 0: never."""

    status: int
    content_type: str
    body: bytes
    refresh_s: int = 0


class HttpError(Exception):
    """A request that is not served, and the status that says why."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


Handler = Callable[[Request], Awaitable[Response]]


def answer(value: object, *, status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(status, "application/json", json.dumps(value, ensure_ascii=False).encode())


async def serve(handler: Handler, *, port: int, ready: Callable[[int], None]) -> None:
    """Serve on 127.0.0.1 until cancelled; `ready` hears the port. OSError if it is taken."""
    open_: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(open_) >= MAX_CONNECTIONS:
            writer.close()
            return
        open_.add(writer)
        try:
            writer.write(_written(await _answered(reader, handler, bound)))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
            log.debug("the page hung up", error=repr(error))
        finally:
            open_.discard(writer)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=MAX_HEAD)
    bound = server.sockets[0].getsockname()[1]
    ready(bound)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        server.close()
        for writer in tuple(open_):
            writer.close()


async def _answered(reader: asyncio.StreamReader, handler: Handler, port: int) -> Response:
    try:
        async with asyncio.timeout(READ_S):
            request = await _read(reader, port)
        return await handler(request)
    except HttpError as error:
        return answer({"error": str(error)}, status=error.status)
    except Exception:
        log.exception("a request of the page failed")
        return answer({"error": "internal"}, status=500)


async def _read(reader: asyncio.StreamReader, port: int) -> Request:
    """Read one request; HttpError if it is not one that we serve."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.LimitOverrunError as error:
        raise HttpError(431, "the head is too long") from error
    line, *rest = head.rstrip("\r\n").split("\r\n")
    parts = line.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1.") or not parts[1].startswith("/"):
        raise HttpError(400, "no request line")
    headers = {}
    for each in rest:
        name, colon, value = each.partition(":")
        if not colon:
            raise HttpError(400, "no header")
        headers[name.strip().lower()] = value.strip()
    own = {f"127.0.0.1:{port}", f"localhost:{port}"}
    if headers.get("host") not in own:
        raise HttpError(421, "this name is not ours")
    if headers.get("origin", f"http://{headers['host']}") != f"http://{headers['host']}":
        raise HttpError(403, "another page asks")
    path, _, query = parts[1].partition("?")
    return Request(parts[0], path, query, await _body(reader, headers))


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    length = headers.get("content-length", "0")
    if not length.isdecimal() or "transfer-encoding" in headers:
        raise HttpError(411, "say how long the body is")
    if int(length) > MAX_BODY:
        raise HttpError(413, "the body is too long")
    if int(length) and headers.get("content-type") != "application/json":
        raise HttpError(415, "send JSON")
    return await reader.readexactly(int(length))


def _written(response: Response) -> bytes:
    phrase = HTTPStatus(response.status).phrase
    lines = [
        f"HTTP/1.1 {response.status} {phrase}",
        f"Content-Type: {response.content_type}; charset=utf-8",
        f"Content-Length: {len(response.body)}",
        *(f"{name}: {value}" for name, value in _HEADERS),
    ]
    if response.refresh_s:
        lines.append(f"Refresh: {response.refresh_s}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + response.body
