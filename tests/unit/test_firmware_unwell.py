"""The guard by health: what it calls worse, held to scipy and to chance."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from server.firmware.unwell import P_MOST, Compared


@given(st.integers(1, 300), st.integers(0, 300), st.integers(1, 300), st.integers(0, 300))
def test_its_p_is_that_of_fishers_exact_test(
    updated: int, updated_ill: int, waiting: int, waiting_ill: int
) -> None:
    updated_ill, waiting_ill = min(updated, updated_ill), min(waiting, waiting_ill)
    table = [[updated_ill, updated - updated_ill], [waiting_ill, waiting - waiting_ill]]
    wanted = fisher_exact(table, alternative="greater").pvalue
    found = Compared(updated, updated_ill, waiting, waiting_ill).p
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_it_calls_worse_what_chance_does_not_do() -> None:
    assert Compared(10, 5, 500, 5).worse
    assert not Compared(10, 2, 500, 0).worse  # too few to say
    assert not Compared(100, 4, 500, 10).worse
    assert not Compared(10, 10, 0, 0).worse  # nobody to compare with
    assert not Compared(100, 90, 500, 450).worse  # all of them are: that is no update's doing


def test_it_errs_as_rarely_as_it_says() -> None:
    rng = random.Random(4)
    false = 0
    for _ in range(2_000):
        ill = [sum(rng.random() < 0.05 for _ in range(n)) for n in (40, 400)]
        false += Compared(40, ill[0], 400, ill[1]).worse
    assert false <= 2 + 2_000 * P_MOST
