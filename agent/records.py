"""The records in the outbox's file: the SQL, on an open connection. `Outbox` decides, this does.

Nothing here begins a transaction but `transaction`; whatever changes more than one row belongs in
one. Boots live in memory and are written as a whole; records are read when they are needed.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from dataclasses import replace as altered

from agent.disk import next_seq_on_disk
from agent.held import Held, Meta, pack_meta, unpack_meta
from protocol.frame import Quality, signed


@dataclass(slots=True)
class Boot:
    """A boot that the outbox knows: it holds records from `first_seq` up to `next_seq`.

    Below `acked` the server has said that it stored them. `floor` describes what was purged.
    """

    ordinal: int
    boot_id: int
    epoch: str
    start_ms: int
    quality: Quality = Quality.NONE
    offset_ms: int = 0
    first_seq: int = 0
    next_seq: int = 0
    acked: int = 0
    floor: Meta | None = None
    touched_ms: int = 0
    checkpoint: tuple[int, int, int] = field(default=(0, 0, 0))  # began_ms, next_seq, at_ms


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and on disk when the block ends."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


# -- records ---------------------------------------------------------------------------------


def read(db: sqlite3.Connection, boot: Boot, seq: int, *, limit: int) -> list[Held]:
    """Return up to `limit` records from the one that covers `seq` on, as they are on disk."""
    cursor = db.execute(
        "SELECT seq, to_seq, frame, meta FROM frames WHERE ordinal = ?1 AND seq >= coalesce("
        "(SELECT max(seq) FROM frames WHERE ordinal = ?1 AND seq <= ?2), ?2)"
        " ORDER BY seq LIMIT ?3",
        (boot.ordinal, seq, limit + 1),
    )
    rows = [
        Held(
            first,
            last,
            frame,
            unpack_meta(meta) or Meta(boot.start_ms, boot.start_ms, Quality.NONE, 0),
        )
        for first, last, frame, meta in cursor
        if last >= seq
    ]
    return rows[:limit]


def waiting(db: sqlite3.Connection, boot: Boot) -> int:
    """Return how many of the boot's records on disk have no receipt."""
    sql = "SELECT count(*) FROM frames WHERE ordinal = ? AND to_seq >= ?"
    return int(db.execute(sql, (boot.ordinal, boot.acked)).fetchone()[0])


def size(db: sqlite3.Connection) -> int:
    """Return the bytes of all frames."""
    return int(db.execute("SELECT coalesce(sum(length(frame)), 0) FROM frames").fetchone()[0])


def put(db: sqlite3.Connection, ordinal: int, rows: Iterable[Held]) -> None:
    """Write records; those that are there already are overwritten."""
    db.executemany(
        "INSERT OR REPLACE INTO frames VALUES (?, ?, ?, ?, ?)",
        ((ordinal, row.seq, row.to_seq, row.frame, pack_meta(row.meta)) for row in rows),
    )


def replace(db: sqlite3.Connection, boot: Boot, rows: list[Held], gap: Held) -> None:
    """Put `gap` in place of `rows`, which follow each other."""
    db.execute(
        "DELETE FROM frames WHERE ordinal = ? AND seq BETWEEN ? AND ?",
        (boot.ordinal, rows[0].seq, rows[-1].seq),
    )
    put(db, boot.ordinal, [gap])


def purge(db: sqlite3.Connection, boot: Boot, upto: int) -> int:
    """Delete records that end below `upto`, remember their end in `boot`; return their bytes."""
    where = "FROM frames WHERE ordinal = ? AND to_seq < ?"
    key = (boot.ordinal, upto)
    freed = db.execute(f"SELECT sum(length(frame)) {where}", key).fetchone()[0]
    if freed is None:
        return 0
    last = db.execute(f"SELECT to_seq, meta {where} ORDER BY seq DESC LIMIT 1", key).fetchone()
    meta = unpack_meta(last[1])
    boot.floor = boot.floor if meta is None else since(meta, boot.start_ms)
    boot.first_seq = int(last[0]) + 1
    db.execute(f"DELETE {where}", key)
    return int(freed)


def put_open(db: sqlite3.Connection, ordinal: int, journal: tuple[bytes, Meta] | None) -> None:
    """Write the open minutes as they are so far; None if there are none."""
    db.execute("DELETE FROM open")
    if journal is not None:
        frame, meta = journal
        db.execute("INSERT INTO open VALUES (?, ?, ?)", (ordinal, frame, pack_meta(meta)))


# -- boots -----------------------------------------------------------------------------------


def boots(db: sqlite3.Connection) -> list[Boot]:
    """Return all boots, oldest first."""
    found = [_boot(row) for row in db.execute("SELECT * FROM boots ORDER BY ordinal")]
    for boot in found:
        boot.next_seq = max(boot.next_seq, next_seq_on_disk(db, boot.ordinal))
        sql = "SELECT min(seq) FROM frames WHERE ordinal = ?"
        (first,) = db.execute(sql, (boot.ordinal,)).fetchone()
        boot.first_seq = boot.next_seq if first is None else int(first)
    return found


def put_boot(db: sqlite3.Connection, boot: Boot, *, next_seq: int) -> None:
    """Write a boot, of which what is below `next_seq` is on disk, and its checkpoint."""
    db.execute(
        "INSERT OR REPLACE INTO boots VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            boot.ordinal,
            signed(boot.boot_id, 64),
            boot.epoch,
            boot.start_ms,
            boot.quality,
            boot.offset_ms,
            next_seq,
            boot.acked,
            None if boot.floor is None else pack_meta(boot.floor),
            boot.touched_ms,
        ),
    )
    began, stored, at_ms = boot.checkpoint
    if began:
        db.execute(
            "INSERT OR REPLACE INTO stored VALUES (?, ?, ?, ?)",
            (boot.ordinal, began, stored, at_ms),
        )


def drop_boot(db: sqlite3.Connection, ordinal: int) -> None:
    """Delete all that is known of a boot."""
    for table in ("boots", "stored", "frames"):
        db.execute(f"DELETE FROM {table} WHERE ordinal = ?", (ordinal,))  # noqa: S608


# -- checkpoints: what the server had stored when ----------------------------------------------


def stored_before(db: sqlite3.Connection, boot: Boot, horizon_ms: int) -> int | None:
    """Return below which seq all was stored before `horizon_ms`; None if nothing was."""
    sql = "SELECT max(next_seq) FROM stored WHERE ordinal = ? AND at_ms < ?"
    (found,) = db.execute(sql, (boot.ordinal, horizon_ms)).fetchone()
    return None if found is None else int(found)


def drop_checkpoints(db: sqlite3.Connection, *, before: int) -> int | None:
    """Delete checkpoints before that time; return the time of the oldest that is left."""
    db.execute("DELETE FROM stored WHERE at_ms < ?", (before,))
    (oldest,) = db.execute("SELECT min(at_ms) FROM stored").fetchone()
    return None if oldest is None else int(oldest)


def forget_checkpoints(db: sqlite3.Connection, boot: Boot, *, above: int) -> None:
    """Delete the boot's checkpoints above a seq: the server no longer has them."""
    db.execute("DELETE FROM stored WHERE ordinal = ? AND next_seq > ?", (boot.ordinal, above))


# -- feeders' ids and facts --------------------------------------------------------------------


def feeds(db: sqlite3.Connection) -> dict[str, int]:
    """Return the last id of each feeder."""
    return {str(name): int(last) for name, last in db.execute("SELECT * FROM feeds")}


def put_feeds(db: sqlite3.Connection, values: Mapping[str, int]) -> None:
    """Write feeders' last ids."""
    db.executemany("INSERT OR REPLACE INTO feeds VALUES (?, ?)", list(values.items()))


def facts(db: sqlite3.Connection) -> dict[str, int]:
    """Return what else is remembered, by name."""
    return {str(name): int(value) for name, value in db.execute("SELECT * FROM facts")}


def put_facts(db: sqlite3.Connection, values: Mapping[str, int]) -> None:
    """Write facts."""
    db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(values.items()))


def _boot(row: tuple[int, int, str, int, int, int, int, int, bytes | None, int]) -> Boot:
    ordinal, boot_id, epoch, start_ms, quality, offset_ms, next_seq, acked, floor, touched = row
    return Boot(
        ordinal,
        boot_id % (1 << 64),
        epoch,
        start_ms,
        Quality(quality),
        offset_ms,
        next_seq=next_seq,
        acked=acked,
        floor=None if floor is None else unpack_meta(floor),
        touched_ms=touched,
    )


def since(meta: Meta, start_ms: int) -> Meta:
    """Return `meta` as what is known of everything from `start_ms` to its end."""
    return altered(meta, start_ms=start_ms, aliases=())
