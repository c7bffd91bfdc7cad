"""History in virtual time: the same people as live, once, whatever interrupts it."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.outbox import Outbox
from protocol.counter import decode_lines
from protocol.frame import Kind, Section, decode_time, need, read_body, read_header
from protocol.kiosk import decode_presses
from simulators.hardware import DeviceSpec
from simulators.history import FEED, record_history
from simulators.traffic import Crossing, Door, Kiosk, Sensor, Touch
from simulators.truth import TruthFile, read

START = int(datetime(2026, 10, 24, tzinfo=UTC).timestamp() * 1000)  # a clock goes back that Sunday
END = START + 3 * 86_400_000
DOOR = Door("shop", median_day=500)
COUNTER = DeviceSpec("door-000001", DOOR, 7, sensor=Sensor(lines=(0.7, 0.3)))
KIOSK = DeviceSpec("kiosk-00001", DOOR, 7, kiosk=Kiosk(rate=0.1, bursts_an_hour=0.2))


def minutes(path: Path) -> tuple[Counter[tuple[int, int, int]], Counter[tuple[int, int, int]]]:
    """Return what an outbox holds: people by (line, minute, way), presses by minute and answer."""
    counts: Counter[tuple[int, int, int]] = Counter()
    presses: Counter[tuple[int, int, int]] = Counter()
    outbox = Outbox(path)
    for boot in outbox.boots:
        for held in outbox.read(boot, 0, limit=100_000):
            header = read_header(held.frame)
            sections = read_body(held.frame, header)
            span = decode_time(need(sections, Section.TIME))
            if header.kind == Kind.COUNTER:
                found = decode_lines(need(sections, Section.LINES), span)
                first = found.first_cell_ms() // 60_000
                for line in found.lines:
                    for index, number in enumerate(line.counts):
                        counts[line.line, first + index // 2, index % 2] += number
            else:
                for press in decode_presses(need(sections, Section.PRESSES), span).presses:
                    minute = (span.utc_ms + press.at_ds * 100) // 60_000
                    presses[minute, press.question, press.answer] += 1
    outbox.close()
    return +counts, +presses


def expected(
    spec: DeviceSpec,
) -> tuple[Counter[tuple[int, int, int]], Counter[tuple[int, int, int]]]:
    counts: Counter[tuple[int, int, int]] = Counter()
    presses: Counter[tuple[int, int, int]] = Counter()
    for event in spec.events(START, END):
        if isinstance(event, Crossing):
            counts[event.line, event.at_ms // 60_000, 0] += event.entered
            counts[event.line, event.at_ms // 60_000, 1] += event.left
        else:
            presses[event.at_ms // 60_000, event.question, event.answer] += 1
    return +counts, +presses


@pytest.mark.parametrize("spec", [COUNTER, KIOSK], ids=["counter", "kiosk"])
def test_history_holds_the_people_that_live_would_have_seen(
    tmp_path: Path, spec: DeviceSpec
) -> None:
    days: list[int] = []
    with TruthFile(tmp_path / "truth") as truth:
        number = record_history(
            spec,
            tmp_path / "outbox",
            truth=truth,
            start_ms=START,
            end_ms=END,
            on_day=lambda: days.append(1),
        )
    assert minutes(tmp_path / "outbox") == expected(spec)
    told = read(tmp_path / "truth")
    assert told.people() + told.pressed() == number > 100
    assert len(days) == 2


def test_quiet_history_takes_a_frame_an_hour(tmp_path: Path) -> None:
    record_history(COUNTER, tmp_path / "outbox", truth=None, start_ms=START, end_ms=END)
    outbox = Outbox(tmp_path / "outbox")
    assert outbox.pending() == 72
    outbox.close()


class Killed(BaseException):
    """The process is gone."""


def die_at_save(number: int, *, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die in the middle of an outbox's save of that number."""
    original: Callable[[Outbox], object] = Outbox._write
    calls = 0

    def dying(self: Outbox) -> object:
        nonlocal calls
        calls += 1
        if calls > number:
            self._db.close()
            raise Killed
        return original(self)

    monkeypatch.setattr("agent.outbox.BULK", 5)
    monkeypatch.setattr(Outbox, "_write", dying)


@pytest.mark.parametrize("spec", [COUNTER, KIOSK], ids=["counter", "kiosk"])
@pytest.mark.parametrize("after", [1, 3, 9, 14])
def test_history_that_was_killed_goes_on_and_the_truth_catches_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: DeviceSpec, after: int
) -> None:
    path = tmp_path / "outbox"
    truth = TruthFile(tmp_path / "truth")
    with monkeypatch.context() as patch:
        die_at_save(after, monkeypatch=patch)
        with pytest.raises(Killed):
            record_history(spec, path, truth=truth, start_ms=START, end_ms=END)
    for _ in range(2):  # once to go on, once more for nothing
        with TruthFile(tmp_path / "truth") as truth:
            record_history(spec, path, truth=truth, start_ms=START, end_ms=END)
    counts, presses = expected(spec)
    assert minutes(path) == (counts, presses)
    told = read(tmp_path / "truth")
    assert told.people() == counts.total()
    assert told.pressed() == presses.total()
    outbox = Outbox(path)
    assert outbox.last_id(FEED) > START // 60_000
    outbox.close()


def test_a_specs_minutes_are_its_events_summed() -> None:
    live, summed = list(COUNTER.events(START, END)), list(COUNTER.minutes(START, END))
    assert len(summed) < len(live)
    assert all(isinstance(event, Crossing) and event.at_ms % 60_000 == 0 for event in summed)
    assert all(isinstance(event, Touch) for event in KIOSK.minutes(START, END))
