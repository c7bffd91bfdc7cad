"""Stability: crash-free hours and connected time, against a count of every minute."""

import random
from datetime import UTC, datetime, timedelta

from server.health.stability import Event, Life, Stability, stability

START = datetime(2026, 3, 2, tzinfo=UTC)
DAY = START + timedelta(days=1)
MINUTES = 24 * 60


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def of(*events: Event, unknown: tuple[tuple[float, float], ...] = ()) -> Stability:
    (found,) = stability(
        [Life("M1", events)],
        since=START,
        until=DAY,
        unknown=[(at(low), at(high)) for low, high in unknown],
    )
    return found


def test_a_device_that_was_there_all_day_is_connected_and_crash_free() -> None:
    found = of(Event(at(-5), "connected", agent="vestibule 1"))
    assert found == Stability("M1", "vestibule 1", 1, 24.0, 24.0, 0, 24, 24)
    assert (found.connected, found.crash_free) == (1.0, 1.0)


def test_what_is_lost_is_expected_and_what_said_goodbye_is_not() -> None:
    lost = of(Event(at(-1), "connected"), Event(at(6), "lost"), Event(at(12), "connected"))
    assert (lost.expected_h, lost.connected_h, lost.hours) == (24.0, 18.0, 18)
    left = of(
        Event(at(-1), "connected"),
        Event(at(6), "goodbye", "update", at(8)),
        Event(at(12), "connected"),
    )
    believed = 2 + 2 / 60
    assert round(left.expected_h, 6) == round(24 - believed, 6)
    assert left.connected_h == 18.0


def test_a_day_without_a_word_after_a_goodbye_is_planned_and_no_longer() -> None:
    found = of(Event(at(-48), "connected"), Event(at(-18), "goodbye"))
    assert (found.expected_h, found.connected_h) == (18.0, 0.0)  # believed until six in the morning


def test_stretches_in_which_nobody_could_tell_count_for_nobody() -> None:
    found = of(Event(at(-1), "connected"), Event(at(6), "lost"), unknown=((4, 8), (20, 30)))
    assert (found.expected_h, found.connected_h) == (16.0, 4.0)


def test_an_hour_with_a_crash_is_not_crash_free() -> None:
    found = of(
        Event(at(-1), "connected", agent="v1"),
        Event(at(5.5), "lost", "failed"),
        Event(at(5.6), "connected", agent="v1"),
        Event(at(9.25), "lost"),
        Event(at(9.5), "connected", agent="v1"),
        Event(at(9.5), "crash"),
    )
    assert (found.crashes, found.hours, found.crash_free_hours) == (2, 24, 22)


def test_each_version_has_its_own_hours() -> None:
    found = stability(
        [
            Life("M1", (Event(at(-1), "connected", agent="v1"), Event(at(6), "lost"),
                        Event(at(6), "connected", agent="v2"))),
            Life("M1", (Event(at(12), "connected", agent="v2"),)),
            Life("M2", (Event(at(0), "connected", agent="v1"),)),
        ],
        since=START,
        until=DAY,
    )  # fmt: skip
    told = [(s.model, s.agent, s.devices, s.expected_h, s.connected_h) for s in found]
    assert told == [("M1", "v1", 1, 6, 6), ("M1", "v2", 2, 30, 30), ("M2", "v1", 1, 24, 24)]


def test_nobody_has_a_share_of_nothing() -> None:
    assert stability([Life("M1", ())], since=START, until=DAY) == []
    empty = Stability("M1", "", 1, 0.0, 0.0, 0, 0, 0)
    assert (empty.connected, empty.crash_free) == (None, None)


def test_every_minute_of_random_lives_is_counted_once() -> None:
    moments = [at(now / 60) for now in range(MINUTES)]
    for seed in range(300):
        rng = random.Random(seed)
        minute, events = -60 * rng.randint(0, 40), list[Event]()
        while minute < MINUTES + 100 and len(events) < 12:
            kind = rng.choice(("connected", "connected", "lost", "goodbye"))
            until = rng.choice((None, at((minute + rng.randint(1, 400)) / 60)))
            events.append(Event(at(minute / 60), kind, "", until if kind == "goodbye" else None))
            minute += rng.randint(1, 500)
        holes = [(60 * low, 60 * (low + 1)) for low in sorted(rng.sample(range(0, 24, 3), 2))]
        expected = connected = past = 0
        for now, moment in enumerate(moments):
            while past < len(events) and events[past].at <= moment:
                past += 1
            if not past or any(low <= now < high for low, high in holes):
                continue
            last = events[past - 1]
            end = last.at + timedelta(days=1)
            if last.until is not None:
                end = min(end, last.until + timedelta(minutes=2))
            expected += last.kind != "goodbye" or moment >= end
            connected += last.kind == "connected"
        found = stability(
            [Life("M1", tuple(events))],
            since=START,
            until=DAY,
            unknown=[(at(low / 60), at(high / 60)) for low, high in holes],
        )
        told = (sum(s.expected_h for s in found), sum(s.connected_h for s in found))
        assert (round(told[0] * 60), round(told[1] * 60)) == (expected, connected), seed
