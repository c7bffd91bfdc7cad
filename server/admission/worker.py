"""Brings orders to the broker and to the revocation list, proves them, and holds the broker to it.

One worker at a time (an advisory lock), one step after the other. Each step may be repeated, and
is written down when it is done; whatever is killed in between, the next turn goes on from there:

1. The broker: who is ordered about is put on the deny-list or taken off, as the database says now
   (`standing`), and the broker is asked whether it is so. `broker_at`
2. The list: signed, verified and installed, if it is not what it should be. `crl_at`
3. The proof: the broker says of each denied device that it is disabled, nothing of it was stored
   after its order, and our probes find a denied identity inert and an admitted one not. `proved_at`

After these, and in the way of none of them, what an ended device has counted past the end of its
stay is moved: once for each, a few in a turn. Who takes over does so again for those of a day.

Devices whose certificates ended are denied one by one as they end. If a good part of the fleet
lapses at once it is the clock that is wrong, or nobody renews: that is said, and nobody denied.
What cannot be done waits; `trouble` says why. Once a minute, and on each new connection before
anything else, the broker's whole list is compared with the database's, and mended.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from server import log, metrics
from server.admission import denylist, probe, revocations, standing
from server.admission.broker import Control, ControlError, open_control, survives_reload
from server.admission.orders import CHANGED
from server.admission.probe import Listener, ProbeError
from server.admission.revocations import ListError
from server.admission.standing import Standing
from server.clock import Clock, at
from server.db.engine import DATABASE_AWAY, transaction_on
from server.fleet.lifecycle import ENDED
from server.ingest.mqtt import BrokerSettings
from server.ingest.reassign import settle
from server.pki.authority import AuthorityError
from server.pki.profile import new_serial
from server.tasks import heed_cancellation

LOCK = 0x6465_6E79  # "deny"
TURN_S = 1.0
RECONCILE_S = 60.0
PROVE_AGAIN_S = 5.0
STANDBY_S = 5.0
MOST_NAMED = 500  # in one turn: anyone may send a notice, and the next comparison sees to the rest
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 1.0
AT_ONCE = 500  # orders in one turn
SETTLED_AT_ONCE = 5  # ended devices in one turn: orders wait for it
SETTLE_AGAIN_S = 60.0  # one that could not be
ENDED_OF_LATE = timedelta(days=1)  # another worker may have stopped before it settled these
MANY_LAPSED, LAPSED_SHARE = 20, 0.2  # beyond both, the clock is doubted
EXPIRED, RENEWED = "certificate expired", "certificate renewed"
_log = log.get("admission")


def no_failpoint(_name: str) -> None:
    """Do nothing at a named point; tests pass something that dies there."""


@dataclass(slots=True)
class _Turn:
    """What a turn has found to do: orders by their numbers, devices by their rows."""

    broker: list[int] = field(default_factory=list)
    list_: list[int] = field(default_factory=list)
    proof: list[int] = field(default_factory=list)
    devices: set[int] = field(default_factory=set)  # of orders for the broker, or named to us
    proving: set[int] = field(default_factory=set)


class Admission:
    """Throws out and lets in what the database says; `run` until cancelled."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        control: BrokerSettings,
        devices: Listener,
        clock: Clock,
        *,
        failpoint: Callable[[str], None] = no_failpoint,
    ) -> None:
        self._pool = pool
        self._settings = control
        self._devices = devices
        self._clock = clock
        self._failpoint = failpoint
        self._wake = asyncio.Event()
        self._named: set[str] = set()
        self._lapsed: set[int] = set()  # denied, though the register admits them
        # ended devices and since when: when to settle them (monotonic), and those that are
        self._unsettled: dict[tuple[int, datetime], float] = {}
        self._settled: set[tuple[int, datetime]] = set()
        self._expiries_seen: datetime | None = None
        self._trouble: dict[str, str] = {}
        self._reconciled_at = self._tried_at = -1e9
        self._list_checked_at = -1e9
        self._version: str | None = None
        self._clock_doubted = False

    async def run(self) -> None:
        """Serve for ever, whatever is away."""
        while True:
            heed_cancellation()
            try:
                async with self._pool.acquire(timeout=STANDBY_S) as connection:
                    if await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
                        await self._hold(connection)
            except DATABASE_AWAY as error:
                _log.warning("database away", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(random.uniform(TURN_S / 2, TURN_S))  # noqa: S311

    async def _hold(self, connection: asyncpg.Connection) -> None:
        """Serve while this connection, and so the lock, is ours."""
        await connection.add_listener(CHANGED, self._on_changed)
        self._expiries_seen = None
        await self._recall_ended(connection)
        try:
            wait_s = FIRST_WAIT_S
            while True:
                heed_cancellation()
                try:
                    await self._connected(connection)
                except ControlError as error:
                    self._say("broker", f"the broker is not under control: {error}")
                    await self._turn(connection, None)
                self._wake.clear()
                await asyncio.sleep(random.uniform(wait_s / 2, wait_s))  # noqa: S311
                wait_s = LONGEST_WAIT_S if "broker" in self._trouble else FIRST_WAIT_S
        finally:
            if not connection.is_closed():
                await connection.remove_listener(CHANGED, self._on_changed)
                await connection.execute("select pg_advisory_unlock($1)", LOCK)

    def _on_changed(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self._named.add(str(payload))
        self._wake.set()

    async def _connected(self, connection: asyncpg.Connection) -> None:
        """Serve on one control connection; raises ControlError when it ends."""
        async with AsyncExitStack() as stack:
            control = await stack.enter_async_context(open_control(self._settings, self._clock))
            self._reconciled_at = -1e9
            while True:
                heed_cancellation()
                if self._clock.monotonic() - self._reconciled_at >= RECONCILE_S:
                    await self._reconcile(connection, control)
                    self._say("broker", "")
                self._wake.clear()
                self._version = control.version
                await self._turn(connection, control)
                await control.idle(self._wake, await self._pause_s(connection))

    async def _pause_s(self, connection: asyncpg.Connection) -> float:
        """Return how long nothing is due: a turn's length, or until a certificate ends."""
        ends = await connection.fetchval(
            "select min(not_after) from certificates "
            "where state in ('staged', 'active', 'retiring') and not_after > $1",
            self._expiries_seen,
        )
        if ends is None:
            return TURN_S
        left_s: float = (ends - self._now()).total_seconds()
        return min(TURN_S, max(0.0, left_s) + 0.001)

    # -- one turn --------------------------------------------------------------------------------

    async def _turn(self, connection: asyncpg.Connection, control: Control | None) -> None:
        """Do what is there to do, as far as it can be done now."""
        await self._note_expiries(connection)
        turn = await self._look(connection)
        if control is not None and (turn.broker or turn.devices):
            await self._tell_broker(connection, control, turn)
        if turn.list_ or self._clock.monotonic() - self._list_checked_at >= RECONCILE_S:
            await self._sign_list(connection, turn)
        due = self._clock.monotonic() - self._tried_at >= PROVE_AGAIN_S or turn.broker
        if control is not None and turn.proof and due:
            await self._prove(connection, control, turn)
        await self._settle_ended(connection)
        await self._write_trouble(connection)

    async def _look(self, connection: asyncpg.Connection) -> _Turn:
        """Return what is open, the oldest first."""
        named, self._named = self._named, set()
        rows = await connection.fetch(
            "select a.id, a.device_id, a.broker_at is null as broker, a.crl_at is null as list, "
            "a.proved_at is null as proof, d.state_since, d.state = any($2::text[]) as ended "
            "from admissions a join devices d on d.id = a.device_id "
            "where a.broker_at is null or a.crl_at is null or a.proved_at is null "
            "order by a.broker_at is null desc, a.crl_at is null desc, a.asked_at limit $1",
            AT_ONCE,
            [str(state) for state in ENDED],
        )
        self._note_ended([row for row in rows if row["ended"]])
        turn = _Turn()
        for row in rows:
            if row["broker"]:
                turn.broker.append(row["id"])
                turn.devices.add(row["device_id"])
            if row["list"]:
                turn.list_.append(row["id"])
            if row["proof"]:
                turn.proof.append(row["id"])
                turn.proving.add(row["device_id"])
        if named:
            found = await connection.fetch(
                "select id from devices where device = any($1::text[])", sorted(named)[:MOST_NAMED]
            )
            turn.devices |= {row["id"] for row in found}
        metrics.ADMISSIONS_WAITING.set(len(turn.broker))
        return turn

    async def _tell_broker(
        self, connection: asyncpg.Connection, control: Control, turn: _Turn
    ) -> None:
        """Step 1. The orders were read before their devices' standing: it is as new as they are."""
        found = await self._standing(connection, control, turn.devices)
        self._failpoint("looked")
        await control.deny([s.device for s in found if self._denied(s)])
        self._failpoint("denied")
        await control.admit([s.device for s in found if not self._denied(s)])
        self._failpoint("admitted")
        self._lapsed -= turn.devices
        self._lapsed |= {s.id for s in found if s.lapsed}
        for row in await connection.fetch(
            "update admissions a set broker_at = clock_timestamp(), trouble = '' from devices d "
            "where a.id = any($1::bigint[]) and a.broker_at is null and d.id = a.device_id "
            "returning d.device, a.admit, a.reason, "
            "extract(epoch from a.broker_at - a.asked_at)::float8 as took_s",
            turn.broker,
        ):
            metrics.ADMISSION_SECONDS.observe(max(0.0, row["took_s"]))
            _log.info(
                "device admitted" if row["admit"] else "device denied",
                device=row["device"],
                reason=row["reason"],
                took_ms=round(row["took_s"] * 1000),
            )
        self._failpoint("broker noted")

    async def _sign_list(self, connection: asyncpg.Connection, turn: _Turn) -> None:
        """Step 2."""
        pki, now = self._devices.pki, self._now()
        self._list_checked_at = self._clock.monotonic()
        try:
            listed = await asyncio.to_thread(revocations.read, pki)
            wanted = await revocations.wanted(connection, listed, now=now)
            self._failpoint("list wanted")
            if await asyncio.to_thread(revocations.install, pki, wanted, now=now):
                words = reload_words(self._version)
                _log.info("revocation list installed", serials=len(wanted), broker=words)
            self._failpoint("list installed")
        except ListError as error:
            self._say("list", str(error))
            return
        self._say("list", "")
        await connection.execute(
            "update admissions set crl_at = clock_timestamp() "
            "where id = any($1::bigint[]) and crl_at is null",
            turn.list_,
        )
        self._failpoint("list noted")

    async def _prove(self, connection: asyncpg.Connection, control: Control, turn: _Turn) -> None:
        """Step 3."""
        self._tried_at = self._clock.monotonic()
        found = await self._standing(connection, control, turn.proving)
        known = await control.look([s.device for s in found])
        wrong = {
            s.device
            for s in found
            if known.get(s.device) is not (True if self._denied(s) else None)
        }
        stored = set(await _stored_after(connection, [s.id for s in found]))
        try:
            await self._certify_probes(connection)
            await probe.prove(self._devices)
        except (ProbeError, AuthorityError, OSError) as error:
            self._say("proof", str(error))
            return
        self._failpoint("proved")
        await connection.execute(
            "update admissions set proved_at = clock_timestamp(), trouble = '' "
            "where id = any($1::bigint[]) and proved_at is null and device_id <> all($2::int[]) "
            "and broker_at is not null and crl_at is not null",
            turn.proof,
            [s.id for s in found if s.device in wrong | stored],
        )
        if wrong:
            self._reconciled_at = -1e9
            self._say("proof", f"the broker's list is not as told: {_some(wrong)}")
        elif stored:
            self._say("proof", f"frames were stored after the order: {_some(stored)}")
        else:
            self._say("proof", "")

    async def _certify_probes(self, connection: asyncpg.Connection) -> None:
        now = self._now()
        for name in await asyncio.to_thread(probe.due, self._devices, now=now):
            serial = new_serial()
            for event in ("recorded", "signed"):
                await connection.execute(
                    "insert into issuance_log (at, serial, event, subject, authority) "
                    "values ($1, $2, $3, $4, 'device')",
                    *(now, f"{serial:x}", event, name),
                )
                if event == "recorded":
                    await asyncio.to_thread(
                        probe.certify, self._devices, name, serial=serial, now=now
                    )

    # -- devices that have ended -----------------------------------------------------------------

    async def _recall_ended(self, connection: asyncpg.Connection) -> None:
        """Note those that another worker may have left; what is open still, `_look` finds."""
        self._note_ended(
            await connection.fetch(
                "select a.device_id, d.state_since from admissions a "
                "join devices d on d.id = a.device_id where a.proved_at > $1 and not a.admit "
                "and d.state = any($2::text[])",
                self._now() - ENDED_OF_LATE,
                [str(state) for state in ENDED],
            )
        )

    def _note_ended(self, rows: Sequence[asyncpg.Record]) -> None:
        for row in rows:
            ended = row["device_id"], row["state_since"]
            if ended not in self._settled:
                self._unsettled.setdefault(ended, 0.0)

    async def _settle_ended(self, connection: asyncpg.Connection) -> None:
        """Move what ended devices have counted past their stay. One's failure is only its own."""
        now_s = self._clock.monotonic()
        due = [ended for ended, at_s in self._unsettled.items() if at_s <= now_s]
        for ended in due[:SETTLED_AT_ONCE]:
            device, since = ended
            try:
                async with transaction_on(connection, "settle ended device"):
                    await settle(connection, device, from_at=since)
            except DATABASE_AWAY as error:
                if connection.is_closed():
                    raise
                _log.warning(
                    "ended device not settled",
                    row=device,
                    error=f"{type(error).__name__}: {error}",
                )
                self._unsettled[ended] = now_s + SETTLE_AGAIN_S
            else:
                del self._unsettled[ended]
                self._settled.add(ended)

    # -- certificates that end -------------------------------------------------------------------

    async def _note_expiries(self, connection: asyncpg.Connection) -> None:
        """Order who has no valid certificate left to be denied, and who has one again admitted."""
        now, seen = self._now(), self._expiries_seen
        looked_at = set(self._lapsed)
        if seen is None:
            everyone = await standing.everyone(connection, now=now, broker_since=None)
            looked_at |= {s.id for s in everyone if s.lapsed}
            rows = await connection.fetch(
                "select a.device_id from admissions a where a.reason = $1 and not a.admit "
                "and not exists (select from admissions b "
                "where b.device_id = a.device_id and b.id > a.id)",
                EXPIRED,
            )
            looked_at |= {row["device_id"] for row in rows}
        else:
            rows = await connection.fetch(
                "select distinct device_id from certificates "
                "where state in ('staged', 'active', 'retiring') and not_after > $1 "
                "and not_after <= $2",
                *(seen, now),
            )
            looked_at |= {row["device_id"] for row in rows}
        self._expiries_seen = now
        if not looked_at:
            return
        found = await standing.of(connection, sorted(looked_at), now=now, broker_since=None)
        await self._doubt_clock(connection, sum(device.lapsed for device in found), now=now)
        for device in found:
            if device.lapsed and self._clock_doubted:
                self._lapsed.add(device.id)
            elif device.lapsed:
                self._lapsed.add(device.id)
                await _order_expired(connection, device)
            else:
                self._lapsed.discard(device.id)
                if device.admitted:
                    await _order_renewed(connection, device)

    # -- the whole list --------------------------------------------------------------------------

    async def _reconcile(self, connection: asyncpg.Connection, control: Control) -> None:
        """Make the broker's list the database's. Read first, so that what is extra is extra now."""
        if await control.mend_role():
            _log.error("revoked role mended: someone had changed it")
            metrics.RECONCILED.labels("role").inc()
        found = await control.listed()
        everyone = await standing.everyone(
            connection, now=self._now(), broker_since=_since(control)
        )
        self._lapsed = {s.id for s in everyone if s.lapsed}
        await self._doubt_clock(connection, len(self._lapsed), now=self._now())
        wanted = {s.device for s in everyone if self._denied(s)} | {probe.DENIED}
        wrong = denylist.compare(found, wanted)
        self._failpoint("compared")
        if not found and wanted == {probe.DENIED}:  # a broker's first start: it has lost nothing
            _log.info("deny-list begun")
        elif wrong:
            _log.warning(
                "deny-list reconciled",
                missing=len(wrong.missing),
                weak=len(wrong.weak),
                extra=len(wrong.extra),
                first=next(iter((*wrong.missing, *wrong.weak, *wrong.extra))),
            )
            for kind in ("missing", "weak", "extra"):
                metrics.RECONCILED.labels(kind).inc(len(getattr(wrong, kind)))
        await control.deny([*wrong.weak, *wrong.missing])
        await control.admit(wrong.extra)
        metrics.DENIED_DEVICES.set(len(wanted))
        if stored := await _stored_after(connection, [s.id for s in everyone if not s.admitted]):
            _log.error("frames stored after the order", devices=stored)
        self._reconciled_at = self._clock.monotonic()

    async def _doubt_clock(
        self, connection: asyncpg.Connection, lapsed: int, *, now: datetime
    ) -> None:
        """Find out whether so many certificates have ended that it can hardly be true."""
        share = 0.0
        if lapsed > MANY_LAPSED:
            share = await standing.lapsed_share(connection, now=now)
        self._clock_doubted = share > LAPSED_SHARE
        words = f"{lapsed} devices have no valid certificate at {now:%Y-%m-%d}: is the clock right?"
        self._say("clock", words if self._clock_doubted else "")

    def _denied(self, device: Standing) -> bool:
        return device.denied and not (device.lapsed and self._clock_doubted)

    # -- small things ----------------------------------------------------------------------------

    async def _standing(
        self, connection: asyncpg.Connection, control: Control, devices: set[int]
    ) -> list[Standing]:
        return await standing.of(
            connection, sorted(devices), now=self._now(), broker_since=_since(control)
        )

    def _say(self, about: str, trouble: str) -> None:
        """Note what is in the way, "" for nothing; said once."""
        if self._trouble.get(about, "") == trouble:
            return
        if trouble:
            _log.warning("orders wait", about=about, trouble=trouble)
            self._trouble[about] = trouble
        else:
            del self._trouble[about]
            _log.info("orders go on", about=about)

    async def _write_trouble(self, connection: asyncpg.Connection) -> None:
        await connection.execute(
            "update admissions set trouble = $1 where trouble <> $1 "
            "and (broker_at is null or crl_at is null or proved_at is null)",
            "; ".join(self._trouble.values()),
        )

    def _now(self) -> datetime:
        return at(self._clock.now_ms())


def reload_words(version: str | None) -> str:
    """Say when the broker will read a newer revocation list."""
    if survives_reload(version):
        return f"Mosquitto {version} can be told to read the list (SIGHUP); else at its next start"
    return "the broker reads it at its next planned restart; the deny-list holds until then"


def _since(control: Control) -> datetime | None:
    return None if control.up_since_ms is None else at(control.up_since_ms)


def _some(devices: set[str]) -> str:
    return ", ".join(sorted(devices)[:5])


_ORDER = """
insert into admissions (organisation_id, device_id, admit, reason, asked_by, asked_at)
select $1, $2, $3, $4, 'server', clock_timestamp()
where (select array[reason, admit::text] from admissions where device_id = $2
  order by id desc limit 1)
"""


async def _order_expired(connection: asyncpg.Connection, device: Standing) -> None:
    """Order a device out whose certificates have ended, once."""
    await connection.execute(
        f"{_ORDER} is distinct from array[$4, 'false']",
        *(device.organisation_id, device.id, False, EXPIRED),
    )


async def _order_renewed(connection: asyncpg.Connection, device: Standing) -> None:
    """Order a device in that was ordered out for that."""
    await connection.execute(
        f"{_ORDER} = array[$5, 'false']",
        *(device.organisation_id, device.id, True, RENEWED, EXPIRED),
    )


async def _stored_after(connection: asyncpg.Connection, devices: list[int]) -> list[str]:
    """Return those not admitted of which something was stored after they were last ordered out."""
    rows = await connection.fetch(
        "select d.device from devices d where d.id = any($1::int[]) and not d.admitted "
        "and exists (select from boots b where b.device_id = d.id and b.last_stored > "
        "(select max(a.asked_at) from admissions a where a.device_id = d.id and not a.admit)) "
        "order by 1",
        devices,
    )
    return [row["device"] for row in rows]
