"""Sites beside each other: a funnel with its limits, and ranks only where intervals part. Pure.

Each site has weekly ln ratios (of its own value to what is expected of it) and, for each week, how
many events stand behind it: counting alone would give the ratio a variance of 1 / events. The
chain's week, the mean over sites weighted by events, is taken out first: what all sites share says
nothing of any of them.

- Real weeks differ by more than counting alone makes them, and one week is like the next.
  `Chain.dispersion` says how much: the mean squared weekly deviation of sites from their own mean,
  in counting variances, times (1 + r) / (1 - r) for their lag-1 correlation r. Never below 1.
- The funnel's limits at n events are +-z sqrt(dispersion / n): z 1.96 holds 95 of 100 sites, and
  3.09 998 of 1000, if sites do not differ. Outside the latter is `outside`.
- A site is set against the chain's middle: the median of sites, weighted by what is known of each,
  which one odd site does not move.
- `between` is the variance with which sites do differ (DerSimonian and Laird 1986); what is shown
  of a site is drawn to the chain's middle by between / (between + dispersion / n).
- A rank is the range of places a site may have, from how many are surely above and below: two sites
  part where their 95 % intervals do not meet. `2-5` may be the second or the fifth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from math import fsum, sqrt

from server.feedback.indices import Z

WARN, ALARM = Z, 3.090232
LEAST_SITES = 5
LEAST_WEEKS = 4
_MOST_LAG1 = 0.9


@dataclass(frozen=True, slots=True)
class Series:
    """A site's weekly ln ratios, None where a week does not count, and the events behind each."""

    ref: str
    ratios: Sequence[float | None]
    events: Sequence[float]

    @property
    def weeks(self) -> int:
        """How many weeks count."""
        return sum(ratio is not None for ratio in self.ratios)


class Outside(StrEnum):
    """On which side of the funnel a site is, further out than chance takes it."""

    ABOVE = "above"
    BELOW = "below"


@dataclass(frozen=True, slots=True)
class Place:
    """One site among the others, in ln of its ratio to the chain; ranks from 1, best (highest)."""

    ref: str
    weeks: int
    events: float
    ratio: float
    low: float
    high: float
    shrunk: float
    shrunk_low: float
    shrunk_high: float
    outside: Outside | None
    best_rank: int
    worst_rank: int

    @property
    def rank(self) -> str:
        """The rank as it is shown: `3`, or `2-5` where intervals meet."""
        if self.best_rank == self.worst_rank:
            return str(self.best_rank)
        return f"{self.best_rank}–{self.worst_rank}"


@dataclass(frozen=True, slots=True)
class Chain:
    """The sites that could be compared, best first, and what their limits follow from."""

    places: tuple[Place, ...]
    dispersion: float
    between: float

    def limits(self, events: float) -> tuple[float, float]:
        """Return the funnel's half widths at so many events: of 95 and of 99.8 %."""
        se = sqrt(self.dispersion / events)
        return WARN * se, ALARM * se


def compare(series: Sequence[Series]) -> Chain | None:
    """Return the comparison of sites with `LEAST_WEEKS`; None of fewer than `LEAST_SITES`."""
    enough = [each for each in series if each.weeks >= LEAST_WEEKS and _events(each) > 0]
    if len(enough) < LEAST_SITES:
        return None
    own = _less_the_chain(enough)
    means = [_mean(each) for each in own]
    counts = [_events(each) for each in own]
    dispersion = _dispersion(own, means)
    variances = [dispersion / n for n in counts]
    centre, between = _between(means, variances)
    spans = [
        (m - centre - Z * sqrt(v), m - centre + Z * sqrt(v))
        for m, v in zip(means, variances, strict=True)
    ]
    places = []
    for each, mean, n, variance, (low, high) in zip(
        own, means, counts, variances, spans, strict=True
    ):
        ratio = mean - centre
        kept = between / (between + variance)
        half = Z * sqrt(kept * variance)
        above, below = sum(a > high for a, _ in spans), sum(b < low for _, b in spans)
        far = abs(ratio) > ALARM * sqrt(variance)
        side = Outside.ABOVE if ratio > 0 else Outside.BELOW
        places.append(
            Place(
                each.ref,
                each.weeks,
                n,
                ratio,
                low,
                high,
                kept * ratio,
                kept * ratio - half,
                kept * ratio + half,
                side if far else None,
                1 + above,
                len(spans) - below,
            )
        )
    places.sort(key=lambda place: (place.best_rank + place.worst_rank, -place.shrunk, place.ref))
    return Chain(tuple(places), dispersion, between)


def _events(series: Series) -> float:
    """Return the events behind the weeks that count."""
    pairs = zip(series.ratios, series.events, strict=True)
    return fsum(n for ratio, n in pairs if ratio is not None)


def _mean(series: Series) -> float:
    pairs = zip(series.ratios, series.events, strict=True)
    return fsum(r * n for r, n in pairs if r is not None) / _events(series)


def _less_the_chain(series: Sequence[Series]) -> list[Series]:
    """Return each site's ratios without what all sites' weeks share.

    A week moves all by the same; found by turns with the sites' own means, so that a site that
    was observed in good weeks alone is not taken for a good one.
    """
    weeks = max(len(each.ratios) for each in series)
    shared = [0.0] * weeks
    own = [_mean(each) for each in series]
    for _ in range(_TURNS):
        for week in range(weeks):
            held = [
                (ratio - mean, each.events[week])
                for each, mean in zip(series, own, strict=True)
                if week < len(each.ratios) and (ratio := each.ratios[week]) is not None
            ]
            n = fsum(events for _, events in held)
            shared[week] = fsum(r * events for r, events in held) / n if n > 0 else 0.0
        own = [_mean(_without(each, shared)) for each in series]
    return [_without(each, shared) for each in series]


_TURNS = 20  # each brings week and site effects nearer; few gaps, and the second is exact


def _without(series: Series, shared: Sequence[float]) -> Series:
    ratios = [
        None if ratio is None else ratio - shared[week] for week, ratio in enumerate(series.ratios)
    ]
    return Series(series.ref, ratios, series.events)


def _dispersion(series: Sequence[Series], means: Sequence[float]) -> float:
    """Return by how much weeks vary more than counting makes them, as they hang together."""
    squares: list[float] = []
    products: list[float] = []
    for each, mean in zip(series, means, strict=True):
        deviations = [
            None if ratio is None else (ratio - mean) * sqrt(events)
            for ratio, events in zip(each.ratios, each.events, strict=True)
        ]
        squares += [d * d for d in deviations if d is not None]
        products += [a * b for a, b in pairwise(deviations) if a is not None and b is not None]
    weeks = max(len(each.ratios) for each in series)
    free = len(squares) - len(series) - weeks + 1
    if free <= 0:
        return 1.0
    variance = fsum(squares) / free
    lag1 = 0.0
    if products and fsum(squares) > 0:
        raw = (fsum(products) / len(products)) / (fsum(squares) / len(squares))
        lag1 = min(_MOST_LAG1, max(0.0, raw + (1 + 3 * raw) / weeks))  # so short series say less
    return max(1.0, variance * (1 + lag1) / (1 - lag1))


def _between(means: Sequence[float], variances: Sequence[float]) -> tuple[float, float]:
    """Return the chain's middle and the variance between sites, by moments."""
    weights = [1 / v for v in variances]
    total = fsum(weights)
    fixed = fsum(w * m for w, m in zip(weights, means, strict=True)) / total
    q = fsum(w * (m - fixed) ** 2 for w, m in zip(weights, means, strict=True))
    scale = total - fsum(w * w for w in weights) / total
    between = max(0.0, (q - (len(means) - 1)) / scale)
    return _median(means, [1 / (v + between) for v in variances]), between


def _median(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted median, between two values where half the weight lies between them."""
    ranked = sorted(zip(values, weights, strict=True))
    half, below = fsum(weights) / 2, 0.0
    for number, (value, weight) in enumerate(ranked):
        below += weight
        if below > half * (1 + _CLOSE):
            return value
        if below >= half * (1 - _CLOSE):
            return (value + ranked[number + 1][0]) / 2
    return ranked[-1][0]


_CLOSE = 1e-12
