"""What a Monday digest says of a week: asked within one transaction that sees one organisation.

Decided here: the week is the last whole one, Monday to Sunday, of the time zone that most of the
reader's sites are in, in opening hours. It is compared with the week before, and by the calendar
with the week of the year before that it is aligned with. What is estimated is said beside the
measured number, and is never part of it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg

from server.insight.definitions import find
from server.insight.metrics import MetricRow, metrics
from server.insight.question import Bucketing, Compare, MetricQuery, Of
from server.insight.retail_calendar import calendar_of
from server.insight.retail_year import of_iso_week
from server.portal.quality_numbers import SiteQuality, month_of
from server.rollup.answer import ALL_ROWS
from server.rollup.quality import COMPLETE, Scope

HOUR = 7
_KPIS = tuple(map(find, ("visits", "conversion", "smiley4_index")))
_WEEK = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Week:
    """A site's week, or that of all of the reader's sites (`ref` empty).

    `before`: the week before; `year`: the aligned week of the year before, named by `aligned`, and
    `change` against it: of the sites that are comparable in both, so not of all that `visits` says.
    `imputed`: how many more there are by an estimate of what was not covered.
    """

    ref: str
    name: str
    visits: float | None
    before: float | None
    year: float | None
    change: float | None
    aligned: str | None
    imputed: float | None
    conversion: float | None
    index: float | None
    coverage: float | None

    @property
    def doubted(self) -> bool:
        """Whether so much of it was not observed that it says less than it seems to."""
        return self.coverage is None or self.coverage < COMPLETE


@dataclass(frozen=True, slots=True)
class Blind:
    """A counter or kiosk that is silent, since then (local; None: always)."""

    site: str
    spot: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Due:
    """An action that is to be done by then."""

    site: str
    title: str
    on: date


@dataclass(frozen=True, slots=True)
class Digest:
    """What one reader is told of one organisation's week, which begins on `monday`."""

    organisation: str
    monday: date
    total: Week
    sites: tuple[Week, ...]
    blind: tuple[Blind, ...]
    drifting: tuple[tuple[str, float], ...]
    alerts: tuple[tuple[str, int], ...]
    actions: tuple[Due, ...]
    retail: str = ""
    """The retail week that it is, where the organisation reports by such."""


def zone_of(names: Sequence[str]) -> str:
    """Return the time zone that most sites are in; of several, the first by name. UTC if none."""
    counted = Counter(names)
    return min(counted, key=lambda name: (-counted[name], name), default="UTC")


def last_due(now: datetime, time_zone: str) -> datetime:
    """Return the latest Monday, 07:00 by the clock of `time_zone`, that is not after `now`."""
    here = now.astimezone(ZoneInfo(time_zone))
    monday = here.date() - timedelta(days=here.weekday())
    due = _at(monday, time_zone)
    return due if due <= now else _at(monday - _WEEK, time_zone)


def week_of(due: datetime, time_zone: str) -> date:
    """Return the Monday of the week that is told of at `due`."""
    day = due.astimezone(ZoneInfo(time_zone)).date()
    return day - timedelta(days=day.weekday()) - _WEEK


def _at(day: date, time_zone: str) -> datetime:
    local = datetime(day.year, day.month, day.day, HOUR, tzinfo=ZoneInfo(time_zone))
    return local.astimezone(UTC)


async def digest_of(
    connection: asyncpg.Connection, refs: Sequence[str], *, monday: date, now: datetime
) -> Digest:
    """Return what is told of these sites, one at least."""
    rows = await _asked(connection, refs, Of.SITE, monday, now)
    whole = rows
    if len(refs) > 1:
        whole = await _asked(connection, refs, Of.ORGANISATION, monday, now)
    named = dict(
        await connection.fetch("select ref, name from sites where ref = any($1::text[])", refs)
    )
    of_site: dict[str | None, list[MetricRow]] = defaultdict(list)
    for row in rows:
        of_site[row.site].append(row)
    sites = [_week(ref, named[ref], of_site[ref], monday) for ref in refs]
    quality: list[SiteQuality] = await month_of(
        connection, refs, month=(monday + timedelta(days=6)).replace(day=1), now=now
    )
    organisation = await connection.fetchval("select name from organisations")
    alerts = await connection.fetch(_ALERTS, refs)
    actions = await connection.fetch(_ACTIONS, refs, monday + 2 * _WEEK)
    return Digest(
        organisation,
        monday,
        _week("", organisation, whole, monday),
        tuple(sorted(sites, key=lambda each: (each.name, each.ref))),
        tuple(Blind(q.name, each.spot, each.since) for q in quality for each in q.silent),
        tuple((q.name, q.drift) for q in quality if q.drifts and q.drift is not None),
        tuple((row[0], row[1]) for row in alerts),
        tuple(Due(*row) for row in actions),
        of_iso_week(await calendar_of(connection), monday),
    )


async def _asked(
    connection: asyncpg.Connection, refs: Sequence[str], by: Of, monday: date, now: datetime
) -> list[MetricRow]:
    query = MetricQuery(
        _KPIS,
        monday - _WEEK,
        monday + _WEEK,
        Bucketing.WEEK,
        Scope.OPEN,
        by,
        tuple(refs),
        Compare.LAST_YEAR,
        estimates=True,
        limit=ALL_ROWS,
    )
    return (await metrics(connection, query, now_s=int(now.timestamp()))).rows


def _week(ref: str, name: str, rows: Sequence[MetricRow], monday: date) -> Week:
    label = f"{monday.isocalendar().year}-W{monday.isocalendar().week:02}"
    this = {find(row.metric).name: row for row in rows if row.local == label}
    visits = this.get("visits")
    before = next((r for r in rows if r.metric.startswith("visits.") and r.local != label), None)

    def value(kpi: str) -> float | None:
        return this[kpi].value if kpi in this else None

    imputed = None
    if visits is not None and visits.estimated is not None:
        imputed = visits.estimated - (visits.value or 0)
    return Week(
        ref,
        name,
        value("visits"),
        None if before is None else before.value,
        None if visits is None else visits.compared,
        None if visits is None else visits.change,
        None if visits is None else visits.compared_local,
        imputed,
        value("conversion"),
        value("smiley4_index"),
        None if visits is None else visits.coverage,
    )


_ALERTS = """
    select s.name, count(*)::int from opinion_alerts a join sites s on s.id = a.site_id
    where a.done_at is null and s.ref = any($1::text[]) group by 1 order by 1
"""
_ACTIONS = """
    select s.name, a.title, a.due_on from actions a join sites s on s.id = a.site_id
    where a.closed_at is null and a.done_on is null and a.due_on < $2 and s.ref = any($1::text[])
    order by a.due_on, s.name, a.title
"""
