"""A fleet of real agents at the real broker moves to the next root, and notices nothing of it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiomqtt
import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from agent.clock import SystemClock
from agent.link import Identity, Link, LinkOptions
from agent.outbox import Outbox
from agent.recorder import Profile, Recorder
from ops import ca
from ops.services.stack import Stack
from protocol.frame import read_header
from server.db.migrate import migrate
from server.pki import generations as rules
from server.pki.authority import Authority
from server.pki.generations import State
from server.provisioning.issuing import issue, proved, record_trust
from tests.ingest_world import Fleet, register
from tests.integration.simulators_world import Server
from tests.integration.test_broker_mtls import refused

pytestmark = pytest.mark.services

PASSWORD = b"a long enough password"
QUICK = LinkOptions(retry_min_s=0.05, retry_max_s=0.5, connect_timeout_s=5)
DEVICES = 4


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """Services of our own, whose roots' keys are kept as `vestibule ca init` keeps them."""
    (tmp_path / "password").write_bytes(PASSWORD + b"\n")
    monkeypatch.setenv("VESTIBULE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(ca.PASSWORD_FILE, str(tmp_path / "password"))
    for name in [name for name in os.environ if name.startswith("VESTIBULE_DSN_")]:
        monkeypatch.delenv(name)
    assert ca.main(["--directory", str(tmp_path / "home/pki"), "init"]) == 0
    made = Stack(tmp_path / "home", role="test")
    try:
        made.up()
        yield made
    finally:
        made.remove()


class Ingest(Server):
    """Counts what is stored, by device, boot and number; comes back after a broker's restart."""

    frames: Counter[tuple[str, int, int]]

    def store(self, device: str, data: bytes) -> None:
        header = read_header(data)
        self.frames[device, header.boot_id, header.seq] += 1

    async def run(self, ready: asyncio.Event) -> None:
        while True:
            with suppress(aiomqtt.MqttError):
                await super().run(ready)
            await asyncio.sleep(0.1)


@dataclass
class Door:
    """A device: its outbox, its link, and what it has put in."""

    link: Link
    outbox: Outbox
    recorder: Recorder
    put: int = 0
    drops: int = 0

    def report(self) -> None:
        self.recorder.health({"cpu.load": 0.5})
        self.put += 1


@dataclass
class World:
    """A fleet, enrolled through `issue`, on a stack of its own."""

    stack: Stack
    folder: Path
    owner: asyncpg.Connection
    pool: asyncpg.Pool
    fleet: Fleet
    ingest: Ingest
    doors: list[Door] = field(default_factory=list)

    @property
    def authority(self) -> Authority:
        return Authority.load(self.stack.endpoints.pki)

    async def identity(self, index: int, *, stage: bool = False) -> Identity:
        """Give a device a new key and its certificate, as enrolment and renewal do."""
        device = self.fleet.devices[index]
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        issued = await issue(
            self.pool,
            self.authority,
            device_row=self.fleet.rows[index],
            device=device,
            organisation=self.fleet.organisation,
            key=proved(csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()),
            reason="renewal" if stage else "enrolment",
            now=datetime.now(UTC),
            stage=stage,
        )
        chain = self.folder / f"{issued.serial}.pem"
        chain.write_text(issued.chain_pem)
        secret = chain.with_suffix(".key")
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        secret.write_bytes(pem)
        bundle = self.folder / f"{device}.bundle"
        if not bundle.exists():  # what it got on its first day, and nothing since
            bundle.write_text(self.authority.bundle())
        port = self.stack.endpoints.broker_device_port
        return Identity(device, "127.0.0.1", port, chain, secret, bundle)

    async def prove(self, *indices: int) -> None:
        """As renewal notes it: these devices trust the next root."""
        authority = self.authority
        root = rules.next_root(authority.files.generations)
        async with self.pool.acquire() as connection:
            for index in indices:
                spki = authority.spki_of(root.name)
                await record_trust(connection, self.fleet.rows[index], spki, datetime.now(UTC))

    async def renewed(self, index: int) -> None:
        """Renew: the staged certificate is tried, becomes the active one, the old one retires."""
        door = self.doors[index]
        door.link.renew_identity(await self.identity(index, stage=True))
        async with self.owner.transaction():
            for before, after in (("active", "retired"), ("staged", "active")):
                await self.owner.execute(
                    "update certificates set state = $3 where device_id = $1 and state = $2",
                    self.fleet.rows[index],
                    before,
                    after,
                )

    async def settled(self) -> None:
        """Return when everyone is connected and everything reported is stored, once."""
        for door in self.doors:
            for _ in range(5):
                door.report()
        await until(lambda: all(d.link.connected and not d.outbox.pending() for d in self.doors))
        stored = Counter(device for device, _, _ in self.ingest.frames)
        assert set(self.ingest.frames.values()) == {1}
        assert stored == {door.link.identity.device: door.put for door in self.doors}

    @property
    def connects(self) -> list[int]:
        return [door.link.connects for door in self.doors]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is waited for is in another task's hands
            await asyncio.sleep(0.02)


def door(identity: Identity, folder: Path) -> Door:
    outbox = Outbox(folder / f"{identity.device}.outbox")
    recorder = Recorder(
        outbox,
        clock=SystemClock(),
        profile=Profile("counter"),
        new_boot_id=lambda: random.getrandbits(64),
    )
    link = Link(identity, outbox, clock=SystemClock(), rng=random.Random(1), options=QUICK)
    made = Door(link, outbox, recorder)

    def changed(connected: bool) -> None:
        made.drops += not connected

    link.on_change = changed
    return made


@pytest.fixture
async def world(stack: Stack, tmp_path: Path) -> AsyncIterator[World]:
    dsn = stack.endpoints.dsn("owner")
    await migrate(dsn)
    ingest = Ingest(stack)
    ingest.frames = Counter()
    async with (
        connected(dsn) as owner,
        asyncpg.create_pool(stack.endpoints.dsn("ingest"), min_size=1, max_size=2) as pool,
        asyncio.TaskGroup() as group,
    ):
        fleet = await register(owner, DEVICES)
        await owner.execute("update devices set enrolled_at = now()")
        made = World(stack, tmp_path, owner, pool, fleet, ingest)
        made.doors = [door(await made.identity(n), tmp_path) for n in range(DEVICES)]
        ready = asyncio.Event()
        tasks = [group.create_task(ingest.run(ready))]
        async with asyncio.timeout(20):
            await ready.wait()
        tasks += [group.create_task(d.link.run()) for d in made.doors]
        await made.settled()
        yield made
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def run(*words: str) -> int:
    return await asyncio.to_thread(ca.main, list(words))


async def states(world: World) -> dict[str, str]:
    rows = await world.owner.fetch("select split_part(name, ' ', 1) as n, state from authorities")
    return {row["n"]: row["state"] for row in rows}


async def test_a_fleet_moves_to_the_next_root_without_a_disconnect_but_planned_restarts(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async def without_a_disconnect(*steps: Callable[[], Awaitable[object]]) -> None:
        before = world.connects
        for step in steps:
            await step()
            await world.settled()
        assert world.connects == before, "a step that is no restart cost a connection"

    async def planned_restart() -> None:
        before = world.connects
        assert await run("install") == 0
        await world.settled()
        assert world.connects == [number + 1 for number in before]
        assert f"all {DEVICES} connections were back" in capsys.readouterr().out

    async def begins() -> None:
        assert await run("rollover", "start") == 0
        assert await run("rollover", "switch") == 1
        assert "does not trust what was begun" in capsys.readouterr().err

    await without_a_disconnect(begins)
    await planned_restart()
    assert (await states(world))["device-2"] == "trusted"

    async def is_refused_while_someone_has_not_proved_trust() -> None:
        await world.prove(0, 1, 2)
        assert await run("rollover", "switch") == 1
        said = capsys.readouterr()
        assert "3 of 4 devices" in said.err
        assert said.out.split() == [world.fleet.devices[3]], "the straggler is named"

    async def switches() -> None:
        await world.prove(3)
        assert await run("rollover", "switch") == 0

    await without_a_disconnect(is_refused_while_someone_has_not_proved_trust, switches)
    await planned_restart()  # the broker now shows a certificate below the next root
    shown = x509.load_pem_x509_certificates((world.stack.endpoints.pki / "broker.pem").read_bytes())
    assert shown[1].issuer.rfc4514_string() == "CN=Vestibule root 2"

    async def is_not_finished_while_devices_hold_old_certificates() -> None:
        assert await run("rollover", "finish") == 1
        assert "4 devices have not renewed yet" in capsys.readouterr().err
        due = await world.owner.fetchval("select max(renew_after - now()) from certificates")
        assert due.days < 30

    async def finishes() -> None:
        assert await run("rollover", "finish") == 0

    await without_a_disconnect(is_not_finished_while_devices_hold_old_certificates)
    before = world.connects
    for index in range(DEVICES):
        await world.renewed(index)
    await world.settled()
    renewals = [now - then for now, then in zip(world.connects, before, strict=True)]
    assert set(renewals) <= {0, 1}, (
        "a device tries its new certificate with a connection of its own"
    )
    await without_a_disconnect(finishes)
    await planned_restart()  # each comes back with a certificate of the new authority

    assert await states(world) == {
        **dict.fromkeys(("root-1", "device-1", "service-1"), "gone"),
        **dict.fromkeys(("root-2", "device-2", "service-2"), "signing"),
        "root-3": "trusted",
    }
    drops = [door.drops - renewal for door, renewal in zip(world.doors, renewals, strict=True)]
    assert drops == [3] * DEVICES, "the planned restarts, and nothing else"
    acts = await world.owner.fetch("select act, detail->>'planned' as p from audit order by number")
    restart = ("broker restarted", "true")
    assert [tuple(row) for row in acts] == [
        ("rollover begun", None),
        restart,
        ("rollover switched", None),
        restart,
        ("rollover finished", None),
        restart,
    ]
    logged = await world.owner.fetch(
        "select distinct subject from issuance_log where event = 'signed'"
    )
    assert {"root-3", "device-2", "service-2", "broker"} <= {row["subject"] for row in logged}


async def test_a_forced_switch_leaves_nobody_out_who_only_knows_the_old_root(world: World) -> None:
    old_root = world.authority.files.certificate("root-1").public_bytes(Encoding.PEM)
    identity = world.doors[0].link.identity
    identity.bundle.write_bytes(old_root)  # it never heard of the next one
    world.doors[0].link.renew_identity(identity)
    assert await run("rollover", "start") == 0
    assert await run("install") == 0
    assert await run("rollover", "switch", "--force") == 0
    assert await run("install") == 0
    await world.settled()


async def test_x28_a_stolen_device_authority_is_shut_out_below_the_same_root(
    world: World, tmp_path: Path
) -> None:
    thief = await asyncio.to_thread(stolen, world, tmp_path)
    assert not await refused(world.stack.endpoints.broker_device_port, thief())
    assert await run("issue-intermediate", "device") == 0
    assert await run("install") == 0
    assert await run("rollover", "switch") == 0
    for index in range(DEVICES):
        await world.renewed(index)
    assert await run("rollover", "finish") == 0
    assert await run("install") == 0
    await world.settled()
    generations = world.authority.files.generations
    assert [g.name for g in generations if g.state is State.GONE] == ["device-1"]
    assert await refused(world.stack.endpoints.broker_device_port, thief())


def stolen(world: World, tmp_path: Path) -> Callable[[], ssl.SSLContext]:
    """Certify a key with a copy of the present device authority; returns TLS that shows it."""
    copy = tmp_path / "stolen"
    shutil.copytree(world.stack.endpoints.pki, copy)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    issued = Authority.load(copy).issue_device(
        csr.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device="dc-impostor",
        now=datetime.now(UTC),
    )
    path = tmp_path / "impostor.pem"
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(pem + issued.chain_pem)

    def tls() -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=world.stack.endpoints.pki / "bundle.pem")
        context.load_cert_chain(path)
        return context

    return tls


async def test_show_says_what_there_is(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    await world.prove(0)
    assert await run() == 0
    said = capsys.readouterr().out
    for words in (
        "root-1       signing",
        "root-2       trusted",
        "its key is still here: take it away",
        "broker       until",
        "0 serials",
        "4 active",
        f"{world.fleet.devices[0]} until",
        "1 of 4 devices seen in 30 days have proved it",
    ):
        assert words in said
    assert "to do" not in said
