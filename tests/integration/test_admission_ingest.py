"""A device thrown out and let in again beside a running ingest; and the commands that do it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import aiomqtt
import asyncpg
import pytest

from ops import register as command
from ops.deployment import Deployment
from ops.services.stack import Stack
from server.admission.worker import LOCK
from server.config import Secret, Settings
from server.errors import ConflictError, NotFoundError
from server.fleet.lifecycle import State
from tests.admission_world import admitting, certify, done, order, speaks
from tests.ingest_world import differences, people, rebuilt, register
from tests.integration.test_ingest_broker import Door, door, eventually, running

pytestmark = pytest.mark.services


async def unplaced(owner: asyncpg.Connection) -> int:
    found: int = await owner.fetchval(
        "select coalesce(sum(counts[1] + counts[3]), 0)::int from gaps where filled_at is null"
    )
    return found


async def heard_out(device: Door) -> None:
    """Hear until the connection ends, which raises MqttError."""
    while True:
        await device.hear()


async def test_x26_nothing_is_stored_from_the_order_on_and_nothing_is_lost_by_it(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """The broker is told late: what comes meanwhile is refused, and is its sum in a gap."""
    fleet = await register(owner, 1, prefix="dc-late")
    agent, spot = fleet.agent(), fleet.spots[0]
    frames = [agent.counter() for _ in range(4)]
    async with running(stack, database):
        async with door(stack, tmp_path, agent) as device:
            await device.send(frames[0])
            await device.stored(1)
            suspended = await order(owner, agent.device, State.SUSPENDED)
            for frame in frames[1:3]:
                await device.send(frame)

            async def refused() -> bool:
                return await unplaced(owner) == 20

            await eventually(refused)
            async with admitting(stack, database):
                await done(owner, suspended)
            with pytest.raises(aiomqtt.MqttError):
                await heard_out(device)
            assert await people(owner, spot) == (10, 10)
        async with admitting(stack, database):
            await done(owner, await order(owner, agent.device, None))
        async with door(stack, tmp_path, agent) as device:
            for frame in frames:
                await device.send(frame)
            await device.stored(4)
    assert await people(owner, spot) == (40, 40)
    assert await unplaced(owner) == 0
    assert await differences(owner) == []
    assert await rebuilt(owner) == []


async def test_people_are_neither_lost_nor_doubled_while_orders_come_and_go(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """Frames are in flight at each commit; stored and unplaced together never exceed the truth."""
    fleet = await register(owner, 1, prefix="dc-flight")
    agent, spot = fleet.agent(), fleet.spots[0]
    frames = [agent.counter() for _ in range(12)]

    async def send_on(device: Door) -> None:
        while True:
            for frame in frames:
                await device.send(frame)

    async with running(stack, database), door(stack, tmp_path, agent) as device:
        sending = asyncio.create_task(send_on(device))
        try:
            for to in (State.SUSPENDED, None, State.QUARANTINED, None, State.SUSPENDED, None):
                await asyncio.sleep(0.05)
                await order(owner, agent.device, to)
                async with owner.transaction(isolation="repeatable_read"):
                    entered, _ = await people(owner, spot)
                    assert entered + await unplaced(owner) <= 120
            await device.stored(12)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
    assert await people(owner, spot) == (120, 120)
    assert await unplaced(owner) == 0
    assert await differences(owner) == []


@pytest.fixture
def commanding(stack: Stack, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands act on the test's database."""
    endpoints = stack.endpoints
    settings = Settings(
        dsn_ingest=Secret(endpoints.dsn("ingest", database)),
        dsn_api=Secret(endpoints.dsn("api", database)),
        dsn_maint=Secret(endpoints.dsn("maint", database)),
        pki=endpoints.pki,
    )
    found = Deployment(Secret(endpoints.dsn("owner", database)), settings)
    monkeypatch.setattr(command, "deployment", lambda **_: found)


async def run(*words: str) -> int:
    return await asyncio.to_thread(command.main, ["device", *words])


@pytest.mark.usefixtures("commanding")
async def test_a_command_waits_for_the_broker_and_says_how_long_it_took(
    stack: Stack,
    database: str,
    owner: asyncpg.Connection,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fleet = await register(owner, 1, prefix="dc-command")
    (device,) = fleet.devices
    certificate = await certify(owner, stack, fleet, folder=tmp_path)
    await owner.execute("update devices set serial = 'SN-77'")
    async with admitting(stack, database):

        async def held() -> bool:
            count = await owner.fetchval(
                "select count(*) from pg_locks where locktype = 'advisory' and objid = $1", LOCK
            )
            return bool(count)

        await eventually(held)
        assert await run("suspend", "SN-77", "--reason", "stolen from the wall") == 0
        said = capsys.readouterr().out
        assert f"{device} was in service, is suspended" in said
        assert re.search(r"denied at the broker, session closed after \d+ ms", said)
        assert re.search(r"revocation list in order after \d+ ms", said)
        assert re.search(r"proved: .* after \d+ ms", said)
        assert not await speaks(stack, device, certificate.tls)
        assert await run("reinstate", device, "--reason", "found again") == 0
        assert "let in at the broker after" in capsys.readouterr().out
        assert await run("reinstate", device, "--reason", "found again") == 0
        assert "is in service already" in capsys.readouterr().out
        assert await run("revoke", device, "--reason", "broken") == 0
        assert "next planned restart" in capsys.readouterr().out
    assert await run("show", "SN-77") == 0
    said = capsys.readouterr().out
    assert "retired since" in said
    assert "not admitted" in said
    assert f"{certificate.serial}  revoked" in said
    assert "keep out: stolen from the wall (command " in said
    with pytest.raises(ConflictError):
        await run("reinstate", device, "--reason", "no")
    with pytest.raises(NotFoundError):
        await run("suspend", "nobody", "--reason", "no")


@pytest.mark.usefixtures("commanding")
async def test_without_a_server_a_command_says_that_the_broker_hears_of_it_later(
    owner: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = await register(owner, 1, prefix="dc-alone")
    assert await run("quarantine", fleet.devices[0], "--reason", "odd counts") == 0
    assert "when the server runs" in capsys.readouterr().out
    assert await owner.fetchval("select state from devices") == "quarantined"
    assert await owner.fetchval("select count(*) from admissions where broker_at is null") == 1
