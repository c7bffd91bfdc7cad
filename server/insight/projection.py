"""Whether a target will be met: the period's value projected, with how far that may be off. Pure.

What is over is known; each day that is left, or was not measured, is expected to be like the mean
of its weekday over the days at hand (the period's, and eight weeks before it). Numerators and
denominators are projected apart and divided once. The error of the projection is that of the days
to come about their weekday's mean, which follow on each other (`CORRELATION`), and that of the
means themselves; it says nothing of events that the eight weeks knew nothing of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from enum import StrEnum
from math import erf, sqrt

LEAST_DAYS = 14
MOST_MISSING = 0.2
CORRELATION = 0.3
"""Between a day and the next, of what differs from the weekday's mean (street counters: .2-.3)."""
_Z80 = 1.281552


class Track(StrEnum):
    """Where a target stands; at risk: the 80 % interval holds it."""

    ON_TRACK = "on_track"
    AT_RISK = "at_risk"
    OFF_TRACK = "off_track"
    CANNOT_BE_SAID = "cannot_be_said"


@dataclass(frozen=True, slots=True)
class DayOf:
    """A day's sums; numerator None: not measured. Additive KPIs have denominator None."""

    day: date
    numerator: float | None
    denominator: float | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """The period's value so far and projected, with its 80 % interval, and what follows.

    `needed`: what the days that are left must bring for the target to be met exactly, `usual`: what
    they are expected to: per day, or as the ratio over all of them. None where no day is left, or
    nothing can be projected. `coverage` is that of the days that are over.
    """

    track: Track
    reason: str | None = None
    to_date: float | None = None
    projected: float | None = None
    low: float | None = None
    high: float | None = None
    probability: float | None = None
    days_left: int = 0
    days_done: int = 0
    days_measured: int = 0
    needed: float | None = None
    usual: float | None = None
    coverage: float | None = None


def outlook(
    wanted: float,
    *,
    at_most: bool,
    history: Sequence[DayOf],
    done: Sequence[DayOf],
    left: Sequence[date],
    additive: bool,
) -> Outlook:
    """Return where a target stands: `done` are the period's days that are over, `left` the rest."""
    known = [day for day in done if day.numerator is not None]
    found = _outlook(wanted, at_most, history, done, known, left, additive)
    return replace(found, days_left=len(left), days_done=len(done), days_measured=len(known))


def _outlook(
    wanted: float,
    at_most: bool,
    history: Sequence[DayOf],
    done: Sequence[DayOf],
    known: Sequence[DayOf],
    left: Sequence[date],
    additive: bool,
) -> Outlook:
    to_date = _ratio(known, additive)
    base = [day for day in (*history, *done) if day.numerator is not None]
    if done and len(done) - len(known) > MOST_MISSING * len(done):
        return Outlook(Track.CANNOT_BE_SAID, "days_missing", to_date)
    open_days = [*left, *(day.day for day in done if day.numerator is None)]
    if not open_days:
        if to_date is None:
            return Outlook(Track.CANNOT_BE_SAID, "nothing_to_divide_by")
        return _judged(wanted, at_most, to_date, to_date, 0.0)
    if len(base) < LEAST_DAYS:
        return Outlook(Track.CANNOT_BE_SAID, "too_few_days", to_date)
    expected = _Expected.of(base)
    ahead = [expected.on(day) for day in open_days]
    numerator = sum(d.numerator or 0 for d in known) + sum(n for n, _ in ahead)
    if additive:
        whole, ratio = 1.0, 0.0
    else:
        whole = sum(d.denominator or 0 for d in known) + sum(d for _, d in ahead)
        if whole <= 0:
            return Outlook(Track.CANNOT_BE_SAID, "nothing_to_divide_by")
        ratio = numerator / whole
    n, spread = len(open_days), expected.spread(base, ratio)
    follow = (1 + CORRELATION) / (1 - CORRELATION)
    sd = sqrt(spread * (n * follow + n * n / len(base))) / whole
    found = _judged(wanted, at_most, to_date, numerator / whole, sd)
    rest = [expected.on(day) for day in left]
    share = float(len(left)) if additive else sum(d for _, d in rest)
    if share <= 0:
        return found
    usual = sum(n for n, _ in rest)
    needed = wanted * whole - (numerator - usual)
    return replace(found, needed=needed / share, usual=usual / share)


def _ratio(days: Sequence[DayOf], additive: bool) -> float | None:
    if not days:
        return None
    total = sum(day.numerator or 0 for day in days)
    if additive:
        return total
    whole = sum(day.denominator or 0 for day in days)
    return total / whole if whole > 0 else None


def _judged(
    wanted: float, at_most: bool, to_date: float | None, value: float, sd: float
) -> Outlook:
    low, high = value - _Z80 * sd, value + _Z80 * sd
    if sd > 0:
        above = 0.5 * (1 + erf((value - wanted) / (sd * sqrt(2))))
    else:
        above = float(value <= wanted if at_most else value >= wanted)
        above = 1 - above if at_most else above
    probability = 1 - above if at_most else above
    good, bad = (high <= wanted, low > wanted) if at_most else (low >= wanted, high < wanted)
    track = Track.ON_TRACK if good else Track.OFF_TRACK if bad else Track.AT_RISK
    return Outlook(track, None, to_date, value, low, high, probability)


@dataclass(frozen=True, slots=True)
class _Expected:
    """Mean numerator and denominator by weekday; 7 stands for weekdays that were never seen."""

    means: dict[int, tuple[float, float]]

    @classmethod
    def of(cls, base: Sequence[DayOf]) -> "_Expected":
        means = {7: _mean(base)}
        for weekday in range(7):
            same = [day for day in base if day.day.weekday() == weekday]
            if same:
                means[weekday] = _mean(same)
        return cls(means)

    def on(self, day: date) -> tuple[float, float]:
        return self.means.get(day.weekday(), self.means[7])

    def spread(self, base: Sequence[DayOf], ratio: float) -> float:
        """Return the variance of a day about its weekday's mean, linearised for a ratio."""
        total = 0.0
        for day in base:
            numerator, denominator = self.on(day.day)
            off = (day.numerator or 0) - numerator - ratio * ((day.denominator or 0) - denominator)
            total += off * off
        return total / max(1, len(base) - (len(self.means) - 1))


def _mean(days: Sequence[DayOf]) -> tuple[float, float]:
    n = len(days)
    return sum(d.numerator or 0 for d in days) / n, sum(d.denominator or 0 for d in days) / n
