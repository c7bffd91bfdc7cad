"""The outbox: what the device has measured and the server has not yet said it stored.

Invariants:
- A record is forgotten only after the server's receipt, and then kept 24 h more (by the server's
  own clock, as receipts tell it) as a reserve for a database that is restored.
- The sequence of a boot never has a hole: what is thinned, rotted or forgotten is replaced by a
  gap record with the range, the time and the totals at its end.
- Each change is one SQLite transaction (WAL, synchronous=FULL). Counts, the open minutes and the
  feeders' ids travel in the same one, so that a SIGKILL separates none of them.
- Memory first, then disk: what cannot be written (full disk) stays in memory, bounded, and is
  written as soon as that works again. A malformed database is moved aside, loudly, never deleted.

One process owns the file (exclusive lock); one thread at a time uses the object.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from agent import records, thinning
from agent.disk import error_code, malformed, move_aside, open_file
from agent.held import Held, Meta, gap_record, merge, sound
from agent.records import Boot, since
from protocol.frame import Quality
from protocol.gap import Cause

__all__ = ["Boot", "Outbox", "OutboxBusyError"]

DAY_MS = 86_400_000
MAX_BYTES = 64 << 20
MAX_AGE_MS = 45 * DAY_MS
RESERVE_MS = DAY_MS
EMPTY_BOOT_MS = 7 * DAY_MS  # how long an emptied boot is still greeted with
CHECKPOINT_MS = 600_000  # a receipt is dated to within ten minutes
MAX_UNSAVED = 2_048  # records in memory while the disk refuses; then they are thinned too
BULK = 256  # records a transaction in bulk

log = structlog.get_logger(__name__)


class OutboxBusyError(RuntimeError):
    """Another process owns this outbox."""


class Outbox:
    """See the module. `on_put` is called after each new record (the link wakes by it)."""

    def __init__(
        self,
        path: Path | str,
        *,
        max_bytes: int = MAX_BYTES,
        max_age_ms: int = MAX_AGE_MS,
        reserve_ms: int = RESERVE_MS,
        durable: bool = True,
    ) -> None:
        self.path = str(path)
        self.max_bytes = max_bytes
        self.max_age_ms = max_age_ms
        self.reserve_ms = reserve_ms
        self.durable = durable
        self.on_put: Callable[[], None] | None = None
        self.renewal_wanted = False  # the server knows more of this boot than we do: begin another
        self.trouble = ""  # why the last write failed; empty when all is on disk
        self.moved_aside = 0
        self.thinned = 0  # sequence numbers replaced since start
        self.rotted = 0
        self.commits = 0  # transactions since start; each is one fsync if durable
        self._boots: list[Boot] = []
        self._begun = False
        self._unsaved: list[Held] = []
        self._open: tuple[bytes, Meta] | None = None
        self._open_saved = False
        self._open_dirty = False
        self._feeds: dict[str, int] = {}
        self._feeds_dirty: set[str] = set()
        self._facts: dict[str, int] = {}
        self._facts_dirty = False
        self._dirty: set[int] = set()  # ordinals whose boots row must be written
        self._tip: Meta | None = None  # of the current boot's last saved record
        self._in_bulk = False
        self._reserve_due_ms = 0
        self._bytes = 0
        self._db = self._open_or_start_over()

    # -- reading ---------------------------------------------------------------------------

    @property
    def boots(self) -> list[Boot]:
        """All known boots, oldest first; the current one, if begun, is last."""
        return self._boots

    @property
    def current(self) -> Boot | None:
        """The boot that new records belong to."""
        return self._boots[-1] if self._begun else None

    @property
    def dataset(self) -> int | None:
        """The server's dataset that receipts came from last."""
        return self._facts.get("dataset")

    @property
    def last_utc_ms(self) -> int:
        """The latest UTC time that was ever persisted here; 0 if none."""
        return self._facts.get("utc_ms", 0)

    @property
    def bytes_held(self) -> int:
        """Bytes of all records, reserve included."""
        return self._bytes

    def last_id(self, source: str) -> int:
        """Return the last id of this feeder that is journalled; 0 if none."""
        if source in self._feeds_dirty:
            row = self._db.execute("SELECT last FROM feeds WHERE source = ?", (source,)).fetchone()
            return int(row[0]) if row else 0
        return self._feeds.get(source, 0)

    def pending(self) -> int:
        """Return how many records await a receipt."""
        saved = sum(
            records.waiting(self._db, boot) for boot in self._boots if boot.acked < boot.next_seq
        )
        return saved + len(self._unsaved)

    def read(self, boot: Boot, seq: int, *, limit: int) -> list[Held]:
        """Return up to `limit` records of `boot` from the one that covers `seq` on, checked."""
        try:
            rows = records.read(self._db, boot, seq, limit=limit)
        except sqlite3.DatabaseError as error:
            if malformed(error):
                self._start_over(error)
                self._save()
            else:
                self._refused(error)
            return []
        if boot is self.current and len(rows) < limit:
            rows += [row for row in self._unsaved if row.to_seq >= seq][: limit - len(rows)]
        return [
            row if sound(row, boot_id=boot.boot_id) else self._replace_rotted(boot, row)
            for row in rows
        ]

    def digests(self, boot: Boot, next_seq: int) -> frozenset[int] | None:
        """Return the digests that a receipt for `next_seq` may state.

        None if a gap covers both sides of it; empty if its record is not held.
        """
        for row in self.read(boot, next_seq - 1, limit=1):
            if row.seq <= next_seq - 1:
                ends = row.to_seq == next_seq - 1
                return frozenset((row.digest, *row.meta.aliases)) if ends else None
        return frozenset()

    # -- writing ---------------------------------------------------------------------------

    @property
    def next_ordinal(self) -> int:
        """The ordinal that `begin` will give."""
        last = self._boots[-1].ordinal if self._boots else 0
        return max(last, self._facts.get("ordinal", 0)) + 1

    def begin(
        self,
        boot_id: int,
        *,
        start_ms: int,
        epoch: str,
        journal: tuple[bytes, Meta] | None = None,
        feeds: dict[str, int] | None = None,
    ) -> Boot:
        """Begin a boot; `journal` is its open record if it takes one over (see `journal`)."""
        if self._unsaved and not self._save():
            raise RuntimeError(f"records of the last boot can't be written: {self.trouble}")
        boot = Boot(self.next_ordinal, boot_id, epoch, start_ms)
        self._drop_if_empty()
        self._boots.append(boot)
        self._begun = True
        self._facts["ordinal"] = boot.ordinal
        self._facts_dirty = True
        self._tip = None
        self._open, self._open_dirty, self._open_saved = journal, True, True
        self._dirty.add(boot.ordinal)
        self.renewal_wanted = False
        self._note(feeds)
        return boot

    def put(
        self, held: Held, *, feeds: dict[str, int] | None = None, keep_open: bool = False
    ) -> bool:
        """Add a sealed record; True if it is on disk now. It ends the open one, or `keep_open`."""
        boot = self._boots[-1]
        if not self._begun or held.seq != boot.next_seq:
            raise ValueError(f"expected seq {boot.next_seq}, got {held.seq}")
        boot.next_seq = held.to_seq + 1
        self._unsaved.append(held)
        self._bytes += len(held.frame)
        self._heard(held.meta)
        self._facts_dirty = True
        if not keep_open:
            self._open, self._open_dirty = None, True
        saved = self._note(feeds)
        if self.on_put is not None:
            self.on_put()
        return saved

    def journal(self, frame: bytes, meta: Meta, *, feeds: dict[str, int] | None = None) -> bool:
        """Keep the open record as it is so far; True if it is on disk now.

        Its seq is given when it is recovered: health records may pass it meanwhile.
        """
        self._open, self._open_dirty = (frame, meta), True
        self._heard(meta)
        return self._note(feeds)

    def save(self) -> bool:
        """Write what is not yet on disk; True if nothing is left."""
        return self._save()

    @contextmanager
    def bulk(self) -> Iterator[None]:
        """Group many records in few transactions (history); on disk when the block ends."""
        self._in_bulk = True
        try:
            yield
        finally:
            self._in_bulk = False
            self._save()

    def close(self) -> None:
        """Write and close."""
        self._save()
        self._db.close()

    # -- what the server said ----------------------------------------------------------------

    def stored(self, boot: Boot, next_seq: int, *, server_ms: int) -> None:
        """Move the mark: the server has stored all below `next_seq`. Written with the next save."""
        boot.acked = next_seq
        boot.touched_ms = server_ms
        began, _, _ = boot.checkpoint
        if server_ms - began > CHECKPOINT_MS or server_ms < began:
            began = server_ms
        boot.checkpoint = (began, next_seq, server_ms)
        self._dirty.add(boot.ordinal)
        if server_ms > self._reserve_due_ms:
            self._purge_reserve(server_ms)

    def rewind(self, boot: Boot, next_seq: int) -> None:
        """Go back: the server has only what is below `next_seq`; what is gone becomes a gap."""
        covering = [row for row in self.read(boot, next_seq, limit=1) if row.seq < next_seq]
        next_seq = covering[0].seq if covering else next_seq
        first = self.read(boot, 0, limit=1)
        held_from = first[0].seq if first else boot.next_seq
        try:
            with self._transaction():
                records.forget_checkpoints(self._db, boot, above=next_seq)
                if next_seq < held_from:
                    self._insert_gap(boot, seq=next_seq, to_seq=held_from - 1)
        except sqlite3.DatabaseError as error:
            self._refused(error)  # the mark stays: the next answer brings us here again
            return
        boot.checkpoint = (0, 0, 0)
        boot.acked = next_seq
        boot.first_seq = min(boot.first_seq, next_seq)
        self._dirty.add(boot.ordinal)
        self._save()

    def set_dataset(self, dataset: int) -> None:
        """Remember which of the server's datasets the marks belong to."""
        if self._facts.get("dataset") != dataset:
            self._facts["dataset"] = dataset
            self._facts_dirty = True
            self._save()

    # -- the disk ----------------------------------------------------------------------------

    def _open_or_start_over(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if not malformed(error):
                if error_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                    raise OutboxBusyError(f"another process owns {self.path}") from error
                raise
            self._move_aside(error)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        db = open_file(self.path, durable=self.durable)
        try:
            self._load(db)
        except BaseException:
            db.close()
            raise
        return db

    def _load(self, db: sqlite3.Connection) -> None:
        """Read what is kept in memory: boots, feeders' ids, facts, sizes."""
        if self._begun:  # a new file in mid-life: memory is the truth
            return
        self._facts, self._feeds = records.facts(db), records.feeds(db)
        self._boots = records.boots(db)
        self._bytes = records.size(db)

    def _move_aside(self, error: sqlite3.Error) -> None:
        move_aside(self.path, error)
        self.moved_aside += 1

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with records.transaction(self._db):
            yield
        self.commits += 1

    def _note(self, feeds: dict[str, int] | None) -> bool:
        if feeds:
            self._feeds.update(feeds)
            self._feeds_dirty.update(feeds)
        return self._save()

    def _save(self) -> bool:
        if self._in_bulk and len(self._unsaved) < BULK:
            return False
        dirty = self._unsaved or self._open_dirty or self._dirty or self._feeds_dirty
        if not (dirty or self._facts_dirty or self.trouble):
            return True
        for last_try in (False, True):
            try:
                with self._transaction():
                    self._write()
            except sqlite3.DatabaseError as error:
                if malformed(error) and not last_try:
                    self._start_over(error)
                    continue
                self._refused(error)
                return False
            break
        self._saved()
        self._bound()
        return True

    def _write(self) -> None:
        """Write memory to disk, inside a transaction; repeats itself harmlessly."""
        db = self._db
        for ordinal in self._dirty:
            self._write_boot(ordinal)
        if self._begun:
            ordinal = self._boots[-1].ordinal
            records.put(db, ordinal, self._unsaved)
            if self._open_dirty and (self._open is not None or self._open_saved):
                records.put_open(db, ordinal, self._open)
        records.put_feeds(db, {source: self._feeds[source] for source in self._feeds_dirty})
        if self._facts_dirty:
            records.put_facts(db, self._facts)

    def _write_boot(self, ordinal: int) -> None:
        boot = next((boot for boot in self._boots if boot.ordinal == ordinal), None)
        if boot is None:
            records.drop_boot(self._db, ordinal)
            return
        unsaved = boot is self.current and self._unsaved
        on_disk = self._unsaved[0].seq if unsaved else boot.next_seq
        records.put_boot(self._db, boot, next_seq=on_disk)

    def _saved(self) -> None:
        if self._unsaved:
            self._tip = self._unsaved[-1].meta
            self._unsaved.clear()
        self._open_saved = self._open is not None
        self._open_dirty = False
        self._dirty.clear()
        self._feeds_dirty.clear()
        self._facts_dirty = False
        if self.trouble:
            log.info("outbox is written again", path=self.path)
            self.trouble = ""

    def _refused(self, error: sqlite3.DatabaseError) -> None:
        if not self.trouble:
            log.error("outbox can't be written; counting on in memory", error=str(error))
        self.trouble = str(error)
        if len(self._unsaved) > MAX_UNSAVED and self._begun:
            boot = self._boots[-1]
            half = self._unsaved[: MAX_UNSAVED // 2]
            gap = merge(half, Cause.THINNED, boot_id=boot.boot_id, ordinal=boot.ordinal)
            self.thinned += len(half)
            self._bytes += len(gap.frame) - sum(len(row.frame) for row in half)
            self._unsaved[: len(half)] = [gap]

    def _start_over(self, error: sqlite3.DatabaseError) -> None:
        """Begin a new file in mid-life; this boot's lost records become one gap with totals."""
        self._db.close()
        self._move_aside(error)
        current = self.current
        self._boots = [] if current is None else [current]
        self._db = self._connect()
        self._feeds_dirty.update(self._feeds)
        self._bytes = sum(len(row.frame) for row in self._unsaved)
        self._open_dirty = self._facts_dirty = True
        if current is None:
            return
        self._dirty = {current.ordinal}
        upto = self._unsaved[0].seq if self._unsaved else current.next_seq
        current.first_seq = current.acked
        if current.acked < upto and self._tip is not None:
            boot = (current.boot_id, current.ordinal)
            gap = gap_record(
                since(self._tip, current.start_ms),
                Cause.ROTTED,
                seq=current.acked,
                to_seq=upto - 1,
                boot=boot,
            )
            self.rotted += upto - current.acked
            self._unsaved.insert(0, gap)

    # -- bounds ------------------------------------------------------------------------------

    def _bound(self) -> None:
        """Drop the reserve, then thin the oldest records, until all is within the bounds."""
        if self._bytes <= self.max_bytes and not self._too_old():
            return
        try:
            with self._transaction():
                for boot in self._boots:
                    if self._bytes > self.max_bytes:
                        self._purge(boot, boot.acked)
                for boot in self._boots:
                    while (self._bytes > self.max_bytes * 0.95 or self._too_old()) and self._thin(
                        boot
                    ):
                        pass
        except sqlite3.DatabaseError as error:
            self._refused(error)

    def _too_old(self) -> bool:
        """True if the oldest waiting record ended longer ago than is kept, by the newest one."""
        newest = self._facts.get("utc_ms", 0)
        for boot in self._boots:
            if boot.acked < boot.next_seq and boot.quality is not Quality.NONE:
                if newest - (boot.start_ms + boot.offset_ms) < self.max_age_ms:
                    return False
                rows = records.read(self._db, boot, boot.acked, limit=2)
                return thinning.too_old(rows, newest_ms=newest, max_age_ms=self.max_age_ms)
        return False

    def _thin(self, boot: Boot) -> bool:
        """Replace the boot's oldest waiting records by one gap; False if there is no gain."""
        rows = records.read(self._db, boot, boot.acked, limit=thinning.STEP)
        if boot is self.current:
            rows = rows[:-1]
        rows = thinning.choose(rows, free=self._bytes - int(self.max_bytes * 0.9))
        if not rows:
            return False
        gap = merge(rows, Cause.THINNED, boot_id=boot.boot_id, ordinal=boot.ordinal)
        if len(gap.frame) >= sum(len(row.frame) for row in rows):
            return False
        if not self.thinned:
            log.warning("outbox is full; thinning its oldest records", path=self.path)
        self.thinned += sum(row.to_seq - row.seq + 1 for row in rows)
        self._swap(boot, rows, gap)
        return True

    def _swap(self, boot: Boot, rows: list[Held], gap: Held) -> None:
        records.replace(self._db, boot, rows, gap)
        self._bytes += len(gap.frame) - sum(len(row.frame) for row in rows)

    def _purge_reserve(self, server_ms: int) -> None:
        """Delete what was stored more than the reserve ago."""
        horizon = server_ms - self.reserve_ms
        try:
            with self._transaction():
                for boot in self._boots:
                    upto = records.stored_before(self._db, boot, horizon)
                    if upto is not None:
                        self._purge(boot, min(upto, boot.acked))
                oldest = records.drop_checkpoints(self._db, before=horizon)
        except sqlite3.DatabaseError as error:
            self._refused(error)
            return
        self._reserve_due_ms = (server_ms if oldest is None else oldest) + self.reserve_ms
        self._drop_old_boots(server_ms)

    def _purge(self, boot: Boot, upto: int) -> None:
        """Delete records that end below `upto`, inside a transaction; remember their end."""
        freed = records.purge(self._db, boot, upto)
        if freed:
            self._bytes -= freed
            self._write_boot(boot.ordinal)

    def _drop_old_boots(self, server_ms: int) -> None:
        keep = [
            boot
            for boot in self._boots
            if boot is self.current
            or boot.first_seq < boot.next_seq
            or server_ms - boot.touched_ms < EMPTY_BOOT_MS
        ]
        self._dirty.update({b.ordinal for b in self._boots} - {b.ordinal for b in keep})
        self._boots = keep

    def _drop_if_empty(self) -> None:
        """Forget a boot that never had a record."""
        if self._boots and self._boots[-1].next_seq == 0 and self._open is None:
            self._dirty.add(self._boots.pop().ordinal)
            self._begun = False

    # -- gaps --------------------------------------------------------------------------------

    def _replace_rotted(self, boot: Boot, row: Held) -> Held:
        log.error("a record rotted on disk; a gap takes its place", boot=boot.ordinal, seq=row.seq)
        gap = gap_record(
            row.meta,
            Cause.ROTTED,
            seq=row.seq,
            to_seq=row.to_seq,
            boot=(boot.boot_id, boot.ordinal),
        )
        self.rotted += row.to_seq - row.seq + 1
        try:
            with self._transaction():
                self._swap(boot, [row], gap)
        except sqlite3.DatabaseError as error:
            self._refused(error)  # the same gap is made again when it is read again
        return gap

    def _insert_gap(self, boot: Boot, *, seq: int, to_seq: int) -> None:
        """Say that we no longer hold what the server lost, inside a transaction."""
        log.warning("the server lost what is no longer held here", boot=boot.ordinal, seq=seq)
        meta = boot.floor or Meta(boot.start_ms, boot.start_ms, boot.quality, boot.offset_ms)
        gap = gap_record(
            meta, Cause.FORGOTTEN, seq=seq, to_seq=to_seq, boot=(boot.boot_id, boot.ordinal)
        )
        records.put(self._db, boot.ordinal, [gap])
        self._bytes += len(gap.frame)

    def _heard(self, meta: Meta) -> None:
        """Take the offset that a record was sealed under as its boot's best."""
        if meta.quality is Quality.NONE:
            return
        if meta.quality is Quality.SYNCED:  # a guess that was years ahead would lock the device out
            self._facts["utc_ms"] = max(self.last_utc_ms, meta.end_ms + meta.offset_ms)
        current = self._boots[-1]
        for boot in self._boots:
            if boot is not current and (not boot.epoch or boot.epoch != current.epoch):
                continue
            better = meta.quality > boot.quality
            moved = meta.quality == boot.quality and abs(meta.offset_ms - boot.offset_ms) > 1_000
            if better or (moved and boot is current):
                boot.quality, boot.offset_ms = meta.quality, meta.offset_ms
                self._dirty.add(boot.ordinal)
