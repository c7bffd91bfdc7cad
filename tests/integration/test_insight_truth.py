"""A month of many sites with faults on: what is served is the truth, or says what it is not.

`VESTIBULE_TRUTH_SITES` is how many sites; `make soak` runs more of them than a test has time for.
"""

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from math import sqrt

import numpy as np
import pytest

from server.db.engine import reading
from server.insight.estimate import Estimate, key_of, with_counts
from server.insight.imputation import Method
from server.rollup.answer import CountQuery, CountRow
from server.rollup.buckets import Size
from server.rollup.quality import Hours, Scope
from simulators.traffic import random_door, rate_an_hour
from tests.integration.api_world import ALL_SLOTS, NOW, World
from tests.integration.months_world import ZONE, Quarter, quarters_of, store

pytestmark = pytest.mark.services

SITES = int(os.environ.get("VESTIBULE_TRUTH_SITES", "6"))
MONTH, DAYS = date(2026, 3, 1), 31
HISTORY_DAYS = 77
OPEN = (10, 16)
HALF = (1 << 30) - 1  # the first half of a quarter's slots
_LENGTHS = (1, 2, 4, 4, 8, 12, 24)  # quarters of opening time that an outage lasts


@dataclass
class Door:
    """What really went through a door by quarter, and what its counter makes of it."""

    truth: dict[datetime, int]
    dark: set[datetime] = field(default_factory=set)
    half: set[datetime] = field(default_factory=set)
    late: set[datetime] = field(default_factory=set)

    def covered(self, at: datetime) -> float:
        return 0.0 if at in self.dark else 0.5 if at in self.half else 1.0


@dataclass
class Shop:
    """A site with its doors, by spot."""

    ref: str
    doors: dict[int, Door]


def crowds(number: int, rng: random.Random) -> list[dict[datetime, int]]:
    """Return who goes through each door of a shop: the simulator's rates, its groups and noise."""
    door = random_door(rng, f"truth-{number}")
    scale = max(1.0, 400 / door.median_day)
    draw = np.random.default_rng(rng.getrandbits(32))
    shares = draw.dirichlet([5.0, 5.0])
    found: list[dict[datetime, int]] = [{}, {}]
    factor = 1.0
    for at in quarters_of(MONTH - timedelta(days=HISTORY_DAYS), HISTORY_DAYS + DAYS, hours=OPEN):
        if at.minute == 0:
            factor = draw.gamma(door.dispersion, 1 / door.dispersion)
        rate = rate_an_hour(door, seed=number, at_ms=int(at.timestamp() * 1000)) / 4
        groups = draw.poisson(scale * rate / 1.52 * factor)
        for each, through in zip(found, draw.multinomial(groups, shares), strict=True):
            sizes = draw.multinomial(through, (0.62, 0.27, 0.08, 0.03))
            each[at] = int(sizes @ (1, 2, 3, 4))
    return found


def strike(doors: list[Door], rng: random.Random, *, silent: bool) -> None:
    """Break things in the month: gaps of one or both, halves of quarters, late data, a silence."""
    times = [at for at in doors[0].truth if at.date() >= MONTH]
    for _ in range(round(0.05 * len(times) / 8)):
        start = rng.randrange(len(times))
        stretch = times[start : start + rng.choice(_LENGTHS)]
        for door in doors if rng.random() < 0.4 else [rng.choice(doors)]:
            (door.late if rng.random() < 0.2 else door.dark).update(stretch)
    for at in rng.sample(times, 6):
        rng.choice(doors).half.add(at)
    if silent:
        doors[1].dark.update(at for at in times if at.day >= 18)


def rows_of(shop: Shop, rng: random.Random) -> Iterator[Quarter]:
    """Yield the rows that are stored at once; what is late is not among them."""
    for spot, door in shop.doors.items():
        for at, people in door.truth.items():
            if at in door.dark or at in door.late:
                continue
            if at in door.half:
                seen = sum(rng.random() < 0.5 for _ in range(people))
                yield Quarter(spot, at, seen, 0, HALF)
            else:
                yield Quarter(spot, at, people, 0, ALL_SLOTS)


async def build(
    world: World, rng: random.Random
) -> tuple[list[Shop], dict[tuple[int, datetime], int]]:
    """Store a fleet's months, late data last; return the truth and what was measured of it."""
    organisation = await world.organisation("own")
    shops: list[Shop] = []
    stored: dict[tuple[int, datetime], int] = {}
    for number in range(SITES):
        site = await world.site(
            organisation, f"site-{number:03}", hours=(OPEN[0] * 60, OPEN[1] * 60)
        )
        doors = [Door(truth) for truth in crowds(number, rng)]
        strike(doors, rng, silent=number % 10 == 3)
        spots = [await world.spot(organisation, site, f"spot-{number:03}-{n}") for n in (0, 1)]
        shops.append(Shop(f"site-{number:03}", dict(zip(spots, doors, strict=True))))
    rows = [row for shop in shops for row in rows_of(shop, rng)]
    await store(world, rows, changed=False)  # their sites are new: all of them is derived
    await world.derive()
    late = [
        Quarter(spot, at, door.truth[at], 0)
        for shop in shops
        for spot, door in shop.doors.items()
        for at in door.late - door.dark - door.half
    ]
    await store(world, late)
    await world.derive()
    for quarter in (*rows, *late):
        stored[quarter.spot, quarter.at] = quarter.entered
    return shops, stored


async def test_what_is_served_is_the_truth_or_says_how_far_it_may_be_off(world: World) -> None:
    rng = random.Random(11)
    shops, stored = await build(world, rng)
    until = MONTH + timedelta(days=DAYS)
    query = CountQuery(Size.HOUR, MONTH, until, Scope.OPEN, limit=1 << 30)
    organisation = await world.owner.fetchval("select id from organisations")
    async with reading(world.api, "truth", organisation=organisation) as connection:
        page, estimates = await with_counts(connection, query, now_s=int(NOW.timestamp()))
    by_ref = {shop.ref: shop for shop in shops}
    held: list[bool] = []
    counted = estimated = 0.0
    silenced = 0
    for row in page.rows:
        estimate = estimates.pop(key_of(row), None)
        if row.hours is Hours.CLOSED:
            assert (row.visits, estimate is not None and estimate.method) == (None, Method.CLOSED)
            continue
        truth, measured, coverage = facts(by_ref[row.site], row, stored)
        if coverage >= 0.98:
            assert (row.visits, estimate) == (truth, None), (row, truth)
            continue
        assert (row.visits or 0) == measured, row
        assert estimate is not None, row
        if estimate.value is None:
            assert after_a_week(by_ref[row.site], row), row
            silenced += 1
            continue
        held.append(holds(estimate, truth))
        counted, estimated = counted + truth, estimated + estimate.value
    assert estimates == {}, "nothing else exists"
    assert len(held) > 20 * SITES
    assert silenced > 0
    few = 2 * sqrt(0.95 * 0.05 / len(held)) if SITES < 100 else 0.0
    assert 0.93 - few <= sum(held) / len(held) <= 0.97 + few
    assert estimated / counted == pytest.approx(1, abs=0.01 if SITES >= 100 else 0.03)


def facts(
    shop: Shop, row: CountRow, stored: dict[tuple[int, datetime], int]
) -> tuple[int, int, float]:
    """Return what an hour's truth is, what was measured of it, and how much was observed."""
    start = datetime.fromisoformat(row.start).astimezone(ZONE)
    quarters = [start + timedelta(minutes=15 * n) for n in range(4)]
    pairs = [(spot, door, at) for spot, door in shop.doors.items() for at in quarters]
    return (
        sum(door.truth[at] for _, door, at in pairs),
        sum(stored.get((spot, at), 0) for spot, _, at in pairs),
        sum(door.covered(at) for _, door, at in pairs) / len(pairs),
    )


def holds(estimate: Estimate, truth: int) -> bool:
    assert estimate.low95 is not None
    assert estimate.high95 is not None
    return estimate.low95 <= truth <= estimate.high95


def after_a_week(shop: Shop, row: CountRow) -> bool:
    """Whether one of the doors has been dark for seven days before this hour ends."""
    end = datetime.fromisoformat(row.until).astimezone(ZONE)
    week = [
        at for at in next(iter(shop.doors.values())).truth if end - timedelta(days=7) <= at < end
    ]
    return any(all(at in door.dark for at in week) for door in shop.doors.values())
