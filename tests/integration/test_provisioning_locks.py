"""Who meets on the same devices waits in one order, so that no two wait for each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from ops.services.stack import Stack
from protocol.label import bind_proof
from server.admission.orders import move
from server.db.engine import acting
from server.errors import RefusedError
from server.fleet.lifecycle import State
from server.provisioning.enrol import Enrolment
from server.provisioning.technician import TechnicianClaim, bind
from server.provisioning.vouchers import check_voucher, spend, withdraw_voucher
from tests.integration.api_world import World
from tests.integration.provisioning_world import Key, Provisioning, provisioning

pytestmark = pytest.mark.services


@pytest.fixture
async def place(world: World, stack: Stack, world_database: str) -> AsyncIterator[Provisioning]:
    async with provisioning(stack, world_database, world.owner) as made:
        yield made


async def waited_for(place: Provisioning) -> None:
    """Return once somebody waits for what the owner's connection holds."""
    async with asyncio.timeout(10):
        while not await place.owner.fetchval(  # noqa: ASYNC110
            "select exists (select from pg_locks where not granted "
            "and pg_backend_pid() = any(pg_blocking_pids(pid)))"
        ):
            await asyncio.sleep(0.01)


async def hold(place: Provisioning, table: str, what: str) -> None:
    """Lock a row on the owner's connection; fail at once if somebody has it."""
    column = "serial" if table == "devices" else "ref"
    await place.owner.fetch(
        f"select from {table} where {column} = $1 for update nowait",
        what,
    )


async def test_who_binds_locks_the_voucher_after_the_device(place: Provisioning) -> None:
    label = await place.device()
    voucher, text = await place.voucher()
    proof = bind_proof(
        label.secret_sha256,
        voucher=voucher.ref,
        serial=label.serial,
        spot="door-1",
        at_ms=round(place.now.timestamp() * 1000),
    )

    async def bound() -> TechnicianClaim:
        async with acting(place.desk, "bind", organisation=place.organisation) as connection:
            return await bind(
                connection,
                place.signer,
                voucher=text,
                serial=label.serial,
                proof=proof,
                spot_ref="door-1",
                at=place.now,
                act_ref="1",
                now=place.now,
            )

    async with asyncio.TaskGroup() as tasks, place.owner.transaction():
        await hold(place, "devices", label.serial)  # as an enrolment by this label does
        binding = tasks.create_task(bound())
        await waited_for(place)
        await hold(place, "vouchers", voucher.ref)
    assert binding.result().state == "open"


@pytest.mark.parametrize("code", ["voucher_spent", "voucher_withdrawn"])
async def test_a_voucher_that_ends_between_its_check_and_its_use_is_refused(
    place: Provisioning, code: str
) -> None:
    _, text = await place.voucher(uses=1)
    async with acting(place.desk, "use voucher", organisation=place.organisation) as connection:
        held = await check_voucher(connection, place.signer, text, at=place.now)
        if code == "voucher_spent":
            await spend(connection, held, device="dc", actor="server", now=place.now)
        else:
            await withdraw_voucher(connection, held.ref, actor="user noc", now=place.now)
        with pytest.raises(RefusedError) as error:
            await spend(connection, held, device="dc", actor="server", now=place.now)
    assert error.value.code == code


async def test_who_enrols_a_replacement_waits_for_the_replaced_with_nothing_in_hand(
    place: Provisioning,
) -> None:
    old, new = await place.device("DC-0001"), await place.device("DC-0002")
    await place.claim(old.text, "door-1")
    await place.ask(old, Key())
    place.later(days=1)
    claim = await place.claim(new.text, "door-1", replaces=old.text)
    replaced = await place.owner.fetchval("select device from devices where serial = 'DC-0001'")
    async with asyncio.TaskGroup() as tasks, place.owner.transaction():
        await hold(place, "devices", old.serial)
        enrolling = tasks.create_task(place.ask(new, Key()))
        await waited_for(place)
        await hold(place, "devices", new.serial)  # as a repeated claim does, by id
        await move(  # it takes the chain last
            place.owner,
            device=replaced,
            to=State.SUSPENDED,
            reason="stolen",
            actor="command",
            now=place.now,
        )
    assert isinstance(enrolling.result(), Enrolment)
    assert (await place.found(claim.ref)).state == "used"
    assert await place.stands(new.serial) == [("door-1", place.now, None)]
    assert (await place.acts())[-4:] == [
        "device enrolled",
        "device suspended",
        "device returned",
        "device installed",
    ]
