"""Estimates against what they stand for: a share of real cells is hidden, imputed, and compared.

Two sources: simulated sites (`simulators.traffic` rates, groups and dispersion; several doors that
share their public), and, where the file is there, the hourly counts of Leeds' streets, which no
one made for this model. Outages are single hours and longer ones, of one counter or of all.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from functools import lru_cache
from math import sqrt
from zoneinfo import ZoneInfo

import numpy as np

from ops.evaluations.leeds import LEEDS
from ops.evaluations.promise import Promise, Size
from server.insight.imputation import Missing, SiteModel
from server.insight.profile import Cell, Counter
from simulators.counts_file import interpret, read_rows
from simulators.shapes import SHOP
from simulators.traffic import Door, random_door, rate_an_hour

HIDDEN = 0.05
DRAWS = 4  # of what is hidden of a street: one leaves the bias unsure by as much as it may be
WARM_DAYS = 126  # until the model knows its own spread
_LENGTHS = (1, 1, 1, 2, 3, 6, 24)  # hours of an outage
_ZONE = "Europe/London"


@dataclass(frozen=True, slots=True)
class Place:
    """A site of which everything is known: its cells, and what each counter would count."""

    name: str
    cells: tuple[Cell, ...]
    truth: tuple[tuple[float | None, ...], ...]


@dataclass(slots=True)
class Score:
    """How estimates did."""

    counted: float = 0.0
    estimated: float = 0.0
    cells: int = 0
    in80: int = 0
    in95: int = 0
    squares: float = 0.0

    def add(self, truth: float, model: SiteModel, missing: Sequence[Missing]) -> None:
        """Add the estimate of one bucket, of one cell or several."""
        means = [each.mean for each in missing]
        if None in means:
            return
        parts = [part for each in missing for part in each.parts]
        found = model.interval(parts)
        self.counted += truth
        self.estimated += sum(mean for mean in means if mean is not None)
        self.squares += (truth - sum(mean for mean in means if mean is not None)) ** 2
        self.cells += 1
        self.in80 += found.low80 <= truth <= found.high80
        self.in95 += found.low95 <= truth <= found.high95

    def promises(self, name: str, size: Size) -> list[Promise]:
        """Return what these estimates are held to; of a cut, give or take two deviations."""
        n, cases = self.cells, max(self.cells, 1)
        few = 0 if size.full else 2
        bias = self.estimated / max(self.counted, 1) - 1
        scatter = few * sqrt(self.squares) / max(self.counted, 1)
        found = [Promise(f"{name}: bias", bias, -0.01, 0.01, n, scatter)]
        for share, held, most in ((0.95, self.in95, 0.02), (0.8, self.in80, 0.03)):
            scatter = few * sqrt(share * (1 - share) / cases)
            text = f"{name}: truth in the {share:.0%} interval"
            bounds = round(share - most, 2), round(share + most, 2)
            found.append(Promise(text, held / cases, *bounds, n, scatter))
        return found


@dataclass(slots=True)
class Scores:
    """By cell, and by the day's sum."""

    hours: Score = field(default_factory=Score)
    days: Score = field(default_factory=Score)


def imputation(size: Size) -> list[Promise]:
    """Evaluate estimates on simulated sites and, where there are any, on Leeds' streets."""
    found: list[Promise] = []
    rng = random.Random(size.seed)  # noqa: S311 - draws outages, no secrets
    days = WARM_DAYS + (365 if size.full else 84)
    sites = [simulated(size.seed, number, days) for number in range(48 if size.full else 6)]
    for name, whole in (("simulated, one door out", False), ("simulated, all doors out", True)):
        scores = Scores()
        for site in sites:
            score(site, scores, rng, whole=whole)
        found += scores.hours.promises(f"{name}, hours", size)
        if size.full:
            found += scores.days.promises(f"{name}, days", size)
    if LEEDS.exists():
        streets = leeds(size)
        scores = Scores()
        for street in streets * (DRAWS if size.full else 1):
            score(street, scores, rng, whole=True)
        found += scores.hours.promises("Leeds, one street alone, hours", size)
        if size.full:
            found += scores.days.promises("Leeds, one street alone, days", size)
            scores = Scores()
            score(joined(streets), scores, rng, whole=False)
            found += scores.hours.promises("Leeds, as doors of one site, hours", size)
    return found


def score(place: Place, into: Scores, rng: random.Random, *, whole: bool) -> None:
    """Hide cells, impute them, and compare; `whole`: outages are of all counters at once."""
    hidden = outages(place, rng, whole=whole)
    counters = [
        Counter(
            [None if at in out else count for at, count in enumerate(truth)],
            [
                None if cell.open_s == 0 else 0.0 if at in out or truth[at] is None else 1.0
                for at, cell in enumerate(place.cells)
            ],
        )
        for truth, out in zip(place.truth, hidden, strict=True)
    ]
    model = SiteModel(place.cells, counters)
    first = place.cells[0].day + WARM_DAYS
    days: dict[int, list[tuple[float, Missing]]] = {}
    for at, cell in enumerate(place.cells):
        out = [n for n, each in enumerate(hidden) if at in each]
        truths = [place.truth[n][at] for n in out]
        if cell.day < first or not out or None in truths:
            continue
        missing = model.missing(at)
        if missing is None or any(t[at] is None for t in place.truth):
            continue
        truth = sum(t for t in truths if t is not None)
        into.hours.add(truth, model, [missing])
        days.setdefault(cell.day, []).append((truth, missing))
    for found in days.values():
        if len(found) > 1:
            into.days.add(sum(t for t, _ in found), model, [missing for _, missing in found])


def outages(place: Place, rng: random.Random, *, whole: bool) -> list[set[int]]:
    """Return which cells of each counter are hidden: `HIDDEN` of them, in stretches."""
    cells = len(place.cells)
    everyone = range(len(place.truth))
    hidden: list[set[int]] = [set() for _ in everyone]
    while sum(map(len, hidden)) < HIDDEN * cells * len(hidden):
        start = rng.randrange(cells)
        stretch = range(start, min(cells, start + rng.choice(_LENGTHS)))
        for number in everyone if whole else [rng.choice(everyone)]:
            if whole or not any(at in other for other in hidden for at in stretch):
                hidden[number].update(stretch)
    return hidden


def cell_of(start_s: int, zone: ZoneInfo, *, open_s: int = 3600) -> Cell:
    """Return the hour that begins at an instant."""
    local = datetime.fromtimestamp(start_s, zone)
    slot = local.weekday() * 24 + local.hour
    return Cell(start_s, start_s + 3600, slot, local.toordinal(), open_s, not local.fold)


@lru_cache(maxsize=8)
def simulated(seed: int, number: int, days: int) -> Place:
    """Return a site of two or three doors whose public is that of `simulators.traffic`.

    The rate, the day's factor and the hours are the simulator's; groups and the hour's factor are
    drawn as it draws them, and everyone takes one of the doors.
    """
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - draws shops, no secrets
    door = random_door(rng, f"evaluated-{number}", zone=_ZONE)
    door = replace(door, median_day=min(3_000.0, max(300.0, door.median_day)))
    draw = np.random.default_rng(rng.getrandbits(32))
    zone = ZoneInfo(_ZONE)
    doors = draw.dirichlet([4.0] * rng.choice((2, 2, 3)))
    cells: list[Cell] = []
    truth: list[list[float | None]] = [[] for _ in doors]
    for start_s, open_s in _opening(days, zone):
        cells.append(cell_of(start_s, zone, open_s=open_s))
        people = np.zeros(len(doors)) if open_s == 0 else _crowd(door, number, start_s, doors, draw)
        for mine, each in zip(truth, people, strict=True):
            mine.append(float(each))
    return Place(door.name, tuple(cells), tuple(tuple(each) for each in truth))


def _crowd(
    door: Door, seed: int, start_s: int, doors: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    draw: np.random.Generator,
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":  # fmt: skip
    """Return who enters in an hour, by door: groups of a Poisson process with a gamma factor."""
    quarters = range(start_s, start_s + 3600, 900)
    rate = sum(rate_an_hour(door, seed=seed, at_ms=at * 1000) for at in quarters) / 4
    groups = draw.poisson(rate / 1.52 * draw.gamma(door.dispersion, 1 / door.dispersion))
    through = draw.multinomial(groups, doors)
    sizes = [draw.multinomial(n, (0.62, 0.27, 0.08, 0.03)) @ (1, 2, 3, 4) for n in through]
    return np.array(sizes, dtype=np.float64)


def _opening(days: int, zone: ZoneInfo) -> Iterator[tuple[int, int]]:
    """Yield each hour of the simulated time, and for how long of it a shop is open."""
    first = date(2024, 9, 2)
    for offset in range(days):
        day = first + timedelta(days=offset)
        low, high = SHOP[day.weekday()] or (0, 0)
        start_s = int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp())
        for hour in range(8, 21):
            opened = 3600 if low <= hour * 60 < high else 0
            yield start_s + hour * 3600, opened


def leeds(size: Size) -> list[Place]:
    """Return Leeds' streets, each by itself, as they were counted in 2012 to 2014."""
    last = date(2014, 12, 31) if size.full else date(2013, 2, 28)
    file = interpret(
        read_rows(LEEDS), zone=_ZONE, duplicates=None, between=(date(2012, 1, 1), last)
    )
    zone = ZoneInfo(_ZONE)
    found: list[Place] = []
    for name, readings in sorted(file.readings.items())[: None if size.full else 2]:
        counts = {reading.start_s: float(reading.people) for reading in readings}
        starts = range(min(counts), max(counts) + 1, 3600)
        cells = tuple(cell_of(at, zone) for at in starts)
        found.append(Place(name, cells, (tuple(counts.get(at) for at in starts),)))
    return found


def joined(streets: Sequence[Place]) -> Place:
    """Return streets as the doors of one site, over the time that all of them know."""
    first = max(street.cells[0].start_s for street in streets)
    last = min(street.cells[-1].start_s for street in streets)
    truth = []
    for street in streets:
        at = (first - street.cells[0].start_s) // 3600
        truth.append(street.truth[0][at : at + (last - first) // 3600 + 1])
    at = (first - streets[0].cells[0].start_s) // 3600
    return Place("all", streets[0].cells[at : at + len(truth[0])], tuple(truth))
