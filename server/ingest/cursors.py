"""Cursors in the database: reading those of a batch's boots, and making those of new ones.

A boot that is only read may be closed (see `closing`); before its cursor moves it is reopened.
"""

from collections.abc import Sequence

import asyncpg

from protocol.frame import signed
from server.ingest.places import EVER_MS, Boot, Cursor

_READ = """
select v.i, b.id, b.next_seq, b.digest, b.totals, b.answers, b.totals_open, b.closed,
  (extract(epoch from b.stored_to) * 1000)::bigint as stored_to_ms,
  exists (select from undated_frames u where u.boot = b.id and u.reason = 'undated') as undated,
  (select max(g.to_seq) from gaps g where g.boot = b.id and g.reason = 'refused'
    and g.filled_at is null) as refused_to
from rows from (unnest($1::int[]), unnest($2::bigint[])) with ordinality v (device, boot_id, i)
join all_boots b on b.device_id = v.device and b.boot_id = v.boot_id
"""

_MAKE = """
with last as materialized (
  select device_id, max(ordinal) as ordinal from boots where device_id = any($1) group by 1)
insert into boots (device_id, boot_id, ordinal, assignment_version)
select v.device, v.boot_id, v.ordinal, d.assignment_version
from unnest($1::int[], $2::bigint[], $3::bigint[]) v (device, boot_id, ordinal)
  join devices d on d.id = v.device
where not exists (select from closed_boots c where (c.device_id, c.boot_id) = (v.device, v.boot_id))
order by 1, 2 for share of d
on conflict (device_id, boot_id) do nothing
returning device_id, ordinal,
  exists (select from last where last.device_id = boots.device_id
    and last.ordinal >= boots.ordinal) as seen_before
"""


async def read(connection: asyncpg.Connection, boots: Sequence[Boot]) -> list[Boot]:
    """Set each boot's row and cursor from the database; return those that are not there."""
    rows = await connection.fetch(
        _READ, [b.device.row for b in boots], [signed(b.boot_id, 64) for b in boots]
    )
    missing = dict(enumerate(boots, 1))
    for row in rows:
        boot = missing.pop(row["i"])
        boot.row = row["id"]
        boot.undated = row["undated"]
        boot.closed = row["closed"]
        boot.refused_to = -1 if row["refused_to"] is None else row["refused_to"]
        boot.digests.clear()
        boot.cursor = cursor_of(row)
        boot.device.stored_to_ms = max(boot.device.stored_to_ms, boot.cursor.stored_to_ms)
    return list(missing.values())


async def make(connection: asyncpg.Connection, boots: Sequence[Boot]) -> list[Boot]:
    """Create the cursors of boots that begin now; `read` them afterwards.

    An edit of a device's assignments is waited for: a cursor from before it would never move again.
    Returns those whose ordinal the device has had before: its store was wiped, rolled back or
    cloned.
    """
    rows = await connection.fetch(
        _MAKE,
        [b.device.row for b in boots],
        [signed(b.boot_id, 64) for b in boots],
        [b.ordinal for b in boots],
    )
    again = {(row["device_id"], row["ordinal"]) for row in rows if row["seen_before"]}
    return [boot for boot in boots if (boot.device.row, boot.ordinal) in again]


async def lock(connection: asyncpg.Connection, boots: Sequence[Boot]) -> bool:
    """Lock the boots' rows in the order that everyone does, and read their cursors afresh.

    Closed ones are left out: they do not move. False if any other is gone: it was closed, or the
    database is not the one it was.
    """
    open_ = [boot for boot in boots if not boot.closed]
    rows = await connection.fetch(
        "select b.id, b.next_seq, b.digest, b.totals, b.answers, b.totals_open, "
        "(extract(epoch from b.stored_to) * 1000)::bigint as stored_to_ms, b.boot_id, b.device_id "
        "from boots b where b.id = any($1::int[]) order by b.id for update",
        [boot.row for boot in open_],
    )
    by_row = {boot.row: boot for boot in open_}
    for row in rows:
        boot = by_row[row["id"]]
        if (row["device_id"], row["boot_id"]) != (boot.device.row, signed(boot.boot_id, 64)):
            return False
        boot.digests.clear()
        boot.cursor = cursor_of(row)
    return len(rows) == len(by_row)


def cursor_of(row: asyncpg.Record) -> Cursor:
    """Return a row of `boots` as a cursor."""
    flat = row["answers"]
    stored_to_ms = row["stored_to_ms"]
    return Cursor(
        row["next_seq"],
        row["digest"],
        tuple(row["totals"]),
        tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True)),
        row["totals_open"],
        -EVER_MS if stored_to_ms is None else stored_to_ms,
    )
