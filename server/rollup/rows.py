"""From sums to rows: coverage, state, what is missing, and people who cannot be placed."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.rollup.answer import CountRow, Unplaced
from server.rollup.buckets import Bucket, Size, utc_text
from server.rollup.opening import Calendar
from server.rollup.patches import Entity
from server.rollup.places import Gap, History
from server.rollup.quality import (
    SLOT_S,
    Hours,
    Scope,
    State,
    coverage,
    expected_s,
    hours_by,
    state,
)
from server.rollup.sums import UNIT, Segment, Sum, origin_of, revision_of, weigh

ORIGINS = ("device", "import")
Placed = Mapping[int, tuple[int, int]]
"""Unplaced entered and left (in ten-thousandths) by bucket number."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What an entity's buckets should hold, one value a bucket."""

    expected_s: Sequence[int]
    hours: Sequence[Hours]
    states: Sequence[State]
    scope: Scope
    calibrations: Sequence[tuple[int, ...]] | None = None


@dataclass(slots=True)
class Worth:
    """Works out expectations; sites that share calendar and buckets share the work."""

    scope: Scope
    now_s: int
    _base: dict[tuple[int, int], tuple[list[int], list[Hours]]] = field(default_factory=dict)
    _whole: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    _states: dict[tuple[int, int], list[State]] = field(default_factory=dict)
    _ends: dict[int, list[int]] = field(default_factory=dict)

    def of(
        self,
        entity: Entity,
        histories: Sequence[History],
        *,
        cut: Mapping[int, tuple[Segment, ...]],
    ) -> Expectation:
        """Return what `entity`'s buckets should hold, its spots having `histories`."""
        base, hours = self._of(entity.site.calendar, entity.grid)
        first, last = entity.grid[0].start_s, min(self._now, entity.grid[-1].end_s)
        accounted = self.now_s
        whole = 0
        parts: list[list[int]] = []
        for assigned, accounted_s, _, _ in histories:
            accounted = min(accounted, accounted_s)
            for low, high in assigned:
                if low <= first and last <= high:
                    whole += 1
                    break
            else:
                if assigned:
                    parts.append(self._partly(entity, assigned, base=base))
        expected = self._times(base, whole)
        for part in parts:
            expected = [a + b for a, b in zip(expected, part, strict=True)]
        states = self._states_of(entity.grid, accounted)
        return Expectation(expected, hours, states, self.scope, _calibrations(entity, cut))

    def _times(self, base: list[int], whole: int) -> list[int]:
        """Return what `whole` spots should hold, all of them assigned all the time."""
        key = id(base), whole
        if key not in self._whole:
            self._whole[key] = [whole * seconds for seconds in base]
        return self._whole[key]

    def _states_of(self, grid: tuple[Bucket, ...], accounted_s: int) -> list[State]:
        """Return the states of buckets; entities of which as many are complete share them."""
        key = id(grid), bisect_right(self._ends_of(grid), accounted_s)
        if key not in self._states:
            now_s = self.now_s
            self._states[key] = [state(b.end_s, now_s=now_s, accounted_s=accounted_s) for b in grid]
        return self._states[key]

    def _ends_of(self, grid: tuple[Bucket, ...]) -> list[int]:
        key = id(grid)
        if key not in self._ends:
            self._ends[key] = [bucket.end_s for bucket in grid]
        return self._ends[key]

    @property
    def _now(self) -> int:
        """Now, at the slot before: an answer's coverage moves four times a minute, not always."""
        return self.now_s // SLOT_S * SLOT_S

    def _of(self, calendar: Calendar, grid: tuple[Bucket, ...]) -> tuple[list[int], list[Hours]]:
        key = id(calendar), id(grid)
        if key not in self._base:
            open_s = [calendar.open_s(b.start_s, b.end_s, day=b.start_day) for b in grid]
            self._base[key] = (
                [self._whole_s(calendar, *each) for each in zip(grid, open_s, strict=True)],
                [hours_by(s, b.end_s - b.start_s) for b, s in zip(grid, open_s, strict=True)],
            )
        return self._base[key]

    def _whole_s(self, calendar: Calendar, bucket: Bucket, open_s: int) -> int:
        """Return what a spot should hold to whom a device is assigned all the time."""
        if bucket.end_s > self._now:
            return self._expected(calendar, bucket, [(bucket.start_s, bucket.end_s)])
        return open_s if self.scope is Scope.OPEN else bucket.end_s - bucket.start_s

    def _expected(
        self, calendar: Calendar, bucket: Bucket, assigned: Sequence[tuple[int, int]]
    ) -> int:
        end_s = min(bucket.end_s, self._now)
        if end_s <= bucket.start_s:
            return 0
        return expected_s(assigned, calendar, scope=self.scope, start_s=bucket.start_s, end_s=end_s)

    def _partly(
        self, entity: Entity, assigned: Sequence[tuple[int, int]], *, base: Sequence[int]
    ) -> list[int]:
        found: list[int] = []
        for bucket, whole in zip(entity.grid, base, strict=True):
            if any(low <= bucket.start_s and bucket.end_s <= high for low, high in assigned):
                found.append(whole)
            else:
                found.append(self._expected(entity.site.calendar, bucket, assigned))
        return found


def fold(
    entity: Entity,
    cells: Sequence[Sum | None],
    expectation: Expectation,
    *,
    placed: Placed,
) -> list[CountRow]:
    """Return one row a bucket."""
    site, spot = entity.site.ref, None if entity.spot is None else entity.spot.ref
    only_open, closed = expectation.scope is Scope.OPEN, Hours.CLOSED
    none = [()] * len(cells)
    lost = [placed.get(n, _NOBODY) for n in range(len(cells))] if placed else [_NOBODY] * len(cells)
    rows: list[CountRow] = []
    # `known` and `people` are written out here: two calls a row are a fifth of the time of a page.
    last, revision, origin = 0, 0, ORIGINS[0]
    for bucket, hours, expected, state_, used, (lost_in, lost_out), cell in zip(
        entity.grid,
        expectation.hours,
        expectation.expected_s,
        expectation.states,
        expectation.calibrations or none,
        lost,
        cells,
        strict=True,
    ):
        entered, left, observed, marks = (
            _NOTHING if cell is None or (only_open and hours is closed) else cell
        )
        if marks != last:  # seldom: most buckets are of one revision, from one kind of device
            last, revision, origin = marks, revision_of(marks), ORIGINS[origin_of(marks)]
        counted = observed > 0 or entered + left > 0
        rows.append(
            CountRow(
                site,
                spot,
                bucket.start_utc,
                bucket.end_utc,
                bucket.label,
                bucket.fold,
                (entered / UNIT if entered % UNIT else entered // UNIT) if counted else None,
                (left / UNIT if left % UNIT else left // UNIT) if counted else None,
                people(lost_in) if lost_in else 0,
                people(lost_out) if lost_out else 0,
                1.0 if observed >= expected > 0 else coverage(observed, expected),
                hours,
                state_,
                revision,
                origin if counted else None,
                used,
            )
        )
    return rows


_NOTHING: Sum = (0, 0, 0, 0)
_NOBODY = (0, 0)


def people(e4: int) -> int | float:
    """Return ten-thousandths of a person as a number: whole unless a factor was applied."""
    return e4 / UNIT if e4 % UNIT else e4 // UNIT


def place_gaps(
    entity: Entity,
    histories: Sequence[History],
    *,
    cut: Mapping[int, tuple[Segment, ...]],
    size: Size,
) -> tuple[dict[int, tuple[int, int]], list[Unplaced]]:
    """Return unplaced people by the bucket that wholly contains their gap, and all others."""
    placed: dict[int, tuple[int, int]] = {}
    elsewhere: list[Unplaced] = []
    starts: list[int] | None = None
    for spot, history in zip(entity.spots, histories, strict=True):
        for gap in history.gaps:
            entered, left = weigh_gap(gap, cut[spot.id])
            if not entered and not left:
                continue
            starts = starts or [bucket.start_s for bucket in entity.grid]
            at = bisect_right(starts, gap.start_s) - 1
            if size.is_days and at >= 0 and gap.end_s <= entity.grid[at].end_s:
                before = placed.get(at, _NOBODY)
                placed[at] = before[0] + entered, before[1] + left
            else:
                elsewhere.append(
                    Unplaced(
                        entity.site.ref,
                        spot.ref,
                        utc_text(gap.start_s),
                        utc_text(gap.end_s),
                        people(entered),
                        people(left),
                        gap.reason,
                    )
                )
    return placed, elsewhere


def weigh_gap(gap: Gap, cut: Sequence[Segment]) -> tuple[int, int]:
    """Weigh a gap's counts by the calibration at its start."""
    segment = next(s for s in cut if s.start_s <= gap.start_s < s.end_s)
    return weigh(gap.counts, segment.weights)


def _calibrations(
    entity: Entity, cut: Mapping[int, tuple[Segment, ...]]
) -> list[tuple[int, ...]] | None:
    """Return the calibrations used in each bucket; None if there are none at all."""
    using = [s for spot in entity.spots for s in cut[spot.id] if s.calibrations]
    if not using:
        return None
    return [
        tuple(
            sorted(
                {
                    key
                    for segment in using
                    if segment.start_s < bucket.end_s and bucket.start_s < segment.end_s
                    for key in segment.calibrations
                }
            )
        )
        for bucket in entity.grid
    ]
