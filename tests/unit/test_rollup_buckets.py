"""Buckets of a zone: contiguous, labelled, right on the days on which the clock moves."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rollup.buckets import Size, buckets, day_start, hour_edges, local

ZONES = (
    "Europe/Stockholm",
    "Europe/London",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "America/Santiago",  # its clock moves at midnight
    "UTC",
)
zones = st.sampled_from(ZONES)
dates = st.dates(date(2010, 1, 1), date(2035, 12, 31))


@settings(deadline=None)
@given(zones, st.sampled_from([*Size]), dates, st.integers(1, 3))
def test_buckets_are_contiguous_and_cover_the_range(
    zone: str, size: Size, since: date, length: int
) -> None:
    until = since + timedelta(days=length)
    found = buckets(zone, size, since=since, until=until)
    assert all(left.end_s == right.start_s for left, right in pairwise(found))
    assert found[0].start_s <= day_start(zone, since)
    assert found[-1].end_s >= day_start(zone, until)
    if not size.is_days or size is Size.DAY:
        assert (found[0].start_s, found[-1].end_s) == (
            day_start(zone, since),
            day_start(zone, until),
        )


@given(zones, dates)
def test_smaller_buckets_divide_larger_ones(zone: str, day: date) -> None:
    following = day + timedelta(days=1)
    edges = [
        {b.start_s for b in buckets(zone, size, since=day, until=following)}
        for size in (Size.MINUTE, Size.QUARTER, Size.HOUR, Size.DAY)
    ]
    assert edges[0] >= edges[1] >= edges[2] >= edges[3]


@given(zones, dates)
def test_a_day_holds_what_the_zone_shows_as_that_date(zone: str, day: date) -> None:
    (found,) = buckets(zone, Size.DAY, since=day, until=day + timedelta(days=1))
    for at in range(found.start_s, found.end_s, 900):
        assert local(zone, at).date() == day
    assert local(zone, found.start_s - 1).date() < day <= local(zone, found.end_s).date()
    assert (found.end_s - found.start_s) % 900 == 0


@given(zones, dates)
def test_every_moment_of_an_hour_has_its_label_and_fold(zone: str, day: date) -> None:
    for bucket in buckets(zone, Size.HOUR, since=day, until=day + timedelta(days=1)):
        shown = {
            (local(zone, at).hour, local(zone, at).fold)
            for at in range(bucket.start_s, bucket.end_s, 900)
        }
        assert len(shown) == 1
        assert shown.pop()[1] == bucket.fold
        assert datetime.fromisoformat(bucket.label).astimezone(UTC) == datetime.fromisoformat(
            bucket.start_utc
        )


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Stockholm", date(2026, 3, 29), 23),
        ("Europe/Stockholm", date(2026, 10, 25), 25),
        ("Europe/London", date(2026, 10, 25), 25),
        ("Europe/London", date(2026, 6, 1), 24),
        ("Asia/Kathmandu", date(2026, 3, 29), 24),
    ],
)
def test_a_day_has_23_to_25_hours(zone: str, day: date, hours: int) -> None:
    assert len(hour_edges(zone, day)) == hours
    (found,) = buckets(zone, Size.DAY, since=day, until=day + timedelta(days=1))
    assert found.end_s - found.start_s == hours * 3600


def test_the_repeated_hour_is_two_buckets_told_apart_by_fold() -> None:
    day = date(2026, 10, 25)
    found = buckets("Europe/Stockholm", Size.HOUR, since=day, until=day + timedelta(days=1))
    twice = [(b.label, b.fold) for b in found if "T02" in b.label]
    assert twice == [("2026-10-25T02:00+02:00", 0), ("2026-10-25T02:00+01:00", 1)]


def test_lord_howes_clock_moves_by_half_an_hour() -> None:
    spring, autumn = date(2026, 10, 4), date(2026, 4, 5)
    for day, seconds in ((spring, 84_600), (autumn, 88_200)):
        found = buckets("Australia/Lord_Howe", Size.HOUR, since=day, until=day + timedelta(days=1))
        assert sum(b.end_s - b.start_s for b in found) == seconds
        assert sorted({b.end_s - b.start_s for b in found}) == [1800, 3600]


def test_kathmandus_hours_begin_at_a_quarter_past_in_utc() -> None:
    found = buckets("Asia/Kathmandu", Size.HOUR, since=date(2026, 1, 1), until=date(2026, 1, 2))
    assert {b.start_s % 3600 for b in found} == {900}


def test_weeks_are_iso_weeks_from_monday() -> None:
    found = buckets("Europe/Stockholm", Size.WEEK, since=date(2026, 12, 31), until=date(2027, 1, 5))
    assert [b.label for b in found] == ["2026-W53", "2027-W01"]
    assert [b.start_day.weekday() for b in found] == [0, 0]


def test_months_are_whole_though_the_range_is_not() -> None:
    found = buckets("Europe/Stockholm", Size.MONTH, since=date(2026, 1, 15), until=date(2026, 3, 2))
    assert [b.label for b in found] == ["2026-01", "2026-02", "2026-03"]


def test_a_local_time_and_one_with_offset_mean_the_same_hour() -> None:
    naive = buckets(
        "Europe/Stockholm",
        Size.HOUR,
        since=datetime(2026, 6, 1, 10),  # noqa: DTZ001 a site's local time has none
        until=datetime(2026, 6, 1, 12),  # noqa: DTZ001
    )
    aware = buckets(
        "Europe/Stockholm",
        Size.HOUR,
        since=datetime(2026, 6, 1, 8, tzinfo=UTC),
        until=datetime(2026, 6, 1, 12, tzinfo=ZoneInfo("Europe/Stockholm")),
    )
    assert naive == aware
    assert [b.label[11:16] for b in naive] == ["10:00", "11:00"]
