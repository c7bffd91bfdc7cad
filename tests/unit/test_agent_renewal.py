"""Renewal on the device: the machine, what it takes from a server, what becomes of a refusal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
)
from hypothesis import example, given
from hypothesis import strategies as st

from agent import identity
from agent.clock import BUILD_MS
from agent.link import LinkError, RefusedLinkError
from agent.renewal import (
    DAY_MS,
    MINUTE_MS,
    MOST_REFUSALS,
    Act,
    Outcome,
    Progress,
    Step,
    UntrustedError,
    after,
    backoff_ms,
    check_answer,
    joined,
    nudged,
    plan,
)
from agent.update.trust import FOLDER, ROOT
from server.pki.authority import Authority
from tests.unit.renewal_world import DEVICE, NOW, Device, csr_of, leaf, names
from tests.unit.renewal_world import device as device
from tests.unit.renewal_world import fleet as fleet

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
@example(  # the broker is tried, and the answer is none that it gives
    [(Outcome.DONE, 0.0, True, False)] * 3
    + [(Outcome.EARLY, 0.0, False, False)]
    + [(Outcome.DONE, 0.0, False, False)] * 4
)
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


# -- against a server ------------------------------------------------------------------------------


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


async def test_a_device_from_before_there_were_releases_gets_their_first_root(
    device: Device,
) -> None:
    identity.note(
        device.state,
        replace(identity.read(device.state), renew_after_ms=BUILD_MS + 400 * DAY_MS),
    )
    renewal = device.start()
    await renewal.step(Act.CHECK)
    assert not (device.state / FOLDER / ROOT).exists()
    device.server.releases = '{"signed": {"_type": "root", "version": 1}}'
    await renewal.step(Act.CHECK)
    assert (device.state / FOLDER / ROOT).read_text() == device.server.releases
    device.server.releases = '{"signed": {"_type": "root", "version": 2}}'
    await renewal.step(Act.CHECK)
    assert b'"version": 1' in (device.state / FOLDER / ROOT).read_bytes()


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
