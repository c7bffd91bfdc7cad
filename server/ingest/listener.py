"""Receives what devices send, in batches, and answers when they are stored.

Flow control is the broker's receive maximum: a message is acknowledged when its batch is
committed, so at most so many wait here, however long the database is away; the rest waits in the
broker, and beyond its bound in the devices. QoS 0 messages are outside of that: past the bound
they are dropped and counted, and the device sends them again.
"""

import asyncio
import random
from collections import deque

from protocol.topics import ALL_UP
from server import log, metrics
from server.ingest.mqtt import BrokerSettings, Inbound, Link, LinkError
from server.ingest.pipeline import Pipeline
from server.ingest.state import Health
from server.tasks import heed_cancellation

BATCH_MESSAGES = 1000
LINGER_S = 0.004  # wait so long for company when a batch would be small
SMALL = 64
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 15.0
STABLE_S = 30.0  # a link that lasted so long starts the pauses afresh
_SHARD_AT = 4  # the shard's last hexadecimal digit in a topic: v1/<shard>/...
_log = log.get("ingest")


async def listen(broker: BrokerSettings, pipeline: Pipeline, health: Health) -> None:
    """Serve for ever, on one connection after the other."""
    wait_s = FIRST_WAIT_S
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        try:
            await _Session(broker, pipeline, health).run()
        except* LinkError as errors:
            health.broker(connected=False)
            _log.warning("broker away", error=str(errors.exceptions[0]))
        if loop.time() - began > STABLE_S:
            wait_s = FIRST_WAIT_S
        await asyncio.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


class _Lane:
    """Some shards' messages, in order, batch after batch.

    While one lane waits for the database the other reads and plans. A device is always in the same
    lane, so lanes have no cursor in common and need know nothing of each other.
    """

    def __init__(self, pipeline: Pipeline, session: "_Session") -> None:
        self._pipeline = pipeline
        self._session = session
        self._arrived = asyncio.Event()
        self.inbox: list[Inbound] = []

    def wake(self) -> None:
        """Take note of new messages in the inbox."""
        if self.inbox:
            self._arrived.set()

    async def run(self, link: Link) -> None:
        """Store what comes and answer it, until cancelled."""
        while True:
            heed_cancellation()
            await self._arrived.wait()
            if len(self.inbox) < SMALL:
                await asyncio.sleep(LINGER_S)
            messages = self.inbox[:BATCH_MESSAGES]
            del self.inbox[:BATCH_MESSAGES]
            if not self.inbox:
                self._arrived.clear()
            done = await self._pipeline.store(await self._pipeline.prepare(messages))
            self._session.stored(link, messages)
            link.publish(done.packets)


class _Session:
    """One connection: a link and its lanes. Messages are acknowledged in the order they came."""

    def __init__(self, broker: BrokerSettings, pipeline: Pipeline, health: Health) -> None:
        self._broker = broker
        self._pipeline = pipeline
        self._health = health
        self._bound = 2 * broker.receive_maximum
        self._lanes = (_Lane(pipeline, self), _Lane(pipeline, self))
        self._waiting: deque[int] = deque()
        self._stored: set[int] = set()

    async def run(self) -> None:
        """Serve until the link is lost; raises LinkError, in a group."""
        async with Link(self._broker, self._receive) as link:
            metrics.BROKER_CONNECTIONS.inc()
            await link.subscribe(ALL_UP)
            if not link.session_present:
                await self._pipeline.broker_started()
            self._health.broker(connected=True)
            _log.info("listening", broker=f"{self._broker.host}:{self._broker.port}")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.lost())
                for lane in self._lanes:
                    tasks.create_task(lane.run(link))

    def _receive(self, messages: list[Inbound]) -> None:
        even, odd = self._lanes
        if len(even.inbox) + len(odd.inbox) > self._bound:  # only QoS 0 can bring us here
            kept = [message for message in messages if message[2]]
            metrics.FRAMES_DROPPED.labels("overflow").inc(len(messages) - len(kept))
            messages = kept
        self._waiting.extend([message[2] for message in messages if message[2]])
        for message in messages:
            topic = message[0]
            # '1' and 'a' are odd and so on: the parity of the character, not of its value
            lane = odd if len(topic) > _SHARD_AT and topic[_SHARD_AT] & 1 else even
            lane.inbox.append(message)
        metrics.INGEST_WAITING.set(len(self._waiting))
        even.wake()
        odd.wake()

    def stored(self, link: Link, messages: list[Inbound]) -> None:
        """Acknowledge these, and what waited for them, in the order received."""
        waiting, stored = self._waiting, self._stored
        stored.update([message[2] for message in messages])
        stored.discard(0)
        ready: list[int] = []
        while waiting and waiting[0] in stored:
            packet_id = waiting.popleft()
            stored.discard(packet_id)
            ready.append(packet_id)
        link.acknowledge(ready)
        metrics.INGEST_WAITING.set(len(waiting))
