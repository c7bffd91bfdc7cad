"""Every KPI against an oracle: scipy, a slow plain way, or a published example."""

from decimal import Decimal
from itertools import pairwise
from math import exp, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from server.feedback.indices import Kind
from server.insight import formulas
from server.insight.definitions import REGISTRY, Definition, UnknownMetricError, find
from server.insight.formulas import (
    Cohort,
    Inputs,
    Takings,
    Value,
    added,
    busiest_hour,
)
from server.insight.stays import later_purchases, shifted


def value(metric: str, inputs: Inputs) -> Value:
    return find(metric).compute(inputs)


def takings(amounts: list[float], units: int = 1, currency: str = "SEK") -> Takings:
    """Return what the tills would say of these sales."""
    return Takings(
        transactions=len(amounts),
        net_sales=sum((Decimal(str(a)) for a in amounts), Decimal(0)),
        units=units * len(amounts),
        net_squares=sum(a * a for a in amounts),
        units_squares=float(units * units * len(amounts)),
        currency=currency,
    )


NONE_SOLD = Takings(currency="SEK")


def shop(visits: float | None, sales: Takings = NONE_SOLD, **more: object) -> Inputs:
    """Return a day that was covered throughout by an audited counter without error."""
    base = {"observed_s": 36_000, "expected_s": 36_000, "audited": True, "sales": sales}
    base |= {"visits": visits, "matched": sales if visits is not None else Takings()}
    return Inputs(**(base | more))  # type: ignore[arg-type]


SOLD = Takings(
    300, Decimal(60_000), 900, net_squares=300 * 200.0**2, units_squares=2_700.0, currency="SEK"
)


def half_width(found: Value) -> float:
    assert found.low is not None
    assert found.high is not None
    return (found.high - found.low) / 2


def test_the_published_conversion_and_its_interval() -> None:
    found = value("conversion", shop(1200, SOLD, count_variance=(0.03 * 1200) ** 2))
    assert (found.value, found.flags) == (0.25, ())
    assert half_width(found) == pytest.approx(0.029, abs=0.0005)
    assert half_width(value("conversion", shop(1200, SOLD))) == pytest.approx(0.025, abs=0.0005)


@given(
    st.integers(1, 5_000),
    st.integers(1, 50_000),
    st.floats(0.5, 1),
    st.floats(0, 0.2),
)
def test_conversions_variance_is_of_three_terms(
    t: int, visits: int, covered: float, s_cal: float
) -> None:
    seconds = round(covered * 10_000)
    sales = Takings(t, Decimal(t), t, currency="SEK")
    found = value(
        "conversion",
        shop(
            visits,
            sales,
            observed_s=seconds,
            expected_s=10_000,
            count_variance=(s_cal * visits) ** 2,
        ),
    )
    c = t / visits
    terms = np.array([max(0, 1 - c) / t, ((1 - seconds / 10_000) * 0.15) ** 2, s_cal**2])
    half = stats.norm.ppf(0.975) * np.sqrt(terms.sum())
    assert found.value == pytest.approx(c)
    assert (found.low, found.high) == pytest.approx((c * exp(-half), c * exp(half)), rel=1e-4)
    assert ("undercount_suspected" in found.flags) == (c > 1)
    assert ("partial_coverage" in found.flags) == (seconds < 9_800)


def test_nothing_is_clipped_and_nothing_invented() -> None:
    assert value("conversion", shop(100, takings([1.0] * 120))).value == 1.2
    no_visits = value("conversion", shop(0, takings([9.0])))
    assert (no_visits.value, no_visits.flags) == (None, ("no_visits",))
    nobody = Value(None, flags=("no_visits",), numerator=0, denominator=0)
    assert value("conversion", shop(0)) == value("spv", shop(0)) == nobody
    assert value("conversion", shop(None, takings([9.0]))).flags == ("visits_missing",)
    none_sold = value("conversion", shop(40))
    assert (none_sold.value, none_sold.low, none_sold.flags) == (0, None, ())
    assert value("conversion", shop(9, SOLD, notes=frozenset({"dwell_too_long"}))) == Value(
        None, flags=("dwell_too_long",)
    )
    assert value("visits", Inputs()).flags == ("not_measured",)


def test_a_counter_that_nobody_audited_has_no_interval() -> None:
    found = value("visits", shop(500, audited=False, count_variance=None))
    assert (found.value, found.low, found.flags) == (500, None, ("never_audited",))
    audited = value("visits", shop(500, count_variance=(0.02 * 500) ** 2))
    oracle = 500 * np.exp(np.array([-1, 1]) * stats.norm.ppf(0.975) * 0.02)
    assert (audited.low, audited.high) == pytest.approx(tuple(oracle), rel=1e-5)


AMOUNTS = st.lists(st.floats(0.01, 10_000).map(lambda a: round(a, 2)), min_size=2, max_size=60)


@given(AMOUNTS, st.integers(1, 10_000))
def test_money_ratios_have_the_intervals_that_scipy_gives_them(
    amounts: list[float], visits: int
) -> None:
    sales = takings(amounts)
    found = value("atv", shop(visits, sales))
    mean, se = np.mean(amounts), stats.sem(amounts)
    assert found.value == pytest.approx(mean)
    assert found.low is not None
    t = stats.t.ppf(0.975, len(amounts) - 1)
    assert found.low == pytest.approx(mean - t * se, rel=1e-3, abs=1e-2)
    spv, conversion = value("spv", shop(visits, sales)), value("conversion", shop(visits, sales))
    assert conversion.value is not None
    assert spv.value == pytest.approx(conversion.value * mean)  # SPV = C x ATV
    c = conversion.value
    variance = max(0, 1 - c) / len(amounts) + (se / mean) ** 2
    assert spv.high is not None
    assert spv.value is not None
    assert spv.high == pytest.approx(spv.value * exp(1.959964 * sqrt(variance)), rel=1e-3)


def test_units_and_currencies() -> None:
    assert value("upt", shop(9, takings([5.0, 7.0], units=3))).value == 3
    mixed = added([shop(5, takings([5.0])), shop(5, takings([5.0], currency="DKK"))])
    assert value("net_sales", mixed).flags == ("mixed_currencies",)
    assert value("transactions", mixed).value == 2
    assert value("atv", shop(5)).flags == ("no_sales",)


def test_a_site_without_a_till_sold_not_nothing_but_nobody_knows_what() -> None:
    for kpi in ("transactions", "net_sales", "atv", "upt", "conversion", "spv", "returns"):
        assert value(kpi, shop(5, Takings())) == Value(None, flags=("no_tills",))
    assert value("transactions", shop(5)).value == 0


COUNTS = st.one_of(st.none(), st.integers(0, 1_000).map(float))


@given(st.lists(st.tuples(COUNTS, st.integers(0, 200), st.integers(0, 3_600)), min_size=1))
def test_what_is_rolled_up_is_a_ratio_of_sums(
    parts: list[tuple[float | None, int, int]],
) -> None:
    """Sales where visits are unknown do not enter a rate, and are not lost from the sales."""
    made = [
        shop(v, Takings(t, Decimal(10 * t), t, currency="SEK"), observed_s=s, expected_s=3_600)
        for v, t, s in parts
    ]
    whole = added(made)
    visits = sum(v for v, _, _ in parts if v is not None)
    matched = sum(t for v, t, _ in parts if v is not None)
    assert value("transactions", whole).value == sum(t for _, t, _ in parts)
    assert whole.coverage == pytest.approx(sum(s for *_, s in parts) / 3_600 / len(parts), abs=1e-4)
    found = value("conversion", whole)
    if visits:
        assert found.value == pytest.approx(matched / visits)
    else:
        assert found.value is None


def test_errors_of_independent_counters_add_up_in_squares() -> None:
    one = shop(1_000, count_variance=50.0**2)
    assert formulas.relative_error(added([one] * 4)) == pytest.approx(0.05 / 2)
    never = shop(1_000, audited=False, count_variance=None)
    assert "never_audited" in value("visits", added([one, never])).flags


def test_turn_in_has_two_variants() -> None:
    passers = shop(50, passers=950.0)
    assert value("turn_in_passers_only", passers).value == 0.05
    assert value("turn_in_of_all", passers).value == pytest.approx(50 / 950)
    interval = stats.binomtest(50, 1_000).proportion_ci(method="wilson")
    found = value("turn_in_passers_only", passers)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-5)
    assert value("turn_in_of_all", shop(50)).flags == ("passers_not_counted",)
    more = value("turn_in_of_all", shop(50, passers=20.0))
    assert (more.value, more.low, more.flags) == (2.5, None, ("undercount_suspected",))


def test_staff_are_estimated_beside_and_never_silently() -> None:
    staffed = shop(100, shifts=5.0, staffed_hours=40.0)
    assert value("staff_estimated", staffed).value == 30
    assert value("visits_net", staffed).value == 70
    assert value("visits", staffed).value == 100
    few = value("visits_net", shop(20, shifts=5.0))
    assert (few.value, "staff_clamped" in few.flags) == (0, True)
    assert value("shopper_to_staff", staffed).value == 2.5
    assert value("shopper_to_staff", shop(20)).flags == ("no_roster",)


@given(st.integers(1, 5_000), st.floats(0, 40), st.floats(0.001, 0.3))
def test_without_staff_visits_are_as_far_off_as_with_them(
    visits: int, shifts: float, error: float
) -> None:
    asked = shop(visits, shifts=shifts, count_variance=(error * visits) ** 2)
    all_, net, staff = value("visits", asked), value("visits_net", asked), 6 * shifts
    assert None not in (all_.low, all_.high)
    if staff > visits:
        assert (net.value, net.low, net.high) == (0, None, None)
        assert "staff_clamped" in net.flags
        return
    assert net.value == pytest.approx(visits - staff)
    assert net.high == pytest.approx((all_.high or 0) - staff)
    assert net.low == pytest.approx(max(0, (all_.low or 0) - staff))


def test_of_a_hundred_visits_less_sixty_staff_the_visits_error_is_left() -> None:
    net = value("visits_net", shop(100, shifts=10.0, count_variance=3.0**2))
    assert net.value == 40
    assert half_width(net) == pytest.approx(5.9, abs=0.05)
    never = value("visits_net", shop(100, shifts=10.0, audited=False, count_variance=None))
    assert (never.value, never.low, never.high) == (40, None, None)


def test_the_published_feedback_indices() -> None:
    answers = {
        Kind.SMILEY4: (126, 60, 16, 17),
        Kind.SMILEY5: (51, 23, 12, 2, 4),
        Kind.NPS: (395, 0, 0, 0, 0, 0, 0, 476, 0, 291),
        Kind.CSAT: (0, 1, 2, 3, 4, 10),
        Kind.CES: (0, 0, 0, 0, 0, 10, 10, 5),
    }
    inputs = Inputs(answers=answers)
    assert value("smiley4_index", inputs).value == pytest.approx(78.23, abs=0.005)
    assert value("smiley5_index", inputs).value == pytest.approx(81.25)
    nps = value("nps", inputs)
    assert nps.value == pytest.approx(-8.95, abs=0.005)
    assert half_width(nps) == pytest.approx(4.4, abs=0.05)
    csat = value("csat", inputs)
    wilson = stats.binomtest(14, 20).proportion_ci(method="wilson")
    assert (csat.value, csat.flags) == (70, ("interval_only",))
    assert (csat.low, csat.high) == pytest.approx((100 * wilson.low, 100 * wilson.high), abs=1e-3)
    scores = [5] * 10 + [6] * 10 + [7] * 5
    low, high = stats.t.interval(0.95, 24, np.mean(scores), stats.sem(scores))
    ces = value("ces", inputs)
    assert (ces.low, ces.high) == pytest.approx((low, high), abs=1e-3)
    assert value("nps", Inputs()).flags == ("no_answers",)
    waiting = Inputs(notes=frozenset({"filter_pending"}))
    assert value("nps", waiting).flags == ("no_answers", "filter_pending")
    for kpi in ("smiley4_index", "nps", "csat", "ces"):  # pooled: sums of scores over sums of n
        twice = value(kpi, added([inputs, inputs]))
        assert twice.value == pytest.approx(value(kpi, inputs).value)
        assert twice.numerator == pytest.approx(2 * (value(kpi, inputs).numerator or 0))


def test_response_rate_is_of_people_who_went_out() -> None:
    found = value("response_rate", shop(9, responses=6, asked=100.0))
    oracle = stats.binomtest(6, 100).proportion_ci(method="wilson")
    assert found.value == 0.06
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-5)
    assert "undercount_suspected" in value("response_rate", shop(9, responses=6, asked=3.0)).flags
    assert value("response_rate", shop(9, responses=6)).flags == ("exits_not_counted",)


ANYTHING = st.builds(
    shop,
    COUNTS,
    st.sampled_from([Takings(), NONE_SOLD, SOLD, SOLD._replace(currency="")]),
    audited=st.booleans(),
    observed_s=st.sampled_from([0, 18_000, 36_000]),
    passers=COUNTS, exits=COUNTS, groups=COUNTS, due=COUNTS, shifts=COUNTS, staffed_hours=COUNTS,
    asked=COUNTS, stayed_s=COUNTS, stayers=COUNTS, inside_s=COUNTS, peak=COUNTS,
    responses=st.sampled_from([None, 0, 5]),
    inside_of_s=st.sampled_from([0, 900]),
    answers=st.sampled_from([{}, {Kind.CES: (0, 0, 1)}, {Kind.NPS: (0,)}, {Kind.CSAT: (0, 2)}]),
    notes=st.sampled_from([frozenset(), frozenset({"dwell_too_long", "dwell_derived"})]),
)  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from([*REGISTRY.values()]), ANYTHING)
def test_where_there_is_no_value_a_flag_says_why(kpi: Definition, inputs: Inputs) -> None:
    found = kpi.compute(inputs)
    assert found.value is not None or set(found.flags) - {"never_audited", "partial_coverage"}


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=4))
def test_the_frequency_of_customers_is_found_again_from_people_who_are_met(
    sites: list[list[int]],
) -> None:
    """Meet everyone once per visit: the plain mean is too high, n / sum(1/f) is that of all."""
    frequencies = [f for site in sites for f in site]
    found = value("visit_frequency", added([shop(9, tokens=tuple(site)) for site in sites]))
    met = np.repeat(frequencies, frequencies)
    assert found.value == pytest.approx(len(met) / np.sum(1 / met))
    assert (found.numerator, found.denominator) == (len(met), len(frequencies))
    assert found.value <= np.mean(met) + 1e-9
    assert found.flags == ("of_token_holders",)


def test_who_came_is_not_identifiable_from_doors() -> None:
    for kpi in ("visit_frequency", "repeat_share", "customer_lifetime_value"):
        assert value(kpi, shop(100, SOLD)) == Value(None, flags=("not_identifiable_from_doors",))
    tokens = shop(100, tokens=(1, 1, 4))
    assert value("visit_frequency", tokens).value == 2
    repeat = value("repeat_share", tokens)
    oracle = stats.binomtest(1, 3).proportion_ci(method="wilson")
    assert (repeat.value, repeat.low, repeat.high) == pytest.approx((1 / 3, *oracle), abs=1e-5)


def test_lifetime_value_is_margins_times_survival_discounted() -> None:
    uniform = Cohort(30, (100.0, 60.0, 90.0), 1.0, 1.0, 0.1)  # of whom 1 / (t + 1) are left
    found = value("customer_lifetime_value", shop(9, cohorts=(uniform,)))
    worth = 100 + 60 / 2 / 1.1 + 90 / 3 / 1.21
    assert (found.value, found.numerator) == pytest.approx((worth, 30 * worth))
    assert (found.denominator, found.flags) == (30, ("of_token_holders",))
    churn = stats.beta(0.7, 2.2)  # survival is the mean of (1 - churn) ** t
    kept = [churn.expect(lambda lost, t=t: (1 - lost) ** t) for t in range(5)]
    other = Cohort(10, (8.0,) * 5, 0.7, 2.2, 0.02)
    oracle = sum(8 * share / 1.02**t for t, share in enumerate(kept))
    alone = value("customer_lifetime_value", shop(9, cohorts=(other,)))
    assert alone.value == pytest.approx(oracle, rel=1e-5)
    both = added([shop(9, cohorts=(uniform,)), shop(9), shop(9, cohorts=(other,))])
    wanted = (30 * worth + 10 * oracle) / 40
    assert value("customer_lifetime_value", both).value == pytest.approx(wanted, rel=1e-5)


def test_groups_are_buying_units_and_never_visits() -> None:
    counted = shop(1_000, SOLD, groups=600.0, count_variance=30.0**2)
    groups, rate = value("groups", counted), value("conversion_of_groups", counted)
    ends = 600 * np.exp(np.array([-1, 1]) * stats.norm.ppf(0.975) * 0.03)
    assert (groups.value, groups.low, groups.high) == pytest.approx((600, *ends), rel=1e-5)
    half = stats.norm.ppf(0.975) * sqrt((1 - 0.5) / 300 + 0.03**2)
    assert (rate.value, rate.low) == pytest.approx((0.5, 0.5 * exp(-half)), rel=1e-5)
    assert (rate.numerator, rate.denominator) == (300, 600)
    assert value("visits", counted).value == 1_000
    for kpi in ("groups", "conversion_of_groups"):
        assert value(kpi, shop(1_000, SOLD)) == Value(None, flags=("groups_not_counted",))


@pytest.mark.parametrize(("median", "bucket"), [(12, 60), (12, 15), (6.5, 60), (45, 60)])
def test_who_buys_later_is_as_a_simulation_says(median: float, bucket: float) -> None:
    shares = later_purchases(median, bucket_min=bucket)
    rng = np.random.default_rng(7)
    leaves = rng.uniform(0, bucket, 400_000) + rng.lognormal(np.log(median), 1.0, 400_000)
    oracle = np.bincount((leaves // bucket).astype(int)) / 400_000
    assert sum(shares) == pytest.approx(1)
    for n in range(min(4, len(shares))):
        assert shares[n] == pytest.approx(oracle[n], abs=0.004)


def test_visits_are_shifted_to_when_they_buy() -> None:
    assert shifted([100, 0, None, 10], [0.6, 0.3, 0.1]) == [60, 30, None, 6]


def slow_peak(
    quarters: list[tuple[int, float | None, float | None]],
) -> tuple[int, float] | None:
    at = {start: (count, share) for start, count, share in quarters}
    hours = []
    for start in at:
        four = [at.get(start + 900 * n) for n in range(4)]
        if all(f is not None and f[0] is not None and (f[1] or 0) >= 0.9 for f in four):
            hours.append((-sum(f[0] or 0 for f in four if f), start))
    return None if not hours else (min(hours)[1], -min(hours)[0])


@given(
    st.lists(
        st.tuples(st.integers(0, 30), COUNTS, st.sampled_from([None, 0.5, 0.9, 1.0])),
        unique_by=lambda q: q[0],
    )
)
def test_the_peak_is_the_earliest_of_the_busiest_hours(
    drawn: list[tuple[int, float | None, float | None]],
) -> None:
    quarters = [(900 * n, count, share) for n, count, share in sorted(drawn)]
    assert busiest_hour(quarters) == slow_peak(quarters)


def test_stays_and_people_inside_are_means_of_sums() -> None:
    quiet = shop(60, stayed_s=60 * 600.0, stayers=60.0, inside_s=36_000.0, inside_of_s=36_000)
    busy = shop(20, stayed_s=20 * 1_800.0, stayers=20.0, inside_s=9_000.0, inside_of_s=900)
    both = added([quiet, busy])
    assert value("dwell", both).value == pytest.approx((60 * 10 + 20 * 30) / 80)
    assert value("occupancy", both).value == pytest.approx(45_000 / 36_900)
    assert value("dwell", shop(60)).flags == ("not_measured",)


def test_every_definition_says_what_it_is_and_answers_nothing_for_nothing() -> None:
    for kpi in REGISTRY.values():
        assert kpi.id == f"{kpi.name}.v1"
        assert find(kpi.name) is kpi
        assert len(kpi.formula) > 20
        found = kpi.compute(Inputs())
        assert found.value in (None, 0), kpi.id
        if found.value is None:
            assert found.flags, kpi.id
    with pytest.raises(UnknownMetricError, match="lists them"):
        find("happiness")
    assert [a.name for a, b in pairwise(REGISTRY.values()) if a.name == b.name] == []
