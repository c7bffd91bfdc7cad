"""A pop-up's life: where it is in it, its best day, and what one visit cost."""

from datetime import date, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.portal.popup_view import (
    Bar,
    Campaign,
    Kpi,
    Life,
    Phase,
    best_of,
    costs_of,
)
from server.portal.view import Cell

FIRST, LAST = date(2026, 5, 4), date(2026, 5, 17)
VISITS = Kpi("visits", "people", 2_000, 1_900, 2_100, "SEK")


@pytest.mark.parametrize(
    ("today", "phase", "gone", "until_open"),
    [
        (FIRST - timedelta(days=3), Phase.BEFORE, 0, 3),
        (FIRST, Phase.OPEN, 1, 0),
        (LAST, Phase.OPEN, 14, 0),
        (LAST + timedelta(days=1), Phase.AFTER, 14, 0),
        (LAST + timedelta(days=400), Phase.AFTER, 14, 0),
    ],
)
def test_a_popup_is_open_from_its_first_day_through_its_last(
    today: date, phase: Phase, gone: int, until_open: int
) -> None:
    life = Life(FIRST, LAST, today)
    assert (life.phase, life.gone, life.until_open, life.days) == (phase, gone, until_open, 14)
    assert life.final_on == date(2026, 6, 16)


def test_the_best_day_is_one_that_was_seen_well_and_of_equals_the_first() -> None:
    bars = [
        Bar(FIRST, Cell.MEASURED, 50, 0.5),
        Bar(FIRST + timedelta(days=1), Cell.PARTLY, 100, 1),
        Bar(FIRST + timedelta(days=2), Cell.MEASURED, 50, 0.5),
        Bar(FIRST + timedelta(days=3), Cell.GAP, None, 0),
    ]
    best = best_of(bars)
    assert best is bars[0]
    assert best_of(bars[1:2]) is None
    assert best_of([]) is None


def test_a_visit_costs_what_its_own_campaigns_cost_in_each_currency() -> None:
    costs, shared = costs_of(
        [
            Campaign("flyers", Decimal(3_000), "SEK", 1),
            Campaign("radio", Decimal(1_000), "SEK", 1),
            Campaign("web", Decimal(200), "EUR", 1),
            Campaign("free", Decimal(0), "NOK", 1),
            Campaign("chain", Decimal(90_000), "SEK", 0),
            Campaign("town", Decimal(5_000), "SEK", 3),
        ],
        VISITS,
    )
    assert [(each.currency, each.total, each.each) for each in costs] == [
        ("EUR", Decimal(200), 0.1),
        ("SEK", Decimal(4_000), 2.0),
    ]
    assert (costs[1].low, costs[1].high) == (4_000 / 2_100, 4_000 / 1_900)
    assert [each.name for each in shared] == ["chain", "town"]


@given(st.lists(st.integers(0, 10**6), max_size=5))
def test_without_visits_or_without_a_cost_none_is_made_up(costs: list[int]) -> None:
    campaigns = [Campaign("c", Decimal(each), "SEK", 1) for each in costs]
    assert costs_of(campaigns, None)[0] == ()
    assert costs_of(campaigns, Kpi("visits", "people", 0, None, None, "SEK"))[0] == ()
    found, _ = costs_of(campaigns, VISITS)
    assert sum(float(each.each) * 2_000 for each in found) == pytest.approx(sum(costs))
    assert bool(found) == any(costs)
