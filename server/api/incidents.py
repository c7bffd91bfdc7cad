"""The routes of /v1 about incidents: what is wrong, who is told and why nobody was, rules."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.pages import after, page_of
from server.api.parameters import AsFormat, Listing, Nothing, Sites, read_cursor, write_cursor
from server.api.reads import Call, Route
from server.api.types import Page
from server.errors import NotFoundError
from server.health import acts, contacts, decisions, ranking, rulebook, windows
from server.health.contacts import EVERY_DAY, Contact
from server.health.judgement import Condition, Severity
from server.health.rules import DEFAULTS, Channel, Rule, RuleChange, Rules, channels_of, rule_of
from server.health.windows import Kind, Wanted
from server.rollup.places import UnknownPlaceError, load_sites

WRITE = "health:write"
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
_Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000, description="The most rows.")]
_Cursor = Annotated[str | None, msgspec.Meta(description="`next` of the page before.")]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class IncidentListing(Listing, frozen=True, forbid_unknown_fields=True):
    """Incidents, the latest first."""

    site: Sites = ()
    open: Annotated[bool, msgspec.Meta(description="Those that are open alone.")] = False


class Ranking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Open incidents, what matters most first."""

    site: Sites = ()
    limit: _Limit = 100
    format: AsFormat = None


class IncidentRow(msgspec.Struct, frozen=True):
    """What is wrong, why it usually is so, what to try first, and what it costs.

    `root` is what is wrong, by its name; `stake` the visits that will not be counted today: open
    minutes that are left, times the usual visits of their hour. `decided` is the reason why it was
    told last, or is not told now.
    """

    incident: str
    state: str
    condition: str
    severity: Severity
    subject: str
    root: str
    site: str | None
    device: str | None
    spot: str | None
    since: datetime
    opened_at: datetime
    ended_at: datetime | None
    stake: float
    episodes: int
    devices: int
    held: bool
    acknowledged: bool
    owner: str
    due_at: datetime | None
    told_at: datetime | None
    decided: str
    title: str
    cause: str
    remedy: str


class StakeHour(msgspec.Struct, frozen=True):
    """An hour that is left today: its open minutes, and whom its counters usually count in it."""

    from_s: int
    open_minutes_left: float
    usual_visits: float


class StakeOf(msgspec.Struct, frozen=True):
    """What a stake is made of; no hours: nothing is known to be usual."""

    open_minutes_left: float = 0.0
    counters: int = 0
    hours: list[StakeHour] = []


class EpisodeRow(msgspec.Struct, frozen=True):
    """One condition of one subject; `suppressed`: why it tells nobody by itself."""

    condition: str
    subject: str
    device: str | None
    spot: str | None
    since: datetime
    opened_at: datetime
    resolved_at: datetime | None
    times: int
    held: bool
    suppressed: str
    suppressed_by: str
    acknowledged_by: str
    acknowledged_until: datetime | None
    evidence: dict[str, float | str]
    affected_from: datetime | None
    affected_until: datetime | None


class CommentRow(msgspec.Struct, frozen=True):
    """What somebody said of it."""

    comment: int
    at: datetime
    author: str
    words: str


class IncidentDetail(msgspec.Struct, frozen=True):
    """An incident with what belongs to it."""

    incident: IncidentRow
    merged_into: str | None
    stake_of: StakeOf
    episodes: list[EpisodeRow]
    comments: list[CommentRow]


class DecisionRow(msgspec.Struct, frozen=True):
    """What was decided: told, held (and until when), merged, ended; `words` say why."""

    at: datetime
    decision: str
    why: str
    words: str
    about: str
    until: datetime | None


class Acknowledged(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See to what is open now, until it resolves, or `until`."""

    until: Instant | None = None


class Owner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who sees to it; empty: nobody."""

    owner: Annotated[str, msgspec.Meta(max_length=100)]


class Due(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """By when it is to be over; null: by no time."""

    due_at: Instant | None


class NewComment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something to say of it."""

    words: Annotated[str, msgspec.Meta(min_length=1, max_length=acts.MOST_WORDS)]


class NewWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Silence from `starts_at` (now) to `ends_at`, at most 30 days from now.

    Of a region, a site or a device; of none of these: of everything of the organisation.
    """

    kind: Kind
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    ends_at: Instant
    starts_at: Instant | None = None
    region: str | None = None
    site: str | None = None
    device: str | None = None

    def wanted(self) -> Wanted:
        return Wanted(
            *(self.kind, self.reason, self.starts_at, self.ends_at),
            *(self.region, self.site, self.device),
        )


class WindowRow(msgspec.Struct, frozen=True):
    """A window of silence, who began it and why."""

    window: str
    kind: Kind
    reason: str
    author: str
    region: str | None
    site: str | None
    device: str | None
    starts_at: datetime
    ends_at: datetime
    ended_at: datetime | None
    ended_by: str


class WindowListing(Listing, frozen=True, forbid_unknown_fields=True):
    """Windows that silence or will; with `past` those that are over, too."""

    past: bool = False


class Silenced(msgspec.Struct, frozen=True):
    """What a window would silence: sites and devices, and what of theirs is open now."""

    sites: int
    devices: int
    episodes: int
    incidents: int


class NewContact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who is told of what is as bad as `severity`, or worse; weekday 0 is Monday.

    From `since` to `until` by the wall clock of `time_zone`; both empty: always.
    """

    name: _Name
    email: Annotated[str, msgspec.Meta(min_length=3, max_length=254)]
    severity: Severity = Severity.MAJOR
    time_zone: str = "UTC"
    weekdays: tuple[Annotated[int, msgspec.Meta(ge=0, le=6)], ...] = EVERY_DAY
    since: str = ""
    until: str = ""
    digest: bool = False


class ContactRow(msgspec.Struct, frozen=True):
    """Somebody who is told by mail."""

    contact: str
    name: str
    email: str
    severity: Severity
    time_zone: str
    weekdays: tuple[int, ...]
    since: str
    until: str
    digest: bool


class RuleRow(msgspec.Struct, frozen=True):
    """How a condition is dealt with, in seconds; `changed` fields are not the default."""

    condition: str
    rule: Rule
    changed: list[str]


class RulesAnswer(msgspec.Struct, frozen=True):
    """The rules that hold: their version, 0 for the defaults alone."""

    version: int
    made_at: datetime | None
    made_by: str
    channels: dict[Severity, list[Channel]]
    data: list[RuleRow]


class RulesWrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is to differ from the defaults; `seen`: the version that this was made from."""

    conditions: dict[Condition, RuleChange] = {}
    channels: dict[Severity, list[Channel]] = {}
    seen: int | None = None


class NoticeListing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mail about incidents, latest first; `dead`: what was given up alone."""

    dead: bool = False
    limit: _Limit = 100
    cursor: _Cursor = None


class NoticeRow(msgspec.Struct, frozen=True):
    """A message: what became of it, and what went wrong last."""

    notice: int
    incident: str | None
    contact: str
    subject: str
    state: str
    tries: int
    trouble: str
    queued_at: datetime
    next_at: datetime | None
    sent_at: datetime | None


# -- reading ---------------------------------------------------------------------------------------


def _row(each: ranking.Incident) -> IncidentRow:
    return IncidentRow(
        *(each.ref, each.state, each.condition.value, each.severity, each.subject, each.root),
        *(each.site, each.device, each.spot, each.since, each.opened_at, each.ended_at),
        *(each.stake, each.episodes, each.devices, each.held, each.acknowledged, each.owner),
        *(each.due_at, each.told_at, each.decided, each.condition.meaning.title),
        *(each.cause, each.remedy),
    )


async def _incidents(call: Call, asked: IncidentListing) -> Page[IncidentRow]:
    await _demand_sites(call, asked.site)
    found = await ranking.listed(
        call.connection,
        await call.organisation(),
        sites=asked.site,
        open_only=asked.open,
        before=after(asked) or None,
        limit=asked.limit + 1,
    )
    return page_of(asked, [_row(each) for each in found], lambda row: row.incident)


async def _ranked(call: Call, asked: Ranking) -> Page[IncidentRow]:
    await _demand_sites(call, asked.site)
    found = await ranking.ranked(
        call.connection,
        await call.organisation(),
        sites=asked.site,
        now=call.now,
        limit=asked.limit,
    )
    return Page([_row(each) for each in found])


async def _demand_sites(call: Call, refs: tuple[str, ...]) -> None:
    """Raise UnknownPlaceError for a site that is none of theirs."""
    if any("\0" in ref for ref in refs):
        raise UnknownPlaceError("site", "")
    if refs:
        await load_sites(call.connection, refs)


async def _known(call: Call) -> ranking.Incident:
    ref = call.path["ref"]
    found = None
    if "\0" not in ref:
        found = await ranking.find(call.connection, await call.organisation(), ref)
    if found is None:
        raise NotFoundError("there is nothing of this name")
    return found


async def _incident(call: Call, asked: Nothing) -> IncidentDetail:
    known = await _known(call)
    rows = await call.connection.fetch(_EPISODES, known.id)
    said = await acts.comments(call.connection, known.id)
    return IncidentDetail(
        _row(known),
        known.merged_into,
        msgspec.convert(known.stake_of, StakeOf),
        [_episode(dict(row)) for row in rows],
        [CommentRow(each.id, each.at, each.author, each.words) for each in said],
    )


def _episode(row: Mapping[str, Any]) -> EpisodeRow:
    return EpisodeRow(**{**row, "evidence": msgspec.json.decode(row["evidence"])})


async def _why(call: Call, asked: Nothing) -> Page[DecisionRow]:
    known = await _known(call)
    return Page(
        [
            DecisionRow(
                *(each.at, each.decision, each.why, decisions.WORDS[each.why]),
                *(each.about, each.until),
            )
            for each in await decisions.of_incident(call.connection, known.id)
        ]
    )


async def _windows(call: Call, asked: WindowListing) -> Page[WindowRow]:
    found = await windows.listed(
        call.connection,
        await call.organisation(),
        now=call.now,
        past=asked.past,
        before=after(asked) or None,
        limit=asked.limit + 1,
    )
    return page_of(asked, [_window_row(each) for each in found], lambda row: row.window)


def _window_row(each: windows.Window) -> WindowRow:
    return WindowRow(
        *(each.ref, each.kind, each.reason, each.author, each.region, each.site, each.device),
        *(each.starts_at, each.ends_at, each.ended_at, each.ended_by),
    )


async def _preview(call: Call, asked: NewWindow) -> Silenced:
    found = await windows.preview(
        call.connection, await call.organisation(), asked.wanted(), now=call.now
    )
    return Silenced(found.sites, found.devices, found.episodes, found.incidents)


async def _contacts(call: Call, asked: Nothing) -> Page[ContactRow]:
    found = await contacts.listed(call.connection, await call.organisation())
    return Page([_contact_row(each) for each in found])


def _contact_row(each: contacts.Known) -> ContactRow:
    known = each.contact
    return ContactRow(
        *(each.ref, known.name, known.email, known.severity, known.time_zone, known.weekdays),
        *(known.since, known.until, known.digest),
    )


async def _rules(call: Call, asked: Nothing) -> RulesAnswer:
    return _rules_answer(await rulebook.current(call.connection, await call.organisation()))


def _rules_answer(known: rulebook.Version) -> RulesAnswer:
    rows = []
    for condition, default in DEFAULTS.items():
        rule = rule_of(known.rules, condition)
        differs = [
            name for name in rule.__struct_fields__ if getattr(rule, name) != getattr(default, name)
        ]
        rows.append(RuleRow(condition.value, rule, differs))
    channels = {each: list(channels_of(known.rules, each)) for each in Severity}
    return RulesAnswer(known.number, known.made_at, known.made_by, channels, rows)


async def _notices(call: Call, asked: NoticeListing) -> Page[NoticeRow]:
    before = None if asked.cursor is None else int(read_cursor(asked)[1])
    rows = await call.connection.fetch(_NOTICES, asked.dead, before, asked.limit + 1)
    more, rows = len(rows) > asked.limit, rows[: asked.limit]
    return Page(
        [NoticeRow(*row.values()) for row in rows],
        write_cursor(asked, ("", rows[-1]["id"])) if more else None,
    )


# -- acting ----------------------------------------------------------------------------------------


async def _shown(act: Act) -> IncidentRow:
    found = await ranking.find(act.connection, act.organisation, act.ref)
    assert found is not None
    return _row(found)


async def _acknowledge(act: Act, body: Acknowledged) -> IncidentRow:
    await acts.acknowledge(act.connection, act.organisation, act.ref, until=body.until, **act.by)
    return await _shown(act)


async def _withdraw(act: Act) -> IncidentRow:
    await acts.withdraw(act.connection, act.organisation, act.ref, **act.by)
    return await _shown(act)


async def _assign(act: Act, body: Owner) -> IncidentRow:
    await acts.assign(act.connection, act.organisation, act.ref, body.owner, **act.by)
    return await _shown(act)


async def _set_due(act: Act, body: Due) -> IncidentRow:
    await acts.set_due(act.connection, act.organisation, act.ref, body.due_at, **act.by)
    return await _shown(act)


async def _comment(act: Act, body: NewComment) -> CommentRow:
    made = await acts.comment(act.connection, act.organisation, act.ref, body.words, **act.by)
    return CommentRow(made.id, made.at, made.author, made.words)


async def _add_window(act: Act, body: NewWindow) -> WindowRow:
    made = await windows.add(act.connection, act.organisation, body.wanted(), **act.by)
    return _window_row(made)


async def _end_window(act: Act) -> WindowRow:
    return _window_row(await windows.end(act.connection, act.organisation, act.ref, **act.by))


async def _add_contact(act: Act, body: NewContact) -> ContactRow:
    wanted = Contact(**msgspec.structs.asdict(body))
    return _contact_row(await contacts.add(act.connection, act.organisation, wanted, **act.by))


async def _remove_contact(act: Act) -> ContactRow:
    return _contact_row(await contacts.remove(act.connection, act.organisation, act.ref, **act.by))


async def _change_rules(act: Act, body: RulesWrite) -> RulesAnswer:
    wanted = Rules(body.conditions, body.channels)
    made = await rulebook.change(act.connection, act.organisation, wanted, seen=body.seen, **act.by)
    return _rules_answer(made)


_EPISODES = """
    select e.condition, e.subject, d.device, p.ref as spot, e.since, e.opened_at, e.resolved_at,
        e.times, e.held, e.suppressed, e.suppressed_by, e.acknowledged_by, e.acknowledged_until,
        e.evidence::text as evidence, e.affected_from, e.affected_until
    from episodes e left join devices d on d.id = e.device_id left join spots p on p.id = e.spot_id
    where e.incident_id = $1 order by e.resolved_at nulls first, e.id limit 1000
"""
_NOTICES = """
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
_INCIDENT = "/incidents/{ref}"
ROUTES: tuple[Route, ...] = (
    Route(
        *("/incidents", "What is or was wrong", IncidentListing, Page[IncidentRow], IncidentRow),
        _incidents,
    ),
    Route(
        *("/incidents:ranked", "What to do first", Ranking, Page[IncidentRow], IncidentRow),
        _ranked,
    ),
    Route(_INCIDENT, "One incident", Nothing, IncidentDetail, None, _incident),
    Route(
        *(f"{_INCIDENT}/why", "Why somebody was told, or nobody", Nothing, Page[DecisionRow]),
        *(DecisionRow, _why),
    ),
    Route(
        *("/health-windows", "Windows of silence", WindowListing, Page[WindowRow], WindowRow),
        _windows,
    ),
    Route(
        *("/health-windows:preview", "What a window would silence", Nothing, Silenced, None),
        _preview,
        method="POST",
        body=NewWindow,
    ),
    Route("/health-contacts", "Who is told by mail", Nothing, Page[ContactRow], None, _contacts),
    Route("/health-rules", "The rules that hold", Nothing, RulesAnswer, None, _rules),
    Route(
        *("/notices", "Mail about incidents", NoticeListing, Page[NoticeRow], NoticeRow, _notices)
    ),
)
ACTS: tuple[ActRoute, ...] = written(
    WRITE,
    ActRoute(
        *("PUT", f"{_INCIDENT}/acknowledgement", "See to an incident", IncidentRow),
        *(_acknowledge, Acknowledged),
    ),
    ActRoute(
        *("DELETE", f"{_INCIDENT}/acknowledgement", "See to it no longer", IncidentRow),
        _withdraw,
    ),
    ActRoute("PUT", f"{_INCIDENT}/owner", "Say who sees to it", IncidentRow, _assign, Owner),
    ActRoute("PUT", f"{_INCIDENT}/due", "Say by when", IncidentRow, _set_due, Due),
    ActRoute(*("POST", f"{_INCIDENT}/comments", "Comment on it", CommentRow, _comment, NewComment)),
    ActRoute(
        "POST", "/health-windows", "Begin a window of silence", WindowRow, _add_window, NewWindow
    ),
    ActRoute("DELETE", "/health-windows/{ref}", "End a window", WindowRow, _end_window),
    ActRoute("POST", "/health-contacts", "Add a contact", ContactRow, _add_contact, NewContact),
    ActRoute("DELETE", "/health-contacts/{ref}", "Forget a contact", ContactRow, _remove_contact),
    ActRoute("PUT", "/health-rules", "Change the rules", RulesAnswer, _change_rules, RulesWrite),
)
