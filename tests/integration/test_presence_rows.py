"""What ingest writes for presence, against the real database: rows, events, order, isolation."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.identity import DeviceId
from protocol.session import Goodbye
from server.clock import at
from server.db.engine import open_pool
from server.health import sessions
from server.health.presence import CLOSED, GRACE, Kind, Said
from server.health.sessions import Told
from server.ingest import canary
from server.ingest.strays import SAMPLES_AN_HOUR
from tests.ingest_world import NOON, Agent, Ingesting, register

pytestmark = pytest.mark.services

EPOCH = 1 << 32


async def row_of(owner: asyncpg.Connection, device: str) -> asyncpg.Record:
    return await owner.fetchrow(
        "select p.* from presences p join devices d on d.id = p.device_id where d.device = $1",
        device,
    )


async def events_of(owner: asyncpg.Connection, device: str) -> list[tuple[Any, ...]]:
    rows = await owner.fetch(
        "select e.kind, e.reason from device_events e join devices d on d.id = e.device_id "
        "where d.device = $1 order by e.id",
        device,
    )
    return [tuple(row) for row in rows]


async def test_a_device_has_its_row_from_the_transaction_that_makes_it(
    owner: asyncpg.Connection,
) -> None:
    fleet = await register(owner, 2, prefix="dc-born")
    for device in fleet.devices:
        row = await row_of(owner, device)
        assert (row["state"], row["session"], row["due_at"]) == ("never seen", "none", None)
        assert row["organisation_id"] == fleet.organisation
    other = await owner.fetchval(
        "insert into organisations (ref, name) values ('other', 'Other') returning id"
    )
    await owner.execute(
        "update devices set organisation_id = $2 where device = $1", fleet.devices[0], other
    )
    assert (await row_of(owner, fleet.devices[0]))["organisation_id"] == other


async def test_hellos_wills_and_goodbyes_become_the_session_and_events(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    fleet = await register(owner, 1, prefix="dc-said")
    agent = fleet.agent()
    name = "vestibule 1.2.0"
    await ingest.take((agent, agent.hello(nonce=5 * EPOCH + 1, name=name)))
    row = await row_of(owner, agent.device)
    assert (row["session"], row["epoch"], row["agent"]) == ("open", 5, name)
    assert row["due_at"] < at(ingest.clock.now_ms())
    await ingest.take((agent, agent.hello(nonce=5 * EPOCH + 2, name=name)))  # asks again
    await ingest.take((agent, agent.hello(nonce=5 * EPOCH, name="will")))
    row = await row_of(owner, agent.device)
    assert (row["session"], row["closed"]) == ("lost", [5])
    assert row["due_at"] == at(ingest.clock.now_ms()) + GRACE
    later = "vestibule 1.3.0"
    second = fleet.agent(rng=random.Random(99))
    await ingest.take((second, second.hello(nonce=6 * EPOCH + 1, name=later)))
    said = Goodbye("update", 600)
    done = await ingest.take((second, second.hello(nonce=6 * EPOCH + 2, name=said.name)))
    assert done.packets == []
    row = await row_of(owner, agent.device)
    assert (row["session"], row["reason"], row["closed"]) == ("left", "update", [5, 6])
    assert row["until"] == at(ingest.clock.now_ms()) + timedelta(seconds=600)
    assert await events_of(owner, agent.device) == [
        ("connected", ""),
        ("boot", ""),
        ("lost", ""),
        ("connected", ""),
        ("boot", ""),
        ("version", ""),
        ("goodbye", "update"),
    ]


async def test_a_late_will_of_a_connection_that_was_taken_over_does_nothing(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    fleet = await register(owner, 1, prefix="dc-over")
    agent = fleet.agent()
    await ingest.take((agent, agent.hello(nonce=5 * EPOCH + 1)))
    await ingest.take(  # in one batch, and after that once more
        (agent, agent.hello(nonce=6 * EPOCH + 1)),
        (agent, agent.hello(nonce=5 * EPOCH, name="will")),
    )
    await ingest.take((agent, agent.hello(nonce=5 * EPOCH, name="will")))
    await ingest.take((agent, agent.hello(nonce=5 * EPOCH + 9)))  # a hello that was under way
    row = await row_of(owner, agent.device)
    assert (row["session"], row["epoch"], row["closed"]) == ("open", 6, [5])
    assert [kind for kind, _ in await events_of(owner, agent.device)] == [
        *("connected", "boot", "connected")
    ]


async def test_a_goodbye_that_was_not_meant_is_a_will(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    fleet = await register(owner, 1, prefix="dc-fail")
    agent = fleet.agent()
    await ingest.take((agent, agent.hello(nonce=EPOCH + 1)))
    await ingest.take((agent, agent.hello(nonce=EPOCH + 2, name=Goodbye("failed").name)))
    row = await row_of(owner, agent.device)
    assert (row["session"], row["reason"]) == ("lost", "failed")


async def test_a_device_that_is_thrown_out_is_lost_at_once_though_no_will_comes(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    fleet = await register(owner, 1, prefix="dc-thrown")
    agent = fleet.agent()
    for epoch in range(1, CLOSED + 4):
        await ingest.take((agent, agent.hello(nonce=epoch * EPOCH + 1)))
    since = at(ingest.clock.now_ms())
    await owner.execute(
        "update devices set state = 'suspended', state_since = $2 where device = $1",
        *(agent.device, since),
    )
    row = await row_of(owner, agent.device)
    assert (row["session"], row["session_at"], row["reason"]) == ("lost", since, "not admitted")
    assert row["closed"] == list(range(4, CLOSED + 4))


async def test_frames_of_the_unwell_are_noted_in_the_transaction_that_stores_them(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    fleet = await register(owner, 3, prefix="dc-note")
    agents = [fleet.agent(i) for i in range(3)]
    await ingest.take(*((a, a.hello(nonce=EPOCH + 1)) for a in agents[:2]))
    await owner.execute(
        "update presences set due_at = null, noted_at = null, state = "
        "case device_id when $1 then 'no data' else 'healthy' end where session = 'open'",
        fleet.rows[0],
    )
    await ingest.take(*((agent, agent.counter()) for agent in agents))
    unwell, healthy, never = [await row_of(owner, agent.device) for agent in agents]
    assert unwell["noted_at"] == at(ingest.clock.now_ms())
    assert unwell["due_at"] < unwell["noted_at"]
    for row in (healthy, never):
        assert (row["due_at"], row["noted_at"]) == (None, None)


async def test_the_watermark_is_how_far_all_lanes_have_come(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    even, odd = (address.encode() for address in canary.ADDRESSES)
    now = ingest.clock.now_ms()

    async def mark() -> object:
        return await owner.fetchval("select watermark from platform")

    await ingest.take_messages([(even, canary.frame(now - 1000), 1)])
    assert await mark() is None
    await ingest.take_messages([(odd, canary.frame(now - 3000), 1)])
    assert await mark() == at(now - 3000)
    await ingest.take_messages([(odd, canary.frame(now), 1), (odd, b"nothing of ours", 2)])
    assert await mark() == at(now - 1000)
    await ingest.take_messages([(even, canary.frame(now + 60_000), 1)])  # has not come yet
    await ingest.take_messages([(even, canary.frame(now - 2000), 1)])  # comes again
    assert await mark() == at(now - 1000)
    assert await owner.fetchval("select count(*) from findings") == 0


async def test_who_writes_the_same_device_in_another_order_waits_for_nobody_in_a_circle(
    owner: asyncpg.Connection, stack: Stack, database: str
) -> None:
    fleet = await register(owner, 20, prefix="dc-circle")

    def told(rows: tuple[int, ...], epoch: int) -> list[Told]:
        return [Told(row, Said(Kind.HELLO, epoch, at(NOON)), "test", 1, 1) for row in rows]

    async with open_pool(stack.endpoints.dsn("ingest", database), size=4, name="t") as pool:

        async def write(rows: tuple[int, ...], first: int) -> None:
            async with pool.acquire() as connection:
                for epoch in range(first, first + 10):
                    await sessions.note(connection, told(rows, epoch))

        async with asyncio.timeout(30):
            await asyncio.gather(
                write(fleet.rows, 100), write(fleet.rows[::-1], 200), write(fleet.rows, 300)
            )
    assert await owner.fetchval("select count(*) from presences where session = 'open'") == 20


async def test_a_device_that_connects_without_end_fills_no_table(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    agent = (await register(owner, 1, prefix="dc-flood")).agent()
    last = 3 * SAMPLES_AN_HOUR
    for first in range(1, last, 50):
        hellos = [agent.hello(nonce=epoch * EPOCH + 1) for epoch in range(first, first + 50)]
        await ingest.take(*((agent, hello) for hello in hellos))
    assert (await row_of(owner, agent.device))["epoch"] == last
    kinds = [kind for kind, _ in await events_of(owner, agent.device)]
    assert kinds.count("connected") == SAMPLES_AN_HOUR


async def test_an_agent_that_nobody_knows_leaves_no_trace(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    agent = Agent(DeviceId("dc-nobody-knows"), 1)
    await ingest.take((agent, agent.hello(nonce=EPOCH + 1)))
    assert await owner.fetchval("select count(*) from device_events") == 0


@pytest.mark.parametrize("name", ["evil\0agent", "evil\nagent", "\x7f"])
async def test_a_name_that_no_text_holds_silences_nobody_else_in_its_batch(
    owner: asyncpg.Connection, ingest: Ingesting, name: str
) -> None:
    fleet = await register(owner, 2, prefix="dc-name")
    honest, hostile = fleet.agent(0), fleet.agent(1)
    done = await ingest.take(
        (honest, honest.hello(nonce=EPOCH + 1)),
        (hostile, hostile.hello(nonce=EPOCH + 1, name=name)),
        (honest, honest.counter()),
    )
    assert len(done.packets) == 2  # an answer and a receipt
    assert (await row_of(owner, honest.device))["session"] == "open"
    assert (await row_of(owner, hostile.device))["session"] == "none"


async def test_no_count_and_no_answer_is_refused_for_what_presence_cannot_note(
    owner: asyncpg.Connection, ingest: Ingesting
) -> None:
    agent = (await register(owner, 1, prefix="dc-faulty")).agent()
    await ingest.take((agent, agent.hello(nonce=EPOCH + 1)))  # unwell: not judged yet
    await owner.execute(
        "create function broken() returns trigger language plpgsql as "
        "$$ begin raise exception 'broken'; end $$; "
        "create trigger broken before update on presences for each row execute function broken()"
    )
    done = await ingest.take(
        (agent, agent.hello(nonce=2 * EPOCH + 1)),
        (agent, agent.counter()),
        (agent, agent.counter()),
    )
    assert len(done.packets) == 2
    assert await owner.fetchval("select count(*) from quarantine") == 0
    assert await owner.fetchval("select next_seq from boots") == 2
