"""Renewal on the device: the machine, what it takes from a server, the power failing anywhere."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
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
from hypothesis import given
from hypothesis import strategies as st

from agent import identity
from agent.clock import BUILD_MS, Clock, Offset
from agent.enrol import EnrolError, Then
from agent.identity import DamagedError, Enrolled, Files
from agent.link import Identity, LinkError, RefusedLinkError
from agent.renewal import (
    DAY_MS,
    MINUTE_MS,
    MOST_REFUSALS,
    Act,
    Outcome,
    Progress,
    Renewal,
    Step,
    UntrustedError,
    after,
    backoff_ms,
    check_answer,
    joined,
    nudged,
    plan,
)
from protocol.frame import Quality
from server.pki.authority import Authority

NOW = datetime.fromtimestamp(BUILD_MS / 1000, UTC) + timedelta(days=1)
DEVICE = "door-renew01"

# -- the machine -----------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(Outcome),
        st.floats(0, 1, exclude_max=True),
        st.booleans(),
        st.booleans(),
    ),
    max_size=60,
)


@given(EVENTS)
def test_nothing_is_promoted_that_server_and_broker_have_not_taken(
    events: list[tuple[Outcome, float, bool, bool]],
) -> None:
    progress, now_ms, won = Progress(), 0, set[Act]()
    for outcome, dice, due, nudge in events:
        if nudge:
            progress = nudged(progress, now_ms, dice=dice)
        act = plan(progress, now_ms, due=due)
        if isinstance(act, int):
            assert 0 < act <= 1.25 * DAY_MS
            now_ms += act
            continue
        if act is Act.PROMOTE:
            assert won >= {Act.MAKE_KEY, Act.ASK, Act.CONFIRM, Act.TRY}
        if act in (Act.MAKE_KEY, Act.ASK):
            assert due
        before = progress
        progress = after(progress, act, outcome, now_ms, dice=dice)
        if act is Act.CHECK:
            assert progress.step is before.step
        elif outcome is Outcome.DONE:
            won.add(act)
        elif act is Act.TRY:
            won -= {Act.CONFIRM}  # the old pair is in force, and the server asked again
        if act is Act.PROMOTE and outcome is Outcome.DONE:
            won = set()
            assert progress.check_ms <= now_ms  # the server is told at once
        if outcome is not Outcome.DONE:
            assert progress.step.value in ("rest", "keyed", "staged", before.step.value)
            if act is not Act.CHECK:
                assert now_ms < progress.not_before_ms <= now_ms + DAY_MS


def test_failures_wait_ever_longer_and_at_most_a_day() -> None:
    waits = [backoff_ms(n, 0.5) for n in range(40)]
    assert waits[0] == 45_000
    assert waits == sorted(waits)
    assert max(waits) <= DAY_MS
    assert backoff_ms(1000, 0.99) <= DAY_MS


def test_a_pair_that_the_broker_keeps_refusing_is_thrown_away() -> None:
    progress = Progress(Step.CONFIRMED)
    for number in range(MOST_REFUSALS):
        assert progress.step is Step.CONFIRMED
        progress = after(progress, Act.TRY, Outcome.REFUSED, 0, dice=0.5)
        if number < MOST_REFUSALS - 1:
            assert progress.step is Step.STAGED
            progress = after(progress, Act.CONFIRM, Outcome.DONE, 0, dice=0.5)
    assert progress.step is Step.REST


def test_a_broker_that_is_away_is_no_reason_to_throw_a_pair_away() -> None:
    progress = Progress(Step.CONFIRMED)
    for _ in range(50):
        progress = after(progress, Act.TRY, Outcome.FAILED, 0, dice=0.5)
        progress = after(progress, Act.CONFIRM, Outcome.DONE, 0, dice=0.5)
    assert progress.step is Step.CONFIRMED


def test_too_early_rests_with_the_key_until_it_is_due() -> None:
    progress = after(Progress(Step.KEYED), Act.ASK, Outcome.EARLY, 0, dice=0.5)
    assert plan(progress, 0, due=False) is Act.CHECK
    progress = after(progress, Act.CHECK, Outcome.DONE, 0, dice=0.5)
    assert plan(progress, DAY_MS // 2, due=False) == DAY_MS // 2
    assert plan(progress, DAY_MS // 2, due=True) is Act.ASK


def test_when_the_network_is_back_what_waited_is_tried_within_a_minute_once_an_hour() -> None:
    progress = Progress(Step.KEYED, failures=20, not_before_ms=DAY_MS, check_ms=10 * DAY_MS)
    progress = nudged(progress, 0, dice=0.5)
    assert plan(progress, 0, due=True) == MINUTE_MS // 2
    progress = after(progress, Act.ASK, Outcome.FAILED, MINUTE_MS, dice=0.5)
    assert nudged(progress, 30 * MINUTE_MS, dice=0.5) == progress


# -- what is taken from a server -------------------------------------------------------------------


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("fleet") / "pki", now=NOW)


@dataclass(frozen=True)
class Given:
    """An answer that may be taken, to be spoilt."""

    fleet: Authority
    key: ec.EllipticCurvePrivateKey
    chain: str

    def check(self, **changed: Any) -> None:
        roots = x509.load_pem_x509_certificates(self.fleet.bundle().encode())
        given: dict[str, Any] = {
            "chain_pem": self.chain,
            "bundle_pem": self.fleet.bundle(),
            "key": self.key.public_key(),
            "device": DEVICE,
            "roots": roots,
            "now": NOW,
            "knows_time": True,
        }
        given |= changed
        check_answer(given.pop("chain_pem"), given.pop("bundle_pem"), **given)


def csr_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture(scope="module")
def answer(fleet: Authority) -> Given:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = fleet.issue_device(csr_of(key), device=DEVICE, now=NOW)
    return Given(fleet, key, issued.chain_pem.decode())


def test_a_good_answer_is_taken(answer: Given) -> None:
    answer.check()
    answer.check(now=NOW - timedelta(days=400), knows_time=False)  # a clock that is only a floor


def test_a_spoilt_answer_is_refused_by_the_rule_it_breaks(answer: Given, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign", now=NOW)
    stolen = foreign.issue_device(csr_of(answer.key), device=DEVICE, now=NOW).chain_pem.decode()
    first_root, *_ = x509.load_pem_x509_certificates(answer.fleet.bundle().encode())
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    leaf_only = answer.chain[: answer.chain.index("-----END CERTIFICATE-----")] + (
        "-----END CERTIFICATE-----\n"
    )
    without = answer.fleet.bundle().replace(first_root.public_bytes(Encoding.PEM).decode(), "")
    spoilt: list[tuple[int, dict[str, Any]]] = [
        (1, {"key": other}),
        (2, {"device": "door-other01"}),
        (3, {"chain_pem": stolen}),
        (3, {"chain_pem": leaf_only}),
        (3, {"roots": x509.load_pem_x509_certificates(foreign.bundle().encode())}),
        (4, {"now": NOW + timedelta(days=365)}),
        (4, {"now": NOW - timedelta(days=2)}),
        (5, {"bundle_pem": without}),
        (5, {"bundle_pem": foreign.bundle()}),
        (5, {"bundle_pem": "nonsense"}),
    ]
    for rule, changed in spoilt:
        with pytest.raises(UntrustedError) as error:
            answer.check(**changed)
        assert error.value.rule == rule, changed


def test_a_bundle_grows_and_never_shrinks_without_a_renewal(
    fleet: Authority, tmp_path: Path
) -> None:
    ours = fleet.bundle()
    first = ours[: ours.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n"
    assert joined(ours.encode(), first) is None
    assert joined(ours.encode(), ours) is None
    grown = joined(first.encode(), ours)
    assert grown is not None
    assert len(x509.load_pem_x509_certificates(grown)) == 2


# -- the power fails -------------------------------------------------------------------------------


class PowerCut(BaseException):
    """Nothing of the process survives this."""


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
class Disk:
    """The real file system, whose power fails after so many steps.

    A rename that was not followed by a sync of the folder may be lost with it: `forgets`.
    """

    left: int = 1 << 30
    passed: int = 0
    forgets: bool = False
    unsynced: list[tuple[Path, bytes | None]] = field(default_factory=list)

    def step(self) -> None:
        self.passed += 1
        self.left -= 1
        if self.left < 0:
            if self.forgets:
                for path, before in reversed(self.unsynced):
                    os.unlink(path) if before is None else path.write_bytes(before)
            self.unsynced.clear()
            raise PowerCut


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    rename, unlink, fsync = Path.replace, Path.unlink, os.fsync

    def replaced(path: Path, target: Path) -> Path:
        made.step()
        made.unsynced.append((target, target.read_bytes() if target.exists() else None))
        done = rename(path, target)
        made.step()
        return done

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            made.step()
        unlink(path, missing_ok=missing_ok)

    def synced(descriptor: int) -> None:
        made.step()
        fsync(descriptor)
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            made.unsynced.clear()
        made.step()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replaced)
        patched.setattr(Path, "unlink", unlinked)
        patched.setattr(os, "fsync", synced)
        yield made


@dataclass
class Server:
    """The rules of renewal in a few lines; `states` by the certificate's serial."""

    fleet: Authority
    states: dict[int, str] = field(default_factory=dict)
    chains: dict[bytes, str] = field(default_factory=dict)
    refuse: str = ""
    early: bool = False
    bundle: str = ""
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


async def test_a_renewal_replaces_the_pair_and_tells_the_server(device: Device) -> None:
    before = leaf(identity.files(device.state).chain)
    renewal = device.start()
    await device.runs(renewal, until=device.done)
    after_ = leaf(identity.files(device.state).chain)
    assert after_.serial_number != before.serial_number
    assert after_.public_key() != before.public_key()
    assert names(device) == ["bundle.1.pem", "chain.1.pem", "identity.json", "key.1.pem"]
    assert identity.files(device.state).key.stat().st_mode & 0o077 == 0
    assert device.server.states == {
        before.serial_number: "retired",
        after_.serial_number: "active",
    }
    await device.runs(renewal, until=lambda: renewal.enrolled.renew_after_ms > 0)
    assert not renewal._due()


@pytest.mark.parametrize("forgets", [False, True])
async def test_the_power_may_fail_between_any_two_steps(
    tmp_path: Path, fleet: Authority, disk: Disk, forgets: bool
) -> None:
    async def whole(folder: Path, cut_after: int) -> int:
        disk.left = 1 << 30
        device = Device(folder, Server(fleet))
        device.enrol()
        identity.note(folder, replace(identity.read(folder), renew_after_ms=1))
        device.hook = disk.step
        disk.unsynced.clear()
        disk.passed, disk.left, disk.forgets = 0, cut_after, forgets
        for _ in range(3):
            try:
                await device.runs(device.start(), until=device.done)
                break
            except PowerCut:
                disk.left = 1 << 30
                for path in (folder / "identity").glob(".*.new"):  # what was not synced
                    path.write_bytes(b"")
        assert device.done()
        assert len(device.server.states) == 2  # no certificate was made in vain
        device.start()
        assert not [name for name in names(device) if name.startswith(("key.p", "chain.p"))]
        return disk.passed

    steps = await whole(tmp_path / "undisturbed", 1 << 30)
    assert steps > 30
    for number in range(steps):
        await whole(tmp_path / f"cut-{number}", number)


async def test_the_power_may_fail_again_and_again(
    tmp_path: Path, fleet: Authority, disk: Disk
) -> None:
    rng = random.Random(7)
    for number in range(15):
        device = Device(tmp_path / f"{number}", Server(fleet))
        disk.left = 1 << 30
        device.enrol()
        identity.note(device.state, replace(identity.read(device.state), renew_after_ms=1))
        device.hook = disk.step
        for cuts in range(60):
            disk.left = rng.randrange(4, 12) + cuts  # else it might never get further
            disk.forgets = rng.random() < 0.5
            try:
                await device.runs(device.start(), until=device.done)
                break
            except PowerCut:
                continue
        disk.left = 1 << 30
        assert device.done()


async def test_a_broker_that_refuses_the_new_pair_leaves_the_old_one_in_force(
    device: Device,
) -> None:
    renewal = device.start()
    link: Any = renewal._link
    link.trouble = [RefusedLinkError("no")] * (MOST_REFUSALS + 1) + [LinkError("away")] * 3
    await device.runs(renewal, until=lambda: len(link.trouble) == 8)
    assert device.pair == 0
    assert link.identity == identity.for_link(device.state)
    first = leaf(identity.files(device.state).next.chain).serial_number
    await device.runs(renewal, until=device.done)
    assert leaf(identity.files(device.state).chain).serial_number != first  # it took another
    assert device.server.states[first] == "retired"


@pytest.mark.parametrize("code", ["key_used", "key_in_use"])
async def test_a_key_that_is_no_good_is_replaced(device: Device, code: str) -> None:
    renewal = device.start()
    device.server.refuse = code
    key = identity.files(device.state).next.key
    await device.runs(renewal, until=key.exists)
    before = key.read_bytes()
    await device.runs(renewal, until=lambda: not key.exists())
    device.server.refuse = ""
    await device.runs(renewal, until=device.done)
    assert identity.files(device.state).key.read_bytes() != before


@pytest.mark.parametrize(
    "code", ["device_not_admitted", "grace_over", "certificate_revoked", "unavailable", "too_many"]
)
async def test_a_refusal_that_a_person_must_mend_keeps_the_key_and_asks_daily(
    device: Device, code: str
) -> None:
    renewal = device.start()
    device.server.refuse = code
    key = identity.files(device.state).next.key
    await device.runs(renewal, until=key.exists)
    before, began = key.read_bytes(), device.clock.ms
    for _ in range(60):
        act = plan(renewal.progress, device.clock.ms, due=True)
        if isinstance(act, int):
            device.clock.ms += act
        else:
            await renewal.step(act)
    assert device.clock.ms - began > 5 * DAY_MS
    assert key.read_bytes() == before
    device.server.refuse = ""
    await device.runs(renewal, until=device.done)


async def test_damaged_files_of_the_next_pair_are_thrown_away(device: Device) -> None:
    for damage in (b"", b"nonsense"):
        for name in ("key", "chain", "bundle"):
            pair = device.pair
            renewal = device.start()
            await device.runs(renewal, until=lambda r=renewal: r.progress.step is Step.STAGED)  # type: ignore[misc]
            files = identity.files(device.state).next
            getattr(files, name).write_bytes(damage)
            renewal = device.start()
            assert renewal.progress.step is Step.STAGED
            await device.runs(renewal, until=lambda p=pair: device.done(p + 1))  # type: ignore[misc]
            identity.note(device.state, replace(identity.read(device.state), renew_after_ms=1))


async def test_a_device_without_a_clock_renews_when_the_broker_refuses_it(
    device: Device,
) -> None:
    device.clock.known = False
    identity.note(
        device.state,
        replace(identity.read(device.state), renew_after_ms=BUILD_MS + 300 * DAY_MS),
    )
    renewal = device.start()
    assert not renewal._due()
    link: Any = renewal._link
    link.refused = True
    renewal.network()
    await device.runs(renewal, until=device.done)


async def test_too_early_is_harmless(device: Device) -> None:
    device.server.early = True
    renewal = device.start()
    await device.runs(renewal, until=lambda: renewal.enrolled.renew_after_ms > 1)
    assert not renewal._due()
    assert device.pair == 0


async def test_a_further_root_is_kept_and_one_that_is_missing_stays(
    device: Device, tmp_path: Path
) -> None:
    identity.note(
        device.state,
        replace(identity.read(device.state), renew_after_ms=BUILD_MS + 400 * DAY_MS),
    )
    renewal = device.start()
    ours, foreign = device.server.fleet.bundle(), Authority.create(tmp_path / "next").bundle()
    device.server.bundle = foreign  # it lacks all of ours
    await renewal.step(Act.CHECK)
    held = identity.files(device.state).bundle.read_bytes()
    assert held == (ours + foreign).encode()
    assert renewal._link.rereads == 1  # type: ignore[attr-defined]
    await renewal.step(Act.CHECK)
    assert len(device.server.heard[-1]["roots"]) == 4  # and the server hears that we trust it
    assert device.pair == 0


async def test_another_enrolment_while_a_renewal_is_under_way_wins(device: Device) -> None:
    renewal = device.start()
    await device.runs(renewal, until=lambda: renewal.progress.step is Step.STAGED)
    device.enrol()
    assert names(device) == ["bundle.1.pem", "chain.1.pem", "identity.json", "key.1.pem"]
    assert device.start().progress.step is Step.REST


@pytest.mark.parametrize("moment", ["before the check", "while the server answers"])
async def test_an_identity_that_came_beside_a_running_agent_is_never_written_over(
    device: Device, moment: str
) -> None:
    renewal = device.start()
    if moment == "before the check":
        device.enrol()
    else:
        answer = device.server.answer

        def late(path: str, shown: x509.Certificate, body: dict[str, Any]) -> dict[str, Any]:
            said = answer(path, shown, body)
            device.enrol()
            return said

        device.server.answer = late  # type: ignore[method-assign]
    await renewal.step(Act.CHECK)
    assert device.pair == 1
    assert names(device) == ["bundle.1.pem", "chain.1.pem", "identity.json", "key.1.pem"]
    device.start()


@pytest.mark.parametrize("name", ["key", "chain", "bundle"])
async def test_a_pair_that_is_not_all_there_is_not_promoted(device: Device, name: str) -> None:
    renewal = device.start()
    await device.runs(renewal, until=lambda: renewal.progress.step is Step.PROVED)
    getattr(identity.files(device.state).next, name).unlink()
    with pytest.raises(DamagedError, match=name):
        identity.promote(device.state)
    await renewal.step(Act.PROMOTE)
    assert device.pair == 0
    assert renewal.progress.step is Step.REST  # it makes another
    device.start()
