"""Which days and hours of which spots cannot be taken whole, and the quarters that replace them."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from server.rollup.buckets import Bucket, Size, local
from server.rollup.opening import Part
from server.rollup.places import Site, Spot
from server.rollup.quality import Hours, Scope, hours_of
from server.rollup.sums import Patch, Segment, row_key

Key = date | datetime
"""How a rollup row is keyed: its local day, or its hour's start."""


class Entity(NamedTuple):
    """What rows are about: a site with its counter spots, or one spot; and its buckets."""

    ref: str
    site: Site
    spot: Spot | None
    spots: tuple[Spot, ...]
    grid: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """What the deriver has not worked in yet: quarters by spot, and sites with other hours."""

    quarters: Mapping[int, Sequence[int]]
    sites: frozenset[int]


def plan(
    entities: Sequence[Entity],
    *,
    size: Size,
    scope: Scope,
    cut: Mapping[int, tuple[Segment, ...]],
    behind: Behind,
) -> tuple[list[tuple[int, Key]], list[Patch]]:
    """Return the rows to leave out, and the patches that stand for them."""
    left_out: list[tuple[int, Key]] = []
    patches: list[Patch] = []
    for number, entity in enumerate(entities):
        mixed = _mixed_hours(entity) if size is Size.HOUR and scope is Scope.OPEN else ()
        changed_hours = size.is_days and entity.site.id in behind.sites
        for spot in entity.spots:
            at = _instants(entity, spot, cut=cut[spot.id], behind=behind)
            if not (at or mixed or changed_hours):
                continue
            if size.is_days:
                spans = _days(entity, size, at)
                if changed_hours:
                    spans = _days(entity, size, _every_day(entity))
            else:
                spans = _hours(entity, [*at, *mixed])
            for key, bucket, start_s, end_s in spans:
                left_out.append((spot.id, key))
                parts = [Part(start_s, start_s, end_s)]
                if scope is Scope.OPEN:
                    parts = entity.site.calendar.parts(start_s, end_s)
                patches += [
                    Patch(spot.id, number, bucket, piece, weights)
                    for part in parts
                    for piece, weights in _weighted(part, cut[spot.id])
                ]
    return left_out, patches


def _instants(entity: Entity, spot: Spot, *, cut: tuple[Segment, ...], behind: Behind) -> list[int]:
    """Return an instant of each stretch that is not whole: dirty, or a calibration's change."""
    dirty = behind.quarters.get(spot.id, ())
    if len(cut) == 1 and not dirty:
        return []
    start_s, end_s = entity.grid[0].start_s, entity.grid[-1].end_s
    changes = [segment.start_s for segment in cut[1:]]
    return [at for at in (*changes, *dirty) if start_s <= at < end_s]


def _days(entity: Entity, size: Size, instants: Iterable[int]) -> list[tuple[Key, int, int, int]]:
    """Return (day, key, start, end) of the local days that hold `instants`."""
    calendar = entity.site.calendar
    found: list[tuple[Key, int, int, int]] = []
    for day in sorted({local(calendar.zone, at).date() for at in instants}):
        edges = calendar.day(day)
        found.append((day, row_key(size, day), edges.start_s, edges.end_s))
    return found


def _every_day(entity: Entity) -> list[int]:
    first, end_s = entity.grid[0].start_day, entity.grid[-1].end_s
    found: list[int] = []
    while (start_s := entity.site.calendar.day(first).start_s) < end_s:
        found.append(start_s)
        first += timedelta(days=1)
    return found


def _hours(entity: Entity, instants: Iterable[int]) -> list[tuple[Key, int, int, int]]:
    """Return (start, start in seconds, start, end) of the hours that hold `instants`."""
    starts = [bucket.start_s for bucket in entity.grid]
    numbers = sorted({bisect_right(starts, at) - 1 for at in instants})
    held = [entity.grid[number] for number in numbers]
    return [(datetime.fromtimestamp(b.start_s, UTC), b.start_s, b.start_s, b.end_s) for b in held]


def _mixed_hours(entity: Entity) -> list[int]:
    calendar = entity.site.calendar
    return [
        bucket.start_s
        for bucket in entity.grid
        if hours_of(calendar, bucket.start_s, bucket.end_s) is Hours.MIXED
    ]


def _weighted(part: Part, cut: tuple[Segment, ...]) -> list[tuple[Part, tuple[int, ...]]]:
    """Cut a part where the calibration changes."""
    found: list[tuple[Part, tuple[int, ...]]] = []
    for segment in cut:
        low, high = max(part.from_s, segment.start_s), min(part.until_s, segment.end_s)
        if low < high:
            guard = part.guard_s if low == part.from_s else low
            found.append((Part(guard, low, high), segment.weights))
    return found
