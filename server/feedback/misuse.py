"""Which presses of a kiosk are answers: the misuse filter, in versions. Pure.

Each press of one kiosk, in time order, is kept or has one reason. What the rules of version 1 look
at is one screen (a question of a questionnaire); the first that applies is the reason:

1. `closed`: the shop was closed.
2. `stuck`: it is one of `STUCK_PRESSES` presses of one button, one after the other and at most
   `STUCK_GAP_MS` apart, that come as regularly as no hand does (the coefficient of variation of the
   time between them is below `STUCK_CV`); or it lies in three minutes in each of which one
   button was pressed more than `STUCK_PER_MINUTE` times.
3. `children`: it lies within `CHILDREN_MS` in which `CHILDREN_BUTTONS` or more different buttons
   of the screen were pressed.
4. `repeated`: the press before, on the same screen, is less than `REPEAT_MS` before. So of a hand
   that hammers only the first press counts.
5. What answers a further question goes the way of the press that opened its visit, if that was at
   most `FOLLOW_MS` before: who plays with the first screen plays with the next.

Raw presses stay, so a later version may judge all of them anew. The verdict on a press depends on
presses at most `CONTEXT_MS` before or after it: whoever judges a stretch of time with that much on
either side finds what judging everything would.

An hour in which more was pressed than people left is flagged (`more_than_left`), not filtered:
there is no telling which of its presses are the visitors'.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

VERSION = 1
REPEAT_MS = 5_000
STUCK_PRESSES = 30
STUCK_GAP_MS = 60_000
STUCK_CV = 0.1
STUCK_PER_MINUTE = 20
STUCK_MINUTES = 3
CHILDREN_MS = 8_000
CHILDREN_BUTTONS = 4
FOLLOW_MS = 600_000
CONTEXT_MS = 45 * 60_000
_MINUTE_MS = 60_000
_CV2_INVERSE = round(1 / STUCK_CV**2)

# What a verdict may depend on: a press that opened the visit, and what made that one stuck.
assert FOLLOW_MS + (STUCK_PRESSES - 1) * STUCK_GAP_MS <= CONTEXT_MS


class Reason(StrEnum):
    """Why a press is no answer."""

    REPEATED = "repeated"
    CHILDREN = "children"
    STUCK = "stuck"
    CLOSED = "closed"


class Press(NamedTuple):
    """One touch; presses sort by time."""

    at_ms: int
    boot: int
    visit: int
    questionnaire: int
    question: int
    answer: int


def verdicts(presses: Sequence[Press], *, closed: Callable[[int], bool]) -> list[Reason | None]:
    """Return the reason of each press of one kiosk, None for those kept; `presses` in order.

    `closed` says of an instant (in ms) whether the shop was closed.
    """
    screens: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, press in enumerate(presses):
        screens[press.questionnaire, press.question].append(number)
    found: list[Reason | None] = [None] * len(presses)
    for numbers in screens.values():
        judged = _screen([presses[n].at_ms for n in numbers], [presses[n].answer for n in numbers])
        for number, reason in zip(numbers, judged, strict=True):
            found[number] = reason
    found = [
        Reason.CLOSED if closed(press.at_ms) else reason
        for press, reason in zip(presses, found, strict=True)
    ]
    return _followed(presses, found)


def more_than_left(presses: int, exits: float | None) -> bool:
    """Return whether more was pressed in an hour than people left; unknown exits flag nothing."""
    return exits is not None and presses > exits


def _screen(times: Sequence[int], answers: Sequence[int]) -> list[Reason | None]:
    """Judge one screen's presses by what is pressed, and when."""
    found: list[Reason | None] = [
        Reason.REPEATED if n and at - times[n - 1] < REPEAT_MS else None
        for n, at in enumerate(times)
    ]
    for low, high in _children(times, answers):
        found[low:high] = [Reason.CHILDREN] * (high - low)
    for low, high in _regular(times, answers):
        found[low:high] = [Reason.STUCK] * (high - low)
    for number in _rapid(times, answers):
        found[number] = Reason.STUCK
    return found


def _children(times: Sequence[int], answers: Sequence[int]) -> list[tuple[int, int]]:
    """Return ranges of presses that lie within 8 s with four different buttons."""
    found: list[tuple[int, int]] = []
    within: Counter[int] = Counter()
    high = 0
    for low, at in enumerate(times):
        while high < len(times) and times[high] <= at + CHILDREN_MS:
            within[answers[high]] += 1
            high += 1
        if len(within) >= CHILDREN_BUTTONS:
            found.append((low, high))
        within -= Counter((answers[low],))
    return found


def _regular(times: Sequence[int], answers: Sequence[int]) -> list[tuple[int, int]]:
    """Return ranges of 30 presses of one button that come like clockwork."""
    found: list[tuple[int, int]] = []
    gaps = [after - before for before, after in pairwise(times)]
    count, total, squares, run = STUCK_PRESSES - 1, 0, 0, 0
    for number, gap in enumerate(gaps):
        if answers[number] != answers[number + 1] or gap > STUCK_GAP_MS:
            run = total = squares = 0
            continue
        run, total, squares = run + 1, total + gap, squares + gap * gap
        if run > count:
            old = gaps[number - count]
            total, squares = total - old, squares - old * old
        # sd / mean < CV, in whole numbers: sd^2 = squares/n - (total/n)^2
        if run >= count and (
            total == 0 or _CV2_INVERSE * (count * squares - total * total) < total * total
        ):
            found.append((number + 2 - STUCK_PRESSES, number + 2))
    return found


def _rapid(times: Sequence[int], answers: Sequence[int]) -> set[int]:
    """Return the presses of three minutes with more than 20 of one button in each."""
    found: set[int] = set()
    by_button: dict[int, list[int]] = defaultdict(list)
    for number, answer in enumerate(answers):
        by_button[answer].append(number)
    for numbers in by_button.values():
        at = [times[number] for number in numbers]
        for low, begin in enumerate(at):
            edges = [low]
            for minute in range(1, STUCK_MINUTES + 1):
                edge = bisect_left(at, begin + minute * _MINUTE_MS, lo=edges[-1])
                if edge - edges[-1] <= STUCK_PER_MINUTE:
                    break
                edges.append(edge)
            else:
                found.update(numbers[low : edges[-1]])
    return found


def _followed(presses: Sequence[Press], found: Sequence[Reason | None]) -> list[Reason | None]:
    """Let what answers further questions go the way of what opened its visit."""
    visits: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, press in enumerate(presses):
        visits[press.boot, press.visit].append(number)
    judged = list(found)
    for numbers in visits.values():
        at = [presses[number].at_ms for number in numbers]
        for number in numbers[1:]:
            press = presses[number]
            opening = numbers[bisect_left(at, press.at_ms - FOLLOW_MS)]
            opened = presses[opening]
            same = (opened.questionnaire, opened.question) == (press.questionnaire, press.question)
            if judged[number] is None and opening != number and not same:
                judged[number] = found[opening]
    return judged


def closed_outside(open_ms: Sequence[tuple[int, int]]) -> Callable[[int], bool]:
    """Return what says of an instant whether it lies in none of the open intervals, in order."""
    starts = [low for low, _ in open_ms]

    def closed(at_ms: int) -> bool:
        number = bisect_right(starts, at_ms) - 1
        return number < 0 or at_ms >= open_ms[number][1]

    return closed


def like_clockwork(times_ms: Sequence[int]) -> bool:
    """Return whether presses come as regularly as a stuck button's, before there are thirty."""
    gaps = [after - before for before, after in pairwise(times_ms)]
    total, count = sum(gaps), len(gaps)
    squares = sum(gap * gap for gap in gaps)
    return count >= 3 and _CV2_INVERSE * (count * squares - total * total) < total * total
