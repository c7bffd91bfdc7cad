"""Orders to admit or to throw out: one transaction, after which nothing of the device is stored."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ops.services.stack import Stack
from server.admission.orders import Moved, find, move, reinstate
from server.audit.log import verify
from server.errors import ConflictError, NotFoundError, RefusedError
from server.fleet.lifecycle import State
from server.ingest.mqtt import Inbound
from tests.ingest_world import (
    NOON,
    Fleet,
    Ingesting,
    people,
    register,
    said,
)

pytestmark = pytest.mark.services

NOW = datetime.fromtimestamp(NOON / 1000, UTC) + timedelta(hours=1)


async def to(
    connection: asyncpg.Connection, device: str, state: State, *, reason: str = "stolen"
) -> Moved:
    async with connection.transaction():
        return await move(
            connection, device=device, to=state, reason=reason, actor="user test", now=NOW
        )


async def back(connection: asyncpg.Connection, device: str) -> Moved:
    async with connection.transaction():
        return await reinstate(
            connection, device=device, reason="found again", actor="user test", now=NOW
        )


async def certify(owner: asyncpg.Connection, fleet: Fleet, serial: str, *, state: str) -> None:
    await owner.execute(
        "insert into certificates (serial, organisation_id, device_id, spki_sha256, chain, "
        "not_after, state) values ($1, $2, $3, $4, 'chain', $5, $6)",
        *(serial, fleet.organisation, fleet.rows[0], serial.encode().ljust(32, b"_")),
        *(NOW + timedelta(days=200), state),
    )


async def test_a_suspended_device_goes_back_to_where_it_was_taken_from(
    owner: asyncpg.Connection,
) -> None:
    fleet = await register(owner, 1)
    (device,) = fleet.devices
    await certify(owner, fleet, "a1", state="active")
    suspended = await to(owner, device, State.SUSPENDED)
    assert (suspended.before, suspended.after) == (State.IN_SERVICE, State.SUSPENDED)
    quarantined = await to(owner, device, State.QUARANTINED)
    assert quarantined.order != suspended.order
    row = await owner.fetchrow("select * from devices")
    assert (row["state"], row["state_before"], row["admitted"]) == (
        "quarantined",
        "in service",
        False,
    )
    returned = await back(owner, device)
    assert returned.after is State.IN_SERVICE
    row = await owner.fetchrow("select * from devices")
    assert (row["state"], row["state_before"], row["admitted"]) == ("in service", None, True)
    orders = await owner.fetch("select admit, reason, asked_by from admissions order by id")
    assert [tuple(order) for order in orders] == [
        (False, "stolen", "user test"),
        (False, "stolen", "user test"),
        (True, "found again", "user test"),
    ]
    assert await owner.fetchval("select state from certificates") == "active"
    assert await owner.fetchval("select upper_inf(valid) from assignments")
    acts = [row["act"] for row in await owner.fetch("select act from audit order by number")]
    assert acts == ["device suspended", "device quarantined", "device reinstated"]
    assert (await verify(owner))[1] == []


async def test_what_is_done_already_is_not_done_again(owner: asyncpg.Connection) -> None:
    (device,) = (await register(owner, 1)).devices
    first = await to(owner, device, State.SUSPENDED)
    again = await to(owner, device, State.SUSPENDED)
    assert (again.order, again.changed) == (first.order, False)
    assert (await back(owner, device)).changed
    assert not (await back(owner, device)).changed
    assert await owner.fetchval("select count(*) from admissions") == 2
    assert await owner.fetchval("select count(*) from audit") == 2


async def test_the_end_of_a_life_revokes_its_certificates_and_frees_its_spot(
    owner: asyncpg.Connection,
) -> None:
    fleet = await register(owner, 1)
    for serial, state in (("a1", "retiring"), ("a2", "active"), ("a3", "staged")):
        await certify(owner, fleet, serial, state=state)
    await certify(owner, fleet, "a4", state="failed")
    await to(owner, fleet.devices[0], State.RETIRED)
    states = await owner.fetch("select serial, state, revoked_at from certificates order by serial")
    assert [row["state"] for row in states] == ["revoked", "revoked", "revoked", "failed"]
    assert [row["revoked_at"] for row in states] == [NOW, NOW, NOW, None]
    assert await owner.fetchval("select upper(valid) from assignments") == NOW
    logged = await owner.fetch("select serial, event, subject from issuance_log order by serial")
    assert [row["serial"] for row in logged] == ["a1", "a2", "a3"]
    with pytest.raises(ConflictError):
        await back(owner, fleet.devices[0])
    with pytest.raises(RefusedError, match="cannot become"):
        await to(owner, fleet.devices[0], State.SUSPENDED)


async def test_an_order_needs_a_device_and_a_reason(owner: asyncpg.Connection) -> None:
    fleet = await register(owner, 1)
    with pytest.raises(NotFoundError):
        await to(owner, "dc-nobody", State.SUSPENDED)
    with pytest.raises(RefusedError) as refused:
        await to(owner, fleet.devices[0], State.SUSPENDED, reason="  ")
    assert refused.value.code == "no_reason"
    await owner.execute("update devices set serial = 'SN-1'")
    assert await find(owner, "SN-1") == await find(owner, fleet.devices[0]) == fleet.devices[0]
    with pytest.raises(NotFoundError):
        await find(owner, "")


async def test_two_operators_at_once_are_taken_one_after_the_other(
    stack: Stack, database: str, owner: asyncpg.Connection
) -> None:
    (device,) = (await register(owner, 1)).devices
    async with asyncpg.create_pool(stack.endpoints.dsn("owner", database), min_size=2) as pool:

        async def order(state: State) -> Moved | RefusedError:
            async with pool.acquire() as connection:
                try:
                    return await to(connection, device, state)
                except RefusedError as error:
                    return error

        suspended, retired = await asyncio.gather(order(State.SUSPENDED), order(State.RETIRED))
    assert isinstance(retired, Moved)
    assert await owner.fetchval("select state from devices") == "retired"
    if isinstance(suspended, RefusedError):  # the other was first
        assert suspended.code == "bad_transition"
    else:
        assert retired.before is State.SUSPENDED
    assert (await verify(owner))[1] == []


async def test_the_desk_may_give_orders_within_its_organisation_alone(
    stack: Stack, database: str, owner: asyncpg.Connection
) -> None:
    own = await register(owner, 1, prefix="dc-own")
    await owner.execute("update organisations set name = 'Own'")
    other = await register(owner, 1, prefix="dc-other")
    desk = await asyncpg.connect(stack.endpoints.dsn("desk", database))
    try:
        async with desk.transaction():
            await desk.execute(
                "select set_config('app.organisation', $1, true)", str(own.organisation)
            )
            for state in (State.SUSPENDED, State.RETIRED):
                await move(
                    desk, device=own.devices[0], to=state, reason="x", actor="user x", now=NOW
                )
            with pytest.raises(NotFoundError):
                await move(
                    desk,
                    device=other.devices[0],
                    to=State.SUSPENDED,
                    reason="x",
                    actor="user x",
                    now=NOW,
                )
    finally:
        await desk.close()
    states = await owner.fetch("select device, state from devices order by device")
    assert [row["state"] for row in states] == ["in service", "retired"]


async def test_a_batch_that_was_planned_before_the_order_is_not_stored(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    agent, other = fleet.agent(0), fleet.agent(1)
    await ingest.take((agent, agent.counter()), (other, other.counter()))
    messages: list[Inbound] = [
        (agent.up, agent.counter(), 1),
        (other.up, other.counter(), 2),
    ]
    batch = await ingest.pipeline.prepare(messages)
    await to(owner, agent.device, State.SUSPENDED)
    done = await ingest.pipeline.store(batch)
    assert [r.boot_id for r in said(done) if hasattr(r, "boot_id")] == [other.boot_id]
    assert await people(owner, fleet.spots[0]) == (10, 10)
    assert await people(owner, fleet.spots[1]) == (20, 20)
    asked = await owner.fetchval("select asked_at from admissions")
    stored = await owner.fetchval(
        "select last_stored from boots where device_id = $1", fleet.rows[0]
    )
    assert stored < asked


async def test_a_boot_that_begins_as_the_order_is_given_is_not_stored(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    """Its cursor is made after the order, with the number that the order left."""
    fleet = await register(owner, 1)
    await ingest.take((fleet.agent(0), fleet.agent(0).counter()))  # so that it is in memory
    agent = fleet.agent(0)
    agent.boot_id, agent.ordinal = 77, 2
    await to(owner, agent.device, State.SUSPENDED)  # nobody is told: the notice is on its way
    done = await ingest.take((agent, agent.counter()))
    assert said(done) == []
    assert await people(owner, fleet.spots[0]) == (10, 10)


async def test_a_folded_boot_of_a_suspended_device_is_not_stored_either(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    """Opening it takes the device's number, which the order has raised."""
    fleet = await register(owner, 1)
    agent = fleet.agent(0)
    await ingest.take((agent, agent.counter()))
    await owner.execute(
        "with gone as (delete from boots returning *) insert into closed_boots "
        "select id, device_id, boot_id, ordinal, next_seq, digest, stored_to, first_seen, "
        "offset_ms, quality, totals_open, totals, answers from gone"
    )
    ingest.places.doubt(ingest.places.devices()[0].boots.values())
    messages: list[Inbound] = [(agent.up, agent.counter(), 1)]
    batch = await ingest.pipeline.prepare(messages)
    await to(owner, agent.device, State.SUSPENDED)
    assert said(await ingest.pipeline.store(batch)) == []
    assert await people(owner, fleet.spots[0]) == (10, 10)
