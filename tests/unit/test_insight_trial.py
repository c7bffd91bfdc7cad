"""Trials in pairs: the test against scipy and against all assignments, the draw, what is found."""

import hashlib
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from server.insight import trial
from server.insight.trial import (
    Arm,
    Candidate,
    Excluded,
    Pair,
    Spread,
    Standing,
    Week,
    commitment,
    detectable,
    draw,
    effect_of,
    holm,
    least_pairs,
    matched,
    spread_of,
    standing_of,
)

VALUES = st.floats(-1, 1, allow_nan=False).map(lambda v: round(v, 4))
DIFFERENCES = st.lists(VALUES, min_size=1, max_size=8)
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def rng() -> random.Random:
    return random.Random(5)


def slow_p(values: Sequence[float], *, shift: float = 0.0) -> float:
    """Return p over all assignments of coins, one by one."""
    moved = [v - shift for v in values]
    least = abs(sum(moved)) - 1e-9
    signs = list(product((1, -1), repeat=len(moved)))
    sums = [abs(math.fsum(s * v for s, v in zip(each, moved, strict=True))) for each in signs]
    return sum(total >= least for total in sums) / len(sums)


@given(DIFFERENCES)
@example([0.5, 0.5, -0.5, -0.5])
@example([0.0, 0.0])
def test_p_is_the_share_of_all_assignments_with_as_large_a_difference(values: list[float]) -> None:
    assert effect_of(values, rng=rng()).p == pytest.approx(slow_p(values))


@pytest.mark.parametrize("pairs", [6, 9, 12])
def test_p_is_that_of_scipys_permutation_test(pairs: int) -> None:
    values = np.random.default_rng(pairs).normal(0.04, 0.06, pairs)
    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=math.inf
    )
    effect = effect_of(list(values), rng=rng())
    assert effect.exact
    assert effect.p == pytest.approx(found.pvalue)


def test_p_of_many_pairs_is_near_scipys_and_the_same_each_time() -> None:
    values = list(np.random.default_rng(2).normal(0.02, 0.06, 25))
    found = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=3
    )
    effect = effect_of(values, rng=rng())
    assert not effect.exact
    assert effect.p == pytest.approx(found.pvalue, abs=0.012)
    assert effect == effect_of(values, rng=rng())
    classic = stats.ttest_1samp(values, 0).confidence_interval()
    assert (effect.low, effect.high) == pytest.approx(tuple(classic), abs=0.006)


@settings(deadline=None, max_examples=50)
@given(st.lists(VALUES, min_size=6, max_size=8, unique=True), st.floats(-1.2, 1.2))
def test_the_interval_holds_exactly_the_effects_that_the_test_does_not_reject(
    values: list[float], shift: float
) -> None:
    effect = effect_of(values, rng=rng())
    if min(abs(shift - effect.low), abs(shift - effect.high)) < 1e-6:
        return
    assert (effect.low < shift < effect.high) == (slow_p(values, shift=shift) > trial.ALPHA)


@pytest.mark.parametrize("pairs", range(1, 6))
def test_fewer_than_six_pairs_can_show_nothing(pairs: int) -> None:
    effect = effect_of([0.5 + n / 10 for n in range(pairs)], rng=rng())
    assert effect.p == trial.least_p(pairs) > 0.05
    assert (effect.low, effect.high) == (-math.inf, math.inf)
    assert least_pairs() == 6
    assert trial.least_p(5) == 0.0625


def test_more_metrics_need_more_pairs() -> None:
    for metrics in (1, 2, 3):
        pairs = least_pairs(metrics)
        assert metrics * 2 / 2**pairs <= 0.05 < metrics * 2 / 2 ** (pairs - 1)
    assert standing_of([0.03], pairs=6, metrics=1, over=True) is Standing.FOUND
    assert standing_of([0.03], pairs=6, metrics=2, over=True) is Standing.TOO_FEW
    assert standing_of([0.06], pairs=6, metrics=1, over=True) is Standing.NOT_FOUND


def test_an_early_look_is_no_decision_however_clear_it_seems() -> None:
    assert standing_of([0.0001], pairs=30, metrics=1, over=False) is Standing.EARLY


@given(st.lists(st.floats(0.0001, 1), min_size=1, max_size=5))
def test_holm_rejects_as_the_steps_of_its_paper_do(values: list[float]) -> None:
    names = {str(number): p for number, p in enumerate(values)}
    adjusted = holm(names)
    rejecting = True
    for rank, name in enumerate(sorted(names, key=lambda name: names[name])):
        rejecting = rejecting and names[name] * (len(names) - rank) <= 0.05
        assert (adjusted[name] <= 0.05) == rejecting
        assert adjusted[name] >= names[name]


# -- the draw ------------------------------------------------------------------------------------


def test_anyone_can_recompute_the_draw_and_its_seal_with_a_hash_alone() -> None:
    seed, design = bytes(range(32)), '{"pairs":[["a","b"],["c","d"]]}'
    text = f"{seed.hex()}\n2026-03-01T12:00:00+00:00\n{design}"
    assert commitment(seed, AT, design) == hashlib.sha256(text.encode()).hexdigest()
    for number, coin in enumerate(draw(seed, design, pairs=40)):
        line = f"{seed.hex()}\n{number}\n{design}".encode()
        assert coin == hashlib.sha256(line).digest()[0] % 2


@given(st.binary(min_size=32, max_size=32), st.text(max_size=20))
def test_another_seed_time_or_design_has_another_seal(seed: bytes, design: str) -> None:
    other = bytes([seed[0] ^ 1]) + seed[1:]
    sealed = commitment(seed, AT, design)
    assert sealed != commitment(other, AT, design)
    assert sealed != commitment(seed, AT.replace(second=1), design)
    assert sealed != commitment(seed, AT, design + " ")


def test_the_coins_are_fair_and_independent() -> None:
    rows = np.array([draw(n.to_bytes(32, "big"), "x", pairs=12) for n in range(4000)])
    ones = rows.sum()
    assert stats.binomtest(int(ones), rows.size).pvalue > 0.001
    table = np.histogram2d(rows[:, 0], rows[:, 1], bins=2)[0]
    assert stats.chi2_contingency(table).pvalue > 0.001
    heads = np.bincount(rows.sum(axis=1), minlength=13)
    expected = stats.binom.pmf(np.arange(13), 12, 0.5) * len(rows)
    assert stats.chisquare(heads[2:11], expected[2:11] * heads[2:11].sum() / expected[2:11].sum()
                           ).pvalue > 0.001  # fmt: skip


# -- matching ------------------------------------------------------------------------------------


def candidates(levels: dict[str, float], *, block: str = "") -> list[Candidate]:
    return [
        Candidate(ref, {"visits": [level * (1 + 0.01 * (n % 3)) for n in range(12)]}, block)
        for ref, level in levels.items()
    ]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 1000), min_size=4, max_size=6, unique=True))
def test_no_swap_of_two_pairs_would_match_better(levels: list[int]) -> None:
    found = matched(candidates({f"s{n}": float(level) for n, level in enumerate(levels)}))
    assert len(found) == len(levels) // 2
    used = [ref for pair in found for ref in (pair.first, pair.second)]
    assert len(set(used)) == len(used)
    scale = np.std([math.log(level) for level in levels])  # nobody's trend differs

    def far(a: str, b: str) -> float:
        return float(abs(math.log(levels[int(a[1:])] / levels[int(b[1:])])) / scale)

    total = sum(far(pair.first, pair.second) for pair in found)
    for a, b, c, d in permutations(used, 4):
        rest = [p for p in found if not {p.first, p.second} & {a, b, c, d}]
        if len(rest) == len(found) - 2:
            other = far(a, b) + far(c, d) + sum(far(p.first, p.second) for p in rest)
            assert total <= other + 1e-6


def test_pairs_are_alike_in_level_and_trend() -> None:
    grown = {f"grown{n}": [100 * 1.02**week for week in range(12)] for n in range(2)}
    flat = {f"flat{n}": [112.0 + week % 2 for week in range(12)] for n in range(2)}
    found = matched([Candidate(ref, {"visits": s}) for ref, s in {**grown, **flat}.items()])
    assert {(p.first, p.second) for p in found} == {("flat0", "flat1"), ("grown0", "grown1")}


def test_only_sites_of_one_block_are_paired_and_those_without_a_history_not_at_all() -> None:
    one = candidates({"a": 100, "b": 101, "c": 300}, block="north")
    two = candidates({"d": 300, "e": 900}, block="south")
    dark = Candidate("f", {"visits": [None] * 6 + [300.0] * 6}, "north")
    found = matched([*one, *two, dark])
    assert {(p.first, p.second) for p in found} == {("a", "b"), ("d", "e")}


# -- what is compared ----------------------------------------------------------------------------


def weeks(*values: float | None, coverage: float = 1.0) -> list[Week]:
    return [Week(value, coverage) for value in values]


def pair(**changed: Arm) -> Pair:
    arms = {
        "treated": Arm(weeks(100, 100, 100, 100), weeks(112, 112, 112, 112)),
        "control": Arm(weeks(50, 50, 50, 50), weeks(55, 55, 55, 55)),
    }
    return Pair(**{**arms, **changed})


def test_the_estimator_is_the_ratio_of_ratios() -> None:
    [relative, _, _] = effect_of([pair().difference] * 6, rng=rng()).relative
    assert pair().excluded is None
    assert relative == pytest.approx(1.12 / 1.10 - 1)


def test_a_week_missing_at_one_site_is_left_out_at_both() -> None:
    season = [80.0, 200.0, 90.0, 100.0]
    treated = Arm(weeks(*season), [Week(2 * v, 1) for v in season])
    control = Arm(weeks(40, 100, 45, 50), [Week(80, 1), Week(20, 0.85), Week(90, 1), Week(100, 1)])
    found = pair(treated=treated, control=control)
    assert found.excluded is None
    assert found.difference == pytest.approx(0)


@pytest.mark.parametrize(
    ("arm", "why"),
    [
        (Arm(weeks(1, 1, 1, 1), weeks(1, 1, 1, 1), changed=True), Excluded.TOPOLOGY),
        (Arm(weeks(1, 1, 1, 1), [*weeks(1, 1, 1), Week(None, None)]), Excluded.OUTAGE),
        (Arm(weeks(1, 1, 1, 1), [*weeks(1, 1, 1), Week(1, 0.4)]), Excluded.OUTAGE),
        (Arm([*weeks(1, 1), Week(1, 0.8), Week(None, None)], weeks(1, 1, 1, 1)), Excluded.COVERAGE),
        (Arm(weeks(1, 1, 1, 1), weeks(1, 1, 1, 1, coverage=0.93)), Excluded.PARITY),
        (Arm(weeks(1, 1, 1, 1), weeks(1, 0, 0, 1)), Excluded.NO_VALUES),
    ],
)
@pytest.mark.parametrize("where", ["treated", "control"])
def test_what_happened_at_one_site_takes_its_partner_out_too(
    arm: Arm, why: Excluded, where: str
) -> None:
    assert pair(**{where: arm}).excluded is why


# -- what it can find ----------------------------------------------------------------------------

PUBLISHED = {  # pairs: least change found, of 12 weeks before and 8, or 4, after
    10: (0.060, 0.076),
    20: (0.040, 0.051),
    30: (0.032, 0.041),
    100: (0.017, 0.022),
}
STREET = Spread(0.082, 0.55)
"""Eight street sensors' weekly differences of two; lag-1 correlations are .35 to .61."""


@pytest.mark.parametrize("pairs", PUBLISHED)
def test_what_can_be_found_is_about_what_is_published(pairs: int) -> None:
    """A lag-1 correlation stands for all of a street's memory: of 4 weeks it knows less."""
    for after, wanted, within in zip((8, 4), PUBLISHED[pairs], (0.05, 0.12), strict=True):
        found = detectable(STREET, pairs=pairs, before=12, after=after)
        assert found == pytest.approx(wanted, rel=within)


def test_of_six_pairs_more_is_needed_than_the_published_t_test_promises() -> None:
    """All six must point the same way: P(one does)^6 = 0.8, where t promises 8.7 %."""
    sd = trial.change_sd(STREET, before=12, after=8)
    assert math.expm1(stats.norm.ppf(0.8 ** (1 / 6)) * sd) == pytest.approx(
        detectable(STREET, pairs=6, before=12, after=8), rel=0.002
    )
    t = stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)
    assert math.expm1(t * sd / math.sqrt(6)) == pytest.approx(0.087, rel=0.06)


def autocorrelated(
    draws: np.random.Generator, spread: Spread, rows: int, weeks: int
) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    found = np.empty((rows, weeks))
    found[:, 0] = draws.normal(0, spread.sd, rows)
    step = spread.sd * math.sqrt(1 - spread.lag1**2)
    for week in range(1, weeks):
        found[:, week] = spread.lag1 * found[:, week - 1] + draws.normal(0, step, rows)
    return found


@pytest.mark.parametrize(("pairs", "metrics"), [(6, 1), (8, 1), (9, 2), (12, 3), (20, 1)])
def test_the_change_that_can_be_found_is_found_in_four_of_five_trials(
    pairs: int, metrics: int
) -> None:
    least = math.log1p(detectable(STREET, pairs=pairs, before=12, after=8, metrics=metrics))
    draws, found, trials = (
        np.random.default_rng(pairs),
        0,
        (300, 100, 30)[(pairs > 9) + (pairs > 12)],
    )
    for _ in range(trials):
        d = autocorrelated(draws, STREET, pairs, 20)
        values = list(d[:, 12:].mean(1) - d[:, :12].mean(1) + least)
        found += effect_of(values, rng=rng()).p <= trial.ALPHA / metrics
    low, high = stats.binom.interval(0.999, trials, 0.8)
    assert low <= found <= high


@pytest.mark.parametrize("lag1", [0.0, 0.35, 0.6])
def test_the_spread_is_found_again_in_a_short_history(lag1: float) -> None:
    wanted = Spread(0.082, lag1)
    series = autocorrelated(np.random.default_rng(4), wanted, 400, 20)
    found = spread_of([list(row + 3) for row in series])
    assert found is not None
    assert found.sd == pytest.approx(wanted.sd, rel=0.06)
    assert found.lag1 == pytest.approx(lag1, abs=0.06)


@given(st.floats(0.6, 0.999), st.integers(11, 300))
def test_students_t_is_scipys(p: float, free: int) -> None:
    assert trial._t(p, free) == pytest.approx(stats.t.ppf(p, free), rel=2e-3)
