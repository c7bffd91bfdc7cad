"""Sites beside each other: who is outside the funnel, and who ranks before whom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from server.insight.peers import (
    ALARM,
    LEAST_SITES,
    WARN,
    Chain,
    Outside,
    Series,
    compare,
)


def chain(
    effects: list[float],
    *,
    events: float | list[float] = 400.0,
    weeks: int = 12,
    dispersion: float = 1.0,
    lag1: float = 0.0,
    seed: int = 1,
    shared: float = 0.0,
) -> list[Series]:
    """Return series of sites whose weeks vary by `dispersion` times what counting makes them."""
    draws = np.random.default_rng(seed)
    sizes = events if isinstance(events, list) else [events] * len(effects)
    season = draws.normal(0, shared, weeks)
    found = []
    for number, (effect, n) in enumerate(zip(effects, sizes, strict=True)):
        sd = (dispersion * weeks / n) ** 0.5  # n are the events of all weeks together
        noise = [draws.normal(0, sd)]
        for _ in range(weeks - 1):
            noise.append(lag1 * noise[-1] + draws.normal(0, sd * (1 - lag1**2) ** 0.5))
        ratios = [effect + float(e + s) for e, s in zip(noise, season, strict=True)]
        found.append(Series(f"s{number}", ratios, [n / weeks] * weeks))
    return found


def compared(series: list[Series]) -> Chain:
    found = compare(series)
    assert found is not None
    return found


def test_the_limits_of_the_funnel_are_those_of_the_normal_at_95_and_998() -> None:
    for limit, share in ((WARN, 0.975), (ALARM, 0.999)):
        assert limit == pytest.approx(stats.norm.ppf(share))
    found = compared(chain([0.0] * 20))
    for n in (10.0, 400.0):
        assert found.limits(n) == pytest.approx(
            (WARN * (found.dispersion / n) ** 0.5, ALARM * (found.dispersion / n) ** 0.5)
        )


@pytest.mark.parametrize(("dispersion", "lag1"), [(1.0, 0.0), (9.0, 0.0), (9.0, 0.5)])
def test_of_sites_that_do_not_differ_few_are_outside(dispersion: float, lag1: float) -> None:
    """Of 2,000, 4 would be at most by chance if the limits were exact; they are estimated."""
    outside = beyond = 0
    for seed in range(50):
        found = compared(
            chain([0.0] * 40, dispersion=dispersion, lag1=lag1, seed=seed, weeks=16, shared=0.2)
        )
        outside += sum(place.outside is not None for place in found.places)
        beyond += sum(abs(p.ratio) > found.limits(p.events)[0] for p in found.places)
    assert outside <= 20
    assert 0.02 <= beyond / 2000 <= 0.08


def test_the_dispersion_is_what_the_weeks_were_made_with() -> None:
    for dispersion, lag1 in ((1.0, 0.0), (4.0, 0.0), (4.0, 0.4)):
        found = [
            compared(
                chain([0.1, -0.1] * 30, dispersion=dispersion, lag1=lag1, seed=seed, weeks=26)
            ).dispersion
            for seed in range(8)
        ]
        wanted = dispersion * (1 + lag1) / (1 - lag1)
        assert np.mean(found) == pytest.approx(wanted, rel=0.12)


def test_a_site_that_does_differ_is_outside_and_ranks_alone() -> None:
    found = compared(chain([0.0] * 8 + [0.5, -0.6], events=4000.0))
    by_ref = {place.ref: place for place in found.places}
    assert (by_ref["s8"].outside, by_ref["s8"].rank) == (Outside.ABOVE, "1")
    assert (by_ref["s9"].outside, by_ref["s9"].rank) == (Outside.BELOW, "10")
    assert {by_ref[f"s{n}"].rank for n in range(8)} == {"2–9"}
    assert found.places[0].ref == "s8"


def test_the_same_difference_of_a_small_site_is_not_outside() -> None:
    found = compared(chain([0.3, 0.3, *[0.0] * 8], events=[40.0, 40_000.0, *[4000.0] * 8]))
    small, large = sorted((p for p in found.places if p.ref in ("s0", "s1")), key=lambda p: p.ref)
    assert small.outside is None
    assert large.outside is Outside.ABOVE
    assert abs(small.shrunk) < abs(small.ratio)
    assert abs(small.shrunk / small.ratio) < abs(large.shrunk / large.ratio)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-0.5, 0.5), min_size=LEAST_SITES, max_size=9),
    st.integers(0, 1000),
    st.sampled_from([50.0, 1000.0, 20_000.0]),
)
def test_a_rank_is_given_only_where_intervals_part(
    effects: list[float], seed: int, events: float
) -> None:
    found = compared(chain(effects, seed=seed, events=events)).places
    for place in found:
        above = [other for other in found if other.low > place.high]
        below = [other for other in found if other.high < place.low]
        assert place.best_rank == len(above) + 1
        assert place.worst_rank == len(found) - len(below)
        for other in above:
            assert other.best_rank < place.best_rank or other.worst_rank < place.worst_rank
    ranks = [place.rank for place in found if "–" not in place.rank]
    assert len(ranks) == len(set(ranks))


def test_shrunk_values_are_nearer_to_the_truth() -> None:
    draws, raw, shrunk = np.random.default_rng(3), 0.0, 0.0
    for seed in range(30):
        effects = list(draws.normal(0, 0.05, 20))
        found = compared(chain(effects, events=300.0, seed=seed))
        for place in found.places:
            truth = effects[int(place.ref[1:])] - np.mean(effects)
            raw += (place.ratio - truth) ** 2
            shrunk += (place.shrunk - truth) ** 2
    assert shrunk < 0.8 * raw


def test_a_site_that_was_observed_in_good_weeks_alone_is_not_a_good_one() -> None:
    season = [0.0] * 6 + [0.8] * 6
    series = [Series(f"s{n}", season, [500.0] * 12) for n in range(6)]
    series.append(Series("late", [None] * 6 + [0.8] * 6, [500.0] * 12))
    by_ref = {place.ref: place for place in compared(series).places}
    assert by_ref["late"].ratio == pytest.approx(0, abs=1e-6)
    assert by_ref["late"].weeks == 6


def test_too_few_sites_are_not_compared() -> None:
    series = chain([0.0] * 6)
    short = [Series(each.ref, [*each.ratios[:3], *[None] * 9], each.events) for each in series[:2]]
    assert compare(series[:4]) is None
    assert compare([*short, *series[2:]]) is None
    assert compare(series) is not None
