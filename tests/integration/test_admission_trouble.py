"""Orders at the real broker, whatever is killed, forgotten, tampered with or in the way."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, MutableMapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aiomqtt
import asyncpg
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode
from structlog.testing import capture_logs

from ops.services.stack import Stack
from server.admission import probe, worker
from server.admission.broker import open_control, survives_reload
from server.admission.denylist import REVOKED_ROLE
from server.admission.probe import DENIED, ProbeError
from server.clock import SystemClock
from server.fleet.lifecycle import State
from server.ingest import reassign
from server.pki.authority import Authority
from tests.admission_world import (
    Skipping,
    admitting,
    denied,
    devices,
    done,
    enrolled,
    order,
    service,
    speaks,
    turned_away,
)
from tests.ingest_world import owning

pytestmark = pytest.mark.services


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    """Services that no other test uses, to be killed."""
    with tempfile.TemporaryDirectory(prefix="vestibule-admission-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder) / "stack", role="test")
        try:
            stack.up()
            stack.postgres.create_database("own")
            yield stack
        finally:
            stack.remove()


class Killed(Exception):
    """A process that ends at a named point."""


STEPS = (
    "compared",
    "looked",
    "denied",
    "admitted",
    "broker noted",
    "list wanted",
    "list installed",
    "list noted",
    "proved",
)


async def test_an_order_survives_a_crash_between_any_two_steps(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet, certificates = await enrolled(
        owner, stack, tmp_path, count=len(STEPS), prefix="dc-crash"
    )
    for device, certificate, step in zip(fleet.devices, certificates, STEPS, strict=True):
        moved = await order(owner, device, State.RETIRED)

        def die(name: str, at: str = step) -> None:
            if name == at:
                raise Killed(name)

        async with admitting(stack, database, failpoint=die) as task:
            with pytest.raises(Killed, match=step):
                await asyncio.wait_for(task, 30)
        async with admitting(stack, database):
            await done(owner, moved)
        assert not await speaks(stack, device, certificate.tls), step
        assert int(certificate.serial, 16) in Authority.load(stack.endpoints.pki).listed(), step


async def test_only_one_worker_gives_orders_and_another_takes_over(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet, _ = await enrolled(owner, stack, tmp_path, count=2, prefix="dc-relay")
    async with admitting(stack, database) as first, admitting(stack, database):
        await done(owner, await order(owner, fleet.devices[0], State.SUSPENDED))
        first.cancel()
        await done(owner, await order(owner, fleet.devices[1], State.SUSPENDED))
    assert await denied(stack) == dict.fromkeys(fleet.devices, True)


async def test_tampering_with_the_brokers_list_is_mended_both_ways(
    stack: Stack, database: str, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    fleet, certificates = await enrolled(owner, stack, tmp_path, count=4, prefix="dc-tamper")
    freed, weak, good, strange = fleet.devices
    clock = Skipping()
    async with admitting(stack, database, clock=clock):
        await done(
            owner, *[await order(owner, device, State.SUSPENDED) for device in (freed, weak)]
        )
        role = [{"rolename": REVOKED_ROLE}]
        rule = {"acltype": "publishClientSend", "topic": "#", "allow": True}
        async with open_control(service(stack), SystemClock()) as control:
            await control._ask(
                [
                    {"command": "deleteClient", "username": freed},
                    {"command": "enableClient", "username": weak},
                    {"command": "createClient", "username": good, "roles": role},
                    {"command": "disableClient", "username": good},
                    {"command": "createRole", "rolename": "everything", "acls": [rule]},
                    {
                        "command": "createClient",
                        "username": strange,
                        "roles": [{"rolename": "everything"}],
                    },
                    {"command": "modifyRole", "rolename": REVOKED_ROLE, "acls": []},
                ]
            )
        assert await speaks(stack, freed, certificates[0].tls)
        clock.skipped_s += 61

        async with asyncio.timeout(20):
            while await denied(stack) != {freed: True, weak: True}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not await speaks(stack, freed, certificates[0].tls)
        assert not await speaks(stack, weak, certificates[1].tls)
        assert await speaks(stack, good, certificates[2].tls)


@pytest.mark.long
async def test_a_broker_that_is_killed_in_the_middle_of_an_order_hears_it_when_it_is_back(
    own: Stack, tmp_path: Path
) -> None:
    killed = asyncio.Event()

    def kill(name: str) -> None:
        if name == "looked" and not killed.is_set():
            killed.set()
            own.broker.kill()

    async with owning(own, "own") as owner:
        fleet, (certificate,) = await enrolled(owner, own, tmp_path, prefix="dc-killed")
        moved = await order(owner, fleet.devices[0], State.SUSPENDED)
        async with admitting(own, "own", failpoint=kill):
            await waits(owner, "the broker is not under control")
            assert await owner.fetchval("select broker_at from admissions") is None
            assert await owner.fetchval("select crl_at is not null from admissions")
            own.broker.start()
            own.broker.wait_ready()
            await done(owner, moved)
            assert not await speaks(own, fleet.devices[0], certificate.tls)


async def test_a_broker_that_comes_back_with_nothing_is_told_all_again(
    own: Stack, tmp_path: Path
) -> None:
    async with owning(own, "own") as owner:
        fleet, (certificate,) = await enrolled(owner, own, tmp_path, prefix="dc-wiped")
        async with admitting(own, "own"):
            await done(owner, await order(owner, fleet.devices[0], State.SUSPENDED))
            own.broker.kill()
            for path in own.root.resolve().rglob("dynamic-security.json"):
                path.unlink()
            own.broker.start()
            own.broker.wait_ready()
            async with asyncio.timeout(20):
                while await denied(own) != {fleet.devices[0]: True}:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            assert not await speaks(own, fleet.devices[0], certificate.tls)


async def test_a_brokers_first_start_is_no_alarm_and_one_that_has_forgotten_is(
    own: Stack, tmp_path: Path
) -> None:
    def said(logs: Sequence[MutableMapping[str, Any]]) -> list[str]:
        events = [one["event"] for one in logs]
        return [event for event in events if event.startswith("deny-list")]

    async with owning(own, "own") as owner:
        fleet, _ = await enrolled(owner, own, tmp_path, prefix="dc-first")
        with capture_logs() as logs:
            async with admitting(own, "own"), asyncio.timeout(20):
                while not said(logs):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                await done(owner, await order(owner, fleet.devices[0], State.SUSPENDED))
        assert said(logs) == ["deny-list begun"]
        async with open_control(service(own), SystemClock()) as control:
            await control.admit([fleet.devices[0], DENIED])
        with capture_logs() as logs:
            async with admitting(own, "own"), asyncio.timeout(20):
                while not said(logs):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        assert said(logs) == ["deny-list reconciled"]
    assert await denied(own) == {fleet.devices[0]: True}


async def test_the_list_comes_to_the_broker_at_its_restart_and_clears_the_deny_list(
    own: Stack, tmp_path: Path
) -> None:
    """What is spent needs no entry any more: the broker knows no session from before."""
    async with owning(own, "own") as owner:
        fleet, certificates = await enrolled(owner, own, tmp_path, count=2, prefix="dc-spent")
        spent, kept = fleet.devices
        async with admitting(own, "own"):
            await done(
                owner, *[await order(owner, device, State.RETIRED) for device in (spent, kept)]
            )
        await owner.execute(
            "update certificates set not_after = now() - interval '1 hour' where device_id = $1",
            fleet.rows[0],
        )
        own.broker.kill()
        own.broker.start()
        own.broker.wait_ready()
        for certificate in certificates:
            assert "CERTIFICATE_REVOKED" in await turned_away(own, certificate.tls)
        clock = Skipping()
        async with admitting(own, "own", clock=clock), asyncio.timeout(60):
            while await denied(own) != {kept: True}:
                clock.skipped_s += 61
                await asyncio.sleep(0.5)


async def waits(owner: asyncpg.Connection, trouble: str) -> None:
    """Return when the orders say that this is in the way."""
    async with asyncio.timeout(30):
        while trouble not in (await owner.fetchval("select trouble from admissions")):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def settled(owner: asyncpg.Connection, device: str) -> int:
    """Return the version of the device's assignments when it has been settled after its order."""
    version = 0
    async with asyncio.timeout(30):
        while version < 2:  # the order's own, and settling
            await asyncio.sleep(0.05)
            version = await owner.fetchval(
                "select assignment_version from devices where device = $1", device
            )
    return version


async def test_a_device_that_cannot_be_settled_keeps_nothing_from_being_signed(
    stack: Stack,
    database: str,
    owner: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet, certificates = await enrolled(owner, stack, tmp_path, count=2, prefix="dc-settle")
    tried: list[int] = []

    async def settle(connection: asyncpg.Connection, device: int, *, from_at: datetime) -> int:
        tried.append(device)
        if device == fleet.rows[0]:
            raise asyncpg.LockNotAvailableError("somebody holds its boots")
        return await reassign.settle(connection, device, from_at=from_at)

    monkeypatch.setattr(worker, "settle", settle)
    async with admitting(stack, database):
        orders = [await order(owner, device, State.RETIRED) for device in fleet.devices]
        for moved in orders:
            await done(owner, moved)
        await settled(owner, fleet.devices[1])
        assert tried.count(fleet.rows[0]) == 1  # and again in a minute
    listed = Authority.load(stack.endpoints.pki).listed()
    assert {int(each.serial, 16) for each in certificates} <= listed


@pytest.mark.parametrize(
    ("answer", "proved"),
    [
        (aiomqtt.MqttCodeError(ReasonCode(PacketTypes.CONNACK, "Not authorized")), True),
        (aiomqtt.MqttCodeError(ReasonCode(PacketTypes.CONNACK, "Server busy")), False),
        (aiomqtt.MqttCodeError(ReasonCode(PacketTypes.DISCONNECT, "Server shutting down")), False),
        (aiomqtt.MqttError("Operation timed out"), False),
    ],
)
async def test_only_a_refusal_proves_that_a_device_is_denied(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, answer: aiomqtt.MqttError, *, proved: bool
) -> None:
    async def subscribes(_listener: probe.Listener, name: str) -> bool:
        if name == DENIED:
            raise answer
        return True

    monkeypatch.setattr(probe, "_subscribes", subscribes)
    if proved:
        await probe.prove(devices(stack))
    else:
        with pytest.raises(ProbeError, match="got no answer"):
            await probe.prove(devices(stack))


async def test_a_list_that_cannot_be_signed_is_said_and_made_up_for(
    own: Stack, tmp_path: Path
) -> None:
    async with owning(own, "own") as owner:
        fleet, _ = await enrolled(owner, own, tmp_path, prefix="dc-nokey")
        keys = [p for p in own.endpoints.pki.rglob("*.key") if p.name.startswith("device-")]
        assert keys
        for key in keys:
            key.rename(key.with_suffix(".away"))
        clock = Skipping()
        async with admitting(own, "own", clock=clock):
            moved = await order(owner, fleet.devices[0], State.RETIRED)
            await waits(owner, "the revocation list is not signed")
            assert await owner.fetchval("select broker_at is not null from admissions")
            version = await settled(owner, fleet.devices[0])
            await asyncio.sleep(3)  # turns in which the list is tried again
            assert await settled(owner, fleet.devices[0]) == version
            for key in keys:
                key.with_suffix(".away").rename(key)
            clock.skipped_s += 61
            await done(owner, moved)


@pytest.mark.parametrize(
    ("version", "survives"),
    [
        ("2.0.21", False),
        ("2.0.22", False),
        ("2.0.23", True),
        ("2.1.2", True),
        (None, False),
        ("unknown", False),
    ],
)
def test_only_a_broker_that_survives_it_is_told_to_reload(
    version: str | None, survives: bool
) -> None:
    assert survives_reload(version) is survives
