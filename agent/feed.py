"""Feeders: programs that know of crossings or presses and tell us, over a socket or a pipe.

One JSON object a line, at most 1,024 bytes. The feeder names itself, and numbers its events
strictly upwards:

    {"source": "radar"}                                          -> {"stored": 16}
    {"source": "radar", "id": 17, "line": 0, "in": 1, "out": 0}  -> {"stored": 17}
    {"source": "panel", "id": 9, "question": 1, "answer": 3, "visit": 4}
    {"source": "panel", "later_s": 1800}: update not now, please  -> {"later_s": 1800}
    {"status": true}                                             -> {"status": {...}}
                                             at any time, to all -> {"identify": true}

`stored` follows the fsync of the journal, not the event; it may cover several. An id that was seen
is not counted again, so after any crash a feeder asks, and goes on after the id it hears. What
can't be recorded is answered with {"error": ..., "id": ...}, once, and never stored. `visit` may
be left out: presses within 30 s of each other then make one.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import structlog

from agent.recorder import Feed, RefusedError
from agent.sensor import Crossing, Event, Sensor, Take, Touch

MAX_LINE = 1_024
MAX_SOURCE = 64
MAX_FEEDERS = 64  # connections at a time
MAX_ID = (1 << 63) - 1
MAX_LATER_S = 4 * 3_600
WRITE_BOUND = 65_536  # a feeder that does not read its answers is dropped

log = structlog.get_logger(__name__)


Later = Callable[[str, int], None]
"""Takes who asks to be left alone, and for how many seconds."""


class _Answers(Protocol):
    def answer(self, message: dict[str, object]) -> None: ...


class Feeders:
    """The rules of feeding, for any number of feeders, whatever carries their lines."""

    def __init__(
        self,
        *,
        last_id: Callable[[str], int],
        status: Callable[[], dict[str, object]],
        later: Later | None = None,
    ) -> None:
        self._last_id = last_id
        self._status = status
        self._later = later
        self._seen: dict[str, int] = {}
        self._waiting: dict[_Answers, dict[str, int]] = {}

    def line(self, text: bytes, *, take: Take, feeder: _Answers) -> None:
        """Act on one line."""
        number: object = None
        try:
            message = _object(text)
            number = message.get("id")
            if message.get("status") is True:
                feeder.answer({"status": self._status()})
                return
            source = _source(message)
            if "later_s" in message and self._later is not None:
                for_s = _integer(message, "later_s", 1, MAX_LATER_S)
                self._later(source, for_s)
                feeder.answer({"later_s": for_s})
                return
            told = self._waiting.setdefault(feeder, {})
            if "id" not in message:
                told[source] = self._last_id(source)
                feeder.answer({"stored": told[source]})
                return
            told.setdefault(source, 0)
            feed = Feed(source, _integer(message, "id", 1, MAX_ID))
            event = _event(message, feed)
            stored = self._last_id(source)
            if feed.id <= stored:
                feeder.answer({"stored": stored})
            elif feed.id > max(stored, self._seen.get(source, 0)):
                take(event)
                self._seen[source] = feed.id
        except RefusedError as error:
            feeder.answer({"error": str(error), "id": number})

    def flushed(self) -> None:
        """Tell each feeder how far its events are journalled now."""
        for feeder, told in self._waiting.items():
            for source, last in told.items():
                stored = self._last_id(source)
                if stored > last:
                    told[source] = stored
                    feeder.answer({"stored": stored})

    def identify(self) -> str:
        """Ask each feeder to blink or beep; return who was asked, empty if nobody listens."""
        for feeder in self._waiting:
            feeder.answer({"identify": True})
        return "feeder" if self._waiting else ""

    def gone(self, feeder: _Answers) -> None:
        """Forget a feeder that hung up; what it has fed stays."""
        self._waiting.pop(feeder, None)


class SocketSensor(Sensor):
    """Feeders at a Unix socket, which only the agent's user and group may open."""

    def __init__(
        self,
        path: Path,
        *,
        last_id: Callable[[str], int],
        status: Callable[[], dict[str, object]],
        later: Later | None = None,
    ) -> None:
        self._path = path
        self._feeders = Feeders(last_id=last_id, status=status, later=later)
        self._open: set[asyncio.StreamWriter] = set()

    async def run(self, take: Take) -> None:
        """Listen until cancelled."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._open) >= MAX_FEEDERS:
                writer.close()
                return
            self._open.add(writer)
            try:
                await self._serve(reader, _Writer(writer), take)
            finally:
                self._open.discard(writer)
                writer.close()

        self._path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            self._path.unlink()  # the outbox's lock says that no other agent lives
        server = await asyncio.start_unix_server(serve, self._path, limit=MAX_LINE)
        self._path.chmod(0o660)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            for writer in self._open:
                writer.close()
            with suppress(FileNotFoundError):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, feeder: "_Writer", take: Take) -> None:
        try:
            async for line in reader:
                self._feeders.line(line, take=take, feeder=feeder)
        except ValueError:
            feeder.answer({"error": f"a line has at most {MAX_LINE} bytes"})
        except ConnectionError as error:
            log.debug("feeder hung up", error=str(error))
        finally:
            self._feeders.gone(feeder)

    def flushed(self) -> None:
        """Tell the feeders."""
        self._feeders.flushed()

    def identify(self) -> str:
        """Ask the feeders."""
        return self._feeders.identify()


class StdinSensor(Sensor):
    """One feeder at standard input; its answers go to standard output."""

    def __init__(
        self,
        *,
        last_id: Callable[[str], int],
        status: Callable[[], dict[str, object]],
        later: Later | None = None,
    ) -> None:
        self._feeders = Feeders(last_id=last_id, status=status, later=later)

    async def run(self, take: Take) -> None:
        """Read until the feeder closes its end."""
        reader = asyncio.StreamReader(limit=MAX_LINE)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        try:
            async for line in reader:
                self._feeders.line(line, take=take, feeder=_STDOUT)
        finally:
            transport.close()

    def flushed(self) -> None:
        """Tell the feeder."""
        self._feeders.flushed()

    def identify(self) -> str:
        """Ask the feeder."""
        return self._feeders.identify()


class _Writer:
    """A feeder's end of a socket."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def answer(self, message: dict[str, object]) -> None:
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > WRITE_BOUND:
            self._writer.transport.abort()
            return
        self._writer.write(json.dumps(message).encode() + b"\n")


class _Stdout:
    def answer(self, message: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


_STDOUT = _Stdout()


def _object(text: bytes) -> dict[str, object]:
    try:
        message = json.loads(text)
    except ValueError as error:
        raise RefusedError(f"expected one JSON object a line: {error}") from error
    if not isinstance(message, dict):
        raise RefusedError("expected a JSON object")
    return message


def _source(message: dict[str, object]) -> str:
    source = message.get("source")
    if not isinstance(source, str) or not 1 <= len(source.encode()) <= MAX_SOURCE:
        raise RefusedError(f"'source' names the feeder in 1 to {MAX_SOURCE} bytes")
    return source


def _event(message: dict[str, object], feed: Feed) -> Event:
    if "line" in message:
        return Crossing(
            _integer(message, "line", 0, 255),
            _integer(message, "in", 0, 1 << 31, default=0),
            _integer(message, "out", 0, 1 << 31, default=0),
            feed,
        )
    if "question" in message:
        visit = _integer(message, "visit", 0, (1 << 32) - 1) if "visit" in message else None
        return Touch(
            _integer(message, "question", 0, 255),
            _integer(message, "answer", 0, 255),
            visit,
            feed=feed,
        )
    raise RefusedError("expected 'line' with 'in' and 'out', or 'question' with 'answer'")


def _integer(
    message: dict[str, object], name: str, low: int, high: int, *, default: int | None = None
) -> int:
    value = message.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise RefusedError(f"'{name}' is a whole number from {low} to {high}, got {value!r}")
    return value
