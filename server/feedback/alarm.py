"""When answers are worse than this kiosk's own at this hour of the week: a sequential test. Pure.

Each answer is bad or not. The baseline of an hour of the week is the share of bad ones there in the
weeks before, drawn towards the kiosk's whole share by the weight of `SHRINK` answers. Against it, a
Bernoulli CUSUM adds up by how much likelier each answer is if the odds of a bad one were `ODDS`
times the baseline's (R. Steiner et al., Biostatistics 1, 441, 2000), never below zero, from opening
on. It raises an alarm at a threshold.

The threshold is the least at which a week of answers as usual raises no more false alarms than
asked for. That number is computed, not simulated: the CUSUM is a Markov chain on a fine grid (D.
Brook, D. A. Evans, Biometrika 59, 539, 1972), run for as many answers as each weekday has. The
baseline itself was learnt from so many answers and may be off; the number is the mean over how far.

An alarm's evidence is of the answers since the CUSUM last stood at zero: how many, how many bad,
how many bad the baseline expects, and the exact chance of so many (Poisson-binomial). That chance
is of these answers taken alone; how often a watch of all of them cries wolf is the stated rate.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import TYPE_CHECKING, NamedTuple, assert_never

from server.feedback.indices import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FALSE_ALARMS_PER_WEEK = 0.5
ODDS = 2.5
SHRINK = 40
LEAST_ANSWERS = 100
"""Below so many answers in the weeks before there is no baseline, and no alarm."""
LEAST_BAD = 3
HOURS = 168
_GRID = 160
_KINDS_OF_HOUR = 16
_STEPS = 18
_RUN = 8.0
"""By how much the few hours that a run is of are less certain than the whole week (variance)."""
_DOUBTS = ((0.0, 2 / 3), (sqrt(3), 1 / 6), (-sqrt(3), 1 / 6))
"""Gauss-Hermite: the mean over a normal error, from three places."""
_THRESHOLDS = (0.5, 30.0)


def bad_answers(kind: Kind | None) -> frozenset[int]:
    """Return the answers that say that something went wrong; none of what no index is made of."""
    match kind:
        case Kind.SMILEY3:
            return frozenset({2})
        case Kind.SMILEY4:
            return frozenset({2, 3})
        case Kind.SMILEY5:
            return frozenset({3, 4})
        case Kind.NPS:
            return frozenset(range(7))
        case Kind.CSAT | Kind.STATEMENT:
            return frozenset({1, 2})
        case Kind.CES:
            return frozenset({1, 2, 3})
        case Kind.CHOICE | None:
            return frozenset()
        case _:
            assert_never(kind)


class Tally(NamedTuple):
    """Answers of an hour of the week (0: Monday from midnight) in the weeks before."""

    n: int
    bad: int


@dataclass(frozen=True, slots=True)
class Baseline:
    """The share of bad answers by hour of the week, and how many answers each weekday has.

    `doubt`: the standard error of the logarithm of its odds, over the hours of a run.
    """

    shares: tuple[float, ...]
    weights: tuple[float, ...]
    per_day: tuple[float, ...]
    doubt: float = 0.0


class Answer(NamedTuple):
    """One valid answer, in order of time."""

    at_ms: int
    hour: int
    bad: bool


@dataclass(frozen=True, slots=True)
class Alarm:
    """Since when answers are worse than usual, and the evidence for it."""

    at_ms: int
    since_ms: int
    n: int
    bad: int
    expected: float
    p: float


def baseline_of(tallies: Mapping[int, Tally], *, weeks: float) -> Baseline | None:
    """Return the baseline of `weeks`; None for too few answers to have one."""
    n = sum(tally.n for tally in tallies.values())
    if n < LEAST_ANSWERS or weeks <= 0:
        return None
    whole = (sum(tally.bad for tally in tallies.values()) + 0.5) / (n + 1)
    found = [tallies.get(hour, Tally(0, 0)) for hour in range(HOURS)]
    return Baseline(
        tuple((tally.bad + SHRINK * whole) / (tally.n + SHRINK) for tally in found),
        tuple(tally.n / n for tally in found),
        tuple(
            sum(tally.n for tally in found[day * 24 : day * 24 + 24]) / weeks for day in range(7)
        ),
        _doubt(n, whole),
    )


def _doubt(n: int, share: float) -> float:
    """Return the standard error of log odds from `n` answers, of which a run's hours are a part."""
    return sqrt(_RUN / (n * share * (1 - share)))


def threshold_of(baseline: Baseline, false_alarms_per_week: float) -> float:
    """Return the least threshold with at most so many false alarms a week, to 0.01 %."""
    low, high = _THRESHOLDS
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if false_alarms(baseline, middle) > false_alarms_per_week:
            low = middle
        else:
            high = middle
    return high


def false_alarms(baseline: Baseline, threshold: float) -> float:
    """Return how many alarms a week of answers as usual is expected to raise."""
    import numpy as np  # on first use: it is slow to import

    longest = max(round(n) for n in baseline.per_day)
    found = 0.0
    for node, weight in _DOUBTS:
        moves = _moves(baseline, threshold, odds=exp(node * baseline.doubt))
        raised = np.zeros(longest + 1)
        stands = np.zeros(_GRID)
        stands[0] = 1.0
        for number in range(1, longest + 1):
            moved = stands @ moves
            stands = moved[:_GRID]
            stands[0] += moved[_GRID]  # it begins anew
            raised[number] = raised[number - 1] + moved[_GRID]
        found += weight * float(sum(raised[round(n)] for n in baseline.per_day))
    return found


def _moves(baseline: Baseline, threshold: float, *, odds: float) -> "NDArray[np.float64]":
    """Return how the sum moves where the odds are so many times the baseline's.

    A row for each place on the grid below the threshold; the last column is an alarm.
    """
    import numpy as np

    step = threshold / _GRID
    rows = np.arange(_GRID)
    at = rows * step
    moves = np.zeros((_GRID, _GRID + 1))
    for share, weight in _mixed(baseline):
        truly = odds * share / (1 - share + odds * share)
        for chance, score in ((truly, _score(share, bad=True)), (1 - truly, _score(share))):
            to = np.clip((at + score) / step, 0, _GRID)
            alarm = at + score >= threshold
            below = np.minimum(np.floor(to).astype(int), _GRID - 1)
            part = np.where(alarm, 0.0, to - below)
            above = np.minimum(below + 1, _GRID - 1)  # what rounds up to an alarm is none yet
            np.add.at(moves, (rows, np.where(alarm, _GRID, below)), weight * chance * (1 - part))
            np.add.at(moves, (rows, above), weight * chance * part)
    return moves


def alarms(answers: Iterable[Answer], baseline: Baseline, threshold: float) -> list[Alarm]:
    """Return the alarms that a day's answers raise; after each the sum begins anew."""
    found: list[Alarm] = []
    run: list[Answer] = []
    score = 0.0
    for answer in answers:
        score += _score(baseline.shares[answer.hour], bad=answer.bad)
        if score <= 0:
            score = 0.0
            run.clear()
            continue
        run.append(answer)
        if score >= threshold and sum(each.bad for each in run) >= LEAST_BAD:
            shares = [baseline.shares[each.hour] for each in run]
            bad = sum(each.bad for each in run)
            chance = at_least(bad, shares)
            found.append(Alarm(answer.at_ms, run[0].at_ms, len(run), bad, sum(shares), chance))
            score = 0.0
            run.clear()
    return found


def at_least(bad: int, shares: Sequence[float]) -> float:
    """Return the chance of `bad` or more, each answer being bad with its own share."""
    chances = [1.0] + [0.0] * bad  # of 0, 1 ... bad so far; the last: that many or more
    for share in shares:
        for number in range(bad, 0, -1):
            kept = chances[number] * (1.0 if number == bad else 1 - share)
            chances[number] = kept + chances[number - 1] * share
        if bad:
            chances[0] *= 1 - share
    return min(1.0, float(chances[bad]))


def _score(share: float, *, bad: bool = False) -> float:
    """Return the logarithm of the likelihood ratio of one answer."""
    return (log(ODDS) if bad else 0.0) - log(1 - share + ODDS * share)


def _mixed(baseline: Baseline) -> list[tuple[float, float]]:
    """Return the shares of few kinds of hours, with how often an answer is of each."""
    hours = sorted(
        (share, weight)
        for share, weight in zip(baseline.shares, baseline.weights, strict=True)
        if weight > 0
    )
    found: list[tuple[float, float]] = []
    begun, total = 0.0, 0.0
    for share, weight in hours:
        begun, total = begun + weight, total + weight * share
        if begun >= 1 / _KINDS_OF_HOUR:
            found.append((total / begun, begun))
            begun = total = 0.0
    if begun:
        found.append((total / begun, begun))
    return found
