"""How far from its limits a rollout is: the guards halt exactly where it says so."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import RefusedError
from server.firmware.guards import tripped
from server.firmware.life import Counters
from server.firmware.policy import Gate, OnHalt, Policy
from server.firmware.rollout import (
    Approved,
    Cancelled,
    Event,
    Paused,
    Resumed,
    Reverting,
    Submitted,
    decide,
)
from server.firmware.standing import Act, ended, passing, possible, standings, waits_for_people
from server.firmware.waves import OVER, Rollout, State, Wave, WaveState

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)


@given(
    confirmed=st.integers(0, 40), failed=st.integers(0, 6), lost=st.integers(0, 4),
    flying=st.integers(0, 5), known=st.integers(0, 6),
)  # fmt: skip
def test_a_guard_stands_at_its_limit_exactly_when_it_halts(
    confirmed: int, failed: int, lost: int, flying: int, known: int
) -> None:
    over = confirmed + failed + lost
    total = Counters(
        attempted=over + flying, ended=over, confirmed=confirmed, failed=failed, lost=lost,
        terminal=over, flying=flying,
    )  # fmt: skip
    gone = min(known, confirmed)
    baseline = Counters(attempted=gone, ended=gone, confirmed=gone)
    wave = Wave(1, state=WaveState.OPEN, size=100, total=total, baseline=baseline)
    rollout = Rollout(Policy(), "ada", State.RUNNING, (wave,))
    halts = tripped(rollout.policy.guards, wave.since, everywhere=rollout.since) is not None
    assert any(each.tripped for each in standings(rollout)) is halts


def test_a_share_says_how_many_are_missing_before_it_counts() -> None:
    total = Counters(attempted=4, ended=4, confirmed=2, failed=2, terminal=4)
    rollout = Rollout(Policy(), "ada", State.RUNNING, (Wave(1, size=20, total=total),))
    *of_all, share = standings(rollout)
    assert [each.wave for each in of_all] == [None, None]
    assert (share.wave, share.found, share.limit, share.missing, share.tripped) == (
        1,
        50.0,
        10.0,
        6,
        False,
    )


def test_a_soaking_wave_says_when_it_passes() -> None:
    total = Counters(attempted=10, ended=10, confirmed=10, terminal=10)
    wave = Wave(1, state=WaveState.SOAKING, size=10, total=total, met_at=NOW)
    found = passing(Gate(), wave)
    assert found is not None
    assert (found.share, found.sample, found.sample_needed, found.met) == (100.0, 10, 10, True)
    assert found.soaked_at == NOW + timedelta(days=1)
    assert passing(Gate(), Wave(2, size=5)) is None


EVENTS: dict[Act, Event] = {
    Act.SUBMIT: Submitted(at=NOW, actor="bo"),
    Act.APPROVE: Approved(at=NOW, actor="bo"),
    Act.PAUSE: Paused(at=NOW, actor="bo", reason="x"),
    Act.RESUME: Resumed(at=NOW, actor="bo", reason="x"),
    Act.CANCEL: Cancelled(at=NOW, actor="bo", reason="x"),
    Act.REVERT: Reverting(at=NOW, actor="bo", reason="x", by="rollout-b", how=OnHalt.REVERT_ALL),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", list(State))
def test_what_may_be_done_is_what_the_engine_takes(state: State, reverse: bool) -> None:
    rollout = Rollout(Policy(), "ada", state, (Wave(1, size=5),), devices=5, reverse=reverse)
    taken = set()
    for act, event in EVENTS.items():
        try:
            decide(rollout, event)
        except RefusedError:
            continue
        taken.add(act)
    offered = set(possible(state, reverse=reverse))
    assert offered - {Act.START} == taken
    assert (Act.START in offered) is (state is State.SCHEDULED)


@pytest.mark.parametrize("state", list(State))
def test_watching_ends_when_it_is_over_or_halted_for_people_to_decide(state: State) -> None:
    for revert in OnHalt:
        rollout = Rollout(Policy(), "ada", state, revert=revert)
        left = state is State.HALTED and revert is OnHalt.KEEP
        assert ended(rollout) is (state in OVER or left)
        assert not (waits_for_people(rollout) and state is State.RUNNING)
