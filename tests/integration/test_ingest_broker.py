"""Ingest at the real broker: from a device's publish to its receipt, and what breaks on the way."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
from server.clock import ManualClock
from server.db.migrate import migrate
from server.ingest.mqtt import BrokerSettings
from server.ingest.pipeline import no_failpoint
from server.ingest.state import State
from server.ingest.worker import Ingest
from server.pki.authority import Authority
from tests.ingest_world import MINUTE, NOON, Agent, differences, people, register

pytestmark = pytest.mark.services


@pytest.fixture
async def owner(stack: Stack, database: str) -> AsyncIterator[asyncpg.Connection]:
    dsn = stack.endpoints.dsn("owner", database)
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


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


async def until(true: Callable[[], bool], *, timeout_s: float = 20) -> None:
    """Return once `true()`; TimeoutError."""

    async def answer() -> bool:
        return true()

    await eventually(answer, timeout_s=timeout_s)


async def eventually(true: Callable[[], Awaitable[bool]], *, timeout_s: float = 20) -> None:
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
