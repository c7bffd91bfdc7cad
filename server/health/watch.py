"""The worker that judges presence: takes what is due, decides, writes when to look next.

Deadlines are rows: it reads those alone that the watermark has reached, however large the fleet.
Each is locked while it is judged, and who else writes it comes before or after, never between; a
row that somebody holds is left for the next turn. While nobody can tell (`platform`) nothing is
judged. Several may work at once.

Lateness is measured on every row: from when the watermark had reached its deadline, or ingest had
noted what was said, to when the state stands in its row.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import transaction
from server.db.turns import repeat
from server.health.platform import LOSS_WINDOW, Cause, Platform, Signs, turned
from server.health.presence import Facts, Presence, State, evidence, judged
from server.health.rows import COLUMNS, presence_of
from server.rollup.opening import Calendar
from server.rollup.places import load_sites

log = structlog.get_logger(__name__)

EVERY_S = 0.5
A_TURN = 500
COUNT_EVERY_S = 30.0
HEARTBEAT = "uptime.s"
"""The metric that makes a health frame a heartbeat."""
_LOOK_BACK = timedelta(days=8)
_AGAIN = timedelta(minutes=5)
_MARKS = 600


@dataclass(slots=True)
class Watch:
    """`run` until cancelled; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock
    platform: Platform = field(default_factory=Platform)
    _marks: deque[tuple[datetime, datetime]] = field(default_factory=lambda: deque(maxlen=_MARKS))
    _counted_s: float = -1e9

    async def run(self) -> None:
        """Judge for ever; a database that is away is tried again."""
        await repeat(self._turns, rest_s=EVERY_S, away="presence not judged")

    async def _turns(self) -> None:
        """Judge all that is due, and count the states now and then."""
        while await self.turn() >= A_TURN:
            pass
        if self.clock.monotonic() - self._counted_s >= COUNT_EVERY_S:
            self._counted_s = self.clock.monotonic()
            await self._count()

    async def turn(self) -> int:
        """Look at the platform, then at devices that are due; return how many were."""
        watermark, broker_since = await self._look_at_platform()
        if watermark is None or self.platform.cause is not None:
            return 0
        async with transaction(self.pool, "judge presence") as connection:
            rows = await connection.fetch(_DUE, watermark, A_TURN)
            if rows:
                await self._judge(connection, rows, watermark, broker_since)
        self._measure(rows)
        return len(rows)

    # -- the platform ------------------------------------------------------------------------

    async def _look_at_platform(self) -> tuple[datetime | None, datetime | None]:
        """Judge whether anybody can tell, and write it down where it changes."""
        now = at(self.clock.now_ms())
        async with transaction(self.pool, "look at platform") as connection:
            row = await connection.fetchrow(_PLATFORM)
            if row is None:
                return None, None
            self._remember(row["watermark"], row["moved_at"])
            open_one = await connection.fetchrow(_OPEN_STRETCH)
            before = Platform(broker_seen=row["broker_seen"])
            if open_one is not None:
                before = Platform(Cause(open_one["cause"]), open_one["since"], row["broker_seen"])
            since = before.since or now
            counts = await connection.fetchrow(
                _SIGNS, now - LOSS_WINDOW, row["broker_since"], since - LOSS_WINDOW,
                before.cause is not None or row["broker_since"] != row["broker_seen"],
            )  # fmt: skip
            signs = Signs(row["watermark"], row["broker_since"], **counts)
            after = turned(before, signs, now=now)
            if after != before:
                await _write_platform(connection, before, after, now=now)
        self.platform = after
        if signs.watermark is not None:
            metrics.WATERMARK_LAG.set((now - signs.watermark).total_seconds())
        for cause in Cause:
            metrics.PLATFORM_UNKNOWN.labels(cause.value).set(after.cause is cause)
        return signs.watermark, signs.broker_since

    def _remember(self, watermark: datetime | None, moved_at: datetime | None) -> None:
        if watermark is None or moved_at is None:
            return
        if not self._marks or self._marks[-1][0] < watermark:
            self._marks.append((watermark, moved_at))

    # -- the devices -------------------------------------------------------------------------

    async def _judge(
        self,
        connection: asyncpg.Connection,
        rows: Sequence[asyncpg.Record],
        watermark: datetime,
        broker_since: datetime | None,
    ) -> None:
        facts = await facts_of(
            connection, [row["device_id"] for row in rows], watermark, broker_since=broker_since
        )
        now = at(self.clock.now_ms())
        written: list[tuple[object, ...]] = []
        events: list[tuple[object, ...]] = []
        for row in rows:
            before = presence_of(row)
            after = judged(before, facts[row["device_id"]], watermark=watermark)
            due = after.due_at
            if due is not None and due <= watermark:
                due = watermark + _AGAIN
            written.append(
                (
                    *(row["device_id"], after.state.value, after.since, after.heartbeat_at),
                    *(after.data_at, due, now),
                )
            )
            if after.state is not before.state:
                events.append(_event(row, before, after, watermark, now))
                metrics.PRESENCE_CHANGES.labels(after.state.value).inc()
        await connection.executemany(_JUDGED, written)
        if events:
            await connection.executemany(_EVENT, events)
            log.info("presence changed", devices=len(events), first=events[0][4])

    def _measure(self, rows: Sequence[asyncpg.Record]) -> None:
        """Observe how late each of these states is."""
        now = at(self.clock.now_ms())
        for row in rows:
            noted, reached = row["noted_at"], self._reached(row["due_at"])
            known = max((each for each in (noted, reached) if each is not None), default=now)
            metrics.PRESENCE_LATENESS.observe(max(0.0, (now - known).total_seconds()))

    def _reached(self, due: datetime) -> datetime | None:
        """Return when the watermark had reached a deadline, as far back as is remembered."""
        return next((moved for mark, moved in self._marks if mark >= due), None)

    async def _count(self) -> None:
        async with self.pool.acquire() as connection:
            found = dict(await connection.fetch(_BY_STATE))
        for state in State:
            metrics.PRESENCES.labels(state.value).set(found.get(state.value, 0))


def _event(
    row: asyncpg.Record, before: Presence, after: Presence, watermark: datetime, now: datetime
) -> tuple[object, ...]:
    detail = {
        "from": before.state.value,
        "since": after.since.isoformat(),
        **evidence(after, watermark=watermark),
    }
    return (
        *(row["organisation_id"], row["device_id"], now, after.epoch, after.state.value),
        *(after.reason, json.dumps(detail)),
    )


async def facts_of(
    connection: asyncpg.Connection,
    devices: Sequence[int],
    watermark: datetime,
    *,
    broker_since: datetime | None = None,
) -> Mapping[int, Facts]:
    """Return what the database tells of devices: heartbeats, data, and when their sites open."""
    rows = await connection.fetch(_FACTS, devices, watermark - _LOOK_BACK, watermark, HEARTBEAT)
    sites = sorted({row["site_id"] for row in rows if row["site_id"] is not None})
    calendars: dict[int, Calendar] = {}
    if sites:
        calendars = {site.id: site.calendar for site in await load_sites(connection, ids=sites)}
    found: dict[int, Facts] = {}
    for row in rows:
        calendar = calendars.get(row["site_id"]) if row["site_id"] is not None else None
        found[row["device_id"]] = Facts(
            row["heartbeat_at"],
            row["data_at"],
            broker_since,
            None if calendar is None else calendar.open_between,
        )
    return found


async def _write_platform(
    connection: asyncpg.Connection, before: Platform, after: Platform, *, now: datetime
) -> None:
    """Open, change or end the stretch in which nobody can tell."""
    if after.broker_seen != before.broker_seen:
        await connection.execute("update platform set broker_seen = $1", after.broker_seen)
    if after.cause is not None and before.cause is None:
        await connection.execute(
            "insert into platform_unknown (since, cause) values ($1, $2)",
            *(after.since, after.cause.value),
        )
        log.error("nobody can tell how devices are", cause=after.cause.value)
    elif after.cause is not None and after.cause is not before.cause:
        await connection.execute(
            "update platform_unknown set cause = $1 where until is null", after.cause.value
        )
    elif after.cause is None and before.cause is not None:
        await connection.execute(
            "update platform_unknown set until = greatest(since, $1) where until is null", now
        )
        # who was there before the broker's start, and has not come back, is looked at now
        await connection.execute(_LOOK_AGAIN)
        log.info("devices are known again", cause=before.cause.value)


_PLATFORM = """
    select watermark, moved_at, broker_since, broker_seen from platform for update
"""
_OPEN_STRETCH = "select since, cause from platform_unknown where until is null"
# Only where something is afoot are all rows counted.
_SIGNS = """
    with recent as (
        select p.device_id, p.session_at from presences p
        where p.session = 'lost' and p.session_at >= $3),
    afoot as (
        select $4::bool or (select count(*) from recent where session_at >= $1) >= 20 as so)
    select coalesce(o.open, 0)::int as open, coalesce(o.before, 0)::int as before,
        (select count(*) from recent where session_at >= $1)::int as lost,
        coalesce((select count(distinct s.site_id) from recent r
            join assignments a on a.device_id = r.device_id and a.valid @> r.session_at
            join spots s on s.id = a.spot_id
            where r.session_at >= $1 and (select so from afoot)), 0)::int as sites,
        (select count(*) from recent)::int as gone
    from (select count(*) as open, count(*) filter (where session_at < $2) as before
        from presences where session = 'open' and (select so from afoot)) o
"""
_DUE = f"""
    select p.device_id, p.organisation_id, {COLUMNS} from presences p
    where p.due_at <= $1 order by p.due_at limit $2 for update skip locked
"""  # noqa: S608 - columns of ours
_FACTS = """
    select p.device_id, s.site_id,
        coalesce(
            (select max(m.time) from device_metrics m
             where m.device = p.device_id and m.time > $2
                and m.metric = (select id from metric_names where name = $4)),
            (select max(b.last_stored) from boots b
             where b.device_id = p.device_id and b.stored_to is null)) as heartbeat_at,
        (select r.time + make_interval(secs => (r.lead_ms + r.span_ms) / 1000.0)
         from readings r where r.spot = a.spot_id and r.time > $2
         order by r.time desc limit 1) as data_at
    from presences p
    left join assignments a on a.device_id = p.device_id and a.valid @> $3::timestamptz
    left join spots s on s.id = a.spot_id
    where p.device_id = any($1::int[])
"""
_JUDGED = """
    update presences set state = $2, since = $3, heartbeat_at = $4, data_at = $5, due_at = $6,
        noted_at = null, judged_at = $7
    where device_id = $1
"""
_EVENT = """
    insert into device_events (organisation_id, device_id, at, kind, epoch, state, reason, detail)
    values ($1, $2, $3, 'state', $4, $5, $6, $7)
"""
_BY_STATE = """
    select p.state, count(*) from presences p join devices d on d.id = p.device_id
    where d.state not in ('returned', 'retired') group by p.state
"""
_LOOK_AGAIN = """
    update presences p set due_at = f.watermark from platform f
    where p.session = 'open' and p.session_at < f.broker_since
"""
