"""What a batch adds to the rollup: the compiled sums equal the reference's, and count everybody."""

import functools
from operator import or_
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ext import BUCKET_MS, COUNT_DELTA, COUNT_ROW, _decoder, reference

NOON_MS = 1_767_268_800_000
DELTAS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(1, 2),
        st.sampled_from([NOON_MS, NOON_MS + BUCKET_MS]),
        st.integers(0, (1 << 60) - 1),
        st.integers(1, 3600),
        st.integers(0, 15),
        *[st.integers(0, 0xFFFF_FFFF)] * 8,
    ),
    max_size=12,
)
LATE = st.fixed_dictionaries(
    {boot: st.sampled_from([-(1 << 60), NOON_MS + BUCKET_MS]) for boot in (1, 2)}
)


@given(deltas=DELTAS, late=LATE)
def test_the_sums_of_a_batch_agree_and_count_everybody(
    deltas: list[tuple[int, ...]], late: dict[int, int]
) -> None:
    packed = b"".join(COUNT_DELTA.pack(*delta) for delta in deltas)
    rows = reference.sum_counts(packed, late)
    assert _decoder.sum_counts(packed, late) == rows
    found = list(COUNT_ROW.iter_unpack(rows))
    assert [row[:2] for row in found] == sorted({(d[0], d[2] // BUCKET_MS) for d in deltas})
    for spot, quarter, observed, resolution_s, flagged, lines, *counts in found:
        own = [d for d in deltas if (d[0], d[2]) == (spot, quarter * BUCKET_MS)]
        assert counts == [min(sum(d[6 + i] for d in own), (1 << 31) - 1) for i in range(8)]
        assert observed == functools.reduce(or_, [d[3] for d in own])
        assert resolution_s == max(d[4] for d in own)
        assert flagged == any(d[2] + BUCKET_MS <= late[d[1]] for d in own)
        assert lines == functools.reduce(or_, [d[5] for d in own])


@pytest.mark.parametrize("module", [reference, _decoder], ids=lambda module: str(module.__name__))
def test_a_delta_of_a_boot_that_nobody_knows_is_an_error(module: ModuleType) -> None:
    packed = COUNT_DELTA.pack(1, 1, NOON_MS, 1, 60, 1, *[1] * 8)
    with pytest.raises(KeyError):
        module.sum_counts(packed, {})
