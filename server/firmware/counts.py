"""The counts guard: do doors count the same people since they were updated? Pure.

Updated doors are held against control doors of the same rollout that still wait, drawn by lot
before it began: the difference in differences of the logarithm of what was counted in open hours.

Decided here:
- A door's day is ln((counted + 1/2) / (usual + 1/2)); *usual* is the mean of the same weekday in
  the weeks before the first update, of days on which the site was open as long (to 5 %). A day with
  less than 98 % coverage does not count; a door with half of its days left or fewer is left out and
  named, and so is one that too little is known of. What is beyond 3.5 deviations of the stratum's
  middle is drawn in to it: a day on which nobody came is one bad day, not minus infinity.
- What moves all doors of a *stratum* (format of store) on a day drops out: the effect is estimated
  within stratum and day, weighted by each door's own scatter, people being few included. Doors of
  one site have the site's day in common; that correlation is estimated from the weeks before and
  taken into account, so doors of one site that are on different sides weigh most.
- The test is by the lot that was drawn: who is updated, and since when, is dealt anew among the
  doors of each stratum (among whole sites, where no site has doors on both sides), `DRAWS` times.
  Without an effect the real deal is as likely as any of these, whatever the counts' distribution.
- It is looked at each day for `looks` days. The error is spent as (look / looks)^1.5: the share of
  deals that have crossed by a look never exceeds what is spent by then. So the chance to halt
  without cause is at most `error_loss` + `error_gain` over all looks together. A gain is as wrong
  as a loss, only rarer.

The weights are estimates, and need not be right: they cost sensitivity, never the stated error.
numpy is imported on first use.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

LOOKS = 7
DRAWS = 4_000
WEEKS = 5
"""Weeks before the first update that a door's usual day is learnt from, at most."""
COMPLETE = 0.98
SAME_HOURS = 0.05
FEWEST_DAYS = 2  # of a weekday
FEWEST_PAST = 10  # days before the update that can be set against their own weekday
FEWEST_DOORS = 5  # of each side
FAR = 3.5
_SPENDING = 1.5
_LEAST_VARIANCE = 0.0025  # nobody's days scatter by less than 5 %
_NORMAL_95 = 1.959964


class Arm(StrEnum):
    """Which side a door is on."""

    UPDATED = "updated"
    CONTROL = "control"


class Day(NamedTuple):
    """A door's open hours of one local day, an ordinal number."""

    day: int
    counted: float
    observed_s: int
    expected_s: int


@dataclass(frozen=True, slots=True)
class Door:
    """A counter's place. `since`: the first whole day that it counted updated; None: a control."""

    ref: str
    site: str
    stratum: str
    since: int | None
    days: Sequence[Day]


@dataclass(frozen=True, slots=True)
class Rule:
    """How sure the guard must be, over all its looks."""

    error_loss: float = 0.0075
    error_gain: float = 0.0025
    looks: int = LOOKS


class Verdict(StrEnum):
    """What a look says."""

    REGRESSED = "regressed"  # fewer people, or more, than chance explains
    WATCHING = "watching"  # nothing found, and there are looks to come
    CLEAR = "clear"  # all looks are done, and nothing was found
    UNKNOWN = "unknown"  # nothing can be said of these doors; `why` says why


@dataclass(frozen=True, slots=True)
class Look:
    """One look: the change of counts (-0.05: 5 % fewer), its 95 % interval, and the test.

    `p`: the share of deals with as much of a loss; `spent`: the error that losses may have used up.
    """

    number: int
    day: int
    effect: float
    low: float
    high: float
    p: float
    spent: float
    updated: int
    control: int


@dataclass(frozen=True, slots=True)
class Judged:
    """What the guard says, all looks so far, and the doors that it could not use, each with why."""

    verdict: Verdict
    looks: Sequence[Look] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    @property
    def halts(self) -> bool:
        return self.verdict is Verdict.REGRESSED

    def value(self) -> dict[str, object]:
        """Return it for JSON: the verdict with the numbers of the last look."""
        found: dict[str, object] = {"verdict": self.verdict.value, "left_out": len(self.left_out)}
        if self.why:
            found["why"] = self.why
        if self.looks:
            last = self.looks[-1]
            for name in ("effect", "low", "high", "p", "spent"):
                found[name] = round(getattr(last, name), 6)
            found |= {"look": last.number, "updated": last.updated, "control": last.control}
        return found


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The least loss, a share, that so many daily looks find in 80 and in 90 % of rollouts."""

    loss_80: float
    loss_90: float
    updated: int
    control: int
    looks: int


def first_look(since: Sequence[int], *, share: float = 0.8, patience: int = 3) -> int:
    """Return the first day to look at: most of those to be updated are, or three days have gone.

    `since` are the first updated days of the doors that were updated; what was counted between the
    first of them and this day is part of the first look.
    """
    ordered = sorted(since)
    most = ordered[math.ceil(share * len(ordered)) - 1]
    return min(most, ordered[0] + patience)


def judge(
    doors: Sequence[Door], *, first: int, today: int, seed: str, rule: Rule | None = None
) -> Judged:
    """Judge all whole days before `today`; looks begin with the day `first`, one a day.

    The verdict is of the first look that found something, if any: more data do not take it back.
    """
    rule = rule or Rule()
    looks = min(rule.looks, today - first)
    updated = [door.since for door in doors if door.since is not None]
    if not updated or looks < 1:
        return Judged(Verdict.WATCHING, why="no whole day has been counted since the update")
    panel = _panel(doors, start=min(updated), end=first + looks)
    why = _too_few(panel, rule)
    if why:
        return Judged(Verdict.UNKNOWN, left_out=panel.left_out, why=why)
    paths = _paths(panel, first=first, looks=looks, seed=seed)
    losses = _crossings(-paths.z, rule.error_loss, rule.looks)
    gains = _crossings(paths.z, rule.error_gain, rule.looks)
    found: list[Look] = []
    for number in range(looks):
        found.append(_look(panel, paths, number, first, rule))
        if losses.observed == number or gains.observed == number:
            return Judged(Verdict.REGRESSED, found, panel.left_out)
    verdict = Verdict.CLEAR if looks == rule.looks else Verdict.WATCHING
    return Judged(verdict, found, panel.left_out)


def sensitivity(
    doors: Sequence[Door],
    *,
    today: int,
    seed: str,
    rule: Rule | None = None,
    looks: int | None = None,
) -> Sensitivity | str:
    """Return what these doors could find, or why nothing; `since` says who will be updated.

    As if the last whole days had been the looks: what the doors' own weeks scattered by then, their
    drift included, is what a loss will have to stand out from. `looks`: those that there will be
    before the controls are updated, too.
    """
    rule = rule or Rule()
    looks = min(rule.looks, rule.looks if looks is None else looks)
    if looks < 1:
        return "the controls are updated before a whole day was counted"
    first = today - rule.looks
    acted = [
        Door(door.ref, door.site, door.stratum, None if door.since is None else first, door.days)
        for door in doors
    ]
    panel = _panel(acted, start=first, end=today)
    if why := _too_few(panel, rule):
        return why
    paths = _paths(panel, first=first, looks=rule.looks, seed=seed)
    z, root = -paths.z[:, :looks], paths.root[:, :looks]
    bars = _crossings(z, rule.error_loss, rule.looks).bars
    losses = []
    for power in (0.8, 0.9):
        low, high = 0.0, 3.0
        for _ in range(40):
            middle = (low + high) / 2
            reached = (z + middle * root > bars).any(axis=1).mean()
            low, high = (low, middle) if reached >= power else (middle, high)
        losses.append(1 - math.exp(-high))
    return Sensitivity(losses[0], losses[1], panel.updated, panel.control, looks)


# -- the panel -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Panel:
    """Doors that can be used by days: `y` is 0 where `a`, the weight without the site's, is 0."""

    start: int
    doors: Sequence[Door]
    y: "Array"
    a: "Array"
    shared: float
    left_out: Mapping[str, str]

    @property
    def updated(self) -> int:
        return sum(door.since is not None for door in self.doors)

    @property
    def control(self) -> int:
        return len(self.doors) - self.updated


def _panel(doors: Sequence[Door], *, start: int, end: int) -> _Panel:
    """Return the days [start, end) of doors beside what was usual before `start`."""
    import numpy as np  # on first use: it is slow to import

    left_out: dict[str, str] = {}
    kept: list[Door] = []
    rows: list[list[float]] = []
    before: list[list[float]] = []
    means: list[float] = []
    for door in sorted(doors, key=lambda door: (door.stratum, door.site, door.ref)):
        days = {each.day: each for each in door.days}
        usual = [days[d] for d in range(start - 7 * WEEKS, start) if _counts(days.get(d))]
        past = [
            _against(days.get(d), [each for each in usual if each.day != d])
            for d in range(start - 7 * WEEKS, start)
        ]  # fmt: skip
        row = [_against(days.get(d), usual) for d in range(start, end)]
        known = sum(not math.isnan(value) for value in row)
        opened = sum(d not in days or days[d].expected_s > 0 for d in range(start, end))
        if sum(not math.isnan(value) for value in past) < FEWEST_PAST:
            left_out[door.ref] = f"only {len(usual)} days before the update were observed"
        elif opened and 2 * known <= opened:
            left_out[door.ref] = f"{opened - known} of {opened} days are not comparable"
        else:
            kept.append(door)
            rows.append(row)
            means.append(sum(each.counted for each in usual) / len(usual))
            before.append(past)
    if not kept:
        empty = np.zeros((0, end - start))
        return _Panel(start, [], empty, empty, 0.0, left_out)
    y, past_y = np.array(rows), np.array(before)
    strata = _numbered([door.stratum for door in kept])
    sites = _numbered([door.site for door in kept])
    variance, shared, scale = _scatter(past_y, np.array(means), strata, sites)
    y = _drawn_in(y, strata, np.sqrt(variance + shared) * scale)
    weight = np.where(np.isnan(y), 0.0, 1 / variance[:, None])
    return _Panel(start, kept, np.nan_to_num(y), weight, shared, left_out)


def _counts(day: Day | None) -> bool:
    return day is not None and day.expected_s > 0 and day.observed_s >= COMPLETE * day.expected_s


def _against(day: Day | None, usual: Sequence[Day]) -> float:
    """Return the logarithm of a day against what is usual on it; not a number: not comparable."""
    if day is None or not _counts(day):
        return math.nan
    same = [
        each.counted
        for each in usual
        if (each.day - day.day) % 7 == 0
        and abs(each.expected_s - day.expected_s) <= SAME_HOURS * day.expected_s
    ]
    if len(same) < FEWEST_DAYS:
        return math.nan
    return math.log((day.counted + 0.5) / (sum(same) / len(same) + 0.5))


def _numbered(names: Sequence[str]) -> "NDArray[np.intp]":
    import numpy as np

    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.intp)


def _scatter(
    past: "Array", means: "Array", strata: "NDArray[np.intp]", sites: "NDArray[np.intp]"
) -> tuple["Array", float, float]:
    """Return each door's own variance of a day, the site's, and how much wider the middle is.

    A door's is a + b / people; all by moments from the weeks before, days that the stratum has in
    common taken out.
    """
    import numpy as np

    residual = past - _middles(past, strata)
    squares = np.where(np.isnan(residual), 0.0, residual**2)
    n = np.maximum((~np.isnan(residual)).sum(axis=1), 1)
    squares = np.minimum(squares, (FAR**2) * np.nanmedian(residual**2, axis=1)[:, None] * 3)
    own = squares.sum(axis=1) / n
    few = 1 / np.maximum(means, 1.0)
    design = np.stack([np.ones_like(few), few], axis=1) * np.sqrt(n)[:, None]
    (level, slope), *_ = np.linalg.lstsq(design, own * np.sqrt(n), rcond=None)
    level, slope = max(float(level), _LEAST_VARIANCE), max(float(slope), 1.0)
    products, pairs = 0.0, 0
    filled = np.clip(np.nan_to_num(residual), -0.5, 0.5)
    for site in np.flatnonzero(np.bincount(sites) > 1):
        inside = filled[sites == site]
        products += float((inside.sum(axis=0) ** 2 - (inside**2).sum(axis=0)).sum())
        pairs += len(inside) * (len(inside) - 1) * inside.shape[1]
    shared = min(max(products / pairs if pairs else 0.0, 0.0), 0.9 * level)
    variance = level - shared + slope * few
    spread = np.abs(residual) / np.sqrt(variance + shared)[:, None]
    return variance, shared, max(1.4826 * float(np.nanmedian(spread)), 0.5)


def _middles(y: "Array", strata: "NDArray[np.intp]") -> "Array":
    """Return the median of each stratum and day, for each of its doors."""
    import numpy as np

    found = np.zeros_like(y)
    for stratum in range(strata.max() + 1):
        inside = y[strata == stratum]
        known = ~np.isnan(inside).all(axis=0)
        middle = np.zeros(y.shape[1])
        middle[known] = np.nanmedian(inside[:, known], axis=0)
        found[strata == stratum] = middle
    return found


def _drawn_in(y: "Array", strata: "NDArray[np.intp]", deviation: "Array") -> "Array":
    """Return days with what is far from their stratum's middle drawn in to `FAR` deviations."""
    import numpy as np

    middle = _middles(y, strata)
    far = FAR * deviation[:, None]
    return np.clip(y, middle - far, middle + far)


def _too_few(panel: _Panel, rule: Rule) -> str:
    """Return why nothing could be found among these doors, or an empty text."""
    if panel.updated < FEWEST_DOORS or panel.control < FEWEST_DOORS:
        return (
            f"{panel.updated} updated and {panel.control} control doors can be compared; "
            f"it takes {FEWEST_DOORS} of each"
        )
    deals = 1.0
    for labels, _ in _deals(panel):
        different = [labels.count(label) for label in set(labels)]
        deals *= math.factorial(len(labels)) / math.prod(map(math.factorial, different))
    if deals * rule.error_loss < 1:
        return f"there are only {deals:.0f} ways to deal these doors: no outcome could be certain"
    return ""


# -- the lot -------------------------------------------------------------------------------------


def _deals(panel: _Panel) -> list[tuple[list[int | None], list[list[int]]]]:
    """Return what is dealt in each stratum: labels, and for each the doors that bear one."""
    sides: dict[str, set[bool]] = {}
    for door in panel.doors:
        sides.setdefault(door.site, set()).add(door.since is None)
    whole = all(len(found) == 1 for found in sides.values())
    bearers: dict[str, dict[str, list[int]]] = {}
    for number, door in enumerate(panel.doors):
        bearer = door.site if whole else door.ref
        bearers.setdefault(door.stratum, {}).setdefault(bearer, []).append(number)
    found = []
    for bearing in bearers.values():
        groups = list(bearing.values())
        found.append(([_latest(panel, group) for group in groups], groups))
    return found


def _latest(panel: _Panel, doors: Sequence[int]) -> int | None:
    since = [panel.doors[number].since for number in doors]
    return None if None in since else max(each for each in since if each is not None)


@dataclass(frozen=True, slots=True)
class _Paths:
    """By deal (the first is the real one) and look: the effect, its test, and what it is made of.

    `z` = `tau` x `root`; a shift of all updated doors by d moves `z` by d x `root`.
    """

    tau: "Array"
    z: "Array"
    root: "Array"


def _paths(panel: _Panel, *, first: int, looks: int, seed: str) -> _Paths:
    import numpy as np

    never = np.iinfo(np.int64).max
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    since = np.empty((DRAWS, len(panel.doors)), dtype=np.int64)
    for labels, groups in _deals(panel):
        dealt = np.tile([never if label is None else label for label in labels], (DRAWS, 1))
        dealt[1:] = rng.permuted(dealt[1:], axis=1)
        for column, group in enumerate(groups):
            since[:, group] = dealt[:, [column]]
    top, below = np.zeros((DRAWS, looks)), np.zeros((DRAWS, looks))
    for number in range(panel.y.shape[1]):
        day = panel.start + number
        above, under = _day(panel, number, (since <= day).astype(np.float64))
        look = max(0, day - first)
        top[:, look:] += above[:, None]
        below[:, look:] += under[:, None]
    root = np.sqrt(np.maximum(below, 1e-9))
    return _Paths(top / root**2, top / root, root)


def _day(panel: _Panel, number: int, treated: "Array") -> tuple["Array", "Array"]:
    """Return a day's numerator and denominator of the effect, for each deal, over all strata.

    With V the doors' covariance, <x, z> = x'V^-1 z: of doors of one site with variances v and s in
    common, V^-1 = diag(1/v) - c aa', a = 1/v, c = s / (1 + s sum a). Within a stratum the mean is
    taken out.
    """
    import numpy as np

    a, y = panel.a[:, number], panel.y[:, number]
    sites = _numbered([door.site for door in panel.doors])
    strata = _numbered([door.stratum for door in panel.doors])
    sums = np.bincount(sites, a)
    c = panel.shared / (1 + panel.shared * sums)
    times_y = a * (y - (c * np.bincount(sites, a * y))[sites])
    times_1 = a * (1 - (c * sums)[sites])
    top, below = np.zeros(len(treated)), np.zeros(len(treated))
    for stratum in range(strata.max() + 1):
        inside = np.flatnonzero((strata == stratum) & (a > 0))
        if len(inside) < 2:
            continue
        x = treated[:, inside]
        x_y, x_1 = x @ times_y[inside], x @ times_1[inside]
        one_y, one_1 = times_y[inside].sum(), times_1[inside].sum()
        alone = np.bincount(sites[inside], minlength=len(c))[sites[inside]] == 1
        own = a[inside] * (1 - np.where(alone, c[sites[inside]] * a[inside], 0))
        x_x = x @ own
        names, where = np.unique(sites[inside][~alone], return_inverse=True)
        if len(names):
            belongs = np.zeros((len(where), len(names)))
            belongs[np.arange(len(where)), where] = a[inside][~alone]
            x_x -= ((x[:, ~alone] @ belongs) ** 2) @ c[names]
        top += x_y - x_1 * one_y / one_1
        below += x_x - x_1**2 / one_1
    return top, below


@dataclass(frozen=True, slots=True)
class _Crossings:
    """By look the value that a deal must exceed; the look at which the real one did, or -1."""

    bars: "Array"
    observed: int


def spent(error: float, look: int, looks: int) -> float:
    """Return how much of an error may have been used up by a look, counted from 1."""
    return float(error * (look / looks) ** _SPENDING)


def _crossings(z: "Array", error: float, looks: int) -> _Crossings:
    """Return the bars that let as many deals cross by each look as the error that is spent."""
    import numpy as np

    alive = np.ones(len(z), dtype=bool)
    crossed, observed = 0, -1
    bars = np.full(z.shape[1], np.inf)
    for look in range(z.shape[1]):
        may = math.floor(spent(error, look + 1, looks) * len(z) + 1e-9) - crossed
        standing = np.sort(z[alive, look])[::-1]
        if may > 0 and len(standing) > may:
            bars[look] = standing[may]
            over = alive & (z[:, look] > bars[look])
            crossed += int(over.sum())
            if over[0]:
                observed = look
            alive &= ~over
    return _Crossings(bars, observed)


def _look(panel: _Panel, paths: _Paths, number: int, first: int, rule: Rule) -> Look:
    tau = float(paths.tau[0, number])
    wide = _NORMAL_95 * float(paths.tau[1:, number].std())
    z = paths.z[:, number]
    day = first + number
    return Look(
        number=number + 1,
        day=day,
        effect=math.expm1(tau),
        low=math.expm1(tau - wide),
        high=math.expm1(tau + wide),
        p=float((z <= z[0]).mean()),
        spent=spent(rule.error_loss, number + 1, rule.looks),
        updated=sum(door.since is not None and door.since <= day for door in panel.doors),
        control=panel.control,
    )
