"""One promise of a model beside what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Promise:
    """`value` is to lie in [low, high], all as shares; a broken promise fails the evaluation.

    `chance` widens the bounds of a short cut by what its few cases scatter; else it is 0.
    """

    name: str
    value: float
    low: float
    high: float
    of: int
    chance: float = 0.0

    @property
    def kept(self) -> bool:
        return self.of > 0 and self.missed_by == 0

    @property
    def missed_by(self) -> float:
        """How far outside the bounds the value lies."""
        low, high = self.low - self.chance, self.high + self.chance
        return max(low - self.value, self.value - high, 0.0)

    def line(self) -> str:
        """Return the line of the report."""
        verdict = "kept" if self.kept else f"MISSED by {self.missed_by:.2%}"
        if self.of == 0:
            verdict = "MISSED: nothing was measured"
        within = f"{self.low:.1%} to {self.high:.1%}"
        chance = f" +-{self.chance:.1%}" if self.chance else ""
        return f"{self.name:<62} {self.value:>8.2%}  {within}{chance}  n={self.of}  {verdict}"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is evaluated: everything, or a cut of it that a test has time for."""

    full: bool = True
    seed: int = 1
