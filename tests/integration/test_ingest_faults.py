"""What the database does to ingest, and what ingest then does: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.session import Answer
from server.clock import ManualClock
from server.ingest.pipeline import Pipeline
from server.ingest.places import Places
from server.ingest.worker import NotDurableError, assert_durable
from tests.ingest_world import (
    MINUTE,
    NOON,
    Ingesting,
    differences,
    ingesting,
    people,
    rebuilt,
    receipt_of,
    register,
    said,
)

pytestmark = pytest.mark.services


@pytest.fixture
async def admin(
    stack: Stack, database: str, owner: asyncpg.Connection
) -> AsyncIterator[asyncpg.Connection]:
    """One who may end others' connections."""
    connection = await asyncpg.connect(stack.endpoints.dsn("admin", database))
    try:
        yield connection
    finally:
        await connection.close()


REFUSE = """
create function refuse() returns trigger language plpgsql as $$
begin
  if new.boot = {boot} and new.seq = {seq} then
    raise exception 'not this one' using errcode = '{code}';
  end if;
  return new;
end $$;
create trigger refuse before insert on readings for each row execute function refuse();
"""


@pytest.mark.parametrize("code", ["23514", "22003", "P0001"])
async def test_one_frame_that_the_database_refuses_goes_to_quarantine_alone(
    ingest: Ingesting, owner: asyncpg.Connection, code: str
) -> None:
    fleet = await register(owner, 5)
    agents = [fleet.agent(i) for i in range(5)]
    await ingest.take(*((agent, agent.counter()) for agent in agents))
    boot = await owner.fetchval("select id from boots where device_id = $1", fleet.rows[2])
    await owner.execute(REFUSE.format(boot=boot, seq=2, code=code))
    done = await ingest.take(*((agent, agent.counter()) for _ in range(4) for agent in agents))
    assert [receipt_of(done, agent).next_seq for agent in agents] == [5] * 5
    row = await owner.fetchrow("select * from quarantine")
    assert (row["boot"], row["seq"], row["reason"]) == (boot, 2, 200)
    assert "not this one" in row["detail"]
    assert await owner.fetchval("select counts from gaps") == [5, 5, 5, 5, 0, 0, 0, 0]
    assert [await people(owner, spot) for spot in fleet.spots] == [
        (40, 40) if i == 2 else (50, 50) for i in range(5)
    ]
    assert await rebuilt(owner) == []


async def test_a_batch_is_stored_whole_after_the_database_was_read_only(
    ingest: Ingesting, owner: asyncpg.Connection, admin: asyncpg.Connection, database: str
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take((agent, agent.counter()))
    await owner.execute(f"alter database {database} set default_transaction_read_only = on")
    await _end_others(admin)
    taking = asyncio.create_task(ingest.take((agent, agent.counter())))
    done, _ = await asyncio.wait([taking], timeout=1)
    assert not done
    await owner.execute("set default_transaction_read_only = off")
    await owner.execute(f"alter database {database} reset default_transaction_read_only")
    assert receipt_of(await asyncio.wait_for(taking, 30), agent).next_seq == 2
    assert await people(owner, fleet.spots[0]) == (20, 20)


async def test_a_connection_lost_in_the_middle_of_a_batch_loses_and_doubles_nothing(
    ingest: Ingesting, owner: asyncpg.Connection, admin: asyncpg.Connection
) -> None:
    fleet = await register(owner, 20)
    agents = [fleet.agent(i) for i in range(20)]
    await ingest.take(*((agent, agent.counter()) for agent in agents))
    ingest.clock.advance(7200)
    ended = 0
    for _ in range(8):
        sent = [(agent, agent.counter()) for agent in agents for _ in range(3)]
        taking = asyncio.create_task(ingest.take(*sent))
        for _ in range(4):  # each time somewhere else in the batch
            finished, _ = await asyncio.wait([taking], timeout=0.004)
            if not finished:
                await _end_others(admin)
                ended += 1
        done = await taking
        assert {receipt_of(done, agent).next_seq for agent in agents} == {agents[0].seq}
    assert ended
    assert [await people(owner, spot) for spot in fleet.spots] == [(250, 250)] * 20
    assert await owner.fetch("select distinct next_seq from boots") == [(25,)]
    assert await differences(owner) == []
    assert await rebuilt(owner) == []


async def _end_others(admin: asyncpg.Connection) -> None:
    await admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and usename = 'vestibule_ingest'"
    )


class _Died(Exception):
    """The process is gone."""


async def test_a_server_that_dies_between_commit_and_receipt_says_so_the_next_time(
    stack: Stack, database: str, owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    frames = [agent.counter(), agent.counter()]

    def die(name: str) -> None:
        assert name == "committed"
        raise _Died

    async with asyncpg.create_pool(stack.endpoints.dsn("ingest", database), min_size=1) as pool:
        clock = ManualClock(NOON + 60 * MINUTE)
        places = Places(clock)
        dying = Ingesting(Pipeline(pool, places, clock, failpoint=die), places, clock)
        with pytest.raises(_Died):
            await dying.take(*((agent, frame) for frame in frames))
    assert await people(owner, fleet.spots[0]) == (20, 20)
    done = await ingest.take(*((agent, frame) for frame in frames))
    assert receipt_of(done, agent).next_seq == 2
    assert await people(owner, fleet.spots[0]) == (20, 20)


async def test_a_restored_database_is_noticed_and_filled_again(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    frames = [agent.counter() for _ in range(4)]
    (before,) = said(await ingest.take(*((agent, frame) for frame in frames)))
    # as an hour ago: two frames less, another dataset
    async with owner.transaction():
        await owner.execute("update boots set next_seq = 2, totals = '{10,10,10,10,0,0,0,0}'")
        await owner.execute("delete from readings where seq >= 2")
        await owner.execute("update rollup_15m set in0 = 10, in1 = 10, out0 = 10, out1 = 10, "
                            "observed = (1::bigint << 40) - 1")  # fmt: skip
        await owner.execute("delete from rollup_15m where bucket > (select min(bucket) "
                            "from rollup_15m)")  # fmt: skip
        await owner.execute("update dataset set id = id - 1")
    done = await ingest.take((agent, agent.counter()))
    assert receipt_of(done, agent).next_seq == 2
    (answer,) = said(await ingest.take((agent, agent.hello())))
    assert isinstance(answer, Answer)
    assert answer.boots[0].next_seq == 2
    assert not isinstance(before, Answer)
    assert answer.dataset != before.dataset
    agent.seq = 5
    done = await ingest.take(*((agent, frame) for frame in frames))
    assert receipt_of(done, agent).next_seq == 4
    assert await people(owner, fleet.spots[0]) == (40, 40)
    assert await rebuilt(owner) == []


async def test_two_workers_on_one_device_store_each_frame_once(
    stack: Stack, database: str, owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    fleet = await register(owner, 10)
    agents = [fleet.agent(i) for i in range(10)]
    async with ingesting(stack, database) as other:
        for _ in range(5):
            sent = [(agent, agent.counter()) for agent in agents]
            await asyncio.gather(ingest.take(*sent), other.take(*reversed(sent)))
    assert [await people(owner, spot) for spot in fleet.spots] == [(50, 50)] * 10
    assert await owner.fetchval("select count(*) from findings") == 0
    assert await rebuilt(owner) == []


async def test_ingest_refuses_a_database_that_would_lose_what_it_confirms(
    owner: asyncpg.Connection,
) -> None:
    await assert_durable(owner)
    await owner.execute("set synchronous_commit = off")
    with pytest.raises(NotDurableError, match="synchronous_commit is off"):
        await assert_durable(owner)
