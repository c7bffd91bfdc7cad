"""A server of a few lines behind the real broker, for the simulators' tests.

It stores what is next in each boot's sequence as sums per minute, and says so.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.link import Identity
from ops.services.stack import Stack
from protocol.counter import decode_lines
from protocol.frame import Kind, Quality, Section, decode_time, need, read_body, read_header
from protocol.identity import device_id
from protocol.kiosk import decode_presses
from protocol.session import (
    Answer,
    BootCursor,
    Receipt,
    decode_hello,
    encode_answer,
    encode_receipt,
)
from protocol.topics import ALL_UP, Leg, parse, topic
from server.pki.authority import Authority
from server.tasks import heed_cancellation

DATASET = 99


@dataclass
class Server:
    """Stores minutes of what is next in each boot's sequence; everything else it only answers."""

    stack: Stack
    cursors: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    counts: Counter[tuple[str, int, int, str]] = field(default_factory=Counter)
    presses: Counter[tuple[str, int, int, int]] = field(default_factory=Counter)
    people: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    early: int = 0
    undated: int = 0

    async def run(self, ready: asyncio.Event) -> None:
        pki = self.stack.endpoints.pki
        context = ssl.create_default_context(cafile=pki / "bundle.pem")
        context.load_cert_chain(pki / "svc-ingest.pem", pki / "svc-ingest.key")
        async with aiomqtt.Client(
            "127.0.0.1",
            self.stack.endpoints.broker_service_port,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=context,
        ) as client:
            await client.subscribe(ALL_UP, qos=1)
            ready.set()
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                device = parse(message.topic.value).device
                reply = self.reply(device, message.payload)
                await client.publish(topic(device, Leg.RECEIPT), reply, qos=0)
                heed_cancellation()  # aiomqtt's publish forgets one that comes with its answer

    def reply(self, device: str, data: bytes) -> bytes:
        header = read_header(data)
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        if header.kind == Kind.HELLO:
            hello = decode_hello(data)
            boots = tuple(
                BootCursor(
                    b.boot_id,
                    *self.cursors.get((device, b.boot_id), (0, 0)),
                    known=(device, b.boot_id) in self.cursors,
                )
                for b in hello.boots
            )
            return encode_answer(Answer(hello.nonce, DATASET, now_ms, 1, boots))
        key = (device, header.boot_id)
        next_seq, digest = self.cursors.get(key, (0, 0))
        if header.seq == next_seq:
            self.store(device, data)
            next_seq, digest = self.cursors[key] = (header.seq + 1, header.digest)
        elif header.seq < next_seq:
            self.repeats += 1
        else:
            self.early += 1
        return encode_receipt(Receipt(header.boot_id, next_seq, digest, DATASET, now_ms))

    def store(self, device: str, data: bytes) -> None:
        header = read_header(data)
        sections = read_body(data, header)
        span = decode_time(need(sections, Section.TIME))
        dated = span.quality is not Quality.NONE
        self.undated += not dated
        if header.kind == Kind.COUNTER:
            counts = decode_lines(need(sections, Section.LINES), span)
            first_ms = counts.first_cell_ms(None if dated else 0)
            for line in counts.lines:
                for index, number in enumerate(line.counts):
                    minute = (first_ms + index // 2 * counts.interval_s * 1000) // 60_000
                    way = "out" if index % 2 else "in"
                    if number:
                        self.counts[device, line.line, minute, way] += number
                self.people[device] += sum(line.counts)
        else:
            assert header.kind == Kind.KIOSK
            for press in decode_presses(need(sections, Section.PRESSES), span).presses:
                minute = (span.utc_ms + press.at_ds * 100) // 60_000
                self.presses[device, minute, press.question, press.answer] += 1
                self.people[device] += 1


@asynccontextmanager
async def serving(stack: Stack) -> AsyncIterator[Server]:
    server = Server(stack)
    ready = asyncio.Event()
    task = asyncio.create_task(server.run(ready))
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        yield server
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def enrolled(stack: Stack, folder: Path, name: str) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    issued = Authority.load(stack.endpoints.pki).issue_device(
        csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device=name,
        now=datetime.now(UTC),
    )
    chain, secret = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(issued.chain_pem)
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    bundle = stack.endpoints.pki / "bundle.pem"
    port = stack.endpoints.broker_device_port
    return Identity(device_id(name), "127.0.0.1", port, chain, secret, bundle)
