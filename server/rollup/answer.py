"""What a question about counts is, and what its answer says; the API sends these as they are."""

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

import msgspec

from server.errors import RefusedError
from server.rollup.buckets import Size
from server.rollup.quality import Hours, Scope, State

ALL_ROWS = 1 << 40
"""A limit for who asks on behalf of a whole answer: more rows than any has."""


class By(StrEnum):
    """What a row is about."""

    SITE = "site"
    SPOT = "spot"


@dataclass(frozen=True, slots=True)
class Position:
    """Where the page before ended: the next row's site or spot, and its bucket's start."""

    ref: str
    start_s: int


@dataclass(frozen=True, slots=True)
class CountQuery:
    """Which counts are wanted. `since` and `until` without offset are the sites' local times.

    By site, of no `spots` in particular, a site's perimeter is counted: as in the range `perimeter`
    (from, to), None: as in that of the question.
    """

    size: Size
    since: date | datetime
    until: date | datetime
    scope: Scope = Scope.ALL
    by: By = By.SITE
    sites: tuple[str, ...] = ()
    spots: tuple[str, ...] = ()
    limit: int = 20_000
    after: Position | None = None
    perimeter: tuple[date | datetime, date | datetime] | None = None


class CountRow(msgspec.Struct, frozen=True, gc=False):
    """People counted in one bucket at one site or spot; a site's are those of its perimeter.

    `visits` is null where nothing was measured, which is not zero. `unplaced_*` are people who
    were counted in this day, week or month, but not to the minute: they are not in `visits`.
    `coverage` takes a site's counters alike; that of `metrics:query` weighs each by its people.
    """

    site: str
    spot: str | None
    start: str = msgspec.field(name="from")
    until: str
    local: str
    fold: int
    visits: int | float | None
    exits: int | float | None
    unplaced_visits: int | float
    unplaced_exits: int | float
    coverage: float | None
    hours: Hours
    state: State
    revision: int
    origin: str | None
    calibrations: tuple[int, ...]


class Unplaced(msgspec.Struct, frozen=True):
    """People who were counted at some time in an interval that no bucket of the answer contains."""

    site: str
    spot: str
    start: str = msgspec.field(name="from")
    until: str
    visits: int | float
    exits: int | float
    reason: str


@dataclass(frozen=True, slots=True)
class CountPage:
    """Rows by site or spot and time; `next` is None on the last page."""

    rows: list[CountRow]
    unplaced: list[Unplaced]
    next: Position | None


class TooFineError(RefusedError):
    """The buckets asked for are finer than the readings: counts are never interpolated."""

    def __init__(self, size: Size, resolution_s: int) -> None:
        self.resolution_s = resolution_s
        super().__init__(
            "finer_than_readings",
            f"buckets of {size} were asked for, and some counts of this range were read every "
            f"{resolution_s} s; ask for a larger bucket",
        )


class TooLongError(RefusedError):
    """The range holds more buckets than one question may ask for."""

    def __init__(self, size: Size, most: int) -> None:
        super().__init__(
            "range_too_long", f"a range of {size} buckets may hold {most} of them; ask for less"
        )
