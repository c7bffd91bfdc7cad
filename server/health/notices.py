"""Mail about incidents: what it says, to whom, and the outbox it is queued in.

A message is queued in the transaction that decides on it, once for each contact: `dedupe`, made of
incident, contact and step, is unique, and is its Message-ID at every try. A contact outside their
hours is told when these begin, unless it is over by then; then nobody is told that it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import urlsplit

import asyncpg

from server.audit.log import record
from server.errors import NotFoundError
from server.health import contacts
from server.health.contacts import Known, hears_at
from server.health.incidents import Tell
from server.health.judgement import Condition, Severity
from server.health.rows import ROOT

_MOST_LISTED = 10
_RANK = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Told:
    """One message of an incident."""

    incident: int
    organisation: int | None
    ref: str
    tell: Tell
    step: int
    severity: Severity


@dataclass(frozen=True, slots=True)
class Facts:
    """What a message says of an incident: what is wrong (`root`), since when, what belongs to it.

    `devices`: how many are concerned; `names`: some of them; `stake`: people not counted today.
    """

    condition: Condition
    root: str
    site: str
    since: datetime
    ended_at: datetime | None
    devices: int
    names: tuple[str, ...]
    times: int
    stake: float
    owner: str


@dataclass(frozen=True, slots=True)
class Queued:
    """What was decided of one contact."""

    decision: str
    why: str
    about: str = ""
    until: datetime | None = None


async def facts_of(connection: asyncpg.Connection, incident: int, *, now: datetime) -> Facts:
    """Return what there is to say of an incident."""
    row = await connection.fetchrow(_FACTS, incident)
    names = [each["name"] for each in await connection.fetch(_NAMES, incident, _MOST_LISTED)]
    return Facts(
        Condition(row["condition"]),
        row["root"],
        row["site"] or "",
        row["since"],
        now if row["over"] else None,
        row["devices"],
        tuple(names),
        row["times"],
        row["stake"],
        row["owner"],
    )


async def queue(
    connection: asyncpg.Connection, told: Told, facts: Facts, *, now: datetime
) -> list[Queued]:
    """Queue a message for each contact who wants it; return what was decided of each."""
    known = await contacts.listed(connection, told.organisation)
    wanting = [each for each in known if _RANK[told.severity] <= _RANK[each.contact.severity]]
    if told.tell is Tell.RESOLVED:
        return await _over(connection, told, facts, known, now=now)
    if not wanting:
        return [Queued("held", "no_contact")]
    return [await _put(connection, told, facts, each, now=now) for each in wanting]


async def _over(
    connection: asyncpg.Connection, told: Told, facts: Facts, known: Sequence[Known], *,
    now: datetime,
) -> list[Queued]:  # fmt: skip
    """Tell those who were told, and let what nobody has been sent yet be."""
    dropped = {row[0] for row in await connection.fetch(_DROPPED, told.incident, now)}
    heard = {row[0] for row in await connection.fetch(_HEARD, told.incident)}
    found: list[Queued] = []
    for each in known:
        if each.id in dropped:
            found.append(Queued("dropped", "over_before", each.ref))
        if each.id in heard:
            found.append(await _put(connection, told, facts, each, now=now))
    return found


async def _put(
    connection: asyncpg.Connection, told: Told, facts: Facts, contact: Known, *, now: datetime
) -> Queued:
    at = hears_at(contact.contact, now=now)
    await connection.execute(
        _QUEUED,
        *(told.organisation, told.incident, contact.id, f"{told.ref}.{told.step}.{contact.ref}"),
        *(subject_of(told, facts), body_of(told, facts), now, at),
    )
    if at > now:
        return Queued("held", "contact_hours", contact.ref, at)
    return Queued("told", "contact", contact.ref)


# -- what it says ----------------------------------------------------------------------------------

_OPENING = {
    Tell.OPENED: "",
    Tell.UPDATED: "Changed: ",
    Tell.REPEATED: "Still open: ",
    Tell.RESOLVED: "Resolved: ",
}


def subject_of(told: Told, facts: Facts) -> str:
    """Return a message's subject: what is wrong comes first."""
    what = facts.condition.value.replace("_", " ")
    return f"{_OPENING[told.tell]}[{told.severity}] {what}: {_where(facts)}"


def body_of(told: Told, facts: Facts) -> str:
    """Return a message's text."""
    meaning = facts.condition.meaning
    lines = [meaning.title, "", f"What: {_where(facts)}"]
    lines.append(f"Since: {_instant(facts.since)}")
    if facts.ended_at is not None:
        lines.append(f"Over: {_instant(facts.ended_at)}")
    if facts.devices > 1:
        lines.append(f"Devices: {facts.devices}")
    if facts.times > 1:
        lines.append(f"It came and went {facts.times} times; it is one episode until it is quiet.")
    if facts.stake >= 1 and facts.ended_at is None:
        lines.append(f"At stake today: about {round(facts.stake)} visits that are not counted")
    if facts.owner:
        lines.append(f"Seen to by: {facts.owner}")
    if facts.ended_at is None:
        lines += ["", f"Probably: {meaning.cause}", f"Try first: {meaning.remedy}"]
    if len(facts.names) > 1:
        lines += ["", *(f"- {name}" for name in facts.names)]
        if facts.devices > len(facts.names):
            lines.append(f"- and {facts.devices - len(facts.names)} more")
    return "\n".join([*lines, "", f"{told.ref}, message {told.step}", ""])


def _where(facts: Facts) -> str:
    """Return what is wrong, with its site where that is something else."""
    return f"{facts.root} at {facts.site}" if facts.site not in ("", facts.root) else facts.root


def _instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M UTC")


async def listed(
    connection: asyncpg.Connection, *, dead: bool, before: int | None, limit: int
) -> list[asyncpg.Record]:
    """Return the connection's organisation's mail, the latest first; `dead`: what was given up."""
    rows: list[asyncpg.Record] = await connection.fetch(_LISTED, dead, before, limit)
    return rows


async def resend(
    connection: asyncpg.Connection,
    organisation: int | None,
    contact: str,
    *,
    actor: str,
    now: datetime,
) -> int:
    """Let mail to a contact that was given up be tried again; return how much that is.

    It is tried as if it were new, under the Message-ID it had. What was over before the contact's
    hours was never tried, and is not. Raises NotFoundError.
    """
    found = await contacts.listed(connection, organisation, ref=contact)
    if not found:
        raise NotFoundError("there is nothing of this name")
    rows = await connection.fetch(_AGAIN, found[0].id, now)
    if rows:
        await record(
            connection,
            actor=actor,
            act="mail sent again",
            subject=contact,
            organisation=organisation,
            now=now,
            detail={"messages": len(rows)},
        )
    return len(rows)


def message_of(
    *, dedupe: str, subject: str, body: str, sender: str, to: str, pages: str, now: datetime
) -> EmailMessage:
    """Return a message of the outbox; sent again it bears the same Message-ID."""
    found = EmailMessage()
    found["Subject"] = " ".join(subject.split()).replace("=?", "= ?")  # what mail would decode
    found["From"] = sender
    found["To"] = to
    found["Date"] = format_datetime(now)
    found["Message-ID"] = f"<{dedupe}@{urlsplit(pages).hostname}>"
    found["Auto-Submitted"] = "auto-generated"
    found["Content-Language"] = "en"
    found.set_content(body)
    return found


_FACTS = f"""
    select i.condition, s.name as site, i.since, i.stake, i.owner,
        {ROOT} as root,
        not exists (select from episodes e where e.incident_id = i.id and e.resolved_at is null)
            as over,
        (select greatest(count(distinct (e.device_id, e.spot_id))
                filter (where e.subject in ('device', 'spot')),
            max((e.evidence ->> 'gone')::float8) filter (where e.subject = 'site'))
         from episodes e where e.incident_id = i.id)::int as devices,
        (select coalesce(max(e.times), 1) from episodes e where e.incident_id = i.id) as times
    from incidents i left join sites s on s.id = i.site_id
    left join devices d on d.id = i.device_id left join spots p on p.id = i.spot_id
    where i.id = $1
"""  # noqa: S608 - a text of ours
_NAMES = """
    select distinct coalesce(d.device, '') || coalesce(' (' || p.name || ')', '') as name
    from episodes e left join devices d on d.id = e.device_id
    left join spots p on p.id = e.spot_id
    where e.incident_id = $1 and e.subject in ('device', 'spot') order by 1 limit $2
"""
_QUEUED = """
    insert into notices (organisation_id, incident_id, contact_id, dedupe, subject, body,
        queued_at, next_at)
    values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict (dedupe) do nothing
"""
_DROPPED = """
    update notices set next_at = null, dead_at = $2, trouble = 'over before the contact''s hours'
    where incident_id = $1 and sent_at is null and dead_at is null and tries = 0 and next_at > $2
    returning contact_id
"""
_LISTED = """
    select n.id, i.ref as incident, c.ref as contact, n.subject,
        case when n.sent_at is not null then 'sent' when n.dead_at is not null then 'dead'
            else 'waiting' end as state,
        n.tries, n.trouble, n.queued_at, n.next_at, n.sent_at
    from notices n join health_contacts c on c.id = n.contact_id
    left join incidents i on i.id = n.incident_id
    where n.organisation_id = current_organisation() and (not $1 or n.dead_at is not null)
      and ($2::bigint is null or n.id < $2)
    order by n.id desc limit $3
"""
_AGAIN = """
    update notices set next_at = $2, queued_at = $2, dead_at = null, tries = 0
    where contact_id = $1 and dead_at is not null and tries > 0 returning id
"""
_HEARD = """
    select distinct contact_id from notices
    where incident_id = $1 and (sent_at is not null or next_at is not null)
"""
