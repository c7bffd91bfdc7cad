"""Boots that have ended: folded out of the working table, and opened again should one go on.

Each start of an agent makes a row of `boots`, which is wide, half empty and updated all day for as
long as the boot runs, and then never again. What has ended goes to `closed_boots`.

Invariants:
- A boot stands in one of the two tables, under one id; a single statement moves it. What its
  cursor says is the same in both.
- A cursor moves only in `boots`. What repeats in a closed boot is answered from where it is; what
  is next opens it first, and is then stored as always.
- Of each device the boot with the highest ordinal, the one stored furthest and the one stored last
  are not folded: so `boots` alone has each device's greatest of these.
- A boot that a held frame or a gap names is not folded; foreign keys see to it.
See `ops/decisions/0006-closed-boots.md`.
"""

from collections.abc import Sequence
from typing import Final

import asyncpg

from protocol.frame import signed
from server import log
from server.clock import at
from server.db.engine import transaction_on
from server.ingest.places import DAY_MS, Boot, Places

OLD_MS: Final = 35 * DAY_MS  # an agent may be away for 30 days, and then has some to send
A_TURN = 500  # boots in one transaction, some 50 ms
_log = log.get("ingest")

_OLD = """
select id from boots where id > $2 and coalesce(last_stored, first_seen) < $1
order by id limit $3
"""

# Whoever is being written, or whose assignments are being edited, is left for another time.
_FOLD = """
with ended as materialized (
  select b.id from boots b join devices d on d.id = b.device_id
  where b.id = any($1::int[]) and coalesce(b.last_stored, b.first_seen) < $2
    and exists (select from boots n where n.device_id = b.device_id
      and (n.ordinal, n.id) > (b.ordinal, b.id))
    and (b.stored_to is null or exists (select from boots n where n.device_id = b.device_id
      and (n.stored_to, n.id) > (b.stored_to, b.id)))
    and (b.last_stored is null or exists (select from boots n where n.device_id = b.device_id
      and (n.last_stored, n.id) > (b.last_stored, b.id)))
    and not exists (select from undated_frames u where u.boot = b.id)
    and not exists (select from gaps g where g.boot = b.id)
  for update of b skip locked for key share of d skip locked),
gone as (delete from boots b using ended e where b.id = e.id returning b.*)
insert into closed_boots (id, device_id, boot_id, ordinal, next_seq, digest, stored_to, first_seen,
  offset_ms, quality, totals_open, totals, answers)
select id, device_id, boot_id, ordinal, next_seq, digest, stored_to, first_seen, offset_ms, quality,
  totals_open,
  case when 0 = all(totals) then null when 0 = all(totals[5:]) then totals[:4] else totals end,
  nullif(answers, '{}')
from gone
"""

# The device is locked as `make` does: whoever edits its assignments either finds the boot here
# before, or it is placed by the new ones.
_REOPEN = """
with held as materialized (
  select c.device_id, c.boot_id, d.assignment_version
  from rows from (unnest($1::int[]), unnest($2::bigint[])) v (device, boot_id)
    join closed_boots c on c.device_id = v.device and c.boot_id = v.boot_id
    join devices d on d.id = c.device_id
  order by 1, 2 for update of c for share of d),
back as (
  delete from closed_boots c using held h
  where c.device_id = h.device_id and c.boot_id = h.boot_id
  returning c.*, h.assignment_version)
insert into boots (id, device_id, boot_id, ordinal, next_seq, digest, stored_to, first_seen,
  offset_ms, quality, totals_open, totals, answers, assignment_version)
overriding system value
select id, device_id, boot_id, ordinal, next_seq, digest, stored_to, first_seen, offset_ms, quality,
  totals_open,
  coalesce(totals, '{}') || array_fill(0::bigint, array[8 - coalesce(cardinality(totals), 0)]),
  coalesce(answers, '{}'), assignment_version
from back
"""

_CLOSED = """
select v.i from rows from (unnest($1::int[]), unnest($2::bigint[])) with ordinality
  v (device, boot_id, i)
join closed_boots c on c.device_id = v.device and c.boot_id = v.boot_id
"""


async def fold(connection: asyncpg.Connection, *, now_ms: int) -> int:
    """Close every boot that has ended as of `now_ms`, some at a time; return how many."""
    before = at(now_ms - OLD_MS)
    last, folded = 0, 0
    while rows := await connection.fetch(_OLD, before, last, A_TURN):
        ids = [row["id"] for row in rows]
        async with transaction_on(connection, "fold boots"):
            done = await connection.execute(_FOLD, ids, before)
        folded += int(done.removeprefix("INSERT 0 "))
        last = ids[-1]
    if folded:
        _log.info("boots folded", boots=folded)
    return folded


async def reopen(connection: asyncpg.Connection, boots: Sequence[Boot]) -> None:
    """Put those of `boots` that are closed back, so that their cursors can move.

    One that another has reopened meanwhile is left to the compare-and-swap.
    """
    if not boots:
        return
    async with transaction_on(connection, "reopen boots"):
        await connection.execute(
            _REOPEN, [b.device.row for b in boots], [signed(b.boot_id, 64) for b in boots]
        )
    for boot in boots:
        boot.closed = False
    _log.info("boots reopened", boots=len(boots))


async def forget(connection: asyncpg.Connection, places: Places) -> None:
    """Take closed boots out of memory, whoever has folded them; a late frame reads its own anew."""
    some: list[Boot] = []
    for device in places.devices():
        if len(device.boots) > 1:
            some += device.boots.values()
        if len(some) >= A_TURN:
            await _forget_closed(connection, some)
            some = []
    await _forget_closed(connection, some)


async def _forget_closed(connection: asyncpg.Connection, boots: Sequence[Boot]) -> None:
    rows = await connection.fetch(
        _CLOSED, [b.device.row for b in boots], [signed(b.boot_id, 64) for b in boots]
    )
    for row in rows:
        boot = boots[row["i"] - 1]
        if boot.device.boots.get(boot.boot_id) is boot:
            del boot.device.boots[boot.boot_id]
