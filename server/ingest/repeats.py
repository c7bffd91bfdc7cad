"""Repeats that memory cannot judge: their digests are compared with what the tables hold."""

from collections.abc import Sequence

import asyncpg

from protocol.frame import Kind, signed
from server import metrics
from server.clock import at as at_time
from server.ingest import strays
from server.ingest.batch import DIGEST, END_MS, KIND, QUALITY, SEQ, START_MS, Batch
from server.ingest.places import Boot

CHECKED_A_BATCH = 64  # a device that repeats thousands is slow in hearing, not a forger
_HOUR_MS = 3_600_000
_FIRST_MS, _LAST_MS = -62_000_000_000_000, 250_000_000_000_000  # the years 5 to 9892
_TABLES = {Kind.COUNTER: "readings", Kind.KIOSK: "readings", Kind.HEALTH: "device_metrics"}
_WHOSE = {"readings": "spot", "device_metrics": "device"}  # what their indexes begin with


async def check_digests(
    connection: asyncpg.Connection, batch: Batch, unverified: Sequence[tuple[Boot, int, int]]
) -> None:
    """Look up what is stored under each repeated frame's number; another digest is a finding."""
    for boot, at, digest in unverified[:CHECKED_A_BATCH]:
        stored = await _stored(connection, batch, boot, at)
        if stored is None:
            metrics.FRAMES_DROPPED.labels("repeat_unverified").inc()
            continue
        seq = batch.records[at][SEQ]
        if stored != digest:
            await strays.add(
                connection, "digest mismatch", boot.device, seq=seq, stored=stored, came=digest
            )


async def _stored(connection: asyncpg.Connection, batch: Batch, boot: Boot, at: int) -> int | None:
    """Return the digest of the frame stored as this one's number, None if it is not found."""
    record = batch.records[at]
    seq = record[SEQ]
    kind = Kind(record[KIND]) if record[KIND] in _TABLES else None
    if record[QUALITY] and kind is not None and _FIRST_MS < record[START_MS] < _LAST_MS:
        table = _TABLES[kind]
        spots = [piece.spot for piece in boot.device.registered.pieces]
        found = await connection.fetchval(
            f"select digest from {table} where {_WHOSE[table]} = any($5::int[]) "  # noqa: S608
            "and boot = $1 and seq = $2 and time between $3 and $4 limit 1",
            boot.row,
            signed(seq, 32),
            at_time(record[START_MS] - _HOUR_MS),
            at_time(record[END_MS] + _HOUR_MS),
            spots if table == "readings" else [boot.device.row],
        )
        if found is not None:
            return int(found) % (1 << 32)
    frame = await connection.fetchval(
        "select frame from undated_frames where boot = $1 and seq = $2", boot.row, seq
    )
    return None if frame is None else int.from_bytes(frame[DIGEST_AT : DIGEST_AT + 4], "little")


DIGEST_AT = 24  # of the frame's header
__all__ = ["CHECKED_A_BATCH", "DIGEST", "check_digests"]
