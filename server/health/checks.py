"""The worker that asks whether counts are right: takes what is due, judges, masks, writes.

A check is a row: of a site, whose counters are looked at together, or of a device. It is locked
while it is judged (`skip locked`: several may work at once), and its next deadline is written with
what was judged. Times are the watermark's: what has not arrived yet is nobody's silence, and while
nobody can tell how devices are (`platform_unknown`) nothing is judged. What counts comes to is
computed in threads.

An open site is looked at every `OPEN`, a closed one every `CLOSED`, its days once a local day, an
hour after it closed. What is usual is learnt once a local day; of a site of which too little is
known, and whose history arrives, again as it does, and it is looked at every `OPEN` meanwhile. A
device is looked at every `DEVICE`; a kiosk that was just pressed every `PRESSED`, since a stuck
button ruins a result in minutes.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import asyncpg
import structlog

from server import metrics
from server.clock import Clock, at
from server.db.engine import DATABASE_AWAY, data_at_fault, transaction
from server.db.turns import repeat
from server.health import loading, looking, memory
from server.health.conditions import (
    backlog,
    certificate,
    clock_drift,
    duplicate_identity,
    flapping,
    reboot_loop,
    storage,
    stuck_button,
    temperature,
)
from server.health.judgement import Condition, Judgement, Standing, Subject, SubjectKind
from server.health.memory import Memory
from server.health.usual import Usual
from server.health.verdict import Case
from server.rollup.buckets import local
from server.rollup.places import Site, Spot, load_sites, load_spots

log = structlog.get_logger(__name__)

EVERY_S = 1.0
A_TURN = 10
OPEN = timedelta(minutes=5)
CLOSED = timedelta(hours=1)
DEVICE = timedelta(minutes=10)
PRESSED = timedelta(minutes=1)
NOBODY = timedelta(hours=6)
"""Until a site without counters, or a device that is not heard of, is looked at again."""
_REST = 2.0
"""Times as long as it worked, so that thousands of checks leave the database to others."""
_REST_MOST_S = 30.0
_AFTER_CLOSING = timedelta(minutes=75)
_RECENTLY = timedelta(minutes=10)
_A_DAY = 24
KEPT = 20_000
"""Counters of which it is kept what they are used to: some 3 kB each."""
_AHEAD = timedelta(days=120)
_SOON = timedelta(days=60)


@dataclass(slots=True)
class Checks:
    """`run` until cancelled; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock
    _usual: OrderedDict[int, "_Learnt"] = field(default_factory=OrderedDict)
    _kept: int = 0

    async def run(self) -> None:
        """Judge for ever; a database that is away is tried again."""
        looked = 0

        async def turn() -> None:
            nonlocal looked
            looked = 0
            looked = await self.turn()

        def rest_s(taken_s: float) -> float:
            return min(_REST_MOST_S, max(_REST * taken_s, 0 if looked >= A_TURN else EVERY_S))

        await repeat(turn, rest_s=rest_s, away="counts not judged")

    async def turn(self) -> int:
        """Look at what is due; return how many checks that were."""
        async with transaction(self.pool, "check health") as connection:
            now = await self._now(connection)
            if now is None:
                return 0
            rows = await connection.fetch(_DUE, now, A_TURN)
            for row in rows:
                await self._look(connection, row, now)
        return len(rows)

    async def _look(
        self, connection: asyncpg.Connection, row: asyncpg.Record, now: datetime
    ) -> None:
        """Judge one check. One that breaks is put off, so that it holds up none but itself."""
        try:
            async with connection.transaction():
                if row["site_id"] is not None:
                    await self._site(connection, row, now)
                else:
                    await self._device(connection, row, now)
        except Exception as error:
            if isinstance(error, DATABASE_AWAY) and not data_at_fault(error):
                raise
            metrics.CHECKS_BROKEN.inc()
            log.exception("check broken", site=row["site_id"], device=row["device_id"])
            await connection.execute(_LOOKED, row["id"], now, now + CLOSED, None, None)

    async def _now(self, connection: asyncpg.Connection) -> datetime | None:
        """Return up to when everything is known to have arrived; None while nobody can tell."""
        now = at(self.clock.now_ms())
        row = await connection.fetchrow(_PLATFORM)
        if row["unknown"]:
            return None
        return now if row["watermark"] is None else min(now, row["watermark"])

    # -- sites -------------------------------------------------------------------------------

    async def _site(
        self, connection: asyncpg.Connection, row: asyncpg.Record, now: datetime
    ) -> None:
        (site,) = await load_sites(connection, ids=[row["site_id"]])
        spots = await load_spots(connection, kind="counter", sites=[site])
        if not spots:
            await connection.execute(_LOOKED, row["id"], now, now + NOBODY, None, None)
            return
        now_s = int(now.timestamp())

        async def known_of(subjects: Sequence[Subject]) -> Memory:
            return await memory.remembered(connection, subjects)

        undone = 0
        for low in range(0, len(spots), looking.PART):
            subjects = [looking.subject(spot) for spot in spots[low : low + looking.PART]]
            undone += await memory.undo(connection, await known_of(subjects), subjects, now=now)
        if undone:
            log.info("masks undone", site=site.ref)
        learnt = await self._learnt(connection, site, spots, now_s=now_s)
        look = await looking.look(connection, site, spots, learnt.usual, now_s=now_s)
        today = local(site.time_zone, now_s).date()
        whole = _days_due(site, row["daily_on"], today, now)
        if whole:
            peers: dict[int, list[float]] = {}
            for (days,) in await connection.fetch(_PEERS, row["organisation_id"], site.id):
                for day, ratio in json.loads(days).items():
                    peers.setdefault(int(day), []).append(ratio)
            await looking.look_at_weeks(connection, look, site, peers, now_s=now_s)
        async for found, known in look.judged(known_of):
            await self._take(connection, found, known, row, now=now)
        soon = learnt.arriving or _is_awake(site, now_s)
        await connection.execute(
            _LOOKED,
            *(row["id"], now, now + (OPEN if soon else CLOSED)),
            *(today if whole else None, None if look.ratios is None else json.dumps(look.ratios)),
        )

    async def _learnt(
        self, connection: asyncpg.Connection, site: Site, spots: Sequence[Spot], *, now_s: int
    ) -> "_Learnt":
        """Return what the site's counters are used to, learnt once a local day."""
        today = local(site.time_zone, now_s).date()
        kept = self._usual.get(site.id)
        if kept is not None and kept.day == today and set(kept.usual) == {s.id for s in spots}:
            self._usual.move_to_end(site.id)
            if kept.known:
                return kept
            hours = await loading.hours_known(connection, spots)
            if hours <= kept.hours + _A_DAY * len(spots):
                kept.arriving = False
                return kept
        hours = await loading.hours_known(connection, spots)
        usual = await looking.learn(connection, site, spots, today=today)
        known = all(any(rate > 0 for rate in each.entered) for each in usual.values())
        return self._keep(site.id, _Learnt(today, usual, hours, known, arriving=not known))

    def _keep(self, site: int, learnt: "_Learnt") -> "_Learnt":
        """Keep what was learnt; of all sites the one that was looked at longest ago gives way."""
        before = self._usual.pop(site, None)
        self._kept += len(learnt.usual) - (0 if before is None else len(before.usual))
        self._usual[site] = learnt
        while self._kept > KEPT and len(self._usual) > 1:
            _, oldest = self._usual.popitem(last=False)
            self._kept -= len(oldest.usual)
        return learnt

    # -- devices -----------------------------------------------------------------------------

    async def _device(
        self, connection: asyncpg.Connection, row: asyncpg.Record, now: datetime
    ) -> None:
        subject = Subject(SubjectKind.DEVICE, row["device_id"])
        if not await connection.fetchval(_WORKS, row["device_id"]):
            await connection.execute(_LOOKED, row["id"], now, now + NOBODY, None, None)
            return
        stands = await connection.fetchrow(_STANDS, row["device_id"], now)
        spot = None
        if stands is not None:
            (spot,) = await load_spots(connection, ids=[stands["spot_id"]])
        kiosk = spot if spot is not None and spot.kind == "kiosk" else None
        subjects = [subject] if kiosk is None else [subject, looking.subject(kiosk)]
        known = await memory.remembered(connection, subjects)
        await memory.undo(connection, known, subjects, now=now)
        told = await loading.device(
            connection, subject.row, None if kiosk is None else kiosk.id, now=now
        )
        found = _judged(subject, told, known, spot, now=now)
        if kiosk is not None:
            case = _case(looking.subject(kiosk), stuck_button.CONDITION, known, now)
            stored = None if told.stored_s is None else int(told.stored_s)
            found.append(stuck_button.judge(case, told.presses, observed_to_s=stored))
        await self._take(connection, found, known, row, now=now)
        pressed = told.presses and told.presses[-1].at_ms / 1000 > (now - _RECENTLY).timestamp()
        following = now + (PRESSED if pressed else DEVICE)
        await connection.execute(_LOOKED, row["id"], now, following, None, None)

    async def _take(
        self,
        connection: asyncpg.Connection,
        found: Sequence[Judgement],
        known: Memory,
        row: asyncpg.Record,
        *,
        now: datetime,
    ) -> None:
        news = await memory.take(
            connection, found, known, organisation=row["organisation_id"], now=now
        )
        for each in news:
            if each.standing is Standing.FIRING:
                metrics.CONDITIONS_FIRED.labels(each.condition.value).inc()
                log.info(
                    "condition fires",
                    condition=each.condition.value,
                    subject=f"{each.subject.kind.value} {each.subject.row}",
                )


@dataclass(slots=True)
class _Learnt:
    """What a site's counters are used to, as of a local day, of so many hours that were known.

    `known`: that was enough for each of them; `arriving`: it was not, and more came of late.
    """

    day: date
    usual: Mapping[int, Usual]
    hours: int
    known: bool
    arriving: bool


def _judged(
    subject: Subject, told: loading.Device, known: Memory, spot: Spot | None, *, now: datetime
) -> list[Judgement]:
    """Judge what a device says of itself, and what is seen of it."""

    def case(condition: Condition) -> Case:
        return _case(subject, condition, known, now)

    gauges, heard = told.gauges, told.heard_s
    silence = 86_400.0 if heard is None else max(86_400.0, 2 * (now.timestamp() - heard))
    return [
        reboot_loop.judge(case(reboot_loop.CONDITION), told.starts_s, heard_s=heard),
        flapping.judge(case(flapping.CONDITION), told.losses_s, heard_s=heard),
        duplicate_identity.judge(case(duplicate_identity.CONDITION), told.findings, heard_s=heard),
        clock_drift.judge(
            case(clock_drift.CONDITION),
            told.arrivals,
            told.skews_ms,
            wild=told.wild,
            undated=told.undated,
        ),
        backlog.judge(case(backlog.CONDITION), told.waiting),
        storage.judge(
            case(storage.CONDITION),
            gauges.get("disk.free", ()),
            gauges.get("outbox.trouble", ()),
        ),
        temperature.judge(case(temperature.CONDITION), gauges.get("cpu.celsius", ())),
        certificate.judge(
            case(certificate.CONDITION),
            told.certificate,
            heard_s=heard,
            pause_s=silence,
            opens_s=_opens_s(spot, told, now),
        ),
    ]


def _opens_s(spot: Spot | None, told: loading.Device, now: datetime) -> float | None:
    """Return when the shop opens next, where a certificate ends soon enough for it to matter."""
    if spot is None or told.certificate is None:
        return None
    now_s = int(now.timestamp())
    if told.certificate.ends_s > now_s + _SOON.total_seconds():
        return None
    ahead = spot.site.calendar.open_between(now_s, now_s + int(_AHEAD.total_seconds()))
    return float(ahead[0][0]) if ahead else float(now_s + int(_AHEAD.total_seconds()))


def _case(subject: Subject, condition: Condition, known: Memory, now: datetime) -> Case:
    return Case(subject, int(now.timestamp()), known(subject, condition))


def _is_awake(site: Site, now_s: int) -> bool:
    """Whether the site is open, or was within the last hours, so that late counts still come."""
    return bool(site.calendar.open_between(now_s - int(_AFTER_CLOSING.total_seconds()), now_s + 1))


def _days_due(site: Site, done: date | None, today: date, now: datetime) -> bool:
    """Whether the look at the days is due: an hour after closing, or after midnight if it never
    closes, or on a day when it does not open."""
    if done is not None and done >= today:
        return False
    now_s = int(now.timestamp())
    opened = site.calendar.day(today).open
    if not opened or opened[-1][1] >= site.calendar.day(today).end_s:
        return True
    return now_s >= opened[-1][1] + int(_AFTER_CLOSING.total_seconds())


_PLATFORM = """
    select (select watermark from platform) as watermark,
           exists (select from platform_unknown where until is null) as unknown
"""
_DUE = """
    select id, organisation_id, site_id, device_id, daily_on from health_checks
    where due_at <= $1 order by due_at limit $2 for update skip locked
"""
_LOOKED = """
    update health_checks set looked_at = $2, due_at = $3, daily_on = coalesce($4, daily_on),
        days = coalesce($5::jsonb, days)
    where id = $1
"""
_PEERS = """
    select days from health_checks
    where organisation_id = $1 and site_id is not null and site_id <> $2 and days <> '{}'
"""
# Who was never heard, or is thrown out or gone, has nothing to be judged by.
_WORKS = """
    select exists (select from boots b where b.device_id = d.id) and d.admitted
    from devices d where d.id = $1
"""
_STANDS = """
    select spot_id from assignments where device_id = $1 and valid @> $2::timestamptz
"""
