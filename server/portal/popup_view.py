"""A pop-up's whole life, as values, and the rules that make them. Pure.

Decided here:
- A pop-up is a site with a first and a last day. Before the first nothing is a visit; after the
  last its numbers are said to be final only once every day's are.
- Its best day is one that was observed to `COMPARABLE`: a day seen in part may have been better.
- A visit's cost is known only from campaigns that name this site alone, and have a cost: what one
  cost for several sites is not divided among them, but named. Each currency is for itself.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum

from server.portal.opinions import Asked
from server.portal.view import COMPARABLE, Cell
from server.rollup.answer import CountRow
from server.rollup.quality import COMPLETE, Hours, State

FINAL_AFTER = timedelta(days=30)


class Phase(StrEnum):
    """Where a pop-up is in its life."""

    BEFORE = "before"
    OPEN = "open"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Life:
    """First and last day of a pop-up (local), seen from `today`."""

    first: date
    last: date
    today: date

    @property
    def phase(self) -> Phase:
        if self.today < self.first:
            return Phase.BEFORE
        return Phase.OPEN if self.today <= self.last else Phase.AFTER

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    @property
    def gone(self) -> int:
        """How many of its days have begun."""
        return max(0, min(self.days, (self.today - self.first).days + 1))

    @property
    def until_open(self) -> int:
        return max(0, (self.first - self.today).days)

    @property
    def final_on(self) -> date:
        """From when on its numbers change no more."""
        return self.last + FINAL_AFTER


@dataclass(frozen=True, slots=True)
class Bar:
    """A day of the strip; `height` is 0 to 1 of the best."""

    day: date
    cell: Cell
    visits: int | None
    height: float


@dataclass(frozen=True, slots=True)
class Campaign:
    """What was advertised while the pop-up lived; `sites`: how many it names, 0: all there are."""

    name: str
    cost: Decimal
    currency: str
    sites: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What one visit cost by the pop-up's own campaigns, with the visits' interval if known."""

    currency: str
    total: Decimal
    each: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Kpi:
    """A KPI over the whole life; money is in `currency`."""

    name: str
    unit: str
    value: float
    low: float | None
    high: float | None
    currency: str
    at: str | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """All that is known of a pop-up's life so far."""

    ref: str
    name: str
    currency: str
    life: Life
    visits: Kpi | None
    coverage: float | None
    estimated: tuple[float, float | None, float | None] | None
    unplaced: int
    bars: tuple[Bar, ...]
    best: Bar | None
    peak: Kpi | None
    kpis: tuple[Kpi, ...]
    feedback: tuple[Asked, ...]
    costs: tuple[Cost, ...]
    shared: tuple[Campaign, ...]
    final: bool

    @property
    def covered_badly(self) -> bool:
        return self.coverage is not None and self.coverage < COMPLETE

    @property
    def a_day(self) -> float | None:
        """Visits a day, of the days that are over and were observed well."""
        known = [
            bar.visits or 0
            for bar in self.bars
            if bar.cell is Cell.MEASURED and bar.day < self.life.today
        ]
        return sum(known) / len(known) if known else None


def bars_of(rows: Sequence[CountRow], *, today: date) -> tuple[Bar, ...]:
    """Return a bar for each day; what should have been observed and was not is a gap."""
    most = max((row.visits or 0 for row in rows), default=0) or 1
    return tuple(
        Bar(
            day := date.fromisoformat(row.local[:10]),
            cell := _cell(row, under_way=day >= today),
            round(row.visits) if row.visits is not None and cell in _SHOWN else None,
            (row.visits or 0) / most,
        )
        for row in rows
    )


_SHOWN = (Cell.MEASURED, Cell.PARTLY)


def _cell(row: CountRow, *, under_way: bool) -> Cell:
    if row.hours is Hours.CLOSED and not row.visits:
        return Cell.CLOSED
    if row.visits is None:
        return Cell.REST if under_way else Cell.GAP
    whole = row.coverage is None or row.coverage >= COMPARABLE
    return Cell.MEASURED if whole else Cell.PARTLY


def best_of(bars: Sequence[Bar]) -> Bar | None:
    """Return the best day that was observed well; of equals the first."""
    known = [bar for bar in bars if bar.cell is Cell.MEASURED and bar.visits]
    return max(known, key=lambda bar: (bar.visits or 0, -bar.day.toordinal()), default=None)


def costs_of(
    campaigns: Sequence[Campaign], visits: Kpi | None
) -> tuple[tuple[Cost, ...], tuple[Campaign, ...]]:
    """Return what a visit cost by currency, and the campaigns whose cost is of other sites, too."""
    paid = [each for each in campaigns if each.cost > 0]
    shared = tuple(each for each in paid if each.sites != 1)
    totals: dict[str, Decimal] = defaultdict(Decimal)
    for each in paid:
        if each.sites == 1:
            totals[each.currency] += each.cost
    if visits is None or visits.value <= 0:
        return (), shared
    return (
        tuple(
            Cost(
                currency,
                total,
                float(total) / visits.value,
                float(total) / visits.high if visits.high else None,
                float(total) / visits.low if visits.low else None,
            )
            for currency, total in sorted(totals.items())
        ),
        shared,
    )


def final_of(rows: Sequence[CountRow], life: Life) -> bool:
    """Whether no number of a pop-up that is over changes any more."""
    return life.phase is Phase.AFTER and all(row.state is State.FINAL for row in rows)
