"""Rollouts and executions as rows: held under a lock, decided on, written back in one go.

Locks are taken in one order: a device's execution, then its rollout, then the organisation's gate
(`granting`), then the audit's chain. Who holds a rollout takes executions by `skip locked` alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg

from server import metrics
from server.desired.settings import CHANGED
from server.errors import NotFoundError
from server.firmware.life import COUNTED, FLYING, Counters, Execution, Here
from server.firmware.life import State as Stage
from server.firmware.policy import OnHalt, read_policy
from server.firmware.rollout import Event, Kind, Transition, decide
from server.firmware.waves import WITHDRAWN, Payload, Rollout, State, Wave, WaveKind, WaveState

_ROLLOUT = """
select id, organisation_id, ref, name, payload, bundle_id, bytes, policy, state, epoch, revert,
       devices, author, approver, starts_at, fence, tokens, tokens_at, reverses
from rollouts
"""
WAVE = "number, kind, state, size, total, baseline, opened_at, met_at"
_WAVES = f"select {WAVE} from waves where rollout_id = $1 order by number"  # noqa: S608
COLUMNS = """
e.state, e.attempt, e.seq, e.attempted, e.epoch, e.due_at, e.offered_at, e.accepted_at, e.phase_at,
e.deferred_at, e.ended_at, e.code, e.class, e.bytes, e.tries
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What of a rollout's row is no part of its state. `bundle`, `reverses`: rows."""

    id: int
    organisation: int
    ref: str
    name: str
    payload: Payload
    bundle: int | None
    bytes: int
    approver: str
    starts_at: datetime | None
    fence: int
    tokens: float
    tokens_at: datetime | None
    reverses: int | None


@dataclass(slots=True)
class Held:
    """A rollout under its lock: what is decided is kept here until `write`."""

    connection: asyncpg.Connection
    facts: Facts
    rollout: Rollout
    loaded: Rollout
    now: datetime
    beside: int = 0  # on their way in the rollout that this one takes back
    transitions: list[Transition] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Let something happen to it. Raises RefusedError, changing nothing."""
        self.rollout, made = decide(self.rollout, event)
        self.transitions += made

    @property
    def here(self) -> Here:
        """What its executions are judged by now."""
        rollout = self.rollout
        return Here(rollout.policy, self.now, rollout.epoch, rollout.state in WITHDRAWN)

    async def write(self) -> None:
        """Write what has changed: the state, its waves, and one row for each transition."""
        before, after = self.loaded, self.rollout
        if self.transitions:
            await self._write_state()
        known = {wave.number: wave for wave in before.waves}
        changed = [wave for wave in after.waves if known.get(wave.number) != wave]
        await self.connection.executemany(
            _PUT_WAVE if before.waves else _ADD_WAVE,
            [(self.facts.id, self.facts.organisation, *_wave_values(wave)) for wave in changed],
        )
        await self.connection.executemany(_EVENT, [self._values(row) for row in self.transitions])
        for row in self.transitions:
            metrics.ROLLOUT_TRANSITIONS.labels(row.kind.value).inc()
            if row.kind is Kind.HALTED:
                metrics.ROLLOUTS_HALTED.labels(str(row.detail["guard"])).inc()
        self.loaded = after
        self.transitions = []

    async def _write_state(self) -> None:
        rollout, last = self.rollout, self.transitions[-1]
        moved = rollout.state is not self.loaded.state
        await self.connection.execute(
            "update rollouts set state = $2, since = case when $3 then $4 else since end, "
            "reason = case when $3 then $5 else reason end, epoch = $6, revert = $7, devices = $8, "
            "approver = case when $9 then $10 else approver end, "
            "approved_at = case when $9 then $4 else approved_at end, due_at = $4 where id = $1",
            *(self.facts.id, rollout.state.value, moved, self.now, last.reason, rollout.epoch),
            *(rollout.revert.value, rollout.devices),
            any(row.kind is Kind.APPROVED for row in self.transitions),
            last.actor,
        )

    def _values(self, row: Transition) -> tuple[object, ...]:
        return (
            *(self.facts.organisation, self.facts.id, row.at, row.kind.value, row.actor),
            *(row.reason, json.dumps(row.counters), json.dumps(row.detail)),
        )


_PUT_WAVE = """
update waves set kind = $4, state = $5, size = $6, total = $7, baseline = $8, opened_at = $9,
    met_at = $10
where rollout_id = $1 and organisation_id = $2 and number = $3
"""
_ADD_WAVE = """
insert into waves (rollout_id, organisation_id, number, kind, state, size, total, baseline,
    opened_at, met_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
"""
_EVENT = """
insert into rollout_events (organisation_id, rollout_id, at, event, actor, reason, counters, detail)
values ($1, $2, $3, $4, $5, $6, $7, $8)
"""


def _wave_values(wave: Wave) -> tuple[object, ...]:
    return (
        *(wave.number, wave.kind.value, wave.state.value, wave.size),
        *(json.dumps(wave.total.value()), json.dumps(wave.baseline.value())),
        *(wave.opened_at, wave.met_at),
    )


async def hold(
    connection: asyncpg.Connection, rollout: int, *, now: datetime, fence: int | None = None
) -> Held | None:
    """Lock a rollout and return it; None if it is gone, or leased anew since `fence`."""
    row = await connection.fetchrow(
        f"{_ROLLOUT} where id = $1 and ($2::bigint is null or fence = $2) for no key update",
        *(rollout, fence),
    )
    return None if row is None else await _held(connection, row, now=now)


async def hold_named(
    connection: asyncpg.Connection, organisation: int, ref: str, *, now: datetime
) -> Held:
    """Lock one of an organisation's rollouts. Raises NotFoundError."""
    row = await connection.fetchrow(
        f"{_ROLLOUT} where organisation_id = $1 and ref = $2 for no key update", organisation, ref
    )
    if row is None:
        raise NotFoundError(f"no rollout {ref[:40]!r}")
    return await _held(connection, row, now=now)


async def _held(connection: asyncpg.Connection, row: asyncpg.Record, *, now: datetime) -> Held:
    waves = tuple(wave_of(each) for each in await connection.fetch(_WAVES, row["id"]))
    rollout = Rollout(
        read_policy(row["policy"]),
        row["author"],
        State(row["state"]),
        waves,
        row["epoch"],
        row["devices"],
        row["reverses"] is not None,
        OnHalt(row["revert"]),
    )
    facts = Facts(
        *(row["id"], row["organisation_id"], row["ref"], row["name"]),
        *(Payload(row["payload"]), row["bundle_id"], row["bytes"], row["approver"]),
        *(row["starts_at"], row["fence"], row["tokens"], row["tokens_at"], row["reverses"]),
    )
    beside = 0 if facts.reverses is None else await connection.fetchval(_BESIDE, facts.reverses)
    return Held(connection, facts, rollout, rollout, now, beside)


_BESIDE = """
select count(*)::int from executions
where rollout_id = $1 and ended_at is null and state <> 'planned'
"""


def wave_of(row: asyncpg.Record) -> Wave:
    """Return a wave from `WAVE`."""
    return Wave(
        row["number"],
        WaveKind(row["kind"]),
        WaveState(row["state"]),
        row["size"],
        _counters_of(row["total"]),
        _counters_of(row["baseline"]),
        row["opened_at"],
        row["met_at"],
    )


def _counters_of(text: str) -> Counters:
    found: Mapping[str, int] = json.loads(text)
    return Counters(*(found.get(name, 0) for name in COUNTED))


# -- executions ------------------------------------------------------------------------------------


def named(states: Iterable[Stage]) -> str:
    """Return states as a statement lists them: a partial index serves no parameter."""
    return ", ".join(f"'{state.value}'" for state in sorted(states))


def execution_of(row: asyncpg.Record) -> Execution:
    """Return an execution from `COLUMNS`."""
    tries: Mapping[str, int] = json.loads(row["tries"])
    return Execution(
        state=Stage(row["state"]),
        attempt=row["attempt"],
        seq=row["seq"],
        attempted=row["attempted"],
        epoch=row["epoch"],
        due_at=row["due_at"],
        offered_at=row["offered_at"],
        accepted_at=row["accepted_at"],
        phase_at=row["phase_at"],
        deferred_at=row["deferred_at"],
        ended_at=row["ended_at"],
        code=row["code"],
        kind=row["class"],
        bytes=row["bytes"],
        tries=tries,
    )


@dataclass(frozen=True, slots=True)
class Moved:
    """An execution's row that is to be another; `pool`: where it is counted.

    `shut`: it is put off because nothing is to begin where its device stands.
    """

    id: int
    pool: int
    execution: Execution
    shut: bool = False


async def put(connection: asyncpg.Connection, moved: Sequence[Moved]) -> None:
    """Write executions whose rows are locked."""
    if not moved:
        return
    columns = zip(*(_values(each) for each in moved), strict=True)
    await connection.execute(_PUT, *(list(column) for column in columns))
    for each in moved:
        if each.execution.ended:
            metrics.EXECUTIONS_ENDED.labels(each.execution.state.value).inc()


_HAS = ", ".join(f"'{state.value}'" for state in sorted({*FLYING, Stage.CONFIRMED}))
_PUT = f"""
update executions e set pool = n.pool, state = n.state, attempt = n.attempt, seq = n.seq,
    attempted = n.attempted, epoch = n.epoch, due_at = n.due_at, offered_at = n.offered_at,
    accepted_at = n.accepted_at, phase_at = n.phase_at, deferred_at = n.deferred_at,
    ended_at = n.ended_at, code = n.code, class = n.class, bytes = n.bytes, tries = n.tries::jsonb,
    shut = n.shut,
    settings = case when n.state in ({_HAS}) then e.settings end,
    told = case when n.state in ({_HAS}) then e.told end,
    shows = case when n.state in ({_HAS}) then e.shows end
from unnest($1::bigint[], $2::smallint[], $3::text[], $4::int[], $5::int[], $6::bool[], $7::int[],
    $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[],
    $12::timestamptz[], $13::timestamptz[], $14::text[], $15::text[], $16::bigint[], $17::text[],
    $18::bool[])
    n (id, pool, state, attempt, seq, attempted, epoch, due_at, offered_at, accepted_at, phase_at,
       deferred_at, ended_at, code, class, bytes, tries, shut)
where e.id = n.id
"""  # noqa: S608 - who is neither on the way nor there has nothing laid over its settings


def _values(moved: Moved) -> tuple[object, ...]:
    each = moved.execution
    return (
        *(moved.id, moved.pool, each.state.value, each.attempt, each.seq, each.attempted),
        *(each.epoch, each.due_at, each.offered_at, each.accepted_at, each.phase_at),
        *(each.deferred_at, each.ended_at, each.code, each.kind, each.bytes),
        *(json.dumps(dict(each.tries)), moved.shut),
    )


async def ring(connection: asyncpg.Connection, devices: Iterable[int]) -> None:
    """Tell devices, once this is committed, that something is different for them."""
    rows = list(devices)
    if rows:
        await connection.execute(
            "select pg_notify($1, device) from devices where id = any($2::int[])", CHANGED, rows
        )
