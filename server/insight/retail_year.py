"""A retailer's year of whole weeks: 4-4-5, 4-5-4 or 5-4-4 weeks to a period. Pure: days in and out.

Decided here:

1. A retail year begins on its first weekday, on the one that is closest to the 1st of its month: a
   year of the US National Retail Federation on the Sunday closest to the 1st of February, an ISO
   year on the Monday closest to the 1st of January. It is named after the year of that 1st.
2. It has four quarters of three periods, which have as many weeks as the pattern says. Where a year
   has 53 weeks, the last belongs to its last period, which then has a week more.
3. A week is compared with the week of the same number a year before: 364 days before, or 371 where
   the year before has 53 weeks, flagged `after_week_53`. Week 53, which the year before lacks, is
   compared with week 1 of the year that follows that one, its own: 364 days before, flagged
   `week_53`.

ISO weeks are such a year without periods, so they are compared by the same rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, date, timedelta
from enum import StrEnum
from functools import lru_cache

WEEK = timedelta(days=7)
WEEKS = 52
_QUARTERS = 4


class Pattern(StrEnum):
    """How many weeks the three periods of a quarter have; ISO: weeks alone."""

    ISO = "iso"
    P445 = "4-4-5"
    P454 = "4-5-4"
    P544 = "5-4-4"

    @property
    def lengths(self) -> tuple[int, ...]:
        """The weeks of a year's periods, of 52; none of ISO."""
        if self is Pattern.ISO:
            return ()
        return _QUARTERS * tuple(map(int, self.value.split("-")))


@dataclass(frozen=True, slots=True)
class RetailCalendar:
    """A pattern, and when its years begin: the `weekday` (Monday 0) closest to the 1st of `month`.

    Of ISO weeks month and weekday are always these.
    """

    pattern: Pattern = Pattern.ISO
    month: int = 1
    weekday: int = 0

    @property
    def has_periods(self) -> bool:
        return self.pattern is not Pattern.ISO


ISO = RetailCalendar()
NRF = RetailCalendar(Pattern.P454, 2, 6)
"""The calendar of the US National Retail Federation."""


@dataclass(frozen=True, slots=True)
class RetailWeek:
    """A week: its year, its number in the year, its period (0: there are none), its first day."""

    year: int
    number: int
    period: int
    first: date

    @property
    def label(self) -> str:
        """Such as `2026-R07`."""
        return f"{self.year}-R{self.number:02}"


@dataclass(frozen=True, slots=True)
class Period:
    """A retail month: whole weeks."""

    year: int
    number: int
    first: date
    weeks: int
    first_week: int

    @property
    def until(self) -> date:
        """The day after its last."""
        return self.first + self.weeks * WEEK

    @property
    def label(self) -> str:
        """Such as `2026-P02`."""
        return f"{self.year}-P{self.number:02}"


@lru_cache(maxsize=2_000)
def first_day(calendar: RetailCalendar, year: int) -> date:
    """Return the first day of a retail year."""
    first = date(year, calendar.month, 1)
    ahead = (calendar.weekday - first.weekday()) % 7
    return first + timedelta(days=ahead if ahead <= 3 else ahead - 7)


def weeks_in(calendar: RetailCalendar, year: int) -> int:
    """Return 52 or 53."""
    return (first_day(calendar, year + 1) - first_day(calendar, year)) // WEEK


@lru_cache(maxsize=20_000)
def week_of(calendar: RetailCalendar, day: date) -> RetailWeek:
    """Return the retail week that holds a day."""
    year = min(day.year + 1, MAXYEAR)
    while (begins := first_day(calendar, year)) > day:
        year -= 1
    number = (day - begins) // WEEK + 1
    period, left = 0, number
    for length in calendar.pattern.lengths:
        if left <= 0:
            break
        period, left = period + 1, left - length
    return RetailWeek(year, number, period, begins + (number - 1) * WEEK)


@lru_cache(maxsize=500)
def periods(calendar: RetailCalendar, year: int) -> Sequence[Period]:
    """Return a year's periods in order; none of ISO weeks."""
    found: list[Period] = []
    week, first = 1, first_day(calendar, year)
    lengths = list(calendar.pattern.lengths)
    if lengths:
        lengths[-1] += weeks_in(calendar, year) - WEEKS
    for number, length in enumerate(lengths, 1):
        found.append(Period(year, number, first, length, week))
        week, first = week + length, first + length * WEEK
    return tuple(found)


def of_iso_week(calendar: RetailCalendar, monday: date) -> str:
    """Return the label and period of the retail week that an ISO week is; empty if it is none."""
    week = week_of(calendar, monday)
    if not calendar.has_periods or week.first != monday:
        return ""
    return f"{week.label}, P{week.period:02}"


def same_weekday(day: date, calendar: RetailCalendar = ISO) -> date:
    """Return the same weekday of the same week a year before; of week 53: 364 days before."""
    week = week_of(calendar, day)
    if week.number > weeks_in(calendar, week.year - 1):
        return day - WEEKS * WEEK
    return first_day(calendar, week.year - 1) + (day - first_day(calendar, week.year))


def flags_of(day: date, calendar: RetailCalendar = ISO) -> tuple[str, ...]:
    """Return what is not straightforward about `same_weekday`."""
    if week_of(calendar, day).number > WEEKS and day - same_weekday(day, calendar) == WEEKS * WEEK:
        return ("week_53",)
    return ("after_week_53",) if day - same_weekday(day, calendar) > WEEKS * WEEK else ()
