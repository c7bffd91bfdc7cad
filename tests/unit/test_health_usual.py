"""What a counter is used to beside its neighbours, whoever of these is known."""

import random

import pytest

from server.health.usual import AHEAD_DAYS, Door, Usual, learn
from server.insight.profile import Cell, Counter

DAYS = 70
TODAY = 1_000 + DAYS
START_S = 1_700_006_400


def cells() -> list[Cell]:
    """Return ten hours a day, of the same week over and over, and the days ahead."""
    return [
        Cell(at, at + 3_600, (day % 7) * 24 + hour, 1_000 + day, 3_600)
        for day in range(DAYS + AHEAD_DAYS)
        for hour in range(10)
        for at in (START_S + (day * 24 + hour) * 3_600,)
    ]


def door(seed: int, *, scatter: float, known_from: int = 0) -> Door:
    """Return a counter of some 400 an hour, whose share of them scatters from hour to hour."""
    rng = random.Random(seed)
    visits: list[float | None] = []
    for day in range(DAYS):
        for _ in range(10):
            count = float(round(max(0.0, rng.gauss(400, 400 * scatter))))
            visits.append(count if day >= known_from else None)
    blank: list[float | None] = [None] * (AHEAD_DAYS * 10)
    coverage = [None if each is None else 1.0 for each in visits]
    way = Counter(visits + blank, coverage + blank)
    return Door(way, way)


def learnt(*doors: Door) -> list[Usual]:
    return learn(cells(), doors, today=TODAY)


def test_a_door_that_was_never_heard_hides_nothing_of_how_the_others_share() -> None:
    steady, other = door(1, scatter=0.07), door(2, scatter=0.07)
    alone = learnt(steady, other)
    beside = learnt(steady, other, door(3, scatter=0.07, known_from=DAYS))
    assert [each.share_variance for each in beside[:2]] == pytest.approx(
        [each.share_variance for each in alone]
    )
    assert all(each.share_variance < 0.03 for each in alone)


def test_the_share_of_a_door_that_scatters_more_is_less_sure() -> None:
    calm, wild, _ = learnt(*(door(n, scatter=0.3 if n == 2 else 0.07) for n in (1, 2, 3)))
    assert calm.share_variance < 0.06 < wild.share_variance
