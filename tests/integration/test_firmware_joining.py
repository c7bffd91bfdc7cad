"""Devices that come to fit a running rollout: they join its tail, bounded, once, and only there."""

import asyncio
import json

import asyncpg
import msgspec
import pytest

from server.db.engine import acting, transaction
from server.errors import NotFoundError, RefusedError
from server.firmware import acts, counted, drafting, joining, members
from server.firmware.joining import AGAIN, Joiners
from server.firmware.planning import Asked
from server.firmware.policy import Guards, Policy, WaveRule
from server.firmware.policy import Joiners as Admitting
from server.firmware.watching import CountsGuard
from server.firmware.why import Reason
from server.fleet.checks import FieldError
from tests.firmware_world import APPROVER, AUTHOR, BROKEN, QUICK, START, World
from tests.firmware_world import world as world

pytestmark = pytest.mark.services

TWO = msgspec.structs.replace(QUICK, waves=(WaveRule(count=2), WaveRule()), blast_radius=20)


async def _reported(world: World, *devices: int) -> None:
    await world.owner.execute(
        "update device_firmware set reported_at = $2 where device_id = any($1)", devices, START
    )


async def _planned(
    world: World,
    *,
    policy: Policy = TWO,
    filter: str = "model = DC2",
    approver: str = APPROVER,
) -> str:
    """Plan a rollout as pages and programs do, and let it start."""
    asked = Asked("bundle-2.0.0", filter, None, policy, seed="ab" * 32)
    async with world.act() as connection:
        given = connection, world.organisation
        made = await drafting.draft(*given, "Agent", asked, actor=AUTHOR, now=world.now)
        await acts.submit(*given, made.ref, actor=AUTHOR, now=world.now)
        await acts.approve(*given, made.ref, actor=approver, now=world.now)
    await world.conductor.turn()
    return made.ref


async def _look(world: World) -> int:
    """Let the next look come, and return how many joined."""
    world.clock.advance(AGAIN.total_seconds())
    return await Joiners(world.maint, world.clock).turn()


async def _tail(world: World, ref: str) -> list[int]:
    """Return the devices of a rollout's tail."""
    rows = await world.owner.fetch(
        "select e.device_id from executions e join rollouts o on o.id = e.rollout_id "
        "where o.ref = $1 and e.wave = (select max(number) from waves w where rollout_id = o.id) "
        "order by 1",
        ref,
    )
    return [row["device_id"] for row in rows]


async def _explained(world: World, ref: str, device: int) -> tuple[Reason, str]:
    name = await world.owner.fetchval("select device from devices where id = $1", device)
    async with acting(world.desk, "explain", organisation=world.organisation) as connection:
        found = await members.explain(connection, world.organisation, ref, name, now=world.now)
    return found.reasons[0].reason, found.reasons[0].text


async def test_who_comes_to_fit_joins_the_tail_after_all_waves_by_itself(world: World) -> None:
    planned = await world.fleet(4)
    silent = await world.fleet(1)
    await _reported(world, *planned)
    ref = await _planned(world)
    assert await world.states(ref) == {"planned": 4, "excluded": 1}
    assert await _look(world) == 0
    assert await _explained(world, ref, silent[0]) == (
        Reason.EXCLUDED,
        "It is left out: it has never said what it runs.",
    )
    enrolled = await world.fleet(1)
    await _reported(world, *silent, *enrolled)
    assert (await _explained(world, ref, silent[0]))[0] is Reason.JOINS
    assert (await _explained(world, ref, enrolled[0]))[0] is Reason.JOINS
    assert await _look(world) == 2
    assert await _look(world) == 0
    assert await _tail(world, ref) == [*silent, *enrolled]
    waves = (await world.held(ref)).rollout.waves
    assert [(wave.number, wave.size, wave.state.value) for wave in waves[1:]] == [
        (1, 2, waves[1].state.value),
        (2, 2, "pending"),
        (3, 2, "pending"),
    ]
    assert await _explained(world, ref, silent[0]) == (
        Reason.WAVE,
        f"It is in the tail; wave 1 is {waves[1].state.value}.",
    )
    await world.pass_time(900)
    assert await world.state(ref) == "completed"
    assert {device.version for device in world.devices.values()} == {"2.0.0"}
    assert (await world.kinds(ref)).count("joined") == 1
    await world.agrees(ref)
    late = await world.fleet(1)
    await _reported(world, *late)
    assert await _look(world) == 0  # it is over
    assert (await _explained(world, ref, late[0]))[0] is Reason.NOT_IN_IT


async def test_who_was_too_old_joins_once_its_stepping_stone_is_taken_and_who_moves_in_does_too(
    world: World,
) -> None:
    await world.release("1.5.0")
    await world.owner.execute("update releases set requires = '1.5.0' where version = '2.0.0'")
    await world.run_everywhere("1.5.0")
    young, old, elsewhere = await world.fleet(3)
    await _reported(world, young, old, elsewhere)
    await world.owner.execute(
        "update device_firmware set components = replace(components::text, '1.0.0', '1.5.0') "
        "::jsonb where device_id <> $1",
        old,
    )
    sites = await world.owner.fetch(
        "select s.ref from assignments a join spots p on p.id = a.spot_id "
        "join sites s on s.id = p.site_id where a.device_id = any($1) order by a.device_id",
        [young, old],
    )
    found = f"site = {sites[0]['ref']} or site = {sites[1]['ref']}"
    policy = msgspec.structs.replace(TWO, joiners=Admitting(stay_s=9_999))
    ref = await _planned(world, policy=policy, filter=found)
    reason, text = await _explained(world, ref, old)
    assert (reason, "agent 1.5.0 comes first" in text) == (Reason.EXCLUDED, True)
    leg = await world.rollout([[old]], bundle="bundle-1.5.0")
    assert await _look(world) == 0
    await world.pass_time(120)
    assert (await world.states(leg))["confirmed"] == 1
    await world.owner.execute(
        "with there as (select p.site_id, p.door_id from assignments a join spots p "
        "on p.id = a.spot_id where a.device_id = $2), made as (insert into spots (organisation_id, "
        "site_id, door_id, ref, name, kind) select $3, site_id, door_id, 'spot-new', 'New', "
        "'counter' from there returning id) "
        "update assignments set spot_id = made.id from made where device_id = $1",
        *(elsewhere, young, world.organisation),
    )
    assert await _look(world) == 2
    assert await _tail(world, ref) == [old, elsewhere]
    await world.pass_time(600)
    assert await world.states(ref) == {"confirmed": 3}
    await world.agrees(ref)


async def test_two_that_look_at_once_take_nobody_twice_and_no_more_than_there_is_room(
    world: World,
) -> None:
    planned = await world.fleet(3)
    await _reported(world, *planned)
    policy = msgspec.structs.replace(TWO, joiners=Admitting(most=4), blast_radius=1)
    ref = await _planned(world, policy=policy)
    late = await world.fleet(6)
    await _reported(world, *late)
    number = (await world.held(ref)).facts.id

    async with world.maint.acquire() as connection:
        fit = await joining.fitting(connection, number, now=world.now)
    assert sorted(fit) == late

    async def admit() -> int:
        async with transaction(world.maint, "admit") as connection:
            return await joining.admit(connection, number, fit, now=world.now)

    assert sum(await asyncio.gather(*(admit() for _ in range(3)))) == 4
    assert len(await _tail(world, ref)) == 4
    assert (await world.held(ref)).rollout.devices == 7
    for _ in range(2):
        looks = [Joiners(world.maint, world.clock).turn() for _ in range(2)]
        await asyncio.gather(*looks, world.conductor.turn(), world.conductor.turn())
        world.clock.advance(AGAIN.total_seconds())
    assert len(await _tail(world, ref)) == 4
    await world.agrees(ref)


async def test_nobody_joins_what_is_paused_or_halted_and_what_halts_in_the_tail_takes_nobody_back(
    world: World,
) -> None:
    planned = await world.fleet(3)
    await _reported(world, *planned)
    policy = msgspec.structs.replace(
        TWO, guards=Guards(fail_abs=2), joiners=Admitting(stay_s=9_999)
    )
    ref = await _planned(world, policy=policy)
    bad = await world.fleet(3)
    for row in bad:
        world.devices[row].script = BROKEN
    await _reported(world, *bad)
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.pause(*given, reason="to look", actor=AUTHOR, now=world.now)
    assert await _look(world) == 0
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.resume(*given, reason="looked", actor=AUTHOR, now=world.now)
    await world.pass_time(600)
    assert await world.state(ref) == "running"  # it stays for those who come
    assert await world.states(ref) == {"confirmed": 3}
    assert await _look(world) == 3
    await world.pass_time(300)
    assert await world.state(ref) == "halted"
    assert {world.devices[row].version for row in planned} == {"2.0.0"}
    assert "reverting" not in await world.kinds(ref)
    more = await world.fleet(1)
    await _reported(world, *more)
    assert await _look(world) == 0
    await world.agrees(ref)


async def test_a_rollout_that_stays_for_who_comes_completes_when_that_time_is_over(
    world: World,
) -> None:
    planned = await world.fleet(2)
    await _reported(world, *planned)
    ref = await _planned(
        world, policy=msgspec.structs.replace(TWO, joiners=Admitting(stay_s=3_600))
    )
    await world.pass_time(1_200)
    assert (await world.state(ref), await world.states(ref)) == ("running", {"confirmed": 2})
    late = await world.fleet(1)
    await _reported(world, *late)
    assert await _look(world) == 1
    await world.pass_time(600)
    assert await world.states(ref) == {"confirmed": 3}
    world.clock.advance(3_600)
    await world.conductor.turn()
    assert await world.state(ref) == "completed"


async def test_of_a_count_or_a_share_nobody_is_missing_and_a_policy_may_let_nobody_join(
    world: World,
) -> None:
    planned = await world.fleet(3)
    await _reported(world, *planned)
    few = msgspec.structs.replace(TWO, waves=(WaveRule(count=2),))
    none = msgspec.structs.replace(TWO, joiners=Admitting(admit=False), priority=4)
    first = await _planned(world, policy=few)
    second = await _planned(world, policy=none)
    late = await world.fleet(1)
    await _reported(world, *late)
    assert await _look(world) == 0
    assert (await _explained(world, first, late[0]))[1].endswith(
        "it wants a count or a share of devices, and has them."
    )
    assert (await _explained(world, second, late[0]))[1].endswith(
        "its policy lets nobody join by itself."
    )


async def test_who_approved_alone_lets_no_more_in_by_themselves_than_he_may_approve(
    world: World,
) -> None:
    planned = await world.fleet(2)
    await _reported(world, *planned)
    ref = await _planned(
        world, policy=msgspec.structs.replace(TWO, blast_radius=3), approver=AUTHOR
    )
    late = await world.fleet(3)
    await _reported(world, *late)
    assert await _look(world) == 1
    assert await _look(world) == 0
    (joined,) = await _tail(world, ref)
    left = next(row for row in late if row != joined)
    assert await _explained(world, ref, left) == (
        Reason.NOT_IN_IT,
        "It is not in this rollout: as many have joined as was approved.",
    )


async def test_who_is_asked_for_by_name_joins_unless_the_plan_would_leave_it_out(
    world: World,
) -> None:
    planned = await world.fleet(2)
    await _reported(world, *planned)
    site = await world.owner.fetchval(
        "select s.ref from assignments a join spots p on p.id = a.spot_id "
        "join sites s on s.id = p.site_id where a.device_id = $1",
        planned[0],
    )
    ref = await _planned(world, filter=f"site = {site}")
    strange, silent, there = await world.fleet(3)
    await _reported(world, strange, there)
    await world.owner.execute(
        "update device_firmware set components = $2 where device_id = $1",
        *(there, json.dumps({"agent": {"version": "2.0.0", "sha256": "", "floor": ""}})),
    )
    names = {
        row["id"]: row["device"]
        for row in await world.owner.fetch("select id, device from devices")
    }
    assert await _look(world) == 0
    assert (await _explained(world, ref, strange))[1].endswith(
        "its filter does not find this device."
    )

    async def asked(*rows: int, rollout: str = ref, extra: tuple[str, ...] = ()) -> joining.Joined:
        async with world.act() as connection:
            return await joining.ask(
                *(connection, world.organisation, rollout, [*(names[r] for r in rows), *extra]),
                actor=AUTHOR,
                now=world.now,
            )

    found = await asked(strange, silent, there, planned[0])
    assert found.devices == (names[strange],)
    assert {each.device: each.why for each in found.left_out} == {
        names[silent]: "it has never said what it runs",
        names[there]: "it runs all of it",
        names[planned[0]]: "it takes part",
    }
    assert await _tail(world, ref) == [strange]
    assert await asked(strange) == joining.Joined((), (joining.Left(names[strange], joining.PART),))
    with pytest.raises(RefusedError, match=r"nobody joins: .*it runs all of it"):
        await asked(strange, there)
    with pytest.raises(FieldError, match="no device 'dc-none'"):
        await asked(strange, extra=("dc-none",))
    with pytest.raises(NotFoundError):
        await asked(strange, rollout="rollout-none")
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.pause(*given, reason="to look", actor=AUTHOR, now=world.now)
    await _reported(world, silent)
    with pytest.raises(RefusedError, match="nobody joins: it is paused"):
        await asked(silent)


@pytest.mark.parametrize("error", [asyncpg.DataError("odd"), asyncpg.UniqueViolationError("taken")])
async def test_a_look_that_the_database_refuses_keeps_no_other_rollout_from_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    await _reported(world, *await world.fleet(3))
    ref = await _planned(world)

    async def refused(*asked: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(joining, "fitting", refused)
    monkeypatch.setattr(counted, "look", refused)
    assert await _look(world) == 0
    assert await CountsGuard(world.maint, world.clock).turn() == 1
    put_off = "select joiners_at = $2 and counted_at = $2 from rollouts where ref = $1"
    assert await world.owner.fetchval(put_off, ref, world.now)
