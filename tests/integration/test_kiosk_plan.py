"""A published questionnaire on its way to a kiosk, over real mTLS: rung for, taken, or refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

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
    load_pem_private_key,
)

from agent import identity
from agent.clock import SystemClock
from agent.content import Terms
from agent.identity import Enrolled
from agent.kiosk import BUILT_IN
from agent.link import Link, LinkOptions
from agent.outbox import Outbox
from agent.plan import Plans
from ops.demo.kiosk import SAD, OpenKiosk
from ops.services.stack import Stack
from protocol.content import Fault
from protocol.frame import Section, decode_time, need, read_body, read_header
from protocol.kiosk import Presses, decode_presses
from protocol.plan import Envelope, Plan
from server.feedback import plans as plans_of_server
from server.feedback import questionnaires
from server.feedback.codes import Handing, add_codes
from server.feedback.plans import ContentSigner, add_plans
from server.feedback.questionnaires import Schedule
from server.ingest.mqtt import BrokerSettings
from server.pki.authority import Authority
from server.pki.signer import sign_with
from server.provisioning.bell import Bell
from server.provisioning.issuing import issue, proved
from server.provisioning.listener import listener_tls
from server.provisioning.web import build_enrolment
from simulators.faults import true_offset_ms
from simulators.hardware import DeviceSpec
from simulators.traffic import Door, Kiosk
from simulators.truth import TruthFile
from tests.integration.api_world import World
from tests.integration.test_questionnaires import content, kiosk

pytestmark = pytest.mark.services
ALWAYS = Schedule()
KEY, ADDRESS = b"k" * 32, "https://shop.example/s"
BY: dict[str, Any] = {"actor": "test", "now": datetime.now(UTC)}


@dataclass
class Shop:
    """A kiosk that is enrolled, and the listener that it asks."""

    stack: Stack
    owner: asyncpg.Connection
    pool: asyncpg.Pool
    organisation: int
    row: int
    device: str
    port: int
    state: Path

    @property
    def pki(self) -> Path:
        return self.stack.endpoints.pki

    def terms(self, **more: Any) -> Terms:
        options: dict[str, Any] = {
            "server": ("127.0.0.1", self.port),
            "clock": SystemClock(synced=lambda: True),
            "rng": random.Random(1),
            "last_utc_ms": lambda: 0,
            "spread_s": 0.0,
        }
        return Terms(self.state, **(options | more))

    def plans(self, **more: Any) -> Plans:
        return Plans(self.terms(**more), built_in=bytes(8))

    async def published(self, text: str, schedule: Schedule = ALWAYS) -> tuple[bytes, str]:
        """Make and publish a questionnaire; its hash, and the publication."""
        made = await questionnaires.make(
            self.owner, self.organisation, name="Visit", value={"format": 1, **content(text)}, **BY
        )
        shown = await questionnaires.publish(
            self.owner,
            self.organisation,
            questionnaire=made.ref,
            site="site-kiosks",
            spot=None,
            schedule=schedule,
            **BY,
        )
        return bytes.fromhex(made.hex), shown.ref


@pytest.fixture
async def shop(
    stack: Stack, world: World, world_database: str, tmp_path: Path
) -> AsyncIterator[Shop]:
    pki, owner = stack.endpoints.pki, world.owner
    async with asyncpg.create_pool(
        stack.endpoints.dsn("ingest", world_database), min_size=1
    ) as pool:
        app = build_enrolment(
            pool=pool,
            pki=pki,
            broker=("127.0.0.1", stack.endpoints.broker_device_port),
            now=lambda: datetime.now(UTC),
        )
        add_plans(app, pool=pool, pki=pki, now=lambda: datetime.now(UTC))
        handing = Handing(KEY, ADDRESS)
        add_codes(app, pool=pool, pki=pki, handing=handing, now=lambda: datetime.now(UTC))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=listener_tls(pki)).start()
            organisation = await owner.fetchval(
                "insert into organisations (ref, name) values ('own', 'Own') returning id"
            )
            row = await kiosk(owner, organisation)
            device = f"fk-{random.getrandbits(40):010x}"
            await owner.execute("update devices set device = $2 where id = $1", row, device)
            port = runner.addresses[0][1]
            shop = Shop(stack, owner, pool, organisation, row, device, port, tmp_path / "state")
            await enrolled(shop)
            yield shop
        finally:
            await runner.cleanup()


async def enrolled(shop: Shop) -> None:
    """Give the kiosk its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    authority = Authority.load(shop.pki)
    issued = await issue(
        shop.pool,
        authority,
        device_row=shop.row,
        device=shop.device,
        organisation=shop.organisation,
        key=proved(request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()),
        reason="enrolment",
        now=datetime.now(UTC),
        stage=False,
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    identity.put(shop.state / "pending", pem, mode=0o600)
    who = Enrolled(
        shop.device,
        "kiosk",
        "127.0.0.1",
        shop.stack.endpoints.broker_device_port,
        "claim",
        "127.0.0.1",
        shop.port,
    )
    identity.write(
        shop.state,
        who,
        key=shop.state / "pending",
        chain=issued.chain_pem,
        bundle=authority.bundle(),
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_kiosk_shows_what_is_published_and_goes_on_showing_it_without_a_server(
    shop: Shop,
) -> None:
    plans = shop.plans()
    await plans.step()
    assert plans.trouble == ""
    assert plans.on_screen().questionnaire is BUILT_IN
    first, publication = await shop.published("How was it?")
    await plans.step()
    assert plans.on_screen().hash == first
    assert plans.site == "Vasagatan"
    before = plans.fetched
    await plans.step()  # nothing new: 304
    assert (plans.fetched, plans.trouble) == (before, "")
    alone = shop.plans(server=None)  # another start, and nobody answers ever after
    assert alone.on_screen().hash == first
    second, _ = await shop.published("And now?")
    await plans.step()
    assert plans.on_screen().hash == second
    assert plans.known(first) is not None  # a press of a moment ago
    again = shop.plans(server=None)
    assert again.known(first) is not None
    assert again.on_screen().hash == second
    await questionnaires.end(shop.owner, shop.organisation, publication, **BY)
    (shop.state / "plan.json").write_bytes(b"{}")  # a card that has gone bad
    assert shop.plans().on_screen().questionnaire is BUILT_IN


async def test_the_bell_brings_a_kiosk_at_once_what_was_published(
    shop: Shop, tmp_path: Path
) -> None:
    endpoints, pki = shop.stack.endpoints, shop.pki
    broker = BrokerSettings(
        "127.0.0.1",
        endpoints.broker_service_port,
        pki / "bundle.pem",
        pki / "svc-downlink.pem",
        pki / "svc-downlink.key",
    )
    bell = Bell(shop.pool, broker)
    plans = shop.plans()
    outbox = Outbox(tmp_path / "outbox.db", durable=False)
    link = Link(
        identity.for_link(shop.state),
        outbox,
        clock=SystemClock(synced=lambda: True),
        rng=random.Random(2),
        options=LinkOptions(retry_min_s=0.05, retry_max_s=0.2),
    )
    rung = asyncio.Event()

    def ring() -> None:
        rung.set()
        plans.ring()

    link.on_bell, link.on_connect = ring, plans.connected
    async with running(bell.run(), plans.run(), link.run()):
        await until(lambda: link.connected and bell.listening.is_set())
        await until(lambda: plans.now is not None)
        assert not rung.is_set()
        shown, publication = await shop.published("How was it?")
        await until(lambda: plans.on_screen().hash == shown)
        assert rung.is_set()
        await questionnaires.end(shop.owner, shop.organisation, publication, **BY)
        await until(lambda: plans.on_screen().questionnaire is BUILT_IN)
    outbox.close()


@asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def stranger(shop: Shop, name: str) -> ContentSigner:
    """Another service of the fleet, with its own certificate."""
    key = load_pem_private_key((shop.pki / f"{name}.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return ContentSigner((shop.pki / f"{name}.pem").read_text(), key)


def other_root(tmp_path: Path) -> ContentSigner:
    """The content service of another fleet."""
    pki = tmp_path / "other"
    Authority.create(pki).ensure_services(now=datetime.now(UTC))
    return ContentSigner.load(pki)


Forge = Callable[[ContentSigner, bytes, list[bytes]], Envelope]


def tampered(signer: ContentSigner, plan: bytes, contents: list[bytes]) -> Envelope:
    good = signer.sealed(plan, contents)
    return replace(good, signature=good.signature[:-1] + bytes([good.signature[-1] ^ 1]))


def reworded(signer: ContentSigner, plan: bytes, contents: list[bytes]) -> Envelope:
    return signer.sealed(plan, [each.replace(b"How was", b"How is") for each in contents])


def replanned(signer: ContentSigner, plan: bytes, contents: list[bytes]) -> Envelope:
    good = signer.sealed(plan, contents)
    return replace(good, text=plan.replace(b"Vasagatan", b"Avenyn"))


def anothers(signer: ContentSigner, plan: bytes, contents: list[bytes]) -> Envelope:
    return signer.sealed(Plan("fk-another", "A", "UTC", ()).content(), [])


def unprefixed(signer: ContentSigner, plan: bytes, contents: list[bytes]) -> Envelope:
    return Envelope(plan, sign_with(signer.key, plan), signer.chain, tuple(contents))


def honest(signer: ContentSigner, plan: bytes, contents: list[bytes]) -> Envelope:
    return signer.sealed(plan, contents)


FORGERIES: tuple[tuple[Forge, str, Fault], ...] = (
    (tampered, "svc-content", Fault.UNTRUSTED),
    (reworded, "svc-content", Fault.WRONG_DIGEST),
    (replanned, "svc-content", Fault.UNTRUSTED),
    (anothers, "svc-content", Fault.WRONG_DEVICE),
    (unprefixed, "svc-content", Fault.UNTRUSTED),
    (honest, "svc-ingest", Fault.UNTRUSTED),
    (honest, "svc-firmware", Fault.UNTRUSTED),
    (honest, "https", Fault.UNTRUSTED),
    (honest, "another fleet", Fault.UNTRUSTED),
)


async def test_what_nobody_may_say_is_refused_and_the_last_good_plan_stays(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await shop.published("How was it?")
    plans = shop.plans()
    await plans.step()
    kept = (shop.state / "plan.json").read_bytes()
    second, _ = await shop.published("And now? How was it?")
    for number, (forge, who, fault) in enumerate(FORGERIES, 1):
        signer = other_root(tmp_path) if who == "another fleet" else stranger(shop, who)
        with monkeypatch.context() as patched:
            patched.setattr(plans_of_server, "ContentSigner", forger(forge, signer))
            await plans.step()
        assert plans.refused == number, (forge, who)
        assert plans.trouble.startswith(fault), (forge, who)
        assert plans.on_screen().hash == first
        assert (shop.state / "plan.json").read_bytes() == kept
    assert shop.plans(server=None).on_screen().hash == first
    await plans.step()
    assert plans.trouble == ""
    assert plans.on_screen().hash == second


def forger(forge: Forge, signer: ContentSigner) -> type:
    """Return what takes the signer's place."""

    class Forger:
        @classmethod
        def load(cls, _: Path) -> Forger:
            return cls()

        def sealed(self, plan: bytes, contents: list[bytes]) -> Envelope:
            return forge(signer, plan, contents)

    return Forger


async def test_a_device_that_is_thrown_out_gets_no_plan(shop: Shop) -> None:
    await shop.published("How was it?")
    await shop.owner.execute("update devices set state = 'suspended' where id = $1", shop.row)
    plans = shop.plans()
    await plans.step()
    assert plans.on_screen().questionnaire is BUILT_IN
    assert plans.trouble != ""


async def test_a_simulated_kiosk_presses_for_what_its_fetched_plan_shows(
    shop: Shop, tmp_path: Path
) -> None:
    spec = DeviceSpec(shop.device, Door("door", median_day=0), 1, kiosk=Kiosk())
    with TruthFile(tmp_path / "truth") as truth:
        kiosk = OpenKiosk(
            spec,
            identity.for_link(shop.state),
            outbox_path=tmp_path / "outbox.db",
            disk=shop.state,
            true_offset_ms=true_offset_ms(),
            truth=truth,
        )
        assert kiosk.plans is not None
        hashes = [bytes(8)]
        kiosk.press(SAD)
        kiosk.step()
        for text in ("How was it?", "And now?"):
            hashes.append((await shop.published(text))[0])
            await kiosk.plans.step()
            assert kiosk.plans.trouble == ""
            kiosk.press(SAD)
            kiosk.step()
        kiosk.finish()
        told = [decode_kiosk(held.frame) for boot in kiosk.outbox.boots
                for held in kiosk.outbox.read(boot, 0, limit=100)]  # fmt: skip
        kiosk.close()
    assert [presses.questionnaire for presses in told if presses.presses] == hashes


def decode_kiosk(frame: bytes) -> Presses:
    sections = read_body(frame, read_header(frame))
    span = decode_time(need(sections, Section.TIME))
    return decode_presses(need(sections, Section.PRESSES), span)


async def test_hours_are_the_sites_own(shop: Shop) -> None:
    local = datetime.now(ZoneInfo("Europe/Stockholm"))
    minute = local.hour * 60 + local.minute
    hours = ((minute - 60) % 1440, (minute + 60) % 1440)
    shown, publication = await shop.published("How was it?", Schedule(hours=hours))
    plans = shop.plans()
    await plans.step()
    assert plans.on_screen().hash == shown
    await questionnaires.end(shop.owner, shop.organisation, publication, **BY)
    later = ((minute + 120) % 1440, (minute + 180) % 1440)
    await shop.published("And later?", Schedule(hours=later))
    await plans.step()
    assert plans.on_screen().questionnaire is BUILT_IN
