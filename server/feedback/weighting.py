"""Indices as if all who left had answered alike often: weights by hour of week and door. Pure.

Who presses is not who leaves: a quiet Tuesday morning's guests press as often as a Saturday's crowd
of ten times as many. A stratum is an hour of the week at a door; its responses weigh exits /
responses, at most `CAP` times the median weight, since one response must not speak for a whole
afternoon. What that costs in certainty is said as Kish's effective number of responses,
(sum w)^2 / (sum w^2), from which the interval follows. Strata whose exits are not known are left
out, and said; so is the share of exits in strata where nobody answered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from server.feedback.indices import Index, Kind, index_of

CAP = 5.0


@dataclass(frozen=True, slots=True)
class Stratum:
    """Answers by number, and the people who left; None where that is not known."""

    answers: tuple[int, ...]
    exits: float | None

    @property
    def n(self) -> int:
        return sum(self.answers)


@dataclass(frozen=True, slots=True)
class Weighted:
    """An index both ways; `weighted` None where no exits are known or nobody answered.

    `n_known` of the `n` responses have known exits. `capped` strata weigh less than they should;
    `unanswered` is the share of the exits in strata without any response.
    """

    unweighted: Index | None
    weighted: Index | None
    n: int
    n_known: int
    n_eff: float | None
    strata: int
    capped: int
    unanswered: float | None


def weighted(kind: Kind, strata: Sequence[Stratum]) -> Weighted:
    """Return the index of all strata's answers, as they are and weighted by exits."""
    width = max((len(stratum.answers) for stratum in strata), default=0)
    plain = [0] * width
    for stratum in strata:
        for number, answers in enumerate(stratum.answers):
            plain[number] += answers
    known = [(stratum, stratum.exits) for stratum in strata if stratum.exits is not None]
    told = [(stratum, exits / stratum.n) for stratum, exits in known if stratum.n and exits > 0]
    weights, capped = _capped([weight for _, weight in told])
    left = sum(exits for _, exits in known)
    silent = sum(exits for stratum, exits in known if not stratum.n)
    total = sum(w * stratum.n for (stratum, _), w in zip(told, weights, strict=True))
    squares = sum(w * w * stratum.n for (stratum, _), w in zip(told, weights, strict=True))
    n_eff = total * total / squares if squares else None
    found: Index | None = None
    if n_eff is not None:
        shares = [0.0] * width
        for (stratum, _), weight in zip(told, weights, strict=True):
            for number, answers in enumerate(stratum.answers):
                shares[number] += weight * answers / total
        found = index_of(kind, [share * n_eff for share in shares])
    return Weighted(
        index_of(kind, plain),
        found,
        sum(plain),
        sum(stratum.n for stratum, _ in told),
        n_eff,
        len(told),
        capped,
        silent / left if left else None,
    )


def _capped(weights: Sequence[float]) -> tuple[list[float], int]:
    """Return the weights, none above `CAP` times their median, and how many were."""
    if not weights:
        return [], 0
    most = CAP * median(weights)
    return [min(weight, most) for weight in weights], sum(weight > most for weight in weights)
