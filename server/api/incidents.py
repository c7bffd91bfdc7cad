"""The routes of /v1 about incidents: what is wrong, why nobody was told, what people do."""

from datetime import datetime
from typing import Annotated

import asyncpg
import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.pages import following, page_of
from server.api.parameters import AsFormat, Listing, Nothing, Sites
from server.api.reads import Call, Route
from server.api.types import Page
from server.errors import NotFoundError
from server.health import acts, decisions, ranking
from server.health.judgement import Severity
from server.rollup.places import UnknownPlaceError, load_sites

WRITE = "health:write"
Instant = Annotated[datetime, msgspec.Meta(tz=True)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=1_000, description="The most rows.")]


class IncidentListing(Listing, frozen=True, forbid_unknown_fields=True):
    """Incidents, the latest first."""

    site: Sites = ()
    open: Annotated[bool, msgspec.Meta(description="Those that are open alone.")] = False


class Ranking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Open incidents, what matters most first."""

    site: Sites = ()
    limit: Limit = 100
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
        **following(asked),
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
        [_episode(row) for row in rows],
        [CommentRow(each.id, each.at, each.author, each.words) for each in said],
    )


def _episode(row: asyncpg.Record) -> EpisodeRow:
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


_EPISODES = """
    select e.condition, e.subject, d.device, p.ref as spot, e.since, e.opened_at, e.resolved_at,
        e.times, e.held, e.suppressed, e.suppressed_by, e.acknowledged_by, e.acknowledged_until,
        e.evidence::text as evidence, e.affected_from, e.affected_until
    from episodes e left join devices d on d.id = e.device_id left join spots p on p.id = e.spot_id
    where e.incident_id = $1 order by e.resolved_at nulls first, e.id limit 1000
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
)
