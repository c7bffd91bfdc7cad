"""How many people a counter would have counted while it did not, and how sure that is. Pure.

Decided here:
- Of a counter that was not observed for a part of a cell, that part is imputed; what it did count
  stays what it is. In this order:
  `known`: a gap holds their sum, only not their minutes: it is spread by the profile.
  `others`: other counters of the site were live: x = X_others * p / (1 - p), p being its share.
  `profile`: none were, or too few people passed them: expectation times level (`profile`).
- Nothing is imputed after `MOST_DAYS` days without a measurement, nor without expectation.
- Imputed people are negative binomial around their mean. Their variance is m + v m^2 for one cell,
  where v is found in the site's own weeks before (`spread_of`), apart for the 80 % and the 95 %
  interval since real tails are heavier than this distribution's. Of v, a share belongs to the
  whole day, so that the hours of one outage err together; the level's own error is common to all.

Invariants: a measurement is never changed; low95 <= low80 <= high80 <= high95; none is below what
was measured.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, sqrt
from typing import TYPE_CHECKING, NamedTuple

from server.insight.profile import (
    NO_LEVEL,
    Cell,
    Counter,
    Level,
    expectations,
    levels,
    longest_without,
    site_coverage,
)
from server.rollup.quality import COMPLETE

if TYPE_CHECKING:
    import numpy as np

    FloatArray = np.ndarray[tuple[int], np.dtype[np.float64]]

MODEL = "1"
"""Raised whenever the same history would give other estimates."""
MOST_DAYS = 7
ENOUGH_OTHERS = 20.0
TEST_DAYS = 84
MOST_TESTS = 500
FEWEST_TESTS = 60
_NOTHING = 0.001  # of a cell: slots of 15 s round


class Method(StrEnum):
    """How an estimate was made; `closed`: nobody, since the site was closed; `none`: it was not."""

    OTHERS = "others"
    PROFILE = "profile"
    KNOWN = "known"
    CLOSED = "closed"
    NONE = "none"
    MIXED = "mixed"


class Spread(NamedTuple):
    """Excess variance over the mean's square, by interval, and what share of it is the day's."""

    v80: float
    v95: float
    of_day: float


USUAL = Spread(0.05, 0.08, 0.5)
"""For a site too young to know its own: what a busy street shows."""


class Known(NamedTuple):
    """People who were counted in [start_s, end_s), at no known minute."""

    start_s: int
    end_s: int
    visits: float


class Kind(StrEnum):
    """What an imputed part is unsure by: the whole site, one counter, its share, or its place."""

    SITE = "site"
    SPOT = "spot"
    SHARE = "share"
    PLACE = "place"


class Part(NamedTuple):
    """The people imputed to one cell; `of` is the known sum they are a part of."""

    kind: Kind
    day: int
    mean: float
    level_variance: float = 0.0
    of: Known | None = None


class Missing(NamedTuple):
    """What is imputed to one cell of a site; `mean` None: nothing may be."""

    mean: float | None
    parts: tuple[Part, ...]


class Interval(NamedTuple):
    """The bounds of what was missed, of 80 and 95 % of such cases."""

    low80: float
    high80: float
    low95: float
    high95: float


class Trial(NamedTuple):
    """What was counted in a cell beside what would have been imputed to it."""

    day: int
    counted: float
    mean: float


@dataclass(slots=True)
class SiteModel:
    """A site's cells and counters with what is expected of each.

    Spreads, and what is expected in the time of a known sum, are worked out once.
    """

    cells: Sequence[Cell]
    counters: Sequence[Counter]
    known: Sequence[Sequence[Known]] = ()
    expected: list[list[float | None]] = field(init=False)
    levels: list[dict[int, Level]] = field(init=False)
    _silent: list[list[bool]] = field(init=False)
    _tests: dict[Kind, list[Trial]] = field(init=False, default_factory=dict)
    _spreads: dict[tuple[Kind, int], Spread] = field(init=False, default_factory=dict)
    _wholes: dict[tuple[int, Known], float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.expected = [expectations(self.cells, each) for each in self.counters]
        pairs = zip(self.counters, self.expected, strict=True)
        self.levels = [levels(self.cells, each, expected) for each, expected in pairs]
        self._silent = [
            longest_without(self.cells, each, most_days=MOST_DAYS) for each in self.counters
        ]

    def mean(self, number: int, at: int) -> float | None:
        """Return what counter `number` is expected to count in a cell, its level included."""
        expected = self.expected[number][at]
        return None if expected is None else expected * self._level(number, at).factor

    def missing(self, at: int, *, only: Collection[int] | None = None) -> Missing | None:
        """Return what is imputed to a cell, of all counters or `only` of some.

        None if it was observed to `COMPLETE`, or the site was closed.
        """
        cell = self.cells[at]
        covered = [each.coverage[at] for each in self.counters]
        live = [n for n, c in enumerate(covered) if c is not None and c >= COMPLETE]
        dead = [
            (n, 1 - c)
            for n, c in enumerate(covered)
            if c is not None and c < COMPLETE and (only is None or n in only)
        ]
        if cell.open_s == 0 or not dead:
            return None
        through = self._through(live, at)
        kind = Kind.SPOT if live or only is not None else Kind.SITE
        parts: list[Part] = []
        possible = True
        for number, share in dead:
            for known, spread, part in self._placed(number, at):
                parts.append(Part(Kind.PLACE, cell.day, spread, of=known))
                share -= part
            if share <= _NOTHING:
                continue
            imputed = self._imputed(number, at, through, kind)
            if imputed is None or self._silent[number][at]:
                possible = False
            else:
                parts.append(imputed._replace(mean=imputed.mean * share))
        return Missing(sum(part.mean for part in parts) if possible else None, _joined(parts))

    def coverage(
        self, cells: Iterable[int], *, only: Collection[int] | None = None
    ) -> float | None:
        """Return the coverage of cells by traffic, or as it is if that is lower."""
        weighted: list[tuple[float, float, float | None]] = []
        for at in cells:
            for number, counter in enumerate(self.counters):
                covered = counter.coverage[at]
                if only is not None and number not in only:
                    continue
                if covered is not None and self.cells[at].open_s:
                    seconds = float(self.cells[at].open_s)
                    weighted.append((covered * seconds, seconds, self._weight(number, at)))
        if not weighted:
            return None
        observed, expected, weights = (list(column) for column in zip(*weighted, strict=True))
        by_traffic = site_coverage(observed, expected, weights)
        plain = site_coverage(observed, expected, [1.0] * len(expected))
        return None if by_traffic is None or plain is None else min(by_traffic, plain)

    def spread(self, kind: Kind, day: int) -> Spread:
        """Return how far such imputations were off in the weeks before that of `day`."""
        monday = day - (day - 1) % 7
        found = self._spreads.get((kind, monday))
        if found is None:
            if kind not in self._tests:
                self._tests[kind] = list(self._tested(kind))
            before = [t for t in self._tests[kind] if monday - TEST_DAYS <= t.day < monday]
            found = self._spreads[kind, monday] = spread_of(before)
        return found

    def interval(self, parts: Sequence[Part]) -> Interval:
        """Return the bounds of the sum of imputed parts, of one cell or many."""
        mean = sum(part.mean for part in parts)
        low80, high80 = bounds(mean, self._variance(parts, wide=False), 0.8)
        low95, high95 = bounds(mean, self._variance(parts, wide=True), 0.95)
        return Interval(low80, high80, min(low80, low95), max(high80, high95))

    def _variance(self, parts: Sequence[Part], *, wide: bool) -> float:
        people, common = 0.0, 0.0
        days: dict[tuple[Kind, int], list[float]] = {}
        placed: dict[Known, float] = {}
        for part in parts:
            if part.of is not None:
                placed[part.of] = placed.get(part.of, 0.0) + part.mean
                continue
            people += part.mean
            common += part.mean * sqrt(part.level_variance)
            days.setdefault((part.kind, part.day), []).append(part.mean)
        least = (common / people) ** 2 if people else 0.0
        variance = people + common**2
        for (kind, day), means in days.items():
            spread = self.spread(kind, day)
            excess = max(0.0, (spread.v95 if wide else spread.v80) - least)
            squares = sum(mean**2 for mean in means)
            variance += excess * (spread.of_day * sum(means) ** 2 + (1 - spread.of_day) * squares)
        for known, mean in placed.items():
            share = min(1.0, mean / known.visits)
            spread = self.spread(Kind.SPOT, parts[0].day)
            excess = spread.v95 if wide else spread.v80
            variance += known.visits * share * (1 - share) * (1 + excess * mean)
        return variance

    def _level(self, number: int, at: int) -> Level:
        return self.levels[number].get(self.cells[at].day, NO_LEVEL)

    def _weight(self, number: int, at: int) -> float | None:
        """Return how many people a second of a cell is expected to see."""
        mean = self.mean(number, at)
        return None if mean is None else mean / self.cells[at].open_s

    def _through(self, live: Sequence[int], at: int) -> tuple[float, float] | None:
        """Return what live counters counted and what they were expected to; None if too few."""
        means = [self.mean(number, at) for number in live]
        expected = sum(mean for mean in means if mean is not None)
        if None in means or expected < ENOUGH_OTHERS:
            return None
        return sum(self.counters[number].visits[at] or 0.0 for number in live), expected

    def _imputed(
        self, number: int, at: int, through: tuple[float, float] | None, kind: Kind
    ) -> Part | None:
        day, mean = self.cells[at].day, self.mean(number, at)
        if mean is None:
            return None
        if through is not None:  # p / (1 - p) is the counter's mean over the others' mean
            return Part(Kind.SHARE, day, through[0] * mean / through[1])
        return Part(kind, day, mean, self._level(number, at).variance)

    def _placed(self, number: int, at: int) -> list[tuple[Known, float, float]]:
        """Return what of each known sum falls into a cell, and what share of the cell it covers."""
        cell = self.cells[at]
        found: list[tuple[Known, float, float]] = []
        for known in self.known[number] if self.known else ():
            part = _overlap(known, cell)
            if part <= 0:
                continue
            whole = self._whole(number, known)
            mine = (self.mean(number, at) or 0.0) * part
            if whole > 0:
                found.append((known, known.visits * mine / whole, part))
        return found

    def _whole(self, number: int, known: Known) -> float:
        """Return what a counter is expected to count in the time of a known sum."""
        found = self._wholes.get((number, known))
        if found is None:
            found = self._wholes[number, known] = sum(
                (self.mean(number, other) or 0.0) * _overlap(known, self.cells[other])
                for other in self._within(known)
            )
        return found

    def _within(self, known: Known) -> range:
        """Return the cells that a known sum may lie in."""
        low, high = 0, len(self.cells)
        while low < high:
            middle = (low + high) // 2
            if self.cells[middle].end_s <= known.start_s:
                low = middle + 1
            else:
                high = middle
        last = low
        while last < len(self.cells) and self.cells[last].start_s < known.end_s:
            last += 1
        return range(low, last)

    def _tested(self, kind: Kind) -> "list[Trial]":
        """Return, of every cell that was measured, what would have been imputed to it."""
        found: list[Trial] = []
        everyone = range(len(self.counters))
        for at, cell in enumerate(self.cells):
            if cell.open_s == 0 or not cell.usual:
                continue
            counted = [each.measured(at) for each in self.counters]
            means = [self.mean(number, at) for number in everyone]
            pairs = [(c, m) for c, m in zip(counted, means, strict=True) if c is not None and m]
            if kind is Kind.SPOT:
                found += [Trial(cell.day, count, mean) for count, mean in pairs]
            elif len(pairs) == len(counted):
                count, mean = sum(c for c, _ in pairs), sum(m for _, m in pairs)
                if kind is Kind.SITE:
                    found.append(Trial(cell.day, count, mean))
                    continue
                for own, part in pairs:
                    if mean - part >= ENOUGH_OTHERS:
                        found.append(Trial(cell.day, own, (count - own) * part / (mean - part)))
        return found


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return the parts of one cell, those that all doors were out for as one: they err together."""
    site = [part for part in parts if part.kind is Kind.SITE]
    if len(site) < 2:
        return tuple(parts)
    mean = sum(part.mean for part in site)
    error = sum(part.mean * sqrt(part.level_variance) for part in site)
    one = Part(Kind.SITE, site[0].day, mean, (error / mean) ** 2 if mean else 0.0)
    return (one, *(part for part in parts if part.kind is not Kind.SITE))


def _overlap(known: Known, cell: Cell) -> float:
    """Return what share of a cell lies within a known sum's time."""
    inside = min(known.end_s, cell.end_s) - max(known.start_s, cell.start_s)
    return max(0, inside) / (cell.end_s - cell.start_s)


def spread_of(tests: Sequence[Trial]) -> Spread:
    """Return the excess variances at which the intervals would have held what they promise.

    The v of an interval is where the share of `tests` inside it is the promised one: a negative
    binomial whose dispersion k = 1/v is the site's own. Few tests give `USUAL`.
    """
    if len(tests) < FEWEST_TESTS:
        return USUAL
    step = max(1, ceil(len(tests) / MOST_TESTS))
    v80, v95 = fitting(tests[::step], (0.8, 0.95))
    return Spread(v80, v95, _of_day(tests, v95))


_GRID = tuple(0.001 * 1.35**n for n in range(28))


def fitting(trials: Sequence[Trial], wanted: Sequence[float]) -> list[float]:
    """Return, by interval, the v at which it begins to hold the wanted share of `trials`."""
    import numpy as np
    from scipy.special import betainc

    counted = np.array([trial.counted for trial in trials])
    mean = np.maximum(np.array([trial.mean for trial in trials]), 0.01)
    laws: dict[int, tuple[FloatArray, FloatArray]] = {}

    def held(step: int, share: float) -> float:
        if step not in laws:
            v = _GRID[step]
            k, p = 1 / v, 1 / (1 + v * mean)
            below = np.where(counted >= 1, betainc(k, np.maximum(counted, 1.0), p), 0.0)
            laws[step] = below, betainc(k, counted + 1, p)
        below, upto = laws[step]
        tail = (1 - share) / 2
        return float(((upto >= tail) & (below < 1 - tail)).mean())

    found: list[float] = []
    for share in wanted:
        low, high = -1, len(_GRID) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if held(middle, share) >= share else (middle, high)
        before = held(low, share) if low >= 0 else 0.0
        step = held(high, share) - before
        part = min(1.0, (share - before) / step) if step > 0 else 1.0
        least = _GRID[low] if low >= 0 else 0.0
        found.append(least + (_GRID[high] - least) * part)
    return found


def _of_day(tests: Sequence[Trial], v: float) -> float:
    """Return what share of the excess variance is common to the cells of a day, by moments."""
    errors: dict[int, tuple[float, float, float, float]] = {}
    for day, counted, mean in tests:
        most = 3 * sqrt(mean + v * mean**2)
        error = min(most, max(-most, counted - mean))
        total, squares, means, mean_squares = errors.get(day, (0.0, 0.0, 0.0, 0.0))
        errors[day] = total + error, squares + error**2, means + mean, mean_squares + mean**2
    single = sum(day[1] - day[2] for day in errors.values())
    pairs = sum(day[0] ** 2 - day[1] for day in errors.values())
    apart = sum(day[3] for day in errors.values())
    together = sum(day[2] ** 2 - day[3] for day in errors.values())
    if single <= 0 or apart <= 0 or together <= 0:
        return 0.0
    return min(1.0, max(0.0, (pairs / together) / (single / apart)))


def bounds(mean: float, variance: float, share: float) -> tuple[float, float]:
    """Return the equal-tailed interval of a count that holds `share` of its distribution.

    Negative binomial where the variance exceeds the mean, else normal (a part of a known sum).
    """
    if variance <= 0 or mean <= 0:
        return mean, mean
    tail = (1 - share) / 2
    if variance <= mean * 1.0001:
        from statistics import NormalDist

        half = NormalDist().inv_cdf(1 - tail) * sqrt(variance)
        return max(0.0, mean - half), mean + half
    k = mean**2 / (variance - mean)
    return float(quantile(mean, k, tail)), float(quantile(mean, k, 1 - tail))


def quantile(mean: float, k: float, share: float) -> int:
    """Return the least count at which a negative binomial's distribution reaches `share`."""
    from scipy.special import betainc

    p = k / (k + mean)
    low, high = -1, max(1, ceil(mean))
    while betainc(k, high + 1, p) < share:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if betainc(k, middle + 1, p) >= share:
            high = middle
        else:
            low = middle
    return high
