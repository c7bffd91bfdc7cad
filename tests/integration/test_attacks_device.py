"""What somebody does who holds a device: its key, its certificate, and all it ever sent.

Judged by what is delivered and what is stored, never by what the broker acknowledges.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.identity import device_id
from protocol.session import Answer, Receipt
from protocol.topics import Leg, topic
from server import metrics
from server.ingest.batch import BURST
from tests.ingest_world import differences, people, rebuilt, register
from tests.integration.test_broker_mtls import (
    A,
    B,
    Fleet,
    publish_packet,
    until,
    variable_length,
)
from tests.integration.test_ingest_broker import (
    Door,
    device_context,
    door,
    eventually,
    running,
)

pytestmark = pytest.mark.services


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Fleet:
    return Fleet(stack, tmp_path)


def text(value: str) -> bytes:
    return len(value).to_bytes(2) + value.encode()


def connect_packet(
    name: str, *, properties: bytes = b"", will: tuple[str, bytes, int] | None = None
) -> bytes:
    """Return an MQTT 5 CONNECT; `will`: topic, content and flags (0x20 retained, 0x08 QoS 1)."""
    flags = 0x02 if will is None else 0x06 | will[2]
    body = text("MQTT") + bytes((5, flags)) + (300).to_bytes(2)
    body += variable_length(len(properties)) + properties + text(name)
    if will is not None:
        body += b"\x00" + text(will[0]) + len(will[1]).to_bytes(2) + will[1]
    return b"\x10" + variable_length(len(body)) + body


def subscribe_packet(*names: str) -> bytes:
    body = b"\x00\x01\x00" + b"".join(text(name) + b"\x01" for name in names)
    return b"\x82" + variable_length(len(body)) + body


async def raw(
    fleet: Fleet, name: str, packet: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as `name` and return the connection once it is accepted."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", fleet.device_port, ssl=fleet.certificate(device_id(name))
    )
    writer.write(packet)
    assert await reader.readexactly(1) == b"\x20"
    left = (await reader.readexactly(1))[0]
    assert (await reader.readexactly(left))[1] == 0, "accepted"
    return reader, writer


# -- other topics, other messages ----------------------------------------------------------------


async def test_x01_frames_for_another_devices_door_are_not_stored(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    registered = await register(owner, 2, prefix="dc-x01")
    thief, victim = registered.agent(0), registered.agent(1)
    async with running(stack, database), door(stack, tmp_path, thief) as device:
        stolen = Door(device._client, victim)  # the victim's frames on the victim's topic
        for qos in (0, 1):
            await stolen.send(victim.counter(), qos=qos)
        await device.send(thief.counter())
        await device.stored(1)
    assert await people(owner, registered.spots[0]) == (10, 10)
    assert await people(owner, registered.spots[1]) == (0, 0)
    assert await owner.fetchval("select count(*) from boots") == 1


@pytest.mark.parametrize("flags", [0x00, 0x08, 0x20, 0x28], ids=["0", "1", "retained 0", "r 1"])
@pytest.mark.parametrize("leg", [Leg.UP, Leg.DOWN, Leg.RECEIPT])
async def test_x04_a_will_on_anothers_topic_reaches_nobody(
    fleet: Fleet, leg: Leg, flags: int
) -> None:
    async with fleet.service("svc-ingest") as ingest, fleet.device(B) as other:
        await ingest.subscribe("v1/+/+/up", qos=1)
        await other.subscribe([(topic(B, Leg.DOWN), 1), (topic(B, Leg.RECEIPT), 1)])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", fleet.device_port, ssl=fleet.certificate(A)
        )
        writer.write(connect_packet(A, will=(topic(B, leg), b"last will", flags)))
        await reader.read(1)  # accepted or, if it would be retained, refused at once
        writer.transport.abort()
        async with fleet.device(A) as device:  # so the broker has ended what was before
            await device.publish(topic(A, Leg.UP), b"honest", qos=1)
            assert await until(ingest, b"honest") == [(topic(A, Leg.UP), b"honest")]
        await ingest.publish(topic(B, Leg.RECEIPT), b"end", qos=1)
        assert await until(other, b"end") == [(topic(B, Leg.RECEIPT), b"end")]


async def test_x06_recorded_frames_are_answered_and_change_nothing(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    registered = await register(owner, 1, prefix="dc-x06")
    agent = registered.agent()
    recorded = [agent.counter() for _ in range(3)]
    async with running(stack, database):
        for _ in range(3):  # over as many connections
            async with door(stack, tmp_path, agent) as device:
                for frame in [*recorded, *reversed(recorded)]:
                    await device.send(frame)
                await device.stored(3)
    assert await people(owner, registered.spots[0]) == (30, 30)
    assert await differences(owner) == []
    assert await rebuilt(owner) == []


async def test_x07_other_content_under_a_stored_number_is_noted_and_the_first_stays(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    registered = await register(owner, 1, prefix="dc-x07")
    agent, forger = registered.agent(), registered.agent()
    async with running(stack, database), door(stack, tmp_path, agent) as device:
        await device.send(agent.counter())
        await device.stored(1)
        await device.send(forger.counter([[9, 9] * 5]))
        await device.send(agent.counter())
        await device.stored(2)

        async def noted() -> bool:
            # one broker for all tests: a stray frame of the one before may come late
            found = await owner.fetch("select finding from findings where device_id is not null")
            return [row["finding"] for row in found] == ["digest mismatch"]

        await eventually(noted)
    assert await people(owner, registered.spots[0]) == (20, 20)


# -- too much ------------------------------------------------------------------------------------


FLOOD_PER_S = 10_000  # a hundred times what a device may send for long


def with_number(packet: bytes, number: int) -> bytes:
    """Return a QoS 0 PUBLISH as QoS 1 of this number."""
    at = 1
    while packet[at] & 128:
        at += 1
    body = packet[at + 1 :]
    end = 2 + int.from_bytes(body[:2])
    body = body[:end] + number.to_bytes(2) + body[end:]
    return b"\x32" + variable_length(len(body)) + body


def dropped() -> float:
    found: float = metrics.FRAMES_DROPPED.labels("rate")._value.get()
    return found


@pytest.mark.parametrize("qos", [0, 1])
async def test_x10_a_flood_keeps_nobody_elses_people_waiting(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path, qos: int
) -> None:
    """Others are answered while it lasts; of the flood no more is looked at than the bucket has."""
    registered = await register(owner, 2, prefix="dc-x10")
    flooder, other = registered.agent(0), registered.agent(1)
    hello = publish_packet(topic(flooder.device, Leg.UP), flooder.hello())
    packets = [hello if qos == 0 else with_number(hello, 1 + n) for n in range(200)]
    sent = 0
    ended = asyncio.Event()

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while not ended.is_set():
            writer.write(b"".join(packets))
            await writer.drain()
            sent += len(packets)
            await asyncio.sleep(len(packets) / FLOOD_PER_S)

    before = dropped()
    async with running(stack, database), door(stack, tmp_path, other) as device:
        await device.send(other.counter())
        await device.stored(1)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            stack.endpoints.broker_device_port,
            ssl=device_context(stack, tmp_path, flooder.device),
        )
        writer.write(connect_packet(flooder.device))
        assert await reader.read(1) == b"\x20"
        flooding = asyncio.create_task(flood(writer))
        listening = asyncio.create_task(reader.read(-1))  # acknowledgements
        try:

            async def dry() -> bool:
                return dropped() - before > 1_000

            await eventually(dry)  # its bucket is empty, and it goes on
            for number in range(2, 12):
                await device.send(other.counter())
                await device.stored(number)
            assert not flooding.done(), "the flood was going on all the while"
        finally:
            ended.set()
            writer.transport.abort()
            listening.cancel()
            await asyncio.gather(flooding, listening, return_exceptions=True)
    assert sent > BURST
    assert await people(owner, registered.spots[1]) == (110, 110)


async def test_x12_who_acknowledges_nothing_keeps_nobody_else_waiting(fleet: Fleet) -> None:
    """It asked for 65,535 at once and reads none of them; the broker holds what it must."""
    greedy = connect_packet(A, properties=b"\x21\xff\xff")
    async with fleet.service("svc-downlink") as downlink, fleet.device(B) as other:
        await other.subscribe(topic(B, Leg.DOWN), qos=1)
        reader, writer = await raw(fleet, A, greedy)
        try:
            writer.write(subscribe_packet(topic(A, Leg.DOWN)))
            assert await reader.readexactly(1) == b"\x90"
            for _ in range(100):
                await downlink.publish(topic(A, Leg.DOWN), bytes(32_768), qos=1)
            await downlink.publish(topic(B, Leg.DOWN), b"ring", qos=1)
            assert await until(other, b"ring") == [(topic(B, Leg.DOWN), b"ring")]
        finally:
            writer.transport.abort()
        async with fleet.device(A) as back:  # nothing was kept for it either
            await back.subscribe(topic(A, Leg.DOWN), qos=1)
            await downlink.publish(topic(A, Leg.DOWN), b"end", qos=1)
            assert await until(back, b"end") == [(topic(A, Leg.DOWN), b"end")]


async def test_x13_sessions_that_last_for_ever_do_not(fleet: Fleet) -> None:
    """What would arm the broker's crash at SIGHUP, and fill it, ends with the connection."""
    for _ in range(3):
        _, writer = await raw(fleet, A, connect_packet(A, properties=b"\x11\xff\xff\xff\xfe"))
        writer.write(subscribe_packet(topic(A, Leg.DOWN)))
        await writer.drain()
        writer.transport.abort()
    async with fleet.service("svc-downlink") as downlink, fleet.device(B) as other:
        await other.subscribe(topic(B, Leg.DOWN), qos=1)
        await downlink.publish(topic(B, Leg.DOWN), b"ring", qos=1)
        assert await until(other, b"ring") == [(topic(B, Leg.DOWN), b"ring")]


# -- strings -------------------------------------------------------------------------------------


async def test_x17_what_a_device_calls_itself_is_stored_as_text_and_breaks_nothing(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    registered = await register(owner, 1, prefix="dc-x17")
    agent = registered.agent()
    names = ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "'; drop table boots --", "%s{0}"]
    async with running(stack, database), door(stack, tmp_path, agent) as device:
        for name in names:
            await device.send(agent.hello(name=name[:32]))
            assert isinstance(await device.hear(), Answer)
        await device.send(agent.counter())
        assert isinstance(await device.stored(1), Receipt)
    assert await people(owner, registered.spots[0]) == (10, 10)
