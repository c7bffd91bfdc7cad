"""What a counter may be expected to count, hour of the week by hour of the week. Pure.

Decided here (`reference` of the formulas: ARCHITECTURE.md, "Estimates"):
- A cell is one local hour (or quarter) of a site. Its *comparable* cells are the latest
  `WEEKS` of the same slot of the week, with the same opening time, measured to `COMPLETE`, no
  exceptional day, not older than `REACH_DAYS`; with fewer than `FEWEST` nothing is expected.
- The expectation is their median. The median of few people is a coarse step, so below `FEW` it is
  their mean, with what is far out drawn in.
- The level is what was counted over what was expected in the `LEVEL_DAYS` days before, the latest
  counting most; it carries the season, and what the median of skewed counts leaves out of their
  mean.
- Closed time is expected to hold nobody, and tells nothing.

Invariant: what is expected of a cell depends on nothing that was counted on its day or later.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from server.rollup.quality import COMPLETE

WEEKS = 8
FEWEST = 3
REACH_DAYS = 84
LEVEL_DAYS = 14
FEW = 8.0
FADING = 0.87  # a day weighs half as much as the one five days after it
_FAR = 5.0
_LEVEL_MEMORY = 1.7  # (1 + r) / (1 - r) of daily log ratios, whose lag-1 correlation r is .2 to .3
_FEWEST_DAYS = 3


class Cell(NamedTuple):
    """One hour or quarter of a site; `slot` of the week, `day` as an ordinal number.

    `usual`: no exceptional opening hours and no second pass of a repeated hour.
    """

    start_s: int
    end_s: int
    slot: int
    day: int
    open_s: int
    usual: bool = True


@dataclass(frozen=True, slots=True)
class Counter:
    """What one counter counted, cell by cell; coverage is of what should have been observed.

    Where nothing was to be observed (closed, no device assigned) coverage is None.
    """

    visits: Sequence[float | None]
    coverage: Sequence[float | None]

    def measured(self, at: int) -> float | None:
        """Return the count of a cell that was observed throughout, else None."""
        covered = self.coverage[at]
        return self.visits[at] if covered is not None and covered >= COMPLETE else None


class Level(NamedTuple):
    """How much busier than its weeks before a counter has been, and that figure's variance."""

    factor: float
    variance: float


NO_LEVEL = Level(1.0, 0.04)


def expectations(cells: Sequence[Cell], counter: Counter) -> list[float | None]:
    """Return what was to be expected of each cell, level apart; None: too little is known."""
    kept: dict[tuple[int, int], deque[tuple[int, float]]] = {}
    today: list[tuple[tuple[int, int], int, float]] = []
    found: list[float | None] = []
    day = None
    for at, cell in enumerate(cells):
        if cell.day != day:
            for key, when, count in today:
                kept.setdefault(key, deque(maxlen=WEEKS)).append((when, count))
            today.clear()
            day = cell.day
        if cell.open_s == 0:
            found.append(0.0)
            continue
        key = cell.slot, cell.open_s
        since = cell.day - REACH_DAYS
        found.append(typical([count for when, count in kept.get(key, ()) if when >= since]))
        counted = counter.measured(at)
        if counted is not None and cell.usual:
            today.append((key, cell.day, counted))
    return found


def typical(counts: Sequence[float]) -> float | None:
    """Return what counts of comparable cells let one expect; None of fewer than `FEWEST`."""
    if len(counts) < FEWEST:
        return None
    ordered, half = sorted(counts), len(counts) // 2
    median = ordered[half] if len(counts) % 2 else (ordered[half - 1] + ordered[half]) / 2
    if median >= FEW:
        return median
    most = median + _FAR * max(1.0, sqrt(median))
    return sum(min(count, most) for count in ordered) / len(ordered)


def levels(
    cells: Sequence[Cell], counter: Counter, expected: Sequence[float | None]
) -> dict[int, Level]:
    """Return the level that each day of `cells` begins with."""
    sums: dict[int, list[float]] = {}
    for at, cell in enumerate(cells):
        pair = sums.setdefault(cell.day, [0.0, 0.0])
        counted, wanted = counter.measured(at), expected[at]
        if counted is not None and wanted is not None and cell.open_s and cell.usual:
            pair[0] += counted
            pair[1] += wanted
    return {day: _level([sums.get(day - ago) for ago in range(1, LEVEL_DAYS + 1)]) for day in sums}


def _level(days: Sequence[Sequence[float] | None]) -> Level:
    """Return the level after `days`, the latest first."""
    known = [
        (FADING**ago * day[0], FADING**ago * day[1])
        for ago, day in enumerate(days)
        if day is not None and day[1] > 0
    ]
    counted, wanted = sum(day[0] for day in known), sum(day[1] for day in known)
    if len(known) < _FEWEST_DAYS or counted <= 0:
        return NO_LEVEL
    factor = counted / wanted
    spread = sum((day[0] - factor * day[1]) ** 2 for day in known)
    return Level(factor, _LEVEL_MEMORY * spread / counted**2)


def site_coverage(
    observed: Sequence[float], expected: Sequence[float], weights: Sequence[float | None]
) -> float | None:
    """Return c = sum w V / sum w E over a site's counters: a dead main door hurts more.

    `weights` are the counters' shares at that hour of the week, or what is in proportion to them;
    where one is unknown, or nobody is
    expected at all, all count alike. None if nothing was to be observed.
    """
    known = [weight for weight in weights if weight is not None]
    alike = len(known) < len(weights) or sum(known) <= 0
    shares = [1.0] * len(expected) if alike else known
    whole = sum(w * e for w, e in zip(shares, expected, strict=True))
    if whole <= 0:  # nobody is expected where something should be observed
        shares = [1.0] * len(expected)
        whole = float(sum(expected))
    if whole <= 0:
        return None
    part = sum(w * min(v, e) for w, v, e in zip(shares, observed, expected, strict=True))
    return min(1.0, part / whole)


def longest_without(cells: Sequence[Cell], counter: Counter, *, most_days: int) -> list[bool]:
    """Say of each cell whether its counter has measured nothing for more than `most_days` days.

    The days are those since the last moment that was observed throughout, opening time or not;
    cells in which nothing was to be observed neither end such a stretch nor begin one.
    """
    found: list[bool] = []
    since: int | None = None
    for at, cell in enumerate(cells):
        covered = counter.coverage[at]
        if covered is not None and covered >= COMPLETE:
            since = None
        elif covered is not None and since is None:
            since = cell.start_s
        found.append(since is not None and cell.end_s - since > most_days * 86_400)
    return found
