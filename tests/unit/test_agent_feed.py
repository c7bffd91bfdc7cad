"""Feeders: what is confirmed, what is refused, what a repeated id does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agent.feed import MAX_LATER_S, Feeders, SocketSensor
from agent.recorder import RefusedError
from agent.sensor import Button, Crossing, Event, Touch


class Journal:
    """Takes events; what was taken counts as stored once `flush` is called."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stored: dict[str, int] = {}

    def take(self, event: Event) -> None:
        if isinstance(event, Crossing) and event.line > 3:
            raise RefusedError("no such line")
        self.events.append(event)

    def last_id(self, source: str) -> int:
        return self.stored.get(source, 0)

    def flush(self) -> None:
        for event in self.events:
            if not isinstance(event, Button) and event.feed is not None:
                self.stored[event.feed.source] = event.feed.id


class Ear:
    def __init__(self) -> None:
        self.heard: list[dict[str, object]] = []

    def answer(self, message: dict[str, object]) -> None:
        self.heard.append(message)


def said(*lines: object) -> tuple[Journal, Ear, Feeders]:
    journal, ear = Journal(), Ear()
    feeders = Feeders(last_id=journal.last_id, status=lambda: {"device": "x"})
    for line in lines:
        text = line if isinstance(line, bytes) else json.dumps(line).encode()
        feeders.line(text, take=journal.take, feeder=ear)
    return journal, ear, feeders


def test_stored_is_said_only_after_the_journal_is_written() -> None:
    journal, ear, feeders = said(
        {"source": "radar"},
        {"source": "radar", "id": 1, "line": 0, "in": 1, "out": 0},
        {"source": "radar", "id": 2, "line": 1, "in": 0, "out": 2},
    )
    assert ear.heard == [{"stored": 0}]
    feeders.flushed()
    assert ear.heard == [{"stored": 0}]
    journal.flush()
    feeders.flushed()
    feeders.flushed()
    assert ear.heard == [{"stored": 0}, {"stored": 2}]


def test_a_repeated_id_is_counted_once_and_confirmed_again() -> None:
    event = {"source": "a", "id": 5, "line": 0, "in": 1}
    journal, ear, feeders = said(event, event)
    assert len(journal.events) == 1
    journal.flush()
    feeders.flushed()
    feeders.line(json.dumps(event).encode(), take=journal.take, feeder=ear)
    assert ear.heard == [{"stored": 5}, {"stored": 5}]
    assert len(journal.events) == 1


def test_presses_may_come_with_their_visit_or_without() -> None:
    journal, _, _ = said(
        {"source": "a", "id": 1, "question": 1, "answer": 3, "visit": 9},
        {"source": "a", "id": 2, "question": 1, "answer": 4},
    )
    first, second = journal.events
    assert isinstance(first, Touch)
    assert isinstance(second, Touch)
    assert (first.visit, second.visit) == (9, None)


def test_what_is_malformed_is_refused_with_a_reason_and_the_rest_goes_on() -> None:
    journal, ear, _ = said(
        b"not json",
        [1, 2],
        {"id": 1, "line": 0},
        {"source": "a", "id": 0, "line": 0},
        {"source": "a", "id": True, "line": 0},
        {"source": "a", "id": 1, "line": "0"},
        {"source": "a", "id": 1, "line": 0, "in": -1},
        {"source": "a", "id": 1, "line": 9, "in": 1},
        {"source": "a", "id": 1},
        {"source": "x" * 65, "id": 1, "line": 0},
        {"source": "a", "id": 1, "line": 0, "in": 1},
    )
    assert all("error" in message for message in ear.heard)
    assert len(ear.heard) == 10
    assert len(journal.events) == 1


def test_anyone_may_ask_how_it_is() -> None:
    _, ear, _ = said({"status": True})
    assert ear.heard == [{"status": {"device": "x"}}]


@asynccontextmanager
async def listening(sensor: SocketSensor, journal: Journal, path: Path) -> AsyncIterator[None]:
    task = asyncio.create_task(sensor.run(journal.take))
    try:
        async with asyncio.timeout(10):
            while not path.exists():  # noqa: ASYNC110 - another task makes it
                await asyncio.sleep(0.01)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_feeder_at_the_socket_is_heard_and_answered(tmp_path: Path) -> None:
    path, journal = tmp_path / "sock", Journal()
    path.touch()  # left behind by a killed agent
    path.unlink()
    sensor = SocketSensor(path, last_id=journal.last_id, status=dict)
    async with listening(sensor, journal, path), asyncio.timeout(10):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"source":"a"}\n{"source":"a","id":1,"line":0,"in":1,"out":0}\n')
        assert json.loads(await reader.readline()) == {"stored": 0}
        while not journal.events:  # noqa: ASYNC110 - the server task takes it
            await asyncio.sleep(0.01)
        journal.flush()
        sensor.flushed()
        assert json.loads(await reader.readline()) == {"stored": 1}
        writer.write(b"x" * 5_000)
        assert "error" in json.loads(await reader.readline())
        assert await reader.read() == b""
        writer.close()
    assert not path.exists()


def test_who_asks_to_be_left_alone_is_told_for_how_long() -> None:
    journal, ear, asked = Journal(), Ear(), list[tuple[str, int]]()
    feeders = Feeders(
        last_id=journal.last_id, status=dict, later=lambda who, for_s: asked.append((who, for_s))
    )
    for message in (
        {"source": "panel", "later_s": 1800},
        {"source": "panel", "later_s": 0},
        {"source": "panel", "later_s": MAX_LATER_S + 1},
        {"later_s": 60},
    ):
        feeders.line(json.dumps(message).encode(), take=journal.take, feeder=ear)
    assert asked == [("panel", 1800)]
    assert ear.heard[0] == {"later_s": 1800}
    assert all("error" in each for each in ear.heard[1:])
