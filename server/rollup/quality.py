"""What a count is worth: expected seconds, coverage, state, and whether visits are known at all.

Expected seconds are those in which a device was assigned (and, in scope open, the site was open),
up to now. Coverage is observed / expected, 0 to 1, and None when nothing was expected. Missing is
not zero: visits are None unless something was observed or counted.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from server.rollup.opening import Calendar, Interval, overlap

FINAL_AFTER_S = 30 * 86_400
SLOT_S = 15
COMPLETE = 0.98
"""Coverage from which a bucket is taken for observed throughout: below it, it is partial."""
_FOREVER_S = 1 << 40


class Scope(StrEnum):
    """All hours, or opening hours alone."""

    ALL = "all"
    OPEN = "open"


class State(StrEnum):
    """open: more may come; complete: every assigned device is past its end; final: 30 days on."""

    OPEN = "open"
    COMPLETE = "complete"
    FINAL = "final"


class Hours(StrEnum):
    """Whether a bucket is opening time."""

    OPEN = "open"
    CLOSED = "closed"
    MIXED = "mixed"


class Assigned(NamedTuple):
    """A device at a spot in [start_s, end_s), stored up to `stored_to_s`; `gaps` say why not."""

    start_s: int
    end_s: int
    stored_to_s: int | None
    gaps: tuple[Interval, ...] = ()


def expected_s(
    assigned: Sequence[Interval], calendar: Calendar, *, scope: Scope, start_s: int, end_s: int
) -> int:
    """Return how many seconds of [start_s, end_s) should have been observed."""
    if scope is Scope.ALL:
        return overlap(assigned, start_s, end_s)
    return (
        sum(overlap(assigned, low, high) for low, high in calendar.open_between(start_s, end_s))
        if end_s > start_s
        else 0
    )


def coverage(observed: int, expected: int) -> float | None:
    """Return observed / expected, at most 1 (slots of 15 s round), None if nothing was expected."""
    if expected <= 0:
        return None
    return 1.0 if observed >= expected else round(observed / expected, 4)


def known(count: int, observed: int) -> bool:
    """Whether a sum is a measurement: something was observed, or someone counted."""
    return observed > 0 or count > 0


def hours_of(calendar: Calendar, start_s: int, end_s: int) -> Hours:
    """Say whether [start_s, end_s) is opening time."""
    open_s = sum(high - low for low, high in calendar.open_between(start_s, end_s))
    return hours_by(open_s, end_s - start_s)


def hours_by(open_s: int, whole_s: int) -> Hours:
    """Say what a stretch is of whose `whole_s` seconds these are opening time."""
    if open_s == 0:
        return Hours.CLOSED
    return Hours.OPEN if open_s == whole_s else Hours.MIXED


def accounted_to(assigned: Assigned) -> int:
    """Return until when a device's time is accounted for: stored, or a gap says why not."""
    if assigned.stored_to_s is None:
        reached = assigned.start_s
    else:
        reached = assigned.stored_to_s
    for low, high in sorted(assigned.gaps):
        if low <= reached < high:
            reached = high
    return _FOREVER_S if reached >= assigned.end_s else reached


def state(end_s: int, *, now_s: int, accounted_s: int) -> State:
    """Return a bucket's state; `accounted_s`: the least `accounted_to` of its devices."""
    if now_s >= end_s + FINAL_AFTER_S:
        return State.FINAL
    return State.COMPLETE if end_s <= min(now_s, accounted_s) else State.OPEN
