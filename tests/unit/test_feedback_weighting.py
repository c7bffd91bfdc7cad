"""Weights by exits: what they repair, what they cost, and when there are none."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.feedback.indices import Kind, index_of
from server.feedback.weighting import CAP, Stratum, weighted

ANSWERS = st.tuples(*[st.integers(0, 20)] * 4)
STRATA = st.lists(
    st.builds(Stratum, ANSWERS, st.none() | st.integers(0, 500).map(float)), max_size=8
)


def test_a_crowd_that_presses_seldom_weighs_as_many_as_left() -> None:
    """40 of the quiet hour's 100 are happy, 10 of the crowd's 900 are not: weights 2.5 and 90."""
    found = weighted(Kind.SMILEY4, [Stratum((40, 0, 0, 0), 100.0), Stratum((0, 0, 0, 10), 900.0)])
    assert found.unweighted is not None
    assert found.weighted is not None
    assert found.unweighted.value == pytest.approx(80)
    assert found.weighted.value == pytest.approx(10)
    assert found.n_eff == pytest.approx(1000**2 / (40 * 2.5**2 + 10 * 90**2))
    assert found.capped == 0


def test_no_response_weighs_more_than_five_times_the_median() -> None:
    strata = [Stratum((10, 0, 0, 0), 100.0)] * 9 + [Stratum((0, 0, 0, 1), 1000.0)]
    found = weighted(Kind.SMILEY4, strata)
    assert found.capped == 1
    assert found.weighted is not None
    assert found.weighted.value == pytest.approx(100 * 900 / (900 + CAP * 10))


@given(STRATA)
def test_weights_are_those_of_a_plain_computation(strata: list[Stratum]) -> None:
    found = weighted(Kind.SMILEY4, strata)
    told = [s for s in strata if s.exits and s.n]
    if not told:
        assert found.weighted is None
        assert found.n_eff is None
        return
    w = np.array([float(s.exits or 0) / s.n for s in told])
    w = np.minimum(w, 5 * np.median(w))
    each = np.repeat(w, [s.n for s in told])
    values = np.concatenate([np.repeat([100, 200 / 3, 100 / 3, 0], s.answers) for s in told])
    assert found.weighted is not None
    assert found.weighted.value == pytest.approx(float(np.average(values, weights=each)), abs=1e-9)
    assert found.n_eff == pytest.approx(float(each.sum() ** 2 / (each**2).sum()))
    assert found.n_eff is not None
    assert found.n_eff <= found.n_known + 1e-9


@given(st.lists(ANSWERS, max_size=6))
def test_equal_weights_change_nothing(answers: list[tuple[int, ...]]) -> None:
    found = weighted(Kind.SMILEY4, [Stratum(a, 3.0 * sum(a)) for a in answers])
    if found.n < 2:
        return
    assert found.weighted is not None
    assert found.unweighted is not None
    assert found.n_eff == pytest.approx(found.n)
    for name in ("value", "low", "high"):
        assert getattr(found.weighted, name) == pytest.approx(
            getattr(found.unweighted, name), abs=1e-6
        )


def test_unknown_exits_give_no_weighted_index_and_silent_hours_are_said() -> None:
    unknown = weighted(Kind.SMILEY4, [Stratum((9, 1, 0, 0), None)])
    assert unknown.weighted is None
    assert unknown.unweighted == index_of(Kind.SMILEY4, (9, 1, 0, 0))
    assert (unknown.n, unknown.n_known, unknown.unanswered) == (10, 0, None)
    quiet = weighted(Kind.SMILEY4, [Stratum((9, 1, 0, 0), 30.0), Stratum((0,), 10.0)])
    assert quiet.unanswered == pytest.approx(0.25)
