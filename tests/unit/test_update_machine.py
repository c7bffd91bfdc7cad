"""The update machine: killed and cut off anywhere, it ends where it should, and says so."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent.update.states import Later
from protocol.assignment import Assignment, Item
from protocol.release import target_path, version_key
from protocol.update import Attempt, Class, Phase, Step
from simulators.board import Board
from simulators.updates import Conduct, UpdateDevice

NOW_MS = 1_793_500_000_000
MINUTE_MS = 60_000
LAST = (Phase.CONFIRMED, Phase.FAILED, Phase.REVERTED, Phase.REJECTED)
AGENT, SCREEN, BOTH = ("agent",), ("kiosk",), ("kiosk", "agent")


def item(component: Any, version: str, floor: str = "0.1.0") -> Item:
    sha256 = hashlib.sha256(f"{component} {version}".encode()).hexdigest()
    return Item(component, version, floor, target_path(component, version, sha256), 1000, sha256)


def job(
    number: int = 1, *, components: Iterable[str] = AGENT, version: str = "1.0.0", **terms: Any
) -> Assignment:
    bundle = tuple(item(name, version, terms.get("floor", "0.1.0")) for name in components)
    terms.pop("floor", None)
    made = Assignment(
        "dc-simulated1", "DC2", "ro-simulated1", f"exe-simulated{number}", 1, bundle, "0" * 32,
        NOW_MS + 30 * 86_400_000,
    )  # fmt: skip
    return replace(made, **terms)


@dataclass
class Desk:
    """The server, in a few lines: it stores steps once, in order, and believes what runs."""

    job: Assignment | None = None
    stored: dict[Attempt, list[Step]] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    believed: list[Attempt] = field(default_factory=list)
    nonces: int = 0
    asked: str = ""

    def talk(self, device: UpdateDevice) -> None:
        report = device.report()
        if report is None:
            return
        fresh = bool(report.answers) and report.answers == self.asked
        heard = {}
        for said in report.steps:
            if said.phase is Phase.CONFIRMED and not fresh:
                break  # it may be an old report that is sent again: not heard
            rows = self.stored.setdefault(said.attempt, [])
            last = rows[-1].seq if rows else 0
            if said.seq > last:
                rows.append(said)
            heard[said.attempt] = max(last, said.seq)
            runs = self.job is not None and all(
                report.components.get(each.component) is not None
                and report.components[each.component].sha256 == each.sha256
                for each in self.job.bundle
            )
            if said.phase is Phase.CONFIRMED and runs:
                self.believed.append(said.attempt)
        self.nonces += 1
        self.asked = f"{self.nonces:032x}"
        offer = self.job
        gone = {each.execution for each in self.stored if not self.knows(each)}
        if offer is not None and (self.ended(offer) or offer.execution in self.cancelled):
            offer = None
        device.hear(
            self.asked,
            heard=heard,
            offer=None if offer is None else replace(offer, nonce=report.nonce),
            trial_ok=report.trial,
            cancel=tuple(self.cancelled | gone),
        )

    def knows(self, attempt: Attempt) -> bool:
        """Whether this attempt is the one that is wanted now."""
        return self.job is not None and self.job.execution == attempt.execution

    def ended(self, offer: Assignment) -> bool:
        rows = self.stored.get(Attempt(offer.execution, offer.attempt), [])
        return any(each.phase in LAST for each in rows)

    def phases(self, offer: Assignment) -> list[Phase]:
        return [each.phase for each in self.stored[Attempt(offer.execution, offer.attempt)]]

    def end(self, offer: Assignment) -> Step:
        return self.stored[Attempt(offer.execution, offer.attempt)][-1]


def through(device: UpdateDevice, desk: Desk, *, minutes: int = 60, from_ms: int = NOW_MS) -> None:
    """Let device and server talk each minute."""
    for minute in range(minutes):
        device.tick(from_ms + minute * MINUTE_MS)
        desk.talk(device)


def updated(conduct: Conduct = Conduct.GOOD, *, board: Board | None = None, **named: Any) -> Any:
    device = UpdateDevice("dc-simulated1", rng=random.Random(1), conduct=conduct, board=board)
    desk = Desk(job(**named))
    through(device, desk)
    return device, desk


# -- each way through --------------------------------------------------------------------------


def test_a_good_image_is_confirmed_from_its_own_slot_once_the_server_has_heard_its_trial() -> None:
    device, desk = updated()
    assert device.version == "1.0.0"
    assert desk.phases(desk.job) == [
        Phase.ACCEPTED, Phase.DOWNLOADING, Phase.READY, Phase.INSTALLING, Phase.REBOOTING,
        Phase.TRIAL, Phase.CONFIRMED,
    ]  # fmt: skip
    assert desk.believed == [Attempt("exe-simulated1", 1)]
    assert [(each.version, each.why) for each in device.board.boots] == [
        ("0.1.0", "committed"), ("1.0.0", "trial"),
    ]  # fmt: skip
    assert device.board.record is None


@pytest.mark.parametrize(
    ("conduct", "phase", "kind", "code"),
    [
        (Conduct.CRASHES, Phase.REVERTED, Class.SELF_TEST, "crashed"),
        (Conduct.HANGS, Phase.REVERTED, Class.TIMEOUT, "hung"),
        (Conduct.FAILS, Phase.REVERTED, Class.SELF_TEST, "doctor.sensor"),
        (Conduct.FULL, Phase.FAILED, Class.STORAGE, "disk_full"),
    ],
)
def test_a_bad_one_ends_in_the_slot_of_before_and_says_why(
    conduct: Conduct, phase: Phase, kind: Class, code: str
) -> None:
    device, desk = updated(conduct)
    last = desk.end(desk.job)
    assert (last.phase, last.kind, last.code) == (phase, kind, code)
    assert device.version == "0.1.0"
    assert device.update.settled
    assert desk.believed == []
    assert last.tail.startswith("sync ")
    assert last.tail.split()[-2] in ("verify_rollback", "download")


def test_who_lies_is_not_believed_whatever_he_says() -> None:
    device, desk = updated(Conduct.LIES)
    assert desk.phases(desk.job)[-1] is Phase.CONFIRMED
    assert device.version == "0.1.0"
    assert desk.believed == []


def test_who_reports_late_is_believed_all_the_same() -> None:
    device, desk = updated(Conduct.LATE)
    assert device.version == "1.0.0"
    assert desk.believed == [Attempt("exe-simulated1", 1)]


def test_a_screen_is_updated_without_a_restart() -> None:
    device, desk = updated(components=SCREEN)
    assert len(device.board.boots) == 1
    assert device.board.links == {"kiosk": "a"}
    assert desk.end(desk.job).phase is Phase.CONFIRMED


def test_a_floor_is_kept_and_nothing_below_it_is_taken() -> None:
    device, desk = updated(version="2.0.0", floor="1.5.0")
    desk.job = job(2, version="1.4.9")
    through(device, desk, from_ms=NOW_MS + 10**7)
    last = desk.end(desk.job)
    assert (last.phase, last.code) == (Phase.REJECTED, "below_floor")
    desk.job = job(3, version="1.5.0")
    through(device, desk, from_ms=NOW_MS + 2 * 10**7)
    assert device.version == "1.5.0"
    assert device.slots.floors()["agent"] == "1.5.0"


def test_what_was_ended_is_told_again_and_not_done_again() -> None:
    device, desk = updated()
    first = desk.end(desk.job)
    desk.stored.clear()  # a server that was restored
    through(device, desk, from_ms=NOW_MS + 10**7)
    assert [each.phase for each in desk.stored[first.attempt]] == [Phase.CONFIRMED]
    assert desk.end(desk.job).seq == first.seq
    assert len(device.board.boots) == 2


# -- the power fails at each step ----------------------------------------------------------------


def instants(**named: Any) -> int:
    device, _ = updated(board=Board(), **named)
    many: int = device.board.instants
    return many


CASES: list[tuple[Conduct, tuple[str, ...]]] = [
    (Conduct.GOOD, AGENT),
    (Conduct.GOOD, SCREEN),
    (Conduct.GOOD, BOTH),
    (Conduct.CRASHES, AGENT),
    (Conduct.FAILS, BOTH),
    (Conduct.FAILS, SCREEN),
    (Conduct.HANGS, AGENT),
]


@pytest.mark.parametrize(("conduct", "components"), CASES)
def test_the_power_may_fail_before_and_after_each_thing_that_is_written(
    conduct: Conduct, components: tuple[str, ...]
) -> None:
    ends = set()
    many = instants(conduct=conduct, components=components)
    assert many > 20
    for at in range(1, many + 1):
        device, desk = updated(conduct, components=components, board=Board(cut_at=at))
        assert device.power_cuts == 1, at
        ends.add(_settled(device, desk, at))
    good = conduct is Conduct.GOOD
    assert ends <= {Phase.CONFIRMED if good else Phase.REVERTED, Phase.REVERTED, Phase.FAILED}
    assert (Phase.CONFIRMED in ends) is good


def _settled(device: UpdateDevice, desk: Desk, at: int) -> Phase:
    """Hold a device that has come to rest to what it said."""
    offer = desk.job
    assert offer is not None
    assert device.update.settled, at
    assert not device.update.steps, at
    assert device.board.record is None, at
    last = desk.end(offer)
    links = {name: device.slots.committed(name).version for name in ("agent", "kiosk")}
    wanted: dict[str, str] = {each.component: each.version for each in offer.bundle}
    done = last.phase is Phase.CONFIRMED
    for name, version in links.items():
        assert version == (wanted.get(name, "") if done else ""), (at, last)
    assert (desk.believed != []) is done, at
    assert device.version == (wanted.get("agent", "0.1.0") if done else "0.1.0"), at
    assert sum(each.why == "trial" for each in device.board.boots) <= 1, at
    return last.phase


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    cuts=st.lists(st.integers(1, 60), max_size=4),
    case=st.sampled_from(CASES),
    late=st.booleans(),
)
def test_the_power_may_fail_again_and_again(
    cuts: list[int], case: tuple[Conduct, tuple[str, ...]], late: bool
) -> None:
    conduct, components = case
    board = Board(cut_at=cuts[0] if cuts else -1)
    device = UpdateDevice("dc-simulated1", rng=random.Random(1), conduct=conduct, board=board)
    desk = Desk(job(components=components))
    left = cuts[1:]
    for minute in range(240):
        if board.instants >= board.cut_at and left:
            board.cut_at = board.instants + left.pop(0)
        device.tick(NOW_MS + minute * MINUTE_MS)
        if not late or minute % 7 == 0:
            desk.talk(device)
    _settled(device, desk, -1)


# -- the whole model -------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Anything in any order; whatever was said must be so."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Board()
        self.desk = Desk()
        self.now_ms = NOW_MS
        self.number = 0
        self.lost = False
        self.jobs: list[Assignment] = []
        self.floor = "0.1.0"

    @initialize(conduct=st.sampled_from([Conduct.GOOD, Conduct.GOOD, Conduct.LATE, Conduct.FAILS]))
    def begin(self, conduct: Conduct) -> None:
        self.device = UpdateDevice(
            "dc-simulated1", rng=random.Random(3), conduct=conduct, board=self.board, bad=("6.6.6",)
        )

    @rule(
        version=st.sampled_from(["1.0.0", "1.1.0", "2.0.0", "6.6.6"]),
        floor=st.sampled_from(["0.1.0", "1.0.0", "1.1.0"]),
        components=st.sampled_from([AGENT, SCREEN, BOTH]),
        delay_s=st.sampled_from([0, 600]),
        idle_s=st.sampled_from([0, 60]),
        trial_s=st.sampled_from([120, 600]),
        window=st.sampled_from([(), ((0, 1),), ((NOW_MS, NOW_MS + 10**9),)]),
        urgent=st.booleans(),
    )
    def offer(self, version: str, floor: str, **terms: Any) -> None:
        self.number += 1
        floor = min(floor, version, key=version_key)
        self.desk.job = job(self.number, version=version, floor=floor, **terms)
        self.jobs.append(self.desk.job)

    @rule(minutes=st.integers(1, 20))
    def time(self, minutes: int) -> None:
        self.now_ms += minutes * MINUTE_MS
        self.device.tick(self.now_ms)

    @rule()
    def talk(self) -> None:
        self.desk.talk(self.device)

    @rule(times=st.integers(3, 8))
    def live(self, times: int) -> None:
        for _ in range(times):
            self.time(1)
            self.talk()

    @rule()
    def power_cut(self) -> None:
        self.device.cut_power()

    @rule(ahead=st.integers(1, 24))
    def power_will_fail(self, ahead: int) -> None:
        self.board.cut_at = self.board.instants + ahead

    @rule()
    def killed(self) -> None:
        self.device.start()

    @rule(busy=st.booleans())
    def used(self, busy: bool) -> None:
        self.device.busy = busy

    @rule()
    def ask_me_later(self) -> None:
        self.device.happen(Later(300_000))

    @rule(writable=st.booleans())
    def disk(self, writable: bool) -> None:
        self.board.writable = writable

    @precondition(lambda self: self.desk.job is not None)
    @rule()
    def cancel(self) -> None:
        assert self.desk.job is not None
        self.desk.cancelled.add(self.desk.job.execution)

    @rule()
    def lose_the_journal(self) -> None:
        self.lost = True
        self.board.journal = b'{"update": {}, "sha256": "'
        self.device.start()

    @invariant()
    def only_what_was_proved_is_committed(self) -> None:
        tried = {each.attempt for each in self.board.boots if each.why == "trial"}
        for attempt in self.desk.believed:
            offer = next(each for each in self.jobs if each.execution == attempt.execution)
            if any(each.component == "agent" for each in offer.bundle):
                assert attempt in tried
        assert self.board.version("agent", self.board.links.get("agent", "package")) != "6.6.6"

    @invariant()
    def nothing_is_started_twice_on_trial(self) -> None:
        tried = [each.attempt for each in self.board.boots if each.why == "trial"]
        assert self.lost or len(tried) == len(set(tried))

    @invariant()
    def floors_only_rise(self) -> None:
        now = self.board.floors.get("agent", "0.1.0")
        assert version_key(now) >= version_key(self.floor)
        self.floor = now
        held = self.board.version("agent", self.board.links.get("agent", "package"))
        assert self.lost or version_key(held) >= version_key(now)

    @invariant()
    def what_is_said_is_numbered(self) -> None:
        for rows in self.desk.stored.values():
            numbers = [each.seq for each in rows]
            assert numbers == sorted(set(numbers))
            assert sum(each.phase in LAST for each in rows) <= (2 if self.lost else 1), rows

    def teardown(self) -> None:
        if not hasattr(self, "device"):
            return
        self.board.writable, self.board.cut_at, self.device.busy = True, -1, False
        if self.desk.job is not None:
            self.desk.job = replace(self.desk.job, window=())
        for _ in range(150):
            self.time(2)
            self.talk()
        assert self.device.update.settled, self.device.update
        assert not self.device.update.steps
        assert self.board.record is None
        slot = self.device.slots.running().slot
        assert slot == self.board.links.get("agent", "package")
        if self.desk.job is not None and self.desk.job.execution not in self.desk.cancelled:
            assert self.desk.end(self.desk.job).phase in LAST
            self._agrees(self.desk.job)

    def _agrees(self, last: Assignment) -> None:
        """What was said last is so."""
        if self.desk.end(last).phase is Phase.CONFIRMED:
            for each in last.bundle:
                assert self.device.slots.committed(each.component).version == each.version


def test_whatever_happens_in_whatever_order_a_device_ends_where_it_says() -> None:
    run_state_machine_as_test(
        Model, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )


@pytest.mark.long
def test_whatever_happens_far_more_often() -> None:
    run_state_machine_as_test(
        Model, settings=settings(max_examples=400, stateful_step_count=50, deadline=None)
    )
