"""From judgements to one message: a fleet of two thousand in trouble, and who hears of it."""

import json

import pytest

from server.health.judgement import Condition, Severity, Standing, SubjectKind
from tests.integration.health_world import Fleet
from tests.integration.health_world import fleet as fleet

pytestmark = pytest.mark.services
FIRING, CLEAR, UNKNOWN = Standing.FIRING, Standing.CLEAR, Standing.UNKNOWN


async def test_a_site_outage_of_forty_devices_is_one_incident_and_one_message(
    fleet: Fleet,
) -> None:
    await fleet.grow(sites=50, each=40)
    await fleet.contact()
    site = fleet.sites[7]
    gone = fleet.devices[site]
    for start in range(0, 40, 10):  # keepalives end one after the other
        await fleet.stand(FIRING, gone[start : start + 10])
        await fleet.go(20, step=20)
    await fleet.go(600)
    (incident,) = await fleet.incidents()
    assert (incident["subject"], incident["subject_id"], incident["condition"]) == (
        *("site", site),
        "site_offline",
    )
    assert await fleet.mails() == ["[critical] site offline: Shop 7"]
    assert await fleet.told() == [("incident.opened", "Shop 7")]
    body = fleet.office.taken[0].get_content()
    assert "Devices: 40" in body
    assert "Call the shop" in body
    episodes = await fleet.episodes(open_only=True)
    assert len(episodes) == 41
    assert {row["suppressed"] for row in episodes if row["subject"] == "device"} == {"inhibited"}
    assert {row["incident_id"] for row in episodes} == {incident["id"]}
    merged = await fleet.incidents(state="merged")
    assert all(row["told_at"] is None for row in merged)

    await fleet.stand(CLEAR, gone[:39])
    await fleet.go(900)
    (left,) = await fleet.incidents()  # the one that stayed away has its time anew, then is told
    assert (left["condition"], left["device_id"]) == ("offline", gone[39])
    assert set((await fleet.mails())[1:]) == {
        "Resolved: [critical] site offline: Shop 7",
        "[critical] offline: Door 40 at Shop 7",
    }
    assert ("waits", "no_longer_explained") in await fleet.why(left["id"])


async def test_who_comes_back_with_the_site_is_told_of_no_more(fleet: Fleet) -> None:
    await fleet.grow(sites=2, each=10)
    await fleet.contact()
    gone = fleet.devices[fleet.sites[0]]
    await fleet.stand(FIRING, gone)
    await fleet.go(400)
    await fleet.stand(CLEAR, gone[:6])
    await fleet.go(130, step=10)  # the site is back, four devices still start
    await fleet.stand(CLEAR, gone[6:])
    await fleet.go(900)
    assert await fleet.mails() == [
        "[critical] site offline: Shop 0",
        "Resolved: [critical] site offline: Shop 0",
    ]
    assert await fleet.incidents() == []


async def test_flapping_devices_are_one_held_episode_each(fleet: Fleet) -> None:
    await fleet.grow(sites=20, each=100)
    await fleet.contact()
    flapping = [devices[0] for devices in fleet.devices.values()]  # 1 %
    for _ in range(12):
        await fleet.stand(FIRING, flapping)
        await fleet.go(150, step=150)
        await fleet.stand(CLEAR, flapping)
        await fleet.go(90, step=90)  # shorter than what counts as clear
    episodes = await fleet.episodes()
    assert [row["subject_id"] for row in episodes] == flapping
    assert {(row["held"], row["times"], row["resolved_at"]) for row in episodes} == {
        (True, 12, None)
    }
    assert len(await fleet.incidents()) == 20
    assert len(await fleet.mails()) == 20
    await fleet.go(1_900, step=100)
    assert await fleet.incidents() == []
    assert len(await fleet.mails()) == 40
    assert len(await fleet.episodes()) == 20


async def test_what_clears_within_its_wait_tells_nobody_and_says_so(fleet: Fleet) -> None:
    await fleet.grow(sites=1, each=3)
    await fleet.contact()
    device = fleet.devices[fleet.sites[0]][0]
    await fleet.stand(FIRING, [device])
    await fleet.go(150)
    assert len(await fleet.incidents()) == 1
    await fleet.stand(CLEAR, [device])
    await fleet.go(600)
    (over,) = await fleet.incidents(state="resolved")
    assert await fleet.why(over["id"]) == [
        ("opened", "wait"),
        ("held", "wait"),
        ("ended", "cleared_untold"),
    ]
    assert (await fleet.mails(), await fleet.told()) == ([], [])


async def test_a_broker_restart_is_one_incident_of_the_platform_and_no_device_is_gone(
    fleet: Fleet,
) -> None:
    """Through the rows that presence writes: its overlay is one row, and no state moves."""
    await fleet.grow(sites=50, each=40)
    await fleet.contact()
    await fleet.contact("ops@example.com", of_platform=True)
    await fleet.owner.execute(
        "update presences set state = 'healthy', since = $1, session = 'open', session_at = $1",
        fleet.now,
    )
    await fleet.engine.turn()
    await fleet.owner.execute(
        "insert into platform_unknown (since, cause) values ($1, 'broker')", fleet.now
    )
    for _ in range(15):
        fleet.world.clock.advance(10)
        await fleet.engine.turn()
    (incident,) = await fleet.incidents()
    assert (incident["subject"], incident["organisation_id"]) == ("platform", None)
    await fleet.owner.execute("update platform_unknown set until = $1", fleet.now)
    for _ in range(30):
        fleet.world.clock.advance(10)
        await fleet.engine.turn()
    assert await fleet.mails() == [
        "[critical] platform unknown: the platform",
        "Resolved: [critical] platform unknown: the platform",
    ]
    assert {line.split("<")[1] for line in fleet.office.to} == {"ops@example.com>"}
    assert [row["subject"] for row in await fleet.episodes()] == ["platform"]
    assert await fleet.told() == []


async def test_the_uplink_lost_and_back_resolves_and_fires_nothing_anew(fleet: Fleet) -> None:
    await fleet.grow(sites=20, each=40)
    await fleet.contact()
    gone = [devices[0] for devices in fleet.devices.values()][:5]
    await fleet.stand(FIRING, gone)
    await fleet.go(600)
    before = [dict(row) for row in await fleet.episodes()]
    mails = await fleet.mails()
    assert (len(before), len(mails)) == (5, 5)
    everybody = [device for devices in fleet.devices.values() for device in devices]
    lost = [device for device in everybody if device not in gone]
    await fleet.stand(FIRING, lost[:200])  # wills that came before it was known
    await fleet.go(5, step=5)
    await fleet.platform(FIRING)
    await fleet.go(1_800, step=60)
    await fleet.stand(UNKNOWN, everybody)
    await fleet.go(600, step=60)
    await fleet.platform(CLEAR)
    await fleet.stand(FIRING, [*gone, *lost[:200]])
    await fleet.go(50, step=25)
    await fleet.stand(CLEAR, lost)  # all of them came back within their time
    await fleet.go(900, step=60)
    kept = [dict(row) for row in await fleet.episodes() if row["subject"] == "device"]
    assert kept == before
    assert await fleet.mails() == mails
    assert len(await fleet.told()) == 5
    (one, *_) = await fleet.incidents()
    assert ("held", "platform_unknown") in await fleet.why(one["id"])


async def test_what_a_silent_device_seems_to_do_wrong_is_part_of_its_silence(
    fleet: Fleet,
) -> None:
    await fleet.grow(sites=1, each=3)
    await fleet.contact(severity=Severity.MINOR)
    site = fleet.sites[0]
    device = fleet.devices[site][1]
    spot = await fleet.owner.fetchval(
        "select spot_id from assignments where device_id = $1", device
    )
    await fleet.stand(FIRING, [spot], Condition.FLATLINE, SubjectKind.SPOT)
    await fleet.go(60)
    assert [row["condition"] for row in await fleet.incidents()] == ["flatline"]
    await fleet.stand(FIRING, [device])
    await fleet.go(600)
    (incident,) = await fleet.incidents()
    assert incident["condition"] == "offline"
    (merged,) = await fleet.incidents(state="merged")
    assert merged["merged_into"] == incident["id"]
    assert await fleet.why(merged["id"]) == [
        ("opened", "wait"),
        ("held", "wait"),
        ("merged", "inhibited"),
    ]
    assert await fleet.mails() == ["[critical] offline: Door 2 at Shop 0"]
    row = await fleet.owner.fetchrow(
        "select evidence::text from episodes where condition = 'offline'"
    )
    assert json.loads(row[0]) == {}
