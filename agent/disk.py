"""The outbox's file: SQLite in WAL mode, owned by one process, checked and recovered on opening."""

import sqlite3
from contextlib import suppress
from pathlib import Path

import structlog

from agent.held import Held, gap_record, renumber, sound, unpack_meta
from protocol.gap import Cause

log = structlog.get_logger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS boots (
    ordinal INTEGER PRIMARY KEY, boot_id INTEGER NOT NULL, epoch TEXT NOT NULL,
    start_ms INTEGER NOT NULL, quality INTEGER NOT NULL, offset_ms INTEGER NOT NULL,
    next_seq INTEGER NOT NULL, acked INTEGER NOT NULL, floor BLOB, touched_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS frames (
    ordinal INTEGER NOT NULL, seq INTEGER NOT NULL, to_seq INTEGER NOT NULL,
    frame BLOB NOT NULL, meta BLOB NOT NULL, PRIMARY KEY (ordinal, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS open (
    ordinal INTEGER PRIMARY KEY, frame BLOB NOT NULL, meta BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS stored (
    ordinal INTEGER NOT NULL, began_ms INTEGER NOT NULL, next_seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL, PRIMARY KEY (ordinal, began_ms)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS feeds (source TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


def open_file(path: str, *, durable: bool) -> sqlite3.Connection:
    """Open or make the file, check it, and recover the open minutes of a boot that was killed.

    sqlite3.DatabaseError if it is malformed (`malformed` says so) or owned by another process.
    """
    db = sqlite3.connect(
        path, timeout=1, isolation_level=None, check_same_thread=False, cached_statements=24
    )
    try:
        db.execute("PRAGMA page_size = 1024")  # less to write for a minute, less to keep in memory
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
        db.execute("PRAGMA cache_size = -64")
        db.execute("PRAGMA wal_autocheckpoint = 512")
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        check = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if check != "ok":
            raise MalformedError(str(check))
        recover_open(db)
        db.execute("COMMIT")
        db.execute("PRAGMA shrink_memory")
    except BaseException:
        db.close()
        raise
    return db


def move_aside(path: str, error: sqlite3.Error) -> None:
    """Rename a malformed file, with its log, to `<path>.broken-<n>`."""
    number = 1
    while Path(f"{path}.broken-{number}").exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            Path(path + suffix).rename(f"{path}.broken-{number}{suffix}")
    log.error(
        "outbox was malformed and is moved aside; a new one begins",
        path=path,
        kept_as=f"{path}.broken-{number}",
        error=str(error),
    )


class MalformedError(sqlite3.DatabaseError):
    """SQLite's own check found damage."""


def malformed(error: sqlite3.Error) -> bool:
    return isinstance(error, MalformedError) or error_code(error) in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }


def error_code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def next_seq_on_disk(db: sqlite3.Connection, ordinal: int) -> int:
    sql = "SELECT coalesce(max(to_seq) + 1, 0) FROM frames WHERE ordinal = ?"
    kept = "SELECT next_seq FROM boots WHERE ordinal = ?"
    found = [db.execute(query, (ordinal,)).fetchone() for query in (sql, kept)]
    return max(int(row[0]) for row in found if row is not None)


def recover_open(db: sqlite3.Connection) -> None:
    """Make the open minutes of a boot that was killed its last record, as journalled."""
    for ordinal, frame, packed in db.execute("SELECT * FROM open").fetchall():
        meta = unpack_meta(packed)
        row = db.execute("SELECT boot_id FROM boots WHERE ordinal = ?", (ordinal,)).fetchone()
        if meta is None or row is None:
            log.error("open minutes of the last boot are damaged and lost", boot=ordinal)
            continue
        boot_id, seq = int(row[0]) % (1 << 64), next_seq_on_disk(db, ordinal)
        held = Held(seq, seq, renumber(frame, seq), meta)
        if not sound(held, boot_id=boot_id):
            held = gap_record(meta, Cause.ROTTED, seq=seq, to_seq=seq, boot=(boot_id, ordinal))
        db.execute(
            "INSERT INTO frames VALUES (?, ?, ?, ?, ?)", (ordinal, seq, seq, held.frame, packed)
        )
    db.execute("DELETE FROM open")
