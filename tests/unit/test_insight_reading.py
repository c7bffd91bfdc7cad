"""What is read of a site goes into the buckets of its clock, each thing into one."""

from datetime import date

from hypothesis import given, settings
from hypothesis import strategies as st

from server.insight.cells import Cell, Read
from server.insight.drift import Account, Inside, Kind
from server.insight.formulas import Inputs
from server.insight.occupancy import Occupancy
from server.insight.reading import _fill_stays
from server.rollup.buckets import QUARTER_S, Size, buckets
from server.rollup.opening import Opening
from server.rollup.places import Site, calendar_of
from server.rollup.quality import State

SITE = Site(1, "s", "S", "Europe/Stockholm", "SEK", calendar_of("Europe/Stockholm", Opening(None)))
GRID = buckets(SITE.time_zone, Size.DAY, since=date(2026, 3, 28), until=date(2026, 3, 30))
FIRST, QUARTERS = GRID[0].start_s, (GRID[-1].end_s - GRID[0].start_s) // QUARTER_S

people = st.lists(st.none() | st.integers(0, 50), min_size=QUARTERS + 8, max_size=QUARTERS + 8)
turns = st.lists(
    st.tuples(st.integers(-4, QUARTERS + 4), st.none() | st.floats(0, 9_000)), max_size=9
)


@settings(max_examples=25)
@given(people, turns)
def test_each_quarter_and_each_turn_is_in_the_day_that_it_ends_in(
    counts: list[int | None], ends: list[tuple[int, float | None]]
) -> None:
    inside = tuple(
        Inside(FIRST + (n - 3) * QUARTER_S, count, count, None, None, Kind.LIVE)
        for n, count in enumerate(counts)
    )
    accounts = tuple(
        Account(0, FIRST + n * QUARTER_S, 7, 7, True, True, 0.0, dwell)
        for n, dwell in sorted(ends, key=lambda end: end[0])
    )
    cells = [Cell(Inputs(), State.FINAL) for _ in GRID]
    read = Read(SITE, GRID, cells, (GRID[0].start_s, GRID[-1].end_s))
    _fill_stays({1: read}, {1: Occupancy(SITE, inside, accounts)})
    for bucket, cell in zip(GRID, cells, strict=True):
        known = [
            each.people
            for each in inside
            if bucket.start_s < each.at_s <= bucket.end_s and each.people is not None
        ]
        stays = [
            turn.dwell_s * turn.entered
            for turn in accounts
            if bucket.start_s < turn.end_s <= bucket.end_s and turn.dwell_s is not None
        ]
        assert cell.inputs.inside_of_s == QUARTER_S * len(known)
        assert cell.inputs.inside_s == (QUARTER_S * sum(known) if known else None)
        assert cell.inputs.stayed_s == (sum(stays) if stays else None)
        assert cell.inputs.stayers == (7 * len(stays) if stays else None)
