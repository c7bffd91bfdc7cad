"""Opening hours as instants, and what a count is worth."""

from collections import OrderedDict
from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rollup import places
from server.rollup.buckets import day_start, local
from server.rollup.opening import Calendar, Interval, Opening, joined, overlap
from server.rollup.quality import (
    FINAL_AFTER_S,
    Assigned,
    Hours,
    Scope,
    State,
    accounted_to,
    coverage,
    expected_s,
    hours_of,
    known,
    state,
)

ZONES = ("Europe/Stockholm", "Europe/London", "Australia/Lord_Howe", "Asia/Kathmandu")
EVER = [(-(1 << 40), 1 << 40)]

zones = st.sampled_from(ZONES)
dates = st.dates(date(2015, 1, 1), date(2030, 12, 31))


@st.composite
def hours(draw: st.DrawFn) -> Interval:
    opens = draw(st.integers(0, 1439))
    return opens, draw(st.integers(opens + 1, min(2880, opens + 1440)))


weeks = st.lists(st.lists(hours(), max_size=2), min_size=7, max_size=7)


def weekly(*by_day: list[Interval]) -> Opening:
    return Opening(tuple(tuple(day) for day in by_day))


def every_day(opens: int, closes: int) -> Opening:
    return weekly(*([[(opens, closes)]] * 7))


@given(zones, dates, weeks)
def test_a_quarter_is_open_if_its_wall_time_lies_in_the_hours(
    zone: str, day: date, week: list[list[Interval]]
) -> None:
    found = Calendar(zone, weekly(*week)).day(day)
    for at in range(found.start_s, found.end_s, 900):
        shown = local(zone, at)
        minute = shown.hour * 60 + shown.minute
        today, before = week[day.weekday()], week[(day - timedelta(days=1)).weekday()]
        expected = any(low // 15 * 15 <= minute < high for low, high in today) or any(
            minute < high - 1440 for _, high in before
        )
        assert any(low <= at < high for low, high in found.open) == expected
    assert found.open == joined(found.open)
    assert found.open_s == sum(high - low for low, high in found.open)


@given(zones, dates, weeks)
def test_open_and_closed_time_make_the_day(
    zone: str, day: date, week: list[list[Interval]]
) -> None:
    calendar = Calendar(zone, weekly(*week))
    found = calendar.day(day)
    assert 0 <= found.open_s <= found.end_s - found.start_s
    parts = calendar.parts(found.start_s, found.end_s)
    assert [(part.from_s, part.until_s) for part in parts] == list(found.open)
    assert all(found.start_s <= part.guard_s <= part.from_s for part in parts)
    assert all(left.until_s <= right.guard_s for left, right in pairwise(parts))


def test_a_site_without_rows_is_always_open() -> None:
    day = Calendar("Europe/Stockholm", Opening()).day(date(2026, 3, 29))
    assert day.open == ((day.start_s, day.end_s),)
    assert day.open_s == 23 * 3600


def test_hours_past_midnight_belong_to_the_day_they_fall_in() -> None:
    calendar = Calendar("Europe/Stockholm", weekly([(1320, 1620)], *([[]] * 6)))  # Monday 22-03
    monday, tuesday = calendar.day(date(2026, 6, 1)), calendar.day(date(2026, 6, 2))
    assert monday.open_s == 2 * 3600
    assert tuesday.open_s == 3 * 3600
    assert calendar.open_between(monday.start_s, tuesday.end_s) == [
        (monday.start_s + 22 * 3600, monday.start_s + 27 * 3600)
    ]


def test_a_spring_gap_shortens_and_an_autumn_fold_lengthens_the_hours() -> None:
    calendar = Calendar("Europe/Stockholm", every_day(60, 300))  # 01-05
    assert calendar.day(date(2026, 3, 28)).open_s == 4 * 3600
    assert calendar.day(date(2026, 3, 29)).open_s == 3 * 3600
    assert calendar.day(date(2026, 10, 25)).open_s == 5 * 3600


def test_hours_are_those_of_the_clock_on_a_day_whose_midnight_is_skipped() -> None:
    for zone, day in (("Africa/Cairo", date(2026, 4, 24)), ("America/Havana", date(2026, 3, 8))):
        ((low, high),) = Calendar(zone, every_day(600, 1080)).day(day).open
        assert (local(zone, low).hour, local(zone, high).hour) == (10, 18)


def test_opening_within_the_repeated_hour_counts_in_both_passes() -> None:
    calendar = Calendar("Europe/Stockholm", every_day(135, 165))  # 02:15-02:45
    opened = calendar.day(date(2026, 10, 25)).open
    assert [high - low for low, high in opened] == [1800, 1800]
    assert opened[1][0] - opened[0][0] == 3600
    assert calendar.day(date(2026, 3, 29)).open == ()


def test_times_off_the_quarter_are_rounded_outward() -> None:
    day = Calendar("Europe/Stockholm", every_day(9 * 60 + 5, 18 * 60 + 5)).day(date(2026, 6, 1))
    assert day.open == ((day.start_s + 9 * 3600, day.start_s + 18 * 3600 + 900),)


@given(zones, dates, weeks, st.integers(0, 26), st.integers(1, 200))
def test_the_open_seconds_of_a_stretch_are_those_of_its_quarters(
    zone: str, day: date, week: list[list[Interval]], start: int, length: int
) -> None:
    calendar = Calendar(zone, weekly(*week))
    whole = calendar.day(day)
    stretches = [(whole.start_s, whole.end_s)]
    stretches += [(at, at + 900 * length) for at in (whole.start_s, whole.start_s + 3600 * start)]
    for start_s, end_s in stretches:
        opened = overlap(calendar.open_between(start_s, end_s), start_s, end_s)
        assert calendar.open_s(start_s, end_s, day=local(zone, start_s).date()) == opened


def test_an_exception_replaces_the_weekday_and_may_close_it() -> None:
    christmas, boxing = date(2026, 12, 25), date(2026, 12, 26)
    calendar = Calendar(
        "Europe/Stockholm",
        Opening(every_day(600, 1200).weekly, ((christmas, ()), (boxing, ((720, 960),)))),
    )
    assert calendar.day(christmas).open == ()
    assert calendar.day(boxing).open_s == 4 * 3600


def test_before_it_opened_and_after_it_closed_for_good_a_site_is_closed() -> None:
    rules = Opening(None, (), date(2026, 6, 1), date(2026, 6, 2))
    calendar = Calendar("Europe/Stockholm", rules)
    opened = [calendar.day(date(2026, 5, 31) + timedelta(days=n)).open_s for n in range(4)]
    assert opened == [0, 86_400, 86_400, 0]


def test_expected_seconds_are_those_assigned_and_in_scope_open_those_open() -> None:
    zone, day = "Europe/Stockholm", date(2026, 6, 1)
    calendar = Calendar(zone, every_day(600, 1200))
    start_s, end_s = day_start(zone, day), day_start(zone, day + timedelta(days=1))
    swap = [(start_s - 5, start_s + 11 * 3600), (start_s + 12 * 3600, 1 << 40)]

    def expected(assigned: list[Interval], scope: Scope) -> int:
        return expected_s(assigned, calendar, scope=scope, start_s=start_s, end_s=end_s)

    assert expected(EVER, Scope.ALL) == 86_400
    assert expected(EVER, Scope.OPEN) == 36_000
    assert expected(swap, Scope.ALL) == 23 * 3600
    assert expected(swap, Scope.OPEN) == 9 * 3600
    assert expected([], Scope.ALL) == 0


def test_coverage_is_a_share_and_nothing_expected_has_none() -> None:
    assert coverage(450, 900) == 0.5
    assert coverage(915, 900) == 1.0
    assert coverage(0, 900) == 0.0
    assert coverage(0, 0) is None


def test_missing_is_not_zero() -> None:
    assert not known(0, 0)
    assert known(0, 15)
    assert known(3, 0)


def test_a_bucket_is_open_then_complete_then_final() -> None:
    end_s = 1_000_000
    assert state(end_s, now_s=end_s - 1, accounted_s=1 << 40) is State.OPEN
    assert state(end_s, now_s=end_s + 5, accounted_s=end_s - 1) is State.OPEN
    assert state(end_s, now_s=end_s + 5, accounted_s=end_s) is State.COMPLETE
    assert state(end_s, now_s=end_s + FINAL_AFTER_S, accounted_s=0) is State.FINAL


def test_a_gap_says_why_a_device_is_not_waited_for() -> None:
    assert accounted_to(Assigned(0, 1_000, 400)) == 400
    assert accounted_to(Assigned(0, 1_000, 400, ((380, 700),))) == 700
    assert accounted_to(Assigned(0, 1_000, 400, ((500, 700),))) == 400
    assert accounted_to(Assigned(0, 1_000, 1_000)) > 1 << 30  # it was taken down, all is stored
    assert accounted_to(Assigned(100, 1_000, None)) == 100


def test_a_bucket_says_whether_it_is_opening_time() -> None:
    calendar = Calendar("Europe/Stockholm", every_day(600, 1200))
    start_s = day_start("Europe/Stockholm", date(2026, 6, 1))
    assert hours_of(calendar, start_s, start_s + 3600) is Hours.CLOSED
    assert hours_of(calendar, start_s + 36_000, start_s + 39_600) is Hours.OPEN
    assert hours_of(calendar, start_s, start_s + 86_400) is Hours.MIXED


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))))
def test_joined_intervals_cover_the_same_seconds_once(pairs: list[Interval]) -> None:
    covered = {at for low, high in pairs for at in range(low, high)}
    found = joined(pairs)
    assert sum(high - low for low, high in found) == len(covered) == overlap(found, -1, 99)


def test_the_calendars_of_however_many_sites_remember_so_many_days_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "_CALENDARS", OrderedDict())
    monkeypatch.setattr(places, "DAYS_MOST", 50)
    first = date(2026, 1, 1)

    def asked(number: int) -> Calendar:
        """Return the calendar of a site that has a holiday of its own, asked for 20 days."""
        found = places.calendar_of(ZONES[0], Opening(None, ((date(2026, 1, number), ()),)))
        for offset in range(20):
            found.day(first + timedelta(days=offset))
        return found

    one, two, three = asked(1), asked(2), asked(3)
    assert asked(1) is one
    places.forget_calendars()  # the second was asked for longest ago
    assert [asked(3), asked(1)] == [three, one]
    assert asked(3) is three
    assert asked(1) is one
    assert asked(2) is not two
    monkeypatch.setattr(places, "DAYS_MOST", 5)
    places.forget_calendars()
    assert asked(2).remembered == 20  # the last one asked for is remembered, however long it is
