"""The counts guard of rollouts: what it halts, how soon, and how often it halts for nothing.

Doors are drawn as `simulators.traffic` has them, summed by hour: daily volume lognormal (median
400), a factor of the day (14.5 %) that the doors of a site share, one of the chain (5 %), negative
binomial hours (k = 30), people in groups, the shapes' weekdays and hours by format of store, a slow
drift of each door; now and then an hour is not observed, or nobody comes on a day that the register
takes for an open one. A loss takes each person with its chance.

Streets of Leeds are doors, too: each five weeks of a camera, of which nothing is shared with the
others, so that nothing drops out. What is found there says what the guard does in the open.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from ops.evaluations.leeds import LEEDS
from ops.evaluations.promise import Promise, Size
from server.firmware.counts import (
    LOOKS,
    WEEKS,
    Day,
    Door,
    Judged,
    Sensitivity,
    Verdict,
    judge,
    sensitivity,
)
from simulators.counts_file import interpret, read_rows
from simulators.shapes import MONTHS, OFFICES, SHOP, STREET, Shape, quarter_share

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RUNS, SHORT = 200, 5
SIDE = 80
LOSS = 0.05
FIRST = 740_237  # a Monday, an ordinal number: looks begin here
_SPAN = 7 * WEEKS + LOOKS
_FORMATS: tuple[tuple[str, Shape], ...] = (("street", STREET), ("mall", STREET), ("city", OFFICES))
_GROUPS = (0.62, 0.27, 0.08, 0.03)
_MEAN_GROUP = 1.52


@dataclass(frozen=True, slots=True)
class Found:
    """What runs of one kind came to: on which look each was halted, if it was."""

    name: str
    halted: tuple[int | None, ...]
    effects: tuple[float, ...]
    held: tuple[bool, ...]

    @property
    def share(self) -> float:
        return sum(look is not None for look in self.halted) / len(self.halted)

    def line(self) -> str:
        """Return how many were halted by each look."""
        by = [
            sum(look is not None and look <= day for look in self.halted)
            for day in range(1, LOOKS + 1)
        ]
        days = " ".join(f"{n:>4}" for n in by)
        mean = sum(self.effects) / len(self.effects)
        return f"{self.name:<34} {days}  of {len(self.halted)}; mean effect {mean:+.2%}"


def chain(seed: str, *, doors: int, loss: float) -> list[Door]:
    """Return doors of a chain, half of them updated at `FIRST`, by lot; these lose `loss`."""
    import numpy as np

    chance = random.Random(seed)  # noqa: S311 - repeatable
    rng = np.random.default_rng(chance.getrandbits(64))
    sites: list[tuple[str, str, Shape]] = []
    while len(sites) < doors:
        kind, shape = chance.choice(_FORMATS)
        name = f"site-{len(sites):03}"
        sites += [(name, kind, shape)] * chance.choice((1, 1, 1, 2, 2, 3))
    sites = sites[:doors]
    weather = rng.lognormal(0, 0.05, _SPAN)
    day_of: dict[str, NDArray[np.float64]] = {}
    made: list[Door] = []
    for number, (site, kind, shape) in enumerate(sites):
        factor = day_of.setdefault(site, rng.lognormal(0, 0.145, _SPAN))
        volume = min(15_000.0, max(40.0, chance.lognormvariate(math.log(400), 1.225)))
        drift = 1 + rng.normal(0, 0.001) * (np.arange(_SPAN) - _SPAN / 2)
        people = _people(rng, shape, volume * weather * factor * drift)
        if rng.random() < 0.3:
            people[rng.integers(_SPAN)] = 0  # closed, and the register does not know
        made.append(Door(f"door-{number:03}", site, kind, None, _days(rng, people)))
    return dealt(made, chance, loss=loss, rng=rng)


@cache
def _hours(shape: Shape) -> list[list[float]]:
    """Return the share of a day's people by weekday and hour."""
    return [
        [sum(quarter_share(shape, SHOP, day, 4 * hour + n) for n in range(4)) for hour in range(24)]
        for day in range(7)
    ]


def _people(
    rng: "np.random.Generator", shape: Shape, daily: "NDArray[np.float64]"
) -> "NDArray[np.int64]":
    """Return how many people come on each day: hours of gamma factors, groups, their members."""
    import numpy as np

    weekdays = np.arange(FIRST - 7 * WEEKS - 1, FIRST - 7 * WEEKS - 1 + _SPAN) % 7
    rate = np.array(_hours(shape))[weekdays] * daily[:, None] * MONTHS[9]
    rate = rate * rng.gamma(30, 1 / 30, rate.shape) / _MEAN_GROUP
    people = np.zeros(len(daily), dtype=np.int64)
    for size, share in enumerate(_GROUPS, 1):
        people += size * rng.poisson(share * rate).sum(axis=1)
    return people


def _days(rng: "np.random.Generator", people: "NDArray[np.int64]") -> list[Day]:
    found = []
    for number, counted in enumerate(people):
        day = FIRST - 7 * WEEKS + number
        opens, closes = SHOP[(day - 1) % 7] or (0, 0)
        expected = 60 * (closes - opens)
        observed = expected if rng.random() > 0.02 else int(expected * rng.uniform(0.5, 0.97))
        found.append(Day(day, round(int(counted) * observed / expected), observed, expected))
    return found


def dealt(
    doors: Sequence[Door], chance: random.Random, *, loss: float, rng: "np.random.Generator"
) -> list[Door]:
    """Update half of the doors by lot, half of each stratum, and take from these what is lost."""
    updated: set[str] = set()
    strata: dict[str, list[str]] = {}
    for door in doors:
        strata.setdefault(door.stratum, []).append(door.ref)
    spare = 0
    for refs in strata.values():
        half = (len(refs) + spare) // 2
        spare = (len(refs) + spare) % 2
        updated |= set(chance.sample(refs, half))
    return [
        Door(
            door.ref,
            door.site,
            door.stratum,
            FIRST if door.ref in updated else None,
            [
                day
                if day.day < FIRST or door.ref not in updated
                else day._replace(counted=float(_lost(rng, day.counted, loss)))
                for day in door.days
            ],
        )
        for door in doors
    ]


def _lost(rng: "np.random.Generator", counted: float, loss: float) -> int:
    """Return what is left where each person is lost with the chance `loss`; -0.05: found twice."""
    if loss >= 0:
        return int(rng.binomial(int(counted), 1 - loss))
    return int(counted) + int(rng.binomial(int(counted), -loss))


def runs(name: str, count: int, seed: int, *, doors: int = 2 * SIDE, loss: float = 0.0) -> Found:
    """Judge `count` chains, each drawn by a seed of its own."""
    judged = [
        _judged(chain(f"{seed}/{name}/{n}", doors=doors, loss=loss), f"{seed}/{n}")
        for n in range(count)
    ]
    return _found(name, judged, -loss)


def _judged(doors: Sequence[Door], seed: str) -> Judged:
    return judge(doors, first=FIRST, today=FIRST + LOOKS, seed=seed)


def _found(name: str, judged: Sequence[Judged], truth: float) -> Found:
    last = [each.looks[-1] for each in judged if each.looks]
    return Found(
        name,
        tuple(each.looks[-1].number if each.halts else None for each in judged),
        tuple(look.effect for look in last),
        tuple(look.low <= truth <= look.high for look in last if look.number == LOOKS),
    )


def firmware(size: Size) -> list[Promise]:
    """Return what the guard promises: 80 updated and 80 control doors, seven days."""
    count = RUNS if size.full else SHORT
    spread = 0.0 if size.full else 2.5 * math.sqrt(0.1 * 0.9 / count)
    one = 0.0 if size.full else 1.1 / count
    print(f"{'halted by day':<34} {' '.join(f'{day:>4}' for day in range(1, LOOKS + 1))}")
    found = []
    nothing = runs(f"nothing, {SIDE} + {SIDE} doors", count, size.seed)
    lossy = runs(f"5 % lost, {SIDE} + {SIDE} doors", count, size.seed, loss=LOSS)
    for each in (nothing, lossy):
        print(each.line(), flush=True)
    found.append(Promise("a loss of 5 % halted within 7 days", lossy.share, 0.9, 1, count, spread))
    found.append(Promise("halts without any loss", nothing.share, 0, 0.02, count, one))
    if size.full:
        found += _more(count, size.seed, nothing)
    return found


def _more(count: int, seed: int, nothing: Found) -> list[Promise]:
    """Return what takes longer: other sizes of loss and of fleets, the interval, real streets."""
    twice = runs(f"5 % twice, {SIDE} + {SIDE} doors", count, seed, loss=-LOSS)
    large = runs(f"20 % lost, {SIDE} + {SIDE} doors", count, seed, loss=0.2)
    few = runs("nothing, 20 + 20 doors", count, seed, doors=40)
    small = runs("5 % lost, 20 + 20 doors", count, seed, doors=40, loss=LOSS)
    for each in (twice, large, few, small):
        print(each.line(), flush=True)
    held = sum(nothing.held) / len(nothing.held)
    found = [
        Promise("a loss of 20 % halted within 3 days", _by(large, 3), 0.95, 1, count),
        Promise("5 % counted twice halted within 7 days", twice.share, 0.8, 1, count),
        Promise("halts without any loss, 20 + 20 doors", few.share, 0, 0.02, count),
        Promise("95 % intervals that hold the truth", held, 0.92, 0.98, len(nothing.held)),
        *_foretold(count, seed),
    ]
    if LEEDS.exists():
        found += _streets(count, seed)
    else:
        print("no published counts here: simulated chains alone")
    return found


def _by(found: Found, look: int) -> float:
    return sum(at is not None and at <= look for at in found.halted) / len(found.halted)


def _foretold(count: int, seed: int) -> list[Promise]:
    """Return whether losses are halted as often as the plan's page says that they would be."""
    found = []
    for doors in (2 * SIDE, 40):
        told, halted = [], 0
        for n in range(count // 2):
            name = f"{seed}/foretold/{doors}/{n}"
            before = sensitivity(chain(name, doors=doors, loss=0), today=FIRST, seed=name)
            if not isinstance(before, Sensitivity):
                continue
            told.append(before.loss_90)
            judged = _judged(chain(name, doors=doors, loss=before.loss_90), name)
            halted += judged.verdict is Verdict.REGRESSED
        least = sorted(told)[len(told) // 2] if told else 0.0
        half = doors // 2
        print(f"{half} + {half} doors: the plan says that a loss of {least:.1%} is found in 90 %")
        name = f"a loss foretold as found in 90 % is, {half} + {half} doors"
        found.append(Promise(name, halted / max(1, len(told)), 0.8, 1, len(told)))
    return found


def _streets(count: int, seed: int) -> list[Promise]:
    """Return what the guard makes of real streets, dealt anew for each run."""
    import numpy as np

    pool = streets()
    chance = random.Random(seed)  # noqa: S311 - repeatable
    rng = np.random.default_rng(seed)
    found = []
    for loss in (0.0, LOSS):
        judged = []
        for n in range(count):
            doors = dealt(chance.sample(pool, 2 * SIDE), chance, loss=loss, rng=rng)
            judged.append(_judged(doors, f"{seed}/streets/{n}"))
        name = "streets of Leeds, 5 % lost" if loss else "streets of Leeds, nothing"
        found.append(_found(name, judged, -loss))
        print(found[-1].line(), flush=True)
    return [Promise("halts without any loss, streets of Leeds", found[0].share, 0, 0.02, count)]


def streets() -> list[Door]:
    """Return each six weeks of each camera of Leeds that were observed throughout, as a door."""
    file = interpret(read_rows(LEEDS), zone="Europe/London", duplicates="first")
    zone = ZoneInfo("Europe/London")
    found = []
    for place, readings in file.readings.items():
        days: dict[int, list[int]] = {}
        for reading in readings:
            at = datetime.fromtimestamp(reading.start_s, zone)
            if 8 <= at.hour < 20:
                days.setdefault(at.toordinal(), []).append(reading.people)
        monday = min(days) + (1 - min(days)) % 7
        for begin in range(monday, max(days) - _SPAN, _SPAN):
            own = [days.get(begin + n, []) for n in range(_SPAN)]
            if sum(len(hours) == 12 for hours in own) < 0.9 * _SPAN:
                continue
            shifted = [
                Day(FIRST - 7 * WEEKS + n, sum(hours), 3600 * len(hours), 12 * 3600)
                for n, hours in enumerate(own)
            ]
            ref = f"{place}-{begin}"
            found.append(Door(ref, ref, "street", None, shifted))
    return found
