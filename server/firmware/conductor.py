"""Moving rollouts: what is due, under a lease, each rollout in a transaction of its own.

Invariants:
- Who takes a lease raises the rollout's `fence`. A turn begins by locking the row with the fence
  that it was given, and ends by writing with it: a conductor that was slow, and whose lease another
  one took over meanwhile, changes nothing.
- A turn looks at what is due and nothing else, at most `A_TURN` executions of each kind; what is
  left makes the rollout due again at once. Killed anywhere, all of a turn has happened or nothing,
  and the lease ends by itself.
- What a clock that ran ahead has put off or leased, more than `CLOCKS_DIFFER` from now, is due.
- What a turn does follows from the rows alone. One rollout that cannot be moved is looked at again
  later, and keeps no other from its turn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import perf_counter

import asyncpg
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import data_at_fault, transaction
from server.db.turns import repeat
from server.errors import RefusedError
from server.firmware import joiners, life, showing, starting, steering, unwell
from server.firmware.granting import budget, candidates, offer
from server.firmware.guards import CLOCKS_DIFFER
from server.firmware.life import FLYING, RECALLABLE, Contact, Execution
from server.firmware.policy import OnHalt
from server.firmware.reports import change
from server.firmware.rollout import SERVER, Cancelled, Paused, RevertEnded, RevertRefused, Ticked
from server.firmware.rows import COLUMNS, Held, Moved, execution_of, hold, named, put, ring
from server.firmware.waves import OVER, STRAGGLERS, State, WaveKind
from server.rollup.opening import overlap
from server.rollup.places import load_sites

EVERY_S = 1.0
A_TURN = 1_000
ROLLOUTS = 20
LEASE = timedelta(minutes=1)
RESTS = {
    State.RUNNING: timedelta(seconds=5),
    State.PAUSED: timedelta(seconds=30),
    State.HALTED: timedelta(seconds=30),
    State.CANCELLING: timedelta(seconds=30),
    State.REVERTING: timedelta(seconds=30),
}
"""How long after a turn the next is due, at the latest."""
_STILL = (State.PAUSED, State.HALTED)  # nothing is due of them once nobody is on the way
BROKEN = timedelta(minutes=1)
AWAY_MOST = timedelta(days=60)
_Becomes = Callable[[asyncpg.Record, Execution], Execution]

log = structlog.get_logger(__name__)


class StaleError(RefusedError):
    """The lease was somebody else's by now; nothing was written."""

    def __init__(self, ref: str) -> None:
        super().__init__("stale_lease", f"{ref} is conducted by somebody else")


@dataclass(slots=True)
class Conductor:
    """`run` until cancelled; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock

    async def run(self) -> None:
        """Move rollouts for ever; a database that is away is tried again."""
        await repeat(self.turn, rest_s=EVERY_S, away="no rollout moved")

    async def turn(self) -> int:
        """Move each rollout that is due, once; return how many were."""
        now = at(self.clock.now_ms())
        leased = await lease(self.pool, now=now)
        for rollout, fence in leased:
            await self._conduct(rollout, fence, now=now)
        return len(leased)

    async def _conduct(self, rollout: int, fence: int, *, now: datetime) -> None:
        started = perf_counter()
        try:
            async with transaction(self.pool, "conduct rollout") as connection:
                held = await hold(connection, rollout, now=now, fence=fence)
                if held is not None:
                    await conduct(held)
        except StaleError as error:
            log.warning("rollout left to another", error=str(error))
        except Exception as error:
            if not (data_at_fault(error) or isinstance(error, RefusedError | AssertionError)):
                raise
            metrics.TURNS_BROKEN.inc()
            log.exception("a rollout cannot be moved", rollout=rollout)
            await self.pool.execute(_PUT_OFF, rollout, fence, now + BROKEN)
        finally:
            metrics.CONDUCTED.observe(perf_counter() - started)


_PUT_OFF = "update rollouts set due_at = $3, lease_until = null where id = $1 and fence = $2"
_WAKE = """
update rollouts set due_at = $2 where id in (
    select id from rollouts where id = $1 and due_at > $2 for no key update skip locked)
"""  # whoever holds it may be waiting for this one
_LEASE = """
update rollouts r set fence = r.fence + 1, lease_until = $2
from (select id, least(due_at, $1) as due_at from rollouts
      where (due_at <= $1 or (due_at > $4 and (starts_at <= $1 or state <> 'scheduled')))
      and (lease_until is null or lease_until <= $1 or lease_until > $4) order by 2 limit $3
      for no key update skip locked) d
where r.id = d.id returning r.id, r.fence, d.due_at
"""


async def lease(
    pool: asyncpg.Pool, *, now: datetime, limit: int = ROLLOUTS
) -> list[tuple[int, int]]:
    """Take the rollouts that are due and nobody's; return each with the fence to write by."""
    async with transaction(pool, "lease rollouts") as connection:
        rows = await connection.fetch(_LEASE, now, now + LEASE, limit, now + CLOCKS_DIFFER)
    late = max((now - row["due_at"] for row in rows), default=timedelta())
    metrics.ROLLOUTS_LATE.set(late.total_seconds())
    return [(row["id"], row["fence"]) for row in sorted(rows, key=lambda row: row["due_at"])]


async def conduct(held: Held) -> None:
    """Do what is due of one rollout that is held by its fence. Raises StaleError."""
    more = False
    match held.rollout.state:
        case State.SCHEDULED:
            await _start(held)
        case State.RUNNING if await _gone(held):
            more = await _look(held)
        case State.RUNNING:
            more = await _expire(held)
            more |= await _look(held)
            await unwell.look(held)
            await _tick(held)
            more |= await _offer(held)
        case State.PAUSED:
            more = await _look(held)
        case State.HALTED:
            more = await _look(held)
            await _revert(held)
        case State.CANCELLING:
            more = await _take_back(held)
            more |= await _look(held)
            await _tick(held)
        case State.REVERTING:
            more = await _take_back(held)
            more |= await _look(held)
            await _come_back(held)
        case _:
            pass  # it has not begun, or it is over
    await _rest(held, more=more)


async def _rest(held: Held, *, more: bool) -> None:
    """Write what was decided, and when to look again; the lease ends."""
    moved = bool(held.transitions)
    await held.write()
    if held.rollout.state in OVER:
        await steering.settle(held)
        await showing.settle(held)
    state, due = held.rollout.state, None
    if state is State.SCHEDULED:
        due = held.facts.starts_at
    elif more or (moved and state in RESTS):
        due = held.now
    elif state in RESTS and (held.rollout.flying or state not in _STILL):
        due = held.now + RESTS[state]
    done = await held.connection.execute(_PUT_OFF, held.facts.id, held.facts.fence, due)
    if done != "UPDATE 1":
        raise StaleError(held.facts.ref)
    if state in OVER and held.facts.reverses is not None:
        await held.connection.execute(_WAKE, held.facts.reverses, held.now)


# -- what is due -----------------------------------------------------------------------------------


async def _start(held: Held) -> None:
    if held.facts.starts_at is None or held.facts.starts_at > held.now:
        return
    try:
        async with held.connection.transaction():
            await starting.start(held)
    except RefusedError as error:
        held.take(Cancelled(at=held.now, reason=str(error)))


async def _gone(held: Held) -> bool:
    """Pause what brings a release that was withdrawn: it would be offered, and assigned nobody.

    Also a way back: made anew, it leaves out by name whom it has nothing for, and takes the others.
    """
    gone = await held.connection.fetchval(_GONE, held.facts.bundle, held.facts.id)
    if gone is not None:
        way = "" if held.facts.reverses is None else "; cancel this, and take back the others anew"
        held.take(Paused(at=held.now, reason=f"{gone} was withdrawn{way}"))
    return gone is not None


async def _tick(held: Held) -> None:
    awaited = False
    if held.facts.reverses is not None and held.rollout.remaining == 0:
        awaited = await starting.waits_for(held.connection, held.facts.id, held.facts.reverses)
    elif held.facts.bundle is not None:
        awaited = joiners.awaits(held.rollout, now=held.now)
    if held.rollout.remaining == 0:
        awaited |= await steering.frozen(held)
    held.take(Ticked(at=held.now, awaited=awaited))


async def _offer(held: Held) -> bool:
    """Offer to as many as may be; return whether there are more."""
    most = budget(held)
    pools = [
        wave.number
        for wave in held.rollout.waves
        if wave.number in held.rollout.offering() and wave.remaining > wave.total.flying
    ]
    if most == 0 or not pools:
        return False
    asked = min(A_TURN, 2 * most + 20)  # some are away, or their site is busy
    chosen = await candidates(held, pools=pools, limit=asked)
    left = await offer(held, chosen)
    return len(chosen) == asked and len(left) == len(chosen)


async def _expire(held: Held) -> bool:
    """End who did not appear within the time that their wave gave them."""
    wait = timedelta(seconds=held.rollout.policy.timers.straggler_s)
    over = [w for w in held.rollout.waves if w.opened_at and held.now - w.opened_at >= wait]
    numbers = [wave.number for wave in over if wave.kind is not WaveKind.STRAGGLERS]
    waiting = [w.number for w in held.rollout.waves if w.remaining > w.total.flying]
    pools = [number for number in (STRAGGLERS, *numbers) if number in waiting]
    if not numbers or not pools:
        return False
    rows = await held.connection.fetch(_LATE, held.facts.id, pools, numbers, A_TURN)
    await _each(held, rows, lambda row, each: life.expired(each, held.here))
    return len(rows) == A_TURN


async def _take_back(held: Held) -> bool:
    """Take back what has not begun; what has is asked to, by the exchange."""
    rows = await held.connection.fetch(_UNBEGUN, held.facts.id, A_TURN)
    await _each(held, rows, lambda row, each: life.cancelled(each, held.here))
    flying = await held.connection.fetch(_RECALLED, held.facts.id, A_TURN)
    await ring(held.connection, [row["device_id"] for row in [*rows, *flying]])
    return len(rows) == A_TURN


async def _look(held: Held) -> bool:
    """Look at executions whose time is over."""
    rows = await held.connection.fetch(_DUE, held.facts.id, held.now, A_TURN)
    away = await _away(held, rows)

    def looked(row: asyncpg.Record, each: Execution) -> Execution:
        if not row["own"]:
            return life.left(each, held.here)
        since = row["session_at"] if row["session"] == "open" else None
        asked = None not in (row["reported_at"], each.offered_at)
        contact = Contact(
            since, away.get(row["id"], 0.0), asked and row["reported_at"] >= each.offered_at
        )
        return life.looked_at(each, contact, held.here)

    await _each(held, rows, looked)
    return len(rows) == A_TURN


async def _each(held: Held, rows: Sequence[asyncpg.Record], becomes: _Becomes) -> None:
    moved: list[Moved] = []
    for row in rows:
        before = execution_of(row)
        after = becomes(row, before)
        if after is not before:
            change(held, row["pool"], before, after, actor=SERVER)
            moved.append(Moved(row["id"], row["pool"], after))
    await put(held.connection, moved)


async def _away(held: Held, rows: Sequence[asyncpg.Record]) -> dict[int, float]:
    """Return for how many seconds of their site's open time devices have been away."""
    gone = [row for row in rows if row["session"] != "open"]
    sites = {row["site_id"] for row in gone} - {None}
    calendars = {}
    if sites:
        known = await load_sites(held.connection, ids=sorted(sites))
        calendars = {site.id: site.calendar for site in known}
    found: dict[int, float] = {}
    for row in gone:
        until = min(held.now, row["watermark"] or held.now)
        heard = [row[name] for name in ("session_at", "heartbeat_at", "reported_at", "phase_at")]
        since = max((each for each in heard if each is not None), default=until)
        low, high = int(max(since, until - AWAY_MOST).timestamp()), int(until.timestamp())
        calendar = calendars.get(row["site_id"])
        if calendar is None or calendar.opening.weekly is None or low >= high:
            found[row["id"]] = max(0.0, high - low)
        else:
            found[row["id"]] = overlap(calendar.open_between(low, high), low, high)
    return found


# -- the way back ----------------------------------------------------------------------------------


async def _revert(held: Held) -> None:
    """Do what the policy wants done about a halt; what cannot be done is said."""
    if held.rollout.revert is OnHalt.KEEP:
        return
    reason = "as its policy says"
    try:
        async with held.connection.transaction():
            await starting.revert(held, held.rollout.revert, actor=SERVER, reason=reason)
    except RefusedError as error:
        held.take(RevertRefused(at=held.now, reason=str(error)))


async def _come_back(held: Held) -> None:
    ended = await starting.join_late(held)
    if ended is not None and held.rollout.remaining == 0:
        whole = ended in (State.COMPLETED, State.COMPLETED_WITH_STRAGGLERS)
        held.take(RevertEnded(at=held.now, reason=ended.value, whole=whole))


# -- statements ------------------------------------------------------------------------------------

_DUE = f"""
select e.id, e.pool, e.site_id, {COLUMNS}, p.session, p.session_at, p.heartbeat_at, f.reported_at,
       (select watermark from platform) as watermark,
       d.admitted and d.organisation_id = e.organisation_id as own
from (select id from executions
      where rollout_id = $1 and state in ({named(FLYING)}) and due_at <= $2
      order by due_at limit $3 for no key update skip locked) chosen
join executions e using (id) join devices d on d.id = e.device_id
left join presences p on p.device_id = e.device_id
left join device_firmware f on f.device_id = e.device_id
"""  # noqa: S608
_LATE = f"""
select e.id, e.pool, {COLUMNS} from executions e
where e.rollout_id = $1 and e.state = 'planned' and e.pool = any($2::smallint[])
  and e.wave = any($3::smallint[])
order by e.id limit $4 for no key update skip locked
"""  # noqa: S608
_GONE = """
select string_agg(r.component || ' ' || r.version, ', ' order by r.id) from releases r
where r.withdrawn_at is not null and case
    when $1::int is null then exists (select from executions e
        where e.rollout_id = $2 and e.ended_at is null and r.id = any(e.releases))
    else r.id = any((select releases from bundles where id = $1)::int[]) end
"""
_UNBEGUN = f"""
select e.id, e.pool, e.device_id, {COLUMNS} from executions e
where e.rollout_id = $1 and e.state in ('planned', 'offered')
order by e.id limit $2 for no key update skip locked
"""  # noqa: S608
_RECALLED = f"""
select device_id from executions
where rollout_id = $1 and state in ({named(RECALLABLE - {life.State.OFFERED})}) limit $2
"""  # noqa: S608
