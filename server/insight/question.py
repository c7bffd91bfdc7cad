"""What is asked about KPIs: of which, of when, in which buckets; and what is refused unread.

A row's bucket is one that is read, or made of such: of whole days where they are retail weeks,
periods, or compared with days of the year before; of the whole range where it is `total`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from itertools import groupby

from server.errors import RefusedError
from server.insight.definitions import Definition, Need
from server.insight.retail_year import ISO, WEEK, RetailCalendar, periods, week_of
from server.insight.tally import Range
from server.rollup.answer import Position, TooLongError
from server.rollup.buckets import Bucket, Size, bucket_count, buckets, instant
from server.rollup.places import Site
from server.rollup.quality import Scope
from server.rollup.query import MOST_BUCKETS

PEAK_DAYS = 62
"""How long a range may be in which peaks and stays are found, quarter by quarter."""
_DAY = timedelta(days=1)


class Bucketing(StrEnum):
    """How long a row's time is; total: all of the range.

    Weeks are ISO weeks. Retail weeks and periods are those of the calendar that the organisation
    has chosen.
    """

    QUARTER = "15m"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    RETAIL_WEEK = "retail_week"
    PERIOD = "period"
    TOTAL = "total"

    @property
    def is_retail(self) -> bool:
        return self in (Bucketing.RETAIL_WEEK, Bucketing.PERIOD)


_OF_BASE = (Bucketing.RETAIL_WEEK, Bucketing.PERIOD, Bucketing.TOTAL)
"""Whose rows are made of other buckets than stored ones."""


class Of(StrEnum):
    """What a row is about."""

    SITE = "site"
    REGION = "region"
    ORGANISATION = "organisation"


class Compare(StrEnum):
    """What a row is compared with."""

    NONE = "none"
    LAST_YEAR = "last_year"


@dataclass(frozen=True, slots=True)
class MetricQuery:
    """Which KPIs are wanted. `since` and `until` without offset are the sites' local times."""

    metrics: tuple[Definition, ...]
    since: date | datetime
    until: date | datetime
    bucket: Bucketing = Bucketing.DAY
    scope: Scope = Scope.ALL
    by: Of = Of.SITE
    sites: tuple[str, ...] = ()
    compare: Compare = Compare.NONE
    estimates: bool = False
    limit: int = 20_000
    after: Position | None = None
    currency: str | None = None
    calendar: RetailCalendar = ISO

    @property
    def base(self) -> Size:
        """The buckets that are read, of which the rows are made."""
        if self.bucket.is_retail:
            return Size.DAY
        if self.bucket is not Bucketing.TOTAL:
            days = self.compare is not Compare.NONE and Size(self.bucket).is_days
            return Size.DAY if days else Size(self.bucket)
        whole = not isinstance(self.since, datetime) and not isinstance(self.until, datetime)
        return Size.DAY if whole else Size.HOUR

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset().union(*(metric.needs for metric in self.metrics))

    @property
    def of_money(self) -> bool:
        """Whether anything is asked that amounts of sales are added up for."""
        return any(m.unit == "money" and Need.SALES in m.needs for m in self.metrics)

    def within(self, now_s: int) -> Range:
        """Return the range that is read."""
        return Range(self.base, self.since, self.until, self.scope, now_s)


class UnanswerableError(RefusedError):
    """The question cannot have an answer; the text says what can be asked instead."""

    def __init__(self, parameter: str, message: str) -> None:
        self.parameter = parameter
        super().__init__("not_answerable", message)


def of_whole_periods(query: MetricQuery) -> MetricQuery:
    """Return a question about whole retail weeks or periods, where it asks for such."""
    if not query.bucket.is_retail:
        return query
    if not query.calendar.has_periods:
        raise UnanswerableError(
            "bucket", "the organisation reports by ISO weeks: choose a retail calendar first"
        )
    if isinstance(query.since, datetime) or isinstance(query.until, datetime):
        raise UnanswerableError("from", "retail weeks and periods are of whole days: give dates")
    (since, _, _), (_, until, _) = (
        _retail(query, day) for day in (query.since, query.until - _DAY)
    )
    return replace(query, since=since, until=until)


def _retail(query: MetricQuery, day: date) -> tuple[date, date, str]:
    """Return the first day of the retail week or period that holds a day, that after, its label."""
    week = week_of(query.calendar, day)
    if query.bucket is Bucketing.RETAIL_WEEK:
        return week.first, week.first + WEEK, week.label
    period = periods(query.calendar, week.year)[week.period - 1]
    return period.first, period.until, period.label


def demand_answerable(query: MetricQuery) -> None:
    """Raise UnanswerableError, TooLongError of what cannot be asked, whatever is stored."""
    span_s = instant("UTC", query.until) - instant("UTC", query.since)
    size = query.base if query.bucket in _OF_BASE else Size(query.bucket)
    if bucket_count(size, span_s) > (most := MOST_BUCKETS[size]):
        raise TooLongError(size, most)
    if query.limit < len(query.metrics):
        raise UnanswerableError("limit", "a page holds at least one row of each KPI")
    for metric in query.metrics:
        if metric.alone and query.by is not Of.SITE:
            raise UnanswerableError("metrics", f"{metric.id} is of one site: ask by site")
        if Need.RESPONSES in metric.needs and query.bucket is Bucketing.QUARTER:
            raise UnanswerableError(
                "metrics", f"{metric.id} is of whole hours: ask by hour or more"
            )
        if metric.days and query.bucket in (Bucketing.QUARTER, Bucketing.HOUR):
            raise UnanswerableError("metrics", f"{metric.id} is of whole days: ask by day or more")
    if query.needs & {Need.PEAK, Need.STAY} and span_s > PEAK_DAYS * 86_400:
        raise UnanswerableError(
            "from", f"peaks and stays are found in quarters of an hour: ask {PEAK_DAYS} days"
        )


def grid_of(query: MetricQuery, site: Site) -> tuple[Bucket, ...]:
    """Return the buckets of a site's rows."""
    size = query.base if query.bucket in _OF_BASE else Size(query.bucket)
    base = buckets(site.time_zone, size, since=query.since, until=query.until)
    if query.bucket.is_retail:
        return _retail_grid(query, base)
    if query.bucket is not Bucketing.TOTAL or not base:
        return base
    label = f"{base[0].label}/{base[-1].label}"
    first, last = base[0], base[-1]
    return (Bucket(first.start_s, last.end_s, first.start_day, label, first.start_utc,
                   last.end_utc),)  # fmt: skip


def _retail_grid(query: MetricQuery, days: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """Put days together to retail weeks or periods, of which they are whole ones."""
    found: list[Bucket] = []
    for first, mine in groupby(days, key=lambda bucket: _retail(query, bucket.start_day)):
        own = list(mine)
        found.append(replace(own[0], end_s=own[-1].end_s, end_utc=own[-1].end_utc, label=first[2]))
    return tuple(found)
