"""A site's buckets as KPIs read them: sums, what they are worth, and the counters' own error.

`reading` fills them in, source by source; `metrics` adds them up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log1p

from server.insight.formulas import Inputs
from server.insight.recounts import CountingError
from server.insight.tally import Range
from server.rollup.buckets import Bucket
from server.rollup.perimeter import Perimeter
from server.rollup.places import Site
from server.rollup.quality import State, state

Span = tuple[int, int]
"""From when to when, in seconds."""


@dataclass(slots=True)
class Cell:
    """A site's bucket as read: its sums, and what its counts are worth.

    `heard` of `asked_of` kiosk buckets were observed. `imputed` and its variance: with what was
    not covered put in; None where nothing may be.
    """

    inputs: Inputs
    state: State
    revision: int = 0
    heard: float = 0.0
    asked_of: int = 0
    imputed: float | None = None
    imputed_variance: float = 0.0
    imputed_by: str | None = None


@dataclass(slots=True)
class Read:
    """What was read of a site: its buckets with their cells, and what its visits are made of.

    `span`: the whole question's range, of which these buckets may be a part. Perimeter, counting
    error and stays are told from that, so that no value depends on where an answer is cut.
    """

    site: Site
    grid: tuple[Bucket, ...]
    cells: list[Cell]
    span: Span
    perimeter: Perimeter = field(default_factory=Perimeter)
    error: CountingError | None = None

    def with_error(self, inputs: Inputs) -> Inputs:
        """Give sums of this site's time, as they are, its counters' error: the same all the time.

        It is that of the factor between counted and people: its standard error, and what recounts
        found it to be off, which nobody has corrected. Of counters that counted nobody there is no
        such factor, and the inputs note `counted_nobody`.
        """
        if self.error is None or self.error.audited_on is None or inputs.visits is None:
            inputs.count_variance, inputs.audited = None, False
            return inputs
        if self.error.bias <= -1:
            inputs.count_variance, inputs.audited = None, True
            inputs.notes |= {"counted_nobody"}
            return inputs
        relative = self.error.relative_se**2 + log1p(self.error.bias) ** 2
        inputs.count_variance, inputs.audited = relative * inputs.visits**2, True
        return inputs


def heard(cells: Sequence[Cell]) -> float | None:
    """Return the share of the kiosks' buckets that were observed."""
    asked_of = sum(cell.asked_of for cell in cells)
    return round(sum(cell.heard for cell in cells) / asked_of, 4) if asked_of else None


def empty(within: Range, sites: Sequence[Site], spans: Mapping[int, Span]) -> dict[int, Read]:
    """Return the sites' buckets, of which only the clock is known."""
    found: dict[int, Read] = {}
    states: dict[tuple[Bucket, ...], list[State]] = {}
    for site in sites:
        grid = within.grid(site)
        if not grid:
            continue
        if grid not in states:
            now_s = within.now_s
            states[grid] = [state(b.end_s, now_s=now_s, accounted_s=now_s) for b in grid]
        cells = [Cell(Inputs(), known) for known in states[grid]]
        span = spans.get(site.id, (grid[0].start_s, grid[-1].end_s))
        found[site.id] = Read(site, grid, cells, span)
    return found


def whole_span(found: Mapping[int, Read]) -> Span:
    """Return from when to when there are buckets of any site."""
    return (
        min(each.grid[0].start_s for each in found.values()),
        max(each.grid[-1].end_s for each in found.values()),
    )
