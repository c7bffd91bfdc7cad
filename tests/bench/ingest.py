"""Frames durable and receipted a second, end to end over TLS, beside its peers.

    python -m tests.bench.ingest

5,000 devices with a certificate and a TLS session each, one broker, one database, one ingest
worker, one generator process (`tests.bench.generator`), all on this machine's cores. Steady: one
frame on its way per device, a receipt each. Catch-up: sixteen. A peer gets the same frames from the
same generator: the bare aiomqtt loop and the manual-acknowledge sink only receive them (what the
broker and the library allow, with nothing stored); the naive server decodes in Python and inserts
each message's readings in a transaction of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import asyncpg
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import ext
from ops.services.stack import Endpoints, Stack
from protocol.topics import ALL_UP
from server.clock import ManualClock
from server.db.migrate import migrate
from server.ingest.mqtt import BrokerSettings
from server.ingest.state import State
from server.ingest.worker import Ingest
from server.pki.authority import Authority
from tests.bench.writer import Row, naive_readings
from tests.ingest_world import DAY, NOON, Fleet, differences, register

DEVICES = 5_000
STEADY_ROUNDS = 12
CATCHUP_DEEP = 16
PEER_ROUNDS = 8
NAIVE_MESSAGES = 2_000
SEED = 2026


def run() -> list[Row]:
    """Measure ours and the peers; AssertionError if what ours stored is not what was sent."""
    assert ext.COMPILED, "this measures the compiled decoder: build it first"
    return uvloop.run(_run())


async def _run() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="bench")
        endpoints = await asyncio.to_thread(stack.up)
        try:
            return await _measure(endpoints, Path(folder))
        finally:
            await asyncio.to_thread(stack.remove)


async def _measure(endpoints: Endpoints, folder: Path) -> list[Row]:
    await migrate(endpoints.dsn("owner"))
    owner = await asyncpg.connect(endpoints.dsn("owner"))
    fleet = await register(owner, DEVICES, prefix="dc-bench", since_ms=NOON - 2 * DAY)
    _certify(endpoints, folder, fleet)
    async with _generator(endpoints, folder, fleet) as ask:
        peers = {
            "bare": await _peer(endpoints, ask, _bare_loop),
            "sink": await _peer(endpoints, ask, _sink_loop),
            "naive": await _naive(endpoints, ask, owner),
        }
        async with _ingest(endpoints):
            await ask("reboot")  # the peers have taken frames that nobody stored
            await ask("frames 1")
            await ask("receipted 1")  # the first frame of a boot makes its cursor
            await ask(f"frames {STEADY_ROUNDS}")
            seconds = (await ask("receipted 1"))["seconds"]
            steady = STEADY_ROUNDS * DEVICES / seconds
            await ask(f"frames {CATCHUP_DEEP}")
            seconds = (await ask(f"receipted {CATCHUP_DEEP}"))["seconds"]
            catchup = CATCHUP_DEEP * DEVICES / seconds
        await _verify(owner, fleet, await ask("totals"))
    await owner.close()
    sink = peers["sink"]
    return [
        _row("ingest.steady.ours", steady, sink),
        _row("ingest.catchup.ours", catchup, sink),
        _row("ingest.sink", sink, None),
        _row("ingest.bare_aiomqtt", peers["bare"], sink),
        _row("ingest.naive_insert", peers["naive"], sink),
    ]


def _row(name: str, value: float, limit: float | None) -> Row:
    return Row(
        name=name,
        value=round(value),
        unit="frames/s",
        limit=None if limit is None else round(limit),
        ratio=None if limit is None else round(value / limit, 3),
        limit_name="" if limit is None else "manual-acknowledge sink loop, nothing stored",
    )


def _certify(endpoints: Endpoints, folder: Path, fleet: Fleet) -> None:
    """Write a certificate for each device; one key for all of them, to be quick."""
    authority = Authority.load(endpoints.pki)
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    for name in fleet.devices:
        issued = authority.issue_device(request, device=name, now=datetime.now(UTC))
        (folder / f"{name}.pem").write_bytes(key_pem + issued.chain_pem)


Ask = Callable[[str], Awaitable[dict[str, float]]]


@asynccontextmanager
async def _generator(endpoints: Endpoints, folder: Path, fleet: Fleet) -> AsyncIterator[Ask]:
    """Run the generator; what is yielded sends it a command and returns its answer."""
    spec = folder / "generator.json"
    spec.write_text(
        json.dumps(
            {
                "seed": SEED,
                "devices": fleet.devices,
                "folder": str(folder),
                "cafile": str(endpoints.pki / "bundle.pem"),
                "port": endpoints.broker_device_port,
            }
        )
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.generator", str(spec),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 24,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    reader, writer = process.stdout, process.stdin

    async def answer() -> dict[str, float]:
        line = await asyncio.wait_for(reader.readline(), 300)
        assert line, "the generator ended"
        found: dict[str, float] = json.loads(line)
        return found

    async def ask(command: str) -> dict[str, float]:
        writer.write(command.encode() + b"\n")
        return await answer()

    try:
        assert (await answer())["connected"] == DEVICES
        yield ask
    finally:
        writer.close()
        process.kill()
        await process.wait()


def _broker(endpoints: Endpoints, session: str) -> BrokerSettings:
    pki = endpoints.pki
    return BrokerSettings(
        endpoints.broker_host,
        endpoints.broker_service_port,
        pki / "bundle.pem",
        pki / "svc-ingest.pem",
        pki / "svc-ingest.key",
        session=session,
    )


@asynccontextmanager
async def _ingest(endpoints: Endpoints) -> AsyncIterator[None]:
    """Run the worker as the server does; it refuses a database that is not durable."""
    async with asyncpg.create_pool(endpoints.dsn("ingest"), min_size=3, max_size=6) as pool:
        ingest = Ingest(pool, _broker(endpoints, "ingest-0"), ManualClock(NOON))
        task = asyncio.create_task(ingest.run())
        while ingest.state is not State.RUNNING:
            assert not task.done(), task
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _client(
    endpoints: Endpoints, queue: type[asyncio.Queue[aiomqtt.Message]] | None
) -> aiomqtt.Client:
    broker = _broker(endpoints, "peer")
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.ReceiveMaximum = 2000
    return aiomqtt.Client(
        broker.host,
        broker.port,
        identifier="peer",
        protocol=aiomqtt.ProtocolVersion.V5,
        properties=properties,
        tls_context=broker.context(),
        queue_type=queue,
    )


async def _peer(
    endpoints: Endpoints,
    ask: Ask,
    receive: Callable[[Endpoints, int, asyncio.Event], Awaitable[None]],
) -> float:
    """Return the messages a second that `receive` takes while the generator sends at its best."""
    await ask(f"frames {PEER_ROUNDS}")
    ready = asyncio.Event()
    count = PEER_ROUNDS * DEVICES
    receiving = asyncio.ensure_future(receive(endpoints, count, ready))
    await ready.wait()
    start = time.perf_counter()
    sending = asyncio.ensure_future(ask("acknowledged 1"))
    async with asyncio.timeout(300):
        await receiving
    seconds = time.perf_counter() - start
    await sending
    return count / seconds


async def _bare_loop(endpoints: Endpoints, count: int, ready: asyncio.Event) -> None:
    async with _client(endpoints, None) as client:
        await client.subscribe(ALL_UP, qos=1)
        ready.set()
        async for _ in client.messages:
            count -= 1
            if not count:
                return


class _Sink(asyncio.Queue[aiomqtt.Message]):
    """Takes messages in the receiving callback, without a task switch each."""

    def _put(self, item: aiomqtt.Message) -> None:
        self._queue.append(item)  # type: ignore[attr-defined]


async def _sink_loop(endpoints: Endpoints, count: int, ready: asyncio.Event) -> None:
    """Take what has arrived, acknowledge it by hand, wait a moment: aiomqtt at its fastest."""
    client = _client(endpoints, _Sink)
    client._client.manual_ack_set(True)
    async with client:
        await client.subscribe(ALL_UP, qos=1)
        ready.set()
        while count:
            while not client._queue.empty():
                message = client._queue.get_nowait()
                client._client.ack(message.mid, message.qos)
                count -= 1
            await asyncio.sleep(0.001)


async def _naive(endpoints: Endpoints, ask: Ask, owner: asyncpg.Connection) -> float:
    """Return what a server reaches that stores each message by itself."""
    await owner.execute(
        "create table naive (time timestamptz, device text, line int, in_ int, out_ int); "
        "select create_hypertable('naive', by_range('time', interval '7 days'))"
    )
    await ask("frames 1")
    async with _client(endpoints, None) as client:
        await client.subscribe(ALL_UP, qos=1)
        sending = asyncio.ensure_future(ask("acknowledged 1"))
        start, count = time.perf_counter(), 0
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            rows = naive_readings((str(message.topic).encode(), message.payload, 0))
            await owner.executemany("insert into naive values ($1, $2, $3, $4, $5)", rows)
            count += 1
            if count == min(NAIVE_MESSAGES, DEVICES):
                break
        seconds = time.perf_counter() - start
    await sending
    return count / seconds


async def _verify(owner: asyncpg.Connection, fleet: Fleet, totals: dict[str, float]) -> None:
    """Every person that was sent is in the readings and in the rollups, once."""
    rows = await owner.fetch(
        "select spot, array[sum(in0), sum(out0), sum(in1), sum(out1)]::bigint[] from rollup_15m "
        "group by spot"
    )
    rolled = {row[0]: row[1] for row in rows}
    for name, spot in zip(fleet.devices, fleet.spots, strict=True):
        assert rolled[spot] == totals[name][0], (name, rolled[spot], totals[name])  # type: ignore[index]
    assert await differences(owner) == []
    assert await owner.fetchval("select count(*) from gaps") == 0
    assert await owner.fetchval("select count(*) from findings") == 0


def main() -> int:
    """Print the rows."""
    for row in run():
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f} of {row['limit_name']}"
        sys.stdout.write(f"{row['name']:28} {row['value']:>12,.0f} {row['unit']} {ratio}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
