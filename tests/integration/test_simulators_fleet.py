"""Fleets of real agents at the real broker: every scenario ends with the truth, and nothing else.

Behind the broker stands a server of a few lines that stores what is next in each boot's sequence.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.link import Identity, LinkOptions
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
from simulators.command import Member, Outcome, simulate
from simulators.device import Conditions
from simulators.faults import ProxyFaults
from simulators.hardware import DeviceSpec
from simulators.scenarios import SCENARIOS, Scenario
from simulators.shapes import ALWAYS
from simulators.traffic import Door, Kiosk, Sensor
from simulators.truth import Truth, TruthFile, read

pytestmark = pytest.mark.services

QUICK = Conditions(
    interval_s=1,
    frame_s=1,
    quiet_frame_s=5,
    options=LinkOptions(retry_min_s=0.05, retry_max_s=0.5, connect_timeout_s=5),
    durable=False,
)
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


def fleet(stack: Stack, folder: Path, number: int, *, name: str) -> list[Member]:
    return [
        Member(
            enrolled(stack, folder, f"{name}-{index:03}"), "kiosk" if index % 4 == 3 else "counter"
        )
        for index in range(number)
    ]


def busy(member: Member) -> DeviceSpec:
    """A door with a person each second on a Saturday at two, and a kiosk that half of them use."""
    name = member.identity.device
    door = Door(name, median_day=14_000, hours=ALWAYS)
    kiosk = Kiosk(rate=0.5) if member.kind == "kiosk" else None
    return DeviceSpec(name, door, 5, sensor=Sensor(lines=(0.6, 0.4)), kiosk=kiosk)


async def play(
    stack: Stack, folder: Path, scenario: Scenario, *, duration_s: float, number: int = 12
) -> tuple[Outcome, Truth, Server]:
    """Run a scenario to its end and return what is said, what is true and what was stored."""
    members = fleet(stack, folder, number, name=scenario.name)
    path = folder / "truth"
    async with serving(stack) as server:
        with TruthFile(path) as truth:
            outcome = await simulate(
                members,
                scenario=scenario,
                duration_s=duration_s,
                state=folder / "state",
                spec=busy,
                truth=truth,
                conditions=QUICK,
                drain_s=60,
                progress=None,
            )
    return outcome, read(path), server


def check(outcome: Outcome, truth: Truth, server: Server, scenario: Scenario) -> None:
    """Nothing lost, doubled or altered; minutes exact where the scenario promises it."""
    assert outcome.drained, outcome.line()
    assert outcome.stats.on_their_way == 0, outcome.line()
    total = truth.people() + truth.pressed()
    assert outcome.stats.generated == outcome.stats.confirmed == total
    assert server.people.total() == total
    assert not truth.unsure_counts
    per_device: Counter[str] = Counter()
    for (device, _, _), pair in truth.counts.items():
        per_device[device] += sum(pair)
    for (device, *_), number in truth.presses.items():
        per_device[device] += number
    assert +per_device == +server.people
    if scenario.expect.minutes:
        expected = Counter(
            {
                (device, line, minute, way): number
                for (device, line, minute), pair in truth.counts.items()
                for way, number in zip(("in", "out"), pair, strict=True)
            }
        )
        assert +expected == server.counts
        assert truth.presses == server.presses
    assert server.undated == 0 or scenario.expect.undated
    assert outcome.conflicts == 0 or scenario.expect.conflicts
    assert outcome.stats.connected == outcome.stats.devices


@pytest.mark.parametrize("name", ["quiet-night", "saturday", "morning-rush"])
async def test_quiet_and_busy_times_are_stored_as_they_were(
    stack: Stack, tmp_path: Path, name: str
) -> None:
    scenario = SCENARIOS[name]
    outcome, truth, server = await play(stack, tmp_path, scenario, duration_s=5)
    check(outcome, truth, server, scenario)
    if name == "saturday":
        assert truth.people() > 50
        assert truth.pressed() > 0
    assert len(server.cursors) == 12
    assert server.repeats == 0


@pytest.mark.parametrize("name", ["flaky-links", "reboots", "clock-trouble", "outage", "clones"])
async def test_trouble_loses_nobody_and_counts_nobody_twice(
    stack: Stack, tmp_path: Path, name: str
) -> None:
    scenario = SCENARIOS[name]
    if scenario.proxy is not None:
        proxy = ProxyFaults(delay_s=0.01, life_s=(1.0, 4.0), half_open=0.2, half_open_s=1.0)
        scenario = replace(scenario, proxy=proxy)
    outcome, truth, server = await play(stack, tmp_path, scenario, duration_s=10)
    check(outcome, truth, server, scenario)
    assert truth.people() > 100
    assert outcome.connects > 12
    match name:
        case "flaky-links":
            assert server.repeats > 0
            assert server.early > 0
        case "reboots" | "clones":
            assert len(server.cursors) > 12
        case "clock-trouble":
            assert server.undated > 0
        case _:
            pass


async def test_a_second_run_goes_on_from_the_same_outboxes(stack: Stack, tmp_path: Path) -> None:
    scenario = SCENARIOS["saturday"]
    members = fleet(stack, tmp_path, 3, name="second-run")
    path = tmp_path / "truth"
    async with serving(stack) as server:
        for _ in range(2):
            with TruthFile(path) as truth:
                outcome = await simulate(
                    members,
                    scenario=scenario,
                    duration_s=3,
                    state=tmp_path / "state",
                    spec=busy,
                    truth=truth,
                    conditions=QUICK,
                    progress=None,
                )
            check(outcome, read(path), server, scenario)
    assert len(server.cursors) == 6
