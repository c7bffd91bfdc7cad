"""What conditions judge: a counter's quarters of an hour beside what is usual in them. Pure.

All series of a site lie on one grid: contiguous quarters up to now, the same for each of its
counters, so that quarter n of one is quarter n of all. A quarter's counts are as they were
measured; `observed_s` says of how much of it. What a standing mask took out of the coverage is
still here (a condition must see what it judges), but marked, so that nobody else relies on it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import asinh, sqrt
from typing import NamedTuple

QUARTER_S = 900
HOUR_S = 3_600
GROUP = 1.52
"""People come in groups of so many on average (`simulators/README.md`): fewer events than people,
and the variance of a count is at least so many times its mean."""


QUIET = 0.2
"""Hours in which less than this share of the busiest is usual tell nothing of a door's share: who
comes at night, and by which door, has little to do with the day."""


ALIVE = 0.5
"""The other doors of a site must hold this share of their usual: on a day that is less, or at
Christmas, how people share the doors is not known either."""


class Quarter(NamedTuple):
    """One quarter of an hour. `usual_*`: people expected of all of it, None if nothing is known."""

    start_s: int
    entered: float
    left: float
    observed_s: int
    is_open: bool
    usual_in: float | None = None
    usual_out: float | None = None
    masked: bool = False

    @property
    def end_s(self) -> int:
        return self.start_s + QUARTER_S

    @property
    def people(self) -> float:
        return self.entered + self.left

    @property
    def usual(self) -> float:
        """How many crossings are usual in all of it; 0 where that is not known."""
        return (self.usual_in or 0.0) + (self.usual_out or 0.0)

    @property
    def share(self) -> float:
        """The share of the quarter that was observed."""
        return self.observed_s / QUARTER_S


@dataclass(frozen=True, slots=True)
class Series:
    """A counter's quarters, and how its counts scatter around what is usual.

    `spread` is k of a negative binomial count (variance m + m^2 / k); `share_variance` is that of
    its share of its site's people, from hour to hour, beyond chance. `tails` are variances of that
    share by the worst that its last weeks held, and `silence` is the longest; see
    `server.health.tails`.
    """

    quarters: Sequence[Quarter]
    spread: float = 20.0
    share_variance: float = 0.03
    tails: Sequence[float] = ()
    silence: float = 0.0


class Sums(NamedTuple):
    """Counted and expected over observed quarters of opening time."""

    entered: float
    left: float
    usual_in: float
    usual_out: float
    observed_s: int

    @property
    def people(self) -> float:
        return self.entered + self.left

    @property
    def usual(self) -> float:
        return self.usual_in + self.usual_out


def telling(quarters: Sequence[Quarter]) -> float:
    """Return the usual of a quarter up to which it tells nothing: `QUIET` of the busiest."""
    return QUIET * max(
        (came + (went or 0.0) for _, _, _, _, _, came, went, _ in quarters if came is not None),
        default=0.0,
    )


def summed(quarters: Sequence[Quarter]) -> Sums:
    """Add up the open quarters of which it is known what is usual, each as far as observed."""
    entered = left = usual_in = usual_out = 0.0
    observed_s = 0
    for each in quarters:
        if each.is_open and each.observed_s and each.usual_in is not None:
            entered += each.entered
            left += each.left
            usual_in += each.usual_in * each.share
            usual_out += (each.usual_out or 0.0) * each.share
            observed_s += each.observed_s
    return Sums(entered, left, usual_in, usual_out, observed_s)


class Turn(NamedTuple):
    """A stretch of opening time by numbers of quarters, [low, high); `closes`: its end is seen."""

    low: int
    high: int
    closes: bool


def turns(quarters: Sequence[Quarter]) -> list[Turn]:
    """Return the stretches of opening time whose beginning is seen, in order.

    A shop that never closes has none.
    """
    found: list[Turn] = []
    low: int | None = None
    was_open = True  # what lies before the series is not seen
    for number, each in enumerate(quarters):
        if each.is_open and not was_open:
            low = number
        elif was_open and not each.is_open and low is not None:
            found.append(Turn(low, number, closes=True))
            low = None
        was_open = each.is_open
    if low is not None:
        found.append(Turn(low, len(quarters), closes=False))
    return found


def backwards(quarters: Sequence[Quarter]) -> Iterator[Quarter]:
    """Yield the quarters of opening time that were observed, the latest first."""
    return (each for each in reversed(quarters) if each.is_open and each.observed_s)


def deviation(counted: float, expected: float, *, factor: float, variance: float) -> float:
    """Return by how many standard deviations a count differs from what was expected.

    For a count of variance factor * m + variance * m^2, through the transformation under which
    that variance is 1 (N. Laubscher, Biometrika 48, 143, 1961): right also far below the mean.
    """
    scale = sqrt(variance / factor)

    def stable(people: float) -> float:
        return 2 / sqrt(variance) * asinh(scale * sqrt(max(people, 0.0)))

    return stable(counted) - stable(expected)
