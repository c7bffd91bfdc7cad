"""The recorder under virtual time: cells, clock steps, reboots, totals."""

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import ManualClock
from agent.held import Held
from agent.outbox import Outbox
from agent.recorder import Feed, Profile, Recorder, RefusedError
from protocol.counter import Counts, decode_lines
from protocol.frame import Kind, Quality, Section, decode_time, need, read_body, read_header
from protocol.health import decode_metrics
from protocol.kiosk import Presses, decode_presses

NOON = 1_795_348_800_000  # 2026-11-22T12:00:00Z
COUNTER = Profile("counter", lines=2)
KIOSK = Profile("kiosk")


def boots(seed: int = 1) -> random.Random:
    return random.Random(seed)


def start(
    outbox: Outbox, clock: ManualClock, profile: Profile = COUNTER, seed: int = 1
) -> Recorder:
    rng = boots(seed)
    return Recorder(outbox, clock=clock, profile=profile, new_boot_id=lambda: rng.getrandbits(64))


def records(outbox: Outbox) -> list[Held]:
    return [row for boot in outbox.boots for row in outbox.read(boot, 0, limit=10_000)]


def counts(held: Held) -> Counts:
    sections = read_body(held.frame, read_header(held.frame))
    return decode_lines(need(sections, Section.LINES), decode_time(need(sections, Section.TIME)))


def presses(held: Held) -> Presses:
    sections = read_body(held.frame, read_header(held.frame))
    return decode_presses(
        need(sections, Section.PRESSES), decode_time(need(sections, Section.TIME))
    )


def test_a_busy_frame_ends_on_the_grid_and_holds_each_minute() -> None:
    clock = ManualClock(monotonic_ms=5_000, utc_ms=NOON + 30_000)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    recorder.count(0, entered=2)
    clock.advance(61_000)
    recorder.count(1, left=3)
    clock.advance(240_000)
    recorder.tick()
    (frame,) = map(counts, records(outbox))
    assert frame.span.utc_ms == NOON + 30_000
    assert frame.span.span_ms == 270_000
    assert frame.lines[0].counts == (2, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    assert frame.lines[1].counts == (0, 0, 0, 3, 0, 0, 0, 0, 0, 0)
    assert (frame.lines[0].total_in, frame.lines[1].total_out) == (2, 3)


def test_quiet_frames_grow_to_half_an_hour_and_still_go_out() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    for _ in range(61):
        clock.advance(60_000)
        recorder.tick()
    spans = [counts(row).span for row in records(outbox)]
    assert [span.span_ms for span in spans] == [1_800_000, 1_800_000]
    clock.advance(60_000)
    recorder.count(0, entered=1)
    clock.advance(240_000)
    recorder.tick()
    assert counts(records(outbox)[-1]).span.span_ms == 300_000


def test_frames_follow_each_other_without_a_hole() -> None:
    clock = ManualClock(utc_ms=NOON + 1)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    rng = boots(7)
    for _ in range(500):
        clock.advance(rng.randrange(90_000))
        recorder.count(rng.randrange(2), entered=rng.randrange(3), left=rng.randrange(3))
    recorder.close()
    frames = [counts(row) for row in records(outbox)]
    for left, right in itertools.pairwise(frames):
        assert left.span.start_ms + left.span.span_ms == right.span.start_ms
    for line in range(2):
        into = sum(sum(frame.lines[line].counts[::2]) for frame in frames)
        assert frames[-1].lines[line].total_in == into == recorder.totals.lines[line][1]


def test_other_lengths_of_frames_count_at_once_and_lose_nobody() -> None:
    clock = ManualClock(monotonic_ms=5_000, utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    clock.advance(30_000)
    recorder.count(0, entered=2)
    recorder.reframe(frame_s=60, quiet_frame_s=900)
    recorder.reframe(frame_s=60, quiet_frame_s=900)  # the same: nothing ends
    for _ in range(3):
        clock.advance(40_000)
        recorder.count(0, entered=1)
        recorder.tick()
    with pytest.raises(ValueError, match="multiple"):
        recorder.reframe(frame_s=90, quiet_frame_s=900)
    recorder.close()
    found = [counts(held) for held in records(outbox)]
    assert [each.span.span_ms for each in found] == [30_001, 89_999, 30_001]
    ends = [each.span.start_ms + each.span.span_ms for each in found]
    assert ends[:-1] == [each.span.start_ms for each in found[1:]]
    assert sum(sum(each.lines[0].counts[::2]) for each in found) == 5


def test_a_step_of_the_clock_ends_the_frame_at_once() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    clock.advance(70_000)
    recorder.count(0, entered=1)
    clock.set_utc(NOON + 3_600_000)
    recorder.tick()
    recorder.count(0, entered=1)
    clock.advance(600_000)
    recorder.tick()
    first, second, *_ = map(counts, records(outbox))
    assert (first.span.utc_ms, first.span.span_ms) == (NOON, 70_001)
    assert second.span.utc_ms == NOON + 3_600_001
    assert second.lines[0].total_in == 2


def test_a_small_drift_is_adopted_at_the_frames_end_without_a_sliver() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    recorder.count(0, entered=1)
    clock.advance(1_000)
    clock.set_utc(NOON + 500)
    recorder.tick()
    assert not records(outbox)
    clock.advance(299_000)
    recorder.tick()
    recorder.count(0, entered=1)
    clock.advance(300_500)
    recorder.tick()
    first, second = map(counts, records(outbox))
    assert first.span.utc_ms == NOON
    assert second.span.utc_ms == NOON + 299_500
    assert second.span.span_ms == 300_500


def test_an_unsynced_boot_is_undated_until_the_clock_is_known() -> None:
    clock = ManualClock(monotonic_ms=1_234)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    recorder.count(0, entered=1)
    clock.advance(100_000)
    recorder.tick()
    clock.set_utc(NOON)
    recorder.tick()
    recorder.count(0, entered=1)
    clock.advance(300_000)
    recorder.tick()
    undated, dated = map(counts, records(outbox))
    assert undated.span.quality is Quality.NONE
    assert undated.span.start_ms == 1_234
    assert dated.span.utc_ms == NOON
    assert outbox.current is not None
    assert outbox.current.offset_ms == NOON - 101_234


def test_a_boot_that_knew_utc_goes_on_by_it() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    clock.forget_utc()
    recorder.count(0, entered=1)
    clock.advance(300_000)
    recorder.tick()
    recorder.count(0, entered=1)
    clock.advance(300_000)
    recorder.tick()
    assert [counts(r).span.utc_ms for r in records(outbox)] == [NOON, NOON + 300_000]
    assert counts(records(outbox)[1]).span.quality is Quality.ESTIMATED


def test_a_killed_boot_ends_at_its_last_flush(tmp_path: Path) -> None:
    clock = ManualClock(monotonic_ms=9_000, utc_ms=NOON)
    outbox = Outbox(tmp_path / "outbox")
    recorder = start(outbox, clock)
    recorder.count(0, entered=4, feed=Feed("door", 17))
    clock.advance(500)
    recorder.health({"cpu.load": 0.5})
    assert outbox.last_id("door") == 0
    assert recorder.flush()
    assert outbox.last_id("door") == 17
    clock.advance(60_000)
    recorder.count(0, entered=9, feed=Feed("door", 18))
    _kill(outbox)

    again = Outbox(tmp_path / "outbox")
    assert again.last_id("door") == 17
    second = start(again, clock, seed=2)
    second.count(0, entered=1)
    clock.advance(300_000)
    second.tick()
    health, last, new = records(again)
    assert read_header(health.frame).kind == Kind.HEALTH
    assert counts(last).lines[0].counts == (4, 0)
    assert counts(last).span.span_ms == 500
    assert [row.seq for row in (health, last, new)] == [0, 1, 0]
    assert [boot.ordinal for boot in again.boots] == [1, 2]
    assert counts(new).lines[0].total_in == 1


def test_recovery_of_the_same_journal_twice_makes_the_same_frame(tmp_path: Path) -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(tmp_path / "a")
    recorder = start(outbox, clock)
    recorder.count(1, left=2)
    recorder.flush()
    _kill(outbox)
    for suffix in ("", "-wal"):
        if (tmp_path / f"a{suffix}").exists():
            (tmp_path / f"b{suffix}").write_bytes((tmp_path / f"a{suffix}").read_bytes())
    one, two = (records(Outbox(tmp_path / name)) for name in "ab")
    assert one == two
    assert len(one) == 1


def test_a_new_boot_takes_the_open_frame_over() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    recorder.count(0, entered=5)
    clock.advance(300_000)
    recorder.tick()
    recorder.count(0, entered=2, left=1)
    outbox.renewal_wanted = True
    first = recorder.boot_id
    clock.advance(300_000)
    recorder.tick()
    assert recorder.boot_id != first
    old, new = records(outbox)
    assert counts(new).lines[0].counts[:2] == (2, 1)
    assert (counts(new).lines[0].total_in, new.seq) == (2, 0)
    assert counts(old).lines[0].total_in == 5
    assert read_header(new.frame).ordinal == 2


def test_a_stalled_process_leaves_a_hole_not_a_zero() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock, Profile("counter", stall_s=30))
    recorder.count(0, entered=1)
    clock.advance(10_000)
    recorder.tick()
    clock.advance(600_000)
    recorder.count(0, entered=1)
    recorder.close()
    clock.advance(1)
    first, second = map(counts, records(outbox))
    assert (first.span.utc_ms, first.span.span_ms) == (NOON, 10_000)
    assert second.span.utc_ms == NOON + 610_000


def test_what_cannot_be_recorded_is_refused_and_changes_nothing() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    recorder.count(0, entered=32_767)
    for line, entered in ((0, 1), (0, -1), (2, 1), (1, 40_000)):
        with pytest.raises(RefusedError):
            recorder.count(line, entered=entered)
    with pytest.raises(RefusedError):
        recorder.press(1, 1, visit=1)
    assert recorder.totals.lines == ((0, 32_767, 0), (1, 0, 0))


def test_presses_keep_their_tenths_and_a_silent_kiosk_still_speaks() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock, KIOSK)
    clock.advance(12_345)
    recorder.press(1, 3, visit=1)
    clock.advance(700)
    recorder.press(2, 1, visit=1, source=4)
    recorder.flush()
    clock.advance(1_800_000)
    recorder.tick()
    clock.advance(1_800_000)
    recorder.tick()
    busy, *quiet = map(presses, records(outbox))
    assert [(p.at_ds, p.visit, p.answer, p.source) for p in busy.presses] == [
        (123, 1, 3, 0),
        (130, 1, 1, 4),
    ]
    assert busy.totals == ((1, 3, 1), (2, 1, 1))
    assert quiet
    assert all(not frame.presses and frame.totals == busy.totals for frame in quiet)


@given(
    power_on=st.integers(100, 10**9),
    steps=st.lists(
        st.tuples(st.integers(0, 70_000), st.integers(-3_000, 3_000), st.sampled_from("pvts")),
        min_size=1,
        max_size=30,
    ),
)
def test_a_press_is_counted_down_to_a_tenth_of_utc_and_never_leaves_its_minute(
    power_on: int, steps: list[tuple[int, int, str]]
) -> None:
    clock = ManualClock(monotonic_ms=power_on, utc_ms=NOON + power_on % 1_000)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock, KIOSK)
    pressed: list[int] = []
    for number, (wait_ms, drift_ms, what) in enumerate(steps):
        clock.advance(wait_ms)
        clock.set_utc(clock.now_ms + clock.offset()[1] + drift_ms)
        if what in "pv":  # an older visit begins another frame, wherever in a tenth we are
            recorder.press(1, 3, visit=number if what == "p" else 0)
            pressed.append(clock.now_ms)
        elif what == "t":
            recorder.tick()
        else:
            recorder.show(number.to_bytes(8, "big"))
    recorder.close()
    frames = [presses(row) for row in records(outbox)]
    told = [(f.span.offset_ms, f.span.utc_ms + p.at_ds * 100) for f in frames for p in f.presses]
    assert [at_ms for _, at_ms in told] == [
        (at_ms + offset_ms) // 100 * 100
        for at_ms, (offset_ms, _) in zip(pressed, told, strict=True)
    ]


def test_another_questionnaire_or_an_older_visit_begins_another_frame() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock, KIOSK)
    recorder.press(1, 1, visit=9)
    clock.advance(1_000)
    recorder.press(1, 1, visit=2)
    clock.advance(1_000)
    recorder.show(b"12345678")
    recorder.press(1, 2, visit=2)
    clock.advance(300_000)
    recorder.tick()
    frames = [presses(row) for row in records(outbox)]
    assert [[p.visit for p in f.presses] for f in frames] == [[9], [2], [2]]
    assert [f.questionnaire for f in frames] == [bytes(8), bytes(8), b"12345678"]


def test_health_frames_share_the_sequence_and_leave_out_what_is_no_number() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    clock.advance(10)
    recorder.health({"a": 1.0, "b": float("nan")})
    (row,) = records(outbox)
    sections = read_body(row.frame, read_header(row.frame))
    span = decode_time(need(sections, Section.TIME))
    assert dict(decode_metrics(need(sections, Section.METRICS), span).values) == {"a": 1.0}


events = st.lists(
    st.tuples(
        st.sampled_from(["count", "tick", "flush", "kill", "step", "forget"]),
        st.integers(0, 400_000),
        st.integers(0, 50),
    ),
    max_size=40,
)


@given(events, st.booleans())
def test_every_flushed_person_is_in_exactly_one_frame(
    script: list[tuple[str, int, int]],
    dated: bool,
) -> None:
    clock = ManualClock(monotonic_ms=77, utc_ms=NOON if dated else None)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    flushed = open_ = 0
    for number, (what, ms, people) in enumerate(script):
        clock.advance(ms)
        if what == "count":
            recorder.count(people % 2, entered=people)
            open_ += people
        elif what == "tick":
            recorder.tick()
        elif what == "flush":
            recorder.flush()
            flushed, open_ = flushed + open_, 0
        elif what == "step":
            clock.set_utc(NOON + ms)
        elif what == "forget":
            clock.forget_utc()
        else:
            recorder.close()
            flushed, open_ = flushed + open_, 0
            recorder = start(outbox, clock, seed=number + 10)
    recorder.close()
    rows = [counts(row) for row in records(outbox)]
    assert sum(sum(line.counts) for row in rows for line in row.lines) == flushed + open_
    for boot in outbox.boots:
        seqs = [row.seq for row in outbox.read(boot, 0, limit=1_000)]
        assert seqs == list(range(boot.next_seq))


def _kill(outbox: Outbox) -> None:
    """Leave as a SIGKILL would: nothing more is written."""
    outbox._db.close()
