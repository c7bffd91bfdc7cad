"""A device's health metrics as charts: points, and nothing where nothing was said. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import msgspec

from server.health.reads import Point

SPAN = timedelta(days=3)
POINTS = 288
"""A point for each quarter of an hour, in which a device says how it is."""
BROKEN = 2.5
"""A stretch without a word that is so many times longer than most of the others is a gap."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One metric: seconds and values, None where the line breaks."""

    name: str
    at: list[int]
    value: list[float | None]
    since: int
    until: int

    @property
    def text(self) -> str:
        """Return it as the page's script reads it."""
        found = asdict(self)
        found["from"] = found.pop("since")
        return msgspec.json.encode(found).decode()


def charts(
    series: Mapping[str, Sequence[Point]], *, since: datetime, until: datetime
) -> list[Chart]:
    """Return a chart of each metric that has values, by name."""
    return [
        chart(name, points, since=since, until=until) for name, points in series.items() if points
    ]


def chart(name: str, points: Sequence[Point], *, since: datetime, until: datetime) -> Chart:
    """Return one metric's chart, with a break where it was silent."""
    at = [int(point.at.timestamp()) for point in points]
    steps = sorted(later - earlier for earlier, later in pairwise(at))
    usual = steps[len(steps) // 2] if steps else 0
    seconds: list[int] = []
    values: list[float | None] = []
    for n, point in enumerate(points):
        if n and at[n] - at[n - 1] > BROKEN * usual:
            seconds.append(at[n - 1] + 1)
            values.append(None)
        seconds.append(at[n])
        values.append(round(point.mean, 3))
    return Chart(name, seconds, values, int(since.timestamp()), int(until.timestamp()))
