"""Windows for installs, against a clock that is walked minute by minute in forty time zones."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.windows import fits, wait_ms
from server.errors import RefusedError
from server.firmware.windows import (
    Always,
    Night,
    NoWindow,
    Rules,
    label,
    next_window,
    quietest,
    windows,
)
from server.rollup.opening import Calendar, Interval, Opening

# Both hemispheres; half and quarter hours; the clock moved by half an hour, at midnight, at 22:00
# of the evening before; two that never move it any more, and one that does at each Ramadan.
ZONES = (
    *("Africa/Cairo", "Africa/Casablanca", "Africa/Johannesburg", "Africa/Nairobi"),
    *("America/Anchorage", "America/Argentina/Buenos_Aires", "America/Asuncion"),
    *("America/Caracas", "America/Chicago", "America/Denver", "America/Halifax"),
    *("America/Havana", "America/Los_Angeles", "America/New_York", "America/Nuuk"),
    *("America/Santiago", "America/Sao_Paulo", "America/Scoresbysund", "America/St_Johns"),
    *("Asia/Beirut", "Asia/Dubai", "Asia/Gaza", "Asia/Jerusalem", "Asia/Kathmandu"),
    *("Asia/Kolkata", "Asia/Shanghai", "Asia/Tokyo", "Atlantic/Azores", "Australia/Adelaide"),
    *("Australia/Lord_Howe", "Australia/Sydney", "Europe/Copenhagen", "Europe/Dublin"),
    *("Europe/Lisbon", "Europe/London", "Europe/Stockholm", "Pacific/Auckland"),
    *("Pacific/Chatham", "Pacific/Easter", "Pacific/Kiritimati"),
)
DAY = 86_400
FAR = 3600  # the longest margin here
SHOP = (*(((600, 1140),),) * 5, ((600, 1020),), ())
MARKET = ((0, 30), (540, 840), (900, 1320)), *(((540, 840), (900, 1320)),) * 5, ((600, 900),)
BAR = (*(((1080, 1500),),) * 3, *(((1080, 1560),),) * 3, ((1020, 1440),))
EARLY = ((60, 180), (240, 1380)), *(((120, 1380),),) * 6
"""Opens and closes within the hours that clocks skip and repeat."""


@cache
def shown(zone: str, at_s: int) -> tuple[date, date, int]:
    """Return the day that a wall clock shows, the one before, and the minute of the day."""
    at = datetime.fromtimestamp(at_s, ZoneInfo(zone))
    return at.date(), at.date() - timedelta(days=1), at.hour * 60 + at.minute


@dataclass(frozen=True)
class Clock:
    """The oracle: a wall clock that is read at each minute, and hours as they are written."""

    zone: str
    opening: Opening

    def is_open(self, at_s: int) -> bool:
        day, before, minute = shown(self.zone, at_s)
        for low, high in self._hours(day):
            if low <= minute < high:
                return True
        return any(low <= minute + 1440 < high for low, high in self._hours(before))

    def _hours(self, day: date) -> Sequence[Interval]:
        if self.opening.opens_on is not None and day < self.opening.opens_on:
            return ()
        if self.opening.closes_on is not None and day > self.opening.closes_on:
            return ()
        for own, hours in self.opening.exceptions:
            if own == day:
                return hours
        return ((0, 1440),) if self.opening.weekly is None else self.opening.weekly[day.weekday()]

    def opened(self, low_s: int, high_s: int) -> list[bool]:
        return [self.is_open(at) for at in range(low_s, high_s, 60)]


def walked(
    clock: Clock, rules: Rules, freezes: Sequence[Interval], now_s: int, days: int
) -> list[Interval]:
    """Return the windows, found by walking: runs of minutes that are closed, margins included."""
    low_s, high_s = now_s - FAR, now_s + days * DAY + FAR
    opened = clock.opened(low_s, high_s)
    free = [True] * len(opened)
    before, after = rules.before_opening_s // 60, rules.after_closing_s // 60
    for number, is_open in enumerate(opened):
        if is_open:
            for near in range(max(0, number - before), min(len(free), number + after + 1)):
                free[near] = False
    runs: list[list[int]] = []
    for number, is_free in enumerate(free):
        at = low_s + 60 * number
        if is_free and now_s <= at < now_s + days * DAY:
            if runs and runs[-1][1] == at:
                runs[-1][1] = at + 60
            else:
                runs.append([at, at + 60])
    long = [(low, high) for low, high in runs if high - low >= rules.least_s]
    thawed: list[Interval] = []
    for low, high in long:
        minutes = [
            at for at in range(low, high, 60) if not any(a <= at < b for a, b in freezes)
        ]  # fmt: skip
        for at in minutes:
            if thawed and thawed[-1][1] == at:
                thawed[-1] = thawed[-1][0], at + 60
            else:
                thawed.append((at, at + 60))
    return [each for each in thawed if each[1] - each[0] >= rules.least_s][:14]


@cache
def moves(zone: str) -> list[int]:
    """Return when a zone's clock moves in 2026 and 2027; of one that never does, some instant."""
    found = []
    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    place = ZoneInfo(zone)

    def offset(at_s: int) -> timedelta | None:
        return datetime.fromtimestamp(at_s, place).utcoffset()

    for at in range(start, start + 730 * DAY, DAY):
        if offset(at) != offset(at + DAY):
            low, high = at, at + DAY
            while high - low > 60:
                middle = (low + high) // 120 * 60
                low, high = (middle, high) if offset(middle) == offset(low) else (low, middle)
            found.append(high)
    return found or [start + 80 * DAY + 3600]


@pytest.mark.parametrize("zone", ZONES)
def test_no_minute_of_a_window_is_open_where_the_clock_moves_and_on_holidays(zone: str) -> None:
    chance = random.Random(zone)
    for move in moves(zone)[:2]:
        day = datetime.fromtimestamp(move, ZoneInfo(zone)).date()
        now_s = move - chance.randrange(24, 30) * 3600
        for weekly in (EARLY, chance.choice([SHOP, MARKET, BAR])):
            own = (
                (day - timedelta(days=1), chance.choice([(), ((1320, 1620),)])),
                (day, chance.choice([(), ((120, 180),), ((0, 90), (1380, 1500)), weekly[0]])),
            )
            opening = Opening(weekly, chance.choice([own, own[:1], own[1:], ()]))
            clock, calendar = Clock(zone, opening), Calendar(zone, opening)
            rules = Rules(
                after_closing_s=chance.choice([0, 1800]), before_opening_s=chance.choice([0, 3600])
            )
            night = windows(calendar, rules, (), now_s=now_s, days=2)
            assert list(night.windows) == walked(clock, rules, (), now_s, days=2)
            assert not any(
                clock.is_open(at) for low, high in night.windows for at in range(low, high, 60)
            )


spans = st.tuples(st.integers(0, 1439), st.integers(1, 1440)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)


@st.composite
def hours_of_a_day(draw: st.DrawFn) -> tuple[Interval, ...]:
    found: list[Interval] = []
    for low, high in sorted(draw(st.lists(spans, max_size=2))):
        if not found or found[-1][1] <= low:
            found.append((low, high))
    return tuple(found)


@settings(max_examples=40)
@given(
    zone=st.sampled_from(ZONES),
    near=st.integers(0, 3),
    back_min=st.integers(0, 3000),
    weekly=st.lists(hours_of_a_day(), min_size=7, max_size=7),
    own=st.lists(hours_of_a_day(), max_size=3),
    margins=st.tuples(st.integers(0, 120), st.integers(0, 120)),
    frozen=st.lists(st.tuples(st.integers(-500, 5000), st.integers(1, 2000)), max_size=2),
    needs_min=st.integers(5, 90),
)
@example("Europe/Stockholm", 0, 60, [((150, 165),)] * 7, [], (0, 0), [], 5)
def test_neither_the_servers_choice_nor_the_devices_own_look_opens_at_any_minute(
    zone: str,
    near: int,
    back_min: int,
    weekly: list[tuple[Interval, ...]],
    own: list[tuple[Interval, ...]],
    margins: tuple[int, int],
    frozen: list[tuple[int, int]],
    needs_min: int,
) -> None:
    places = moves(zone)
    now_s = places[near % len(places)] - 60 * back_min
    first = datetime.fromtimestamp(now_s, ZoneInfo(zone)).date()
    exceptions = tuple((first + timedelta(days=n), each) for n, each in enumerate(own))
    opening = Opening(tuple(weekly), exceptions)
    rules = Rules(after_closing_s=60 * margins[0], before_opening_s=60 * margins[1], least_s=300)
    freezes = [(now_s + 60 * low, now_s + 60 * (low + length)) for low, length in frozen]
    found = windows(Calendar(zone, opening), rules, freezes, now_s=now_s, days=2)
    opened = Clock(zone, opening).opened(now_s, now_s + 2 * DAY + 7200)
    told = [(1000 * low, 1000 * high) for low, high in found.windows]
    for low, high in found.windows:
        assert not any(opened[(low - now_s) // 60 : -(-(high - now_s) // 60)])
        assert not any(low < end and high > start for start, end in freezes)
    for minute in range(2 * 1440) if told else ():
        at_ms = 1000 * (now_s + 60 * minute)
        if fits(told, at_ms=at_ms, needs_ms=60_000 * needs_min):
            assert not any(opened[minute : minute + needs_min])
    due = next_window(
        Calendar(zone, opening), rules, freezes, now_s=now_s, length_s=60 * needs_min, days=2
    )
    wait = wait_ms(told, at_ms=1000 * now_s, needs_ms=60_000 * needs_min)
    if told:
        assert (None if due is None else 1000 * max(0, due[0] - now_s)) == wait


# -- sites that never close ----------------------------------------------------------------------

NOW = int(datetime(2026, 3, 27, 12, tzinfo=UTC).timestamp())
ALWAYS = Calendar("Europe/Stockholm", Opening())


def night(rules: Rules, *, quiet: Interval | None = None, calendar: Calendar = ALWAYS) -> Night:
    return windows(calendar, rules, (), now_s=NOW, days=4, quiet=quiet)


def test_a_site_that_never_closes_has_no_window_unless_a_policy_says_when() -> None:
    assert night(Rules()) == Night((), NoWindow.ALWAYS_OPEN)
    assert night(Rules(always=Always.QUIET)) == Night((), NoWindow.NEVER_QUIET)
    assert night(Rules(), quiet=(120, 360)) == Night((), NoWindow.ALWAYS_OPEN)


def test_a_site_that_never_closes_rests_in_the_stretch_of_the_clock_that_was_named() -> None:
    found = night(Rules(always=Always.CLOCK, clock=(60, 240))).windows
    lengths = [high - low for low, high in found]
    assert lengths == [3 * 3600, 2 * 3600, 3 * 3600, 3 * 3600]  # an hour is skipped on the 29th
    assert label(ALWAYS, found[1]) == "Sun 29 Mar 01:00-04:00"
    over = night(Rules(always=Always.QUIET), quiet=(23 * 60, 180)).windows
    assert label(ALWAYS, over[0]) == "Fri 27 Mar 23:00-Sat 03:00"


def test_days_off_of_a_site_that_never_closes_are_closed_time_and_its_own_hours_are_not() -> None:
    off, eve = date(2026, 3, 28), date(2026, 3, 29)
    calendar = Calendar("Europe/Stockholm", Opening(None, ((off, ()), (eve, ((600, 840),)))))
    found = night(Rules(), calendar=calendar)
    assert [label(calendar, each) for each in found.windows] == [
        "Sat 28 Mar 00:30-Sun 09:00",
        "Sun 29 Mar 14:30-23:00",
    ]
    resting = night(Rules(always=Always.CLOCK), calendar=calendar).windows
    assert "Mon 30 Mar 02:00-04:00" in [label(calendar, each) for each in resting]


def test_the_quietest_hours_are_those_with_the_fewest_people_and_none_if_it_is_never_quiet() -> (
    None
):
    day = [2.0, 1, 0, 0, 0, 0, 3, 30, 80, 90, 90, 90, 90, 90, 80, 80, 90, 90, 80, 60, 40, 20, 9, 5]
    assert quietest(day) == (120, 360)
    assert quietest([0.0] * 8 + [10.0] * 12 + [0.0] * 4) == (60, 300)  # of all quiet ones
    assert quietest([5.0] * 24) is None
    assert quietest([0.0] * 24) is None
    late = [9.0] * 12 + [0.0] * 4 + [9.0] * 8
    assert quietest(late) == (720, 960)
    over = [0.0, 0, *[9.0] * 20, 0, 0]
    assert quietest(over) == (22 * 60, 120)


@given(st.lists(st.floats(0, 1e6), min_size=24, max_size=24))
def test_no_other_stretch_of_a_day_has_fewer_people(hours: list[float]) -> None:
    found = quietest(hours, most=1.0)
    if found is None:
        assert sum(hours) == 0
        return
    length = (found[1] - found[0]) % 1440 // 60
    sums = [sum(hours[(first + n) % 24] for n in range(length)) for first in range(24)]
    assert sums[found[0] // 60] <= min(sums) + 1e-6 * sum(hours)


# -- why not, and bounds -------------------------------------------------------------------------


def test_a_freeze_over_every_window_is_named_as_the_reason() -> None:
    calendar = Calendar("Europe/Stockholm", Opening(SHOP))
    frozen = [(NOW - 1, NOW + 10 * DAY)]
    assert windows(calendar, Rules(), frozen, now_s=NOW, days=4).why is NoWindow.FROZEN
    after = next_window(calendar, Rules(), frozen, now_s=NOW, length_s=1200)
    assert after is not None
    assert label(calendar, after) == "Mon 06 Apr 19:30-Tue 09:00"


def test_a_site_that_closes_for_too_short_a_time_says_so() -> None:
    calendar = Calendar("Europe/Stockholm", Opening((((0, 120), (180, 1440)),) * 7))
    assert windows(calendar, Rules(), (), now_s=NOW, days=4).why is NoWindow.TOO_SHORT


def test_a_list_holds_at_most_fourteen_windows() -> None:
    calendar = Calendar("Europe/Stockholm", Opening((((0, 300), (600, 900), (1200, 1300)),) * 7))
    found = windows(calendar, Rules(), (), now_s=NOW, days=14).windows
    assert len(found) == 14


@pytest.mark.parametrize(
    "wrong",
    [{"after_closing_s": -1}, {"before_opening_s": 7 * 3600}, {"least_s": 0},
     {"clock": (0, 1440)}, {"clock": (60, 60)}, {"clock": (1440, 60)}],
)  # fmt: skip
def test_rules_out_of_bounds_are_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(RefusedError, match=next(iter(wrong))):
        Rules(**wrong)  # type: ignore[arg-type]
