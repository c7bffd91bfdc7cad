"""What an adversary tried on rollouts, their devices and their listener, and what becomes of it."""

from __future__ import annotations

import json
from datetime import timedelta

import msgspec
import pytest

from protocol.update import Attempt, Class, Phase
from server.errors import RefusedError
from server.firmware import acts
from server.firmware.policy import Caps, OnHalt, write_policy
from tests.firmware_world import AUTHOR, QUICK, World
from tests.firmware_world import world as world
from tests.integration.firmware_world import Updates, offer, step
from tests.integration.firmware_world import updates as updates

pytestmark = pytest.mark.services


async def test_a_lone_confirmation_of_code_that_does_not_run_is_no_success(
    updates: Updates,
) -> None:
    device, _, execution = await offer(updates)
    assert execution["state"] == "offered"
    await device.says(step(execution, 1, Phase.CONFIRMED))  # of all that is said before, nothing
    ended = await updates.execution(device)
    assert (ended["state"], ended["code"]) == ("reverted by device", "version")


async def test_who_confirms_and_does_not_say_what_it_runs_has_not_confirmed(
    updates: Updates,
) -> None:
    device, _, execution = await offer(updates)
    await device.says(step(execution, 1, Phase.INSTALLING))
    await device.says(step(execution, 2, Phase.TRIAL), trial=Attempt(execution["ref"], 1))
    await device.says(step(execution, 3, Phase.CONFIRMED), components={})
    assert (await updates.execution(device))["state"] == "reverted by device"


async def test_a_step_with_the_largest_numbers_is_taken_in_like_any_other(
    updates: Updates,
) -> None:
    device, _, execution = await offer(updates)
    accepted = step(execution, 1, Phase.ACCEPTED, at_ms=1 << 48)  # a clock in the year 10889
    last = (1 << 31) - 1
    failed = step(execution, last, Phase.FAILED, kind=Class.TRUST, bytes=1 << 40)
    answer = await device.says(accepted, failed)
    assert answer.heard == {Attempt(execution["ref"], 1): last}
    assert (await updates.execution(device))["state"] == "failed"
    beyond = step(execution, last + 1, Phase.FAILED, kind=Class.TRUST)
    status, _ = await device.post(device.signed(device.report(beyond)))
    assert status == 400


async def test_who_asked_to_be_left_alone_is_still_on_its_way_and_its_trial_counts(
    updates: Updates,
) -> None:
    device, release, execution = await offer(updates)
    await device.says(step(execution, 1, Phase.ACCEPTED), step(execution, 2, Phase.READY))
    await device.says(step(execution, 3, Phase.DEFERRED))  # it keeps what it has, and goes on soon
    waits = await updates.execution(device)
    assert (waits["state"], waits["attempt"]) == ("waiting idle", 1)
    device.components["agent"] = release.part
    trial = Attempt(execution["ref"], 1)
    said = step(execution, 4, Phase.INSTALLING), step(execution, 5, Phase.TRIAL)
    assert (await device.says(*said, trial=trial)).trial_ok == trial
    await device.says(step(execution, 6, Phase.CONFIRMED))
    assert (await updates.execution(device))["state"] == "confirmed"


async def test_one_device_holds_few_downloads_open_at_once(updates: Updates) -> None:
    device, release, _ = await offer(updates)
    updates.files.open[device.name] = 4
    status, _, headers = await device.fetches(release)
    assert (status, "Retry-After" in headers) == (429, True)
    updates.files.open[device.name] = 3
    assert (await device.fetches(release))[0] == 200
    assert updates.files.open == {device.name: 3}


async def test_who_approved_alone_lets_no_more_join_than_he_may_approve(world: World) -> None:
    devices = await world.fleet(8)
    policy = msgspec.structs.replace(QUICK, blast_radius=4)
    plan = {"waves": [devices[:3]], "excluded": []}
    async with world.act() as connection:
        given = connection, world.organisation
        new = acts.New("Agent", write_policy(policy), bundle="bundle-2.0.0")
        ref = await acts.draft(*given, new, actor=AUTHOR, now=world.now)
        await acts.plan(*given, ref, plan, actor=AUTHOR, now=world.now)
        await acts.submit(*given, ref, actor=AUTHOR, now=world.now)
        await acts.approve(*given, ref, actor=AUTHOR, now=world.now)
    await world.conductor.turn()
    async with world.act() as connection:
        given_ref = connection, world.organisation, ref
        with pytest.raises(RefusedError, match="at most 1"):
            await acts.join(*given_ref, devices[3:5], actor=AUTHOR, now=world.now)
        assert await acts.join(*given_ref, devices[3:4], actor=AUTHOR, now=world.now) == 1


async def test_a_device_that_is_moved_on_its_way_keeps_others_of_its_new_entrance_waiting(
    world: World,
) -> None:
    first, second = await world.fleet(2)
    policy = msgspec.structs.replace(QUICK, caps=Caps(in_flight=50, site=3))
    await world.rollout([[first]], policy=policy)
    await world.conductor.turn()
    await world.owner.execute(
        "with made as (insert into spots (organisation_id, site_id, door_id, ref, name, kind) "
        "select s.organisation_id, s.site_id, s.door_id, 'spot-new', 'New', 'counter' from spots s "
        "join assignments a on a.spot_id = s.id where a.device_id = $2 returning id) "
        "update assignments set spot_id = made.id from made where device_id = $1",
        *(first, second),
    )
    await world.rollout([[second]], policy=policy)
    for _ in range(3):
        world.clock.advance(30)
        await world.conductor.turn()
    rows = await world.owner.fetch("select device_id, state from executions order by id")
    assert [tuple(row) for row in rows] == [(first, "offered"), (second, "planned")]


async def test_a_clock_that_ran_ahead_and_was_put_back_stops_no_rollout(world: World) -> None:
    devices = await world.fleet(6)
    ref = await world.rollout([devices[:3], devices[3:]])
    await world.pass_time(20)
    world.clock.advance(30 * 86_400)
    await world.owner.execute(
        "update rollouts set due_at = $1, lease_until = $1, tokens_at = $1", world.now
    )  # as a turn wrote them that was cut off
    world.clock.advance(-30 * 86_400)
    await world.pass_time(timedelta(minutes=10).total_seconds())
    assert await world.state(ref) == "completed"


async def test_a_release_that_is_withdrawn_on_its_way_pauses_its_rollout_and_says_so(
    world: World,
) -> None:
    devices = await world.fleet(4)
    ref = await world.rollout([devices[:2], devices[2:]])
    await world.pass_time(10)
    await world.owner.execute(
        "update releases set withdrawn_at = $1 where version = '2.0.0'", world.now
    )
    await world.pass_time(120)
    assert await world.state(ref) == "paused"
    said = await world.owner.fetchval("select reason from rollouts where ref = $1", ref)
    assert said == "agent 2.0.0 was withdrawn"
    assert set(await world.states(ref)) == {"confirmed", "planned"}  # who had begun has ended


async def test_a_way_back_to_what_was_withdrawn_pauses_and_made_anew_takes_back_the_others(
    world: World,
) -> None:
    devices = await world.fleet(4)
    await world.release("1.1.0")
    components = json.dumps({"agent": {"version": "1.1.0", "sha256": "", "floor": ""}})
    for row in devices[:2]:
        world.devices[row].version = "1.1.0"
    await world.owner.execute(
        "update device_firmware set components = $1 where device_id = any($2)",
        *(components, devices[:2]),
    )
    ref = await world.rollout([devices])
    await world.pass_time(40)
    assert await world.states(ref) == {"confirmed": 4}
    first = await taken_back(world, ref)
    await world.owner.execute(
        "update releases set withdrawn_at = $1 where version = '1.1.0'", world.now
    )
    await world.pass_time(60)
    assert (await world.state(first), await world.state(ref)) == ("paused", "reverting")
    said = await world.owner.fetchval("select reason from rollouts where ref = $1", first)
    assert said.startswith("agent 1.1.0 was withdrawn; cancel this")
    async with world.act() as connection:
        given = connection, world.organisation, first
        await acts.cancel(*given, reason="it is gone", actor=AUTHOR, now=world.now)
    await world.pass_time(60)
    assert (await world.state(first), await world.state(ref)) == ("cancelled", "halted")
    again = await taken_back(world, ref)
    await world.pass_time(120)
    assert await world.states(again) == {"confirmed": 2, "excluded": 2}
    why = await world.owner.fetch("select distinct excluded from executions where excluded <> ''")
    assert [row["excluded"] for row in why] == ["no release of agent 1.1.0"]
    assert await world.state(ref) == "reverted"
    assert [world.devices[row].version for row in devices] == [*["2.0.0"] * 2, *["1.0.0"] * 2]


async def taken_back(world: World, ref: str) -> str:
    """Let somebody take a rollout back; the way back's name."""
    async with world.act() as connection:
        given = connection, world.organisation, ref, OnHalt.REVERT_ALL
        return await acts.revert(*given, reason="it counts less", actor=AUTHOR, now=world.now)
