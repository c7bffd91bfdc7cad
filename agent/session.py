"""The uplink's rules: what to send next, what a receipt proves, when to ask again. No event loop.

Invariants:
- After each connect a hello goes first; records follow its answer, oldest boot first, at most
  `window` of them without a receipt. Without progress they are sent again from the mark
  (go-back-N), after 1.5 s to 5 min with full jitter.
- A receipt only moves a mark forward, and only if boot, cursor, digest and dataset all match.
- Anything else that a receipt may say (another dataset, a cursor behind the mark or beyond what
  we have, another digest) is a reason to ask: a hello with a fresh nonce.
- Only the answer with the nonce asked last may move a mark back. An answer to an earlier hello of
  this connection is as good if it moves none back: a server that is slower than our patience would
  else be asked for ever. What is no longer held is then
  sent as a FORGOTTEN gap. Where its cursor is beyond ours, or its digest is not ours, another
  outbox spoke as this device: that is reported, its frames are taken as they are, and the current
  boot is left for a new one.
- The nonce is the connection's epoch (upper 32 bits) and a counter; the will carries the epoch
  alone, so the server can tell which connection dropped.
"""

import random
from collections import deque
from dataclasses import dataclass

import structlog

from agent.clock import Clock
from agent.outbox import Boot, Outbox
from protocol.frame import VERSION, FrameError, Quality, Span
from protocol.session import (
    MAX_BOOTS,
    Answer,
    BootCursor,
    Goodbye,
    HeldBoot,
    Hello,
    Receipt,
    decode_downlink,
    encode_hello,
)

WINDOW = 16
RESEND_MIN_MS = 1_500
RESEND_MAX_MS = 300_000
MAX_ASKED = 16  # hellos whose answers may come late
ASK_AGAIN_MS = 5_000  # between hellos that a receipt gave reason for

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Tally:
    """What the session has seen, for health metrics and the demo's inspector."""

    sent: int = 0
    resent: int = 0
    receipts: int = 0
    ignored: int = 0
    rewinds: int = 0
    conflicts: int = 0


class Session:
    """See the module. The caller connects, passes what arrives, and sends what `next` returns."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        clock: Clock,
        rng: random.Random,
        window: int = WINDOW,
        agent: str = "vestibule",
    ) -> None:
        self.tally = Tally()
        self.answered = False  # True once this connection's hello was answered
        self.skew_ms: float | None = None  # our UTC minus the server's, at its last receipt
        self._outbox = outbox
        self._clock = clock
        self._rng = rng
        self._window = window
        self._agent = agent
        self._epoch = 0
        self._counter = 0
        self._nonce: int | None = None  # asked and not yet answered
        self._asked: dict[int, int] = {}  # all nonces since the last answer, and when
        self._ask = False
        self._asked_ms = -RESEND_MAX_MS
        self._connected = False
        self._flight: deque[tuple[int, int, int]] = deque()  # ordinal, next_seq after, digest
        self._sent: tuple[int, int] = (0, 0)  # ordinal and seq to send next
        self._tries = 0
        self._deadline_ms: int | None = None
        self._rtt_ms = 0.0  # smoothed, from a mark's first sending to its receipt
        self._mark_sent_ms: int | None = None
        self._undated: set[int] = set()  # boots that were told of or sent without their offset

    # -- the connection ----------------------------------------------------------------------

    def connected(self, epoch: int) -> None:
        """A connection is up; `epoch` (32 bits) names it."""
        self._connected, self.answered = True, False
        self._epoch, self._counter = epoch, 0
        self._tries = 0
        self._flight.clear()
        self._nonce, self._ask, self._deadline_ms = None, True, None
        self._asked.clear()

    def disconnected(self) -> None:
        """The connection is gone."""
        self._connected = self.answered = False
        self._mark_sent_ms = None
        self._flight.clear()

    def bell(self) -> None:
        """The server rang: greet again; what was asked before does not count any more."""
        self._ask = True
        self._asked.clear()

    # -- sending -----------------------------------------------------------------------------

    def next(self, now_ms: int) -> list[bytes]:
        """Return the frames to send now, in order; call again at `wake_ms`."""
        if not self._connected:
            return []
        if self._deadline_ms is not None and now_ms >= self._deadline_ms:
            self._give_up_waiting()
        if self._ask or self._dates_earlier_boots():
            return [self._hello(now_ms)]
        if self._nonce is not None:
            return []
        frames = self._fill()
        if frames and self._deadline_ms is None:
            self._wait(now_ms)
        if frames and self._mark_sent_ms is None:
            self._mark_sent_ms = now_ms
        return frames

    def _dates_earlier_boots(self) -> bool:
        """True once for each boot that has ended without UTC, is stored, and has its offset now.

        Its own frames can't bring the offset any more: a hello must, when the server has them all.
        """
        if not self._undated or self._nonce is not None:
            return False
        due = {
            boot.ordinal
            for boot in self._outbox.boots
            if boot.ordinal in self._undated
            and boot is not self._outbox.current
            and boot.quality is not Quality.NONE
            and boot.acked >= boot.next_seq
        }
        self._undated -= due
        return bool(due)

    def wake_ms(self) -> int | None:
        """When `next` has something to do even if nothing happens; None if never."""
        return self._deadline_ms if self._connected else None

    def _fill(self) -> list[bytes]:
        frames: list[bytes] = []
        for boot in self._outbox.boots:
            room = self._window - len(self._flight)
            if room <= 0:
                break
            if boot.acked >= boot.next_seq or boot.ordinal < self._sent[0]:
                continue
            seq = self._sent[1] if boot.ordinal == self._sent[0] else boot.acked
            seq = max(seq, boot.acked)
            if seq >= boot.next_seq:
                continue
            for held in self._outbox.read(boot, seq, limit=room):
                frames.append(held.frame)
                self._flight.append((boot.ordinal, held.to_seq + 1, held.digest))
                self._sent = (boot.ordinal, held.to_seq + 1)
                if held.meta.quality is Quality.NONE:
                    self._undated.add(boot.ordinal)
        self.tally.sent += len(frames)
        return frames

    def _hello(self, now_ms: int) -> bytes:
        """Greet, or ask again where the server stands."""
        self._ask = False
        self._counter += 1
        self._nonce = self._epoch << 32 | self._counter
        self._asked_ms = now_ms
        if len(self._asked) >= MAX_ASKED:
            del self._asked[min(self._asked)]
        self._asked[self._nonce] = now_ms
        self._flight.clear()
        self._wait(now_ms)
        return self.greeting(self._nonce, agent=self._agent, boots=self._listed())

    def goodbye(self, goodbye: Goodbye) -> bytes | None:
        """Return the last frame of this connection; None if there is none to say it on."""
        if not self._connected:
            return None
        self._counter += 1
        return self.greeting(self._epoch << 32 | self._counter, agent=goodbye.name)

    def greeting(self, nonce: int, *, agent: str, boots: tuple[HeldBoot, ...] = ()) -> bytes:
        """Return a hello frame; the will is one named 'will' that lists no boots."""
        current = self._outbox.current
        quality, offset_ms = self._clock.offset()
        span = Span(self._clock.monotonic_ms(), 0, offset_ms, quality)
        return encode_hello(
            Hello(nonce, (VERSION,), agent, span, boots),
            boot_id=0 if current is None else current.boot_id,
            ordinal=0 if current is None else current.ordinal,
        )

    def _listed(self) -> tuple[HeldBoot, ...]:
        boots = self._outbox.boots
        listed = [boot for boot in boots if boot.next_seq > 0 or boot is self._outbox.current]
        if len(listed) > MAX_BOOTS:  # the oldest that still wait; the others' turn comes
            listed.sort(key=lambda boot: (boot.acked >= boot.next_seq, boot.ordinal))
            listed = sorted(listed[:MAX_BOOTS], key=lambda boot: boot.ordinal)
        self._undated |= {boot.ordinal for boot in listed if boot.quality is Quality.NONE}
        return tuple(
            HeldBoot(b.boot_id, b.ordinal, b.first_seq, b.next_seq, b.quality, b.offset_ms)
            for b in listed
        )

    def _wait(self, now_ms: int) -> None:
        patience = min(RESEND_MAX_MS / 4, max(RESEND_MIN_MS, 3 * self._rtt_ms))
        ceiling = min(RESEND_MAX_MS, patience * (1 << min(self._tries, 8)))
        self._deadline_ms = now_ms + round(max(patience, self._rng.uniform(0, ceiling)))

    def _give_up_waiting(self) -> None:
        """No progress in time: send again from the mark; ask where we stand every other time."""
        self._deadline_ms = None
        if self._nonce is None and not self._flight:
            return
        self._tries += 1
        self.tally.resent += len(self._flight)
        if self._nonce is not None or self._tries % 2 == 0:
            self._ask = True
        self._back()

    def _back(self) -> None:
        self._flight.clear()
        self._sent = (0, 0)

    # -- what the server says ----------------------------------------------------------------

    def received(self, payload: bytes, now_ms: int) -> None:
        """Take a frame from our `receipt` topic; what can't be read is ignored."""
        try:
            message = decode_downlink(payload)
        except FrameError as error:
            self.tally.ignored += 1
            log.debug("unreadable receipt", reason=error.reason.name)
            return
        if isinstance(message, Receipt):
            self._receipt(message, now_ms)
        else:
            self._answer(message, now_ms)

    def _receipt(self, receipt: Receipt, now_ms: int) -> None:
        self.tally.receipts += 1
        boot = self._boot(receipt.boot_id)
        if boot is None:
            self.tally.ignored += 1
            return
        if receipt.dataset != self._outbox.dataset or not self._matches(boot, receipt):
            self.tally.ignored += 1
            self._doubt(now_ms)
            return
        if receipt.next_seq > boot.acked:
            self._outbox.stored(boot, receipt.next_seq, server_ms=receipt.server_ms)
            self._progress(boot, now_ms)
            self._compare_clocks(receipt.server_ms, now_ms)

    def _compare_clocks(self, server_ms: int, now_ms: int) -> None:
        """Note how far our clock is from the server's; it has told its own half a trip ago."""
        quality, offset_ms = self._clock.offset()
        if quality is not Quality.NONE:
            self.skew_ms = now_ms + offset_ms - server_ms - self._rtt_ms / 2

    def _matches(self, boot: Boot, receipt: Receipt) -> bool:
        """True if the receipt moves the mark on, or leaves it where it is."""
        if receipt.next_seq == boot.acked:
            return True
        if not boot.acked < receipt.next_seq <= boot.next_seq:
            return False
        for ordinal, after, digest in self._flight:
            if ordinal == boot.ordinal and after == receipt.next_seq:
                if digest == receipt.digest:
                    return True
                break
        digests = self._outbox.digests(boot, receipt.next_seq)
        return digests is not None and receipt.digest in digests

    def _progress(self, boot: Boot, now_ms: int) -> None:
        """Some of the flight has landed."""
        flight = self._flight
        while flight and (
            flight[0][0] < boot.ordinal
            or (flight[0][0] == boot.ordinal and flight[0][1] <= boot.acked)
        ):
            flight.popleft()
        self._tries = 0
        if self._mark_sent_ms is not None:
            self._rtt_ms += ((now_ms - self._mark_sent_ms) - self._rtt_ms) / 4
        self._mark_sent_ms = now_ms if flight else None
        if self._nonce is None:
            self._deadline_ms = None
            if flight:
                self._wait(now_ms)

    def _doubt(self, now_ms: int) -> None:
        """Ask where the server stands, unless we just did."""
        if self._nonce is None and now_ms - self._asked_ms >= ASK_AGAIN_MS:
            self._ask = True

    def _answer(self, answer: Answer, now_ms: int) -> None:
        if not self._counts(answer):
            self.tally.ignored += 1
            return
        asked_ms = self._asked.get(answer.nonce, self._asked_ms)
        self._nonce, self.answered = None, True
        self._asked.clear()
        self._tries, self._deadline_ms = 0, None
        self._clock.learn(answer.server_ms, rtt_ms=max(0, now_ms - asked_ms))
        self._outbox.set_dataset(answer.dataset)
        for cursor in answer.boots:
            boot = self._boot(cursor.boot_id)
            if boot is not None:
                self._place(boot, cursor, answer.server_ms)
        self._back()

    def _counts(self, answer: Answer) -> bool:
        """True if we wait for this answer: it is the last one's, or late and moves no mark back."""
        if self._nonce is None or answer.nonce == self._nonce:
            return self._nonce is not None
        if answer.nonce not in self._asked or answer.dataset != self._outbox.dataset:
            return False
        for cursor in answer.boots:
            boot = self._boot(cursor.boot_id)
            if boot is not None and (cursor.next_seq if cursor.known else 0) < boot.acked:
                return False
        return True

    def _place(self, boot: Boot, cursor: BootCursor, server_ms: int) -> None:
        """Put the boot's mark where the server stands."""
        at = cursor.next_seq if cursor.known else 0
        digests = self._outbox.digests(boot, at) if 0 < at <= boot.next_seq else None
        if at > boot.next_seq or (digests and cursor.digest not in digests):
            self._conflict(boot, at)
            at = min(at, boot.next_seq)
        if (at > boot.acked and digests is not None) or (at > boot.acked and at == boot.next_seq):
            self._outbox.stored(boot, at, server_ms=server_ms)
        elif at != boot.acked or at < boot.first_seq:
            self.tally.rewinds += 1
            log.warning("the server has less than it said", boot=boot.ordinal, next_seq=at)
            self._outbox.rewind(boot, at)

    def _conflict(self, boot: Boot, at: int) -> None:
        self.tally.conflicts += 1
        log.error(
            "the server has records of this boot that are not ours: outbox cloned or rolled back?",
            boot=boot.ordinal,
            ours=boot.next_seq,
            servers=at,
        )
        if boot is self._outbox.current:
            self._outbox.renewal_wanted = True

    def _boot(self, boot_id: int) -> Boot | None:
        return next((boot for boot in self._outbox.boots if boot.boot_id == boot_id), None)
