"""What recounts say of a counter: intervals that hold what they promise, factors that mend."""

import random
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.insight.accuracy import (
    LEAST_PEOPLE,
    PRIOR_BLOCKS,
    Block,
    NoProposal,
    Part,
    Proposal,
    Standing,
    State,
    assess,
    combined,
    expires,
    merged,
    pooled,
    propose,
    state_of,
)

DAY = date(2026, 4, 1)
counts = st.integers(0, 400)


def blocks(*seen_and_counted: tuple[float, float]) -> list[Block]:
    return [
        Block(float(n), seen, seen, counted, counted)
        for n, (seen, counted) in enumerate(seen_and_counted)
    ]


def test_one_block_has_the_poisson_noise_of_both_counts() -> None:
    found = pooled([(400, 360)])
    half = stats.t.ppf(0.975, PRIOR_BLOCKS) * (1 / 400 + 1 / 360) ** 0.5
    assert found.bias == pytest.approx(-0.1)
    assert found.low == pytest.approx(0.9 * 2.718281828459045**-half - 1, rel=1e-4)
    assert found.high == pytest.approx(0.9 * 2.718281828459045**half - 1, rel=1e-4)


@given(st.lists(st.tuples(counts, counts), min_size=2, max_size=8))
def test_the_dispersion_is_that_of_a_table_of_people_and_counts(
    pairs: list[tuple[int, int]],
) -> None:
    found = pooled(pairs)
    pairs = [pair for pair in pairs if sum(pair)]
    if found.se is None or not found.counted or len(pairs) < 2:
        return
    chi = stats.chi2_contingency(pairs, correction=False).statistic
    phi = (PRIOR_BLOCKS + chi) / (PRIOR_BLOCKS + len(pairs) - 1)
    assert found.se**2 == pytest.approx(phi * (1 / found.counted + 1 / found.people))


@given(st.lists(st.tuples(counts, counts), max_size=6))
def test_blocks_are_pooled_as_a_ratio_of_sums_within_their_interval(
    pairs: list[tuple[int, int]],
) -> None:
    found = pooled(pairs)
    people = sum(seen for seen, _ in pairs)
    if people < LEAST_PEOPLE:
        assert found.bias is found.low is found.high is found.se is None
        return
    assert found.bias == pytest.approx(sum(count for _, count in pairs) / people - 1)
    assert found.bias is not None
    assert (found.low or -1) <= found.bias <= (found.high or 0)


def test_few_people_make_no_statement() -> None:
    assert pooled([(LEAST_PEOPLE - 1, 49)]).bias is None
    assert pooled([(LEAST_PEOPLE, 49)]).bias is not None


def test_more_blocks_in_which_a_counter_errs_alike_say_it_more_exactly() -> None:
    one, many = pooled([(800, 760)]), pooled([(100, 95)] * 8)
    assert one.se is not None
    assert many.se is not None
    assert many.se < one.se / 1.5


def test_a_counter_that_errs_now_and_then_is_less_sure() -> None:
    steady, fickle = pooled([(100, 90)] * 4), pooled([(100, 60), (100, 120)] * 2)
    assert steady.se is not None
    assert fickle.se is not None
    assert fickle.se > 1.4 * steady.se


@pytest.mark.parametrize("wobble", [0.0, 0.15])
def test_the_interval_holds_the_true_error_in_95_of_100_audits(wobble: float) -> None:
    rng, held = random.Random(7), 0
    for _ in range(1_000):
        pairs = []
        for _ in range(6):
            people = 60 + rng.randrange(80)
            share = min(1.0, max(0.0, rng.gauss(0.85, wobble)))
            pairs.append((people, sum(rng.random() < share for _ in range(people))))
        found = pooled(pairs)
        assert found.low is not None
        assert found.high is not None
        mean = 0.85 if not wobble else 0.8375  # of what is cut off at 1
        held += found.low <= mean - 1 <= found.high
    assert held >= 940


def test_the_same_minutes_counted_twice_are_one_block() -> None:
    assert merged([Block(1, 90, 10, 95, 9), Block(2, 5, 5, 5, 5), Block(1, 100, 20, 95, 9)]) == [
        Block(1, 95, 15, 95, 9),
        Block(2, 5, 5, 5, 5),
    ]


def test_a_counter_that_misses_alike_gets_the_factor_that_mends_it() -> None:
    found = propose(assess(blocks(*[(300, 240)] * 6), on=DAY))
    assert isinstance(found, Proposal)
    assert found.factor == pytest.approx(1.25)
    assert found.low < 1.25 < found.high
    mended = assess(blocks(*[(300, 240 * 1.25)] * 6), on=DAY)
    assert propose(mended) is NoProposal.RIGHT


def test_no_factor_is_proposed_where_none_would_mend() -> None:
    assert propose(assess(blocks((10, 5)), on=DAY)) is NoProposal.TOO_FEW
    assert propose(assess(blocks((300, 0)), on=DAY)) is NoProposal.TOO_FAR
    assert propose(assess(blocks(*[(500, 20)] * 6), on=DAY)) is NoProposal.TOO_FAR
    one_way = [Block(n, 300, 300, 300, 150) for n in range(6)]
    assert propose(assess(one_way, on=DAY)) is NoProposal.DIRECTIONS


def test_a_site_is_what_its_counters_are_by_their_shares() -> None:
    main, side = assess(blocks((400, 360)), on=DAY), assess(blocks((400, 420)), on=date(2026, 3, 1))
    bias, se, since = combined([Part(300, main), Part(100, side)])
    assert bias == pytest.approx(0.75 * -0.1 + 0.25 * 0.05)
    assert main.entered.se is not None
    assert side.entered.se is not None
    assert se == pytest.approx(
        ((0.75 * main.entered.se) ** 2 + (0.25 * side.entered.se) ** 2) ** 0.5
    )
    assert since == date(2026, 3, 1)
    assert combined([Part(300, main), Part(0, None)])[2] == DAY
    assert combined([Part(300, main), Part(1, None)]) == (0.0, 0.0, None)
    assert combined([]) == (0.0, 0.0, None)


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)))
def test_a_recount_counts_for_13_months(day: date) -> None:
    first = expires(day)
    assert (day.year - first.year) * 12 + day.month - first.month == 13
    assert first.day == day.day or (first.day < day.day and first.day >= 28)


@pytest.mark.parametrize(
    ("then", "state"),
    [
        (Standing(1, 1, (1,)), State.COMPARED),
        (Standing(2, 1, (1,)), State.DEVICE),
        (Standing(None, 1, (1,)), State.DEVICE),
        (Standing(1, None, (1,)), State.MOUNTING),
        (Standing(1, 1, ()), State.CALIBRATION),
    ],
)
def test_a_recount_is_of_what_stood_there_then(then: Standing, state: State) -> None:
    at = datetime(2026, 4, 1, tzinfo=UTC)
    found = state_of(
        then=then,
        now=Standing(1, 1, (1,)),
        at=at,
        not_before=at,
        whole=True,
        resolution_s=60,
        accounted=True,
    )
    assert found is state
