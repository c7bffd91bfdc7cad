"""One timeline of a device: what happened to it, in one order, whoever wrote it down.

Its sessions, what it was set and told, which version it ran and how it came by it, what was wrong,
who was there, and what that did to its counts. Each source gives its latest rows before a moment,
and the latest of all of them are shown.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

MOST = 60
KINDS = ("session", "configuration", "version", "firmware", "episode", "visit", "counts")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: `what` is its word in the catalogues (`tl_<what>`)."""

    at: datetime
    kind: str
    what: str
    text: str
    more: str


async def events(
    connection: asyncpg.Connection,
    device: int,
    *,
    kinds: Iterable[str],
    before: datetime,
) -> list[Event]:
    """Return the latest events before a moment, and one more if there are more."""
    rows = await connection.fetch(_EVENTS, device, before, MOST + 1, list(kinds))
    return [Event(*row) for row in rows]


_EVENTS = """
with site as (
    select p.site_id from assignments a join spots p on p.id = a.spot_id
    where a.device_id = $1 and a.valid @> $2::timestamptz
), spot as (
    select spot_id, valid from assignments where device_id = $1
), told as (
    (select at, case when kind in ('version', 'boot') then 'version' else 'session' end as kind,
            kind as what, coalesce(nullif(state, ''), reason) as text,
            case when kind in ('version', 'boot')
                then coalesce(detail ->> 'to', detail ->> 'agent', '') else '' end as more
     from device_events where device_id = $1 and at < $2 order by at desc limit $3)
    union all
    (select e.opened_at, 'episode', 'opened', e.condition, i.ref
     from episodes e left join incidents i on i.id = e.incident_id
     where e.device_id = $1 and e.opened_at < $2 order by e.opened_at desc limit $3)
    union all
    (select e.resolved_at, 'episode', 'resolved', e.condition, i.ref
     from episodes e left join incidents i on i.id = e.incident_id
     where e.device_id = $1 and e.resolved_at < $2 order by e.resolved_at desc limit $3)
    union all
    (select b.asked_at, 'configuration', 'asked', b.kind, b.reason
     from commands c join command_batches b on b.id = c.batch_id
     where c.device_id = $1 and b.asked_at < $2 order by b.asked_at desc limit $3)
    union all
    (select c.ended_at, 'configuration', 'command_' || c.state, b.kind, c.code
     from commands c join command_batches b on b.id = c.batch_id
     where c.device_id = $1 and c.ended_at < $2 order by c.ended_at desc limit $3)
    union all
    (select told_at, 'configuration', 'settings', 'version ' || version, ''
     from device_settings where device_id = $1 and told_at < $2)
    union all
    (select reported_at, 'configuration', 'reported', 'version ' || reported_version, ''
     from device_settings where device_id = $1 and reported_at < $2)
    union all
    (select r.heard_at, 'firmware', 'fw_' || r.phase, w.name, r.code
     from execution_reports r join executions e on e.id = r.execution_id
     join rollouts w on w.id = e.rollout_id
     where e.device_id = $1 and r.heard_at < $2 order by r.heard_at desc, r.seq desc limit $3)
    union all
    (select e.offered_at, 'firmware', 'fw_offered', w.name, ''
     from executions e join rollouts w on w.id = e.rollout_id
     where e.device_id = $1 and e.offered_at < $2 order by e.offered_at desc limit $3)
    union all
    (select e.ended_at, 'firmware', 'fw_' || replace(e.state, ' ', '_'), w.name, e.code
     from executions e join rollouts w on w.id = e.rollout_id
     where e.device_id = $1 and e.ended_at < $2
       and e.state in ('timed out', 'lost', 'unreachable', 'cancelled', 'superseded')
     order by e.ended_at desc limit $3)
    union all
    (select lower(a.valid), 'visit', 'placed', s.name, p.name
     from assignments a join spots p on p.id = a.spot_id join sites s on s.id = p.site_id
     where a.device_id = $1 and lower(a.valid) < $2 order by 1 desc limit $3)
    union all
    (select upper(a.valid), 'visit', 'left', s.name, p.name
     from assignments a join spots p on p.id = a.spot_id join sites s on s.id = p.site_id
     where a.device_id = $1 and upper(a.valid) < $2 order by 1 desc limit $3)
    union all
    (select signed_off_at, 'visit', 'signed_off', signed_off_by, ''
     from technician_claims where device_id = $1 and signed_off_at < $2)
    union all
    (select starts_at, 'visit', 'window_' || w.kind, w.reason, w.author
     from health_windows w
     where (w.device_id = $1 or w.site_id = (select site_id from site)) and starts_at < $2
     order by starts_at desc limit $3)
    union all
    (select recorded_at, 'configuration', 'certificate_' || state, left(serial, 16), ''
     from certificates where device_id = $1 and recorded_at < $2 order by 1 desc limit $3)
    union all
    (select coalesce(from_at, recorded_at), 'counts', 'gap', reason, ''
     from gaps where device_id = $1 and coalesce(from_at, recorded_at) < $2
     order by 1 desc limit $3)
    union all
    (select m.from_at, 'counts', 'masked', m.condition, ''
     from masks m join spot on spot.spot_id = m.spot_id and spot.valid @> m.from_at
     where m.from_at < $2 and m.withdrawn_at is null order by 1 desc limit $3)
)
select at, kind, what, coalesce(text, ''), coalesce(more, '') from told
where at is not null and kind = any($4::text[]) order by at desc, kind, what limit $3
"""
