"""Conditions, each from typed series: what fires, what clears, and what nobody can tell."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstwobign, nbinom

from server.feedback.misuse import Press
from server.health.conditions import (
    backlog,
    blocked_view,
    certificate,
    clock_drift,
    closed_counting,
    duplicate_identity,
    flapping,
    flatline,
    imbalance,
    level_shift,
    reboot_loop,
    reversed_door,
    storage,
    stuck_button,
    stuck_counter,
    temperature,
)
from server.health.conditions.gauge import Value
from server.health.conditions.stuck_counter import Reading, kolmogorov
from server.health.doors import Doors
from server.health.judgement import Condition, Judgement, Standing, Subject, SubjectKind
from server.health.memory import MASKING
from server.health.series import QUARTER_S, Quarter, Series, deviation, turns
from server.health.verdict import NEVER, Before, Case

SPOT = Subject(SubjectKind.SPOT, 7)
NOW = 1_780_000_000 // QUARTER_S * QUARTER_S
HOUR = 3_600
DAY = 86_400
FIRED = Before(True, NOW - HOUR, NOW - HOUR)


def case(before: Before = Before(), *, now_s: int = NOW) -> Case:  # noqa: B008 - a constant
    return Case(SPOT, now_s, before)


def open_quarters(
    people: Sequence[tuple[float, float] | None], *, usual: float | None = 10.0
) -> Series:
    """Return open quarters up to now: in and out, None where nothing was observed."""
    start = NOW - len(people) * QUARTER_S
    quarters = []
    for number, each in enumerate(people):
        came, went = each or (0.0, 0.0)
        observed = QUARTER_S if each is not None else 0
        at = start + number * QUARTER_S
        quarters.append(Quarter(at, came, went, observed, True, usual, usual))
    return Series(quarters, share_variance=0.01)


def doors(*site: Series) -> Doors:
    """Return the sums of a site's doors, `SPOT` the first."""
    found = Doors(blocked_view.LEAST)
    for each in site:
        found.add(each)
        found.ask(blocked_view.windows(each))
    for number, each in enumerate(site):
        found.weigh(SPOT.row + number, each)
    return found


def perimeter(*site: Series) -> imbalance.Days:
    found = imbalance.Days()
    for each in site:
        found.add(each)
    return found


def flat(before: Case, door: Series, *others: Series) -> Judgement:
    return flatline.judge(before, door, doors(door, *others))


def blocked(before: Case, door: Series, *others: Series) -> Judgement:
    return blocked_view.judge(before, door, doors(door, *others))


def test_a_door_that_counts_nobody_while_the_next_one_does_is_a_flat_line() -> None:
    door = open_quarters([(10, 10)] * 8 + [(0, 0)] * 4)
    found = flat(case(), door, open_quarters([(9, 11)] * 12))
    assert found.standing is Standing.FIRING
    assert found.affected_from == datetime.fromtimestamp(NOW - 4 * QUARTER_S, UTC)
    assert found.evidence["others_counted"] == 80


def test_where_all_doors_count_nobody_the_shop_may_be_shut() -> None:
    door = open_quarters([(10, 10)] * 4 + [(0, 0)] * 12)
    assert flat(case(), door, door).standing is Standing.UNKNOWN


def test_a_quiet_door_says_after_how_long_its_silence_would_tell() -> None:
    door = open_quarters([(1, 0)] * 4 + [(0, 0)] * 8, usual=0.5)
    found = flat(case(), door, open_quarters([(9, 11)] * 12))
    assert found.standing is not Standing.FIRING
    assert 10 < float(found.evidence["known_after_h"]) < 30


def test_a_door_without_a_past_is_not_judged() -> None:
    door = open_quarters([(0, 0)] * 40, usual=None)
    assert flat(case(), door).standing is Standing.UNKNOWN


def test_a_door_that_counts_again_clears_from_when_it_did() -> None:
    door = open_quarters([(0, 0)] * 8 + [(10, 9)] * 4)
    found = flat(case(Before(True, NOW - 3 * HOUR, NOW - 3 * HOUR)), door)
    assert found.standing is Standing.CLEAR
    assert found.since == datetime.fromtimestamp(NOW - HOUR, UTC)


def test_a_door_alone_is_not_called_dead_on_a_morning_that_may_be_a_holiday() -> None:
    def morning(hours: int) -> Series:
        whole = open_quarters([(10, 10)] * 8 + [(0, 0)] * (8 + 4 * hours), usual=30.0)
        night = [q._replace(is_open=False) for q in whole.quarters[8:16]]
        return replace(whole, quarters=[*whole.quarters[:8], *night, *whole.quarters[16:]])

    assert flat(case(), morning(3)).standing is Standing.UNKNOWN
    assert flat(case(), morning(4)).standing is Standing.FIRING


@settings(deadline=None)
@given(st.floats(0.1, 500), st.floats(2, 60))
def test_the_chance_of_a_silence_is_that_of_a_negative_binomial_zero(
    people: float, spread: float
) -> None:
    groups = people / 1.52
    exact = nbinom.pmf(0, spread, spread / (spread + groups))
    assert flatline.zero_chance(people, spread) == pytest.approx(exact, rel=1e-6)
    needed = flatline.people_until(1e-6, spread)
    assert flatline.zero_chance(needed, spread) == pytest.approx(1e-6)


def readings(counts: Sequence[int]) -> list[Reading]:
    start = NOW - 60 * len(counts)
    return [Reading(start + 60 * n, 60, (count, 0)) for n, count in enumerate(counts)]


def test_one_count_in_every_minute_is_stuck_within_thirty() -> None:
    found = stuck_counter.judge(case(), readings([0, 3, 0, 1] * 10 + [1] * 30))
    assert found.standing is Standing.FIRING
    assert found.affected_from is not None
    assert NOW - 33 * 60 <= found.affected_from.timestamp() <= NOW - 30 * 60


@pytest.mark.parametrize("mean", [0.5, 1, 5, 40])
def test_people_are_never_as_regular_as_a_stuck_line(mean: float) -> None:
    rng = random.Random(3)
    for _ in range(60):
        counts = [sum(rng.random() < mean / 80 for _ in range(80)) for _ in range(120)]
        assert stuck_counter.judge(case(), readings(counts)).standing is not Standing.FIRING


def test_readings_that_are_missing_say_nothing_of_a_stuck_line() -> None:
    broken = readings([1] * 60)
    assert stuck_counter.judge(case(FIRED), broken[:-20:3]).standing is Standing.UNKNOWN


def test_kolmogorov_s_chance_is_scipy_s() -> None:
    for distance in (0.3, 0.5, 0.8, 1.2):
        assert kolmogorov(distance) == pytest.approx(float(kstwobign.cdf(distance)), rel=1e-6)


def presses(every_ms: int, count: int, *, until_ms: int = NOW * 1000) -> list[Press]:
    return [Press(until_ms - every_ms * (count - n), 1, n, 9, 0, 3) for n in range(count)]


@pytest.mark.parametrize("every_s", [1, 2, 5, 10, 14])
def test_a_button_that_presses_itself_is_known_within_three_minutes(every_s: int) -> None:
    pressed = presses(every_s * 1000, 180 // every_s)
    found = stuck_button.judge(case(), pressed, observed_to_s=NOW)
    assert found.standing is Standing.FIRING
    assert found.affected_from is not None


def test_a_child_that_hammers_for_half_a_minute_is_no_stuck_button() -> None:
    rng = random.Random(1)
    times = sorted(NOW * 1000 - rng.randrange(30_000) for _ in range(60))
    played = [Press(at, 1, n, 9, 0, 3) for n, at in enumerate(times)]
    assert stuck_button.judge(case(), played, observed_to_s=NOW).standing is Standing.CLEAR


def test_a_kiosk_that_sends_nothing_neither_clears_nor_fires() -> None:
    assert stuck_button.judge(case(FIRED), [], observed_to_s=NOW - HOUR).standing is (
        Standing.UNKNOWN
    )


def shop_days(days: int, *, wrong_from: int = 99, exit_only: bool = False) -> Series:
    """Return days open from 10 to 18, up to midnight: at both ends ten of twelve go one way."""
    quarters = []
    start = NOW - days * DAY
    for number in range(days * 96):
        of_day = number % 96
        opened = 40 <= of_day < 72
        ends = {True: (10.0, 2.0), False: (6.0, 6.0)}[40 <= of_day < 44]
        if 68 <= of_day < 72:
            ends = (2.0, 10.0)
        if number // 96 >= wrong_from:
            ends = ends[::-1]
        if exit_only:
            ends = (1.0, 11.0)
        came, went = ends if opened else (0.0, 0.0)
        quarters.append(Quarter(start + number * QUARTER_S, came, went, QUARTER_S, opened))
    return Series(quarters)


def test_two_mornings_tell_a_counter_that_is_the_wrong_way_round() -> None:
    found = reversed_door.judge(case(), shop_days(6, wrong_from=4))
    assert found.standing is Standing.FIRING
    assert found.evidence["mornings"] == 2
    opened = NOW - 2 * DAY + 10 * HOUR
    assert found.affected_from == datetime.fromtimestamp(opened, UTC)


def test_one_morning_does_not_tell_yet_and_a_right_way_round_clears() -> None:
    assert reversed_door.judge(case(), shop_days(6, wrong_from=5)).standing is Standing.UNKNOWN
    found = reversed_door.judge(case(FIRED), shop_days(6))
    assert found.standing is Standing.CLEAR


def test_a_door_by_which_people_only_leave_is_not_the_wrong_way_round() -> None:
    found = reversed_door.judge(case(), shop_days(6, exit_only=True))
    assert found.standing is not Standing.FIRING


def test_a_shop_that_never_closes_has_no_mornings() -> None:
    always = open_quarters([(2, 9)] * 400)
    assert turns(always.quarters) == []
    assert reversed_door.judge(case(), always).standing is Standing.UNKNOWN


def test_two_days_out_of_balance_fire_and_one_does_not() -> None:
    def days(*lost: float) -> Series:
        whole = shop_days(12)
        return replace(
            whole,
            quarters=[
                q._replace(left=round(q.left * (1 - lost[n // 96 - 12])))
                if n // 96 - 12 >= -len(lost)
                else q
                for n, q in enumerate(whole.quarters)
            ],
        )

    assert imbalance.judge(case(), perimeter(days(0.5, 0.5))).standing is Standing.FIRING
    assert imbalance.judge(case(), perimeter(days(0.0, 0.5))).standing is not Standing.FIRING
    assert imbalance.judge(case(), perimeter(days())).standing is Standing.CLEAR


def test_people_at_night_fire_but_not_those_who_open_and_close_the_shop() -> None:
    def night(number: int) -> Series:
        whole = shop_days(5)
        quarters = list(whole.quarters)
        quarters[number] = quarters[number]._replace(entered=9.0, left=9.0)
        return replace(whole, quarters=quarters)

    assert closed_counting.judge(case(), night(480 - 8)).standing is Standing.FIRING
    assert closed_counting.judge(case(), night(96 * 4 + 38)).standing is Standing.CLEAR
    assert closed_counting.judge(case(), night(96 * 4 + 73)).standing is Standing.CLEAR


def shift(*ratios: float) -> list[level_shift.Day]:
    return [level_shift.Day(n, NOW - (9 - n) * DAY, 300 * r, 300) for n, r in enumerate(ratios)]


def test_a_level_that_shifts_with_everybody_s_is_the_season() -> None:
    half = shift(*[0.4] * 7)
    assert level_shift.judge(case(), half, {}).standing is Standing.FIRING
    season = dict.fromkeys(range(7), -0.9)
    assert level_shift.judge(case(), half, season).standing is Standing.CLEAR
    assert level_shift.judge(case(), shift(1, 1, 1, 0.3, 0.3), {}).standing is Standing.CLEAR
    assert level_shift.judge(case(), half[:3], {}).standing is Standing.UNKNOWN


def test_a_door_that_loses_its_share_of_the_people_is_blocked() -> None:
    other = open_quarters([(10, 10)] * 16)
    door = open_quarters([(10, 10)] * 8 + [(2, 2)] * 8)
    found = blocked(case(), door, other)
    assert found.standing is Standing.FIRING
    assert found.evidence["compared_with"] == "others"
    assert blocked(case(), open_quarters([(10, 10)] * 16), other).standing is (Standing.CLEAR)


def test_a_quiet_day_of_the_whole_site_blocks_nobody() -> None:
    quiet = open_quarters([(10, 10)] * 8 + [(5, 5)] * 8)
    assert blocked(case(), quiet, quiet).standing is Standing.CLEAR


def test_a_lens_half_covered_loses_one_direction() -> None:
    found = blocked(case(), open_quarters([(1, 12)] * 8))
    assert found.standing is Standing.FIRING
    assert (found.evidence["compared_with"], found.evidence["direction"]) == (
        "other direction",
        "in",
    )


def test_deviations_have_unit_variance_under_the_stated_scatter() -> None:
    rng = random.Random(2)
    found = []
    for _ in range(4000):
        mean = 60 * rng.gammavariate(25, 1 / 25)
        count = sum(1 for t in accumulate(rng.expovariate(mean) for _ in range(200)) if t < 1)
        found.append(deviation(count, 60, factor=1, variance=1 / 25))
    variance = sum(each**2 for each in found) / len(found)
    assert 0.85 < variance < 1.15


def clock(sent_s: float, *measured_s: float, before: Before = NEVER) -> Judgement:
    """Judge a clock by a frame that was sent at a time and came now, and by what it measured."""
    frames = [clock_drift.Arrival(sent_s, NOW)]
    measured = [each * 1000 for each in measured_s]
    return clock_drift.judge(case(before), frames, measured, wild=0, undated=0)


def test_a_clock_ahead_shows_in_one_frame_and_one_behind_only_in_what_it_measured() -> None:
    assert clock(NOW + 300).standing is Standing.FIRING
    assert clock(NOW - 400).standing is Standing.UNKNOWN
    behind = clock(NOW - 400, -395, -396, -397)
    assert behind.standing is Standing.FIRING
    assert behind.evidence["skew_s"] == -395
    assert clock(NOW - 3, -395, before=FIRED).standing is Standing.CLEAR
    assert clock(NOW - 3).standing is Standing.CLEAR
    held = clock_drift.judge(case(), [], [], wild=1, undated=0)
    assert held.standing is Standing.FIRING


@given(delay_s=st.floats(0, 1e7), skew_s=st.floats(-50, 50))
def test_no_delay_however_long_makes_a_right_clock_wrong(delay_s: float, skew_s: float) -> None:
    sent = NOW + skew_s - delay_s
    assert clock(sent).standing is not Standing.FIRING
    assert clock(sent, skew_s, skew_s).standing is Standing.CLEAR
    assert clock(sent, skew_s + 600, skew_s).standing is Standing.CLEAR  # a receipt came late


@given(delay_s=st.floats(0, 1e7), skew_s=st.floats(-1e7, 1e7).filter(lambda s: abs(s) > 121))
def test_a_wrong_clock_is_found_whatever_the_delay(delay_s: float, skew_s: float) -> None:
    found = clock(NOW + skew_s - delay_s, skew_s)
    assert found.standing is Standing.FIRING
    assert found.evidence["skew_s"] == pytest.approx(skew_s, abs=0.1)


def test_four_boots_in_an_hour_are_a_loop_and_three_are_not() -> None:
    starts = [NOW - 600 * n for n in (3, 2, 1)]
    assert reboot_loop.judge(case(), starts, heard_s=NOW).standing is Standing.CLEAR
    loop = reboot_loop.judge(case(), [NOW - 2400, *starts], heard_s=NOW)
    assert loop.standing is Standing.FIRING
    assert loop.since == datetime.fromtimestamp(NOW - 2400, UTC)
    quiet = [start - 2 * HOUR for start in starts]
    silent = reboot_loop.judge(case(FIRED), quiet, heard_s=quiet[-1])
    assert silent.standing is Standing.FIRING
    assert reboot_loop.judge(case(FIRED), quiet, heard_s=NOW).standing is Standing.CLEAR


def test_a_device_that_is_gone_has_not_stopped_flapping() -> None:
    losses = [NOW - 300 * n for n in range(8, 0, -1)]
    assert flapping.judge(case(), losses, heard_s=NOW).standing is Standing.FIRING
    old = [each - 3 * HOUR for each in losses]
    assert flapping.judge(case(FIRED), old, heard_s=old[-1]).standing is Standing.UNKNOWN
    assert flapping.judge(case(FIRED), old, heard_s=NOW).standing is Standing.CLEAR


def test_one_finding_of_a_clone_fires_for_a_day() -> None:
    finding = duplicate_identity.Finding(NOW - HOUR, "cloned")
    assert duplicate_identity.judge(case(), [finding], heard_s=NOW).standing is Standing.FIRING
    old = [finding._replace(at_s=NOW - 2 * DAY)]
    assert duplicate_identity.judge(case(FIRED), old, heard_s=NOW).standing is Standing.CLEAR
    assert duplicate_identity.judge(case(FIRED), old, heard_s=NOW - 2 * DAY).standing is (
        Standing.FIRING
    )


def gauge(*values: float, every_s: int = 900) -> list[Value]:
    return [Value(NOW - every_s * (len(values) - 1 - n), v) for n, v in enumerate(values)]


def test_a_backlog_is_one_that_grows_not_one_that_is_worked_off() -> None:
    assert backlog.judge(case(), gauge(10, 40, 70, 100, 130)).standing is Standing.FIRING
    assert backlog.judge(case(FIRED), gauge(900, 700, 500, 300, 100)).standing is Standing.CLEAR
    assert backlog.judge(case(FIRED), gauge(130)).standing is Standing.UNKNOWN


def test_a_certificate_is_judged_by_when_the_device_is_expected_again() -> None:
    year = certificate.Certificate(NOW - 300 * DAY, NOW + 65 * DAY)

    def judged(pause_s: float, opens_s: float | None = None) -> Standing:
        return certificate.judge(
            case(), year, heard_s=NOW, pause_s=pause_s, opens_s=opens_s
        ).standing

    assert judged(DAY) is Standing.CLEAR
    assert judged(DAY, NOW + 70 * DAY) is Standing.FIRING
    assert certificate.judge(case(), None, heard_s=NOW, pause_s=1).standing is Standing.UNKNOWN


def test_gauges_have_two_thresholds_and_old_words_say_nothing() -> None:
    assert temperature.judge(case(), gauge(60, 85)).standing is Standing.UNKNOWN
    assert temperature.judge(case(), gauge(83, 85)).standing is Standing.FIRING
    assert temperature.judge(case(FIRED), gauge(85, 76)).standing is Standing.FIRING
    assert temperature.judge(case(FIRED), gauge(60, 55)).standing is Standing.CLEAR
    old = [each._replace(at_s=each.at_s - DAY) for each in gauge(55, 55)]
    assert temperature.judge(case(FIRED), old).standing is Standing.UNKNOWN
    assert storage.judge(case(), gauge(1e8, 1e8)).standing is Standing.FIRING
    assert storage.judge(case(), gauge(1e9, 1e9), gauge(1)).standing is Standing.FIRING
    assert storage.judge(case(FIRED), gauge(1e9, 1e9)).standing is Standing.CLEAR


NOTHING = Series([])
SILENT: list[Judgement] = [
    flat(case(FIRED), NOTHING),
    stuck_counter.judge(case(FIRED), []),
    stuck_button.judge(case(FIRED), [], observed_to_s=None),
    reversed_door.judge(case(FIRED), NOTHING),
    imbalance.judge(case(FIRED), perimeter()),
    closed_counting.judge(case(FIRED), NOTHING),
    level_shift.judge(case(FIRED), [], {}),
    blocked(case(FIRED), NOTHING),
    clock_drift.judge(case(FIRED), [], [], wild=0, undated=0),
    reboot_loop.judge(case(FIRED), [], heard_s=None),
    flapping.judge(case(FIRED), [], heard_s=None),
    duplicate_identity.judge(case(FIRED), [], heard_s=None),
    backlog.judge(case(FIRED), []),
    certificate.judge(case(FIRED), None, heard_s=None, pause_s=0),
    storage.judge(case(FIRED), []),
    temperature.judge(case(FIRED), []),
]


@pytest.mark.parametrize("found", SILENT, ids=lambda found: str(found.condition))
def test_of_nothing_nobody_can_tell_anything(found: Judgement) -> None:
    assert found.standing is Standing.UNKNOWN
    assert found.evidence["why"]


def test_every_condition_of_the_counts_has_a_module_that_judges_it() -> None:
    presence = {
        *("platform_unknown", "site_offline", "offline", "offline_planned", "no_data"),
        "no_heartbeat",
    }
    assert {found.condition for found in SILENT} == {
        each for each in Condition if each.value not in presence
    }


def test_the_page_of_conditions_says_what_the_code_says() -> None:
    page = (Path(__file__).parents[2] / "ops/HEALTH.md").read_text()
    for found in SILENT:
        meaning = found.condition.meaning
        row = next(
            line
            for line in page.splitlines()
            if line.startswith(f"| `{found.condition}` |") and meaning.title in line
        )
        assert meaning.cause in row
        assert meaning.remedy in row
        assert ("| yes |" in row) == (found.condition in MASKING)
