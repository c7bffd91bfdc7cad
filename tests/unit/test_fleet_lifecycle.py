"""A device's life: every pair of states is an edge with effects, or refused."""

import itertools
import re
from pathlib import Path

import pytest

from server.errors import RefusedError
from server.fleet.lifecycle import ENDED, HELD, WORKING, Certificate, State, effects

MIGRATION = Path(__file__).parents[2] / "server/db/migrations/0002_identity.sql"


def edge(before: State, after: State, returns_to: State | None = None) -> Certificate | None:
    try:
        return effects(before, after, returns_to=returns_to).certificate
    except RefusedError:
        return None


def test_the_database_knows_the_same_states() -> None:
    sql = MIGRATION.read_text()
    [listed] = re.findall(r"devices_state_check check \(state in \((.*?)\)\)", sql, re.DOTALL)
    assert set(re.findall(r"'([^']+)'", listed)) == {state.value for state in State}
    [excluded] = re.findall(r"state not in \((.*?)\)", sql)
    assert set(re.findall(r"'([^']+)'", excluded)) == {s.value for s in HELD | ENDED}


def test_every_pair_is_decided() -> None:
    for before, after in itertools.product(State, State):
        found = edge(before, after)
        if before == after or before is State.RETIRED:
            assert found is None
        elif after in ENDED:
            assert found is Certificate.REVOKE or before is State.RETURNED
        elif before in WORKING and after in WORKING:
            forwards = WORKING.index(after) > WORKING.index(before)
            assert (found is Certificate.KEEP) == forwards
        elif after in HELD and before in WORKING[1:]:
            assert found is Certificate.DENY


@pytest.mark.parametrize("held", sorted(HELD))
@pytest.mark.parametrize("working", WORKING[1:])
def test_a_held_device_goes_back_to_where_it_was_and_nowhere_else(
    held: State, working: State
) -> None:
    assert edge(held, working, returns_to=working) is Certificate.ADMIT
    for other in set(WORKING) - {working}:
        assert edge(held, other, returns_to=working) is None
