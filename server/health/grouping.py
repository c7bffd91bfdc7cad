"""What open episodes are part of, as rows: who explains whom, which incident each belongs to.

`regroup` looks at the sites (and devices that stand nowhere) at which something changed, at their
open episodes alone. What is explained joins the incident of what explains it, and an incident that
is left without any is merged into that one. When what explained it is over and it is not, it begins
an incident of its own, with its whole time and wait anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from server.fleet.register import new_ref
from server.health.decisions import note
from server.health.incidents import Open, Place, Suppression, key_of, root_of
from server.health.judgement import Condition, Subject, SubjectKind
from server.health.rulebook import Rulebook
from server.health.rules import Rule

FRESH = timedelta(minutes=2)
"""What could not be known has this long to be clear, before what was waiting is told."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where something changed."""

    sites: frozenset[int] = frozenset()
    devices: frozenset[int] = frozenset()
    platform: bool = False


@dataclass(slots=True)
class _Row:
    """An open episode's row."""

    open: Open
    incident: int | None
    suppressed: str
    since: datetime
    rule: Rule


async def regroup(
    connection: asyncpg.Connection, rulebook: Rulebook, scope: Scope, *, now: datetime
) -> None:
    """Put the open episodes of a scope into incidents."""
    if scope.platform:
        await connection.execute(_ALL_LOOK, now, now + FRESH)
    if not (scope.sites or scope.devices or scope.platform):
        return
    fetched = await connection.fetch(
        _OPEN, sorted(scope.sites), sorted(scope.devices), scope.platform
    )
    rows = {row["id"]: await _row(rulebook, row) for row in fetched}
    opens = [row.open for row in rows.values()]
    parents = {each.id: _top(each, opens) for each in opens}
    # what explains comes first, so that its incident is there for what it explains
    for row in sorted(rows.values(), key=lambda each: parents[each.open.id] is not None):
        parent = parents[row.open.id]
        if parent is None:
            await _by_itself(connection, row, now=now)
        else:
            await _explained(connection, row, rows[parent.id], now=now)
    await connection.execute(
        _TOUCHED, now, sorted(scope.sites), sorted(scope.devices), scope.platform
    )


async def _row(rulebook: Rulebook, row: asyncpg.Record) -> _Row:
    condition = Condition(row["condition"])
    place = Place(row["organisation_id"], row["site_id"], row["device_id"], row["spot_id"])
    subject = Subject(SubjectKind(row["subject"]), row["subject_id"])
    return _Row(
        Open(row["id"], subject, condition, place),
        row["incident_id"],
        row["suppressed"],
        row["since"],
        await rulebook.rule(place.organisation, condition),
    )


def _top(child: Open, opens: Sequence[Open]) -> Open | None:
    """Return what explains it in the end."""
    found = root_of(child, opens)
    while found is not None and (above := root_of(found, opens)) is not None:
        found = above
    return found


async def _by_itself(connection: asyncpg.Connection, row: _Row, *, now: datetime) -> None:
    """Let an episode that nothing explains be of the incident of its key."""
    was_explained = row.suppressed == Suppression.INHIBITED
    if row.incident is not None and not was_explained:
        return
    grace = timedelta(seconds=row.rule.opens_after_s) if was_explained else timedelta(0)
    ready_at = now + row.rule.wait + grace
    row.incident = await _incident(connection, row, ready_at=ready_at, now=now)
    await connection.execute(_BELONGS, row.open.id, row.incident, "", "")
    if was_explained:
        await note(
            *(connection, row.incident, "waits", "no_longer_explained"),
            organisation=row.open.place.organisation,
            until=ready_at,
            now=now,
        )


async def _explained(
    connection: asyncpg.Connection, row: _Row, parent: _Row, *, now: datetime
) -> None:
    """Let an episode be of the incident of what explains it."""
    assert parent.incident is not None
    if row.suppressed == Suppression.INHIBITED and row.incident == parent.incident:
        return
    before, row.incident = row.incident, parent.incident
    ref = await connection.fetchval("select ref from incidents where id = $1", parent.incident)
    await connection.execute(_BELONGS, row.open.id, parent.incident, "inhibited", ref)
    if before is None or before == parent.incident:
        return
    merged = await connection.fetchval(_MERGED, before, parent.incident, now)
    if merged is not None:
        await note(
            *(connection, before, "merged", "inhibited"),
            organisation=row.open.place.organisation,
            about=ref,
            now=now,
        )


async def _incident(
    connection: asyncpg.Connection, row: _Row, *, ready_at: datetime, now: datetime
) -> int:
    """Return the open incident of an episode's key, made if there is none."""
    place, subject = row.open.place, row.open.subject
    alone = subject.kind is not SubjectKind.PLATFORM
    found: Mapping[str, int | bool] = await connection.fetchrow(
        _INCIDENT,
        *(place.organisation, new_ref("incident"), key_of(subject, row.open.condition, place)),
        *(subject.kind.value, subject.row, row.open.condition.value, row.rule.severity.value),
        *(place.site, place.device if alone else None, place.spot if alone else None),
        *(row.since, now, ready_at),
    )
    number = int(found["id"])
    if found["made"]:
        await note(
            *(connection, number, "opened", "wait"),
            organisation=place.organisation,
            until=ready_at,
            now=now,
        )
    return number


_ALL_LOOK = """
    update incidents set look_at = $1,
        ready_at = case when told_at is null and subject <> 'platform'
            then greatest(ready_at, $2) else ready_at end
    where state = 'open'
"""
_OPEN = """
    select id, organisation_id, subject, subject_id, condition, site_id, device_id, spot_id, since,
        incident_id, suppressed
    from episodes where resolved_at is null
      and (site_id = any($1::int[]) or (site_id is null and device_id = any($2::int[]))
           or ($3 and subject = 'platform'))
    order by id
"""
_BELONGS = """
    update episodes set incident_id = $2, suppressed = $3, suppressed_by = $4,
        suppressed_until = null
    where id = $1
"""
_INCIDENT = """
    with found as (select id from incidents where key = $3 and state = 'open' for update),
    waits as (
        update incidents set look_at = $12,
            ready_at = case when told_at is null then ready_at else greatest(ready_at, $13) end
        where id in (select id from found) returning id),
    made as (
        insert into incidents (organisation_id, ref, key, subject, subject_id, condition, severity,
            site_id, device_id, spot_id, since, opened_at, ready_at, look_at)
        select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $12
        where not exists (select from found) returning id)
    select id, true as made from made union all select id, false from waits
"""
_MERGED = """
    update incidents set state = 'merged', ended_at = $3, merged_into = $2, look_at = null
    where id = $1 and state = 'open'
      and not exists (select from episodes e where e.incident_id = $1 and e.resolved_at is null)
    returning id
"""
_TOUCHED = """
    update incidents set look_at = $1 where state = 'open'
      and (site_id = any($2::int[]) or (site_id is null and device_id = any($3::int[]))
           or ($4 and subject = 'platform'))
"""
