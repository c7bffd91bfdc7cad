"""What the portal shows, as values, and the rules that make it of answers from the rollups. Pure.

Decided here:
- A site's visits are those in its opening hours; people counted outside them stand beside.
- Today is compared with the same weekday a week before, both up to the last whole quarter of an
  hour, and only if both were covered to `COMPARABLE` or more: half a day is no fall of 50 %. Nor is
  a change shown that chance alone makes, as it does in a day's first few visits: the week before
  had `FEW_SO_FAR` by then, or `FEW` in the whole day once that is over.
- A quarter that should have been observed and was not is a gap, drawn as one, never as zero.
- Smileys are those of the opening hours, of the first question of each questionnaire that has them;
  where a day had both sets of faces, of the set that was pressed most.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from server.feedback.indices import Index, Kind, index_of
from server.rollup.answer import CountRow
from server.rollup.opening import Calendar
from server.rollup.quality import COMPLETE, Hours

COMPARABLE = 0.9
FEW, FEW_SO_FAR = 30, 100  # people come in groups: of 100, two days differ by 20 % by chance
_DAYS_AHEAD = 8
_MOODS = {
    Kind.SMILEY4: ("0", "1", "2", "3"),
    Kind.SMILEY5: ("0", "1", "neutral", "2", "3"),
    Kind.SMILEY3: ("0", "neutral", "3"),
}


class Cell(StrEnum):
    """What is known of a stretch of the day."""

    MEASURED = "bar"
    PARTLY = "part"
    GAP = "gap"
    CLOSED = "closed"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class Bar:
    """One hour of the day in the small chart; `height` is 0 to 1 of the day's highest."""

    local: datetime
    cell: Cell
    visits: int | None
    height: float


@dataclass(frozen=True, slots=True)
class Opening:
    """Whether a site is open, and when that changes next (local; None: never)."""

    open: bool
    changes: datetime | None
    always: bool = False
    today: bool = True  # whether it changes today


@dataclass(frozen=True, slots=True)
class Comparison:
    """Visits to the last whole quarter, now and a week before.

    `change` is None where they are not to be compared: no quarter of the opening hours is over
    yet (`early`), one of the two was not observed well enough (`covered`), or they are too few.
    """

    now: int
    before: int
    change: float | None
    covered: bool
    early: bool = False


@dataclass(frozen=True, slots=True)
class Smileys:
    """Feedback: the smiley index (0 to 100) with its 95 % interval, and presses by face, by mood.

    Of few presses only the interval is worth showing. Faces go from the best mood (`0`) on.
    """

    index: Index | None
    presses: int
    faces: tuple[tuple[str, int], ...]


class Question(NamedTuple):
    """One question's presses of a day by answer; the kind is None where nobody knows it."""

    questionnaire: str | None
    kind: Kind | None
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turned:
    """A counter that was mounted backwards and is read the other way round `since` (local)."""

    spot: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Silent:
    """A device of which nothing has been stored `since` (local; None: never)."""

    spot: str
    kind: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class SiteDay:
    """One site's day, as a card and at the head of its page."""

    ref: str
    name: str
    day: date
    now: datetime
    opening: Opening
    begun: bool  # some of the day's opening hours have been
    visits: int | None
    outside: int
    coverage: float | None
    unplaced: int
    comparison: Comparison
    smileys: Smileys
    bars: tuple[Bar, ...]
    turned: tuple[Turned, ...]
    silent: tuple[Silent, ...]

    @property
    def is_today(self) -> bool:
        return self.day == self.now.date()

    @property
    def covered_badly(self) -> bool:
        return not self.early and self.coverage is not None and self.coverage < COMPLETE

    @property
    def early(self) -> bool:
        """Whether it is open, but no quarter of the opening hours is over: nothing can be said."""
        return self.begun and self.comparison.early


@dataclass(frozen=True, slots=True)
class SpotDay:
    """One spot's day: raw sums of its door, and what is known of them."""

    ref: str
    name: str
    kiosk: bool
    visits: int | None
    exits: int | None
    coverage: float | None
    unplaced: int
    turned: Turned | None
    silent: Silent | None


def opening_of(calendar: Calendar, *, now: datetime) -> Opening:
    """Return whether a site is open at `now` (local), and when that changes."""
    at, horizon = int(now.timestamp()), int(now.timestamp()) + _DAYS_AHEAD * 86_400
    if calendar.opening.weekly is None:
        return Opening(open=True, changes=None, always=True)
    for low, high in calendar.open_between(at - 86_400, horizon):
        if low <= at < high:
            return Opening(open=True, changes=_local(high, now))
        if low > at:
            opens = _local(low, now)
            return Opening(open=False, changes=opens, today=opens.date() == now.date())
    return Opening(open=False, changes=None)


def day_to_show(calendar: Calendar, *, now: datetime) -> date:
    """Return the last local day that has begun to be open: today, or yesterday before opening."""
    for back in range(_DAYS_AHEAD):
        day = now.date() - timedelta(days=back)
        if has_begun(calendar, day, now=now):
            return day
    return now.date()


def has_begun(calendar: Calendar, day: date, *, now: datetime) -> bool:
    """Return whether any of a local day's opening hours have been by `now`."""
    return any(low <= now.timestamp() for low, _ in calendar.day(day).open)


def compare(
    today: Sequence[CountRow], before: Sequence[CountRow], *, until: datetime
) -> Comparison:
    """Compare two days' quarters up to `until` (today's local time); see the module's rules."""
    now_visits, now_share = up_to(today, today, until=until)
    then_visits, then_share = up_to(today, before, until=until)
    ended = len(_ended(today, until=until))
    covered = bool(ended) and min(now_share, then_share) >= COMPARABLE
    over = ended == sum(row.hours is not Hours.CLOSED for row in today)
    few = FEW if over else FEW_SO_FAR
    found = _comparison(now_visits, then_visits, few=few, covered=covered)
    return replace(found, early=not ended)


def up_to(
    today: Sequence[CountRow], day: Sequence[CountRow], *, until: datetime
) -> tuple[int, float]:
    """Return visits and coverage of a day's quarters at the times of today's that have ended."""
    ended = _ended(today, until=until)
    times = {_start(row).timetz().replace(tzinfo=None) for row in ended}
    same = [row for row in day if _start(row).timetz().replace(tzinfo=None) in times]
    return _sum(same), _covered(same)


def _ended(today: Sequence[CountRow], *, until: datetime) -> list[CountRow]:
    return [row for row in today if _ends(row) <= until and row.hours is not Hours.CLOSED]


def _comparison(now: int, before: int, *, few: int, covered: bool) -> Comparison:
    change = (now - before) / before if covered and before >= few else None
    return Comparison(now, before, change, covered)


def smileys_of(questions: Iterable[Question]) -> Smileys:
    """Return one site's smileys of one day, `questions` in order; see the module's rules."""
    answers = {kind: [0] * len(moods) for kind, moods in _MOODS.items()}
    seen: set[str | None] = set()
    for question in questions:
        kind = question.kind
        if kind not in answers or question.questionnaire in seen:
            continue
        seen.add(question.questionnaire)
        for face, presses in enumerate(question.answers[: len(answers[kind])]):
            answers[kind][face] += presses
    kind = max(answers, key=lambda kind: sum(answers[kind]))
    given = answers[kind]
    faces = zip(_MOODS[kind], given, strict=True)
    return Smileys(index_of(kind, given), sum(given), tuple(faces))


def bars_of(quarters: Sequence[CountRow], *, now: datetime) -> tuple[Bar, ...]:
    """Return the day's hours for the small chart."""
    hours: dict[datetime, list[CountRow]] = {}
    for row in quarters:
        hours.setdefault(_start(row).replace(minute=0), []).append(row)
    sums = {at: _sum(rows) for at, rows in hours.items()}
    most = max(sums.values(), default=0) or 1
    return tuple(
        Bar(at, cell := _cell(rows, now=now), sums[at] if cell in _SHOWN else None, sums[at] / most)
        for at, rows in sorted(hours.items())
    )


_SHOWN = (Cell.MEASURED, Cell.PARTLY)


def cell_of(row: CountRow, *, now: datetime) -> Cell:
    """Say what is known of one quarter."""
    if _start(row) >= now:
        return Cell.CLOSED if row.hours is Hours.CLOSED else Cell.REST
    under_way = _ends(row) > now  # what is missing of it may still come
    covered = under_way or row.coverage is None or row.coverage >= COMPARABLE
    if row.visits is not None and covered:
        return Cell.MEASURED
    if row.visits is not None and row.visits > 0:
        return Cell.PARTLY
    if under_way:
        return Cell.REST
    return Cell.CLOSED if row.hours is Hours.CLOSED else Cell.GAP


def _cell(rows: Sequence[CountRow], *, now: datetime) -> Cell:
    cells = [cell_of(row, now=now) for row in rows]
    known = [cell for cell in cells if cell in _SHOWN]
    if Cell.GAP in cells:
        return Cell.PARTLY if known and _sum(rows) else Cell.GAP
    if known and (any(row.hours is not Hours.CLOSED for row in rows) or _sum(rows)):
        return Cell.PARTLY if Cell.PARTLY in cells else Cell.MEASURED
    return Cell.REST if Cell.REST in cells else Cell.CLOSED


def total(days: Iterable[SiteDay]) -> Comparison:
    """Return all well observed sites' visits of today together, against the week before."""
    fair = [day.comparison for day in days if day.is_today and day.comparison.covered]
    now, before = sum(c.now for c in fair), sum(c.before for c in fair)
    return _comparison(now, before, few=FEW, covered=bool(fair))


def _sum(rows: Iterable[CountRow]) -> int:
    return sum(round(row.visits) for row in rows if row.visits is not None)


def _covered(rows: Sequence[CountRow]) -> float:
    shares = [row.coverage for row in rows if row.coverage is not None]
    return sum(shares) / len(shares) if shares else 0.0


def _start(row: CountRow) -> datetime:
    return datetime.fromisoformat(row.local)


def _ends(row: CountRow) -> datetime:
    start = datetime.fromisoformat(row.start)
    return _start(row) + (datetime.fromisoformat(row.until) - start)


def _local(instant_s: int, like: datetime) -> datetime:
    return datetime.fromtimestamp(instant_s, like.tzinfo)
