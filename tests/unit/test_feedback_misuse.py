"""The misuse filter: against a slow plain reading of its rules, and piece by piece as a whole."""

import random
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.feedback.misuse import (
    CONTEXT_MS,
    Press,
    Reason,
    closed_outside,
    more_than_left,
    verdicts,
)

NEVER = closed_outside([(0, 1 << 60)])


def pressed(*touches: tuple[float, int], question: int = 0) -> list[Press]:
    """Presses at seconds, of answers; a visit each."""
    return [Press(round(s * 1000), 1, n, 0, question, a) for n, (s, a) in enumerate(touches)]


def plainly(presses: list[Press], closed_ms: tuple[int, int]) -> list[Reason | None]:
    """The rules as the module states them, one press and window at a time."""
    alone: list[Reason | None] = []
    for me in presses:
        screen = [p for p in presses if (p.questionnaire, p.question) == me[3:5]]
        alone.append(_alone(me, presses.index(me), presses, screen, closed_ms))
    found: list[Reason | None] = []
    for number, me in enumerate(presses):
        reason = alone[number]
        near = [
            n
            for n, p in enumerate(presses)
            if n <= number and p[1:3] == me[1:3] and me.at_ms - p.at_ms <= 600_000
        ]
        opening = presses[near[0]]
        if reason is None and opening[3:5] != me[3:5]:
            reason = alone[near[0]]
        found.append(reason)
    return found


def _alone(
    me: Press, number: int, presses: list[Press], screen: list[Press], closed_ms: tuple[int, int]
) -> Reason | None:
    if closed_ms[0] <= me.at_ms < closed_ms[1]:
        return Reason.CLOSED
    place = screen.index(me)
    for first in range(max(0, place - 29), place + 1):
        window = screen[first : first + 30]
        gaps = [b.at_ms - a.at_ms for a, b in pairwise(window)]
        if len(window) == 30 and len({p.answer for p in window}) == 1 and max(gaps) <= 60_000:
            mean = Fraction(sum(gaps), 29)
            spread = sum((gap - mean) ** 2 for gap in gaps) / 29
            if mean == 0 or spread < mean**2 / 100:
                return Reason.STUCK
    mine = [p for p in screen if p.answer == me.answer]
    for start in mine:
        since = me.at_ms - start.at_ms
        if not 0 <= since < 180_000 or len(mine) < 63:
            continue
        minutes = [
            sum(0 <= p.at_ms - start.at_ms - 60_000 * m < 60_000 for p in mine) for m in range(3)
        ]
        if min(minutes) > 20:
            return Reason.STUCK
    for start in screen:
        window = [p for p in screen if 0 <= p.at_ms - start.at_ms <= 8_000]
        if 0 <= me.at_ms - start.at_ms <= 8_000 and len({p.answer for p in window}) >= 4:
            return Reason.CHILDREN
    if place and me.at_ms - screen[place - 1].at_ms < 5_000:
        return Reason.REPEATED
    return None


@st.composite
def days(draw: st.DrawFn) -> list[Press]:
    """Visitors, hammering hands, children and stuck buttons, some at the same instant."""
    rng = random.Random(draw(st.integers(0, 1 << 32)))
    presses: list[Press] = []
    at, visit = 0, 0
    for kind in draw(st.lists(st.sampled_from("vhcsr"), max_size=6)):
        at += rng.choice((500, 4_999, 5_000, 8_001, 30_000, 61_000, 700_000))
        visit += rng.random() < 0.8
        if kind == "v":
            touches = [(0, 0, rng.randrange(5)), (rng.randrange(9_000), 1, rng.randrange(11))]
        elif kind == "h":
            touches = [(rng.randrange(20_000), 0, 3) for _ in range(rng.randrange(2, 20))]
        elif kind == "c":
            touches = [(rng.randrange(9_500), 0, n % 5) for n in range(rng.randrange(3, 9))]
        elif kind == "s":
            step, jitter = rng.choice((1_000, 6_000, 60_000)), rng.choice((0, 50, 150, 400))
            count = rng.randrange(28, 36)
            touches = [(n * step + rng.randrange(-jitter, jitter + 1), 0, 2) for n in range(count)]
        else:
            touches = [(rng.randrange(185_000), 0, 1) for _ in range(rng.randrange(60, 75))]
        presses += [Press(at + max(0, t), 1, visit, 0, q, a) for t, q, a in touches]
        at = max(press.at_ms for press in presses)
    return list(dict.fromkeys(sorted(presses)))


@settings(max_examples=15, deadline=None)
@given(days(), st.integers(0, 200_000), st.integers(0, 100_000))
def test_the_filter_does_what_its_rules_say_plainly(
    presses: list[Press], low: int, length: int
) -> None:
    closed = (low, low + length)
    found = verdicts(presses, closed=lambda at: closed[0] <= at < closed[1])
    assert found == plainly(presses, closed)


@settings(max_examples=25, deadline=None)
@given(days(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_piece_by_piece_in_any_order_of_arrival_is_as_the_whole(
    presses: list[Press], pieces: int, rng: random.Random
) -> None:
    arrived: list[Press] = []
    known: dict[Press, Reason | None] = {}
    waiting = list(presses)
    rng.shuffle(waiting)
    size = len(waiting) // pieces + 1
    for start in range(0, len(waiting), size):
        piece = waiting[start : start + size]
        arrived = sorted([*arrived, *piece])
        for low, high in _stretches(piece):
            low, high = low - CONTEXT_MS, high + CONTEXT_MS
            near = [p for p in arrived if low - CONTEXT_MS <= p.at_ms < high + CONTEXT_MS]
            judged = zip(near, verdicts(near, closed=NEVER), strict=True)
            known |= {press: reason for press, reason in judged if low <= press.at_ms < high}
    assert known == dict(zip(presses, verdicts(presses, closed=NEVER), strict=True))


def _stretches(piece: list[Press]) -> list[tuple[int, int]]:
    quarters = {press.at_ms // 900_000 * 900_000 for press in piece}
    return [(at, at + 900_000) for at in quarters]


def test_of_a_hammering_hand_the_first_press_counts() -> None:
    found = verdicts(pressed((0, 3), (1, 3), (2, 3), (6.9, 3), (11.9, 3)), closed=NEVER)
    assert found == [None, *[Reason.REPEATED] * 3, None]


def test_four_buttons_in_eight_seconds_are_children_and_none_of_them_counts() -> None:
    assert set(verdicts(pressed((0, 0), (3, 1), (6, 2), (8, 3)), closed=NEVER)) == {Reason.CHILDREN}
    assert Reason.CHILDREN not in verdicts(
        pressed((0, 0), (3, 1), (6, 2), (8.001, 3)), closed=NEVER
    )


@pytest.mark.parametrize(("presses", "stuck"), [(29, 0), (30, 30), (41, 41)])
def test_thirty_presses_like_clockwork_are_a_stuck_button(presses: int, stuck: int) -> None:
    found = verdicts(pressed(*[(n * 10, 2) for n in range(presses)]), closed=NEVER)
    assert found.count(Reason.STUCK) == stuck


def test_people_who_come_as_they_please_are_no_stuck_button() -> None:
    rng, at, touches = random.Random(4), 0.0, []
    for _ in range(300):
        at += 5 + rng.expovariate(1 / 20)
        touches.append((at, 0))
    assert set(verdicts(pressed(*touches), closed=NEVER)) == {None}


def test_what_is_pressed_while_closed_is_no_answer() -> None:
    closed = closed_outside([(0, 10_000), (20_000, 30_000)])
    found = verdicts(pressed((9.999, 0), (15, 0), (20, 0), (30, 0)), closed=closed)
    assert found == [None, Reason.CLOSED, None, Reason.CLOSED]


def test_a_visit_that_children_opened_counts_for_no_question() -> None:
    first = [Press(n * 1_000, 1, 7, 0, 0, n) for n in range(4)]
    assert verdicts([*first, Press(9_000, 1, 7, 0, 1, 5)], closed=NEVER)[-1] is Reason.CHILDREN
    assert verdicts([*first, Press(9_000, 1, 8, 0, 1, 5)], closed=NEVER)[-1] is None


def test_an_hour_with_more_presses_than_exits_is_flagged() -> None:
    assert more_than_left(11, 10)
    assert not more_than_left(10, 10)
    assert not more_than_left(11, None)
