"""Closed boots: out of the way, and answered, continued and corrected as if they were not."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.frame import Quality
from protocol.session import Answer, BootCursor, HeldBoot, Receipt
from server.clock import SystemClock, at
from server.fleet.register import assign
from server.ingest import closing, cursors, worker
from server.ingest.mqtt import BrokerSettings
from server.ingest.pipeline import Done
from server.ingest.places import Boot, Cursor, Digests
from server.ingest.reassign import settle
from tests.ingest_world import (
    DAY,
    MINUTE,
    NOON,
    Agent,
    Fleet,
    Ingesting,
    differences,
    ingesting,
    owning,
    people,
    rebuilt,
    receipt_of,
    register,
    said,
)

pytestmark = pytest.mark.services

LATER = SystemClock().now_ms() + 36 * DAY
_BOOTS = """
select id, device_id, boot_id, ordinal, next_seq, digest, stored_to, quality, offset_ms, totals,
  answers, totals_open, first_seen from all_boots order by id
"""
_REACHED = """
select device_id, max(ordinal), max(stored_to), max(last_stored) from boots group by 1 order by 1
"""


@pytest.fixture
async def keeper(
    stack: Stack, database: str, owner: asyncpg.Connection
) -> AsyncIterator[asyncpg.Connection]:
    """Who folds: with ingest's rights."""
    connection = await asyncpg.connect(stack.endpoints.dsn("ingest", database))
    try:
        yield connection
    finally:
        await connection.close()


def later(agent: Agent, *, minutes: int = 30) -> Agent:
    """Return the device's next boot."""
    return Agent(agent.device, (agent.boot_id + 1) % 2**64, ordinal=agent.ordinal + 1,
                 booted_ms=agent.now_ms + minutes * MINUTE,
                 now_ms=agent.now_ms + minutes * MINUTE)  # fmt: skip


async def ended(ingest: Ingesting, fleet: Fleet, *, device: int = 0) -> tuple[Agent, list[bytes]]:
    """Store a boot of two frames, and one after it; return the first and its frames."""
    agent = fleet.agent(device)
    frames = [agent.counter(), agent.counter()]
    await ingest.take(*((agent, frame) for frame in frames))
    after = later(agent)
    await ingest.take((after, after.counter()))
    return agent, frames


async def closed(owner: asyncpg.Connection) -> list[int]:
    return [row[0] for row in await owner.fetch("select id from closed_boots order by id")]


def restart(ingest: Ingesting) -> None:
    """Forget everything, as a new process would."""
    for device in ingest.places.devices():
        device.boots.clear()
        ingest.places.changed(device.name)


async def test_folding_leaves_of_each_device_what_was_last_and_changes_no_cursor(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 3)
    for device in range(3):
        boot = fleet.agent(device)
        for _ in range(4):
            await ingest.take((boot, boot.counter([[1, 0] * 5] * 4 if device else None)))
            boot = later(boot, minutes=1)
    boots, reached = await owner.fetch(_BOOTS), await owner.fetch(_REACHED)
    assert await closing.fold(keeper, now_ms=SystemClock().now_ms() + 34 * DAY) == 0
    assert await closing.fold(keeper, now_ms=LATER) == 9
    assert await closing.fold(keeper, now_ms=LATER) == 0
    assert await owner.fetch(_BOOTS) == boots
    assert await owner.fetch(_REACHED) == reached
    assert await owner.fetchval("select count(*) from boots") == 3


async def test_the_newest_the_furthest_and_the_last_stored_boot_of_a_device_stay(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    # by their ordinals: 9 is the newest, 3 reaches furthest, 2 is stored last, 1 is none of these
    for ordinal, minutes in ((9, 0), (1, 10), (3, 40), (2, 20)):
        boot = fleet.agent(rng=random.Random(ordinal), ordinal=ordinal,
                           now_ms=NOON + minutes * MINUTE)  # fmt: skip
        await ingest.take((boot, boot.counter()))
    reached = await owner.fetch(_REACHED)
    assert await closing.fold(keeper, now_ms=LATER) == 1
    assert await owner.fetchval("select ordinal from closed_boots") == 1
    assert await owner.fetch(_REACHED) == reached


async def test_a_closed_boot_is_not_made_again_by_one_who_did_not_know_it(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent, _ = await ended(ingest, fleet)
    (device,) = ingest.places.devices()
    await closing.fold(keeper, now_ms=LATER)
    boot = Boot(0, device, agent.boot_id, agent.ordinal, Cursor(), Digests())
    assert await cursors.make(keeper, [boot]) == []
    assert await owner.fetchval("select count(*) from boots") == 1
    assert await cursors.read(keeper, [boot]) == []
    assert boot.closed
    assert boot.cursor.next_seq == 2


async def test_a_boot_with_held_frames_or_a_gap_stays(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    clockless = fleet.agent(0, quality=Quality.NONE)
    damaged = fleet.agent(1)
    bad = damaged.counter()
    await ingest.take((clockless, clockless.counter()), (damaged, bad[:-1] + bytes((bad[-1] ^ 1,))))
    for agent in (clockless, damaged):
        after = later(agent)
        after.quality = Quality.SYNCED
        await ingest.take((after, after.counter()))
    assert await closing.fold(keeper, now_ms=LATER) == 0
    await ingest.take((clockless, clockless.hello(boots=[
        HeldBoot(clockless.boot_id, 1, 0, 1, Quality.SYNCED, NOON)])))  # fmt: skip
    assert await owner.fetchval("select count(*) from undated_frames") == 0
    assert await closing.fold(keeper, now_ms=LATER) == 1


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_repeat_of_a_closed_boot_is_receipted_and_not_stored(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection, restarted: bool
) -> None:
    fleet = await register(owner, 1)
    agent, frames = await ended(ingest, fleet)
    before = receipt_of(await ingest.take((agent, frames[1])), agent)
    await closing.fold(keeper, now_ms=LATER)
    if restarted:
        restart(ingest)
    after = receipt_of(await ingest.take(*((agent, frame) for frame in frames)), agent)
    assert (after.next_seq, after.digest) == (before.next_seq, before.digest)
    assert after.next_seq == 2
    forger = fleet.agent()
    forged = forger.counter([[9, 9] * 5])
    assert receipt_of(await ingest.take((forger, forged)), agent) == after
    assert await owner.fetchval("select array_agg(finding) from findings") == ["digest mismatch"]
    beyond = replace(agent, seq=7)
    assert receipt_of(await ingest.take((agent, beyond.counter())), agent) == after
    assert await people(owner, fleet.spots[0]) == (30, 30)
    assert len(await closed(owner)) == 1


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_is_next_of_a_closed_boot_opens_it_again_and_is_stored_once(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection, restarted: bool
) -> None:
    fleet = await register(owner, 1)
    agent, frames = await ended(ingest, fleet)
    was = await owner.fetchrow("select * from boots order by id")
    await closing.fold(keeper, now_ms=LATER)
    if restarted:
        restart(ingest)
    more = [agent.counter(), agent.counter()]
    for _ in range(2):
        done = await ingest.take(*((agent, frame) for frame in (*frames, *more)))
        assert receipt_of(done, agent).next_seq == 4
    now = await owner.fetchrow("select * from boots order by id")
    kept = ("id", "device_id", "boot_id", "ordinal", "first_seen", "assignment_version", "answers")
    assert [now[name] for name in kept] == [was[name] for name in kept]
    assert (now["next_seq"], now["totals"]) == (4, [20] * 4 + [0] * 4)
    assert await closed(owner) == []
    assert await people(owner, fleet.spots[0]) == (50, 50)
    assert await owner.fetchval("select count(*) from gaps") == 0
    assert await owner.fetchval("select count(*) from findings") == 0
    assert await rebuilt(owner) == []
    assert await closing.fold(keeper, now_ms=LATER) == 0  # it was stored last now


async def test_totals_that_went_on_unseen_are_missed_after_a_boot_was_closed(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent, _ = await ended(ingest, fleet)
    await closing.fold(keeper, now_ms=LATER)
    await ingest.take((agent, agent.counter(lie=3)))
    assert await owner.fetchval("select counts from gaps") == [3, 0, 3, 0, 0, 0, 0, 0]


async def test_a_hello_knows_a_closed_boot_and_leaves_it_closed(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent, frames = await ended(ingest, fleet)
    await closing.fold(keeper, now_ms=LATER)
    done = await ingest.take((agent, agent.hello()))
    (answer,) = [told for told in said(done) if isinstance(told, Answer)]
    digest = int.from_bytes(frames[1][24:28], "little")
    assert answer.boots == (BootCursor(agent.boot_id, 2, digest, True),)
    row = await owner.fetchrow("select quality, offset_ms from closed_boots")
    assert tuple(row) == (Quality.SYNCED, NOON)
    agent.quality = Quality.NONE  # what comes without its offset is held, and placed by the hello's
    await ingest.take((agent, agent.counter()))
    assert await owner.fetchval("select count(*) from undated_frames") == 1
    await ingest.take((agent, later(agent).hello(boots=[HeldBoot(agent.boot_id, 1, 0, 3,
                                                                 Quality.NONE, 0)])))  # fmt: skip
    assert await owner.fetchval("select count(*) from undated_frames") == 0
    assert await people(owner, fleet.spots[0]) == (40, 40)


async def test_a_boot_folded_between_plan_and_commit_is_opened_again(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent, _ = await ended(ingest, fleet)
    batch = await ingest.pipeline.prepare([(agent.up, agent.counter(), 1)])
    assert await closing.fold(keeper, now_ms=LATER) == 1
    assert receipt_of(await ingest.pipeline.store(batch), agent).next_seq == 3
    assert await people(owner, fleet.spots[0]) == (40, 40)
    assert await closed(owner) == []


async def test_a_boot_that_is_being_written_is_not_waited_for(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    for device in range(2):
        await ended(ingest, fleet, device=device)
    async with owner.transaction():
        first = await owner.fetchval("select min(id) from boots")
        await owner.execute("update boots set next_seq = next_seq where id = $1", first)
        assert await asyncio.wait_for(closing.fold(keeper, now_ms=LATER), 10) == 1
        assert first not in await closed(owner)
    assert await closing.fold(keeper, now_ms=LATER) == 1


async def test_a_server_that_dies_after_opening_a_boot_has_changed_nothing(
    stack: Stack,
    database: str,
    ingest: Ingesting,
    owner: asyncpg.Connection,
    keeper: asyncpg.Connection,
) -> None:
    fleet = await register(owner, 1)
    agent, _ = await ended(ingest, fleet)
    boots = await owner.fetch(_BOOTS)
    await closing.fold(keeper, now_ms=LATER)
    restart(ingest)
    frame = agent.counter()
    batch = await ingest.pipeline.prepare([(agent.up, frame, 1)])
    assert [boot.closed for boot in batch.boots] == [True]
    await closing.reopen(keeper, [replace(batch.boots[0])])
    assert await owner.fetch(_BOOTS) == boots
    assert await closed(owner) == []
    assert await closing.fold(keeper, now_ms=LATER) == 1
    assert await owner.fetch(_BOOTS) == boots
    assert receipt_of(await ingest.pipeline.store(batch), agent).next_seq == 3
    assert await people(owner, fleet.spots[0]) == (40, 40)


async def test_closed_boots_leave_the_memory_of_every_worker(
    stack: Stack,
    database: str,
    ingest: Ingesting,
    owner: asyncpg.Connection,
    keeper: asyncpg.Connection,
) -> None:
    fleet = await register(owner, 2)
    for device in range(2):
        await ended(ingest, fleet, device=device)
    await closing.fold(keeper, now_ms=LATER)  # another's doing
    await closing.forget(keeper, ingest.places)
    assert [len(device.boots) for device in ingest.places.devices()] == [1, 1]


async def test_a_worker_folds_by_itself_though_its_broker_is_away(
    stack: Stack,
    database: str,
    ingest: Ingesting,
    owner: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fleet = await register(owner, 1)
    await ended(ingest, fleet)
    await owner.execute("update boots set last_stored = last_stored - interval '36 days'")
    monkeypatch.setattr(worker, "FOLD_EVERY_S", 0.05)
    pki = stack.endpoints.pki
    nowhere = BrokerSettings("127.0.0.1", 1, pki / "bundle.pem", pki / "svc-ingest.pem",
                             pki / "svc-ingest.key")  # fmt: skip
    async with asyncpg.create_pool(stack.endpoints.dsn("ingest", database), min_size=1) as pool:
        running = asyncio.create_task(worker.Ingest(pool, nowhere, SystemClock()).run())
        try:
            async with asyncio.timeout(20):
                while not await closed(owner):  # noqa: ASYNC110 - asks another process
                    await asyncio.sleep(0.02)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert await owner.fetchval("select count(*) from boots") == 1


async def test_an_edit_of_assignments_moves_what_closed_boots_have_counted(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection
) -> None:
    fleet = await register(owner, 2)
    agent, _ = await ended(ingest, fleet)
    await closing.fold(keeper, now_ms=LATER)
    async with owner.transaction():
        touched = await assign(owner, device=agent.device, spot=f"spot-{fleet.devices[1]}",
                               since=at(NOON - 30 * MINUTE))  # fmt: skip
        for row in sorted(touched):
            await settle(owner, row, from_at=at(NOON - 30 * MINUTE))
    assert await people(owner, fleet.spots[0]) == (0, 0)
    assert await people(owner, fleet.spots[1]) == (30, 30)
    await ingest.take((agent, agent.counter()))
    assert await people(owner, fleet.spots[1]) == (40, 40)
    assert await rebuilt(owner) == []


@pytest.mark.parametrize("known", [True, False])
async def test_a_boot_that_opens_or_begins_during_an_edit_is_placed_by_it(
    ingest: Ingesting, owner: asyncpg.Connection, keeper: asyncpg.Connection, known: bool
) -> None:
    fleet = await register(owner, 2)
    agent, _ = await ended(ingest, fleet)
    await closing.fold(keeper, now_ms=LATER)
    restart(ingest)
    if not known:
        agent = later(later(agent, minutes=1), minutes=1)
    edit = owner.transaction()
    await edit.start()
    since = at(NOON - 30 * MINUTE)
    for row in sorted(await assign(owner, device=agent.device, spot=f"spot-{fleet.devices[1]}",
                                   since=since)):  # fmt: skip
        await settle(owner, row, from_at=since)
    taking = asyncio.create_task(ingest.take((agent, agent.counter())))
    finished, _ = await asyncio.wait([taking], timeout=0.3)
    assert not finished
    await edit.commit()
    assert receipt_of(await asyncio.wait_for(taking, 20), agent).next_seq == agent.seq
    assert await people(owner, fleet.spots[0]) == (0, 0)
    assert await people(owner, fleet.spots[1]) == (40, 40)
    assert await rebuilt(owner) == []


async def test_two_workers_and_one_who_folds_store_each_frame_once(
    stack: Stack,
    database: str,
    ingest: Ingesting,
    owner: asyncpg.Connection,
    keeper: asyncpg.Connection,
) -> None:
    fleet = await register(owner, 4)
    agents = [fleet.agent(i) for i in range(4)]
    agents += [later(agent) for agent in agents]
    stop = False
    folded = 0

    async def folding() -> None:
        nonlocal folded
        while not stop:
            folded += await closing.fold(keeper, now_ms=LATER)
            await asyncio.sleep(0)

    async with ingesting(stack, database) as other:
        task = asyncio.create_task(folding())
        try:
            for _ in range(12):
                sent = [(agent, agent.counter([[1, 1]])) for agent in agents]
                dones = await asyncio.wait_for(
                    asyncio.gather(ingest.take(*sent), other.take(*reversed(sent))), 60
                )
                for done in dones:
                    assert {receipt_of(done, agent).next_seq for agent in agents} == {agents[0].seq}
        finally:
            stop = True
            await task
    assert folded > 0
    assert [await people(owner, spot) for spot in fleet.spots] == [(24, 24)] * 4
    assert await owner.fetchval("select count(*) from findings") == 0
    assert await owner.fetchval("select count(*) from gaps") == 0
    assert await owner.fetchval("select count(*) = count(distinct (device_id, boot_id)) "
                                "and count(*) = count(distinct id) from all_boots")  # fmt: skip
    assert await rebuilt(owner) == []


_HISTORY = (
    "select b.boot_id, r.seq, r.time, r.spot, r.line, r.digest, r.lead_ms, r.span_ms, r.counts "
    "from readings r join all_boots b on b.id = r.boot order by 1, 2, 3, 5",
    "select b.boot_id, p.* from presses p join all_boots b on b.id = p.boot order by p",
    "select time, device, seq, digest, value from device_metrics order by 2, 1, 3, 4, 5",
    "select * from rollup_15m order by spot, bucket",
    "select * from presses_15m p order by p",
    "select device_id, boot_id, ordinal, next_seq, digest, stored_to, quality, offset_ms, totals, "
    "answers, totals_open from all_boots order by 1, 2",
    "select device_id, max(ordinal), max(stored_to) from boots group by 1 order by 1",
    "select b.boot_id, g.from_seq, g.to_seq, g.spot_id, g.from_at, g.until_at, g.reason, g.counts, "
    "g.answers from gaps g join all_boots b on b.id = g.boot order by 1, 2, g.id",
    "select b.boot_id, u.seq, u.reason, u.frame from undated_frames u "
    "join all_boots b on b.id = u.boot order by 1, 2",
    "select device_id, finding, count(*) from findings group by 1, 2 order by 1, 2",
)


@dataclass
class Machines:
    """Some devices with many boots, which send whatever they like, in any order."""

    rng: random.Random
    fleet: Fleet
    boots: list[Agent] = field(default_factory=list)
    sent: list[tuple[Agent, bytes]] = field(default_factory=list)
    counted: set[int] = field(default_factory=set)  # boots whose last frame counts: rows tell it

    def begin(self) -> None:
        device = self.rng.randrange(len(self.fleet.devices))
        before = [b for b in self.boots if b.device == self.fleet.devices[device]]
        start = NOON - 20 * 60 * MINUTE + len(before) * 80 * MINUTE
        self.boots.append(Agent(
            self.fleet.devices[device], self.rng.getrandbits(64), ordinal=len(before) + 1,
            booted_ms=start, now_ms=start, lines=self.rng.choice((1, 2, 4)),
            quality=self.rng.choice((Quality.SYNCED,) * 5 + (Quality.NONE,)),
        ))  # fmt: skip

    def frame(self) -> tuple[Agent, bytes]:
        if self.sent and self.rng.random() < 0.3:
            return self.rng.choice(self.sent)
        agent = self.rng.choice(self.boots)
        kind = self.rng.choice(("counter",) * 60 + ("health", "forged") * 6 + ("gap", "bad", "lie"))
        if kind == "forged" and agent.boot_id in self.counted:
            forger = replace(agent, seq=agent.seq - 1, now_ms=agent.now_ms - 5 * MINUTE,
                             totals=list(agent.totals))  # fmt: skip
            return agent, forger.counter([[7, 7] * 5] * agent.lines)
        self.counted.discard(agent.boot_id)
        if kind == "health":
            made = agent.health({"a": self.rng.random()})
        elif kind == "gap":
            made = agent.gap(agent.seq + self.rng.randrange(3), minutes=2, people=3)
        else:
            counts = [[self.rng.randrange(3) for _ in range(10)] for _ in range(agent.lines)]
            made = agent.counter(counts, lie=2 if kind == "lie" else 0)
            self.counted.add(agent.boot_id)
        if kind == "bad":
            self.counted.discard(agent.boot_id)
            made = made[:-1] + bytes((made[-1] ^ 1,))
        self.sent.append((agent, made))
        return agent, made

    def batch(self) -> list[tuple[Agent, bytes]]:
        if not self.boots or self.rng.random() < 0.3:
            self.begin()
        if self.rng.random() < 0.1:
            agent = self.rng.choice(self.boots)
            theirs = [b for b in self.boots if b.device == agent.device]
            for boot in theirs:
                boot.quality = self.rng.choice((boot.quality, Quality.SYNCED))
            held = [HeldBoot(b.boot_id, b.ordinal, 0, b.seq, b.quality,
                             b.booted_ms if b.quality else 0) for b in theirs]  # fmt: skip
            return [(agent, agent.hello(boots=held))]
        frames = [self.frame() for _ in range(self.rng.randrange(1, 12))]
        if self.rng.random() < 0.3:
            self.rng.shuffle(frames)
        return frames


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 6))]
)
async def test_a_server_that_folds_whenever_it_likes_is_one_that_never_does(
    stack: Stack, database: str, ingest: Ingesting, owner: asyncpg.Connection, seed: int
) -> None:
    rng = random.Random(seed)
    second = f"test_{secrets.token_hex(6)}"
    stack.postgres.create_database(second)
    folded = 0
    try:
        async with (
            owning(stack, second) as reference_owner,
            ingesting(stack, second) as reference,
            asyncpg.create_pool(stack.endpoints.dsn("ingest", database), min_size=1) as keepers,
        ):
            machines = Machines(rng, await register(owner, 3))
            assert await register(reference_owner, 3) == machines.fleet
            for _ in range(60):
                if rng.random() < 0.5:
                    async with keepers.acquire() as keeper:
                        folded += await closing.fold(keeper, now_ms=LATER)
                        if rng.random() < 0.5:
                            await closing.forget(keeper, ingest.places)
                if rng.random() < 0.15:
                    restart(ingest)
                    restart(reference)
                batch = machines.batch()
                told = [_told(await one.take(*batch)) for one in (ingest, reference)]
                assert told[0] == told[1]
            for query in _HISTORY:
                assert await owner.fetch(query) == await reference_owner.fetch(query), query
            assert await differences(owner) == []
            assert await rebuilt(owner) == []
    finally:
        stack.postgres.drop_database(second)
    assert folded > 5


def _told(done: Done) -> list[tuple[object, ...]]:
    """Return what was answered, without what differs between two servers."""
    told: list[tuple[object, ...]] = []
    for word in said(done):
        if isinstance(word, Receipt):
            told.append((word.boot_id, word.next_seq, word.digest))
        else:
            told.append((word.nonce, word.version, word.boots))
    return told
