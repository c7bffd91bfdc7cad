"""Occupancy against who was inside: simulated people, seen by counters that miss and lean.

The people and the counters are those of `simulators.traffic`: each misses 1 to 5 % of the crossings
of each direction, and up to 7 % more of one. Errors are of the day's highest occupancy. While the
day lasts, what single misses add up to cannot be known: they alone make some 15 % of a small
shop's peak, against 60 % of in - out as it is.
"""

import random
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from math import sqrt
from zoneinfo import ZoneInfo

from ops.evaluations.promise import Promise, Size
from server.insight.drift import Inside, Kind, Quarter, inside
from simulators.shapes import SHOP
from simulators.traffic import people, random_door, random_sensor, sense

_ZONE = ZoneInfo("Europe/Stockholm")
_FIRST = date(2026, 3, 2)
_QUARTER_MS = 900_000


@dataclass(slots=True)
class Shop:
    """What its counter said by quarters, and the truth at their ends."""

    quarters: list[Quarter]
    opening: list[tuple[int, int]]
    truth: list[int]
    entered: int


@dataclass(slots=True)
class Error:
    """Squares of errors and of what they are measured by."""

    squares: float = 0.0
    peaks: float = 0.0
    number: int = 0
    held: int = 0
    banded: int = 0

    def add(self, found: Inside, truth: int, peak: int, people: float) -> None:
        """Add one quarter's occupancy, `people` as some method has it."""
        self.squares += (people - truth) ** 2
        self.peaks += peak**2
        self.number += 1
        if found.low is not None and found.high is not None:
            self.banded += 1
            self.held += found.low - 0.5 <= truth <= found.high + 0.5

    @property
    def share(self) -> float:
        """The root of the mean square, over that of the peaks."""
        return sqrt(self.squares / self.peaks) if self.peaks else 1.0


def occupancy(size: Size) -> list[Promise]:
    """Evaluate occupancy after closing and while the day lasts, its band, and the dwell."""
    rng = random.Random(size.seed)  # noqa: S311 - draws shops, no secrets
    days = 35 if size.full else 20
    after, during, raw = Error(), Error(), Error()
    negative = 0
    dwell: list[float] = []
    for number in range(16 if size.full else 3):
        shop = simulated(rng, number, days=days)
        _score(shop, after, during, raw)
        found, accounts = inside(shop.quarters, shop.opening, now_s=shop.quarters[-1].end_s)
        negative += sum(each.people is not None and each.people < 0 for each in found)
        seen = [each.dwell_s for each in accounts if each.dwell_s is not None]
        truth = sum(shop.truth) * 900 / max(shop.entered, 1)
        dwell.append(sum(seen) / len(seen) / truth - 1 if seen else 1.0)
    n = after.number
    return [
        Promise("occupancy after closing: error of the day's peak", after.share, 0, 0.1, n),
        Promise("occupancy while open: error of the day's peak", during.share, 0, 0.2, n),
        Promise("occupancy while open: error of that of in - out", during.share / raw.share,
                0, 0.4, n),
        Promise("occupancy while open: truth in the 95 % band",
                during.held / max(during.banded, 1), 0.92, 0.98, during.banded),
        Promise("occupancy: below zero", negative / max(n, 1), 0, 0, n),
        Promise("mean dwell: bias", sum(dwell) / len(dwell), -0.1, 0.1, len(dwell)),
    ]  # fmt: skip


def _score(shop: Shop, after: Error, during: Error, raw: Error) -> None:
    """Compare every quarter of the days that have a drift rate: in the evening, and as it was."""
    end_s = shop.quarters[-1].end_s
    final, _ = inside(shop.quarters, shop.opening, now_s=end_s)
    for low, high in shop.opening[15:]:
        first = (low - shop.quarters[0].start_s) // 900
        last = (high - shop.quarters[0].start_s) // 900
        lasting, _ = inside(shop.quarters[:last], shop.opening, now_s=high)
        peak = max(shop.truth[first:last])
        for at in range(first, last):
            truth, then = shop.truth[at], lasting[at]
            if then.kind is not Kind.LIVE or final[at].kind is not Kind.BACK_CORRECTED:
                continue
            after.add(final[at], truth, peak, final[at].people or 0.0)
            during.add(then, truth, peak, then.people or 0.0)
            raw.add(then, truth, peak, then.raw or 0.0)


def simulated(rng: random.Random, number: int, *, days: int) -> Shop:
    """Return a shop's weeks: what its counter saw, and who was inside."""
    door = random_door(rng, f"occupied-{number}")
    door = replace(door, median_day=min(1_500.0, max(200.0, door.median_day)))
    sensor = random_sensor(rng)
    start = datetime(_FIRST.year, _FIRST.month, _FIRST.day, tzinfo=_ZONE)
    end = start + timedelta(days=days)
    low, high = int(start.timestamp() * 1000), int(end.timestamp() * 1000)
    passages = list(people(door, seed=number, start_ms=low, end_ms=high))
    count = (high - low) // _QUARTER_MS
    change, entered = [0] * count, 0
    for passage in passages:
        change[(passage.at_ms - low) // _QUARTER_MS] += 1 if passage.entering else -1
        entered += passage.entering
    truth, now = [], 0
    for each in change:
        now += each
        truth.append(now)
    seen = [[0, 0] for _ in range(count)]
    for crossing in sense(passages, sensor):
        pair = seen[(crossing.at_ms - low) // _QUARTER_MS]
        pair[0] += crossing.entered
        pair[1] += crossing.left
    quarters = [
        Quarter(low // 1000 + 900 * at, float(pair[0]), float(pair[1]), True)
        for at, pair in enumerate(seen)
    ]
    opening = [_open(_FIRST + timedelta(days=offset)) for offset in range(days)]
    return Shop(quarters, opening, truth, entered)


def _open(day: date) -> tuple[int, int]:
    low, high = SHOP[day.weekday()] or (0, 0)
    start = datetime(day.year, day.month, day.day, tzinfo=_ZONE)
    begin, end = (start + timedelta(minutes=minute) for minute in (low, high))
    return int(begin.timestamp()), int(end.timestamp())
