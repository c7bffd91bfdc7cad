"""One promise of a model beside what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Promise:
    """`value` is to lie in [low, high], all as shares; a broken promise fails the evaluation."""

    name: str
    value: float
    low: float
    high: float
    of: int

    @property
    def kept(self) -> bool:
        return self.of > 0 and self.low <= self.value <= self.high

    @property
    def missed_by(self) -> float:
        """How far outside the bounds the value lies."""
        return max(self.low - self.value, self.value - self.high, 0.0)

    def line(self) -> str:
        """Return the line of the report."""
        verdict = "kept" if self.kept else f"MISSED by {self.missed_by:.2%}"
        if self.of == 0:
            verdict = "MISSED: nothing was measured"
        within = f"{self.low:.1%} to {self.high:.1%}"
        return f"{self.name:<62} {self.value:>8.2%}  {within:<17} n={self.of:<7} {verdict}"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is evaluated: everything, or a cut of it that a test has time for."""

    full: bool = True
    seed: int = 1
