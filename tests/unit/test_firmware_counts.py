"""The counts guard: its numbers against a plain solution, its error, and what it refuses."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import eval_firmware
from ops.evaluations import firmware as evaluation
from ops.evaluations.firmware import FIRST, chain
from ops.evaluations.leeds import LEEDS
from server.firmware import counts
from server.firmware.counts import (
    LOOKS,
    Day,
    Door,
    Judged,
    Rule,
    Sensitivity,
    Verdict,
    first_look,
    judge,
    sensitivity,
    spent,
)

HOURS = 10 * 3600


def door(
    number: int,
    *,
    updated: bool,
    site: str | None = None,
    stratum: str = "street",
    of: Callable[[int], float] = lambda day: 100.0,
    since: int = FIRST,
) -> Door:
    """A door of which each day's count is given, five weeks before and a week after."""
    days = [Day(d, of(d), HOURS, HOURS) for d in range(FIRST - 35, FIRST + LOOKS)]
    ref = f"door-{number:03}"
    return Door(ref, site or ref, stratum, since if updated else None, days)


def noisy(seed: int, level: float = 400.0, sigma: float = 0.1) -> Callable[[int], float]:
    chance = random.Random(seed)
    values = {
        d: round(level * chance.lognormvariate(0, sigma)) for d in range(FIRST - 40, FIRST + 9)
    }
    return lambda day: float(values[day])


def lowered(of: Callable[[int], float], share: float) -> Callable[[int], float]:
    return lambda day: round(of(day) * (1 - share)) if day >= FIRST else of(day)


def whole(doors: list[Door], *, today: int = FIRST + LOOKS, rule: Rule | None = None) -> Judged:
    return judge(doors, first=FIRST, today=today, seed="s", rule=rule)


# -- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_effect_is_what_generalised_least_squares_makes_of_the_same_days(seed: int) -> None:
    doors = chain(f"gls/{seed}", doors=40, loss=0.1)
    found = judge(doors, first=FIRST, today=FIRST + LOOKS, seed="s", rule=Rule(1e-9, 1e-9))
    panel = counts._panel(doors, start=FIRST, end=FIRST + LOOKS)
    used = panel.a > 0
    y = panel.y.T[used.T]  # day by day
    where = [(day, n) for day in range(LOOKS) for n in range(len(panel.doors)) if used[n, day]]
    columns = sorted({(day, panel.doors[n].stratum) for day, n in where})
    design = np.zeros((len(where), 1 + len(columns)))
    covariance = np.zeros((len(where), len(where)))
    for row, (day, n) in enumerate(where):
        design[row, 0] = panel.doors[n].since is not None
        design[row, 1 + columns.index((day, panel.doors[n].stratum))] = 1
        for other, (then, m) in enumerate(where):
            if day == then and panel.doors[n].site == panel.doors[m].site:
                covariance[row, other] = panel.shared
        covariance[row, row] += 1 / panel.a[n, day]
    inverse = np.linalg.inv(covariance)
    solved = np.linalg.pinv(design.T @ inverse @ design) @ design.T @ inverse @ y
    assert math.log1p(found.looks[-1].effect) == pytest.approx(solved[0], abs=1e-9)


def test_equal_losses_of_equal_doors_are_measured_as_they_are() -> None:
    doors = [door(n, updated=n % 2 == 0, of=noisy(n)) for n in range(40)]
    doors = [
        door(n, updated=True, of=lowered(noisy(n), 0.1)) if each.since else each
        for n, each in enumerate(doors)
    ]
    found = whole(doors)
    assert found.verdict is Verdict.REGRESSED
    assert found.halts
    last = found.looks[-1]
    assert last.low < -0.1 < last.high
    assert last.p <= last.spent
    assert found.value()["verdict"] == "regressed"


def test_what_moves_every_door_of_a_format_is_no_effect_of_the_update() -> None:
    def of(n: int) -> Callable[[int], float]:
        quiet = noisy(n, sigma=0.03)
        return lambda day: quiet(day) * (0.4 if day >= FIRST and n % 4 < 2 else 1.3)

    doors = [
        door(n, updated=n % 2 == 0, stratum="mall" if n % 4 < 2 else "street", of=of(n))
        for n in range(60)
    ]
    found = whole(doors)
    assert found.verdict is Verdict.CLEAR
    assert abs(found.looks[-1].effect) < 0.03
    mixed = [replace(each, stratum="one") for each in doors]
    assert whole(mixed).looks[-1].high - whole(mixed).looks[-1].low > 0.1


def test_a_day_is_held_against_its_own_weekday() -> None:
    def busy(weekday: int) -> Callable[[int], float]:
        return lambda day: 900.0 if day % 7 == weekday else 300.0

    # updated doors are busy on another day of the week than those that wait
    doors = [door(n, updated=n % 2 == 0, of=busy(2 * (n % 2))) for n in range(30)]
    found = whole(doors)
    assert found.verdict is Verdict.CLEAR
    assert all(abs(look.effect) < 1e-9 for look in found.looks)


def test_a_gain_halts_too() -> None:
    doors = [
        door(n, updated=n % 2 == 0, of=lowered(noisy(n), -0.3 if n % 2 == 0 else 0))
        for n in range(40)
    ]
    found = whole(doors)
    assert found.verdict is Verdict.REGRESSED
    assert found.looks[-1].effect > 0.2


def test_days_on_which_nobody_came_do_not_carry_the_verdict() -> None:
    empty = {4: FIRST, 12: FIRST + 3}

    def of(n: int) -> Callable[[int], float]:
        usual = noisy(n)
        return lambda day: 0.0 if empty.get(n) == day else usual(day)

    doors = [door(n, updated=n % 2 == 0, of=of(n)) for n in range(40)]
    found = whole(doors)  # both at updated doors
    assert found.verdict is Verdict.CLEAR
    assert abs(found.looks[-1].effect) < 0.05
    silent = [door(n, updated=n % 2 == 0, of=lambda day: 0.0) for n in range(40)]
    assert whole(silent).verdict is Verdict.CLEAR  # nobody ever, at any door


def test_doors_are_compared_from_the_day_since_which_each_was_updated() -> None:
    def of(n: int) -> Callable[[int], float]:
        usual, since = noisy(n), FIRST + n % 3
        return lambda day: round(usual(day) * (0.85 if n % 2 == 0 and day >= since else 1))

    doors = [door(n, updated=n % 2 == 0, of=of(n), since=FIRST + n % 3) for n in range(60)]
    found = judge(doors, first=FIRST + 2, today=FIRST + LOOKS, seed="s", rule=Rule(1e-9, 1e-9))
    assert found.verdict is Verdict.WATCHING
    assert found.looks[-1].effect == pytest.approx(-0.15, abs=0.03)
    assert found.looks[0].updated == 30


# -- what is left out, and what cannot be said ----------------------------------------------------


def test_doors_that_cannot_be_compared_are_left_out_and_named() -> None:
    doors = [door(n, updated=n % 2 == 0, of=noisy(n)) for n in range(30)]
    half = [
        each._replace(observed_s=int(0.97 * HOURS)) if each.day >= FIRST + 3 else each
        for each in doors[0].days
    ]
    short = [
        each._replace(expected_s=HOURS // 2, observed_s=HOURS // 2)
        if each.day >= FIRST + 1
        else each
        for each in doors[2].days
    ]
    doors[0] = replace(doors[0], days=half)
    doors[1] = replace(doors[1], days=doors[1].days[28:])
    doors[2] = replace(doors[2], days=short)
    assert whole(doors).left_out == {
        "door-000": "4 of 7 days are not comparable",
        "door-001": "only 7 days before the update were observed",
        "door-002": "6 of 7 days are not comparable",
    }


def test_closed_days_leave_no_door_out() -> None:
    doors = []
    for n in range(30):
        made = door(n, updated=n % 2 == 0, of=noisy(n))
        closed = [
            each._replace(expected_s=0, observed_s=0, counted=0) if each.day % 7 == 1 else each
            for each in made.days
        ]  # fmt: skip
        doors.append(replace(made, days=closed))
    assert FIRST % 7 == 1  # the first look is at a day on which all of them are closed
    for today in (FIRST + 1, FIRST + LOOKS):
        found = whole(doors, today=today)
        assert found.left_out == {}
        assert found.verdict in (Verdict.WATCHING, Verdict.CLEAR)


def test_of_few_doors_nothing_is_said_rather_than_something() -> None:
    doors = [door(n, updated=n < 4, of=lowered(noisy(n), 0.5)) for n in range(30)]
    found = whole(doors)
    assert found.verdict is Verdict.UNKNOWN
    assert "4 updated" in found.why
    pairs = [door(n, updated=n < 5, stratum=str(n % 5), of=noisy(n)) for n in range(10)]
    assert "ways to deal" in whole(pairs).why
    assert judge(doors, first=FIRST, today=FIRST, seed="s").verdict is Verdict.WATCHING
    waiting = [replace(each, since=None) for each in doors]
    assert whole(waiting).verdict is Verdict.WATCHING


def test_whole_sites_are_dealt_where_no_site_is_on_both_sides() -> None:
    """Three doors of one site say the same thing thrice: taken for three, chance looks certain."""

    def of(site: int) -> Callable[[int], float]:
        shared = noisy(site, sigma=0.02)
        return lambda day: shared(day) * (0.9 if site < 5 and day >= FIRST else 1)

    doors = [
        door(3 * site + n, updated=site < 5, site=f"site-{site}", of=of(site))
        for site in range(10)
        for n in range(3)
    ]
    ways = math.comb(10, 5)
    panel = counts._panel(doors, start=FIRST, end=FIRST + LOOKS)
    ((labels, groups),) = counts._deals(panel)
    assert len(labels) == len(groups) == 10
    assert whole(doors, rule=Rule(error_loss=0.9 / ways)).verdict is Verdict.UNKNOWN
    mixed = [replace(each, site="all") for each in doors]
    assert len(counts._deals(counts._panel(mixed, start=FIRST, end=FIRST + LOOKS))[0][0]) == 30


# -- the error -----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.001, 0.2),
    st.integers(1, LOOKS),
    st.sampled_from([1e-6, 0.1, 1.0, 3.0]),
)
def test_no_more_deals_cross_by_any_look_than_the_error_that_is_spent_by_then(
    seed: int, error: float, looks: int, grain: float
) -> None:
    rng = np.random.default_rng(seed)
    z = np.cumsum(rng.normal(size=(500, looks)), axis=1)
    z = np.round(z / grain) * grain  # coarse ones tie
    bars = counts._crossings(z, error, LOOKS).bars
    for look in range(looks):
        crossed = (z[:, : look + 1] > bars[: look + 1]).any(axis=1).sum()
        assert crossed <= spent(error, look + 1, LOOKS) * len(z) + 1e-6
    for row in (0, int(z[:, -1].argmax())):
        alone = np.roll(z, -row, axis=0)
        over = alone[0] > bars
        expected = int(over.argmax()) if over.any() else -1
        assert counts._crossings(alone, error, LOOKS).observed == expected


def test_the_whole_error_is_spent_by_the_last_look_and_little_of_it_by_the_first() -> None:
    assert spent(0.01, LOOKS, LOOKS) == 0.01
    assert spent(0.01, 1, LOOKS) < 0.0006
    assert all(spent(0.01, n, LOOKS) < spent(0.01, n + 1, LOOKS) for n in range(LOOKS))


def test_a_verdict_is_the_seeds_alone_and_more_days_do_not_take_it_back() -> None:
    doors = chain("steady", doors=100, loss=0.15)
    found = whole(doors)
    assert found.halts
    shuffled = random.Random(1).sample(doors, len(doors))
    assert whole(shuffled) == found
    halted = found.looks[-1].number
    assert halted < LOOKS
    early = whole(doors, today=FIRST + halted)
    assert early.halts
    assert early.looks[-1].number == halted


# -- what a plan says of it ----------------------------------------------------------------------


def test_a_plan_says_what_cannot_be_found_and_less_of_it_with_more_doors() -> None:
    found = []
    for doors in (30, 120):
        told = sensitivity(chain("plan", doors=doors, loss=0), today=FIRST, seed="s")
        assert isinstance(told, Sensitivity)
        assert 0 < told.loss_80 < told.loss_90 < 0.6
        found.append(told.loss_90)
    assert found[1] < found[0]
    twice = [
        sensitivity(chain("plan", doors=60, loss=0), today=FIRST, seed="s", looks=looks)
        for looks in (2, LOOKS)
    ]
    assert isinstance(twice[0], Sensitivity)
    assert isinstance(twice[1], Sensitivity)
    assert twice[0].loss_90 > twice[1].loss_90
    assert "whole day" in str(sensitivity([], today=FIRST, seed="s", looks=0))


def test_a_plan_of_too_few_doors_says_why_nothing_can_be_found() -> None:
    assert "it takes 5 of each" in str(
        sensitivity(chain("few", doors=8, loss=0), today=FIRST, seed="")
    )


def test_looks_begin_once_most_doors_are_updated_or_after_three_days() -> None:
    assert first_look([5] * 8 + [6, 30]) == 5
    assert first_look([5] * 7 + [6] * 3) == 6
    assert first_look([5, 6, 20, 21, 22]) == 8


# -- the evaluation, in short --------------------------------------------------------------------


def verdict(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = eval_firmware.main(["--short"])
    out = capsys.readouterr().out
    return code, [line for line in out.splitlines() if line.startswith("broken: ")]


def test_every_promise_of_the_guard_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "LEEDS", LEEDS / "nowhere")
    assert verdict(capsys) == (0, [])


def test_a_guard_that_takes_chance_for_a_loss_or_misses_losses_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "SHORT", 2)
    real = counts._crossings
    for factor, broken in ((125.0, "halts without"), (1e-9, "a loss of 5 %")):
        monkeypatch.setattr(
            counts, "_crossings", lambda z, error, looks, f=factor: real(z, f * error, looks)
        )
        code, lines = verdict(capsys)
        assert code == 1
        assert any(broken in line for line in lines)
