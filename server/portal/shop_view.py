"""What a store manager's phone shows, as values, and the rule of what is usual. Pure.

Decided here: today's visits, up to the last whole quarter of an hour, stand beside those of the
same weekday in the eight weeks before, up to the same time of day: their median, and the range from
their lower to their upper quartile, in whole visits outward. Only days count that were observed to
`COMPARABLE`, and nothing is called usual of fewer than `LEAST_DAYS` of them. Where today itself was
observed less, the two are shown and no word is made of it: what was missed may be the difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from math import ceil, floor
from statistics import quantiles

from server.feedback.actions import Action
from server.feedback.alerts import Alert
from server.insight.rosters import OnShift
from server.portal.view import COMPARABLE, SiteDay, up_to
from server.rollup.answer import CountRow

WEEKS = 8
LEAST_DAYS = 4
DUE_WITHIN_DAYS = 7


class Word(StrEnum):
    """How today stands against the middle half of such days."""

    ABOVE = "above"
    USUAL = "usual"
    BELOW = "below"
    UNSAID = "unsaid"


@dataclass(frozen=True, slots=True)
class Usual:
    """Visits so far, beside those of such days by the same time; `middle` None: of too few days."""

    now: int
    covered: bool
    days: int
    middle: int | None = None
    low: int | None = None
    high: int | None = None

    @property
    def word(self) -> Word:
        if self.low is None or self.high is None or not self.covered:
            return Word.UNSAID
        if self.now > self.high:
            return Word.ABOVE
        return Word.BELOW if self.now < self.low else Word.USUAL


@dataclass(frozen=True, slots=True)
class Staff:
    """Who is on shift by the roster, and when the next shift begins (local)."""

    now: tuple[OnShift, ...]
    following: datetime | None

    @property
    def people(self) -> int:
        return sum(each.people for each in self.now)


@dataclass(frozen=True, slots=True)
class Shop:
    """One site's now; `staff` None: no roster was ever told."""

    day: SiteDay
    usual: Usual
    alerts: tuple[Alert, ...]
    actions: tuple[Action, ...]
    staff: Staff | None
    today: date


def usual_of(
    today: Sequence[CountRow], earlier: Sequence[Sequence[CountRow]], *, until: datetime
) -> Usual:
    """Compare today's quarters up to `until` (local) with those of earlier days; see above."""
    now, covered = up_to(today, today, until=until)
    known = []
    for day in earlier:
        then, share = up_to(today, day, until=until)
        if share >= COMPARABLE:
            known.append(then)
    fair = covered >= COMPARABLE
    if len(known) < LEAST_DAYS:
        return Usual(now, fair, len(known))
    low, middle, high = quantiles(known, n=4, method="inclusive")
    return Usual(now, fair, len(known), round(middle), floor(low), ceil(high))


def due_of(actions: Sequence[Action], *, today: date) -> tuple[Action, ...]:
    """Return the actions that were not carried out and are due within a week, the first first."""
    due = [
        action
        for action in actions
        if action.state == "open" and (action.due_on - today).days <= DUE_WITHIN_DAYS
    ]
    return tuple(sorted(due, key=lambda action: (action.due_on, action.ref)))
