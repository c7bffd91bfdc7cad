"""Rollouts of a questionnaire: shown by the kiosks that were granted it, moved by what they hold.

What a rollout brings lies in its executions (`executions.shows`) from the grant on, and counts as
if it had been published at the kiosk's spot at that moment (`server.feedback.questionnaires`). Once
it is over that is what is published there, so no kiosk is told anything new.

Invariants:
- An execution is accepted by the asking that is answered with it, and confirmed by one that names,
  as what the kiosk holds, exactly the plan that it is to have now. A kiosk that refuses a plan, or
  never gets it, does not say so: it ends by its time.
- Who is neither on its way nor has confirmed shows nothing of it (`rows.put`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from protocol.plan import MAX_SHOWN, Plan
from protocol.questionnaire import read
from protocol.update import Phase
from server.audit.log import record
from server.errors import ConflictError, NotFoundError, RefusedError
from server.feedback import questionnaires
from server.feedback.questionnaires import MOST_CONTENT, Version
from server.firmware import carried
from server.firmware.life import State as Stage
from server.firmware.plan import Why
from server.firmware.rollout import SERVER
from server.firmware.rows import Held
from server.firmware.waves import OVER, Payload, State
from server.fleet.checks import FieldError


@dataclass(frozen=True, slots=True)
class Showing:
    """What a rollout carries: a version, by its ref."""

    questionnaire: str
    payload: Payload = Payload.QUESTIONNAIRE

    def content(self) -> dict[str, object]:
        """Return what a rollout keeps."""
        return {"questionnaire": self.questionnaire}


# -- before it begins ------------------------------------------------------------------------------


async def _fit(connection: asyncpg.Connection, organisation: int, ref: str) -> Version:
    """Return a version that may be shown. Raises FieldError, ConflictError."""
    try:
        found = await questionnaires.find(connection, organisation, ref)
    except NotFoundError as error:
        raise FieldError("questionnaire", str(error)) from error
    if found.content is None or found.retired_at is not None:
        raise ConflictError(f"{ref} is retired, or only its hash is known")
    return found


async def reach(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    rows: Sequence[int],
    *,
    now: datetime,
) -> Mapping[int, tuple[Why, str]]:
    """Return which of these devices (rows) cannot show it, and why. FieldError, ConflictError."""
    version = await _fit(connection, organisation, ref)
    found = await connection.fetch(_KIOSKS, list(rows), now, version.id, now - timedelta(days=1))
    given: dict[int, tuple[Why, str]] = {}
    for row in found:
        if row["kind"] != "kiosk":
            given[row["id"]] = Why.WRONG_HARDWARE, f"it is a {row['kind']}, and kiosks show it"
        elif not row["heard"]:
            given[row["id"]] = Why.NEVER_REPORTED, "it has never said anything"
        elif row["spot"] is None:
            given[row["id"]] = Why.NOWHERE, "it stands nowhere, and shows nothing of yours"
        elif row["there"]:
            given[row["id"]] = Why.ALREADY, "it shows it already"
        elif row["many"] >= MAX_SHOWN or row["size"] + len(version.content or b"") > MOST_CONTENT:
            raise ConflictError(f"too much is published at {row['site']} already; end something")
    return given


_KIOSKS = """
select d.id, d.kind, w.spot, w.site, first.questionnaire_id is not distinct from $3 as there,
       num_nonnulls(h.session_at, h.heartbeat_at, f.reported_at, t.report) > 0 as heard,
       (select count(*) from publications p where p.site_id = w.site_id and p.ended_at is null
        and (p.spot_id is null or p.spot_id = w.spot)
        and coalesce(p.until_day >= $4::date, true)) as many,
       (select coalesce(sum(octet_length(q.content)), 0) from questionnaires q where q.id in (
            select p.questionnaire_id from publications p where p.site_id = w.site_id
            and (p.spot_id is null or p.spot_id = w.spot)
            and p.ended_at is null and coalesce(p.until_day >= $4::date, true))) as size
from devices d left join lateral (
    select s.id as spot, s.site_id, t.ref as site
    from assignments a join spots s on s.id = a.spot_id join sites t on t.id = s.site_id
    where a.device_id = d.id and a.valid @> $2::timestamptz limit 1) w on true
left join lateral (
    select p.questionnaire_id from publications p
    where p.site_id = w.site_id and (p.spot_id is null or p.spot_id = w.spot)
    and p.ended_at is null and coalesce(p.until_day >= $4::date, true)
    order by p.spot_id nulls last, p.published_at desc, p.id desc limit 1) first on true
left join presences h on h.device_id = d.id
left join device_firmware f on f.device_id = d.id
left join device_settings t on t.device_id = d.id
where d.id = any($1::int[])
"""


async def demand_fit(held: Held) -> None:
    """Let a rollout begin only while its questionnaire may be shown. Raises RefusedError."""
    if held.facts.payload is not Payload.QUESTIONNAIRE:
        return
    try:
        await _fit(held.connection, held.facts.organisation, await _carried(held))
    except ConflictError as error:
        raise RefusedError("conflict", str(error)) from error


async def _carried(held: Held) -> str:
    """Return the ref of what a rollout, or the one that it takes back, shows."""
    ref: str = await held.connection.fetchval(
        "select coalesce(x.content, o.content) ->> 'questionnaire' from rollouts o "
        "left join rollouts x on x.id = o.reverses where o.id = $1",
        held.facts.id,
    )
    return ref


# -- granted ---------------------------------------------------------------------------------------


async def bring(held: Held, executions: Sequence[tuple[int, int]]) -> None:
    """Let kiosks show a questionnaire, or no longer: (execution, device)."""
    facts = held.facts
    if facts.payload is not Payload.QUESTIONNAIRE or not executions:
        return
    if facts.reverses is not None:
        await held.connection.execute(
            "update executions set shows = null where rollout_id = $1 "
            "and device_id = any($2::int[])",
            *(facts.reverses, [device for _, device in executions]),
        )
        return
    await held.connection.execute(
        "update executions e set shows = q.id from rollouts o join questionnaires q "
        "on q.organisation_id = o.organisation_id and q.ref = o.content ->> 'questionnaire' "
        "where e.id = any($1::bigint[]) and o.id = e.rollout_id",
        [execution for execution, _ in executions],
    )


# -- what a kiosk says -----------------------------------------------------------------------------


async def asking(connection: asyncpg.Connection, device: int) -> None:
    """Let a kiosk (its row, locked) that asks for its plan show no more what was withdrawn."""
    row = await carried.under_way(connection, device, Payload.QUESTIONNAIRE)
    if row is not None and carried.withdrawn(row) and row["shows"] is not None:
        await connection.execute("update executions set shows = null where id = $1", row["id"])


async def told(connection: asyncpg.Connection, device: int, *, now: datetime) -> bool:
    """Note that a kiosk that asked is being answered; whether a rollout waits for its next word."""
    row = await carried.under_way(connection, device, Payload.QUESTIONNAIRE)
    if row is not None:
        await carried.accepted(connection, device, row, now=now)
    return row is not None


async def holds(connection: asyncpg.Connection, device: int, plan: Plan, *, now: datetime) -> None:
    """Take in that a kiosk (its row, locked) holds this plan, if that is still the one to hold."""
    row = await carried.under_way(connection, device, Payload.QUESTIONNAIRE)
    if row is None or Stage(row["state"]) is Stage.OFFERED:
        return
    current, _ = await questionnaires.plan_of(connection, device, now=now)
    if current.content() != plan.content():
        return
    if carried.withdrawn(row):
        await carried.cancelled(connection, device, row, now=now)
    elif row["reverses"] is None and not await _shown(connection, row["shows"], plan):
        await carried.superseded(connection, row, now=now)
    else:
        await carried.ended(connection, device, row, Phase.CONFIRMED, now=now)


async def _shown(connection: asyncpg.Connection, questionnaire: int | None, plan: Plan) -> bool:
    content = await connection.fetchval(
        "select content from questionnaires where id = $1", questionnaire
    )
    return content is not None and read(content).digest in {each.digest for each in plan.show}


# -- once it is over -------------------------------------------------------------------------------


async def settle(held: Held) -> None:
    """Publish what a rollout that has ended left its kiosks showing; its row is written."""
    facts = held.facts
    if facts.payload is not Payload.QUESTIONNAIRE or facts.reverses is not None:
        return
    has, shown = await held.connection.fetchrow(
        "select count(*), count(*) filter (where q.retired_at is null) from executions e "
        "join questionnaires q on q.id = e.shows where e.rollout_id = $1",
        facts.id,
    )
    if not has or held.rollout.state not in OVER:
        return
    await held.connection.execute("select settle_questionnaire($1, $2)", facts.id, held.now)
    if shown and held.rollout.state is not State.REVERTED:
        await record(
            held.connection,
            actor=SERVER,
            act="questionnaire published",
            subject=await _carried(held),
            detail={"rollout": facts.ref, "kiosks": shown},
            organisation=facts.organisation,
            now=held.now,
        )
