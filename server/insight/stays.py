"""How long people stay, and so when those who came in buy. Pure."""

from collections.abc import Sequence
from math import erf, exp, log, sqrt


def later_purchases(median_min: float, *, bucket_min: float, sigma: float = 1.0) -> list[float]:
    """Return the share of a bucket's visitors who leave in it, in the next one, and so on.

    People come evenly over the bucket and stay lognormally (this median, this sigma). With
    G(x) = integral of the distribution from 0 to x: (G((j+1)L) - 2 G(jL) + G((j-1)L)) / L. Ends
    where 99.9 % have left, and is scaled to 1.
    """

    def integral(x: float) -> float:
        if x <= 0:
            return 0.0
        at = (log(x) - log(median_min)) / sigma
        mean = median_min * exp(sigma * sigma / 2)
        return x * _normal(at) - mean * _normal(at - sigma)

    length, shares = bucket_min, list[float]()
    while sum(shares) < 0.999 and len(shares) < 96:
        j = len(shares)
        shares.append(
            (integral((j + 1) * length) - 2 * integral(j * length) + integral((j - 1) * length))
            / length
        )
    total = sum(shares)
    return [share / total for share in shares]


def _normal(x: float) -> float:
    return 0.5 * (1 + erf(x / sqrt(2)))


def shifted(
    visits_by_bucket: Sequence[float | None], shares: Sequence[float]
) -> list[float | None]:
    """Return the visits whose purchase falls into each bucket; None where the bucket is missing.

    Missing buckets before it lend nothing; the first buckets lack those before the range.
    """
    found: list[float | None] = []
    for n, here in enumerate(visits_by_bucket):
        if here is None:
            found.append(None)
            continue
        found.append(
            sum((visits_by_bucket[n - j] or 0) * share for j, share in enumerate(shares) if j <= n)
        )
    return found
