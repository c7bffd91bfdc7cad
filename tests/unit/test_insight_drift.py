"""Who is inside, by counters that miss some of them."""

from math import sqrt
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.insight.drift import (
    GRACE_S,
    Account,
    Kind,
    Quarter,
    account,
    back_corrected,
    imbalanced,
    inside,
    live,
    rate,
    turns,
)

DAY_S = 86_400
OPENS, CLOSES = 10 * 3600, 18 * 3600


def shop(days: int, pairs: list[tuple[int, int]]) -> list[Quarter]:
    """Return days of quarters whose open ones hold `pairs`, again and again."""
    found = []
    for at in range(days * 96):
        second = at * 900
        inside_hours = OPENS <= second % DAY_S < CLOSES
        entered, left = pairs[at % len(pairs)] if inside_hours else (0, 0)
        found.append(Quarter(second, entered, left, True))
    return found


def hours(days: int) -> list[tuple[int, int]]:
    return [(day * DAY_S + OPENS, day * DAY_S + CLOSES) for day in range(days)]


pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=40)


@given(pairs)
def test_nobody_is_ever_less_than_none_and_the_day_ends_empty(
    counts: list[tuple[int, int]],
) -> None:
    quarters = shop(8, counts)
    found, accounts = inside(quarters, hours(8), now_s=8 * DAY_S)
    assert [each.at_s for each in found] == [quarter.end_s for quarter in quarters]
    assert all(each.people is not None and each.people >= 0 for each in found)
    ends = {each.end_s for each in accounts if each.drift is not None}
    assert all(each.people == pytest.approx(0, abs=1e-6) for each in found if each.at_s in ends)


@given(pairs)
def test_back_correction_takes_the_error_out_where_the_crossings_were(
    counts: list[tuple[int, int]],
) -> None:
    quarters = shop(1, counts)
    [turn, *_] = turns(quarters, hours(1), now_s=2 * DAY_S)
    found = back_corrected(quarters, turn)
    whole = sum(q.entered + q.left for q in quarters[: turn.last])
    left_over = sum(q.entered - q.left for q in quarters[: turn.last])
    for number, each in enumerate(found):
        so_far = quarters[: number + 1]
        raw = sum(q.entered - q.left for q in so_far)
        crossed = sum(q.entered + q.left for q in so_far)
        expected = raw - left_over * crossed / whole if whole else raw
        assert each.people == pytest.approx(max(0.0, expected), abs=1e-9)


def test_a_day_turns_when_nobody_has_crossed_for_half_an_hour_after_closing() -> None:
    quarters = shop(2, [(5, 5)])
    first = (CLOSES + GRACE_S) // 900
    assert turns(quarters, hours(2), now_s=2 * DAY_S)[0].last == first
    late = quarters[first - 1]._replace(left=1)
    quarters[first - 1] = late
    assert turns(quarters, hours(2), now_s=2 * DAY_S)[0].last == first + 2


def test_where_somebody_always_crosses_the_day_turns_halfway_and_unverified() -> None:
    quarters = [quarter._replace(left=quarter.left + 1) for quarter in shop(3, [(5, 5)])]
    found = turns(quarters, hours(3), now_s=3 * DAY_S)
    assert (found[0].last, found[0].verified) == ((CLOSES + 8 * 3600) // 900, False)
    assert account(quarters, found[0]).drift is None


def test_a_day_that_lasts_has_not_turned() -> None:
    quarters = shop(1, [(5, 4)])[: 15 * 4]
    [turn] = turns(quarters, hours(1), now_s=15 * 3600)
    assert (turn.ended, turn.last) == (False, 60)


def a_turn(end_s: int, drift: float | None, crossings: float = 400) -> Account:
    return Account(end_s - DAY_S, end_s, crossings / 2, crossings / 2, True, True, drift, None)


@given(st.lists(st.floats(-0.1, 0.1), min_size=4, max_size=14))
def test_the_rate_is_the_median_of_a_fortnight_and_its_band_the_mad(drifts: list[float]) -> None:
    accounts = [a_turn((20 + n) * DAY_S, drift) for n, drift in enumerate(drifts)]
    old = [a_turn(DAY_S, 0.9), a_turn(30 * DAY_S, None)]
    found = rate([*old, *accounts], (20 + len(drifts)) * DAY_S)
    assert found is not None
    middle = median(drifts)
    assert found.median == pytest.approx(middle)
    assert found.deviation == pytest.approx(1.4826 * median(abs(d - middle) for d in drifts))
    assert rate(accounts[:3], 40 * DAY_S) is None


def test_live_takes_the_usual_drift_out_and_says_how_sure_that_is() -> None:
    quarters = shop(1, [(10, 6)])[: 12 * 4]
    [turn] = turns(quarters, hours(1), now_s=12 * 3600)
    known = rate([a_turn(n * DAY_S, 0.1 + n * 0.01) for n in range(-4, 1)], 0)
    assert known is not None
    last = live(quarters, turn, known)[-1]
    crossed = 8 * 16
    assert last.raw == 8 * 4
    assert last.people == pytest.approx(max(0.0, 32 - 0.08 * crossed))
    assert last.high is not None
    half = 2.57 * 1.4826 * 0.01 * sqrt(crossed * 400)
    assert last.high - (last.people or 0) == pytest.approx(half)
    assert live(quarters, turn, None)[-1].kind is Kind.RAW


def test_after_a_quarter_that_was_not_observed_nobody_knows_until_the_shop_is_empty() -> None:
    quarters = shop(3, [(5, 5), (4, 3)])
    hole = DAY_S // 900 + 48
    quarters[hole] = quarters[hole]._replace(covered=False)
    found, accounts = inside(quarters, hours(3), now_s=3 * DAY_S)
    kinds = [each.kind for each in found]
    turned = next(n for n, each in enumerate(found) if each.at_s == accounts[1].end_s)
    assert kinds[hole - 1] is not Kind.UNKNOWN
    assert set(kinds[hole : turned + 1]) == {Kind.UNKNOWN}
    assert kinds[turned + 1] is Kind.BACK_CORRECTED
    assert accounts[1].drift is None


def test_dwell_is_the_time_inside_over_those_who_entered() -> None:
    """Everybody enters at once and stays an hour: 4 quarters, whatever their number."""
    enter, leave = 48, 52
    quarters = [
        Quarter(at * 900, 60 if at == enter else 0, 60 if at == leave else 0, True)
        for at in range(96)
    ]
    [first, *_] = turns(quarters, hours(1), now_s=2 * DAY_S)
    assert account(quarters, first).dwell_s == pytest.approx(3600)


def test_a_site_that_never_closes_turns_once_a_week_where_it_is_quietest() -> None:
    quarters = [
        Quarter(at * 900, 0 if at % 672 in range(16, 20) else 3, 0 if at % 672 < 20 else 3, True)
        for at in range(672 * 4)
    ]
    found = turns(quarters, [(0, 60 * 7 * DAY_S)], now_s=28 * DAY_S)
    assert [turn.last for turn in found[:3]] == [16 + 672 * n for n in range(3)]
    people, accounts = inside(quarters, [(0, 60 * 7 * DAY_S)], now_s=28 * DAY_S)
    assert accounts[1].drift is not None
    assert all((each.people or 0) >= 0 for each in people)


@pytest.mark.parametrize(
    ("entered", "left", "alarm"),
    [
        (100, 75, False),
        (100, 69, True),
        (90_000, 88_000, True),
        (90_000, 88_500, False),
        (0, 2, False),
        (0, 4, True),
    ],
)
def test_imbalance_is_told_from_chance(entered: int, left: int, alarm: bool) -> None:
    assert imbalanced(entered, left) is alarm
