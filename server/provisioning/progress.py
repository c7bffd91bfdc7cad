"""How far a claim has come: what the technician's screen shows while the device comes to life.

Each step has a code, whether it is done, waiting or failed, and a hint: the key of a sentence that
says what to look at. A refusal's code is a hint too (`refusals.TABLE`). Steps stand in the order in
which they usually come true; none undoes an earlier one.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg

from server.provisioning.refusals import TABLE, Then, refused


class Step(StrEnum):
    """What has to come true, in order."""

    CLAIMED = "claimed"  # the technician has said where it is to stand
    ASKED = "asked"  # the device has asked to be enrolled
    CERTIFIED = "certified"  # its certificate is issued
    CONNECTED = "connected"  # it has greeted over the broker since
    CLOCK = "clock"  # it knows what time it is
    STORED = "stored"  # a frame of it is stored
    COUNTED = "counted"  # something was counted on this spot


class Mark(StrEnum):
    """Where a step stands."""

    DONE = "done"
    WAITING = "waiting"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class StepStatus:
    """A step; `hint` says what to look at unless it is done (then it is empty)."""

    step: Step
    mark: Mark
    hint: str = ""


HINTS = {
    Step.CLAIMED: "claim_over",
    Step.ASKED: "hint.power-and-network",
    Step.CERTIFIED: "hint.wait-for-device",
    Step.CONNECTED: "hint.broker-port",
    Step.CLOCK: "hint.time-service",
    Step.STORED: "hint.first-frame",
    Step.COUNTED: "hint.walk-through",
}
"""The hint of each step that waits; ASKED fails with the code of a refusal instead."""

_RECENT = timedelta(hours=1)  # how old a device's last question may be to explain this claim

_SEEN = """
select t.created_at, t.expires_at, t.used_at, t.ended_at, t.since, t.spot_id, t.device_id,
  d.asked_at, d.asked, d.greeted_at,
  (select max(coalesce(c.activated_at, c.recorded_at)) from certificates c
   where c.device_id = d.id and c.state in ('active', 'retiring')) as certified_at,
  (select array_agg(b.id) from all_boots b where b.device_id = d.id) as boots
from technician_claims t join devices d on d.id = t.device_id
where t.ref = $1 and t.organisation_id = $2
"""

_STORED = """
select b.stored_to is not null as clock from all_boots b
where b.device_id = $1 and b.next_seq > 0 and (b.stored_to >= $2 or b.stored_to is null
  or b.first_seen >= $2)
order by b.first_seen desc limit 1
"""

_COUNTED = """
select exists (select from readings r where r.spot = $1 and r.boot = any($2::int[])
    and r.time >= $3::timestamptz - interval '1 day' and r.line >= 0
    and r.counts <> array_fill(0::smallint, array[cardinality(r.counts)]))
  or exists (select from presses p where p.spot = $1 and p.boot = any($2::int[])
    and p.time >= $3::timestamptz)
"""


async def status(
    connection: asyncpg.Connection, claim_ref: str, *, organisation: int, now: datetime
) -> list[StepStatus]:
    """Return each step of the organisation's claim. RefusedError (`no_such_claim`).

    On a connection of ingest or the owner: the desk reads no counts.
    """
    row = await connection.fetchrow(_SEEN, claim_ref, organisation)
    if row is None:
        raise refused("no_such_claim")
    certified_at = row["certified_at"]
    frame = None
    counted = False
    if certified_at is not None:
        frame = await connection.fetchrow(_STORED, row["device_id"], certified_at)
        counted = await connection.fetchval(
            _COUNTED, row["spot_id"], row["boots"] or [], row["since"]
        )
    over = row["used_at"] is None and (row["ended_at"] is not None or row["expires_at"] <= now)
    connected = certified_at is not None and (row["greeted_at"] is not None or frame is not None)
    done = {
        Step.CLAIMED: not over,
        Step.ASKED: certified_at is not None or _asked(row) == "pending",
        Step.CERTIFIED: certified_at is not None,
        Step.CONNECTED: connected,
        Step.CLOCK: frame is not None and frame["clock"],
        Step.STORED: frame is not None,
        Step.COUNTED: counted,
    }
    steps = [
        StepStatus(step, Mark.DONE) if reached else StepStatus(step, Mark.WAITING, HINTS[step])
        for step, reached in done.items()
    ]
    return [_failed(found, row, over=over) for found in steps]


def _asked(row: asyncpg.Record) -> str:
    """Return what the device was answered lately, if anything."""
    recent = row["asked_at"] is not None and row["asked_at"] > row["created_at"] - _RECENT
    return row["asked"] if recent else ""


def _failed(found: StepStatus, row: asyncpg.Record, *, over: bool) -> StepStatus:
    """Return the step as failed if waiting alone will not do."""
    if found.mark is Mark.DONE:
        return found
    answer = _asked(row)
    if found.step is Step.CLAIMED and over:
        return StepStatus(found.step, Mark.FAILED, found.hint)
    if found.step is Step.ASKED and answer in TABLE and TABLE[answer].then is not Then.WAIT:
        return StepStatus(found.step, Mark.FAILED, answer)
    return found
