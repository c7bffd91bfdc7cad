"""Look over one device's shoulder: each frame it sends in hex and in words, and its receipt."""

import random
import time
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from agent.clock import Clock
from agent.link import Identity, Link
from agent.outbox import Outbox
from agent.session import Session
from protocol.counter import Counts, decode_lines
from protocol.frame import (
    FrameError,
    Kind,
    Quality,
    Section,
    decode_time,
    need,
    read_body,
    read_header,
)
from protocol.session import Receipt, decode_downlink, decode_hello
from simulators.device import Conditions, SimDevice
from simulators.hardware import DeviceSpec
from simulators.truth import TruthFile

KEPT = 12


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame on its way up; `receipt_s` is how long its receipt took, None until it is here."""

    at: float
    boot_id: int
    seq: int
    kind: str
    words: str
    hex: str
    length: int
    sequenced: bool
    receipt_s: float | None = None
    sent: int = 1


class Shoulder:
    """The last frames, newest first."""

    def __init__(self) -> None:
        self.frames: deque[Seen] = deque(maxlen=KEPT)

    def sent(self, frame: bytes) -> None:
        """Note a frame that is being sent; one sent again is noted as such."""
        header = read_header(frame)
        kind = Kind(header.kind)
        for index, seen in enumerate(self.frames):
            same = (seen.boot_id, seen.seq) == (header.boot_id, header.seq)
            if same and seen.sequenced and kind.sequenced:
                self.frames[index] = replace(seen, sent=seen.sent + 1)
                return
        self.frames.appendleft(
            Seen(
                at=time.time(),
                boot_id=header.boot_id,
                seq=header.seq,
                kind=kind.name.lower(),
                words=in_words(frame),
                hex=frame.hex(" ", -4),
                length=len(frame),
                sequenced=kind.sequenced,
            )
        )

    def received(self, payload: bytes) -> None:
        """Note a receipt on the frames that it covers."""
        try:
            message = decode_downlink(payload)
        except FrameError:
            return
        if not isinstance(message, Receipt):
            return
        now = time.time()
        for index, seen in enumerate(self.frames):
            mine = seen.sequenced and seen.boot_id == message.boot_id
            if mine and seen.seq < message.next_seq and seen.receipt_s is None:
                self.frames[index] = replace(seen, receipt_s=now - seen.at)


class WatchedSession(Session):
    """The agent's own session; what passes is shown to the shoulder."""

    def __init__(
        self, outbox: Outbox, *, clock: Clock, rng: random.Random, shoulder: Shoulder
    ) -> None:
        super().__init__(outbox, clock=clock, rng=rng)
        self._shoulder = shoulder

    def next(self, now_ms: int) -> list[bytes]:
        frames = super().next(now_ms)
        for frame in frames:
            self._shoulder.sent(frame)
        return frames

    def received(self, payload: bytes, now_ms: int) -> None:
        self._shoulder.received(payload)
        super().received(payload, now_ms)


class InspectedDevice(SimDevice):
    """A simulated device whose session is watched."""

    def __init__(
        self,
        spec: DeviceSpec,
        identity: Identity,
        *,
        outbox_path: Path,
        true_offset_ms: int,
        truth: TruthFile,
        conditions: Conditions,
    ) -> None:
        self.shoulder = Shoulder()
        super().__init__(
            spec,
            identity,
            outbox_path=outbox_path,
            true_offset_ms=true_offset_ms,
            truth=truth,
            conditions=conditions,
        )

    def _open(self) -> None:
        super()._open()
        assert self.identity is not None
        session = WatchedSession(
            self.outbox, clock=self._clock, rng=self._rng, shoulder=self.shoulder
        )
        self.link = Link(
            self.identity,
            self.outbox,
            clock=self._clock,
            rng=self._rng,
            session=session,
            options=self.conditions.options,
        )


def in_words(frame: bytes) -> str:
    """Return what a frame says."""
    try:
        header = read_header(frame)
        sections = read_body(frame, header)
        if header.kind == Kind.COUNTER:
            span = decode_time(need(sections, Section.TIME))
            return _counts_in_words(decode_lines(need(sections, Section.LINES), span))
        if header.kind == Kind.HELLO:
            hello = decode_hello(frame)
            return f"hello, I hold {len(hello.boots)} boots; where do we stand?"
        return f"a {Kind(header.kind).name.lower()} frame"
    except FrameError as error:
        return f"unreadable: {error}"


def _counts_in_words(counts: Counts) -> str:
    lines = [
        f"line {line.line}: {sum(line.counts[::2])} in, {sum(line.counts[1::2])} out "
        f"(since boot {line.total_in} and {line.total_out})"
        for line in counts.lines
    ]
    span = counts.span
    if span.quality is Quality.NONE:
        return "; ".join(lines)
    start = datetime.fromtimestamp(span.utc_ms / 1000, UTC)
    end = datetime.fromtimestamp((span.utc_ms + span.span_ms) / 1000, UTC)
    return f"{start:%H:%M:%S}–{end:%H:%M:%S} UTC, {'; '.join(lines)}"
