"""The chaos plan: seeded, fair, and over when it says so."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ops.chaos.plan import Action, Part, plan

SEEDS = st.integers(0, 2**32)


@given(SEEDS, st.floats(10, 300), st.integers(1, 40))
def test_all_faults_end_before_the_plan_does(seed: int, seconds: float, agents: int) -> None:
    faults = plan(seed=seed, seconds=seconds, agents=agents)
    assert all(fault.at_s >= 0 and fault.at_s + fault.down_s <= seconds for fault in faults)


@given(SEEDS, st.floats(10, 300), st.integers(1, 40))
def test_no_component_has_two_faults_at_once(seed: int, seconds: float, agents: int) -> None:
    free: dict[str, float] = {}
    for fault in plan(seed=seed, seconds=seconds, agents=agents):
        assert fault.at_s >= free.get(fault.victim, 0)
        free[fault.victim] = fault.at_s + fault.down_s


@given(SEEDS, st.integers(1, 40))
def test_every_agent_is_killed_before_one_is_killed_again(seed: int, agents: int) -> None:
    faults = plan(seed=seed, seconds=120, agents=agents)
    kills = Counter(fault.agent for fault in faults if fault.part is Part.AGENT)
    assert set(kills) == set(range(agents))
    assert max(kills.values()) - min(kills.values()) <= 1


@given(SEEDS)
def test_thirty_seconds_are_enough_for_every_kind_of_fault(seed: int) -> None:
    kinds = {(fault.part, fault.action) for fault in plan(seed=seed, seconds=30, agents=8)}
    assert kinds == {
        (Part.AGENT, Action.KILL),
        (Part.BROKER, Action.KILL),
        (Part.SERVER, Action.KILL),
        (Part.SERVER, Action.FREEZE),
        (Part.DATABASE, Action.KILL),
        (Part.LINK, Action.CUT),
        (Part.LINK, Action.BLOCK),
    }


@given(SEEDS)
def test_the_same_seed_gives_the_same_plan(seed: int) -> None:
    assert plan(seed=seed, seconds=60, agents=20) == plan(seed=seed, seconds=60, agents=20)
