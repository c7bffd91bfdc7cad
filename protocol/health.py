"""Health frames: named metrics of the device at the end of the frame's span."""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from protocol.frame import FrameError, Kind, Reason, Section, Span, encode, encode_time, section

MAX_METRICS = 64
MAX_NAME = 48
_NAME = re.compile(rb"[a-z][a-z0-9_.]{0,%d}" % (MAX_NAME - 1))
_VALUE = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metric values by name, as of the span's end."""

    span: Span
    values: Mapping[str, float]


def encode_health(metrics: Metrics, *, boot_id: int, seq: int, ordinal: int) -> bytes:
    """Return a health frame."""
    parts = [bytes((len(metrics.values),))]
    for name, value in metrics.values.items():
        parts.append(bytes((len(name),)) + name.encode() + _VALUE.pack(value))
    return encode(
        Kind.HEALTH,
        [encode_time(metrics.span), section(Section.METRICS, b"".join(parts))],
        boot_id=boot_id,
        seq=seq,
        ordinal=ordinal,
    )


def decode_metrics(payload: memoryview, span: Span) -> Metrics:
    """Read a METRICS section; FrameError METRICS."""
    if not payload or payload[0] > MAX_METRICS:
        raise FrameError(Reason.METRICS, "no count, or above 64")
    values: dict[str, float] = {}
    at = 1
    for _ in range(payload[0]):
        end = at + 1 + (payload[at] if at < len(payload) else 0)
        name = bytes(payload[at + 1 : end])
        if end + 8 > len(payload) or not _NAME.fullmatch(name) or name.decode() in values:
            raise FrameError(Reason.METRICS, f"metric {name!r}")
        (value,) = _VALUE.unpack_from(payload, end)
        if not math.isfinite(value):
            raise FrameError(Reason.METRICS, f"{name.decode()} is {value}")
        values[name.decode()] = value
        at = end + 8
    if at != len(payload):
        raise FrameError(Reason.METRICS, f"{len(payload) - at} trailing bytes")
    return Metrics(span, values)
