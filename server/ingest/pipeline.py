"""Brings batches through: read what is needed, plan, write, and again until it is stored.

What may go wrong, and what is done:
- a cursor is not where it was (another worker, a restored database, a swap): all that is known of
  the batch's devices is read anew, its cursors under lock, and it is planned anew;
- the database refuses the data of a frame (SQLSTATE classes 22, 23, P0), or a frame breaks our own
  code: the batch is halved until the frame at fault stands alone, and that goes to quarantine;
- anything else (connection lost, read-only, disk full, shutting down ...) is the system's fault:
  the whole batch is tried again, for ever, on a new connection. Nothing is dropped for it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import asyncpg

from protocol.frame import Section, decode_time, need, read_body, read_header, signed
from server import log, metrics
from server.clock import Clock
from server.clock import at as at_time
from server.db.engine import DATABASE_AWAY, data_at_fault, transaction_on
from server.health import sessions
from server.ingest import closing, cursors, hello, refusals, strays, undated
from server.ingest.batch import (
    DIGEST,
    QUALITY,
    SEQ,
    Batch,
    charge,
    decode,
    forget_old,
    sort_out,
    unseen,
)
from server.ingest.canary import Heard
from server.ingest.mqtt import Inbound
from server.ingest.places import Boot, Device, Places
from server.ingest.plan import plan
from server.ingest.receipts import receipts
from server.ingest.repeats import check_digests
from server.ingest.rows import Plan
from server.ingest.writer import CursorMovedError, write
from server.tasks import heed_cancellation

_log = log.get("ingest")
_Result = TypeVar("_Result")
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
ACQUIRE_S = 10.0
DATASET_S = 30.0  # a restored database shows itself by another number, at the latest by then


@dataclass(frozen=True, slots=True)
class Done:
    """A stored batch, and what to send for it: whole MQTT packets."""

    batch: Batch
    packets: list[bytes]


def no_failpoint(_name: str) -> None:
    """Do nothing at a named point; tests pass something that dies there."""


class Pipeline:
    """One worker's way of storing batches; batches are prepared and stored one after the other."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        places: Places,
        clock: Clock,
        *,
        failpoint: Callable[[str], None] = no_failpoint,
        on_system: Callable[[bool], None] = lambda away: None,
    ) -> None:
        self._pool = pool
        self._places = places
        self._clock = clock
        self._failpoint = failpoint
        self._on_system = on_system
        self._sampler = strays.Sampler(clock)
        self._dataset: int | None = None
        self._dataset_at = -1e9
        self._heard = Heard()

    async def broker_started(self) -> None:
        """Write down that the broker has been started again; until it is written."""
        await self._until_done(self._broker_started)

    async def _broker_started(self) -> None:
        async with self._connection() as connection:
            await sessions.broker_started(connection, at=at_time(self._clock.now_ms()))

    async def prepare(self, messages: Sequence[Inbound]) -> Batch:
        """Read headers and bodies, and what must be known of their devices and boots."""
        return await self._until_done(lambda: self._prepare(messages))

    async def store(self, batch: Batch) -> Done:
        """Store `batch` in one transaction, or in several if one of its frames is at fault."""
        start = perf_counter()
        done = await self._until_done(lambda: self._store(batch))
        metrics.BATCH_FRAMES.observe(len(batch.messages))
        metrics.BATCH_SECONDS.observe(perf_counter() - start)
        return done

    async def _until_done(self, attempt: Callable[[], Awaitable[_Result]]) -> _Result:
        """Try again, with growing pauses, for as long as the system is at fault."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                result = await attempt()
            except DATABASE_AWAY as error:
                heed_cancellation()
                self._on_system(True)
                metrics.BATCH_RETRIES.labels("system").inc()
                _log.warning("batch not stored yet", error=f"{type(error).__name__}: {error}")
                self._dataset_at = -1e9
                self._places.changed("")
                await asyncio.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                self._on_system(False)
                return result

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Take a connection; after a system error it is thrown away, a read-only one too."""
        connection = await self._pool.acquire(timeout=ACQUIRE_S)
        try:
            yield connection
        except BaseException as error:
            if not data_at_fault(error) and not isinstance(error, CursorMovedError):
                with suppress(asyncpg.InterfaceError):  # it may be gone from the pool already
                    connection.terminate()
            raise
        finally:
            await self._pool.release(connection)

    async def _prepare(self, messages: Sequence[Inbound]) -> Batch:
        now_s = self._clock.monotonic()
        due = self._places.due({message[0] for message in messages if message[0]})
        if due:
            async with self._connection() as connection:
                await self._places.load(connection, due)
        batch = sort_out(messages, self._places, now_ms=self._clock.now_ms(), now_s=now_s)
        if unknown := unseen(batch):
            async with self._connection() as connection:
                await self._look_up(connection, batch, unknown)
        decode(batch)
        return batch

    async def _look_up(
        self, connection: asyncpg.Connection, batch: Batch, unknown: list[Boot]
    ) -> None:
        """Read cursors; make those that begin in this batch (the others are beyond a hole)."""
        missing = await cursors.read(connection, unknown)
        first = {boot: batch.frames[start] for boot, start, _ in batch.runs}
        new = [boot for boot in missing if first[boot][16:20] == b"\0\0\0\0"]
        if not new:
            return
        for boot in await cursors.make(connection, new):
            if self._sampler.wants(f"ordinal {boot.device.name}"):
                await strays.add(connection, "ordinal repeated", boot.device, ordinal=boot.ordinal)
        # An edit that ended while the cursors were made is not in their devices yet. What is said
        # of a device is never younger than what is known of its boots.
        await self._places.load(connection, {boot.device.name: b"" for boot in new})
        await cursors.read(connection, unknown)

    async def _store(self, batch: Batch) -> Done:
        locked = False
        while True:
            try:
                return await self._answer(batch, await self._commit(batch, locked=locked))
            except CursorMovedError as moved:
                metrics.BATCH_RETRIES.labels("cursor").inc()
                _log.info("cursors read anew", why=str(moved), boots=len(batch.runs))
            if locked:
                await asyncio.sleep(random.uniform(0, FIRST_WAIT_S))  # noqa: S311
            self._places.doubt(boot for boot, _, _ in batch.runs)
            _take_over(batch, await self._prepare(batch.messages))
            locked = True

    async def _commit(self, batch: Batch, *, locked: bool) -> Plan:
        """Store the batch whole, or else all of it but the frames at fault."""
        try:
            return await self._write(batch, only=None, locked=locked)
        except Exception as error:
            if not data_at_fault(error):
                raise
            metrics.BATCH_RETRIES.labels("data").inc()
            _log.warning("batch refused for its data", error=str(error), frames=len(batch.frames))
            await self._halve(batch, list(range(len(batch.frames))), error)
            await self._look_again(batch)
            return await self._write(batch, only=set(), locked=False)

    async def _write(self, batch: Batch, *, only: set[int] | None, locked: bool) -> Plan:
        result = plan(batch, only=only)
        if not result.moves and not result.findings and not locked:
            return result
        async with self._connection() as connection:
            await closing.reopen(connection, [m.boot for m in result.moves if m.boot.closed])
            async with transaction_on(connection, "store batch"):
                if locked:
                    boots = [boot for boot, _, _ in batch.runs if boot.row]
                    if not await cursors.lock(connection, boots):
                        raise CursorMovedError("a boot is gone")
                    result = plan(batch, only=only)
                await write(connection, result)
                if result.moves and only is None:
                    devices = list({move.boot.device.row for move in result.moves})
                    await sessions.frames(connection, devices, at=at_time(batch.now_ms))
                if refused := [move for move in result.moves if move.boot.refused_to >= 0]:
                    await refusals.fill(connection, refused)
            self._failpoint("committed")
        adopt(batch, result)
        return result

    async def _halve(self, batch: Batch, positions: list[int], error: Exception) -> None:
        """Store what can be stored of `positions`, in order, and condemn the frame at fault."""
        if len(positions) == 1:
            batch.condemned[positions[0]] = f"{type(error).__name__}: {error}"[:500]
            charge(batch.boots[positions[0]].device)
            await self._write(batch, only=set(positions), locked=False)
            return
        middle = len(positions) // 2
        for half in (positions[:middle], positions[middle:]):
            try:
                await self._write(batch, only=set(half), locked=False)
            except Exception as refused:
                if not data_at_fault(refused):
                    raise
                await self._halve(batch, half, refused)

    async def _look_again(self, batch: Batch) -> None:
        """Have presence look at a batch that was halved; no count is refused for what breaks."""
        devices = sorted({boot.device.row for boot, _, _ in batch.runs if boot.row})
        try:
            async with self._connection() as connection:
                await sessions.frames(connection, devices, at=at_time(batch.now_ms))
        except Exception as error:
            if not data_at_fault(error):
                raise
            _log.exception("presence not noted", devices=len(devices))

    async def _answer(self, batch: Batch, result: Plan) -> Done:
        """Do what follows the commit. If that breaks, nothing is said, and devices ask again."""
        try:
            return await self._after(batch, result)
        except Exception as error:
            if not data_at_fault(error):
                raise
            metrics.BATCH_RETRIES.labels("answer").inc()
            _log.exception("stored, but not answered", frames=len(batch.frames))
            return Done(batch, [])
        finally:
            forget_old(batch)

    async def _after(self, batch: Batch, result: Plan) -> Done:
        """Answer what needs the database after the commit; make the receipts."""
        packets: list[bytes] = []
        if self._clock.monotonic() - self._dataset_at > DATASET_S or batch.hellos:
            async with self._connection() as connection:
                self._dataset = await connection.fetchval("select id from dataset")
                self._dataset_at = self._clock.monotonic()
                if batch.hellos:
                    packets, found = await hello.answer(
                        connection,
                        batch.hellos,
                        dataset=self._dataset_u64(),
                        clock=self._clock,
                        sampler=self._sampler,
                    )
                    for device, boot_id in found:
                        await self._place_held(connection, device, boot_id)
        if any(move.boot.undated for move in result.moves):
            await self._date(batch, result)
        if batch.refused or batch.strays or result.unverified:
            async with self._connection() as connection:
                await strays.keep(connection, batch, self._sampler)
                await check_digests(connection, batch, result.unverified)
        if batch.barred:
            async with self._connection() as connection:
                await refusals.note(connection, batch.barred)
        now_ms, dataset = self._clock.now_ms(), self._dataset_u64()
        if batch.canaries:
            await self._hear_canaries(batch, now_ms)
        packets += receipts(result.touched, dataset=dataset, server_ms=now_ms)
        _count(result)
        return Done(batch, packets)

    async def _hear_canaries(self, batch: Batch, now_ms: int) -> None:
        """Move the watermark: this batch, and with it all before, is committed."""
        heard, moved = self._heard, False
        for lane, payload in batch.canaries:
            moved |= heard.take(lane, payload, now_ms=now_ms)
        if moved and heard.mark is not None:
            async with self._connection() as connection:
                await sessions.watermark(connection, at_time(heard.mark), at=at_time(now_ms))

    async def _date(self, batch: Batch, result: Plan) -> None:
        """Place what boots hold undated, where a frame of this batch brought their offset."""
        dated = {
            batch.boots[at]: batch.frames[at]
            for at in result.taken
            if batch.boots[at].undated and batch.records[at][QUALITY]
        }
        if not dated:
            return
        async with self._connection() as connection:
            for boot, frame in dated.items():
                sections = read_body(frame, read_header(frame))
                span = decode_time(need(sections, Section.TIME))
                key = (boot.device.row, signed(boot.boot_id, 64))
                await hello.learn(connection, [(*key, int(span.quality), span.offset_ms)])
                await self._place_held(connection, boot.device, key[1])
                boot.undated = False

    async def _place_held(
        self, connection: asyncpg.Connection, device: Device, boot_id: int
    ) -> None:
        """Place a boot's held frames. Those that are at fault stay held, and are a finding."""
        try:
            await undated.place_boot(connection, device, boot_id, now_ms=self._clock.now_ms())
        except Exception as error:
            if not data_at_fault(error):
                raise
            _log.exception("held frames refused", device=device.name)
            if self._sampler.wants(f"held {device.name}"):
                await strays.add(connection, "held frames refused", device, error=str(error)[:200])

    def _dataset_u64(self) -> int:
        assert self._dataset is not None
        return self._dataset % (1 << 64)


def _take_over(batch: Batch, again: Batch) -> None:
    """Put a batch prepared anew in the place of the old; what was condemned stays so."""
    condemned = {batch.frames[at]: why for at, why in batch.condemned.items()}
    batch.now_ms, batch.frames, batch.boots = again.now_ms, again.frames, again.boots
    batch.runs, batch.records, batch.decoded = again.runs, again.records, again.decoded
    batch.pieces, batch.split = again.pieces, again.split
    batch.hellos, batch.refused, batch.strays = again.hellos, again.refused, again.strays
    batch.barred, batch.registered = again.barred, again.registered
    batch.canaries = again.canaries
    batch.condemned = {
        at: condemned[frame] for at, frame in enumerate(batch.frames) if frame in condemned
    }


def adopt(batch: Batch, result: Plan) -> None:
    """Remember in memory what the database has committed."""
    for move in result.moves:
        boot = move.boot
        boot.cursor = move.after
        if boot.refused_to < move.after.next_seq:
            boot.refused_to = -1
        if move.after.stored_to_ms > boot.device.stored_to_ms:
            boot.device.stored_to_ms = move.after.stored_to_ms
    for held in result.held:
        if held.why == "undated":
            held.boot.undated = True
    records, boots = batch.records, batch.boots
    for at in result.taken:
        record = records[at]
        boots[at].digests.add(record[SEQ], record[DIGEST])


def _count(result: Plan) -> None:
    metrics.FRAMES_STORED.inc(len(result.taken))
    metrics.RECEIPTS.inc(len(result.touched))
    for why, count in (("repeat", result.repeats), ("hole", result.beyond)):
        if count:
            metrics.FRAMES_DROPPED.labels(why).inc(count)
    for held in result.held:
        metrics.FRAMES_HELD.labels(held.why).inc()
    for bad in result.quarantined:
        metrics.FRAMES_QUARANTINED.labels(str(bad.reason)).inc()
    strays.count(result.findings)
