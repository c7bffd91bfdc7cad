"""Retail years: as published, and as a plain count of their days says."""

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.insight.retail_year import (
    ISO,
    NRF,
    Pattern,
    RetailCalendar,
    first_day,
    flags_of,
    of_iso_week,
    periods,
    same_weekday,
    week_of,
    weeks_in,
)

DAY = timedelta(days=1)
DAYS = st.dates(date(1991, 1, 1), date(2099, 12, 31))
CALENDARS = st.builds(
    RetailCalendar,
    st.sampled_from([pattern for pattern in Pattern if pattern is not Pattern.ISO]),
    st.integers(1, 12),
    st.integers(0, 6),
)
NRF_2023 = [
    (date(2023, 1, 29), 4), (date(2023, 2, 26), 5), (date(2023, 4, 2), 4),
    (date(2023, 4, 30), 4), (date(2023, 5, 28), 5), (date(2023, 7, 2), 4),
    (date(2023, 7, 30), 4), (date(2023, 8, 27), 5), (date(2023, 10, 1), 4),
    (date(2023, 10, 29), 4), (date(2023, 11, 26), 5), (date(2023, 12, 31), 5),
]  # fmt: skip
"""February 2023 to January 2024 of the published 4-5-4 calendar: a year of 53 weeks."""


def test_a_year_of_53_weeks_of_the_published_4_5_4_calendar() -> None:
    found = periods(NRF, 2023)
    assert [(each.first, each.weeks) for each in found] == NRF_2023
    assert found[-1].until == date(2024, 2, 4)
    assert [first_day(NRF, year) for year in (2022, 2024, 2025, 2026)] == [
        date(2022, 1, 30), date(2024, 2, 4), date(2025, 2, 2), date(2026, 2, 1),
    ]  # fmt: skip
    years = [year for year in range(1995, 2030) if weeks_in(NRF, year) == 53]
    assert years == [1995, 2000, 2006, 2012, 2017, 2023, 2028]


def test_labels_name_the_year_that_its_month_is_in() -> None:
    last = date(2024, 2, 3)
    assert week_of(NRF, last).label == "2023-R53"
    assert periods(NRF, 2023)[-1].label == "2023-P12"
    assert periods(NRF, 2023)[-1].until == last + DAY
    january = RetailCalendar(Pattern.P445)
    assert week_of(january, date(2025, 12, 30)).label == "2026-R01"


def test_an_iso_week_bears_its_retail_name_only_if_it_is_the_same_week() -> None:
    monday = date(2026, 3, 23)
    assert of_iso_week(RetailCalendar(Pattern.P445), monday) == "2026-R13, P03"
    assert of_iso_week(NRF, monday) == of_iso_week(ISO, monday) == ""


@given(DAYS)
def test_iso_weeks_are_a_retail_year_of_their_own(day: date) -> None:
    year, number, weekday = day.isocalendar()
    found = week_of(ISO, day)
    assert (found.year, found.number, found.period) == (year, number, 0)
    assert found.first == day - timedelta(days=weekday - 1)
    assert not periods(ISO, year)


def plain_year(calendar: RetailCalendar, around: date) -> tuple[int, list[date]]:
    """Return the year that holds a day, and its days, found one by one."""

    def begins(day: date) -> int | None:
        for away in (0, 1, -1, 2, -2, 3, -3):
            near = day + away * DAY
            if near.day == 1 and near.month == calendar.month:
                return near.year if day.weekday() == calendar.weekday else None
        return None

    day = around
    while (year := begins(day)) is None:
        day -= DAY
    days = [day]
    while begins(days[-1] + DAY) is None:
        days.append(days[-1] + DAY)
    return year, days


@given(CALENDARS, DAYS)
def test_weeks_and_periods_are_those_of_a_plain_count(calendar: RetailCalendar, day: date) -> None:
    year, days = plain_year(calendar, day)
    week = days.index(day) // 7 + 1
    lengths = [int(text) for text in calendar.pattern.value.split("-")] * 4
    period = next((n for n in range(1, 12) if week <= sum(lengths[:n])), 12)
    assert len(days) in (364, 371)
    found = week_of(calendar, day)
    assert (found.year, found.number, found.period) == (year, week, period)
    assert found.first == days[7 * (week - 1)]
    whole = periods(calendar, year)
    assert [each.first for each in whole] == [
        days[7 * sum(lengths[:number])] for number in range(12)
    ]
    assert whole[-1].until == days[-1] + DAY
    assert sum(each.weeks for each in whole) == weeks_in(calendar, year)
    assert whole[period - 1].first <= day < whole[period - 1].until
    assert [each.first_week for each in whole] == [
        1 + sum(each.weeks for each in whole[:number]) for number in range(12)
    ]


@given(CALENDARS | st.just(ISO), DAYS)
def test_a_day_is_compared_with_its_place_in_the_year_before(
    calendar: RetailCalendar, day: date
) -> None:
    _, days = plain_year(calendar, day)
    _, before = plain_year(calendar, days[0] - DAY)
    place = days.index(day)
    found, flags = same_weekday(day, calendar), flags_of(day, calendar)
    assert found.weekday() == day.weekday()
    if place < len(before):
        assert found == before[place]
        assert flags == (("after_week_53",) if len(before) == 371 else ())
    else:  # the first week of the year that follows the aligned one
        assert found == days[place - 364]
        assert flags == ("week_53",)


@pytest.mark.parametrize(
    ("day", "compared", "flags"),
    [
        (date(2024, 1, 27), date(2023, 1, 28), ()),  # the last day of week 52
        (date(2024, 1, 28), date(2023, 1, 29), ("week_53",)),
        (date(2024, 2, 4), date(2023, 1, 29), ("after_week_53",)),
        (date(2025, 2, 1), date(2024, 1, 27), ("after_week_53",)),
        (date(2025, 2, 2), date(2024, 2, 4), ()),
    ],
)
def test_about_a_53rd_week_days_move_by_a_week(
    day: date, compared: date, flags: tuple[str, ...]
) -> None:
    assert (same_weekday(day, NRF), flags_of(day, NRF)) == (compared, flags)
