"""What sites' weeks were: visits, sales and smileys with their coverage, for trends and trials.

Weeks are ISO weeks of each site's zone, in its opening hours. A value is None where it was not
measured; what it is worth stands beside it (`covered`). Nothing is estimated or filled in. Coverage
is of all of a week's opening hours: those before a site's first counter stood, or after its last,
were not observed, though no counter was to observe them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import assert_never

import asyncpg

from server.errors import RefusedError
from server.feedback.indices import Index, Kind, index_of
from server.feedback.query import FeedbackRow, feedback
from server.insight.formulas import Takings, conversion_of
from server.insight.retail_calendar import calendar_of
from server.insight.retail_year import same_weekday
from server.insight.standing import parts_stood
from server.insight.tally import Range, takings
from server.rollup.answer import ALL_ROWS, CountQuery
from server.rollup.buckets import Size
from server.rollup.places import load_sites
from server.rollup.quality import Scope
from server.rollup.query import counts

WEEK = timedelta(days=7)
_FACES = (Kind.SMILEY3, Kind.SMILEY4, Kind.SMILEY5)


class Metric(StrEnum):
    """What is followed from week to week."""

    VISITS = "visits"
    CONVERSION = "conversion"
    ATV = "atv"
    SPV = "spv"
    SMILEYS = "smileys"


class UnknownMetricError(RefusedError):
    """No such metric can be followed from week to week."""

    def __init__(self, given: str) -> None:
        self.parameter = "metric"
        known = ", ".join(Metric)
        super().__init__("unknown_metric", f"no metric {given[:40]!r}; known: {known}")


def metric_of(text: str) -> Metric:
    """Return the metric of this name. Raises UnknownMetricError."""
    try:
        return Metric(text)
    except ValueError as error:
        raise UnknownMetricError(text) from error


@dataclass(frozen=True, slots=True)
class SiteWeek:
    """One site's week, from its Monday on."""

    start: date
    visits: float | None
    coverage: float | None
    transactions: int
    net_sales: float
    smileys: Index | None
    kiosk_coverage: float | None
    revision: int

    def value(self, metric: Metric) -> float | None:
        """Return a metric's value, None where it was not measured or has no denominator."""
        match metric:
            case Metric.VISITS:
                return self.visits
            case Metric.CONVERSION:
                if not self.transactions or not self.visits:
                    return None
                return conversion_of(self.transactions, self.visits)[0]
            case Metric.ATV:
                return _ratio(self.net_sales, self.transactions)
            case Metric.SPV:
                return _ratio(self.net_sales, self.visits) if self.transactions else None
            case Metric.SMILEYS:
                return None if self.smileys is None else self.smileys.value
            case _:
                assert_never(metric)

    def covered(self, metric: Metric) -> float | None:
        """Return the share of the opening hours that was observed by what the metric needs.

        Tills are taken as complete: a week without any sale has no value.
        """
        match metric:
            case Metric.SMILEYS:
                return self.kiosk_coverage
            case Metric.ATV:
                return 1.0 if self.transactions else None
            case Metric.VISITS | Metric.CONVERSION | Metric.SPV:
                return self.coverage
            case _:
                assert_never(metric)

    def events(self, metric: Metric) -> float:
        """Return how many people stand behind the value: what its noise follows from."""
        match metric:
            case Metric.VISITS:
                return self.visits or 0.0
            case Metric.CONVERSION | Metric.ATV | Metric.SPV:
                return float(self.transactions)
            case Metric.SMILEYS:
                return 0.0 if self.smileys is None else float(self.smileys.n)
            case _:
                assert_never(metric)


def _ratio(part: float, whole: float | None) -> float | None:
    return part / whole if whole else None


def monday(day: date) -> date:
    """Return the first day of a day's ISO week."""
    return day - timedelta(days=day.weekday())


@dataclass(frozen=True, slots=True)
class WeekQuery:
    """Which weeks are wanted: of [since, until), both Mondays; no sites named: of all.

    What none of `metrics` needs is not asked for.
    """

    metrics: frozenset[Metric]
    since: date
    until: date
    sites: tuple[str, ...] = ()

    @property
    def weeks(self) -> list[date]:
        return [self.since + n * WEEK for n in range((self.until - self.since) // WEEK)]


async def weeks_of(
    connection: asyncpg.Connection, asked: WeekQuery, *, now_s: int
) -> dict[str, list[SiteWeek]]:
    """Return the weeks by site. Raises UnknownPlaceError, TooLongError."""
    wanted, since, until = asked.metrics, asked.since, asked.until
    query = CountQuery(Size.WEEK, since, until, scope=Scope.OPEN, sites=asked.sites, limit=ALL_ROWS)
    places = await load_sites(connection, asked.sites)
    counted = {}
    if wanted - {Metric.SMILEYS, Metric.ATV}:
        edges = [(week, week + WEEK) for week in asked.weeks]
        parts = await parts_stood(connection, places, edges)
        for row in (await counts(connection, query, now_s=now_s)).rows:
            key = row.site, _day(row.local)
            share = row.coverage
            if share is not None and key in parts:
                share = round(share * parts[key], 4)
            counted[key] = row.visits, share, row.revision
    sold: dict[int, list[Takings]] = {}
    if wanted & {Metric.CONVERSION, Metric.ATV, Metric.SPV}:
        within = Range(Size.WEEK, since, until, Scope.OPEN, now_s)
        sold = await takings(connection, within, places, spread=False)
    pressed: dict[tuple[str, date], _Pressed] = {}
    if Metric.SMILEYS in wanted:
        pressed = _smileys((await feedback(connection, query, now_s=now_s)).rows)
    weeks = asked.weeks
    found: dict[str, list[SiteWeek]] = {}
    for site in places:
        found[site.ref] = rows = []
        taken = sold.get(site.id) or [Takings()] * len(weeks)
        for week, sales in zip(weeks, taken, strict=True):
            visits, coverage, revision = counted.get((site.ref, week), (None, None, 0))
            index, heard, pressed_revision = pressed.get((site.ref, week), (None, None, 0))
            rows.append(
                SiteWeek(
                    week,
                    visits,
                    coverage,
                    sales.transactions,
                    float(sales.net_sales),
                    index,
                    heard,
                    revision + pressed_revision,
                )
            )
    return found


async def weeks_before(
    connection: asyncpg.Connection, asked: WeekQuery, *, now_s: int
) -> dict[str, list[SiteWeek]]:
    """Return, for each week that is asked for, the week that a year before is compared by.

    They are ISO weeks; which one, the calendar of the organisation says (`same_weekday`).
    """
    calendar = await calendar_of(connection)
    first, last = (same_weekday(at, calendar) for at in (asked.since, asked.until - WEEK))
    query = replace(asked, since=first, until=last + WEEK)
    weeks = await weeks_of(connection, query, now_s=now_s)
    numbers = [(same_weekday(week, calendar) - first) // WEEK for week in asked.weeks]
    return {ref: [rows[number] for number in numbers] for ref, rows in weeks.items()}


def _day(local: str) -> date:
    return datetime.fromisoformat(local).date()


_Pressed = tuple[Index | None, float | None, int]


def _smileys(rows: Iterable[FeedbackRow]) -> dict[tuple[str, date], _Pressed]:
    """Return index, coverage and revision of each site's week.

    Of questions with faces the first of a questionnaire counts; of a week that had both sets of
    faces the set that was pressed most.
    """
    worth: dict[tuple[str, date], tuple[float | None, int]] = {}
    presses: dict[tuple[str, date], dict[Kind, list[int]]] = defaultdict(dict)
    for row in rows:
        key = row.site, _day(row.local)
        worth[key] = row.coverage, row.revision
        if row.kind not in _FACES or row.question != 0 or row.n is None:
            continue
        into = presses[key].setdefault(row.kind, [0] * 5)
        for answer, n in enumerate(row.answers[:5]):
            into[answer] += n
    found = {}
    for key, (coverage, revision) in worth.items():
        kinds = presses.get(key, {})
        kind = max(kinds, key=lambda kind: (sum(kinds[kind]), kind), default=None)
        index = None if kind is None else index_of(kind, kinds[kind])
        found[key] = index, coverage, revision
    return found


async def changed_sites(
    connection: asyncpg.Connection, sites: Sequence[str], *, since: date, until: date
) -> set[str]:
    """Return the sites whose doors or counters changed from `since` until `until`.

    That is: a device stands for the first time at a spot, or none does any more; a spot is mounted
    otherwise; a line is read otherwise. One device in another's place is no change.
    """
    rows = await connection.fetch(_CHANGED, list(sites), *map(_midnight, (since, until)))
    return {row["ref"] for row in rows}


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


_CHANGED = """
    with held as (
        select s.ref, p.id,
               min(coalesce(lower(a.valid), '-infinity')) as since,
               max(coalesce(upper(a.valid), 'infinity')) as until
        from sites s join spots p on p.site_id = s.id join assignments a on a.spot_id = p.id
        where s.ref = any($1::text[]) group by s.ref, p.id)
    select distinct h.ref from held h
    where (h.since >= $2 and h.since < $3) or (h.until >= $2 and h.until < $3)
       or exists (select from calibrations c where c.spot_id = h.id
                  and lower(c.valid) >= $2 and lower(c.valid) < $3)
       or exists (select from mountings m where m.spot_id = h.id
                  and lower(m.valid) >= $2 and lower(m.valid) < $3)
"""
