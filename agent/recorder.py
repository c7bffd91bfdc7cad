"""The recorder: events in, frames out. It knows no event loop and no wall clock but `Clock`.

Decided here:
- A frame covers one stretch of monotonic time without a hole to the next one; frames end on a
  grid of `frame_s` of UTC (of monotonic time until UTC is known). Frames without any event grow
  until the grid of `quiet_frame_s`. They go out all the same: they prove that it was observed.
- The offset to UTC is frozen within a frame and adopted at its end; a step of more than 2 s, or
  the moment at which UTC becomes known, ends the frame at once. A boot that knew UTC once goes on
  by that offset.
- A kiosk's frame begins on a tenth of a second of UTC: its presses are counted down to tenths from
  there, and so none is ever told in the minute, or the day, before its own.
- Totals since boot travel in each frame. A new boot begins with each Recorder, and when the server
  says that it knows more of this boot than we do (a cloned or rolled back outbox).
- `flush` journals the open frame as it would be sent; a boot that is killed ends at its last
  flush, never beyond. Feeders' ids go in the same transaction.
- `stall_s`: a process that was stopped for longer did not observe; the hole stays a hole.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import structlog

from agent.clock import Clock, Offset
from agent.held import Held, Meta, Totals
from agent.outbox import Boot, Outbox
from protocol.counter import (
    COUNT_WRAP,
    INTERVALS,
    MAX_CELLS,
    MAX_COUNT,
    MAX_LINES,
    Counts,
    Line,
    cells_of,
    encode_counter,
)
from protocol.frame import MAX_SPAN_MS, Quality, Span
from protocol.health import MAX_METRICS, Metrics, encode_health
from protocol.kiosk import (
    MAX_PRESSES,
    MAX_TOTALS,
    QUESTIONNAIRE_BYTES,
    Press,
    Presses,
    encode_kiosk,
)

STEP_MS = 2_000  # a smaller change of offset waits for the frame's end
PRESS_MS = 100  # to which a press's time is counted down

log = structlog.get_logger(__name__)


class RefusedError(ValueError):
    """An event that can't be recorded, and why."""


class Feed(NamedTuple):
    """Which feeder's event this is; ids rise strictly within a source."""

    source: str
    id: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What a device measures, and how it frames it."""

    kind: Literal["counter", "kiosk"]
    lines: int = 1
    interval_s: int = 60
    frame_s: int = 300
    quiet_frame_s: int = 1_800
    questionnaire: bytes = bytes(QUESTIONNAIRE_BYTES)
    stall_s: float = 0.0  # 0: never doubt that we were running

    def __post_init__(self) -> None:
        """Refuse what the wire format can't hold."""
        if not 1 <= self.lines <= MAX_LINES:
            raise ValueError(f"1 to {MAX_LINES} lines, got {self.lines}")
        if self.interval_s not in INTERVALS:
            raise ValueError(f"an interval divides 900 s or is 1800 or 3600; got {self.interval_s}")
        if self.frame_s % self.interval_s or self.frame_s < 1 or self.quiet_frame_s % self.frame_s:
            raise ValueError("frame_s is a multiple of interval_s, quiet_frame_s one of frame_s")
        if self.quiet_frame_s // self.interval_s > MAX_CELLS:
            raise ValueError(f"a frame holds at most {MAX_CELLS} readings")
        if self.quiet_frame_s * 1000 > MAX_SPAN_MS or len(self.questionnaire) != 8:
            raise ValueError("a frame lasts at most 24 days, a questionnaire's hash has 8 bytes")


class Recorder:
    """See the module. Call `tick` each second or so, `flush` at most once a second."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        clock: Clock,
        profile: Profile,
        new_boot_id: Callable[[], int],
    ) -> None:
        self.profile = profile
        self._outbox = outbox
        self._clock = clock
        self._new_boot_id = new_boot_id
        self._step_ms = profile.interval_s * 1000
        self._frame_ms = profile.frame_s * 1000
        self._quiet_ms = profile.quiet_frame_s * 1000
        self._stall_ms = round(profile.stall_s * 1000)
        self._line_totals = [[0, 0] for _ in range(profile.lines)]
        self._answer_totals: Counter[tuple[int, int]] = Counter()
        self._sealed = Totals()
        self._feeds: dict[str, int] = {}
        self._questionnaire = profile.questionnaire
        self._offset: Offset = (Quality.NONE, 0)
        now = clock.monotonic_ms()
        self._seen_ms = self._health_ms = self._event_ms = now
        self._empty, self._changed = True, False
        self._boot = outbox.begin(new_boot_id(), start_ms=now, epoch=clock.epoch)
        self._begin_frame(now)

    @property
    def boot_id(self) -> int:
        """The boot that is being recorded."""
        return self._boot.boot_id

    @property
    def ordinal(self) -> int:
        """How often an agent has started on this outbox, this boot included."""
        return self._boot.ordinal

    @property
    def totals(self) -> Totals:
        """Totals since boot, the open frame included."""
        if self.profile.kind == "counter":
            return Totals(lines=tuple((i, t[0], t[1]) for i, t in enumerate(self._line_totals)))
        return Totals(answers=tuple((*key, n) for key, n in sorted(self._answer_totals.items())))

    # -- events ------------------------------------------------------------------------------

    def count(
        self, line: int, *, entered: int = 0, left: int = 0, feed: Feed | None = None
    ) -> None:
        """Count people on `line` now; RefusedError if that can't be recorded."""
        now = self._now()
        cell = 2 * ((now + self._offset[1]) // self._step_ms - self._base)
        if not 0 <= line < len(self._values):
            raise RefusedError(f"line 0 to {len(self._values) - 1}, got {line}")
        values = self._values[line]
        if len(values) <= cell:
            values.extend([0] * (cell + 2 - len(values)))
        into, out = values[cell] + entered, values[cell + 1] + left
        if entered < 0 or left < 0 or into > MAX_COUNT or out > MAX_COUNT:
            raise RefusedError(
                f"an interval holds 0 to {MAX_COUNT} each way; {entered} in and {left} out"
                f" on line {line} would make {into} and {out}"
            )
        values[cell], values[cell + 1] = into, out
        total = self._line_totals[line]
        total[0] = (total[0] + entered) % COUNT_WRAP
        total[1] = (total[1] + left) % COUNT_WRAP
        self._happened(now, feed)

    def press(
        self, question: int, answer: int, *, visit: int, source: int = 0, feed: Feed | None = None
    ) -> None:
        """Record one touch now; RefusedError if that can't be recorded."""
        if self.profile.kind != "kiosk":
            raise RefusedError("a counter has no buttons")
        if not all(0 <= value <= 255 for value in (question, answer, source)):
            raise RefusedError(f"question, answer and source are 0 to 255: {question}, {answer}")
        if not 0 <= visit < COUNT_WRAP:
            raise RefusedError(f"a visit's ordinal is 0 to 2^32-1, got {visit}")
        key = (question, answer)
        if key not in self._answer_totals and len(self._answer_totals) >= MAX_TOTALS:
            raise RefusedError(f"a boot holds at most {MAX_TOTALS} pairs of question and answer")
        now = self._now()
        presses = self._presses
        if presses and (len(presses) >= MAX_PRESSES or visit < presses[-1].visit):
            self._seal(now)
            now = self._now()
        at_ds = (now - self._start) // PRESS_MS
        self._presses.append(Press(at_ds, visit, question, answer, source))
        self._answer_totals[key] = (self._answer_totals[key] + 1) % COUNT_WRAP
        self._happened(now, feed)

    def health(self, values: Mapping[str, float]) -> None:
        """Record a sample of metrics; what is not a finite number is left out."""
        now = max(self._now(), self._health_ms + 1)
        start = max(self._health_ms, now - MAX_SPAN_MS)
        finite = [(name, value) for name, value in values.items() if math.isfinite(value)]
        span = self._span(start, now)
        seq = self._boot.next_seq
        frame = encode_health(
            Metrics(span, dict(finite[:MAX_METRICS])),
            boot_id=self._boot.boot_id,
            seq=seq,
            ordinal=self._boot.ordinal,
        )
        meta = Meta(start, now, *self._offset, self._sealed)
        self._outbox.put(Held(seq, seq, frame, meta), keep_open=True)
        self._health_ms = now

    def show(self, questionnaire: bytes) -> None:
        """Change the questionnaire on the screen: what follows is recorded under it."""
        if len(questionnaire) != QUESTIONNAIRE_BYTES:
            raise RefusedError(f"a questionnaire's hash has 8 bytes, got {len(questionnaire)}")
        if questionnaire != self._questionnaire:
            self._seal(self._now())
            self._questionnaire = questionnaire

    def reframe(self, *, frame_s: int, quiet_frame_s: int) -> None:
        """Let frames cover other stretches; the open one ends here. ValueError if none fits."""
        profile = replace(self.profile, frame_s=frame_s, quiet_frame_s=quiet_frame_s)
        if profile != self.profile:
            now = self._now()
            self.profile = profile
            self._frame_ms, self._quiet_ms = frame_s * 1000, quiet_frame_s * 1000
            self._seal(now)

    # -- time --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Seal what is due; notice stalls, steps of the clock and the wish for a new boot."""
        now = self._now()
        self._seen_ms = now
        self._wake_ms = self._next_wake()
        if self._outbox.renewal_wanted:
            self._renew(now)
        quality, offset_ms = self._known_offset()
        known = quality is not Quality.NONE and self._offset[0] is Quality.NONE
        if known or abs(offset_ms - self._offset[1]) > STEP_MS:
            log.info("clock stepped", by_ms=offset_ms - self._offset[1], quality=quality.name)
            self._seal(now)

    def flush(self) -> bool:
        """Journal the open frame if it changed; True if all that was recorded is on disk."""
        if not self._changed:
            return self._outbox.save() if self._outbox.trouble else True
        self._changed = False
        end = max(self._clock.monotonic_ms(), self._event_ms + 1)
        frame, meta = self._encode(end)
        feeds, self._feeds = self._feeds, {}
        return self._outbox.journal(frame, meta, feeds=feeds)

    def close(self) -> None:
        """Seal the open frame: nothing more is observed."""
        now = self._now()
        if now > self._start or not self._empty:
            self._seal(now)
        self._outbox.save()

    # -- frames ------------------------------------------------------------------------------

    def _now(self) -> int:
        now = self._clock.monotonic_ms()
        if now >= self._wake_ms:
            self._advance(now)
        return max(now, self._start)

    def _happened(self, now: int, feed: Feed | None) -> None:
        self._empty = False
        self._changed = True
        self._event_ms = now
        if feed is not None:
            self._feeds[feed.source] = feed.id

    def _advance(self, now: int) -> None:
        """Seal each frame whose end has passed."""
        if self._stall_ms and now - self._seen_ms > self._stall_ms:
            log.warning("did not run for a while", seconds=(now - self._seen_ms) / 1000)
            self._advance_to(self._seen_ms)
            if self._seen_ms > self._start:
                self._seal(self._seen_ms)
            self._begin_frame(now)
            self._seen_ms = now
        self._advance_to(now)
        self._wake_ms = self._next_wake()

    def _advance_to(self, now: int) -> None:
        while now >= self._boundary:
            quiet_end = (self._boundary + self._offset[1]) % self._quiet_ms == 0
            if quiet_end or not self._empty:
                self._seal(self._boundary)
            else:
                self._boundary += self._frame_ms

    def _begin_frame(self, start: int) -> None:
        self._offset = self._known_offset()
        offset_ms = self._offset[1]
        if self.profile.kind == "kiosk":  # back to a tenth, if that is not before power-on
            past_ms = (start + offset_ms) % PRESS_MS
            start -= past_ms if past_ms <= start else 0
        self._start = start
        self._base = (start + offset_ms) // self._step_ms
        self._boundary = (start + offset_ms) // self._frame_ms * self._frame_ms
        self._boundary += self._frame_ms - offset_ms
        if self._boundary - start < STEP_MS and self._quiet_ms // self._step_ms < MAX_CELLS:
            self._boundary += (
                self._frame_ms
            )  # the clock moved by milliseconds: no sliver of a frame
        self._values: list[list[int]] = [[] for _ in range(self.profile.lines)]
        self._presses: list[Press] = []
        self._empty, self._changed = True, False
        self._event_ms = start
        self._wake_ms = self._next_wake()

    def _next_wake(self) -> int:
        if not self._stall_ms:
            return self._boundary
        return min(self._boundary, self._seen_ms + self._stall_ms + 1)

    def _known_offset(self) -> Offset:
        offset = self._clock.offset()
        if offset[0] is Quality.NONE and self._offset[0] is not Quality.NONE:
            return Quality.ESTIMATED, self._offset[1]
        return offset

    def _seal(self, end: int) -> None:
        """End the open frame at `end` (or just after its last event) and begin the next one."""
        if self._outbox.renewal_wanted:
            self._renew(end)
        end = max(end, self._start + 1, 0 if self._empty else self._event_ms + 1)
        frame, meta = self._encode(end)
        seq = self._boot.next_seq
        self._sealed = meta.totals
        feeds, self._feeds = self._feeds, {}
        self._begin_frame(end)
        self._outbox.put(Held(seq, seq, frame, meta), feeds=feeds)

    def _encode(self, end: int) -> tuple[bytes, Meta]:
        span = self._span(self._start, end)
        totals = self.totals
        boot = self._boot
        if self.profile.kind == "counter":
            size = 2 * cells_of(span, self.profile.interval_s)
            lines = tuple(
                Line(i, into, out, (*values, *(0,) * (size - len(values))))
                for (i, into, out), values in zip(totals.lines, self._values, strict=True)
            )
            frame = encode_counter(
                Counts(span, self.profile.interval_s, lines),
                boot_id=boot.boot_id,
                seq=boot.next_seq,
                ordinal=boot.ordinal,
            )
        else:
            frame = encode_kiosk(
                Presses(span, self._questionnaire, totals.answers, tuple(self._presses)),
                boot_id=boot.boot_id,
                seq=boot.next_seq,
                ordinal=boot.ordinal,
            )
        return frame, Meta(self._start, end, *self._offset, totals)

    def _span(self, start: int, end: int) -> Span:
        quality, offset_ms = self._offset
        return Span(start, end - start, offset_ms, quality)

    def _renew(self, now: int) -> None:
        """Take the open frame over into a new boot, whose totals begin with it."""
        if not self._outbox.save():
            return
        self._line_totals = [[sum(v[::2]), sum(v[1::2])] for v in self._values]
        self._answer_totals = Counter((p.question, p.answer) for p in self._presses)
        boot_id, ordinal = self._new_boot_id(), self._outbox.next_ordinal
        log.warning("new boot: the server knows more of the last one", boot_id=boot_id)
        self._sealed = Totals()
        epoch = self._clock.epoch
        self._boot = Boot(ordinal, boot_id, epoch, self._start)
        journal = self._encode(max(now, self._event_ms + 1))
        self._boot = self._outbox.begin(boot_id, start_ms=self._start, epoch=epoch, journal=journal)
