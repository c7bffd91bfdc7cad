"""Who is inside, through the database and the API."""

from datetime import date, datetime

import pytest

from tests.integration.api_world import World
from tests.integration.months_world import ZONE, Quarter, quarters_of, store

pytestmark = pytest.mark.services

FIRST, DAYS = date(2026, 3, 2), 32  # to the 2nd of April, the world's today, 14:00 there
NOW = datetime(2026, 4, 2, 14, 0, tzinfo=ZONE)


async def shop(world: World, *, hole: datetime | None = None) -> None:
    """Make a shop open 10 to 18 of whose exits one in ten is not seen, observed day and night."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(600, 1080))
    door = await world.spot(organisation, site, "door")
    rows = []
    for at in quarters_of(FIRST, DAYS, hours=(0, 24)):
        if at >= NOW or at == hole:
            continue
        inside_hours = 10 <= at.hour < 18
        entered = 20 if inside_hours and at.hour < 17 else 0
        left = 18 if inside_hours and at.hour >= 11 else 0
        rows.append(Quarter(door, at, entered, left))
    await store(world, rows)


async def test_an_evening_is_back_corrected_and_today_is_live(world: World) -> None:
    await shop(world)
    answer = await world.get("/occupancy?from=2026-04-01&to=2026-04-03")
    by_time = {row["local"][:16]: row for row in answer["data"]}
    at_11 = by_time["2026-04-01T11:00"]
    assert (at_11["kind"], at_11["raw"]) == ("back_corrected", 80)
    crossings, drift = 28 * 38, (28 * 20 - 28 * 18) / (28 * 38)
    assert at_11["occupancy"] == pytest.approx(80 - drift * 80, abs=0.1)
    assert by_time["2026-04-01T18:30"]["occupancy"] == 0
    assert by_time["2026-04-01T18:30"]["raw"] == 56
    last = answer["data"][-1]
    assert (last["local"][:16], last["kind"]) == ("2026-04-02T14:00", "live")
    assert last["low"] <= last["occupancy"] <= last["high"]
    assert last["occupancy"] == pytest.approx(80 + 12 * 2 - drift * (80 + 12 * 38), abs=0.1)
    done, lasting = answer["turns"][-2:]
    assert done["drift"] == pytest.approx(drift, abs=1e-5)
    assert (done["drift_alert"], done["verified"], done["dwell"]) == (True, True, "derived")
    assert done["visits"] + done["exits"] == crossings
    assert 3000 < done["mean_dwell_s"] < 5400
    assert (lasting["drift"], lasting["mean_dwell_s"]) == (None, None)


async def test_after_a_hole_nobody_is_said_to_be_inside(world: World) -> None:
    await shop(world, hole=datetime(2026, 4, 1, 12, 0, tzinfo=ZONE))
    answer = await world.get("/occupancy?from=2026-04-01&to=2026-04-02&site=site")
    by_time = {row["local"][11:16]: row for row in answer["data"]}
    assert by_time["12:00"]["occupancy"] is not None
    assert {by_time[at]["occupancy"] for at in ("12:15", "15:00", "18:00")} == {None}
    assert {by_time[at]["kind"] for at in ("12:15", "15:00", "18:00")} == {"unknown"}
    assert answer["turns"][-2]["covered"] is False


async def test_a_site_nobody_counts_at_has_nobody_known_inside(world: World) -> None:
    organisation = await world.organisation("own")
    await world.site(organisation, "empty")
    answer = await world.get("/occupancy?from=2026-04-01&to=2026-04-02")
    assert {row["kind"] for row in answer["data"]} <= {"unknown"}


async def test_pages_of_occupancy_go_from_site_to_site(world: World) -> None:
    await shop(world)
    organisation = await world.owner.fetchval("select id from organisations")
    for number in range(3):
        site = await world.site(organisation, f"s{number}")
        await world.spot(organisation, site, f"p{number}")
    span = "from=2026-04-01&to=2026-04-02"
    whole = (await world.get(f"/occupancy?{span}"))["data"]
    found, page = [], await world.get(f"/occupancy?{span}&limit=100")
    found += page["data"]
    while page["next"]:
        page = await world.get(f"/occupancy?{span}&limit=100&cursor={page['next']}")
        found += page["data"]
    assert found == whole
    assert len({row["site"] for row in whole}) == 4


async def test_a_question_too_long_or_of_a_spot_is_refused(world: World) -> None:
    await shop(world)
    status, body = await world.ask("/occupancy?from=2026-01-01&to=2026-04-02")
    assert (status, body["code"]) == (422, "range_too_long")
    status, body = await world.ask("/occupancy?from=2026-04-01&to=2026-04-02&spot=door")
    assert (status, body["code"], body["parameter"]) == (400, "unknown_parameter", "spot")
