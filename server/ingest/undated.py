"""Placing what was held: frames whose boot had no clock when they came, or an unbelievable one.

A boot's frames are placed in one transaction with their removal from the held ones, so each is
placed once. What the learnt offset puts outside the allowed window stays held, as 'wild clock';
a backfill grant may let it in later.
"""

import asyncpg

from server import log
from server.db.engine import transaction_on
from server.ingest.places import Boot, Cursor, Device, Digests
from server.ingest.placing import Placed, place_frame, store

FRAMES_A_TURN = 200  # in one transaction; python's decoder takes some 0.3 ms a frame
_log = log.get("ingest")


async def place_boot(
    connection: asyncpg.Connection, device: Device, boot_id: int, *, now_ms: int, wild: bool = False
) -> int:
    """Place what is held of a boot (its signed id); with `wild`, also try those again.

    Returns how many frames found their place. What is known of the device must be up to date.
    """
    placed = 0
    after_seq = -1
    while True:
        async with transaction_on(connection, "place undated"):
            row = await connection.fetchrow(
                "select id, boot_id, ordinal, quality, offset_ms, assignment_version from boots "
                "where device_id = $1 and boot_id = $2 for update",
                device.row,
                boot_id,
            )
            if row is None or row["assignment_version"] != device.registered.assignment_version:
                return placed
            held = await connection.fetch(
                "select seq, frame from undated_frames where boot = $1 and seq > $2 "
                "and (reason = 'undated' or $3) order by seq limit $4",
                row["id"],
                after_seq,
                wild,
                FRAMES_A_TURN,
            )
            if not held:
                return placed
            after_seq = held[-1]["seq"]
            boot = Boot(row["id"], device, boot_id % (1 << 64), row["ordinal"], Cursor(), Digests())
            offset_ms = row["offset_ms"] if row["quality"] else None
            turn = Placed()
            for entry in held:
                place_frame(turn, boot, entry["frame"], offset_ms=offset_ms, now_ms=now_ms)
            await store(connection, boot, turn)
            await _release(connection, boot, turn)
            placed += len(turn.done)
        device.stored_to_ms = max(device.stored_to_ms, turn.end_ms)
        _log.info("undated frames placed", device=device.name, placed=len(turn.done))


async def _release(connection: asyncpg.Connection, boot: Boot, turn: Placed) -> None:
    """Take what was placed off the held ones, and mark what has a wild clock."""
    await connection.execute(
        "delete from undated_frames where boot = $1 and seq = any($2::bigint[])",
        boot.row,
        turn.done,
    )
    await connection.execute(
        "update undated_frames set reason = 'wild clock' where boot = $1 "
        "and seq = any($2::bigint[])",
        boot.row,
        turn.wild,
    )
