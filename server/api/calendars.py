"""The routes of /v1 about retail years: which calendar an organisation reports by, its periods."""

from datetime import date

import msgspec

from server.api.acts import Act, ActRoute
from server.api.parameters import EARLIEST, LATEST, AsFormat, Nothing
from server.api.problems import ParameterError
from server.api.reads import Call, Route
from server.api.types import Page
from server.insight.retail_calendar import calendar_of, choose, wanted_of
from server.insight.retail_year import RetailCalendar, periods, week_of


class Calendar(msgspec.Struct, forbid_unknown_fields=True):
    """Weeks to a period, and when a year begins: the `weekday` closest to the 1st of `month`.

    `pattern` is iso (weeks alone, the default), 4-4-5, 4-5-4 or 5-4-4; `weekday` 0 is Monday. The
    calendar of the US National Retail Federation is 4-5-4, month 2, weekday 6. Of iso, month and
    weekday are always 1 and 0.
    """

    pattern: str
    month: int = 1
    weekday: int = 0


class PeriodParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The periods of one retail year, without `year` of the current one; none of ISO weeks."""

    year: int | None = None
    format: AsFormat = None


class PeriodRow(msgspec.Struct, frozen=True):
    """A period of whole weeks, its first and last one; `to` is the day after it."""

    period: str
    year: int
    number: int
    since: date = msgspec.field(name="from")
    until: date = msgspec.field(name="to")
    weeks: int
    first_week: str
    last_week: str


def _calendar(found: RetailCalendar) -> Calendar:
    return Calendar(found.pattern.value, found.month, found.weekday)


async def _read(call: Call, asked: Nothing) -> Calendar:
    del asked
    return _calendar(await calendar_of(call.connection))


async def _periods(call: Call, asked: PeriodParameters) -> Page[PeriodRow]:
    calendar, year = await calendar_of(call.connection), asked.year
    if year is None:
        year = week_of(calendar, call.now.date()).year
    if not EARLIEST <= year <= LATEST:
        raise ParameterError("year", f"expected {EARLIEST} to {LATEST}, got {year}")
    return Page(
        [
            PeriodRow(
                *(each.label, each.year, each.number, each.first, each.until, each.weeks),
                f"{year}-R{each.first_week:02}",
                f"{year}-R{each.first_week + each.weeks - 1:02}",
            )
            for each in periods(calendar, year)
        ]
    )


async def _choose(act: Act, body: Calendar) -> Calendar:
    wanted = wanted_of(body.pattern, body.month, body.weekday)
    return _calendar(await choose(act.connection, act.organisation, wanted, **act.by))


ROUTES: tuple[Route, ...] = (
    Route("/calendar", "By which calendar is reported", Nothing, Calendar, None, _read),
    Route(
        *("/periods", "The periods of a retail year", PeriodParameters, Page[PeriodRow]),
        *(PeriodRow, _periods),
    ),
)
ACTS: tuple[ActRoute, ...] = (
    ActRoute(
        *("PUT", "/calendar", "Choose the calendar to report by", Calendar, _choose, Calendar),
        write="targets:write",
    ),
)
