"""Both decoders are one: equal bytes for every input, on every set of instructions."""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ext
from ext import _decoder, reference
from ext.layout import Decoded, Place, Status
from ext.reference import decode as reference_decode
from protocol.counter import Counts, Line, cells_of, encode_counter
from protocol.frame import FrameError, Quality, Reason, Span
from protocol.kiosk import Press, Presses, encode_kiosk
from tests.vectors.cases import CASES, OFFSET, PLACE, REFUSED, content_of, frame_of, refit
from tests.vectors.strategies import any_frame, frames, places, spans

DAY_MS = 86_400_000
EVERYWHERE = Place(3, 4, -(1 << 62), 1 << 62)
KERNELS: tuple[Literal["best", "portable"], ...] = ("best", "portable")


def implementations() -> Iterator[ModuleType]:
    """Every decoder there is: the reference, and the compiled one on each set of instructions."""
    yield reference
    for name in KERNELS:
        _decoder.use_kernel(name)
        yield _decoder
    _decoder.use_kernel("best")


def decode_everywhere(batch: list[bytes], where: list[Place]) -> Decoded:
    """Decode with all of them, assert that they agree, return what they say."""
    wanted = reference_decode(batch, where)
    for module in implementations():
        assert module.decode(batch, where) == wanted
        assert module.decode_packed(batch, module.pack_places(where)) == wanted
        assert [seen[0] for seen in module.scan(batch)] == [
            record.reason if 0 < record.reason < 16 else 0 for record in wanted.frames()
        ]
    return wanted


def span_in(frame: bytes) -> Span | None:
    """The span of a frame that reads well, if it has one."""
    try:
        return getattr(content_of(frame), "span", None)
    except FrameError:
        return None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_decoders_agree_on_any_batch(data: st.DataObject) -> None:
    agree_on_any_batch(data)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=4000, deadline=None)
@given(st.data())
def test_the_decoders_agree_on_thousands_of_batches(data: st.DataObject) -> None:
    agree_on_any_batch(data)


def agree_on_any_batch(data: st.DataObject) -> None:
    batch = data.draw(st.lists(any_frame, max_size=6))
    where = [data.draw(places(span_in(frame))) for frame in batch]
    decode_everywhere(batch, where)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_decoders_agree_on_good_frames_at_the_edges_of_their_places(
    data: st.DataObject,
) -> None:
    agree_on_good_frames(data)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=3000, deadline=None)
@given(st.data())
def test_the_decoders_agree_on_thousands_of_good_frames(data: st.DataObject) -> None:
    agree_on_good_frames(data)


def agree_on_good_frames(data: st.DataObject) -> None:
    batch = data.draw(st.lists(frames(), min_size=1, max_size=4))
    where = [data.draw(places(span_in(frame))) for frame in batch]
    decoded = decode_everywhere(batch, where)
    assert all(record.status != Status.REFUSED for record in decoded.frames())


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_decoders_agree_on_every_truncation(name: str) -> None:
    frame = frame_of(CASES[name])
    cut = [frame[:end] for end in range(len(frame))]
    refitted = [refit(part) for part in cut if len(part) >= 32]
    decoded = decode_everywhere(cut + refitted, [PLACE] * (len(cut) + len(refitted)))
    assert all(record.status == Status.REFUSED for record in decoded.frames()[: len(cut)])


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_decoders_agree_on_every_single_byte_changed(name: str) -> None:
    frame = frame_of(CASES[name])
    batch = [
        refit(frame[:at] + bytes([value]) + frame[at + 1 :])
        for at in range(32, len(frame))
        for value in (0, 1, 0x7F, 0x80, 0xFF, frame[at] + 1 & 0xFF, frame[at] - 1 & 0xFF)
    ]
    decode_everywhere(batch, [PLACE] * len(batch))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_each_reason_is_reached_and_leaves_no_bytes(name: str) -> None:
    reason, build = REFUSED[name]
    decoded = decode_everywhere([build()], [EVERYWHERE])
    (record,) = decoded.frames()
    assert (record.status, record.reason) == (Status.REFUSED, reason)
    assert not any(decoded[1:])


def test_the_examples_reach_every_reason_of_a_decoder() -> None:
    reached = {reason for reason, _ in REFUSED.values()}
    assert reached == set(Reason) - {Reason.OK, Reason.TOTALS}


def test_a_bad_header_tells_nothing_and_a_bad_body_keeps_its_place_in_the_sequence() -> None:
    for reason, build in REFUSED.values():
        (record,) = decode_everywhere([build()], [EVERYWHERE]).frames()
        assert reason.header_bad == (record.boot_id == 0)
        if reason.header_bad:
            assert not any(record[2:17])
        else:
            assert record.boot_id == int.from_bytes(build()[8:16], "little")


def test_a_length_of_four_gigabytes_is_only_a_wrong_length() -> None:
    frame = REFUSED["claims-4gb"][1]()
    assert frame[4:8] == b"\xff" * 4
    (record,) = decode_everywhere([frame], [EVERYWHERE]).frames()
    assert record.reason == Reason.LENGTH


def test_a_frame_above_the_cap_is_refused_though_its_length_is_true() -> None:
    padding = struct.pack("<BBH", 200, 0, 61_400) + bytes(61_400)
    for frame, reason in (
        (refit(frame_of(CASES["counter-5min"]) + padding), Reason.LENGTH),
        (refit(frame_of(CASES["counter-5min"])[:32] + padding), Reason.MISSING),
    ):
        (record,) = decode_everywhere([frame], [EVERYWHERE]).frames()
        assert record.reason == reason


def test_the_largest_frames_agree() -> None:
    rng = random.Random(5)
    batch = []
    for top in (0, 15, 255, 32_767):
        span = Span(40_040_000, 1440 * 60_000, OFFSET, Quality.SYNCED)
        lines = tuple(
            Line(n, 1, 2, tuple(rng.randint(0, top) for _ in range(2880)))
            for n in range(4 if top < 256 else 2)
        )
        batch.append(encode_counter(Counts(span, 60, lines), boot_id=9, seq=1, ordinal=1))
    span = Span(40_000_000, (1 << 31) - 1, OFFSET, Quality.SYNCED)
    hours = Line(0, 1, 2, (7,) * (2 * cells_of(span, 3600)))
    batch.append(encode_counter(Counts(span, 3600, (hours,)), boot_id=9, seq=2, ordinal=1))
    touches = tuple(Press(i, i, i >> 8, i & 255) for i in range(4_096))
    kiosk = Presses(Span(40_000_000, 500_000, OFFSET, Quality.SYNCED), b"q" * 8, (), touches)
    batch.append(encode_kiosk(kiosk, boot_id=9, seq=3, ordinal=1))
    decoded = decode_everywhere(batch, [EVERYWHERE] * len(batch))
    assert {record.status for record in decoded.frames()} == {Status.RENDERED}


def test_an_empty_batch_is_five_empty_buffers() -> None:
    assert decode_everywhere([], []) == Decoded(b"", b"", b"", b"", b"")


def test_places_must_be_as_many_as_frames() -> None:
    frame = frame_of(CASES["counter-5min"])
    for module in implementations():
        with pytest.raises(ValueError, match="1 frames, 2 places"):
            module.decode([frame], [PLACE, PLACE])
        with pytest.raises(ValueError, match="places"):
            module.decode_packed([frame], bytes(23))


def test_a_shared_place_and_its_equal_copies_decode_alike() -> None:
    batch = [frame_of(case) for case in CASES.values()]
    copies = [Place(*PLACE) for _ in batch]
    assert decode_everywhere(batch, [PLACE] * len(batch)) == decode_everywhere(batch, copies)


def test_scan_gives_the_header_of_a_frame_that_has_one() -> None:
    frame = frame_of(CASES["counter-5min"])
    for module in implementations():
        assert module.scan([frame, b"", frame[:-1]]) == [
            (0, 1, 0x1122334455667788, 41, 7),
            (Reason.SHORT, 0, 0, 0, 0),
            (0, 1, 0x1122334455667788, 41, 7),
        ]


@given(st.binary(max_size=300), st.integers(0, 9))
def test_all_checksums_agree(data: bytes, skip: int) -> None:
    found = {module.crc32c(memoryview(data)[skip:]) for module in implementations()}
    assert len(found) == 1


def test_the_checksum_is_castagnoli() -> None:
    for module in implementations():
        assert module.crc32c(b"123456789") == 0xE3069283
        assert module.crc32c(b"") == 0
        assert module.crc32c(bytes(32)) == 0x8A9136AA


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_placing_in_one_piece_is_decoding(data: st.DataObject) -> None:
    frame = data.draw(frames())
    assert ext.place(frame, [EVERYWHERE]) == decode_everywhere([frame], [EVERYWHERE])


@settings(max_examples=150, deadline=None)
@given(spans(), st.integers(-100, 400_000), st.integers(0, 2**32))
def test_a_swap_in_the_middle_loses_and_doubles_nobody(span: Span, cut: int, seed: int) -> None:
    span = Span(span.start_ms % DAY_MS, span.span_ms % 7_200_000 + 1, OFFSET, Quality.SYNCED)
    rng = random.Random(seed)
    values = tuple(rng.randint(0, 20) for _ in range(2 * cells_of(span, 60)))
    counts = Counts(span, 60, (Line(1, 0, 0, values),))
    frame = encode_counter(counts, boot_id=1, seq=1, ordinal=1)
    at_ms = span.utc_ms + cut
    pieces = [Place(1, 1, -(1 << 62), at_ms), Place(1, 2, at_ms, 1 << 62)]
    placed = ext.place(frame, pieces)
    assert len(placed.frames()) == 1
    whole = ext.place(frame, [EVERYWHERE])
    for column in range(8):
        assert sum(d.counts[column] for d in placed.counts()) == sum(
            d.counts[column] for d in whole.counts()
        )
    assert sum(_seconds(placed)) == sum(_seconds(whole)) == span.span_ms


def _seconds(decoded: Decoded) -> list[int]:
    """The observed milliseconds of each readings row."""
    spans_ms = [row[6] for row in reference.rows(decoded.readings)]
    return [int.from_bytes(value or b"", "big") for value in spans_ms]


def test_an_undated_frame_is_held_and_placed_when_its_offset_is_known() -> None:
    frame = frame_of(CASES["counter-undated"])
    (held,) = decode_everywhere([frame], [EVERYWHERE]).frames()
    assert (held.status, held.rows_end - held.rows_at) == (Status.HELD, 0)
    (placed,) = ext.place(frame, [PLACE], offset_ms=OFFSET).frames()
    assert (placed.status, placed.start_ms) == (Status.RENDERED, 40_000_000 + OFFSET)
    assert (placed.sums[:2], held.sums[:2]) == ((5, 5), (5, 5))


def test_a_press_at_the_very_end_belongs_to_the_next_place() -> None:
    frame = frame_of(CASES["kiosk"])
    end_ms = 40_000_000 + OFFSET + 300_000
    batch, where = [frame, frame], [PLACE._replace(until_ms=end_ms), PLACE]
    first, second = decode_everywhere(batch, where).frames()
    assert (first.status, second.status) == (Status.RENDERED, Status.RENDERED)
    assert first.rows_end - first.rows_at == 6 * 84
    assert second.rows_end - second.rows_at == 7 * 84


def test_an_unassigned_frame_has_rows_and_no_deltas() -> None:
    batch = [frame_of(CASES["counter-5min"]), frame_of(CASES["kiosk"])]
    decoded = decode_everywhere(batch, [PLACE._replace(spot=0)] * 2)
    assert decoded.readings
    assert decoded.presses
    assert not decoded.count_deltas
    assert not decoded.press_deltas


def test_threads_do_not_share_what_they_decode() -> None:
    names = sorted(CASES)
    batches = [[frame_of(CASES[names[at]])] * 200 for at in range(len(names))]
    wanted = [ext.decode(batch, [PLACE] * 200) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda batch: ext.decode(batch, [PLACE] * 200), batches)
            assert list(found) == wanted


def test_the_compiled_decoder_refuses_what_is_not_bytes() -> None:
    with pytest.raises(TypeError, match="a frame is bytes, got bytearray"):
        _decoder.decode_packed([bytearray(32)], bytes(24))  # type: ignore[list-item]
    with pytest.raises(OverflowError):
        _decoder.pack_places([Place(1 << 31, 0, 0, 0)])


def test_the_decoder_in_use_is_the_compiled_one_where_it_is_there_or_required() -> None:
    if os.environ.get("VESTIBULE_REQUIRE_EXT") == "1":
        assert ext.COMPILED
    module = "ext._decoder" if ext.COMPILED else "ext.reference"
    assert ext.decode.__module__ == ext.scan.__module__ == module


def _imported(**environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {key: value for key, value in os.environ.items() if not key.startswith("VESTIBULE_")}
    return subprocess.run(
        [sys.executable, "-c", "import ext; print(ext.COMPILED, ext.decode.__module__)"],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_reference_can_be_forced() -> None:
    assert _imported(VESTIBULE_NO_EXT="1").stdout.split() == ["False", "ext.reference"]


def test_forcing_both_decoders_is_an_error() -> None:
    found = _imported(VESTIBULE_NO_EXT="1", VESTIBULE_REQUIRE_EXT="1")
    assert found.returncode != 0
    assert "contradict" in found.stderr


def test_a_minute_belongs_to_the_place_where_it_began_to_be_observed() -> None:
    minute = 1_700_000_040_000 // 60_000 * 60_000
    span = Span(0, 50_000, minute + 40_000, Quality.SYNCED)  # 40 s into its first minute
    line = Line(0, 3, 1, (2, 1, 1, 0))
    frame = encode_counter(Counts(span, 60, (line,)), boot_id=1, seq=0, ordinal=1)
    mounted = Place(3, 4, minute + 30_000, 1 << 62)
    (record,) = decode_everywhere([frame], [mounted]).frames()
    assert record.status == Status.RENDERED
    before = Place(3, 9, -(1 << 62), minute + 30_000)
    assert reference.place(frame, [before, mounted]).readings == (
        decode_everywhere([frame], [mounted]).readings
    )
