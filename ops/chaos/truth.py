"""The truth, as its own process: it feeds agents and writes down what they confirmed.

    python -m ops.chaos.truth --agents AGENTS.json --out TRUTH --seed N [--rate R]

AGENTS.json is a list of {"device", "socket", "kind", "lines"}. Each agent hears people (counters)
or presses (kiosks) over its Unix socket, as newline JSON. An event is true once the agent has
answered that its journal holds it, and not before; the file is fsynced. An agent that was killed
is asked where it stands and gets only what it does not have: ids make that exactly once.

SIGTERM: no more events; ends when each event that was offered is confirmed. Each second one line
of JSON on standard output says how far it is. It imports nothing of the product.
"""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from ops.chaos.record import Crossing, Event, Journal, Touch, read

SOURCE = "truth"
MAX_WAITING = 64  # events offered to one agent and not confirmed: then nobody new comes
COMMIT_EVERY_S = 0.1
RETRY_S = 0.05
SILENCE_S = 10.0  # an agent that answers nothing for so long is dialled anew


@dataclass(frozen=True, slots=True)
class Fed:
    """An agent as the truth knows it."""

    device: str
    socket: str
    kind: str
    lines: int = 2


class Visitors:
    """Who comes to one agent: a sequence that depends on nothing but seed, device and id."""

    def __init__(self, agent: Fed, *, seed: int) -> None:
        self._agent = agent
        self._rng = Random(f"{seed}/{agent.device}")  # noqa: S311 - to be repeated
        self._id = 0
        self._visit = 0

    def next(self) -> Event:
        """Return the next event; its times are not known yet."""
        self._id += 1
        rng, device = self._rng, self._agent.device
        if self._agent.kind == "kiosk":
            self._visit += rng.choice((0, 1, 1, 2)) if self._visit else 1
            question, answer = rng.choice((1, 1, 1, 2)), rng.randrange(1, 6)
            return Touch(device, self._id, question, answer, self._visit, 0, 0)
        people = rng.choice((1, 1, 1, 1, 2, 2, 3, 5))
        entered = rng.randint(0, people)
        line = rng.randrange(self._agent.lines)
        return Crossing(device, self._id, line, entered, people - entered, 0, 0)


def spoken(event: Event) -> bytes:
    """Return the event as the agent's socket takes it."""
    said: dict[str, object] = {"source": SOURCE, "id": event.id}
    if isinstance(event, Crossing):
        said |= {"line": event.line, "in": event.entered, "out": event.left}
    else:
        said |= {"question": event.question, "answer": event.answer, "visit": event.visit}
    return json.dumps(said).encode() + b"\n"


@dataclass(slots=True)
class Feeder:
    """One agent's visitors: offered, waiting for confirmation, confirmed."""

    agent: Fed
    visitors: Visitors
    rate: float
    rng: Random
    confirmed: int = 0
    forgot: int = 0
    refused: int = 0
    waiting: deque[Event] = field(default_factory=deque)
    true: list[Event] = field(default_factory=list)
    closing: bool = False

    @property
    def done(self) -> bool:
        return self.closing and not self.waiting

    async def run(self) -> None:
        """Feed until nothing is left to confirm; redial as often as it takes."""
        while not self.done:
            with suppress(OSError, TimeoutError, EOFError, ValueError):
                reader, writer = await asyncio.open_unix_connection(self.agent.socket)
                try:
                    await self._talk(reader, writer)
                finally:
                    writer.close()
                    with suppress(OSError):
                        await writer.wait_closed()
            await asyncio.sleep(RETRY_S)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ask where the agent stands, offer again what it lacks, then go on."""
        writer.write(json.dumps({"source": SOURCE}).encode() + b"\n")
        stands = await self._answer(reader)
        if stands < self.confirmed:
            self.forgot += self.confirmed - stands
            print(json.dumps({"forgot": self.agent.device, "confirmed": self.confirmed,
                              "found": stands}), flush=True)  # fmt: skip
        self._confirm(stands)
        for event in self.waiting:
            writer.write(spoken(event))
        hearing = asyncio.create_task(self._hear(reader))
        try:
            while not self.done and not hearing.done():
                await self._offer(writer)
                await asyncio.wait({hearing}, timeout=self.rng.expovariate(self.rate))
        finally:
            hearing.cancel()
            with suppress(asyncio.CancelledError, OSError, TimeoutError, EOFError, ValueError):
                await hearing

    async def _offer(self, writer: asyncio.StreamWriter) -> None:
        if self.closing or len(self.waiting) >= MAX_WAITING:
            return
        event = replace(self.visitors.next(), sent_ms=_now_ms())
        self.waiting.append(event)
        writer.write(spoken(event))
        await writer.drain()

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while True:
            self._confirm(await self._answer(reader))

    async def _answer(self, reader: asyncio.StreamReader) -> int:
        """Return the id up to which the agent has journalled; a refusal is told and counted."""
        silence = SILENCE_S if self.waiting else None
        line = await asyncio.wait_for(reader.readline(), silence)
        if not line:
            raise EOFError
        said: dict[str, Any] = json.loads(line)
        if "stored" not in said:
            self.refused += 1
            print(json.dumps({"refused": self.agent.device, "said": said}), flush=True)
            raise ValueError(line)
        return int(said["stored"])

    def _confirm(self, upto: int) -> None:
        now = _now_ms()
        while self.waiting and self.waiting[0].id <= upto:
            self.true.append(replace(self.waiting.popleft(), stored_ms=now))
        self.confirmed = max(self.confirmed, upto)


def feeder(agent: Fed, *, seed: int, rate: float, before: Iterable[Event]) -> Feeder:
    """Return the agent's feeder, after the events that an earlier run has confirmed."""
    visitors = Visitors(agent, seed=seed)
    made = Feeder(agent, visitors, rate, Random(f"{seed}/{agent.device}/pace"))  # noqa: S311
    for _ in (event for event in before if event.device == agent.device):
        made.confirmed = visitors.next().id
    return made


async def run(feeders: list[Feeder], journal: Journal) -> None:
    """Feed all; write down what was confirmed; say each second how far it is."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _close, feeders)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in feeders]
        told = 0.0
        while True:
            finished = all(task.done() for task in tasks)
            fresh = [event for each in feeders for event in each.true]
            for each in feeders:
                each.true = []
            if fresh:
                await asyncio.to_thread(journal.commit, fresh)
            if finished or time.monotonic() - told >= 1:
                told = time.monotonic()
                print(json.dumps(progress(feeders)), flush=True)
            if finished:
                return
            await asyncio.sleep(COMMIT_EVERY_S)


def progress(feeders: list[Feeder]) -> dict[str, int]:
    """Return how far it is, all agents together."""
    return {
        "confirmed": sum(each.confirmed for each in feeders),
        "waiting": sum(len(each.waiting) for each in feeders),
        "forgot": sum(each.forgot for each in feeders),
        "refused": sum(each.refused for each in feeders),
    }


def _close(feeders: list[Feeder]) -> None:
    for each in feeders:
        each.closing = True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def main(argv: list[str]) -> int:
    """Be the truth until told to stop; 1 if an agent forgot what it had confirmed."""
    parser = argparse.ArgumentParser(prog="ops.chaos.truth", description=__doc__)
    parser.add_argument("--agents", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rate", type=float, default=4.0, help="events a second and agent")
    options = parser.parse_args(argv)
    agents = [Fed(**entry) for entry in json.loads(options.agents.read_text())]
    journal = Journal(options.out)
    told = read(options.out)
    before: list[Event] = [*told.crossings, *told.touches]
    feeders = [
        feeder(agent, seed=options.seed, rate=options.rate, before=before) for agent in agents
    ]
    try:
        asyncio.run(run(feeders, journal))
    finally:
        journal.close()
    return 1 if any(each.forgot for each in feeders) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
