"""Indices of kiosk answers and their 95 % intervals: smileys, NPS, CSAT, CES.

Each takes how often each answer was given, in the order that its docstring says, and returns None
where there is nothing to say. Smileys are weighed in equal steps, as HappyOrNot's Happy Index is
(support.happy-or-not.com, Performance indexes: of 126, 60, 16 and 17 answers 78.23). A share has
Wilson's score interval, NPS the adjusted Wald one (Sauro, measuringu.com/nps-confidence-intervals:
291 promoters, 476 passives and 395 detractors are -8.95 within 4.4), a mean Student's t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import cos, expm1, pi, sqrt
from statistics import NormalDist
from typing import assert_never

CONFIDENCE = 0.95
SMALL = 30
"""Below so many answers an index is shown as its interval alone."""

Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""How many standard errors a two-sided interval of `CONFIDENCE` reaches to either side: 1.96."""


class Kind(StrEnum):
    """What a question asks for, and so how its answers are numbered.

    Smileys are numbered from the best (0); NPS answers are 0 to 10; CSAT 1 to 5; CES 1 to 7; a
    statement 1 (disagree) to 5 (agree). The same words as in `protocol.questionnaire`.
    """

    SMILEY3 = "smiley3"
    SMILEY4 = "smiley4"
    SMILEY5 = "smiley5"
    NPS = "nps"
    CSAT = "csat"
    CES = "ces"
    CHOICE = "choice"
    STATEMENT = "statement"


@dataclass(frozen=True, slots=True)
class Index:
    """A value with its interval, over `n` answers; `agree` is CES' share of 5 and above.

    `se` is half the interval, before the scale cut it, over the normal quantile: so what is made of
    several indices is as unsure as they are. None where there is no interval.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    agree: float | None = None
    se: float | None = None

    @property
    def small(self) -> bool:
        """Whether only the interval should be shown."""
        return self.n < SMALL


def index_of(kind: Kind, answers: Sequence[float]) -> Index | None:
    """Return the index of a question; `answers` by number, from 0. None for a plain choice.

    Weighted answers are no whole numbers; they are to add up to their effective number.
    """
    match kind:
        case Kind.SMILEY3:
            return smiley_index(_fit(answers, 0, 3))
        case Kind.SMILEY4:
            return smiley_index(_fit(answers, 0, 4))
        case Kind.SMILEY5:
            return smiley_index(_fit(answers, 0, 5))
        case Kind.NPS:
            scores = _fit(answers, 0, 11)
            return nps(sum(scores[9:]), sum(scores[7:9]), sum(scores[:7]))
        case Kind.CSAT:
            return csat(_fit(answers, 1, 5))
        case Kind.CES:
            return ces(_fit(answers, 1, 7))
        case Kind.STATEMENT:
            return statement(_fit(answers, 1, 5))
        case Kind.CHOICE:
            return None
        case _:
            assert_never(kind)


def _fit(answers: Sequence[float], first: int, count: int) -> list[float]:
    """Return `count` answers from number `first`; those of no such number are left out."""
    held = list(answers[first : first + count])
    return held + [0.0] * (count - len(held))


def smiley_index(answers: Sequence[float]) -> Index | None:
    """Return 100 for all best to 0 for all worst; `answers` from the best, of 3 to 5 smileys.

    Weights are equal steps: 100, 50, 0; 100, 66.67, 33.33, 0; 100, 75, 50, 25, 0. Interval: t, of
    the mean; of answers that are all alike Wilson's.
    """
    steps = len(answers) - 1
    return _mean([100 * (steps - at) / steps for at in range(steps + 1)], answers)


def nps(promoters: float, passives: float, detractors: float) -> Index | None:
    """Return % of 9-10 less % of 0-6; interval: adjusted Wald (n + 3, 3/4 to either side)."""
    n = promoters + passives + detractors
    if n == 0:
        return None
    p, d = (promoters + 0.75) / (n + 3), (detractors + 0.75) / (n + 3)
    half = Z * sqrt((p + d - (p - d) ** 2) / (n + 3))
    value, low, high = 100 * (promoters - detractors) / n, p - d - half, p - d + half
    return Index(value, max(-100, 100 * low), min(100, 100 * high), round(n), se=100 * half / Z)


def csat(answers: Sequence[float]) -> Index | None:
    """Return the percentage of the best two of five; `answers` from the worst. Interval: Wilson."""
    n = sum(answers)
    if n == 0:
        return None
    low, high = wilson(sum(answers[-2:]), n)
    se = 100 * (high - low) / (2 * Z)
    return Index(100 * sum(answers[-2:]) / n, 100 * low, 100 * high, round(n), se=se)


def ces(answers: Sequence[float]) -> Index | None:
    """Return the mean of 1 (disagree) to 7 (agree); `answers` from 1. Interval: t."""
    found = _mean(list(range(1, 8)), answers)
    return None if found is None else replace(found, agree=100 * sum(answers[4:]) / sum(answers))


def statement(answers: Sequence[float]) -> Index | None:
    """Return the mean of 1 (disagree) to 5 (agree); `agree`: % of 4 and 5. Interval: t."""
    found = _mean(list(range(1, 6)), answers)
    return None if found is None else replace(found, agree=100 * sum(answers[3:]) / sum(answers))


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share."""
    p, z2 = hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean(values: Sequence[float], answers: Sequence[float]) -> Index | None:
    """Return the weighted mean and its interval, as `mean_index` does."""
    total = sum(answers)
    n = round(total, 6)  # weighted answers add up to whole numbers but for rounding
    if n == 0:
        return None
    mean = sum(v * a for v, a in zip(values, answers, strict=True)) / total
    squares = 0.0
    if sum(a > 0 for a in answers) > 1:  # else all are alike, but for rounding
        squares = sum(a * (v - mean) ** 2 for v, a in zip(values, answers, strict=True))
    return mean_index(mean, squares, n, scale=(min(values), max(values)))


def mean_index(mean: float, squares: float, n: float, *, scale: tuple[float, float]) -> Index:
    """Return a mean with its t interval, within the scale; below two answers without one.

    `squares` is the sum of squared differences from it. Where all answers are alike they say
    nothing of how others differ: then Wilson's bound of the share that answers so, others being at
    the scale's ends.
    """
    least, most = scale
    if n < 2:
        return Index(mean, None, None, round(n))
    if squares > 0:
        half = student_t(n - 1) * sqrt(squares / (n - 1) / n)
        low, high = mean - half, mean + half
    else:
        others = 1 - wilson(n, n)[0]
        low, high = mean - others * (mean - least), mean + others * (most - mean)
    se = (high - low) / (2 * Z)
    return Index(mean, max(least, low), min(most, high), round(n), se=se)


def student_t(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t (G. W. Hill, CACM algorithm 396)."""
    p = 1 - CONFIDENCE
    if freedom == 1:
        return cos(p * pi / 2) / sqrt(1 - cos(p * pi / 2) ** 2)
    if freedom == 2:
        return sqrt(2 / (p * (2 - p)) - 2)
    a = 1 / (freedom - 0.5)
    b = 48 / (a * a)
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * sqrt(a * pi / 2) * freedom
    y = (d * p) ** (2 / freedom)
    if y > 0.05 + a:
        x = -Z
        y = x * x
        if freedom < 5:
            c += 0.3 * (freedom - 4.5) * (-x + 0.6)
        c += (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = a * y * y
        y = y + y * y / 2 if y <= 0.002 else expm1(y)
    else:
        y = (
            (1 / (((freedom + 6) / (freedom * y) - 0.089 * d - 0.822) * (freedom + 2) * 3)
             + 0.5 / (freedom + 4)) * y - 1
        ) * (freedom + 1) / (freedom + 2) + 1 / y  # fmt: skip
    return sqrt(freedom * y)
