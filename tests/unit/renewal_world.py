"""An agent that renews, and the server and broker it meets, in a few lines each."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from agent import identity
from agent.clock import BUILD_MS, Clock, Offset
from agent.enrol import EnrolError, Then
from agent.identity import Enrolled, Files
from agent.link import Identity
from agent.renewal import (
    Renewal,
    plan,
)
from protocol.frame import Quality
from server.pki.authority import Authority

NOW = datetime.fromtimestamp(BUILD_MS / 1000, UTC) + timedelta(days=1)
DEVICE = "door-renew01"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("fleet") / "pki", now=NOW)


def csr_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


class Stopwatch(Clock):
    """Virtual time that is known, or not."""

    def __init__(self) -> None:
        self.ms = 0
        self.known = True

    def monotonic_ms(self) -> int:
        return self.ms

    def offset(self) -> Offset:
        return (Quality.SYNCED, round(NOW.timestamp() * 1000)) if self.known else (Quality.NONE, 0)

    async def sleep(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


@dataclass
class Server:
    """The rules of renewal in a few lines; `states` by the certificate's serial."""

    fleet: Authority
    states: dict[int, str] = field(default_factory=dict)
    chains: dict[bytes, str] = field(default_factory=dict)
    refuse: str = ""
    early: bool = False
    bundle: str = ""
    releases: str = ""
    heard: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, path: str, shown: x509.Certificate, body: dict[str, Any]) -> dict[str, Any]:
        self.heard.append(body)
        state = self.states[shown.serial_number]
        if self.refuse:
            raise EnrolError(self.refuse, then=Then.ASK, code=self.refuse)
        assert state in ("staged", "active", "retiring")
        more = {"bundle": self.bundle or self.fleet.bundle(), "renew_after": NOW.isoformat()}
        if path == "/v1/renew":
            if self.early:
                raise EnrolError("early", code="renewal_too_early")
            return {"chain": self.issue(body["csr"]), **more}
        if state == "staged":
            for serial, other in self.states.items():
                if other == "active":
                    self.states[serial] = "retiring"
            self.states[shown.serial_number] = state = "active"
        if body.get("promoted") and state == "active":
            for serial, other in self.states.items():
                if other == "retiring":
                    self.states[serial] = "retired"
        if self.releases:
            more["releases"] = self.releases
        later = NOW + timedelta(days=200)
        return more | {"renew_after": (later if state == "active" else NOW).isoformat()}

    def issue(self, csr: str, *, state: str = "staged") -> str:
        request = x509.load_pem_x509_csr(csr.encode())
        spki = hashlib.sha256(
            request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).digest()
        if spki not in self.chains:
            issued = self.fleet.issue_device(csr.encode(), device=DEVICE, now=NOW)
            for serial, other in self.states.items():
                if other == "staged":
                    self.states[serial] = "retired"
            self.states[issued.serial] = state
            self.chains[spki] = issued.chain_pem.decode()
        return self.chains[spki]


class StubLink:
    """Takes an identity if the broker would."""

    def __init__(self, me: Identity, server: Server) -> None:
        self.identity = me
        self.refused = False
        self.server = server
        self.trouble: list[Exception] = []
        self.rereads = 0
        self.hook: Callable[[], None] = lambda: None

    def renew_identity(self, me: Identity) -> None:
        self.identity = me

    def reread(self) -> None:
        self.rereads += 1

    async def try_identity(self, me: Identity) -> None:
        self.hook()
        if self.trouble:
            raise self.trouble.pop(0)
        assert self.server.states[leaf(me.chain).serial_number] in ("active", "retiring")
        self.identity = me
        self.hook()


def leaf(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


@dataclass
class Device:
    """A device's storage, and what it meets; `start` is a start of its agent."""

    state: Path
    server: Server
    clock: Stopwatch = field(default_factory=Stopwatch)
    hook: Callable[[], None] = lambda: None

    def enrol(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = self.server.issue(csr_of(key).decode(), state="active")
        pending = self.state / "pending.pem"
        identity.put(pending, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        enrolled = Enrolled(DEVICE, "counter", "127.0.0.1", 1, "claim", "127.0.0.1", 2)
        identity.write(
            self.state, enrolled, key=pending, chain=chain, bundle=self.server.fleet.bundle()
        )
        identity.note(self.state, identity.read(self.state))

    def start(self) -> Renewal:
        """Start an agent; it has a pair that works, whatever happened before."""
        files = identity.files(self.state)
        certificate = leaf(files.chain)
        key = load_pem_private_key(files.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert certificate.public_key() == key.public_key()
        assert self.server.states[certificate.serial_number] in ("active", "retiring")
        assert x509.load_pem_x509_certificates(files.bundle.read_bytes())
        link = StubLink(identity.for_link(self.state), self.server)
        link.hook = self.hook
        made = Renewal(
            self.state,
            link,  # type: ignore[arg-type]
            server=("127.0.0.1", 2),
            clock=self.clock,
            rng=random.Random(1),
            last_utc_ms=lambda: 0,
        )

        async def post(path: str, found: Files, body: dict[str, Any]) -> dict[str, object]:
            self.hook()
            answer = self.server.answer(path, leaf(found.chain), body)
            self.hook()
            return answer

        made._post = post  # type: ignore[method-assign, assignment]
        return made

    async def runs(self, renewal: Renewal, *, until: Callable[[], bool], most: int = 400) -> None:
        for _ in range(most):
            if until():
                return
            act = plan(renewal.progress, self.clock.ms, due=renewal._due())
            if isinstance(act, int):
                self.clock.ms += act
            else:
                await renewal.step(act)
        raise AssertionError(f"it never ended: {renewal.progress}")

    @property
    def pair(self) -> int:
        return identity.read(self.state).pair

    def done(self, pair: int = 1) -> bool:
        states = sorted(self.server.states.values())
        return self.pair == pair and states.count("active") == 1 and "retiring" not in states


@pytest.fixture
def device(tmp_path: Path, fleet: Authority) -> Device:
    made = Device(tmp_path / "state", Server(fleet))
    made.enrol()
    identity.note(made.state, replace(identity.read(made.state), renew_after_ms=1))
    return made


def names(device: Device) -> list[str]:
    return sorted(path.name for path in (device.state / "identity").iterdir())
