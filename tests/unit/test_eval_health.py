"""`make eval-health` in short: the promises are kept, and a bad detector is found out."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from ops import eval_health
from ops.evaluations import health, street_health, streets
from ops.evaluations.findings import HEADER, Line, Quiet
from ops.evaluations.promise import Size
from ops.evaluations.shops import Seen
from ops.evaluations.truth_conditions import Found, _an_hour, crossings_needed, looks
from server.feedback.misuse import Press
from server.health.conditions import blocked_view, flatline, stuck_button, temperature
from server.health.conditions.gauge import Value
from server.health.judgement import Condition, Judgement, Subject, SubjectKind
from server.health.series import GROUP, Series, deviation
from server.health.verdict import Case, clear, firing
from tests.leeds import stand_in

SHORT = Size(full=False)
START = 1_294_012_800  # Monday, 3 January 2011
OF_THE_LINK = {
    *(Condition.PLATFORM_UNKNOWN, Condition.SITE_OFFLINE, Condition.OFFLINE),
    *(Condition.OFFLINE_PLANNED, Condition.NO_DATA, Condition.NO_HEARTBEAT),
}
"""Conditions that are told by connections, whatever is counted."""


@pytest.fixture
def months(tmp_path: Path) -> Path:
    """Published counts of three streets: four months to learn from, and days not seen before."""
    rng = random.Random(1)
    path = tmp_path / "months.csv"
    with path.open("w") as out:
        print("Date,Hour,LocationName,InCount", file=out)
        for day in range(136):
            for hour in range(24):
                busy = (60 + 60 * min(hour, 23 - hour)) * rng.gauss(1, 0.07)
                for street in ("Briggate", "Headrow", "Lands"):
                    people = round(busy * rng.gauss(1, 0.07))
                    print(f"{date(2011, 1, 1) + timedelta(day)},{hour},{street},{people}", file=out)
    return path


def test_every_promise_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = eval_health.main(["--short", "--counts", str(tmp_path / "nowhere")])
    out = capsys.readouterr().out
    assert code == 0, out
    assert "18 of 18 promises kept" in out
    assert "streets: skipped, as nowhere is not here" in out


def test_a_rule_that_is_blind_breaks_the_command_which_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], months: Path
) -> None:
    def blind(case: Case, door: Series, others: Sequence[Series]) -> Judgement:
        return clear(case, Condition.FLATLINE, {}, since_s=case.now_s)

    monkeypatch.setattr(flatline, "judge", blind)
    asked = ["--short", "--part", "faults", "--only", "flatline", "--counts", str(months)]
    assert eval_health.main(asked) == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken: ")]
    assert [line.split()[1] for line in broken] == ["flatline", "flatline"]
    assert "one of two doors" in broken[0]
    assert "a street" in broken[1]


def test_faults_put_into_published_counts_are_found_in_months_not_seen_before(
    months: Path,
) -> None:
    known = street_health.Streets.of(months, days=16)
    (place,) = known.held_out
    seen_from = place.number(place.day(0) + timedelta(days=street_health.LEARNT_DAYS))
    assert place.day(seen_from) == date(2011, 5, 1)
    (line,) = street_health.found(known, SHORT, only=Condition.FLATLINE)
    assert line.kept, line.line()
    (line,) = street_health.found(known, SHORT, only=Condition.STUCK_COUNTER)
    assert line.found.share == 1


def test_of_each_condition_a_street_is_given_the_fault_or_it_is_said_why_it_cannot() -> None:
    put_in = {kind.condition for kind in street_health.KINDS}
    counted = set(Condition) - OF_THE_LINK
    assert put_in | set(street_health.NOT_HERE) == counted
    assert not put_in & set(street_health.NOT_HERE)


def test_the_page_shows_the_table_that_the_command_prints() -> None:
    page = (Path(eval_health.__file__).parent / "HEALTH.md").read_text()
    assert HEADER in page
    for kind in street_health.KINDS:
        assert f"{kind.condition:<19} {kind.fault}" in page
    for name in health.names(Size()):
        assert name in page
    assert street_health.OF in page
    assert "MISSED" not in page


def test_a_detector_that_never_fires_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(case: Case, presses: Sequence[Press], *, observed_to_s: int | None) -> Judgement:
        return clear(case, Condition.STUCK_BUTTON, {}, since_s=case.now_s)

    monkeypatch.setattr(stuck_button, "judge", never)
    (line,) = health.found(SHORT, only=Condition.STUCK_BUTTON)
    assert not line.kept
    assert line.found.share == 0
    assert "MISSED" in line.line()


def test_a_detector_that_always_fires_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def always(case: Case, celsius: Sequence[Value]) -> Judgement:
        return firing(case, Condition.TEMPERATURE, {}, since_s=case.now_s)

    monkeypatch.setattr(temperature, "judge", always)
    devices = next(health.quiet(SHORT))
    assert not devices.kept
    assert devices.alarms[Condition.TEMPERATURE] == 1  # once, and for ever


def test_published_counts_are_looked_at_as_the_doors_of_a_place_that_never_closes(
    tmp_path: Path,
) -> None:
    known = streets.read(stand_in(tmp_path / "counts.csv").path)
    first = streets.first_day(known)
    place = streets.place(known, first=first, until=first + timedelta(days=29))
    assert len(place.doors) == 3
    assert all(place.is_open)
    assert place.quarters == 29 * 96 + 4  # the clock goes back within
    door = place.doors[0]
    assert sum(door.entered) + sum(door.left) > 0
    assert set(door.observed_s) <= {0, 900}
    seen = looks(place, place.quarters - 96, place.quarters)
    assert [number % 4 for number, _ in seen] == [3] * 25  # by the hour, as they were read
    assert [number for number, whole in seen if whole] == [place.quarters - 1]  # at midnight


def test_real_streets_are_held_to_the_same_promise_as_simulated_shops(months: Path) -> None:
    quiet = street_health.quiet(street_health.Streets.of(months, days=1), short=False)
    assert 2.9 / 365 < quiet.years < 3.1 / 365
    assert quiet.allowed == pytest.approx(0.5 * quiet.years)
    assert quiet.interval[0] <= quiet.alarms.total() / quiet.years < quiet.interval[1]
    loud = replace(quiet, alarms=Counter({Condition.BLOCKED_VIEW: 3}), years=5.9)
    assert not loud.kept
    assert loud.interval == pytest.approx((0.105, 1.486), abs=0.001)  # 0.619 to 8.767 by the table
    assert replace(loud, years=6.1).kept


def test_days_that_were_invented_at_the_source_are_told_from_counted_ones() -> None:
    rng = random.Random(1)
    shape = [40 + 100 * min(hour, 23 - hour) for hour in range(24)]
    counted = {day: [round(n * rng.gauss(1, 0.05)) for n in shape] for day in range(60)}
    for day in (30, 33, 37, 44):  # one model's shape, times what was to be made up
        counted[day] = [round((0.8 + day / 100) * n) for n in shape]
    hours = {
        START + (24 * day + hour) * 3600: n
        for day, people in counted.items()
        for hour, n in enumerate(people)
    }
    first = date(2011, 1, 3)
    assert streets.invented(hours) == {first + timedelta(days=n) for n in range(30, 45)}


def test_dead_hours_are_proven_only_where_the_other_streets_went_on() -> None:
    rng = random.Random(1)
    found = {
        name: {START + n * 3600: rng.randint(90, 110) for n in range(24 * 60)} for name in "abcd"
    }
    dead, shut = START + 50 * 86_400 + 36_000, START + 55 * 86_400
    for hour in range(3):
        found["b"][dead + 3600 * hour] = 0
        for name in "abcd":
            found[name][shut + 3600 * hour] = 0
    found["c"][dead + 86_400] = 0  # 100 people are too few to prove a thing
    stretch = dead, dead + 3 * 3600
    assert streets.dead(found) == {"a": [], "b": [stretch], "c": [], "d": []}
    proven = streets.proof(found)

    def alarm(row: int, since_s: int) -> Judgement:
        case = Case(Subject(SubjectKind.SPOT, row), since_s + 3600)
        return firing(case, Condition.FLATLINE, {}, since_s=since_s)

    assert proven(alarm(2, dead), dead + 3600)
    assert not proven(alarm(1, dead), dead + 3600)
    assert not proven(alarm(2, dead - 7200), dead)
    assert not proven(alarm(2, shut), shut + 3600)


def test_how_many_people_tell_a_blocked_view_in_two_hours_is_derived() -> None:
    """Against people who are drawn: nine in ten or more are found at that number, few below."""
    assert round(health.LEAST_VIEW) == 122
    rng = np.random.default_rng(1)
    shares = {}
    for crossings in (health.LEAST_VIEW, health.LEAST_VIEW / 3):
        groups = crossings / GROUP  # of two hours, one direction
        own, other = (GROUP * rng.poisson(0.3 * groups, 4000), GROUP * rng.poisson(groups, 4000))
        other_way = GROUP * rng.poisson(groups, 4000)
        rate = (other + other_way) / (2 * crossings)
        shares[crossings] = np.mean(
            [
                deviation(
                    counted,
                    crossings * part,
                    factor=GROUP,
                    variance=0.003 + 2 * GROUP / (2 * crossings * part),
                )
                < blocked_view.FIRES
                for counted, part in zip(own, rate, strict=True)
            ]
        )
    assert shares[health.LEAST_VIEW] > 0.93
    assert shares[health.LEAST_VIEW / 3] < 0.6
    assert math.isinf(crossings_needed(0.3, share_variance=0.1, hours=2, sure=1.645))


def test_a_door_of_so_many_crossings_an_hour_has_them_in_an_hour() -> None:
    seen = Seen([20.0] * 4 + [10.0] * 4, [10.0] * 8, [900] * 8)
    assert [_an_hour(seen, 0, hours=hours) for hours in (1, 2)] == [120.0, 80.0]


def test_nothing_measured_keeps_no_promise() -> None:
    assert not Line(Condition.FLATLINE, "none", Found(), 1.0).kept
    assert not Line(Condition.FLATLINE, "late", Found([10.0]), 9.0).kept
    assert not Line(Condition.FLATLINE, "few", Found([1.0, None]), 9.0).kept
    assert not Line(Condition.FLATLINE, "slow", Found([1.0, 99.0]), 9.0, 9.0).kept
    measured = Line(Condition.BLOCKED_VIEW, "no promise", Found([None]), None)
    assert "nothing" in measured.line()
    assert not measured.promised  # so it is counted nowhere
    assert not Quiet("nobody", Counter(), 0.0).kept
    assert not Quiet("many", Counter({Condition.FLATLINE: 2}), 3.0).kept
    assert Quiet("few", Counter({Condition.FLATLINE: 1}), 3.0).kept
