"""Coverage by doors' usual share, beside a reckoning of its own in fractions."""

from datetime import date, timedelta
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.insight.doors import Seen, Shares, weighed
from server.rollup.buckets import Size, buckets

FIRST = date(2026, 1, 5)
GRID = buckets("Europe/Stockholm", Size.DAY, since=FIRST, until=FIRST + timedelta(weeks=15))
DAY_S = 86_400


def door(*counts: int | None, n: int = len(GRID)) -> list[Seen]:
    """Return what a door saw, the counts of a week again and again; None: blind."""
    return [
        Seen(None, 0, DAY_S) if count is None else Seen(float(count), DAY_S, DAY_S)
        for count in (counts * n)[:n]
    ]


def coverage(seen: list[Seen], weights: tuple[float, ...]) -> float:
    observed, expected = weighed(seen, weights)
    return observed / expected


def test_a_blind_main_door_weighs_more_than_a_blind_side_door() -> None:
    main, side = door(90), door(10)
    weights = Shares(GRID, [main, side]).at(GRID[90])
    blind, sees = Seen(None, 0, DAY_S), Seen(1.0, DAY_S, DAY_S)
    assert coverage([blind, sees], weights) == pytest.approx(0.1)
    assert coverage([sees, blind], weights) == pytest.approx(0.9)
    assert weighed([sees, sees], weights) == pytest.approx((2 * DAY_S, 2 * DAY_S))


def test_a_share_is_that_of_the_same_day_of_the_week() -> None:
    main, side = door(90, 90, 90, 90, 90, 20, 50), door(10, 10, 10, 10, 10, 80, 50)
    shares = Shares(GRID, [main, side])
    for at, of_main in ((91, 0.9), (95, 0.9), (96, 0.2), (97, 0.5)):
        assert shares.at(GRID[at]) == pytest.approx((2 * of_main, 2 - 2 * of_main))


def test_without_three_comparable_weeks_all_doors_count_alike() -> None:
    main, side = door(90), door(10)
    assert Shares(GRID, [main, side]).at(GRID[20]) == (1.0, 1.0), "two weeks are known of that day"
    assert Shares(GRID, [main, side]).at(GRID[21]) == pytest.approx((1.8, 0.2))
    assert Shares(GRID, [door(0), door(0)]).at(GRID[90]) == (1.0, 1.0), "nobody came in"
    assert Shares(GRID, [main, door(None)]).at(GRID[90]) == (1.0, 1.0), "one was never seen"


def test_where_only_doors_that_nobody_uses_should_be_observed_all_count_alike() -> None:
    unused, closed = Seen(None, DAY_S // 4, DAY_S), Seen(None, 0, 0)
    assert weighed([unused, closed], (0.0, 2.0)) == (DAY_S // 4, DAY_S)


SEEN = st.one_of(
    st.just(Seen(None, 0, DAY_S)),
    st.builds(
        Seen,
        st.integers(0, 50).map(float),
        st.sampled_from([DAY_S, 85_000, 80_000]),
        st.just(DAY_S),
    ),
)


@settings(deadline=None)
@given(
    doors=st.integers(2, 3).flatmap(
        lambda n: st.lists(st.lists(SEEN, min_size=15, max_size=15), min_size=n, max_size=n)
    ),
    at=st.integers(0, 14),
)
def test_shares_are_those_of_the_latest_eight_comparable_weeks_of_twelve(
    doors: list[list[Seen]], at: int
) -> None:
    """Mondays alone are known here; each of the 15 weeks is drawn."""
    mondays = GRID[::7]
    known = [
        tuple(Fraction(row.entered or 0) for row in week)
        for week in list(zip(*doors, strict=True))[max(0, at - 12) : at]
        if all(row.entered is not None and row.observed_s * 50 >= 49 * DAY_S for row in week)
    ][-8:]
    total = sum(map(sum, known), Fraction(0))
    if len(known) < 3 or not total:
        wanted = [1.0] * len(doors)
    else:
        wanted = [
            float(len(doors) * sum(week[n] for week in known) / total) for n in range(len(doors))
        ]
    assert Shares(mondays, doors).at(mondays[at]) == pytest.approx(tuple(wanted))
