"""The walk test's rules: pairing, the exact interval, the verdict."""

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tech.walk import (
    SLACK_MS,
    TOLERANCE,
    Cell,
    Result,
    Tap,
    Verdict,
    Way,
    compare,
    share,
)

MINUTE = 60_000
T0 = 1_775_131_200_000  # a whole minute


def outcome(
    taps: list[Tap],
    cells: list[Cell],
    *,
    minutes: int = 10,
    told: int | None = None,
    cell_ms: int = MINUTE,
) -> Result:
    return compare(
        taps,
        cells,
        begun_ms=T0,
        until_ms=T0 + minutes * MINUTE,
        told_to_ms=T0 + (minutes if told is None else told) * MINUTE,
        cell_ms=cell_ms,
    )


def walked(number: int, way: Way = Way.IN, *, minute: int = 0) -> list[Tap]:
    return [Tap(T0 + minute * MINUTE + 10_000 + n * 1_000, way) for n in range(number)]


moments = st.integers(T0, T0 + 10 * MINUTE - 1)
all_taps = st.lists(st.builds(Tap, moments, st.sampled_from(Way)), max_size=60)
all_cells = st.lists(
    st.builds(
        lambda n, i, o: Cell(T0 + n * MINUTE, i, o),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=10,
    unique_by=lambda cell: cell.start_ms,
)


@given(all_taps, all_cells)
def test_everybody_is_paired_missed_or_extra_and_nobody_twice(
    taps: list[Tap], cells: list[Cell]
) -> None:
    result = outcome(taps, cells)
    assert result.whole
    assert result.waiting == 0
    for way, account in ((Way.IN, result.entered), (Way.OUT, result.left)):
        assert account.walked == sum(tap.way is way for tap in taps)
        assert account.counted == sum(cell.of(way) for cell in cells)
        assert 0 <= account.paired <= min(account.walked, account.counted)
        assert account.missed >= 0
        assert account.extra >= 0


@given(all_taps, st.data())
def test_a_device_that_counts_each_tap_within_the_slack_misses_nobody(
    taps: list[Tap], data: st.DataObject
) -> None:
    counted: dict[int, list[int]] = {}
    for tap in taps:
        late = data.draw(st.integers(-SLACK_MS, SLACK_MS))
        at = min(max(tap.at_ms + late, T0), T0 + 10 * MINUTE - 1)
        counted.setdefault(at // MINUTE, [0, 0])[tap.way is Way.OUT] += 1
    cells = [Cell(n * MINUTE, *both) for n, both in counted.items()]
    result = outcome(taps, cells)
    assert (result.entered.missed, result.left.missed) == (0, 0)
    assert (result.entered.extra, result.left.extra) == (0, 0)


@given(all_taps, all_cells, st.integers(0, 10))
def test_what_the_device_has_not_told_is_neither_right_nor_wrong(
    taps: list[Tap], cells: list[Cell], told: int
) -> None:
    early = outcome(taps, cells, told=told)
    known = [tap for tap in taps if tap.at_ms < T0 + told * MINUTE]
    assert early.waiting == len(taps) - len(known)
    assert early.entered.walked + early.left.walked == len(known)
    assert early.whole == (told == 10)


@given(st.integers(0, 80), st.integers(1, 80))
def test_the_interval_is_that_of_clopper_and_pearson(k: int, n: int) -> None:
    k = min(k, n)
    found = share(k, n)
    assert 0 <= found.low <= k / n <= found.high <= 1

    def at_most(i: int, p: float) -> float:
        return sum(comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(i + 1))

    if k > 0:
        assert 1 - at_most(k - 1, found.low) == pytest.approx(0.025, abs=1e-9)
    if k < n:
        assert at_most(k, found.high) == pytest.approx(0.025, abs=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 10, 0.0, 0.3085), (5, 10, 0.1871, 0.8129), (19, 20, 0.7513, 0.9987), (20, 20, 0.8316, 1)],
)
def test_the_interval_agrees_with_printed_tables(k: int, n: int, low: float, high: float) -> None:
    found = share(k, n)
    assert found.low == pytest.approx(low, abs=6e-5)
    assert found.high == pytest.approx(high, abs=6e-5)


@given(st.integers(0, 40), st.integers(0, 40))
def test_as_many_more_as_it_says_are_enough_and_one_less_is_not(right: int, wrong: int) -> None:
    taps = walked(right)
    extra = [Cell(T0 + MINUTE, wrong, 0)] if wrong else []
    counted = [Cell(T0, right, 0), *extra]
    result = outcome(taps, counted)
    total = right + wrong
    if result.more == 0:
        assert result.verdict is Verdict.GOOD
    elif result.more < 500:
        assert share(wrong, total + result.more).high <= TOLERANCE
        assert share(wrong, total + result.more - 1).high > TOLERANCE


def test_a_perfect_device_is_good_after_24_people_and_not_before() -> None:
    assert outcome(walked(24), [Cell(T0, 24, 0)]).verdict is Verdict.GOOD
    before = outcome(walked(22), [Cell(T0, 22, 0)])
    assert before.verdict is Verdict.MORE
    assert before.more == 1


def test_a_device_that_sees_every_second_person_is_bad() -> None:
    result = outcome(walked(24), [Cell(T0, 12, 0)])
    assert result.verdict is Verdict.BAD
    assert result.entered.missed == 12
    assert result.entered.seen is not None
    assert result.entered.seen.low < 0.5 < result.entered.seen.high


def test_a_device_mounted_backwards_is_told_as_such() -> None:
    taps = walked(8) + walked(3, Way.OUT, minute=1)
    result = outcome(taps, [Cell(T0, 0, 8), Cell(T0 + MINUTE, 3, 0)])
    assert result.verdict is Verdict.TURNED


def test_before_the_first_frame_there_is_nothing_to_say() -> None:
    result = outcome(walked(9), [], told=0)
    assert (result.verdict, result.waiting) == (Verdict.WAITING, 9)


def test_a_silent_device_is_bad_and_not_unknown() -> None:
    assert outcome(walked(9), []).verdict is Verdict.BAD


def test_half_a_cell_at_the_beginning_does_not_count() -> None:
    result = compare(
        [Tap(T0 + 40_000, Way.IN)],
        [Cell(T0, 7, 0)],
        begun_ms=T0 + 30_000,
        until_ms=T0 + MINUTE,
        told_to_ms=T0 + MINUTE,
        cell_ms=MINUTE,
    )
    assert result.wrong is None
