"""Episodes open, hold and resolve as a reference says that walks through every second."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.health.episodes import (
    NEW,
    Acknowledgement,
    Happened,
    Happening,
    Pace,
    Sight,
    Track,
    acknowledged,
    due,
    judged,
    over,
    ticked,
)
from server.health.judgement import Standing

START = datetime(2026, 4, 2, 9, 0, tzinfo=UTC)
FIRING, CLEAR, UNKNOWN = Standing.FIRING, Standing.CLEAR, Standing.UNKNOWN


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


@dataclass
class Reference:
    """The same, by walking through every second with a counter of seconds that were known."""

    opens: int
    clears: int
    times: int
    window: int
    quiet: int
    standing: Standing = UNKNOWN
    lasted: int = 0
    open: bool = False
    held: bool = False
    was_clear: bool = True
    fired: list[int] = field(default_factory=list)
    log: list[tuple[Happening, int]] = field(default_factory=list)

    def second(self, now: int, judgements: list[Standing]) -> None:
        self.settle(now)
        for standing in judgements:
            if standing is not self.standing:
                self.standing, self.lasted = standing, 0
                if standing is CLEAR:
                    self.was_clear = True
                if standing is FIRING and self.open and self.was_clear:
                    self.fire(now, Happening.AGAIN)
                if standing is FIRING and self.open:
                    self.was_clear = False
            self.settle(now)
        self.lasted += 1

    def settle(self, now: int) -> None:
        if self.standing is FIRING and not self.open and self.lasted >= self.opens:
            self.open, self.was_clear = True, False
            self.fire(now, Happening.OPENED)
        wait = max(self.clears, self.quiet) if self.held else self.clears
        if self.standing is CLEAR and self.open and self.lasted >= wait:
            self.open = self.held = False
            self.log.append((Happening.RESOLVED, now))

    def fire(self, now: int, what: Happening) -> None:
        self.fired.append(now)
        self.log.append((what, now))
        if not self.held and sum(each > now - self.window for each in self.fired) >= self.times:
            self.held = True
            self.log.append((Happening.HELD, now))


seconds = st.integers(0, 12)
paces = st.tuples(
    st.integers(0, 4), st.integers(0, 4), st.integers(2, 4), st.integers(1, 20), st.integers(0, 8)
)
judgements = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([FIRING, CLEAR, UNKNOWN])), max_size=25
)


def pace_of(numbers: tuple[int, int, int, int, int]) -> Pace:
    opens, clears, times, window, quiet = numbers
    return Pace(
        *(timedelta(seconds=opens), timedelta(seconds=clears), times),
        *(timedelta(seconds=window), timedelta(seconds=quiet)),
    )


@given(paces, judgements, st.sets(st.integers(0, 60)))
def test_an_episode_is_what_walking_through_every_second_makes_of_the_judgements(
    numbers: tuple[int, int, int, int, int],
    told: list[tuple[int, Standing]],
    looks: set[int],
) -> None:
    """Whenever time was asked in between, and with equal times and repeats among the judgements."""
    told = sorted(told, key=lambda each: each[0])
    reference, pace, track = Reference(*numbers), pace_of(numbers), NEW
    happened: list[Happened] = []
    for now in range(61):
        here = [standing for second, standing in told if second == now]
        reference.second(now, here)
        if now in looks:
            track, more = ticked(track, now=at(now), pace=pace)
            happened += more
        for standing in here:
            track, more = judged(track, standing, since=at(now), now=at(now), pace=pace)
            happened += more
    track, more = ticked(track, now=at(60), pace=pace)
    happened += more
    assert [(each.what, int((each.at - START).total_seconds())) for each in happened] == (
        reference.log
    )
    assert (track.opened_at is not None, track.held) == (reference.open, reference.held)


@given(paces, judgements)
def test_what_is_judged_twice_is_judged_once_and_what_is_of_before_is_passed_over(
    numbers: tuple[int, int, int, int, int], told: list[tuple[int, Standing]]
) -> None:
    pace = pace_of(numbers)
    once = twice = NEW
    for second, standing in sorted(told, key=lambda each: each[0]):
        once, _ = judged(once, standing, since=at(second), now=at(second), pace=pace)
        for _ in range(2):
            twice, _ = judged(twice, standing, since=at(second), now=at(second), pace=pace)
        assert once == twice
        late, happened = judged(
            once, CLEAR, since=at(0), now=at(second) - timedelta(microseconds=1), pace=pace
        )
        assert (late, happened) == (once, ())


@given(paces, judgements, st.lists(st.just(UNKNOWN), max_size=5))
def test_unknown_opens_and_resolves_nothing(
    numbers: tuple[int, int, int, int, int],
    told: list[tuple[int, Standing]],
    more: list[Standing],
) -> None:
    pace, track = pace_of(numbers), NEW
    for second, standing in sorted(told, key=lambda each: each[0]):
        track, _ = judged(track, standing, since=at(second), now=at(second), pace=pace)
    track, _ = judged(track, UNKNOWN, since=at(41), now=at(41), pace=pace)
    was = track.opened_at
    for number, standing in enumerate(more):
        track, happened = judged(track, standing, since=at(0), now=at(42 + 100 * number), pace=pace)
        assert (track.opened_at, happened) == (was, ())
    assert ticked(track, now=at(9_999), pace=pace) == (track, ())
    assert due(replace(track, fired=()), pace) is None


@given(paces, judgements)
def test_a_deadline_is_when_something_happens_and_not_before(
    numbers: tuple[int, int, int, int, int], told: list[tuple[int, Standing]]
) -> None:
    pace, track = pace_of(numbers), NEW
    for second, standing in sorted(told, key=lambda each: each[0]):
        track, _ = judged(track, standing, since=at(second), now=at(second), pace=pace)
        when = due(track, pace)
        if when is None:
            continue
        early, happened = ticked(track, now=when - timedelta(microseconds=1), pace=pace)
        assert (early, happened) == (track, ())
        _, happened = ticked(track, now=when, pace=pace)
        assert happened or over(track, pace, now=when) or track.standing is FIRING


def test_a_standing_has_not_begun_before_it_was_known_to_be_another() -> None:
    pace = Pace(opens_after=timedelta(seconds=60))
    track, _ = judged(NEW, CLEAR, since=at(0), now=at(100), pace=pace)
    track, happened = judged(track, FIRING, since=at(10), now=at(130), pace=pace)
    assert (track.from_at, happened) == (at(100), ())
    assert due(track, pace) == at(160)
    never_known, happened = judged(NEW, FIRING, since=at(10), now=at(130), pace=pace)
    assert (never_known.opened_at, never_known.since) == (at(130), at(10))


def test_time_in_which_nobody_could_tell_counts_for_nothing() -> None:
    pace = Pace(opens_after=timedelta(seconds=60), clears_after=timedelta(seconds=60))
    pending, _ = judged(NEW, FIRING, since=at(0), now=at(0), pace=pace)
    blind = Sight(clear=False)
    assert ticked(pending, now=at(500), pace=pace, sight=blind) == (pending, ())
    seeing = Sight(known_from=at(500))
    assert due(pending, pace, seeing) == at(560)
    opened, happened = ticked(pending, now=at(560), pace=pace, sight=seeing)
    assert happened == (Happened(Happening.OPENED, at(560)),)
    clearing, _ = judged(opened, CLEAR, since=at(570), now=at(570), pace=pace, sight=seeing)
    assert due(clearing, pace, Sight(known_from=at(600))) == at(660)


def test_what_is_acknowledged_is_so_until_it_is_due_or_resolves_and_what_comes_after_is_not() -> (
    None
):
    pace = Pace()
    with pytest.raises(ValueError, match="nothing is open"):
        acknowledged(NEW, Acknowledgement("Ada", at(0)))
    opened, _ = judged(NEW, FIRING, since=at(0), now=at(0), pace=pace)
    seen_to = acknowledged(opened, Acknowledgement("Ada", at(1), until=at(50)))
    assert due(seen_to, pace) == at(50)
    later, happened = ticked(seen_to, now=at(50), pace=pace)
    assert (later.acknowledged, happened) == (None, (Happened(Happening.REARMED, at(50)),))
    resolved, _ = judged(seen_to, CLEAR, since=at(20), now=at(20), pace=pace)
    again, _ = judged(resolved, FIRING, since=at(30), now=at(30), pace=pace)
    assert (resolved.acknowledged, again.opened_at, again.acknowledged) == (None, at(30), None)


def test_what_flaps_is_one_episode_with_a_counter_until_it_is_quiet() -> None:
    pace = Pace(flap_times=3, flap_window=timedelta(600), flap_quiet=timedelta(seconds=300))
    track: Track = NEW
    log: list[Happening] = []
    for number in range(10):
        for standing, second in ((FIRING, 20 * number), (CLEAR, 20 * number + 10)):
            track, happened = judged(track, standing, since=at(second), now=at(second), pace=pace)
            log += [each.what for each in happened]
    opened, resolved = Happening.OPENED, Happening.RESOLVED
    assert log[:5] == [opened, resolved, opened, resolved, opened]
    assert (track.held, track.times) == (True, 8)
    assert log[5:] == [Happening.HELD, *([Happening.AGAIN] * 7)]
    assert due(track, pace) == at(490)
    track, happened = ticked(track, now=at(490), pace=pace)
    assert [each.what for each in happened] == [resolved]
