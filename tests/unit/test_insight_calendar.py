"""Days are compared with the days of the year before that are like them; dates as published."""

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.insight.calendar import (
    Aligned,
    Year,
    aligned,
    black_friday,
    country_of,
    easter,
    incomparable,
    midsummer_eve,
    name_of,
    pay_day,
)
from server.insight.retail_year import NRF

EASTERS = {
    2008: (3, 23), 2011: (4, 24), 2016: (3, 27), 2019: (4, 21), 2020: (4, 12), 2021: (4, 4),
    2022: (4, 17), 2023: (4, 9), 2024: (3, 31), 2025: (4, 20), 2026: (4, 5), 2027: (3, 28),
    2038: (4, 25),
}  # fmt: skip
DAYS = st.dates(date(2005, 1, 1), date(2060, 12, 31))
COUNTRIES = st.sampled_from(["SE", "DK", "NO", "FI", ""])


def test_easter_falls_where_it_was_published() -> None:
    assert {year: (easter(year).month, easter(year).day) for year in EASTERS} == EASTERS


@given(st.integers(1583, 4000))
def test_easter_is_as_gauss_reckoned_it(year: int) -> None:
    a, b, c = year % 19, year % 4, year % 7
    k = year // 100
    p, q = (13 + 8 * k) // 25, k // 4
    m, n = (15 - p + k - q) % 30, (4 + k - q) % 7
    d = (19 * a + m) % 30
    e = (2 * b + 4 * c + 6 * d + n) % 7
    found = date(year, 3, 22) + timedelta(days=d + e)
    if d == 29 and e == 6:
        found = date(year, 4, 19)
    if d == 28 and e == 6 and (11 * m + 11) % 30 < 19:
        found = date(year, 4, 18)
    assert easter(year) == found


def test_the_moving_days_of_published_calendars() -> None:
    assert midsummer_eve(2025) == date(2025, 6, 20)
    assert midsummer_eve(2026) == date(2026, 6, 19)
    assert black_friday(2025) == date(2025, 11, 28)
    assert black_friday(2024) == date(2024, 11, 29)
    assert name_of(date(2026, 5, 14), "SE") == "ascension_day"
    assert name_of(date(2025, 5, 29), "DK") == "ascension_day"
    assert name_of(date(2026, 10, 31), "SE") == "all_saints_day"
    assert name_of(date(2026, 5, 25), "DK") == "whit_monday"
    assert name_of(date(2026, 5, 25), "SE") == "pay_day_05"


def test_pay_day_is_the_25th_or_the_last_working_day_before() -> None:
    assert pay_day(2026, 11) == date(2026, 11, 25)
    assert pay_day(2026, 10) == date(2026, 10, 23)  # a Sunday
    assert pay_day(2026, 12) == date(2026, 12, 23)  # Christmas and its eve
    assert pay_day(2022, 6) == date(2022, 6, 23)  # Midsummer's day and its eve


def test_years_of_53_weeks() -> None:
    assert aligned(date(2026, 12, 28)).flags == ("week_53",)
    assert aligned(date(2027, 3, 3)) == Aligned(date(2026, 2, 25), None, ("after_week_53",))


def test_ordinary_days_are_compared_by_the_weeks_of_the_chosen_calendar() -> None:
    """The NRF's 2023 has 53 weeks, no ISO year about it has."""
    assert aligned(date(2024, 3, 13), "").day == date(2023, 3, 15)
    assert aligned(date(2024, 3, 13), "", NRF) == Aligned(
        date(2023, 3, 8), None, ("after_week_53",)
    )
    assert aligned(date(2024, 2, 1), "", NRF) == Aligned(date(2023, 2, 2), None, ("week_53",))
    assert aligned(date(2024, 3, 31), "", NRF) == Aligned(date(2023, 4, 9), "easter_sunday")


def test_holidays_are_compared_by_name() -> None:
    assert aligned(date(2026, 4, 3), "SE").day == date(2025, 4, 18)  # Good Friday
    assert aligned(date(2026, 5, 14), "DK").day == date(2025, 5, 29)  # Ascension
    assert aligned(date(2026, 6, 19), "SE").day == date(2025, 6, 20)  # Midsummer's eve
    assert aligned(date(2025, 11, 28), "SE").day == date(2024, 11, 29)  # Black Friday
    assert aligned(date(2026, 12, 24), "NO").day == date(2025, 12, 24)
    assert aligned(date(2026, 2, 25), "SE").day == date(2025, 2, 25)  # pay-day, whatever weekday
    assert aligned(date(2026, 2, 25), "NO").day == date(2025, 2, 26)


def test_an_ordinary_day_is_not_compared_with_a_holiday() -> None:
    found = aligned(date(2026, 4, 17), "DK")  # a year before: Good Friday
    assert (found.day, found.flags) == (date(2025, 4, 11), ("moved",))


def test_store_bededag_is_an_ordinary_day_from_2024() -> None:
    assert name_of(date(2023, 5, 5), "DK") == "store_bededag"
    assert name_of(date(2024, 4, 26), "DK") is None
    assert aligned(date(2023, 5, 5), "DK").day == date(2022, 5, 13)
    assert aligned(date(2024, 4, 26), "DK").day == date(2023, 4, 28)
    assert aligned(date(2024, 5, 3), "DK").flags == ("moved",)  # the holiday of 2023 is no equal


@given(DAYS, COUNTRIES)
def test_a_day_is_compared_with_its_equal_about_a_year_before(day: date, country: str) -> None:
    found = aligned(day, country)
    assert timedelta(days=320) < day - found.day < timedelta(days=410)
    assert name_of(found.day, country) == found.name
    if found.name is None:
        assert found.day.weekday() == day.weekday()
        if "moved" not in found.flags:
            assert (day - found.day).days in (364, 371)


def test_the_country_is_told_by_the_zone() -> None:
    assert (country_of("Europe/Copenhagen"), country_of("Europe/Madrid")) == ("DK", "")


SPOTS = frozenset({1, 2})
NOW = Year(date(2026, 3, 1), date(2026, 3, 31), 0.99, 1_000_000, SPOTS)
BEFORE = Year(date(2025, 3, 2), date(2025, 4, 1), 0.95, 1_020_000, SPOTS)


@pytest.mark.parametrize(
    ("now", "opens", "closes", "why"),
    [
        (NOW, None, None, ()),
        (NOW, date(2025, 1, 1), None, ()),
        (NOW, date(2025, 2, 10), None, ("opened_recently",)),
        (NOW, None, date(2026, 3, 15), ("closed",)),
        (replace(NOW, spots=frozenset({1})), None, None, ("doors_changed",)),
        (replace(NOW, coverage=0.89), None, None, ("low_coverage",)),
        (replace(NOW, coverage=None), None, None, ("low_coverage",)),
        (replace(NOW, open_s=900_000), None, None, ("hours_changed",)),
    ],
)
def test_sites_are_comparable_only_like_for_like(
    now: Year, opens: date | None, closes: date | None, why: tuple[str, ...]
) -> None:
    assert incomparable(now, BEFORE, opens_on=opens, closes_on=closes) == why
