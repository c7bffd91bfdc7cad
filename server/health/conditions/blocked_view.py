"""A counter that sees a part of what passes: blocked, dark, behind a poster, moved. Pure.

In the last two hours of opening time (four or eight, where few come) what it counted is set
against what was to be expected of it, which is, the surest first:

1. what the other doors of the site counted in the same quarters, times its usual share of them: a
   change-point of the door's share. It tells nothing while these hold less than `ALIVE` of their
   usual, nor where another of them fell below `PART` as well: that is a street fair, no poster;
2. of one direction, what it counted in the other: a lens that is half covered loses one;
3. where there are no other doors, what is usual here in these hours. (Of a public holiday that is
   not usual at all, the opening hours should say so: then nothing is expected of it.)

It fires where less than `PART` of it was counted (of 3: `PART_ALONE`) and that lies `FIRES`
standard deviations below (of 3: `FIRES_ALONE`), of a count that scatters as this counter's do
(`server.health.series.deviation`), its worst windows of the last weeks with them
(`server.health.tails`): what it did by itself is no news. Both halves of those hours must lie below
`PART`: an hour that was lost is over by itself. It clears when `CLEARS` was counted again
in two hours that held `LEAST` people. A door that counted nobody for the last hour is the flat
line's to judge, and so is each quarter in which nobody was counted where `_BUSY` people are usual.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from server.health.doors import Beside, Doors, Window
from server.health.judgement import Condition, Judgement
from server.health.series import ALIVE, GROUP, Quarter, Series, backwards, deviation, telling
from server.health.verdict import Case, clear, firing, held, unknown

PART = 0.65
PART_ALONE = 0.35
FIRES = -4.5
FIRES_ALONE = -5.5
CLEARS = 0.75
LEAST = 15.0
WINDOWS = (8, 16, 32)
_SILENT = 4
_BUSY = 8.0
_TIED = 0.015
"""Variance of the share of one direction in a window, beyond chance: people stay for minutes."""
CONDITION = Condition.BLOCKED_VIEW


class _Found(NamedTuple):
    """How one count compares; `surely`: with what else was counted in the same quarters."""

    by: str
    way: str
    counted: float
    expected: float
    deviation: float
    quarters: int
    start_s: int

    @property
    def part(self) -> float:
        return self.counted / self.expected if self.expected else 1.0

    @property
    def fires(self) -> bool:
        if self.by == "usual":
            return self.part < PART_ALONE and self.deviation < FIRES_ALONE
        return self.part < PART and self.deviation < FIRES


def windows(door: Series) -> list[Window]:
    """Return the quarters in which `judge` compares a counter with the other doors."""
    numbers = _numbers(door)
    found: list[Window] = []
    for size in WINDOWS:
        if len(numbers) >= size:
            window = numbers[-size:]
            found += [window, *_halves(window)]
    return found


def judge(case: Case, door: Series, doors: Doors) -> Judgement:
    """Judge a counter by its last hours of opening time; `doors` are all of its site."""
    numbers = _numbers(door)
    if len(numbers) < WINDOWS[0]:
        return unknown(case, CONDITION, "too little is known of these hours")
    if not any(q.people for q, _ in zip(backwards(door.quarters), range(_SILENT), strict=False)):
        return unknown(case, CONDITION, "it counts nobody at all")
    row = case.subject.row
    found: list[_Found] = []
    for size in WINDOWS:
        if len(numbers) >= size:
            found += _compared(row, door, doors, numbers[-size:])
    if not found:
        return unknown(case, CONDITION, "too few people come by here")

    @cache
    def lasts(each: _Found) -> bool:
        return each.fires and _lasts(each, row, door, doors, numbers)

    worst = min(found, key=lambda each: (not lasts(each), each.deviation))
    shortest = [each for each in found if each.quarters == WINDOWS[0]] or found
    evidence = _evidence(worst)
    if lasts(worst):
        return firing(case, CONDITION, evidence, since_s=worst.start_s, from_s=worst.start_s)
    if not case.before.firing or all(each.part >= CLEARS for each in shortest):
        enough = any(each.expected >= LEAST for each in found)
        if enough:
            return clear(case, CONDITION, evidence, since_s=_since(case, shortest))
        return unknown(case, CONDITION, "too few people come by here", evidence)
    return held(case, CONDITION, evidence)


def _numbers(door: Series) -> Window:
    """Return the last quarters of opening time that tell something of a door's view."""
    least = telling(door.quarters)
    numbers: list[int] = []
    for n in range(len(door.quarters) - 1, -1, -1):
        each = door.quarters[n]
        if each.is_open and each.observed_s and each.usual > least and not _dead(each):
            numbers.append(n)
            if len(numbers) == WINDOWS[-1]:
                break
    return tuple(reversed(numbers))


def _halves(window: Window) -> tuple[Window, Window]:
    return window[: len(window) // 2], window[len(window) // 2 :]


def _dead(quarter: Quarter) -> bool:
    """Return whether it counted nobody in a quarter in which that is no matter of a bad view."""
    return not quarter.people and quarter.usual >= _BUSY


def _since(case: Case, found: Sequence[_Found]) -> int:
    return min(each.start_s for each in found) if case.before.firing else case.now_s


def _evidence(found: _Found) -> dict[str, float | str]:
    return {
        "compared_with": found.by,
        "direction": found.way,
        "counted_people": round(found.counted, 1),
        "expected_people": round(found.expected, 1),
        "part": round(found.part, 3),
        "deviations": round(found.deviation, 2),
        "hours": found.quarters / 4,
    }


def _compared(row: int, door: Series, doors: Doors, numbers: Window) -> list[_Found]:
    """Compare a window's counts in every way that it allows."""
    own = [door.quarters[n] for n in numbers]
    entered, left = sum(q.entered for q in own), sum(q.left for q in own)
    usual_in = sum((q.usual_in or 0.0) * q.share for q in own)
    usual_out = sum((q.usual_out or 0.0) * q.share for q in own)
    n, start = len(numbers), own[0].start_s
    found: list[_Found] = []

    def add(
        by: str, way: str, counted: float, expected: float, *, factor: float, var: float
    ) -> None:
        if expected >= LEAST:
            off = deviation(counted, expected, factor=factor, variance=var)
            found.append(_Found(by, way, counted, expected, off, n, start))

    beside = _beside(doors.within(numbers, row, door))
    if beside is not None and beside.rate >= ALIVE and not beside.falls:
        rate, noise = beside.rate, beside.noise
        size = WINDOWS.index(n) if n in WINDOWS else 0
        worst = door.tails[size] if size < len(door.tails) else 0.0
        variance = max(door.share_variance, worst) + noise
        for way, counted, usual in (("in", entered, usual_in), ("out", left, usual_out)):
            add("others", way, counted, rate * usual, factor=GROUP, var=variance)
    for way, counted, other, ratio in (
        ("in", entered, left, usual_in / usual_out if usual_out else 0.0),
        ("out", left, entered, usual_out / usual_in if usual_in else 0.0),
    ):
        if 0.25 <= ratio <= 4:
            add("other direction", way, counted, other * ratio,
                factor=GROUP * (1 + ratio), var=_TIED)  # fmt: skip
    if beside is None:
        add("usual", "both", entered + left, usual_in + usual_out,
            factor=2 * GROUP, var=1 / door.spread)  # fmt: skip
    return found


def _lasts(found: _Found, row: int, door: Series, doors: Doors, numbers: Window) -> bool:
    """Return whether both halves of a window are as low: one hour that is lost is no bad view."""
    return all(
        each.part < PART
        for part in _halves(numbers[-found.quarters :])
        for each in _compared(row, door, doors, part)
        if (each.by, each.way) == (found.by, found.way)
    )


class _Beside(NamedTuple):
    """How busy the other doors are over the usual, the variance of that by chance, and whether one
    of several holds as small a part of its usual, as the others go, as a blocked one would."""

    rate: float
    noise: float
    falls: bool


def _beside(others: Beside) -> _Beside | None:
    """Return how the other doors do in some quarters, as far as they can be relied upon."""
    if others.usual < LEAST or others.counted < LEAST:
        return None
    rate, least = others.counted / others.usual, others.least
    falls = others.doors > 1 and least is not None and least.counted < PART * rate * least.usual
    return _Beside(rate, 2 * GROUP / others.counted, falls)
