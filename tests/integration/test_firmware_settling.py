"""What layers and publications say once a rollout is over, whatever happened meanwhile."""

import json
from datetime import UTC, datetime

import msgspec
import pytest

from ops.services.stack import Stack
from protocol.questionnaire import read
from server.db.engine import acting
from server.errors import ConflictError
from server.feedback import questionnaires
from server.firmware import acts, showing
from server.firmware.plan import Why
from server.firmware.policy import Caps, Gate
from tests.firmware_world import later
from tests.integration.test_firmware_settings import POLICY, cancel, fleet, layer, write
from tests.integration.test_firmware_showing import opened, shop, shows
from tests.integration.test_kiosk_plan import Shop
from tests.integration.test_questionnaires import content
from tests.steering_world import Agent, Steered

__all__ = ["fleet", "shop"]
pytestmark = pytest.mark.services
SOAKING = msgspec.structs.replace(
    POLICY, gate=Gate(success_pct=90, min_sample=1, soak_s=3_600), caps=Caps(in_flight=4, site=2)
)


async def name_of(fleet: Steered, agent: Agent) -> str:
    found: str = await fleet.world.owner.fetchval(
        "select device from devices where id = $1", agent.row
    )
    return found


async def site_of(fleet: Steered, agent: Agent) -> str:
    found: str = await fleet.world.owner.fetchval(
        "select s.ref from assignments a join spots p on p.id = a.spot_id "
        "join sites s on s.id = p.site_id where a.device_id = $1 and a.valid @> $2::timestamptz",
        *(agent.row, fleet.world.now),
    )
    return found


async def own(fleet: Steered) -> dict[int, dict[str, object]]:
    """Return what devices' own layers say."""
    rows = await fleet.world.owner.fetch(
        "select device_id, entries from settings_layers where scope = 'device'"
    )
    return {
        row["device_id"]: {key: each["value"] for key, each in json.loads(row["entries"]).items()}
        for row in rows
    }


async def move(fleet: Steered, agent: Agent, site: str) -> None:
    """Let a device stand at another site."""
    owner, now = fleet.world.owner, fleet.world.now
    await owner.execute(
        "update assignments set valid = tstzrange(null, $2) where device_id = $1", agent.row, now
    )
    spot = await owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) select organisation_id, id, "
        "'spot-' || gen_random_uuid(), 'Other', 'counter' from sites where ref = $1 returning id",
        site,
    )
    await owner.execute(
        "insert into assignments (organisation_id, device_id, spot_id, valid) "
        "values ($1, $2, $3, tstzrange($4, null))",
        *(fleet.world.organisation, agent.row, spot, now),
    )


async def test_an_edit_of_a_devices_own_layer_outlives_a_rollout_that_began_before_it(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(2)
    ref = await fleet.rollout(POLICY, "device", started=False, health_s=300, frame_s=900)
    await fleet.world.conductor.turn()  # it has begun, and nobody was granted it
    assert await fleet.world.states(ref) == {"planned": 2}
    fleet.world.clock.advance(5)
    await write(fleet, "device", await name_of(fleet, agents[0]), health_s=120)
    await fleet.pass_time(300)
    assert await fleet.world.state(ref) == "completed"
    assert await fleet.world.states(ref) == {"confirmed": 2}  # by the other key
    for agent in agents:
        await fleet.ask(agent)
    assert (fleet.have("health_s"), fleet.have("frame_s")) == ([120, 300], [900, 900])
    assert await own(fleet) == {
        agents[0].row: {"health_s": 120, "frame_s": 900},
        agents[1].row: {"health_s": 300, "frame_s": 900},
    }


async def test_an_edit_of_a_devices_own_layer_since_the_plan_keeps_it_from_beginning(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(2)
    name = await name_of(fleet, agents[1])
    ref = await fleet.rollout(POLICY, "device", started=False, health_s=300)
    fleet.world.clock.advance(5)
    await write(fleet, "device", name, frame_s=900)  # another key
    await write(fleet, "device", name, health_s=120)
    await fleet.pass_time(10)
    assert await fleet.world.state(ref) == "cancelled"
    reason = await fleet.world.owner.fetchval("select reason from rollouts where ref = $1", ref)
    assert reason == f"health_s of {name} was changed by somebody else since the plan"


async def test_who_has_left_the_site_of_a_cancelled_rollout_keeps_nothing_of_it(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(2, each=2)
    home, away = await site_of(fleet, agents[0]), await site_of(fleet, agents[3])
    here = [agent for agent in agents if await site_of(fleet, agent) == home]
    ref = await fleet.rollout(SOAKING, "site", home, health_s=300)
    await fleet.pass_time(120, step_s=15)  # one after the other, at one door
    assert fleet.have("health_s", here) == [300, 300]
    await move(fleet, here[0], away)
    await fleet.ask(here[0])
    assert fleet.have("health_s", here) == [900, 300]
    await cancel(fleet, ref)
    assert fleet.have("health_s", here) == [900, 300]
    assert await own(fleet) == {here[1].row: {"health_s": 300}}


async def test_what_a_device_says_to_its_next_organisation_is_no_word_to_the_one_before(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(2)
    ref, owner = await fleet.rollout(POLICY, health_s=300), fleet.world.owner
    await fleet.ask(agents[0], rounds=1)  # it has the value, and has not said so
    other = await owner.fetchval(
        "insert into organisations (ref, name) values ('others', 'Others') returning id"
    )
    await owner.execute("delete from assignments where device_id = $1", agents[0].row)
    await owner.execute(
        "update devices set organisation_id = $2 where id = $1", agents[0].row, other
    )
    await fleet.ask(agents[0])
    assert fleet.have("health_s") == [900, 900]
    assert await fleet.world.states(ref) == {"accepted": 1, "offered": 1}
    await fleet.pass_time(4_000, step_s=400)
    row = await owner.fetchrow(
        "select state, code, settings from executions where device_id = $1", agents[0].row
    )
    assert tuple(row) == ("lost", "left", None)


async def test_an_offer_is_not_taken_once_a_freeze_began_or_it_was_paused(fleet: Steered) -> None:
    agents = await fleet.fleet(2)
    ref = await fleet.rollout(POLICY, health_s=300)
    assert await fleet.world.states(ref) == {"offered": 2}
    world = fleet.world
    await world.owner.execute(
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, "
        "created_at) values ($1, 'freeze-1', 'Sale', $2, $3, 'Sale', 'user ada', $2)",
        *(world.organisation, world.now, later(world.now, 600)),
    )
    await fleet.ask(agents[0])
    assert fleet.have("health_s") == [900, 900]
    assert await world.states(ref) == {"offered": 1, "planned": 1}
    await world.owner.execute("delete from freezes")
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.pause(*given, reason="to look", actor="user ada", now=world.now)
    await fleet.ask(agents[1])
    assert fleet.have("health_s") == [900, 900]
    assert await world.states(ref) == {"planned": 2}
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.resume(*given, reason="looked", actor="user ada", now=world.now)
    await fleet.pass_time(900, step_s=60)
    assert fleet.have("health_s") == [300, 300]
    await world.agrees(ref)


async def test_what_a_nearer_rollout_brings_outlives_the_end_of_a_wider_one(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(2)
    site = await site_of(fleet, agents[0])
    wider = await fleet.rollout(SOAKING, health_s=300)
    await fleet.pass_time(30)
    nearer = await fleet.rollout(SOAKING, "site", site, health_s=120)
    await fleet.pass_time(30)
    assert fleet.have("health_s") == [120, 300]
    await cancel(fleet, wider)
    assert fleet.have("health_s") == [120, 300]
    assert await own(fleet) == {agents[1].row: {"health_s": 300}}
    await cancel(fleet, nearer)
    assert fleet.have("health_s") == [120, 300]
    assert await layer(fleet) == {}


async def test_a_kiosk_is_sent_as_much_of_what_is_published_as_it_can_take_the_first_first(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [(await shop.published(text))[0] for text in ("One", "Two", "Six")]
    now = datetime.now(UTC)
    plan, contents = await questionnaires.plan_of(shop.owner, shop.row, now=now)
    assert (len(plan.show), len(contents)) == (3, 3)
    size = sum(map(len, contents))
    monkeypatch.setattr(questionnaires, "MOST_CONTENT", size - 1)  # as rollouts may add to it
    plan, contents = await questionnaires.plan_of(shop.owner, shop.row, now=now)
    assert [read(each).hash for each in contents] == [made[2], made[1]]
    assert [each.digest for each in plan.show] == [read(each).digest for each in contents]


HEARD = "update presences set heartbeat_at = $2 where device_id = $1"


async def test_a_kiosk_that_has_never_said_anything_is_left_out_by_that_name(shop: Shop) -> None:
    now = datetime.now(UTC)
    value = {"format": 1, **content("What is new?")}
    given = shop.owner, shop.organisation
    version = await questionnaires.make(*given, name="Visit", value=value, actor="test", now=now)
    left_out = await showing.reach(*given, version.ref, [shop.row], now=now)
    assert left_out == {shop.row: (Why.NEVER_REPORTED, "it has never said anything")}
    await shop.owner.execute(HEARD, shop.row, now)
    assert await showing.reach(*given, version.ref, [shop.row], now=now) == {}


async def test_what_other_kiosks_of_a_site_show_leaves_room_for_this_one(shop: Shop) -> None:
    await shop.published("As ever")
    await shop.owner.execute(HEARD, shop.row, datetime.now(UTC))
    now = datetime.now(UTC)
    value = {"format": 1, **content("What is new?")}
    given = shop.owner, shop.organisation
    version = await questionnaires.make(*given, name="Visit", value=value, actor="test", now=now)
    other = await shop.owner.fetchval(
        "insert into spots (organisation_id, site_id, ref, name, kind) select organisation_id, id, "
        "'spot-other', 'Other', 'kiosk' from sites where ref = 'site-kiosks' returning id"
    )
    await shop.owner.execute(
        "insert into publications (organisation_id, ref, questionnaire_id, site_id, spot_id, "
        "published_at) select organisation_id, 'publication-' || n, questionnaire_id, site_id, $1, "
        "$2 from publications cross join generate_series(1, 16) n",
        *(other, now),
    )
    assert await showing.reach(*given, version.ref, [shop.row], now=now) == {}
    await shop.owner.execute("update publications set spot_id = null")
    with pytest.raises(ConflictError, match="too much is published"):
        await showing.reach(*given, version.ref, [shop.row], now=now)


async def test_what_was_retired_while_a_rollout_soaked_is_published_nowhere_by_its_end(
    shop: Shop, stack: Stack, world_database: str
) -> None:
    async with opened(shop, stack, world_database) as office:
        plans = shop.plans()
        before, _ = await shop.published("As ever")
        version = await office.made("What is new?")
        await office.rollout(version.ref)
        await office.turns(3)
        assert await shows(plans) == bytes.fromhex(version.hex)
        await plans.step()
        assert await office.state() == "confirmed"
        async with acting(office.desk, "act", organisation=shop.organisation) as connection:
            await questionnaires.retire(
                *(connection, shop.organisation, version.ref), actor="user ada", now=office.now
            )
        await office.turns(8)
        assert await shop.owner.fetchval("select state from rollouts") == "completed"
        assert await shows(plans) == before
        assert await shop.owner.fetchval("select count(*) from publications") == 1
        assert await shop.owner.fetchval("select count(shows) from executions") == 0
        said = "select count(*) from audit where act = 'questionnaire published' and actor = $1"
        assert await shop.owner.fetchval(said, "server") == 0
