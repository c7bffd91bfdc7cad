"""A batch of messages, read: whose each is, what its header says, and what it decodes to.

Here a batch only becomes orderly; what of it is next in sequence is decided in `plan`. Nothing
here waits; what must be read from the database first is asked for by `Places.due` and `unseen`.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ext import RECORD, Decoded, Status, decode_packed, place, scan
from protocol.frame import Kind, Reason
from protocol.topics import MAX_TOPIC, parse
from server import metrics
from server.ingest import canary
from server.ingest.mqtt import Inbound
from server.ingest.places import (
    AHEAD_MS,
    Boot,
    Cursor,
    Device,
    Digests,
    Piece,
    Places,
    Registered,
    covering,
    place_in,
)

RATE = 100.0  # frames a second that one device may send for long
BURST = 4096.0  # and at once: more than a day of five-minute frames of a catching-up device
HELLO_BYTES = 150  # a token: a greeting costs by the boots it lists, of which there may be 512
CONDEMNED = 100.0  # tokens: a frame that is at fault takes transactions of its own
MAX_STRAYS = 8  # messages of a batch that are nobody's and worth looking at
MAX_BOOTS = 256  # cursors kept in memory for one device; older ones are read again

# Positions in an unpacked RECORD (ext.layout.Record), read as plain tuples on the hot path.
STATUS, REASON, KIND, LINES, QUALITY, SEQ, BOOT_ID, ORDINAL, DIGEST = range(9)
START_MS, END_MS, ROWS_AT, ROWS_END, DELTAS_AT, DELTAS_END, SECTION_AT, SECTION_END = range(9, 17)
TOTALS, SUMS = slice(17, 25), slice(25, 33)

FrameRecord = tuple[int, ...]
_PLACE = struct.Struct("<iiqq")  # ext.pack_places, without a tuple a frame


@dataclass(slots=True)
class Refused:
    """A message whose header cannot be believed: no cursor moves for it."""

    device: Device
    frame: bytes
    reason: Reason


@dataclass(slots=True)
class Batch:
    """Messages in order: `frames` stand boot by boot, in each by `seq` (see `runs`).

    `registered` is by run: what the batch was placed by. `barred`: of devices not admitted.
    """

    messages: Sequence[Inbound]
    now_ms: int
    frames: list[bytes] = field(default_factory=list)
    boots: list[Boot] = field(default_factory=list)
    runs: list[tuple[Boot, int, int]] = field(default_factory=list)
    records: list[FrameRecord] = field(default_factory=list)
    decoded: Decoded | None = None
    pieces: list[Piece] = field(default_factory=list)
    split: dict[int, tuple[Decoded, list[Piece]]] = field(default_factory=dict)
    hellos: list[tuple[Device, bytes]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    barred: list[tuple[Device, bytes]] = field(default_factory=list)
    canaries: list[tuple[int, bytes]] = field(default_factory=list)  # by lane
    registered: list[Registered] = field(default_factory=list)
    strays: list[tuple[str, bytes]] = field(default_factory=list)
    condemned: dict[int, str] = field(default_factory=dict)


def sort_out(messages: Sequence[Inbound], places: Places, *, now_ms: int, now_s: float) -> Batch:
    """Read each message's topic and header; what is nobody's or out of place is dropped here."""
    batch = Batch(messages, now_ms)
    by_topic = places.by_topic
    runs: dict[Boot, list[tuple[int, int]]] = {}
    heads = scan([message[1] for message in messages])
    for at, (reason, kind, boot_id, seq, ordinal) in enumerate(heads):
        topic, frame, _ = messages[at]
        device = by_topic(topic)
        if device is None:
            _stray(batch, topic, frame)
        elif not _within_rate(device, now_s):
            _drop("rate")
        elif device.registered.revoked:
            _drop("revoked")
            if not reason and kind < 16:
                batch.barred.append((device, frame))
        elif reason:
            batch.refused.append(Refused(device, frame, Reason(reason)))
        elif kind < 16:
            boot = device.boots.get(boot_id)
            if boot is None:
                boot = remember(device, boot_id, ordinal)
            run = runs.get(boot)
            if run is None:
                runs[boot] = [(seq, at)]
            else:
                run.append((seq, at))
        elif kind == Kind.HELLO:
            device.tokens -= len(frame) / HELLO_BYTES
            batch.hellos.append((device, frame))
        else:
            _drop("kind")
    _arrange(batch, runs)
    return batch


def _arrange(batch: Batch, runs: dict[Boot, list[tuple[int, int]]]) -> None:
    frames, boots = batch.frames, batch.boots
    for boot, run in runs.items():
        if len(run) > 1:
            run.sort()
        start = len(frames)
        for _, at in run:
            frames.append(batch.messages[at][1])
            boots.append(boot)
        batch.runs.append((boot, start, len(frames)))


def _stray(batch: Batch, topic: bytes, payload: bytes) -> None:
    """Note a message of no device that we know, or of another's shard; or of ourselves."""
    if not topic:
        _drop("retained")
        return
    lane = canary.lane_of(topic)
    if lane is not None:
        batch.canaries.append((lane, payload))
        return
    try:
        parse(topic.decode())
        why = "unknown_device"
    except ValueError:
        why = "topic"
    _drop(why)
    if len(batch.strays) < MAX_STRAYS:
        batch.strays.append((why, topic[:MAX_TOPIC]))


def _drop(why: str) -> None:
    metrics.FRAMES_DROPPED.labels(why).inc()


def _within_rate(device: Device, now_s: float) -> bool:
    """Take a token of the device's bucket; False if it is empty."""
    if device.tokens < 1:
        device.tokens = min(BURST, device.tokens + (now_s - device.tokens_at) * RATE)
        device.tokens_at = now_s
        if device.tokens < 1:
            return False
    device.tokens -= 1
    return True


def charge(device: Device) -> None:
    """Take what a frame at fault has cost off its device's bucket, down to a burst below none."""
    device.tokens = max(device.tokens - CONDEMNED, -BURST)


def remember(device: Device, boot_id: int, ordinal: int) -> Boot:
    """Return a boot that is not in memory yet, to be looked up (see `unseen`)."""
    boot = device.boots[boot_id] = Boot(0, device, boot_id, ordinal, Cursor(), Digests())
    return boot


def forget_old(batch: Batch) -> None:
    """Keep no more than MAX_BOOTS of a device; to be called when the batch is done."""
    for boot, _, _ in batch.runs:
        boots = boot.device.boots
        while len(boots) > MAX_BOOTS:
            del boots[next(iter(boots))]


def unseen(batch: Batch) -> list[Boot]:
    """Return the boots of the batch whose cursor must be read or made first."""
    return [boot for boot, _, _ in batch.runs if boot.row == 0]


def decode(batch: Batch) -> None:
    """Decode the frames where their devices stood; what fits in no one place is split or held."""
    now_ms = batch.now_ms
    batch.registered = [boot.device.registered for boot, _, _ in batch.runs]
    batch.pieces = []
    for boot, start, end in batch.runs:
        batch.pieces += [boot.device.piece()] * (end - start)
    _decode(batch)
    if Status.HELD not in {record[STATUS] for record in batch.records}:
        return
    elsewhere = False
    for at in _held(batch):
        found = _pieces_of(batch, at)
        if len(found) == 1 and found[0] is not batch.pieces[at]:
            batch.pieces[at] = batch.boots[at].device.usual = found[0]
            elsewhere = True
    if elsewhere:
        _decode(batch)
    for at in _held(batch):
        found = _pieces_of(batch, at)
        if found:
            places = [place_in(batch.boots[at].row, piece, now_ms=now_ms) for piece in found]
            batch.split[at] = place(batch.frames[at], places), found


def _decode(batch: Batch) -> None:
    pack, limit = _PLACE.pack, batch.now_ms + AHEAD_MS
    packed: list[bytes] = []
    same, same_piece, place_ = None, None, b""  # a run's frames stood at one place, mostly
    for boot, piece in zip(batch.boots, batch.pieces, strict=True):
        if boot is not same or piece is not same_piece:
            same, same_piece = boot, piece
            place_ = pack(boot.row, piece[0], piece[1], piece[2] if piece[2] < limit else limit)
        packed.append(place_)
    batch.decoded = decode_packed(batch.frames, b"".join(packed))
    batch.records = list(RECORD.iter_unpack(batch.decoded.records))


def _held(batch: Batch) -> Iterable[int]:
    """Positions of frames that are dated but lie in no one place yet."""
    return [
        at
        for at, record in enumerate(batch.records)
        if record[STATUS] == Status.HELD and record[QUALITY]
    ]


def _pieces_of(batch: Batch, at: int) -> list[Piece]:
    record = batch.records[at]
    return covering(
        batch.boots[at].device.registered.pieces,
        first_ms=first_ms(batch.frames[at], record),
        end_ms=record[END_MS],
        now_ms=batch.now_ms,
    )


def first_ms(frame: bytes, record: FrameRecord) -> int:
    """Return where a dated frame's first reading begins: its interval, not its span, counts."""
    if record[KIND] != Kind.COUNTER:
        return record[START_MS]
    at = record[SECTION_AT]
    step = int.from_bytes(frame[at : at + 2], "little") * 1000
    return record[START_MS] // step * step
