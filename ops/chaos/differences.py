"""A place where it does not add up."""

from dataclasses import dataclass
from enum import Enum


class Wrong(Enum):
    """How a stored number differs from the true one."""

    LOST = "lost"
    DUPLICATED = "duplicated"
    ALTERED = "altered"


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where it does not add up; `amount` is people, presses or rows."""

    wrong: Wrong
    amount: int
    place: str
    expected: str
    found: str

    def __str__(self) -> str:
        head = f"{self.wrong.value} {self.amount}: {self.place}"
        return f"{head}: expected {self.expected}, found {self.found}"
