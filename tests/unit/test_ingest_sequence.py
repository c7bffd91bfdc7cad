"""The rule of the sequence against a dictionary, and the parts of ingest that need no database."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.counter import COUNT_WRAP
from protocol.session import Receipt, decode_downlink
from server.clock import ManualClock
from server.ingest import sequence
from server.ingest.mqtt import Inbound, LinkError, publish_head, split
from server.ingest.places import (
    AHEAD_MS,
    DAY_MS,
    EVER_MS,
    RECEIPT_BYTES,
    Boot,
    Cursor,
    Device,
    Digests,
    Registered,
    covering,
    cut,
)
from server.ingest.receipts import receipts
from server.ingest.strays import Sampler

Range = tuple[int, int]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=30),
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
)
def test_any_loss_doubling_and_disorder_ends_in_each_number_taken_once(
    lengths: list[int], seed: int, batches: int
) -> None:
    """An agent that sends from the receipt on, on a link that does what it likes."""
    rng = random.Random(seed)
    frames: list[Range] = []
    for length in lengths:  # longer than one: a gap
        start = frames[-1][1] + 1 if frames else 0
        frames.append((start, start + length - 1))
    end = frames[-1][1] + 1
    stored: dict[int, int] = {}
    cursor = 0
    for turn in range(batches + 1):
        window = [f for f in frames if f[1] >= cursor] + rng.choices(frames, k=3)
        if turn < batches:
            window = [f for f in window if rng.random() > 0.3]
            rng.shuffle(window)
        found = sequence.take(cursor, window)
        assert len(found.taken) + len(found.repeats) + len(found.beyond) == len(window)
        for at in found.taken:
            for seq in range(max(window[at][0], cursor), window[at][1] + 1):
                assert seq not in stored, "stored twice"
                stored[seq] = turn
            cursor = max(cursor, window[at][1] + 1)
        assert found.next_seq == cursor
        assert all(window[at][1] < cursor for at in found.repeats)
        assert all(window[at][0] > cursor for at in found.beyond)
        assert sorted(stored) == list(range(cursor))
    assert cursor == end


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=20), st.integers(0, 6))
def test_what_is_taken_is_what_a_dictionary_would_take(
    ranges: list[tuple[int, int]], cursor: int
) -> None:
    frames = [(seq, seq + more) for seq, more in ranges]
    found = sequence.take(cursor, frames)
    following = cursor
    by_start = sorted(enumerate(frames), key=lambda entry: (entry[1][0], entry[0]))
    taken = []
    for at, (seq, to_seq) in by_start:
        if seq <= following <= to_seq:
            taken.append(at)
            following = to_seq + 1
    assert found.taken == taken
    assert found.next_seq == following


@given(st.integers(0, COUNT_WRAP - 1), st.integers(0, 10_000), st.integers(-1000, 1000))
def test_a_difference_of_totals_survives_the_wrap(last: int, counted: int, lie: int) -> None:
    new = (last + counted + lie) % COUNT_WRAP
    assert sequence.difference([last], [counted], [new]) == (lie,)


def publish(
    topic: bytes, payload: bytes, packet_id: int, *, flags: int = 0, properties: bytes = b""
) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic
    if packet_id:
        body += packet_id.to_bytes(2, "big")
        flags |= 2
    size = bytes((len(properties),))
    body += size + properties + payload
    length = len(body)
    encoded = bytearray()
    while True:
        encoded.append(length & 127 | (128 if length > 127 else 0))
        length >>= 7
        if not length:
            break
    return bytes((0x30 | flags,)) + bytes(encoded) + body


@given(
    st.lists(
        st.tuples(st.binary(max_size=60), st.binary(max_size=300), st.integers(0, 65535),
                  st.binary(max_size=20)),
        max_size=10,
    ),
    st.integers(1, 200),
)  # fmt: skip
def test_a_stream_of_packets_is_taken_apart_however_it_is_cut(
    messages: list[tuple[bytes, bytes, int, bytes]], step: int
) -> None:
    stream = b"".join(publish(t, p, i, properties=q) + b"\xd0\x00" for t, p, i, q in messages)
    rest = b""
    found: list[Inbound] = []
    other: list[tuple[int, bytes]] = []
    for at in range(0, len(stream), step):
        rest += stream[at : at + step]
        taken, _ = split(rest, found, other=other)
        rest = rest[taken:]
    assert found == [(t, p, i) for t, p, i, _ in messages]
    assert other == [(0xD0, b"")] * len(messages)
    assert rest == b""


def test_a_retained_message_keeps_its_place_without_a_topic() -> None:
    found: list[Inbound] = []
    assert split(publish(b"t", b"p", 5, flags=1), found, other=[])[1] == 1
    assert found == [(b"", b"", 5)]


@pytest.mark.parametrize("stream", [b"\x30\xff\xff\xff\xff\x01", b"\x30\xff\xff\xff\x7f"])
def test_a_packet_of_absurd_length_ends_the_link(stream: bytes) -> None:
    with pytest.raises(LinkError):
        split(stream, [], other=[])


def test_receipts_are_the_protocols_own() -> None:
    head = publish_head("v1/00/dc-test/receipt", RECEIPT_BYTES)
    device = Device(1, "dc-test", Registered(1, False, 0, ()), head, 0.0)
    boot = Boot(1, device, 2**63 + 5, 1, Cursor(77, 2**32 - 1), Digests())
    (packet,) = receipts([boot], dataset=2**64 - 1, server_ms=123)
    found: list[Inbound] = []
    split(packet, found, other=[])
    assert found[0][0] == b"v1/00/dc-test/receipt"
    expected = Receipt(2**63 + 5, 77, 2**32 - 1, 2**64 - 1, 123)
    assert decode_downlink(found[0][1]) == expected


def test_a_device_may_speak_of_its_window_and_of_its_grants_only() -> None:
    pieces = cut([(7, 100, 300), (8, 300, EVER_MS)], [(8, 10, 400), (7, 50, 150)], earliest_ms=200)
    assert [tuple(piece) for piece in pieces] == [
        (7, 100, 150, True),
        (7, 200, 300, False),
        (8, 300, 400, True),
        (8, 400, EVER_MS, False),
    ]
    assert [p.spot for p in covering(pieces, first_ms=250, end_ms=450, now_ms=1000)] == [7, 8, 8]
    assert covering(pieces, first_ms=120, end_ms=220, now_ms=1000) == []
    assert covering(pieces, first_ms=90, end_ms=120, now_ms=1000) == []
    assert covering(pieces, first_ms=500, end_ms=1001 + AHEAD_MS, now_ms=1000) == []
    assert cut([], [], earliest_ms=5) == ((0, 5, EVER_MS, False),)


def test_a_sample_is_bounded_by_the_hour() -> None:
    clock = ManualClock(DAY_MS)
    sampler = Sampler(clock, an_hour=2)
    assert [sampler.wants("a") for _ in range(3)] == [True, True, False]
    assert sampler.wants("b")
    clock.advance(3600)
    assert sampler.wants("a")


@given(st.lists(st.integers(1, 400), max_size=12))
def test_digests_are_remembered_rightly_or_not_at_all(steps: list[int]) -> None:
    digests = Digests()
    stored: dict[int, int] = {}
    seq = 0
    for number, step in enumerate(steps):
        for _ in range(step):
            digests.add(seq, seq * 7 % 2**32)
            stored[seq] = seq * 7 % 2**32
            seq += 1
        if number % 3 == 2:
            seq += step  # a gap
    assert all(digests.get(n) in (None, stored.get(n)) for n in range(-2, seq + 2))
    if stored:
        assert digests.get(max(stored)) == stored[max(stored)]
    digests.clear()
    assert digests.get(max(stored, default=0)) is None
