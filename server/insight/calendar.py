"""Which day of the year before a day is compared with. Pure: days in, days out.

Decided here, in this order:

1. A day with a name (a public holiday of the country, an eve that shops keep, Black Friday, a
   pay-day) is compared with the day of that name the year before, whatever its weekday or date.
2. Any other day is compared with the same weekday of the same week, of ISO years or of those that
   its organisation has chosen: `server.insight.retail_year` says which, also of years of 53 weeks.
3. If that day had a name then, it is no equal: the nearest same weekday without a name is taken,
   a week or two to either side, and flagged `moved`.

Denmark's Store Bededag is a holiday until 2023 and an ordinary day from 2024, which rule 2 compares
with another ordinary Friday, not with the holiday of 2023. Pay-day is the 25th, or the last
working day before it, in Sweden alone: elsewhere no one day is everyone's.

A site's country is told by its time zone; elsewhere than in the Nordic countries only Black Friday,
New Year, Easter and Christmas have names.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache

from server.insight.retail_year import ISO, WEEK, RetailCalendar, flags_of, same_weekday

COUNTRIES = {
    "Europe/Stockholm": "SE",
    "Europe/Copenhagen": "DK",
    "Europe/Oslo": "NO",
    "Arctic/Longyearbyen": "NO",
    "Europe/Helsinki": "FI",
    "Europe/Mariehamn": "FI",
}
_PAY_DAY = 25


@dataclass(frozen=True, slots=True)
class Aligned:
    """The day to compare with; `name` if both bear it, `flags` for what was not straightforward."""

    day: date
    name: str | None = None
    flags: tuple[str, ...] = ()


def country_of(time_zone: str) -> str:
    """Return the country whose days a site keeps, empty where it is not told by the zone."""
    return COUNTRIES.get(time_zone, "")


@lru_cache(maxsize=20_000)
def aligned(day: date, country: str = "", calendar: RetailCalendar = ISO) -> Aligned:
    """Return the day of the year before that `day` is compared with, weeks being of `calendar`."""
    name = name_of(day, country)
    if name is not None:
        for other, known in names(day.year - 1, country).items():
            if known == name:
                return Aligned(other, name)
    before, flags = same_weekday(day, calendar), flags_of(day, calendar)
    if name_of(before, country) is None:
        return Aligned(before, None, flags)
    for away in (-WEEK, WEEK, -2 * WEEK, 2 * WEEK):
        if name_of(before + away, country) is None:
            return Aligned(before + away, None, (*flags, "moved"))
    return Aligned(before, None, flags)


def name_of(day: date, country: str = "") -> str | None:
    """Return a day's name, None for an ordinary day."""
    return names(day.year, country).get(day)


@lru_cache(maxsize=512)
def names(year: int, country: str = "") -> dict[date, str]:
    """Return the days of a year that have a name; of two names of one day the first holds."""
    found: dict[date, str] = {}
    for day, name in _named(year, country):
        found.setdefault(day, name)
    if country == "SE":
        for month in range(1, 13):
            found.setdefault(pay_day(year, month), f"pay_day_{month:02}")
    return found


def pay_day(year: int, month: int) -> date:
    """Return Sweden's pay-day of a month: the 25th, or the last working day before it."""
    day = date(year, month, _PAY_DAY)
    free = {at for at, _ in _named(year, "SE")} - {black_friday(year)}
    while day.weekday() >= 5 or day in free:
        day -= timedelta(days=1)
    return day


@lru_cache(maxsize=512)
def easter(year: int) -> date:
    """Return Easter Sunday (Meeus/Jones/Butcher, Gregorian)."""
    a, b, c = year % 19, year // 100, year % 100
    d, e = divmod(b, 4)
    f = (b + 8) // 25
    g = (b - f + 1) // 3
    h = (19 * a + b - d - g + 15) % 30
    i, k = divmod(c, 4)
    m = (32 + 2 * e + 2 * i - h - k) % 7
    n = (a + 11 * h + 22 * m) // 451
    month, day = divmod(h + m - 7 * n + 114, 31)
    return date(year, month, day + 1)


def black_friday(year: int) -> date:
    """Return the day after the fourth Thursday of November."""
    return _nth(date(year, 11, 22), 3) + timedelta(days=1)


def midsummer_eve(year: int) -> date:
    """Return the Friday between the 19th and the 25th of June."""
    return _nth(date(year, 6, 19), 4)


def _nth(first: date, weekday: int) -> date:
    """Return the first day from `first` on that is this weekday (Monday 0)."""
    return first + timedelta(days=(weekday - first.weekday()) % 7)


def _named(year: int, country: str) -> Iterator[tuple[date, str]]:
    sunday = easter(year)

    def about_easter(*days: tuple[int, str]) -> Iterator[tuple[date, str]]:
        return ((sunday + timedelta(days=away), name) for away, name in days)

    nordic = country in ("SE", "DK", "NO", "FI")
    yield from about_easter(
        (-2, "good_friday"), (-1, "easter_eve"), (0, "easter_sunday"), (1, "easter_monday")
    )
    for month, day, name in (
        (1, 1, "new_year"),
        (12, 24, "christmas_eve"),
        (12, 25, "christmas_day"),
        (12, 26, "second_christmas_day"),
        (12, 31, "new_years_eve"),
    ):
        yield date(year, month, day), name
    if nordic:
        yield from about_easter((39, "ascension_day"), (49, "whit_sunday"))
        yield date(year, 5, 1), "first_of_may"
    if country in ("DK", "NO"):
        yield from about_easter((-3, "maundy_thursday"), (50, "whit_monday"))
    if country in ("SE", "FI"):
        yield date(year, 1, 6), "epiphany"
        yield midsummer_eve(year), "midsummer_eve"
        yield midsummer_eve(year) + timedelta(days=1), "midsummer_day"
        yield _nth(date(year, 10, 31), 5), "all_saints_day"
    if country == "SE":
        yield date(year, 6, 6), "national_day"
        if year < 2005:
            yield from about_easter((50, "whit_monday"))
    elif country == "DK":
        if year < 2024:
            yield from about_easter((26, "store_bededag"))
        yield date(year, 6, 5), "constitution_day"
    elif country == "NO":
        yield date(year, 5, 17), "constitution_day"
    elif country == "FI":
        yield date(year, 12, 6), "independence_day"
    yield black_friday(year), "black_friday"


# -- comparable sites --------------------------------------------------------------------------

OPEN_FOR = timedelta(days=396)
"""13 months: the first, of openings and its crowds, is left out."""
LEAST_COVERAGE = 0.9
MOST_HOURS_APART = 0.05
OF_COUNTERS = frozenset({"doors_changed", "low_coverage"})
"""What keeps apart only what counters say of two periods: what tills or kiosks say may be alike."""


@dataclass(frozen=True, slots=True)
class Year:
    """What a site was in one of two periods: `spots` are those that made its perimeter."""

    first: date
    last: date
    coverage: float | None
    open_s: int
    spots: frozenset[int]


def incomparable(
    now: Year, before: Year, *, opens_on: date | None, closes_on: date | None
) -> tuple[str, ...]:
    """Return why a site's two periods are not like for like; empty: they are.

    Comparable is a site that was open in both, opened 13 months before the later one or more, was
    counted at the same spots, covered to 90 % and more in both, and open as long, to 5 %. How large
    its floor was is not known, and so not asked.
    """
    found: list[str] = []
    if opens_on is not None and opens_on > now.first - OPEN_FOR:
        found.append("opened_recently")
    if closes_on is not None and closes_on < now.last:
        found.append("closed")
    if now.spots != before.spots:
        found.append("doors_changed")
    if min(now.coverage or 0, before.coverage or 0) < LEAST_COVERAGE:
        found.append("low_coverage")
    longest = max(now.open_s, before.open_s)
    if longest and abs(now.open_s - before.open_s) > MOST_HOURS_APART * longest:
        found.append("hours_changed")
    return tuple(found)
