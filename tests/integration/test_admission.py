"""Orders at the real broker: out, inert, and in again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from ops.services.stack import Stack
from server.admission import broker
from server.admission.broker import ControlError, open_control
from server.clock import SystemClock
from server.fleet.lifecycle import State
from server.pki.authority import Authority
from tests.admission_world import (
    admitting,
    certify,
    connected,
    denied,
    done,
    enrolled,
    order,
    service,
    speaks,
)
from tests.bench.revoke import cut
from tests.ingest_world import register

pytestmark = pytest.mark.services


async def test_a_suspended_device_is_thrown_out_and_a_reinstated_one_comes_back(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet, certificates = await enrolled(owner, stack, tmp_path, count=2, prefix="dc-susp")
    tls = [each.tls for each in certificates]
    async with admitting(stack, database), connected(stack, fleet.devices, tls) as (out, other):
        await done(owner, await order(owner, out.device, State.SUSPENDED))
        await out.ended()
        assert not await speaks(stack, out.device, tls[0])
        assert await denied(stack) == {out.device: True}
        await other.publish(b"still here")
        assert other.ended_at is None
        row = await owner.fetchrow("select * from admissions")
        assert row["asked_at"] <= row["broker_at"] <= row["crl_at"] <= row["proved_at"]
        assert row["trouble"] == ""
        await done(owner, await order(owner, out.device, None))
        assert await speaks(stack, out.device, tls[0])
        assert await denied(stack) == {}
    listed = Authority.load(stack.endpoints.pki).listed()
    assert int(certificates[0].serial, 16) not in listed


async def test_a_retired_devices_certificate_stands_on_the_verified_list(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet, (certificate,) = await enrolled(owner, stack, tmp_path, prefix="dc-retire")
    before = Authority.load(stack.endpoints.pki).listed()
    async with admitting(stack, database):
        await done(owner, await order(owner, fleet.devices[0], State.RETIRED))
    authority = Authority.load(stack.endpoints.pki)
    assert authority.listed() == before | {int(certificate.serial, 16)}
    path = stack.endpoints.pki / "device.crl"
    authority.verify_crl(path.read_bytes(), authority.listed(), now=datetime.now(UTC))


async def test_twenty_of_a_hundred_are_out_and_the_others_notice_nothing(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    async with admitting(stack, database):
        result = await cut(
            owner, stack, stack.endpoints.dsn("owner", database), folder=tmp_path, count=100, out=20
        )
    print(result.line())  # noqa: T201 - `pytest -s` shows it
    assert result.passed


async def test_two_operators_at_once_leave_a_device_that_is_out(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet, (certificate,) = await enrolled(owner, stack, tmp_path, prefix="dc-two")
    (device,) = fleet.devices
    async with (
        admitting(stack, database),
        asyncpg.create_pool(stack.endpoints.dsn("owner", database), min_size=2) as pool,
        pool.acquire() as one,
        pool.acquire() as other,
    ):
        moved = await asyncio.gather(
            order(one, device, State.SUSPENDED),
            order(other, device, State.RETIRED),
            return_exceptions=True,
        )
        await done(owner, *(m for m in moved if not isinstance(m, BaseException)))
        assert not await speaks(stack, device, certificate.tls)
    assert await owner.fetchval("select state from devices") == "retired"


async def test_a_device_let_in_before_it_was_thrown_out_keeps_its_session(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """The state decides, not the orders: both are done, and nothing is to do."""
    fleet, (certificate,) = await enrolled(owner, stack, tmp_path, prefix="dc-undone")
    async with connected(stack, fleet.devices, [certificate.tls]) as (session,):
        orders = [await order(owner, session.device, to) for to in (State.SUSPENDED, None)]
        async with admitting(stack, database):
            await done(owner, *orders)
        await session.publish(b"still here")
        assert session.ended_at is None


async def test_the_deny_list_stays_fast_with_two_hundred_on_it(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet = await register(owner, 201, prefix="dc-many")
    await certify(owner, stack, fleet, folder=tmp_path)
    await owner.execute(
        "update devices set state = 'suspended', state_before = 'in service' where id <> $1",
        fleet.rows[0],
    )
    async with admitting(stack, database):
        moved = await order(owner, fleet.devices[0], State.SUSPENDED)
        await done(owner, moved, timeout_s=60)
        assert len(await denied(stack)) == 201
        took = []
        for to in (None, State.SUSPENDED) * 5:
            await done(owner, moved := await order(owner, fleet.devices[0], to))
            took.append(
                await owner.fetchval(
                    "select extract(epoch from broker_at - asked_at)::float8 from admissions "
                    "where id = $1",
                    moved.order,
                )
            )
    words = f"{min(took) * 1000:.0f} to {max(took) * 1000:.0f} ms"
    print(f"10 orders with 200 on the list: {words}")  # noqa: T201 - `pytest -s` shows it


async def test_ingests_identity_cannot_order(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "TIMEOUT_S", 1.0)

    async def deny() -> None:
        async with open_control(service(stack, "svc-ingest"), SystemClock()) as control:
            await control.deny(["dc-victim-1"])

    with pytest.raises(ControlError, match="no answer"):
        await deny()
    assert "dc-victim-1" not in await denied(stack)
