"""What is expected of a counter, what is imputed to it, and how sure that is."""

import random
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from server.insight import imputation
from server.insight.imputation import (
    USUAL,
    Kind,
    Known,
    Part,
    SiteModel,
    Trial,
    bounds,
    fitting,
    quantile,
    spread_of,
)
from server.insight.profile import (
    FEW,
    Cell,
    Counter,
    expectations,
    levels,
    longest_without,
    site_coverage,
    typical,
)

FIRST = 738_521  # a Monday, as an ordinal
HOURS = range(10, 18)


def week_cells(weeks: int) -> list[Cell]:
    """Return open hours of whole weeks."""
    return [
        Cell(at := day * 86_400 + hour * 3600, at + 3600, day % 7 * 24 + hour, FIRST + day, 3600)
        for day in range(weeks * 7)
        for hour in HOURS
    ]


def full(counts: list[float]) -> Counter:
    return Counter(counts, [1.0] * len(counts))


def hide(counter: Counter, *hidden: int, coverage: float = 0.0) -> Counter:
    """Return a counter that did not observe some cells."""
    return Counter(
        [None if at in hidden else count for at, count in enumerate(counter.visits)],
        [coverage if at in hidden else covered for at, covered in enumerate(counter.coverage)],
    )


def poisson(cells: list[Cell], rate: float, seed: int) -> Counter:
    rng = np.random.default_rng(seed)
    return full([float(n) for n in rng.poisson(rate, len(cells))])


def slow_expectation(cells: list[Cell], counter: Counter, at: int) -> float | None:
    """The rule as the docstring words it, one cell at a time."""
    own = cells[at]
    comparable = [
        counter.visits[n] or 0.0
        for n, cell in enumerate(cells)
        if cell.slot == own.slot
        and cell.open_s == own.open_s
        and cell.usual
        and own.day - 84 <= cell.day < own.day
        and (counter.coverage[n] or 0.0) >= 0.98
    ][-8:]
    if len(comparable) < 3:
        return None
    found = median(comparable)
    if found >= FEW:
        return found
    return float(mean(min(count, found + 5 * max(1.0, found**0.5)) for count in comparable))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 60), st.floats(0, 0.5))
def test_the_expectation_is_that_of_the_last_eight_comparable_weeks(
    seed: int, rate: float, dark: float
) -> None:
    rng = random.Random(seed)
    cells = [
        cell._replace(usual=rng.random() > 0.05, open_s=rng.choice((3600, 3600, 3600, 1800)))
        for cell in week_cells(16)
    ]
    counter = poisson(cells, rate, seed)
    counter = hide(counter, *(at for at in range(len(cells)) if rng.random() < dark))
    found = expectations(cells, counter)
    for at in rng.sample(range(len(cells)), 40):
        assert found[at] == pytest.approx(slow_expectation(cells, counter, at))


def test_closed_time_expects_nobody_and_tells_nothing() -> None:
    cells = [cell._replace(open_s=0) for cell in week_cells(10)]
    assert set(expectations(cells, poisson(cells, 20, 1))) == {0.0}


def test_nothing_is_expected_of_a_counter_without_three_weeks() -> None:
    cells = week_cells(5)
    found = expectations(cells, poisson(cells, 20, 1))
    at = {cell.day: n for n, cell in enumerate(cells)}
    assert found[at[FIRST + 20]] is None
    assert found[at[FIRST + 21]] is not None


@given(st.lists(st.integers(0, 8), min_size=3, max_size=8), st.integers(500, 900))
def test_one_night_with_a_crowd_does_not_become_the_rule(counts: list[int], crowd: int) -> None:
    quiet = [float(count) for count in counts]
    usual, after = typical(quiet), typical([*quiet[1:], float(crowd)])
    assert usual is not None
    assert after is not None
    assert after <= usual + 5 * max(1.0, max(quiet) ** 0.5) + max(quiet)


def slow_level(days: list[tuple[float, float]]) -> tuple[float, float]:
    """The level after days of (counted, expected), the earliest first, and its variance."""
    weights = [0.87**ago for ago in range(len(days))][::-1]
    counted = sum(w * c for w, (c, _) in zip(weights, days, strict=True))
    level = counted / sum(w * e for w, (_, e) in zip(weights, days, strict=True))
    spread = sum((w * (c - level * e)) ** 2 for w, (c, e) in zip(weights, days, strict=True))
    return level, 1.7 * spread / counted**2


def test_the_level_is_what_was_counted_over_what_was_expected_lately() -> None:
    cells = week_cells(12)
    begin = FIRST + 70
    counter = full([30.0 if cell.day >= begin else 20.0 for cell in cells])
    found = levels(cells, counter, expectations(cells, counter))
    for day in range(14):
        days = [(160.0, 160.0)] * (14 - day) + [(240.0, 160.0)] * day
        level, variance = slow_level(days)
        assert found[begin + day].factor == pytest.approx(level)
        assert found[begin + day].variance == pytest.approx(variance)
    assert found[begin].factor == 1


def test_a_dead_main_door_hurts_more_than_a_dead_side_door() -> None:
    expected = [3600.0, 3600.0, 3600.0]
    weights = [0.8, 0.15, 0.05]
    assert site_coverage([0.0, 3600.0, 3600.0], expected, weights) == pytest.approx(0.2)
    assert site_coverage([3600.0, 3600.0, 0.0], expected, weights) == pytest.approx(0.95)
    assert site_coverage([3600.0, 3600.0, 0.0], expected, [None, 0.1, 0.1]) == pytest.approx(2 / 3)
    assert site_coverage([0.0], [0.0], [1.0]) is None


@given(
    st.lists(
        st.tuples(st.floats(0, 3600), st.floats(1, 3600), st.floats(0.01, 1)),
        min_size=1,
        max_size=6,
    )
)
def test_coverage_by_traffic_lies_between_that_of_the_best_and_the_worst_door(
    doors: list[tuple[float, float, float]],
) -> None:
    observed, expected, weights = (list(column) for column in zip(*doors, strict=True))
    each = [min(1.0, v / e) for v, e, _ in doors]
    found = site_coverage(observed, expected, weights)
    assert found is not None
    assert min(each) - 1e-9 <= found <= max(each) + 1e-9


def test_a_counter_beside_live_ones_is_imputed_by_its_share() -> None:
    cells = week_cells(12)
    at = len(cells) - 3
    doors = [full([rate] * len(cells)) for rate in (60.0, 30.0, 10.0)]
    doors[1] = hide(doors[1], at)
    doors[0] = Counter(
        [90.0 if n == at else c for n, c in enumerate(doors[0].visits)], doors[0].coverage
    )
    model = SiteModel(cells, doors)
    found = model.missing(at)
    assert found is not None
    p = 0.3
    assert found.mean == pytest.approx((90 + 10) * p / (1 - p))
    assert [part.kind for part in found.parts] == [Kind.SHARE]
    assert model.coverage([at]) == pytest.approx(2 / 3)  # as it is: by traffic it would be .7


def test_all_dead_is_the_median_times_the_level() -> None:
    cells = week_cells(12)
    at = len(cells) - 3
    counts = [40.0 if cell.day >= FIRST + 77 else 20.0 for cell in cells]
    found = SiteModel(cells, [hide(full(counts), at)]).missing(at)
    assert found is not None
    level, _ = slow_level([(160.0, 160.0)] * 8 + [(320.0, 160.0)] * 6)
    assert found.mean == pytest.approx(20 * level)


def test_doors_that_are_all_out_are_as_sure_as_their_site_as_one() -> None:
    cells = week_cells(40)
    rng = np.random.default_rng(4)
    people = rng.poisson(90 * rng.gamma(20, 1 / 20, len(cells)))
    left = rng.binomial(people, 0.4)
    at = len(cells) - 3
    one = SiteModel(cells, [hide(full([float(n) for n in people]), at)])
    doors = [hide(full([float(n) for n in each]), at) for each in (left, people - left)]
    two = SiteModel(cells, doors)
    alone, both = one.missing(at), two.missing(at)
    assert alone is not None
    assert both is not None
    assert both.mean == pytest.approx(alone.mean, rel=0.05)
    width = [m.interval(f.parts) for m, f in ((one, alone), (two, both))]
    assert width[1].high95 - width[1].low95 == pytest.approx(
        width[0].high95 - width[0].low95, rel=0.15
    )


def test_what_was_counted_in_part_of_an_hour_stays_and_the_rest_is_imputed() -> None:
    cells = week_cells(12)
    at = len(cells) - 3
    found = SiteModel(cells, [hide(full([20.0] * len(cells)), at, coverage=0.75)]).missing(at)
    assert found is not None
    assert found.mean == pytest.approx(5.0)


def test_nothing_is_imputed_after_seven_days_without_a_measurement() -> None:
    cells = week_cells(14)
    begin = 12 * 7 * len(HOURS)
    hidden = range(begin, len(cells))
    model = SiteModel(cells, [hide(full([20.0] * len(cells)), *hidden)])
    means = [(cells[at].day, missing.mean) for at in hidden if (missing := model.missing(at))]
    assert len(means) == len(hidden)
    assert all(found is not None for day, found in means if day < cells[begin].day + 7)
    assert all(found is None for day, found in means if day > cells[begin].day + 7)
    silent = longest_without(cells, model.counters[0], most_days=7)
    assert not any(silent[:begin])


def test_a_known_sum_is_spread_and_adds_up() -> None:
    cells = week_cells(12)
    begin = len(cells) - 2 * len(HOURS)
    hidden = range(begin, begin + len(HOURS))
    counts = [10.0 * (1 + at % len(HOURS)) for at in range(len(cells))]
    known = Known(cells[begin].start_s, cells[hidden[-1]].end_s, 333.0)
    model = SiteModel(cells, [hide(full(counts), *hidden)], [[known]])
    found = [model.missing(at) for at in hidden]
    means = [each.mean or 0.0 for each in found if each is not None]
    assert sum(means) == pytest.approx(333)
    assert means[3] == pytest.approx(333 * 4 / 36)
    parts = [part for each in found if each is not None for part in each.parts]
    whole = model.interval(parts)
    assert whole.low95 == pytest.approx(333)
    assert whole.high95 == pytest.approx(333)
    some = model.interval(parts[:4])
    assert some.low95 < sum(means[:4]) < some.high95


def test_what_is_expected_in_a_gap_is_worked_out_once_and_not_for_each_of_its_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = week_cells(12)
    hidden = range(len(cells) - 7 * len(HOURS), len(cells))
    known = Known(cells[hidden[0]].start_s, cells[-1].end_s, 500.0)
    others = hide(full([20.0] * len(cells)), *hidden)
    model = SiteModel(cells, [others, others], [[known], [known]])
    looked, overlap = 0, imputation._overlap

    def counted(known: Known, cell: Cell) -> float:
        nonlocal looked
        looked += 1
        return overlap(known, cell)

    monkeypatch.setattr(imputation, "_overlap", counted)
    means = [missing.mean or 0.0 for at in hidden if (missing := model.missing(at)) is not None]
    assert sum(means) == pytest.approx(2 * 500)
    assert looked == 2 * 2 * len(hidden)  # of each counter: its weights, and each cell's own


@settings(max_examples=200, deadline=None)
@given(st.floats(0.05, 3000), st.floats(0.2, 500), st.sampled_from((0.025, 0.1, 0.9, 0.975)))
def test_quantiles_are_those_of_the_negative_binomial(average: float, k: float, q: float) -> None:
    p = k / (k + average)
    found = quantile(average, k, q)
    law = stats.nbinom(k, p)
    assert law.cdf(found) >= q - 1e-9
    assert found == 0 or law.cdf(found - 1) < q + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.floats(0.1, 2000), st.floats(0, 3), st.floats(0.01, 2))
def test_a_wider_interval_holds_the_narrower(average: float, more: float, excess: float) -> None:
    variance = average + excess * average**2
    low80, high80 = bounds(average, variance, 0.8)
    low95, high95 = bounds(average, variance * (1 + more), 0.95)
    assert low95 <= low80 <= high80 <= high95


def test_the_spread_found_is_that_of_the_counts() -> None:
    rng = np.random.default_rng(7)
    means = rng.uniform(5, 80, 4000)
    for k in (5.0, 30.0):
        counts = rng.negative_binomial(k, k / (k + means))
        tests = [Trial(0, float(y), float(m)) for y, m in zip(counts, means, strict=True)]
        for v in fitting(tests, (0.8, 0.95)):
            assert v == pytest.approx(1 / k, rel=0.3)


def test_intervals_hold_what_they_promise_also_where_tails_are_heavy() -> None:
    rng = np.random.default_rng(3)
    means = rng.uniform(20, 80, 8000)
    wild = np.where(rng.random(8000) < 0.05, 2.0, 1.0)
    counts = rng.poisson(means * rng.gamma(25, 1 / 25, 8000) * wild)
    tests = [Trial(0, float(y), float(m)) for y, m in zip(counts, means, strict=True)]
    v80, v95 = fitting(tests[:4000], (0.8, 0.95))
    assert v95 > 1.5 * v80
    for v, share in ((v80, 0.8), (v95, 0.95)):
        held = 0
        for _, y, m in tests[4000:]:
            low, high = bounds(m, m + v * m * m, share)
            held += low <= y <= high
        assert held / 4000 == pytest.approx(share, abs=0.02)


def test_the_hours_of_a_day_that_err_together_make_a_wider_sum() -> None:
    rng = np.random.default_rng(5)
    together: list[Trial] = []
    apart: list[Trial] = []
    for day in range(400):
        factor = rng.gamma(25, 1 / 25)
        together += [Trial(day, float(rng.poisson(60 * factor)), 60.0) for _ in range(10)]
        apart += [
            Trial(day, float(rng.poisson(60 * rng.gamma(25, 1 / 25))), 60.0) for _ in range(10)
        ]
    assert spread_of(together).of_day > 0.7
    assert spread_of(apart).of_day < 0.3
    assert spread_of(together[:40]) == USUAL


def test_the_sum_of_a_day_is_less_sure_if_its_hours_err_together() -> None:
    cells = week_cells(40)
    rng = np.random.default_rng(11)
    day_factor = {cell.day: rng.gamma(20, 1 / 20) for cell in cells}
    common = full([float(rng.poisson(60 * day_factor[cell.day])) for cell in cells])
    single = full([float(rng.poisson(60 * rng.gamma(20, 1 / 20))) for cell in cells])
    widths = []
    for counter in (common, single):
        model = SiteModel(cells, [counter])
        day = cells[-1].day
        parts = [Part(Kind.SITE, day, 60.0) for _ in HOURS]
        found = model.interval(parts)
        widths.append(found.high95 - found.low95)
    assert widths[0] > 1.5 * widths[1]


def test_what_is_expected_of_a_day_depends_on_nothing_of_it_or_later() -> None:
    cells = week_cells(30)
    counter = poisson(cells, 25, 2)
    at = 25 * 7 * len(HOURS) + 2
    later = [n for n, cell in enumerate(cells) if cell.day >= cells[at].day]
    other = Counter(
        [900.0 if n in set(later) else c for n, c in enumerate(counter.visits)], counter.coverage
    )
    one, two = (SiteModel(cells, [hide(each, at)]) for each in (counter, other))
    first, second = one.missing(at), two.missing(at)
    assert first is not None
    assert second is not None
    assert first == second
    assert one.interval(first.parts) == two.interval(second.parts)
