"""How far a counter can be trusted, from people counted by a person beside it. Pure.

Decided here, for each direction (in, out) and both together:

- The error of a block of time is counted / people - 1. Blocks are pooled as a ratio of sums,
  R = counted / people, never as a mean of ratios. The same minutes counted by several people are
  one block, of their mean.
- The interval is of ln R, whose variance is phi (1 / counted + 1 / people): the Poisson noise of
  both counts, times the dispersion phi between blocks. Both count the same people, so phi is below
  1 where a counter errs alike throughout, and above where it errs now and then. It is estimated as
  Pearson's chi-squared over its degrees of freedom, and drawn to 1, as if that had been found on
  `PRIOR_BLOCKS` more: one block alone is no evidence that a counter is better than chance.
  Student's t on that many degrees of freedom, 95 %.
- Fewer than `LEAST_PEOPLE` make no statement.
- A recount says nothing any more after 13 months, and at once when another device stands there, or
  it is mounted or its lines are read otherwise (`Standing` differs).
- What the counter would have to be multiplied by is proposed only where the interval excludes that
  it is right, and where it errs alike in both directions: a factor cannot mend the others. Nobody
  but a person applies it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from math import exp, log, sqrt
from typing import NamedTuple

from server.feedback.indices import student_t

LEAST_PEOPLE = 50
PRIOR_BLOCKS = 3
MONTHS = 13
FACTOR_LIMITS = (0.1, 10.0)
WANTED_SE = 0.05
"""What is worth recounting for: with 5 % the counter no longer dominates a KPI of a usual day."""


class Standing(NamedTuple):
    """What stood there, how it was mounted and how its lines were read: rows of the register."""

    assignment: int | None = None
    mounting: int | None = None
    calibrations: tuple[int, ...] = ()


class State(StrEnum):
    """What is to be made of a block; `NOT_WHOLE` may still become `COMPARED` as counts come late.

    waiting: the counter has not told of it yet. not_whole: it told of a part of it, or never.
    too_coarse: its readings are longer than a quarter. scaled: a walk test of a counter whose lines
    were already multiplied. too_old, device, mounting, calibration: it says nothing any more.
    """

    COMPARED = "compared"
    WAITING = "waiting"
    NOT_WHOLE = "not_whole"
    TOO_COARSE = "too_coarse"
    SCALED = "scaled"
    TOO_OLD = "too_old"
    DEVICE = "device_changed"
    MOUNTING = "mounting_changed"
    CALIBRATION = "calibration_changed"


class Block(NamedTuple):
    """People by eye and as counted, in and out; `key` is the same for the same minutes."""

    key: float
    seen_in: float
    seen_out: float
    counted_in: float
    counted_out: float


class Error(NamedTuple):
    """counted / people - 1 with its interval; None with fewer than `LEAST_PEOPLE`.

    `se` is the standard error of ln(counted / people).
    """

    people: float
    counted: float
    blocks: int
    bias: float | None
    low: float | None
    high: float | None
    se: float | None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A counter's error in, out and in both; `audited_on`: the last day that was compared."""

    entered: Error
    departed: Error
    both: Error
    audited_on: date | None

    @property
    def audited(self) -> bool:
        """Whether there is a statement about people in."""
        return self.entered.bias is not None


def state_of(
    *,
    then: Standing,
    now: Standing,
    at: datetime,
    not_before: datetime,
    whole: bool,
    resolution_s: int,
    accounted: bool,
) -> State:
    """Say what is to be made of a block of a recount.

    `whole`: all of it was observed; `accounted`: no more of it is on its way, as far as is known.
    """
    if at < not_before:
        return State.TOO_OLD
    if then.assignment != now.assignment:
        return State.DEVICE
    if then.mounting != now.mounting:
        return State.MOUNTING
    if then.calibrations != now.calibrations:
        return State.CALIBRATION
    if resolution_s > 900:
        return State.TOO_COARSE
    if whole:
        return State.COMPARED
    return State.NOT_WHOLE if accounted else State.WAITING


def expires(day: date) -> date:
    """Return the first day whose recounts still count on `day`: 13 months before."""
    month = day.year * 12 + day.month - 1 - MONTHS
    year, month = divmod(month, 12)
    last = 31
    while True:
        try:
            return date(year, month + 1, min(day.day, last))
        except ValueError:  # a shorter month
            last -= 1


def merged(blocks: Iterable[Block]) -> list[Block]:
    """Return a block for each stretch of time, of the mean of all who counted it."""
    by_key: dict[float, list[Block]] = {}
    for block in blocks:
        by_key.setdefault(block.key, []).append(block)
    return [
        Block(
            key,
            sum(each.seen_in for each in same) / len(same),
            sum(each.seen_out for each in same) / len(same),
            same[0].counted_in,
            same[0].counted_out,
        )
        for key, same in sorted(by_key.items())
    ]


def assess(blocks: Sequence[Block], *, on: date | None) -> Accuracy:
    """Return the error that blocks show together; `on`: the day of the last."""
    each = merged(blocks)
    return Accuracy(
        pooled([(block.seen_in, block.counted_in) for block in each]),
        pooled([(block.seen_out, block.counted_out) for block in each]),
        pooled(
            [(b.seen_in + b.seen_out, b.counted_in + b.counted_out) for b in each],
        ),
        on,
    )


def pooled(blocks: Sequence[tuple[float, float]]) -> Error:
    """Return the error of blocks of (people, counted)."""
    blocks = [(seen, counted) for seen, counted in blocks if seen + counted > 0]
    people, counted = sum(seen for seen, _ in blocks), sum(count for _, count in blocks)
    if people < LEAST_PEOPLE:
        return Error(people, counted, len(blocks), None, None, None, None)
    free = PRIOR_BLOCKS + len(blocks) - 1
    phi = (PRIOR_BLOCKS + _chi_squared(blocks, people, counted)) / free
    se = sqrt(phi * (1 / max(counted, 0.5) + 1 / people))
    half = student_t(free) * se
    ratio = counted / people
    centre = log(max(counted, 0.5) / people)
    low = exp(centre - half) - 1 if counted else -1.0
    return Error(people, counted, len(blocks), ratio - 1, low, exp(centre + half) - 1, se)


def _chi_squared(blocks: Sequence[tuple[float, float]], people: float, counted: float) -> float:
    """Return Pearson's chi-squared of all blocks having the same ratio."""
    share = counted / (people + counted)
    if share in (0.0, 1.0):
        return 0.0
    return sum(
        (count - (seen + count) * share) ** 2 / ((seen + count) * share * (1 - share))
        for seen, count in blocks
    )


class Proposal(NamedTuple):
    """What to multiply a counter by, and how sure that is (standard error of its logarithm)."""

    factor: float
    low: float
    high: float
    se: float


class NoProposal(StrEnum):
    """Why no factor is proposed."""

    TOO_FEW = "too_few"
    RIGHT = "right"  # as far as the recount can tell
    DIRECTIONS = "directions"  # it errs otherwise in than out
    TOO_FAR = "too_far"  # no calibration, but a fault


def propose(found: Accuracy) -> Proposal | NoProposal:
    """Return the factor that the recount asks for, or why there is none."""
    both, entered, departed = found.both, found.entered, found.departed
    if both.bias is None or both.low is None or both.high is None or both.se is None:
        return NoProposal.TOO_FEW
    if both.counted <= 0:
        return NoProposal.TOO_FAR
    if _apart(entered, departed):
        return NoProposal.DIRECTIONS
    if both.low <= 0 <= both.high:
        return NoProposal.RIGHT
    factor = 1 / (1 + both.bias)
    if not FACTOR_LIMITS[0] <= factor <= FACTOR_LIMITS[1]:
        return NoProposal.TOO_FAR
    return Proposal(factor, 1 / (1 + both.high), 1 / (1 + both.low), both.se)


def _apart(one: Error, other: Error) -> bool:
    """Whether two directions err otherwise: the difference of their logarithms, 95 %."""
    if one.se is None or other.se is None or not one.counted or not other.counted:
        return False
    free = PRIOR_BLOCKS + min(one.blocks, other.blocks) - 1
    apart = log(one.counted / one.people) - log(other.counted / other.people)
    return abs(apart) > student_t(free) * sqrt(one.se**2 + other.se**2)


class Part(NamedTuple):
    """A counter of a site: its share of the visits, and its error (None: never audited)."""

    visits: float
    found: Accuracy | None


def combined(parts: Sequence[Part]) -> tuple[float, float, date | None]:
    """Return a site's bias, its relative standard error, and since when that was known.

    Each counter counts by its share of the visits; errors of counters are independent. The date is
    that of the oldest audit. One counter that was never audited and counts, and nothing is known
    of the site: (0, 0, None).
    """
    total = sum(part.visits for part in parts)
    counting = [part for part in parts if part.visits > 0] if total > 0 else list(parts)
    if not counting:
        return 0.0, 0.0, None
    bias, variance, dates = 0.0, 0.0, list[date]()
    for part in counting:
        found = part.found
        if found is None or found.audited_on is None:
            return 0.0, 0.0, None
        error = found.entered
        if error.bias is None or error.se is None:
            return 0.0, 0.0, None
        share = part.visits / total if total > 0 else 1 / len(counting)
        bias += share * error.bias
        variance += (share * error.se) ** 2
        dates.append(found.audited_on)
    return bias, sqrt(variance), min(dates)
