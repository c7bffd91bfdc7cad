"""From sums to rows: the quick ways of many sites say what the plain rules say of each bucket."""

from collections import defaultdict
from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rollup.answer import TooFineError
from server.rollup.buckets import Bucket, Size, buckets
from server.rollup.opening import Calendar, Opening
from server.rollup.patches import Entity
from server.rollup.places import Site
from server.rollup.quality import Hours, Scope, State, coverage, known
from server.rollup.query import collect
from server.rollup.rows import ORIGINS, Expectation, fold, people
from server.rollup.sums import Column, Sum, marks_of, row_key

FIRST = date(2025, 3, 29)  # a day before the clock moves
NOTHING = (0, 0, 0, 0)

sizes = st.sampled_from([Size.HOUR, Size.DAY, Size.WEEK, Size.MONTH])
marks = st.builds(marks_of, st.integers(0, 9), st.sampled_from([15, 60]), st.integers(0, 1))
people_e4 = st.integers(0, 5) | st.integers(0, 10**6).map(lambda n: n * 10_000) | st.integers(0)
sums = st.tuples(people_e4, people_e4, st.integers(0, 90_000), marks)


def entity(ref: str, size: Size, *, zone: str = "Europe/Stockholm", days: int = 3) -> Entity:
    site = Site(1, ref, ref, zone, "SEK", Calendar(zone, Opening()))
    grid = buckets(zone, size, since=FIRST, until=FIRST + timedelta(days=days))
    return Entity(ref, site, None, (), grid)


def key_of(size: Size, bucket: Bucket) -> int:
    return row_key(size, bucket.start_day) if size.is_days else bucket.start_s


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 4), st.data())
def test_what_is_added_to_a_bucket_from_anywhere_is_its_sum(
    size: Size, columns: int, data: st.DataObject
) -> None:
    entities = [entity("a", size), entity("b", size), entity("c", size, zone="Asia/Kathmandu")]
    told: list[Column] = []
    expected: dict[tuple[int, int], list[Sum]] = defaultdict(list)
    for number in data.draw(st.lists(st.integers(0, 2), min_size=columns, max_size=columns)):
        every = [key_of(size, bucket) for bucket in entities[number].grid]
        beyond = [min(every) - 3600, max(every) + 3600]
        keys = data.draw(st.lists(st.sampled_from([*every, *beyond]), unique=True, max_size=8))
        values = [data.draw(sums) for _ in keys]
        told.append(Column(number, keys, *([v[at] for v in values] for at in range(4))))
        for key, value in zip(keys, values, strict=True):
            expected[number, key].append(value)
    for number, cells in enumerate(collect(size, entities, told)):
        for bucket, cell in zip(entities[number].grid, cells, strict=True):
            parts = expected[number, key_of(size, bucket)]
            assert (cell is None) == (not parts)
            if cell is not None:
                assert cell[:3] == tuple(sum(part[at] for part in parts) for at in range(3))
                assert cell[3] == marks_of(
                    sum(part[3] >> 16 for part in parts),
                    max(part[3] >> 4 & 0xFFF for part in parts),
                    max(part[3] & 0xF for part in parts),
                )


def test_a_reading_that_reaches_out_of_an_hour_refuses_it() -> None:
    asked = entity("a", Size.HOUR)
    at = asked.grid[0].start_s
    column = Column(0, [at], [0], [0], [900], [marks_of(0, 2700, 0)])
    with pytest.raises(TooFineError):
        list(collect(Size.HOUR, [asked], [column]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | sums, min_size=3, max_size=3), st.sampled_from(Scope), st.data())
def test_a_row_says_of_its_sum_what_the_rules_say(
    cells: list[Sum | None], scope: Scope, data: st.DataObject
) -> None:
    expected = data.draw(st.lists(st.integers(0, 90_000), min_size=3, max_size=3))
    hours = data.draw(st.lists(st.sampled_from(Hours), min_size=3, max_size=3))
    placed = data.draw(st.dictionaries(st.integers(0, 2), st.tuples(people_e4, people_e4)))
    asked = entity("a", Size.DAY)
    worth = Expectation(expected, hours, [State.COMPLETE] * 3, scope)
    rows = fold(asked, cells, worth, placed=placed)
    for at, (row, cell) in enumerate(zip(rows, cells, strict=True)):
        if cell is None or (scope is Scope.OPEN and hours[at] is Hours.CLOSED):
            cell = NOTHING
        entered, left, observed, told = cell
        counted = known(entered + left, observed)
        assert (row.visits, row.exits) == (
            (people(entered), people(left)) if counted else (None, None)
        )
        assert row.coverage == coverage(observed, expected[at])
        assert (row.unplaced_visits, row.unplaced_exits) == tuple(
            map(people, placed.get(at, (0, 0)))
        )
        assert (row.revision, row.origin) == (
            told >> 16,
            ORIGINS[told & 0xF] if counted else None,
        )
        assert (row.site, row.start, row.until) == ("a", *_edges(asked.grid[at]))


def _edges(bucket: Bucket) -> tuple[str, str]:
    return bucket.start_utc, bucket.end_utc
