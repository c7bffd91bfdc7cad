"""Whether a target will be met: projected by weekday, and never said where nobody can know."""

from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.insight.projection import CORRELATION, DayOf, Outlook, Track, outlook

FIRST = date(2026, 3, 2)  # a Monday
USUAL = (100, 110, 120, 130, 160, 220, 80)


def days(first: date, values: Sequence[float | None], base: float | None = None) -> list[DayOf]:
    return [
        DayOf(first + timedelta(days=n), value, None if base is None else base)
        for n, value in enumerate(values)
    ]


def month(
    wanted: float, *, done: int, at_most: bool = False, noise: int = 0, seen: int = 56
) -> Outlook:
    """Return the outlook of four weeks from FIRST, of which some days are over."""
    rng = np.random.default_rng(3)
    wobble = rng.normal(0, noise, 200) if noise else np.zeros(200)
    before = [USUAL[n % 7] + wobble[n] for n in range(seen)]
    over = [USUAL[n % 7] + wobble[n + 60] for n in range(done)]
    return outlook(
        wanted,
        at_most=at_most,
        history=days(FIRST - timedelta(days=seen), before),
        done=days(FIRST, over),
        left=[FIRST + timedelta(days=n) for n in range(done, 28)],
        additive=True,
    )


def test_a_period_like_every_other_is_projected_to_what_every_other_was() -> None:
    found = month(4 * sum(USUAL), done=10)
    assert found.projected == pytest.approx(4 * sum(USUAL))
    assert found.to_date == sum(USUAL) + 100 + 110 + 120
    assert (found.days_left, found.track) == (18, Track.ON_TRACK)


@pytest.mark.parametrize(
    ("factor", "at_most", "track"),
    [
        (0.9, False, Track.ON_TRACK),
        (1.0, False, Track.AT_RISK),
        (1.1, False, Track.OFF_TRACK),
        (1.1, True, Track.ON_TRACK),
        (0.9, True, Track.OFF_TRACK),
    ],
)
def test_the_interval_decides(factor: float, at_most: bool, track: Track) -> None:
    found = month(factor * 4 * sum(USUAL), done=10, at_most=at_most, noise=12)
    assert found.track is track
    assert found.low is not None
    assert found.high is not None
    assert found.low < (found.projected or 0) < found.high
    least, most = {Track.ON_TRACK: (0.9, 1), Track.OFF_TRACK: (0, 0.1)}.get(track, (0.1, 0.9))
    assert found.probability is not None
    assert least <= found.probability <= most


def test_of_projected_months_eighty_in_a_hundred_end_within_the_interval() -> None:
    """Days that follow on each other as street counters' do; the interval is for these."""
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(300):
        noise = [rng.normal()]
        for _ in range(83):
            noise.append(CORRELATION * noise[-1] + rng.normal() * np.sqrt(1 - CORRELATION**2))
        values = [USUAL[n % 7] * (1 + 0.15 * noise[n]) for n in range(84)]
        found = outlook(
            0,
            at_most=False,
            history=days(FIRST - timedelta(days=56), values[:56]),
            done=days(FIRST, values[56:66]),
            left=[FIRST + timedelta(days=n) for n in range(10, 28)],
            additive=True,
        )
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= sum(values[56:]) <= found.high
    assert stats.binomtest(hits, 300, 0.8).pvalue > 0.001


def test_a_rate_is_projected_as_a_ratio_of_sums() -> None:
    history = days(FIRST - timedelta(days=14), [20.0] * 14, base=100.0)
    done = [DayOf(FIRST, 300.0, 600.0)]
    found = outlook(
        0.3,
        at_most=False,
        history=history,
        done=done,
        left=[FIRST + timedelta(days=n) for n in range(1, 7)],
        additive=False,
    )
    on_mondays = (20 * 2 + 300) / 3, (100 * 2 + 600) / 3
    assert on_mondays[0] > 100
    assert found.projected == pytest.approx((300 + 6 * 20) / (600 + 6 * 100))
    assert found.to_date == 0.5


def test_what_is_over_is_met_or_not() -> None:
    for wanted, track in ((700, Track.ON_TRACK), (701, Track.OFF_TRACK)):
        found = outlook(
            wanted, at_most=False, history=[], done=days(FIRST, [100.0] * 7), left=[], additive=True
        )
        assert (found.track, found.projected, found.days_left) == (track, 700, 0)
        assert found.probability == float(track is Track.ON_TRACK)


def test_where_nobody_can_know_nothing_is_said() -> None:
    assert month(1, done=3, seen=7).reason == "too_few_days"
    missing = days(FIRST, [100.0, None, None, 100.0, 100.0])
    later = [FIRST + timedelta(days=n) for n in range(5, 20)]
    history = days(FIRST - timedelta(days=56), [100.0] * 56)
    found = outlook(1, at_most=False, history=history, done=missing, left=later, additive=True)
    assert (found.track, found.reason) == (Track.CANNOT_BE_SAID, "days_missing")
    one = days(FIRST, [100.0, None, 100.0, 100.0, 100.0])
    filled = outlook(500, at_most=False, history=history, done=one, left=[], additive=True)
    assert filled.projected == pytest.approx(500)  # the missing day is like other Tuesdays
    nobody = outlook(
        1, at_most=False, history=[], done=days(FIRST, [0.0], base=0.0), left=[], additive=False
    )
    assert nobody.reason == "nothing_to_divide_by"


def test_the_days_measured_are_told_apart_from_those_that_are_over() -> None:
    history = days(FIRST - timedelta(days=56), [100.0] * 56)
    over = days(FIRST, [100.0, None, 100.0, 100.0, 100.0, 100.0])
    left = [FIRST + timedelta(days=n) for n in range(6, 10)]
    found = outlook(900, at_most=False, history=history, done=over, left=left, additive=True)
    assert (found.days_done, found.days_measured, found.days_left) == (6, 5, 4)
    assert found.usual == pytest.approx(100)
    assert found.needed == pytest.approx((900 - 600) / 4)  # the day not measured was as others


@given(
    st.lists(st.floats(1, 1e3), min_size=14, max_size=40),
    st.lists(st.one_of(st.none(), st.floats(1, 1e3)), max_size=20),
    st.integers(1, 20),
    st.floats(0.1, 1e4),
    st.booleans(),
)
def test_days_that_bring_what_is_needed_meet_the_target_exactly(
    history: list[float], done: list[float | None], left: int, wanted: float, rate: bool
) -> None:
    """The oracle adds up the period as it would be, day by day."""
    base = 50.0 if rate else None
    before = days(FIRST - timedelta(days=len(history)), history, base)
    over = days(FIRST, done, base)
    asked = {"at_most": False, "history": before, "done": over, "additive": not rate}
    coming = [FIRST + timedelta(days=len(done) + n) for n in range(left)]
    found = outlook(wanted, left=coming, **asked)  # type: ignore[arg-type]
    if found.needed is None:
        assert found.track is Track.CANNOT_BE_SAID
        return
    assert found.projected is not None
    assert found.usual is not None
    days_of_all = (len(done) + left) * 50.0 if rate else 1.0
    per_day = 50.0 if rate else 1.0
    instead = found.projected * days_of_all + left * per_day * (found.needed - found.usual)
    assert instead / days_of_all == pytest.approx(wanted, rel=1e-6)
    assert (found.needed > found.usual) == (wanted > found.projected) or (
        found.needed == pytest.approx(found.usual)
    )


@given(
    st.lists(st.one_of(st.none(), st.floats(0, 1e4)), max_size=40),
    st.lists(st.one_of(st.none(), st.floats(0, 1e4)), max_size=20),
    st.integers(0, 20),
    st.booleans(),
    st.booleans(),
)
def test_at_most_is_at_least_the_other_way_round(
    history: list[float | None], done: list[float | None], left: int, at_most: bool, rate: bool
) -> None:
    base = 50.0 if rate else None
    asked = {
        "history": days(FIRST - timedelta(days=len(history)), history, base),
        "done": days(FIRST, done, base),
        "left": [FIRST + timedelta(days=len(done) + n) for n in range(left)],
        "additive": not rate,
    }
    one = outlook(1.0, at_most=at_most, **asked)  # type: ignore[arg-type]
    other = outlook(1.0, at_most=not at_most, **asked)  # type: ignore[arg-type]
    assert (one.projected, one.low, one.high) == (other.projected, other.low, other.high)
    assert (one.track is Track.CANNOT_BE_SAID) == (one.reason is not None)
    if one.probability is not None and other.probability is not None and one.low != one.high:
        assert one.probability + other.probability == pytest.approx(1)
