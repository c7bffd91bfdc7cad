"""What people do to a rollout: draft, plan, submit, approve, pause, resume, cancel, revert.

Each act is one transition of `rollout`, under the rollout's lock, with a row of the audit in the
same transaction: the caller's, as the desk. What carries it out is the conductor, which is due at
once. Approving is for somebody else than the author above the policy's blast radius, and where the
plan overrides a freeze.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from server.audit.log import record
from server.errors import RefusedError
from server.firmware import joiners, starting
from server.firmware.policy import OnHalt, read_policy, write_policy
from server.firmware.rollout import (
    Approved,
    Cancelled,
    Event,
    Paused,
    Planned,
    Resumed,
    Submitted,
)
from server.firmware.rows import Held, hold_named
from server.firmware.waves import Payload, State
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import new_ref


@dataclass(frozen=True, slots=True)
class New:
    """A rollout as it is drafted; `bundle` by its name, `content` what another payload carries."""

    name: str
    policy: str
    payload: Payload = Payload.BUNDLE
    bundle: str | None = None
    content: Mapping[str, object] | None = None


async def draft(
    connection: asyncpg.Connection, organisation: int, wanted: New, *, actor: str, now: datetime
) -> str:
    """Draft a rollout, and return its name. Raises FieldError, PolicyError."""
    policy = read_policy(wanted.policy)
    bundle = await connection.fetchrow(
        "select b.id, sum(r.length)::bigint as bytes, bool_or(r.withdrawn_at is not null) as gone "
        "from bundles b join releases r on r.id = any(b.releases) where b.ref = $1 group by 1",
        wanted.bundle,
    )
    if (bundle is None) is (wanted.payload is Payload.BUNDLE):
        raise FieldError("bundle", f"no bundle {str(wanted.bundle)[:40]!r}")
    if bundle is not None and bundle["gone"]:
        raise RefusedError("withdrawn", "a release of this bundle was withdrawn")
    ref = new_ref("rollout")
    await connection.execute(
        "insert into rollouts (organisation_id, ref, name, payload, bundle_id, bytes, content, "
        "policy, since, author) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        *(organisation, ref, checks.name(wanted.name), wanted.payload.value),
        *((None, 0) if bundle is None else (bundle["id"], bundle["bytes"])),
        *(json.dumps(wanted.content or {}), write_policy(policy), now, actor),
    )
    detail = {"name": wanted.name, "payload": wanted.payload.value, "bundle": wanted.bundle or ""}
    await record(
        connection,
        actor=actor,
        act="rollout drafted",
        subject=ref,
        detail=detail,
        organisation=organisation,
        now=now,
    )
    return ref


async def plan(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    content: Mapping[str, object],
    *,
    actor: str,
    now: datetime,
) -> int:
    """Say whom a rollout reaches, and return how many. Raises NotFoundError, RefusedError."""
    held = await hold_named(connection, organisation, ref, now=now)
    asked = starting.members(content)
    waves = max((each.wave for each in asked), default=0)
    sizes = tuple(sum(each.wave == n for each in asked) for n in range(1, waves + 1))
    held.take(Planned(at=now, actor=actor, sizes=sizes))
    await connection.execute(
        "update rollouts set plan = $2 where id = $1", held.facts.id, json.dumps(content)
    )
    await _written(held, "planned", {"devices": sum(sizes)}, actor=actor)
    return sum(sizes)


async def submit(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> None:
    """Ask for approval. Raises NotFoundError, RefusedError."""
    event = Submitted(at=now, actor=actor)
    await _act(connection, organisation, ref, event, "submitted")


async def approve(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    starts_at: datetime | None = None,
    actor: str,
    now: datetime,
) -> None:
    """Approve a rollout; it starts then, or now. Raises NotFoundError, RefusedError (four_eyes)."""
    held = await hold_named(connection, organisation, ref, now=now)
    if actor == held.rollout.author and (why := await _second(held)):
        raise RefusedError("four_eyes", f"somebody else than its author approves: {why}")
    held.take(Approved(at=now, actor=actor))
    begins = now if starts_at is None else max(now, starts_at)
    await _written(held, "approved", {"starts_at": begins.isoformat()}, actor=actor)
    await connection.execute(
        "update rollouts set starts_at = $2, due_at = $2 where id = $1", held.facts.id, begins
    )


async def _second(held: Held) -> str:
    """Return why a plan is for a second person to approve, its number of devices apart."""
    told = await held.connection.fetchval(
        "select plan -> 'told' -> 'second_person' from rollouts where id = $1", held.facts.id
    )
    reasons: list[str] = json.loads(told) if told else []
    if held.rollout.policy.override_freezes:
        reasons.append("it overrides a freeze")
    return "; ".join(reasons)


async def start(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> None:
    """Let what is scheduled start now. Raises NotFoundError, RefusedError."""
    held = await hold_named(connection, organisation, ref, now=now)
    if held.rollout.state is not State.SCHEDULED:
        raise RefusedError("bad_transition", f"it is {held.rollout.state.value}, not scheduled")
    await connection.execute(
        "update rollouts set starts_at = $2, due_at = $2 where id = $1", held.facts.id, now
    )
    await _written(held, "started", {}, actor=actor)


@dataclass(frozen=True, slots=True)
class Reasoned:
    """An act for which a reason is all there is to say. Raises NotFoundError, RefusedError."""

    event: type[Paused | Resumed | Cancelled]
    done: str

    async def __call__(
        self,
        connection: asyncpg.Connection,
        organisation: int,
        ref: str,
        *,
        reason: str,
        actor: str,
        now: datetime,
    ) -> None:
        said = self.event(at=now, actor=actor, reason=checks.line(reason, "reason"))
        await _act(connection, organisation, ref, said, self.done)


pause = Reasoned(Paused, "paused")
"""Offer nothing more; what is on its way goes on."""
resume = Reasoned(Resumed, "resumed")
"""Go on, and acknowledge all that has failed until now."""
cancel = Reasoned(Cancelled, "cancelled")
"""End a rollout; what already installs goes on."""


async def join(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    devices: Sequence[int],
    *,
    actor: str,
    now: datetime,
) -> int:
    """Let devices (their rows) join what runs, in its tail; return how many take part.

    Who takes part already, is here no longer or is busy elsewhere does not; whether the others fit
    is for `joining.ask` to say. More than there is room for (`joiners.room`) is another rollout,
    which somebody approves. Raises NotFoundError, RefusedError.
    """
    held = await hold_named(connection, organisation, ref, now=now)
    if why := joiners.admits(held.rollout):
        raise RefusedError("bad_transition", why)
    asked, left = sorted(set(devices)), joiners.room(held.rollout, held.facts.approver)
    if len(asked) > left:
        raise RefusedError("too_many_devices", f"at most {left} join without another approval")
    joined = await starting.join(
        held, [starting.Member(each, 0) for each in asked], actor=actor, reason="as was asked for"
    )
    await _written(held, "joined", {"devices": joined}, actor=actor)
    return joined


async def revert(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    how: OnHalt,
    *,
    reason: str,
    actor: str,
    now: datetime,
) -> str:
    """Take devices back to what they ran; return the reverse rollout's name.

    Raises NotFoundError, RefusedError (no_way_back: with why).
    """
    said = checks.line(reason, "reason")
    if not said:
        raise RefusedError("reason_needed", "say why")
    held = await hold_named(connection, organisation, ref, now=now)
    reverse = await starting.revert(held, how, actor=actor, reason=said)
    detail = {"how": how.value, "reverse": reverse, "reason": said}
    await _written(held, "reverted", detail, actor=actor)
    return reverse


async def _act(
    connection: asyncpg.Connection, organisation: int, ref: str, event: Event, done: str
) -> None:
    held = await hold_named(connection, organisation, ref, now=event.at)
    held.take(event)
    await _written(held, done, {"reason": event.reason}, actor=event.actor)


async def _written(held: Held, done: str, detail: Mapping[str, object], *, actor: str) -> None:
    await held.write()
    await record(
        held.connection,
        actor=actor,
        act=f"rollout {done}",
        subject=held.facts.ref,
        detail=detail,
        organisation=held.facts.organisation,
        now=held.now,
    )
