"""Devices at the real broker, and an admission worker, for the tests of revocation."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ops.services.stack import Stack
from protocol.identity import device_id
from protocol.topics import Leg, topic
from server.admission.broker import open_control
from server.admission.orders import Moved, move, reinstate
from server.admission.probe import DENIED, Listener
from server.admission.worker import Admission, no_failpoint
from server.clock import SystemClock
from server.fleet.lifecycle import State
from server.ingest.mqtt import BrokerSettings
from server.pki.authority import Authority
from server.pki.profile import LEAF_LIFE
from tests.ingest_world import Fleet, register


class Skipping(SystemClock):
    """The host's clock, whose durations can be made longer, and which can be set wrong."""

    def __init__(self) -> None:
        self.skipped_s = 0.0
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms

    def monotonic(self) -> float:
        return super().monotonic() + self.skipped_s


def service(stack: Stack, name: str = "svc-control") -> BrokerSettings:
    """Return where the broker is for one of our services."""
    pki = stack.endpoints.pki
    port = stack.endpoints.broker_service_port
    return BrokerSettings(
        "127.0.0.1", port, pki / "bundle.pem", pki / f"{name}.pem", pki / f"{name}.key"
    )


def devices(stack: Stack) -> Listener:
    """Return the devices' listener."""
    return Listener("127.0.0.1", stack.endpoints.broker_device_port, stack.endpoints.pki)


@asynccontextmanager
async def admitting(
    stack: Stack,
    database: str,
    *,
    failpoint: Callable[[str], None] = no_failpoint,
    clock: SystemClock | None = None,
) -> AsyncIterator[asyncio.Task[None]]:
    """Run an admission worker until the block ends."""
    async with asyncpg.create_pool(
        stack.endpoints.dsn("ingest", database), min_size=1, max_size=2
    ) as pool:
        worker = Admission(
            pool, service(stack), devices(stack), clock or Skipping(), failpoint=failpoint
        )
        task = asyncio.create_task(worker.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A device's certificate, as the register knows it and as the device shows it."""

    serial: str
    not_after: datetime
    tls: ssl.SSLContext


async def certify(
    owner: asyncpg.Connection,
    stack: Stack,
    fleet: Fleet,
    at: int = 0,
    *,
    folder: Path,
    lasts_s: float | None = None,
    authority: Authority | None = None,
) -> Certificate:
    """Give a device its active certificate; the one before it retires. `lasts_s` from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    now = datetime.now(UTC)
    issued = (authority or Authority.load(stack.endpoints.pki)).issue_device(
        request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device=fleet.devices[at],
        now=now
        if lasts_s is None
        else datetime.fromtimestamp(time.time() + lasts_s, UTC) - LEAF_LIFE,
    )
    serial = f"{issued.serial:x}"
    async with owner.transaction():
        await owner.execute(
            "update certificates set state = 'retired' where device_id = $1 and state = 'active'",
            fleet.rows[at],
        )
        await owner.execute(
            "insert into certificates (serial, organisation_id, device_id, spki_sha256, chain, "
            "not_after) values ($1, $2, $3, $4, $5, $6)",
            *(serial, fleet.organisation, fleet.rows[at], serial.encode().ljust(32)[:32]),
            *(issued.chain_pem.decode(), issued.not_after),
        )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = folder / f"{serial}.pem"
    path.write_bytes(private + issued.chain_pem)
    tls = ssl.create_default_context(cafile=stack.endpoints.pki / "bundle.pem")
    tls.load_cert_chain(path)
    return Certificate(serial, issued.not_after, tls)


async def enrolled(
    owner: asyncpg.Connection, stack: Stack, folder: Path, *, count: int = 1, prefix: str
) -> tuple[Fleet, list[Certificate]]:
    """Register devices, and give each its certificate."""
    fleet = await register(owner, count, prefix=prefix)
    return fleet, [await certify(owner, stack, fleet, i, folder=folder) for i in range(count)]


def client(stack: Stack, device: str, tls: ssl.SSLContext) -> aiomqtt.Client:
    """Return a device's client."""
    return aiomqtt.Client(
        "127.0.0.1",
        stack.endpoints.broker_device_port,
        identifier=device,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=tls,
        timeout=20,
        keepalive=300,
    )


async def turned_away(stack: Stack, tls: ssl.SSLContext) -> str:
    """Return the TLS alert by which the broker does not even let a certificate in."""
    try:
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", stack.endpoints.broker_device_port, ssl=tls
            )
            try:  # with TLS 1.3 the alert follows what looks like a connection
                answer = await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLError as error:
        return error.reason
    raise AssertionError(f"the broker let it in and sent {answer!r}")


class Session:
    """A device's connection; `ended_at` (the event loop's time) when the broker has closed it."""

    def __init__(self, device: str, connection: aiomqtt.Client) -> None:
        self.device = device
        self._connection = connection
        self.ended_at: float | None = None
        self._task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with suppress(aiomqtt.MqttError):
            async for _ in self._connection.messages:
                pass
        self.ended_at = asyncio.get_running_loop().time()

    async def ended(self) -> None:
        """Return when it has ended."""
        await asyncio.shield(self._task)

    async def publish(self, content: bytes) -> None:
        """Publish on the device's own topic; raises MqttError on a connection that has ended."""
        await self._connection.publish(topic(device_id(self.device), Leg.UP), content, qos=1)

    async def close(self) -> None:
        """Hang up."""
        with suppress(aiomqtt.MqttError):
            await self._connection.__aexit__(None, None, None)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def connected(
    stack: Stack, names: Sequence[str], tls: Sequence[ssl.SSLContext]
) -> AsyncIterator[list[Session]]:
    """Connect devices, some at a time."""
    room = asyncio.Semaphore(8)

    async def connect(name: str, context: ssl.SSLContext) -> Session:
        async with room:
            return Session(name, await client(stack, name, context).__aenter__())

    async with AsyncExitStack() as cleanup:
        sessions = await asyncio.gather(*map(connect, names, tls))
        for session in sessions:
            cleanup.push_async_callback(session.close)
        yield list(sessions)


async def speaks(stack: Stack, device: str, tls: ssl.SSLContext) -> bool:
    """Return whether a device may connect and subscribe: False is inert, or not let in at all."""
    try:
        async with client(stack, device, tls) as connection:
            codes = await connection.subscribe(topic(device_id(device), Leg.DOWN), qos=1)
    except aiomqtt.MqttError:
        return False
    return not any(getattr(code, "is_failure", False) for code in codes)


async def denied(stack: Stack) -> dict[str, bool]:
    """Return the broker's deny-list, without our probe."""
    async with open_control(service(stack), SystemClock()) as control:
        found = await control.listed()
    return {name: whole for name, whole in found.items() if name != DENIED}


async def order(connection: asyncpg.Connection, device: str, to: State | None) -> Moved:
    """Order a device out, or (None) in again."""
    asked = {"reason": "test", "actor": "user test", "now": datetime.now(UTC)}
    async with connection.transaction():
        if to is None:
            return await reinstate(connection, device=device, **asked)  # type: ignore[arg-type]
        return await move(connection, device=device, to=to, **asked)  # type: ignore[arg-type]


async def done(owner: asyncpg.Connection, *orders: Moved, timeout_s: float = 30) -> None:
    """Return when orders are done and proved; TimeoutError with what is in the way."""
    wanted = [each.order for each in orders]
    try:
        async with asyncio.timeout(timeout_s):
            while await owner.fetchval(  # noqa: ASYNC110 - another task's work, in the database
                "select count(*) from admissions "
                "where id = any($1::bigint[]) and proved_at is null",
                wanted,
            ):
                await asyncio.sleep(0.02)
    except TimeoutError:
        rows = await owner.fetch("select * from admissions")
        raise AssertionError(f"not done: {[dict(row) for row in rows]}") from None
