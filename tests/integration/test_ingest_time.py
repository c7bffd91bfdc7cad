"""Where counts belong in time: windows, wild clocks, undated frames, swaps, late data, kiosks."""

from __future__ import annotations

from datetime import timedelta

import asyncpg
import pytest

from protocol.frame import Quality
from protocol.kiosk import Press
from protocol.session import Answer, HeldBoot
from server.clock import at
from server.errors import RefusedError
from server.fleet.register import assign, grant_backfill
from server.ingest import quarantine, undated
from server.ingest.reassign import settle
from tests.ingest_world import (
    DAY,
    MINUTE,
    NOON,
    Agent,
    Fleet,
    Ingesting,
    differences,
    people,
    rebuilt,
    receipt_of,
    register,
    said,
)

pytestmark = pytest.mark.services


async def agreed(owner: asyncpg.Connection) -> bool:
    """True if rollups and rows tell the same, in two ways of asking."""
    return await differences(owner) == [] and await rebuilt(owner) == []


@pytest.mark.parametrize(
    "clock_ms", [0, 2_145_916_800_000, NOON - 40 * DAY, NOON + 90 * MINUTE, 4_102_444_800_000]
)
async def test_a_wild_clock_makes_no_chunk_and_blocks_nothing(
    ingest: Ingesting, owner: asyncpg.Connection, clock_ms: int
) -> None:
    fleet = await register(owner, 1)
    await ingest.take((fleet.agent(), fleet.agent().counter()))
    chunks = await owner.fetchval("select count(*) from show_chunks('readings')")
    agent = Agent(fleet.devices[0], 99, ordinal=2, booted_ms=clock_ms, now_ms=clock_ms)
    done = await ingest.take((agent, agent.counter()), (agent, agent.health({"a": 1.0})))
    assert receipt_of(done, agent).next_seq == 2
    held = await owner.fetch("select reason from undated_frames")
    assert [row["reason"] for row in held] == ["wild clock"] * 2
    assert await owner.fetchval("select count(*) from show_chunks('readings')") == chunks
    assert await owner.fetchval("select stored_to from boots where ordinal = 2") is None


async def test_thirty_days_late_is_stored_where_it_was_counted(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1, since_ms=NOON - 60 * DAY)
    agent = fleet.agent(booted_ms=NOON - 30 * DAY, now_ms=NOON - 30 * DAY)
    await ingest.take(*((agent, agent.counter()) for _ in range(5)))
    assert await people(owner, fleet.spots[0]) == (50, 50)
    assert await owner.fetchval("select max(revision) from rollup_15m") == 0


async def test_a_bucket_that_changes_after_it_was_complete_is_revised(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    late = fleet.agent(now_ms=NOON, booted_ms=NOON)
    live = Agent(late.device, 5, ordinal=2, booted_ms=NOON, now_ms=NOON + 30 * MINUTE)
    await ingest.take((live, live.counter()))
    await ingest.take((late, late.counter()))
    rows = await owner.fetch("select bucket, revision from rollup_15m order by bucket")
    assert [row["revision"] for row in rows] == [1, 0]
    assert await agreed(owner)


async def test_undated_frames_are_placed_when_the_boots_offset_arrives(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent(quality=Quality.NONE)
    frames = [agent.counter(), agent.health({"cpu": 0.5}), agent.counter()]
    done = await ingest.take(*((agent, frame) for frame in frames))
    assert receipt_of(done, agent).next_seq == 3
    assert await people(owner, fleet.spots[0]) == (0, 0)
    assert await owner.fetchval("select count(*) from undated_frames") == 3
    agent.quality = Quality.SYNCED
    await ingest.take((agent, agent.hello()))
    assert await people(owner, fleet.spots[0]) == (20, 20)
    assert await owner.fetchval("select count(*) from undated_frames") == 0
    assert await owner.fetchval("select count(*) from device_metrics") == 1
    await ingest.take((agent, agent.hello()))
    assert await people(owner, fleet.spots[0]) == (20, 20)
    assert await agreed(owner)


async def test_a_dated_frame_places_what_its_boot_held_undated(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent(quality=Quality.NONE)
    gap = [agent.counter(), agent.gap(4, minutes=10, people=7)]
    await ingest.take(*((agent, frame) for frame in gap))
    agent.quality = Quality.SYNCED
    await ingest.take((agent, agent.counter()))
    assert await people(owner, fleet.spots[0]) == (20, 20)
    row = await owner.fetchrow("select * from gaps")
    assert (row["from_at"], row["spot_id"]) == (at(NOON + 5 * MINUTE), fleet.spots[0])
    assert row["counts"][0] == 7
    assert await agreed(owner)


async def test_a_backfill_grant_lets_old_counts_in_as_imports(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1, since_ms=NOON - 900 * DAY)
    await owner.execute("update devices set enrolled_at = $1", at(NOON - DAY))
    old = NOON - 800 * DAY
    agent = fleet.agent(booted_ms=old, now_ms=old)
    await ingest.take(*((agent, agent.counter()) for _ in range(2)))
    assert await people(owner, fleet.spots[0]) == (0, 0)
    ref = await owner.fetchval("select ref from spots where id = $1", fleet.spots[0])
    await grant_backfill(owner, spot=ref, since=at(old), until=at(old + DAY), reason="test",
                         granted_by="command", now=at(NOON))  # fmt: skip
    ingest.places.changed(agent.device)
    await ingest.take((agent, agent.counter()))
    device = await ingest.places.read(owner, agent.device)
    assert device is not None
    boot = await owner.fetchval("select boot_id from boots")
    await undated.place_boot(owner, device, boot, now_ms=ingest.clock.now_ms(), wild=True)
    assert await people(owner, fleet.spots[0]) == (30, 30)
    assert await owner.fetch("select distinct origin from rollup_15m") == [(1,)]
    assert await agreed(owner)


async def _swap(owner: asyncpg.Connection, fleet: Fleet, when: int) -> None:
    """Put the second device where the first one is, from `when` on."""
    ref = await owner.fetchval("select ref from spots where id = $1", fleet.spots[0])
    await assign(owner, device=fleet.devices[1], spot=ref, since=at(when))


async def test_a_swap_leaves_no_seam_and_late_counts_go_where_they_were_made(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    first, second = fleet.agent(0), fleet.agent(1)
    frames = [(a, a.counter()) for _ in range(4) for a in (first, second)]
    swap_ms = NOON + 12 * MINUTE
    await _swap(owner, fleet, swap_ms)
    await ingest.take(*frames)
    assert await people(owner, fleet.spots[0]) == (24 + 16, 24 + 16)
    assert await people(owner, fleet.spots[1]) == (24, 24)
    assert await people(owner, 0) == (16, 16)
    assert await agreed(owner)


async def test_a_swap_recorded_late_moves_counts_and_revises_both_spots(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    first, second = fleet.agent(0), fleet.agent(1)
    await ingest.take(*((a, a.counter()) for _ in range(4) for a in (first, second)))
    async with owner.transaction():
        await _swap(owner, fleet, NOON + 12 * MINUTE)
        for row in fleet.rows:
            await settle(owner, row, from_at=at(NOON))
    assert await people(owner, fleet.spots[0]) == (40, 40)
    assert await people(owner, fleet.spots[1]) == (24, 24)
    assert await people(owner, 0) == (16, 16)
    assert await owner.fetchval("select min(revision) from rollup_15m") > 0
    assert await agreed(owner)
    # what ingest remembered of the old assignments is refused, read anew, and stored right
    await ingest.take((first, first.counter()), (second, second.counter()))
    assert await people(owner, fleet.spots[0]) == (50, 50)
    assert await people(owner, 0) == (26, 26)
    assert await agreed(owner)


async def test_kiosk_presses_are_stored_observed_and_moved(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2, kind="kiosk")
    agent = fleet.agent(0)
    first = agent.kiosk([Press(10, 1, 0, 4), Press(20, 2, 0, 4), Press(20, 2, 1, 2)])
    quiet = agent.kiosk([])
    done = await ingest.take((agent, first), (agent, quiet))
    assert receipt_of(done, agent).next_seq == 2
    rows = await owner.fetch("select question, answer, presses from presses_15m order by 1, 2")
    assert [tuple(row) for row in rows] == [(0, 4, 2), (1, 2, 1)]
    row = await owner.fetchrow("select observed, in0 from rollup_15m")
    assert (row["observed"].bit_count(), row["in0"]) == (40, None)
    assert await owner.fetchval("select answers from boots") == [0, 4, 2, 1, 2, 1]
    assert await agreed(owner)
    async with owner.transaction():
        await owner.execute("delete from assignments where device_id = $1", fleet.rows[1])
        await owner.execute(
            "update assignments set spot_id = $1 where device_id = $2",
            *(fleet.spots[1], fleet.rows[0]),
        )
        await settle(owner, fleet.rows[0])
    assert await owner.fetchval("select sum(presses) from presses_15m where spot = $1",
                                fleet.spots[1]) == 3  # fmt: skip
    assert await owner.fetchval("select observed from rollup_15m where spot = $1",
                                fleet.spots[0]) == 0  # fmt: skip
    assert await agreed(owner)


async def test_kiosk_totals_that_do_not_add_up_are_a_gap(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1, kind="kiosk")
    agent = fleet.agent()
    await ingest.take((agent, agent.kiosk([Press(1, 1, 0, 1)])))
    agent.answers[0, 1] += 2
    await ingest.take((agent, agent.kiosk([Press(1, 2, 0, 1)])))
    row = await owner.fetchrow("select reason, answers from gaps")
    assert tuple(row) == ("totals", [0, 1, 2])


async def test_a_hello_is_answered_from_the_database_and_makes_nothing(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take((agent, agent.counter()), (agent, agent.counter()))
    other = HeldBoot(77, 9, 0, 4, Quality.NONE, 0)
    own = HeldBoot(agent.boot_id, 1, 0, 2, Quality.SYNCED, NOON)
    (answer,) = said(await ingest.take((agent, agent.hello(nonce=5, boots=(own, other)))))
    assert isinstance(answer, Answer)
    assert (answer.nonce, answer.version) == (5, 1)
    assert [(b.boot_id, b.next_seq, b.known) for b in answer.boots] == [
        (agent.boot_id, 2, True),
        (77, 0, False),
    ]
    assert await owner.fetchval("select count(*) from boots") == 1
    # an hour-old backup: the cursor has gone back, and so does the answer
    await owner.execute("update boots set next_seq = 1")
    (answer,) = said(await ingest.take((agent, agent.hello())))
    assert isinstance(answer, Answer)
    assert answer.boots[0].next_seq == 1
    assert said(await ingest.take((agent, agent.hello(name="will")))) == []


async def test_x08_two_machines_with_one_identity_are_noticed(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    one = fleet.agent()
    two = Agent(one.device, one.boot_id + 1, ordinal=1)
    for agent in (one, two, two, one):
        await ingest.take((agent, agent.hello()))
    await ingest.take((one, one.counter()))
    await ingest.take((two, two.counter()))
    rows = await owner.fetch("select finding from findings order by id")
    assert [row[0] for row in rows] == ["cloned", "ordinal repeated"]
    acts = await owner.fetch("select act from audit")
    assert [row["act"] for row in acts] == ["device cloned"]
    assert await owner.fetchval("select state from devices") == "in service"


async def test_a_clone_is_quarantined_if_its_organisation_wants_that(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    await owner.execute("update organisations set clones = 'quarantine'")
    one, bystander = fleet.agent(), fleet.agent(1)
    two = Agent(one.device, one.boot_id + 1, ordinal=1)
    for agent in (one, bystander, two, one, two):
        await ingest.take((agent, agent.hello()))
    rows = await owner.fetch("select device, state, state_before from devices order by id")
    assert [tuple(row) for row in rows] == [
        (one.device, "quarantined", "in service"),
        (bystander.device, "in service", None),
    ]
    orders = await owner.fetch("select admit, reason, asked_by from admissions")
    assert [tuple(order) for order in orders] == [(False, "cloned", "server")]
    detail = await owner.fetchval("select detail->>'boots' from findings limit 1")
    assert {f"{agent.boot_id:016x}" for agent in (one, two)} == set(detail.split())


async def test_a_redriven_frame_fills_its_gap_once(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    first, lost, last = agent.counter(), agent.counter([[2, 1] * 5] * 2), agent.counter()
    await ingest.take((agent, first), (agent, lost[:-1] + b"\xff"), (agent, last))
    entry = await owner.fetchval("select id from quarantine")
    with pytest.raises(RefusedError, match="BODY_CRC"):
        await quarantine.redrive(owner, entry, now_ms=ingest.clock.now_ms())
    [listed] = await quarantine.listed(owner, device=agent.device, redriven=False, limit=5)
    assert listed == await quarantine.get(owner, entry)
    assert (listed.seq, listed.frame) == (1, lost[:-1] + b"\xff")
    text = quarantine.explain(listed)
    assert "BODY_CRC" in text
    assert "section LINES" in text
    await owner.execute("update quarantine set frame = $1", lost)  # as if a fix could read it
    assert await quarantine.redrive(owner, entry, now_ms=ingest.clock.now_ms())
    assert not await quarantine.redrive(owner, entry, now_ms=ingest.clock.now_ms())
    assert not await quarantine.listed(owner, device=None, redriven=False, limit=5)
    assert len(await quarantine.listed(owner, device=None, redriven=True, limit=5)) == 1
    assert await people(owner, fleet.spots[0]) == (40, 30)
    gap = await owner.fetchrow("select * from gaps")
    assert gap["filled_at"] is not None
    assert gap["counts"] == [0] * 8
    await ingest.take((agent, agent.counter()))
    assert await owner.fetchval("select count(*) from gaps") == 1
    assert await owner.fetchval("select sum(revision) from rollup_15m") == 1
    assert await agreed(owner)


async def test_a_frame_redriven_before_the_next_totals_leaves_none_unplaced(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    lost = agent.counter()
    await ingest.take((agent, lost[:-1] + b"\xff"))
    await owner.execute("update quarantine set frame = $1", lost)
    entry = await owner.fetchval("select id from quarantine")
    assert await quarantine.redrive(owner, entry, now_ms=ingest.clock.now_ms())
    await ingest.take((agent, agent.counter()))
    assert await people(owner, fleet.spots[0]) == (20, 20)
    assert await owner.fetchval("select counts from gaps") == [0] * 8
    assert await agreed(owner)


async def test_a_row_is_found_however_the_stretch_of_a_swap_is_asked(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    agent = fleet.agent(0)
    await ingest.take(*((agent, agent.counter()) for _ in range(4)))
    async with owner.transaction():
        await _swap(owner, fleet, NOON + 12 * MINUTE)
        await settle(owner, fleet.rows[0])
        assert await settle(owner, fleet.rows[0]) == 0
    assert await people(owner, 0) == (16, 16)
    low, high = await owner.fetchrow("select min(time), max(time) from readings where spot = 0")
    assert low - at(NOON) == timedelta(minutes=12)
    assert high - at(NOON) == timedelta(minutes=15)
    assert await agreed(owner)
