"""Who joins a rollout, and how many: the pure part of the tail, held to a second account of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from server.firmware import joiners
from server.firmware.guards import Guard
from server.firmware.plan import Device, Release
from server.firmware.policy import Joiners, OnHalt, Policy, WaveRule
from server.firmware.rollout import (
    Approved,
    Joined,
    Paused,
    Planned,
    Regressed,
    Started,
    Submitted,
    Ticked,
    decide,
)
from server.firmware.waves import Rollout, State, Wave, WaveKind, WaveState

ZERO = datetime(2026, 3, 2, tzinfo=UTC)


def _opened(state: WaveState, at_s: int) -> datetime | None:
    return None if state is WaveState.PENDING else ZERO + timedelta(seconds=at_s)


def _running(policy: Policy, devices: int, *, approver: str = "user b") -> Rollout:
    rollout = Rollout(policy, "user a")
    for event in (
        Planned(at=ZERO, sizes=(devices,)),
        Submitted(at=ZERO),
        Approved(at=ZERO, actor=approver),
        Started(at=ZERO, sizes=(devices,)),
        Ticked(at=ZERO),
    ):
        rollout, _ = decide(rollout, event)
    return rollout


@given(
    st.integers(1, 20),
    st.integers(0, 50),
    st.integers(1, 60),
    st.booleans(),
    st.sampled_from(("user a", "user b", "key 3f")),
    st.lists(st.integers(1, 30), max_size=12),
)
def test_no_more_join_than_was_approved_however_they_come(
    devices: int, radius: int, most: int, admit: bool, approver: str, coming: list[int]
) -> None:
    policy = Policy(blast_radius=radius, joiners=Joiners(admit=admit, most=most))
    rollout = _running(policy, devices, approver="user b")
    joined = 0
    for number in coming:
        taken = min(number, joiners.room(rollout, approver))
        if taken:
            rollout, _ = decide(rollout, Joined(at=ZERO, devices=taken))
            joined += taken
    if approver == "user b":
        limit = max(radius, most) if admit else radius
    else:  # the author alone, or a program: no more in all than a second person need not see
        limit = max(0, radius - devices)
    assert joined == min(sum(coming), limit)
    assert rollout.waves[-1].size == joined
    assert rollout.devices == devices + joined
    assert rollout.wave(1).size == devices


@given(st.sampled_from(State), st.booleans())
def test_nobody_joins_but_what_runs_and_is_no_way_back(state: State, reverse: bool) -> None:
    rollout = replace(_running(Policy(), 3), state=state, reverse=reverse)
    assert (joiners.admits(rollout) == "") is (state is State.RUNNING and not reverse)


@given(
    st.lists(
        st.tuples(st.sampled_from(WaveState), st.integers(0, 5_000)), min_size=1, max_size=4
    ),
    st.integers(0, 5_000),
    st.integers(0, 12_000),
    st.booleans(),
)  # fmt: skip
def test_a_rollout_waits_for_who_may_come_for_so_long_after_its_last_wave_opened(
    waves: list[tuple[WaveState, int]], stay: int, now: int, admit: bool
) -> None:
    policy = Policy(joiners=Joiners(admit=admit, stay_s=stay))
    made = tuple(
        Wave(n, state=state, size=1, opened_at=_opened(state, at_s))
        for n, (state, at_s) in enumerate(waves, 1)
    )
    rollout = Rollout(
        policy, "user a", State.RUNNING, (*made, Wave(len(made) + 1, WaveKind.TAIL)), devices=1
    )
    expected = admit and waves[-1][0] is not WaveState.PENDING and now < stay + waves[-1][1]
    assert joiners.awaits(rollout, now=ZERO + timedelta(seconds=now)) is expected


def test_those_that_a_wave_takes_all_of_are_followed_by_more_and_others_are_not() -> None:
    north = WaveRule(filter='site.region = "North"')
    few = (WaveRule(count=5), WaveRule(percent=10, filter="kind = kiosk"))
    assert joiners.rules(Policy()) == (WaveRule(),)
    assert joiners.rules(Policy(waves=(few[0], north))) == (north,)
    assert joiners.rules(Policy(waves=few)) == ()


def test_who_cannot_go_back_joins_only_where_the_plan_said_so() -> None:
    release = Release(1, "agent", "2.0.0", "1.5.0", None, frozenset({"DC2"}), 1)
    kept = replace(release, id=2, component="kiosk", floor="1.0.0")
    device = Device(1, "dc-1", "counter", "DC2", "in service", running={"agent": "1.4.0"})
    said = joiners.no_way_back(device, [kept, release], frozenset())
    assert said.startswith("agent 2.0.0 leads nowhere back to 1.4.0")
    assert joiners.no_way_back(device, [release], {("agent", "2.0.0")}) == ""
    newer = replace(device, running={"agent": "1.5.0"})
    assert joiners.no_way_back(newer, [release], frozenset()) == ""


def test_a_halt_in_the_tail_takes_nobody_back_and_nobody_joins_what_halted() -> None:
    policy = msgspec.structs.replace(Policy(), on_halt=OnHalt.REVERT_ALL)
    rollout, _ = decide(_running(policy, 3), Joined(at=ZERO, devices=1))
    tail = rollout.waves[-1].number
    for wave, guard, revert in (
        (tail, Guard.EXHAUSTED, OnHalt.KEEP),
        (tail, Guard.HEALTH, OnHalt.REVERT_ALL),
        (1, Guard.FAIL_ABS, OnHalt.REVERT_ALL),
    ):
        event = Regressed(at=ZERO, wave=wave, guard=guard, found=3, limit=3)
        halted, _ = decide(rollout, event)
        assert (halted.state, halted.revert) == (State.HALTED, revert)
        assert joiners.admits(halted) == "nobody joins: it is halted"
    paused, _ = decide(rollout, Paused(at=ZERO, reason="lunch"))
    assert joiners.admits(paused) == "nobody joins: it is paused"
