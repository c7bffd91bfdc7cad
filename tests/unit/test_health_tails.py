"""What a counter that is well did at worst: no news again, and no excuse for a fault."""

import random
from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.health.conditions import blocked_view
from server.health.series import GROUP, deviation
from server.health.tails import HOURS, WORST, Hour, longest_silence, tails

VARIANCE = 0.003


def hours(people: list[float], usual: float = 100.0) -> list[Hour | None]:
    return [Hour(each, usual) for each in people]


def sums(*others: list[Hour | None]) -> list[Hour]:
    """Return what other doors did together, hour by hour."""
    known = [[each for each in hour if each is not None] for hour in zip(*others, strict=True)]
    return [
        Hour(sum(each.people for each in hour), sum(each.usual for each in hour)) for hour in known
    ]


def test_chance_alone_makes_no_door_deaf() -> None:
    rng = random.Random(1)
    own, other = (
        hours([GROUP * sum(rng.random() < 0.05 for _ in range(500)) for _ in range(800)], 38.0)
        for _ in range(2)
    )
    assert tails(own, sums(other), variance=VARIANCE) == (0.0, 0.0, 0.0)


def test_a_fall_that_came_and_went_by_itself_is_no_news_when_it_comes_again() -> None:
    people = [1000.0] * 400
    people[200:202] = [250.0, 250.0]
    found = tails(hours(people, 1000.0), sums(hours([1000.0] * 400, 1000.0)), variance=VARIANCE)
    assert found[0] == pytest.approx((log(4) / WORST) ** 2, rel=0.01)
    assert found[0] > found[1] > found[2]

    def fires(part: float) -> bool:
        off = deviation(part * 2000, 2000, factor=GROUP, variance=found[0])
        return off < blocked_view.FIRES

    assert not fires(0.25)
    assert not fires(0.1)
    assert fires(0.25 ** (4.5 / WORST) * 0.5)


def test_what_all_doors_do_is_no_fall_of_one() -> None:
    people = [1000.0] * 100 + [50.0] * 10 + [1000.0] * 100
    alike = hours(people, 1000.0)
    assert tails(alike, sums(alike), variance=VARIANCE) == (0.0, 0.0, 0.0)


@given(st.lists(st.none() | st.floats(0, 2000), max_size=60), st.integers(1, 3))
def test_it_is_never_less_than_nothing_whatever_is_missing(
    people: list[float | None], doors: int
) -> None:
    rows = [None if each is None else Hour(each, 500.0) for each in people]
    found = tails(rows, sums(*[rows[::-1]] * doors), variance=VARIANCE)
    assert len(found) == len(HOURS)
    assert all(each >= 0 for each in found)


@given(st.lists(st.none() | st.sampled_from([0.0, 3.0]), max_size=40))
def test_the_longest_silence_is_one_that_ended(people: list[float | None]) -> None:
    text = "".join("-" if each is None else "x" if each else "." for each in people)
    runs = [len(run.split("-")[-1]) for run in text.split("x")[:-1]]
    rows = [None if each is None else Hour(each, 2.0) for each in people]
    assert longest_silence(rows) == 2.0 * max(runs, default=0)
