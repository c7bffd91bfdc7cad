"""The proof: what was generated, is stored and is served, minute by minute and door by door.

`verify` believes nobody. *Generated* is read from the truth files, which the simulators wrote and
the product never sees; *stored* is summed from the rows of `readings` and `presses`; *served* is
added up from the API's answers. Whatever differs is named: the spot, the minute, both numbers.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
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
    key: str
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
class Proof:
    """The account of a whole run; it holds only if nothing differs and nothing is lost."""

    generated: int
    stored: int
    served: int
    on_their_way: int
    presses: tuple[int, int]  # generated, stored
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
            and self.presses[0] == self.presses[1]
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
    dsn: str
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
    among = list(sources.spots) if sources.only else None
    connection = await asyncpg.connect(sources.dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            stored = {
                (device, line, minute): (entered, left)
                for device, line, minute, entered, left in await connection.fetch(
                    _READINGS, until, among
                )
            }
            pressed = {
                (device, minute, question, answer): presses
                for device, minute, question, answer, presses in await connection.fetch(
                    _PRESSES, until, among
                )
            }
    finally:
        await connection.close()
    generated = days_of(truth, sources.spots)
    served = await _served(sources, truth)
    if before_minute is not None:
        today = datetime.fromtimestamp(before_minute * 60, UTC).date() - _DAY
        generated = {key: pair for key, pair in generated.items() if key[1] < today}
        served = {key: pair for key, pair in served.items() if key[1] < today}
    differences = [
        *compare_minutes(truth.counts, stored, spots=sources.spots),
        *compare_presses(truth.presses, pressed, spots=sources.spots),
        *compare_days(generated, served, spots=sources.spots),
    ]
    return Proof(
        generated=truth.people(),
        stored=sum(entered + left for entered, left in stored.values()),
        served=sum(entered + left for entered, left in served.values()),
        on_their_way=on_their_way,
        presses=(truth.pressed(), sum(pressed.values())),
        differences=tuple(differences[:_MOST_NAMED]),
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


def days_of(truth: Truth, spots: Mapping[str, Spot]) -> dict[SpotDay, Pair]:
    """Return visits and exits by spot and local day, a door mounted backwards turned round."""
    days: dict[SpotDay, Pair] = {}
    zones = {spot.zone: ZoneInfo(spot.zone) for spot in spots.values()}
    seen: dict[tuple[str, int], date] = {}  # by zone and quarter: offsets are whole quarters
    for (device, _, minute), (entered, left) in truth.counts.items():
        spot = spots[device]
        at = spot.zone, minute // 15
        day = seen.get(at)
        if day is None:
            day = seen[at] = datetime.fromtimestamp(minute * 60, zones[spot.zone]).date()
        before = days.get((spot.ref, day), (0, 0))
        pair = (left, entered) if spot.reversed else (entered, left)
        days[spot.ref, day] = (before[0] + pair[0], before[1] + pair[1])
    return days


class _Row(msgspec.Struct):
    """What of an answer's row is added up."""

    spot: str
    local: str
    visits: float | None
    exits: float | None
    unplaced_visits: float
    unplaced_exits: float


class _Page(msgspec.Struct):
    data: list[_Row]
    next: str | None = None


async def _served(sources: Sources, truth: Truth) -> dict[SpotDay, Pair]:
    """Ask the API, each organisation with its own key, for every spot and day."""
    minutes = [minute for _, _, minute in truth.counts]
    if not minutes:
        return {}
    first = datetime.fromtimestamp(min(minutes) * 60, UTC).date() - _DAY
    last = datetime.fromtimestamp(max(minutes) * 60, UTC).date() + 2 * _DAY
    found: dict[SpotDay, Pair] = {}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(sources.api, timeout=timeout) as session:
        for key in sorted({spot.key for spot in sources.spots.values()}):
            wanted: dict[str, str] = {
                "bucket": "day",
                "by": "spot",
                "from": first.isoformat(),
                "to": last.isoformat(),
            }
            while True:
                page = await _ask(session, key, wanted)
                for row in page.data:
                    pair = (
                        round((row.visits or 0) + row.unplaced_visits),
                        round((row.exits or 0) + row.unplaced_exits),
                    )
                    if pair != (0, 0):
                        found[row.spot, date.fromisoformat(row.local)] = pair
                if page.next is None:
                    break
                wanted = {**wanted, "cursor": page.next}
    return found


async def _ask(session: aiohttp.ClientSession, key: str, wanted: Mapping[str, str]) -> _Page:
    headers = {"Authorization": f"Bearer {key}"}
    async with session.get("/v1/counts", params=wanted, headers=headers) as response:
        body = await response.read()
        if response.status != 200:
            raise ServiceFailedError(f"the API answered {response.status}: {body[:300]!r}")
    return msgspec.json.decode(body, type=_Page)


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
    from readings r join boots b on b.id = r.boot join devices d on d.id = b.device_id,
         unnest(r.counts) with ordinality u (c, n)
    where c <> 0
      and (extract(epoch from r.time)::bigint + r.interval_s * ((n - 1) / 2)) / 60 < $1::bigint
      and ($2::text[] is null or d.device = any($2::text[]))
    group by 1, 2, 3
"""
_PRESSES = """
    select d.device, floor(extract(epoch from p.time) / 60)::int, p.question::int, p.answer::int,
           count(*)::int
    from presses p join boots b on b.id = p.boot join devices d on d.id = b.device_id
    where extract(epoch from p.time) < $1::bigint * 60
      and ($2::text[] is null or d.device = any($2::text[]))
    group by 1, 2, 3, 4
"""
