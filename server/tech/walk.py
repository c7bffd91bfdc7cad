"""The walk test: what a technician saw pass, beside what the device counted. Pure.

The technician taps `in` or `out` for everybody who passes while the test runs, from the beginning
of one reading interval (a cell) to the end of another. Decided here:

- Only cells that the device has told of count; the others are still on their way.
- A tap and a count belong together if they are of the same way and the same cell. A tap within
  `SLACK_MS` of a cell's edge may also belong to the cell beyond: fingers are late, clocks differ.
  As many as possible are paired: each tap in turn takes the earliest cell that it may.
- A tap without a count was *missed*, a count without a tap is *extra*. Either is wrong; the share
  of what is wrong has an exact interval (Clopper and Pearson, 95 %). The device is good if even the
  interval's upper end is no more than `TOLERANCE`, bad if even its lower end is more.
- A device that pairs better with its ways exchanged is turned round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import exp, lgamma, log
from typing import NamedTuple

CONFIDENCE = 0.95
TOLERANCE = 0.15
"""Nobody wrong among 24 is enough for this, one among 36: some two minutes at a door."""
SLACK_MS = 2_500
LONGEST_MS = 2 * 3_600_000
MOST_TAPS = 2_000
LEAST_TURNED = 5
_MOST_MORE = 500
_HALF = (1 - CONFIDENCE) / 2
_HALVINGS = 42  # to within 1e-12
_NEGLIGIBLE = 1e-15


class Way(StrEnum):
    """Through the door, as the shop sees it."""

    IN = "in"
    OUT = "out"


class Tap(NamedTuple):
    """Somebody passed at an instant."""

    at_ms: int
    way: Way


class Cell(NamedTuple):
    """What the device counted from `start_ms` on, for one interval."""

    start_ms: int
    entered: int
    left: int

    def of(self, way: Way) -> int:
        return self.entered if way is Way.IN else self.left


class Verdict(StrEnum):
    """What is to be said of a device."""

    WAITING = "waiting"  # nothing to compare yet
    MORE = "more"  # so far so good: too few for certainty
    GOOD = "good"
    BAD = "bad"
    TURNED = "turned"


@dataclass(frozen=True, slots=True)
class Share:
    """`k` of `n`, with its exact interval."""

    k: int
    n: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class OneWay:
    """One way's account; `seen` is the share of the taps that were counted (None: no taps)."""

    walked: int
    counted: int
    paired: int
    seen: Share | None

    @property
    def missed(self) -> int:
        return self.walked - self.paired

    @property
    def extra(self) -> int:
        return self.counted - self.paired


@dataclass(frozen=True, slots=True)
class Result:
    """The test so far. `waiting`: taps of which the device has not told yet.

    `more`: how many must still pass, each counted right, for the device to be good.
    """

    verdict: Verdict
    entered: OneWay
    left: OneWay
    wrong: Share | None
    waiting: int
    more: int
    whole: bool

    @property
    def within(self) -> float:
        """The share by which the count may be wrong, at most, with 95 % confidence."""
        return 1.0 if self.wrong is None else self.wrong.high


def compare(
    taps: Sequence[Tap],
    cells: Sequence[Cell],
    *,
    begun_ms: int,
    until_ms: int | None,
    told_to_ms: int,
    cell_ms: int,
) -> Result:
    """Compare; `until_ms` None while the test runs, `told_to_ms`: up to where the device told."""
    last_ms = told_to_ms if until_ms is None else min(until_ms, told_to_ms)
    first = -(-begun_ms // cell_ms)  # the first whole cell
    end = max(first, last_ms // cell_ms)
    counted = {
        cell.start_ms // cell_ms: cell for cell in cells if first <= cell.start_ms // cell_ms < end
    }
    inside = [tap for tap in taps if first <= tap.at_ms // cell_ms < end]
    waiting = sum(
        tap.at_ms // cell_ms >= end and (until_ms is None or tap.at_ms < until_ms) for tap in taps
    )
    ways = {way: _one_way(way, way, inside, counted, cell_ms=cell_ms) for way in Way}
    crossed = sum(
        _one_way(way, _other(way), inside, counted, cell_ms=cell_ms).paired for way in Way
    )
    paired = sum(way.paired for way in ways.values())
    wrongs = sum(way.missed + way.extra for way in ways.values())
    wrong = None if paired + wrongs == 0 else share(wrongs, paired + wrongs)
    more = _more(wrongs, paired + wrongs)
    return Result(
        verdict=_verdict(wrong, turned=crossed >= LEAST_TURNED and crossed > 2 * paired),
        entered=ways[Way.IN],
        left=ways[Way.OUT],
        wrong=wrong,
        waiting=waiting,
        more=more,
        whole=until_ms is not None and told_to_ms >= until_ms,
    )


def _verdict(wrong: Share | None, *, turned: bool) -> Verdict:
    if wrong is None:
        return Verdict.WAITING
    if turned:
        return Verdict.TURNED
    if wrong.high <= TOLERANCE:
        return Verdict.GOOD
    return Verdict.BAD if wrong.low > TOLERANCE else Verdict.MORE


def _other(way: Way) -> Way:
    return Way.OUT if way is Way.IN else Way.IN


def _one_way(
    walked: Way,
    counted: Way,
    taps: Sequence[Tap],
    cells: Mapping[int, Cell],
    *,
    cell_ms: int,
) -> OneWay:
    mine = [tap.at_ms for tap in taps if tap.way is walked]
    left = {number: cell.of(counted) for number, cell in cells.items()}
    total = sum(left.values())
    paired = _paired(mine, left, cell_ms=cell_ms)
    return OneWay(len(mine), total, paired, share(paired, len(mine)) if mine else None)


def _paired(taps_ms: Sequence[int], left: dict[int, int], *, cell_ms: int) -> int:
    """Pair as many taps with counts as can be; `left` is used up.

    In order of the last cell that a tap may take, each takes the first that has something left:
    for stretches that all have the same slack, that is the most there is.
    """
    paired = 0
    for at_ms in sorted(taps_ms):
        for number in range((at_ms - SLACK_MS) // cell_ms, (at_ms + SLACK_MS) // cell_ms + 1):
            if left.get(number, 0) > 0:
                left[number] -= 1
                paired += 1
                break
    return paired


def share(k: int, n: int) -> Share:
    """Return `k` of `n` with the exact interval of Clopper and Pearson."""
    low = 0.0 if k == 0 else _bisect(lambda p: _at_most(n - k, n, 1 - p) < _HALF)
    high = 1.0 if k == n else _bisect(lambda p: _at_most(k, n, p) >= _HALF)
    return Share(k, n, low, high)


def _bisect(holds: Callable[[float], bool]) -> float:
    """Return where a property that holds from 0 on ends."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def _at_most(k: int, n: int, p: float) -> float:
    """Return P(X <= k) of a binomial variable, 0 < p < 1; summed from the side that is small."""
    if k >= n:
        return 1.0
    if k > n * p:
        return 1.0 - _at_most(n - k - 1, n, 1 - p)
    odds = (1 - p) / p
    term = exp(
        lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log(1 - p)
    )
    total = term
    for i in range(k, 0, -1):
        term *= odds * i / (n - i + 1)
        total += term
        if term < total * _NEGLIGIBLE:
            break
    return total


def _more(wrongs: int, n: int) -> int:
    """Return how many more, all right, would bring the upper end down to the tolerance."""

    def enough(more: int) -> bool:
        return _at_most(wrongs, n + more, TOLERANCE) <= _HALF

    if enough(0):
        return 0
    low, high = 1, _MOST_MORE
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
