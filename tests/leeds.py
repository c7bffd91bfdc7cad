"""Leeds' real hourly counts where they are at hand, else a file of their form, and what both hold.

The city publishes them and they are no part of this project. The stand-in is written as they are:
two forms of dates, a late beginning, missing hours, 24 rows on days of 23 and of 25 hours, and
people in an hour that did not exist. So nothing is skipped anywhere, and each file is held to
figures that were not read from it by the code under test.
"""

import csv
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from ops.evaluations.leeds import LEEDS
from simulators.counts_file import QuirkKind

_FIRST, _LAST = date(2010, 10, 1), date(2012, 4, 1)
_FORWARD, _BACK = (date(2011, 3, 27), date(2012, 3, 25)), (date(2010, 10, 31), date(2011, 10, 30))
_LATE = date(2010, 10, 5)
_PLACES = ("Briggate", "Headrow", "CommercialStBarratts")
_CLOSED = date(2011, 12, 25)  # at Headrow, whose counter stood still from 8 to 17


@dataclass(frozen=True, slots=True)
class Counts:
    """A file of counts, and what it is known to hold."""

    path: Path
    rows: int
    people: int
    of_march_2012: int
    missing_hours: int
    in_no_hour: Mapping[tuple[str, date], int]  # people at 01 on two days at Briggate
    quirks: Mapping[QuirkKind, int]
    late: tuple[str, date]


REAL = Counts(
    path=LEEDS,
    rows=415_352,
    people=391_811_609,
    of_march_2012=5_583_689,
    missing_hours=592,
    in_no_hour={("Briggate", date(2012, 3, 25)): 1_102, ("Briggate", date(2014, 3, 30)): 919},
    quirks={
        QuirkKind.NO_SUCH_HOUR: 47,
        QuirkKind.ONE_OF_TWO: 48,
        QuirkKind.MISSING: 25,
        QuirkKind.BEGINS_LATE: 1,
    },
    late=("CommercialStBarratts", date(2009, 7, 17)),
)


def counts_at_hand(folder: Path) -> Counts:
    """Return the real counts, or the stand-in for them, written into `folder`."""
    return REAL if LEEDS.exists() else stand_in(folder / "counts.csv")


def stand_in(path: Path) -> Counts:
    """Write a file of eighteen months of three places."""
    chance = random.Random(2010)
    people: Counter[tuple[int, int]] = Counter()
    in_no_hour: dict[tuple[str, date], int] = {}
    rows = 0
    with path.open("w", newline="") as stream:
        out = csv.writer(stream)
        out.writerow(["Date", "Hour", "LocationName", "InCount"])
        for place in _PLACES:
            for day in (_FIRST + timedelta(days=n) for n in range((_LAST - _FIRST).days)):
                if place == _PLACES[2] and day < _LATE:
                    continue
                for hour in range(24):
                    if place == _PLACES[1] and day == _CLOSED and 8 <= hour < 18:
                        continue
                    count = chance.randint(1, 80 + 60 * min(hour, 23 - hour))
                    out.writerow(
                        [f"{day:%d/%m/%Y}" if day.year < 2012 else day, hour, place, count]
                    )
                    people[day.year, day.month] += count
                    rows += 1
                    if place == _PLACES[0] and day in _FORWARD and hour == 1:
                        in_no_hour[place, day] = count
    return Counts(
        path=path,
        rows=rows,
        people=people.total(),
        of_march_2012=people[2012, 3],
        missing_hours=10,
        in_no_hour=in_no_hour,
        quirks={
            QuirkKind.NO_SUCH_HOUR: len(_PLACES) * len(_FORWARD),
            QuirkKind.ONE_OF_TWO: len(_PLACES) * len(_BACK),
            QuirkKind.MISSING: 1,
            QuirkKind.BEGINS_LATE: 1,
        },
        late=(_PLACES[2], _LATE),
    )
