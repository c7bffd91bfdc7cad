"""Storing exactly once: what is next, what repeats, what is beyond a hole, what is bad."""

from __future__ import annotations

import struct

import asyncpg
import pytest

from protocol.crc import crc32c
from protocol.frame import Kind, Reason, encode, section
from protocol.frame import Section as SectionType
from protocol.identity import DeviceId
from protocol.topics import Leg, topic
from tests.ingest_world import (
    MINUTE,
    NOON,
    Agent,
    Ingesting,
    differences,
    people,
    rebuilt,
    receipt_of,
    register,
    said,
)

pytestmark = pytest.mark.services


async def findings(owner: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await owner.fetch("select finding from findings order by id")]


def header(frame: bytes, **changes: int) -> bytes:
    """Return the frame with header fields changed and the header's checksum made right."""
    names = ("magic", "version", "kind", "length", "boot", "seq", "ordinal", "digest")
    fields = dict(zip(names, struct.unpack_from("<HBBIQIII", frame), strict=True)) | changes
    head = struct.pack("<HBBIQIII", *fields.values())
    return head + crc32c(head).to_bytes(4, "little") + frame[32:]


async def test_a_frame_is_stored_rolled_up_and_receipted(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    frame = agent.counter([[3, 1, 0, 0, 2, 2, 0, 0, 0, 1], [1, 0] * 5])
    receipt = receipt_of(await ingest.take((agent, frame)), agent)
    assert receipt.next_seq == 1
    assert receipt.digest == int.from_bytes(frame[24:28], "little")
    assert await people(owner, fleet.spots[0]) == (10, 4)
    row = await owner.fetchrow("select * from rollup_15m")
    assert (row["in0"], row["out0"], row["in1"], row["out1"], row["in2"]) == (5, 4, 5, 0, None)
    assert int(row["observed"]).bit_count() == 20
    assert await owner.fetchval("select count(*) from rollup_dirty") == 1


async def test_repeats_holes_and_disorder_change_nothing(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    frames = [agent.counter() for _ in range(6)]
    sent = [frames[i] for i in (1, 0, 0, 4, 2)]
    assert receipt_of(await ingest.take(*((agent, f) for f in sent)), agent).next_seq == 3
    assert receipt_of(await ingest.take((agent, frames[5])), agent).next_seq == 3
    assert receipt_of(await ingest.take((agent, frames[0])), agent).next_seq == 3
    done = await ingest.take(*((agent, f) for f in frames))
    assert receipt_of(done, agent).next_seq == 6
    assert await people(owner, fleet.spots[0]) == (60, 60)
    assert await findings(owner) == []
    assert await differences(owner) == []
    assert await rebuilt(owner) == []


async def test_two_boots_interleaved_are_two_sequences(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    old = fleet.agent()
    new = Agent(old.device, old.boot_id + 1, ordinal=2, booted_ms=NOON + 5 * MINUTE,
                now_ms=NOON + 30 * MINUTE)  # fmt: skip
    for _ in range(2):
        await ingest.take((new, new.counter()), (old, old.counter()))
    done = await ingest.take((new, new.counter()), (old, old.counter()))
    assert receipt_of(done, old).next_seq == receipt_of(done, new).next_seq == 3
    assert await people(owner, fleet.spots[0]) == (60, 60)
    assert await rebuilt(owner) == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_same_number_with_another_digest_is_an_incident_and_the_first_wins(
    ingest: Ingesting, owner: asyncpg.Connection, restarted: bool
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    forger = fleet.agent()
    await ingest.take((agent, agent.counter()), (agent, agent.counter()))
    if restarted:  # memory has no digests then: the rows have
        ingest.places.doubt(ingest.places.by_topic(agent.up).boots.values())  # type: ignore[union-attr]
    done = await ingest.take((forger, forger.counter([[9, 9] * 5])))
    assert receipt_of(done, agent).next_seq == 2
    assert await findings(owner) == ["digest mismatch"]
    assert await people(owner, fleet.spots[0]) == (20, 20)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f[:10],
        lambda f: b"XX" + f[2:],
        lambda f: f[:20] + bytes((f[20] ^ 1,)) + f[21:],
        lambda f: b"",
        lambda f: b"\0" * 5000,
    ],
)
async def test_a_header_that_cannot_be_believed_moves_nothing(
    ingest: Ingesting, owner: asyncpg.Connection, damage: object
) -> None:
    assert callable(damage)
    fleet = await register(owner, 1)
    agent = fleet.agent()
    good = agent.counter()
    done = await ingest.take((agent, damage(good)))
    assert said(done) == []
    assert await owner.fetchval("select count(*) from quarantine") == 1
    assert await owner.fetchval("select count(*) from boots") == 0
    assert receipt_of(await ingest.take((agent, good)), agent).next_seq == 1


@pytest.mark.parametrize(
    ("reason", "damage"),
    [
        (Reason.BODY_CRC, lambda f: f[:-1] + bytes((f[-1] ^ 255,))),
        (Reason.LENGTH, lambda f: f[:-1]),
        (Reason.LENGTH, lambda f: f + b"\0"),
        (Reason.VERSION, lambda f: header(f, version=9)),
        (Reason.LENGTH, lambda f: header(f, length=0xFFFFFFFF)),
        (Reason.KIND, lambda f: header(f, kind=9)),
        (
            Reason.MISSING,
            lambda f: encode(Kind.COUNTER, [section(SectionType.METRICS, b"\0")],
                             boot_id=int.from_bytes(f[8:16], "little"), seq=1, ordinal=1),
        ),
    ],
)  # fmt: skip
async def test_a_body_that_cannot_be_read_is_quarantined_and_never_blocks(
    ingest: Ingesting, owner: asyncpg.Connection, reason: Reason, damage: object
) -> None:
    assert callable(damage)
    fleet = await register(owner, 1)
    agent = fleet.agent()
    first, lost, last = agent.counter(), agent.counter([[2, 1] * 5] * 2), agent.counter()
    done = await ingest.take((agent, first), (agent, damage(lost)), (agent, last))
    assert receipt_of(done, agent).next_seq == 3
    row = await owner.fetchrow("select * from quarantine")
    assert (row["reason"], row["seq"]) == (reason, 1)
    gap = await owner.fetchrow("select * from gaps")
    assert (gap["id"], gap["reason"], gap["from_seq"]) == (row["gap"], "quarantined", 1)
    # the next totals tell whom it held
    assert gap["counts"] == [10, 5, 10, 5, 0, 0, 0, 0]
    assert await people(owner, fleet.spots[0]) == (20, 20)
    assert await findings(owner) == []


async def test_totals_that_do_not_add_up_are_a_gap_and_never_part_of_a_bucket(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take((agent, agent.counter()))
    await ingest.take((agent, agent.counter(lie=3)), (agent, agent.counter()))
    gap = await owner.fetchrow("select * from gaps")
    assert (gap["reason"], gap["from_seq"]) == ("totals", 1)
    assert gap["counts"] == [3, 0, 3, 0, 0, 0, 0, 0]
    assert gap["spot_id"] == fleet.spots[0]
    assert await findings(owner) == ["totals do not add up"]
    assert await people(owner, fleet.spots[0]) == (30, 30)


async def test_totals_wrap_without_a_gap(ingest: Ingesting, owner: asyncpg.Connection) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    agent.totals[0] = 2**32 - 3
    await ingest.take((agent, agent.counter(lie=0)))
    await ingest.take((agent, agent.counter()))
    rows = await owner.fetch("select counts from gaps")
    assert [row["counts"][0] for row in rows] == [-3]  # the first frame's own difference
    assert await owner.fetchval("select totals[1] from boots") == 7


async def test_a_gap_frame_occupies_its_range_even_where_a_part_was_stored(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    stored = [agent.counter() for _ in range(3)]
    await ingest.take(*((agent, frame) for frame in stored))
    agent.seq = 1  # it has forgotten that 1 and 2 were stored
    gap = agent.gap(9, minutes=30, people=12)
    done = await ingest.take((agent, gap), (agent, agent.counter()))
    assert receipt_of(done, agent).next_seq == 11
    row = await owner.fetchrow("select * from gaps")
    assert (row["from_seq"], row["to_seq"], row["reason"]) == (3, 9, "thinned")
    assert row["counts"][:2] == [12, 0]
    assert receipt_of(await ingest.take((agent, gap)), agent).next_seq == 11
    assert await owner.fetchval("select count(*) from gaps") == 1
    assert await findings(owner) == []


async def test_frames_on_another_topic_or_shard_are_dropped_and_noted(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    right = agent.up.decode()
    wrong_shard = right[:3] + ("00" if right[3:5] != "00" else "01") + right[5:]
    topics = [
        wrong_shard,
        "v1/" + "x" * 65_000 + "/up",
        "v1/+/#/up",
        "",
        "v1//up",
        right.replace(agent.device, "dc-unknown-1"),
        right.replace("/up", "/down"),
        topic(DeviceId("dc-none-000000"), Leg.UP),
    ]
    frame = agent.counter()
    done = await ingest.take_messages(
        [(t.encode(), frame, 0) for t in topics] + [(b"\xff", b"", 1)]
    )
    assert said(done) == []
    assert await owner.fetchval("select count(*) from boots") == 0
    assert set(await findings(owner)) == {"stray topic", "stray unknown_device"}


async def test_a_revoked_device_stores_nothing(
    ingest: Ingesting, owner: asyncpg.Connection
) -> None:
    fleet = await register(owner, 1)
    agent = fleet.agent()
    await ingest.take((agent, agent.counter()))
    await owner.execute("update devices set state = 'suspended'")
    ingest.places.changed(agent.device)
    assert said(await ingest.take((agent, agent.counter()))) == []
    assert await people(owner, fleet.spots[0]) == (10, 10)
