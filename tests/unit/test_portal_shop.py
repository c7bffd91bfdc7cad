"""What a store manager's phone calls usual, and when it says nothing."""

from datetime import timedelta
from statistics import median

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.portal.shop_view import LEAST_DAYS, Word, usual_of
from tests.unit.test_portal import NOON, row

OPENED = NOON - timedelta(hours=2)


def day(weeks: int, visits: list[int], *, coverage: float = 1.0) -> list:  # type: ignore[type-arg]
    """Return a day's quarters from ten o'clock, some weeks ago."""
    begin = OPENED - timedelta(weeks=weeks)
    return [
        row(begin + timedelta(minutes=15 * n), each, coverage=coverage)
        for n, each in enumerate(visits)
    ]


@given(
    st.lists(st.integers(0, 400), min_size=4, max_size=8),
    st.integers(0, 400),
    st.integers(0, 400),
)
def test_usual_is_the_middle_half_of_such_days_by_the_same_time(
    days: list[int], now: int, later: int
) -> None:
    today = day(0, [now, 0])
    earlier = [day(n + 1, [each, 0, later]) for n, each in enumerate(days)]  # later is to come yet
    found = usual_of(today, earlier, until=OPENED + timedelta(minutes=30))
    assert (found.now, found.days) == (now, len(days))
    assert found.middle == round(median(days))
    assert found.low is not None
    assert found.high is not None
    low, high = np.percentile(days, [25, 75])
    assert found.low <= low < found.low + 1
    assert found.high - 1 < high <= found.high
    wanted = Word.ABOVE if now > found.high else Word.BELOW if now < found.low else Word.USUAL
    assert found.word is wanted


def test_of_too_few_days_or_badly_observed_ones_nothing_is_called_usual() -> None:
    until = OPENED + timedelta(minutes=30)
    fine = [day(n, [10, 10]) for n in range(1, 9)]
    blind = [day(n, [0, 0], coverage=0.5) for n in range(1, 9)]
    few = usual_of(day(0, [10, 10]), [*fine[: LEAST_DAYS - 1], *blind[3:]], until=until)
    assert (few.days, few.middle, few.word) == (LEAST_DAYS - 1, None, Word.UNSAID)
    partly = usual_of(day(0, [1, 1], coverage=0.5), fine, until=until)
    assert (partly.now, partly.middle, partly.word) == (2, 20, Word.UNSAID)
    early = usual_of(day(0, [10, 10]), fine, until=OPENED)
    assert (early.now, early.days, early.word) == (0, 0, Word.UNSAID)
