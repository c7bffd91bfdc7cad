"""A device that is set and told over the real listener and broker, by a real agent's process.

What it does itself, between any two steps of a disk, is in `tests/unit/test_agent_desired.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent import identity
from agent.identity import Enrolled
from ops.services.stack import Stack
from server.clock import SystemClock
from server.commands import orders
from server.commands.listener import add_state
from server.commands.orders import Asked
from server.desired import settings
from server.ingest.mqtt import BrokerSettings
from server.ingest.worker import Ingest
from server.pki.authority import Authority
from server.provisioning.bell import Bell
from server.provisioning.issuing import issue, proved
from server.provisioning.listener import listener_tls
from server.provisioning.web import build_enrolment
from tests.ingest_world import Fleet, owning, register
from tests.integration.test_ingest_broker import broker_settings

pytestmark = pytest.mark.services


@dataclass
class World:
    """A listener for devices, ingest, the bell, and the process of one agent."""

    stack: Stack
    owner: asyncpg.Connection
    pool: asyncpg.Pool
    fleet: Fleet
    folder: Path
    port: int = 0
    runner: web.AppRunner | None = None
    bell: Bell | None = None
    process: asyncio.subprocess.Process | None = None
    starts: list[float] = field(default_factory=list)

    @property
    def device(self) -> str:
        return self.fleet.devices[0]

    @property
    def state(self) -> Path:
        return self.folder / "state"

    # -- the server --------------------------------------------------------------------------

    async def listen(self) -> None:
        pki = self.stack.endpoints.pki
        app = build_enrolment(
            pool=self.pool,
            pki=pki,
            broker=("127.0.0.1", self.stack.endpoints.broker_device_port),
            now=lambda: datetime.now(UTC),
        )
        add_state(app, pool=self.pool, now=lambda: datetime.now(UTC))
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self.runner.setup()
        tls = listener_tls(pki)
        await web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=tls).start()
        self.port = self.runner.addresses[0][1]

    async def fall_silent(self) -> None:
        assert self.runner is not None
        await self.runner.cleanup()

    async def enrol(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        authority = Authority.load(self.stack.endpoints.pki)
        issued = await issue(
            self.pool,
            authority,
            device_row=self.fleet.rows[0],
            device=self.device,
            organisation=self.fleet.organisation,
            key=proved(request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()),
            reason="enrolment",
            now=datetime.now(UTC),
            stage=False,
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        identity.put(self.state / "pending", pem, mode=0o600)
        identity.write(
            self.state,
            Enrolled(
                self.device,
                "counter",
                "127.0.0.1",
                self.stack.endpoints.broker_device_port,
                "claim",
                "127.0.0.1",
                self.port,
                renew_after_ms=round(issued.renew_after.timestamp() * 1000),
            ),
            key=self.state / "pending",
            chain=issued.chain_pem,
            bundle=authority.bundle(),
        )

    async def write(self, **values: Any) -> None:
        async with self.owner.transaction():
            place = await settings.place(self.owner, self.fleet.organisation, "device", self.device)
            await settings.edit(
                self.owner,
                self.fleet.organisation,
                place,
                values,
                seen=None,
                actor="test",
                now=datetime.now(UTC),
            )

    async def ask(self, kind: str) -> str:
        async with self.owner.transaction():
            asked = Asked(kind, (self.device,), reason="a test")
            made = await orders.ask(
                self.owner, self.fleet.organisation, asked, actor="test", now=datetime.now(UTC)
            )
        ref: str = await self.owner.fetchval(
            "select c.ref from commands c join command_batches b on b.id = c.batch_id "
            "where b.ref = $1",
            made.ref,
        )
        return ref

    async def command(self, ref: str) -> orders.Command:
        return await orders.find(self.owner, self.fleet.organisation, ref)

    async def setting(self, key: str) -> tuple[str, Any, str]:
        found = await settings.configuration(
            self.owner, self.fleet.organisation, self.device, now=datetime.now(UTC)
        )
        state = found.states[key]
        return state.standing.value, state.reported, state.code

    # -- the device --------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the agent's process, as systemd does."""
        names = {
            "STATE": self.state,
            "SOCKET": self.folder / "s",
            "FLUSH_S": 0.05,
            "SPREAD_S": 0,
            "RETRY_MIN_S": 0.05,
            "RETRY_MAX_S": 5,
        }
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agent", "run"),
                env={
                    **os.environ,
                    **{f"VESTIBULE_AGENT_{name}": str(value) for name, value in names.items()},
                },
                stderr=log,
            )

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)
            await self.process.wait()

    def journal(self) -> dict[str, dict[str, Any]]:
        try:
            said = json.loads((self.state / "commands.json").read_bytes())
        except FileNotFoundError:
            return {}
        return {each["command"]: each for each in said}

    def begun(self, kind: str) -> int:
        """How often the log says that a kind of command has ended, or a start has begun."""
        return (self.folder / "log").read_text().count(kind)


@pytest.fixture
async def live(stack: Stack, database: str, tmp_path: Path) -> AsyncIterator[World]:
    async with (
        owning(stack, database) as owner,
        asyncpg.create_pool(stack.endpoints.dsn("ingest", database), min_size=1) as pool,
    ):
        fleet = await register(owner, 1, prefix=f"door-{random.getrandbits(24):x}")
        world = World(stack, owner, pool, fleet, tmp_path)
        await world.listen()
        await world.enrol()
        pki = stack.endpoints.pki
        downlink = BrokerSettings(
            "127.0.0.1",
            stack.endpoints.broker_service_port,
            pki / "bundle.pem",
            pki / "svc-downlink.pem",
            pki / "svc-downlink.key",
        )
        world.bell = Bell(pool, downlink)
        try:
            async with working(
                Ingest(pool, broker_settings(stack), SystemClock()).run(), world.bell.run()
            ):
                await world.start()
                yield world
        finally:
            await world.stop()
            await world.fall_silent()


@asynccontextmanager
async def working(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(90):
        while not await true():  # noqa: ASYNC110 - it is another process's to do
            await asyncio.sleep(0.05)


async def test_a_device_is_set_and_told_and_comes_back_from_what_would_cut_it_off(
    live: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def in_sync(key: str, value: object) -> None:
        async def reached() -> bool:
            return await live.setting(key) == ("in sync", value, "")

        await until(reached)

    async def ended(ref: str) -> orders.Command:
        async def over() -> bool:
            return (await live.command(ref)).ended_at is not None

        await until(over)
        return await live.command(ref)

    # set while it is connected: the bell brings it
    await in_sync("health_s", 900)
    await live.write(health_s=600)
    await in_sync("health_s", 600)
    # told: done, with its result
    found = await ended(await live.ask("self-test"))
    assert (found.state.value, found.result["broker"]) == ("done", "ok")
    # a file comes over HTTPS
    ref = await live.ask("diagnostics")
    assert (await ended(ref)).has_file
    # a network that leads nowhere: it goes there, and comes back by itself
    monkeypatch.setattr(settings, "CONFIRM_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        await live.write(broker=f"127.0.0.1:{nobody.getsockname()[1]}")

        async def reverted() -> bool:
            return await live.setting("broker") == ("refused", "", "reverted")

        await until(reverted)
    # one that leads to us is taken
    monkeypatch.setattr(settings, "CONFIRM_S", 60)
    await live.write(broker=f"localhost:{live.stack.endpoints.broker_device_port}")

    await in_sync("broker", f"localhost:{live.stack.endpoints.broker_device_port}")
    # a restart happens once, and its end is the next start
    before = live.begun("agent started")
    found = await ended(await live.ask("reboot"))
    assert (found.state.value, found.result) == ("done", {"restarted": "agent"})
    assert live.begun("agent started") == before + 1
    assert await live.setting("health_s") == ("in sync", 600, "")


async def test_neither_a_broker_that_forgets_nor_a_server_or_agent_that_dies_loses_or_repeats_any(
    live: World,
) -> None:
    async def connected() -> bool:
        return (await live.setting("health_s"))[1] is not None

    await until(connected)
    asked = []
    for kind in ("self-test", "identify", "reboot", "self-test", "identify"):
        asked.append(await live.ask(kind))
        match len(asked):
            case 1:
                await live.stop(signal.SIGKILL)
                await live.start()
            case 2:
                await live.fall_silent()  # the server dies with what it was asked
                await live.listen()
            case 3:
                await asyncio.to_thread(live.stack.restart_broker)  # it keeps nothing
            case 4:
                await live.stop(signal.SIGKILL)
                await live.start()
            case _:
                pass

    async def over() -> bool:
        await orders.sweep(live.owner, now=datetime.now(UTC))
        return all([(await live.command(ref)).ended_at is not None for ref in asked])

    await until(over)
    for ref in asked:
        found = await live.command(ref)
        assert found.state.value == "done" or found.code == "interrupted", found
        assert live.journal()[ref]["state"] in ("done", "failed")
        assert live.begun(f"command={ref}") <= 1
