"""What the other doors of a site did, of however many: sums that a door's own are taken out of.

All doors of a site are gone through twice before any is held against the others: `add` sums up what
each counted quarter by quarter, and says which quarters will be asked about (`ask`); `weigh` sums
up those. So a site's doors need not be in memory together, and in whatever parts they come, the
sums are the same to the last bit. What is kept does not grow with the doors, but for the windows
that no other door asks about as well: at most seven each, some 5 kB. Pure.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from server.health.series import QUARTER_S, Quarter, Series

Window = tuple[int, ...]
"""Some quarters of a site's grid, by their numbers."""


class Others(NamedTuple):
    """What other doors counted, and what is usual of them."""

    counted: float
    usual: float


class Seen(NamedTuple):
    """What one door counted in a window that it observed throughout, and what is usual there."""

    row: int
    counted: float
    usual: float


class Beside(NamedTuple):
    """The doors beside one that can be relied upon in a window: how many, their sums, and which of
    them, if any of enough people, holds the least part of its usual."""

    doors: int
    counted: float
    usual: float
    least: Seen | None


@dataclass(slots=True)
class _Sums:
    """All doors that observed a window throughout; `least`: the two that hold the least part."""

    doors: int = 0
    counted: float = 0.0
    usual: float = 0.0
    least: list[Seen] = field(default_factory=list)


@dataclass(slots=True)
class Doors:
    """Sums over the doors of a site, each known by its subject's `row`.

    `enough`: people who must be usual in a window for a door's part to say anything.
    """

    enough: float
    _counted: "array[float]" = field(default_factory=lambda: array("d"))
    _usual: "array[float]" = field(default_factory=lambda: array("d"))
    _windows: dict[Window, _Sums] = field(default_factory=dict)

    def add(self, door: Series) -> None:
        """Sum up what a door counted, quarter by quarter."""
        if not self._counted:
            self._counted = array("d", bytes(8 * len(door.quarters)))
            self._usual = array("d", bytes(8 * len(door.quarters)))
        _sum_up(door.quarters, self._counted, self._usual)

    def ask(self, windows: Iterable[Window]) -> None:
        """Say which quarters will be asked about."""
        for window in windows:
            self._windows.setdefault(window, _Sums())

    def weigh(self, row: int, door: Series) -> None:
        """Sum up what a door counted in the quarters that were asked about."""
        relied = [_is_relied_on(each) for each in door.quarters] if self._windows else []
        for window, sums in self._windows.items():
            if not all(relied[number] for number in window):
                continue
            seen = _seen(row, door, window)
            sums.doors += 1
            sums.counted += seen.counted
            sums.usual += seen.usual
            if seen.usual >= self.enough:
                sums.least = sorted([*sums.least, seen], key=_share)[:2]

    def since(self, low: int, own: Series) -> Others:
        """Return what the doors beside `own` counted from a quarter on, masked time left out."""
        length = len(own.quarters) - low
        counted, usual = array("d", bytes(8 * length)), array("d", bytes(8 * length))
        _sum_up(own.quarters[low:], counted, usual)
        return Others(
            sum(self._counted[low:]) - sum(counted),
            sum(self._usual[low:]) - sum(usual),
        )

    def within(self, window: Window, row: int, own: Series) -> Beside:
        """Return what the doors beside `own` did in a window. Raises KeyError: never asked for."""
        sums = self._windows[window]
        least = next((seen for seen in sums.least if seen.row != row), None)
        if not all(_is_relied_on(own.quarters[number]) for number in window):
            return Beside(sums.doors, sums.counted, sums.usual, least)
        seen = _seen(row, own, window)
        return Beside(sums.doors - 1, sums.counted - seen.counted, sums.usual - seen.usual, least)


def _sum_up(quarters: Sequence[Quarter], counted: "array[float]", usual: "array[float]") -> None:
    """Add the open quarters of which it is known what is usual, each as far as observed."""
    for number, (_, entered, left, seen_s, is_open, came, went, masked) in enumerate(quarters):
        if is_open and seen_s and came is not None and not masked:
            counted[number] += entered + left
            usual[number] += (came + (went or 0.0)) * (seen_s / QUARTER_S)


def _is_relied_on(quarter: Quarter) -> bool:
    return bool(quarter.observed_s) and not quarter.masked and quarter.usual_in is not None


def _seen(row: int, door: Series, window: Window) -> Seen:
    quarters = [door.quarters[number] for number in window]
    return Seen(
        row,
        sum(each.people for each in quarters),
        sum(each.usual * each.share for each in quarters),
    )


def _share(seen: Seen) -> float:
    return seen.counted / seen.usual
