"""Sends the canary: every five seconds, one to each of ingest's lanes, through the broker.

What ingest has stored of it is the watermark (`server.ingest.canary`). A broker that is away is
tried again; meanwhile the watermark stands still, and that is what it is for.
"""

import asyncio

import aiomqtt
import structlog

from server import metrics
from server.clock import Clock
from server.health.platform import CANARY
from server.ingest.canary import ADDRESSES, IDENTITY, frame
from server.ingest.mqtt import BrokerSettings
from server.tasks import heed_cancellation

__all__ = ["IDENTITY", "run"]

log = structlog.get_logger(__name__)

AGAIN_S, TIMEOUT_S = 1.0, 5.0


async def run(broker: BrokerSettings, clock: Clock, *, every_s: float = 0.0) -> None:
    """Send canaries until cancelled, each `every_s` (0: as they are judged by)."""
    while True:
        heed_cancellation()
        try:
            client = aiomqtt.Client(
                broker.host,
                broker.port,
                protocol=aiomqtt.ProtocolVersion.V5,
                tls_context=broker.context(),
                timeout=TIMEOUT_S,
                keepalive=20,
            )
            async with client:
                while True:
                    heed_cancellation()
                    await _send(client, clock)
                    await asyncio.sleep(every_s or CANARY.total_seconds())
        except (aiomqtt.MqttError, OSError) as error:
            log.warning("no canary: broker away", error=str(error) or type(error).__name__)
        await asyncio.sleep(AGAIN_S)


async def _send(client: aiomqtt.Client, clock: Clock) -> None:
    payload = frame(clock.now_ms())
    for address in ADDRESSES:
        await client.publish(address, payload, qos=1)
        metrics.CANARIES.inc()
