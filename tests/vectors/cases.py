"""The golden cases of version 1: what is said (`CASES`), and what must be refused (`REFUSED`)."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from ext.layout import Place
from protocol.counter import Counts, Line, decode_lines, encode_counter, encode_lines
from protocol.crc import crc32c
from protocol.frame import (
    HEADER_BYTES,
    TIME,
    Kind,
    Quality,
    Reason,
    Section,
    Span,
    decode_time,
    encode,
    encode_time,
    need,
    read_body,
    read_header,
    section,
)
from protocol.gap import Cause, Gap, decode_gap, encode_gap
from protocol.health import Metrics, decode_metrics, encode_health
from protocol.kiosk import Press, Presses, decode_presses, encode_kiosk
from protocol.session import (
    Answer,
    BootCursor,
    HeldBoot,
    Hello,
    Receipt,
    decode_downlink,
    decode_hello,
    encode_answer,
    encode_hello,
    encode_receipt,
)

Content = Counts | Presses | Metrics | Gap | Hello | Receipt | Answer

BOOT = 0x1122334455667788
ORDINAL = 7
OFFSET = 1_760_000_000_000 - 40_000_000  # UTC 2025-10-09 08:53:20 at monotonic 40,000 s
PLACE = Place(boot=5, spot=9, from_ms=1_700_000_000_000, until_ms=1_800_000_000_000)


@dataclass(frozen=True, slots=True)
class Case:
    """A content, its place in the sequence, and ready sections that follow it."""

    content: Content
    seq: int = 1
    extra: bytes = b""


def frame_of(case: Case) -> bytes:
    """Return the frame of `case`."""
    frame = encode_content(case.content, boot_id=BOOT, seq=case.seq, ordinal=ORDINAL)
    return refit(frame + case.extra) if case.extra else frame


def encode_content(content: Content, *, boot_id: int, seq: int, ordinal: int) -> bytes:
    """Encode any content; session frames take of the header what they have."""
    match content:
        case Counts():
            return encode_counter(content, boot_id=boot_id, seq=seq, ordinal=ordinal)
        case Presses():
            return encode_kiosk(content, boot_id=boot_id, seq=seq, ordinal=ordinal)
        case Metrics():
            return encode_health(content, boot_id=boot_id, seq=seq, ordinal=ordinal)
        case Gap():
            return encode_gap(content, boot_id=boot_id, seq=seq, ordinal=ordinal)
        case Hello():
            return encode_hello(content, boot_id=boot_id, ordinal=ordinal)
        case Receipt():
            return encode_receipt(content)
        case Answer():
            return encode_answer(content)


def content_of(frame: bytes) -> Content:
    """Read any frame with the protocol's own readers; FrameError as theirs."""
    header = read_header(frame)
    sections = read_body(frame, header)
    kind = Kind(header.kind)
    if kind is Kind.HELLO:
        return decode_hello(frame)
    if kind in (Kind.RECEIPT, Kind.ANSWER):
        return decode_downlink(frame)
    span = decode_time(need(sections, Section.TIME))
    if kind is Kind.COUNTER:
        return decode_lines(need(sections, Section.LINES), span)
    if kind is Kind.KIOSK:
        return decode_presses(need(sections, Section.PRESSES), span)
    if kind is Kind.HEALTH:
        return decode_metrics(need(sections, Section.METRICS), span)
    return decode_gap(need(sections, Section.GAP), span, seq=header.seq)


def refit(frame: bytes) -> bytes:
    """Return `frame` with length and both checksums made right, whatever it holds."""
    body = frame[HEADER_BYTES:]
    head = frame[:4] + struct.pack("<I", HEADER_BYTES + len(body)) + frame[8:24]
    head += struct.pack("<I", crc32c(body))
    return head + struct.pack("<I", crc32c(head)) + body


def _span(*, start_s: int = 40_000, span_s: int = 300, quality: Quality = Quality.SYNCED) -> Span:
    offset = 0 if quality is Quality.NONE else OFFSET
    return Span(start_s * 1000, span_s * 1000, offset, quality)


def _quiet_hour() -> Counts:
    """A quiet shop's hour, from a full minute on: two lines, none or one person a minute."""
    ins = tuple(int(minute % 7 == 3) for minute in range(60))
    outs = tuple(int(minute % 9 == 5) for minute in range(60))
    ahead = tuple(value for pair in zip(ins, outs, strict=True) for value in pair)
    back = tuple(value for pair in zip(outs, ins, strict=True) for value in pair)
    lines = (Line(0, 1_204, 1_198, ahead), Line(1, 903, 911, back))
    return Counts(_span(start_s=40_000 + 40, span_s=3600), 60, lines)


CASES: dict[str, Case] = {
    "counter-5min": Case(
        Counts(
            _span(),  # 20 s into a minute: six cells, the outer two observed in part
            60,
            (
                Line(0, 1_204, 1_198, (1, 0, 3, 2, 0, 0, 5, 1, 2, 2, 0, 4)),
                Line(1, 903, 911, (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)),
            ),
        ),
        seq=41,
    ),
    "counter-60min-quiet": Case(_quiet_hour(), seq=42),
    "counter-codings": Case(
        Counts(
            _span(start_s=40_040, span_s=180),
            60,
            (
                Line(0, 0, 0, (0,) * 6),
                Line(1, 15, 30, (15, 0, 0, 15, 0, 15)),
                Line(2, 4_294_967_295, 300, (16, 255, 0, 44, 1, 1)),
                Line(3, 33_023, 1, (32_767, 0, 256, 1, 0, 0)),
            ),
        ),
        seq=43,
    ),
    "counter-hours": Case(
        Counts(_span(span_s=7200), 3600, (Line(2, 500, 490, (120, 118, 200, 190, 4, 9)),)), seq=44
    ),
    "counter-undated": Case(
        Counts(_span(span_s=60, quality=Quality.NONE), 15, (Line(0, 9, 9, (1, 1) * 5),)), seq=0
    ),
    "counter-optional-section": Case(
        Counts(_span(start_s=40_040, span_s=60), 60, (Line(0, 2, 1, (2, 1)),)),
        seq=45,
        extra=struct.pack("<BBH", 200, 0, 3) + b"new",
    ),
    "kiosk": Case(
        Presses(
            _span(),
            bytes.fromhex("a1b2c3d4e5f60718"),
            ((0, 1, 12), (0, 4, 320), (1, 0, 3)),
            (
                Press(0, 0, 0, 4),
                Press(135, 1, 0, 1),
                Press(149, 1, 1, 0, 2),
                Press(1_000, 2, 0, 4),
                Press(1_005, 2, 0, 4),
                Press(1_010, 2, 0, 4),
                Press(3_000, 300, 0, 4),
            ),
        ),
        seq=46,
    ),
    "kiosk-silent": Case(Presses(_span(), bytes(8), (), ()), seq=47),
    "kiosk-undated": Case(
        Presses(
            _span(quality=Quality.NONE), b"\xff" * 8, ((0, 0, 1),), (Press(2_999, 0, 0, 0, 255),)
        ),
        seq=0,
    ),
    "health": Case(
        Metrics(_span(), {"cpu.temperature_c": 41.5, "outbox.frames": 0.0, "link.rssi_dbm": -67.0}),
        seq=48,
    ),
    "gap-thinned": Case(
        Gap(_span(span_s=86_400), 80, Cause.THINNED, lines=((0, 1_300, 1_290), (1, 950, 940))),
        seq=49,
    ),
    "gap-rotted": Case(
        Gap(_span(), 81, Cause.ROTTED, answers=((0, 1, 13), (0, 4, 330), (1, 0, 3))), seq=81
    ),
    "gap-forgotten": Case(Gap(_span(quality=Quality.NONE), 90, Cause.FORGOTTEN), seq=82),
    "hello": Case(
        Hello(
            0x0102030405060708,
            (1,),
            "vestibule-agent/1.0.0",
            _span(span_s=0),
            (
                HeldBoot(0x99AABBCCDDEEFF00, 6, 12, 40, Quality.NONE, 0),
                HeldBoot(BOOT, ORDINAL, 0, 91, Quality.SYNCED, OFFSET),
            ),
        ),
        seq=0,
    ),
    "hello-bye": Case(
        Hello(0x0102030405060709, (1,), "bye update 600", _span(span_s=0), ()),
        seq=0,
    ),
    "hello-will": Case(Hello(0x0102030400000000, (1,), "will", _span(span_s=0), ()), seq=0),
    "receipt": Case(Receipt(BOOT, 91, 0xDEADBEEF, 0xABCDEF0123456789, 1_760_000_301_000), seq=91),
    "answer": Case(
        Answer(
            0x0102030405060708,
            0xABCDEF0123456789,
            1_760_000_302_000,
            1,
            (
                BootCursor(0x99AABBCCDDEEFF00, 40, 0x01020304, known=True),
                BootCursor(BOOT, 0, 0, known=False),
            ),
        ),
        seq=0,
    ),
}


def _head(frame: bytes, at: int, value: bytes) -> bytes:
    """Change a header field and make the header's own checksum right again."""
    head = (frame[:at] + value + frame[at + len(value) :])[:28]
    return head + struct.pack("<I", crc32c(head)) + frame[HEADER_BYTES:]


def _put(frame: bytes, at: int, value: bytes) -> bytes:
    """Change the body at frame offset `at` and make length and checksums right again."""
    return refit(frame[:at] + value + frame[at + len(value) :])


def _with(kind: Kind, *sections: bytes) -> bytes:
    return encode(kind, sections, boot_id=BOOT, seq=5, ordinal=ORDINAL)


_TIME = encode_time(_span())
_FIVE = frame_of(CASES["counter-5min"])
_LINES_AT = HEADER_BYTES + len(_TIME) + 4
_ONE_RUN = struct.pack("<8sHH", bytes(8), 1, 0)
_WORDS = encode_lines(
    Counts(_span(start_s=40_040, span_s=60), 60, (Line(0, 0, 0, (32_767, 1)),))
).replace(struct.pack("<H", 32_767), struct.pack("<H", 32_768))

REFUSED: dict[str, tuple[Reason, Callable[[], bytes]]] = {
    "short": (Reason.SHORT, lambda: _FIVE[:31]),
    "empty": (Reason.SHORT, lambda: b""),
    "magic": (Reason.MAGIC, lambda: b"EV" + _FIVE[2:]),
    "header-crc": (Reason.HEADER_CRC, lambda: _FIVE[:16] + b"\xff" + _FIVE[17:]),
    "version": (Reason.VERSION, lambda: _head(_FIVE, 2, b"\x02")),
    "truncated": (Reason.LENGTH, lambda: _FIVE[:-1]),
    "trailing": (Reason.LENGTH, lambda: _FIVE + b"\0"),
    "claims-4gb": (Reason.LENGTH, lambda: _head(_FIVE, 4, b"\xff\xff\xff\xff")),
    "kind": (Reason.KIND, lambda: _head(_FIVE, 3, b"\x05")),
    "body-crc": (Reason.BODY_CRC, lambda: _FIVE[:-1] + bytes([_FIVE[-1] ^ 1])),
    "section-overrun": (Reason.SECTION, lambda: refit(_FIVE + b"\xc8\0\x01\0")),
    "section-cut": (Reason.SECTION, lambda: refit(_FIVE + b"\xc8\0")),
    "section-twice": (Reason.SECTION, lambda: refit(_FIVE + _TIME)),
    "critical": (Reason.CRITICAL, lambda: refit(_FIVE + b"\xc8\x01\0\0")),
    "missing-time": (Reason.MISSING, lambda: _with(Kind.GAP, section(Section.GAP, bytes(8)))),
    "missing-lines": (Reason.MISSING, lambda: _with(Kind.COUNTER, _TIME)),
    "time-length": (Reason.TIME, lambda: _with(Kind.COUNTER, section(Section.TIME, bytes(23)))),
    "time-offset": (
        Reason.TIME,
        lambda: _put(_FIVE, 36, TIME.pack(0, 300_000, Quality.SYNCED, -(1 << 63))),
    ),
    "time-span": (
        Reason.TIME,
        lambda: _put(_FIVE, 36, TIME.pack(0, 1 << 31, Quality.SYNCED, OFFSET)),
    ),
    "span-cells": (Reason.SPAN, lambda: _put(_FIVE, _LINES_AT + 2, b"\x05")),
    "span-none": (Reason.SPAN, lambda: _put(_FIVE, 36, TIME.pack(0, 0, 2, OFFSET))),
    "lines-interval": (Reason.LINES, lambda: _put(_FIVE, _LINES_AT, b"\x3d")),
    "lines-coding": (Reason.LINES, lambda: _put(_FIVE, _LINES_AT + 9, b"\x04")),
    "lines-order": (Reason.LINES, lambda: _put(_FIVE, _LINES_AT + 8, b"\x01")),
    "value": (Reason.VALUE, lambda: _with(Kind.COUNTER, encode_time(_span(span_s=40)), _WORDS)),
    "presses-after-end": (
        Reason.PRESSES,
        lambda: _with(
            Kind.KIOSK,
            _TIME,
            section(
                Section.PRESSES, struct.pack("<8sHH", bytes(8), 1, 0) + b"\xb9\x17\0\0\0\0\x01"
            ),
        ),
    ),
    "presses-run-of-none": (
        Reason.PRESSES,
        lambda: _with(Kind.KIOSK, _TIME, section(Section.PRESSES, _ONE_RUN + bytes(7))),
    ),
    "metrics-infinite": (
        Reason.METRICS,
        lambda: _with(
            Kind.HEALTH,
            _TIME,
            section(Section.METRICS, b"\x01\x01a" + struct.pack("<d", float("inf"))),
        ),
    ),
    "metrics-name": (
        Reason.METRICS,
        lambda: _with(Kind.HEALTH, _TIME, section(Section.METRICS, b"\x01\x01A" + bytes(8))),
    ),
    "gap-backwards": (
        Reason.GAP,
        lambda: _with(Kind.GAP, _TIME, section(Section.GAP, struct.pack("<IBBH", 4, 1, 0, 0))),
    ),
    "hello-truncated": (
        Reason.HELLO,
        lambda: _with(Kind.HELLO, _TIME, section(Section.HELLO, bytes(11))),
    ),
    "receipt-truncated": (
        Reason.HELLO,
        lambda: _with(Kind.RECEIPT, section(Section.RECEIPT, bytes(19))),
    ),
}
"""Every reason that a decoder gives; TOTALS is the writer's, who knows the totals before."""
