"""Staff rosters: how many hours were rostered at a site, by anybody.

A shift is known by the roster's own reference and a role; nobody's name is asked for. Shifts are
taken as they were planned, breaks included: a roster is no time clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo

import asyncpg


@dataclass(frozen=True, slots=True)
class Staffed:
    """The rostered hours of a stretch of time, and how many shifts began in it."""

    hours: float
    shifts: int


@dataclass(frozen=True, slots=True)
class OnShift:
    """How many are on shift in a role (empty: none was told), and until when the last of them."""

    role: str
    people: int
    until: datetime

    def at(self, zone: tzinfo) -> "OnShift":
        """Return the same by the clock of a zone."""
        return replace(self, until=self.until.astimezone(zone))


async def on_shift(
    connection: asyncpg.Connection, site_id: int, at: datetime
) -> list[OnShift] | None:
    """Return who is rostered at an instant, by role; None at a site that never had a roster."""
    if not await connection.fetch(_HEARD, [site_id]):
        return None
    return [OnShift(*row) for row in await connection.fetch(_ON_SHIFT, site_id, at)]


async def next_shift(
    connection: asyncpg.Connection, site_id: int, after: datetime
) -> datetime | None:
    """Return when the next shift begins, within a day; None if none does."""
    found: datetime | None = await connection.fetchval(_NEXT_SHIFT, site_id, after)
    return found


async def staffed_hours(
    connection: asyncpg.Connection, site_ids: Sequence[int], since: datetime, until: datetime
) -> dict[int, Staffed]:
    """Return by site the rostered hours of [since, until), each shift's part in it.

    A site that never had a roster is left out; one that has, and nobody then, has 0. A shift is
    counted where it begins, so that shifts of days add up.
    """
    rows = await connection.fetch(_HOURS, list(site_ids), since, until)
    return {row["site_id"]: Staffed(float(row["hours"]), row["shifts"]) for row in rows}


async def staffed_in(
    connection: asyncpg.Connection, site_ids: Sequence[int], edges: Sequence[datetime]
) -> dict[int, list[Staffed]]:
    """Return the same for each stretch between two `edges`, which are in order."""
    heard = [row[0] for row in await connection.fetch(_HEARD, list(site_ids))]
    found = {site: [Staffed(0.0, 0)] * (len(edges) - 1) for site in heard}
    for site, number, hours, shifts in await connection.fetch(_BETWEEN, heard, list(edges)):
        found[site][number - 1] = Staffed(float(hours), shifts)
    return found


_ON_SHIFT = """
    select role, count(*)::int, max(ends_at) from staff_shifts
    where site_id = $1 and starts_at <= $2 and ends_at > $2
      and starts_at > $2::timestamptz - interval '24 hours'
    group by role order by role
"""
_NEXT_SHIFT = """
    select min(starts_at) from staff_shifts
    where site_id = $1 and starts_at > $2 and starts_at < $2::timestamptz + interval '24 hours'
"""
_HEARD = """
    select asked.site_id from unnest($1::int[]) as asked (site_id)
    where exists (select from staff_shifts t where t.site_id = asked.site_id)
"""
_BETWEEN = """
    with edge as (select $2::timestamptz[] as at)
    select s.site_id, n,
           sum(extract(epoch from least(s.ends_at, at[n + 1]) - greatest(s.starts_at, at[n])))
               / 3600,
           count(*) filter (where s.starts_at >= at[n])
    from edge, staff_shifts s, generate_series(
        greatest(width_bucket(s.starts_at, at), 1),
        least(width_bucket(s.ends_at, at), cardinality(at) - 1)) n
    where s.site_id = any($1::int[]) and s.starts_at < at[cardinality(at)]
      and s.ends_at > at[1] and s.starts_at > at[1] - interval '24 hours'
    group by 1, 2
"""
_HOURS = """
    select site.id as site_id,
           coalesce(sum(extract(epoch from least(s.ends_at, $3) - greatest(s.starts_at, $2)))
                    filter (where s.id is not null), 0) / 3600 as hours,
           count(s.id) filter (where s.starts_at >= $2) as shifts
    from unnest($1::int[]) as site(id)
    left join staff_shifts s on s.site_id = site.id and s.starts_at < $3 and s.ends_at > $2
      and s.starts_at > $2 - interval '24 hours'
    where exists (select from staff_shifts t where t.site_id = site.id)
    group by site.id
"""
