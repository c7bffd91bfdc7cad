"""Rollouts on the real database: waves, halts, retries, the way back, and what is written down."""

import asyncio
import dataclasses
from collections import Counter
from datetime import timedelta

import asyncpg
import msgspec
import pytest

from protocol.update import Phase
from server.db.engine import transaction
from server.errors import NotFoundError, RefusedError
from server.firmware import acts
from server.firmware.conductor import LEASE, StaleError, conduct, lease
from server.firmware.policy import Caps, Gate, Guards, Joiners, OnHalt, Ramp, Timers, write_policy
from server.firmware.rows import hold
from tests.firmware_world import (
    APPROVER,
    AUTHOR,
    BAD,
    BROKEN,
    QUICK,
    SILENT,
    START,
    World,
    step_of,
)
from tests.firmware_world import world as world

pytestmark = pytest.mark.services


async def test_a_rollout_goes_through_its_waves_and_its_rows_fold_to_its_state(
    world: World,
) -> None:
    devices = await world.fleet(8)
    ref = await world.rollout([devices[:3], devices[3:]])
    await world.pass_time(600)
    assert await world.state(ref) == "completed"
    assert await world.states(ref) == {"confirmed": 8}
    assert {device.version for device in world.devices.values()} == {"2.0.0"}
    assert await world.kinds(ref) == [
        *("planned", "submitted", "approved", "started", "wave opened", "wave soaking"),
        *("wave passed", "wave opened", "wave soaking", "wave passed", "completed"),
    ]
    await world.agrees(ref)


@pytest.mark.long
async def test_a_bad_image_in_wave_one_of_two_thousand_halts_and_is_taken_back_by_itself(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = await world.fleet(1_000, each=2)
    policy = msgspec.structs.replace(QUICK, caps=Caps(in_flight=15))
    for row in devices[3:100:4]:  # a quarter of the first wave falls back, the rest takes it
        world.devices[row].script = BAD
    most: Counter[str] = Counter()
    ref = await world.rollout([devices[:100], devices[100:]], policy=policy)
    while await world.state(ref) != "reverted":
        await world.pass_time(5)
        flying = await world.owner.fetch(_FLYING)
        most["in flight"] = max(most["in flight"], sum(row["devices"] for row in flying))
        most["at a site"] = max([most["at a site"], *(row["devices"] for row in flying)])
        assert world.now < START + timedelta(hours=2)
    touched = [d for d in world.devices.values() if d.installs]
    states = await world.states(ref)
    hurt = states.get("reverted by device", 0)
    with capsys.disabled():
        print(  # noqa: T201 - the figures are asked for
            f"\n2,000 devices: {len(touched)} touched, {hurt} fell back, halted and all back "
              f"on 1.0.0 after {world.now - START}; at most {most['in flight']} in flight, "
              f"{most['at a site']} at a site")  # fmt: skip
    assert {device.version for device in world.devices.values()} == {"1.0.0"}
    assert not [d for d in world.devices.values() if d.installs and d.row in devices[100:]]
    assert most["in flight"] <= 15
    assert most["at a site"] == 1
    assert policy.guards.fail_abs <= hurt <= policy.guards.fail_abs + 15
    back = await world.owner.fetchval(
        "select b.ref from rollouts b join rollouts o on o.id = b.reverses where o.ref = $1", ref
    )
    await world.agrees(back)
    assert await world.states(back) == {"confirmed": states["confirmed"]}
    assert {"planned", "offered"}.isdisjoint(states)
    assert (await world.kinds(ref))[-3:] == ["halted", "reverting", "reverted"]
    await world.agrees(ref)


_FLYING = """
select site_id, count(*)::int as devices from executions
where ended_at is null and state <> 'planned' group by 1
"""


async def test_two_conductors_at_once_come_to_what_one_comes_to(world: World) -> None:
    devices = await world.fleet(6, each=2)
    for row in devices[::5]:
        world.devices[row].script = BROKEN
    lenient = msgspec.structs.replace(
        QUICK, guards=Guards(fail_abs=50, fail_pct=100), gate=Gate(success_pct=50, soak_s=10)
    )
    ends = []
    for conductors in (1, 3):
        await world.run_everywhere("1.0.0")
        ref = await world.rollout([devices[:4], devices[4:]], policy=lenient)
        others = [world.conductor for _ in range(conductors)]
        for _ in range(400):
            await asyncio.gather(*(each.turn() for each in others))
            for device in await world.busy():
                await world.step(device)
            world.clock.advance(2.5)
            if await world.state(ref) == "completed":
                break
        await world.agrees(ref)
        ends.append((await world.states(ref), await world.kinds(ref)))
    assert ends[0] == ends[1]
    assert ends[0][0] == {"confirmed": 9, "failed": 3}


async def test_a_conductor_whose_lease_was_taken_over_writes_nothing(world: World) -> None:
    devices = await world.fleet(4)
    ref = await world.rollout([devices], started=False)
    (rollout, fence), *_ = await lease(world.maint, now=world.now)
    world.clock.advance(LEASE.total_seconds() + 1)
    assert await lease(world.maint, now=world.now) == [(rollout, fence + 1)]
    async with transaction(world.maint, "late") as connection:
        assert await hold(connection, rollout, now=world.now, fence=fence) is None
    async with transaction(world.maint, "later") as connection:
        held = await hold(connection, rollout, now=world.now, fence=fence + 1)
        assert held is not None
        held.facts = dataclasses.replace(held.facts, fence=fence)
        with pytest.raises(StaleError):
            await conduct(held)
        await connection.execute("rollback; begin")
    assert await world.state(ref) == "scheduled"
    assert await world.states(ref) == {}


async def test_a_turn_that_is_cut_off_anywhere_has_happened_whole_or_not_at_all(
    world: World,
) -> None:
    devices = await world.fleet(12)
    for row in devices[::5]:
        world.devices[row].script = BAD
    policy = msgspec.structs.replace(QUICK, guards=Guards(fail_abs=2, fail_pct=100))
    ref = await world.rollout([devices], policy=policy, started=False)
    cut = 0
    for turn in range(600):
        world.clock.advance(LEASE.total_seconds() + 1 if turn % 3 == 1 else 5)
        before = await world.digest()
        if turn % 3 == 0 and await _cut_off(world, after=turn // 3 % 12):
            cut += 1
            assert await world.digest() == before
            continue
        await world.conductor.turn()
        for device in await world.busy():
            await world.step(device)
        if await world.state(ref) in ("reverted", "completed"):
            break
    assert await world.state(ref) == "reverted"
    assert cut > 5
    assert {device.version for device in world.devices.values()} == {"1.0.0"}
    await world.agrees(ref)


async def _cut_off(world: World, *, after: int) -> bool:
    """Take a turn that dies at its statement number `after`; False if it has fewer."""
    leased = await lease(world.maint, now=world.now)
    for rollout, fence in leased:
        connection = await asyncpg.connect(world.dsn)
        left = after

        def count(_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                connection.terminate()  # noqa: B023 - it is called within this turn

        try:
            await connection.execute("begin")
            connection.add_query_logger(count)
            held = await hold(connection, rollout, now=world.now, fence=fence)
            assert held is not None
            await conduct(held)
            connection.remove_query_logger(count)
            await connection.execute("rollback")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return True
        finally:
            connection.terminate()
    return False


async def test_never_two_devices_of_one_entrance_are_on_their_way_at_once(world: World) -> None:
    devices = await world.fleet(3, each=4, doors=2)
    policy = msgspec.structs.replace(QUICK, caps=Caps(in_flight=50, site=3))
    halves = devices[::2], devices[1::2]  # of two rollouts, conducted at the same time
    for half in halves:
        await world.rollout([half], policy=policy, started=False)
    most = 0
    for _ in range(60):
        await asyncio.gather(world.conductor.turn(), world.conductor.turn())
        rows = await world.owner.fetch(
            "select door_id, count(*)::int as devices from executions "
            "where ended_at is null and state <> 'planned' group by 1"
        )
        assert all(row["devices"] == 1 for row in rows)
        most = max(most, len(rows))
        for device in await world.busy():
            await world.step(device)
        world.clock.advance(10)
    assert most > 3
    assert {device.version for device in world.devices.values()} == {"2.0.0"}


@pytest.mark.long
async def test_what_is_off_waits_outside_of_all_shares_and_is_offered_when_it_appears(
    world: World,
) -> None:
    devices = await world.fleet(6)
    late, never = world.devices[devices[0]], world.devices[devices[1]]
    for device in (late, never):
        await world.leave(device)
    timers = Timers(straggler_s=7_200)
    policy = msgspec.structs.replace(QUICK, timers=timers)
    ref = await world.rollout([devices[:4], devices[4:]], policy=policy)
    await world.pass_time(600)
    assert await world.states(ref) == {"confirmed": 4, "planned": 2}
    assert await world.state(ref) == "running"
    await world.arrive(late)
    await world.pass_time(700)
    assert late.version == "2.0.0"
    assert (await world.held(ref)).rollout.wave(0).total.confirmed == 1  # among the stragglers
    await world.pass_time(7_200, step_s=300)
    assert await world.state(ref) == "completed with stragglers"
    await world.agrees(ref)
    assert await world.states(ref) == {"confirmed": 5, "unreachable": 1}


@pytest.mark.long
async def test_who_accepts_and_falls_silent_is_lost_and_two_of_them_halt(world: World) -> None:
    devices = await world.fleet(10)
    for row in devices[:2]:
        world.devices[row].script = SILENT
    ref = await world.rollout([devices])
    await world.pass_time(20)
    for row in devices[:2]:
        await world.leave(world.devices[row])
    await world.pass_time(86_400 + 3_600, step_s=600)
    assert (await world.states(ref))["lost"] == 2
    assert "halted" in await world.kinds(ref)
    guard = await world.owner.fetchval(
        "select detail ->> 'guard' from rollout_events where event = 'halted'"
    )
    assert guard == "lost_abs"


async def test_a_repeated_or_late_word_changes_nothing(world: World) -> None:
    devices = await world.fleet(4)
    ref = await world.rollout([devices])
    await world.pass_time(10)
    device = world.devices[devices[0]]
    said = list(device.steps)
    assert said
    before = await world.digest()
    for _ in range(2):
        heard = await world.ask(device, said)
        assert heard.heard == ((said[0].attempt.execution, 1, len(said)),)
    assert await world.digest() == before
    name = said[0].attempt.execution
    confirmed = step_of(name, 1, 9, Phase.CONFIRMED)
    heard = await world.ask(device, [*said, confirmed], fresh=False)
    assert heard.heard == ((name, 1, len(said)),)  # so that it is said again
    assert await world.digest() == before
    device.version = "2.0.0"
    await world.ask(device, [confirmed])
    assert (await world.states(ref))["confirmed"] == 1
    other = world.devices[devices[1]]
    assert (await world.ask(other, [confirmed])).heard == ((name, 1, 9),)  # it may forget it
    assert (await world.states(ref))["confirmed"] == 1


async def test_what_confirmed_and_runs_another_version_has_reverted_even_if_acknowledged(
    world: World,
) -> None:
    devices = await world.fleet(6)
    policy = msgspec.structs.replace(
        QUICK,
        gate=Gate(success_pct=90, min_sample=2, soak_s=3_600),
        guards=Guards(fail_abs=1),
        on_halt=OnHalt.KEEP,
    )
    ref = await world.rollout([devices[:3], devices[3:]], policy=policy)
    await world.pass_time(200)
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.pause(*given, reason="to look", actor=AUTHOR, now=world.now)
        await acts.resume(*given, reason="it is well", actor=AUTHOR, now=world.now)
    device = world.devices[devices[0]]
    device.version = "1.0.0"
    await world.ask(device, [])
    assert (await world.states(ref))["reverted by device"] == 1
    assert await world.state(ref) == "halted"
    assert (await world.kinds(ref))[-2:] == ["reopened", "halted"]
    await world.agrees(ref)


async def test_there_is_no_way_back_below_a_floor_and_it_says_so(world: World) -> None:
    devices = await world.fleet(4)
    bundle = await world.release("2.0.1", floor="2.0.0")
    for row in devices[2:]:
        world.devices[row].script = BAD
    policy = msgspec.structs.replace(QUICK, guards=Guards(fail_abs=2, fail_pct=100))
    ref = await world.rollout([devices], bundle=bundle, policy=policy)
    await world.pass_time(300)
    assert await world.state(ref) == "halted"
    reason = await world.owner.fetchval(
        "select reason from rollout_events where event = 'revert refused'"
    )
    assert "floor was raised to agent 2.0.0" in reason
    async with world.act() as connection:
        with pytest.raises(RefusedError, match="the floor was raised") as refused:
            await acts.revert(
                *(connection, world.organisation, ref, OnHalt.REVERT_ALL),
                reason="it counts wrong",
                actor=AUTHOR,
                now=world.now,
            )
    assert refused.value.code == "no_way_back"


async def test_each_act_is_audited_and_none_is_done_in_another_organisation(
    world: World,
) -> None:
    devices = await world.fleet(30)
    ref = await world.rollout([devices[:1], devices[1:]])
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.pause(*given, reason="stocktake", actor=AUTHOR, now=world.now)
        with pytest.raises(RefusedError, match="say why"):
            await acts.resume(*given, reason="", actor=AUTHOR, now=world.now)
        await acts.resume(*given, reason="it is over", actor=APPROVER, now=world.now)
        await acts.cancel(*given, reason="another one comes", actor=AUTHOR, now=world.now)
        with pytest.raises(NotFoundError):
            await acts.pause(
                connection, world.organisation + 1, ref, reason="no", actor=AUTHOR, now=world.now
            )
    await world.pass_time(120)
    assert await world.state(ref) == "cancelled"
    rows = await world.owner.fetch("select act, actor, subject from audit order by number")
    assert {row["subject"] for row in rows} == {ref}
    assert [(row["act"], row["actor"]) for row in rows] == [
        ("rollout drafted", AUTHOR),
        ("rollout planned", AUTHOR),
        ("rollout submitted", AUTHOR),
        ("rollout approved", APPROVER),
        ("rollout paused", AUTHOR),
        ("rollout resumed", APPROVER),
        ("rollout cancelled", AUTHOR),
    ]


async def test_over_a_freeze_or_without_a_way_back_somebody_else_than_its_author_approves(
    world: World,
) -> None:
    devices = await world.fleet(1)
    over = write_policy(msgspec.structs.replace(QUICK, override_freezes=True))
    for policy, told in (
        (over, {}),
        (write_policy(QUICK), {"told": {"second_person": ["there is no way back for 1 device"]}}),
    ):
        async with world.act() as connection:
            given = connection, world.organisation
            new = acts.New("Agent", policy, bundle="bundle-2.0.0")
            ref = await acts.draft(*given, new, actor=AUTHOR, now=world.now)
            plan = {"waves": [devices], "excluded": [], **told}
            await acts.plan(*given, ref, plan, actor=AUTHOR, now=world.now)
            await acts.submit(*given, ref, actor=AUTHOR, now=world.now)
            with pytest.raises(RefusedError) as refused:
                await acts.approve(*given, ref, actor=AUTHOR, now=world.now)
            assert refused.value.code == "four_eyes"
            await acts.approve(*given, ref, actor=APPROVER, now=world.now)
        assert await world.state(ref) == "scheduled"


async def test_what_matters_more_takes_over_what_has_not_begun_to_install(world: World) -> None:
    devices = await world.fleet(5)
    await world.release("3.0.0")
    for row in devices:
        world.devices[row].script = SILENT
    ref = await world.rollout([devices])
    await world.pass_time(60)
    assert await world.states(ref) == {"installing": 5}
    more = msgspec.structs.replace(QUICK, priority=9)
    other = await world.fleet(3)
    slow = await world.rollout([other], policy=msgspec.structs.replace(QUICK, priority=1))
    urgent = await world.rollout([devices + other], policy=more, bundle="bundle-3.0.0")
    assert await world.states(slow) == {"superseded": 3}
    await world.agrees(slow)
    found = await world.states(urgent)
    assert found["excluded"] == 5
    excluded = await world.owner.fetch("select excluded from executions where excluded <> ''")
    assert {row["excluded"] for row in excluded} == {f"busy in {ref}"}


async def test_a_device_that_leaves_after_it_accepted_counts_as_lost(world: World) -> None:
    devices = await world.fleet(4)
    ref = await world.rollout([devices])
    await world.pass_time(5)
    await world.owner.execute(
        "update devices set state = 'retired' where id = any($1)", devices[:1]
    )
    await world.leave(world.devices[devices[0]])
    await world.pass_time(5_000, step_s=100)
    assert (await world.states(ref)).get("lost") == 1


@pytest.mark.long
async def test_updated_devices_that_fall_ill_while_others_do_not_halt_and_are_taken_back(
    world: World,
) -> None:
    devices = await world.fleet(70)
    policy = msgspec.structs.replace(
        QUICK, gate=Gate(soak_s=86_400), on_halt=OnHalt.REVERT_FAILED, ramp=Ramp(top=1_000)
    )
    ref = await world.rollout([devices[:10], devices[10:]], policy=policy)
    await world.pass_time(200)
    await world.owner.execute(
        "insert into episodes (organisation_id, subject, subject_id, condition, device_id, since, "
        "opened_at) select $1, 'device', d, 'reboot_loop', d, $2, $2 from unnest($3::int[]) d",
        *(world.organisation, world.now, devices[:5]),
    )
    await world.pass_time(600)
    assert await world.state(ref) == "running"  # it looks once an hour
    await world.pass_time(3_600, step_s=60)
    reason = await world.owner.fetchval("select reason from rollout_events where event = 'halted'")
    assert reason == "5 of 10 updated devices fell ill, 0 of 60 that wait"
    await world.pass_time(600)
    assert await world.state(ref) == "reverted"
    assert {device.version for device in world.devices.values()} == {"1.0.0"}


async def test_what_was_supposed_gives_way_to_what_the_device_says_and_counts_anew(
    world: World,
) -> None:
    devices = await world.fleet(6)
    late = world.devices[devices[0]]
    late.script = SILENT
    policy = msgspec.structs.replace(QUICK, gate=Gate(success_pct=50, soak_s=86_400))
    ref = await world.rollout([devices], policy=policy)
    await world.pass_time(4_500, step_s=100)
    assert await world.states(ref) == {"confirmed": 5, "timed out": 1}
    async with world.act() as connection:
        given = connection, world.organisation, ref
        await acts.pause(*given, reason="to look", actor=AUTHOR, now=world.now)
        await acts.resume(*given, reason="one is slow", actor=AUTHOR, now=world.now)
    assert (await world.held(ref)).rollout.wave(1).since.failed == 0
    await world.ask(late, [step_of(late.execution[0], 1, 3, Phase.FAILED)])
    assert await world.states(ref) == {"confirmed": 5, "failed": 1}
    assert (await world.held(ref)).rollout.wave(1).since.failed == 1
    await world.ask(late, [step_of(late.execution[0], 1, 4, Phase.CONFIRMED)])
    assert await world.states(ref) == {"confirmed": 5, "failed": 1}  # its own word stands


async def test_who_joins_later_is_in_a_guarded_tail_after_all_waves(world: World) -> None:
    devices = await world.fleet(8)
    for row in devices[4:]:
        world.devices[row].script = BAD
    few = Joiners(most=4)
    policy = msgspec.structs.replace(QUICK, guards=Guards(fail_abs=2), blast_radius=4, joiners=few)
    ref = await world.rollout([devices[:2], devices[2:4]], policy=policy)
    async with world.act() as connection:
        given = connection, world.organisation, ref
        with pytest.raises(RefusedError, match="at most 4 join"):
            await acts.join(*given, devices, actor=AUTHOR, now=world.now)
        assert await acts.join(*given, devices[3:7], actor=AUTHOR, now=world.now) == 3
    await world.pass_time(60)
    states = {w.number: w.state.value for w in (await world.held(ref)).rollout.waves}
    assert states[3] == "pending"
    await world.pass_time(600)
    assert (await world.states(ref)) == {
        "confirmed": 4,
        "reverted by device": 3,
    }
    assert await world.state(ref) == "halted"  # nobody of those who passed is taken back
    assert {world.devices[row].version for row in devices[:4]} == {"2.0.0"}
    assert {world.devices[row].version for row in devices[4:]} == {"1.0.0"}
    async with world.act() as connection:
        with pytest.raises(RefusedError, match="nobody joins: it is halted"):
            await acts.join(
                *(connection, world.organisation, ref, devices[7:]), actor=AUTHOR, now=world.now
            )
