"""Before and after an action: what changed, and how much of it would have changed anyway. Pure.

Whoever acts where it is worst will see it get better: the worst of many is in part bad luck, which
does not stay (regression to the mean), and a season moves everyone. So the change is set against
what the control sites, at which nothing was done, let expect: a line through their changes by how
they stood before, taken at where this site stood. `net` is what is left. Its interval is that of
one more site by that line (t; the spread about it, or the sampling error of the site's own change
if that is larger): it holds zero in 95 of 100 cases where the action did nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean

from server.feedback.indices import SMALL, Index, Kind, Z, index_of, student_t

LEAST_CONTROLS = 5

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Period:
    """A site's answers by number, before and after."""

    before: Counts
    after: Counts


@dataclass(frozen=True, slots=True)
class Comparison:
    """The change of the index with its interval, and what of it controls do not explain.

    `expected` is the change that they let expect. It and `net` are None with fewer than
    `LEAST_CONTROLS` controls: then regression to the mean is not ruled out.
    """

    before: Index
    after: Index
    change: float
    low: float
    high: float
    controls: tuple[str, ...]
    expected: float | None
    net: float | None
    net_low: float | None
    net_high: float | None


def compared(kind: Kind, site: Period, others: Mapping[str, Period]) -> Comparison | None:
    """Compare; None where the site has fewer than `SMALL` answers in either period."""
    own = _indices(kind, site)
    if own is None:
        return None
    before, after = own
    error = sqrt((before.se or 0.0) ** 2 + (after.se or 0.0) ** 2)
    change = after.value - before.value
    found = {ref: pair for ref, each in others.items() if (pair := _indices(kind, each))}
    controls = tuple(sorted(found))
    stood = [found[ref][0].value for ref in controls]
    changes = [found[ref][1].value - found[ref][0].value for ref in controls]
    expected = net = half = None
    if len(controls) >= LEAST_CONTROLS:
        expected, half = _foreseen(stood, changes, at=before.value, error=error)
        net = change - expected
    return Comparison(
        before,
        after,
        change,
        change - Z * error,
        change + Z * error,
        controls,
        expected,
        net,
        None if net is None or half is None else net - half,
        None if net is None or half is None else net + half,
    )


def _foreseen(
    stood: Sequence[float], changes: Sequence[float], *, at: float, error: float
) -> tuple[float, float]:
    """Return a line's value `at` a place, and half the interval of one more point there."""
    n, middle, level = len(stood), mean(stood), mean(changes)
    across = sum((x - middle) ** 2 for x in stood)
    slope = 0.0
    if across > 0:
        slope = sum((x - middle) * y for x, y in zip(stood, changes, strict=True)) / across
    rest = [y - level - slope * (x - middle) for x, y in zip(stood, changes, strict=True)]
    spread = max(sqrt(sum(each * each for each in rest) / (n - 2)), error)
    reach = 1 + 1 / n + ((at - middle) ** 2 / across if across > 0 else 0.0)
    return level + slope * (at - middle), student_t(n - 2) * spread * sqrt(reach)


def _indices(kind: Kind, site: Period) -> tuple[Index, Index] | None:
    before, after = index_of(kind, site.before), index_of(kind, site.after)
    if before is None or after is None or before.n < SMALL or after.n < SMALL:
        return None
    return before, after
