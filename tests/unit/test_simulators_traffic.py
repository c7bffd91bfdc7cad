"""People through a door: conservation, order, reproducibility, and the model's figures."""

import random
import statistics
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.shapes import ALWAYS, OFFICES, SHOP, STREET, Hours, Shape
from simulators.traffic import (
    HOUR_MS,
    Door,
    Kiosk,
    Sensor,
    people,
    per_minute,
    random_door,
    random_kiosk,
    random_sensor,
    sense,
    touches,
)

DAY_MS = 24 * HOUR_MS
MONDAY = int(datetime(2025, 11, 10, tzinfo=ZoneInfo("Europe/Stockholm")).timestamp() * 1000)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    median=st.floats(1, 3_000),
    hours=st.sampled_from([SHOP, ALWAYS]),
    shape=st.sampled_from([STREET, OFFICES]),
    day=st.integers(0, 130),
)
def test_everybody_who_enters_leaves(
    seed: int, median: float, hours: Hours, shape: Shape, day: int
) -> None:
    door = Door("d", median_day=median, hours=hours, shape=shape)
    start = MONDAY + day * DAY_MS + 4 * HOUR_MS  # a shop is empty at four in the morning
    found = list(people(door, seed=seed, start_ms=start, end_ms=start + DAY_MS))
    entered = sum(passage.entering for passage in found)
    if hours is not ALWAYS:
        assert entered == len(found) - entered
    assert [p.at_ms for p in found] == sorted(p.at_ms for p in found)
    assert all(start <= p.at_ms < start + DAY_MS for p in found)


def test_nobody_stays_for_ever_where_the_door_never_closes() -> None:
    door = Door("station", hours=ALWAYS, median_day=2_000)
    quiet = replace(door, median_day=0.0)
    start = MONDAY
    found = list(people(door, seed=3, start_ms=start, end_ms=start + 2 * DAY_MS))
    inside = 0
    lowest = 0
    for passage in found:
        inside += 1 if passage.entering else -1
        lowest = min(lowest, inside)
    # those inside at the start leave, those inside at the end have not left: both are few
    assert -200 < lowest <= 0
    assert -200 < inside < 200
    assert list(people(quiet, seed=3, start_ms=start, end_ms=start + DAY_MS)) == []


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.integers(1, 23 * 3_600_000))
def test_a_stream_that_begins_later_is_the_tail_of_one_that_began_earlier(
    seed: int, cut: int
) -> None:
    door = Door("d", median_day=300)
    whole = list(people(door, seed=seed, start_ms=MONDAY, end_ms=MONDAY + DAY_MS))
    tail = list(people(door, seed=seed, start_ms=MONDAY + cut, end_ms=MONDAY + DAY_MS))
    assert tail == [p for p in whole if p.at_ms >= MONDAY + cut]


def test_the_same_seed_gives_the_same_people_and_another_gives_others() -> None:
    door = Door("d")
    first, again, other = (
        list(people(door, seed=seed, start_ms=MONDAY, end_ms=MONDAY + DAY_MS)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_volume_follows_the_week_the_month_and_the_opening_hours() -> None:
    door = Door("d", median_day=1_000, staff=0)
    days: dict[int, list[int]] = {}
    for day in range(56):
        start = MONDAY + day * DAY_MS
        entered = [
            p for p in people(door, seed=1, start_ms=start, end_ms=start + DAY_MS) if p.entering
        ]
        days.setdefault(day % 7, []).append(len(entered))
        hours = {datetime.fromtimestamp(p.at_ms / 1000, ZoneInfo(door.zone)).hour for p in entered}
        assert hours <= set(range(10, 20))
    means = {weekday: statistics.mean(counts) for weekday, counts in days.items()}
    assert max(means, key=lambda weekday: means[weekday]) == 5
    # Saturday has 21.5 % of a week; November and December are 1.10 and 1.27 of a month
    assert means[5] == pytest.approx(1_000 * 7 * 0.215 * 1.17, rel=0.15)


def test_hourly_counts_scatter_as_a_negative_binomial_does() -> None:
    door = Door("d", median_day=4_000, day_sigma=0.0, staff=0, shape=OFFICES)
    noon = MONDAY + 12 * HOUR_MS
    counts = [
        sum(p.entering for p in people(door, seed=week, start_ms=noon, end_ms=noon + HOUR_MS))
        for week in range(150)
    ]
    variation = statistics.stdev(counts) / statistics.mean(counts)
    assert 0.12 < variation < 0.28  # 1/sqrt(30) = 0.18 and the groups' Poisson part


def test_a_dst_sunday_has_its_own_length() -> None:
    door = Door("d", hours=ALWAYS, median_day=500)
    zone = ZoneInfo("Europe/Stockholm")
    start = int(datetime(2025, 3, 30, tzinfo=zone).timestamp() * 1000)
    end = int(datetime(2025, 3, 31, tzinfo=zone).timestamp() * 1000)
    assert end - start == 23 * HOUR_MS
    found = list(people(door, seed=1, start_ms=start, end_ms=end))
    assert {datetime.fromtimestamp(p.at_ms / 1000, zone).hour for p in found} <= {
        hour for hour in range(24) if hour != 2
    }


def test_a_perfect_sensor_sees_all_and_a_real_one_less_one_way() -> None:
    door = Door("d", median_day=2_000)
    passages = list(people(door, seed=5, start_ms=MONDAY, end_ms=MONDAY + DAY_MS))
    seen = list(sense(passages))
    assert len(seen) == len(passages)
    assert sum(c.entered for c in seen) == sum(p.entering for p in passages)
    biased = list(sense(passages, Sensor(miss_in=0.10, miss_out=0.01, merge=0.03)))
    entered, left = sum(c.entered for c in biased), sum(c.left for c in biased)
    half = len(passages) / 2
    assert 0.83 * half < entered < 0.93 * half
    assert left > 0.95 * half


def test_a_backwards_door_swaps_and_a_blind_one_is_silent() -> None:
    door = Door("d")
    passages = list(people(door, seed=5, start_ms=MONDAY, end_ms=MONDAY + DAY_MS))
    plain, swapped = list(sense(passages)), list(sense(passages, Sensor(backwards=True)))
    assert [(c.at_ms, c.entered, c.left) for c in plain] == [
        (c.at_ms, c.left, c.entered) for c in swapped
    ]
    noon = MONDAY + 14 * HOUR_MS
    blind = list(sense(passages, Sensor(blind=((noon, MONDAY + DAY_MS),))))
    assert blind == [c for c in plain if c.at_ms < noon]


def test_lines_share_the_crossings() -> None:
    door = Door("d", median_day=3_000)
    passages = people(door, seed=5, start_ms=MONDAY, end_ms=MONDAY + DAY_MS)
    lines = Counter(c.line for c in sense(passages, Sensor(lines=(0.75, 0.25))))
    assert set(lines) == {0, 1}
    assert 0.7 < lines[0] / lines.total() < 0.8


def test_minutes_sum_up_to_the_same_people() -> None:
    door = Door("d", median_day=1_000)
    passages = list(people(door, seed=5, start_ms=MONDAY, end_ms=MONDAY + DAY_MS))
    minutes = list(per_minute(sense(passages, Sensor(lines=(0.5, 0.5)))))
    assert sum(c.entered + c.left for c in minutes) == len(passages)
    assert all(c.at_ms % 60_000 == 0 for c in minutes)
    keys = [(c.at_ms, c.line) for c in minutes]
    assert keys == sorted(set(keys))


def test_presses_are_a_share_of_those_who_leave_with_the_answers_of_the_template() -> None:
    door = Door("d", median_day=3_000)
    kiosk = Kiosk(rate=0.06)
    span = {"seed": 9, "start_ms": MONDAY, "end_ms": MONDAY + 14 * DAY_MS}
    left = sum(not p.entering and not p.staff for p in people(door, **span))
    found = list(touches(door, kiosk, **span))
    smileys = Counter(t.answer for t in found if t.question == 0)
    assert smileys.total() / left == pytest.approx(0.06, rel=0.1)
    assert smileys[0] / smileys.total() == pytest.approx(0.575, abs=0.05)
    followed = [t for t in found if t.question == 1]
    assert len(followed) / smileys.total() == pytest.approx(0.35, abs=0.05)
    assert {t.answer for t in followed} <= set(range(11))
    assert [t.at_ms for t in found] == sorted(t.at_ms for t in found)
    assert all(b.visit - a.visit in (0, 1) for a, b in pairwise(found))


def test_somebody_plays_with_the_buttons_now_and_then() -> None:
    door = Door("d", median_day=1)
    found = list(
        touches(
            door,
            Kiosk(bursts_an_hour=1.0),
            seed=2,
            start_ms=MONDAY,
            end_ms=MONDAY + DAY_MS,
        )
    )
    bursts = Counter(t.visit for t in found)
    assert sum(5 <= size <= 40 for size in bursts.values()) >= 8


def test_random_doors_are_lognormal() -> None:
    rng = random.Random(1)
    volumes = sorted(random_door(rng, str(index)).median_day for index in range(2_000))
    assert volumes[1_000] == pytest.approx(400, rel=0.12)
    assert volumes[1_900] == pytest.approx(3_000, rel=0.2)
    assert all(0.01 <= random_sensor(rng).miss_in <= 0.12 for _ in range(100))
    assert all(0.03 <= random_kiosk(rng).rate <= 0.12 for _ in range(100))


def test_people_follow_utc_hours_in_any_zone() -> None:
    door = Door("d", zone="Asia/Kolkata", median_day=800, staff=0)
    start = int(datetime(2025, 11, 10, tzinfo=UTC).timestamp() * 1000)
    found = [p for p in people(door, seed=1, start_ms=start, end_ms=start + DAY_MS) if p.entering]
    zone = ZoneInfo(door.zone)
    minutes = [datetime.fromtimestamp(p.at_ms / 1000, zone) for p in found]
    assert min(m.hour * 60 + m.minute for m in minutes) >= 600
