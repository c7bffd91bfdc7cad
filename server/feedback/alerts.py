"""Alerts of dissatisfaction: raised while a shop is open, taken by somebody, done with an outcome.

A kiosk is watched while it is fresh: what it sends is at most `LATE` old, and it was looked at as
often, without a break. The watch goes over its answers since the shop opened, or since it became
fresh, or since its last alert was done; it raises one if the alarm (server.feedback.alarm) went off
within the last `LATE`. So what comes late, of hours ago, raises nothing; what is missing neither
raises nor ends anything, and no alert ends but by a person's word. A closed shop raises none.

A kiosk has one open alert of a cause at a time (a unique index says so). Each is looked at in a
transaction of its own, under a lock of its own, that writes nothing but an alert, and that last:
the feed of changes stops before the oldest transaction that writes (`server.db.changes`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import asyncpg
import structlog

from server.audit.log import record
from server.clock import Clock, at
from server.db.engine import transaction
from server.db.turns import repeat
from server.errors import ConflictError, NotFoundError
from server.feedback.alarm import (
    FALSE_ALARMS_PER_WEEK,
    Alarm,
    Answer,
    Baseline,
    Tally,
    alarms,
    bad_answers,
    baseline_of,
    threshold_of,
)
from server.feedback.answers import Question
from server.feedback.indices import Kind
from server.feedback.misuse import VERSION, like_clockwork
from server.feedback.query import kinds_of
from server.feedback.responses import Judged, judged
from server.fleet import checks
from server.fleet.checks import FieldError
from server.fleet.register import new_ref
from server.rollup.buckets import day_start, local
from server.rollup.places import Spot, load_spots

log = structlog.get_logger(__name__)

CAUSE = "dissatisfaction"
LATE = timedelta(minutes=15)
EVERY_S = 30.0
BASELINE = timedelta(weeks=8)
_LOCK = 0x616C_6D73  # "alms"
_MOST_OUTCOME = 1_000


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert with its evidence; open until `done_at`, `taken_at` once somebody has it."""

    ref: str
    site: str
    site_id: int
    region_id: int | None
    site_name: str
    spot: str
    spot_name: str
    cause: str
    questionnaire: int
    question: int
    raised_at: datetime
    since: datetime
    n: int
    bad: int
    expected: float
    p: float
    false_alarms_per_week: float
    filter_version: int
    assignee: str
    taken_at: datetime | None
    outcome: str
    done_at: datetime | None

    @property
    def minutes_to_take(self) -> float | None:
        return None if self.taken_at is None else _minutes(self.taken_at - self.raised_at)

    @property
    def minutes_to_act(self) -> float | None:
        """From the alert to its end."""
        return None if self.done_at is None else _minutes(self.done_at - self.raised_at)


def _minutes(span: timedelta) -> float:
    return round(span.total_seconds() / 60, 1)


# -- what people do ------------------------------------------------------------------------------


async def listed(
    connection: asyncpg.Connection,
    organisation: int,
    *,
    sites: Sequence[str] = (),
    open_only: bool = False,
    before: str | None = None,
    limit: int = 1_000,
) -> list[Alert]:
    """Return alerts, the latest first; `before` is the ref that the page before ended with."""
    rows = await connection.fetch(
        _ALERTS  # noqa: S608 - texts of ours
        + " and ($2::text[] is null or s.ref = any($2)) and (not $3 or a.done_at is null) "
        "and ($4::text is null or a.id < (select id from opinion_alerts where ref = $4)) "
        "order by a.id desc limit $5",
        *(organisation, list(sites) or None, open_only, before, limit),
    )
    return [Alert(*row.values()) for row in rows]


async def find(
    connection: asyncpg.Connection, organisation: int, ref: str, *, lock: bool = False
) -> Alert:
    """Return an alert. Raises NotFoundError."""
    row = await connection.fetchrow(
        f"{_ALERTS} and a.ref = $2 {'for no key update of a' if lock else ''}", organisation, ref
    )
    if row is None:
        raise NotFoundError("no such alert")
    return Alert(*row.values())


async def _open(connection: asyncpg.Connection, organisation: int, ref: str) -> Alert:
    found = await find(connection, organisation, ref, lock=True)
    if found.done_at is not None:
        raise ConflictError("this alert is done")
    return found


async def take(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    assignee: str,
    actor: str,
    now: datetime,
) -> Alert:
    """Make it somebody's; taken again, it is the other's. Raises ConflictError once it is done."""
    assignee = checks.name(assignee, "assignee")
    await _open(connection, organisation, ref)
    await connection.execute(
        "update opinion_alerts set assignee = $3, acknowledged_at = coalesce(acknowledged_at, $4) "
        "where organisation_id = $1 and ref = $2",
        *(organisation, ref, assignee, now),
    )
    await record(
        connection,
        actor=actor,
        act="alert taken",
        subject=ref,
        detail={"assignee": assignee},
        organisation=organisation,
        now=now,
    )
    return await find(connection, organisation, ref)


async def finish(
    connection: asyncpg.Connection,
    organisation: int,
    ref: str,
    *,
    outcome: str,
    actor: str,
    now: datetime,
) -> Alert:
    """End it with what came of it. Raises ConflictError unless somebody has it, and it is open."""
    outcome = " ".join(outcome.split())
    if not 0 < len(outcome) <= _MOST_OUTCOME or not outcome.isprintable():
        raise FieldError("outcome", f"expected 1 to {_MOST_OUTCOME} characters")
    before = await _open(connection, organisation, ref)
    if before.taken_at is None:
        raise ConflictError("nobody has taken this alert yet")
    await connection.execute(
        "update opinion_alerts set outcome = $3, done_at = $4 "
        "where organisation_id = $1 and ref = $2",
        *(organisation, ref, outcome, now),
    )
    await record(
        connection,
        actor=actor,
        act="alert done",
        subject=ref,
        detail={"outcome": outcome},
        organisation=organisation,
        now=now,
    )
    return await find(connection, organisation, ref)


async def false_alarms_of(connection: asyncpg.Connection, organisation: int) -> float:
    """Return how many false alarms a week one kiosk of an organisation may raise."""
    found: float | None = await connection.fetchval(
        "select false_alarms_per_week from alarm_settings where organisation_id = $1", organisation
    )
    return FALSE_ALARMS_PER_WEEK if found is None else found


async def allow_false_alarms(
    connection: asyncpg.Connection, organisation: int, rate: float, *, actor: str, now: datetime
) -> float:
    """Set how many false alarms a week one kiosk may raise. Raises FieldError."""
    if not 0.01 <= rate <= 20:
        raise FieldError("false_alarms_per_week", f"expected 0.01 to 20, got {rate}")
    await connection.execute(
        "insert into alarm_settings values ($1, $2) on conflict (organisation_id) "
        "do update set false_alarms_per_week = excluded.false_alarms_per_week",
        *(organisation, rate),
    )
    await record(
        connection,
        actor=actor,
        act="alarms changed",
        subject="alarm settings",
        detail={"false_alarms_per_week": rate},
        organisation=organisation,
        now=now,
    )
    return rate


_ALERTS = """
    select a.ref, s.ref, a.site_id, s.region_id, s.name, p.ref, p.name, a.cause, a.questionnaire,
           a.question::int, a.raised_at, a.since, a.n, a.bad, a.expected, a.p,
           a.false_alarms_per_week, a.filter_version::int, a.assignee, a.acknowledged_at,
           a.outcome, a.done_at
    from opinion_alerts a join sites s on s.id = a.site_id join spots p on p.id = a.spot_id
    where a.organisation_id = $1
"""


# -- the watch -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Learnt:
    """A kiosk's baseline and threshold on one local day."""

    day: date
    rate: float
    baseline: Baseline
    threshold: float


@dataclass(slots=True)
class Watch:
    """The worker that looks at kiosks; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock
    _learnt: dict[tuple[int, Question], _Learnt | tuple[date, float]] = field(default_factory=dict)

    async def run(self) -> None:
        """Look for ever; a database that is away is tried again."""
        await repeat(self.look, rest_s=EVERY_S, away="not looking for alerts")

    async def look(self) -> list[str]:
        """Look at every kiosk once; return the alerts raised."""
        now = at(self.clock.now_ms())
        spots: list[Spot] = []
        kinds: Mapping[Question, Kind] = {}
        async with transaction(self.pool, "choose kiosks") as connection:
            fresh = dict(await connection.fetch(_FRESH, now, now - LATE))
            heard = [spot for spot, since in fresh.items() if since is not None]
            pressed = await connection.fetch(_PRESSED, heard, now - LATE)
            if pressed:
                kinds = await kinds_of(connection)
                spots = await load_spots(connection, ids=[row[0] for row in pressed])
        found = []
        for spot in spots:
            opened = _opened(spot, now)
            if opened is None:
                continue
            since = max(opened, fresh[spot.id])
            async with transaction(self.pool, "watch a kiosk") as connection:
                await connection.execute("select pg_advisory_xact_lock($1, $2)", _LOCK, spot.id)
                is_open, done = await connection.fetchrow(_BEFORE, spot.id, CAUSE)
                if is_open:
                    continue
                since = max(since, done or since)
                ref = await self._look_at(connection, spot, kinds, since=since, now=now)
            if ref is not None:
                found.append(ref)
        async with transaction(self.pool, "mark kiosks") as connection:
            await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(_LOOKED, list(fresh), list(fresh.values()), now)
        return found

    async def _look_at(
        self,
        connection: asyncpg.Connection,
        spot: Spot,
        kinds: Mapping[Question, Kind],
        *,
        since: datetime,
        now: datetime,
    ) -> str | None:
        kept = [
            each
            for each in await judged(connection, spot, since, now + timedelta(milliseconds=1))
            if each.reason is None and each.press.question == 0
        ]
        for number in sorted({each.press.questionnaire for each in kept}):
            question = Question(number, 0)
            bad = bad_answers(kinds.get(question))
            learnt = await self._learn(connection, spot, question, bad, now=now) if bad else None
            if learnt is None:
                continue
            asked = [each for each in kept if each.press.questionnaire == number]
            alarm = await asyncio.to_thread(_alarm, spot, asked, bad, learnt)
            if alarm is not None and alarm.at_ms >= (now - LATE).timestamp() * 1000:
                return await _raise(connection, spot, question, alarm, rate=learnt.rate, now=now)
        return None

    async def _learn(
        self,
        connection: asyncpg.Connection,
        spot: Spot,
        question: Question,
        bad: frozenset[int],
        *,
        now: datetime,
    ) -> _Learnt | None:
        """Return what is usual at a kiosk, learnt once a day; None where that is not known."""
        zone = spot.site.time_zone
        today = local(zone, int(now.timestamp())).date()
        rate = await connection.fetchval(_RATE, spot.id, FALSE_ALARMS_PER_WEEK)
        known = self._learnt.get((spot.id, question))
        if isinstance(known, _Learnt) and (known.day, known.rate) == (today, rate):
            return known
        if known == (today, rate):
            return None
        end = datetime.fromtimestamp(day_start(zone, today), UTC)
        rows = await connection.fetch(
            _TALLIES, spot.id, end - BASELINE, end, zone, question.questionnaire, sorted(bad)
        )
        first = min((row["first"] for row in rows), default=end)
        weeks = max(1.0, (end - first) / timedelta(weeks=1))
        baseline = baseline_of(
            {row["hour"]: Tally(row["n"], row["bad"]) for row in rows}, weeks=weeks
        )
        if baseline is None:
            self._learnt[spot.id, question] = (today, rate)
            return None
        threshold = await asyncio.to_thread(threshold_of, baseline, rate)
        learnt = self._learnt[spot.id, question] = _Learnt(today, rate, baseline, threshold)
        return learnt


def _opened(spot: Spot, now: datetime) -> datetime | None:
    """Return when the shop opened that is open now; at most a day before, None while closed."""
    now_s = int(now.timestamp())
    for low, high in spot.site.calendar.open_between(now_s - 86_400, now_s + 1):
        if low <= now_s < high:
            return datetime.fromtimestamp(low, UTC)
    return None


def _alarm(
    spot: Spot, kept: Sequence[Judged], bad: frozenset[int], learnt: _Learnt
) -> Alarm | None:
    """Return the last alarm that answers raise; none of what looks like a stuck button."""
    zone = spot.site.time_zone
    answers = []
    for each in kept:
        begins = local(zone, each.press.at_ms // 1000)
        hour = begins.weekday() * 24 + begins.hour
        answers.append(Answer(each.press.at_ms, hour, each.press.answer in bad))
    found = alarms(answers, learnt.baseline, learnt.threshold)
    if not found:
        return None
    last = found[-1]
    run = [answer for answer in answers if last.since_ms <= answer.at_ms <= last.at_ms]
    if like_clockwork([answer.at_ms for answer in run if answer.bad]):
        return None
    return last


async def _raise(
    connection: asyncpg.Connection,
    spot: Spot,
    question: Question,
    alarm: Alarm,
    *,
    rate: float,
    now: datetime,
) -> str | None:
    """Write an alert down, unless one of its kiosk and cause is open."""
    row = await connection.fetchrow(
        _RAISE,
        *(new_ref("alert"), spot.site.id, spot.id, CAUSE, question.questionnaire),
        *(question.question, now, datetime.fromtimestamp(alarm.since_ms / 1000, UTC), alarm.n),
        *(alarm.bad, alarm.expected, alarm.p, rate, VERSION),
    )
    if row is None:
        return None
    ref: str = row["ref"]
    log.info("alert raised", alert=ref, spot=spot.ref, n=alarm.n, bad=alarm.bad, p=alarm.p)
    await record(
        connection,
        actor="server",
        act="alert raised",
        subject=ref,
        detail={"spot": spot.ref, "n": alarm.n, "bad": alarm.bad},
        organisation=row["organisation_id"],
        now=now,
    )
    return ref


_FRESH = """
    with heard as (
        select a.spot_id, max(b.stored_to) as at
        from spots s join assignments a on a.spot_id = s.id and a.valid @> $1::timestamptz
        join boots b on b.device_id = a.device_id
        where s.kind = 'kiosk' group by 1)
    select h.spot_id, case when h.at < $2 then null when w.looked_at >= $2
                           then coalesce(w.fresh_from, h.at) else h.at end
    from heard h left join alarm_watch w on w.spot_id = h.spot_id
"""
_LOOKED = """
    insert into alarm_watch as w (spot_id, fresh_from, looked_at)
    select spot, since, $3 from unnest($1::int[], $2::timestamptz[]) as looked(spot, since)
    on conflict (spot_id) do update
        set looked_at = excluded.looked_at, fresh_from = excluded.fresh_from
"""
_PRESSED = "select distinct spot from presses where spot = any($1::int[]) and time >= $2"
_BEFORE = """
    select coalesce(bool_or(done_at is null), false), max(done_at) from opinion_alerts
    where spot_id = $1 and cause = $2
"""
_RATE = """
    select coalesce((select c.false_alarms_per_week from alarm_settings c
                     where c.organisation_id = s.organisation_id), $2::float8)
    from spots s where s.id = $1
"""
_TALLIES = """
    select ((extract(isodow from bucket at time zone $4)::int - 1) * 24
            + extract(hour from bucket at time zone $4)::int) as hour,
           sum(kept)::int as n, coalesce(sum(kept) filter (where answer = any($6::int[])), 0)::int
           as bad, min(bucket) as first
    from responses_15m
    where spot = $1 and bucket >= $2 and bucket < $3 and questionnaire = $5 and question = 0
      and kept > 0
    group by 1
"""
_RAISE = """
    insert into opinion_alerts (organisation_id, ref, site_id, spot_id, cause, questionnaire,
        question, raised_at, since, n, bad, expected, p, false_alarms_per_week, filter_version)
    select s.organisation_id, $1, s.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14
    from sites s where s.id = $2
    on conflict (spot_id, cause) where done_at is null do nothing
    returning ref, organisation_id
"""
