"""From judgements to episodes: the one that decides, in one transaction a turn.

`apply` folds new judgements, and what is due by now, into tracks; opens and resolves episodes;
judges of a site whether it is gone (`incidents.outage`); and lets `grouping` put what changed into
incidents, which `deciding` looks at. One decides at a time (an advisory lock), so what is read is
what is decided on.

`gather` finds what others have judged: it compares presence and judgements as they stand with what
stands here, so nothing is missed, told twice or depends on an order of commits. While nobody can
tell how devices are, nothing of theirs opens or resolves, and what begins anew has its full time.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import asyncpg
import structlog

from server.clock import Clock, at
from server.db.engine import transaction
from server.db.turns import repeat
from server.health import deciding, grouping, tracks
from server.health.decisions import hold
from server.health.episodes import ALWAYS, NEW, Happened, Happening, Pace, Sight, due, over
from server.health.episodes import judged as fold
from server.health.episodes import ticked as tick
from server.health.incidents import Place, outage
from server.health.judgement import (
    PLATFORM,
    Condition,
    Judgement,
    Standing,
    Subject,
    SubjectKind,
)
from server.health.platform import Cause, Platform
from server.health.platform import judgement as platform_judgement
from server.health.presence import judgements as presence_judgements
from server.health.rows import COLUMNS, presence_of
from server.health.rulebook import Rulebook
from server.health.tracks import Kept, Key

log = structlog.get_logger(__name__)

EVERY_S = 1.0
A_TURN = 500
_PLATFORM = PLATFORM, Condition.PLATFORM_UNKNOWN
_OFFLINE = Condition.OFFLINE


@dataclass(frozen=True, slots=True)
class Applied:
    """What a turn did: episodes that opened and resolved, messages that were decided on."""

    opened: int = 0
    resolved: int = 0
    told: int = 0


@dataclass(slots=True)
class Engine:
    """`run` until cancelled; `pool`: role vestibule_maint."""

    pool: asyncpg.Pool
    clock: Clock

    async def run(self) -> None:
        """Decide for ever; a database that is away is tried again."""
        await repeat(self.turn, rest_s=EVERY_S, away="nothing decided")

    async def turn(self) -> Applied:
        """Decide once on all that has changed and all that is due."""
        now = at(self.clock.now_ms())
        async with transaction(self.pool, "decide episodes") as connection:
            await hold(connection)
            return await apply(connection, await gather(connection, now=now), now=now)


# -- what others have judged -----------------------------------------------------------------------


async def gather(connection: asyncpg.Connection, *, now: datetime) -> list[Judgement]:
    """Return what stands otherwise elsewhere than here."""
    stretch = await connection.fetchrow(_STRETCH)
    found: list[Judgement] = []
    if (
        stretch is not None
        and (judged := _of_platform(stretch, now=now)).standing.value != (stretch["standing"])
    ):
        found.append(judged)
    if stretch is not None and stretch["until"] is None:
        return found
    for row in await connection.fetch(_PRESENCES, A_TURN):
        presence = presence_of(row)
        watermark = row["watermark"] or now
        found += presence_judgements(row["device_id"], presence, watermark=watermark)
    for row in await connection.fetch(_JUDGED, [each.value for each in SubjectKind], A_TURN):
        found.append(
            Judgement(
                Subject(SubjectKind(row["subject"]), row["subject_id"]),
                Condition(row["condition"]),
                Standing(row["standing"]),
                row["since"],
                json.loads(row["evidence"]),
                row["affected_from"],
                row["affected_until"],
            )
        )
    return found


def _of_platform(row: asyncpg.Record, *, now: datetime) -> Judgement:
    """Return what is judged of the platform by the last stretch in which nobody could tell."""
    if row["until"] is None:
        return platform_judgement(Platform(Cause(row["cause"]), row["since"]), now=now)
    return replace(platform_judgement(Platform(), now=now), since=row["until"])


# -- deciding --------------------------------------------------------------------------------------


async def apply(
    connection: asyncpg.Connection, judgements: Sequence[Judgement], *, now: datetime
) -> Applied:
    """Take new judgements in, and let happen what is due, within the caller's transaction."""
    await hold(connection)
    turn = _Turn(connection, Rulebook(connection), now)
    platform = [each for each in judgements if each.subject == PLATFORM]
    await turn.platform(platform)
    await turn.others([each for each in judgements if each.subject != PLATFORM])
    await turn.end_left()
    await turn.write()
    scope = grouping.Scope(frozenset(turn.sites), frozenset(turn.devices), turn.platform_changed)
    await grouping.regroup(connection, turn.rulebook, scope, now=now)
    told = await deciding.decide_due(connection, turn.rulebook, now=now, known=turn.sight.clear)
    return Applied(turn.opened, turn.resolved, told)


class _Turn:
    """One turn: tracks that are touched, and what happened to them."""

    def __init__(self, connection: asyncpg.Connection, rulebook: Rulebook, now: datetime) -> None:
        self.connection, self.rulebook, self.now = connection, rulebook, now
        self.kept: dict[Key, Kept] = {}
        self.sites: set[int] = set()
        self.devices: set[int] = set()
        self.sight = ALWAYS
        self.opened = self.resolved = 0
        self.platform_changed = False
        self._touched: set[Key] = set()

    async def platform(self, judgements: Iterable[Judgement]) -> None:
        """Judge the platform first: whether anything else can be judged."""
        known = await tracks.load(self.connection, [_PLATFORM])
        kept = self.kept[_PLATFORM] = known.get(_PLATFORM) or Kept(*_PLATFORM)
        before = kept.track.opened_at
        for each in judgements:
            await self._fold(kept, each)
        await self._tick(kept)
        self.platform_changed = before != kept.track.opened_at
        track = kept.track
        if track.standing is Standing.FIRING or track.opened_at is not None:
            self.sight = Sight(clear=False)
        elif track.standing is Standing.CLEAR:
            self.sight = Sight(known_from=track.from_at)

    async def others(self, judgements: Sequence[Judgement]) -> None:
        """Take in what is judged of sites, devices and spots, and what is due of them."""
        keys = {(each.subject, each.condition) for each in judgements}
        self.kept |= await tracks.load(self.connection, keys)
        if self.sight.clear:
            late = await tracks.load_due(self.connection, now=self.now, limit=A_TURN)
            self.kept = {**late, **self.kept}
        places = await tracks.places_of(
            self.connection, {subject for subject, _ in [*keys, *self.kept]}, now=self.now
        )
        for kept in self.kept.values():
            if kept.episode is None:  # one that is open stays where it opened
                kept.place = places.get(kept.subject, kept.place)
        went: set[int] = set()
        for each in judgements:
            place = places.get(each.subject)
            found = self._of(each, place)
            if found is None:
                continue
            before, site = found.track.standing, found.place.site
            await self._fold(found, each)
            if each.condition is _OFFLINE and found.track.standing is not before:
                went |= set() if site is None else {site}
        for key in sorted(key for key in self.kept if key != _PLATFORM):
            await self._tick(self.kept[key])
        if self.sight.clear:
            await self._outages(went)

    def _of(self, judgement: Judgement, place: Place | None) -> Kept | None:
        """Return what a judgement is about; None if nothing of it need be remembered."""
        key = judgement.subject, judgement.condition
        kept = self.kept.get(key)
        if kept is None and judgement.standing is Standing.FIRING and place is not None:
            kept = self.kept[key] = Kept(*key, place)
        return kept

    async def end_left(self) -> None:
        """End what is open of devices that are admitted no longer, or are another's by now."""
        for kept in await tracks.load_left(self.connection):
            if kept.episode is not None:
                await tracks.resolve_episode(self.connection, kept.episode, at=self.now, how="left")
                self.resolved += 1
            self._changed(kept)
            self._touched.discard(kept.key)
            await tracks.forget(self.connection, [kept])

    async def _outages(self, sites: set[int]) -> None:
        """Judge of sites at which devices went or came back whether they are gone as a whole."""
        if not sites:
            return
        keys = [(Subject(SubjectKind.SITE, site), Condition.SITE_OFFLINE) for site in sites]
        known = await tracks.load(self.connection, [key for key in keys if key not in self.kept])
        self.kept |= known
        places = await tracks.places_of(
            self.connection, [subject for subject, _ in keys], now=self.now
        )
        gone = await self._gone(sites)
        for site, devices in await self.connection.fetch(_DEVICES_AT, sorted(sites), self.now):
            key = Subject(SubjectKind.SITE, site), Condition.SITE_OFFLINE
            kept = self.kept.get(key)
            stands = kept is not None and kept.track.standing is Standing.FIRING
            found = outage(
                site, devices=devices, gone=gone.get(site, []), stands=stands, now=self.now
            )
            if found is None or (kept is None and found.standing is not Standing.FIRING):
                continue
            judged = self._of(found, places[key[0]])
            if judged is not None:
                await self._fold(judged, found)
                await self._tick(judged)

    async def _gone(self, sites: set[int]) -> dict[int, list[datetime]]:
        """Return since when devices of sites are gone, as of this turn."""
        found: dict[int, dict[int, datetime]] = {site: {} for site in sites}
        for site, device, since in await self.connection.fetch(_GONE, sorted(sites)):
            found[site][device] = since
        for (subject, condition), kept in self.kept.items():
            if condition is _OFFLINE and kept.place.site in found:
                here = found[kept.place.site]
                here.pop(subject.row, None)
                if kept.track.standing is Standing.FIRING:
                    here[subject.row] = kept.track.from_at or self.now
        return {site: sorted(here.values()) for site, here in found.items()}

    # -- one track -----------------------------------------------------------------------------

    async def _pace(self, kept: Kept) -> Pace:
        return (await self.rulebook.rule(kept.place.organisation, kept.condition)).pace

    def _sight(self, kept: Kept) -> Sight:
        return ALWAYS if kept.subject == PLATFORM else self.sight

    async def _fold(self, kept: Kept, judgement: Judgement) -> None:
        self._touched.add(kept.key)
        kept.track, happened = fold(
            kept.track,
            judgement.standing,
            since=judgement.since,
            now=self.now,
            pace=await self._pace(kept),
            sight=self._sight(kept),
        )
        if judgement.standing is Standing.FIRING:
            kept.evidence = judgement.evidence
            kept.affected_from = judgement.affected_from
            kept.affected_until = judgement.affected_until
        await self._befell(kept, happened)

    async def _tick(self, kept: Kept) -> None:
        self._touched.add(kept.key)
        kept.track, happened = tick(
            kept.track, now=self.now, pace=await self._pace(kept), sight=self._sight(kept)
        )
        await self._befell(kept, happened)

    async def _befell(self, kept: Kept, happened: tuple[Happened, ...]) -> None:
        """Write what happened to an episode, in its order."""
        for each in happened:
            if each.what is Happening.OPENED:
                kept.episode = await tracks.open_episode(self.connection, kept, opened_at=each.at)
                self.opened += 1
            elif each.what is Happening.RESOLVED and kept.episode is not None:
                await tracks.resolve_episode(self.connection, kept.episode, at=each.at)
                kept.episode = None
                self.resolved += 1
            self._changed(kept)

    def _changed(self, kept: Kept) -> None:
        if kept.place.site is not None:
            self.sites.add(kept.place.site)
        elif kept.place.device is not None:
            self.devices.add(kept.place.device)

    async def write(self) -> None:
        """Write the tracks that were touched, and what goes on of open episodes."""
        keep: list[Kept] = []
        gone: list[Kept] = []
        when: dict[Key, datetime | None] = {}
        for key in self._touched:
            kept = self.kept[key]
            pace = await self._pace(kept)
            when[key] = due(kept.track, pace, self._sight(kept))
            if kept.track == NEW or (
                kept.subject != PLATFORM and over(kept.track, pace, now=self.now)
            ):
                gone.append(kept)
            else:
                keep.append(kept)
        await tracks.save(self.connection, keep, when)
        await tracks.forget(self.connection, [each for each in gone if each.stored])
        await tracks.write_open(
            self.connection, [each for each in keep if each.episode is not None]
        )


_STRETCH = """
    select u.since, u.until, u.cause, s.standing from platform_unknown u
    left join standings s on s.subject = 'platform' order by u.id desc limit 1
"""
# Who is not well and is not known so here, and who is known so here and is well again.
_PRESENCES = f"""
    with wanted (state, condition) as (values ('offline', 'offline'),
            ('offline planned', 'offline_planned'), ('no data', 'no_data'),
            ('no heartbeat', 'no_heartbeat')),
    other as (
        select p.device_id from presences p join wanted w on w.state = p.state
        join devices d on d.id = p.device_id and d.admitted
        left join standings s on s.subject = 'device' and s.subject_id = p.device_id
            and s.condition = w.condition
        where p.state <> 'healthy' and s.standing is distinct from 'firing'
        union
        select p.device_id from standings s
        join wanted w on w.condition = s.condition
        join presences p on p.device_id = s.subject_id
        where s.subject = 'device' and s.standing = 'firing' and p.state <> w.state
          and p.state <> 'never seen'
        union
        select p.device_id from standings s
        join wanted w on w.condition = s.condition
        join presences p on p.device_id = s.subject_id
        where s.subject = 'device' and s.standing = 'unknown' and p.state = 'healthy')
    select p.device_id, f.watermark, {COLUMNS} from other join presences p using (device_id)
    left join platform f on true order by p.device_id limit $1
"""  # noqa: S608 - columns of ours
# What fires, and what is remembered here, by their indexes; the many that are well are not read.
# A judgement that somebody has declared false is clear: by a person's word.
_JUDGED = """
    with about as (
        select id from judgements where firing
        union select j.id from standings s join judgements j on j.condition = s.condition
            and j.site_id = s.subject_id and j.device_id is null and j.spot_id is null
        where s.subject = 'site'
        union select j.id from standings s join judgements j on j.condition = s.condition
            and j.site_id is null and j.device_id = s.subject_id and j.spot_id is null
        where s.subject = 'device'
        union select j.id from standings s join judgements j on j.condition = s.condition
            and j.site_id is null and j.device_id is null and j.spot_id = s.subject_id
        where s.subject = 'spot'),
    told as (
        select j.*, case when j.site_id is not null then 'site'
                when j.device_id is not null then 'device' else 'spot' end as subject,
            coalesce(j.site_id, j.device_id, j.spot_id) as subject_id,
            case when j.withdrawn_at is not null then 'clear' else j.standing end as stands
        from about join judgements j using (id))
    select t.subject, t.subject_id, t.condition, t.stands as standing, t.since,
        t.evidence::text as evidence, t.affected_from, t.affected_until
    from told t left join standings s on s.subject = t.subject
        and s.subject_id = t.subject_id and s.condition = t.condition
    left join devices d on d.id = t.device_id
    where (d.id is null or d.admitted)
      and t.subject = any($1::text[])
      and case when s.standing is null then t.firing and t.stands = 'firing'
          else s.standing <> t.stands end
    order by t.changed_at limit $2
"""
_DEVICES_AT = """
    select p.site_id, count(*)::int from assignments a
    join spots p on p.id = a.spot_id join devices d on d.id = a.device_id
    where p.site_id = any($1::int[]) and a.valid @> $2::timestamptz and d.admitted
    group by p.site_id
"""
_GONE = """
    select site_id, subject_id, from_at from standings
    where subject = 'device' and condition = 'offline' and standing = 'firing'
      and site_id = any($1::int[])
"""
