"""A counter whose counts come like clockwork, as nobody walks. Pure.

People who come by chance leave the sum of a window wandering around a straight line: of N people,
the greatest distance, over the root of N, follows Kolmogorov's distribution (A. Kolmogorov, Giorn.
Ist. Ital. Attuari 4, 83, 1933), and is larger still where people come in groups or in rushes. It
fires if the sum stays so close to the line as chance lets it less than once in 1 / `FIRES` windows.
The line is looked at between readings alone, which lets it seem straighter than it is; that is
corrected by 0.58 / root n (D. Siegmund, Adv. Appl. Prob. 11, 701, 1979), for n readings.

Windows are the last 30, 60 and 120 readings: thirty minutes do for what counts in every minute, as
a line that is stuck does. It clears when the last thirty are as irregular as people, or empty.
"""

from collections.abc import Sequence
from itertools import accumulate
from math import exp, pi, sqrt
from typing import NamedTuple

from server.health.judgement import Condition, Judgement
from server.health.verdict import Case, clear, firing, held, unknown

FIRES = 1e-9
CLEARS = 1e-3
WINDOWS = (30, 60, 120)
LEAST = 12
_WHOLE = 1.25
"""A window is whole if its readings lie in at most so many times their own length."""
_BETWEEN = 0.5826
CONDITION = Condition.STUCK_COUNTER


class Reading(NamedTuple):
    """What was counted from an instant on, by line and direction, in the order of the columns."""

    start_s: int
    length_s: int
    counts: tuple[int, ...]


def judge(case: Case, readings: Sequence[Reading]) -> Judgement:
    """Judge a counter by its latest readings, in order."""
    shortest = readings[-WINDOWS[0] :]
    if len(shortest) < WINDOWS[0] or not _is_whole(shortest):
        return unknown(case, CONDITION, "the last thirty readings are not all here")
    best = (1.0, 0, 0)
    calm = 1.0
    for size in WINDOWS:
        window = readings[-size:]
        if len(window) < size or not _is_whole(window):
            break
        for column in range(len(window[0].counts)):
            counts = [each.counts[column] for each in window]
            chance = straightness(counts)
            best = min(best, (chance, size, column))
            if size == WINDOWS[0]:
                calm = min(calm, chance)
    chance, size, column = best
    evidence: dict[str, float | str] = {"chance": chance, "readings": size, "column": column}
    if chance < FIRES:
        since = case.before.from_s if case.before.firing else None
        if since is None:
            since = readings[-_length(readings, column)].start_s
        evidence["people"] = sum(each.counts[column] for each in readings[-size:])
        return firing(case, CONDITION, evidence, since_s=since, from_s=since)
    if calm > CLEARS:
        since = shortest[-1].start_s + shortest[-1].length_s
        return clear(case, CONDITION, evidence, since_s=_ended_s(case, readings, since))
    return held(case, CONDITION, evidence)


def straightness(counts: Sequence[int]) -> float:
    """Return the chance that people's counts add up so straight; 1 if there are too few."""
    total, n = sum(counts), len(counts)
    if total < LEAST:
        return 1.0
    off = max(abs(sum_ - total * (at + 1) / n) for at, sum_ in enumerate(accumulate(counts)))
    return kolmogorov(off / sqrt(total) + _BETWEEN / sqrt(n))


def kolmogorov(distance: float) -> float:
    """Return the chance that the greatest distance, over the root of n, is at most this."""
    if distance <= 0:
        return 0.0
    base = pi * pi / (8 * distance * distance)
    return min(
        1.0, sqrt(2 * pi) / distance * sum(exp(-((2 * k - 1) ** 2) * base) for k in range(1, 6))
    )


def _is_whole(window: Sequence[Reading]) -> bool:
    first, last = window[0], window[-1]
    span = last.start_s + last.length_s - first.start_s
    return span <= _WHOLE * sum(each.length_s for each in window)


def _length(readings: Sequence[Reading], column: int) -> int:
    """Return of how many readings, up to the last, the sum is a straight line."""
    length = next(
        size
        for size in WINDOWS
        if straightness([each.counts[column] for each in readings[-size:]]) < FIRES
    )
    while length < len(readings) and readings[-length - 1].counts[column] in {
        each.counts[column] for each in readings[-length:]
    }:
        longer = [each.counts[column] for each in readings[-length - 1 :]]
        if straightness(longer) >= FIRES:
            break
        length += 1
    return length


def _ended_s(case: Case, readings: Sequence[Reading], otherwise: int) -> int:
    """Return from when on the last thirty readings are as irregular as people."""
    return readings[-WINDOWS[0]].start_s if case.before.firing else otherwise
