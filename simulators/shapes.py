"""When people come: hour-by-weekday shapes and the month's index, as small rounded tables.

Source: Leeds City Council street cameras, 2012-2016 (nickmalleson/lcc-footfall at 1097c6a9),
averaged per weekday and hour and rounded to per mille: Briggate, the main shopping street, and
Albion Street North, shops among offices. Monday to Thursday share one row. Months: same source.
"""

from dataclasses import dataclass
from functools import lru_cache

Hours = tuple[tuple[int, int] | None, ...]
"""Opening hours, Monday first: (first minute, minute after the last) of the local day, or None."""

_Row = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """Per mille of a week by day, Monday first, and of a day by hour, by kind of day."""

    name: str
    days: _Row
    weekday: _Row
    friday: _Row
    saturday: _Row
    sunday: _Row

    def hours(self, weekday: int) -> _Row:
        """Return the 24 hours' per mille of that day of the week, Monday is 0."""
        return (*(self.weekday,) * 4, self.friday, self.saturday, self.sunday)[weekday]


# fmt: off
STREET = Shape(
    "street",
    (121, 124, 128, 136, 155, 215, 121),
    (6, 4, 4, 4, 3, 3, 7, 13, 26, 30, 47, 76, 134, 140, 107, 94, 87, 82, 54, 29, 18, 12, 11, 8),
    (8, 7, 7, 8, 6, 4, 6, 11, 21, 27, 45, 73, 119, 126, 108, 96, 90, 79, 52, 31, 20, 17, 19, 19),
    (12, 10, 8, 8, 6, 3, 3, 4, 9, 21, 42, 75, 108, 128, 135, 129, 103, 72, 40, 23, 15, 14, 16, 17),
    (29, 26, 23, 19, 13, 7, 4, 5, 6, 12, 35, 78, 125, 144, 146, 127, 87, 42, 20, 14, 11, 9, 9, 8),
)
OFFICES = Shape(
    "offices",
    (135, 138, 142, 146, 158, 190, 90),
    (2, 2, 2, 2, 2, 3, 5, 17, 44, 40, 59, 97, 149, 145, 101, 88, 79, 69, 38, 21, 13, 8, 8, 6),
    (3, 2, 1, 2, 1, 2, 4, 14, 37, 36, 56, 96, 142, 140, 108, 94, 82, 66, 37, 24, 17, 12, 15, 10),
    (7, 6, 6, 4, 3, 2, 3, 4, 11, 27, 57, 107, 124, 132, 136, 124, 89, 56, 30, 18, 15, 12, 14, 14),
    (3, 18, 16, 11, 6, 3, 3, 2, 5, 14, 43, 120, 139, 148, 150, 130, 83, 37, 20, 15, 12, 8, 9, 6),
)
MONTHS = (0.74, 0.84, 0.96, 0.98, 1.00, 1.00, 1.02, 1.00, 1.03, 1.08, 1.10, 1.27)  # January first
# fmt: on

ALWAYS: Hours = ((0, 1440),) * 7
SHOP: Hours = ((600, 1200),) * 5 + ((600, 1080), (660, 1020))


@lru_cache(maxsize=4096)
def quarter_share(shape: Shape, hours: Hours, weekday: int, quarter: int) -> float:
    """Return the share of an average day's people in that quarter of an hour (0 to 95).

    Closed time has none; what the shape says of it is spread over the open part of the same day,
    so that a day's volume does not depend on how long the door is open.
    """
    opening = hours[weekday]
    if opening is None:
        return 0.0
    row = shape.hours(weekday)
    share = [row[q // 4] * _open_part(opening, q) for q in range(96)]
    return share[quarter] / sum(share) * shape.days[weekday] * 7 / sum(shape.days)


def _open_part(opening: tuple[int, int], quarter: int) -> float:
    first, last = opening
    return max(0, min(last, quarter * 15 + 15) - max(first, quarter * 15)) / 15
