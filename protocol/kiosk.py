"""Kiosk frames: each press to 0.1 s under the questionnaire that was on the screen, and totals.

Presses are run-length coded: a run is `repeat` equal presses of one visit, `step` apart.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise

from protocol.frame import (
    FrameError,
    Kind,
    Reason,
    Section,
    Span,
    encode,
    encode_time,
    section,
)

HEAD = struct.Struct("<8sHH")
TOTAL = struct.Struct("<BBI")
QUESTIONNAIRE_BYTES = 8
MAX_RUNS = 4_096
MAX_TOTALS = 256
MAX_PRESSES = 4_096  # in a frame: one every 73 ms for five minutes is no visitor


@dataclass(frozen=True, slots=True)
class Press:
    """One touch: `at_ds` in tenths of a second since the span's start."""

    at_ds: int
    visit: int
    question: int
    answer: int
    source: int = 0


@dataclass(frozen=True, slots=True)
class Presses:
    """The presses of a kiosk frame; `totals` by (question, answer) since boot, at its end."""

    span: Span
    questionnaire: bytes
    totals: tuple[tuple[int, int, int], ...]
    presses: tuple[Press, ...]


def encode_kiosk(presses: Presses, *, boot_id: int, seq: int, ordinal: int) -> bytes:
    """Return a kiosk frame; presses must be in order of time and visit."""
    return encode(
        Kind.KIOSK,
        [encode_time(presses.span), encode_presses(presses)],
        boot_id=boot_id,
        seq=seq,
        ordinal=ordinal,
    )


def encode_presses(presses: Presses) -> bytes:
    """Return the PRESSES section."""
    runs = _runs(presses.presses)
    parts = [HEAD.pack(presses.questionnaire, len(runs), len(presses.totals))]
    parts += [TOTAL.pack(*total) for total in presses.totals]
    last_ds = last_visit = 0
    for first, repeat, step in runs:
        parts.append(_varint(first.at_ds - last_ds) + _varint(first.visit - last_visit))
        parts.append(bytes((first.question, first.answer, first.source, repeat)))
        if repeat > 1:
            parts.append(_varint(step))
        last_ds, last_visit = first.at_ds + step * (repeat - 1), first.visit
    return section(Section.PRESSES, b"".join(parts))


def decode_presses(payload: memoryview, span: Span) -> Presses:
    """Read a PRESSES section; FrameError PRESSES."""
    if len(payload) < HEAD.size:
        raise FrameError(Reason.PRESSES, f"{len(payload)} bytes")
    questionnaire, runs, count = HEAD.unpack_from(payload)
    at = HEAD.size + count * TOTAL.size
    if runs > MAX_RUNS or count > MAX_TOTALS or at > len(payload):
        raise FrameError(Reason.PRESSES, f"{runs} runs, {count} totals")
    totals = tuple(TOTAL.iter_unpack(payload[HEAD.size : at]))
    if any(left[:2] >= right[:2] for left, right in pairwise(totals)):
        raise FrameError(Reason.PRESSES, "totals out of order")
    presses: list[Press] = []
    now_ds = visit = 0
    for _ in range(runs):
        delta_ds, at = _read_varint(payload, at)
        delta_visit, at = _read_varint(payload, at)
        if at + 4 > len(payload):
            raise FrameError(Reason.PRESSES, "truncated run")
        question, answer, source, repeat = payload[at : at + 4]
        at += 4
        step = 0
        if repeat > 1:
            step, at = _read_varint(payload, at)
        now_ds += delta_ds
        visit += delta_visit
        if repeat == 0 or len(presses) + repeat > MAX_PRESSES or visit > 0xFFFFFFFF:
            raise FrameError(Reason.PRESSES, f"a run of {repeat}")
        if (now_ds + step * (repeat - 1)) * 100 > span.span_ms:
            raise FrameError(Reason.PRESSES, "a press after the span's end")
        presses += [
            Press(now_ds + index * step, visit, question, answer, source) for index in range(repeat)
        ]
        now_ds += step * (repeat - 1)
    if at != len(payload):
        raise FrameError(Reason.PRESSES, f"{len(payload) - at} trailing bytes")
    return Presses(span, questionnaire, totals, tuple(presses))


def _runs(presses: tuple[Press, ...]) -> list[tuple[Press, int, int]]:
    """Group equal presses at an equal step into (first, repeat, step)."""
    runs: list[tuple[Press, int, int]] = []
    for press in presses:
        if runs:
            first, repeat, step = runs[-1]
            since = press.at_ds - first.at_ds
            same = (first.visit, first.question, first.answer, first.source) == (
                press.visit,
                press.question,
                press.answer,
                press.source,
            )
            if same and repeat < 255 and (repeat == 1 or since == step * repeat):
                runs[-1] = (first, repeat + 1, since if repeat == 1 else step)
                continue
        runs.append((press, 1, 0))
    return runs


def _varint(value: int) -> bytes:
    """LEB128 of a u32."""
    if not 0 <= value <= 0xFFFFFFFF:
        raise ValueError(f"expected 0 to 2^32-1, got {value}")
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            raise FrameError(Reason.PRESSES, "truncated number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value > 0xFFFFFFFF:
                break
            return value, at
    raise FrameError(Reason.PRESSES, "a number above 2^32-1")
