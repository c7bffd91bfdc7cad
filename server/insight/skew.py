"""By how much a till's clock is wrong, from its sales beside the people who leave. Pure.

Who buys leaves soon after. So sales, five minutes by five, look like exits, shifted by the way
from till to door and by what the till's clock is ahead. Decided here:

- Both series lose what changes slowly (a mean over 65 minutes, within the day): shops are busy and
  quiet for all alike, and that alone would fit any shift. What is left is chance, and chance of the
  same people is at the same time.
- The covariance of both is computed for every shift up to 150 minutes. The highest within `MOST` is
  taken, and its place refined by the mean place of what is above a quarter of it, near it.
- It is believed only if it stands out: `CLEAR` standard deviations above the shifts that are far
  from it, from `LEAST_SALES` sales on `LEAST_DAYS` days with both. Otherwise nothing is said.
- The interval is of a jackknife over days (95 %, Student's t), to which is added that the way from
  till to door takes 1 to 4 minutes, and five minutes are the grain.

Positive: the till's clock is ahead of the door's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from typing import TYPE_CHECKING

from server.feedback.indices import Z, student_t

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Days = NDArray[np.float64]

BIN_MIN = 5
BINS = 24 * 60 // BIN_MIN
DAYS = 14
LEAST_DAYS = 7
LEAST_SALES = 100
CLEAR = 5.0
MOST = 60
"""Minutes; a clock further off is set to another zone, or by nobody."""
TO_DOOR_MIN = 2.5
_TO_DOOR_HALF = 1.5
_GRAIN = BIN_MIN / sqrt(12)
_FAR, _FARTHEST, _NEAR = 40, 150, 10
_SMOOTH = 13


class Unsaid(StrEnum):
    """Why nothing can be said."""

    NO_SALES = "no_sales"
    TOO_FEW_SALES = "too_few_sales"
    TOO_FEW_DAYS = "too_few_days"
    NOT_CLEAR = "not_clear"


@dataclass(frozen=True, slots=True)
class Skew:
    """Minutes by which a till's clock is ahead, with its interval; `clear`: how far it stands out.

    None, and `unsaid` says why, where that cannot be said.
    """

    minutes: float | None
    low: float | None
    high: float | None
    sales: int
    days: int
    clear: float | None
    unsaid: Unsaid | None = None

    @property
    def is_off(self) -> bool:
        """Whether the interval excludes a clock that is right."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def estimate(days: Sequence[tuple[Sequence[float], Sequence[float | None]]]) -> Skew:
    """Estimate from days of (sales, people out), both by `BINS` bins of 5 minutes.

    A bin in which people out are not known is None; a day that has neither is left out.
    """
    import numpy as np

    sales = round(sum(sum(sold) for sold, _ in days))
    both = [
        (sold, out) for sold, out in days if sum(sold) > 0 and sum(count or 0 for count in out) > 0
    ]
    if not sales:
        return _nothing(Unsaid.NO_SALES, 0, 0)
    if len(both) < LEAST_DAYS:
        return _nothing(Unsaid.TOO_FEW_DAYS, sales, len(both))
    if sales < LEAST_SALES:
        return _nothing(Unsaid.TOO_FEW_SALES, sales, len(both))
    known = np.array([[count is not None for count in out] for _, out in both], dtype=float)
    left = _residual(np.array([[count or 0.0 for count in out] for _, out in both]), known)
    sold = _residual(np.array([list(each) for each, _ in both], dtype=float), np.ones_like(known))
    products = _products(sold, left)
    place, clear = _peak(products.sum(axis=0))
    if place is None or clear < CLEAR:
        return _nothing(Unsaid.NOT_CLEAR, sales, len(both), clear)
    without = [_peak(products.sum(axis=0) - day)[0] for day in products]
    places = [each for each in without if each is not None]
    if len(places) < len(without):
        return _nothing(Unsaid.NOT_CLEAR, sales, len(both), clear)
    n, mean = len(places), sum(places) / len(places)
    spread = sqrt((n - 1) / n * sum((each - mean) ** 2 for each in places))
    half = sqrt((student_t(n - 1) * spread) ** 2 + (Z * _GRAIN) ** 2 / n + _TO_DOOR_HALF**2)
    if half > MOST / 4:
        return _nothing(Unsaid.NOT_CLEAR, sales, len(both), clear)
    minutes = TO_DOOR_MIN - place
    return Skew(minutes, minutes - half, minutes + half, sales, len(both), clear)


def _nothing(why: Unsaid, sales: int, days: int, clear: float | None = None) -> Skew:
    return Skew(None, None, None, sales, days, clear, why)


def _residual(series: "Days", known: "Days") -> "Days":
    """Return what is left of each day without what changes slowly; 0 where nothing is known."""
    import numpy as np

    window = np.ones(_SMOOTH)
    total = np.array([np.convolve(day, window, mode="same") for day in series * known])
    seen = np.array([np.convolve(day, window, mode="same") for day in known])
    left: Days = (series - total / np.maximum(seen, 1)) * known
    return left


def _products(sold: "Days", left: "Days") -> "Days":
    """Return by day, for each shift from -`_FARTHEST` on, the sum of sold(t) left(t + shift)."""
    import numpy as np

    reach = _FARTHEST // BIN_MIN
    padded = np.pad(left, ((0, 0), (reach, reach)))
    shifts = range(2 * reach + 1)
    found: Days = np.stack(
        [(sold * padded[:, at : at + BINS]).sum(axis=1) for at in shifts], axis=1
    )
    return found


def _peak(sums: "Days") -> tuple[float | None, float]:
    """Return where the products are highest, in minutes, and how far that stands out."""
    reach, most = _FARTHEST // BIN_MIN, MOST // BIN_MIN
    shifts = [(at - reach) * BIN_MIN for at in range(2 * reach + 1)]
    top = max(range(reach - most, reach + most + 1), key=lambda at: float(sums[at]))
    far = [float(s) for s, at in zip(sums, shifts, strict=True) if abs(at - shifts[top]) > _FAR]
    mean = sum(far) / len(far)
    spread = sqrt(sum((each - mean) ** 2 for each in far) / (len(far) - 1))
    high = float(sums[top]) - mean
    if spread <= 0 or high <= 0:
        return None, 0.0
    near = range(max(0, top - _NEAR // BIN_MIN), min(len(shifts), top + _NEAR // BIN_MIN + 1))
    above = [(shifts[at], max(0.0, float(sums[at]) - mean - high / 4)) for at in near]
    weight = sum(each for _, each in above)
    return sum(at * each for at, each in above) / weight, high / spread
