"""For days a counter counts much more, or less, than in the same hours of past weeks. Pure.

Each day is the logarithm of what was counted over what the same hours of the week held before
(`server.insight.profile`: the median of eight weeks). Single days scatter by 14 to 15 %, and by
more in a season's change; so it is the median of the last `DAYS` days that were observed, less what
the other sites of the organisation, and the other doors of its own, did in the same days, if there
are `PEERS` of them. It fires
beyond a factor of `FIRES` up or down, `ALONE` where there is nobody to compare with, and clears
within `CLEARS`. It touches no count: a shop that is rebuilt has other numbers, and they are right.
"""

from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from statistics import median
from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, clear, firing, held, unknown

DAYS = 5
PEERS = 5
FIRES = 2.0
"""At Christmas, and as a mall opens, a street differs from its neighbours by up to 1.9 for days."""
ALONE = 2.2
CLEARS = 1.3
LEAST = 100.0
"""People who must have been expected in those days."""
LATE_DAYS = 10
CONDITION = Condition.LEVEL_SHIFT


class Day(NamedTuple):
    """A day's sums over the hours that were observed and of which it is known what is usual."""

    day: int
    start_s: int
    counted: float
    usual: float


def judge(case: Case, days: Sequence[Day], beside: Mapping[int, float]) -> Judgement:
    """Judge a counter by its last days; `beside`: the median of what others did, by day."""
    last = [day for day in days if day.usual > 0][-DAYS:]
    if len(last) < DAYS or last[-1].day - last[0].day >= LATE_DAYS:
        return unknown(case, CONDITION, "too few days of the last were observed")
    if sum(day.usual for day in last) < LEAST:
        return unknown(case, CONDITION, "too few people come by here")
    compared = all(day.day in beside for day in last)
    apart = [_ratio(day) - (beside[day.day] if compared else 0.0) for day in last]
    middle = median(apart)
    limit = FIRES if compared else ALONE
    evidence: dict[str, float | str] = {
        "ratio": round(exp(middle), 3),
        "limit": limit,
        "days": DAYS,
        "compared": "yes" if compared else "no",
    }
    if abs(middle) > log(limit):
        beyond = [abs(each) > log(limit) and each * middle > 0 for each in apart]
        return firing(case, CONDITION, evidence, since_s=last[beyond.index(True)].start_s)
    if abs(middle) < log(CLEARS):
        return clear(case, CONDITION, evidence, since_s=last[0].start_s)
    return held(case, CONDITION, evidence)


@dataclass(slots=True)
class Together:
    """The log ratios of a site's doors, and of other sites, by day; `add` all before `beside`."""

    _days: "dict[int, array[float]]" = field(default_factory=dict)
    _sorted: bool = False

    def add(self, days: Sequence[Day]) -> None:
        """Take in a door of the site."""
        for day in days:
            if day.usual > 0:
                self.add_peer(day.day, _ratio(day))

    def add_peer(self, day: int, ratio: float) -> None:
        """Take in what another site did."""
        self._days.setdefault(day, array("d")).append(ratio)
        self._sorted = False

    def beside(self, days: Sequence[Day]) -> dict[int, float]:
        """Return the median of all but the door with these days, by day, of `PEERS` or more."""
        if not self._sorted:
            self._days = {day: array("d", sorted(each)) for day, each in self._days.items()}
            self._sorted = True
        return {
            day.day: _median_without(self._days[day.day], _ratio(day))
            for day in days
            if day.usual > 0 and len(self._days[day.day]) > PEERS
        }


def _median_without(ratios: "array[float]", own: float) -> float:
    """Return the median of sorted ratios, one of which is left out."""
    at, left = bisect_left(ratios, own), len(ratios) - 1

    def other(number: int) -> float:
        return ratios[number + (number >= at)]

    if left % 2:
        return other(left // 2)
    return (other(left // 2 - 1) + other(left // 2)) / 2


def _ratio(day: Day) -> float:
    return log(max(day.counted, 0.5) / day.usual)
