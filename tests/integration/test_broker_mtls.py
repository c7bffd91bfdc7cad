"""What a device can and cannot do at the real broker.

Refusals are judged by deliveries, not by acknowledgements: the broker grants subscriptions and
acknowledges publishes that it then ignores. To know that nothing came, each test sends something
permitted afterwards and looks at all that has arrived until then.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ops.broker.configuration import MAX_PAYLOAD_BYTES, REVOKED_ROLE
from ops.services.broker import Broker
from ops.services.stack import Stack
from protocol.identity import device_id
from protocol.topics import Leg, topic
from server.pki.authority import Authority

pytestmark = pytest.mark.services

CONTROL = "$CONTROL/dynamic-security/v1"
A = device_id("door-aaaa01")
B = device_id("door-bbbb02")


@dataclass(frozen=True, slots=True)
class Fleet:
    """Connects devices and services to one broker."""

    stack: Stack
    folder: Path

    def certificate(
        self, device: str, *, authority: Authority | None = None, now: datetime | None = None
    ) -> ssl.SSLContext:
        """Enrol `device` and return the TLS settings it would use."""
        signer = authority or Authority.load(self.stack.endpoints.pki)
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        issued = signer.issue_device(
            csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
            device=device,
            now=now or datetime.now(UTC),
        )
        path = self.folder / f"{issued.serial:x}.pem"
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(key_pem + issued.chain_pem)
        return self.trusting(path)

    def identity(self, service: str) -> ssl.SSLContext:
        """Return the TLS settings of one of our services."""
        pki = self.stack.endpoints.pki
        return self.trusting(pki / f"{service}.pem", key=pki / f"{service}.key")

    def trusting(
        self, certificate: Path | None = None, *, key: Path | None = None
    ) -> ssl.SSLContext:
        """Return TLS settings that trust the fleet's roots, and show the certificate if given."""
        context = ssl.create_default_context(cafile=self.stack.endpoints.pki / "bundle.pem")
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        return context

    @property
    def device_port(self) -> int:
        return self.stack.endpoints.broker_device_port

    @property
    def service_port(self) -> int:
        return self.stack.endpoints.broker_service_port

    def device(
        self, device: str, *, tls: ssl.SSLContext | None = None, client_id: str | None = None
    ) -> aiomqtt.Client:
        """Return a client on the devices' listener."""
        return aiomqtt.Client(
            "127.0.0.1",
            self.device_port,
            identifier=client_id or device,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=tls or self.certificate(device),
            timeout=10,
        )

    def service(self, name: str) -> aiomqtt.Client:
        """Return a client on the services' listener."""
        return aiomqtt.Client(
            "127.0.0.1",
            self.service_port,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=self.identity(name),
            timeout=10,
        )


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Fleet:
    return Fleet(stack, tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose broker no other test uses, to be killed."""
    stack = Stack(tmp_path / "stack", role="test")
    try:
        stack.up()
        yield Fleet(stack, tmp_path)
    finally:
        stack.remove()


async def until(client: aiomqtt.Client, payload: bytes) -> list[tuple[str, bytes]]:
    """Return all that arrives up to `payload`, topic and content."""
    arrived: list[tuple[str, bytes]] = []
    async with asyncio.timeout(10):
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            arrived.append((message.topic.value, message.payload))
            if message.payload == payload:
                return arrived
    raise AssertionError("the client was closed")


async def command(control: aiomqtt.Client, *commands: dict[str, object]) -> None:
    """Send commands to the dynamic security plugin and check that each was obeyed."""
    await control.publish(CONTROL, json.dumps({"commands": commands}), qos=1)
    async with asyncio.timeout(10):
        async for message in control.messages:
            assert isinstance(message.payload, bytes)
            answers = json.loads(message.payload)["responses"]
            assert [answer for answer in answers if "error" in answer] == []
            return


async def revoke(fleet: Fleet, device: str) -> None:
    async with fleet.service("svc-control") as control:
        await control.subscribe(f"{CONTROL}/response", qos=1)
        role = {"rolename": REVOKED_ROLE}
        await command(
            control,
            {"command": "createClient", "username": device, "roles": [role]},
            {"command": "disableClient", "username": device},
        )


async def reinstate(fleet: Fleet, device: str) -> None:
    async with fleet.service("svc-control") as control:
        await control.subscribe(f"{CONTROL}/response", qos=1)
        await command(control, {"command": "deleteClient", "username": device})


async def test_a_device_reports_and_gets_its_receipt(fleet: Fleet) -> None:
    async with fleet.service("svc-ingest") as ingest, fleet.device(A) as device:
        await ingest.subscribe("v1/+/+/up", qos=1)
        await device.subscribe(topic(A, Leg.RECEIPT), qos=1)
        await device.publish(topic(A, Leg.UP), b"frame", qos=1)
        assert await until(ingest, b"frame") == [(topic(A, Leg.UP), b"frame")]
        await ingest.publish(topic(A, Leg.RECEIPT), b"stored", qos=1)
        assert await until(device, b"stored") == [(topic(A, Leg.RECEIPT), b"stored")]


async def test_a_command_reaches_its_device(fleet: Fleet) -> None:
    async with fleet.service("svc-downlink") as downlink, fleet.device(A) as device:
        await device.subscribe(topic(A, Leg.DOWN), qos=1)
        await downlink.publish(topic(A, Leg.DOWN), b"ring", qos=1)
        assert await until(device, b"ring") == [(topic(A, Leg.DOWN), b"ring")]


# MQTT 5 CONNECT: clean start, keep alive 60 s, no properties, client id "x"
CONNECT = bytes.fromhex("100e 0004 4d515454 05 02 003c 00 0001 78")


async def refused(port: int, tls: ssl.SSLContext) -> bool:
    """Return whether the broker breaks off the TLS handshake instead of answering CONNECT.

    In TLS 1.3 the refusal of a client's certificate only shows when the client first reads.
    """
    async with asyncio.timeout(10):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        except OSError:  # ssl.SSLError is one
            return True
        try:
            writer.write(CONNECT)
            answer = await reader.read(1)
        except OSError:
            return True
        finally:
            writer.transport.abort()
        assert answer in (b"", b"\x20"), "either nothing or a CONNACK"
        return answer == b""


async def test_without_a_certificate_nobody_gets_in(fleet: Fleet) -> None:
    assert await refused(fleet.device_port, fleet.trusting())


async def test_a_certificate_of_a_foreign_authority_is_refused(fleet: Fleet) -> None:
    foreign = Authority.create(fleet.folder / "foreign")  # the same names, other keys
    assert await refused(fleet.device_port, fleet.certificate(A, authority=foreign))


async def test_an_expired_certificate_is_refused(fleet: Fleet) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=366)
    assert await refused(fleet.device_port, fleet.certificate(A, now=long_ago))


async def test_each_kind_of_certificate_opens_only_its_own_listener(fleet: Fleet) -> None:
    device, service = fleet.certificate(A), fleet.identity("svc-ingest")
    assert not await refused(fleet.device_port, device)
    assert await refused(fleet.service_port, device)
    assert not await refused(fleet.service_port, service)
    assert await refused(fleet.device_port, service)


async def test_x03_another_devices_client_id_takes_nothing_over(fleet: Fleet) -> None:
    async with fleet.service("svc-ingest") as ingest, fleet.device(B) as victim:
        await victim.subscribe(topic(B, Leg.RECEIPT), qos=1)
        async with fleet.device(A, client_id=B) as thief:
            await thief.subscribe([(topic(B, Leg.RECEIPT), 1), (topic(A, Leg.RECEIPT), 1)])
            await ingest.publish(topic(B, Leg.RECEIPT), b"for B", qos=1)
            await ingest.publish(topic(A, Leg.RECEIPT), b"for A", qos=1)
            assert await until(thief, b"for A") == [(topic(A, Leg.RECEIPT), b"for A")]
        assert await until(victim, b"for B") == [(topic(B, Leg.RECEIPT), b"for B")]


@pytest.mark.parametrize(
    "wish", ["#", "+/#", "v1/#", "v1/+/+/up", "v1/+/+/down", "$SYS/#", "$CONTROL/#"]
)
async def test_x02_a_wide_subscription_delivers_only_what_is_its_own(
    fleet: Fleet, wish: str
) -> None:
    async with (
        fleet.service("svc-ingest") as ingest,
        fleet.service("svc-downlink") as downlink,
        fleet.device(A) as nosy,
        fleet.device(B) as other,
    ):
        await ingest.subscribe("v1/+/+/up", qos=1)
        await nosy.subscribe([(wish, 1), (topic(A, Leg.RECEIPT), 1)])
        await other.publish(topic(B, Leg.UP), b"secret", qos=1)
        await downlink.publish(topic(B, Leg.DOWN), b"secret", qos=1)
        await ingest.publish(topic(B, Leg.RECEIPT), b"secret", qos=1)
        await ingest.publish(topic(A, Leg.RECEIPT), b"mine", qos=1)
        arrived = await until(nosy, b"mine")
        assert set(arrived) == {(topic(A, Leg.RECEIPT), b"mine")}


@pytest.mark.parametrize(
    "target",
    [
        topic(B, Leg.UP),
        topic(B, Leg.DOWN),
        topic(B, Leg.RECEIPT),
        f"{topic(A, Leg.UP)}/more",
        f"v2/00/{A}/up",
        "v1/up",
    ],
)
async def test_what_a_device_publishes_elsewhere_reaches_nobody(fleet: Fleet, target: str) -> None:
    async with (
        fleet.service("svc-ingest") as ingest,
        fleet.device(B) as other,
        fleet.device(A) as liar,
    ):
        await ingest.subscribe("v1/+/+/up", qos=1)
        await other.subscribe([(topic(B, Leg.DOWN), 1), (topic(B, Leg.RECEIPT), 1)])
        await liar.publish(target, b"forged", qos=1)
        await liar.publish(topic(A, Leg.UP), b"honest", qos=1)
        assert await until(ingest, b"honest") == [(topic(A, Leg.UP), b"honest")]
        await ingest.publish(topic(B, Leg.RECEIPT), b"end", qos=1)
        assert await until(other, b"end") == [(topic(B, Leg.RECEIPT), b"end")]


async def test_a_device_cannot_revoke_another(fleet: Fleet) -> None:
    order = {
        "commands": [
            {"command": "createClient", "username": B, "roles": [{"rolename": REVOKED_ROLE}]},
            {"command": "disableClient", "username": B},
        ]
    }
    async with fleet.device(A) as liar, fleet.service("svc-ingest") as ingest:
        await liar.publish(CONTROL, json.dumps(order), qos=1)
        await ingest.publish(CONTROL, json.dumps(order), qos=1)  # nor may a stolen ingest
        await ingest.subscribe("v1/+/+/up", qos=1)
        async with fleet.device(B) as other:
            await other.publish(topic(B, Leg.UP), b"still here", qos=1)
            assert await until(ingest, b"still here") == [(topic(B, Leg.UP), b"still here")]


async def test_the_ingest_service_cannot_send_commands(fleet: Fleet) -> None:
    async with fleet.service("svc-ingest") as ingest, fleet.device(A) as device:
        await device.subscribe([(topic(A, Leg.DOWN), 1), (topic(A, Leg.RECEIPT), 1)])
        await ingest.publish(topic(A, Leg.DOWN), b"forged", qos=1)
        await ingest.publish(topic(A, Leg.RECEIPT), b"end", qos=1)
        assert await until(device, b"end") == [(topic(A, Leg.RECEIPT), b"end")]


async def thrown_out(client: aiomqtt.Client) -> None:
    """Return when the broker has closed this client's connection."""
    with pytest.raises(aiomqtt.MqttError):
        await until(client, b"never")


async def test_a_retained_message_is_neither_kept_nor_delivered(fleet: Fleet) -> None:
    async with fleet.service("svc-ingest") as early:
        await early.subscribe("v1/+/+/up", qos=1)
        with suppress(aiomqtt.MqttError):  # at leaving, since it is closed already
            async with fleet.device(A) as device:
                await device.publish(topic(A, Leg.UP), b"for ever", retain=True)
                await thrown_out(device)
        async with fleet.service("svc-ingest") as late, fleet.device(A) as device:
            await late.subscribe("v1/+/+/up", qos=1)
            await device.publish(topic(A, Leg.UP), b"end", qos=1)
            for listener in (early, late):
                assert await until(listener, b"end") == [(topic(A, Leg.UP), b"end")]


async def test_the_largest_frame_passes(fleet: Fleet) -> None:
    largest = bytes(MAX_PAYLOAD_BYTES)
    async with fleet.service("svc-ingest") as ingest, fleet.device(A) as device:
        await ingest.subscribe("v1/+/+/up", qos=1)
        await device.publish(topic(A, Leg.UP), largest, qos=1)
        assert await until(ingest, largest) == [(topic(A, Leg.UP), largest)]


def publish_packet(name: str, payload: bytes) -> bytes:
    """Return an MQTT 5 PUBLISH at QoS 0."""
    body = len(name).to_bytes(2) + name.encode() + b"\x00" + payload
    return b"\x30" + variable_length(len(body)) + body


def variable_length(length: int) -> bytes:
    digits = bytearray()
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    return bytes(digits) + bytes([length])


@pytest.mark.parametrize(
    "packet",
    [
        publish_packet(topic(A, Leg.UP), bytes(MAX_PAYLOAD_BYTES + 2048)),
        publish_packet(topic(A, Leg.UP), bytes(2_000_000)),
        b"\x30" + variable_length(268_435_455) + bytes(4096),
    ],
    ids=["a little", "a lot", "promised only"],
)
async def test_x11_an_oversized_packet_ends_the_connection_and_reaches_nobody(
    fleet: Fleet, packet: bytes
) -> None:
    async with fleet.service("svc-ingest") as ingest, asyncio.timeout(10):
        await ingest.subscribe("v1/+/+/up", qos=1)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", fleet.device_port, ssl=fleet.certificate(A)
        )
        with suppress(ConnectionError):  # closed while we still write
            writer.write(CONNECT)
            assert await reader.read(1) == b"\x20"
            writer.write(packet)
            await reader.read()  # to the end
        writer.transport.abort()
        async with fleet.device(A) as device:
            await device.publish(topic(A, Leg.UP), b"end", qos=1)
            assert await until(ingest, b"end") == [(topic(A, Leg.UP), b"end")]


async def speak_while_revoked(fleet: Fleet, tls: ssl.SSLContext) -> None:
    """Publish as A, which is revoked; whether it is refused or only inert does not matter."""
    with suppress(aiomqtt.MqttError):
        async with fleet.device(A, tls=tls) as back:
            await back.publish(topic(A, Leg.UP), b"revoked", qos=1)


async def test_a_revoked_device_is_thrown_out_and_stays_inert(fleet: Fleet) -> None:
    tls = fleet.certificate(A)
    async with fleet.service("svc-ingest") as ingest, fleet.device(B) as other:
        await ingest.subscribe("v1/+/+/up", qos=1)
        with suppress(aiomqtt.MqttError):  # at leaving, since it is closed already
            async with fleet.device(A, tls=tls) as device:
                await revoke(fleet, A)
                await thrown_out(device)
        await speak_while_revoked(fleet, tls)
        await other.publish(topic(B, Leg.UP), b"end", qos=1)
        assert await until(ingest, b"end") == [(topic(B, Leg.UP), b"end")]
        await reinstate(fleet, A)
        async with fleet.device(A, tls=tls) as device:
            await device.publish(topic(A, Leg.UP), b"welcome", qos=1)
            assert await until(ingest, b"welcome") == [(topic(A, Leg.UP), b"welcome")]


async def test_a_certificate_on_the_revocation_list_is_refused_after_a_restart(
    own: Fleet,
) -> None:
    pki = own.stack.endpoints.pki
    tls = own.certificate(A)
    (path,) = own.folder.glob("*.pem")
    serial = int(path.stem, 16)
    assert not await refused(own.device_port, tls)
    (pki / "device.crl").write_bytes(Authority.load(pki).crl([serial]))
    restart(own.stack.broker)
    assert await refused(own.device_port, tls)
    assert not await refused(own.device_port, own.certificate(B))


async def test_a_killed_broker_still_knows_who_is_revoked(own: Fleet) -> None:
    tls = own.certificate(A)
    await revoke(own, A)
    restart(own.stack.broker)
    async with own.service("svc-ingest") as ingest, own.device(B) as other:
        await ingest.subscribe("v1/+/+/up", qos=1)
        await speak_while_revoked(own, tls)
        await other.publish(topic(B, Leg.UP), b"end", qos=1)
        assert await until(ingest, b"end") == [(topic(B, Leg.UP), b"end")]


def restart(broker: Broker) -> None:
    broker.kill()
    broker.start()
    broker.wait_ready()
