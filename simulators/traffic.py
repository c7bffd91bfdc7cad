"""People through a door and at a kiosk, seeded: same seed, door and quarter hour, same people.

The model (anchors: `simulators/README.md`):
- Groups arrive as a Poisson process whose rate is the shape's for that quarter of an hour, times
  the month's index, a lognormal factor of the day and a gamma factor of the hour (with dispersion
  k), so that counts are negative binomial around the shape.
- A group of 1, 2, 3 or 4 (62, 27, 8, 3 %) enters 0.8 s apart (exponential), stays for a lognormal
  dwell and leaves together; who is inside at closing time leaves within ten minutes of it.
- Staff enter before opening and leave after closing.
- A sensor misses single crossings, and now and then counts two abreast as one.
- Some of those who leave press a smiley; some of these answer a second question; now and then
  somebody plays with the buttons.

Invariants: everybody who enters leaves, within `MAX_DWELL_MS` or after closing time; events come
in order of time; a stream that begins later is the tail of one that began earlier.
"""

import math
import random
from bisect import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from heapq import heappop, heappush, merge
from typing import NamedTuple
from zoneinfo import ZoneInfo

from simulators.shapes import MONTHS, SHOP, STREET, Hours, Shape, quarter_share

HOUR_MS = 3_600_000
QUARTER_MS = 900_000
MAX_DWELL_MS = 3 * HOUR_MS  # 0.05 % of a lognormal of median 6.5 min and sigma 1 is longer
EARLY_MS = QUARTER_MS  # staff come at most this long before opening
_GROUPS = (0.62, 0.89, 0.97)  # cumulative, of 1, 2, 3; the rest are 4
_MEAN_GROUP = 1.52
_PRIME = 7919.0


class Passage(NamedTuple):
    """One person crosses the threshold; `luck` (0..1) decides what a sensor makes of it."""

    at_ms: int
    entering: bool
    follows: bool  # close behind a member of the same group
    staff: bool
    luck: float


class Crossing(NamedTuple):
    """What a sensor reports: people in and out over a line at an instant of UTC."""

    at_ms: int
    line: int
    entered: int
    left: int


class Touch(NamedTuple):
    """One press on a kiosk; `visit` is new for each visitor."""

    at_ms: int
    visit: int
    question: int
    answer: int


@dataclass(frozen=True, slots=True)
class Door:
    """An opening and its public. `median_day`: people who enter on a median day."""

    name: str
    zone: str = "Europe/Stockholm"
    median_day: float = 400.0
    shape: Shape = STREET
    hours: Hours = SHOP
    dwell_median_s: float = 390.0
    dwell_sigma: float = 1.0
    dispersion: float = 30.0
    day_sigma: float = 0.145
    staff: int = 3
    months: tuple[float, ...] = MONTHS


@dataclass(frozen=True, slots=True)
class Sensor:
    """How a counter sees the door: chance to miss, per direction, and to merge two abreast.

    `lines` are the counting lines' shares of the crossings; `blind` are stretches (UTC ms, from
    and before) in which it sees nothing though it runs; `backwards` swaps in and out.
    """

    miss_in: float = 0.0
    miss_out: float = 0.0
    merge: float = 0.0
    lines: tuple[float, ...] = (1.0,)
    backwards: bool = False
    blind: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Kiosk:
    """A feedback kiosk at the door. `rate`: share of those who leave that press.

    Question 0 has the smileys (answer 0 is the happiest), question 1 the follow-up of 0 to 10.
    """

    rate: float = 0.06
    answers: tuple[float, ...] = (0.575, 0.274, 0.073, 0.078)
    follow_up: float = 0.35
    bursts_an_hour: float = 0.0
    salt: int = field(default=1)


PERFECT = Sensor()


def random_door(rng: random.Random, name: str, *, zone: str = "Europe/Stockholm") -> Door:
    """Return a shop's door: daily volume lognormal, median 400, 95th percentile 3,000."""
    volume = min(15_000.0, rng.lognormvariate(math.log(400), 1.225))
    return Door(name, zone=zone, median_day=volume, staff=rng.randint(2, 6))


def random_sensor(rng: random.Random) -> Sensor:
    """Return a sensor that misses 1 to 5 %, with a lasting bias of up to 7 % one way."""
    miss_in, miss_out, bias = rng.uniform(0.01, 0.05), rng.uniform(0.01, 0.05), rng.uniform(0, 0.07)
    if rng.random() < 0.5:
        return Sensor(miss_in + bias, miss_out, 0.03)
    return Sensor(miss_in, miss_out + bias, 0.03)


def random_kiosk(rng: random.Random) -> Kiosk:
    """Return a kiosk that 3 to 12 % of those who leave use (beta, mean 6 %)."""
    rate = min(0.12, max(0.03, rng.betavariate(6, 94)))
    return Kiosk(rate=rate, bursts_an_hour=rate * rng.uniform(0.0, 0.6), salt=rng.getrandbits(31))


def people(door: Door, *, seed: int, start_ms: int, end_ms: int) -> Iterator[Passage]:
    """Yield who crosses the threshold from `start_ms` up to, not including, `end_ms` (UTC)."""
    quarter = (start_ms - MAX_DWELL_MS - QUARTER_MS) // QUARTER_MS * QUARTER_MS
    waiting: list[Passage] = []
    while quarter < end_ms + EARLY_MS:
        for passage in _quarter(door, seed, quarter):
            heappush(waiting, passage)
        # the quarters to come add nothing earlier than this one's start: so early staff come
        ready = min(quarter, end_ms)
        while waiting and waiting[0].at_ms < ready:
            passage = heappop(waiting)
            if passage.at_ms >= start_ms:
                yield passage
        quarter += QUARTER_MS
    while waiting and waiting[0].at_ms < end_ms:
        passage = heappop(waiting)
        if passage.at_ms >= start_ms:
            yield passage


def sense(passages: Iterable[Passage], sensor: Sensor = PERFECT) -> Iterator[Crossing]:
    """Yield what the sensor makes of the passages, in the same order."""
    bounds = _cumulative(sensor.lines)
    for at_ms, entering, follows, _, luck in passages:
        miss = sensor.miss_in if entering else sensor.miss_out
        if luck < miss or (follows and luck < miss + sensor.merge):
            continue
        if any(start <= at_ms < end for start, end in sensor.blind):
            continue
        line = bisect(bounds, _second(luck))
        inward = entering is not sensor.backwards
        yield Crossing(at_ms, line, int(inward), int(not inward))


def touches(door: Door, kiosk: Kiosk, *, seed: int, start_ms: int, end_ms: int) -> Iterator[Touch]:
    """Yield the presses at a kiosk beside the way out of `door`, visits ascending from 1."""
    leaving = people(door, seed=seed, start_ms=start_ms, end_ms=end_ms + 30_000)
    played = _played(door, kiosk, seed=seed, start_ms=start_ms, end_ms=end_ms)
    visit = 0
    last: int | None = None
    for at_ms, who, question, answer in merge(_in_order(_answers(leaving, kiosk, seed)), played):
        if not start_ms <= at_ms < end_ms:
            continue
        if who != last:
            visit, last = visit + 1, who
        yield Touch(at_ms, visit, question, answer)


def per_minute(crossings: Iterable[Crossing]) -> Iterator[Crossing]:
    """Sum crossings per minute and line; each carries the minute's first instant."""
    minute = -1
    sums: dict[int, list[int]] = {}
    for at_ms, line, entered, left in crossings:
        if at_ms // 60_000 != minute:
            yield from _minute(minute, sums)
            sums.clear()
            minute = at_ms // 60_000
        pair = sums.setdefault(line, [0, 0])
        pair[0] += entered
        pair[1] += left
    yield from _minute(minute, sums)


def _minute(minute: int, sums: dict[int, list[int]]) -> Iterator[Crossing]:
    for line, (entered, left) in sorted(sums.items()):
        yield Crossing(minute * 60_000, line, entered, left)


def rate_an_hour(door: Door, *, seed: int, at_ms: int) -> float:
    """Return the mean rate of people entering at that instant, the day's factor included."""
    local = _local(door, at_ms)
    quarter = local.hour * 4 + local.minute // 15
    share = quarter_share(door.shape, door.hours, local.weekday(), quarter)
    if not share:
        return 0.0
    factor = door.months[local.month - 1] * _day_factor(
        door.name, door.day_sigma, seed, local.toordinal()
    )
    return 4 * share * door.median_day * factor


def _quarter(door: Door, seed: int, quarter_ms: int) -> list[Passage]:
    """Return every passage of those who arrive in this quarter of an hour, unsorted."""
    found: list[Passage] = []
    rate = rate_an_hour(door, seed=seed, at_ms=quarter_ms)
    rng = random.Random(f"{seed}/{door.name}/{quarter_ms}") if rate else None
    if rng is not None:
        rate *= _hour_factor(door.name, door.dispersion, seed, quarter_ms // HOUR_MS)
        rate /= _MEAN_GROUP * HOUR_MS
        closing = _closing(door, quarter_ms)
        at = quarter_ms + rng.expovariate(rate)
        while at < quarter_ms + QUARTER_MS:
            _group(door, rng, at, closing, found)
            at += rng.expovariate(rate)
    _shifts(door, seed, quarter_ms, found)
    return found


def _group(door: Door, rng: random.Random, at: float, closing: int, found: list[Passage]) -> None:
    """Add a group that arrives at `at` and leaves after its dwell, or soon after `closing`."""
    size = 1 + bisect(_GROUPS, rng.random())
    dwell = rng.lognormvariate(0.0, door.dwell_sigma) * door.dwell_median_s * 1000
    out = at + min(dwell, MAX_DWELL_MS - 60_000)
    if out > closing:
        out = max(at + 5_000, min(out, closing + rng.random() * 600_000))
    for index in range(size):
        if index:
            at += rng.expovariate(1 / 800)
            out += rng.expovariate(1 / 800)
        found.append(Passage(int(at), True, index > 0, False, rng.random()))
        found.append(Passage(int(out), False, index > 0, False, rng.random()))


def _shifts(door: Door, seed: int, quarter_ms: int, found: list[Passage]) -> None:
    """Add staff: in before an opening that lies in this quarter, out after a closing that does."""
    local = _local(door, quarter_ms)
    opening = door.hours[local.weekday()]
    if opening is None or opening[1] - opening[0] >= 1440 or (local.fold and _repeated(local)):
        return
    minute = local.hour * 60 + local.minute
    opens, closes = minute <= opening[0] < minute + 15, minute < opening[1] <= minute + 15
    if not opens and not closes:
        return
    rng = random.Random(f"{seed}/{door.name}/staff/{quarter_ms}")
    for _ in range(door.staff):
        if opens:
            come = quarter_ms + (opening[0] - minute) * 60_000 - rng.randint(120_000, EARLY_MS)
            found.append(Passage(come, True, False, True, rng.random()))
        if closes:
            go = quarter_ms + (opening[1] - minute) * 60_000 + rng.randint(180_000, 1_800_000)
            found.append(Passage(go, False, False, True, rng.random()))


def _repeated(local: datetime) -> bool:
    return local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()


def _closing(door: Door, at_ms: int) -> int:
    """Return the closing instant after `at_ms`, or a time far away if the door never closes."""
    local = _local(door, at_ms)
    opening = door.hours[local.weekday()]
    if opening is None or opening[1] - opening[0] >= 1440:
        return at_ms + 10 * MAX_DWELL_MS
    midnight = datetime(local.year, local.month, local.day, tzinfo=local.tzinfo)
    wall = midnight + timedelta(minutes=opening[1])  # wall time, the zone's offset of that moment
    return int(wall.timestamp() * 1000)


@lru_cache(maxsize=16_384)
def _day_factor(name: str, sigma: float, seed: int, day: int) -> float:
    return random.Random(f"{seed}/{name}/day/{day}").lognormvariate(0.0, sigma)


@lru_cache(maxsize=16_384)
def _hour_factor(name: str, dispersion: float, seed: int, hour: int) -> float:
    rng = random.Random(f"{seed}/{name}/hour/{hour}")
    return rng.gammavariate(dispersion, 1 / dispersion)


def _local(door: Door, at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, _zone(door.zone))


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _second(luck: float) -> float:
    """Return a second uniform number out of the first one's far digits."""
    return luck * _PRIME % 1.0


def _cumulative(shares: tuple[float, ...]) -> list[float]:
    total = sum(shares)
    return [sum(shares[: index + 1]) / total for index in range(len(shares) - 1)]


_Answer = tuple[int, int, int, int]  # at_ms, who, question, answer


def _answers(passages: Iterable[Passage], kiosk: Kiosk, seed: int) -> Iterator[_Answer]:
    """Yield answers, up to a minute out of order; `who` is the passage's instant."""
    bounds = _cumulative(kiosk.answers)
    for at_ms, entering, _, staff, luck in passages:
        if entering or staff or _second(luck) >= kiosk.rate:
            continue
        rng = random.Random((seed << 64) ^ (kiosk.salt << 48) ^ at_ms)
        press_ms = at_ms - rng.randint(3_000, 20_000)
        mood = bisect(bounds, rng.random())
        yield press_ms, at_ms, 0, mood
        if rng.random() < kiosk.follow_up:
            likely = 10 - round(abs(rng.gauss(0, 1.5)) + 2.4 * mood)
            yield press_ms + rng.randint(1_500, 6_000), at_ms, 1, min(10, max(0, likely))


def _played(
    door: Door, kiosk: Kiosk, *, seed: int, start_ms: int, end_ms: int
) -> Iterator[_Answer]:
    """Yield bursts of 5 to 40 presses within 20 s, while the door is open."""
    for hour in range(start_ms // HOUR_MS * HOUR_MS, end_ms, HOUR_MS):
        rng = random.Random((seed << 64) ^ (kiosk.salt << 48) ^ hour ^ 1)
        if rng.random() >= kiosk.bursts_an_hour:
            continue
        begin = hour + rng.randrange(HOUR_MS - 20_000)
        if not rate_an_hour(door, seed=seed, at_ms=begin):
            continue
        times = sorted(begin + rng.randrange(20_000) for _ in range(rng.randint(5, 40)))
        for at_ms in times:
            if start_ms <= at_ms < end_ms:
                yield at_ms, -hour, 0, rng.randrange(len(kiosk.answers))


def _in_order(answers: Iterable[_Answer]) -> Iterator[_Answer]:
    """Put answers that are at most a minute out of order into order."""
    waiting: list[_Answer] = []
    for answer in answers:
        heappush(waiting, answer)
        while waiting[0][0] < answer[1] - 60_000:
            yield heappop(waiting)
    while waiting:
        yield heappop(waiting)
