"""What others have judged is found, what matters most comes first, and the API says why."""

import json
from datetime import timedelta
from typing import Any

import pytest

from server.api.keys import create_api_key
from server.health import ranking
from server.health.judgement import Severity, Standing
from tests.integration.api_world import World, utc
from tests.integration.health_world import Fleet
from tests.integration.health_world import fleet as fleet
from tests.integration.people_world import People

pytestmark = pytest.mark.services
FIRING, CLEAR = Standing.FIRING, Standing.CLEAR


async def states(fleet: Fleet, devices: list[int], state: str) -> None:
    """Let presence say so of devices."""
    session = {"offline": "lost", "offline planned": "left"}.get(state, "open")
    await fleet.owner.execute(
        "update presences set state = $2, since = $3, session = $4, session_at = $3 "
        "where device_id = any($1::int[])",
        *(devices, state, fleet.now, session),
    )


async def turns(fleet: Fleet, seconds: int, *, step: int = 30) -> None:
    for _ in range(seconds // step):
        fleet.world.clock.advance(step)
        await fleet.engine.turn()


async def test_what_presence_and_checks_have_judged_is_found_once_and_followed(
    fleet: Fleet,
) -> None:
    await fleet.grow(sites=2, each=4)
    first, second, *others = fleet.devices[fleet.sites[0]]
    await states(fleet, [first, second, *others], "healthy")
    assert (await fleet.engine.turn()).opened == 0
    await states(fleet, [first], "offline")
    await states(fleet, [second], "no data")
    await turns(fleet, 300)
    found = [(row["subject_id"], row["condition"]) for row in await fleet.episodes(open_only=True)]
    assert found == [(first, "offline"), (second, "no_data")]
    await states(fleet, [second], "offline")  # nobody can tell of its data any more
    await turns(fleet, 300)
    found = [(row["subject_id"], row["condition"]) for row in await fleet.episodes(open_only=True)]
    assert (second, "no_data") in found
    assert (second, "offline") in found
    await states(fleet, [first, second], "healthy")
    await turns(fleet, 300)
    assert await fleet.episodes(open_only=True) == []
    assert len(await fleet.episodes()) == 3

    spot = await fleet.owner.fetchval("select spot_id from assignments where device_id = $1", first)
    await fleet.owner.execute(
        "insert into judgements (organisation_id, spot_id, condition, standing, firing, since, "
        "evidence, affected_from, judged_at, changed_at) "
        "values ($1, $2, 'flatline', 'firing', true, $3, $4, $3, $3, $3)",
        *(fleet.organisation, spot, fleet.now - timedelta(hours=3), '{"silent_s": 10800}'),
    )
    await turns(fleet, 60)
    (episode,) = await fleet.episodes(open_only=True)
    assert (episode["spot_id"], episode["device_id"]) == (spot, first)
    assert json.loads(episode["evidence"]) == {"silent_s": 10_800}
    await fleet.owner.execute("update judgements set standing = 'unknown'")
    await turns(fleet, 600)
    assert len(await fleet.episodes(open_only=True)) == 1
    await fleet.owner.execute("update judgements set withdrawn_at = $1", fleet.now)
    await turns(fleet, 300)  # somebody has said that it is false
    assert await fleet.episodes(open_only=True) == []


async def test_what_is_open_of_a_device_ends_with_its_life(fleet: Fleet) -> None:
    await fleet.contact()
    await fleet.grow(sites=1, each=4)
    device = fleet.devices[fleet.sites[0]][0]
    await states(fleet, fleet.devices[fleet.sites[0]], "healthy")
    await states(fleet, [device], "offline")
    await turns(fleet, 400)
    assert len(await fleet.mails()) == 1
    await fleet.owner.execute("update devices set state = 'retired' where id = $1", device)
    await turns(fleet, 120)
    (episode,) = await fleet.episodes()
    assert episode["resolved"] == "left"
    assert await fleet.owner.fetchval("select count(*) from standings") == 0
    assert len(await fleet.mails()) == 2


async def test_what_is_open_of_a_device_that_changed_hands_is_its_last_owners_no_more(
    fleet: Fleet,
) -> None:
    await fleet.contact()
    await fleet.grow(sites=1, each=4)
    device = fleet.devices[fleet.sites[0]][0]
    await states(fleet, fleet.devices[fleet.sites[0]], "healthy")
    await states(fleet, [device], "offline")
    await turns(fleet, 400)
    other = await fleet.world.organisation("other")
    await fleet.owner.execute("delete from assignments where device_id = $1", device)
    await fleet.owner.execute(
        "update devices set organisation_id = $2 where id = $1", device, other
    )
    await turns(fleet, 400)
    last, now = await fleet.episodes()
    assert (last["organisation_id"], last["resolved"]) == (fleet.organisation, "left")
    assert (now["organisation_id"], now["site_id"], now["resolved_at"]) == (other, None, None)
    assert len(await fleet.mails()) == 2  # that it is there, and that it is over


async def test_what_costs_most_visits_today_comes_first_with_what_that_is_made_of(
    fleet: Fleet,
) -> None:
    world = fleet.world
    await fleet.grow(sites=2, each=1)
    quiet, busy = (fleet.devices[site][0] for site in fleet.sites)
    spots = dict(await fleet.owner.fetch("select device_id, spot_id from assignments"))
    await fleet.owner.execute(
        "insert into opening_hours select organisation_id, id, day, 600, 1200 "
        "from sites, generate_series(0, 6) day"
    )
    for device, people in ((quiet, 5), (busy, 40)):
        for week in range(1, 6):
            day = utc("2026-04-02T08:00") - timedelta(weeks=week)  # 10 to 20 o'clock there
            if day < utc("2026-03-29T01:00"):
                day += timedelta(hours=1)
            for quarter in range(40):
                await world.quarter(spots[device], day + timedelta(minutes=15 * quarter), people)
    await world.derive()
    await fleet.stand(FIRING, [quiet])
    await fleet.go(60)
    await fleet.stand(FIRING, [busy])
    await fleet.go(240)  # 12:05 UTC, 14:05 there
    assert await ranking.refresh(world.maint, world.clock) == 2
    first, second = await ranking.ranked(fleet.owner, fleet.organisation, now=fleet.now)
    assert (first.spot, second.spot) == ("spot-2-1", "spot-1-1")
    left_h = 6 - 5 / 60
    assert first.stake == pytest.approx(160 * left_h, abs=1)
    assert second.stake == pytest.approx(20 * left_h, abs=1)
    made: Any = first.stake_of
    assert (made["open_minutes_left"], made["counters"]) == (355, 1)
    assert sum(
        each["usual_visits"] * each["open_minutes_left"] / 60 for each in made["hours"]
    ) == pytest.approx(first.stake, abs=1)
    line = ranking.line_of(first, now=fleet.now)
    assert "Door 1 at Shop 1" in line
    assert f"about {round(first.stake)} visits at stake today" in line
    assert await fleet.owner.fetchval("select count(*) from usual_visits") == 2
    shown = await world.get("/incidents:ranked")
    assert [row["stake"] for row in shown["data"]] == [first.stake, second.stake]
    detail = await world.get(f"/incidents/{first.ref}")
    assert detail["stake_of"]["hours"][0]["usual_visits"] == 160


async def test_the_days_list_of_what_is_open_is_mailed_once_to_who_wants_it(fleet: Fleet) -> None:
    await fleet.contact("list@example.com", severity=Severity.CRITICAL, digest=True)
    await fleet.contact("never@example.com", severity=Severity.CRITICAL)
    await fleet.grow(sites=1, each=4)
    await fleet.owner.execute("update sites set closes_on = '2026-01-01'")  # so it wakes nobody
    await fleet.stand(FIRING, fleet.devices[fleet.sites[0]][:1])
    await fleet.go(300)
    assert await fleet.mails() == []  # it is past seven, and none is due any more
    await fleet.go(19 * 3600, step=1800)
    assert await fleet.mails() == ["What is open in your fleet: 1"]
    text = fleet.office.taken[0].get_content()
    assert "offline: Door 1 at Shop 0" in text
    assert "nobody sees to it" in text
    await fleet.go(3600, step=1800)
    assert len(await fleet.mails()) == 1


async def test_the_api_says_why_nobody_was_told(fleet: Fleet, world: World) -> None:
    await fleet.grow(sites=1, each=4)
    await fleet.stand(FIRING, fleet.devices[fleet.sites[0]][:1])
    await fleet.go(600)
    (row,) = (await world.get("/incidents?open=true"))["data"]
    assert (row["condition"], row["root"], row["decided"]) == ("offline", "Door 1", "new")
    assert row["remedy"].startswith("Check power")
    why = (await world.get(f"/incidents/{row['incident']}/why"))["data"]
    assert [(each["decision"], each["why"]) for each in why] == [
        ("opened", "wait"),
        ("held", "wait"),
        ("opened", "new"),
        ("told", "feed"),
        ("held", "no_contact"),
    ]
    assert all(each["words"] for each in why)
    assert (await world.ask("/incidents/incident-none2345/why"))[0] == 404


async def test_who_may_only_read_sees_to_nothing_and_wrong_rules_are_refused_by_name(
    people: People,
) -> None:
    own = people.organisations["own"]
    keys = {
        scopes: await create_api_key(people.owner, own, "test", scopes=scopes)
        for scopes in (("read",), ("read", "health:write"))
    }
    reader, writer = keys.values()

    async def put(key: str, path: str, body: object, method: str = "PUT") -> tuple[int, str]:
        async with people.browser().request(
            method, f"/v1{path}", json=body, headers={"Authorization": f"Bearer {key}"}
        ) as response:
            return response.status, await response.text()

    assert (await put(reader, "/health-rules", {}))[0] == 403
    for wrong, named in (
        ({"conditions": {"nonsense": {}}}, "nonsense"),
        ({"conditions": {"offline": {"opens_after_s": -5}}}, "opens_after_s"),
        ({"conditions": {"offline": {"repeat_s": 60}}}, "conditions.offline.repeat_s"),
        ({"conditions": {"platform_unknown": {}}}, "platform_unknown"),
        ({"channels": {"critical": ["pigeon"]}}, "pigeon"),
    ):
        status, text = await put(writer, "/health-rules", wrong)
        assert (status, named in text) == (422, True), text
    assert await people.owner.fetchval("select count(*) from health_rules") == 0
    status, text = await put(
        *(writer, "/health-windows", {"kind": "visit", "reason": "x", "ends_at": "2026-04-03"}),
        method="POST",
    )
    assert status == 422
    status, text = await put(
        *(writer, "/health-rules", {"conditions": {"offline": {"wait_s": 0}}, "seen": 0})
    )
    assert status == 200
    (rule,) = [each for each in json.loads(text)["data"] if each["condition"] == "offline"]
    assert (rule["rule"]["wait_s"], rule["changed"]) == (0, ["wait_s"])
    assert (await put(writer, "/health-rules", {"seen": 0}))[0] == 412
