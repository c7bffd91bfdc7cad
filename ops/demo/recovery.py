"""After a demo that was killed: tell the truth files what they had no time to be told.

The simulators note what an agent has confirmed once a second. If they themselves were killed
(Ctrl-C is no kill), the last second's people are in an outbox and in no book. They are taken from
the agents' own records here, before anything is sent. What an agent lost stays lost: only minutes
of which an agent holds more than the book says are touched.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from agent.outbox import Boot, Outbox
from protocol.counter import decode_lines
from protocol.frame import Kind, Section, decode_time, need, read_body, read_header
from protocol.kiosk import decode_presses
from simulators.device import SimDevice
from simulators.truth import AnswerMinute, LineMinute, TruthFile, read

MINUTE_MS = 60_000
_CHUNK = 256
_MARGIN_MIN = 2  # the book is at most a second or two behind


class Held:
    """What outboxes hold of some minutes."""

    def __init__(self, since_minute: int) -> None:
        self.since_ms = since_minute * MINUTE_MS
        self.counts: dict[LineMinute, list[int]] = defaultdict(lambda: [0, 0])
        self.presses: dict[AnswerMinute, int] = defaultdict(int)

    def add(self, device: str, outbox: Outbox) -> None:
        """Add a device's records; its current boot has just begun and holds nothing."""
        for boot in outbox.boots:
            self._add_boot(device, outbox, boot)

    def _add_boot(self, device: str, outbox: Outbox, boot: Boot) -> None:
        end = boot.next_seq
        while end > boot.first_seq:  # from the newest back
            start = max(boot.first_seq, end - _CHUNK)
            rows = outbox.read(boot, start, limit=end - start)
            if not rows:
                return
            for row in rows:
                if row.meta.end_ms + row.meta.offset_ms >= self.since_ms:
                    self._add_frame(device, row.frame)
            if rows[0].meta.end_ms + rows[0].meta.offset_ms < self.since_ms:
                return
            end = start

    def _add_frame(self, device: str, frame: bytes) -> None:
        header = read_header(frame)
        sections = read_body(frame, header)
        if header.kind == Kind.COUNTER:
            span = decode_time(need(sections, Section.TIME))
            counts = decode_lines(need(sections, Section.LINES), span)
            first_ms, step_ms = counts.first_cell_ms(), counts.interval_s * 1000
            for line in counts.lines:
                for cell in range(counts.cells):
                    pair = self.counts[device, line.line, (first_ms + cell * step_ms) // MINUTE_MS]
                    pair[0] += line.counts[2 * cell]
                    pair[1] += line.counts[2 * cell + 1]
        elif header.kind == Kind.KIOSK:
            span = decode_time(need(sections, Section.TIME))
            for press in decode_presses(need(sections, Section.PRESSES), span).presses:
                minute = (span.utc_ms + press.at_ds * 100) // MINUTE_MS
                self.presses[device, minute, press.question, press.answer] += 1


def recover(devices: Sequence[SimDevice], live: Path, truth: TruthFile) -> int:
    """Add to `truth` (whose file is `live`) what only outboxes know; return how many it was."""
    told = read(live)
    minutes = [minute for _, _, minute in told.counts]
    if not minutes:
        return 0
    since = max(minutes) - _MARGIN_MIN
    held = Held(since)
    for device in devices:
        held.add(device.spec.device, device.outbox)
    added = 0
    for (name, line, minute), (entered, left) in held.counts.items():
        book = told.counts.get((name, line, minute), (0, 0))
        more = max(0, entered - book[0]), max(0, left - book[1])
        if minute >= since and any(more):
            truth.count(name, line, at_ms=minute * MINUTE_MS, entered=more[0], left=more[1])
            added += sum(more)
    for (name, minute, question, answer), number in held.presses.items():
        if minute >= since:
            more_presses = number - told.presses.get((name, minute, question, answer), 0)
            for _ in range(more_presses):
                truth.press(name, at_ms=minute * MINUTE_MS, question=question, answer=answer)
            added += max(0, more_presses)
    truth.commit()
    return added
