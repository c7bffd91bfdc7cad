"""A server that answers later than an agent waits: no broker, the session's rules alone."""

import random

import pytest

from agent.clock import ManualClock
from agent.outbox import Outbox
from agent.recorder import Profile, Recorder
from agent.session import Session
from protocol.frame import read_header
from protocol.session import Answer, BootCursor, decode_hello, encode_answer

NOON = 1_800_000_000_000
DATASET = 7


class Device:
    """A session over one frame, and the nonces of its hellos so far."""

    def __init__(self) -> None:
        self.clock = ManualClock(utc_ms=NOON)
        self.outbox = Outbox(":memory:")
        self.outbox.set_dataset(DATASET)
        profile = Profile("counter")
        self.recorder = Recorder(
            self.outbox, clock=self.clock, profile=profile, new_boot_id=lambda: 5
        )
        self.session = Session(self.outbox, clock=self.clock, rng=random.Random(1))
        self.seal()
        self.session.connected(1)
        self.nonces: list[int] = []
        self.sent: list[bytes] = []
        self.send()

    def seal(self) -> None:
        self.recorder.count(0, entered=1)
        self.clock.advance(300_000)
        self.recorder.tick()

    def send(self) -> None:
        """Send what is due: hellos and frames."""
        for frame in self.session.next(self.clock.now_ms):
            if read_header(frame).seq == 0 and not self.session.answered:
                self.nonces.append(decode_hello(frame).nonce)
            else:
                self.sent.append(frame)

    def lose_patience(self) -> None:
        """Wait until it asks again."""
        wake_ms = self.session.wake_ms()
        assert wake_ms is not None
        self.clock.advance(wake_ms - self.clock.now_ms)
        self.send()

    def hear(self, nonce: int, *, next_seq: int = 0, dataset: int = DATASET) -> None:
        """Hear where the server stands."""
        cursors = (BootCursor(5, next_seq, 0, next_seq > 0),)
        answer = Answer(nonce, dataset, NOON + self.clock.now_ms, 1, cursors)
        self.session.received(encode_answer(answer), self.clock.now_ms)
        self.send()


@pytest.fixture
def device() -> Device:
    """A device whose first hello has been given up, and asked again with another nonce."""
    made = Device()
    made.lose_patience()
    assert len(set(made.nonces)) == 2
    return made


def test_a_late_answer_ends_the_asking(device: Device) -> None:
    device.hear(device.nonces[0])
    assert device.session.answered
    assert len(device.sent) == 1


def test_a_late_answer_moves_no_mark_back(device: Device) -> None:
    boot = device.outbox.boots[0]
    device.outbox.stored(boot, 1, server_ms=NOON)
    device.hear(device.nonces[0])
    assert (device.session.answered, boot.acked) == (False, 1)
    device.hear(device.nonces[1])
    assert (device.session.answered, boot.acked) == (True, 0)


def test_a_late_answer_of_another_dataset_does_not_count(device: Device) -> None:
    device.hear(device.nonces[0], dataset=DATASET + 1)
    assert not device.session.answered


def test_what_was_asked_before_the_bell_does_not_count(device: Device) -> None:
    device.session.bell()
    device.send()
    device.hear(device.nonces[0])
    assert not device.session.answered
    device.hear(device.nonces[2])
    assert device.session.answered


def test_the_second_answer_to_a_hello_asked_twice_changes_nothing(device: Device) -> None:
    device.hear(device.nonces[0])
    device.hear(device.nonces[1])
    assert len(device.sent) == 1
    assert device.session.tally.ignored == 1


def test_an_answer_of_the_last_connection_does_not_count(device: Device) -> None:
    device.session.disconnected()
    device.session.connected(2)
    device.send()
    device.hear(device.nonces[0])
    assert not device.session.answered
