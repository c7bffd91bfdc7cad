"""Where devices stand, and who is on the way beside whom: one answer for all who ask.

A device stands where it is assigned to now. Who is on the way counts where it stood when it was
offered something and, if it was moved since, also where it stands now. At its door it counts for as
long as it may begin by itself: a device that was cut off installs by what it was assigned, within
its windows, until that ends, whatever became of its execution meanwhile (`assigned_until`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.firmware.life import FLYING
from server.firmware.rows import named


def stands(device: str, at: str) -> str:
    """Return the join that names, as `w`, where a device stands: two expressions of SQL."""
    return f"""
left join lateral (
    select s.id as spot_id, s.door_id, s.site_id, t.region_id
    from assignments a join spots s on s.id = a.spot_id join sites t on t.id = s.site_id
    where a.device_id = {device} and a.valid @> {at}::timestamptz limit 1) w on true
"""  # noqa: S608 - both are ours


@dataclass(frozen=True, slots=True)
class Busy:
    """A device (its row) on its way; not `flying`: it only may begin, and keeps its door alone."""

    device: int
    site: int | None
    door: int | None
    flying: bool


async def busy(
    connection: asyncpg.Connection, sites: Sequence[int], *, now: datetime
) -> list[Busy]:
    """Return who is on the way at these sites, of whatever rollout; one that was moved, twice."""
    rows = await connection.fetch(_BUSY, list(sites), now)
    return [Busy(*row) for row in rows]


_FLYING = named(FLYING)
_BUSY = f"""
select device_id, site_id, door_id, true from executions
where site_id = any($1::int[]) and state in ({_FLYING})
union all
select device_id, null, door_id, false from executions
where site_id = any($1::int[]) and assigned_until > $2 and state not in ({_FLYING})
union all
select e.device_id, case when e.state in ({_FLYING}) then nullif(s.site_id, e.site_id) end,
       s.door_id, e.state in ({_FLYING})
from spots s join assignments a on a.spot_id = s.id and a.valid @> $2::timestamptz
join executions e on e.device_id = a.device_id
    and (e.state in ({_FLYING}) or e.assigned_until > $2)
where s.site_id = any($1::int[]) and s.door_id is distinct from e.door_id
"""  # noqa: S608 - states of ours
