"""Targets: what a KPI of a site is to be in a period, and whether it will.

A target is of whole local days. Nothing is projected for days on which its site is closed, and in
the scope of opening hours they are none at all, unless something was sold or told on one. Each
change is audited in the transaction that makes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from math import isfinite

import asyncpg

from server.audit.log import record
from server.errors import ConflictError, NotFoundError
from server.fleet import checks
from server.fleet.checks import FieldError, Known
from server.fleet.register import By, added, changed, lock_organisation, new_ref
from server.insight import definitions, formulas
from server.insight.cells import Cell, heard
from server.insight.definitions import Definition, Need
from server.insight.projection import DayOf, Outlook, outlook
from server.insight.reading import read
from server.insight.tally import Range
from server.rollup.buckets import Size, local
from server.rollup.places import Site, load_sites
from server.rollup.quality import Scope

MOST_DAYS = 3 * 366
HISTORY = timedelta(days=56)
LEAST_COVERAGE = 0.9


@dataclass(frozen=True, slots=True)
class Target:
    """`metric` at `site` is to be at least (or at most) `wanted` over [since, until)."""

    site: str
    metric: str
    since: date
    until: date
    wanted: float
    at_most: bool = False
    scope: str = "all"
    note: str = ""


_TARGET = """
    select t.id, t.ref, s.ref as site, t.metric, t.from_day, t.until_day, t.wanted, t.at_most,
           t.scope, t.note
    from kpi_targets t join sites s on s.id = t.site_id
"""


async def find(connection: asyncpg.Connection, organisation: int, ref: str) -> Known[Target]:
    """Return a target. Raises NotFoundError."""
    row = await connection.fetchrow(
        _TARGET + "where t.organisation_id = $1 and t.ref = $2", organisation, ref
    )
    if row is None:
        raise NotFoundError(f"no target {ref!r}")
    return _known(row)


async def listed(
    connection: asyncpg.Connection,
    *,
    sites: Sequence[str],
    after: str,
    limit: int,
    ends_after: date | None = None,
) -> list[Known[Target]]:
    """Return targets by reference, of the named sites if any is named.

    `ends_after`: those alone whose last day is this one or later.
    """
    await load_sites(connection, sites)  # names that are none are refused
    rows = await connection.fetch(
        _TARGET + "where t.ref > $1 and (cardinality($3::text[]) = 0 or s.ref = any($3)) "
        "and ($4::date is null or t.until_day > $4) order by t.ref limit $2",
        *(after, limit, list(sites), ends_after),
    )
    return [_known(row) for row in rows]


def _known(row: asyncpg.Record) -> Known[Target]:
    key, ref, *facts = row.values()
    return Known(key, ref, Target(*facts))


async def add(
    connection: asyncpg.Connection,
    organisation: int,
    wanted: Target,
    *,
    actor: str,
    now: datetime,
) -> Known[Target]:
    """Set a target. Raises NotFoundError, FieldError, UnknownMetricError, ConflictError."""
    await lock_organisation(connection, organisation)
    wanted = _checked(wanted)
    site = await connection.fetchval(
        "select id from sites where organisation_id = $1 and ref = $2", organisation, wanted.site
    )
    if site is None:
        raise NotFoundError(f"no site {wanted.site!r}")
    row = await connection.fetchrow(
        "insert into kpi_targets (organisation_id, site_id, ref, metric, from_day, until_day, "
        "wanted, at_most, scope, note) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) "
        "on conflict (site_id, metric, scope, from_day, until_day) do nothing returning id, ref",
        *(organisation, site, new_ref("target"), wanted.metric, wanted.since, wanted.until),
        *(wanted.wanted, wanted.at_most, wanted.scope, wanted.note),
    )
    if row is None:
        raise ConflictError("there is a target of this KPI, site and period already: change that")
    by = By(actor=actor, now=now, noted=record)
    made = Known(row["id"], row["ref"], wanted)
    return await added(connection, organisation, "target set", made, by=by)


async def edit(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    wanted: float | None = None,
    note: str | None = None,
    seen: str | None,
    actor: str,
    now: datetime,
) -> Known[Target]:
    """Change what is wanted, or the note. Raises NotFoundError, ChangedError, FieldError."""
    await lock_organisation(connection, organisation)
    before = await find(connection, organisation, ref)
    before.demand_unchanged(seen)
    facts = before.facts
    after = _checked(
        Target(
            *(facts.site, facts.metric, facts.since, facts.until),
            facts.wanted if wanted is None else wanted,
            *(facts.at_most, facts.scope),
            facts.note if note is None else note,
        )
    )
    if after == facts:
        return before
    await connection.execute(
        "update kpi_targets set wanted = $2, note = $3 where id = $1",
        *(before.id, after.wanted, after.note),
    )
    by = By(actor=actor, now=now, noted=record)
    return await changed(connection, organisation, "target changed", before, after, by=by)


async def remove(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    seen: str | None = None,
    actor: str,
    now: datetime,
) -> Known[Target]:
    """Give a target up; return what it was. Raises NotFoundError, ChangedError."""
    await lock_organisation(connection, organisation)
    before = await find(connection, organisation, ref)
    before.demand_unchanged(seen)
    await connection.execute("delete from kpi_targets where id = $1", before.id)
    by = By(actor=actor, now=now, noted=record)
    return await added(connection, organisation, "target given up", before, by=by)


def _checked(wanted: Target) -> Target:
    metric = definitions.find(wanted.metric)
    if not metric.projected:
        raise FieldError("metric", f"{metric.id} cannot be projected, and so has no target")
    checks.sensible(wanted.since, "from")
    checks.sensible(wanted.until, "to")
    if not timedelta() < wanted.until - wanted.since <= timedelta(days=MOST_DAYS):
        raise FieldError("to", f"expected 1 to {MOST_DAYS} days from `from` on")
    if not isfinite(wanted.wanted):
        raise FieldError("wanted", "expected a number")
    return Target(
        *(wanted.site, metric.id, wanted.since, wanted.until, wanted.wanted, wanted.at_most),
        checks.one_of(wanted.scope, tuple(Scope), "scope"),
        checks.line(wanted.note, "note"),
    )


async def outlooks(
    connection: asyncpg.Connection, targets: Sequence[Known[Target]], *, now_s: int
) -> dict[str, Outlook]:
    """Return by reference where each target stands; targets of one period are read at once."""
    periods: dict[tuple[date, date, str], list[Known[Target]]] = {}
    for known in targets:
        facts = known.facts
        periods.setdefault((facts.since, facts.until, facts.scope), []).append(known)
    found: dict[str, Outlook] = {}
    for (since, until, scope), members in periods.items():
        refs = tuple({known.facts.site for known in members})
        sites = {site.ref: site for site in await load_sites(connection, refs)}
        last = max(local(site.time_zone, now_s).date() for site in sites.values())
        days = await _days(
            connection,
            members,
            sites,
            since=min(since, last) - HISTORY,
            until=min(until, last),
            scope=Scope(scope),
            now_s=now_s,
        )
        for known in members:
            site = sites[known.facts.site]
            today = local(site.time_zone, now_s).date()
            found[known.ref] = _stands(known.facts, days[known.ref], site, today)
    return found


def _stands(
    target: Target, known: Sequence[tuple[DayOf, Cell]], site: Site, today: date
) -> Outlook:
    days = [day for day, _ in known]
    first_left = max(target.since, today)
    ahead = [first_left + timedelta(days=n) for n in range((target.until - first_left).days)]
    left = [day for day in ahead if site.calendar.day(day).open_s]
    metric, over = definitions.find(target.metric), min(target.until, today)
    found = outlook(
        target.wanted,
        at_most=target.at_most,
        history=[day for day in days if day.day < min(target.since, today)],
        done=[day for day in days if target.since <= day.day < over],
        left=left,
        additive=metric.additive,
    )
    cells = [cell for day, cell in known if target.since <= day.day < over]
    return replace(found, coverage=_coverage(metric, cells))


def _coverage(metric: Definition, cells: Sequence[Cell]) -> float | None:
    """Return the share of the time that was observed; None where no device observes the KPI."""
    if Need.VISITS in metric.needs:
        return formulas.added([cell.inputs for cell in cells]).coverage
    return heard(cells) if Need.FEEDBACK in metric.needs else None


async def _days(
    connection: asyncpg.Connection,
    members: Sequence[Known[Target]],
    sites: dict[str, Site],
    *,
    since: date,
    until: date,
    scope: Scope,
    now_s: int,
) -> dict[str, list[tuple[DayOf, Cell]]]:
    """Return each target's days; a day that was poorly covered counts as not measured."""
    if since >= until:
        return {known.ref: [] for known in members}
    needs = frozenset().union(*(definitions.find(m.facts.metric).needs for m in members))
    within = Range(Size.DAY, since, until, scope, now_s)
    reads = await read(connection, within, list(sites.values()), needs=needs)
    found: dict[str, list[tuple[DayOf, Cell]]] = {}
    for known in members:
        metric = definitions.find(known.facts.metric)
        each = reads[sites[known.facts.site].id]
        rows: list[tuple[DayOf, Cell]] = []
        for bucket, cell in zip(each.grid, each.cells, strict=True):
            value = metric.compute(cell.inputs)
            poor = cell.inputs.coverage is not None and cell.inputs.coverage < LEAST_COVERAGE
            counted = not poor and value.numerator is not None
            shut = scope is Scope.OPEN and not each.site.calendar.day(bucket.start_day).open_s
            if shut and not value.numerator:
                continue
            day = DayOf(bucket.start_day, value.numerator if counted else None, value.denominator)
            rows.append((day, cell))
        found[known.ref] = rows
    return found
