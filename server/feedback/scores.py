"""What answers to a battery say: scores by factor, reliability, drivers, and what may be shown.

Nothing is filled in for what was not asked. Who is asked what is drawn by lot, so means and
covariances of those who were asked both are those of all; each number comes with its n.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import fmean, median, variance
from typing import TYPE_CHECKING

from server.feedback.battery import Battery, ItemKind
from server.feedback.indices import Index, mean_index, student_t

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

LEAST_DRIVERS = 200
LEAST_TOGETHER = 30  # answered both of two factors
LEAST_RELIABILITY = 50  # answered both of two statements
LEAST_GROUP = 5
MEASURED = 200
"""From so many answers the p90 of the seconds is a measurement; before it is an estimate."""
_DRAWS, _AT_ONCE = 500, 50

Answers = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Cronbach's alpha and McDonald's omega of a factor; `n`: the fewest who answered two items.

    None where n is below `LEAST_RELIABILITY`, or the factor has too few statements.
    """

    alpha: float | None
    omega: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much the overall score rises with one point more of a factor, others equal."""

    factor: str
    gain: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Drivers:
    """The driver analysis, or why there is none: `refused` is its code, `n` how many count."""

    gains: tuple[Gain, ...]
    n: int
    penalty: float
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Seconds:
    """What answering took; an `estimate` below `MEASURED` answers."""

    median: float
    p90: float
    n: int

    @property
    def estimate(self) -> bool:
        return self.n < MEASURED


def means_of(battery: Battery, answers: Answers) -> dict[str, float]:
    """Return one visitor's mean of each factor that they were asked about, 1 to 5."""
    values: dict[str, list[int]] = {}
    for item in battery.of(ItemKind.STATEMENT):
        if item.key in answers:
            given = answers[item.key]
            values.setdefault(item.factor, []).append(6 - given if item.reverse else given)
    return {factor: fmean(found) for factor, found in values.items()}


def factor_scores(battery: Battery, answers: Sequence[Answers]) -> dict[str, Index | None]:
    """Return each factor's mean over visitors, 1 to 5, with its t interval and n."""
    rows = [means_of(battery, each) for each in answers]
    return {
        factor.key: _mean([row[factor.key] for row in rows if factor.key in row], 1, 5)
        for factor in battery.factors
    }


def overall_score(battery: Battery, answers: Sequence[Answers]) -> Index | None:
    """Return the mean of the overall score, 0 to 10, with its t interval and n."""
    (overall,) = battery.of(ItemKind.OVERALL)
    return _mean([each[overall.key] for each in answers if overall.key in each], 0, 10)


def _mean(values: Sequence[float], least: float, most: float) -> Index | None:
    n = len(values)
    if n == 0:
        return None
    mean = fmean(values)
    squares = 0.0 if min(values) == max(values) else variance(values) * (n - 1)
    return mean_index(mean, squares, n, scale=(least, most))


def seconds_taken(taken: Sequence[float]) -> Seconds | None:
    """Return median and p90 (nearest rank) of how long answering took."""
    if not taken:
        return None
    ranked = sorted(taken)
    return Seconds(median(ranked), ranked[ceil(0.9 * len(ranked)) - 1], len(ranked))


def reliability(battery: Battery, factor: str, answers: Sequence[Answers]) -> Reliability:
    """Return alpha and omega of a factor, from covariances of those who answered both of two.

    alpha = k c / (v + (k - 1) c) with mean variance v and mean covariance c. omega = (sum l)^2 /
    ((sum l)^2 + sum (v - l^2)) with the loadings l of one factor (principal axes); from 3 items on.
    """
    import numpy as np  # costs more than the server's start may

    items = [item for item in battery.of(ItemKind.STATEMENT) if item.factor == factor]
    rows = [
        [
            float("nan") if item.key not in each
            else float(6 - each[item.key] if item.reverse else each[item.key])
            for item in items
        ]
        for each in answers
        if any(item.key in each for item in items)
    ]  # fmt: skip
    k = len(items)
    if not rows or k < 2:
        return Reliability(None, None, len(rows))
    data = np.array(rows)
    moments, together = _moments(data, np.ones((1, len(data))))
    covariances, n = moments[0], int(together.min())
    if n < LEAST_RELIABILITY:
        return Reliability(None, None, n)
    variances = np.diag(covariances)
    v, c = float(variances.mean()), float((covariances.sum() - variances.sum()) / (k * (k - 1)))
    below = v + (k - 1) * c
    if min(variances) <= 0 or below <= 0:
        return Reliability(None, None, n)
    loadings = _one_factor(covariances) if k >= 3 else None
    omega = None
    if loadings is not None:
        common = float(loadings.sum()) ** 2
        omega = common / (common + float((variances - loadings**2).sum()))
    return Reliability(k * c / below, omega, n)


def _one_factor(covariances: "Matrix") -> "Matrix | None":
    """Return the loadings of one common factor, None where there is none (principal axes)."""
    import numpy as np

    variances = np.diag(covariances).copy()
    inner = covariances.copy()
    np.fill_diagonal(inner, np.abs(covariances - np.diag(variances)).max(axis=1))
    loadings: Matrix = np.zeros(len(variances))
    for _ in range(500):
        values, vectors = np.linalg.eigh(inner)
        if values[-1] <= 0:
            return None
        loadings = vectors[:, -1] * sqrt(values[-1])
        change = float(np.abs(loadings**2 - np.diag(inner)).max())
        np.fill_diagonal(inner, np.minimum(loadings**2, variances))
        if change < 1e-10:
            break
    return loadings if loadings.sum() >= 0 else -loadings


def drivers(battery: Battery, answers: Sequence[Answers], *, seed: int) -> Drivers:
    """Return what one point more of each factor does to the overall score, with 95 % intervals.

    Ridge regression, b = (S + pI)^-1 s, on covariances of those who answered both of two; penalty
    p = k s2 / (n b'b) by Hoerl, Kennard and Baldwin (1975), estimated anew in every draw. Intervals
    are percentiles of a bootstrap over visitors. Refused below `LEAST_DRIVERS` (`too_few`), where
    two factors met in too few (`seldom_together`), and where all say the same (`no_variation`).
    """
    import numpy as np

    (overall,) = battery.of(ItemKind.OVERALL)
    keys = [factor.key for factor in battery.factors]
    rows = [
        [*(means.get(key, float("nan")) for key in keys), float(each[overall.key])]
        for each in answers
        if overall.key in each and (means := means_of(battery, each))
    ]
    if len(rows) < LEAST_DRIVERS:
        return Drivers((), len(rows), 0.0, "too_few")
    data = np.array(rows)
    whole, together = _moments(data, np.ones((1, len(data))))
    if together.min() < LEAST_TOGETHER:
        return Drivers((), len(rows), 0.0, "seldom_together")
    if np.diag(whole[0]).min() <= 1e-12:
        return Drivers((), len(rows), 0.0, "no_variation")
    gains, penalty = _ridge(whole[0], len(rows))
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(_DRAWS // _AT_ONCE):
        even = np.full(len(data), 1 / len(data))
        weights = rng.multinomial(len(data), even, size=_AT_ONCE).astype(float)
        drawn += [_ridge(each, len(rows))[0] for each in _moments(data, weights)[0]]
    low, high = np.percentile(np.array(drawn), [2.5, 97.5], axis=0)
    found = (Gain(*each) for each in zip(keys, gains.tolist(), low.tolist(), high.tolist(),
                                         strict=True))  # fmt: skip
    return Drivers(tuple(sorted(found, key=lambda each: -each.gain)), len(rows), penalty)


def _moments(data: "Matrix", weights: "Matrix") -> "tuple[Matrix, Matrix]":
    """Return pairwise covariances for each row of weights, and the least weight of each pair.

    Of a pair only rows with both count, for their means, too.
    """
    import numpy as np

    there = (~np.isnan(data)).astype(float)
    zero = np.nan_to_num(data)
    k = data.shape[1]
    both = np.einsum("ni,nj->nij", there, there).reshape(len(data), k * k)
    firsts = np.einsum("ni,nj->nij", zero, there).reshape(len(data), k * k)
    products = np.einsum("ni,nj->nij", zero, zero).reshape(len(data), k * k)
    n, left, sums = weights @ both, weights @ firsts, weights @ products
    right = left.reshape(-1, k, k).swapaxes(1, 2).reshape(-1, k * k)
    covariances = (sums - left * right / np.maximum(n, 1)) / np.maximum(n - 1, 1)
    return covariances.reshape(-1, k, k), n.reshape(-1, k, k)


def _ridge(moments: "Matrix", n: int) -> "tuple[Matrix, float]":
    import numpy as np

    k = len(moments) - 1
    values, vectors = np.linalg.eigh(moments[:k, :k])
    values = np.maximum(values, 1e-6 * max(float(values[-1]), 1e-9))  # pairs need not agree
    turned = vectors.T @ moments[:k, k]
    plain = turned / values
    left_over = float(moments[k, k]) - float(plain @ turned)
    length = float(plain @ plain)
    penalty = k * max(left_over, 0.0) / (n * length) if length > 1e-12 else 0.0
    return vectors @ (turned / (values + penalty)), penalty


def kept(counts: Mapping[str, int], *, least: int = LEAST_GROUP) -> frozenset[str]:
    """Return the groups that may be shown apart: those of `least` and more.

    Were one group alone left out, the total would tell it; the smallest other goes with it.
    """
    small = {key for key, n in counts.items() if 0 < n < least}
    shown = {key: n for key, n in counts.items() if n >= least}
    if shown and small and sum(counts[key] for key in small) < least:
        del shown[min(shown, key=lambda key: (shown[key], key))]
    return frozenset(shown)


@dataclass(frozen=True, slots=True)
class Change:
    """How a factor's mean moved from one round to the next, with Welch's 95 % interval."""

    change: float
    low: float | None
    high: float | None
    n_before: int
    n_after: int


def changes(
    battery: Battery, before: Sequence[Answers], after: Sequence[Answers]
) -> dict[str, Change | None]:
    """Return each factor's change between two rounds; None where one of them has no answer."""
    rows = [[means_of(battery, each) for each in answers] for answers in (before, after)]
    return {
        factor.key: _change(*([row[factor.key] for row in found if factor.key in row]
                              for found in rows))
        for factor in battery.factors
    }  # fmt: skip


def _change(before: list[float], after: list[float]) -> Change | None:
    if not before or not after:
        return None
    moved, n, m = fmean(after) - fmean(before), len(before), len(after)
    if min(n, m) < 2:
        return Change(moved, None, None, n, m)
    a, b = variance(before) / n, variance(after) / m
    if a + b == 0:
        return Change(moved, None, None, n, m)
    freedom = (a + b) ** 2 / (a * a / (n - 1) + b * b / (m - 1))
    half = student_t(max(1, int(freedom))) * sqrt(a + b)
    return Change(moved, moved - half, moved + half, n, m)
