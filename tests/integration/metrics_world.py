"""What KPIs are made of in the API's world: quarters counted, goods sold; and who asks for them."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.integration.api_world import ALL_SLOTS, World

ZONE = ZoneInfo("Europe/Stockholm")
TEN = (600, 660)
"""Open from 10 to 11: four quarters of an hour cover a day."""


async def query(world: World, **asked: Any) -> tuple[int, Any]:
    """Return status and answer of a question about the own organisation's KPIs."""
    status, body, _ = await post(world, **asked)
    return status, body


async def post(
    world: World, *, organisation: str = "own", headers: dict[str, str] | None = None, **asked: Any
) -> tuple[int, Any, Mapping[str, str]]:
    """Ask about an organisation's KPIs; return status, answer (a table's text) and headers."""
    body = {name.rstrip("_"): value for name, value in asked.items()}
    sent = {"Authorization": f"Bearer {world.keys[organisation]}", **(headers or {})}
    async with world.client.post("/v1/metrics:query", json=body, headers=sent) as response:
        text = await response.text()
        csv_ = response.content_type == "text/csv"
        found = text if csv_ or not text else await response.json(content_type=None)
        return response.status, found, response.headers


async def rows(world: World, **asked: Any) -> list[dict[str, Any]]:
    """Return the rows of an answer that has to be one."""
    status, body = await query(world, **asked)
    assert status == 200, body
    found: list[dict[str, Any]] = body["data"]
    return found


async def mall(world: World) -> tuple[int, int, dict[str, int]]:
    """Add a site with doors of every kind; its visits are those of outer, side and porch."""
    own = await world.organisation("own")
    site = await world.site(own, "shop", hours=TEN)
    names = ("outer", "inner", "side", "mall", "zone", "porch", "deep")
    spots = {name: await world.spot(own, site, name) for name in names}
    doors = {
        name: await world.owner.fetchval(
            "insert into doors (organisation_id, site_id, ref, name) values ($1, $2, $3, $3) "
            "returning id",
            *(own, site, f"door-{name}"),
        )
        for name in (*names, "unseen")
    }
    for name, spot in spots.items():
        await world.owner.execute("update spots set door_id = $2 where id = $1", spot, doors[name])
    for inner, before in (("inner", "outer"), ("porch", "unseen"), ("deep", "porch")):
        await world.owner.execute(
            "update doors set behind_id = $2 where id = $1", doors[inner], doors[before]
        )
    for name, purpose in (("mall", "passage"), ("zone", "zone")):
        await world.owner.execute(
            "insert into mountings (organisation_id, spot_id, purpose) values ($1, $2, $3)",
            *(own, spots[name], purpose),
        )
    return own, site, spots


Quarters = list[tuple[datetime, int, int]]


async def store(world: World, spot: int, quarters: Quarters) -> None:
    """Store quarters (start, in, out) that were observed throughout, and mark them dirty."""
    await world.owner.executemany(
        "insert into rollup_15m (bucket, observed, spot, in0, out0, resolution_s) "
        "values ($1, $2, $3, $4, $5, 60)",
        [(bucket, ALL_SLOTS, spot, entered, left) for bucket, entered, left in quarters],
    )
    await world.owner.execute(
        "insert into rollup_dirty (spots, buckets) values ($1, $2)",
        *([spot] * len(quarters), [bucket for bucket, _, _ in quarters]),
    )


def quarters_of(day: date, *entered: int, left: int = 0, at: int = 10) -> Quarters:
    """Return quarters from 10 o'clock, local time, of a day."""
    start = datetime(day.year, day.month, day.day, at, tzinfo=ZONE).astimezone(UTC)
    return [(start + timedelta(minutes=15 * n), count, left) for n, count in enumerate(entered)]


async def hour(
    world: World, spot: int, day: date, *entered: int, left: int = 0, at: int = 10
) -> None:
    """Count these people in the quarters from 10 o'clock, local time, of a day."""
    await store(world, spot, quarters_of(day, *entered, left=left, at=at))


async def stay(world: World, spot: int, day: date, quarters: int) -> None:
    """Let 20 people in by each quarter from 10 to 12, each of whom leaves `quarters` later."""
    starts = [at for at, _, _ in quarters_of(day, *range(36), at=8)]
    entered = [20 if 8 <= n < 16 else 0 for n in range(36)]
    left = [20 if 8 <= n - quarters < 16 else 0 for n in range(36)]
    await store(world, spot, list(zip(starts, entered, left, strict=True)))


async def sell(
    world: World, organisation: int, site: int, day: date, *amounts: float, at: int = 10
) -> None:
    """Sell two units for each amount; negative ones are returns."""
    start = datetime(day.year, day.month, day.day, at, tzinfo=ZONE)
    await world.owner.executemany(
        "insert into transactions (organisation_id, site_id, transaction_ref, at, amount, "
        "units, kind) values ($1, $2, $3, $4, $5, 2, $6)",
        [
            (
                *(organisation, site, f"{start}-{number}", start + timedelta(minutes=number)),
                *(abs(amount), "sale" if amount > 0 else "return"),
            )
            for number, amount in enumerate(amounts)
        ],
    )


async def chain(world: World) -> None:
    """Make four shops of two regions with ten days of visits and sales each; one has a gap."""
    own = await world.organisation("own")
    await world.organisation("other")
    for number in range(4):
        site = await world.site(own, f"shop-{number}", hours=TEN)
        region = await world.owner.fetchval(
            "insert into regions (organisation_id, ref, name) values ($1, $2, $2) "
            "on conflict (ref) do update set name = excluded.name returning id",
            *(own, f"region-{number % 2}"),
        )
        if number < 3:
            await world.owner.execute("update sites set region_id = $2 where id = $1", site, region)
        spot = await world.spot(own, site, f"door-{number}")
        days = [date(2026, 3, 2) + timedelta(days=offset) for offset in range(10)]
        counted: Quarters = []
        for offset, day in enumerate(days):
            if (number, offset) != (1, 3):
                counted += quarters_of(day, 10 + number, 20, 30 + offset, 5, left=3)
        await store(world, spot, counted)
        for offset, day in enumerate(days):
            if number != 2:
                await sell(world, own, site, day, *[20.0 + number + offset] * (offset % 4 + 1), -5)
    await world.derive()
