"""After an edit of assignments: counts go to the spot that held their device when they were made.

A swap is often recorded late. `settle` belongs in the transaction that edits `assignments`, after
the edit: it makes what ingest has placed by the old ones fail (`Registered.assignment_version`),
moves the rows, and rebuilds the buckets of both spots, as revisions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from server.fleet.register import assign
from server.ingest.rebuild import LONGEST_ROW, rebuild

ALWAYS = datetime(2000, 1, 1, tzinfo=UTC)
_LENGTH = {
    "readings": "greatest(cardinality(counts) / 2 * interval_s * interval '1 s', "
    "(lead_ms + span_ms) * interval '1 ms')",
    "presses": "interval '1 ms'",
}
_BEGIN = {"readings": "(time + lead_ms * interval '1 ms')", "presses": "time"}
_READINGS = "time, spot, boot, seq, digest, lead_ms, span_ms, line, interval_s, counts"


@dataclass(frozen=True, slots=True)
class Stay:
    """A device's stay at a spot (0: nowhere) in a stretch of time."""

    spot: int
    from_at: datetime
    until_at: datetime


async def reassign(
    connection: asyncpg.Connection, *, device: str, spot: str, since: datetime
) -> int:
    """Let `device` stand at `spot` from `since` on, with what was counted since; see `assign`.

    Returns how many stored rows moved to another spot. Within the caller's transaction, the
    owner's. Raises what `server.fleet.register.assign` raises.
    """
    moved = 0
    for row in sorted(await assign(connection, device=device, spot=spot, since=since)):
        moved += await settle(connection, row, from_at=since)
    return moved


async def settle(
    connection: asyncpg.Connection,
    device: int,
    *,
    from_at: datetime | None = None,
    until_at: datetime | None = None,
) -> int:
    """Move what the device counted in a stretch of time to where it stood; return rows moved.

    Without a stretch all its time is looked at, which may take long.
    """
    low = from_at or ALWAYS
    high = until_at or datetime(2100, 1, 1, tzinfo=UTC)
    boots = await _lock(connection, device)
    moved: dict[int, list[tuple[datetime, datetime]]] = {}
    count = 0
    for stay in await _stays(connection, device, low, high):
        count += await _split_rows(connection, boots, stay)
        for table, length in _LENGTH.items():
            rows = await connection.fetch(
                f"select spot, min(time) as low, max(time + {length}) as high, count(*) as n "  # noqa: S608
                f"from {table} where {_within(table)} group by spot",
                *(boots, stay.spot, stay.from_at, stay.until_at, stay.from_at - LONGEST_ROW),
            )
            for row in rows:
                count += row["n"]
                for spot in (row["spot"], stay.spot):
                    moved.setdefault(spot, []).append((row["low"], row["high"]))
            await connection.execute(
                f"update {table} set spot = $2 where {_within(table)}",  # noqa: S608
                *(boots, stay.spot, stay.from_at, stay.until_at, stay.from_at - LONGEST_ROW),
            )
        await connection.execute(
            "update gaps set spot_id = nullif($2::int, 0) where device_id = $1 "
            "and from_at >= $3 and from_at < $4",
            *(device, stay.spot, stay.from_at, stay.until_at),
        )
    for spot, stretches in sorted(moved.items()):
        if spot:
            await rebuild(
                connection, spot, min(s[0] for s in stretches), max(s[1] for s in stretches)
            )
    return count


def _within(table: str) -> str:
    """Return the condition for rows that begin to be observed in a stay: $1 boots to $5."""
    return (
        f"boot = any($1::int[]) and spot <> $2 and time >= $5 and time < $4 "
        f"and {_BEGIN[table]} >= $3 and {_BEGIN[table]} < $4"
    )


async def _lock(connection: asyncpg.Connection, device: int) -> list[int]:
    """Lock the device's cursors and outdate what was placed by its old assignments."""
    version = await connection.fetchval(
        "update devices set assignment_version = assignment_version + 1 where id = $1 "
        "returning assignment_version",
        device,
    )
    rows = await connection.fetch(
        "select id from boots where device_id = $1 order by id for update", device
    )
    await connection.execute(
        "update boots set assignment_version = $2 where device_id = $1", device, version
    )
    # none of these can be reopened before we commit: that waits for the device (see `closing`)
    rows += await connection.fetch("select id from closed_boots where device_id = $1", device)
    return [row["id"] for row in rows]


async def _stays(
    connection: asyncpg.Connection, device: int, low: datetime, high: datetime
) -> list[Stay]:
    """Return where the device was in all of [low, high), without holes."""
    rows = await connection.fetch(
        "select spot_id, greatest(coalesce(lower(valid), $2), $2) as low, "
        "least(coalesce(upper(valid), $3), $3) as high from assignments "
        "where device_id = $1 and valid && tstzrange($2, $3) order by 2",
        *(device, low, high),
    )
    stays: list[Stay] = []
    at = low
    for row in rows:
        if row["low"] > at:
            stays.append(Stay(0, at, row["low"]))
        stays.append(Stay(row["spot_id"], row["low"], row["high"]))
        at = row["high"]
    if at < high:
        stays.append(Stay(0, at, high))
    return stays


async def _split_rows(connection: asyncpg.Connection, boots: Sequence[int], stay: Stay) -> int:
    """Cut the rows in which this stay begins in two, so that each part may go its own way."""
    rows = await connection.fetch(
        f"select {_READINGS} from readings where boot = any($1::int[]) "  # noqa: S608
        "and time + lead_ms * interval '1 ms' < $2 and time >= $3 and case when line < 0 "
        "then time + span_ms * interval '1 ms' > $2 "
        "else time + (cardinality(counts) / 2 - 1) * interval_s * interval '1 s' >= $2 end",
        *(boots, stay.from_at, stay.from_at - LONGEST_ROW),
    )
    for row in rows:
        await connection.execute(
            "delete from readings where spot = $1 and time = $2 and boot = $3 and seq = $4 "
            "and line = $5",
            *(row["spot"], row["time"], row["boot"], row["seq"], row["line"]),
        )
        await connection.copy_records_to_table(
            "readings", records=_cut(row, stay.from_at), columns=_READINGS.split(", ")
        )
    return len(rows)


def _cut(row: asyncpg.Record, at: datetime) -> list[tuple[object, ...]]:
    """Return a row's two parts: intervals that begin before `at`, and the rest."""
    step = timedelta(seconds=row["interval_s"])
    cells = -((row["time"] - at) // step)  # the intervals that begin before `at`
    begin = row["time"] + timedelta(milliseconds=row["lead_ms"])
    end = begin + timedelta(milliseconds=row["span_ms"])
    edge = row["time"] + cells * step

    def part(
        start: datetime, low: datetime, high: datetime, counts: list[int]
    ) -> tuple[object, ...]:
        millisecond = timedelta(milliseconds=1)
        return (
            *(start, row["spot"], row["boot"], row["seq"], row["digest"]),
            *((low - start) // millisecond, (high - low) // millisecond),
            *(row["line"], row["interval_s"], counts),
        )

    counts = list(row["counts"])
    return [
        part(row["time"], begin, min(end, edge), counts[: 2 * cells]),
        part(edge, max(begin, edge), max(end, edge), counts[2 * cells :]),
    ]
