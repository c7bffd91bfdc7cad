"""Commands in the real database: asked for, let through one by one, told of, and ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from protocol.state import Outcome
from server.commands import orders
from server.commands.life import AT_ONCE, RUN, Risk, State
from server.db.engine import reading, transaction
from server.db.purge import KEPT, purge
from server.desired.settings import CHANGED
from server.errors import ConflictError, NotFoundError, RefusedError
from server.fleet.checks import FieldError
from tests.integration.desired_world import OPEN, Fleet, report, standing
from tests.integration.desired_world import fleet as fleet

pytestmark = pytest.mark.services
ONE, TWO, THREE, FOUR, FIVE = (f"dc-number-{n}" for n in range(1, 6))


async def offered(fleet: Fleet, device: str, *outcomes: Outcome) -> list[str]:
    return [order.kind for order in (await fleet.exchange(device, None, *outcomes))[2]]


async def test_a_command_goes_its_way_and_its_end_is_kept(fleet: Fleet) -> None:
    batch = await fleet.ask("self-test", ONE, TWO)
    assert (batch.kind, batch.asked_by, batch.states) == ("self-test", "user ada", {"queued": 2})
    _, _, (order,), _ = await fleet.exchange(ONE)
    assert order.ttl_s == 86_400
    again = await fleet.exchange(ONE)
    assert again[2] == (order,)  # until the device says that it runs
    assert await fleet.state(ONE) == "sent"
    await fleet.exchange(ONE, None, Outcome(order.command, "running"))
    assert await fleet.state(ONE) == "running"
    fleet.later(minutes=1)
    end = Outcome(order.command, "done", "", {"clock": "ok", "n": 3})
    assert (await fleet.exchange(ONE, None, end))[3] == ((order.command,), ())
    late = Outcome(order.command, "failed", "interrupted")
    assert (await fleet.exchange(ONE, None, end, late))[3][0] == (order.command, order.command)
    (found,) = await fleet.commands(device=ONE)
    assert (found.state, found.result, found.code) == (State.DONE, {"clock": "ok", "n": 3}, "")
    assert found.ended_at == fleet.now
    async with reading(fleet.world.api, "look", organisation=fleet.organisation) as connection:
        seen = await orders.batch(connection, fleet.organisation, batch.ref)
    assert seen.states == {"done": 1, "queued": 1}
    assert not await offered(fleet, ONE)


async def test_a_word_of_another_devices_command_changes_nothing(fleet: Fleet) -> None:
    await fleet.ask("self-test", ONE)
    ref = (await fleet.commands(device=ONE))[0].ref
    await fleet.exchange(TWO, None, Outcome(ref, "done"))
    assert await fleet.state(ONE) == "queued"
    assert (await fleet.exchange(TWO, None, Outcome(ref, "running")))[3] == ((), (ref,))
    async with transaction(fleet.ingest, "file") as connection:
        with pytest.raises(NotFoundError):
            await orders.keep_file(connection, fleet.rows[TWO], ref, b"x", now=fleet.now)


async def test_the_same_word_asks_once(fleet: Fleet) -> None:
    first, second = await asyncio.gather(
        *(fleet.ask("identify", ONE, once="the same form") for _ in range(2))
    )
    assert first.ref == second.ref
    assert len(await fleet.commands()) == 1


async def test_a_restart_while_the_shop_is_open_needs_a_reason(fleet: Fleet) -> None:
    fleet.now = OPEN
    with pytest.raises(RefusedError) as error:
        await fleet.ask("reboot", site="north")
    assert error.value.code == "reason_needed"
    assert "north" in str(error.value)
    await fleet.ask("reboot", ONE, reason="it hangs")
    assert await offered(fleet, ONE) == ["reboot"]
    await fleet.ask("self-test", TWO)
    assert await offered(fleet, TWO) == ["self-test"]


async def test_a_restart_asked_for_by_night_waits_out_the_day(fleet: Fleet) -> None:
    await fleet.ask("reboot", ONE, ttl=timedelta(days=2))
    fleet.now = OPEN
    assert not await offered(fleet, ONE)
    fleet.later(hours=12)
    assert await offered(fleet, ONE) == ["reboot"]


async def test_one_device_of_a_shop_restarts_at_a_time_and_the_next_is_rung_for(
    fleet: Fleet,
) -> None:
    await fleet.ask("reboot", ONE, TWO, THREE)
    given = await asyncio.gather(*(offered(fleet, each) for each in (ONE, TWO, THREE)))
    assert sorted(map(len, given)) == [0, 0, 1]
    went = (ONE, TWO, THREE)[[len(each) for each in given].index(1)]
    ref = (await fleet.commands(device=went))[0].ref
    rung = await rings(fleet, fleet.exchange(went, None, Outcome(ref, "done")))
    waits = {ONE, TWO, THREE} - {went}
    assert set(rung) == waits
    assert [await offered(fleet, each) for each in sorted(waits)] == [["reboot"], []]


async def test_an_organisation_bears_so_many_restarts_at_once(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(AT_ONCE, Risk.DISRUPTIVE, (1, 2))
    fourth = await fleet.world.site(fleet.organisation, "west", hours=(480, 1200))
    fleet.rows["dc-number-6"] = await standing(
        fleet.world.owner, fleet.organisation, fourth, "dc-number-6"
    )
    await fleet.ask("reboot", ONE, FOUR, FIVE, "dc-number-6", reason="all hang")
    assert await offered(fleet, ONE) == ["reboot"]
    assert await offered(fleet, FOUR) == ["reboot"]
    assert not await offered(fleet, FIVE)
    assert not await offered(fleet, "dc-number-6")
    await fleet.exchange(ONE, None, Outcome(await only(fleet, ONE), "failed", "x"))
    assert await offered(fleet, "dc-number-6") == ["reboot"]
    assert not await offered(fleet, FIVE)


async def only(fleet: Fleet, device: str) -> str:
    (found,) = await fleet.commands(device=device)
    return found.ref


async def rings(fleet: Fleet, act: Any) -> list[str]:
    rung: list[str] = []
    async with fleet.ingest.acquire() as connection:

        def heard(_: Any, __: int, ___: str, payload: object) -> None:
            rung.append(str(payload))

        await connection.add_listener(CHANGED, heard)
        await act
        await connection.fetchval("select 1")
        await connection.remove_listener(CHANGED, heard)
    return rung


async def test_what_is_taken_back_before_it_runs_is_not_done_and_after_that_it_can_not_be(
    fleet: Fleet,
) -> None:
    await fleet.ask("identify", ONE)
    ref = await only(fleet, ONE)
    await offered(fleet, ONE)
    found = await fleet.cancel(ref)
    assert (found.state, found.ended_by) == (State.CANCELLED, "user ada")
    assert (await fleet.cancel(ref)).state is State.CANCELLED
    assert (await fleet.exchange(ONE, None, Outcome(ref, "running")))[2:] == ((), ((), (ref,)))
    assert await fleet.state(ONE) == "cancelled"
    await fleet.exchange(ONE, None, Outcome(ref, "done"))  # it had done it all the same
    assert await fleet.state(ONE) == "done"
    await fleet.ask("identify", TWO)
    ref = await only(fleet, TWO)
    await fleet.exchange(TWO, None, Outcome(ref, "running"))
    with pytest.raises(ConflictError):
        await fleet.cancel(ref)
    with pytest.raises(NotFoundError):
        await fleet.cancel("cmd-nothing1")


async def test_time_ends_what_nobody_fetched_began_or_answered(fleet: Fleet) -> None:
    await fleet.ask("identify", ONE, TWO, THREE)
    await offered(fleet, TWO)
    await offered(fleet, THREE, Outcome(await only(fleet, THREE), "running"))
    fleet.later(minutes=16)
    assert not await offered(fleet, ONE)  # even before anybody swept
    assert await fleet.sweep() == 2
    codes = {each.device: (each.state.value, each.code) for each in await fleet.commands()}
    assert codes == {
        ONE: ("expired", "not_fetched"),
        TWO: ("expired", "not_begun"),
        THREE: ("running", ""),
    }
    fleet.later(seconds=RUN.total_seconds())
    assert await fleet.sweep() == 1
    assert (await fleet.commands(device=THREE))[0].code == "no_answer"
    await fleet.exchange(THREE, None, Outcome(await only(fleet, THREE), "done"))
    assert await fleet.state(THREE) == "done"


async def test_what_waits_is_rung_for_again(fleet: Fleet) -> None:
    await fleet.ask("self-test", ONE)
    assert await rings(fleet, fleet.sweep()) == []
    fleet.later(minutes=2)
    assert await rings(fleet, fleet.sweep()) == [ONE]


async def test_a_file_comes_while_its_command_is_under_way_and_is_kept_a_month(
    fleet: Fleet,
) -> None:
    await fleet.ask("log-tail", ONE, lines=7)
    await fleet.ask("identify", TWO)
    _, _, (order,), _ = await fleet.exchange(ONE)
    assert order.lines == 7

    async def keep(device: str, ref: str, content: bytes) -> None:
        async with transaction(fleet.ingest, "keep") as connection:
            await orders.keep_file(connection, fleet.rows[device], ref, content, now=fleet.now)

    for content in (b"first", b"again"):
        await keep(ONE, order.command, content)
    await offered(fleet, TWO)
    for device, ref, content in (
        (TWO, await only(fleet, TWO), b"x"),  # a kind that brings none
        (ONE, "cmd-nothing1", b"x"),
    ):
        with pytest.raises(NotFoundError):
            await keep(device, ref, content)
    for content in (b"", bytes(262_145)):
        with pytest.raises(RefusedError):
            await keep(ONE, order.command, content)
    await fleet.exchange(ONE, None, Outcome(order.command, "done", "", {"bytes": 5}))
    with pytest.raises(NotFoundError):
        await keep(ONE, order.command, b"late")
    async with reading(fleet.world.api, "look", organisation=fleet.organisation) as connection:
        name, content = await orders.file_of(connection, fleet.organisation, order.command)
    assert (name, content) == (f"{ONE}-{order.command}.log.gz", b"again")
    assert (await fleet.commands(device=ONE))[0].has_file
    await purge(fleet.world.maint, now=fleet.now + KEPT - timedelta(seconds=1))
    assert (await fleet.commands(device=ONE))[0].has_file
    await purge(fleet.world.maint, now=fleet.now + KEPT + timedelta(seconds=1))
    assert not (await fleet.commands(device=ONE))[0].has_file
    await fleet.exchange(TWO, None, Outcome(await only(fleet, TWO), "done"))
    await purge(fleet.world.maint, now=fleet.now + timedelta(days=366))
    assert not await fleet.commands()
    assert await fleet.world.owner.fetchval("select count(*) from command_batches") == 0


async def test_what_nobody_could_do_is_refused_by_name(fleet: Fleet) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kind": "dance", "devices": (ONE,)}, "kind"),
        ({"kind": "identify", "devices": ("dc-nobody",)}, "devices"),
        ({"kind": "identify", "site": "east"}, "site"),
        ({"kind": "identify", "devices": (ONE,), "site": "north"}, "site"),
        ({"kind": "identify", "ttl": timedelta(seconds=1)}, "ttl_s"),
        ({"kind": "log-tail", "lines": 0}, "lines"),
        ({"kind": "identify", "reason": "\x00"}, "reason"),
    ]
    for asked, field in wrong:
        named = dict(asked)
        with pytest.raises(FieldError) as error:
            await fleet.ask(named.pop("kind"), *named.pop("devices", ()), **named)
        assert error.value.parameter == field
    assert not await fleet.commands()


async def test_a_device_that_is_thrown_out_is_told_nothing(fleet: Fleet) -> None:
    owner = fleet.world.owner
    await owner.execute("update devices set state = 'suspended' where device = $1", ONE)
    batch = await fleet.ask("identify", site="north")
    assert batch.states == {"queued": 2}
    with pytest.raises(RefusedError) as error:
        await fleet.ask("identify", ONE)
    assert error.value.code == "no_devices"


async def test_a_device_that_has_changed_hands_does_nothing_for_its_last_owner(
    fleet: Fleet,
) -> None:
    await fleet.write("device", FIVE, health_s=60)
    await fleet.ask("log-tail", FIVE)
    await fleet.ask("identify", FIVE)
    await fleet.exchange(FIVE, report())
    ref = (await fleet.commands(device=FIVE))[0].ref
    other = await fleet.world.organisation("other")
    await fleet.world.owner.execute(
        "update devices set organisation_id = $2 where device = $1", FIVE, other
    )
    _, told, given, heard = await fleet.exchange(FIVE, report(), Outcome(ref, "running"))
    assert (told, given, heard) == ({}, (), ((), (ref,)))
    assert await fleet.world.owner.fetchval("select organisation_id from device_settings") == other


async def test_all_of_an_organisation_can_be_asked_and_each_act_is_in_the_audit(
    fleet: Fleet,
) -> None:
    batch = await fleet.ask("self-test")
    assert batch.states == {"queued": 5}
    await fleet.cancel(await only(fleet, FOUR))
    rows = await fleet.world.owner.fetch(
        "select actor, act, subject from audit where act like 'command %' order by id"
    )
    assert [tuple(row) for row in rows] == [
        ("user ada", "command asked", batch.ref),
        ("user ada", "command cancelled", await only(fleet, FOUR)),
    ]
