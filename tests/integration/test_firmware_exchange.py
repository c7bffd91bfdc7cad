"""A device that says what it runs and hears what to install, at the real listener."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.assignment import SIGNED, SIGNER, Assignment, read_assignment, read_envelope
from protocol.update import (
    MAX_REPORT,
    Answer,
    Attempt,
    Class,
    Component,
    Phase,
    Step,
    read_answer,
    read_report,
    write_report,
)
from protocol.windows import wait_ms
from server import metrics
from server.clock import ManualClock, SystemClock
from server.desired.settings import CHANGED
from server.firmware.conductor import Conductor
from server.firmware.fetching import MOST_ASKS
from server.firmware.greetings import Greetings
from server.firmware.policy import Policy, Timers, write_policy
from server.firmware.reports import MOST_STEPS
from tests.integration.firmware_world import (
    AT_ONCE,
    BEFORE_INSTALLING,
    Release,
    Scripted,
    Updates,
    offer,
    on_trial,
    step,
    steps_to,
    told,
)
from tests.integration.firmware_world import updates as updates

pytestmark = pytest.mark.services
NIGHTLY = Policy(ramp=AT_ONCE, ahead_s=14 * 86_400)  # at whatever hour this runs


def assigned(answer: Answer) -> Assignment:
    """Return what an answer assigns, if the firmware service has signed it."""
    assert answer.assignment is not None
    envelope = read_envelope(answer.assignment)
    leaf = x509.load_pem_x509_certificates(envelope.chain.encode())[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [SIGNER]
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(envelope.signature, SIGNED + envelope.text, ec.ECDSA(hashes.SHA256()))
    return read_assignment(envelope.text)


async def test_a_device_goes_through_all_phases_and_confirms(updates: Updates) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    first = await device.says()
    assert (first.assignment, first.trial_ok, first.again_s) == (None, None, 3_600)
    rollout = await updates.rollout(release, devices=(device,))
    answer = await device.says()
    execution = await updates.execution(device)
    assert execution["state"] == "offered"
    given = assigned(answer)
    assert (given.device, given.hardware, given.nonce) == (device.name, "DC2", device.nonce)
    assert (given.rollout, given.execution, given.attempt) == (rollout, execution["ref"], 1)
    (item,) = given.bundle
    assert (item.component, item.version, item.floor) == ("agent", "1.1.0", "1.0.0")
    assert (item.length, item.sha256) == (len(release.content), release.sha256)
    assert item.target == f"agent/1.1.0/{release.sha256}.tar"
    assert (given.window, given.urgent) == ((), False)
    in_ms = given.not_after_ms - updates.now().timestamp() * 1000
    assert timedelta(days=2).total_seconds() * 1000 < in_ms < 4 * 86_400_000

    for seq, phase in enumerate(BEFORE_INSTALLING, 1):
        answer = await device.says(step(execution, seq, phase))
        assert answer.heard == {Attempt(execution["ref"], 1): seq}
        assert assigned(answer).nonce == device.nonce  # anew, for as long as it may begin
        assert (await updates.execution(device))["state"] == phase.value.replace("_", " ")
    assert (await device.fetches(release))[0] == 200
    for seq, phase in enumerate((Phase.INSTALLING, Phase.REBOOTING), 5):
        answer = await device.says(step(execution, seq, phase))
        assert (answer.assignment, answer.trial_ok) == (None, None)
    device.components["agent"] = release.part
    device.slot = "b"
    trial = Attempt(execution["ref"], 1)
    answer = await device.says(step(execution, 7, Phase.TRIAL), trial=trial)
    assert (answer.trial_ok, answer.assignment) == (trial, None)
    assert (await updates.execution(device))["state"] == "trial"
    answer = await device.says(step(execution, 8, Phase.CONFIRMED))
    assert answer.heard == {trial: 8}
    ended = await updates.execution(device)
    assert (ended["state"], ended["ended_at"] is not None) == ("confirmed", True)
    assert (await device.fetches(release))[0] == 404
    kept = await updates.kept(device)
    assert (kept["hardware"], kept["slot"]) == ("DC2", "b")
    assert kept["nonce_asked"] == device.nonce
    assert kept["nonce_given"] == device.answers
    assert await updates.owner.fetchval("select count(*) from execution_reports") == 8


async def test_who_has_nothing_to_do_is_answered_at_once_and_what_it_says_is_kept(
    updates: Updates,
) -> None:
    device = await updates.device()
    await told(device)
    quiet = metrics.UPDATE_REPORTS.labels("quiet")._value
    before = quiet.get()
    answer = await device.says(busy=True)
    assert quiet.get() == before + 1
    assert (answer.heard, answer.assignment, answer.trial_ok, answer.cancel) == ({}, None, None, ())
    kept = await updates.kept(device)
    assert kept["nonce_given"] == answer.nonce
    assert b'"busy":true' in kept["report"]
    await device.says(components={"agent": Component("1.0.1")})  # something is new: looked at
    assert quiet.get() == before + 1
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    assert (await device.says(components={"agent": Component("1.0.1")})).assignment is not None


REFUSED_QUIETLY = (
    ("update devices set state = 'suspended'", b"device_not_admitted"),
    ("update certificates set revoked_at = now(), state = 'revoked'", b"certificate_revoked"),
    ("update certificates set state = 'retired'", b"certificate_replaced"),
    ("update certificates set not_after = now() - interval '181 days'", b"grace_over"),
    ("update certificates set serial = 'f' || serial", b"certificate_unknown"),
)


@pytest.mark.parametrize(
    ("change", "code"), REFUSED_QUIETLY, ids=[code.decode() for _, code in REFUSED_QUIETLY]
)
async def test_who_is_not_heard_is_refused_also_if_nothing_would_be_to_do(
    updates: Updates, change: str, code: bytes
) -> None:
    device = await updates.device()
    await told(device)
    before = await updates.kept(device)
    await updates.owner.execute(change)
    status, body = await device.post(device.signed(device.report()))
    assert (status, code in body) == (403, True)
    assert await updates.kept(device) == before


async def test_a_report_that_is_not_signed_by_its_own_device_is_refused(updates: Updates) -> None:
    device, other = await updates.device(), await updates.device()
    await told(device)
    before = await updates.kept(device)
    report = device.report()
    unsigned = write_report(report, b"\x30\x06\x02\x01\x01\x02\x01\x01")
    signature = read_sent(other.signed(report))
    lied = write_report(dataclasses.replace(report, slot="b"), read_sent(device.signed(report)))
    of_another = other.signed(dataclasses.replace(report, device=device.name))
    for sender, content in (
        (device, unsigned),
        (device, write_report(report, signature)),  # signed by somebody else
        (device, lied),  # changed after it was signed
        (other, device.signed(report)),  # recorded, and sent by another
        (other, of_another),  # in another's name
    ):
        status, body = await sender.post(content)
        assert (status, b"report_not_own" in body) == (403, True)
    assert await updates.kept(device) == before
    assert await updates.kept(other) is None


def read_sent(content: bytes) -> bytes:
    """Return the signature of a report as it was sent."""
    return read_report(content).signature


async def test_x41_who_shows_no_certificate_is_refused(updates: Updates) -> None:
    device = await updates.device()
    content = device.signed(device.report())
    device.tls = updates.stranger()
    status, body = await device.post(content)
    assert (status, b"no_certificate" in body) == (401, True)
    for path in ("metadata/timestamp.json", "artifacts/" + "0" * 64):
        assert (await device.asks("GET", f"/v1/update/{path}"))[0] == 401


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[" * 30_000, b"\xff" * 40, b"{" + b" " * MAX_REPORT],
    ids=["empty", "nothing", "nested", "no text", "too long"],
)
async def test_what_is_no_report_is_refused(updates: Updates, content: bytes) -> None:
    device = await updates.device()
    status, body = await device.post(content)
    assert (status, b"malformed" in body) == (400, True)
    assert await updates.kept(device) is None


async def test_a_replayed_report_confirms_nothing_and_is_asked_for_anew(updates: Updates) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    execution, trial = await on_trial(updates, device, release)
    first = device.report(step(execution, 7, Phase.TRIAL), trial=trial)
    _, body = await device.post(device.signed(first))
    assert read_answer(body).trial_ok == trial
    _, body = await device.post(device.signed(first))  # the same bytes, again
    stale = read_answer(body)
    assert (stale.trial_ok, stale.again_s) == (None, 1)
    confirming = device.report(step(execution, 8, Phase.CONFIRMED))  # answers a nonce of before
    _, body = await device.post(device.signed(confirming))
    stale = read_answer(body)
    assert (stale.heard, stale.again_s) == ({}, 1)
    assert (await updates.execution(device))["state"] == "trial"
    device.answers = stale.nonce
    answer = await device.says(step(execution, 8, Phase.CONFIRMED))
    assert answer.heard == {trial: 8}
    assert (await updates.execution(device))["state"] == "confirmed"
    _, body = await device.post(device.signed(confirming))  # long after, and nothing comes of it
    assert (await updates.execution(device))["state"] == "confirmed"


async def test_who_waits_for_its_turn_asks_seldom_and_at_its_own_time_when_it_is_known(
    updates: Updates,
) -> None:
    first, second = await updates.device(), await updates.device()  # of one site: one at a time
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(first, second))
    await told(first)
    answer = await told(second)
    assert (answer.assignment, answer.again_s) == (None, 900)
    execution = await updates.execution(first)
    failed = step(execution, 1, Phase.FAILED, code="unreachable", kind=Class.NETWORK)
    again_s = (await first.says(failed)).again_s  # tried again, after a while
    assert 290 <= again_s <= 301


async def test_steps_that_come_twice_or_late_change_nothing(updates: Updates) -> None:
    device, _, execution = await offer(updates)
    said = [step(execution, seq, phase) for seq, phase in enumerate(BEFORE_INSTALLING, 1)]
    for _ in range(2):
        answer = await device.says(*said)
        assert answer.heard == {Attempt(execution["ref"], 1): 4}
    await device.says(said[0])
    assert (await updates.execution(device))["state"] == "waiting window"
    assert await updates.owner.fetchval("select count(*) from execution_reports") == 4


async def test_a_trial_is_acknowledged_to_the_right_code_of_the_right_execution_alone(
    updates: Updates,
) -> None:
    device, other = await updates.device(), await updates.device()
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    execution, trial = await on_trial(updates, device, release)
    right = dict(device.components)
    await told(other)
    other.components = dict(right)
    assert (await other.says(trial=trial)).trial_ok is None  # another device's
    for wrong in (
        dataclasses.replace(release.part, version="1.0.9"),
        dataclasses.replace(release.part, sha256="0" * 64),
    ):
        said = await device.says(trial=trial, components={"agent": wrong})
        assert said.trial_ok is None
    for lie in (Attempt("exe-00000000", 1), Attempt(trial.execution, 2)):
        assert (await device.says(trial=lie)).trial_ok is None
    assert (await device.says(components=right)).trial_ok is None  # it tries nothing
    said = await device.says(step(execution, 7, Phase.TRIAL), trial=trial)
    assert said.trial_ok == trial


async def test_a_device_speaks_of_its_own_executions_alone(updates: Updates) -> None:
    device, other = await updates.device(), await updates.device()
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    await told(device)
    execution = await updates.execution(device)
    await told(other)
    failed = step(execution, 1, Phase.FAILED, code="made_up", kind=Class.INTERNAL)
    answer = await other.says(failed)
    assert answer.heard == {Attempt(execution["ref"], 1): 1}  # so that it forgets it
    assert (await updates.execution(device))["state"] == "offered"
    assert await updates.owner.fetchval("select count(*) from execution_reports") == 0


async def test_steps_without_end_are_heard_and_fill_no_table(updates: Updates) -> None:
    device, _, execution = await offer(updates)
    this, never = Attempt(execution["ref"], 1), Attempt(execution["ref"], 900)
    many = [Step(each, seq, Phase.DOWNLOADING) for each in (this, never)
            for seq in range(MOST_STEPS + 1, MOST_STEPS + 30)]  # fmt: skip
    answer = await device.says(*many)
    assert answer.heard == {this: MOST_STEPS + 29, never: MOST_STEPS + 29}
    assert await updates.owner.fetchval("select count(*) from execution_reports") == 0
    assert (await updates.execution(device))["state"] == "offered"
    last = Step(this, MOST_STEPS + 99, Phase.FAILED, "unreachable", Class.TRUST)
    await device.says(last)  # how it ended counts, whatever it had said before
    assert (await updates.execution(device))["state"] == "failed"
    await device.says(dataclasses.replace(last, seq=MOST_STEPS + 100))
    assert await updates.owner.fetchval("select count(*) from execution_reports") == 1


async def test_who_confirmed_and_runs_another_version_has_reverted(updates: Updates) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    execution, trial = await on_trial(updates, device, release)
    await device.says(step(execution, 7, Phase.TRIAL), trial=trial)
    await device.says(step(execution, 8, Phase.CONFIRMED))
    await device.says()
    assert (await updates.execution(device))["state"] == "confirmed"
    before = metrics.MISMATCHES._value.get()
    device.components["agent"] = Component("1.0.0", "", "1.0.0")
    await device.says()
    assert (await updates.execution(device))["state"] == "reverted by device"
    assert metrics.MISMATCHES._value.get() == before + 1
    await device.says()
    assert metrics.MISMATCHES._value.get() == before + 1


async def test_a_confirmation_of_code_that_does_not_run_is_no_success(updates: Updates) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    execution, trial = await on_trial(updates, device, release)
    await device.says(step(execution, 7, Phase.TRIAL), trial=trial)
    device.components["agent"] = Component("1.0.0", "", "1.0.0")  # it fell back, and says so
    await device.says(step(execution, 8, Phase.CONFIRMED))
    assert (await updates.execution(device))["state"] == "reverted by device"


async def test_a_rollout_that_is_taken_back_cancels_what_is_under_way_trials_too(
    updates: Updates,
) -> None:
    early, late = await updates.device(), await updates.device(site=await updates.place("site-2"))
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(early, late))
    await told(early)
    accepted = await updates.execution(early)
    await early.says(step(accepted, 1, Phase.ACCEPTED))
    execution, trial = await on_trial(updates, late, release)
    await updates.owner.execute("update rollouts set state = 'cancelling'")
    answer = await early.says()
    assert (answer.cancel, answer.assignment) == ((accepted["ref"],), None)
    answer = await late.says(step(execution, 7, Phase.TRIAL), trial=trial)
    assert (answer.cancel, answer.trial_ok) == ((execution["ref"],), None)


async def test_what_the_server_gave_up_is_cancelled_at_the_device(updates: Updates) -> None:
    device, _, execution = await offer(updates)
    await device.says(step(execution, 1, Phase.ACCEPTED))
    await updates.owner.execute(
        "update executions set state = 'timed out', ended_at = now(), due_at = null"
    )
    assert (await device.says()).cancel == (execution["ref"],)


@pytest.mark.parametrize(
    "change",
    [
        "update rollouts set state = 'halted'",
        "update releases set withdrawn_at = now()",
        "update executions set organisation_id = (select max(id) from organisations)",
    ],
)
async def test_what_was_offered_and_not_begun_is_assigned_no_more(
    updates: Updates, change: str
) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.owner.execute("insert into organisations (ref, name) values ('other', 'Other')")
    await updates.rollout(release, devices=(device,))
    assert (await told(device)).assignment is not None
    await updates.owner.execute(change)
    assert (await device.says()).assignment is None


async def opened(updates: Updates, *hours: tuple[int, int]) -> None:
    """Give the site opening hours, the same on each day."""
    await updates.owner.executemany(
        "insert into opening_hours values ($1, $2, $3, $4, $5)",
        [(updates.organisation, updates.site, day, *each) for day in range(7) for each in hours],
    )


async def test_an_assignment_has_the_windows_of_the_site_where_the_device_stands(
    updates: Updates,
) -> None:
    await opened(updates, (540, 1_200))
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,), policy=NIGHTLY)
    given = assigned(await told(device))
    assert 13 <= len(given.window) <= 14
    zone = ZoneInfo("Europe/Stockholm")
    for low_ms, high_ms in given.window[1:-1]:
        low, high = (datetime.fromtimestamp(at / 1000, zone) for at in (low_ms, high_ms))
        assert (low.hour, low.minute) == (20, 30)
        assert (high.hour, high.minute) == (8, 0)


async def test_a_freeze_leaves_no_window_and_who_has_begun_to_wait_hears_so(
    updates: Updates,
) -> None:
    await opened(updates, (540, 1_200))
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,), policy=NIGHTLY)
    await told(device)
    await steps_to(updates, device, Phase.ACCEPTED, Phase.WAITING_WINDOW)
    await updates.owner.execute(
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, "
        "created_at) values ($1, 'freeze-1', 'Black week', now() - interval '1 day', "
        "now() + interval '30 days', 'sales', 'ada', now())",
        updates.organisation,
    )
    given = assigned(await device.says())
    now_ms = round(updates.now().timestamp() * 1000)
    assert given.window
    assert wait_ms(given.window, at_ms=now_ms, needs_ms=1) is None


async def test_what_is_urgent_waits_for_no_window_but_for_a_freeze_that_nobody_overrode(
    updates: Updates,
) -> None:
    await opened(updates, (0, 1_440))  # it never closes
    device, release = await updates.device(), await updates.release("1.1.0")
    urgent = Policy(ramp=AT_ONCE, urgent=True)
    ref = await updates.rollout(release, devices=(device,), policy=urgent)
    given = assigned(await told(device))
    assert (given.window, given.urgent) == ((), True)
    await updates.owner.execute(
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, "
        "created_at, sites) values ($1, 'freeze-1', 'Black week', now() - interval '1 day', "
        "now() + interval '3 days', 'sales', 'ada', now(), 'site = \"site-north\"')",
        updates.organisation,
    )
    assert (await device.says()).assignment is None
    await updates.owner.execute(
        "update rollouts set policy = $2 where ref = $1",
        *(ref, write_policy(Policy(ramp=AT_ONCE, urgent=True, override_freezes=True))),
    )
    assert assigned(await device.says()).window == ()


async def test_a_site_without_windows_is_assigned_nothing(updates: Updates) -> None:
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,), policy=NIGHTLY)  # it never closes
    assert (await told(device)).assignment is None


async def test_x10_who_asks_without_end_is_told_to_wait_and_keeps_nobody_waiting(
    updates: Updates,
) -> None:
    device, other = await updates.device(), await updates.device()
    path = "/v1/update/metadata/timestamp.json"
    got = [(await device.asks("GET", path))[0] for _ in range(MOST_ASKS)]
    assert set(got) == {404}
    status, body, headers = await device.asks("GET", path)
    assert (status, b"too_many" in body, headers["Retry-After"]) == (429, True, "1")
    assert (await device.post(device.signed(device.report())))[0] == 429
    assert (await other.says()).nonce
    updates.counted.at_s += 1.5
    await device.says()
    assert (await device.asks("GET", path))[0] == 404
    assert (await device.asks("GET", path))[0] == 429


async def test_two_reports_of_one_device_at_once_are_both_answered(updates: Updates) -> None:
    device, _, execution = await offer(updates)
    sent = [device.signed(device.report(step(execution, 1, Phase.ACCEPTED))) for _ in range(4)]
    got = await asyncio.gather(*(device.post(content) for content in sent))
    assert [status for status, _ in got] == [200] * 4
    kept = await updates.kept(device)
    assert kept["nonce_given"] in {read_answer(body).nonce for _, body in got}
    assert (await updates.execution(device))["state"] == "accepted"


async def confirmed(updates: Updates) -> tuple[Scripted, Release]:
    """Return a device that has confirmed a release."""
    device, release = await updates.device(), await updates.release("1.1.0")
    await updates.rollout(release, devices=(device,))
    execution, trial = await on_trial(updates, device, release)
    await device.says(step(execution, 7, Phase.TRIAL), trial=trial)
    await device.says(step(execution, 8, Phase.CONFIRMED))
    return device, release


async def test_who_confirmed_and_greets_with_another_version_has_reverted(
    updates: Updates,
) -> None:
    greetings = Greetings(updates.maint, SystemClock())
    updates.ahead = timedelta(minutes=-1)
    device, _ = await confirmed(updates)
    await updates.owner.execute("update executions set ended_at = now()")
    await updates.greets(device, "agent/1.0.0")  # from before it had confirmed
    assert await greetings.turn() == 0
    updates.ahead = timedelta(0)
    for same in ("agent/1.1.0", "vestibule-agent 1.1", "?", ""):
        await updates.greets(device, same)
        assert await greetings.turn() == 0
    assert (await updates.execution(device))["state"] == "confirmed"
    await updates.greets(device, "agent/1.0.0")
    assert await greetings.turn() == 1
    assert (await updates.execution(device))["state"] == "reverted by device"
    assert await greetings.turn() == 0


async def test_a_greeting_in_a_trial_says_nothing_of_what_was_confirmed_before(
    updates: Updates,
) -> None:
    device, _ = await confirmed(updates)
    await updates.owner.execute("update rollouts set state = 'completed'")
    later = await updates.release("1.2.0")
    await updates.rollout(later, devices=(device,))
    await told(device)
    await steps_to(updates, device, *BEFORE_INSTALLING, Phase.INSTALLING)
    await updates.greets(device, "agent/1.2.0")
    assert await Greetings(updates.maint, SystemClock()).turn() == 0
    states = await updates.owner.fetch("select state from executions order by id")
    assert [row["state"] for row in states] == ["confirmed", "installing"]


async def test_what_is_offered_rings_for_its_device_and_an_asking_device_needs_no_bell(
    updates: Updates,
) -> None:
    rung: list[str] = []
    await updates.owner.add_listener(CHANGED, lambda *said: rung.append(str(said[-1])))
    device, away = await updates.device(), await updates.device(site=await updates.place("s-2"))
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(device, away))
    await updates.greets(device, "agent/1.0.0")
    await Conductor(updates.maint, SystemClock()).turn()
    await updates.owner.fetchval("select 1")
    assert rung == [device.name]
    assert (await updates.execution(device))["state"] == "offered"
    assert (await updates.execution(away))["state"] == "planned"
    assert (await away.says()).assignment is not None
    await updates.owner.fetchval("select 1")
    assert rung == [device.name]


async def test_x42_a_device_that_the_network_keeps_from_updating_is_known_by_name(
    updates: Updates,
) -> None:
    soon = Policy(windows=None, ramp=AT_ONCE, timers=Timers(straggler_s=3_600, lost_s=3_600))
    never = await updates.device()
    cut_off = await updates.device(site=await updates.place("s-2"))
    release = await updates.release("1.1.0")
    await updates.rollout(release, devices=(never, cut_off), policy=soon)
    await told(cut_off)
    await steps_to(updates, cut_off, Phase.ACCEPTED)  # and nothing ever after
    clock = ManualClock(round(updates.now().timestamp() * 1000))
    for _ in range(20):
        clock.advance(7_200)
        await updates.owner.execute("update rollouts set due_at = '2020-01-01', lease_until = null")
        await Conductor(updates.maint, clock).turn()
    assert (await updates.execution(never))["state"] == "unreachable"
    assert (await updates.execution(cut_off))["state"] in ("lost", "timed out", "failed")
