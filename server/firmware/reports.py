"""What devices say of executions: taken in once each, and judged in the same transaction.

Invariants:
- A step counts once, by (execution, attempt, number), in whatever order and however often it comes.
- What changes a counter is decided under the rollout's lock, and guards are asked there: when a
  device's transaction ends, its rollout has halted or need not.
- A device speaks of its own executions alone. Of what is not its own it hears that it was stored,
  so that it forgets it.
- Steps without end, or of attempts that there never were, are heard and fill no table.
- Of a report that is not fresh nothing from a `confirmed` on is stored or heard: it is said again.
- What a device runs counts against a confirmation that is older than the word (`runs`).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from protocol.update import Phase, Step
from server.firmware import life
from server.firmware.life import RECALLABLE, SUPPOSED, Execution, Here, Said, tally
from server.firmware.policy import read_policy
from server.firmware.rollout import Changed
from server.firmware.rows import COLUMNS, Held, Moved, execution_of, hold, put
from server.firmware.waves import WITHDRAWN, State

MOST_STEPS = 10_000  # of one attempt; the longest that a good device had are some hundred
ENDS = (Phase.CONFIRMED, Phase.FAILED, Phase.REVERTED, Phase.REJECTED)


@dataclass(frozen=True, slots=True)
class Heard:
    """Up to which number the steps of each (execution, attempt) are stored, and what is to end."""

    heard: tuple[tuple[str, int, int], ...]
    cancel: tuple[str, ...]


async def hear(
    connection: asyncpg.Connection,
    device: int,
    steps: Sequence[Step],
    *,
    fresh: bool,
    now: datetime,
) -> Heard:
    """Take in what a device (its row) says of its executions, within the caller's transaction.

    `cancel`: those that it speaks of and that are wanted no more.
    """
    said: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        said[step.attempt.execution].append(step)
    rows = await connection.fetch(_OWN, device, list(said))
    known = {row["ref"]: row for row in rows}
    heard: dict[tuple[str, int], int] = {}
    cancel: list[str] = []
    for ref in [*known, *(ref for ref in said if ref not in known)]:
        kept = _worth(said[ref], fresh=fresh) if ref in known else said[ref]
        for step in kept:
            key = ref, step.attempt.number
            heard[key] = max(heard.get(key, 0), step.seq)
        if ref in known and await _take(connection, known[ref], kept, now=now):
            cancel.append(ref)
    return Heard(tuple((*key, seq) for key, seq in heard.items()), tuple(cancel))


_OWN = f"""
select e.id, e.ref, e.organisation_id, e.rollout_id, e.pool, d.device, {COLUMNS},
       e.assigned_until is not null as assigned
from executions e join devices d on d.id = e.device_id
where e.device_id = $1 and e.ref = any($2) order by e.id for no key update of e
"""  # noqa: S608


def _worth(steps: Sequence[Step], *, fresh: bool) -> list[Step]:
    """Return the steps that may be stored."""
    kept: list[Step] = []
    held: set[int] = set()
    for step in sorted(steps, key=lambda step: (step.attempt.number, step.seq)):
        if step.phase is Phase.CONFIRMED and not fresh:
            held.add(step.attempt.number)
        if step.attempt.number not in held:
            kept.append(step)
    return kept


async def _take(
    connection: asyncpg.Connection,
    row: asyncpg.Record,
    steps: Sequence[Step],
    *,
    now: datetime,
) -> bool:
    """Take steps of one execution in; return whether it is wanted no more."""
    steps = [each for each in steps if _bounded(each, row)]
    new = set(
        map(tuple, await connection.fetch(_STORE, *_columns(row, steps, now=now))) if steps else ()
    )
    said = [_said(each) for each in steps if (each.attempt.number, each.seq) in new]
    before = execution_of(row)
    facts = await connection.fetchrow(
        "select policy, epoch, state from rollouts where id = $1", row["rollout_id"]
    )
    withdrawn = State(facts["state"]) in WITHDRAWN
    if row["assigned"] and any(_done(each, row) for each in steps):
        await connection.execute(_DONE, row["id"])
    here = Here(read_policy(facts["policy"]), now, facts["epoch"], withdrawn)
    after = _folded(before, said, here)
    if after != before and tally(after) == tally(before) and not (before.ended or after.ended):
        await put(connection, [Moved(row["id"], row["pool"], after)])  # no counter moves
    elif after != before:
        held = await hold(connection, row["rollout_id"], now=now)
        assert held is not None
        after = await _judge(held, row, before, said)
        withdrawn = held.rollout.state in WITHDRAWN
    gone = after.state in SUPPOSED
    return gone or (withdrawn and after.state in RECALLABLE)


_DONE = "update executions set assigned_until = null where id = $1"


def _done(step: Step, row: asyncpg.Record) -> bool:
    """Whether a device begins nothing more by what it was assigned last."""
    return step.phase in ENDS and step.attempt.number >= row["attempt"]


def _bounded(step: Step, row: asyncpg.Record) -> bool:
    """Whether a step may fill a row: of a try that there was, and few enough, or its end."""
    ends = row["ended_at"] is None and step.phase in ENDS
    tries = execution_of(row).attempts
    return step.attempt.number <= tries and (step.seq <= MOST_STEPS or ends)


def _folded(execution: Execution, said: Sequence[Said], here: Here) -> Execution:
    for each in said:
        execution = life.heard(execution, each, here)
    return execution


async def _judge(
    held: Held, row: asyncpg.Record, before: Execution, said: Sequence[Said]
) -> Execution:
    """Fold what was said under the rollout's lock, and judge each step by itself."""
    last = before
    for each in said:
        after = life.heard(last, each, held.here)
        change(held, row["pool"], last, after, actor=f"device {row['device']}")
        last = after
    await put(held.connection, [Moved(row["id"], row["pool"], last)])
    await held.write()
    if last.ended:
        await held.connection.execute(
            "update rollouts set due_at = $2 where id = $1 and due_at > $2",
            *(held.facts.id, held.now),
        )
    return last


def change(held: Held, pool: int, before: Execution, after: Execution, *, actor: str) -> None:
    """Tell a rollout that an execution is another now, if its counters see that."""
    if tally(before) != tally(after) or before.state is not after.state:
        held.take(Changed(at=held.now, actor=actor, wave=pool, before=before, after=after))


def _said(step: Step) -> Said:
    kind = "" if step.kind is None else step.kind.value
    return Said(step.attempt.number, step.seq, step.phase, step.code, kind, step.bytes)


_STORE = """
insert into execution_reports (execution_id, attempt, seq, organisation_id, phase, code, class,
    bytes, at, heard_at, detail)
select $1, n.attempt, n.seq, $2, n.phase, n.code, n.class, n.bytes, n.at, $3,
       case n.tail when '' then '{}' else jsonb_build_object('tail', n.tail) end
from unnest($4::int[], $5::int[], $6::text[], $7::text[], $8::text[], $9::bigint[],
            $10::timestamptz[], $11::text[])
     n (attempt, seq, phase, code, class, bytes, at, tail)
on conflict do nothing returning attempt, seq
"""


def _columns(row: asyncpg.Record, steps: Sequence[Step], *, now: datetime) -> tuple[object, ...]:
    return (
        *(row["id"], row["organisation_id"], now),
        [step.attempt.number for step in steps],
        [step.seq for step in steps],
        [step.phase.value for step in steps],
        [step.code for step in steps],
        ["" if step.kind is None else step.kind.value for step in steps],
        [step.bytes for step in steps],
        [_instant(step.at_ms) for step in steps],
        [step.tail for step in steps],
    )


def _instant(at_ms: int) -> datetime | None:
    """Return a device's own time; None if it has none, or one beyond all calendars."""
    return datetime.fromtimestamp(at_ms / 1000, UTC) if 0 < at_ms < _END_MS else None


_END_MS = 253_402_300_799_000  # of the year 9999


# -- what a device runs ----------------------------------------------------------------------------


async def runs(
    connection: asyncpg.Connection,
    device: int,
    versions: Mapping[str, str],
    *,
    now: datetime,
    said_at: datetime | None = None,
    whole: bool = False,
) -> bool:
    """Hold what a device (its row) runs, by component, against what it confirmed last.

    True if it runs another version of any of them: that execution has reverted. `said_at`: when it
    said so, if not just now; `whole`: what is not named does not run.
    """
    row = await connection.fetchrow(_CONFIRMED, device, said_at or now)
    if row is None:
        return False
    wanted = await connection.fetch(
        "select component, version from releases where id = any($1::int[])", row["installed"]
    )
    parts = [(each["component"], each["version"]) for each in wanted]
    if all(versions.get(name, "" if whole else version) == version for name, version in parts):
        return False
    held = await hold(connection, row["rollout_id"], now=now)
    assert held is not None
    before = execution_of(row)
    after = life.mismatched(before, held.here)
    change(held, row["pool"], before, after, actor=f"device {row['device']}")
    await put(connection, [Moved(row["id"], row["pool"], after)])
    await held.write()
    return True


_CONFIRMED = f"""
with last as (
    select e.id from executions e join rollouts o on o.id = e.rollout_id
    where device_id = $1 and accepted_at is not null and o.payload = 'bundle'
    order by ended_at desc nulls first, e.id desc limit 1)
select e.id, e.rollout_id, e.pool, d.device, coalesce(e.releases, b.releases) as installed,
       {COLUMNS}
from executions e join last using (id) join rollouts o on o.id = e.rollout_id
join devices d on d.id = e.device_id
left join bundles b on b.id = o.bundle_id
where e.state = 'confirmed' and coalesce(e.releases, b.releases) is not null and e.ended_at <= $2
for no key update of e
"""  # noqa: S608
