"""Ingest at the real broker: from a device's publish to its receipt, and what breaks on the way."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ops.services.stack import Stack
from protocol.identity import DeviceId
from protocol.session import Answer, Receipt, decode_downlink
from protocol.topics import Leg, topic
from server.clock import ManualClock, at
from server.fleet.register import grant_backfill
from server.ingest.mqtt import BrokerSettings, Inbound, Link, LinkError, publish_head
from server.ingest.pipeline import no_failpoint
from server.ingest.state import State
from server.ingest.worker import Ingest
from server.pki.authority import Authority
from server.tasks import heed_cancellation
from tests.ingest_world import MINUTE, NOON, Agent, differences, owning, people, rebuilt, register

pytestmark = pytest.mark.services


def broker_settings(
    stack: Stack, *, session: str = "ingest-0", maximum: int = 500
) -> BrokerSettings:
    pki = stack.endpoints.pki
    return BrokerSettings(
        "127.0.0.1",
        stack.endpoints.broker_service_port,
        pki / "bundle.pem",
        pki / "svc-ingest.pem",
        pki / "svc-ingest.key",
        session=session,
        receive_maximum=maximum,
    )


def device_context(stack: Stack, folder: Path, device: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    issued = Authority.load(stack.endpoints.pki).issue_device(
        csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device=DeviceId(device),
        now=datetime.now(UTC),
    )
    path = folder / f"{device}.pem"
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(key_pem + issued.chain_pem)
    context = ssl.create_default_context(cafile=stack.endpoints.pki / "bundle.pem")
    context.load_cert_chain(path)
    return context


class Door:
    """A connected device: publishes frames, hears receipts."""

    def __init__(self, client: aiomqtt.Client, agent: Agent) -> None:
        self._client = client
        self.agent = agent
        self.heard: asyncio.Queue[Receipt | Answer] = asyncio.Queue()

    async def send(self, frame: bytes, *, qos: int = 1) -> None:
        await self._client.publish(self.agent.up.decode(), frame, qos=qos)
        heed_cancellation()  # aiomqtt's publish forgets one that comes with its answer

    async def hear(self) -> Receipt | Answer:
        async with asyncio.timeout(20):
            async for message in self._client.messages:
                assert isinstance(message.payload, bytes)
                return decode_downlink(message.payload)
        raise AssertionError("disconnected")

    async def stored(self, next_seq: int) -> Receipt:
        """Wait for the receipt that says so much is stored."""
        while True:
            heard = await self.hear()
            if isinstance(heard, Receipt) and heard.next_seq == next_seq:
                return heard


@asynccontextmanager
async def door(stack: Stack, folder: Path, agent: Agent) -> AsyncIterator[Door]:
    async with aiomqtt.Client(
        "127.0.0.1",
        stack.endpoints.broker_device_port,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=device_context(stack, folder, agent.device),
        identifier=agent.device,
    ) as client:
        await client.subscribe(topic(agent.device, Leg.RECEIPT))
        yield Door(client, agent)


@asynccontextmanager
async def running(
    stack: Stack, database: str, *, failpoint: Callable[[str], None] = no_failpoint
) -> AsyncIterator[Ingest]:
    """Run an ingest worker until the block ends."""
    async with asyncpg.create_pool(
        stack.endpoints.dsn("ingest", database), min_size=2, max_size=5
    ) as pool:
        ingest = Ingest(
            pool, broker_settings(stack), ManualClock(NOON + 60 * MINUTE), failpoint=failpoint
        )
        task = asyncio.create_task(ingest.run())
        try:
            await until(lambda: ingest.state is State.RUNNING)
            yield ingest
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Return once `true()`; TimeoutError."""

    async def answer() -> bool:
        return true()

    await eventually(answer, timeout_s=timeout_s)


async def eventually(true: Callable[[], Awaitable[bool]], *, timeout_s: float = 60) -> None:
    """Return once `await true()`; TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not await true():  # noqa: ASYNC110 - asks other processes
            await asyncio.sleep(0.02)


async def test_a_frame_travels_from_the_device_to_its_receipt(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet = await register(owner, 1, prefix="dc-travel")
    agent = fleet.agent()
    async with running(stack, database), door(stack, tmp_path, agent) as device:
        await device.send(agent.hello())
        answer = await device.hear()
        assert isinstance(answer, Answer)
        assert [(b.known, b.next_seq) for b in answer.boots] == [(False, 0)]
        for number in range(3):
            await device.send(agent.counter())
            await device.stored(number + 1)
    assert await people(owner, fleet.spots[0]) == (30, 30)
    assert await differences(owner) == []


async def test_qos_0_is_stored_and_receipted_like_all_else(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet = await register(owner, 1, prefix="dc-qos0")
    agent = fleet.agent()
    async with running(stack, database), door(stack, tmp_path, agent) as device:
        await device.send(agent.counter(), qos=0)
        await device.stored(1)


async def test_a_revocation_notified_takes_effect_at_once(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet = await register(owner, 2, prefix="dc-revoke")
    agent, other = fleet.agent(0), fleet.agent(1)
    async with (
        running(stack, database),
        door(stack, tmp_path, agent) as device,
        door(stack, tmp_path, other) as witness,
    ):
        await device.send(agent.counter())
        await device.stored(1)
        suspend = "update devices set state = 'suspended' where device = $1"
        await owner.execute(suspend, agent.device)
        await owner.execute("select pg_notify('fleet_changed', $1)", agent.device)
        for number in range(3):  # what comes after the notice is refused
            await witness.send(other.counter())
            await witness.stored(number + 1)
        await device.send(agent.counter())
        await witness.send(other.counter())
        await witness.stored(4)
    assert await people(owner, fleet.spots[0]) == (10, 10)


async def test_a_grant_notified_places_what_was_held(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet = await register(owner, 1, prefix="dc-grant", since_ms=NOON - 400 * 86_400_000)
    await owner.execute("update devices set enrolled_at = now()")
    agent = fleet.agent(booted_ms=NOON - 300 * 86_400_000, now_ms=NOON - 300 * 86_400_000)
    async with running(stack, database), door(stack, tmp_path, agent) as device:
        await device.send(agent.counter())
        await device.stored(1)
        ref = await owner.fetchval("select ref from spots where id = $1", fleet.spots[0])
        await grant_backfill(owner, spot=ref, since=at(agent.booted_ms), until=at(NOON),
                             reason="test", granted_by="command", now=at(NOON))  # fmt: skip

        async def placed() -> bool:
            return await people(owner, fleet.spots[0]) == (10, 10)

        await eventually(placed)
    assert await rebuilt(owner) == []


@asynccontextmanager
async def publisher(stack: Stack, folder: Path, device: str) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client(
        "127.0.0.1",
        stack.endpoints.broker_device_port,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=device_context(stack, folder, device),
        identifier=device,
    ) as client:
        yield client


class Inbox:
    """What a link delivers, waiting to be looked at."""

    def __init__(self) -> None:
        self.messages: list[Inbound] = []

    def __call__(self, messages: list[Inbound]) -> None:
        self.messages += messages

    async def holds(self, count: int) -> list[Inbound]:
        await until(lambda: len(self.messages) >= count)
        return self.messages

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.messages]


@pytest.fixture
def session() -> str:
    """A session of its own for each test, as the broker keeps them."""
    return f"contract-{secrets.token_hex(6)}"


async def test_what_was_not_acknowledged_comes_again_on_the_next_link(
    stack: Stack, session: str, tmp_path: Path
) -> None:
    name = DeviceId("dc-contract-1")
    up = topic(name, Leg.UP)
    settings = broker_settings(stack, session=session)
    first, second = Inbox(), Inbox()
    async with publisher(stack, tmp_path, name) as client:
        async with Link(settings, first) as link:
            await link.subscribe(up)
            for number in range(10):
                await client.publish(up, b"%d" % number, qos=1)
            messages = await first.holds(10)
            link.acknowledge([packet_id for _, _, packet_id in messages[:4]])
        await client.publish(up, b"while away", qos=1)
        async with Link(settings, second):
            await second.holds(7)
            await client.publish(up, b"end", qos=1)
            await second.holds(8)
    assert first.payloads == [b"%d" % number for number in range(10)]
    assert second.payloads == [*first.payloads[4:], b"while away", b"end"]


async def test_the_receive_maximum_is_exact_backpressure(
    stack: Stack, session: str, tmp_path: Path
) -> None:
    name = DeviceId("dc-contract-2")
    up = topic(name, Leg.UP)
    inbox = Inbox()
    async with (
        publisher(stack, tmp_path, name) as client,
        Link(broker_settings(stack, session=session, maximum=7), inbox) as link,
    ):
        await link.subscribe(up)
        for number in range(30):
            await client.publish(up, b"%d" % number, qos=1)
        await inbox.holds(7)
        await client.publish(up, b"unlimited", qos=0)  # outside of the window: all else has come
        await inbox.holds(8)
        assert inbox.payloads == [*(b"%d" % number for number in range(7)), b"unlimited"]
        link.acknowledge([packet_id for _, _, packet_id in inbox.messages[:3]])
        await inbox.holds(11)
        await client.publish(up, b"again", qos=0)
        await inbox.holds(12)
        assert len(inbox.messages) == 12


async def test_an_acknowledgement_of_a_lost_link_acknowledges_nothing(
    stack: Stack, session: str, tmp_path: Path
) -> None:
    name = DeviceId("dc-contract-3")
    up = topic(name, Leg.UP)
    settings = broker_settings(stack, session=session)
    first, second, third = Inbox(), Inbox(), Inbox()
    async with publisher(stack, tmp_path, name) as client:
        async with Link(settings, first) as old:
            await old.subscribe(up)
            await client.publish(up, b"0", qos=1)
            stale = [packet_id for _, _, packet_id in await first.holds(1)]
            async with Link(settings, second) as taking_over:
                with pytest.raises(LinkError):
                    await asyncio.wait_for(old.lost(), 20)
                await second.holds(1)
                assert not old.alive
                old.acknowledge(stale)
                assert taking_over.alive
        async with Link(settings, third):
            await third.holds(1)
    assert third.payloads == [b"0"]


async def test_a_stranger_is_no_service(stack: Stack, session: str, tmp_path: Path) -> None:
    device_context(stack, tmp_path, "dc-contract-4")
    own = tmp_path / "dc-contract-4.pem"
    settings = replace(broker_settings(stack, session=session), certfile=own, keyfile=own)

    async def try_it() -> None:
        async with Link(settings, Inbox()) as link:
            await link.subscribe("v1/+/+/up")
            await link.lost()

    with pytest.raises(LinkError):
        await try_it()


async def test_a_large_frame_and_a_long_answer_pass(
    stack: Stack, session: str, tmp_path: Path
) -> None:
    name = DeviceId("dc-contract-5")
    inbox = Inbox()
    payload = bytes(61_440)
    async with (
        publisher(stack, tmp_path, name) as client,
        Link(broker_settings(stack, session=session), inbox) as link,
    ):
        await link.subscribe(topic(name, Leg.UP))
        await client.subscribe(topic(name, Leg.RECEIPT))
        await client.publish(topic(name, Leg.UP), payload, qos=1)
        assert (await inbox.holds(1))[0][1] == payload
        head = publish_head(topic(name, Leg.RECEIPT), 40_000)
        link.publish([head + bytes(40_000)] * 3)
        async with asyncio.timeout(20):
            for _ in range(3):
                message = await anext(client.messages)
                assert message.payload == bytes(40_000)


async def test_ingest_outlives_its_broker_and_its_database(tmp_path: Path) -> None:
    """Both killed, the broker coming back with nothing: what was sent and not receipted is sent."""
    with tempfile.TemporaryDirectory(prefix="vestibule-faults-") as folder:
        Path(folder).chmod(0o755)
        own = Stack(Path(folder) / "stack", role="test")
        await asyncio.to_thread(own.up)
        try:
            await _outlive(own, tmp_path)
        finally:
            await asyncio.to_thread(own.remove)


async def _outlive(own: Stack, folder: Path) -> None:
    own.postgres.create_database("faults")
    async with owning(own, "faults") as owner:
        fleet = await register(owner, 1, prefix="dc-outlive")
    agent = fleet.agent()
    frames = [agent.counter() for _ in range(4)]
    async with running(own, "faults") as ingest:
        async with door(own, folder, agent) as device:
            await device.send(frames[0])
            await device.stored(1)
            await asyncio.to_thread(own.postgres.kill)
            await device.send(frames[1])
            await until(lambda: ingest.state is State.DATABASE_AWAY)
            await asyncio.to_thread(own.up)
            await device.stored(2)
            await asyncio.to_thread(own.broker.kill)
        await until(lambda: ingest.state is State.BROKER_AWAY)
        await asyncio.to_thread(own.up)
        await until(lambda: ingest.state is State.RUNNING, timeout_s=40)
        async with door(own, folder, agent) as device:
            for frame in frames:
                await device.send(frame)
            await device.stored(4)
    async with owning(own, "faults") as owner:
        assert await people(owner, fleet.spots[0]) == (40, 40)
        assert await rebuilt(owner) == []
