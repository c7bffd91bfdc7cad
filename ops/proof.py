"""The proof: what was generated, is stored and is served, minute by minute and door by door.

`verify` believes nobody. *Generated* is read from the truth files, which the simulators wrote and
the product never sees; *stored* is summed from the rows of `readings` and `presses`; *served* is
added up from the API's answers, `/v1/counts` and `/v1/feedback`. Whatever differs is named: the
spot, the minute or day, both numbers.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Generic, TypeVar
from zoneinfo import ZoneInfo

import aiohttp
import asyncpg
import msgspec

from ops.services.errors import ServiceFailedError
from simulators.truth import Truth, read

Pair = tuple[int, int]
LineMinute = tuple[str, int, int]
AnswerMinute = tuple[str, int, int, int]
SpotDay = tuple[str, date]
AnswerDay = tuple[str, date, int, int]
"""Spot, local day, question, answer."""
LAST_MINUTE = 2**31 - 1
_MOST_NAMED = 20
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a device stands, and whose key may ask for it."""

    ref: str
    label: str
    kind: str
    zone: str
    key: str = field(repr=False)
    reversed: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """One place at which two sides do not agree."""

    place: str
    when: str
    generated: str
    found: str
    side: str

    def __str__(self) -> str:
        return f"{self.place}, {self.when}: generated {self.generated}, {self.side} {self.found}"


@dataclass(frozen=True, slots=True)
class Presses:
    """The account of the kiosks."""

    generated: int
    stored: int
    served: int


@dataclass(frozen=True, slots=True)
class Proof:
    """The account of a whole run; it holds only if nothing differs and nothing is lost."""

    generated: int
    stored: int
    served: int
    on_their_way: int
    presses: Presses
    differences: tuple[Difference, ...]

    @property
    def lost(self) -> int:
        return self.generated - self.stored - self.on_their_way

    @property
    def holds(self) -> bool:
        return (
            not self.differences
            and self.generated == self.stored == self.served
            and self.on_their_way == 0
            and self.presses.generated == self.presses.stored == self.presses.served
        )

    def line(self) -> str:
        """Return the closing line."""
        return (
            f"generated {self.generated} stored {self.stored} served {self.served} "
            f"on their way {self.on_their_way} lost {self.lost}"
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the three sides are read."""

    truths: Sequence[Path]
    dsn: str = field(repr=False)
    api: str
    spots: Mapping[str, Spot]  # by device
    only: bool = False  # look at these devices alone: others share the database


async def verify(
    sources: Sources, *, on_their_way: int = 0, before_minute: int | None = None
) -> Proof:
    """Compare the three sides; `on_their_way` is what the outboxes still hold.

    With `before_minute` (since 1970) while devices are live: what is older, and what is served of
    the days before its own, are compared.
    """
    until = LAST_MINUTE if before_minute is None else before_minute
    truth = await asyncio.to_thread(_truth, sources.truths, until)
    stored = await _stored(sources, until)
    served = await _served(sources, truth)
    spots = sources.spots
    counted, pressed = days_of(truth, spots), answers_of(truth, spots)
    if before_minute is not None:
        today = datetime.fromtimestamp(before_minute * 60, UTC).date() - _DAY
        counted = {key: pair for key, pair in counted.items() if key[1] < today}
        pressed = {key: number for key, number in pressed.items() if key[1] < today}
        served = served.before(today)
    differences = [
        *compare_minutes(truth.counts, stored.counts, spots=spots),
        *compare_presses(truth.presses, stored.presses, spots=spots),
        *compare_days(counted, served.counts, spots=spots),
        *compare_answers(pressed, served.presses, spots=spots),
    ]
    return Proof(
        generated=truth.people(),
        stored=stored.people(),
        served=sum(entered + left for entered, left in served.counts.values()),
        on_their_way=on_their_way,
        presses=Presses(truth.pressed(), stored.pressed(), sum(served.presses.values())),
        differences=tuple(differences[:_MOST_NAMED]),
    )


async def _stored(sources: Sources, until: int) -> Truth:
    """Return what the rows hold, as the truth would tell it."""
    among = list(sources.spots) if sources.only else None
    connection = await asyncpg.connect(sources.dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            readings = await connection.fetch(_READINGS, until, among)
            presses = await connection.fetch(_PRESSES, until, among)
    finally:
        await connection.close()
    return Truth(
        {
            (device, line, minute): (entered, left)
            for device, line, minute, entered, left in readings
        },
        {
            (device, minute, question, answer): number
            for device, minute, question, answer, number in presses
        },
    )


def _truth(paths: Sequence[Path], until: int) -> Truth:
    truth = merged(read(path) for path in paths)
    if until == LAST_MINUTE:
        return truth
    return Truth(
        {key: pair for key, pair in truth.counts.items() if key[2] < until},
        {key: number for key, number in truth.presses.items() if key[1] < until},
    )


def merged(truths: Iterable[Truth]) -> Truth:
    """Return several truth files as one."""
    counts: dict[LineMinute, Pair] = {}
    presses: dict[AnswerMinute, int] = defaultdict(int)
    for truth in truths:
        for key, (entered, left) in truth.counts.items():
            before = counts.get(key, (0, 0))
            counts[key] = (before[0] + entered, before[1] + left)
        for answer, number in truth.presses.items():
            presses[answer] += number
    return Truth(counts, presses)


def compare_minutes(
    truth: Mapping[LineMinute, Pair],
    stored: Mapping[LineMinute, Pair],
    *,
    spots: Mapping[str, Spot],
) -> list[Difference]:
    """Return every line and minute whose stored counts are not the generated ones."""
    wrong = [key for key in truth.keys() | stored.keys() if _at(truth, key) != _at(stored, key)]
    return [
        Difference(
            f"{_label(spots, key[0])} ({key[0]}) line {key[1]}",
            _minute(key[2]),
            _in_out(_at(truth, key)),
            _in_out(_at(stored, key)),
            "stored",
        )
        for key in sorted(wrong, key=lambda key: (key[2], key))
    ]


def compare_presses(
    truth: Mapping[AnswerMinute, int],
    stored: Mapping[AnswerMinute, int],
    *,
    spots: Mapping[str, Spot],
) -> list[Difference]:
    """Return every answer and minute whose stored presses are not the generated ones."""
    wrong = [key for key in truth.keys() | stored.keys() if truth.get(key, 0) != stored.get(key, 0)]
    return [
        Difference(
            f"{_label(spots, key[0])} ({key[0]}) question {key[2]} answer {key[3]}",
            _minute(key[1]),
            f"{truth.get(key, 0)} presses",
            f"{stored.get(key, 0)} presses",
            "stored",
        )
        for key in sorted(wrong, key=lambda key: (key[1], key))
    ]


def compare_days(
    truth: Mapping[SpotDay, Pair], served: Mapping[SpotDay, Pair], *, spots: Mapping[str, Spot]
) -> list[Difference]:
    """Return every spot and local day whose served counts are not the generated ones."""
    labels = {spot.ref: spot.label for spot in spots.values()}
    wrong = [
        key
        for key in truth.keys() | served.keys()
        if truth.get(key, (0, 0)) != served.get(key, (0, 0))
    ]
    return [
        Difference(
            f"{labels.get(key[0], key[0])} ({key[0]})",
            key[1].isoformat(),
            _in_out(truth.get(key, (0, 0))),
            _in_out(served.get(key, (0, 0))),
            "served",
        )
        for key in sorted(wrong, key=lambda key: (key[1], key[0]))
    ]


def compare_answers(
    truth: Mapping[AnswerDay, int], served: Mapping[AnswerDay, int], *, spots: Mapping[str, Spot]
) -> list[Difference]:
    """Return every spot, local day and answer whose served presses are not the generated ones."""
    labels = {spot.ref: spot.label for spot in spots.values()}
    wrong = [key for key in truth.keys() | served.keys() if truth.get(key, 0) != served.get(key, 0)]
    return [
        Difference(
            f"{labels.get(key[0], key[0])} ({key[0]}) question {key[2]} answer {key[3]}",
            key[1].isoformat(),
            f"{truth.get(key, 0)} presses",
            f"{served.get(key, 0)} presses",
            "served",
        )
        for key in sorted(wrong, key=lambda key: (key[1], key))
    ]


def days_of(truth: Truth, spots: Mapping[str, Spot]) -> dict[SpotDay, Pair]:
    """Return visits and exits by spot and local day, a door mounted backwards turned round."""
    days: dict[SpotDay, Pair] = {}
    calendar = _Days()
    for (device, _, minute), (entered, left) in truth.counts.items():
        spot = spots[device]
        day = calendar.day(spot.zone, minute)
        before = days.get((spot.ref, day), (0, 0))
        pair = (left, entered) if spot.reversed else (entered, left)
        days[spot.ref, day] = (before[0] + pair[0], before[1] + pair[1])
    return days


def answers_of(truth: Truth, spots: Mapping[str, Spot]) -> dict[AnswerDay, int]:
    """Return presses by spot, local day, question and answer."""
    found: dict[AnswerDay, int] = defaultdict(int)
    calendar = _Days()
    for (device, minute, question, answer), number in truth.presses.items():
        spot = spots[device]
        found[spot.ref, calendar.day(spot.zone, minute), question, answer] += number
    return dict(found)


class _Days:
    """Local days of minutes, by zone and quarter of an hour: offsets are whole quarters."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], date] = {}

    def day(self, zone: str, minute: int) -> date:
        at = zone, minute // 15
        found = self._seen.get(at)
        if found is None:
            found = datetime.fromtimestamp(minute * 60, ZoneInfo(zone)).date()
            self._seen[at] = found
        return found


class _CountRow(msgspec.Struct):
    """What of a row of counts is added up."""

    spot: str
    local: str
    visits: float | None
    exits: float | None
    unplaced_visits: float
    unplaced_exits: float


class _FeedbackRow(msgspec.Struct):
    """What of a row of kiosk results is added up."""

    spot: str
    local: str
    question: int | None
    answers: list[int]


Row = TypeVar("Row", _CountRow, _FeedbackRow)


class _Page(msgspec.Struct, Generic[Row]):
    data: list[Row]
    next: str | None = None


@dataclass(frozen=True, slots=True)
class _Served:
    """What the API answered, by spot and local day."""

    counts: dict[SpotDay, Pair]
    presses: dict[AnswerDay, int]

    def before(self, day: date) -> "_Served":
        """Return what is of earlier days."""
        return _Served(
            {key: pair for key, pair in self.counts.items() if key[1] < day},
            {key: number for key, number in self.presses.items() if key[1] < day},
        )


async def _served(sources: Sources, truth: Truth) -> _Served:
    """Ask the API, each organisation with its own key, for every spot and day."""
    counts: dict[SpotDay, Pair] = {}
    presses: dict[AnswerDay, int] = defaultdict(int)
    minutes = [key[2] for key in truth.counts] + [key[1] for key in truth.presses]
    if not minutes:
        return _Served(counts, presses)
    first = datetime.fromtimestamp(min(minutes) * 60, UTC).date() - _DAY
    last = datetime.fromtimestamp(max(minutes) * 60, UTC).date() + 2 * _DAY
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(sources.api, timeout=timeout) as session:
        for key in sorted({spot.key for spot in sources.spots.values()}):
            asked = _Question(session, key, first, last)
            async for row in asked.rows("/v1/counts", _Page[_CountRow]):
                pair = (
                    round((row.visits or 0) + row.unplaced_visits),
                    round((row.exits or 0) + row.unplaced_exits),
                )
                if pair != (0, 0):
                    counts[row.spot, date.fromisoformat(row.local)] = pair
            async for given in asked.rows("/v1/feedback", _Page[_FeedbackRow]):
                for answer, number in enumerate(given.answers):
                    if number and given.question is not None:
                        day = date.fromisoformat(given.local)
                        presses[given.spot, day, given.question, answer] += number
    return _Served(counts, dict(presses))


@dataclass(frozen=True, slots=True)
class _Question:
    """One organisation's spots by day, from `first` up to, not including, `last`."""

    session: aiohttp.ClientSession
    key: str = field(repr=False)
    first: date
    last: date

    async def rows(self, path: str, kind: type[_Page[Row]]) -> AsyncIterator[Row]:
        """Yield the rows of all pages; ServiceFailedError has what the API says instead."""
        headers = {"Authorization": f"Bearer {self.key}"}
        wanted = {
            "bucket": "day",
            "by": "spot",
            "from": self.first.isoformat(),
            "to": self.last.isoformat(),
        }
        while True:
            async with self.session.get(path, params=wanted, headers=headers) as response:
                body = await response.read()
                if response.status != 200:
                    raise ServiceFailedError(f"the API answered {response.status}: {body[:300]!r}")
            page = msgspec.json.decode(body, type=kind)
            for row in page.data:
                yield row
            if page.next is None:
                return
            wanted["cursor"] = page.next


def _at(counts: Mapping[LineMinute, Pair], key: LineMinute) -> Pair:
    return counts.get(key, (0, 0))


def _label(spots: Mapping[str, Spot], device: str) -> str:
    return spots[device].label if device in spots else "a device that nobody knows"


def _minute(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _in_out(pair: Pair) -> str:
    return f"{pair[0]} in {pair[1]} out"


_READINGS = """
    select d.device, r.line::int,
           ((extract(epoch from r.time)::bigint + r.interval_s * ((n - 1) / 2)) / 60)::int,
           coalesce(sum(c) filter (where n % 2 = 1), 0)::int,
           coalesce(sum(c) filter (where n % 2 = 0), 0)::int
    from readings r join all_boots b on b.id = r.boot join devices d on d.id = b.device_id,
         unnest(r.counts) with ordinality u (c, n)
    where c <> 0
      and (extract(epoch from r.time)::bigint + r.interval_s * ((n - 1) / 2)) / 60 < $1::bigint
      and ($2::text[] is null or d.device = any($2::text[]))
    group by 1, 2, 3
"""
_PRESSES = """
    select d.device, floor(extract(epoch from p.time) / 60)::int, p.question::int, p.answer::int,
           count(*)::int
    from presses p join all_boots b on b.id = p.boot join devices d on d.id = b.device_id
    where extract(epoch from p.time) < $1::bigint * 60
      and ($2::text[] is null or d.device = any($2::text[]))
    group by 1, 2, 3, 4
"""
