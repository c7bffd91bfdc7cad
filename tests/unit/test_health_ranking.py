"""What is at stake is counted minute by minute."""

from hypothesis import given
from hypothesis import strategies as st

from server.health.ranking import stake_of

HOUR = 3_600
DAY = 24 * HOUR
hours = st.dictionaries(
    st.integers(0, 23).map(lambda hour: hour * HOUR), st.floats(0, 500), max_size=24
)


@given(
    st.lists(hours, max_size=4),
    st.tuples(st.integers(0, 95), st.integers(0, 95)).map(sorted),
    st.integers(0, DAY // 60),
)
def test_a_stake_is_the_usual_visits_of_the_open_minutes_that_are_left(
    usual: list[dict[int, float]], opening: list[int], minute: int
) -> None:
    low, high = (quarter * 900 for quarter in opening)
    found = stake_of(usual, [(low, high)] if low < high else [], now_s=minute * 60)
    visits = minutes = 0.0
    for at in range(0, DAY, 60):
        if not low <= at < high or at < minute * 60:
            continue
        minutes += 1
        hour = at // HOUR * HOUR
        open_minutes = sum(low <= each < high for each in range(hour, hour + HOUR, 60))
        visits += sum(each.get(hour, 0.0) for each in usual) / open_minutes
    assert abs(found.visits - visits) < 0.06
    assert found.open_minutes == minutes
    assert found.spots == len(usual)
    assert all(left > 0 for _, left, _ in found.hours)
