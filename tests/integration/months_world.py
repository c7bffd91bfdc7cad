"""Months of quarters at once: what the tests of estimates, occupancy and quality start from."""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

import asyncpg

from tests.integration.api_world import ALL_SLOTS

ZONE = ZoneInfo("Europe/Stockholm")


class Owning(Protocol):
    """What has the owner's connection."""

    owner: asyncpg.Connection


class Quarter(NamedTuple):
    """One row of rollup_15m."""

    spot: int
    at: datetime
    entered: int
    left: int
    slots: int = ALL_SLOTS


def quarters_of(first: date, days: int, *, hours: tuple[int, int]) -> Iterator[datetime]:
    """Yield the quarters of the local hours [low, high) of some days, as they come."""
    start = datetime(first.year, first.month, first.day, tzinfo=ZONE)
    end = start + timedelta(days=days)
    at = start.astimezone(UTC)
    while at < end:
        if hours[0] <= (shown := at.astimezone(ZONE)).hour < hours[1]:
            yield shown
        at += timedelta(minutes=15)


async def store(world: Owning, quarters: Iterable[Quarter], *, changed: bool = True) -> None:
    """Store quarters, and note them as changed."""
    rows = list(quarters)
    await world.owner.copy_records_to_table(
        "rollup_15m",
        columns=("bucket", "observed", "spot", "in0", "out0", "resolution_s"),
        records=[(q.at, q.slots, q.spot, q.entered, q.left, 60) for q in rows],
    )
    if not changed:
        return
    days = {(q.spot, q.at.date()): q.at for q in rows}
    hours = {(q.spot, q.at.replace(minute=0)) for q in rows}
    dirty = [(spot, at) for (spot, _), at in days.items()] + sorted(hours)
    for at in range(0, len(dirty), 2_000):
        part = dirty[at : at + 2_000]
        await world.owner.execute(
            "insert into rollup_dirty (spots, buckets) values ($1, $2)",
            [spot for spot, _ in part],
            [when for _, when in part],
        )
