"""The bell: rings at a device's `down` topic when there is something else for it.

A ring says nothing but "come and see": what the device is to show, to be and to do it asks for over
HTTPS. One that is lost (the broker away, nobody listening) costs only time, since each device asks
at every connection and once a day. So nothing is kept and nothing repeated here.

Whoever changes what a device is told notifies one of the channels with its id, in the transaction
of the change. One bell at a time rings (an advisory lock): the broker knows one `svc-downlink`. At
most `MOST` rings wait; beyond that all devices would, and find out by themselves.
"""

import asyncio
import random

import aiomqtt
import asyncpg
import structlog

from protocol.identity import device_id
from protocol.topics import Leg, topic
from server.db.engine import DATABASE_AWAY
from server.desired.settings import CHANGED as DESIRED
from server.feedback.questionnaires import CHANGED as PLANNED
from server.fleet.register import CHANGED as MOVED
from server.ingest.mqtt import BrokerSettings
from server.tasks import heed_cancellation

LOCK = 0x6265_6C6C  # "bell"
RING = b"come"
CHANNELS = (PLANNED, MOVED, DESIRED)
MOST = 10_000
STANDBY_S, TIMEOUT_S = 5.0, 10.0
LOOK_S = 30.0

log = structlog.get_logger(__name__)


class Bell:
    """Rings for what the database notifies; `run` until cancelled."""

    def __init__(self, pool: asyncpg.Pool, broker: BrokerSettings) -> None:
        self._pool = pool
        self._broker = broker
        self._waiting: dict[str, None] = {}
        self._wake = asyncio.Event()
        self.listening = asyncio.Event()
        """Set while rings are heard of."""

    async def run(self) -> None:
        """Serve for ever, whatever is away."""
        while True:
            heed_cancellation()
            try:
                async with self._pool.acquire(timeout=STANDBY_S) as connection:
                    if await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
                        await self._hold(connection)
            except DATABASE_AWAY as error:
                log.warning("bell: database away", error=str(error) or type(error).__name__)
            except (aiomqtt.MqttError, OSError) as error:
                log.warning("bell: broker away", error=str(error) or type(error).__name__)
            finally:
                self.listening.clear()
            await asyncio.sleep(random.uniform(STANDBY_S / 2, STANDBY_S))  # noqa: S311

    async def _hold(self, connection: asyncpg.Connection) -> None:
        """Ring while this connection, and so the lock, is ours."""
        for channel in CHANNELS:
            await connection.add_listener(channel, self._heard)
        try:
            client = aiomqtt.Client(
                self._broker.host,
                self._broker.port,
                protocol=aiomqtt.ProtocolVersion.V5,
                tls_context=self._broker.context(),
                timeout=TIMEOUT_S,
                keepalive=20,
            )
            async with client:
                self.listening.set()
                self._wake.set()  # for whom the last connection could not ring
                while True:
                    heed_cancellation()
                    await self._ring(client)
                    if connection.is_closed():
                        return
        finally:
            if not connection.is_closed():
                for channel in CHANNELS:
                    await connection.remove_listener(channel, self._heard)
                await connection.execute("select pg_advisory_unlock($1)", LOCK)

    async def _ring(self, client: aiomqtt.Client) -> None:
        """Ring for all who wait, or look again after a while."""
        try:
            async with asyncio.timeout(LOOK_S):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        while self._waiting:
            device = next(iter(self._waiting))
            try:
                address = topic(device_id(device), Leg.DOWN)
            except ValueError:  # anybody may notify
                log.debug("bell: no device", device=device[:40])
            else:
                await client.publish(address, RING, qos=1)
            self._waiting.pop(device, None)

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        if len(self._waiting) < MOST:
            self._waiting[str(payload)] = None
        self._wake.set()
