"""A look at a site of however many counters, of which `PART` at most are in memory at once.

What a condition must know of the other counters are sums (`rounds`, `usual`). So a site is read in
parts, anew in each pass over it; a site of one part is read once. What is read is packed, and
unpacked counter by counter, in threads; of up to `UNPACKED` counters what is unpacked is kept for
the passes to come.

The passes: what is usual is summed up (`add`), then learnt (`learn`). Of the last days, counts are
summed up, then what is asked about, then all is judged; of the last weeks, counts are summed up,
then judged. Each part is judged and given away before the next.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from math import log as ln
from typing import Generic, TypeVar

import asyncpg

from server.health import loading
from server.health.judgement import Condition, Judgement, Standing, Subject, SubjectKind
from server.health.rounds import DAILY_DAYS, QUICK_DAYS, Counter, Daily, Memory, Quick
from server.health.usual import Expected, Shared, Usual
from server.rollup.buckets import local
from server.rollup.perimeter import load_perimeters
from server.rollup.places import Site, Spot

PART = 100
"""Counters: packed, the weeks that are learnt from and the quarters that are judged take some 140
kB each."""
UNPACKED = 16
"""Counters: unpacked, each takes about a megabyte."""

T = TypeVar("T")
M = TypeVar("M", bound=Memory)


@dataclass(slots=True)
class Part(Generic[T]):
    """Some of a site's counters, packed; iterating unpacks one after the other."""

    spots: Sequence[Spot]
    unpack: Callable[[Spot], T]
    _unpacked: list[T] = field(default_factory=list)

    def __iter__(self) -> Iterator[T]:
        if len(self.spots) > UNPACKED:
            return map(self.unpack, self.spots)
        if not self._unpacked:
            self._unpacked = [self.unpack(spot) for spot in self.spots]
        return iter(self._unpacked)


@dataclass(slots=True)
class Parts(Generic[T]):
    """All of a site's counters, part by part; `at` returns the one that begins with a number."""

    spots: Sequence[Spot]
    read: Callable[[int, Sequence[Spot]], Awaitable[Part[T]]]
    _only: Part[T] | None = None

    @property
    def begins(self) -> range:
        return range(0, len(self.spots), PART)

    async def at(self, low: int) -> Part[T]:
        if self._only is not None:
            return self._only
        part = await self.read(low, self.spots[low : low + PART])
        if len(self.spots) <= PART:
            self._only = part
        return part

    async def through(self, work: Callable[[T], None]) -> None:
        """Do something with each counter, in a thread."""
        for low in self.begins:
            await asyncio.to_thread(_each, await self.at(low), work)


def _each(part: Part[T], work: Callable[[T], None]) -> None:
    for each in part:
        work(each)


# -- what is usual -------------------------------------------------------------------------------


@dataclass(slots=True)
class Learning:
    """What the counters of a site are used to, part by part; see `learning`."""

    shared: Shared
    parts: Parts[Expected]

    async def of(self, low: int) -> dict[int, Usual]:
        """Return what the counters of a part are used to, by spot."""
        part = await self.parts.at(low)

        def learnt() -> dict[int, Usual]:
            return {
                spot.id: self.shared.learn(known)
                for spot, known in zip(part.spots, part, strict=True)
            }

        return await asyncio.to_thread(learnt)


async def learning(
    connection: asyncpg.Connection,
    site: Site,
    spots: Sequence[Spot],
    *,
    today: date,
    back_days: int,
) -> Learning:
    """Sum up what the counters of a site did, so that each can be learnt beside the others."""
    cells = await asyncio.to_thread(loading.cells, site, today)
    shared = Shared(cells, today.toordinal(), back_days)

    async def read(low: int, some: Sequence[Spot]) -> Part[Expected]:
        past = await loading.weeks(connection, cells, some, today)
        return Part(some, lambda spot: shared.expect(past.door(spot.id)))

    parts = Parts(spots, read)
    await parts.through(shared.add)
    return Learning(shared, parts)


async def learn(
    connection: asyncpg.Connection, site: Site, spots: Sequence[Spot], *, today: date
) -> dict[int, Usual]:
    """Return what `quick` needs of what the counters are used to; that is small, and kept."""
    known = await learning(connection, site, spots, today=today, back_days=QUICK_DAYS)
    found: dict[int, Usual] = {}
    for low in known.parts.begins:
        for spot, usual in (await known.of(low)).items():
            found[spot] = replace(usual, days=())
    return found


# -- the look ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Look:
    """A site, all of whose counters were summed up; `judged` judges part by part.

    `ratios` are the site's log ratios by day, where the last weeks were looked at.
    """

    site: Subject
    hours: Parts[Counter]
    quick: Quick
    weeks: Parts[Counter] | None = None
    daily: Daily | None = None
    ratios: Mapping[str, float] | None = None

    async def judged(
        self, known_of: Callable[[Sequence[Subject]], Awaitable[M]]
    ) -> AsyncIterator[tuple[list[Judgement], M]]:
        """Yield what is judged of each part, then of the site, with what was known of it."""
        for low in self.hours.begins:
            part = await self.hours.at(low)
            known = await known_of([subject(spot) for spot in part.spots])
            found = await asyncio.to_thread(_judged, part, self.quick.judge, known)
            if self.weeks is not None and self.daily is not None:
                part = await self.weeks.at(low)
                more = await asyncio.to_thread(_judged, part, self.daily.judge, known)
                found = _surer(found, more)
            yield found, known
        if self.daily is not None:
            known = await known_of([self.site])
            yield [self.daily.site(self.site, known)], known


def _judged(
    part: Part[Counter], judge: Callable[[Counter, Memory], list[Judgement]], memory: Memory
) -> list[Judgement]:
    return [judged for counter in part for judged in judge(counter, memory)]


def _surer(found: Sequence[Judgement], more: Sequence[Judgement]) -> list[Judgement]:
    """Return both looks' judgements; of a quiet door's silence, known after days, the longer's."""
    flat = Condition.FLATLINE
    silent = {
        each.subject for each in more if each.condition is flat and each.standing is Standing.FIRING
    }
    return [
        *(each for each in found if each.condition is not flat or each.subject not in silent),
        *(each for each in more if each.condition is not flat or each.subject in silent),
    ]


def subject(spot: Spot) -> Subject:
    """Return whom a counter is judged as."""
    return Subject(SubjectKind.SPOT, spot.id)


async def look(
    connection: asyncpg.Connection,
    site: Site,
    spots: Sequence[Spot],
    usual: Mapping[int, Usual],
    *,
    now_s: int,
) -> Look:
    """Look at the last days of a site."""

    async def read(low: int, some: Sequence[Spot]) -> Part[Counter]:
        counted = await loading.counters(connection, some, now_s=now_s, days=QUICK_DAYS)
        latest = await loading.readings(connection, some, now_s=now_s)
        return Part(
            some,
            lambda spot: Counter(
                subject(spot), loading.series(counted, spot, usual[spot.id]), latest[spot.id]
            ),
        )

    hours, quick = Parts(spots, read), Quick(now_s)
    await hours.through(quick.add)
    await hours.through(quick.weigh)
    return Look(Subject(SubjectKind.SITE, site.id), hours, quick)


async def look_at_weeks(
    connection: asyncpg.Connection,
    look: Look,
    site: Site,
    peers: Mapping[int, Sequence[float]],
    *,
    now_s: int,
) -> None:
    """Look at the last weeks of a site as well; `peers`: log ratios of other sites, by day."""
    today = local(site.time_zone, now_s).date()
    spots = look.hours.spots
    known = await learning(connection, site, spots, today=today, back_days=DAILY_DAYS)
    perimeters = await load_perimeters(connection, [site], spans={site.id: (now_s - 86_400, now_s)})
    edge = perimeters[site.id].spots

    async def read(low: int, some: Sequence[Spot]) -> Part[Counter]:
        usual = await known.of(low)
        counted = await loading.counters(connection, some, now_s=now_s, days=DAILY_DAYS)
        return Part(
            some,
            lambda spot: Counter(
                subject(spot),
                loading.series(counted, spot, usual[spot.id]),
                days=usual[spot.id].days,
                perimeter=spot.id in edge,
            ),
        )

    weeks, daily = Parts(spots, read), Daily(peers, now_s)
    sums: dict[int, list[float]] = {}

    def add(counter: Counter) -> None:
        daily.add(counter)
        for day in counter.days:
            pair = sums.setdefault(day.day, [0.0, 0.0])
            pair[0] += day.counted
            pair[1] += day.usual

    await weeks.through(add)
    look.weeks, look.daily = weeks, daily
    look.ratios = {
        str(day): round(ln(counted / people), 4)
        for day, (counted, people) in sums.items()
        if counted > 0 and people > 0
    }
