"""The worker that judges presence, against the real database, in virtual time."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.session import Goodbye
from server.clock import at
from server.db.engine import open_pool
from server.health import sessions
from server.health.platform import LEAST_LOST, LEAST_SITES, STALL, Cause
from server.health.presence import DRAIN, GRACE, Kind, Said
from server.health.sessions import Told
from server.health.watch import Watch
from tests.ingest_world import Agent, Fleet, Ingesting, register

pytestmark = pytest.mark.services

EPOCH = 1 << 32
HEARTBEAT = {"uptime.s": 1.0}


@dataclass
class Judge:
    """A watch beside ingest, on the same clock."""

    watch: Watch
    ingest: Ingesting
    owner: asyncpg.Connection

    async def turn(self, seconds: float = 0, *, hear: bool = True) -> int:
        """Let time pass, the server hear itself unless it does not, and look once."""
        self.ingest.clock.advance(seconds)
        if hear:
            now = at(self.ingest.clock.now_ms())
            await sessions.watermark(self.owner, now, at=now)
        return await self.watch.turn()

    async def greet(self, *agents: Agent, epoch: int = 1) -> None:
        await self.ingest.take(*((a, a.hello(nonce=epoch * EPOCH + 1)) for a in agents))

    async def lose(self, *agents: Agent, epoch: int = 1) -> None:
        wills = ((a, a.hello(nonce=epoch * EPOCH, name="will")) for a in agents)
        await self.ingest.take(*wills)

    async def states(self) -> list[str]:
        rows = await self.owner.fetch("select state from presences order by device_id")
        return [row["state"] for row in rows]

    async def unknowns(self) -> list[tuple[str, bool]]:
        rows = await self.owner.fetch(
            "select cause, until is null as open from platform_unknown order by id"
        )
        return [(row["cause"], row["open"]) for row in rows]


@pytest.fixture
async def judge(
    stack: Stack, database: str, owner: asyncpg.Connection, ingest: Ingesting
) -> AsyncIterator[Judge]:
    async with open_pool(stack.endpoints.dsn("maint", database), size=2, name="health") as pool:
        yield Judge(Watch(pool, ingest.clock), ingest, owner)


def aligned(judge: Judge, agent: Agent) -> Agent:
    """Let an agent's time go on from now."""
    agent.now_ms = judge.ingest.clock.now_ms()
    return agent


async def test_a_hello_is_healthy_within_a_turn_and_a_will_offline_after_its_grace(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2, prefix="dc-watch")
    agent = fleet.agent()
    await judge.greet(agent)
    assert await judge.turn() == 1
    assert await judge.states() == ["healthy", "never seen"]
    await judge.lose(agent)
    assert await judge.turn(GRACE.total_seconds() - 1) == 0
    assert await judge.turn(1) == 1
    assert await judge.states() == ["offline", "never seen"]
    events = await owner.fetch(
        "select state, detail from device_events where kind = 'state' order by id"
    )
    assert [event["state"] for event in events] == ["healthy", "offline"]
    detail = json.loads(events[1]["detail"])
    assert (detail["from"], detail["session"], detail["session_s"]) == ("healthy", "lost", 10.0)
    row = await owner.fetchrow("select * from presences where device_id = $1", fleet.rows[0])
    assert row["since"] == row["session_at"]
    assert (row["due_at"], row["noted_at"]) == (None, None)
    assert await judge.turn(86_400) == 0


async def test_a_goodbye_is_planned_at_once_and_missed_when_it_is_late(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    agent = (await register(owner, 1, prefix="dc-bye")).agent()
    await judge.greet(agent)
    said = Goodbye("update", 600)
    await judge.ingest.take((agent, agent.hello(nonce=EPOCH + 2, name=said.name)))
    assert await judge.turn() == 1
    assert await judge.states() == ["offline planned"]
    assert await judge.turn(600) == 0
    assert await judge.turn(120) == 1
    assert await judge.states() == ["offline"]


async def open_at_noon(owner: asyncpg.Connection) -> None:
    """Open all sites from 10 to 20, local time."""
    await owner.execute(
        "insert into opening_hours select organisation_id, id, d, 600, 1200 "
        "from sites, generate_series(0, 6) d"
    )


async def test_silence_counts_in_opening_time_and_ends_with_the_next_frame(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1, prefix="dc-data")
    await open_at_noon(owner)
    agent = aligned(judge, fleet.agent())
    await judge.greet(agent)
    await judge.turn()
    heartbeats = 0
    while (await judge.states()) == ["healthy"]:
        judge.ingest.clock.advance(600)
        await judge.ingest.take((aligned(judge, agent), agent.health(HEARTBEAT)))
        await judge.turn()
        heartbeats += 1
        assert heartbeats < 20
    assert await judge.states() == ["no data"]
    assert heartbeats == 9  # of ten minutes: the shop is open, 90 minutes are over
    frame = aligned(judge, agent).counter()
    judge.ingest.clock.advance(300)
    await judge.ingest.take((agent, frame))
    row = await owner.fetchrow("select due_at, noted_at from presences")
    assert row["noted_at"] == at(judge.ingest.clock.now_ms())
    await judge.turn()
    assert await judge.states() == ["healthy"]
    for _ in range(40):  # over closing time and the night
        judge.ingest.clock.advance(1_200)
        await judge.ingest.take((aligned(judge, agent), agent.health(HEARTBEAT)))
        await judge.turn()
        local = at(judge.ingest.clock.now_ms()) + timedelta(hours=1)
        if local.hour >= 20:
            break
    closing = await judge.states()
    for _ in range(20):
        judge.ingest.clock.advance(1_200)
        await judge.ingest.take((aligned(judge, agent), agent.health(HEARTBEAT)))
        await judge.turn()
        assert await judge.states() == closing


async def test_a_device_that_is_connected_and_sends_no_heartbeat_is_degraded(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    agent = aligned(judge, (await register(owner, 1, prefix="dc-beat")).agent())
    await judge.greet(agent)
    await judge.turn()
    for _ in range(9):
        judge.ingest.clock.advance(300)
        await judge.ingest.take((agent, agent.counter()))  # it counts all the while
        await judge.turn()
    assert await judge.states() == ["no heartbeat"]
    await judge.ingest.take((aligned(judge, agent), agent.health(HEARTBEAT)))
    judge.ingest.clock.advance(60)
    await judge.turn()
    assert await judge.states() == ["healthy"]


async def test_nobody_is_judged_while_the_server_does_not_hear_itself(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 3, prefix="dc-blind")
    agents = [fleet.agent(i) for i in range(3)]
    await judge.greet(*agents)
    await judge.turn()
    await judge.lose(agents[0])
    for _ in range(5):
        assert await judge.turn(STALL.total_seconds(), hear=False) == 0
    assert await judge.states() == ["healthy"] * 3
    assert await judge.unknowns() == [("behind", True)]
    assert judge.watch.platform.cause is Cause.BEHIND
    await judge.turn()
    await judge.turn()
    assert await judge.unknowns() == [("behind", False)]
    assert await judge.states() == ["offline", "healthy", "healthy"]


async def test_a_broker_that_starts_again_is_one_unknown_until_all_are_back(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 3, prefix="dc-again")
    agents = [fleet.agent(i) for i in range(3)]
    await judge.greet(*agents)
    await judge.turn()
    judge.ingest.clock.advance(60)
    await judge.ingest.pipeline.broker_started()
    assert await judge.turn(1) == 0
    await judge.greet(*agents[:2], epoch=2)
    assert await judge.turn(1) == 0
    assert await judge.unknowns() == [("broker", True)]
    for _ in range(2):
        await judge.turn(DRAIN.total_seconds())
    assert await judge.unknowns() == [("broker", False)]
    assert await judge.states() == ["healthy", "healthy", "offline"]
    since = await owner.fetchval("select since from presences where state = 'offline'")
    assert since == await owner.fetchval("select broker_since from platform")
    await judge.greet(agents[2], epoch=2)
    await judge.turn(1)
    assert await judge.states() == ["healthy"] * 3


async def test_many_that_vanish_at_many_sites_are_our_own_link(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2 * LEAST_LOST, prefix="dc-uplink")
    await owner.execute(
        "with made as (insert into sites (organisation_id, ref, name, time_zone) select "
        "organisation_id, 'site-' || n, '', 'Europe/Oslo' from sites, generate_series(1, $1) n "
        "returning id) update spots set site_id = (select min(id) from made) + spots.id % $1::int",
        LEAST_SITES,
    )
    agents = [fleet.agent(i) for i in range(2 * LEAST_LOST)]
    await judge.greet(*agents)
    await judge.turn()
    await judge.lose(*agents[::2])
    await judge.turn(2)
    assert await judge.unknowns() == [("uplink", True)]
    await judge.turn(60)
    assert set(await judge.states()) == {"healthy"}
    await judge.greet(*agents[::2], epoch=2)
    await judge.turn(1)
    await judge.turn(1)
    assert await judge.unknowns() == [("uplink", False)]
    assert set(await judge.states()) == {"healthy"}


async def test_a_row_that_somebody_holds_is_left_for_the_next_turn(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    fleet: Fleet = await register(owner, 2, prefix="dc-held")
    await judge.greet(fleet.agent(0), fleet.agent(1))
    async with owner.transaction():
        await owner.execute("select from presences where device_id = $1 for update", fleet.rows[0])
        judge.ingest.clock.advance(1)
        assert await judge.watch.turn() == 0  # nothing was ever heard
        async with owner.transaction():
            pass
    async with owner.transaction():
        now = at(judge.ingest.clock.now_ms())
        await sessions.watermark(owner, now, at=now)
    async with owner.transaction():
        await owner.execute("select from presences where device_id = $1 for update", fleet.rows[0])
        assert await judge.watch.turn() == 1
    assert await judge.states() == ["never seen", "healthy"]
    assert await judge.watch.turn() == 1
    assert await judge.states() == ["healthy", "healthy"]


async def test_a_limit_that_is_edited_while_a_device_is_offline_holds_when_it_is_back(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    agent = (await register(owner, 1, prefix="dc-limit")).agent()
    await judge.greet(agent)
    await judge.turn()
    await judge.lose(agent)
    await judge.turn(60)
    await owner.execute("update presences set heartbeat_s = 120, due_at = now(), noted_at = now()")
    await judge.turn(3_600)
    assert await judge.states() == ["offline"]
    await judge.greet(agent, epoch=2)
    await judge.turn(1)
    assert await judge.states() == ["healthy"]
    await judge.turn(119)
    assert await judge.states() == ["no heartbeat"]


async def test_what_was_said_of_a_closed_epoch_moves_no_state(
    judge: Judge, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1, prefix="dc-late")
    agent = fleet.agent()
    await judge.greet(agent)
    await judge.greet(agent, epoch=2)
    await judge.lose(agent)  # of the first
    await judge.turn(60)
    assert await judge.states() == ["healthy"]
    told = Told(fleet.rows[0], Said(Kind.HELLO, 1, at(judge.ingest.clock.now_ms())), "late", 9, 9)
    await sessions.note(owner, [told])
    await judge.turn(60)
    row = await owner.fetchrow("select epoch, agent from presences")
    assert (row["epoch"], row["agent"]) == (2, "test")
