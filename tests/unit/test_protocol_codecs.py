"""Every codec of the protocol: what is encoded reads back the same, and nothing else reads."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.counter import MAX_CELLS, Counts, Line, cells_of, decode_lines, encode_counter
from protocol.crc import crc32c
from protocol.frame import (
    EXPLAIN,
    HEADER_BYTES,
    MAX_FRAME,
    FrameError,
    Header,
    Kind,
    Quality,
    Reason,
    Section,
    Span,
    decode_time,
    encode,
    encode_time,
    read_body,
    read_header,
    section,
    signed,
)
from protocol.gap import Gap
from protocol.health import Metrics
from protocol.kiosk import Press, Presses, encode_kiosk, encode_presses
from protocol.session import (
    MAX_BACK_S,
    Answer,
    Goodbye,
    HeldBoot,
    Hello,
    Receipt,
    encode_hello,
    read_goodbye,
)
from tests.vectors.cases import Content, content_of, encode_content
from tests.vectors.strategies import (
    answers,
    any_frame,
    counts,
    frames,
    gaps,
    hellos,
    metrics,
    presses,
    receipts,
    spans,
    u32,
    u64,
)


def back(content: Content, *, seq: int = 3) -> Content:
    """Encode, check the header, and read again."""
    frame = encode_content(content, boot_id=0xB007, seq=seq, ordinal=2)
    assert len(frame) <= MAX_FRAME
    return content_of(frame)


@settings(deadline=None)
@given(counts())
def test_counter_readings_survive_the_wire(content: Counts) -> None:
    assert back(content) == content


@settings(deadline=None)
@given(presses())
def test_presses_survive_the_wire(content: Presses) -> None:
    assert back(content) == content


@settings(deadline=None)
@given(metrics)
def test_metrics_survive_the_wire(content: Metrics) -> None:
    assert back(content) == content


@settings(deadline=None)
@given(gaps(), st.integers(0, 1 << 31))
def test_gaps_survive_the_wire(content: Gap, seq: int) -> None:
    assert back(content, seq=seq) == content


@settings(deadline=None)
@given(hellos)
def test_hellos_survive_the_wire(content: Hello) -> None:
    assert back(content) == content


@given(receipts)
def test_receipts_survive_the_wire(content: Receipt) -> None:
    assert back(content) == content


@given(answers)
def test_answers_survive_the_wire(content: Answer) -> None:
    assert back(content) == content


@given(st.sampled_from(list(Kind)), u64, u32, u32, st.binary(max_size=100))
def test_the_header_survives_the_wire(
    kind: Kind, boot_id: int, seq: int, ordinal: int, payload: bytes
) -> None:
    body = section(Section.TIME, payload)
    frame = encode(kind, [body], boot_id=boot_id, seq=seq, ordinal=ordinal)
    header = read_header(frame)
    assert header == Header(1, kind, 32 + len(body), boot_id, seq, ordinal, crc32c(body))
    assert bytes(read_body(frame, header)[Section.TIME]) == payload


@given(spans())
def test_a_span_survives_the_wire(span: Span) -> None:
    assert decode_time(memoryview(encode_time(span))[4:]) == span


@settings(max_examples=300, deadline=None)
@given(any_frame)
def test_what_reads_at_all_can_be_said_again(frame: bytes) -> None:
    try:
        content = content_of(frame)
    except FrameError:
        return
    header = read_header(frame)
    again = encode_content(content, boot_id=header.boot_id, seq=header.seq, ordinal=header.ordinal)
    assert content_of(again) == content


@given(frames(), st.binary(min_size=1, max_size=20))
def test_trailing_bytes_are_refused(frame: bytes, more: bytes) -> None:
    with pytest.raises(FrameError) as caught:
        content_of(frame + more)
    assert caught.value.reason is Reason.LENGTH


@given(frames(), st.data())
def test_no_truncated_frame_reads(frame: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(FrameError) as caught:
        content_of(frame[:end])
    assert caught.value.reason is (Reason.SHORT if end < HEADER_BYTES else Reason.LENGTH)


@given(frames(), st.data())
def test_any_flipped_bit_is_noticed(frame: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(frame) - 1))
    flipped = frame[at] ^ 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FrameError):
        content_of(frame[:at] + bytes([flipped]) + frame[at + 1 :])


def test_each_reason_explains_itself() -> None:
    assert set(EXPLAIN) == set(Reason)
    assert {reason for reason in Reason if reason.header_bad} == {
        Reason.SHORT,
        Reason.MAGIC,
        Reason.HEADER_CRC,
    }
    assert str(FrameError(Reason.VALUE)) == "VALUE: a reading is above 32,767"


def test_only_counter_kiosk_health_and_gap_frames_stand_in_the_sequence() -> None:
    assert [kind.name for kind in Kind if kind.sequenced] == ["COUNTER", "KIOSK", "HEALTH", "GAP"]


@given(st.binary(max_size=200))
def test_the_checksum_is_the_bitwise_definition(data: bytes) -> None:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def test_the_checksum_matches_rfc_3720() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@settings(deadline=None)
@given(counts())
def test_readings_stand_on_the_grid_that_the_span_touches(content: Counts) -> None:
    step = content.interval_s * 1000
    if content.span.quality is Quality.NONE:
        with pytest.raises(ValueError, match="undated"):
            content.first_cell_ms()
        return
    first = content.first_cell_ms()
    assert first % step == 0
    assert first <= content.span.utc_ms < first + step
    end = content.span.utc_ms + content.span.span_ms
    assert first + (content.cells - 1) * step < end <= first + content.cells * step


def test_a_quiet_minute_costs_under_four_bytes_in_an_hours_frame() -> None:
    span = Span(40_040_000, 3_600_000, 1_760_000_000_000 - 40_000_000, Quality.SYNCED)
    quiet = tuple(int(index % 9 == 0) for index in range(120))
    lines = (Line(0, 9, 9, quiet), Line(1, 9, 9, quiet))
    frame = encode_counter(Counts(span, 60, lines), boot_id=1, seq=1, ordinal=1)
    assert cells_of(span, 60) == 60
    assert len(frame) / (60 * 2) == 1.8


@pytest.mark.parametrize(("top", "size"), [(0, 0), (15, 1), (255, 2), (32_767, 4)])
def test_a_line_takes_the_narrowest_width_for_its_largest_reading(top: int, size: int) -> None:
    span = Span(0, 600_000, 0, Quality.SYNCED)
    values = (0,) * 19 + (top,)
    frame = encode_counter(Counts(span, 60, (Line(0, 0, 0, values),)), boot_id=1, seq=1, ordinal=1)
    assert len(frame) == 32 + 28 + 4 + 8 + 12 + 10 * size


def test_a_reading_above_the_cap_cannot_be_encoded() -> None:
    span = Span(0, 60_000, 0, Quality.SYNCED)
    with pytest.raises(ValueError, match="at most 32767, got 32768"):
        encode_counter(Counts(span, 60, (Line(0, 0, 0, (32_768, 0)),)), boot_id=1, seq=1, ordinal=1)


def test_a_frame_above_the_cap_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="at most 61440 bytes"):
        encode(Kind.HEALTH, [bytes(MAX_FRAME)], boot_id=1, seq=1, ordinal=1)


def test_a_day_of_cells_is_the_most_a_frame_holds() -> None:
    span = Span(0, 60_000 * (MAX_CELLS + 1), 0, Quality.SYNCED)
    payload = struct.pack("<HHB3x", 60, MAX_CELLS + 1, 1) + struct.pack("<BBHII", 0, 0, 0, 0, 0)
    with pytest.raises(FrameError) as caught:
        decode_lines(memoryview(payload), span)
    assert caught.value.reason is Reason.SPAN


def test_equal_presses_at_an_equal_step_are_one_run() -> None:
    span = Span(0, 300_000, 0, Quality.SYNCED)
    one = Presses(span, bytes(8), (), (Press(10, 1, 0, 4),))
    many = Presses(span, bytes(8), (), tuple(Press(10 + 5 * n, 1, 0, 4) for n in range(200)))
    assert len(encode_presses(many)) == len(encode_presses(one)) + 1
    assert content_of(encode_kiosk(many, boot_id=1, seq=1, ordinal=1)) == many


def test_presses_out_of_order_cannot_be_encoded() -> None:
    span = Span(0, 300_000, 0, Quality.SYNCED)
    wrong = Presses(span, bytes(8), (), (Press(10, 1, 0, 4), Press(9, 1, 0, 4)))
    with pytest.raises(ValueError, match="expected 0 to"):
        encode_presses(wrong)


def test_a_hello_names_its_agent_in_ascii_and_briefly() -> None:
    span = Span(0, 0, 0, Quality.NONE)
    hello = Hello(1, (1,), "räknare/" + "9" * 40, span, ())
    found = content_of(encode_hello(hello, boot_id=1, ordinal=1))
    assert isinstance(found, Hello)
    assert found.agent == "r?knare/" + "9" * 24


@given(
    st.builds(
        Goodbye,
        st.from_regex(r"[a-z][a-z-]{0,15}", fullmatch=True),
        st.integers(0, MAX_BACK_S),
    )
)
def test_a_goodbye_survives_in_a_hello_s_name(goodbye: Goodbye) -> None:
    hello = Hello(1, (1,), goodbye.name, Span(0, 0, 0, Quality.NONE), ())
    found = content_of(encode_hello(hello, boot_id=1, ordinal=1))
    assert isinstance(found, Hello)
    assert read_goodbye(found.agent) == goodbye


@given(
    st.text(st.characters(codec="ascii"), max_size=32)
    | st.lists(st.sampled_from(["bye", "stopped", "update", "600", "0", "9999999", ""])).map(
        " ".join
    )
)
def test_no_name_breaks_the_reading_of_goodbyes(name: str) -> None:
    found = read_goodbye(name)
    if found is None:
        assert name not in ("bye", "bye stopped", "bye update 600")
    else:
        assert name.startswith("bye")
        assert read_goodbye(found.name) == found


@pytest.mark.parametrize("name", ["will", "byes", "bye ", "bye 600", "bye Up", "bye a 1 2", "Bye"])
def test_an_agent_whose_name_is_like_a_goodbye_greets(name: str) -> None:
    assert read_goodbye(name) is None


@pytest.mark.parametrize(
    ("reason", "back_s"), [("", 5), ("Two words", 0), ("x" * 17, 0), ("update", MAX_BACK_S + 1)]
)
def test_a_goodbye_that_the_wire_cannot_hold_is_refused(reason: str, back_s: int) -> None:
    with pytest.raises(ValueError, match=r"expected|got"):
        Goodbye(reason, back_s)


@pytest.mark.parametrize("boot", [(5, 4, 0), (0, 1, (1 << 47) + 1), (0, 1, -(1 << 47) - 1)])
def test_a_hello_with_an_impossible_boot_is_refused(boot: tuple[int, int, int]) -> None:
    first, after_last, offset = boot
    held = HeldBoot(1, 1, first, after_last, Quality.SYNCED, offset)
    hello = Hello(1, (1,), "agent", Span(0, 0, 0, Quality.NONE), (held,))
    with pytest.raises(FrameError) as caught:
        content_of(encode_hello(hello, boot_id=1, ordinal=1))
    assert caught.value.reason is Reason.HELLO


def test_a_span_ends_where_an_sql_integer_does() -> None:
    for span_ms, reads in (((1 << 31) - 1, True), (1 << 31, False)):
        payload = memoryview(encode_time(Span(0, span_ms, 0, Quality.SYNCED)))[4:]
        if reads:
            assert decode_time(payload).span_ms == span_ms
        else:
            with pytest.raises(FrameError):
                decode_time(payload)


@given(st.integers(0, 2**64 - 1))
def test_a_database_keeps_the_bits_of_an_unsigned_integer(value: int) -> None:
    for size, code in ((32, "Ii"), (64, "Qq")):
        low = value % (1 << size)
        assert signed(low, size) == struct.unpack(code[1], struct.pack(code[0], low))[0]
