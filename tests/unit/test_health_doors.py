"""Sums over a site's doors, each door's own taken out, say what going through the others says."""

import random
from collections.abc import Sequence
from math import log
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.health.conditions import imbalance, level_shift
from server.health.doors import Doors
from server.health.judgement import Judgement, Subject, SubjectKind
from server.health.rounds import Counter, Daily, Quick, daily, quick
from server.health.series import QUARTER_S, Quarter, Series, summed, turns
from server.health.verdict import NEVER, Before

NOW_S = 1_780_012_800  # at noon
SITE = Subject(SubjectKind.SITE, 1)
ENOUGH = 15.0


def never(_subject: Subject, _condition: object) -> Before:
    return NEVER


@st.composite
def sites(draw: st.DrawFn, most: int = 5, days: int = 2) -> list[Series]:
    """Draw doors of a shop that is open by day; some are quiet, away, masked, unknown or dead."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    return [_door(rng, days * 96) for _ in range(draw(st.integers(1, most)))]


def _door(rng: random.Random, length: int) -> Series:
    busy = rng.choice([0.5, 4.0, 30.0])
    ill = rng.choice(["well", "well", "dead", "away", "masked", "unknown", "covered"])
    since = rng.randrange(length)
    quarters = []
    for number in range(length):
        is_open = number % 96 >= 36
        touched = number >= since
        part = {"dead": 0.0, "covered": 0.3}.get(ill, 1.0) if touched else 1.0
        people = part * busy * is_open
        came, went = (float(round(people * rng.uniform(0.7, 1.3))) for _ in range(2))
        seen_s = 0 if ill == "away" and touched else rng.choice([900, 900, 900, 450])
        usual = busy if is_open and ill != "unknown" else None
        start_s = NOW_S - (length - number) * QUARTER_S
        masked = ill == "masked" and touched
        quarters.append(Quarter(start_s, came, went, seen_s, is_open, usual, usual, masked))
    return Series(quarters, share_variance=0.01)


def summed_up(site: Sequence[Series], windows: Sequence[tuple[int, ...]]) -> Doors:
    found = Doors(ENOUGH)
    found.ask(windows)
    for each in site:
        found.add(each)
    for row, each in enumerate(site):
        found.weigh(row, each)
    return found


@settings(max_examples=25)
@given(sites(), st.integers(0, 191))
def test_the_others_since_a_quarter_are_the_sum_of_each(site: list[Series], low: int) -> None:
    doors = summed_up(site, [])
    for own in site:
        beside = [
            summed([q for q in each.quarters[low:] if not q.masked])
            for each in site
            if each is not own
        ]
        counted, usual = doors.since(low, own)
        assert counted == pytest.approx(sum(each.people for each in beside), abs=1e-6)
        assert usual == pytest.approx(sum(each.usual for each in beside), abs=1e-6)
    if len(site) == 1:
        assert doors.since(low, site[0]) == (0, 0)  # to the last bit: nobody is there


@settings(max_examples=25)
@given(sites(), st.lists(st.sets(st.integers(130, 191), min_size=1, max_size=8), max_size=3))
def test_the_others_within_a_window_are_those_that_can_be_relied_upon(
    site: list[Series], chosen: list[set[int]]
) -> None:
    windows = [tuple(sorted(each)) for each in chosen]
    doors = summed_up(site, windows)
    for window in windows:
        for row, own in enumerate(site):
            beside = []
            for each in site:
                part = [each.quarters[n] for n in window]
                if each is not own and all(
                    q.observed_s and not q.masked and q.usual_in is not None for q in part
                ):
                    beside.append(
                        (sum(q.people for q in part), sum(q.usual * q.share for q in part))
                    )
            found = doors.within(window, row, own)
            assert found.doors == len(beside)
            assert found.counted == pytest.approx(sum(c for c, _ in beside), abs=1e-6)
            assert found.usual == pytest.approx(sum(u for _, u in beside), abs=1e-6)
            parts = [counted / usual for counted, usual in beside if usual >= ENOUGH]
            least = found.least
            assert (None if least is None else least.counted / least.usual) == min(
                parts, default=None
            )


@settings(max_examples=25)
@given(sites(), st.integers(1, 4))
def test_in_whatever_parts_a_site_is_looked_at_the_verdicts_are_the_same(
    site: list[Series], size: int
) -> None:
    days = [level_shift.Day(n, NOW_S - (9 - n) * 86_400, 300.0 + n, 300.0) for n in range(8)]
    counters = [
        Counter(Subject(SubjectKind.SPOT, row), each, days=days, perimeter=row % 3 != 0)
        for row, each in enumerate(site, 1)
    ]
    parts = [counters[low : low + size] for low in range(0, len(counters), size)]
    hours, weeks = Quick(NOW_S), Daily({}, NOW_S)
    for part in parts:
        for each in part:
            hours.add(each)
            weeks.add(each)
    for part in parts:
        for each in part:
            hours.weigh(each)
    found: list[Judgement] = []
    more: list[Judgement] = []
    for part in parts:
        found += [judged for each in part for judged in hours.judge(each, never)]
        more += [judged for each in part for judged in weeks.judge(each, never)]
    assert found == quick(counters, never, now_s=NOW_S)
    assert [*more, weeks.site(SITE, never)] == daily(SITE, counters, {}, never, now_s=NOW_S)


@given(
    st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.1, 2.0, 3.0]), min_size=1, max_size=9),
    st.lists(st.floats(-1, 1), max_size=7),
)
def test_the_median_of_the_others_is_that_without_ones_own(
    doors: list[float], others: list[float]
) -> None:
    together = level_shift.Together()
    days = [[level_shift.Day(1, NOW_S, 100 * each, 100.0)] for each in doors]
    for ratio in others:
        together.add_peer(1, ratio)
    for each in days:
        together.add(each)
    for number, own in enumerate(days):
        beside = [*others, *(log(each) for n, each in enumerate(doors) if n != number)]
        found = together.beside(own)
        if len(beside) < level_shift.PEERS:
            assert found == {}
        else:
            assert found == {1: pytest.approx(median(beside), abs=1e-12)}


@settings(max_examples=25)
@given(sites(days=4))
def test_the_days_of_a_site_are_those_that_every_door_observed_throughout(
    site: list[Series],
) -> None:
    days = imbalance.Days()
    for each in site:
        days.add(each)
    expected = []
    for low, high, closes in turns(site[0].quarters):
        part = [q for each in site for q in each.quarters[low - 4 : high + 4]]
        whole = all(q.observed_s == QUARTER_S and not q.masked for q in part if q.is_open)
        came, went = sum(q.entered for q in part), sum(q.left for q in part)
        if closes and whole and came >= imbalance.LEAST:
            expected.append((came, (came - went) / came))
    assert [(day.entered, day.imbalance) for day in days.observed()] == expected
