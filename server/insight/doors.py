"""How much of a site was observed, each of its doors by its usual share of the people. Pure.

c = sum w V / sum w E over the site's counters, V the observed seconds, E those to be observed, w a
counter's share of those who came in at its site: so a blind main door hurts more than a blind side
door. Decided here:

- A share is that of the same slot of the week (weekday, or hour of the weekday) in the latest
  `WEEKS` comparable weeks, not older than `REACH_WEEKS`: those in which every counter of the site
  was observed to `COMPLETE`. What was counted later says nothing of it.
- With fewer than `FEWEST` of them, or where nobody came in, all counters count alike.
- Shares are scaled to a mean of 1, so the seconds stay seconds: where all counters were to be
  observed as long, those to be observed are what they were.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

from server.insight.profile import FEWEST, REACH_DAYS, WEEKS
from server.rollup.buckets import Bucket
from server.rollup.quality import COMPLETE

REACH_WEEKS = REACH_DAYS // 7
_WEEK = timedelta(days=7)
_Slot = tuple[date, str]


class Seen(NamedTuple):
    """What a counter saw in a bucket: people in, None if nothing was measured; and seconds."""

    entered: float | None
    observed_s: int
    expected_s: int


class Shares:
    """The usual shares of a site's counters, from what each saw in the buckets of `grid`."""

    def __init__(self, grid: Sequence[Bucket], doors: Sequence[Sequence[Seen]]) -> None:
        self._alike = (1.0,) * len(doors)
        self._whole: dict[_Slot, tuple[float, ...]] = {}
        self._known: dict[_Slot, tuple[float, ...]] = {}
        for bucket, seen in zip(grid, zip(*doors, strict=True), strict=True):
            if bucket.fold == 0 and all(map(_complete, seen)):
                self._whole[_slot(bucket)] = tuple(each.entered or 0.0 for each in seen)

    def at(self, bucket: Bucket) -> tuple[float, ...]:
        """Return what each counter counts in a bucket, 1 on average."""
        slot = _slot(bucket)
        if slot not in self._known:
            self._known[slot] = self._of(*slot)
        return self._known[slot]

    def _of(self, day: date, time: str) -> tuple[float, ...]:
        weeks = [
            self._whole[slot]
            for ago in range(1, REACH_WEEKS + 1)
            if (slot := (day - ago * _WEEK, time)) in self._whole
        ][:WEEKS]
        people = [sum(counts) for counts in zip(*weeks, strict=True)]
        total = sum(people)
        if len(weeks) < FEWEST or total <= 0:
            return self._alike
        return tuple(len(people) * each / total for each in people)


def weighed(seen: Sequence[Seen], weights: Sequence[float]) -> tuple[float, float]:
    """Return sum w V and sum w E; all alike where the weights leave nothing to be observed."""
    expected = sum(w * each.expected_s for w, each in zip(weights, seen, strict=True))
    if expected <= 0:
        weights = [1.0] * len(seen)
        expected = sum(each.expected_s for each in seen)
    observed = sum(
        w * min(each.observed_s, each.expected_s) for w, each in zip(weights, seen, strict=True)
    )
    return observed, expected


def _complete(seen: Seen) -> bool:
    return (
        seen.entered is not None
        and seen.expected_s > 0
        and seen.observed_s >= COMPLETE * seen.expected_s
    )


def _slot(bucket: Bucket) -> _Slot:
    """Return a bucket's day and time of day: the hour of a quarter of an hour, none of a day."""
    return bucket.start_day, bucket.label[11:13]
