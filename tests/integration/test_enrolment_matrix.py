"""Every way of being enrolled, with every message lost, doubled or late and either side killed
between any two steps: the same end each time.

A path is walked once undisturbed to learn its steps, then once for each step with the fault there;
whoever is killed starts again, as a device after a power cut, a phone after a dead spot and a
server after its supervisor do. The device is the real agent, over real HTTPS.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from agent import command, factory, identity
from agent import enrol as agent_enrol
from agent.clock import SystemClock
from agent.config import AgentConfig
from agent.enrol import EnrolError, Labelled, Then, Ticket, enrol_by, parse_token
from agent.identity import Enrolled
from agent.notify import Notifier
from ops.services.stack import Stack
from protocol.label import Label, bind_proof
from server.db import engine
from server.db.engine import acting
from server.provisioning import enrol, issuing, sweep, technician
from server.provisioning.claims import make_claim, root_fingerprint, token
from server.provisioning.refusals import TABLE
from server.provisioning.web import build_enrolment
from tests.integration.api_world import World
from tests.integration.provisioning_world import Key, KilledError, Provisioning, provisioning

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

TRIES = 6


@dataclass
class Faults:
    """Notes each step that is passed, and kills at the one that is wanted, once."""

    wanted: str = ""
    passed: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        if name not in self.passed:
            self.passed.append(name)
        if name == self.wanted:
            self.wanted = ""
            raise KilledError(name)

    def takes(self, name: str) -> bool:
        """Note a step at which something else than death may happen; True if it does, once."""
        if name not in self.passed:
            self.passed.append(name)
        if name == self.wanted:
            self.wanted = ""
            return True
        return False


@dataclass
class Stage:
    """The world, the listener, and what goes wrong in it."""

    place: Provisioning
    faults: Faults
    url: str
    fingerprint: str
    folder: Path
    number: int = 0
    late: list[Callable[[], Any]] = field(default_factory=list)
    said: list[EnrolError] = field(default_factory=list)


@dataclass
class Walk:
    """One device on its way, and where it is to stand."""

    stage: Stage
    label: Label
    state: Path
    spot: str
    ticket: Ticket

    async def asks(self, *, voucher: str = "", spot: str = "") -> Enrolled | None:
        """Let the device ask until it is let in (None: until it is told to wait)."""
        ticket = self.ticket
        if isinstance(ticket, Labelled):
            ticket = Labelled(
                ticket.host,
                ticket.port,
                ticket.root_sha256,
                ticket.serial,
                ticket.secret,
                voucher,
                spot,
            )
        for _ in range(TRIES):
            try:
                return await asyncio.to_thread(enrol_by, ticket, state=self.state)
            except KilledError:
                continue  # the power is back
            except EnrolError as error:
                self.stage.said.append(error)
                if error.code == "pending":
                    return None
                if error.then is not Then.WAIT:
                    raise
        raise AssertionError(f"not enrolled after {TRIES} attempts: {self.stage.said[-1]}")

    async def claims(self, **named: Any) -> None:
        """Let the technician's phone say where the device stands, until it is answered."""
        place, faults = self.stage.place, self.stage.faults
        since = place.now
        for _ in range(TRIES):
            try:
                faults.step("phone: request lost")
                if faults.takes("phone: request doubled"):
                    await asyncio.gather(*(self._claim(since, **named) for _ in range(2)))
                await self._claim(since, **named)
                faults.step("phone: answer lost")
                return
            except KilledError:
                continue
        raise AssertionError("the phone was never answered")

    async def _claim(self, since: Any, **named: Any) -> None:
        place, faults = self.stage.place, self.stage.faults
        async with acting(place.desk, "open claim", organisation=place.organisation) as connection:
            claim = await technician.open_claim(
                connection,
                user_id=place.users["tove"],
                device=self.label.text,
                spot_ref=self.spot,
                since=since,
                now=place.now,
                act_ref=f"act {self.spot}",
                **named,
            )
            faults.step("server: claim not committed")
        faults.step("server: claim committed")
        if claim.ready:
            await place.complete(claim.ref)

    async def binds(self, voucher: str, ref: str) -> None:
        """Let the phone say later what was done in a dead spot."""
        place, faults = self.stage.place, self.stage.faults
        at = place.now
        place.later(minutes=40)
        proof = bind_proof(
            self.label.secret_sha256,
            voucher=ref,
            serial=self.label.serial,
            spot=self.spot,
            at_ms=round(at.timestamp() * 1000),
        )
        for _ in range(TRIES):
            try:
                faults.step("phone: request lost")
                async with acting(
                    place.desk, "bind", organisation=place.organisation
                ) as connection:
                    claim = await technician.bind(
                        connection,
                        place.signer,
                        voucher=voucher,
                        serial=self.label.serial,
                        proof=proof,
                        spot_ref=self.spot,
                        at=at,
                        act_ref=f"act {self.spot}",
                        now=place.now,
                    )
                    faults.step("server: claim not committed")
                faults.step("server: claim committed")
                if claim.ready:
                    await place.complete(claim.ref)
                faults.step("phone: answer lost")
                return
            except KilledError:
                continue
        raise AssertionError("the phone was never answered")


Path_ = Callable[[Walk], Awaitable[None]]


async def by_claim(walk: Walk) -> None:
    await walk.asks()


async def by_allow_list(walk: Walk) -> None:
    await walk.asks()
    await walk.claims()


async def phone_first(walk: Walk) -> None:
    await walk.claims()
    assert await walk.asks() is not None


async def device_first(walk: Walk) -> None:
    assert await walk.asks() is None
    await walk.claims()
    assert await walk.asks() is not None


async def voucher_by_device(walk: Walk) -> None:
    _, text = await walk.stage.place.voucher(uses=1)
    await walk.asks(voucher=text, spot=walk.spot)


async def bare_voucher_by_device(walk: Walk) -> None:
    _, text = await walk.stage.place.voucher(uses=1)
    await walk.asks(voucher=text)
    await walk.claims()


async def voucher_by_phone(walk: Walk) -> None:
    made, text = await walk.stage.place.voucher(uses=1)
    await walk.binds(text, made.ref)
    assert await walk.asks() is not None


async def voucher_by_both(walk: Walk) -> None:
    made, text = await walk.stage.place.voucher(uses=2)
    await walk.asks(voucher=text)
    await walk.binds(text, made.ref)


async def swap(walk: Walk) -> None:
    await walk.claims(replaces=f"OLD-{walk.label.serial}")
    await walk.asks()


PATHS: dict[str, tuple[Path_, str]] = {
    "claim": (by_claim, "allow-list"),
    "allow-list": (by_allow_list, "allow-list"),
    "phone first": (phone_first, "technician"),
    "device first": (device_first, "technician"),
    "voucher by device": (voucher_by_device, "technician"),
    "bare voucher by device": (bare_voucher_by_device, "technician"),
    "voucher by phone": (voucher_by_phone, "technician"),
    "voucher by both": (voucher_by_both, "technician"),
    "swap": (swap, "technician"),
}


@pytest.fixture
async def stage(
    world: World,
    stack: Stack,
    world_database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    async with provisioning(stack, world_database, world.owner) as place:
        faults = Faults()
        pki = stack.endpoints.pki
        app = build_enrolment(
            pool=place.ingest,
            pki=pki,
            broker=("127.0.0.1", 8883),
            now=lambda: place.now,
            monotonic=place.clock.monotonic,
        )
        app.middlewares.append(_dying)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pki / "https.pem", pki / "https.key")
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        port = runner.addresses[0][1]
        made = Stage(place, faults, f"https://127.0.0.1:{port}", root_fingerprint(pki), tmp_path)
        _hurt_server(monkeypatch, faults)
        _hurt_device(monkeypatch, made)
        try:
            yield made
        finally:
            await runner.cleanup()


@web.middleware
async def _dying(request: web.Request, handler: Any) -> web.StreamResponse:
    """Cut the connection when the server is killed: nobody hears an answer."""
    try:
        answer: web.StreamResponse = await handler(request)
    except KilledError:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    return answer


def _hurt_server(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    @asynccontextmanager
    async def transaction(pool: asyncpg.Pool, name: str) -> AsyncIterator[asyncpg.Connection]:
        faults.step(f"server: before {name}")
        async with engine.transaction(pool, name) as connection:
            yield connection
            faults.step(f"server: {name} not committed")
        faults.step(f"server: {name} committed")

    for module in (enrol, issuing):
        monkeypatch.setattr(module, "transaction", transaction)


def _hurt_device(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    faults, put, ask = stage.faults, identity.put, agent_enrol._ask

    def killed_put(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        name = "pending key" if path.name.startswith("key-") else path.name
        faults.step(f"device: before {name}")
        put(path, data, mode=mode)
        faults.step(f"device: after {name}")

    def lossy(*arguments: Any) -> str:
        what = arguments[3]
        if faults.takes(f"device: {what} lost"):
            raise OSError("nobody answers")
        if faults.takes(f"device: {what} doubled"):
            ask(*arguments)
        if faults.takes(f"device: {what} late"):
            stage.late.append(lambda: ask(*arguments))
            raise OSError("nobody answers yet")
        answer = ask(*arguments)
        if faults.takes(f"device: answer to {what} lost"):
            raise OSError("the answer is lost")
        return answer

    monkeypatch.setattr(identity, "put", killed_put)
    monkeypatch.setattr(agent_enrol, "_ask", lossy)


async def set_out(stage: Stage, name: str) -> Walk:
    """Bring a new device before a free spot (for a swap: one where another stands)."""
    place = stage.place
    stage.number += 1
    serial, spot = f"DC-{stage.number:04}", f"spot-{stage.number:04}"
    await place.spot(spot)
    label = await place.device(serial)
    host, port, root = agent_enrol.parse_server(stage.url, stage.fingerprint)
    ticket: Ticket = Labelled(host, port, root, label.serial, label.secret)
    if name == "claim":
        row = await place.owner.fetchval("select id from devices where serial = $1", serial)
        secret = await make_claim(place.owner, row, now=place.now)
        ticket = parse_token(token(url=stage.url, fingerprint=stage.fingerprint, secret=secret))
    if name == "swap":
        old = await place.device(f"OLD-{serial}")
        await place.claim(old.text, spot)
        await place.ask(old, Key())
        place.later(days=1)
    return Walk(stage, label, stage.folder / serial, spot, ticket)


async def check(walk: Walk, name: str, fault: str) -> None:
    """Hold the end to what every end has to be."""
    place, serial = walk.stage.place, walk.label.serial
    for repeat in walk.stage.late:
        await asyncio.to_thread(_quietly, repeat)
    walk.stage.late.clear()
    await sweep.sweep(place.ingest, now=place.now)
    row = await place.owner.fetchrow(
        "select d.id, d.state, d.device, c.chain from devices d left join certificates c "
        "on c.device_id = d.id and c.state = 'active' where d.serial = $1",
        serial,
    )
    # one credential, and it is the one that the device holds
    done = identity.read(walk.state)
    assert done.device == row["device"], fault
    files = identity.files(walk.state)
    assert files.chain.read_text() == row["chain"], fault
    leaf = x509.load_pem_x509_certificates(files.chain.read_bytes())[0]
    key = load_pem_private_key(files.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == leaf.public_key(), fault
    assert await place.certificates(serial) == ["active"], fault
    assert not [p.name for p in files.folder.iterdir() if p.name.startswith("key-")], fault
    # nothing recorded stays behind
    await issuing.sweep(place.ingest, now=place.now + timedelta(hours=2))
    left = await place.owner.fetchval("select count(*) from certificates where state = 'recorded'")
    assert left == 0, fault
    # it stands where it was said to, once
    acts = [
        r["act"]
        for r in await place.owner.fetch("select act from audit where subject = $1", row["device"])
    ]
    assert acts.count("device enrolled") == 1, (fault, acts)
    stands = await place.stands(serial)
    if name == "claim":
        assert (row["state"], stands) == ("provisioned", []), fault
        return
    assert row["state"] == "installed", fault
    assert [(where, until) for where, _, until in stands] == [(walk.spot, None)], fault
    assert acts.count("device installed") == 1, (fault, acts)
    open_claims = await place.owner.fetchval(
        "select count(*) from technician_claims where device_id = $1 and used_at is null "
        "and ended_at is null",
        row["id"],
    )
    assert open_claims == 0, fault
    if "voucher" in name:
        spent = await place.owner.fetchval(
            "select uses_left from vouchers order by id desc limit 1"
        )
        assert spent == 0, fault
    if name == "swap":
        old = f"OLD-{serial}"
        assert await place.state(old) == "returned", fault
        ((_, _, until),) = await place.stands(old)
        assert until == stands[0][1], fault  # no instant without a device, none with two
        orders = await place.owner.fetch(
            "select a.admit, a.reason from admissions a join devices d on d.id = a.device_id "
            "where d.serial = $1",
            old,
        )
        assert [tuple(order) for order in orders] == [(False, "replaced")], fault


def _quietly(repeat: Callable[[], Any]) -> None:
    """Deliver what was late; whatever it is answered, nobody listens any more."""
    try:
        repeat()
    except (EnrolError, OSError):
        return


@pytest.mark.parametrize("name", PATHS)
async def test_whatever_is_lost_or_killed_the_end_is_the_same(stage: Stage, name: str) -> None:
    path, policy = PATHS[name]
    await stage.place.policy(policy)
    walk = await set_out(stage, name)
    stage.faults.passed.clear()
    await path(walk)
    steps = list(stage.faults.passed)
    await check(walk, name, "none")
    assert len(steps) > 20
    for step in steps:
        walk = await set_out(stage, name)
        stage.faults.wanted = step
        stage.said.clear()
        await path(walk)
        assert stage.faults.wanted == "", f"{step} was not reached"
        await check(walk, name, step)
        for error in stage.said:  # who waits is told so by the table
            assert error.code in ("", "pending", "unavailable"), (step, error)
            assert not error.code or TABLE[error.code].en in str(error)


async def test_an_agent_that_starts_first_is_let_in_while_it_waits(stage: Stage) -> None:
    place = stage.place
    await place.policy("technician")
    label = await place.device("DC-9001")
    settings = AgentConfig(
        state=stage.folder / "first",
        server=stage.url,
        root_sha256=stage.fingerprint,
        serial=label.serial,
        setup_secret=label.typed,
    )
    waiting = asyncio.Event()

    class Clock(SystemClock):
        async def sleep(self, seconds: float) -> None:
            if seconds != factory.BEAT_S:
                waiting.set()
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(
            factory.enrolled(settings, clock=Clock(), rng=random.Random(1), notifier=Notifier({}))
        )
        await waiting.wait()
        assert not asking.done()
        await place.claim(label.text, "door-1")
    assert asking.result() == identity.read(settings.state)
    assert await place.state("DC-9001") == "installed"


async def test_the_command_says_the_tables_sentence_in_the_systems_language(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    label = await stage.place.device("DC-9002", state="suspended")
    monkeypatch.setenv("LC_ALL", "sv_SE.UTF-8")
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(stage.folder / "state"))
    words = ["enrol", "--server", stage.url, "--root", stage.fingerprint]
    words += ["--serial", label.serial, "--secret", label.secret]
    assert await asyncio.to_thread(command.main, words) == command.REFUSED
    assert TABLE["device_not_admitted"].sv in capsys.readouterr().err
