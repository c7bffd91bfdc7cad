"""A hundred devices through a year of renewals, with a rollover in the middle of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ops.services.stack import Stack
from ops.year import SETTLED, Year, flat, year

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

DEVICES, SEED = 100, 7


async def test_nobody_is_stranded_in_a_year_with_absences_and_a_rollover(
    stack: Stack, database: str, tmp_path: Path
) -> None:
    found = await year(
        stack.endpoints.dsn("ingest", database),
        stack.endpoints.dsn("owner", database),
        tmp_path / "pki",
        devices=DEVICES,
        seed=SEED,
    )
    assert found.problems() == []
    assert found.lapses > 0, "none was away for longer than its certificate held"
    assert found.proved > 0.9 * DEVICES
    assert found.on_next > DEVICES / 2
    assert sum(found.real) > DEVICES
    assert "year passed" in list(found.lines())[-1]


def test_a_burst_or_a_day_without_is_not_flat() -> None:
    even = [100] * 365
    assert flat(even, chance=False)
    for day, number in ((SETTLED, 121), (200, 79), (364, 0)):
        assert not flat([*even[:day], number, *even[day + 1 :]], chance=False)
    for number, chance in ((130, True), (50, True), (170, False), (40, False), (0, False)):
        assert flat([*even[:200], number, *even[201:]]) is chance


def test_a_few_devices_come_as_chance_has_it() -> None:
    """A hundred renew 0.42 times a day, and four of them at once on one day in a thousand."""
    for number, chance in ((4, True), (6, True), (12, False)):
        assert flat([*[0] * 260, number, *[1] * 104]) is chance


def test_a_year_says_what_went_wrong() -> None:
    found = Year(1, real=[1] * 365, plan=[1] * 365)
    assert found.passed
    found.stranded.add("door-year00000")
    found.untrusting = 3
    assert not found.passed
    assert list(found.lines())[-1].startswith("year FAILED: 1 devices, 365 renewals, 1 devices str")
