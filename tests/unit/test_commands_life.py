"""A command's life against a reference in a few lines, and the gate before a store's doors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.state import COMMANDS
from server.commands.life import AT_ONCE, KINDS, OPEN, TTL, Event, Gate, Risk, State, after

ENDS = {State.DONE, State.FAILED}


def reference(events: list[Event]) -> State:
    """The whole history judged at once: what the device did wins, else the first of our ends."""
    for event in events:
        if event in (Event.DONE, Event.FAILED):
            return State(event.value)
    runs = False
    offered = False
    for event in events:
        if event is Event.OVERDUE:
            return State.EXPIRED
        if event is Event.CANCELLED and not runs:
            return State.CANCELLED
        runs |= event is Event.RUNNING
        offered |= event is Event.OFFERED
    return State.RUNNING if runs else State.SENT if offered else State.QUEUED


@given(st.lists(st.sampled_from(Event), max_size=12))
def test_any_order_of_events_ends_where_the_reference_says(events: list[Event]) -> None:
    state = State.QUEUED
    for event in events:
        becomes = after(state, event)
        if state in ENDS:
            assert becomes is None
        if becomes is not None:
            assert becomes is not state
            assert state in OPEN or becomes in ENDS
            state = becomes
    assert state is reference(events)


def test_every_kind_on_the_wire_has_its_risk_and_its_time() -> None:
    assert set(KINDS) == set(COMMANDS)
    assert all(TTL[0] <= kind.ttl <= TTL[1] for kind in KINDS.values())
    assert {kind.risk for kind in KINDS.values()} == set(Risk)


@pytest.mark.parametrize("risk", Risk)
@pytest.mark.parametrize("open_now", [False, True])
@pytest.mark.parametrize("reason", [False, True])
def test_a_store_that_is_open_is_disturbed_only_with_a_reason(
    risk: Risk, open_now: bool, reason: bool
) -> None:
    held = Gate(risk, open_now, reason, 0, 0).holds
    assert bool(held) == (risk is Risk.DISRUPTIVE and open_now and not reason)


@pytest.mark.parametrize("risk", Risk)
def test_no_more_go_at_once_than_a_site_and_an_organisation_bear(risk: Risk) -> None:
    site, organisation = AT_ONCE[risk]
    assert Gate(risk, False, True, site - 1, organisation - 1).holds == ""
    assert Gate(risk, False, True, site, organisation - 1).holds == "site_busy"
    assert Gate(risk, False, True, site - 1, organisation).holds == "organisation_busy"
