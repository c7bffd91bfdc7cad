"""The audit chain: whatever is altered, cut out, added or swapped is found and named."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audit.chain import BEGINNING, Entry, breaks, digest

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def chain(count: int) -> list[Entry]:
    rows: list[Entry] = []
    previous = BEGINNING
    for number in range(1, count + 1):
        at = NOW + timedelta(microseconds=number)
        row = Entry(7, number, at, "user u-1", "device revoked", "dc-x", {"n": number}, previous)
        row = replace(row, hash=digest(row))
        previous = row.hash
        rows.append(row)
    return rows


def test_an_untouched_chain_holds() -> None:
    rows = chain(20)
    assert breaks(rows) == []
    assert breaks(rows, head=(11, rows[10].hash)) == []
    assert breaks([]) == []


@given(
    st.integers(0, 9),
    st.sampled_from(
        [
            lambda row: replace(row, actor="somebody else"),
            lambda row: replace(row, act="device reinstated"),
            lambda row: replace(row, subject="dc-y"),
            lambda row: replace(row, detail={}),
            lambda row: replace(row, at=NOW),
        ]
    ),
)
def test_an_altered_row_is_named(at: int, alter: Callable[[Entry], Entry]) -> None:
    rows = chain(10)
    rows[at] = alter(rows[at])
    assert [(b.number, b.why) for b in breaks(rows)] == [(at + 1, "was altered")]


@given(st.integers(0, 8))
def test_a_row_altered_with_its_hash_breaks_what_follows(at: int) -> None:
    rows = chain(10)
    forged = replace(rows[at], subject="dc-y")
    rows[at] = replace(forged, hash=digest(forged))
    assert [b.number for b in breaks(rows)] == [at + 2]


@given(st.integers(0, 8))
def test_a_row_that_was_cut_out_is_missed(at: int) -> None:
    rows = chain(10)
    del rows[at]
    assert {b.number for b in breaks(rows)} == {at + 2}


@pytest.mark.parametrize("kept", [0, 5])
def test_a_chain_that_lost_its_end_is_found_by_a_head_noted_elsewhere(kept: int) -> None:
    rows = chain(10)
    assert breaks(rows[:kept]) == []
    [found] = breaks(rows[:kept], head=(10, rows[9].hash))
    assert found.number == 10
