"""What is done about what visitors say: actions at a touchpoint of a site, and what came of them.

An action is open, then done (carried out on a day), then closed. It is closed only with a
comparison of the index before and after, stored as it was found; closing is refused before the day
it was to be measured again, and where too little was answered for a comparison. Both periods are of
the same number of whole weeks, so that neither has more Saturdays, and meet on the day it was done.
Sites where another action was carried out meanwhile are no controls.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import asyncpg
import msgspec

from server.audit.log import record
from server.errors import ConflictError, NotFoundError, RefusedError
from server.feedback.answers import Question
from server.feedback.comparison import Comparison, Period, compared
from server.feedback.indices import SMALL, Kind
from server.feedback.misuse import VERSION
from server.feedback.query import kinds_of
from server.fleet import checks
from server.fleet.checks import FieldError, TakenError
from server.fleet.register import named_row, new_ref
from server.rollup.buckets import local

WEEK = timedelta(weeks=1)
MOST_WEEKS = 8
LANGUAGES = ("sv", "da", "en")
_MOST_TOLD = 500
_BLANK = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Touchpoint:
    """What visitors meet, by a name of the organisation's own."""

    ref: str
    name: str


@dataclass(frozen=True, slots=True)
class Plan:
    """An action as it is to be: where, by whom, by when, and when it is measured again."""

    site: str
    touchpoint: str
    title: str
    owner: str
    due_on: date
    remeasure_on: date
    alert: str | None = None


class Result(msgspec.Struct, frozen=True):
    """The comparison that an action was closed with. `question` is of the built-in one where 0.

    `net` is the change beyond what the control sites let expect; null with too few of them, and
    then it may have come about by itself (`guarded` false).
    """

    since: date
    done_on: date
    until: date
    questionnaire: str
    question: int
    kind: Kind
    filter_version: int
    n_before: int
    n_after: int
    before: float
    before_low: float | None
    before_high: float | None
    after: float
    after_low: float | None
    after_high: float | None
    change: float
    change_low: float
    change_high: float
    controls: list[str]
    expected: float | None
    net: float | None
    net_low: float | None
    net_high: float | None
    guarded: bool


@dataclass(frozen=True, slots=True)
class Action:
    """An action and how far it is. `told`: "you said, we did", by language."""

    ref: str
    site: str
    site_id: int
    region_id: int | None
    site_name: str
    time_zone: str
    touchpoint: str
    touchpoint_name: str
    alert: str | None
    title: str
    owner: str
    due_on: date
    remeasure_on: date
    done_on: date | None
    told: Mapping[str, str]
    published_at: datetime | None
    made_at: datetime
    closed_at: datetime | None
    result: Result | None

    @property
    def state(self) -> str:
        if self.closed_at is not None:
            return "closed"
        return "open" if self.done_on is None else "done"


# -- touchpoints ---------------------------------------------------------------------------------


async def touchpoints(connection: asyncpg.Connection, organisation: int) -> list[Touchpoint]:
    """Return an organisation's touchpoints, by name."""
    rows = await connection.fetch(
        "select ref, name from touchpoints where organisation_id = $1 order by name", organisation
    )
    return [Touchpoint(*row.values()) for row in rows]


async def add_touchpoint(
    connection: asyncpg.Connection, organisation: int, name: str, *, actor: str, now: datetime
) -> Touchpoint:
    """Add a touchpoint. Raises FieldError, TakenError."""
    name = checks.name(name)
    made = Touchpoint(new_ref("touchpoint"), name)
    row = await connection.fetchrow(
        "insert into touchpoints (organisation_id, ref, name) values ($1, $2, $3) "
        "on conflict (organisation_id, name) do nothing returning id",
        *(organisation, made.ref, name),
    )
    if row is None:
        raise TakenError(f"there is a touchpoint {name!r} already")
    await _note(connection, organisation, "touchpoint added", made.ref, {"name": name}, actor, now)
    return made


# -- actions -------------------------------------------------------------------------------------


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    sites: Sequence[str] = (),
    open_only: bool = False,
    before: str | None = None,
    limit: int = 1_000,
) -> list[Action]:
    """Return actions, the latest first; `before` is the ref that the page before ended with.

    `open_only`: those that were not carried out yet.
    """
    rows = await connection.fetch(
        _ACTIONS  # noqa: S608 - texts of ours
        + " and ($2::text[] is null or s.ref = any($2)) "
        "and ($3::text is null or a.id < (select id from actions where ref = $3)) "
        "and (not $5 or a.done_on is null and a.closed_at is null) order by a.id desc limit $4",
        *(organisation, list(sites) or None, before, limit, open_only),
    )
    return [_action(row) for row in rows]


async def find(
    connection: asyncpg.Connection, organisation: int, ref: str, *, lock: bool = False
) -> Action:
    """Return an action. Raises NotFoundError."""
    row = await connection.fetchrow(
        f"{_ACTIONS} and a.ref = $2 {'for no key update of a' if lock else ''}", organisation, ref
    )
    if row is None:
        raise NotFoundError("no such action")
    return _action(row)


async def plan(
    connection: asyncpg.Connection, organisation: int, wanted: Plan, *, actor: str, now: datetime
) -> Action:
    """Make an action. Raises FieldError."""
    title = checks.line(wanted.title, "title")
    if not title:
        raise FieldError("title", "say what is to be done")
    owner = checks.name(wanted.owner, "owner")
    due_on = checks.sensible(wanted.due_on, "due_on")
    if checks.sensible(wanted.remeasure_on, "remeasure_on") < due_on + WEEK:
        raise FieldError("remeasure_on", "measure again a week after it is due, or later")
    site = await named_row(connection, organisation, "sites", wanted.site, field="site")
    touchpoint = await named_row(
        connection, organisation, "touchpoints", wanted.touchpoint, field="touchpoint"
    )
    alert = None
    if wanted.alert is not None:
        alert = await connection.fetchval(
            "select id from opinion_alerts where organisation_id = $1 and ref = $2 "
            "and site_id = $3",
            *(organisation, wanted.alert, site),
        )
        if alert is None:
            raise FieldError("alert", f"no alert {wanted.alert[:40]!r} of this site")
    ref = new_ref("action")
    await connection.execute(
        "insert into actions (organisation_id, ref, site_id, touchpoint_id, alert_id, title, "
        "owner, due_on, remeasure_on, made_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        *(organisation, ref, site, touchpoint, alert, title, owner),
        *(wanted.due_on, wanted.remeasure_on, now),
    )
    detail = {"site": wanted.site, "title": title, "owner": owner, "due_on": str(wanted.due_on)}
    await _note(connection, organisation, "action planned", ref, detail, actor, now)
    return await find(connection, organisation, ref)


async def carry_out(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    done_on: date,
    *,
    actor: str,
    now: datetime,
) -> Action:
    """Say on which day it was done. Raises FieldError, ConflictError once it is closed."""
    before = await _open(connection, organisation, ref)
    if done_on > _today(before, now):
        raise FieldError("done_on", "this day is yet to come")
    if checks.sensible(done_on, "done_on") + WEEK > before.remeasure_on:
        raise FieldError("done_on", "it is to be measured again less than a week after this day")
    await connection.execute(
        "update actions set done_on = $3 where organisation_id = $1 and ref = $2",
        *(organisation, ref, done_on),
    )
    await _note(connection, organisation, "action done", ref, {"done_on": str(done_on)}, actor, now)
    return await find(connection, organisation, ref)


async def tell(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    told: Mapping[str, str],
    *,
    published: bool,
    actor: str,
    now: datetime,
) -> Action:
    """Set what visitors may be told, by language, and whether it may be published.

    Raises FieldError; ConflictError where it is to be published and was not done yet.
    """
    texts = {language: _BLANK.sub(" ", text).strip() for language, text in told.items()}
    texts = {language: text for language, text in texts.items() if text}
    for language, text in texts.items():
        if language not in LANGUAGES:
            raise FieldError("told", f"expected {', '.join(LANGUAGES)}; got {language[:20]!r}")
        if len(text) > _MOST_TOLD or not text.isprintable():
            raise FieldError("told", f"expected at most {_MOST_TOLD} characters")
    before = await find(connection, organisation, ref, lock=True)
    if published and not texts:
        raise FieldError("told", "there is nothing to publish")
    if published and before.done_on is None:
        raise ConflictError("say that it was done before saying so to visitors")
    await connection.execute(
        "update actions set told = $3, published_at = $4 where organisation_id = $1 and ref = $2",
        *(organisation, ref, msgspec.json.encode(texts).decode()),
        (before.published_at or now) if published else None,
    )
    detail = {"told": texts, "published": published}
    await _note(connection, organisation, "action told", ref, detail, actor, now)
    return await find(connection, organisation, ref)


async def close(
    connection: asyncpg.Connection, organisation: int, ref: str, *, actor: str, now: datetime
) -> Action:
    """Close it with its comparison. Raises RefusedError with the reason, ConflictError."""
    before = await _open(connection, organisation, ref)
    if before.done_on is None:
        raise ConflictError("it was not carried out yet")
    if _today(before, now) < before.remeasure_on:
        raise RefusedError(
            "too_early", f"it is to be measured again on {before.remeasure_on}, not before"
        )
    result = await compare(connection, organisation, before, before.done_on)
    await connection.execute(
        "update actions set comparison = $3, closed_at = $4 "
        "where organisation_id = $1 and ref = $2",
        *(organisation, ref, msgspec.json.encode(result).decode(), now),
    )
    detail = {"change": result.change, "net": result.net}
    await _note(connection, organisation, "action closed", ref, detail, actor, now)
    return await find(connection, organisation, ref)


async def compare(
    connection: asyncpg.Connection, organisation: int, action: Action, done_on: date
) -> Result:
    """Compare the site before and after. Raises RefusedError where there is too little."""
    weeks = min(MOST_WEEKS, (action.remeasure_on - done_on) // WEEK)
    since, until = done_on - weeks * WEEK, done_on + weeks * WEEK
    kinds = await kinds_of(connection)
    acted = await connection.fetch(
        "select distinct s.ref from actions a join sites s on s.id = a.site_id "
        "where a.organisation_id = $1 and a.done_on >= $2 and a.done_on < $3",
        *(organisation, since, until),
    )
    elsewhere = {row["ref"] for row in acted}
    by_question: dict[Question, dict[str, tuple[list[int], list[int]]]] = {}
    for site, after, questionnaire, question, answer, kept in await connection.fetch(
        _RESPONSES, organisation, since, done_on, until
    ):
        periods = by_question.setdefault(Question(questionnaire, question), {}).setdefault(
            site, ([], [])
        )
        counts = periods[after]
        counts += [0] * (answer + 1 - len(counts))
        counts[answer] += kept
    best: tuple[int, Question, Kind, Comparison] | None = None
    for asked, sites in sorted(by_question.items()):
        kind, own = kinds.get(asked), sites.get(action.site)
        if kind is None or own is None or asked.question != 0:
            continue
        others = {
            ref: Period(tuple(low), tuple(high))
            for ref, (low, high) in sites.items()
            if ref not in elsewhere and ref != action.site
        }
        found = compared(kind, Period(tuple(own[0]), tuple(own[1])), others)
        size = min(sum(own[0]), sum(own[1]))
        if found is not None and (best is None or size > best[0]):
            best = (size, asked, kind, found)
    if best is None:
        raise RefusedError(
            "too_little",
            f"a comparison needs {SMALL} valid answers to one question from {since} to {done_on}, "
            f"and as many from there to {until}",
        )
    _, asked, kind, found = best
    return _result(found, asked, kind, days=(since, done_on, until))


def _result(
    found: Comparison, asked: Question, kind: Kind, *, days: tuple[date, date, date]
) -> Result:
    return Result(
        *days,
        f"{asked.questionnaire & (1 << 64) - 1:016x}",
        asked.question,
        kind,
        VERSION,
        found.before.n,
        found.after.n,
        *(found.before.value, found.before.low, found.before.high),
        *(found.after.value, found.after.low, found.after.high),
        *(found.change, found.low, found.high),
        list(found.controls),
        *(found.expected, found.net, found.net_low, found.net_high),
        found.net is not None,
    )


async def _open(connection: asyncpg.Connection, organisation: int, ref: str) -> Action:
    found = await find(connection, organisation, ref, lock=True)
    if found.closed_at is not None:
        raise ConflictError("this action is closed")
    return found


def _today(action: Action, now: datetime) -> date:
    return local(action.time_zone, int(now.timestamp())).date()


async def _note(
    connection: asyncpg.Connection,
    organisation: int,
    act: str,
    subject: str,
    detail: Mapping[str, object],
    actor: str,
    now: datetime,
) -> None:
    await record(
        connection,
        actor=actor,
        act=act,
        subject=subject,
        detail=detail,
        organisation=organisation,
        now=now,
    )


def _action(row: asyncpg.Record) -> Action:
    *facts, told, published_at, made_at, closed_at, comparison = row.values()
    known: dict[str, str] = msgspec.json.decode(told, type=dict[str, str])
    result = None if comparison is None else msgspec.json.decode(comparison, type=Result)
    values = [*facts, known, published_at, made_at, closed_at, result]
    return Action(*values)


_ACTIONS = """
    select a.ref, s.ref, s.id, s.region_id, s.name, s.time_zone, t.ref, t.name, l.ref, a.title,
           a.owner, a.due_on, a.remeasure_on, a.done_on, a.told, a.published_at, a.made_at,
           a.closed_at, a.comparison
    from actions a join sites s on s.id = a.site_id join touchpoints t on t.id = a.touchpoint_id
    left join opinion_alerts l on l.id = a.alert_id
    where a.organisation_id = $1
"""
_RESPONSES = """
    select s.ref, (r.day >= $3)::int, r.questionnaire, r.question::int, r.answer::int,
           sum(r.kept)::int
    from my_responses_day r join sites s on s.id = r.site_id
    where s.organisation_id = $1 and r.day >= $2 and r.day < $4
    group by 1, 2, 3, 4, 5
"""
