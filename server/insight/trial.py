"""Trials in pairs of sites: matching, the sealed draw, the exact test and what it can find. Pure.

Two sites make a pair; in each pair a coin says which of them is treated. What is compared is, in
each pair, how much more the treated site's logarithm rose than its partner's (`Pair.difference`):
the mean of the weekly ln after the start less that before it, over weeks in which both sites were
observed. So whatever moves both sites (weather, pay-day, a season) drops out, and exp(effect) - 1
is the ratio of ratios: 1.12 against 1.10 is +1.82 %, not +2 points.

Invariants:
- Without an effect each coin could as well have fallen the other way: p is the share of all 2^n
  assignments that would have given a difference as large (sign flips; all of them to `EXACT_PAIRS`,
  beyond that `DRAWS` drawn ones, with the one that was in it). The interval holds exactly those
  effects that the same test does not reject.
- Whatever is asked of fewer pairs than `least_pairs` is refused: no outcome could be significant.
- Before the horizon an answer is "no decision", whatever the numbers are.
- The draw follows from seed and design alone. `commitment` binds seed, time and design before the
  start: SHA-256 of three lines `<seed in hex>\\n<time, ISO, UTC>\\n<design>`. The coin of pair n,
  from 0, is the lowest bit of the first byte of SHA-256 of `<seed in hex>\\n<n>\\n<design>`; 0
  treats the first site.
"""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import combinations, pairwise
from math import exp, fsum, inf, log, sqrt
from statistics import NormalDist

ALPHA = 0.05
POWER = 0.8
EXACT_PAIRS = 12
DRAWS = 10_000
MOST_METRICS = 3
COMPARABLE = 0.9
"""A week counts if so much of it was observed."""

_NORMAL = NormalDist()
_FLAT = 1e-9  # an sd of logarithms below this is that of rounding
_CLOSE = 1e-12  # two sums of the same numbers in another order are equal to about this


def least_pairs(metrics: int = 1) -> int:
    """Return the fewest pairs of which the least p, 2 / 2^n, can pass Holm's first step.

    6 for one metric: of 5 pairs the least two-sided p is 0.0625.
    """
    pairs = 1
    while least_p(pairs) > ALPHA / metrics:
        pairs += 1
    return pairs


def least_p(pairs: int) -> float:
    """Return the least two-sided p that so many pairs can give."""
    return 1.0 if pairs < 1 else 2.0 ** (1 - pairs)


# -- matching ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Candidate:
    """A site that may take part: weekly values by metric, of the same weeks as everyone's.

    None where a week was not observed. Only candidates of one `block` are paired.
    """

    ref: str
    series: Mapping[str, Sequence[float | None]]
    block: str = ""


@dataclass(frozen=True, slots=True)
class Matched:
    """Two sites that were alike before, by ref; how far apart they were."""

    first: str
    second: str
    distance: float


def matched(candidates: Sequence[Candidate]) -> list[Matched]:
    """Return pairs of candidates that are alike, nearest first; of an odd number one is left out.

    Distance is Euclidean over each metric's level (mean ln) and trend (how much ln rose over these
    weeks), both in units of that metric's spread over the candidates. Pairs are taken greedily and
    then improved by swapping until no swap of two pairs, or with one left out, makes the sum of
    distances smaller.
    """
    points = _points(candidates)
    blocks: dict[str, list[str]] = {}
    for each in sorted(candidates, key=lambda each: each.ref):
        if each.ref in points:
            blocks.setdefault(each.block, []).append(each.ref)
    pairs = [pair for refs in blocks.values() for pair in _pairs(refs, points)]
    found = [
        Matched(min(a, b), max(a, b), round(_distance(points[a], points[b]), 6)) for a, b in pairs
    ]
    return sorted(found, key=lambda pair: (pair.distance, pair.first))


def _points(candidates: Sequence[Candidate]) -> dict[str, tuple[float, ...]]:
    """Return each candidate's place by levels and trends; those without enough weeks lack."""
    raw = {}
    for each in candidates:
        shapes = [_level_and_trend(series) for series in each.series.values()]
        known = [shape for shape in shapes if shape is not None]
        if len(known) == len(shapes):
            raw[each.ref] = known
    scales = [
        sqrt(_sd([level for level, _ in shapes]) ** 2 + _sd([trend for _, trend in shapes]) ** 2)
        for shapes in zip(*raw.values(), strict=True)
    ]
    return {
        ref: tuple(
            value / scale
            for shape, scale in zip(shapes, scales, strict=True)
            for value in shape
            if scale > _FLAT
        )
        for ref, shapes in raw.items()
    }


def _level_and_trend(series: Sequence[float | None]) -> tuple[float, float] | None:
    """Return mean ln and its rise over the weeks; None unless three quarters of them are known."""
    known = [(week, log(v)) for week, v in enumerate(series) if v is not None and v > 0]
    if len(known) < 3 or 4 * len(known) < 3 * len(series):
        return None
    middle = fsum(week for week, _ in known) / len(known)
    level = fsum(y for _, y in known) / len(known)
    slope = fsum((week - middle) * y for week, y in known)
    return level, len(series) * slope / fsum((week - middle) ** 2 for week, _ in known)


def _sd(values: Sequence[float]) -> float:
    mean = fsum(values) / len(values)
    return sqrt(fsum((v - mean) ** 2 for v in values) / len(values))


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return sqrt(fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def _pairs(refs: Sequence[str], points: Mapping[str, tuple[float, ...]]) -> list[tuple[str, str]]:
    far = {(a, b): _distance(points[a], points[b]) for a, b in combinations(sorted(refs), 2)}
    apart = {**far, **{(b, a): d for (a, b), d in far.items()}}
    free, pairs = set(refs), []
    for a, b in sorted(far, key=lambda pair: (far[pair], pair)):
        if a in free and b in free:
            pairs.append((a, b))
            free -= {a, b}
    left = next(iter(free), None)
    improved = True
    while improved:  # each round makes the sum smaller, of finitely many sums
        improved = False
        for i, j in combinations(range(len(pairs)), 2):
            (a, b), (c, d) = pairs[i], pairs[j]
            now = apart[a, b] + apart[c, d]
            for one, other in (((a, c), (b, d)), ((a, d), (b, c))):
                if apart[one] + apart[other] < now - _CLOSE:
                    pairs[i], pairs[j], improved = one, other, True
                    break
        for i, (a, b) in enumerate(pairs):
            for stays, goes in ((a, b), (b, a)):
                if left is not None and apart[stays, left] < apart[a, b] - _CLOSE:
                    pairs[i], left, improved = (stays, left), goes, True
                    break
    return pairs


# -- the draw ------------------------------------------------------------------------------------


def commitment(seed: bytes, at: datetime, design: str) -> str:
    """Return the hash that binds a draw, to be shown before the start."""
    text = f"{seed.hex()}\n{at.astimezone(UTC).isoformat()}\n{design}"
    return hashlib.sha256(text.encode()).hexdigest()


def draw(seed: bytes, design: str, *, pairs: int) -> tuple[int, ...]:
    """Return for each pair which of its sites is treated: 0 the first, 1 the second."""
    digests = (
        hashlib.sha256(f"{seed.hex()}\n{number}\n{design}".encode()).digest()
        for number in range(pairs)
    )
    return tuple(digest[0] & 1 for digest in digests)


# -- what is compared ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Week:
    """A site's week: a metric's value, and the share of its opening hours that was observed."""

    value: float | None
    coverage: float | None

    @property
    def counts(self) -> bool:
        """Whether it is compared: observed well, and above zero, of which alone there is a ln."""
        observed = self.coverage is not None and self.coverage >= COMPARABLE
        return observed and self.value is not None and self.value > 0


class Excluded(StrEnum):
    """Why a pair is left out, both of its sites."""

    TOPOLOGY = "topology_changed"
    OUTAGE = "outage"
    COVERAGE = "coverage_low"
    PARITY = "coverage_unequal"
    NO_VALUES = "no_values"


ENOUGH_WEEKS = 0.75
"""Of the weeks before and of those after, so many are needed in which both sites count."""
OUTAGE_BELOW = 0.5
"""Observed less than this in a week after the start: it is not known what went on there."""
PARITY = 0.05
"""Mean coverage after the start may differ so much between the two, or what is missing does."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One site's weeks before and after the start; `changed`: its doors or counters were."""

    before: Sequence[Week]
    after: Sequence[Week]
    changed: bool = False


@dataclass(frozen=True, slots=True)
class Pair:
    """A treated site and its partner, of the same weeks."""

    treated: Arm
    control: Arm

    @property
    def excluded(self) -> Excluded | None:
        """Return why the pair does not count, None if it does; not by how large its values are."""
        arms = (self.treated, self.control)
        if any(arm.changed for arm in arms):
            return Excluded.TOPOLOGY
        covered = [[week.coverage or 0.0 for week in arm.after] for arm in arms]
        if any(share < OUTAGE_BELOW for shares in covered for share in shares):
            return Excluded.OUTAGE
        for ours, theirs in self._stretches():
            both = [
                min(a.coverage or 0.0, b.coverage or 0.0) >= COMPARABLE
                for a, b in zip(ours, theirs, strict=True)
            ]
            if sum(both) < ENOUGH_WEEKS * len(both):
                return Excluded.COVERAGE
        one, other = (fsum(shares) / len(shares) for shares in covered)
        if abs(one - other) > PARITY:
            return Excluded.PARITY
        for ours, theirs in self._stretches():
            if len(_gaps_between(ours, theirs)) < ENOUGH_WEEKS * len(ours):
                return Excluded.NO_VALUES
        return None

    @property
    def difference(self) -> float:
        """Return how much more the treated site's ln rose; only of a pair that is not excluded."""
        before, after = (_gaps_between(*stretch) for stretch in self._stretches())
        return fsum(after) / len(after) - fsum(before) / len(before)

    def _stretches(self) -> tuple[tuple[Sequence[Week], Sequence[Week]], ...]:
        return (
            (self.treated.before, self.control.before),
            (self.treated.after, self.control.after),
        )


def _gaps_between(ours: Sequence[Week], theirs: Sequence[Week]) -> list[float]:
    """Return ln(ours / theirs) of the weeks in which both count."""
    return [
        log(a.value / b.value)
        for a, b in zip(ours, theirs, strict=True)
        if a.counts and b.counts and a.value is not None and b.value is not None
    ]


# -- the test ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Effect:
    """The mean difference of ln with its interval (infinite where the pairs are too few), and p."""

    estimate: float
    low: float
    high: float
    p: float
    pairs: int
    exact: bool

    @property
    def relative(self) -> tuple[float, float, float]:
        """Return estimate, low and high as shares: 0.02 is 2 % more than without the treatment."""
        return exp(self.estimate) - 1, exp(self.low) - 1, _up(self.high)


def _up(value: float) -> float:
    return inf if value == inf else exp(value) - 1


def effect_of(differences: Sequence[float], *, rng: random.Random, alpha: float = ALPHA) -> Effect:
    """Return the effect of one metric; `rng` draws flips where there are too many for all.

    Under an effect t the flipped sum is as large as the real one if and only if the mean of those
    that were flipped is at most t. So p of t counts subsets by their means, and the interval's ends
    are two of these means in order (Hartigan 1969).
    """
    n = len(differences)
    if not n:
        return Effect(0.0, -inf, inf, 1.0, 0, exact=True)
    exact = n <= EXACT_PAIRS
    total = fsum(differences)
    subsets = _all_subsets(differences) if exact else _drawn_subsets(differences, rng)
    tolerance = _CLOSE * max(1.0, *(abs(d) for d in differences)) * n
    large = sum(abs(total - 2 * part) >= abs(total) - tolerance for part, _ in subsets)
    means = sorted(part / size for part, size in subsets if size)
    kept = int(alpha / 2 * len(subsets) + _CLOSE)
    low, high = (means[kept - 1], means[-kept]) if kept else (-inf, inf)
    return Effect(total / n, low, high, large / len(subsets), n, exact=exact)


def _all_subsets(values: Sequence[float]) -> list[tuple[float, int]]:
    """Return sum and size of each subset."""
    found = [(0.0, 0)]
    for value in values:
        found += [(part + value, size + 1) for part, size in found]
    return found


def _drawn_subsets(values: Sequence[float], rng: random.Random) -> list[tuple[float, int]]:
    """Return sum and size of `DRAWS` drawn subsets, their complements, none and all."""
    n, total = len(values), fsum(values)
    found = [(0.0, 0), (total, n)]
    for _ in range(DRAWS):
        bits = rng.getrandbits(n)
        chosen = [values[i] for i in range(n) if bits >> i & 1]
        part = fsum(chosen)
        found += [(part, len(chosen)), (total - part, n - len(chosen))]
    return found


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return each metric's p adjusted for their number (Holm 1979), at most 1."""
    found: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        found[name] = highest
    return {name: found[name] for name in p}


class Standing(StrEnum):
    """What may be said of a trial now."""

    EARLY = "no_decision_early"
    TOO_FEW = "no_decision_too_few_pairs"
    FOUND = "difference"
    NOT_FOUND = "no_difference"


def standing_of(adjusted: Iterable[float], *, pairs: int, metrics: int, over: bool) -> Standing:
    """Return what may be said; `over`: the horizon that was locked at the start is past."""
    if not over:
        return Standing.EARLY
    if pairs < least_pairs(metrics):
        return Standing.TOO_FEW
    return Standing.FOUND if any(p <= ALPHA for p in adjusted) else Standing.NOT_FOUND


# -- what it can find ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """How a pair's weekly difference of ln varies without any effect: sd, and lag-1 correlation."""

    sd: float
    lag1: float


def spread_of(series: Iterable[Sequence[float | None]]) -> Spread | None:
    """Return the spread over pairs' weekly differences, None where there are too few weeks.

    Each pair has its own mean. The lag-1 correlation of so short series is too low by about
    (1 + 3 r) / weeks (Kendall 1954), and the sd with it; both are corrected for that.
    """
    squares, products, free, steps, lengths = [], [], 0, 0, []
    for each in series:
        known = [v for v in each if v is not None]
        if len(known) < 4:
            continue
        mean = fsum(known) / len(known)
        centred = [None if v is None else v - mean for v in each]
        squares += [v * v for v in centred if v is not None]
        near = [a * b for a, b in pairwise(centred) if a is not None and b is not None]
        products += near
        free, steps = free + len(known) - 1, steps + len(near)
        lengths.append(len(known))
    if not lengths or not steps or fsum(squares) == 0:
        return None
    weeks = fsum(lengths) / len(lengths)
    raw = (fsum(products) / steps) / (fsum(squares) / len(squares))
    lag1 = min(0.95, max(0.0, (weeks * raw + 1) / (weeks - 3) if weeks > 4 else raw))
    variance = fsum(squares) / free
    kept = 1 - (_mean_variance(lag1, round(weeks)) - 1 / weeks) * weeks / (weeks - 1)
    return Spread(sqrt(variance / max(kept, 0.05)), lag1)


def _mean_variance(lag1: float, weeks: int) -> float:
    """Return the variance of the mean of so many weeks of an AR(1) of variance 1."""
    return (1 + 2 * fsum((1 - k / weeks) * lag1**k for k in range(1, weeks))) / weeks


def change_sd(spread: Spread, *, before: int, after: int) -> float:
    """Return the sd of one pair's difference between so many weeks before and after."""
    weights = [-1 / before] * before + [1 / after] * after
    powers = [spread.lag1**k for k in range(before + after)]
    variance = fsum(
        a * b * powers[abs(i - j)] for i, a in enumerate(weights) for j, b in enumerate(weights)
    )
    return spread.sd * sqrt(variance)


def detectable(spread: Spread, *, pairs: int, before: int, after: int, metrics: int = 1) -> float:
    """Return the least relative change that is found in 80 of 100 trials of this design."""
    sd = change_sd(spread, before=before, after=after)
    return exp(_needed(pairs, metrics) * sd / sqrt(pairs)) - 1


def _needed(pairs: int, metrics: int) -> float:
    """Return the effect, in standard errors, that the test finds in 80 of 100 trials."""
    if (pairs, metrics) in _SIMULATED:
        return _SIMULATED[pairs, metrics]
    if pairs < least_pairs(metrics):
        return inf
    return _t(1 - ALPHA / metrics / 2, pairs - 1) + _t(POWER, pairs - 1)


_SIMULATED: Mapping[tuple[int, int], float] = {
    **{(n, 1): c for n, c in enumerate((4.391, 3.515, 3.368, 3.271, 3.185, 3.124, 3.077), 6)},
    **{(n, 2): c for n, c in enumerate((4.918, 3.981, 3.789, 3.667, 3.587, 3.530), 7)},
    **{(n, 3): c for n, c in enumerate((4.918, 4.379, 4.147, 3.982, 3.859, 3.753), 7)},
}
"""By pairs and metrics, where the flips are so few that p moves in steps: 6 pairs must all point
the same way. Of 16,000 to 40,000 simulated trials each, with normal differences."""


def _t(p: float, free: int) -> float:
    """Return a quantile of Student's t from 11 degrees on, to 0.1 % (Cornish and Fisher 1938)."""
    z = _NORMAL.inv_cdf(p)
    return (
        z
        + (z**3 + z) / (4 * free)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    )
