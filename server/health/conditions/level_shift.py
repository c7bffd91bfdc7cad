"""For days a counter counts much more, or less, than in the same hours of past weeks. Pure.

Each day is the logarithm of what was counted over what the same hours of the week held before
(`server.insight.profile`: the median of eight weeks). Single days scatter by 14 to 15 %, and by
more in a season's change; so it is the median of the last `DAYS` days that were observed, less what
the other sites of the organisation, and the other doors of its own, did in the same days, if there
are `PEERS` of them. It fires
beyond a factor of `FIRES` up or down, `ALONE` where there is nobody to compare with, and clears
within `CLEARS`. It touches no count: a shop that is rebuilt has other numbers, and they are right.
"""

from collections.abc import Mapping, Sequence
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


def judge(case: Case, days: Sequence[Day], peers: Mapping[int, Sequence[float]]) -> Judgement:
    """Judge a counter by its last days; `peers`: log ratios of other sites, by day."""
    last = [day for day in days if day.usual > 0][-DAYS:]
    if len(last) < DAYS or last[-1].day - last[0].day >= LATE_DAYS:
        return unknown(case, CONDITION, "too few days of the last were observed")
    if sum(day.usual for day in last) < LEAST:
        return unknown(case, CONDITION, "too few people come by here")
    compared = all(len(peers.get(day.day, ())) >= PEERS for day in last)
    apart = [_ratio(day) - (median(peers[day.day]) if compared else 0.0) for day in last]
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


def ratios(days: Sequence[Day]) -> dict[int, float]:
    """Return a counter's log ratios by day."""
    return {day.day: _ratio(day) for day in days if day.usual > 0}


def together(
    doors: Sequence[Mapping[int, float]], peers: Mapping[int, Sequence[float]]
) -> dict[int, list[float]]:
    """Return what other doors of a site and other sites did, by day."""
    found = {day: list(each) for day, each in peers.items()}
    for door in doors:
        for day, ratio in door.items():
            found.setdefault(day, []).append(ratio)
    return found


def _ratio(day: Day) -> float:
    return log(max(day.counted, 0.5) / day.usual)
