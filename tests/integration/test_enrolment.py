"""Enrolment against the database: whoever is not admitted when it is over gets nothing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ops.services.stack import Stack
from server.db.engine import open_pool
from server.errors import RefusedError
from server.pki.authority import Authority
from server.provisioning.claims import make_claim
from server.provisioning.enrol import Enrolment, enrol
from tests.integration.api_world import World

pytestmark = pytest.mark.services


@dataclass
class Desk:
    """One device, and who enrols it."""

    owner: asyncpg.Connection
    pool: asyncpg.Pool
    authority: Authority
    device: int
    csr: str

    async def claim(self) -> str:
        return await make_claim(self.owner, self.device, now=datetime.now(UTC))

    async def enrol(self, claim: str) -> Enrolment:
        return await enrol(
            self.pool, self.authority, secret=claim, csr_pem=self.csr, now=datetime.now(UTC)
        )

    async def become(self, state: str) -> None:
        await self.owner.execute("update devices set state = $1", state)

    async def state(self) -> str:
        found: str = await self.owner.fetchval("select state from devices")
        return found


@pytest.fixture
async def desk(world: World, stack: Stack, world_database: str) -> AsyncIterator[Desk]:
    """A device that waits to be enrolled."""
    organisation = await world.organisation("own")
    device = await world.owner.fetchval(
        "insert into devices (organisation_id, device, kind) "
        "values ($1, 'door-enrol001', 'counter') returning id",
        organisation,
    )
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    dsn = stack.endpoints.dsn("ingest", world_database)
    async with open_pool(dsn, size=2, name="enrol") as pool:
        yield Desk(world.owner, pool, Authority.load(stack.endpoints.pki), device, csr)


def suspend_while_signing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, sign = asyncio.get_running_loop(), Authority.issue_device

    def signed(*arguments: Any, **named: Any) -> Any:
        asyncio.run_coroutine_threadsafe(desk.become("suspended"), loop).result(10)
        return sign(*arguments, **named)

    monkeypatch.setattr(Authority, "issue_device", signed)


async def test_an_enrolled_device_is_provisioned(desk: Desk) -> None:
    claim = await desk.claim()
    assert (await desk.enrol(claim)).device == "door-enrol001"
    assert await desk.state() == "provisioned"
    await desk.become("in service")
    await desk.enrol(claim)
    assert await desk.state() == "in service"


async def test_a_device_that_is_suspended_while_its_certificate_is_signed_gets_none(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await desk.claim()
    with monkeypatch.context() as patched:
        suspend_while_signing(desk, patched)
        with pytest.raises(RefusedError) as refused:
            await desk.enrol(claim)
    assert refused.value.code == "device_not_admitted"
    assert await desk.state() == "suspended"
    row = await desk.owner.fetchrow("select state, chain from certificates")
    assert tuple(row) == ("failed", None)
    await desk.become("claimed")
    await desk.enrol(claim)  # the same claim and key, once it may again
    assert await desk.state() == "provisioned"


async def test_who_is_enrolled_again_stays_where_it_is_in_its_life(desk: Desk) -> None:
    await desk.become("installed")
    await desk.enrol(await desk.claim())
    assert await desk.state() == "installed"
    assert await desk.owner.fetchval("select enrolled_at is not null from devices")
