"""The demo's people: as many live as in the history at that hour, and shops that close."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from ops.demo.world import SEED, PlannedSite, blind_stretch, moment, stretches, the_world
from simulators.traffic import people

STOCKHOLM = ZoneInfo("Europe/Stockholm")
HOUR_MS, WEEK = 3_600_000, timedelta(days=7)
ENOUGH = 400  # fewer people differ by chance alone
SITES = [site for organisation in the_world() for site in organisation.sites]


def ms(local: datetime) -> int:
    return round(local.timestamp() * 1000)


def entered_by_hour(site: PlannedSite, midnight: datetime) -> Counter[int]:
    """Return how many have entered a site by the end of each hour of a local day."""
    found: Counter[int] = Counter()
    start, end = ms(midnight), ms(midnight + timedelta(days=1))
    for device in site.devices:
        if device.kind == "counter":
            for person in people(device.door, seed=SEED, start_ms=start, end_ms=end):
                found[(person.at_ms - start) // HOUR_MS] += person.entering
    return Counter({hour: sum(found[h] for h in range(hour + 1)) for hour in range(24)})


@pytest.mark.parametrize(
    "day", [datetime(2026, 11, 22, tzinfo=UTC), datetime(2027, 1, 5, tzinfo=UTC)]
)
def test_a_day_under_way_is_like_the_weekday_before_at_every_hour(day: datetime) -> None:
    for site in SITES:
        midnight = day.replace(tzinfo=ZoneInfo(site.zone))
        today, before = entered_by_hour(site, midnight), entered_by_hour(site, midnight - WEEK)
        for hour in range(24):
            if before[hour] >= ENOUGH:
                assert 0.7 < today[hour] / before[hour] < 1.3, (site.name, hour)


@pytest.mark.parametrize("hour", range(24))
def test_the_station_is_alive_at_every_hour(hour: int) -> None:
    [station] = [site for site in SITES if site.hours is None]
    [door] = [device.door for device in station.devices if device.kind == "counter"]
    start = ms(datetime(2026, 11, 22, hour, tzinfo=STOCKHOLM))
    passed = sum(1 for _ in people(door, seed=SEED, start_ms=start, end_ms=start + HOUR_MS))
    assert passed > 1_500  # one in two seconds and a half


@pytest.mark.parametrize(("hour", "open_"), [(3, 1), (12, 20), (20, 2)])
def test_shops_close_and_the_station_does_not(hour: int, open_: int) -> None:
    now = moment(ms(datetime(2026, 11, 23, hour, tzinfo=STOCKHOLM)))
    assert (now.open, now.sites, now.local.hour) == (open_, 20, hour)


def test_the_blind_stretch_is_what_the_station_did_not_record() -> None:
    [blind] = [d for site in SITES for d in site.devices if d.blind]
    end = ms(datetime(2026, 11, 22, 12, tzinfo=UTC))
    before, after = stretches(blind, start_ms=0, end_ms=end)
    assert (before[1], after[0]) == blind_stretch(end)
