"""Readings decoded a second, bytes to COPY bytes, beside its peers and the copy of the same bytes.

    python -m tests.bench.decode

A reading is one line's in and out of one interval. Days are seeded: two-line counters of shops open
from nine to nine, Poisson per minute, a third of the devices on frames of 5, 15 and 60 minutes
each, so most frames are the small ones. Batches of 512 frames of all devices mixed, one place a
device, both checksums and all validation on, one thread. Each value is the best of several passes.
"""

import math
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypedDict

import construct
import msgpack  # type: ignore[import-untyped]
import numpy as np

import ext
from ext import reference
from ext.layout import Decoded, Place
from protocol.counter import Counts, Line, cells_of, encode_counter
from protocol.frame import Quality, Span

BATCH = 512
PASSES = 9
ENOUGH_S = 0.5
DAY_MS = 86_400_000
MIDNIGHT_MS = 1_759_968_000_000  # 2025-10-09T00:00:00Z
RECORD = struct.Struct("<IHH")  # the peers' fixed record of a reading: time, in, out
PEER_READINGS = 120  # a 60-minute frame of two lines

Job = tuple[list[bytes], bytes]
"""A batch: frames and their packed places."""


class Row(TypedDict):
    """One measured value; `ratio` is value over `limit`, which was measured in the same run."""

    name: str
    value: float
    unit: str
    limit: float | None
    ratio: float | None
    limit_name: str


def run() -> list[Row]:
    """Measure ours and the peers; AssertionError if the compiled decoder is not in use."""
    assert ext.COMPILED, "this measures the compiled decoder: build it first"
    rng = random.Random(2025)
    rows: list[Row] = []
    for name, frames in _days(rng):
        jobs = _jobs(frames, rng)
        rows.append(_ours(f"decode.{name}.ours", jobs, readings=_readings(frames)))
        if name == "mix":
            rows.append(_reference(jobs[:2], of=rows[-1]["value"]))
            rows.append(_scan(jobs, of=rows[-2]["value"], readings=_readings(frames)))
    ours = next(row["value"] for row in rows if row["name"] == "decode.60min.ours")
    rows += [_row(f"decode.{name}", value, ours, "decode.60min.ours") for name, value in _peers()]
    return rows


def _days(rng: random.Random) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the sets of frames to decode, by name."""
    mixed = [frame for minutes in (5, 15, 60) for _ in range(16) for frame in _day(rng, minutes)]
    rng.shuffle(mixed)
    yield "mix", mixed
    for minutes, devices in ((1, 4), (5, 16), (15, 32), (60, 64)):
        frames = [frame for _ in range(devices) for frame in _day(rng, minutes)]
        rng.shuffle(frames)
        yield f"{minutes}min", frames
    yield "worst", [_worst(rng) for _ in range(8 * BATCH)]


def _day(rng: random.Random, minutes: int) -> list[bytes]:
    """Return a device's day in frames of `minutes`."""
    boot_id, up_ms = rng.getrandbits(64), rng.randrange(1, 1 << 32)
    busy = rng.choice((0.5, 1.5, 4.0))
    totals = [0] * 4
    frames = []
    for seq, start in enumerate(range(0, DAY_MS, minutes * 60_000)):
        values = [_people(rng, start + 60_000 * (i // 4), busy) for i in range(4 * minutes)]
        totals = [(total + sum(values[i::4])) & 0xFFFFFFFF for i, total in enumerate(totals)]
        ahead = tuple(v for at in range(0, len(values), 4) for v in values[at : at + 2])
        back = tuple(v for at in range(0, len(values), 4) for v in values[at + 2 : at + 4])
        lines = (Line(0, totals[0], totals[1], ahead), Line(1, totals[2], totals[3], back))
        span = Span(up_ms + start, minutes * 60_000, MIDNIGHT_MS - up_ms, Quality.SYNCED)
        frames.append(encode_counter(Counts(span, 60, lines), boot_id=boot_id, seq=seq, ordinal=1))
    return frames


def _people(rng: random.Random, ms: int, busy: float) -> int:
    """Draw a minute's people: a Poisson number about a curve over the opening hours."""
    hour = ms / 3_600_000
    if not 9 <= hour < 21:
        return 0
    left, chance = math.exp(-busy * (1 + math.sin((hour - 9) / 12 * math.pi))), 1.0
    count = -1
    while chance > left:
        count += 1
        chance *= rng.random()
    return count


def _worst(rng: random.Random) -> bytes:
    """Return five minutes over the edge of a quarter, six cells, each line of any width."""
    span = Span(1 << 40, 300_000, MIDNIGHT_MS - (1 << 40) + 720_000 + 30_000, Quality.SYNCED)
    tops = rng.choices((0, 15, 255, 32_767), k=2)
    values = (tuple(rng.choice((top, rng.randint(0, top))) for _ in range(12)) for top in tops)
    lines = tuple(Line(n, 1, 2, counts) for n, counts in enumerate(values))
    assert cells_of(span, 60) == 6
    return encode_counter(Counts(span, 60, lines), boot_id=rng.getrandbits(64), seq=1, ordinal=1)


def _jobs(frames: list[bytes], rng: random.Random) -> list[Job]:
    """Cut `frames` into batches, each frame with a place of its own."""
    return [
        (
            part := frames[at : at + BATCH],
            ext.pack_places([Place(rng.randrange(1 << 20), 7, 0, 1 << 60) for _ in part]),
        )
        for at in range(0, len(frames), BATCH)
    ]


def _readings(frames: list[bytes]) -> int:
    """Count cells times lines: both stand at fixed places of these frames."""
    return sum(int.from_bytes(frame[66:68], "little") * frame[68] for frame in frames)


def _ours(name: str, jobs: list[Job], *, readings: int) -> Row:
    outputs = _decode(jobs)
    assert all(record.status == 0 for record in outputs[0].frames())
    limit = readings / _best(lambda: _copy(jobs, outputs))
    value = readings / _best(lambda: _decode(jobs))
    return _row(name, value, limit / 1e6, "copying the same frames and rows once")


def _decode(jobs: list[Job]) -> list[Decoded]:
    decode = ext.decode_packed
    last = [decode(frames, packed) for frames, packed in jobs[-1:]]
    for frames, packed in jobs[:-1]:
        decode(frames, packed)
    return last


def _copy(jobs: list[Job], outputs: list[Decoded]) -> None:
    """Join each batch's frames and copy five buffers of its size: what cannot be avoided."""
    (out,) = outputs
    views = [memoryview(part) for part in out]
    for frames, _ in jobs:
        b"".join(frames)
        for view in views:
            bytes(view)


def _scan(jobs: list[Job], *, of: float, readings: int) -> Row:
    """The same frames' headers checked one by one: what `scan` costs the ingest beside it."""
    value = readings / _best(lambda: [ext.scan(frames) for frames, _ in jobs])
    return _row("decode.mix.scan", value, of, "decode.mix.ours")


def _reference(jobs: list[Job], *, of: float) -> Row:
    readings = sum(_readings(frames) for frames, _ in jobs)
    seconds = _best(
        lambda: [reference.decode_packed(frames, packed) for frames, packed in jobs], passes=2
    )
    return _row("decode.mix.reference", readings / seconds, of, "decode.mix.ours")


def _peers() -> Iterator[tuple[str, float]]:
    """Yield what others make of frames of 120 fixed readings, none of them checked."""
    rng = random.Random(7)
    readings = [(60 * i, rng.randrange(9), rng.randrange(9)) for i in range(PEER_READINGS)]
    fixed = [b"".join(RECORD.pack(*reading) for reading in readings)] * BATCH
    packed = [msgpack.packb(readings)] * BATCH
    record = construct.Struct(
        "at" / construct.Int32ul, "entered" / construct.Int16ul, "left" / construct.Int16ul
    )
    compiled = construct.Array(PEER_READINGS, record).compile()
    source = np.dtype([("at", "<u4"), ("entered", "<u2"), ("left", "<u2")])
    target = np.dtype([("n0", ">i4"), ("entered", ">i2"), ("n1", ">i4"), ("left", ">i2")])
    cells = np.full(PEER_READINGS, 2, dtype=target)

    def numpy() -> None:
        for frame in fixed:
            found = np.frombuffer(frame, source)
            cells["entered"] = found["entered"]
            cells["left"] = found["left"]
            cells.tobytes()

    peers: list[tuple[str, Callable[[], object]]] = [
        ("struct", lambda: [list(RECORD.iter_unpack(frame)) for frame in fixed]),
        ("construct.compiled", lambda: [compiled.parse(frame) for frame in fixed[:16]]),
        ("msgpack", lambda: [msgpack.unpackb(frame, use_list=False) for frame in packed]),
        ("numpy.copy_cells", numpy),
    ]
    for name, work in peers:
        count = PEER_READINGS * (16 if name.startswith("construct") else BATCH)
        yield name, count / _best(work, passes=5)


def _best(work: Callable[[], object], *, passes: int = PASSES) -> float:
    """Return the seconds of the quickest pass: `passes` of them, more while they are short."""
    seconds: list[float] = []
    while len(seconds) < passes or (sum(seconds) < ENOUGH_S and len(seconds) < 50 * passes):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _row(name: str, value: float, limit: float, limit_name: str) -> Row:
    return {
        "name": name,
        "value": value / 1e6,
        "unit": "M readings/s",
        "limit": limit,
        "ratio": value / 1e6 / limit,
        "limit_name": limit_name,
    }


def main() -> int:
    """Print the rows."""
    for row in run():
        limit, ratio = row["limit"] or math.nan, row["ratio"] or math.nan
        sys.stdout.write(
            f"{row['name']:28} {row['value']:9.2f} {row['unit']}"
            f"   {ratio:7.1%} of {limit:.1f} ({row['limit_name']})\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
