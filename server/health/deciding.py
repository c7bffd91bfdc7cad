"""Who is told of an incident, or why nobody is: `incidents.next_step` carried out and noted.

Messages are queued in the transaction that decides on them (`notices`, and the feed of changes), so
there is none without the other. A decision is logged when it differs from the one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from server.db.changes import IncidentNote, Kind, note_change
from server.health import notices, windows
from server.health.decisions import note
from server.health.incidents import (
    Heard,
    Step,
    Suppression,
    Tell,
    Timers,
    Why,
    next_step,
)
from server.health.judgement import Condition, Severity
from server.health.notices import Told
from server.health.rulebook import Rulebook
from server.health.rules import Channel, Rule, Rules, channels_of, rule_of
from server.rollup.places import load_sites

A_TURN = 200
LOOK_AGAIN = timedelta(hours=1)
"""Opening hours may change meanwhile, so no incident is left alone for longer."""
_AHEAD_S = 14 * 86_400
_KINDS = {
    Tell.OPENED: Kind.INCIDENT_OPENED,
    Tell.UPDATED: Kind.INCIDENT_UPDATED,
    Tell.REPEATED: Kind.INCIDENT_UPDATED,
    Tell.RESOLVED: Kind.INCIDENT_RESOLVED,
}


@dataclass(frozen=True, slots=True)
class _Incident:
    """An incident's row while it is decided on."""

    id: int
    organisation: int | None
    ref: str
    condition: Condition
    subject: str
    severity: Severity
    site: int | None
    since: datetime
    timers: Timers
    steps: int
    decided: str


async def decide_due(
    connection: asyncpg.Connection, rulebook: Rulebook, *, now: datetime, known: bool
) -> int:
    """Decide of each incident that is to be looked at; return how many messages that made."""
    rows = await connection.fetch(_DUE, now, A_TURN)
    if not rows:
        return 0
    opens = await _opens_at(connection, {row["site_id"] for row in rows} - {None}, now=now)
    episodes: dict[int, list[asyncpg.Record]] = {row["id"]: [] for row in rows}
    for episode in await connection.fetch(_EPISODES, list(episodes)):
        episodes[episode["incident_id"]].append(episode)
    silences = await windows.silences(
        connection, {row["organisation_id"] for row in rows} - {None}, now=now
    )
    told = 0
    for row in rows:
        incident = _incident(row)
        heard, lifted = await _heard(connection, episodes[incident.id], silences, now=now)
        rules = await rulebook.rules(incident.organisation)
        rule = rule_of(rules, incident.condition)
        timers = incident.timers
        if lifted and timers.told_at is None:  # silence is over: its wait begins anew
            timers = Timers(max(timers.ready_at, now + rule.wait))
        step = next_step(
            timers,
            heard,
            rule,
            now=now,
            opens_at=now if incident.site is None else opens.get(incident.site),
            known=known or incident.subject == "platform",
        )
        worst = _worst(rules, episodes[incident.id], default=incident.severity)
        told += await _carry_out(connection, incident, step, rules, worst, heard, now=now)
        await _write(connection, incident, timers, step, rule, heard, worst, now=now)
    return told


def _incident(row: asyncpg.Record) -> _Incident:
    return _Incident(
        *(row["id"], row["organisation_id"], row["ref"], Condition(row["condition"])),
        *(row["subject"], Severity(row["severity"]), row["site_id"], row["since"]),
        Timers(row["ready_at"], row["told_at"], frozenset(row["told"])),
        *(row["steps"], row["decided"]),
    )


async def _opens_at(
    connection: asyncpg.Connection, sites: set[int], *, now: datetime
) -> dict[int, datetime]:
    """Return when sites open next: now or before while they are open."""
    if not sites:
        return {}
    start_s = int(now.timestamp())
    found: dict[int, datetime] = {}
    for site in await load_sites(connection, ids=sorted(sites)):
        for day in range(0, _AHEAD_S, 86_400):
            hours = site.calendar.open_between(start_s + day, start_s + day + 86_400)
            if hours:
                found[site.id] = datetime.fromtimestamp(hours[0][0], UTC)
                break
    return found


async def _heard(
    connection: asyncpg.Connection,
    episodes: Sequence[asyncpg.Record],
    silences: windows.Silences,
    *,
    now: datetime,
) -> tuple[list[Heard], bool]:
    """Return the open episodes with what silences them now, and whether a silence was lifted."""
    found: list[Heard] = []
    lifted = False
    for row in episodes:
        suppression = Suppression(row["suppressed"])
        until, by = row["suppressed_until"], row["suppressed_by"]
        if suppression is not Suppression.INHIBITED:
            window = silences.of(
                row["organisation_id"], row["region_id"], row["site_id"], row["device_id"]
            )
            before = suppression
            suppression = Suppression.NONE if window is None else Suppression(window.kind)
            until, by = (None, "") if window is None else (window.ends_at, window.ref)
            lifted |= before is not Suppression.NONE and suppression is Suppression.NONE
            if (suppression.value, by) != (row["suppressed"], row["suppressed_by"]):
                await connection.execute(_SUPPRESSED, row["id"], suppression.value, by, until)
        due_at = row["acknowledged_until"]
        seen_to = row["acknowledged_at"] is not None and (due_at is None or due_at > now)
        found.append(Heard(row["id"], suppression, until, seen_to, due_at if seen_to else None))
    return found, lifted


def _worst(rules: Rules, episodes: Sequence[asyncpg.Record], *, default: Severity) -> Severity:
    """Return how bad the worst of it is."""
    order = list(Severity)
    found = [rule_of(rules, Condition(row["condition"])).severity for row in episodes]
    return min(found, key=order.index, default=default)


async def _carry_out(
    connection: asyncpg.Connection,
    incident: _Incident,
    step: Step,
    rules: Rules,
    severity: Severity,
    heard: Sequence[Heard],
    *,
    now: datetime,
) -> int:
    """Queue what is to be told, and note why, or why not; return how many messages that is."""

    async def noted(decision: str, why: str, **more: object) -> None:
        await note(
            *(connection, incident.id, decision, why),
            organisation=incident.organisation,
            now=now,
            **more,  # type: ignore[arg-type]
        )

    if step.tell is None:
        if step.why.value != incident.decided:
            about = await _about(connection, incident, step)
            await noted("held" if not step.ends else "ended", step.why.value,
                        until=step.until, about=about)  # fmt: skip
        return 0
    number = incident.steps + 1
    await noted(step.tell.value, step.why.value, detail={"step": number, "episodes": len(heard)})
    channels = channels_of(rules, severity)
    told = Told(incident.id, incident.organisation, incident.ref, step.tell, number, severity)
    facts = await notices.facts_of(connection, incident.id, now=now)
    sent = 0
    if Channel.FEED in channels and incident.organisation is not None:
        await note_change(
            connection,
            _KINDS[step.tell],
            organisation=incident.organisation,
            site=incident.site,
            detail=_note(told, facts),
            now=now,
        )
        await noted("told", "feed")
        sent += 1
    if Channel.MAIL in channels:
        for decision in await notices.queue(connection, told, facts, now=now):
            await noted(decision.decision, decision.why, about=decision.about,
                        until=decision.until)  # fmt: skip
            sent += decision.decision == "told"
    if not channels:
        await noted("held", "severity")
    return sent


async def _about(connection: asyncpg.Connection, incident: _Incident, step: Step) -> str:
    """Return what a reason has to do with: an incident, a window, or who sees to it."""
    if step.why in (Why.INHIBITED, Why.MAINTENANCE, Why.VISIT):
        column = "suppressed_by"
    elif step.why is Why.ACKNOWLEDGED:
        column = "acknowledged_by"
    else:
        return ""
    found: str | None = await connection.fetchval(
        f"select max({column}) from episodes "  # noqa: S608 - one of two names
        "where incident_id = $1 and resolved_at is null",
        incident.id,
    )
    return found or ""


def _note(told: Told, facts: notices.Facts) -> IncidentNote:
    return IncidentNote(
        incident=told.ref,
        step=told.step,
        told=told.tell.value,
        condition=facts.condition.value,
        severity=told.severity.value,
        root=facts.root,
        since=facts.since.isoformat(timespec="seconds").replace("+00:00", "Z"),
        devices=facts.devices,
        cause=facts.condition.meaning.cause,
        remedy=facts.condition.meaning.remedy,
        stake=facts.stake,
    )


async def _write(
    connection: asyncpg.Connection,
    incident: _Incident,
    timers: Timers,
    step: Step,
    rule: Rule,
    heard: Sequence[Heard],
    severity: Severity,
    *,
    now: datetime,
) -> None:
    """Write where an incident stands, and when to look at it again."""
    until = step.until
    if step.tell is not None and not step.ends:
        until = now + rule.repeat
    dues = [each.due_at for each in heard if each.due_at is not None]
    look_at = None if step.ends else min([until or now + LOOK_AGAIN, now + LOOK_AGAIN, *dues])
    ids = sorted(each.id for each in heard if each.suppression is not Suppression.INHIBITED)
    await connection.execute(
        _DECIDED,
        *(incident.id, step.why.value, look_at, step.ends, now, step.tell is not None, ids),
        *(timers.ready_at, severity.value),
    )


_DUE = """
    select id, organisation_id, ref, condition, subject, severity, site_id, since, ready_at,
        told_at, told, steps, decided
    from incidents where state = 'open' and look_at <= $1 order by look_at, id limit $2 for update
"""
_EPISODES = """
    select e.id, e.incident_id, e.organisation_id, e.condition, e.site_id, e.device_id,
        e.suppressed, e.suppressed_by, e.suppressed_until, e.acknowledged_at,
        e.acknowledged_until, s.region_id
    from episodes e left join sites s on s.id = e.site_id
    where e.incident_id = any($1::bigint[]) and e.resolved_at is null order by e.id
"""
_SUPPRESSED = """
    update episodes set suppressed = $2, suppressed_by = $3, suppressed_until = $4 where id = $1
"""
_DECIDED = """
    update incidents set decided = $2, look_at = $3,
        state = case when $4 then 'resolved' else state end,
        ended_at = case when $4 then $5::timestamptz else ended_at end,
        told_at = case when $6 then $5 else told_at end,
        told = case when $6 then $7::bigint[] else told end,
        steps = steps + $6::int, ready_at = $8, severity = $9
    where id = $1
"""
