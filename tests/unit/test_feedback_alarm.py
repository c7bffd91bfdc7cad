"""The sequential test: its false alarms as stated, its evidence exact, its alarms quick."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from server.feedback.alarm import (
    FALSE_ALARMS_PER_WEEK,
    HOURS,
    SHRINK,
    Answer,
    Baseline,
    Tally,
    alarms,
    at_least,
    bad_answers,
    baseline_of,
    false_alarms,
    threshold_of,
)
from server.feedback.indices import Kind

OPEN = [day * 24 + hour for day in range(6) for hour in range(9, 19)]
USUAL = {hour: 0.06 if hour % 24 < 16 else 0.16 for hour in OPEN}
"""The evenings are worse than the mornings, every week."""


def week(rng: Random, *, an_hour: int = 12, odds: float = 1.0) -> list[list[Answer]]:
    """Answers by day; `odds` of a bad one are as many times those of the kiosk as usual."""
    days: list[list[Answer]] = [[] for _ in range(7)]
    for hour in OPEN:
        share = odds * USUAL[hour] / (1 - USUAL[hour] + odds * USUAL[hour])
        for number in range(an_hour):
            at_ms = hour * 3_600_000 + number * 3_600_000 // an_hour
            days[hour // 24].append(Answer(at_ms, hour, rng.random() < share))
    return days


def learnt(rng: Random, *, weeks: int, an_hour: int = 12) -> Baseline:
    tallies: dict[int, Tally] = {}
    for _ in range(weeks):
        for day in week(rng, an_hour=an_hour):
            for answer in day:
                n, bad = tallies.get(answer.hour, Tally(0, 0))
                tallies[answer.hour] = Tally(n + 1, bad + answer.bad)
    found = baseline_of(tallies, weeks=weeks)
    assert found is not None
    return found


def raised(
    rng: Random, baseline: Baseline, threshold: float, *, weeks: int, an_hour: int = 12
) -> float:
    """Return the alarms a week that answers as usual raise."""
    found = 0
    for _ in range(weeks):
        for day in week(rng, an_hour=an_hour):
            found += len(alarms(day, baseline, threshold))
    return found / weeks


@pytest.mark.parametrize("rate", [FALSE_ALARMS_PER_WEEK, 2.0])
def test_answers_as_usual_raise_as_many_false_alarms_a_week_as_stated(rate: float) -> None:
    rng = Random(5)
    known = Baseline(
        tuple(USUAL.get(hour, 0.1) for hour in range(HOURS)),
        tuple((hour in USUAL) / len(USUAL) for hour in range(HOURS)),
        (*[120.0] * 6, 0.0),
    )
    threshold = threshold_of(known, rate)
    assert false_alarms(known, threshold) == pytest.approx(rate, rel=0.1)
    assert false_alarms(known, threshold) <= rate
    weeks = 300
    found = raised(rng, known, threshold, weeks=weeks)
    assert found * weeks <= stats.poisson.ppf(0.999, rate * weeks)
    assert found >= 0.6 * rate  # and no fewer than it takes to see anything


def test_a_learnt_baseline_keeps_the_stated_rate() -> None:
    """Eight weeks of answers are no truth: over many kiosks the rate still holds, about."""
    rng, found = Random(11), 0.0
    kiosks = 12
    for _ in range(kiosks):
        baseline = learnt(rng, weeks=8)
        threshold = threshold_of(baseline, FALSE_ALARMS_PER_WEEK)
        found += raised(rng, baseline, threshold, weeks=20) / kiosks
    assert 0.6 * FALSE_ALARMS_PER_WEEK <= found <= 1.25 * FALSE_ALARMS_PER_WEEK


def test_an_hour_that_is_always_bad_is_no_alarm_and_the_same_at_another_hour_is() -> None:
    rng = Random(2)
    baseline = learnt(rng, weeks=8)
    threshold = threshold_of(baseline, FALSE_ALARMS_PER_WEEK)
    assert baseline.shares[18] > baseline.shares[10]
    evening = [Answer(n, 18, n % 6 == 5) for n in range(60)]  # one in six is as every evening
    assert alarms(evening, baseline, threshold) == []
    morning = [Answer(n, 10, n % 3 == 2) for n in range(60)]
    assert alarms(morning, baseline, threshold)


def test_a_bad_hour_is_heard_of_within_it() -> None:
    rng = Random(3)
    baseline = learnt(rng, weeks=8)
    threshold = threshold_of(baseline, FALSE_ALARMS_PER_WEEK)
    late = []
    for _ in range(40):
        day = [
            answer._replace(bad=rng.random() < 0.5) for answer in week(rng)[0] if answer.hour < 16
        ]
        first = alarms(day, baseline, threshold)[0]
        late.append(sum(answer.at_ms <= first.at_ms for answer in day))
    assert sorted(late)[20] <= 12


def test_the_evidence_is_of_the_answers_since_the_sum_stood_at_zero() -> None:
    baseline = Baseline((0.1,) * HOURS, (1 / HOURS,) * HOURS, (50.0,) * 7)
    answers = [Answer(n, 3, n >= 10) for n in range(16)]
    (found,) = alarms(answers, baseline, 3.0)
    assert found.expected == pytest.approx(0.4)
    assert found.p == pytest.approx(float(stats.binom.sf(3, 4, 0.1)))
    assert (found.since_ms, found.at_ms, found.n, found.bad) == (10, 13, 4, 4)


@given(st.integers(0, 40), st.lists(st.floats(0.001, 0.999), min_size=1, max_size=40))
def test_the_chance_of_so_many_is_exact(bad: int, shares: list[float]) -> None:
    exact = [1.0]
    for share in shares:
        exact = [
            (exact[n] if n < len(exact) else 0) * (1 - share) + (exact[n - 1] if n else 0) * share
            for n in range(len(exact) + 1)
        ]
    assert at_least(bad, shares) == pytest.approx(sum(exact[bad:]), abs=1e-12)
    assert at_least(bad, [0.2] * 30) == pytest.approx(float(stats.binom.sf(bad - 1, 30, 0.2)))


def test_too_few_answers_make_no_baseline_and_few_of_an_hour_lean_on_all() -> None:
    assert baseline_of({10: Tally(99, 9)}, weeks=8) is None
    found = baseline_of({10: Tally(400, 40), 11: Tally(4, 4)}, weeks=8)
    assert found is not None
    whole = 44.5 / 405
    assert found.shares[11] == pytest.approx((4 + SHRINK * whole) / (4 + SHRINK))
    assert found.shares[50] == pytest.approx(whole)
    assert found.per_day[0] == pytest.approx(404 / 8)


def test_every_kind_but_a_plain_choice_has_bad_answers() -> None:
    assert {kind for kind in Kind if not bad_answers(kind)} == {Kind.CHOICE}
    assert bad_answers(None) == frozenset()
