"""What a device or a caller of the API may send to stop or slow what serves all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.counter import Counts, Line, encode_counter
from protocol.frame import Quality, Span
from protocol.kiosk import Presses, encode_kiosk
from protocol.session import Answer, HeldBoot
from server.api import reads
from server.api.parameters import GapParameters, Listing, write_cursor
from server.db.engine import open_pool, reading
from server.ingest import cursors, pipeline
from server.ingest.batch import BURST
from server.ingest.plan import MAX_ANSWERS
from server.ingest.repeats import check_digests
from server.ingest.writer import MOST_A_BUCKET
from server.rollup.refresh import refresh
from tests.ingest_world import (
    MINUTE,
    NOON,
    WRAP,
    Agent,
    Ingesting,
    receipt_of,
    register,
    said,
)
from tests.integration.api_world import World

pytestmark = pytest.mark.services
TOP = WRAP - 1
QUARTER = 15 * MINUTE


def absurd(agent: Agent, *, quarter: int = 0, quality: Quality = Quality.SYNCED) -> bytes:
    """Return a quarter of an hour by the second, half of its readings as high as the wire goes."""
    counts = (32_767, 0) * 150 + (0, 0) * 750
    agent.totals[0] = (agent.totals[0] + sum(counts)) % WRAP
    offset_ms = agent.booted_ms if quality is not Quality.NONE else 0
    span = Span(quarter * QUARTER, QUARTER, offset_ms, quality)
    return _counter(agent, Counts(span, 1, (Line(0, agent.totals[0], 0, counts),)))


def _counter(agent: Agent, counts: Counts) -> bytes:
    frame = encode_counter(counts, boot_id=agent.boot_id, seq=agent.seq, ordinal=agent.ordinal)
    agent.seq += 1
    return frame


@pytest.mark.parametrize("to_seq", [TOP, TOP - 1])
async def test_x09_a_boot_that_uses_up_its_numbers_stops_nobody(
    ingest: Ingesting, owner: asyncpg.Connection, to_seq: int
) -> None:
    fleet = await register(owner, 2)
    agent, other = fleet.agent(), fleet.agent(1)
    await ingest.take((agent, agent.gap(to_seq, minutes=5)))
    while agent.seq < WRAP:
        await ingest.take((agent, agent.counter()))
    assert await owner.fetchval("select max(next_seq) from boots") == WRAP
    held = HeldBoot(agent.boot_id, agent.ordinal, 0, TOP, Quality.SYNCED, NOON)
    done = await ingest.take((agent, agent.hello(boots=[held])), (other, other.counter()))
    (answer,) = [each for each in said(done) if isinstance(each, Answer)]
    assert answer.boots[0].next_seq == TOP
    assert receipt_of(done, other).next_seq == 1


@pytest.mark.parametrize("offset_ms", [-(1 << 47), 1 << 47])
async def test_a_repeat_from_beyond_the_calendar_stops_nobody(
    ingest: Ingesting, owner: asyncpg.Connection, offset_ms: int
) -> None:
    fleet = await register(owner, 2)
    agent, other = fleet.agent(), fleet.agent(1)
    await ingest.take((agent, agent.counter()))
    await ingest.take((agent, agent.gap(5, minutes=5)))
    await ingest.take((agent, agent.counter()))  # memory begins anew behind the gap
    repeat = Agent(agent.device, agent.boot_id)
    cells = (offset_ms + MINUTE - 1) // MINUTE - offset_ms // MINUTE + 1
    span = Span(0, MINUTE, offset_ms, Quality.SYNCED)
    frame = _counter(repeat, Counts(span, 60, (Line(0, 0, 0, (0, 0) * cells),)))
    done = await ingest.take((repeat, frame), (other, other.counter()))
    assert receipt_of(done, agent).next_seq == 7
    assert receipt_of(done, other).next_seq == 1


async def test_a_repeat_is_compared_without_reading_the_whole_fleets_rows(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take((agent, agent.counter()), (agent, agent.health({"up": 1.0})))
    await ingest.take((agent, agent.gap(5, minutes=5)))
    await ingest.take((agent, agent.counter()))  # memory begins anew behind the gap
    await owner.execute(
        "insert into readings select time, 1000 + n, boot, seq, 7, 0, 1, 0, 60, '{}' "
        "from readings, generate_series(1, 3) n"
    )
    forger = Agent(agent.device, agent.boot_id)
    await ingest.take((forger, forger.counter(minutes=3)), (forger, forger.health({"up": 2.0})))
    found = await owner.fetch("select detail from findings where finding = 'digest mismatch'")
    assert len(found) == 2
    assert not any('"stored": 7,' in row["detail"] for row in found)  # none of another spot's


async def test_what_breaks_after_the_commit_is_not_said_and_said_later(
    ingest: Ingesting, owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise ValueError("a bug")

    fleet = await register(owner, 1)
    agent = fleet.agent()
    first = agent.counter()
    await ingest.take((agent, first), (agent, agent.gap(4, minutes=5)))
    await ingest.take((agent, agent.counter()))  # memory begins anew behind the gap
    monkeypatch.setattr(pipeline, "check_digests", broken)
    frame = agent.counter()
    assert (await ingest.take((agent, first), (agent, frame))).packets == []
    monkeypatch.setattr(pipeline, "check_digests", check_digests)
    assert receipt_of(await ingest.take((agent, frame)), agent).next_seq == 7
    assert await owner.fetchval("select count(distinct seq) from readings") == 3


async def test_x16_absurd_counts_are_refused_before_the_deriver_chokes_on_them(
    ingest: Ingesting, owner: asyncpg.Connection, stack: Stack, database: str
) -> None:
    fleet = await register(owner, 2)
    agent, other = fleet.agent(), fleet.agent(1)
    frames = [absurd(agent, quarter=quarter) for quarter in range(4) for _ in range(2)]
    await ingest.take(*[(agent, frame) for frame in frames], (other, other.counter()))
    most = await owner.fetchval("select max(in0) from rollup_15m")
    assert most == 32_767 * 150 <= MOST_A_BUCKET
    assert await owner.fetchval("select count(*) from quarantine") == 4
    async with open_pool(stack.endpoints.dsn("maint", database), size=2, name="maint") as pool:
        assert not await refresh(pool)
    spots = await owner.fetch("select spot, in0 from rollup_day order by spot")
    assert [tuple(row) for row in spots] == [(fleet.spots[0], 4 * most), (fleet.spots[1], 5)]


async def test_absurd_counts_that_were_held_keep_nobody_waiting(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    agent, other = fleet.agent(), fleet.agent(1)
    held = [absurd(agent, quality=Quality.NONE) for _ in range(2)]
    await ingest.take(*[(agent, frame) for frame in held])
    async with asyncio.timeout(10):
        done = await ingest.take((agent, agent.hello()), (other, other.counter()))
    assert any(isinstance(each, Answer) for each in said(done))
    assert receipt_of(done, other).next_seq == 1
    assert await owner.fetchval("select count(*) from undated_frames") == 2


async def test_frames_at_fault_and_long_greetings_are_paid_for(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take(*[(agent, absurd(agent)) for _ in range(11)])
    device = ingest.places.by_topic(agent.up)
    assert device is not None
    assert BURST - 1100 < device.tokens < BURST - 1000  # ten of them were one too many
    boots = [HeldBoot(n, n, 0, 1, Quality.SYNCED, NOON) for n in range(512)]
    done = await ingest.take(*[(agent, agent.hello(nonce=n, boots=boots)) for n in range(100)])
    assert len(said(done)) < 40


async def test_answers_without_end_are_not_remembered(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1, kind="kiosk")
    agent = fleet.agent()
    for question in range(12):
        totals = tuple((question, answer, 1) for answer in range(256))
        frame = encode_kiosk(
            Presses(agent.span(1000), b"question", totals, ()),
            boot_id=agent.boot_id,
            seq=agent.seq,
            ordinal=agent.ordinal,
        )
        agent.seq += 1
        await ingest.take((agent, frame))
        kept = await owner.fetchval("select cardinality(answers) / 3 from boots")
        assert 256 <= kept <= MAX_ANSWERS


def rows_read(node: dict[str, Any], table: str) -> Iterator[float]:
    """How many rows of a table each node of a plan has looked at."""
    if node.get("Relation Name") == table and "Scan" in node["Node Type"]:
        removed = node.get("Rows Removed by Filter", 0)
        yield (node["Actual Rows"] + removed) * node["Actual Loops"]
    for inner in node.get("Plans", ()):
        yield from rows_read(inner, table)


async def test_boots_without_end_are_made_in_one_look(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    await owner.execute(
        "insert into boots (device_id, boot_id, ordinal) "
        "select $1, n, n from generate_series(1, 100000) n",
        fleet.rows[0],
    )
    for device in (fleet.devices[1], fleet.devices[0]):
        agents = [Agent(device, 1 << 40 | n, ordinal=99_999 + n) for n in range(300)]
        done = await ingest.take(*[(agent, agent.counter()) for agent in agents])
        assert len(said(done)) == 300
    new = ([fleet.rows[0]] * 300, [1 << 50 | n for n in range(300)], [99_999] * 300)
    async with owner.transaction():
        told = await owner.fetchval(f"explain (analyze, format json) {cursors._MAKE}", *new)
    looked = sum(rows_read(json.loads(told)[0]["Plan"], "boots"))
    assert 100_000 < looked < 110_000  # a look a boot reads them three hundred times
    repeated = await owner.fetch("select detail from findings where finding = 'ordinal repeated'")
    assert len(repeated) == 2


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/sites/%00", "not_found"),
        ("/spots?site=a%00b", "bad_parameter"),
        ("/counts?from=2026-03-01&to=2026-03-02&spot=%00", "bad_parameter"),
        ("/gaps?from=2026-03-01&to=2026-03-02&site=%00", "bad_parameter"),
        ("/sites?limit=%00", "bad_parameter"),
    ],
)
async def test_a_nul_is_refused_before_the_database_sees_it(
    world: World, path: str, code: str
) -> None:
    site = await world.site(await world.organisation("own"), "one")
    assert site
    status, body = await world.ask(path)
    assert (status, body["code"]) == ({"not_found": 404}.get(code, 400), code)


@pytest.mark.parametrize("position", [("\0", 0), ("", 1 << 63), ("", -1), ("", 10**30)])
async def test_a_forged_cursor_is_refused_before_the_database_sees_it(
    world: World, position: tuple[str, int]
) -> None:
    await world.site(await world.organisation("own"), "one")
    gaps = write_cursor(GapParameters(since="2026-03-01", until="2026-03-02"), position)
    sites = write_cursor(Listing(), position)
    for path in (f"/gaps?from=2026-03-01&to=2026-03-02&cursor={gaps}", f"/sites?cursor={sites}"):
        status, body = await world.ask(path)
        assert (status, body["code"]) == (400, "bad_cursor")


async def test_one_organisation_never_takes_all_connections(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = now = 0

    @asynccontextmanager
    async def counted(*args: Any, **options: Any) -> AsyncIterator[asyncpg.Connection]:
        nonlocal most, now
        async with reading(*args, **options) as connection:
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.02)
            yield connection
            now -= 1

    await world.site(await world.organisation("own"), "one")
    monkeypatch.setattr(reads, "reading", counted)
    answers = await asyncio.gather(*[world.ask("/sites") for _ in range(20)])
    assert [status for status, _ in answers] == [200] * 20
    assert most == reads.AT_ONCE
