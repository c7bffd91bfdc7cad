"""The link against the real broker, with a server of a few lines behind it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.clock import SystemClock
from agent.identity import Enrolled, write
from agent.link import Identity, Link, LinkOptions
from agent.outbox import Outbox
from agent.recorder import Profile, Recorder
from ops.services.stack import Stack
from protocol.counter import decode_lines
from protocol.frame import Kind, Section, decode_time, need, read_body, read_header
from protocol.identity import DeviceId, device_id
from protocol.session import (
    Answer,
    BootCursor,
    Hello,
    Receipt,
    decode_hello,
    encode_answer,
    encode_receipt,
)
from protocol.topics import ALL_UP, Leg, parse, topic
from server.pki.authority import Authority
from server.tasks import heed_cancellation

pytestmark = pytest.mark.services

DEVICE = device_id("door-link01")
QUICK = LinkOptions(retry_min_s=0.05, retry_max_s=0.5, connect_timeout_s=5)
DATASET = 77


@dataclass
class Fake:
    """A server that stores in memory what is next, and says so."""

    stack: Stack
    cursors: dict[int, tuple[int, int]] = field(default_factory=dict)
    hellos: list[Hello] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    people: int = 0

    async def run(self, ready: asyncio.Event) -> None:
        async with aiomqtt.Client(
            "127.0.0.1",
            self.stack.endpoints.broker_service_port,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=_service_tls(self.stack.endpoints.pki),
        ) as client:
            await client.subscribe(ALL_UP, qos=1)
            ready.set()
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                device = parse(message.topic.value).device
                await client.publish(topic(device, Leg.RECEIPT), self.reply(message.payload), qos=0)
                heed_cancellation()  # aiomqtt's publish forgets one that comes with its answer

    def reply(self, data: bytes) -> bytes:
        header = read_header(data)
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        if header.kind == Kind.HELLO:
            hello = decode_hello(data)
            self.hellos.append(hello)
            boots = tuple(
                BootCursor(b.boot_id, *self.cursors.get(b.boot_id, (0, 0)), known=True)
                for b in hello.boots
            )
            return encode_answer(Answer(hello.nonce, DATASET, now_ms, 1, boots))
        next_seq, digest = self.cursors.get(header.boot_id, (0, 0))
        if header.seq == next_seq:
            next_seq, digest = header.seq + 1, header.digest
            self.cursors[header.boot_id] = (next_seq, digest)
            self.stored.append(header.seq)
            if header.kind == Kind.COUNTER:
                sections = read_body(data, header)
                span = decode_time(need(sections, Section.TIME))
                counts = decode_lines(need(sections, Section.LINES), span)
                self.people += sum(sum(line.counts) for line in counts.lines)
        return encode_receipt(Receipt(header.boot_id, next_seq, digest, DATASET, now_ms))


@asynccontextmanager
async def running(fake: Fake) -> AsyncIterator[None]:
    ready = asyncio.Event()
    task = asyncio.create_task(fake.run(ready))
    try:
        async with asyncio.timeout(20):
            await ready.wait()
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, aiomqtt.MqttError):
            await task


def identity(stack: Stack, folder: Path, device: DeviceId = DEVICE) -> Identity:
    """Enrol `device` as the server would."""
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    issued = Authority.load(stack.endpoints.pki).issue_device(
        csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device=device,
        now=datetime.now(UTC),
    )
    chain, secret = folder / f"{device}.pem", folder / f"{device}.key"
    chain.write_bytes(issued.chain_pem)
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    bundle = stack.endpoints.pki / "bundle.pem"
    return Identity(device, "127.0.0.1", stack.endpoints.broker_device_port, chain, secret, bundle)


def agent(outbox: Outbox) -> Recorder:
    return Recorder(
        outbox,
        clock=SystemClock(),
        profile=Profile("counter"),
        new_boot_id=lambda: random.getrandbits(64),
    )


def fill(outbox: Outbox, number: int) -> None:
    recorder = agent(outbox)
    for _ in range(number):
        recorder.health({"cpu.load": 0.5})


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - what is waited for is in another task's hands
            await asyncio.sleep(0.02)


async def settled(outbox: Outbox) -> None:
    await until(lambda: not outbox.pending())


@asynccontextmanager
async def linked(link: Link) -> AsyncIterator[None]:
    task = asyncio.create_task(link.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_what_waits_is_sent_receipted_and_forgotten(stack: Stack, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    fill(outbox, 100)
    fake = Fake(stack)
    link = Link(
        identity(stack, tmp_path), outbox, clock=SystemClock(), rng=random.Random(1), options=QUICK
    )
    async with running(fake), linked(link):
        await settled(outbox)
        assert fake.stored == list(range(100))
        assert link.connected
        assert fake.hellos[0].agent == "vestibule"
    assert not link.connected


async def test_a_cut_connection_sends_the_will_of_its_epoch_and_comes_back(
    stack: Stack, tmp_path: Path
) -> None:
    outbox = Outbox(tmp_path / "outbox")
    fill(outbox, 3)
    fake = Fake(stack)
    me = identity(stack, tmp_path)
    link = Link(me, outbox, clock=SystemClock(), rng=random.Random(1), options=QUICK)
    async with running(fake), linked(link):
        await settled(outbox)
        epoch = fake.hellos[0].nonce >> 32
        other = Link(me, Outbox(":memory:"), clock=SystemClock(), rng=random.Random(2))
        async with linked(other):  # the broker drops the older of two with one id
            await until(lambda: any(hello.agent == "will" for hello in fake.hellos))
        will = next(hello for hello in fake.hellos if hello.agent == "will")
        assert will.nonce == epoch << 32
        assert will.boots == ()
        fill(outbox, 2)
        await settled(outbox)
        assert fake.hellos[-1].nonce >> 32 != epoch


async def test_a_foreign_certificate_is_refused_and_not_tried_again_soon(
    stack: Stack, tmp_path: Path
) -> None:
    foreign = Authority.create(tmp_path / "foreign")
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    issued = foreign.issue_device(
        csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device=DEVICE,
        now=datetime.now(UTC),
    )
    me = identity(stack, tmp_path)
    me.chain.write_bytes(issued.chain_pem)
    me.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    link = Link(
        me,
        Outbox(":memory:"),
        clock=SystemClock(),
        rng=random.Random(1),
        options=LinkOptions(connect_timeout_s=3),
    )
    async with linked(link):
        await until(lambda: link.last_error)
        assert link.connects == 0


async def test_a_link_ends_whenever_it_is_cancelled(stack: Stack, tmp_path: Path) -> None:
    me = identity(stack, tmp_path, device_id("door-stop01"))
    for ms in range(0, 60, 3):
        link = Link(
            me, Outbox(":memory:"), clock=SystemClock(), rng=random.Random(ms), options=QUICK
        )
        async with asyncio.timeout(20), linked(link):
            await asyncio.sleep(ms / 1000)


class Process:
    """The agent as systemd runs it, to be fed at its socket and killed."""

    def __init__(self, me: Identity, folder: Path) -> None:
        self.socket = folder / "agent.sock"
        state = folder / "state"
        key = folder / "pending.pem"
        key.write_bytes(me.key.read_bytes())
        enrolled = Enrolled(me.device, "counter", me.broker_host, me.broker_port, "claim")
        write(state, enrolled, key=key, chain=me.chain.read_text(), bundle=me.bundle.read_text())
        self._environ = {
            **os.environ,
            "VESTIBULE_AGENT_STATE": str(state),
            "VESTIBULE_AGENT_SOCKET": str(self.socket),
            "VESTIBULE_AGENT_INTERVAL_S": "1",
            "VESTIBULE_AGENT_FRAME_S": "1",
            "VESTIBULE_AGENT_QUIET_FRAME_S": "2",
            "VESTIBULE_AGENT_FLUSH_S": "0.05",
            "VESTIBULE_AGENT_SPREAD_S": "0",
            "VESTIBULE_AGENT_RETRY_MIN_S": "0.1",
            "VESTIBULE_AGENT_RETRY_MAX_S": "0.5",
        }

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent", "run", env=self._environ, cwd=Path(__file__).parents[2]
        )

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        self._process.terminate()
        return await self._process.wait()

    async def command(self, *arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent",
            *arguments,
            env=self._environ,
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode()

    async def feed(self, number: int) -> int:
        """Feed `number` people, resuming as a feeder should; return the last id confirmed."""
        async with asyncio.timeout(30):
            reader, writer = await self._connect()
            writer.write(b'{"source":"test"}\n')
            last = int(json.loads(await reader.readline())["stored"])
            for event in range(last + 1, last + number + 1):
                writer.write(b'{"source":"test","id":%d,"line":0,"in":1,"out":0}\n' % event)
            stored = last
            while stored < last + number:
                stored = int(json.loads(await reader.readline())["stored"])
            writer.close()
            return stored

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            with suppress(OSError):
                return await asyncio.open_unix_connection(self.socket)
            await asyncio.sleep(0.02)


async def test_a_killed_agent_delivers_each_confirmed_person_once(
    stack: Stack, tmp_path: Path
) -> None:
    fake = Fake(stack)
    process = Process(identity(stack, tmp_path, device_id("door-proc01")), tmp_path)
    rng, confirmed = random.Random(3), 0
    async with running(fake):
        for _ in range(6):
            await process.start()
            confirmed = await process.feed(rng.randrange(1, 60))
            await asyncio.sleep(rng.uniform(0, 1.5))  # the moment of the kill is what varies
            await process.kill()
        await process.start()
        assert await process.feed(5) == confirmed + 5
        await until(lambda: fake.people == confirmed + 5)
        code, out = await process.command("count", "--in", "2", "--source", "hand")
        assert (code, out) == (0, "on disk: event 1 of 'hand'\n")
        await until(lambda: fake.people == confirmed + 7)
        status = json.loads((await process.command("status"))[1])
        assert status["connected"]
        assert (await process.command("run"))[0] == 5
        code, out = await process.command("doctor")
        assert code == 0, out
        assert await process.stop() == 0
        assert (await process.command("status"))[0] == 75


def _service_tls(pki: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki / "bundle.pem")
    context.load_cert_chain(pki / "svc-ingest.pem", pki / "svc-ingest.key")
    return context
