"""What an evaluation of fleet health says: how soon faults were found, and how often it cried wolf.

A `Line` is one kind of fault of one condition: how many of those that were put in were found, how
soon, and what is promised. A `Quiet` is how often anything fired where nothing was wrong, all
conditions together. Both know whether the promise is kept.
"""

import math
from collections import Counter as Tally
from dataclasses import dataclass, field

from ops.evaluations.truth_conditions import Found
from server.health.judgement import Condition

MOST_FALSE = 0.5
"""False alarms per device and year, all conditions together."""
_HOUR = 3600.0


HEADER = f"{'condition':<19} {'fault':<53} {'found':>5} {'median':>7} {'p95':>7}  n     promised"


@dataclass(frozen=True, slots=True)
class Line:
    """How soon, in seconds, a kind of fault was found, and what is promised: at the median (None:
    nothing, it is measured and no more), at the 95th percentile (None: nothing), and of how many
    at least."""

    condition: Condition
    fault: str
    found: Found
    median_s: float | None
    p95_s: float | None = None
    share: float = 0.95

    @property
    def promised(self) -> bool:
        return self.median_s is not None

    @property
    def kept(self) -> bool:
        found = self.found
        return self.median_s is None or (
            bool(found.times_s)
            and found.share >= self.share
            and found.quantile(0.5) <= self.median_s
            and (self.p95_s is None or found.quantile(0.95) <= self.p95_s)
        )

    def line(self) -> str:
        """Return the line of the report."""
        median, p95 = _span(self.found.quantile(0.5)), _span(self.found.quantile(0.95))
        return (
            f"{self.condition:<19} {self.fault:<53} {self.found.share:>5.0%} {median:>7} "
            f"{p95:>7}  n={len(self.found.times_s):<3} {self._verdict()}"
        )

    def _verdict(self) -> str:
        if self.median_s is None:
            return "nothing"
        most = f"{self.share:.0%} found, median <= {_span(self.median_s)}"
        if self.p95_s is not None:
            most += f", p95 <= {_span(self.p95_s)}"
        return f"{most}  {'kept' if self.kept else 'MISSED'}"


@dataclass(frozen=True, slots=True)
class Quiet:
    """Alarms where nothing is wrong."""

    of: str
    alarms: Tally[Condition]
    years: float
    short: bool = False
    proven: Tally[Condition] = field(default_factory=Tally)
    """Faults that the data itself had, by a rule."""

    @property
    def promised(self) -> bool:
        return True

    @property
    def allowed(self) -> float:
        """How many alarms this may be; of a short cut, two deviations more."""
        mean = MOST_FALSE * self.years
        return mean + 2 * math.sqrt(mean) if self.short else mean

    @property
    def kept(self) -> bool:
        return self.years > 0 and self.alarms.total() <= self.allowed

    @property
    def interval(self) -> tuple[float, float]:
        """The rate's interval at 95 % (F. Garwood, Biometrika 28, 437, 1936)."""
        from scipy.stats import chi2

        many, years = self.alarms.total(), max(self.years, 1e-9)
        low = chi2.ppf(0.025, 2 * many) / 2 if many else 0.0
        return float(low / years), float(chi2.ppf(0.975, 2 * many + 2) / 2 / years)

    def line(self) -> str:
        """Return the line of the report."""
        rate = self.alarms.total() / self.years if self.years else math.inf
        low, high = self.interval
        each = ", ".join(f"{condition} {n}" for condition, n in sorted(self.alarms.items()) if n)
        real = ", ".join(f"{condition} {n}" for condition, n in sorted(self.proven.items()))
        verdict = "kept" if self.kept else "MISSED"
        return (
            f"false alarms, {self.of:<52} {rate:.2f} a device-year ({low:.2f} to {high:.2f}) in "
            f"{self.years:.1f} ({each or 'none'}{f'; proven faults: {real}' if real else ''})  "
            f"<= {MOST_FALSE}  {verdict}"
        )


def _span(seconds: float) -> str:
    if math.isinf(seconds):
        return "never"
    if seconds < 2 * _HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < 72 * _HOUR else f"{seconds / 86_400:.1f} d"
