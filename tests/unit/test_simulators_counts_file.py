"""Each rule for a counts file's quirks, on generated rows and on a published file."""

import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.counts_file import (
    CountsFile,
    CountsFileError,
    Policy,
    Quirk,
    QuirkKind,
    Row,
    after_gap,
    instants,
    interpret,
    parse_rows,
    read_date,
    read_rows,
)
from tests.leeds import Counts, counts_at_hand, stand_in

LONDON = ZoneInfo("Europe/London")
HEADER = "Date,Hour,LocationName,InCount"


def read(
    lines: Iterable[str], *, zone: str = "Europe/London", duplicates: Policy | None = None
) -> CountsFile:
    """Interpret CSV lines below the usual header, and hold the invariant."""
    found = interpret(parse_rows([HEADER, *lines]), zone=zone, duplicates=duplicates)
    place = {name: sum(r.people for r in readings) for name, readings in found.readings.items()}
    for name, total in place.items():
        assert total == sum(day.expected for (at, _), day in found.days.items() if at == name)
    for (name, day), record in found.days.items():
        zone_info = ZoneInfo(zone)
        assert record.expected == sum(
            r.people
            for r in found.readings[name]
            if datetime.fromtimestamp(r.start_s, zone_info).date() == day
        )
    return found


def utc(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp())  # type: ignore[misc,arg-type]


def kinds(found: CountsFile) -> list[QuirkKind]:
    return [quirk.kind for quirk in found.quirks]


def whole_day(day: str, *, place: str = "A", copies: int = 1) -> Iterator[str]:
    for hour in range(24):
        for _ in range(copies):
            yield f"{day},{hour},{place},{hour + 10}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2012-03-25", date(2012, 3, 25)),
        ("25/03/2012", date(2012, 3, 25)),
        ("05/04/2012", date(2012, 4, 5)),
        ("1/9/2012", date(2012, 9, 1)),
        ("1-Sep-12", date(2012, 9, 1)),
        ("25-Mar-2012", date(2012, 3, 25)),
        ("25-MAR-2012", date(2012, 3, 25)),
        ("03/25/2012", None),
        ("05/04/12", None),
        ("25-Mrz-2012", None),
        ("2012-02-30", None),
        ("25.03.2012", None),
        ("", None),
    ],
)
def test_three_date_formats_are_read_and_no_other(text: str, expected: date | None) -> None:
    assert read_date(text) == expected


def test_a_date_that_could_be_month_first_is_refused_where_another_row_must_be() -> None:
    found = read(["13/05/2012,1,A,1", "05/04/2012,1,A,2", "05/13/2012,1,A,4", "05/05/2012,1,A,8"])
    assert [r.people for r in found.readings["A"]] == [8, 1]
    refused = [q for q in found.quirks if q.date is None]
    assert {(q.kind, q.count) for q in refused} == {
        (QuirkKind.AMBIGUOUS_DATE, 2),
        (QuirkKind.BAD_DATE, 4),
    }


def test_bad_rows_are_listed_and_left_out() -> None:
    found = read(
        [
            "2012-05-01,1,A,7",
            "2012-05-01,2,A,-3",
            "2012-05-01,3,A,many",
            "2012-05-01,24,A,5",
            "2012-05-01,x,A,6",
            "2012-05-01,4,A,32768",
            "2012-05-01,5,A,32767",
            "2012-05-01,6,,9",
            "2012-05-01,7,A",
            "soon,8,A,11",
        ]
    )
    assert [r.people for r in found.readings["A"]] == [7, 32_767]
    day = found.days["A", date(2012, 5, 1)]
    assert (day.file_total, day.excluded) == (
        7 - 3 + 5 + 6 + 32_768 + 32_767,
        -3 + 5 + 6 + 32_768,
    )
    assert Counter(kinds(found)) == {
        QuirkKind.BAD_COUNT: 4,
        QuirkKind.BAD_HOUR: 2,
        QuirkKind.NO_PLACE: 1,
        QuirkKind.BAD_DATE: 1,
        QuirkKind.MISSING: 1,
    }
    assert all(f"row {n} " in " ".join(q.action for q in found.quirks) for n in (3, 4, 5, 6, 7))


def test_identical_duplicate_rows_count_once() -> None:
    found = read(["2012-05-01,1,A,7", "2012-05-01,1,A,7", "2012-05-01,2,A,1"])
    assert [r.people for r in found.readings["A"]] == [7, 1]
    assert found.days["A", date(2012, 5, 1)].excluded == 7
    assert kinds(found) == [QuirkKind.DUPLICATE]
    assert found.stopped == ()


def test_differing_duplicates_stop_their_day_and_no_other() -> None:
    lines = ["2012-05-01,1,A,7", "2012-05-01,1,A,8", "2012-05-01,2,A,1", "2012-05-02,1,A,5"]
    found = read([*lines, "2012-05-01,1,B,4"])
    assert [r.people for r in found.readings["A"]] == [5]
    assert [r.people for r in found.readings["B"]] == [4]
    day = found.days["A", date(2012, 5, 1)]
    assert (day.file_total, day.excluded, day.readings) == (16, 16, 0)
    assert found.stopped == (("A", date(2012, 5, 1)),)


@pytest.mark.parametrize(("policy", "taken"), [("first", 7), ("last", 9), ("sum", 24)])
def test_a_policy_says_what_differing_duplicates_mean(policy: Policy, taken: int) -> None:
    lines = ["2012-05-01,1,A,7", "2012-05-01,1,A,8", "2012-05-01,1,A,9"]
    found = read(lines, duplicates=policy)
    assert [r.people for r in found.readings["A"]] == [taken]
    assert found.days["A", date(2012, 5, 1)].excluded == 24 - taken
    assert found.stopped == ()


def test_a_sum_above_the_largest_reading_still_stops_its_day() -> None:
    found = read(["2012-05-01,1,A,20000", "2012-05-01,1,A,20001"], duplicates="sum")
    assert found.readings["A"] == []
    assert found.stopped


def test_an_hour_that_did_not_exist_goes_to_the_first_instant_after_the_gap() -> None:
    found = read(["25/03/2012,0,A,1", "25/03/2012,1,A,1102", "25/03/2012,2,A,10"])
    assert found.readings["A"] == [(utc(2012, 3, 25, 0), 1), (utc(2012, 3, 25, 1), 1_112)]
    (quirk,) = found.quirks
    assert (quirk.kind, quirk.hour, quirk.count) == (QuirkKind.NO_SUCH_HOUR, 1, 1_102)
    assert "added to 2012-03-25 02:00" in quirk.action


def test_an_hour_that_did_not_exist_stands_alone_where_the_next_is_missing() -> None:
    found = read(["25/03/2012,1,A,5"])
    assert found.readings["A"] == [(utc(2012, 3, 25, 1), 5)]


def test_a_gap_before_midnight_moves_people_to_the_next_day_and_says_so() -> None:
    lines = ["2024-03-30,22,A,4", "2024-03-30,23,A,6", "2024-03-31,0,A,1"]
    found = read(lines, zone="America/Nuuk")  # its clocks go from 23:00 to 00:00
    before, after = (found.days["A", date(2024, 3, day)] for day in (30, 31))
    assert (before.file_total, before.excluded, before.expected) == (10, 6, 4)
    assert (after.file_total, after.excluded, after.expected) == (1, -6, 7)


def test_a_repeated_hour_with_one_row_stands_at_its_first_pass() -> None:
    found = read(["31/10/2010,0,A,1", "31/10/2010,1,A,2143", "31/10/2010,2,A,3"])
    assert found.readings["A"] == [
        (utc(2010, 10, 30, 23), 1),
        (utc(2010, 10, 31, 0), 2_143),
        (utc(2010, 10, 31, 2), 3),
    ]
    (quirk,) = found.quirks
    assert (quirk.kind, quirk.hour) == (QuirkKind.ONE_OF_TWO, 1)
    assert "0.5" in quirk.action


def test_a_repeated_hour_with_two_rows_has_both_passes_even_if_they_are_equal() -> None:
    for first, second in ((20, 22), (20, 20)):
        lines = ["31/10/2010,0,A,1", f"31/10/2010,1,A,{first}", f"31/10/2010,1,A,{second}"]
        found = read([*lines, "31/10/2010,2,A,3"])
        assert found.readings["A"] == [
            (utc(2010, 10, 30, 23), 1),
            (utc(2010, 10, 31, 0), first),
            (utc(2010, 10, 31, 1), second),
            (utc(2010, 10, 31, 2), 3),
        ]
        assert kinds(found) == [QuirkKind.BOTH_OF_TWO]


def test_on_a_doubled_day_the_repeated_hour_is_a_duplicate_before_it_is_two_passes() -> None:
    found = read(whole_day("31/10/2010", copies=2))
    assert found.days["A", date(2010, 10, 31)].expected == sum(range(10, 34))
    assert Counter(kinds(found)) == {QuirkKind.DUPLICATE: 24, QuirkKind.ONE_OF_TWO: 1}
    lines = [*whole_day("31/10/2010", copies=2), "31/10/2010,1,A,50", "31/10/2010,1,A,50"]
    found = read(lines)
    assert found.days["A", date(2010, 10, 31)].expected == sum(range(10, 34)) + 50


def test_a_missing_hour_is_missing_and_not_zero() -> None:
    lines = [line for line in whole_day("2012-05-01") if ",7," not in line and ",8," not in line]
    found = read([*lines, "2012-05-03,5,A,0"])
    assert found.days["A", date(2012, 5, 1)].readings == 22
    assert ("A", date(2012, 5, 2)) not in found.days
    missing = {q.date: q.count for q in found.quirks}
    assert missing == {date(2012, 5, 1): 2, date(2012, 5, 2): 24, date(2012, 5, 3): 5}
    assert found.days["A", date(2012, 5, 3)].readings == 1


def test_a_place_that_begins_late_is_said() -> None:
    found = read(["2012-05-01,0,A,1", "2012-05-04,9,B,1"])
    (quirk,) = found.quirks
    assert (quirk.location, quirk.kind) == ("B", QuirkKind.BEGINS_LATE)


def test_a_zone_whose_hours_are_not_those_of_utc_is_refused() -> None:
    with pytest.raises(CountsFileError, match="Asia/Kolkata"):
        read(["2012-05-01,0,A,1"], zone="Asia/Kolkata")


def test_columns_are_found_by_name_and_a_missing_one_is_named() -> None:
    header = "Date,Hour,Sitename,LocationName,InCount,OutCount"
    rows = list(parse_rows([header, '2016-07-01,0,Leeds,"Dortmund Square\t",60,0', ""]))
    assert rows == [Row(2, "2016-07-01", "0", "Dortmund Square", "60")]
    with pytest.raises(CountsFileError, match="InCount"):
        list(parse_rows(["Date,Hour,LocationName"]))
    with pytest.raises(CountsFileError):
        list(parse_rows([]))


def test_only_the_days_asked_for_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv.gz"
    lines = [HEADER, *whole_day("2012-05-01"), *whole_day("2012-05-02"), *whole_day("2012-05-03")]
    path.write_bytes(gzip.compress("\r\n".join(lines).encode()))
    day = date(2012, 5, 2)
    found = interpret(read_rows(path), zone="Europe/London", between=(day, day))
    assert set(found.days) == {("A", day)}
    assert found.rows == 72


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(
        ["Europe/London", "America/New_York", "America/Nuuk", "Asia/Beirut", "America/Santiago"]
    ),
    day=st.dates(date(2009, 1, 1), date(2025, 12, 31)),
    hour=st.integers(0, 23),
)
def test_every_local_hour_is_placed_once_twice_or_after_its_gap(
    zone: str, day: date, hour: int
) -> None:
    info = ZoneInfo(zone)
    found = instants(day, hour, info)
    assert len(found) <= 2
    for second in found:
        local = datetime.fromtimestamp(second, info)
        assert (local.date(), local.hour, local.minute) == (day, hour, 0)
    if not found:
        second = after_gap(day, hour, info)
        offsets = [datetime.fromtimestamp(second - ago, info).utcoffset() for ago in (0, 1)]
        assert offsets[0] is not None
        assert offsets[1] is not None
        assert offsets[0] > offsets[1]


rows = st.lists(
    st.tuples(
        st.sampled_from(["2012-03-25", "25/03/2012", "28-Oct-12", "2012-10-29", "31/10/2010", "?"]),
        st.integers(-1, 25),
        st.sampled_from(["A", "B", ""]),
        st.one_of(st.integers(-5, 40_000), st.just("n/a")),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(rows=rows, policy=st.sampled_from([None, "first", "last", "sum"]))
def test_for_any_rows_what_is_served_is_the_file_less_what_a_quirk_names(
    rows: list[tuple[str, int, str, int | str]], policy: Policy | None
) -> None:
    found = read(
        [",".join(map(str, row)) for row in rows], duplicates=policy
    )  # holds the invariant
    named = {(quirk.location, quirk.date) for quirk in found.quirks}
    for key, day in found.days.items():
        assert day.excluded == 0 or key in named
    for readings in found.readings.values():
        starts = [reading.start_s for reading in readings]
        assert starts == sorted(set(starts))
        assert all(0 <= reading.people <= 32_767 for reading in readings)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(counts_at_hand, marks=pytest.mark.long),
        lambda folder: stand_in(folder / "a.csv"),
    ],
)
def test_a_published_file_is_read_with_its_known_quirks(
    tmp_path: Path, given: Callable[[Path], Counts]
) -> None:
    known = given(tmp_path)
    found = interpret(read_rows(known.path), zone="Europe/London")
    assert found.rows == known.rows
    assert sum(q.count for q in found.quirks if q.kind is QuirkKind.MISSING) == known.missing_hours
    moved = {
        (q.location, q.date): q.count for q in found.quirks if q.kind is QuirkKind.NO_SUCH_HOUR
    }
    assert known.in_no_hour.items() <= moved.items()
    assert Counter(kinds(found)) == known.quirks
    late: Quirk = next(q for q in found.quirks if q.kind is QuirkKind.BEGINS_LATE)
    assert (late.location, late.date) == known.late
    assert all(day.excluded == 0 for day in found.days.values())
    assert sum(day.expected for day in found.days.values()) == known.people
