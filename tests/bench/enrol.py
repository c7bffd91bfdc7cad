"""Whole first enrolments a second, over real HTTPS, beside the hundred that are promised.

    python -m tests.bench.enrol

What a device does for one claim: a TLS handshake and `/v1/trust`, another handshake and `/v1/enrol`
with a claim and a request that it has signed; the answer's chain is parsed and held to its key. The
devices are one process, the server another, database and all on the same two cores, fsync on. Keys
are made beforehand: a fleet's devices each make their own.
"""

import asyncio
import ssl
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

import aiohttp
import asyncpg
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ops.services.stack import Stack
from server.db.engine import open_pool
from server.db.migrate import migrate
from server.provisioning.claims import make_claim
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


def run() -> list[Row]:
    """Measure on a private stack that goes away again."""
    with tempfile.TemporaryDirectory(prefix="vestibule-bench-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="bench")
        stack.up()
        try:
            rate = uvloop.run(_measure(stack))
        finally:
            stack.remove()
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
    ]


async def _measure(stack: Stack) -> float:
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
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pki / "https.pem", pki / "https.key")
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        exits.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        loop = asyncio.get_running_loop()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as devices:
            seconds: float = await loop.run_in_executor(
                devices, enrol_all, url, str(pki / "root.pem"), claims
            )
        enrolled = await owner.fetchval("select count(*) from certificates where state = 'active'")
        if enrolled != len(claims):
            raise RuntimeError(f"{enrolled} of {len(claims)} devices are enrolled")
    return DEVICES / seconds


def enrol_all(url: str, root: str, claims: list[str]) -> float:
    """Enrol all claims, `AT_ONCE` at a time; return the seconds that all but the first took."""
    return uvloop.run(_enrol_all(url, root, claims))


async def _enrol_all(url: str, root: str, claims: list[str]) -> float:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in claims]
    work = list(zip(claims, keys, strict=True))
    context = ssl.create_default_context(cafile=root)
    connector = aiohttp.TCPConnector(ssl=context, force_close=True, limit=0)
    async with aiohttp.ClientSession(url, connector=connector) as session:
        await _some(session, work[:WARM])
        began = time.perf_counter()
        await _some(session, work[WARM:])
        return time.perf_counter() - began


async def _some(
    session: aiohttp.ClientSession, work: list[tuple[str, ec.EllipticCurvePrivateKey]]
) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(claim: str, key: ec.EllipticCurvePrivateKey) -> None:
        async with slots:
            async with session.get("/v1/trust") as trust:
                x509.load_pem_x509_certificates(await trust.read())
            builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
            csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
            async with session.post("/v1/enrol", json={"claim": claim, "csr": csr}) as answer:
                got = await answer.json()
            leaf, *_ = x509.load_pem_x509_certificates(got["chain"].encode())
            if leaf.public_key() != key.public_key():
                raise RuntimeError("a certificate for another key")

    async with asyncio.TaskGroup() as tasks:
        for claim, key in work:
            tasks.create_task(one(claim, key))


if __name__ == "__main__":
    for row in run():
        sys.stdout.write(f"{row['name']}: {row['value']:,.1f} {row['unit']}\n")
