"""What buckets should hold: worked out for many sites at once, as it is for each bucket alone."""

from datetime import date, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from server.rollup.buckets import Size, buckets, day_start
from server.rollup.opening import Calendar, Interval, Opening, joined
from server.rollup.patches import Entity
from server.rollup.places import History, Site, Spot
from server.rollup.quality import SLOT_S, Scope, expected_s, hours_of, state
from server.rollup.rows import Worth

ZONES = ("Europe/Stockholm", "Australia/Lord_Howe", "Asia/Kathmandu")
DAY = 86_400
MOST = 5

zones = st.sampled_from(ZONES)
sizes = st.sampled_from([Size.HOUR, Size.DAY, Size.WEEK, Size.MONTH])
first_days = st.dates(date(2025, 3, 20), date(2025, 4, 8)) | st.dates(  # both changes of the clock
    date(2025, 9, 25), date(2025, 11, 5)
)
instants = st.integers(-3 * DAY, (MOST + 3) * DAY)


@st.composite
def openings(draw: st.DrawFn) -> Opening:
    if draw(st.booleans()):
        return Opening()
    hours = st.integers(0, 1439).flatmap(
        lambda low: st.tuples(st.just(low), st.integers(low + 1, low + 1440))
    )
    week = [tuple(draw(st.lists(hours, max_size=2))) for _ in range(7)]
    return Opening(tuple(week))


@st.composite
def stays(draw: st.DrawFn) -> tuple[Interval, ...]:
    edges = sorted(draw(st.lists(instants, max_size=4)))
    return joined(zip(edges[::2], edges[1::2], strict=False))


@settings(max_examples=60, deadline=None)
@given(
    *(zones, sizes, first_days, st.integers(1, MOST), openings(), st.sampled_from(Scope), instants),
    st.lists(st.tuples(st.none() | stays(), instants), max_size=3),
)
def test_what_a_site_should_hold_is_what_each_of_its_spots_should(
    zone: str,
    size: Size,
    first: date,
    days: int,
    opening: Opening,
    scope: Scope,
    now: int,
    spots: list[tuple[tuple[Interval, ...] | None, int]],
) -> None:
    began_s = day_start(zone, first)
    grid = buckets(zone, size, since=first, until=first + timedelta(days=days))
    site = Site(1, "site", "Site", zone, "SEK", Calendar(zone, opening))
    own = tuple(Spot(n, f"spot-{n}", "Door", "counter", site) for n in range(len(spots)))
    histories = [
        History(
            ((-(1 << 40), 1 << 40),)
            if stood is None
            else tuple((low + began_s, high + began_s) for low, high in stood),
            accounted + began_s,
        )
        for stood, accounted in spots
    ]
    now_s = began_s + now
    calendar = Calendar(zone, opening)
    worth = Worth(scope=scope, now_s=now_s)
    cut: dict[int, tuple[()]] = {spot.id: () for spot in own}
    for _ in range(2):  # worked out, and as it is remembered
        found = worth.of(Entity("site", site, None, own, grid), histories, cut=cut)
        assert list(found.hours) == [hours_of(calendar, b.start_s, b.end_s) for b in grid]
        assert list(found.expected_s) == [
            sum(
                expected_s(
                    each.assigned,
                    calendar,
                    scope=scope,
                    start_s=b.start_s,
                    end_s=max(b.start_s, min(b.end_s, now_s // SLOT_S * SLOT_S)),
                )
                for each in histories
            )
            for b in grid
        ]
        accounted_s = min([now_s, *(each.accounted_s for each in histories)])
        assert list(found.states) == [
            state(b.end_s, now_s=now_s, accounted_s=accounted_s) for b in grid
        ]
