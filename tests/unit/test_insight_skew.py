"""A till's clock, recovered from shops whose people are made up one by one."""

import random
from math import log

import pytest

from server.insight.skew import BIN_MIN, BINS, DAYS, Skew, Unsaid, estimate

Day = tuple[list[float], list[float | None]]


def shop(
    rng: random.Random,
    *,
    skew_min: float,
    visits: int = 400,
    buyers: float = 0.3,
    days: int = DAYS,
    together: bool = True,
) -> list[Day]:
    """Days of a shop: people come, stay (lognormal, median 12 min), some buy just before they go.

    `together` false: as many sales as that, at times that have nothing to do with anybody.
    """
    found: list[Day] = []
    for _ in range(days):
        sold, left = [0.0] * BINS, [0.0] * BINS
        for _ in range(round(rng.gauss(visits, visits**0.5))):
            entered = rng.triangular(9 * 60, 20 * 60, 16 * 60)
            stay = rng.lognormvariate(log(12), 0.6)
            out = entered + stay
            left[min(BINS - 1, int(out / BIN_MIN))] += 1
            if rng.random() < buyers:
                at = (
                    out - rng.uniform(1, 4)
                    if together
                    else rng.triangular(9 * 60, 20 * 60, 16 * 60)
                )
                sold[min(BINS - 1, max(0, int((at + skew_min) / BIN_MIN)))] += 1
        found.append((sold, list(left)))
    return found


@pytest.mark.parametrize("skew_min", [-20, -11, -5, -2, 0, 3, 7, 13, 20])
def test_the_skew_of_a_till_is_recovered(skew_min: int) -> None:
    found = estimate(shop(random.Random(skew_min + 100), skew_min=skew_min))
    assert found.unsaid is None
    assert found.minutes == pytest.approx(skew_min, abs=2)
    assert (found.low or 0) <= skew_min <= (found.high or 0)


def test_the_interval_holds_the_skew_nearly_always() -> None:
    held = said = 0
    for seed in range(60):
        skew_min = random.Random(seed).uniform(-20, 20)
        found = estimate(shop(random.Random(seed), skew_min=skew_min, visits=200))
        if found.unsaid is None:
            said += 1
            held += (found.low or 0) <= skew_min <= (found.high or 0)
    assert said >= 50
    assert held >= 0.93 * said


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_said_of_sales_that_have_nothing_to_do_with_the_door(seed: int) -> None:
    found = estimate(shop(random.Random(seed), skew_min=0, together=False))
    assert found.minutes is None
    assert found.unsaid is Unsaid.NOT_CLEAR


def test_missing_minutes_are_no_zeros() -> None:
    rng = random.Random(3)
    days: list[Day] = [
        (sold, [None if (n + at) % 5 == 0 else count for at, count in enumerate(left)])
        for n, (sold, left) in enumerate(shop(rng, skew_min=-8))
    ]
    found = estimate(days)
    assert found.minutes == pytest.approx(-8, abs=2.5)


def test_too_little_says_nothing_and_why() -> None:
    rng = random.Random(4)
    assert estimate([]) == Skew(None, None, None, 0, 0, None, Unsaid.NO_SALES)
    assert estimate(shop(rng, skew_min=0, days=6)).unsaid is Unsaid.TOO_FEW_DAYS
    assert estimate(shop(rng, skew_min=0, visits=20)).unsaid is Unsaid.TOO_FEW_SALES
    blind: list[Day] = [(sold, [None] * BINS) for sold, _ in shop(rng, skew_min=0)]
    assert estimate(blind).unsaid is Unsaid.TOO_FEW_DAYS


def test_a_clock_is_off_only_where_the_interval_excludes_that_it_is_right() -> None:
    assert estimate(shop(random.Random(5), skew_min=12)).is_off
    assert not estimate(shop(random.Random(5), skew_min=0)).is_off
