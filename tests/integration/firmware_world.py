"""Devices with real certificates at the devices' real listener, and releases on their way to them.

A `Scripted` device says what a test lets it say; `tests/system` has real agents.
"""

import hashlib
import json
import random
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ops.services.stack import Stack
from protocol.release import target_path
from protocol.update import (
    Answer,
    Attempt,
    Component,
    Phase,
    Report,
    Step,
    read_answer,
    signed_message,
    write_report,
)
from server.db.engine import open_pool
from server.firmware.fetching import Files
from server.firmware.office import Office
from server.firmware.policy import Policy, Ramp, write_policy
from server.firmware.web import add_updates
from server.pki.authority import Authority
from server.provisioning.issuing import issue, proved
from server.provisioning.listener import listener_tls
from server.provisioning.web import build_enrolment
from server.web.deadline import listening

AT_ONCE = Ramp(base=1_000, factor=1)
AT_ANY_TIME = Policy(windows=None, ramp=AT_ONCE)
BEFORE_INSTALLING = (Phase.ACCEPTED, Phase.DOWNLOADING, Phase.READY, Phase.WAITING_WINDOW)


def named(prefix: str) -> str:
    """Return a reference as the server makes them."""
    return f"{prefix}-{secrets.token_hex(4)}"


@dataclass
class Counted:
    """A clock and a sleep without time: what waits, moves it."""

    at_s: float = 1000.0

    def monotonic(self) -> float:
        return self.at_s

    async def sleep(self, seconds: float) -> None:
        self.at_s += seconds


@dataclass(frozen=True)
class Release:
    """A release with its bytes."""

    row: int
    component: str
    version: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def part(self) -> Component:
        """What a device says that runs it."""
        return Component(self.version, self.sha256, "1.0.0")


@dataclass
class Scripted:
    """A device: a key, a certificate, and what it remembers between two askings."""

    world: "Updates"
    row: int
    name: str
    key: ec.EllipticCurvePrivateKey
    tls: ssl.SSLContext
    components: dict[str, Component] = field(default_factory=dict)
    hardware: str = "DC2"
    slot: str = "package"
    answers: str = ""
    nonce: str = ""

    def report(self, *steps: Step, **more: Any) -> Report:
        """Return what it says now, with a nonce of its own."""
        values: dict[str, Any] = {
            "device": self.name,
            "hardware": self.hardware,
            "nonce": secrets.token_hex(16),
            "answers": self.answers,
            "components": dict(self.components),
            "slot": self.slot,
            "steps": steps,
        }
        return Report(**(values | more))

    def signed(self, report: Report) -> bytes:
        """Return a report as it travels."""
        signature = self.key.sign(signed_message(report), ec.ECDSA(hashes.SHA256()))
        return write_report(report, signature)

    async def post(self, content: bytes) -> tuple[int, bytes]:
        """Send bytes; status and body."""
        status, body, _ = await self.asks("POST", "/v1/update", data=content)
        return status, body

    async def says(self, *steps: Step, **more: Any) -> Answer:
        """Report, and take in what is answered; it must be answered."""
        report = self.report(*steps, **more)
        status, body = await self.post(self.signed(report))
        assert status == 200, body
        answer = read_answer(body)
        self.answers, self.nonce = answer.nonce, report.nonce
        return answer

    async def asks(
        self, method: str, path: str, **more: Any
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Ask anything of the listener, on a connection of its own."""
        url = f"https://127.0.0.1:{self.world.port}{path}"
        connector = aiohttp.TCPConnector(ssl=self.tls, force_close=True)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, url, **more) as response,
        ):
            return response.status, await response.read(), response.headers

    async def fetches(
        self, release: "Release | str", **headers: str
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """Ask for a release's bytes."""
        sha256 = release if isinstance(release, str) else release.sha256
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.asks("GET", f"/v1/update/artifacts/{sha256}", headers=named)


@dataclass
class Updates:
    """An organisation with a site, the listener, and what is released."""

    stack: Stack
    owner: asyncpg.Connection
    ingest: asyncpg.Pool
    maint: asyncpg.Pool
    folder: Path
    counted: Counted = field(default_factory=Counted)
    ahead: timedelta = timedelta(0)
    port: int = 0
    files: Files = field(init=False)
    office: Office = field(init=False)
    organisation: int = 0
    site: int = 0

    def __post_init__(self) -> None:
        self.files = Files(self.folder, self.counted.monotonic, self.counted.sleep)
        self.office = Office(self.ingest, self.stack.endpoints.pki, self.now)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    async def place(self, ref: str, organisation: int | None = None) -> int:
        """Add a site of an organisation."""
        found: int = await self.owner.fetchval(
            "insert into sites (organisation_id, ref, name, time_zone) "
            "values ($1, $2, $2, 'Europe/Stockholm') returning id",
            *(organisation or self.organisation, ref),
        )
        return found

    async def device(
        self, *, site: int | None = None, organisation: int | None = None, **more: Any
    ) -> Scripted:
        """Add an enrolled device that stands at the site."""
        name = f"dc-{random.getrandbits(48):012x}"
        owner = organisation or self.organisation
        row = await self.owner.fetchval(
            "insert into devices (organisation_id, device, kind, model, state, enrolled_at) "
            "values ($1, $2, 'counter', 'DC2', 'in service', now()) returning id",
            *(owner, name),
        )
        await self.owner.execute(
            "with made as (insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, 'spot-' || $3, $3, 'counter') returning id) "
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "select $1, $4, id, tstzrange(null, null) from made",
            *(owner, site or self.site, name, row),
        )
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        issued = await issue(
            self.ingest,
            Authority.load(self.stack.endpoints.pki),
            device_row=row,
            device=name,
            organisation=owner,
            key=proved(request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()),
            reason="enrolment",
            now=datetime.now(UTC),
            stage=False,
        )
        tls = self.tls(name, key, issued.chain_pem)
        parts = {"agent": Component("1.0.0", "", "1.0.0")}
        return Scripted(self, row, name, key, tls, parts, **more)

    def tls(self, name: str, key: ec.EllipticCurvePrivateKey, chain: str) -> ssl.SSLContext:
        """Return the context of who shows this certificate."""
        folder = self.folder.parent / "clients"
        folder.mkdir(exist_ok=True)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        path = folder / f"{name}.pem"
        path.write_text(pem + chain)
        context = ssl.create_default_context(cafile=self.stack.endpoints.pki / "bundle.pem")
        context.load_cert_chain(path)
        return context

    def stranger(self) -> ssl.SSLContext:
        """Return the context of who shows no certificate."""
        return ssl.create_default_context(cafile=self.stack.endpoints.pki / "bundle.pem")

    async def one_door(self, *devices: Scripted) -> None:
        """Let devices stand at one entrance."""
        door = await self.owner.fetchval(
            "insert into doors (organisation_id, site_id, ref, name) "
            "values ($1, $2, $3, 'Entrance') returning id",
            *(self.organisation, self.site, named("door")),
        )
        await self.owner.execute(
            "update spots set door_id = $1 where id in "
            "(select spot_id from assignments where device_id = any($2::int[]))",
            *(door, [each.row for each in devices]),
        )

    async def release(
        self, version: str, *, component: str = "agent", size: int = 300_000, stored: bool = True
    ) -> Release:
        """Publish a release; its bytes are drawn from its version."""
        content = random.Random(f"{component} {version}").randbytes(size)
        sha256 = hashlib.sha256(content).hexdigest()
        if stored:
            path = self.files.store.path(sha256)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        row = await self.owner.fetchval(
            "insert into releases (ref, component, version, floor, target, length, sha256, "
            "hardware, published_at) values ($1, $2, $3, '1.0.0', $4, $5, $6, '{DC2}', now()) "
            "returning id",
            *(named("rel"), component, version, target_path(component, version, sha256)),
            *(size, sha256),
        )
        return Release(row, component, version, content)

    async def rollout(
        self,
        *releases: Release,
        devices: tuple[Scripted, ...],
        policy: Policy = AT_ANY_TIME,
        organisation: int | None = None,
        state: str = "running",
        site: int | None = None,
    ) -> str:
        """Begin a rollout of one wave, whose devices wait to be offered it; its reference."""
        owner, ref = organisation or self.organisation, named("ro")
        bundle = await self.owner.fetchval(
            "insert into bundles (ref, name, releases, created_at) values ($1, $1, $2, now()) "
            "returning id",
            *(named("bun"), [each.row for each in releases]),
        )
        row = await self.owner.fetchval(
            "insert into rollouts (organisation_id, ref, name, payload, bundle_id, policy, state, "
            "since, devices, author, tokens, tokens_at, due_at) "
            "values ($1, $2, $2, 'bundle', $3, $4, $5, now(), $6, 'ada', 100, now(), now()) "
            "returning id",
            *(owner, ref, bundle, write_policy(policy), state, len(devices)),
        )
        await self.owner.executemany(
            "insert into waves (rollout_id, number, organisation_id, kind, state, opened_at, "
            "size) values ($1, $2, $3, $4, 'open', now(), $5)",
            [(row, 0, owner, "stragglers", 0), (row, 1, owner, "wave", len(devices))],
        )
        await self.owner.executemany(
            "insert into executions (organisation_id, ref, rollout_id, wave, pool, device_id, "
            "site_id, state, due_at) values ($1, $2, $3, 1, 1, $4, $5, 'planned', now())",
            [(owner, named("exe"), row, each.row, site or self.site) for each in devices],
        )
        return ref

    async def greets(self, device: Scripted, agent: str) -> None:
        """Let a device's greeting be stored, as ingest does."""
        await self.owner.execute(
            "insert into presences (device_id, organisation_id, session, session_at, agent) "
            "select id, organisation_id, 'open', $2, $3 from devices where id = $1 "
            "on conflict (device_id) do update set session = 'open', session_at = $2, agent = $3",
            *(device.row, self.now(), agent),
        )
        await self.owner.execute(
            "insert into device_events (organisation_id, device_id, at, kind) "
            "select organisation_id, id, $2, 'version' from devices where id = $1",
            *(device.row, self.now()),
        )

    async def execution(self, device: Scripted) -> asyncpg.Record:
        """Return the last execution of a device."""
        return await self.owner.fetchrow(
            "select * from executions where device_id = $1 order by id desc limit 1", device.row
        )

    async def kept(self, device: Scripted) -> asyncpg.Record:
        """Return what is known of what a device runs."""
        return await self.owner.fetchrow(
            "select * from device_firmware where device_id = $1", device.row
        )

    def metadata(self, name: str, value: dict[str, Any]) -> bytes:
        """Serve a file of metadata."""
        folder = self.folder / "metadata"
        folder.mkdir(exist_ok=True)
        content = json.dumps(value).encode()
        (folder / f"{name}.json").write_bytes(content)
        return content


@pytest.fixture
async def updates(stack: Stack, database: str, tmp_path: Path) -> AsyncIterator[Updates]:
    """An organisation with a site, and the devices' listener."""
    folder = tmp_path / "firmware"
    folder.mkdir()
    async with AsyncExitStack() as exits:
        owner = await asyncpg.connect(stack.endpoints.dsn("owner", database))
        exits.push_async_callback(owner.close)
        ingest, maint = [
            await exits.enter_async_context(
                open_pool(stack.endpoints.dsn(role, database), size=4, name=role)
            )
            for role in ("ingest", "maint")
        ]
        made = Updates(stack, owner, ingest, maint, folder)
        app = build_enrolment(
            pool=ingest,
            pki=stack.endpoints.pki,
            broker=("127.0.0.1", stack.endpoints.broker_device_port),
            now=made.now,
        )
        add_updates(app, office=made.office, files=made.files)
        made.port = await exits.enter_async_context(
            listening(
                app,
                host="127.0.0.1",
                port=0,
                tls=listener_tls(stack.endpoints.pki),
                shutdown_s=1,
            )
        )
        made.organisation = await owner.fetchval(
            "insert into organisations (ref, name) values ('own', 'Own') returning id"
        )
        made.site = await made.place("site-north")
        yield made


def step(execution: asyncpg.Record, seq: int, phase: Any, **more: Any) -> Step:
    """Return a step of an execution's attempt."""
    return Step(Attempt(execution["ref"], execution["attempt"]), seq, phase, **more)


__all__ = [
    "AT_ANY_TIME",
    "AT_ONCE",
    "Counted",
    "Release",
    "Scripted",
    "Updates",
    "named",
    "step",
    "updates",
]


async def told(device: Scripted) -> Answer:
    """Ask until a report is fresh, and return that answer."""
    await device.says()
    return await device.says()


async def offer(updates: Updates) -> tuple[Scripted, Release, asyncpg.Record]:
    """Offer a new device a new release; both, and its execution."""
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    await told(device)
    return device, release, await updates.execution(device)


async def steps_to(updates: Updates, device: Scripted, *phases: Phase, since: int = 0) -> Answer:
    """Say the next steps of what is under way, each in a report of its own."""
    execution = await updates.execution(device)
    answer = None
    for seq, phase in enumerate(phases, since + 1):
        answer = await device.says(step(execution, seq, phase))
    assert answer is not None
    return answer


async def on_trial(
    updates: Updates, device: Scripted, release: Release
) -> tuple[asyncpg.Record, Attempt]:
    """Bring a device to its first start of new code, which it has not reported yet."""
    await told(device)
    phases = (*BEFORE_INSTALLING, Phase.INSTALLING, Phase.REBOOTING)
    await steps_to(updates, device, *phases)
    device.components["agent"] = release.part
    device.slot = "b"
    execution = await updates.execution(device)
    return execution, Attempt(execution["ref"], execution["attempt"])
