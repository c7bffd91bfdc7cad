"""The devices' listener: who is asked for what, and what a rollover changes while it runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.enrol import ask
from server.pki import rollover
from server.pki.authority import Authority
from server.pki.files import Files
from server.provisioning.listener import listener_tls, peer_certificate

PASSWORD = b"a long enough password"
NOW = datetime.now(UTC)


@dataclass
class Listener:
    """A listener that answers with the SHA-256 of the certificate it was shown, or 'none'."""

    pki: Path
    port: int
    folder: Path

    def pair(self, *, now: datetime = NOW) -> tuple[Path, str]:
        """Certify a device now; the file of its key and chain, and the answer it should get."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        issued = Authority.load(self.pki).issue_device(
            request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
            device="door-listen01",
            now=now,
        )
        path = self.folder / f"{issued.serial:x}.pem"
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(pem + issued.chain_pem)
        leaf = x509.load_pem_x509_certificates(issued.chain_pem)[0]
        return path, leaf.fingerprint(hashes.SHA256()).hex()

    async def answer(self, pair: Path | None, *, trusting: str) -> str:
        """Ask, with this pair or none, trusting one root alone."""
        root = self.pki / "authorities" / f"{trusting}.pem"
        context = ssl.create_default_context(cafile=root)
        if pair is not None:
            context.load_cert_chain(pair)
        return await asyncio.to_thread(
            ask, "127.0.0.1", self.port, context, method="GET", path="/", body=None
        )


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    pki = tmp_path / "pki"
    Authority.create(pki, now=NOW - timedelta(days=600), password=PASSWORD).ensure_services(now=NOW)

    async def shown(request: web.Request) -> web.Response:
        der = peer_certificate(request)
        if der is None:
            return web.Response(text="none")
        certificate = x509.load_der_x509_certificate(der)
        return web.Response(text=certificate.fingerprint(hashes.SHA256()).hex())

    app = web.Application()
    app.router.add_get("/", shown)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=listener_tls(pki)).start()
    yield Listener(pki, runner.addresses[0][1], tmp_path)
    await runner.cleanup()


async def test_a_certificate_is_asked_for_and_not_demanded(listener: Listener) -> None:
    pair, fingerprint = listener.pair()
    assert await listener.answer(None, trusting="root-1") == "none"
    assert await listener.answer(pair, trusting="root-1") == fingerprint


async def test_one_that_has_ended_is_shown_too_and_judged_later(listener: Listener) -> None:
    pair, fingerprint = listener.pair(now=NOW - timedelta(days=500))
    assert await listener.answer(pair, trusting="root-1") == fingerprint


async def test_a_key_that_is_not_held_or_not_ours_gets_no_connection(
    listener: Listener, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    Authority.create(foreign)
    stranger, _ = Listener(foreign, 0, tmp_path).pair()
    service = tmp_path / "service.pem"  # our own services are none of its clients
    service.write_bytes(
        b"".join((listener.pki / f"svc-ingest.{end}").read_bytes() for end in ("key", "pem"))
    )
    for pair in (stranger, service):
        with pytest.raises(OSError, match=r"ALERT|reset|EOF|closed"):
            await listener.answer(pair, trusting="root-1")


async def test_a_rollover_needs_no_restart_and_old_certificates_are_heard_when_it_is_over(
    listener: Listener,
) -> None:
    old, first = listener.pair()
    with pytest.raises(ssl.SSLCertVerificationError):
        await listener.answer(old, trusting="root-2")
    keys = listener.pki / "offline"
    rollover.begin_rollover(Files.read(listener.pki), keys=keys, password=PASSWORD, now=NOW)
    rollover.switch(Files.read(listener.pki), now=NOW)
    new, second = listener.pair()
    await listener.answer(None, trusting="root-1")  # the handshake that looks
    for root in ("root-1", "root-2"):
        assert await listener.answer(old, trusting=root) == first
        assert await listener.answer(new, trusting=root) == second
    rollover.finish(Files.read(listener.pki), now=NOW)
    await listener.answer(None, trusting="root-2")
    assert await listener.answer(old, trusting="root-2") == first
    assert await listener.answer(new, trusting="root-2") == second
