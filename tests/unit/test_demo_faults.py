"""The faults that the demo's world really has: found by the real conditions, whenever it begins."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from ops.demo.world import BACKWARDS, DEAD, UNNOTICED, Place, PlannedSite, places, the_world
from server.health.conditions import blocked_view, flatline, reversed_door
from server.health.doors import Doors
from server.health.judgement import Standing, Subject, SubjectKind
from server.health.series import QUARTER_S, Quarter, Series
from server.health.verdict import Case
from simulators.traffic import people, sense

DAY_MS = 86_400_000
WEEK_S = 7 * 86_400
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SPOT = Subject(SubjectKind.SPOT, 1)
Counts = Mapping[int, tuple[int, int]]


def doors_of(name: str) -> list[Place]:
    """Return a site's counters, the main entrance first."""
    found = [each for each in places(the_world()) if each.site.name == name]
    return [each for each in found if each.device.kind == "counter"]


def counted(place: Place, *, end_ms: int, days: int) -> Counts:
    """Return what a counter's history says by quarter."""
    spec = place.device.spec("a", end_ms=end_ms)
    found: dict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    crowd = people(spec.door, seed=spec.seed, start_ms=end_ms - days * DAY_MS, end_ms=end_ms)
    for crossing in sense(crowd, spec.sensor):
        at = crossing.at_ms // 1000 // QUARTER_S * QUARTER_S
        came, went = found[at]
        found[at] = came + crossing.entered, went + crossing.left
    return found


def series(site: PlannedSite, counts: Counts, *, end_ms: int, days: int, turned: bool) -> Series:
    """Return the last days on a grid, set against the same quarters of the weeks before.

    `turned`: read the other way round, as the calibration says.
    """
    end_s = end_ms // 1000 // QUARTER_S * QUARTER_S
    quarters = []
    for at in range(end_s - days * 86_400, end_s, QUARTER_S):
        came, went = counts.get(at, (0, 0))[:: -1 if turned else 1]
        before = [counts[at - n * WEEK_S] for n in (1, 2, 3) if at - n * WEEK_S in counts]
        usual = [sum(each[way] for each in before) / 3 for way in (0, 1)] if before else [None] * 2
        is_open = site.is_open(at * 1000)
        quarters.append(Quarter(at, came, went, QUARTER_S, is_open, usual[0], usual[1], False))
    return Series(quarters, 20.0, 0.02)


@pytest.mark.parametrize("hours", range(0, 48, 5))
@pytest.mark.parametrize(("site", "standing"), [(UNNOTICED, "firing"), (BACKWARDS, "clear")])
def test_three_days_tell_of_the_door_mounted_backwards_and_not_of_the_one_corrected(
    site: str, standing: str, hours: int
) -> None:
    end_ms = round((NOON + timedelta(hours=hours)).timestamp()) * 1000
    main = doors_of(site)[0]
    assert main.device.sensor.backwards
    counts = counted(main, end_ms=end_ms, days=3)
    shown = series(main.site, counts, end_ms=end_ms, days=3, turned=main.device.corrected)
    said = reversed_door.judge(Case(SPOT, end_ms // 1000), shown)
    assert said.standing.value == standing


@pytest.mark.parametrize("hours", range(0, 48, 5))
def test_four_weeks_tell_of_the_dead_door_and_three_days_do_not(hours: int) -> None:
    end_ms = round((NOON + timedelta(hours=hours)).timestamp()) * 1000
    alive, dead = doors_of(DEAD)
    for days, standing in ((28, Standing.FIRING), (3, Standing.UNKNOWN)):
        main, side = [
            series(each.site, counted(each, end_ms=end_ms, days=days), end_ms=end_ms, days=3,
                   turned=False)
            for each in (alive, dead)
        ]  # fmt: skip
        both = Doors(blocked_view.LEAST)
        for each in (main, side):
            both.add(each)
        said = flatline.judge(Case(SPOT, end_ms // 1000), side, both)
        assert said.standing is standing
        beside = flatline.judge(Case(SPOT, end_ms // 1000), main, both)
        assert beside.standing is not Standing.FIRING
