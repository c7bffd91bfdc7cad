"""What somebody does who sits between a device and us, with a certificate that the world trusts."""

from __future__ import annotations

import asyncio
import gc
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.clock import SystemClock
from agent.link import Link, LinkOptions
from agent.outbox import Outbox
from ops.services.stack import Stack
from tests.integration.test_agent_link import identity, linked, until
from tests.unit.test_agent_enrol import Root

pytestmark = pytest.mark.services


@asynccontextmanager
async def between(folder: Path, world: Root) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server in our place, certified by `world`; its port and what it was told."""
    told: list[bytes] = []
    key = ec.generate_private_key(ec.SECP256R1())
    path = folder / "between.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + world.sign(key.public_key(), "broker").public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(hear, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], told


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_x29_a_device_says_nothing_to_who_shows_a_certificate_of_the_world(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Root("A public authority")
    trusted = tmp_path / "world.pem"
    trusted.write_text(world.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
    async with between(tmp_path, world) as (port, told):
        browser = ssl.create_default_context()  # who trusts the world is taken in
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=browser)
        writer.write(b"hello")
        await until(lambda: told)
        writer.close()
        link = Link(
            replace(identity(stack, tmp_path), broker_port=port),
            Outbox(":memory:"),
            clock=SystemClock(),
            rng=random.Random(1),
            options=LinkOptions(connect_timeout_s=3),
        )
        async with linked(link):
            await until(lambda: link.last_error)
            assert link.connects == 0
            assert "certificate" in str(link.last_error).lower()
        assert told == [b"hello"]
    gc.collect()  # paho leaves a failed handshake's socket to the collector
