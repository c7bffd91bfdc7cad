"""Speak as another device, really: one device's certificate, the real broker, another's topic."""

import asyncio
import secrets
import ssl
import time
from dataclasses import dataclass

import asyncpg
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from agent.link import Identity, tls_context
from protocol.counter import Counts, Line, encode_counter
from protocol.frame import Quality, Span
from protocol.identity import DeviceId
from protocol.topics import Leg, topic

WAIT_S = 5.0
SETTLE_S = 1.5  # a stored frame has its receipt within a tenth of this


@dataclass(frozen=True, slots=True)
class Attempt:
    """What was tried and what came of it."""

    at: float
    speaker: DeviceId
    victim: DeviceId
    topic: str
    code: int
    said: str
    stored_frames: int

    @property
    def refused(self) -> bool:
        return self.code >= 0x80 and self.stored_frames == 0


def forged_frame() -> tuple[int, bytes]:
    """Return a perfectly good frame of a boot that nobody has: 99 people who never came."""
    boot_id = secrets.randbits(63)
    start = int(time.time()) // 60 * 60_000 - 60_000
    counts = Counts(Span(0, 60_000, start, Quality.SYNCED), 60, (Line(0, 99, 0, (99, 0)),))
    return boot_id, encode_counter(counts, boot_id=boot_id, seq=0, ordinal=1)


async def speak_as(identity: Identity, victim: DeviceId, *, dsn: str) -> Attempt:
    """Publish a good frame on the victim's topic with our own certificate; see what is stored."""
    boot_id, frame = forged_frame()
    where = topic(victim, Leg.UP)
    code, said = await asyncio.to_thread(_publish, identity, victim, where, frame)
    await asyncio.sleep(SETTLE_S)
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        stored = await connection.fetchval("select count(*) from boots where boot_id = $1", boot_id)
    finally:
        await connection.close()
    return Attempt(time.time(), identity.device, victim, where, code, said, int(stored))


def _publish(identity: Identity, victim: DeviceId, where: str, frame: bytes) -> tuple[int, str]:
    """Return the reason code that the broker answers the publish with."""
    answered: list[ReasonCode] = []
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=victim, protocol=MQTTProtocolVersion.MQTTv5
    )
    context: ssl.SSLContext = tls_context(identity)
    client.tls_set_context(context)

    def on_publish(_: object, __: object, ___: int, code: ReasonCode, ____: Properties) -> None:
        answered.append(code)

    client.on_publish = on_publish
    client.connect(identity.broker_host, identity.broker_port, clean_start=True)
    client.loop_start()
    try:
        client.publish(where, frame, qos=1)
        until = time.monotonic() + WAIT_S
        while not answered and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        client.disconnect()
        client.loop_stop()
    if not answered:
        return 0x87, "the broker closed the connection without an answer"
    return int(answered[0].value), str(answered[0])
