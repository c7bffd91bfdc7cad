"""Calibration weights: reversed lines, factors, and where they change."""

from hypothesis import given
from hypothesis import strategies as st

from server.rollup.places import Calibration
from server.rollup.rows import people
from server.rollup.sums import PLAIN, UNIT, segments, weigh

counts8 = st.lists(st.integers(0, 32_767), min_size=8, max_size=8)
EVER = 1 << 40


def calibration(
    line: int = 0,
    start_s: int = -EVER,
    end_s: int = EVER,
    *,
    turned: bool = False,
    factor_e4: int = UNIT,
    key: int = 1,
) -> Calibration:
    return Calibration(key, line, start_s, end_s, turned, factor_e4)


@given(counts8)
def test_without_calibration_visits_are_the_sum_of_in(counts: list[int]) -> None:
    assert weigh(counts, PLAIN) == (UNIT * sum(counts[::2]), UNIT * sum(counts[1::2]))


@given(counts8)
def test_a_reversed_line_swaps_in_and_out(counts: list[int]) -> None:
    (segment,) = segments([calibration(2, turned=True)])
    swapped = [*counts[:4], counts[5], counts[4], *counts[6:]]
    assert weigh(counts, segment.weights) == weigh(swapped, PLAIN)


def test_a_factor_is_applied_exactly() -> None:
    (segment,) = segments([calibration(factor_e4=10_250)])
    entered, left = weigh([1000, 400, 0, 0, 0, 0, 0, 0], segment.weights)
    assert (people(entered), people(left)) == (1025, 410)
    assert people(weigh([1, 0, 0, 0, 0, 0, 0, 0], segment.weights)[0]) == 1.025


def test_time_is_cut_where_a_calibration_changes_and_each_piece_names_its_own() -> None:
    found = segments(
        [
            calibration(0, end_s=900, turned=True, key=1),
            calibration(0, 900, key=2),
            calibration(1, 1800, factor_e4=5_000, key=3),
        ]
    )
    assert [(s.start_s, s.end_s, s.calibrations) for s in found] == [
        (-EVER, 900, (1,)),
        (900, 1800, (2,)),
        (1800, EVER, (2, 3)),
    ]
    assert found[0].weights[:2] == (0, UNIT)
    assert found[2].weights[2:4] == (5_000, 0)
