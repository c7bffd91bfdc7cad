"""The outbox: killed at any moment, overfull, rotten, on a full disk."""

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from agent.clock import ManualClock
from agent.held import Held, Meta, Totals, pack_meta, unpack_meta
from agent.outbox import Outbox, OutboxBusyError
from agent.recorder import Feed, Profile, Recorder
from protocol.counter import decode_lines
from protocol.frame import Kind, Quality, Section, decode_time, need, read_body, read_header
from protocol.gap import Cause, Gap, decode_gap

NOON = 1_795_348_800_000
MINUTES = Profile("counter", frame_s=60, quiet_frame_s=60)

FEEDER = """
import random, sys
from agent.clock import SystemClock
from agent.outbox import Outbox
from agent.recorder import Feed, Profile, Recorder
outbox = Outbox(sys.argv[1])
profile = Profile("counter", interval_s=1, frame_s=1, quiet_frame_s=1)
recorder = Recorder(
    outbox, clock=SystemClock(), profile=profile, new_boot_id=lambda: random.getrandbits(64)
)
number = outbox.last_id("door")
print("ready", flush=True)
while True:
    for _ in range(3):
        number += 1
        recorder.count(0, entered=1, feed=Feed("door", number))
    recorder.flush()
    print(outbox.last_id("door"), flush=True)
"""


def start(outbox: Outbox, clock: ManualClock, profile: Profile = MINUTES) -> Recorder:
    rng = random.Random(outbox.next_ordinal)
    return Recorder(outbox, clock=clock, profile=profile, new_boot_id=lambda: rng.getrandbits(64))


def minutes(recorder: Recorder, clock: ManualClock, number: int) -> None:
    for _ in range(number):
        recorder.count(0, entered=1)
        clock.advance(60_000)
        recorder.tick()


def records(outbox: Outbox) -> list[Held]:
    return [row for boot in outbox.boots for row in outbox.read(boot, 0, limit=100_000)]


def people(outbox: Outbox) -> int:
    total = 0
    for row in records(outbox):
        sections = read_body(row.frame, read_header(row.frame))
        span = decode_time(need(sections, Section.TIME))
        total += sum(
            sum(line.counts) for line in decode_lines(need(sections, Section.LINES), span).lines
        )
    return total


def gaps(outbox: Outbox) -> list[Gap]:
    found = []
    for row in records(outbox):
        header = read_header(row.frame)
        if header.kind == Kind.GAP:
            sections = read_body(row.frame, header)
            span = decode_time(need(sections, Section.TIME))
            found.append(decode_gap(need(sections, Section.GAP), span, seq=header.seq))
    return found


def whole(outbox: Outbox) -> bool:
    """True if each boot's sequence has neither hole nor overlap."""
    for boot in outbox.boots:
        expected = boot.first_seq
        for row in outbox.read(boot, 0, limit=100_000):
            if row.seq != expected:
                return False
            expected = row.to_seq + 1
        if expected != boot.next_seq:
            return False
    return True


def test_a_killed_feeder_resumes_exactly_once(tmp_path: Path) -> None:
    path, rng = tmp_path / "outbox", random.Random(5)
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", FEEDER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        confirmed = 0
        lines = rng.randrange(1, 400)
        for number, line in enumerate(process.stdout):
            confirmed = confirmed if line == "ready\n" else int(line)
            if number == lines:
                break
        process.kill()
        rest = process.stdout.read().split()
        process.stdout.close()
        process.wait()
        confirmed = max(confirmed, *(int(text) for text in rest if text.isdigit()), 0)
        outbox = Outbox(path)
        assert outbox.last_id("door") >= confirmed
        assert people(outbox) == outbox.last_id("door")
        assert whole(outbox)
        outbox.close()


def test_an_overfull_outbox_thins_the_oldest_and_keeps_the_totals() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:", max_bytes=20_000)
    recorder = start(outbox, clock)
    minutes(recorder, clock, 2_000)
    assert outbox.bytes_held <= 20_000
    (gap,) = gaps(outbox)
    assert gap.cause is Cause.THINNED
    assert gap.span.utc_ms == NOON
    assert gap.lines == ((0, gap.to_seq + 1, 0),)
    assert outbox.thinned > 0
    assert whole(outbox)
    first = records(outbox)[1]
    assert first.meta.start_ms == gap.span.start_ms + gap.span.span_ms
    assert records(outbox)[-1].meta.totals.lines == ((0, 2_000, 0),)


def test_what_was_stored_is_dropped_before_anything_is_thinned() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:", max_bytes=20_000)
    recorder = start(outbox, clock)
    minutes(recorder, clock, 200)
    boot = outbox.boots[0]
    outbox.stored(boot, 150, server_ms=NOON)
    minutes(recorder, clock, 40)
    assert outbox.thinned == 0
    assert boot.first_seq == 150
    assert whole(outbox)


def test_records_older_than_the_limit_are_thinned() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:", max_age_ms=3_600_000)
    recorder = start(outbox, clock)
    minutes(recorder, clock, 120)
    (gap,) = gaps(outbox)
    assert 55 <= gap.to_seq <= 65
    assert whole(outbox)


def test_a_silence_longer_than_a_span_becomes_several_gaps() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:", max_bytes=4_000)
    recorder = start(outbox, clock, Profile("counter", frame_s=3_600, quiet_frame_s=3_600))
    for _ in range(40):
        minutes(recorder, clock, 5)
        clock.advance(2 * 86_400_000)
    recorder.close()
    assert len(gaps(outbox)) > 1
    assert whole(outbox)
    assert records(outbox)[-1].meta.totals.lines == ((0, 200, 0),)


def test_a_gap_answers_to_the_receipt_of_the_frame_that_it_replaced() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:", max_bytes=1 << 20)
    recorder = start(outbox, clock)
    minutes(recorder, clock, 50)
    before = {row.to_seq: row.digest for row in records(outbox)}
    outbox.max_bytes = outbox.bytes_held // 2
    minutes(recorder, clock, 1)
    (gap,) = gaps(outbox)
    digests = outbox.digests(outbox.boots[0], gap.to_seq + 1)
    assert digests is not None
    assert before[gap.to_seq] in digests
    assert outbox.digests(outbox.boots[0], gap.to_seq - 3) is None


@pytest.mark.parametrize("at", [3, 20, 33, 60])
def test_a_rotten_record_becomes_a_gap_before_it_is_sent(tmp_path: Path, at: int) -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(tmp_path / "outbox")
    recorder = start(outbox, clock)
    minutes(recorder, clock, 5)
    frame = bytearray(records(outbox)[2].frame)
    frame[at] ^= 0x10
    outbox._db.execute("UPDATE frames SET frame = ? WHERE seq = 2", (bytes(frame),))
    (gap,) = gaps(outbox)
    assert (gap.cause, gap.to_seq) == (Cause.ROTTED, 2)
    assert gap.lines == ((0, 3, 0),)
    assert whole(outbox)
    assert outbox.rotted == 1


def test_a_malformed_file_is_moved_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "outbox"
    path.write_bytes(b"this is no database, and was none" * 200)
    outbox = Outbox(path)
    assert outbox.moved_aside == 1
    clock = ManualClock(utc_ms=NOON)
    minutes(start(outbox, clock), clock, 1)
    assert people(outbox) == 1
    assert (tmp_path / "outbox.broken-1").exists()


def test_a_file_that_breaks_in_mid_life_leaves_a_gap_with_totals(tmp_path: Path) -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(tmp_path / "outbox")
    recorder = start(outbox, clock)
    minutes(recorder, clock, 5)
    outbox.stored(outbox.boots[0], 2, server_ms=NOON)
    recorder.count(0, entered=1, feed=Feed("door", 9))
    recorder.flush()
    real, outbox._db = outbox._db, _Broken()  # type: ignore[assignment]
    real.close()
    minutes(recorder, clock, 3)
    (gap,) = gaps(outbox)
    assert gap.cause is Cause.ROTTED
    assert gap.lines == ((0, 5, 0),)
    assert [row.seq for row in records(outbox)] == [2, 5, 6, 7]
    assert outbox.last_id("door") == 9
    assert whole(outbox)
    outbox.close()
    assert [boot.next_seq for boot in Outbox(tmp_path / "outbox").boots] == [8]


def test_a_full_disk_is_waited_out_in_memory(tmp_path: Path) -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(tmp_path / "outbox")
    recorder = start(outbox, clock)
    minutes(recorder, clock, 3)
    pages = outbox._db.execute("PRAGMA page_count").fetchone()[0]
    outbox._db.execute(f"PRAGMA max_page_count = {pages}")
    minutes(recorder, clock, 40)
    recorder.count(0, entered=1, feed=Feed("door", 7))
    assert not recorder.flush()
    assert "full" in outbox.trouble
    assert outbox.last_id("door") == 0
    assert people(outbox) == 43
    outbox._db.execute("PRAGMA max_page_count = 100000")
    assert recorder.flush()
    assert outbox.last_id("door") == 7
    outbox.close()
    assert people(Outbox(tmp_path / "outbox")) == 44


def test_a_disk_that_stays_full_thins_in_memory_too() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    minutes(recorder, clock, 3)
    outbox._db.execute("PRAGMA max_page_count = 1")
    minutes(recorder, clock, 5_000)
    assert len(outbox._unsaved) <= 2_100
    assert gaps(outbox)
    assert records(outbox)[-1].meta.totals.lines == ((0, 5_003, 0),)
    assert whole(outbox)


def test_one_process_owns_the_file(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    with pytest.raises(OutboxBusyError):
        Outbox(tmp_path / "outbox")
    outbox.close()
    Outbox(tmp_path / "outbox").close()


def test_the_reserve_is_kept_for_a_day_by_the_servers_clock() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:")
    recorder = start(outbox, clock)
    boot = outbox.boots[0]
    for hour in range(30):
        minutes(recorder, clock, 60)
        outbox.stored(boot, boot.next_seq, server_ms=NOON + (hour + 1) * 3_600_000)
    held = len(records(outbox))
    assert 24 * 60 <= held <= 26 * 60
    assert outbox.pending() == 0


def test_nothing_is_written_while_nothing_happens(tmp_path: Path) -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(tmp_path / "outbox")
    recorder = start(outbox, clock, Profile("counter"))
    recorder.count(0, entered=1)
    recorder.flush()
    before = outbox._db.total_changes
    for _ in range(200):
        clock.advance(1_000)
        recorder.tick()
        recorder.flush()
    assert outbox._db.total_changes == before


def test_bulk_groups_history_and_loses_nothing(tmp_path: Path) -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(tmp_path / "outbox")
    recorder = start(outbox, clock)
    with outbox.bulk():
        minutes(recorder, clock, 1_000)
    outbox.close()
    again = Outbox(tmp_path / "outbox")
    assert people(again) == 1_000
    assert again.pending() == 1_000


def test_an_offset_learned_late_dates_earlier_boots_of_the_same_uptime() -> None:
    clock = ManualClock()
    outbox = Outbox(":memory:")
    minutes(start(outbox, clock), clock, 2)
    second = start(outbox, clock)
    clock.set_utc(NOON)
    minutes(second, clock, 2)
    assert [boot.quality for boot in outbox.boots] == [Quality.SYNCED] * 2
    assert outbox.boots[0].offset_ms == NOON - 120_000


def test_what_is_known_of_a_record_survives_packing_and_tells_of_rot() -> None:
    meta = Meta(1, 2, Quality.SYNCED, -3, Totals(((0, 1, 2),), ((1, 2, 3),)), (4, 5))
    packed = pack_meta(meta)
    assert unpack_meta(packed) == meta
    assert unpack_meta(packed[:-1] + bytes((packed[-1] ^ 1,))) is None
    assert unpack_meta(b"") is None


class _Full:
    """A database on a disk without space."""

    def execute(self, *_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error


class _Broken:
    """A database whose file was overwritten."""

    def execute(self, *_: object) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    def close(self) -> None:
        pass


def test_a_file_found_malformed_while_reading_is_left_too(tmp_path: Path) -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(tmp_path / "outbox")
    recorder = start(outbox, clock)
    minutes(recorder, clock, 5)
    real, outbox._db = outbox._db, _Broken()  # type: ignore[assignment]
    real.close()
    assert outbox.read(outbox.boots[0], 0, limit=9) == []
    (gap,) = gaps(outbox)
    assert (gap.cause, gap.to_seq) == (Cause.ROTTED, 4)
    assert gap.lines == ((0, 5, 0),)
    assert whole(outbox)


def test_a_mark_goes_back_only_if_the_disk_takes_the_gap() -> None:
    clock = ManualClock(utc_ms=NOON)
    outbox = Outbox(":memory:", reserve_ms=1)
    recorder = start(outbox, clock)
    minutes(recorder, clock, 5)
    boot = outbox.boots[0]
    outbox.stored(boot, 5, server_ms=NOON)
    outbox.save()
    outbox._reserve_due_ms = 0
    outbox.stored(boot, 5, server_ms=NOON + 1_000_000)
    assert records(outbox) == []
    real, outbox._db = outbox._db, _Full()  # type: ignore[assignment]
    outbox.rewind(boot, 2)
    assert boot.acked == 5
    outbox._db = real
    outbox.rewind(boot, 2)
    (gap,) = gaps(outbox)
    assert (gap.cause, boot.acked, gap.to_seq) == (Cause.FORGOTTEN, 2, 4)
    assert gap.lines == ((0, 5, 0),)
