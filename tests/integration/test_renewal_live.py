"""Renewal whole: the real agent over real HTTPS and MQTT, with the real database behind."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from agent import identity
from agent import renewal as agent_renewal
from agent.agent import Agent
from agent.clock import SystemClock
from agent.config import AgentConfig
from agent.enrol import EnrolError, Then, ask
from agent.identity import Enrolled
from agent.link import Identity, Link, LinkOptions, tls_context
from agent.outbox import Outbox
from agent.renewal import Act, Renewal, plan
from agent.sensor import Crossing, Sensor, Take
from ops.services.stack import Stack
from server.clock import SystemClock as ServerClock
from server.db import engine
from server.ingest.worker import Ingest
from server.pki.authority import Authority
from server.provisioning import issuing, renew
from server.provisioning.issuing import issue, proved
from server.provisioning.listener import listener_tls
from server.provisioning.web import build_enrolment
from tests.ingest_world import Fleet, owning, register
from tests.integration.provisioning_world import KilledError
from tests.integration.test_ingest_broker import broker_settings

pytestmark = pytest.mark.services

DUE, ENDED = timedelta(days=300), timedelta(days=366)
BEYOND = timedelta(days=365 + 181)


@dataclass
class World:
    """A listener for devices, the broker, and a database."""

    stack: Stack
    owner: asyncpg.Connection
    pool: asyncpg.Pool
    fleet: Fleet
    port: int
    folder: Path

    @property
    def authority(self) -> Authority:
        return Authority.load(self.stack.endpoints.pki)

    async def enrolled(self, index: int = 0, *, ago: timedelta = DUE) -> Path:
        """Enrol a device so long ago; its state folder."""
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        issued = await issue(
            self.pool,
            self.authority,
            device_row=self.fleet.rows[index],
            device=self.fleet.devices[index],
            organisation=self.fleet.organisation,
            key=proved(request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()),
            reason="enrolment",
            now=datetime.now(UTC) - ago,
            stage=False,
        )
        state = self.folder / f"{self.fleet.devices[index]}-{issued.serial[:8]}"
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        identity.put(state / "pending", pem, mode=0o600)
        enrolled = Enrolled(
            self.fleet.devices[index],
            "counter",
            "127.0.0.1",
            self.stack.endpoints.broker_device_port,
            "claim",
            "127.0.0.1",
            self.port,
            renew_after_ms=round(issued.renew_after.timestamp() * 1000),
        )
        identity.write(
            state,
            enrolled,
            key=state / "pending",
            chain=issued.chain_pem,
            bundle=self.authority.bundle(),
        )
        return state

    async def states(self, index: int = 0) -> list[str]:
        rows = await self.owner.fetch(
            "select state from certificates where device_id = $1 order by recorded_at",
            self.fleet.rows[index],
        )
        return [row["state"] for row in rows]

    async def people(self, index: int = 0) -> int:
        found: int | None = await self.owner.fetchval(
            "select sum(coalesce(in0, 0)) from rollup_15m where spot = $1", self.fleet.spots[index]
        )
        return found or 0


@pytest.fixture
async def world(stack: Stack, database: str, tmp_path: Path) -> AsyncIterator[World]:
    pki = stack.endpoints.pki
    async with (
        owning(stack, database) as owner,
        asyncpg.create_pool(stack.endpoints.dsn("ingest", database), min_size=1) as pool,
    ):
        app = build_enrolment(
            pool=pool,
            pki=pki,
            broker=("127.0.0.1", stack.endpoints.broker_device_port),
            now=lambda: datetime.now(UTC),
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=listener_tls(pki)).start()
            fleet = await register(owner, 2, prefix=f"door-{random.getrandbits(20):x}")
            yield World(stack, owner, pool, fleet, runner.addresses[0][1], tmp_path)
        finally:
            await runner.cleanup()


class Public(Sensor):
    """People come through the door, one every 20 ms."""

    def __init__(self) -> None:
        self.people = 0
        self.closed = False

    async def run(self, take: Take) -> None:
        while True:
            if not self.closed:
                take(Crossing(0, entered=1))
                self.people += 1
            await asyncio.sleep(0.02)


@asynccontextmanager
async def living(state: Path, sensor: Sensor) -> AsyncIterator[Agent]:
    """Run the agent as its process does."""
    config = AgentConfig(
        state=state,
        socket=state / "sock",
        flush_s=0.05,
        retry_min_s=0.05,
        retry_max_s=0.5,
        spread_s=0.0,
        health_s=0.2,
    )
    agent = Agent(config, sensor=sensor)
    assert agent.renewal is not None
    agent.renewal._look_s = 0.05
    task = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def ingesting(world: World) -> AsyncIterator[None]:
    task = asyncio.create_task(
        Ingest(world.pool, broker_settings(world.stack), ServerClock()).run()
    )
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is waited for is in other tasks' hands
            await asyncio.sleep(0.02)


def leaf(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


async def test_a_live_agent_renews_goes_on_counting_and_loses_nothing(world: World) -> None:
    state = await world.enrolled()
    before = leaf(identity.files(state).chain).serial_number
    public = Public()
    async with ingesting(world):
        async with living(state, public) as agent:
            await until(lambda: identity.read(state).pair == 1)
            await until(lambda: agent.link.connected)
            await until(lambda: identity.read(state).renew_after_ms > 0)
            connects = agent.link.connects
            counted = public.people
            await until(lambda: public.people > counted + 20)
            assert agent.link.connects == connects <= 2
            assert agent.link.identity == identity.for_link(state)
            ends = f"{datetime.now(UTC) + timedelta(days=365):%F}"
            told = agent.status()
            assert (told["renewal"], told["certificate_ends"]) == ("rest", ends)
            assert agent.metrics()["certificate.days"] > 364
        public.closed = True
        async with living(state, public) as agent:  # what was open is sealed, and is sent now
            await until(lambda: agent.link.connected and not agent.outbox.pending())
    assert public.people > 20
    assert await world.people() == public.people
    assert await world.states() == ["retired", "active"]
    assert leaf(identity.files(state).chain).serial_number != before
    proofs = await world.owner.fetchval("select count(*) from trust_proofs")
    assert proofs == sum(root.kind == "root" for root in world.authority.described())


async def test_a_device_that_was_away_for_long_is_kept_out_by_the_broker_until_it_has_renewed(
    world: World,
) -> None:
    state = await world.enrolled(ago=ENDED)
    link = Link(
        identity.for_link(state),
        Outbox(":memory:"),
        clock=SystemClock(),
        rng=random.Random(1),
        options=LinkOptions(retry_min_s=0.05, retry_max_s=0.2, connect_timeout_s=3600),
    )
    task = asyncio.create_task(link.run())
    await until(lambda: link.refused)  # told by the alert: no answer is waited for
    assert link.connects == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    public = Public()
    async with living(state, public) as agent:
        await until(lambda: agent.link.connected)
        await until(lambda: identity.read(state).pair == 1)
    assert leaf(identity.files(state).chain).not_valid_after_utc > datetime.now(UTC)


@pytest.mark.parametrize("why", ["revoked", "suspended", "beyond grace"])
async def test_who_may_not_renew_stays_out_and_is_told_why(world: World, why: str) -> None:
    state = await world.enrolled(ago=BEYOND if why == "beyond grace" else DUE)
    code = "grace_over"
    if why == "revoked":
        await world.owner.execute("update certificates set state = 'revoked', revoked_at = now()")
        code = "certificate_revoked"
    elif why == "suspended":
        await world.owner.execute("update devices set state = 'suspended'")
        code = "device_not_admitted"
    with pytest.raises(EnrolError) as error:
        await asyncio.to_thread(asks, world, identity.for_link(state), {"csr": ""})
    assert (error.value.code, error.value.then) == (code, Then.ASK)
    assert (await world.states())[1:] == []


def asks(world: World, me: Identity | None, body: object, path: str = "/v1/renew") -> str:
    """Ask the listener something, with this pair or none."""
    if me is None:
        context = ssl.create_default_context(cafile=world.stack.endpoints.pki / "bundle.pem")
    else:
        context = tls_context(me)
    return ask("127.0.0.1", world.port, context, method="POST", path=path, body=json.dumps(body))


def csr() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


async def test_the_connection_alone_says_who_renews(world: World) -> None:
    mine, others = await world.enrolled(0), await world.enrolled(1)
    me = identity.for_link(others)
    stranger = replace(me, device=identity.for_link(mine).device)
    answer = json.loads(await asyncio.to_thread(asks, world, stranger, {"csr": csr()}))
    got = x509.load_pem_x509_certificates(answer["chain"].encode())[0]
    assert world.fleet.devices[1] in got.subject.rfc4514_string()
    assert await world.states(0) == ["active"]
    assert await world.states(1) == ["active", "staged"]
    spoilt: list[object] = [{"csr": csr(), "device": world.fleet.devices[0]}, {}, [], {"csr": 3}]
    for body in spoilt:
        with pytest.raises(EnrolError) as error:
            await asyncio.to_thread(asks, world, me, body)
        assert error.value.code == "malformed"
    for path in ("/v1/renew", "/v1/renew/confirm"):
        asked = {"csr": csr()} if path == "/v1/renew" else {}
        with pytest.raises(EnrolError) as error:
            await asyncio.to_thread(asks, world, None, asked, path)
        assert error.value.code == "no_certificate"


async def test_a_foreign_certificate_does_not_even_get_a_hearing(
    world: World, tmp_path: Path
) -> None:
    state = await world.enrolled()
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    forged = Authority.create(tmp_path / "foreign").issue_device(
        request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM),
        device=world.fleet.devices[0],
        now=datetime.now(UTC),
    )
    files = identity.files(state)
    files.chain.write_bytes(forged.chain_pem)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(OSError, match=r"unknown ca|UNKNOWN_CA|reset|closed|EOF"):
        await asyncio.to_thread(asks, world, identity.for_link(state), {"csr": csr()})


async def test_too_early_says_when_in_the_devices_language(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "sv_SE.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    state = await world.enrolled(ago=timedelta(days=1))
    with pytest.raises(EnrolError, match="behöver inte förnyas än") as error:
        await asyncio.to_thread(asks, world, identity.for_link(state), {"csr": csr()})
    assert (error.value.code, error.value.then) == ("renewal_too_early", Then.WAIT)
    assert error.value.retry_after_s > 0


# -- whatever is lost, doubled, late or killed -----------------------------------------------------


class Taking:
    """A link that the broker takes with any pair."""

    refused = False

    def __init__(self, me: Identity) -> None:
        self.identity = me

    def renew_identity(self, me: Identity) -> None:
        self.identity = me

    def reread(self) -> None:
        """Nothing is kept."""

    async def try_identity(self, me: Identity) -> None:
        self.identity = me


@dataclass
class Faults:
    """Notes what may go wrong, and lets the one that is wanted happen, once."""

    wanted: str = ""
    passed: list[str] = field(default_factory=list)
    late: list[Callable[[], Any]] = field(default_factory=list)

    def takes(self, name: str) -> bool:
        if name not in self.passed:
            self.passed.append(name)
        if name != self.wanted:
            return False
        self.wanted = ""
        return True

    def kills(self, name: str) -> None:
        if self.takes(name):
            raise KilledError(name)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    made = Faults()

    @asynccontextmanager
    async def cut(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
        async with engine.transaction(pool, name) as connection:
            yield connection
            made.kills(f"server: before {name}")
        made.kills(f"server: after {name}")

    sign = Authority.issue_device

    def signed(*args: Any, **named: Any) -> Any:
        made.kills("server: before signing")
        done = sign(*args, **named)
        made.kills("server: after signing")
        return done

    def lossy(*args: Any, **named: Any) -> str:
        def again() -> str:
            return ask(*args, **named)

        name = f"{named['path']} {'promoted' if 'promoted' in named['body'] else ''}"
        if made.takes(f"{name}: request lost"):
            raise ConnectionResetError
        if made.takes(f"{name}: request doubled"):
            again()
        if made.takes(f"{name}: request late"):
            made.late.append(again)
            raise TimeoutError
        if made.takes(f"{name}: request repeated at the end"):
            made.late.append(again)
        answer = again()
        if made.takes(f"{name}: answer lost"):
            raise ConnectionResetError
        return answer

    with monkeypatch.context() as patched:
        for module in (issuing, renew):
            patched.setattr(module, "transaction", cut)
        patched.setattr(Authority, "issue_device", signed)
        patched.setattr(agent_renewal, "ask", lossy)
        yield made


async def renewed(world: World, faults: Faults) -> int:
    """Let a device renew, whatever happens; return how many acts it took."""
    faults.wanted, wanted = "", faults.wanted
    state = await world.enrolled()
    faults.wanted, faults.late = wanted, []
    renewal = Renewal(
        state,
        Taking(identity.for_link(state)),  # type: ignore[arg-type]
        server=("127.0.0.1", world.port),
        clock=SystemClock(),
        rng=random.Random(1),
        last_utc_ms=lambda: 0,
    )
    acts = 0
    while await world.states() != ["retired", "active"]:
        renewal.progress = replace(renewal.progress, not_before_ms=0)
        act = plan(renewal.progress, renewal.progress.check_ms - 1, due=renewal._due())
        await renewal.step(act if isinstance(act, Act) else Act.CHECK)
        states = await world.states()
        assert states.count("active") == 1
        assert states.count("staged") <= 1
        acts += 1
        assert acts < 30
    for again in faults.late:  # what was underway arrives when all is over
        with suppress(EnrolError):
            await asyncio.to_thread(again)
    assert await world.states() == ["retired", "active"]
    files = identity.files(state)
    serial = f"{leaf(files.chain).serial_number:x}"
    found = await world.owner.fetchval("select state from certificates where serial = $1", serial)
    assert (files.pair, found) == (1, "active")
    assert await world.owner.fetchval("select count(*) from audit") == 1
    await world.owner.execute("truncate certificates, audit, trust_proofs")
    return acts


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_whatever_is_lost_doubled_late_or_killed_ends_with_one_active_certificate(
    world: World, faults: Faults
) -> None:
    undisturbed = await renewed(world, faults)
    wanted = [name for name in faults.passed if not name.endswith(("sweep", "claims"))]
    assert len(wanted) >= 25
    for name in wanted:
        faults.wanted = name
        acts = await renewed(world, faults)
        assert not faults.wanted, f"{name} did not happen"
        assert acts <= undisturbed + 1, name
