"""Settings on the rollout's engine: real database, real agents' settings, virtual time."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from ops.services.stack import Stack
from server.desired import settings
from server.errors import ConflictError
from server.firmware import acts
from server.firmware.policy import Caps, Gate, Guards, Policy, Ramp, WaveRule
from server.firmware.windows import Always, Rules
from tests.firmware_world import firmware_world, later
from tests.steering_world import Agent, Steered

pytestmark = pytest.mark.services
POLICY = Policy(
    waves=(WaveRule(count=4), WaveRule()),
    gate=Gate(success_pct=90, min_sample=2, soak_s=60),
    guards=Guards(fail_abs=2, fail_pct=50, min_sample=5, counts=False),
    ramp=Ramp(base=600, step=50, top=600),
    caps=Caps(in_flight=4),
    windows=None,
    controls=0,
)


@pytest.fixture
async def fleet(stack: Stack, database: str, tmp_path: Path) -> AsyncIterator[Steered]:
    async with firmware_world(stack, database) as world:
        yield Steered(world, tmp_path)


async def write(fleet: Steered, scope: str, of: str = "", **values: object) -> None:
    """Edit a layer as somebody at the desk."""
    async with fleet.world.act() as connection:
        given = connection, fleet.world.organisation
        place = await settings.place(*given, scope, of)
        await settings.edit(*given, place, values, seen=None, actor="user ada", now=fleet.world.now)


async def layer(fleet: Steered) -> dict[str, object]:
    """Return what the organisation's layer says."""
    text = await fleet.world.owner.fetchval(
        "select entries from settings_layers where scope = 'organisation'"
    )
    return {key: each["value"] for key, each in json.loads(text or "{}").items()}


async def versions(fleet: Steered) -> list[int]:
    rows = await fleet.world.owner.fetch("select version from device_settings order by device_id")
    return [row["version"] for row in rows]


async def cancel(fleet: Steered, ref: str) -> None:
    async with fleet.world.act() as connection:
        await acts.cancel(
            *(connection, fleet.world.organisation, ref),
            reason="no need",
            actor="user ada",
            now=fleet.world.now,
        )
    await fleet.pass_time(15)
    assert await fleet.world.state(ref) == "cancelled"
    for agent in fleet.agents.values():
        await fleet.ask(agent)


async def test_a_value_goes_from_wave_to_wave_and_is_the_layers_own_in_the_end(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(10)
    await write(fleet, "organisation", health_s=600)
    for agent in agents:
        await fleet.ask(agent)
    ref = await fleet.rollout(POLICY, health_s=300)
    await fleet.pass_time(60)
    assert sorted(fleet.have("health_s")) == [300] * 4 + [600] * 6
    for agent in agents:
        await fleet.ask(agent)  # who asks before its wave is told what it has
    assert fleet.have("health_s").count(300) == 4
    assert await layer(fleet) == {"health_s": 600}
    await fleet.pass_time(240)
    assert await fleet.world.state(ref) == "completed"
    assert await fleet.world.states(ref) == {"confirmed": 10}
    assert set(fleet.have("health_s")) == {300}
    assert await layer(fleet) == {"health_s": 300}
    told = await versions(fleet)
    for agent in agents:
        await fleet.ask(agent)  # that the layer says so now is told to nobody
    assert await versions(fleet) == told
    await fleet.world.agrees(ref)


async def test_devices_that_go_back_halt_it_and_all_have_the_value_from_before(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(12)
    await write(fleet, "organisation", broker="one.example:8883")
    for agent in agents:
        await fleet.ask(agent)
    before = fleet.have("broker")
    policy = msgspec.structs.replace(POLICY, waves=(WaveRule(count=6), WaveRule()))
    ref = await fleet.rollout(policy, broker="two.example:8883", started=False)
    wave = json.loads(await fleet.world.owner.fetchval("select plan -> 'waves' -> 0 from rollouts"))
    for row in wave[2:4]:
        fleet.agents[row].reaches = False
    await fleet.pass_time(300)
    assert await fleet.world.state(ref) == "reverted"
    states = await fleet.world.states(ref)
    assert states.pop("reverted by device") == 2  # at the second it has halted
    assert 1 <= states["confirmed"] <= 4
    assert states["cancelled"] == 10 - states["confirmed"]
    (reverse,) = await fleet.world.owner.fetch(
        "select ref from rollouts where reverses is not null"
    )
    assert (await fleet.world.states(reverse["ref"]))["confirmed"] == states["confirmed"]
    for agent in agents:
        await fleet.ask(agent)
    assert fleet.have("broker") == before == ["one.example:8883"] * 12
    assert await layer(fleet) == {"broker": "one.example:8883"}
    assert await fleet.world.owner.fetchval("select count(settings) from executions") == 0
    rows = await fleet.world.owner.fetch(
        "select code, class, from_versions from executions where state = 'reverted by device'"
    )
    assert [tuple(row) for row in rows] == [
        ("reverted", "timeout", '{"broker": "one.example:8883"}')
    ] * 2


async def test_confirmed_counts_what_devices_said_and_nothing_that_was_sent(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(3)
    ref = await fleet.rollout(POLICY, health_s=300)
    for agent in agents:
        await fleet.ask(agent, rounds=1, answered=False)
    assert await fleet.world.states(ref) == {"accepted": 3}
    agents[0].settings = fleet.settings(agents[0].row)  # it starts again: it has heard nothing
    await fleet.ask(agents[0], rounds=1, answered=False)
    assert await fleet.world.states(ref) == {"accepted": 3}
    await fleet.ask(agents[0])
    assert await fleet.world.states(ref) == {"accepted": 2, "confirmed": 1}
    agents[1].fits = False
    await fleet.ask(agents[1])
    row = await fleet.world.owner.fetchrow(
        "select state, code, class from executions where device_id = $1", agents[1].row
    )
    assert tuple(row) == ("failed", "does_not_fit", "refused")
    assert fleet.have("health_s") == [300, 900, 900]


async def test_who_is_cut_off_is_lost_and_told_the_old_value_when_it_is_back(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(3)
    ref = await fleet.rollout(POLICY, health_s=300)
    await fleet.ask(agents[0], rounds=1)  # it takes the value, and is gone before it says so
    agents[0].here = False
    await fleet.world.leave(fleet.world.devices[agents[0].row])
    await fleet.pass_time(90_000, step_s=3_000)
    assert (await fleet.world.states(ref))["lost"] == 1
    await fleet.ask(agents[0])
    assert fleet.have("health_s", agents[:1]) == [900]


async def test_nobody_else_changes_a_key_that_a_rollout_is_changing(fleet: Steered) -> None:
    agents = await fleet.fleet(3)
    ref = await fleet.rollout(POLICY, health_s=300, started=False)
    await write(fleet, "organisation", frame_s=900)  # another key; nothing has begun
    await fleet.world.conductor.turn()
    with pytest.raises(ConflictError, match=f"{ref} is changing health_s here"):
        await write(fleet, "organisation", health_s=600)
    with pytest.raises(ConflictError, match=f"{ref} is changing the same setting"):
        await fleet.rollout(POLICY, health_s=600)
    name = await fleet.world.owner.fetchval(
        "select device from devices where id = $1", agents[0].row
    )
    await write(fleet, "organisation", spread_s=20)
    await write(fleet, "device", name, health_s=120)  # nearer: it counts
    await fleet.pass_time(120)
    assert fleet.have("health_s") == [120, 300, 300]
    assert await fleet.world.states(ref) == {"superseded": 1, "confirmed": 2}
    await fleet.pass_time(120)
    assert await fleet.world.state(ref) == "completed"
    await write(fleet, "organisation", health_s=600)
    assert await layer(fleet) == {"health_s": 600, "frame_s": 900, "spread_s": 20}


async def test_a_layer_that_was_edited_since_the_plan_keeps_it_from_beginning(
    fleet: Steered,
) -> None:
    await fleet.fleet(2)
    ref = await fleet.rollout(POLICY, health_s=300, started=False)
    await write(fleet, "organisation", health_s=600)
    await fleet.pass_time(10)
    assert await fleet.world.state(ref) == "cancelled"
    reason = await fleet.world.owner.fetchval("select reason from rollouts where ref = $1", ref)
    assert reason == "health_s was changed by somebody else since the plan"


async def test_devices_own_layers_are_changed_for_those_that_a_filter_finds(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(3)
    names = [
        await fleet.world.owner.fetchval("select device from devices where id = $1", agent.row)
        for agent in agents
    ]
    ref = await fleet.rollout(POLICY, "device", expression=f'device = "{names[1]}"', health_s=300)
    await fleet.pass_time(300)
    assert await fleet.world.state(ref) == "completed"
    assert fleet.have("health_s") == [900, 300, 900]
    rows = await fleet.world.owner.fetch("select scope, device_id from settings_layers")
    assert [tuple(row) for row in rows] == [("device", agents[1].row)]


async def test_cancelled_midway_who_has_it_keeps_it_as_its_own(fleet: Steered) -> None:
    agents = await fleet.fleet(8)
    ref = await fleet.rollout(POLICY, health_s=300)
    await fleet.pass_time(30)
    reached: list[Agent] = [a for a in agents if a.settings.in_force["health_s"] == 300]
    site = await fleet.world.owner.fetchval(
        "select s.ref from devices d join assignments a on a.device_id = d.id "
        "join spots p on p.id = a.spot_id join sites s on s.id = p.site_id where d.id = $1",
        reached[0].row,
    )
    other = await fleet.world.owner.fetchval(
        "select device from devices where id = $1", reached[1].row
    )
    await write(fleet, "site", site, health_s=600)  # nearer, of them that have it by now
    await write(fleet, "device", other, health_s=120)
    await cancel(fleet, ref)
    assert len(reached) == 4
    assert sorted(fleet.have("health_s", reached)) == [120, 300, 300, 600]
    assert fleet.have("health_s").count(900) == 4
    assert await layer(fleet) == {}
    rows = await fleet.world.owner.fetch(
        "select device_id from settings_layers where scope = 'device'"
    )
    assert {row["device_id"] for row in rows} == {agent.row for agent in reached[1:]}


@pytest.mark.long
async def test_a_freeze_and_a_closed_window_hold_back_the_grant_and_a_freeze_the_end(
    fleet: Steered,
) -> None:
    agents = await fleet.fleet(3)
    ref = await fleet.rollout(POLICY, health_s=300, started=False)
    frozen = await fleet.world.owner.fetchval(
        "insert into freezes (organisation_id, ref, name, starts_at, ends_at, reason, author, "
        "created_at) values ($1, 'freeze-1', 'Sale', $2, $3, 'Sale', "
        "'user ada', $2) returning id",
        *(fleet.world.organisation, fleet.world.now, later(fleet.world.now, 600)),
    )
    await fleet.pass_time(300, step_s=10)
    for agent in agents:
        await fleet.ask(agent)
    assert await fleet.world.states(ref) == {"planned": 3}
    assert fleet.have("health_s") == [900] * 3
    await fleet.pass_time(340, step_s=10)
    assert fleet.have("health_s") == [300] * 3
    await fleet.world.owner.execute(
        "update freezes set starts_at = $2, ends_at = $3 where id = $1",
        *(frozen, fleet.world.now, later(fleet.world.now, 3_600)),
    )
    await fleet.pass_time(600, step_s=30)
    assert (await fleet.world.state(ref), await layer(fleet)) == ("running", {})
    await fleet.pass_time(3_600, step_s=120)
    assert (await fleet.world.state(ref), await layer(fleet)) == ("completed", {"health_s": 300})
    closed = msgspec.structs.replace(POLICY, windows=Rules(always=Always.CLOCK, clock=(120, 240)))
    ref = await fleet.rollout(closed, health_s=600)  # at eleven in the evening
    await fleet.pass_time(600, step_s=60)
    assert await fleet.world.states(ref) == {"planned": 3}
    await fleet.pass_time(4 * 3_600, step_s=300)
    assert fleet.have("health_s") == [600] * 3
