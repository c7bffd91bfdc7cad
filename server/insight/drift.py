"""How many people are inside, from counters that miss some of them. Pure.

Decided here:
- A *turn* is the time from one moment at which nobody is inside to the next. It ends at the first
  moment after closing and `GRACE_S` before which nobody has crossed for `QUIET_S`: then it is
  *verified*. Where somebody always has, it ends halfway to the next opening, unverified. A site
  that never closes turns once a week, where it is quietest.
- raw(t) is in - out since the turn's beginning, X(t) is in + out. What is left at a verified end,
  D = raw(T), is error, and came with the crossings: occupancy is max(0, raw(t) - D X(t) / X(T)).
- Within a turn that lasts, D is unknown; the site's drift rate r is the median D / X of the turns
  that ended in the `RATE_DAYS` before: occupancy is max(0, raw(t) - r X(t)). Two of one weekday lie
  within 14 days, too few to say how sure they are, so r is that of all days. Its band is theirs:
  1.4826 MAD is their deviation; errors are mostly independent of each other, so they grow with the
  root of the crossings.
- After a quarter that was not observed nobody knows who is inside, until the turn ends.
- Mean dwell is Little's: the people's time inside over those who entered, of a whole turn.

Invariants: no occupancy is negative; a turn's last is 0 once it is back-corrected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from statistics import median
from typing import NamedTuple

QUARTER_S = 900
GRACE_S = 1800
QUIET_S = 1800
CLOSED_S = 3 * 3600
"""A shorter pause is no closing: the staff stay."""

RATE_DAYS = 14
FEWEST_TURNS = 4
ALERT = 0.015
_T = 2.57  # Student's, 5 degrees of freedom: the MAD of 14 turns is worth that many
_MAD = 1.4826
_WEEK_S = 7 * 86_400


class Quarter(NamedTuple):
    """What a site's counters counted in one quarter; `covered`: all of it, by all of them."""

    start_s: int
    entered: float
    left: float
    covered: bool

    @property
    def end_s(self) -> int:
        return self.start_s + QUARTER_S

    @property
    def crossings(self) -> float:
        return self.entered + self.left


class Kind(StrEnum):
    """How an occupancy came about; `unknown`: something was not observed since the turn began."""

    BACK_CORRECTED = "back_corrected"
    LIVE = "live"
    RAW = "raw"
    UNKNOWN = "unknown"


class Turn(NamedTuple):
    """Quarters [first, last) between two moments at which nobody is inside.

    `ended` False: it lasts, or nobody can tell yet.
    """

    first: int
    last: int
    ended: bool
    verified: bool


class Inside(NamedTuple):
    """Who is inside at an instant, with the band of 95 %."""

    at_s: int
    raw: float | None
    people: float | None
    low: float | None
    high: float | None
    kind: Kind


@dataclass(frozen=True, slots=True)
class Account:
    """A turn's sums. `drift` is D / X, None where it is not known; `dwell_s` is derived."""

    start_s: int
    end_s: int
    entered: float
    left: float
    covered: bool
    verified: bool
    drift: float | None
    dwell_s: float | None

    @property
    def alert(self) -> bool:
        """Whether the site's counters drift more than they should."""
        return self.drift is not None and abs(self.drift) > ALERT


class Rate(NamedTuple):
    """A site's usual drift, its deviation at a usual turn, and that turn's crossings."""

    median: float
    deviation: float
    crossings: float


def turns(
    quarters: Sequence[Quarter], opening: Sequence[tuple[int, int]], *, now_s: int
) -> list[Turn]:
    """Cut quarters (contiguous, ascending) into turns; `opening`: the site's open intervals."""
    if not quarters:
        return []
    closings = _closings(opening, quarters[-1].end_s)
    found: list[Turn] = []
    first = 0
    for close_s, open_s in closings or _quietest(quarters):
        end = _end(quarters, close_s, open_s, first=first, now_s=now_s)
        if end is None:
            continue
        last, verified = end
        found.append(Turn(first, last, True, verified))
        first = last
    if first < len(quarters):
        found.append(Turn(first, len(quarters), False, False))
    return found


def _closings(opening: Sequence[tuple[int, int]], end_s: int) -> list[tuple[int, int]]:
    """Return each closing and the opening after it, where that is long enough."""
    following = [low for low, _ in opening[1:]] + [end_s + CLOSED_S]
    return [
        (high, low)
        for (_, high), low in zip(opening, following, strict=True)
        if low - high >= CLOSED_S
    ]


def _end(
    quarters: Sequence[Quarter], close_s: int, open_s: int, *, first: int, now_s: int
) -> tuple[int, bool] | None:
    """Return the index after a turn's last quarter and whether that is verified; None: not yet."""
    began = quarters[0].start_s
    at = -(-(close_s + GRACE_S - began) // QUARTER_S)
    need = QUIET_S // QUARTER_S
    while at <= len(quarters) and began + at * QUARTER_S <= min(open_s - QUIET_S, now_s):
        quiet = quarters[max(0, at - need) : at]
        if at - need >= first and all(q.covered and q.crossings == 0 for q in quiet):
            return at, True
        at += 1
    halfway = (close_s + (open_s - close_s) // 2 - began) // QUARTER_S
    if first < halfway <= len(quarters) and open_s <= now_s:
        return halfway, False
    return None


def _quietest(quarters: Sequence[Quarter]) -> list[tuple[int, int]]:
    """Return where a site that never closes is quietest in each week, as if it closed there."""
    hours: dict[int, list[float]] = {}
    for quarter in quarters:
        if quarter.covered:
            hours.setdefault(quarter.start_s % _WEEK_S // 3600, []).append(quarter.crossings)
    known = {hour: sum(each) / len(each) for hour, each in hours.items()}
    if len(known) < _WEEK_S // 3600:
        return []
    hour_s = min(known, key=lambda hour: (known[hour], hour)) * 3600
    first = quarters[0].start_s
    at = first + (hour_s - first) % _WEEK_S
    found: list[tuple[int, int]] = []
    while at < quarters[-1].end_s:
        found.append((at - GRACE_S, at + GRACE_S))  # halfway is there: nobody is seen to be gone
        at += _WEEK_S
    return found


def account(quarters: Sequence[Quarter], turn: Turn, *, closes: bool = True) -> Account:
    """Return a turn's sums; its drift is known if it has ended where nobody was inside.

    `closes` False: the site never does, so its turns count as verified where they are quietest.
    """
    own = quarters[turn.first : turn.last]
    entered, left = sum(q.entered for q in own), sum(q.left for q in own)
    covered = all(q.covered for q in own)
    verified = turn.verified or (turn.ended and not closes)
    known = turn.ended and verified and covered and entered + left > 0
    dwell = None
    if known and entered:
        people = [each.people or 0.0 for each in back_corrected(quarters, turn)]
        steps = zip([0.0, *people], people, strict=False)
        dwell = sum((a + b) / 2 * QUARTER_S for a, b in steps) / entered
    return Account(
        own[0].start_s,
        own[-1].end_s,
        entered,
        left,
        covered,
        verified,
        (entered - left) / (entered + left) if known else None,
        dwell,
    )


def rate(accounts: Sequence[Account], at_s: int) -> Rate | None:
    """Return the drift rate of the turns before `at_s`; None of too few."""
    known = [
        (each.drift, each.entered + each.left)
        for each in accounts
        if each.drift is not None and at_s - RATE_DAYS * 86_400 <= each.end_s <= at_s
    ]
    if len(known) < FEWEST_TURNS:
        return None
    middle = median(drift for drift, _ in known)
    deviation = _MAD * median(abs(drift - middle) for drift, _ in known)
    return Rate(middle, deviation, median(crossings for _, crossings in known))


def back_corrected(quarters: Sequence[Quarter], turn: Turn) -> list[Inside]:
    """Return who was inside at the end of each quarter of a turn that is over and verified."""
    raws, crossings = _sums(quarters, turn)
    share = raws[-1] / crossings[-1] if crossings[-1] else 0.0
    found: list[Inside] = []
    for at, raw, crossed in zip(range(turn.first, turn.last), raws, crossings, strict=True):
        people = max(0.0, raw - share * crossed)
        found.append(Inside(quarters[at].end_s, raw, people, None, None, Kind.BACK_CORRECTED))
    return found


def live(quarters: Sequence[Quarter], turn: Turn, known: Rate | None) -> list[Inside]:
    """Return who was inside at the end of each quarter of a turn of which D is not known."""
    raws, crossings = _sums(quarters, turn)
    found: list[Inside] = []
    lost = False
    for at, raw, crossed in zip(range(turn.first, turn.last), raws, crossings, strict=True):
        lost = lost or not quarters[at].covered
        end_s = quarters[at].end_s
        if lost:
            found.append(Inside(end_s, None, None, None, None, Kind.UNKNOWN))
        elif known is None:
            found.append(Inside(end_s, raw, max(0.0, raw), None, None, Kind.RAW))
        else:
            people = raw - known.median * crossed
            half = _T * known.deviation * sqrt(crossed * max(crossed, known.crossings))
            low, high = max(0.0, people - half), max(0.0, people + half)
            found.append(Inside(end_s, raw, max(0.0, people), low, high, Kind.LIVE))
    return found


def inside(
    quarters: Sequence[Quarter], opening: Sequence[tuple[int, int]], *, now_s: int
) -> tuple[list[Inside], list[Account]]:
    """Return who was inside at the end of each quarter, and the account of each turn."""
    closes = bool(_closings(opening, quarters[-1].end_s)) if quarters else True
    accounts: list[Account] = []
    found: list[Inside] = []
    for turn in turns(quarters, opening, now_s=now_s):
        own = account(quarters, turn, closes=closes)
        if own.drift is not None:
            found += back_corrected(quarters, turn)
        elif turn.ended and own.verified and own.entered + own.left == 0 and own.covered:
            found += back_corrected(quarters, turn)  # nobody came
        else:
            found += live(quarters, turn, rate(accounts, own.start_s))
        accounts.append(own)
    return found, accounts


def _sums(quarters: Sequence[Quarter], turn: Turn) -> tuple[list[float], list[float]]:
    """Return raw and X at the end of each quarter of a turn."""
    raws: list[float] = []
    crossings: list[float] = []
    raw = crossed = 0.0
    for quarter in quarters[turn.first : turn.last]:
        raw += quarter.entered - quarter.left
        crossed += quarter.crossings
        raws.append(raw)
        crossings.append(crossed)
    return raws, crossings


def imbalance(entered: float, left: float) -> float:
    """Return I = (in - out) / max(in, 1)."""
    return (entered - left) / max(entered, 1.0)


def imbalanced(entered: float, left: float) -> bool:
    """Whether a day's in and out differ by more than chance and 2 % explain."""
    return abs(imbalance(entered, left)) > max(0.02, 3 / sqrt(max(entered, 1.0)))
