"""The session against a small model of the server: everything once, nothing lost."""

import copy
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.outbox import Outbox
from agent.recorder import Profile, Recorder
from agent.session import RESEND_MAX_MS, WINDOW, Session
from protocol.counter import decode_lines
from protocol.frame import Kind, Section, decode_time, need, read_body, read_header
from protocol.gap import Cause, decode_gap
from protocol.session import (
    Answer,
    BootCursor,
    Receipt,
    decode_hello,
    encode_answer,
    encode_receipt,
)

NOON = 1_795_348_800_000
DAY = 86_400_000


@dataclass
class Cursor:
    """Where the model stands in a boot, with what it placed and what it could not place."""

    next_seq: int = 0
    digest: int = 0
    total: int = 0
    placed: int = 0
    unplaced: int = 0
    causes: list[Cause] = field(default_factory=list)


class Server:
    """The server's rules in forty lines: in sequence, totals checked, receipts and answers."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.dataset = 1
        self.boots: dict[int, Cursor] = {}
        self.integrity = 0

    @property
    def now_ms(self) -> int:
        return NOON + self.clock.now_ms

    def restore(self, older: dict[int, Cursor]) -> None:
        self.boots = copy.deepcopy(older)
        self.dataset += 1

    def take(self, data: bytes) -> bytes:
        header = read_header(data)
        sections = read_body(data, header)
        if header.kind == Kind.HELLO:
            return self._greet(data)
        boot = self.boots.setdefault(header.boot_id, Cursor())
        span = decode_time(need(sections, Section.TIME))
        if header.kind == Kind.GAP:
            gap = decode_gap(need(sections, Section.GAP), span, seq=header.seq)
            if header.seq <= boot.next_seq <= gap.to_seq:
                total = sum(line[1] for line in gap.lines)
                self._store(boot, header.digest, gap.to_seq + 1, total=total)
                boot.unplaced += total - boot.placed - boot.unplaced
                boot.causes.append(gap.cause)
        elif header.seq == boot.next_seq:
            counts = decode_lines(need(sections, Section.LINES), span)
            delta = sum(sum(line.counts[::2]) for line in counts.lines)
            total = sum(line.total_in for line in counts.lines)
            self.integrity += boot.total + delta != total
            self._store(boot, header.digest, header.seq + 1, total=total)
            boot.placed += delta
        return encode_receipt(
            Receipt(header.boot_id, boot.next_seq, boot.digest, self.dataset, self.now_ms)
        )

    def _store(self, boot: Cursor, digest: int, next_seq: int, *, total: int) -> None:
        boot.next_seq, boot.digest, boot.total = next_seq, digest, total

    def _greet(self, data: bytes) -> bytes:
        hello = decode_hello(data)
        cursors = []
        for held in hello.boots:
            boot = self.boots.get(held.boot_id)
            known = boot is not None
            boot = boot or Cursor()
            cursors.append(BootCursor(held.boot_id, boot.next_seq, boot.digest, known))
        return encode_answer(Answer(hello.nonce, self.dataset, self.now_ms, 1, tuple(cursors)))


class World:
    """An agent, a server and two wires between them that may do anything but forge."""

    def __init__(self, *, seed: int = 1, max_bytes: int = 1 << 30, reserve_ms: int = DAY) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock(utc_ms=NOON)
        self.outbox = Outbox(":memory:", max_bytes=max_bytes, reserve_ms=reserve_ms)
        self.server = Server(self.clock)
        self.snapshot: dict[int, Cursor] = {}
        self.up: list[bytes] = []
        self.down: list[bytes] = []
        self.people = 0
        self.start()

    def start(self) -> None:
        self.recorder = Recorder(
            self.outbox,
            clock=self.clock,
            profile=Profile("counter", interval_s=60, frame_s=60, quiet_frame_s=60),
            new_boot_id=lambda: self.rng.getrandbits(64),
        )
        self.session = Session(self.outbox, clock=self.clock, rng=self.rng)
        self.connect()

    def connect(self) -> None:
        self.session.disconnected()
        self.up.clear()
        self.down.clear()
        self.session.connected(self.rng.getrandbits(32))

    def minutes(self, number: int) -> None:
        for _ in range(number):
            self.recorder.count(0, entered=1)
            self.people += 1
            self.clock.advance(60_000)
            self.recorder.tick()

    def send(self) -> None:
        self.up += self.session.next(self.clock.now_ms)

    def carry(self, how: str) -> None:
        """Bring the first thing of each wire across, unless something happens to it."""
        for wire, deliver in ((self.up, self._arrive), (self.down, self._hear)):
            if not wire:
                continue
            if how == "swap" and len(wire) > 1:
                wire[0], wire[1] = wire[1], wire[0]
            data = wire.pop(0)
            if how == "late":
                wire.append(data)
            elif how != "lose":
                deliver(data)
                if how == "twice":
                    deliver(data)

    def _arrive(self, data: bytes) -> None:
        self.down.append(self.server.take(data))

    def _hear(self, data: bytes) -> None:
        self.session.received(data, self.clock.now_ms)

    def heal(self) -> None:
        """Let everything work until nothing is left to do."""
        for _ in range(4_000):
            self.send()
            if self.up or self.down:
                self.carry("well")
                continue
            if self.session.answered and all(b.acked >= b.next_seq for b in self.outbox.boots):
                return
            wake = self.session.wake_ms()
            assert wake is not None, "the session waits for nothing"
            self.clock.advance(max(1, wake - self.clock.now_ms))
        pytest.fail("the session never came to rest")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("minutes"), st.integers(1, 30)),
        st.tuples(st.just("wait"), st.integers(1, RESEND_MAX_MS)),
        st.tuples(st.just("carry"), st.integers(1, 20)),
        st.tuples(st.sampled_from(["lose", "twice", "late", "swap"]), st.integers(1, 5)),
        st.tuples(
            st.sampled_from(["reconnect", "restart", "kill", "snapshot", "restore", "bell"]),
            st.just(0),
        ),
    ),
    max_size=60,
)


def play(world: World, script: list[tuple[str, int]]) -> None:
    for what, number in script:
        if what == "minutes":
            world.minutes(number)
        elif what == "wait":
            world.clock.advance(number)
            world.recorder.tick()
        elif what in {"carry", "lose", "twice", "late", "swap"}:
            for _ in range(number):
                world.send()
                world.carry(what)
        elif what == "reconnect":
            world.connect()
        elif what in {"restart", "kill"}:
            (world.recorder.close if what == "restart" else world.recorder.flush)()
            if what == "kill":
                _recover(world.outbox)
            world.start()
        elif what == "bell":
            world.session.bell()
        elif what == "snapshot":
            world.snapshot = copy.deepcopy(world.server.boots)
        elif what == "restore":
            world.server.restore(world.snapshot)
        world.send()


def _recover(outbox: Outbox) -> None:
    """What opening the file after a SIGKILL does, on one in memory."""
    from agent.disk import recover_open

    with outbox._transaction():
        recover_open(outbox._db)
    outbox._begun = False
    outbox._open, outbox._open_dirty = None, False
    outbox._load(outbox._db)


def settle(world: World) -> None:
    world.recorder.close()
    world.connect()
    world.heal()
    world.connect()  # a server restored to an older state is noticed at the latest here
    world.heal()


@settings(max_examples=150, deadline=None)
@given(steps, st.integers(0, 1 << 30))
def test_everything_arrives_exactly_once(script: list[tuple[str, int]], seed: int) -> None:
    world = World(seed=seed)
    play(world, script)
    settle(world)
    boots = world.server.boots.values()
    assert sum(boot.placed for boot in boots) == world.people
    assert sum(boot.unplaced for boot in boots) == 0
    assert world.server.integrity == 0
    assert world.session.tally.conflicts == 0


@settings(max_examples=150, deadline=None)
@given(steps, st.integers(0, 1 << 30), st.sampled_from([600, 2_000, 1 << 30]))
def test_what_is_thinned_or_forgotten_keeps_its_totals(
    script: list[tuple[str, int]], seed: int, max_bytes: int
) -> None:
    world = World(seed=seed, max_bytes=max_bytes, reserve_ms=600_000)
    play(world, script)
    settle(world)
    boots = world.server.boots.values()
    assert sum(boot.placed + boot.unplaced for boot in boots) == world.people
    assert world.server.integrity == 0


def test_at_most_a_window_is_under_way_and_no_receipt_means_again() -> None:
    world = World()
    world.minutes(50)
    world.send()
    world.carry("well")
    world.carry("well")
    world.send()
    assert len(world.up) == WINDOW
    world.up.clear()
    world.clock.advance(10_000)
    world.send()
    assert len(world.up) == WINDOW
    assert world.session.tally.resent == WINDOW


def test_nothing_is_sent_before_the_hello_is_answered() -> None:
    world = World()
    world.minutes(3)
    world.send()
    world.send()
    assert [read_header(data).kind for data in world.up] == [Kind.HELLO]


def test_a_receipt_that_does_not_match_forgets_nothing() -> None:
    world = World()
    world.minutes(5)
    world.heal()
    world.minutes(2)
    world.send()
    boot = world.outbox.boots[-1]
    acked = boot.acked
    for receipt in (
        Receipt(boot.boot_id, acked + 1, 12345, world.server.dataset, NOON),
        Receipt(boot.boot_id, acked + 9, 12345, world.server.dataset, NOON),
        Receipt(boot.boot_id ^ 1, acked + 1, 12345, world.server.dataset, NOON),
    ):
        world.session.received(encode_receipt(receipt), world.clock.now_ms)
        world.session.received(b"VE nonsense", world.clock.now_ms)
    assert boot.acked == acked
    world.heal()
    assert world.server.boots[boot.boot_id].placed == 7


def test_only_the_answer_to_the_last_question_moves_a_mark_back() -> None:
    world = World()
    world.minutes(5)
    world.heal()
    boot = world.outbox.boots[-1]
    forged = Answer(99, 7, NOON, 1, (BootCursor(boot.boot_id, 0, 0, known=False),))
    world.session.received(encode_answer(forged), world.clock.now_ms)
    assert boot.acked == boot.next_seq
    assert world.outbox.dataset == world.server.dataset


def test_a_rolled_back_outbox_begins_a_new_boot_and_invents_nothing() -> None:
    world = World()
    world.minutes(5)
    world.heal()
    world.server.boots[world.recorder.boot_id].next_seq += 10  # another copy of us went on
    first = world.recorder.boot_id
    world.connect()
    world.heal()
    assert world.session.tally.conflicts == 1
    world.minutes(3)
    world.heal()
    assert world.recorder.boot_id != first
    assert world.server.boots[world.recorder.boot_id].placed == 3
    assert world.server.boots[first].placed == 5


def test_what_the_reserve_no_longer_holds_is_said_to_be_forgotten() -> None:
    world = World(reserve_ms=60_000)
    world.minutes(30)
    world.heal()
    world.minutes(30)
    world.heal()
    world.clock.advance(3_600_000)
    world.minutes(2)
    world.heal()
    world.server.restore({})
    world.minutes(1)
    settle(world)
    (boot,) = world.server.boots.values()
    assert Cause.FORGOTTEN in boot.causes
    assert boot.unplaced > 0
    assert boot.placed + boot.unplaced == world.people


def test_a_receipt_of_another_dataset_forgets_nothing_and_asks() -> None:
    world = World()
    world.minutes(2)
    world.heal()
    world.minutes(1)
    world.send()
    boot = world.outbox.boots[-1]
    digest = world.outbox.read(boot, boot.acked, limit=1)[0].digest
    receipt = Receipt(boot.boot_id, boot.acked + 1, digest, world.server.dataset + 1, NOON)
    world.clock.advance(6_000)
    acked = boot.acked
    world.session.received(encode_receipt(receipt), world.clock.now_ms)
    assert boot.acked == acked
    (question,) = world.session.next(world.clock.now_ms)
    assert read_header(question).kind == Kind.HELLO
