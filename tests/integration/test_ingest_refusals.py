"""Frames of a device that is not admitted: not stored, not receipted, and nobody in them lost.

People stored and people in gaps are added up before, during and after: the sum is what the device
has told of, and never anyone twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.frame import Quality
from protocol.kiosk import Press
from server.admission.orders import move, reinstate
from server.clock import at
from server.db.engine import open_pool, reading
from server.fleet.lifecycle import State
from server.ingest.places import Cursor
from server.ingest.refusals import MAX_BOOTS, Refused, shrunk
from server.rollup.answer import By, CountQuery
from server.rollup.buckets import Size
from server.rollup.query import counts
from tests.ingest_world import (
    DAY,
    MINUTE,
    NOON,
    Agent,
    Ingesting,
    differences,
    ingesting,
    people,
    receipt_of,
    register,
    said,
)

pytestmark = pytest.mark.services

NOW = datetime.fromtimestamp(NOON / 1000, UTC) + timedelta(hours=1)


async def suspend(owner: asyncpg.Connection, ingest: Ingesting | None, device: str) -> None:
    async with owner.transaction():
        await move(
            owner, device=device, to=State.SUSPENDED, reason="test", actor="command", now=NOW
        )
    if ingest is not None:
        ingest.places.changed(device)


async def let_in(owner: asyncpg.Connection, ingest: Ingesting | None, device: str) -> None:
    async with owner.transaction():
        await reinstate(owner, device=device, reason="test", actor="command", now=NOW)
    if ingest is not None:
        ingest.places.changed(device)


async def unplaced(owner: asyncpg.Connection) -> tuple[int, int]:
    """Return the in and out of all open gaps."""
    row = await owner.fetchrow(
        "select coalesce(sum(counts[1] + counts[3]), 0)::int, "
        "coalesce(sum(counts[2] + counts[4]), 0)::int "
        "from gaps where filled_at is null and reason <> 'totals'"
    )
    return row[0], row[1]


async def gaps(owner: asyncpg.Connection) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await owner.fetch(
        "select *, filled_at is not null as filled from gaps order by id"
    )
    return rows


async def test_a_refused_frame_is_a_gap_until_the_device_is_let_in_again(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent, spot = fleet.agent(), fleet.spots[0]
    await ingest.take((agent, agent.counter()))
    await suspend(owner, ingest, agent.device)
    frames = [agent.counter() for _ in range(3)]
    for number, frame in enumerate(frames, 1):
        assert said(await ingest.take((agent, frame))) == []
        assert await unplaced(owner) == (10 * number, 10 * number)
    (gap,) = await gaps(owner)
    assert (gap["reason"], gap["from_seq"], gap["to_seq"], gap["spot_id"]) == (
        "refused",
        1,
        3,
        spot,
    )
    assert (gap["from_at"], gap["until_at"]) == (at(NOON + 5 * MINUTE), at(NOON + 20 * MINUTE))
    assert await owner.fetchval("select next_seq from boots") == 1
    assert await people(owner, spot) == (10, 10)

    await let_in(owner, ingest, agent.device)
    done = await ingest.take(*((agent, frame) for frame in frames))
    assert receipt_of(done, agent).next_seq == 4
    assert await people(owner, spot) == (40, 40)
    assert await unplaced(owner) == (0, 0)
    assert [gap["filled"] for gap in await gaps(owner)] == [True]
    assert await differences(owner) == []


async def test_repeats_and_holes_add_nothing_to_the_gap(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    stored = agent.counter()
    await ingest.take((agent, stored))
    await suspend(owner, ingest, agent.device)
    frames = [agent.counter() for _ in range(6)]
    await ingest.take((agent, frames[3]), (agent, stored))  # beyond a hole, and stored before
    assert await gaps(owner) == []
    for batch in ([1, 0], [0, 1], [2], [0, 1, 2, 4]):
        await ingest.take(*((agent, frames[i]) for i in batch))
    (gap,) = await gaps(owner)
    assert (gap["from_seq"], gap["to_seq"]) == (1, 3)
    assert await unplaced(owner) == (30, 30)


async def test_a_gap_gives_up_what_is_stored_a_part_at_a_time(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    """Stored and unplaced together stay the same at each commit; a second suspension goes on."""
    fleet = await register(owner, 1)
    agent, spot = fleet.agent(), fleet.spots[0]
    await ingest.take((agent, agent.counter()))
    await suspend(owner, ingest, agent.device)
    frames = [agent.counter() for _ in range(4)]
    await ingest.take(*((agent, frame) for frame in frames))
    await let_in(owner, ingest, agent.device)
    for stored, frame in enumerate(frames[:2], 2):
        await ingest.take((agent, frame))
        assert await people(owner, spot) == (10 * stored, 10 * stored)
        assert await unplaced(owner) == (50 - 10 * stored, 50 - 10 * stored)
    (gap,) = await gaps(owner)
    assert (gap["from_seq"], gap["to_seq"]) == (3, 4)
    assert gap["from_at"] == at(NOON + 15 * MINUTE)
    await suspend(owner, ingest, agent.device)
    await ingest.take((agent, frames[2]), (agent, agent.counter()))
    await ingest.take((agent, agent.counter()))
    assert await unplaced(owner) == (40, 40)
    await let_in(owner, ingest, agent.device)
    late = [*frames[2:]]
    await ingest.take(*((agent, frame) for frame in late))
    assert await unplaced(owner) == (20, 20)
    assert await people(owner, spot) == (50, 50)


async def test_another_worker_fills_the_gap_that_one_has_noted(
    stack: Stack, database: str, ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    """It had the boot in memory from before, and hears of the whole affair when it is over."""
    fleet = await register(owner, 1)
    agent = fleet.agent()
    async with ingesting(stack, database) as other:
        await other.take((agent, agent.counter()))
        await suspend(owner, ingest, agent.device)
        frame = agent.counter()
        await ingest.take((agent, frame))
        assert await unplaced(owner) == (10, 10)
        await let_in(owner, other, agent.device)
        await other.take((agent, frame))
    assert await people(owner, fleet.spots[0]) == (20, 20)
    assert await unplaced(owner) == (0, 0)


async def test_a_frame_in_flight_as_the_device_is_let_in_again_is_no_gap(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take((agent, agent.counter()))
    await suspend(owner, ingest, agent.device)
    frame = agent.counter()
    batch = await ingest.pipeline.prepare([(agent.up, frame, 1)])
    await let_in(owner, None, agent.device)  # nobody has told this worker
    assert said(await ingest.pipeline.store(batch)) == []
    assert await gaps(owner) == []
    assert receipt_of(await ingest.take((agent, frame)), agent).next_seq == 2


async def test_a_frame_in_flight_as_the_device_is_suspended_is_in_the_gap(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take((agent, agent.counter()))
    batch = await ingest.pipeline.prepare([(agent.up, agent.counter(), 1)])
    await suspend(owner, None, agent.device)
    assert said(await ingest.pipeline.store(batch)) == []
    assert await people(owner, fleet.spots[0]) == (10, 10)
    assert await unplaced(owner) == (10, 10)


async def test_a_kiosks_presses_are_refused_by_answer(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1, kind="kiosk", prefix="fk-test")
    agent = fleet.agent()

    def presses(*answers: int) -> bytes:
        return agent.kiosk([Press(i * 10, i, 1, answer, 0) for i, answer in enumerate(answers)])

    await ingest.take((agent, presses(1, 5)))
    await suspend(owner, ingest, agent.device)
    frames = [presses(5, 5, 2), presses(1)]
    await ingest.take(*((agent, frame) for frame in frames))
    (gap,) = await gaps(owner)
    assert gap["answers"] == [1, 1, 1, 1, 2, 1, 1, 5, 2]
    await let_in(owner, ingest, agent.device)
    await ingest.take((agent, frames[0]))
    assert (await gaps(owner))[0]["answers"] == [1, 1, 1]
    await ingest.take((agent, frames[1]))
    assert (await gaps(owner))[0]["filled"]
    assert await owner.fetchval("select count(*) from presses") == 6


async def test_what_a_refused_device_thinned_and_never_dated_is_counted_too(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await suspend(owner, None, agent.device)
    agent.quality = Quality.NONE
    undated = agent.counter()
    await ingest.take((agent, undated))
    assert (await gaps(owner))[0]["from_at"] is None
    agent.quality = Quality.SYNCED
    thinned = agent.gap(7, minutes=30, people=25)
    await ingest.take((agent, agent.health({"x": 1.0})))  # beyond the hole that the gap fills
    await ingest.take((agent, thinned))
    (gap,) = await gaps(owner)
    assert (gap["from_seq"], gap["to_seq"]) == (0, 7)
    assert gap["from_at"] is not None
    assert await unplaced(owner) == (35, 10)
    await let_in(owner, ingest, agent.device)
    await ingest.take((agent, undated), (agent, thinned))
    filled = {gap["reason"]: gap["filled"] for gap in await gaps(owner)}
    assert filled == {"refused": True, "thinned": False}


async def test_totals_that_nobody_can_have_counted_are_not_believed(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await suspend(owner, None, agent.device)
    await ingest.take((agent, agent.counter()))
    await ingest.take((agent, agent.counter(lie=1 << 30)))
    await ingest.take((agent, b"".join([agent.counter()[:-8], b"12345678"])))  # cannot be read
    (gap,) = await gaps(owner)
    assert (gap["from_seq"], gap["to_seq"]) == (0, 2)
    assert await unplaced(owner) == (10, 10)


async def test_a_device_that_boots_without_end_fills_no_table(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    await suspend(owner, None, fleet.devices[0])
    for first in (0, 100):
        boots = [Agent(fleet.devices[0], 1000 + first + i) for i in range(MAX_BOOTS)]
        await ingest.take(*((agent, agent.counter()) for agent in boots))
    assert len(await gaps(owner)) == MAX_BOOTS
    assert await owner.fetchval("select count(*) from boots") == MAX_BOOTS


async def test_a_refused_boot_is_made_only_with_the_frame_that_begins_it(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    await suspend(owner, None, fleet.devices[0])
    boots = [Agent(fleet.devices[0], 1000 + i) for i in range(3)]
    begins = [agent.counter() for agent in boots]
    await ingest.take(*((agent, agent.counter()) for agent in boots))
    assert await owner.fetchval("select count(*) from boots") == 0
    assert await gaps(owner) == []
    await ingest.take((boots[1], begins[1]))
    assert await owner.fetchval("select array_agg(boot_id) from boots") == [boots[1].boot_id]
    assert [(gap["from_seq"], gap["to_seq"]) for gap in await gaps(owner)] == [(0, 0)]


async def test_refused_people_are_served_beside_the_day_and_then_within_it(
    stack: Stack, database: str, ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    query = CountQuery(
        since=datetime(2026, 1, 1),  # noqa: DTZ001 - local
        until=datetime(2026, 1, 2),  # noqa: DTZ001
        size=Size.DAY,
        by=By.SITE,
    )

    async def served() -> tuple[int | float | None, int | float]:
        async with (
            open_pool(stack.endpoints.dsn("api", database), size=1, name="test") as pool,
            reading(pool, "test", organisation=fleet.organisation) as connection,
        ):
            (row,) = (await counts(connection, query, now_s=(NOON + DAY) // 1000)).rows
        return row.visits, row.unplaced_visits

    await ingest.take((agent, agent.counter()))
    assert await served() == (10, 0)
    await suspend(owner, ingest, agent.device)
    frames = [agent.counter() for _ in range(2)]
    await ingest.take(*((agent, frame) for frame in frames))
    assert await served() == (10, 20)
    await let_in(owner, ingest, agent.device)
    await ingest.take((agent, frames[0]))
    assert await served() == (20, 10)
    await ingest.take((agent, frames[1]))
    assert await served() == (30, 0)


def test_a_gap_never_gives_up_more_than_it_holds() -> None:
    gap = Refused(3, 5, None, None, (4, 0, 0, 0, 0, 0, 0, 0), ())
    before = Cursor(3)
    after = Cursor(4, totals=(9, 0, 0, 0, 0, 0, 0, 0))
    assert shrunk(gap, before, after) == Refused(4, 5, None, None, (0,) * 8, ())
    assert shrunk(gap, before, Cursor(6)) is None
