"""What a counter that is well did at worst in its last weeks, so that it is no news again. Pure.

A street's share of its neighbours' people falls by two thirds for two hours where a race passes,
or where the sun stands low; in a shop it does so almost never. No variance by moments tells the one
from the other: most hours of both are alike. So a door is held to its own worst:

- `tails`: of windows of 2, 4 and 8 hours, the variance of its share under which the lowest window
  lies `WORST` deviations below what the other doors let expect. Windows that chance and its usual
  variance explain (`RARE`) do not count, so a quiet door does not become deaf by chance. As a fault
  must lie 4.5 deviations below, it must lie 4.5 / `WORST` times as far, in logarithms, as any
  window of these weeks that nobody found fault with: what was masked is not here.
- `longest_silence`: how many people were to be expected at most in hours without anybody.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import log
from typing import NamedTuple

from server.health.series import GROUP, QUIET, deviation

WORST = 2.4
RARE = -3.5
"""Deviations that chance reaches once in some thousand windows, which are more than 12 weeks."""
HOURS = (2, 4, 8)
LEAST = 15.0


class Hour(NamedTuple):
    """An hour of opening time: people both ways, and how many were usual."""

    people: float
    usual: float


def tails(
    own: Sequence[Hour | None], others: Sequence[Hour], *, variance: float
) -> tuple[float, ...]:
    """Return the variance of a door's share by its worst windows, by `HOURS`; 0 of a calm door.

    `own` are the hours, None where too little is known, that `others` are the other doors' sums of.
    """
    least = QUIET * max((each.usual for each in own if each is not None), default=0.0)
    rows: list[tuple[float, float, float, float]] = []
    for each, other in zip(own, others, strict=True):
        if each is not None and each.usual > least:
            rows.append((*each, *other))
    sums = [list(accumulate(column, initial=0.0)) for column in zip(*rows, strict=True)]
    return tuple(_tail(sums, size, variance) if sums else 0.0 for size in HOURS)


def _tail(sums: Sequence[Sequence[float]], size: int, variance: float) -> float:
    worst = 0.0
    for low in range(len(sums[0]) - size):
        counted, usual, people, people_usual = (each[low + size] - each[low] for each in sums)
        if people < LEAST or people_usual < LEAST:
            continue
        expected = usual * people / people_usual
        if expected < LEAST or counted >= expected:
            continue
        fall = (log((counted + 0.5) / expected) / WORST) ** 2
        if fall > worst and (
            deviation(counted, expected, factor=GROUP, variance=variance + 2 * GROUP / people)
            < RARE
        ):
            worst = fall
    return worst


def longest_silence(own: Sequence[Hour | None]) -> float:
    """Return the most people to be expected in hours without anybody that came to an end."""
    longest = run = 0.0
    for each in own:
        if each is None:
            run = 0.0
        elif each.people:
            longest, run = max(longest, run), 0.0
        else:
            run += each.usual
    return longest
