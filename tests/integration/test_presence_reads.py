"""What pages and the API say of devices: states with why, timelines, metrics, stability."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.db.engine import reading
from server.health import reads
from server.health.presence import State
from tests.integration.api_world import NOW, World

pytestmark = pytest.mark.services


async def fleet(world: World) -> int:
    """Add an organisation with a healthy device, one that is offline and one never seen."""
    organisation = await world.organisation("own")
    site = await world.site(organisation, "site", hours=(600, 1200))
    for ref in ("well", "gone", "new"):
        await world.spot(organisation, site, ref)
    since = NOW - timedelta(hours=30)
    await world.owner.execute(
        "update presences p set state = 'healthy', session = 'open', epoch = 1, session_at = $1, "
        "since = $1, heartbeat_at = $1, agent = 'vestibule 1' from devices d "
        "where d.id = p.device_id and d.device <> 'device-new'",
        since,
    )
    await world.owner.execute(
        "update presences p set state = 'offline', session = 'lost', session_at = $1, since = $1 "
        "from devices d where d.id = p.device_id and d.device = 'device-gone'",
        NOW - timedelta(hours=2),
    )
    rows = [("device-well", 30, "connected"), ("device-gone", 30, "connected")]
    for device, hours, kind in [*rows, ("device-gone", 2, "lost")]:
        await world.owner.execute(
            "insert into device_events (organisation_id, device_id, at, kind, detail) select "
            "organisation_id, id, $2, $3, jsonb_build_object('agent', 'vestibule 1') "
            "from devices where device = $1",
            *(device, NOW - timedelta(hours=hours), kind),
        )
    return organisation


async def test_the_presence_of_all_is_listed_with_why(world: World) -> None:
    await fleet(world)
    rows = (await world.get("/presence"))["data"]
    assert {row["device"]: row["state"] for row in rows} == {
        "device-gone": "offline",
        "device-new": "never seen",
        "device-well": "healthy",
    }
    gone = rows[0]
    assert gone["why"].startswith("Its connection was lost at ")
    assert (gone["site"], gone["spot"], gone["agent"]) == ("site", "gone", "vestibule 1")
    some = (await world.get("/presence?state=offline,never%20seen&limit=1"))["data"]
    assert [row["device"] for row in some] == ["device-gone"]
    status, problem = await world.ask("/presence?state=broken")
    assert (status, problem["code"]) == (400, "bad_parameter")


async def test_one_device_says_how_it_is_and_what_happened(world: World) -> None:
    await fleet(world)
    found = await world.get("/devices/device-gone")
    assert (found["presence"]["state"], found["heartbeat_limit_s"]) == ("offline", 2_700)
    page = await world.get("/devices/device-gone/events?limit=1")
    assert [event["kind"] for event in page["data"]] == ["lost"]
    rest = await world.get(f"/devices/device-gone/events?limit=1&cursor={page['next']}")
    assert [event["kind"] for event in rest["data"]] == ["connected"]
    assert rest["next"] is None
    assert (await world.ask("/devices/device-nobody"))[0] == 404
    assert (await world.ask("/devices/device-nobody/events"))[0] == 404


async def test_while_nobody_can_tell_every_why_says_so(world: World) -> None:
    await fleet(world)
    await world.owner.execute(
        "insert into platform_unknown (since, cause) values ($1, 'broker')", NOW
    )
    rows = (await world.get("/presence"))["data"]
    assert all(row["why"].startswith("Nobody can tell just now: the broker") for row in rows)
    assert [row["state"] for row in rows] == ["offline", "never seen", "healthy"]


async def test_counts_by_state_leave_out_what_is_retired(world: World) -> None:
    organisation = await fleet(world)
    await world.owner.execute("update devices set state = 'retired' where device = 'device-new'")
    async with reading(world.api, "test", organisation=organisation) as connection:
        found = await reads.counts(connection)
    assert found == dict.fromkeys(State, 0) | {State.HEALTHY: 1, State.OFFLINE: 1}


async def test_metrics_come_as_stretches_with_their_mean_and_range(world: World) -> None:
    await fleet(world)
    await world.owner.execute("insert into metric_names (name) values ('cpu.load'), ('uptime.s')")
    start = datetime(2026, 3, 3, tzinfo=UTC)
    for minute, value in enumerate((1.0, 3.0, 8.0, 0.0)):
        await world.owner.execute(
            "insert into device_metrics select $1, d.id, 1, 1, 1, n.id, $2 from devices d, "
            "metric_names n where d.device = 'device-well' and n.name = 'cpu.load'",
            *(start + timedelta(minutes=30 * minute), value),
        )
    asked = "/devices/device-well/metrics?from=2026-03-03T00:00&to=2026-03-03T02:00&points=2"
    rows: list[dict[str, Any]] = (await world.get(asked))["data"]
    told = [(row["metric"], row["at"][11:16], row["mean"], row["most"]) for row in rows]
    assert told == [("cpu.load", "00:00", 2.0, 3.0), ("cpu.load", "01:00", 4.0, 8.0)]
    assert (await world.get(f"{asked}&name=uptime.s"))["data"] == []
    status, problem = await world.ask("/devices/device-well/metrics?from=2024-01-01&to=2026-01-01")
    assert (status, problem["code"]) == (400, "bad_parameter")


async def test_stability_is_told_by_model_and_version(world: World) -> None:
    await fleet(world)
    await world.owner.execute(
        "insert into metric_names (name) values ('boot.reason'), ('boot.count'); "
        "insert into device_events (organisation_id, device_id, at, kind, detail) select "
        "organisation_id, id, now(), 'boot', '{}' from devices where device = 'device-well'"
    )
    await world.owner.execute(
        "update device_events set at = $1, detail = '{\"ordinal\": 7}' where kind = 'boot'",
        NOW - timedelta(hours=5),
    )
    for name, value in (("boot.reason", 3.0), ("boot.count", 7.0)):
        await world.owner.execute(
            "insert into device_metrics select $1, d.id, 1, 1, 1, n.id, $2 from devices d, "
            "metric_names n where d.device = 'device-well' and n.name = $3",
            *(NOW - timedelta(hours=4.9), value, name),
        )
    day = NOW - timedelta(hours=20)
    asked = f"/stability?from={day:%Y-%m-%dT%H:%M}Z&to={NOW:%Y-%m-%dT%H:%M}Z"
    (row,) = (await world.get(asked))["data"]
    assert (row["agent"], row["devices"], row["crashes"]) == ("vestibule 1", 2, 1)
    assert (row["expected_hours"], row["connected_hours"]) == (40.0, 38.0)
    assert row["hours"] - row["crash_free_hours"] == 1
