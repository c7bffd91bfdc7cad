"""Feedback indices against published examples, and what holds for any answers."""

from math import sqrt
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.feedback.indices import (
    Index,
    Kind,
    ces,
    index_of,
    nps,
    smiley_index,
    student_t,
    wilson,
)

answers = st.lists(st.integers(0, 500), min_size=1, max_size=12)


def some(index: Index | None) -> Index:
    assert index is not None
    return index


@pytest.mark.parametrize(
    ("given_", "value"),
    [((126, 60, 16, 17), 78.234), ((51, 23, 12, 2, 4), 81.25), ((51, 23, 12, 4, 1), 82.692)],
)
def test_the_smiley_index_has_the_published_values(given_: tuple[int, ...], value: float) -> None:
    assert some(smiley_index(given_)).value == pytest.approx(value, abs=0.001)


def test_the_vendors_average_is_4_308_and_not_the_4_25_that_it_prints() -> None:
    given_ = (51, 23, 12, 4, 1)
    average = sum(score * n for score, n in zip((5, 4, 3, 2, 1), given_, strict=True)) / sum(given_)
    assert average == pytest.approx(4.308, abs=0.001)
    assert some(smiley_index(given_)).value == pytest.approx((average - 1) * 25)


def test_nps_has_the_published_value_and_interval() -> None:
    found = some(nps(291, 476, 395))
    assert found.value == pytest.approx(-8.95, abs=0.005)
    assert (some(found).high or 0) - (found.low or 0) == pytest.approx(2 * 4.4, abs=0.05)
    assert found.n == 1162


def test_nps_counts_0_to_6_7_to_8_and_9_to_10() -> None:
    assert index_of(Kind.NPS, [1] * 7 + [2] * 2 + [3] * 2) == nps(6, 4, 7)


def test_csat_is_the_best_two_of_five_with_wilsons_interval() -> None:
    found = some(index_of(Kind.CSAT, [0, 1, 4, 5, 20, 70]))  # answers are numbered from 1
    assert found.value == 90
    low, high = wilson(90, 100)
    assert (found.low, found.high) == (100 * low, 100 * high)
    assert low == pytest.approx(0.8256, abs=1e-4)
    assert high == pytest.approx(0.9448, abs=1e-4)


def test_ces_is_a_mean_with_a_t_interval_and_the_share_of_5_and_above() -> None:
    found = some(ces([0, 0, 0, 2, 4, 2, 2]))
    assert found.value == pytest.approx(5.4)
    assert found.agree == pytest.approx(80)
    # mean 5.4, s 1.0750, n 10, t(9) 2.2622
    assert found.low == pytest.approx(4.631, abs=1e-3)
    assert found.high == pytest.approx(6.169, abs=1e-3)


def test_a_statement_is_a_mean_with_the_share_that_agrees_and_three_smileys_are_equal_steps() -> (
    None
):
    given_ = [0, 1, 2, 3, 4, 10]  # of numbers 0 to 5; there is no 0
    numbers = [n for n, times in enumerate(given_) for _ in range(times)]
    found = some(index_of(Kind.STATEMENT, given_))
    assert found.value == pytest.approx(mean(numbers))
    assert found.agree == pytest.approx(70)
    half = 2.0930 * stdev(numbers) / sqrt(20)  # t(19)
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half), abs=1e-3)
    assert some(index_of(Kind.SMILEY3, [6, 3, 1])).value == pytest.approx(75)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157),
     (29, 2.045230), (100, 1.983972), (10_000, 1.960201)],
)  # fmt: skip
def test_students_t_agrees_with_its_table(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=1e-5)


def test_no_answers_have_no_index_and_one_has_no_interval() -> None:
    for kind in Kind:
        assert index_of(kind, []) is None
    assert some(smiley_index([1, 0, 0, 0])) == Index(100, None, None, 1)


@given(st.sampled_from([*Kind]), st.integers(2, 5_000), st.integers(0, 10))
def test_answers_that_are_all_alike_are_as_unsure_as_wilson_says(
    kind: Kind, n: int, answer: int
) -> None:
    """Each answer that is not like them may be the best or the worst."""
    numbers = {
        Kind.SMILEY3: range(3), Kind.SMILEY4: range(4), Kind.SMILEY5: range(5),
        Kind.CES: range(1, 8), Kind.STATEMENT: range(1, 6),
    }.get(kind)  # fmt: skip
    if numbers is None or answer not in numbers:
        return
    found = some(index_of(kind, [n if number == answer else 0 for number in range(11)]))
    like = stats.binomtest(n, n).proportion_ci(method="wilson").low
    least, most = (min(numbers), max(numbers)) if kind in (Kind.CES, Kind.STATEMENT) else (0, 100)
    assert found.low == pytest.approx(like * found.value + (1 - like) * least)
    assert found.high == pytest.approx(like * found.value + (1 - like) * most)
    assert found.se is not None
    assert found.se > 0


def test_two_presses_of_the_best_smiley_are_no_certainty() -> None:
    found = some(smiley_index([2, 0, 0, 0]))
    assert (found.value, found.high) == (100, 100)
    assert found.low == pytest.approx(34.2, abs=0.05)


def test_the_standard_error_is_not_cut_where_the_scale_ends() -> None:
    given_ = [29, 0, 0, 1]
    numbers = [100 * (3 - at) / 3 for at, times in enumerate(given_) for _ in range(times)]
    found = some(smiley_index(given_))
    assert found.high == 100
    half = stats.t.ppf(0.975, 29) * stats.sem(numbers)
    assert found.low == pytest.approx(found.value - half)
    assert found.se == pytest.approx(half / stats.norm.ppf(0.975))
    promoters = some(nps(29, 0, 1))
    p, d = 29.75 / 33, 1.75 / 33
    assert promoters.high == 100
    assert promoters.se == pytest.approx(100 * sqrt((p + d - (p - d) ** 2) / 33))


def test_few_answers_are_marked_small() -> None:
    assert some(smiley_index([29, 0, 0, 0])).small
    assert not some(smiley_index([30, 0, 0, 0])).small


@given(st.sampled_from([*Kind]), answers)
def test_an_interval_holds_its_value_and_stays_on_the_scale(kind: Kind, given_: list[int]) -> None:
    scale = {Kind.NPS: (-100.0, 100.0), Kind.CES: (1.0, 7.0)}.get(kind, (0.0, 100.0))
    found = index_of(kind, given_)
    if found is None:
        return
    assert scale[0] <= found.value <= scale[1]
    if found.low is not None and found.high is not None:
        assert scale[0] <= found.low <= found.high <= scale[1]
        if kind is not Kind.NPS:  # its interval is about the adjusted value
            assert found.low - 1e-9 <= found.value <= found.high + 1e-9


@given(st.lists(st.integers(0, 200), min_size=4, max_size=4))
def test_turning_the_smileys_round_turns_the_index_round(given_: list[int]) -> None:
    found, turned = smiley_index(given_), smiley_index(given_[::-1])
    if found is not None:
        assert some(turned).value == pytest.approx(100 - found.value)
