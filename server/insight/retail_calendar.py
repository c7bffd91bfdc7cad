"""Which calendar an organisation reports by: ISO weeks, unless somebody chose retail years.

What it decides is asked for anew with each question: the weeks that a year before is compared by,
and the retail weeks and periods that rows may be made of. Counts stay as they are stored.
"""

from datetime import datetime

import asyncpg

from server.audit.log import record
from server.fleet.checks import FieldError, changes
from server.fleet.register import lock_organisation
from server.insight.retail_year import ISO, Pattern, RetailCalendar


async def calendar_of(connection: asyncpg.Connection) -> RetailCalendar:
    """Return the calendar of the organisation that this transaction sees."""
    row = await connection.fetchrow(
        "select calendar, calendar_month, calendar_weekday from organisations "
        "where id = current_organisation()"
    )
    return ISO if row is None else RetailCalendar(Pattern(row[0]), row[1], row[2])


def wanted_of(pattern: str, month: int, weekday: int) -> RetailCalendar:
    """Return the calendar that these make; of ISO weeks month and weekday follow. FieldError."""
    if pattern not in tuple(Pattern):
        raise FieldError("pattern", f"expected {', '.join(Pattern)}; got {pattern[:40]!r}")
    if Pattern(pattern) is Pattern.ISO:
        return ISO
    if not 1 <= month <= 12:
        raise FieldError("month", f"expected 1 to 12, got {month}")
    if not 0 <= weekday <= 6:
        raise FieldError("weekday", f"expected 0 (Monday) to 6 (Sunday), got {weekday}")
    return RetailCalendar(Pattern(pattern), month, weekday)


async def choose(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: RetailCalendar,
    *,
    actor: str,
    now: datetime,
) -> RetailCalendar:
    """Report by this calendar from now on, of all times; audited if it is another than before."""
    await lock_organisation(connection, organisation)
    before = await calendar_of(connection)
    if wanted != before:
        await connection.execute(
            "update organisations set calendar = $2, calendar_month = $3, calendar_weekday = $4 "
            "where id = $1",
            *(organisation, wanted.pattern, wanted.month, wanted.weekday),
        )
        await record(
            connection,
            actor=actor,
            act="calendar chosen",
            subject="calendar",
            detail=changes(before, wanted),
            organisation=organisation,
            now=now,
        )
    return wanted
