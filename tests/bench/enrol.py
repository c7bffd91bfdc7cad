"""Whole first enrolments a second, over real HTTPS, beside the hundred that are promised.

    python -m tests.bench.enrol

What a device does for one claim: a TLS handshake and `/v1/trust`, another handshake and `/v1/enrol`
with a claim and a request that it has signed; the answer's chain is parsed and held to its key. The
devices are one process, the server another, database and all on the same two cores, fsync on. Keys
are made beforehand: a fleet's devices each make their own. The listener's TLS and log are those of
`vestibule serve`. Beside the rate stands the processor time of an exchange, which says on a busy
machine, too, what it takes: the server's and the devices' (the database's has no row).
"""

import asyncio
import json
import os
import ssl
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, redirect_stderr
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

import asyncpg
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ops.services.stack import Stack
from server import log
from server.db.engine import open_pool
from server.db.migrate import migrate
from server.provisioning.claims import make_claim
from server.provisioning.listener import listener_tls
from server.provisioning.web import build_enrolment
from tests.ingest_world import register

PROMISED = 100.0
DEVICES = 1_500
WARM = 100
AT_ONCE = 32


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Taken:
    """What the measured exchanges took, in seconds: by the clock, and of a processor."""

    wall: float
    devices: float
    server: float = 0.0


def run() -> list[Row]:
    """Measure on a private stack that goes away again."""
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="bench")
        stack.up()
        try:
            with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
                log.configure(json=True)
                taken = uvloop.run(_measure(stack))
        finally:
            stack.remove()
    rate = DEVICES / taken.wall
    return [
        Row(
            name="enrol.limit.100",
            value=PROMISED,
            unit="exchanges/s",
            limit=None,
            limit_name="",
            ratio=None,
        ),
        Row(
            name="enrol.exchange.ours",
            value=rate,
            unit="exchanges/s",
            limit=PROMISED,
            limit_name="enrol.limit.100",
            ratio=rate / PROMISED,
        ),
        *(
            Row(
                name=f"enrol.cpu.{who}",
                value=1000 * seconds,
                unit="ms/exchange",
                limit=None,
                limit_name="",
                ratio=None,
            )
            for who, seconds in (
                ("server", taken.server / (DEVICES + WARM)),
                ("devices", taken.devices / DEVICES),
            )
        ),
    ]


async def _measure(stack: Stack) -> Taken:
    stack.postgres.create_database("enrol")
    dsn = stack.endpoints.dsn("owner", "enrol")
    await migrate(dsn)
    pki = stack.endpoints.pki
    async with AsyncExitStack() as exits:
        owner = await asyncpg.connect(dsn)
        exits.push_async_callback(owner.close)
        fleet = await register(owner, DEVICES + WARM)
        now = datetime.now(UTC)
        claims = [await make_claim(owner, row, now=now) for row in fleet.rows]
        pool = await exits.enter_async_context(
            open_pool(stack.endpoints.dsn("ingest", "enrol"), size=6, name="ingest")
        )
        app = build_enrolment(
            pool=pool, pki=pki, broker=("127.0.0.1", 8883), now=lambda: datetime.now(UTC)
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        exits.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=listener_tls(pki)).start()
        port = runner.addresses[0][1]
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as devices:
            before = time.process_time()
            taken: Taken = await loop.run_in_executor(
                devices, enrol_all, port, str(pki / "root.pem"), claims
            )
            taken = replace(taken, server=time.process_time() - before)
        enrolled = await owner.fetchval("select count(*) from certificates where state = 'active'")
        if enrolled != len(claims):
            raise RuntimeError(f"{enrolled} of {len(claims)} devices are enrolled")
    return taken


def enrol_all(port: int, root: str, claims: list[str]) -> Taken:
    """Enrol all claims, `AT_ONCE` at a time; return what all but the first took."""
    return uvloop.run(_enrol_all(port, root, claims))


async def _enrol_all(port: int, root: str, claims: list[str]) -> Taken:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in claims]
    work = list(zip(claims, keys, strict=True))
    context = ssl.create_default_context(cafile=root)
    await _some(port, context, work[:WARM])
    began, worked = time.perf_counter(), time.process_time()
    await _some(port, context, work[WARM:])
    return Taken(time.perf_counter() - began, time.process_time() - worked)


async def _some(
    port: int, context: ssl.SSLContext, work: list[tuple[str, ec.EllipticCurvePrivateKey]]
) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(claim: str, key: ec.EllipticCurvePrivateKey) -> None:
        async with slots:
            trust = await _ask(port, context, "GET /v1/trust")
            x509.load_pem_x509_certificates(trust)
            builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
            body = json.dumps({"claim": claim, "csr": csr})
            got = json.loads(await _ask(port, context, "POST /v1/enrol", body))
            leaf, *_ = x509.load_pem_x509_certificates(got["chain"].encode())
            if leaf.public_key() != key.public_key():
                raise RuntimeError("a certificate for another key")

    async with asyncio.TaskGroup() as tasks:
        for claim, key in work:
            tasks.create_task(one(claim, key))


async def _ask(port: int, context: ssl.SSLContext, what: str, body: str = "") -> bytes:
    """Ask on a connection of its own, as a device does, and return the answer's body.

    No client library: on two cores what it takes would be missing to the server.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        head = f"{what} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}\r\n{body}".encode())
        answer = await reader.read()
    finally:
        writer.close()
    head, _, content = answer.decode().partition("\r\n\r\n")
    if not head.startswith("HTTP/1.1 200 "):
        raise RuntimeError(f"{what}: {head.splitlines()[0]}")
    return content.encode()


if __name__ == "__main__":
    for row in run():
        sys.stdout.write(f"{row['name']}: {row['value']:,.1f} {row['unit']}\n")
