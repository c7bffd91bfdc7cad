"""Receives what devices send, in batches, and answers when they are stored.

Flow control is the broker's receive maximum: a message is acknowledged when its batch is
committed, so at most so many wait here, however long the database is away; the rest waits in the
broker, and beyond its bound in the devices. QoS 0 messages are outside of that: past the bound
they are dropped and counted, and the device sends them again.
"""

import asyncio
import random

from protocol.topics import ALL_UP
from server import log, metrics
from server.ingest.batch import Batch
from server.ingest.mqtt import BrokerSettings, Inbound, Link, LinkError
from server.ingest.pipeline import Pipeline
from server.ingest.state import Health

BATCH_MESSAGES = 1000
LINGER_S = 0.004  # wait so long for company when a batch would be small
SMALL = 64
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 15.0
STABLE_S = 30.0  # a link that lasted so long starts the pauses afresh
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


class _Session:
    """One connection: a link, its inbox, and at most one batch stored while one is prepared."""

    def __init__(self, broker: BrokerSettings, pipeline: Pipeline, health: Health) -> None:
        self._broker = broker
        self._pipeline = pipeline
        self._health = health
        self._inbox: list[Inbound] = []
        self._bound = 2 * broker.receive_maximum
        self._arrived = asyncio.Event()
        self._prepared: asyncio.Queue[Batch] = asyncio.Queue(maxsize=1)

    async def run(self) -> None:
        """Serve until the link is lost; raises LinkError, in a group."""
        async with Link(self._broker, self._receive) as link:
            metrics.BROKER_CONNECTIONS.inc()
            await link.subscribe(ALL_UP)
            self._health.broker(connected=True)
            _log.info("listening", broker=f"{self._broker.host}:{self._broker.port}")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.lost())
                tasks.create_task(self._prepare())
                tasks.create_task(self._store(link))

    def _receive(self, messages: list[Inbound]) -> None:
        inbox = self._inbox
        if len(inbox) > self._bound:  # only QoS 0 can bring us here
            kept = [message for message in messages if message[2]]
            metrics.FRAMES_DROPPED.labels("overflow").inc(len(messages) - len(kept))
            messages = kept
        inbox += messages
        self._arrived.set()

    async def _prepare(self) -> None:
        while True:
            await self._arrived.wait()
            if len(self._inbox) < SMALL:
                await asyncio.sleep(LINGER_S)
            messages = self._inbox[:BATCH_MESSAGES]
            del self._inbox[:BATCH_MESSAGES]
            if not self._inbox:
                self._arrived.clear()
            metrics.INGEST_WAITING.set(len(self._inbox) + len(messages))
            await self._prepared.put(await self._pipeline.prepare(messages))

    async def _store(self, link: Link) -> None:
        while True:
            batch = await self._prepared.get()
            done = await self._pipeline.store(batch)
            link.acknowledge([message[2] for message in batch.messages])
            link.publish(done.packets)
