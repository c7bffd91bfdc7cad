"""When a device may restart itself: while its site is closed, well after and well before. Pure.

Decided here:
- A *window* is a stretch of instants of the site's closed time, less a margin after closing (staff
  are still there) and one before opening (the last install has ended by then), less every freeze.
  Closed time is `server.rollup.opening`'s, whose hours are rounded outward to quarters: what it
  calls closed is closed. So a night in which the clock moves is as long as it is, 23 and 25 hours
  included; an opening time that the clock skips or shows twice leaves no minute of it in a window.
- A site without closing hours (24/7, or nobody has written any down: the register cannot tell) has
  no window by itself. Either it is left out, by name, or the policy says when: in a stretch of the
  clock, or in the quietest stretch of its own usual day (`quietest`). Its days off, which the
  register does know, are closed time either way.
- A window shorter than `least_s` is none: an install must fit into it.

Instants are whole UTC seconds since 1970. The device looks again by `protocol.windows.fits`, which
sees nothing but the assignment's list.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from protocol.assignment import MAX_WINDOWS
from server.errors import RefusedError
from server.rollup.buckets import local
from server.rollup.opening import Calendar, Interval, Opening, without

DAY_S = 86_400
HORIZON_DAYS = 14
"""A site whose next window is farther away than this has none, as far as a plan is concerned."""
QUIET_HOURS = 4
MOST_QUIET = 0.05
"""A stretch that usually sees more than this share of a day's people is not quiet."""
_DAY_MIN = 1440
_MARGINS_S = (0, 6 * 3600)
_LEAST_S = (300, 12 * 3600)


class Always(StrEnum):
    """What is done with sites that never close."""

    EXCLUDE = "exclude"
    CLOCK = "clock"  # in the stretch of the clock that the policy names
    QUIET = "quiet"  # in the quietest stretch of the site's usual day


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy's windows; `clock`: wall minutes [from, until), for sites that never close.

    A stretch that ends at or before its beginning ends on the day after.
    """

    after_closing_s: int = 1800
    before_opening_s: int = 3600
    least_s: int = 1200
    always: Always = Always.EXCLUDE
    clock: Interval = (120, 240)

    def __post_init__(self) -> None:
        for name in ("after_closing_s", "before_opening_s"):
            _demand(name, getattr(self, name), _MARGINS_S)
        _demand("least_s", self.least_s, _LEAST_S)
        _demand("clock", self.clock[0], (0, _DAY_MIN - 1))
        _demand("clock", self.clock[1], (0, _DAY_MIN))
        if self.clock[0] == self.clock[1] % _DAY_MIN:
            raise RefusedError("bad_window", "clock: the whole day is no quiet stretch of it")


def _demand(name: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise RefusedError(
            "bad_window", f"{name}: expected {bounds[0]} to {bounds[1]}, got {value}"
        )


class NoWindow(StrEnum):
    """Why a site has no window; the text is for people."""

    ALWAYS_OPEN = "the site has no closing hours, and the policy names no quiet time"
    NEVER_QUIET = "the site has no closing hours, and no stretch of its day is quiet"
    FROZEN = "a freeze covers every window within the horizon"
    TOO_SHORT = "the site is closed for too short a time, margins taken off"


@dataclass(frozen=True, slots=True)
class Night:
    """A site's windows within a horizon, in order; if there is none, why not."""

    windows: tuple[Interval, ...]
    why: NoWindow | None = None


def windows(
    calendar: Calendar,
    rules: Rules,
    freezes: Iterable[Interval],
    *,
    now_s: int,
    days: int = HORIZON_DAYS,
    quiet: Interval | None = None,
) -> Night:
    """Return a site's windows of the next `days`, the one that is on first; at most 14 of them.

    `quiet`: the quietest stretch of the site's clock, where `quietest` has found one.
    """
    end_s = now_s + days * DAY_S
    margins = rules.before_opening_s, rules.after_closing_s
    resting = _closed(calendar, margins, now_s, end_s)
    if calendar.opening.weekly is None:
        stretch = {Always.EXCLUDE: None, Always.CLOCK: rules.clock, Always.QUIET: quiet}
        chosen = stretch[rules.always]
        if chosen is not None:
            night = Calendar(calendar.zone, _all_but(calendar.opening, chosen))
            resting = without([*resting, *_closed(night, (0, 0), now_s, end_s)], ())
    closed = [(max(low, now_s), min(high, end_s)) for low, high in resting]
    fitting = [each for each in closed if each[1] - each[0] >= rules.least_s]
    thawed = without(fitting, freezes)
    found = [each for each in thawed if each[1] - each[0] >= rules.least_s][:MAX_WINDOWS]
    if found:
        return Night(tuple(found))
    return Night((), _why(calendar, rules, frozen=bool(fitting), quiet=quiet))


def _why(calendar: Calendar, rules: Rules, *, frozen: bool, quiet: Interval | None) -> NoWindow:
    if frozen:
        return NoWindow.FROZEN
    if calendar.opening.weekly is None and rules.always is Always.EXCLUDE:
        return NoWindow.ALWAYS_OPEN
    if calendar.opening.weekly is None and rules.always is Always.QUIET and quiet is None:
        return NoWindow.NEVER_QUIET
    return NoWindow.TOO_SHORT


def next_window(
    calendar: Calendar,
    rules: Rules,
    freezes: Iterable[Interval],
    *,
    now_s: int,
    length_s: int,
    days: int = HORIZON_DAYS,
    quiet: Interval | None = None,
) -> Interval | None:
    """Return the first window with `length_s` left in it, from now on where it is on already."""
    longer = replace(rules, least_s=max(rules.least_s, length_s))
    found = windows(calendar, longer, freezes, now_s=now_s, days=days, quiet=quiet)
    return found.windows[0] if found.windows else None


def _closed(calendar: Calendar, margins: Interval, now_s: int, end_s: int) -> list[Interval]:
    """Return closed time around [now, end), margins before opening and after closing taken off.

    Looks a day beyond either edge, so that an opening just outside takes its margin.
    """
    low_s, high_s = now_s - DAY_S, end_s + DAY_S
    before, after = margins
    opened = [(low - before, high + after) for low, high in calendar.open_between(low_s, high_s)]
    return without([(low_s, high_s)], opened)


def _all_but(opening: Opening, stretch: Interval) -> Opening:
    """Return a site that never closes as if it closed for this stretch of each usual day.

    Rounded inward to quarters, as opening is outward; a day of its own hours has no stretch.
    """
    low, high = -(-stretch[0] // 15) * 15, stretch[1] // 15 * 15
    day: tuple[Interval, ...] = ((high, low),)
    if stretch[0] < stretch[1]:
        day = (0, low), (high, _DAY_MIN)
    own = tuple((each, ((0, _DAY_MIN),)) for each, _ in opening.exceptions)
    usual = tuple(each for each in day if each[0] < each[1])
    return replace(opening, weekly=(usual,) * 7, exceptions=own)


def quietest(
    hours: Sequence[float], *, length: int = QUIET_HOURS, most: float = MOST_QUIET
) -> Interval | None:
    """Return the wall minutes [from, until) of the `length` hours of a day with the fewest people.

    `hours`: what 24 hours of the local day usually see. None where that is more than `most` of the
    day's people, or nothing is known. Of several stretches that are as quiet the one nearest to
    03:00 in its middle is taken: nobody comes at any of them, and then deliveries come late.
    """
    if len(hours) != 24:
        raise ValueError(f"a day has 24 hours, not {len(hours)}")
    day = sum(hours)
    if day <= 0:
        return None

    def place(first: int) -> tuple[float, float]:
        away = abs((first + length / 2 - 3 + 12) % 24 - 12)
        return round(sum(hours[(first + n) % 24] for n in range(length)) / day, 9), away

    best = min(range(24), key=place)
    if place(best)[0] > most:
        return None
    return best * 60, (best + length) % 24 * 60


def label(calendar: Calendar, window: Interval) -> str:
    """Return a window as the site's clock shows it: `Tue 24 Nov 22:00-Wed 08:45`."""
    low, high = (local(calendar.zone, at) for at in window)
    until = "%H:%M" if low.date() == high.date() else "%a %H:%M"
    return f"{low:%a %d %b %H:%M}-{high.strftime(until)}"
