"""The ingest worker: opens what ingest needs, in order, and owns its tasks."""

import asyncio
import random
from collections.abc import Callable

import asyncpg

import ext
from server import log
from server.clock import Clock
from server.db.engine import DATABASE_AWAY
from server.ingest import closing, undated
from server.ingest.listener import listen
from server.ingest.mqtt import BrokerSettings
from server.ingest.pipeline import ACQUIRE_S, Pipeline, no_failpoint
from server.ingest.places import CHANGED, Places
from server.ingest.state import Health, State
from server.tasks import heed_cancellation

DURABLE = ("synchronous_commit", "fsync", "full_page_writes")
RELISTEN_S = 5.0
FOLD_EVERY_S = 6 * 3600.0
_log = log.get("ingest")


class NotDurableError(RuntimeError):
    """The database would acknowledge what it may lose; ingest refuses to run on it."""


class Ingest:
    """Stores what devices send and answers them; `run` until cancelled."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        broker: BrokerSettings,
        clock: Clock,
        *,
        failpoint: Callable[[str], None] = no_failpoint,
    ) -> None:
        self._pool = pool
        self._broker = broker
        self._clock = clock
        self._health = Health()
        self._places = Places(clock)
        self._changed: asyncio.Queue[str] = asyncio.Queue(maxsize=1000)
        self.pipeline = Pipeline(
            pool,
            self._places,
            clock,
            failpoint=failpoint,
            on_system=lambda away: self._health.database(away=away),
        )

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._health.state

    async def run(self) -> None:
        """Serve for ever. NotDurableError if the database's settings would lose data."""
        await self._await_database()
        _log.info("ingest starts", decoder="compiled" if ext.COMPILED else "reference (slow)")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_fleet())
                tasks.create_task(self._place_changed())
                tasks.create_task(self._fold_boots())
                tasks.create_task(listen(self._broker, self.pipeline, self._health))
        finally:
            self._health.stopped()

    async def _await_database(self) -> None:
        """Return once the database answers, and answers durably."""
        while True:
            try:
                async with self._pool.acquire(timeout=ACQUIRE_S) as connection:
                    await assert_durable(connection)
            except DATABASE_AWAY as error:
                heed_cancellation()
                self._health.database(away=True)
                _log.warning("database away", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(RELISTEN_S)
            else:
                self._health.database(away=False)
                return

    async def _watch_fleet(self) -> None:
        """Hear of changes in the register. Lost notifications are made up for by re-reading."""
        while True:
            try:
                async with self._pool.acquire(timeout=ACQUIRE_S) as connection:
                    await connection.add_listener(CHANGED, self._on_changed)
                    try:
                        self._places.changed("")
                        while not connection.is_closed():
                            heed_cancellation()
                            await asyncio.sleep(RELISTEN_S)
                            await connection.execute("select 1")
                    finally:
                        if not connection.is_closed():
                            await connection.remove_listener(CHANGED, self._on_changed)
            except DATABASE_AWAY:
                heed_cancellation()
                await asyncio.sleep(RELISTEN_S)

    def _on_changed(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        name = str(payload)
        self._places.changed(name)
        if not self._changed.full():  # else the device's held frames wait for its next change
            self._changed.put_nowait(name)

    async def _place_changed(self) -> None:
        """Try again to place what is held of devices whose grants or assignments changed."""
        while True:
            heed_cancellation()
            name = await self._changed.get()
            try:
                async with self._pool.acquire() as connection:
                    await self._place_device(connection, name)
            except DATABASE_AWAY as error:
                _log.warning("held frames not placed", device=name, error=str(error))

    async def _place_device(self, connection: asyncpg.Connection, name: str) -> None:
        rows = await connection.fetch(
            "select distinct b.boot_id from undated_frames u join boots b on b.id = u.boot "
            "join devices d on d.id = b.device_id where d.device = $1",
            name,
        )
        if not rows:
            return
        device = await self._places.read(connection, name)
        if device is None:
            return
        for row in rows:
            await undated.place_boot(
                connection, device, row["boot_id"], now_ms=self._clock.now_ms(), wild=True
            )

    async def _fold_boots(self) -> None:
        """Put boots that have ended out of the way, and forget those that anyone has."""
        while True:
            heed_cancellation()
            await asyncio.sleep(random.uniform(FOLD_EVERY_S / 2, FOLD_EVERY_S))  # noqa: S311
            try:
                async with self._pool.acquire(timeout=ACQUIRE_S) as connection:
                    await closing.fold(connection, now_ms=self._clock.now_ms())
                    await closing.forget(connection, self._places)
            except DATABASE_AWAY as error:
                _log.warning("boots not folded", error=f"{type(error).__name__}: {error}")


async def assert_durable(connection: asyncpg.Connection) -> None:
    """Raise NotDurableError unless a commit that returns is a commit that stays."""
    for setting in DURABLE:
        value = await connection.fetchval("select current_setting($1)", setting)
        if value not in ("on", "remote_apply"):
            raise NotDurableError(f"{setting} is {value}; ingest needs it on")
