"""Compare an organisation's sites with each other: whole weeks in, a funnel and ranks out.

What each site's week is set against: `growth` its own visits of the same ISO week a year before;
`conversion` and `smileys` the chain's, which is taken out by `peers`. A week counts where both
sides were covered to `COMPARABLE`. A site whose doors or counters changed within the weeks that are
compared is left out, and says so.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from math import log
from typing import assert_never

import asyncpg

from server.errors import RefusedError
from server.insight.peers import LEAST_SITES, LEAST_WEEKS, Chain, Series, compare
from server.insight.retail_calendar import calendar_of
from server.insight.retail_year import same_weekday
from server.insight.trial import COMPARABLE
from server.insight.weeks import (
    WEEK,
    Metric,
    SiteWeek,
    WeekQuery,
    changed_sites,
    monday,
    weeks_before,
    weeks_of,
)

MOST_WEEKS = 53


class Measure(StrEnum):
    """What sites are compared by."""

    GROWTH = "growth"
    CONVERSION = "conversion"
    SMILEYS = "smileys"


class Reason(StrEnum):
    """Why a site is not compared."""

    CHANGED = "topology_changed"
    FEW_WEEKS = "too_few_weeks"


class TooFewSitesError(RefusedError):
    """There are not sites enough to be compared."""

    def __init__(self, sites: int, measure: Measure) -> None:
        super().__init__(
            "too_few_sites",
            f"{sites} sites have {LEAST_WEEKS} weeks of {measure} that can be compared, "
            f"{LEAST_SITES} are needed: of fewer, what is common and what is a site's own cannot "
            "be told apart",
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """The chain, its sites' names, and who was left out and why."""

    chain: Chain
    names: Mapping[str, str]
    left_out: tuple[tuple[str, Reason], ...]


def edges(since: date, until: date) -> tuple[date, date]:
    """Return the whole weeks that hold [since, until)."""
    return monday(since), monday(until - timedelta(days=1)) + WEEK


async def comparison(
    connection: asyncpg.Connection, measure: Measure, *, since: date, until: date, now_s: int
) -> Compared:
    """Compare all sites over [since, until), both Mondays. Raises TooFewSitesError.

    Raises RefusedError (range_too_long) of more than `MOST_WEEKS` weeks.
    """
    if until - since > MOST_WEEKS * WEEK:
        raise RefusedError("range_too_long", f"at most {MOST_WEEKS} weeks are compared at once")
    metric, before = _metric(measure), measure is Measure.GROWTH
    asked = WeekQuery(frozenset({metric}), since, until)
    weeks = await weeks_of(connection, asked, now_s=now_s)
    year_before: Mapping[str, Sequence[SiteWeek]] = {}
    first = since
    if before:
        first = same_weekday(since, await calendar_of(connection))
        year_before = await weeks_before(connection, asked, now_s=now_s)
    changed = await changed_sites(connection, list(weeks), since=first, until=until)
    series = await asyncio.to_thread(
        lambda: [
            _series(ref, rows, metric, year_before.get(ref) if before else None)
            for ref, rows in weeks.items()
        ]
    )
    left_out = [
        (each.ref, Reason.CHANGED if each.ref in changed else Reason.FEW_WEEKS)
        for each in series
        if each.ref in changed or each.weeks < LEAST_WEEKS
    ]
    out = {ref for ref, _ in left_out}
    chain = await asyncio.to_thread(compare, [each for each in series if each.ref not in out])
    if chain is None:
        raise TooFewSitesError(len(series) - len(out), measure)
    names = dict(await connection.fetch("select ref, name from sites"))
    return Compared(chain, names, tuple(left_out))


def _metric(measure: Measure) -> Metric:
    match measure:
        case Measure.GROWTH:
            return Metric.VISITS
        case Measure.CONVERSION:
            return Metric.CONVERSION
        case Measure.SMILEYS:
            return Metric.SMILEYS
        case _:
            assert_never(measure)


def _series(
    ref: str, rows: Sequence[SiteWeek], metric: Metric, before: Sequence[SiteWeek] | None
) -> Series:
    """Return a site's weekly ln ratios; against a year before two counts make the noise."""
    ratios: list[float | None] = []
    events: list[float] = []
    for number, row in enumerate(rows):
        own, n = _usable(row, metric), row.events(metric)
        if before is not None:
            other = before[number]
            base, m = _usable(other, metric), other.events(metric)
            own = None if own is None or base is None else own / base
            n = 0.0 if own is None else n * m / (n + m)
        ratios.append(None if own is None else log(own))
        events.append(n)
    return Series(ref, ratios, events)


def _usable(row: SiteWeek, metric: Metric) -> float | None:
    value, covered = row.value(metric), row.covered(metric)
    if value is None or value <= 0 or covered is None or covered < COMPARABLE:
        return None
    return value
