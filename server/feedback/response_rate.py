"""Which share of those who leave presses: valid responses / exits, and the index weighted by it.

A response is a press on a questionnaire's first question that the misuse filter kept. Exits are
those of the terminal's door where it stands at one that is counted, else of its site's perimeter.
Both are taken by the hour of opening; an hour whose exits were not observed well enough has none,
and is in neither side of a rate. A rate and a weighted index are null where no exits are known.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import asyncpg
import msgspec

from server.errors import RefusedError
from server.feedback.answers import Question
from server.feedback.indices import Index, Kind
from server.feedback.misuse import VERSION, more_than_left
from server.feedback.query import kinds_of
from server.feedback.weighting import Stratum, Weighted, weighted
from server.rollup.answer import By, CountQuery, CountRow
from server.rollup.buckets import HOUR_S, Bucket, Size, buckets
from server.rollup.places import Spot, load_sites, load_spots
from server.rollup.quality import Hours, Scope
from server.rollup.query import counts

OBSERVED = 0.9
"""The share of an hour that must have been observed for its exits to be known."""
MOST_HOURS = 60_000


class ResponseRate(msgspec.Struct, frozen=True, gc=False):
    """Responses and exits in one bucket at one site or terminal; only kiosks, no other channel.

    `rate` and `exits` are over the `hours_known` of the `hours` with opening time in which exits
    were observed; `responses` are all. `hours_flagged`: more was pressed in them than people left.
    """

    site: str
    spot: str | None
    start: str = msgspec.field(name="from")
    until: str
    responses: int
    presses: int
    exits: int | float | None
    rate: float | None
    hours: int
    hours_known: int
    hours_flagged: int
    filter_version: int


class WeightedIndex(msgspec.Struct, frozen=True, gc=False):
    """A question's index over the whole range, as it is and weighted by exits.

    `n_eff` is Kish's effective number of responses; `unanswered` the share of the exits in hours of
    the week without any response; `capped` strata weigh five times the median and no more.
    """

    site: str
    spot: str | None
    questionnaire: str
    question: int
    kind: Kind
    n: int
    unweighted: float | None
    unweighted_low: float | None
    unweighted_high: float | None
    weighted: float | None
    weighted_low: float | None
    weighted_high: float | None
    n_known: int
    n_eff: float | None
    strata: int
    capped: int
    unanswered: float | None


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates by bucket, and indices over the whole range."""

    rows: list[ResponseRate]
    indices: list[WeightedIndex]


@dataclass(frozen=True, slots=True)
class _Hour:
    """An hour with opening time, and who left in it; None where that was not observed."""

    start_s: int
    weekday: int
    hour: int
    exits: float | None


Where = tuple[str, ...]
"""Whose exits a terminal is set against: the counters at its door; or, in front, its site's."""


@dataclass(slots=True)
class _Cell:
    """One hour at one terminal."""

    responses: int = 0
    presses: int = 0
    answers: dict[Question, dict[int, int]] = field(default_factory=dict)

    def add(self, question: Question, answer: int, *, kept: int, presses: int) -> None:
        given = self.answers.setdefault(question, {})
        given[answer] = given.get(answer, 0) + kept
        if question.question == 0:
            self.responses += kept
            self.presses += presses


async def response_rates(connection: asyncpg.Connection, query: CountQuery, *, now_s: int) -> Rates:
    """Return rates and indices. Raises UnknownPlaceError; RefusedError for too much at once."""
    if query.size in (Size.MINUTE, Size.QUARTER):
        raise RefusedError("bad_parameter", "response rates have buckets of an hour and larger")
    sites = await load_sites(connection, query.sites)
    kiosks = await load_spots(connection, kind="kiosk", sites=sites, refs=query.spots)
    grids = {
        spot.site.ref: buckets(
            spot.site.time_zone, query.size, since=query.since, until=query.until
        )
        for spot in kiosks
    }
    kiosks = [spot for spot in kiosks if grids[spot.site.ref]]
    if not kiosks:
        return Rates([], [])
    span = (
        min(grid[0].start_s for grid in grids.values() if grid),
        max(grid[-1].end_s for grid in grids.values() if grid),
    )
    wheres = await _wheres(connection, kiosks)
    hours = await _hours(connection, wheres, span=span, now_s=now_s)
    cells = await _cells(connection, kiosks, wheres, hours, span=span)
    kinds = await kinds_of(connection)
    rows: list[ResponseRate] = []
    indices: list[WeightedIndex] = []
    for members in _groups(kiosks, query.by):
        told = _Told(members, query.by, wheres, hours, cells)
        rows += told.rates(grids[members[0].site.ref])
        indices += told.indices(kinds, grids[members[0].site.ref])
    return Rates(rows, indices)


def _groups(kiosks: Sequence[Spot], by: By) -> list[list[Spot]]:
    """Return the terminals of each row: one, or all of a site."""
    found: dict[tuple[str, str], list[Spot]] = defaultdict(list)
    for spot in kiosks:
        found[spot.site.ref, spot.ref if by is By.SPOT else ""].append(spot)
    return [found[key] for key in sorted(found)]


@dataclass(frozen=True, slots=True)
class _Told:
    """What is known of the terminals of one row."""

    members: Sequence[Spot]
    by: By
    wheres: Mapping[int, Where]
    hours: Mapping[Where, Sequence[_Hour]]
    cells: Mapping[tuple[int, int], _Cell]

    def _at(self) -> Mapping[Where, Sequence[Spot]]:
        """Return the terminals by where exits are counted; several may share a door."""
        found: dict[Where, list[Spot]] = defaultdict(list)
        for spot in self.members:
            found[self.wheres[spot.id]].append(spot)
        return found

    def rates(self, grid: Sequence[Bucket]) -> list[ResponseRate]:
        site, places = self.members[0].site.ref, self._at()
        if len(places) > 1:  # doors of one site: who leaves by another than these is counted, too
            places = {("", site): list(self.members)}
        ((where, spots),) = places.items()
        starts = [bucket.start_s for bucket in grid]
        sums: list[list[_Hour]] = [[] for _ in grid]
        for hour in self.hours[where]:
            number = bisect_right(starts, hour.start_s) - 1
            if number >= 0 and hour.start_s < grid[number].end_s:
                sums[number].append(hour)
        return [self._rate(bucket, hours, spots) for bucket, hours in zip(grid, sums, strict=True)]

    def _rate(self, bucket: Bucket, hours: Sequence[_Hour], spots: Sequence[Spot]) -> ResponseRate:
        responses = presses = answered = flagged = 0
        exits: float | None = None
        known = [hour for hour in hours if hour.exits is not None]
        for hour in hours:
            found = [self.cells.get((spot.id, hour.start_s), _Cell()) for spot in spots]
            pressed = sum(cell.presses for cell in found)
            given = sum(cell.responses for cell in found)
            presses, responses = presses + pressed, responses + given
            flagged += more_than_left(pressed, hour.exits)
            if hour.exits is not None:
                exits, answered = (exits or 0) + hour.exits, answered + given
        return ResponseRate(
            self.members[0].site.ref,
            self.members[0].ref if self.by is By.SPOT else None,
            bucket.start_utc,
            bucket.end_utc,
            responses,
            presses,
            exits,
            round(answered / exits, 6) if exits else None,
            len(hours),
            len(known),
            flagged,
            VERSION,
        )

    def indices(
        self, kinds: Mapping[Question, Kind], grid: Sequence[Bucket]
    ) -> list[WeightedIndex]:
        """Return each question's index over the range: strata are hours of the week by door."""
        answers: dict[Question, dict[tuple[Where, int, int], dict[int, int]]] = {}
        exits: dict[tuple[Where, int, int], float | None] = {}
        for where, spots in self._at().items():
            for hour in self.hours[where]:
                if not grid[0].start_s <= hour.start_s < grid[-1].end_s:
                    continue
                # An hour without exits is a stratum of its own: it takes nothing from the others'.
                week = (hour.weekday, hour.hour) if hour.exits is not None else (-1, hour.start_s)
                key = (where, *week)
                exits[key] = None if hour.exits is None else (exits.get(key) or 0) + hour.exits
                for spot in spots:
                    cell = self.cells.get((spot.id, hour.start_s), _Cell())
                    for question, given in cell.answers.items():
                        into = answers.setdefault(question, {}).setdefault(key, {})
                        for answer, kept in given.items():
                            into[answer] = into.get(answer, 0) + kept
        found = []
        for question, by_stratum in sorted(answers.items()):
            kind = kinds.get(question)
            if kind is None or kind is Kind.CHOICE:
                continue
            width = max(max(given) for given in by_stratum.values()) + 1
            strata = [
                Stratum(tuple(by_stratum.get(key, {}).get(n, 0) for n in range(width)), left)
                for key, left in exits.items()
            ]
            found.append(self._index(question, kind, weighted(kind, strata)))
        return found

    def _index(self, question: Question, kind: Kind, found: Weighted) -> WeightedIndex:
        return WeightedIndex(
            self.members[0].site.ref,
            self.members[0].ref if self.by is By.SPOT else None,
            f"{question.questionnaire & (1 << 64) - 1:016x}",
            question.question,
            kind,
            found.n,
            *_numbers(found.unweighted),
            *_numbers(found.weighted),
            found.n_known,
            _rounded(found.n_eff),
            found.strata,
            found.capped,
            _rounded(found.unanswered),
        )


def _numbers(index: Index | None) -> tuple[float | None, float | None, float | None]:
    if index is None:
        return None, None, None
    return _rounded(index.value), _rounded(index.low), _rounded(index.high)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


async def _wheres(connection: asyncpg.Connection, kiosks: Sequence[Spot]) -> dict[int, Where]:
    """Return whose exits each terminal is set against: see `Where`."""
    doors: dict[int, list[str]] = defaultdict(list)
    for kiosk, counter in await connection.fetch(_DOORS, [spot.id for spot in kiosks]):
        doors[kiosk].append(counter)
    return {
        spot.id: tuple(doors[spot.id]) if spot.id in doors else ("", spot.site.ref)
        for spot in kiosks
    }


async def _hours(
    connection: asyncpg.Connection,
    wheres: Mapping[int, Where],
    *,
    span: tuple[int, int],
    now_s: int,
) -> dict[Where, list[_Hour]]:
    """Return the opening hours of each `Where`, with the exits; also of the sites they lie in."""
    since, until = (datetime.fromtimestamp(at, UTC) for at in span)
    sites = {ref for where in wheres.values() if not where[0] for ref in where[1:]}
    counters = {ref for where in wheres.values() if where[0] for ref in where}
    if counters:
        rows = await connection.fetch(_SITES_OF, list(counters))
        sites |= {row[0] for row in rows}
    if (span[1] - span[0]) / 3600 * (len(sites) + len(counters)) > MOST_HOURS:
        raise RefusedError("range_too_long", "ask for a shorter range, or for fewer sites")
    asked = CountQuery(Size.HOUR, since, until, Scope.OPEN, limit=10 * MOST_HOURS)
    by_ref: dict[str, list[CountRow]] = defaultdict(list)
    if sites:
        of_sites = replace(asked, sites=tuple(sorted(sites)))
        for row in (await counts(connection, of_sites, now_s=now_s)).rows:
            by_ref[f"/{row.site}"].append(row)
    if counters:
        of_doors = replace(asked, by=By.SPOT, spots=tuple(sorted(counters)))
        for row in (await counts(connection, of_doors, now_s=now_s)).rows:
            by_ref[row.spot or ""].append(row)
    found = {("", ref): _added([by_ref[f"/{ref}"]]) for ref in sites}
    return found | {
        where: _added([by_ref[ref] for ref in where]) for where in wheres.values() if where[0]
    }


def _added(columns: Sequence[Sequence[CountRow]]) -> list[_Hour]:
    """Return hours with the exits of several counters; unknown where one of them is unknown."""
    found = []
    for rows in zip(*columns, strict=True):
        if rows[0].hours is Hours.CLOSED:
            continue
        exits = [row.exits if _observed(row) else None for row in rows]
        known = [number for number in exits if number is not None]
        begins = datetime.fromisoformat(rows[0].local)
        found.append(
            _Hour(
                int(datetime.fromisoformat(rows[0].start).timestamp()),
                begins.weekday(),
                begins.hour,
                float(sum(known)) if len(known) == len(exits) else None,
            )
        )
    return found


def _observed(row: CountRow) -> bool:
    return row.coverage is not None and row.coverage >= OBSERVED


async def _cells(
    connection: asyncpg.Connection,
    kiosks: Sequence[Spot],
    wheres: Mapping[int, Where],
    hours: Mapping[Where, Sequence[_Hour]],
    *,
    span: tuple[int, int],
) -> dict[tuple[int, int], _Cell]:
    """Return responses by terminal and hour's start."""
    starts = {spot.id: [hour.start_s for hour in hours[wheres[spot.id]]] for spot in kiosks}
    cells: dict[tuple[int, int], _Cell] = {}
    low, high = (datetime.fromtimestamp(at, UTC) for at in span)
    for spot, at, questionnaire, question, answer, kept, presses in await connection.fetch(
        _RESPONSES, list(starts), low, high
    ):
        number = bisect_right(starts[spot], at) - 1
        if number >= 0 and at < starts[spot][number] + HOUR_S:  # others are of closed hours
            cell = cells.setdefault((spot, starts[spot][number]), _Cell())
            cell.add(Question(questionnaire, question), answer, kept=kept, presses=presses)
    return cells


_DOORS = """
    select k.id, c.ref from spots k join spots c on c.door_id = k.door_id and c.kind = 'counter'
    where k.id = any($1::int[]) order by 1, 2
"""
_SITES_OF = """
    select distinct s.ref from spots c join sites s on s.id = c.site_id where c.ref = any($1)
"""
_RESPONSES = """
    select spot, extract(epoch from bucket)::bigint, questionnaire, question::int, answer::int,
           kept, kept + repeated + children + stuck + closed
    from my_responses_15m where spot = any($1::int[]) and bucket >= $2 and bucket < $3
"""
