"""Frames that could not be read: list them, explain them, and drive them in again after a fix.

A re-drive fills exactly the gap that its frame left, once, as a revision of the buckets it changes;
the people whom the next totals had told to be missing there are then no longer unplaced.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from ext import Place, Status, decode
from protocol.frame import (
    EXPLAIN,
    HEADER_BYTES,
    SECTION,
    FrameError,
    Kind,
    Quality,
    Reason,
    Section,
    Span,
    read_header,
)
from protocol.kiosk import decode_presses
from server.clock import SystemClock
from server.db.engine import transaction_on
from server.errors import ConflictError, NotFoundError, RefusedError
from server.ingest.places import CHANGED, EVER_MS, Boot, Cursor, Device, Digests, Places
from server.ingest.placing import Placed, place_frame, store
from server.ingest.rows import REFUSED_BY_DATABASE

_ENTRY = """
select id, received_at, device, boot, seq, reason, detail, frame, gap,
  redriven_at is not null as redriven from quarantine
"""
_LIST = f"""
{_ENTRY} where ($1::text is null or device = $1) and ($2 or redriven_at is null)
order by received_at desc limit $3
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A quarantined frame."""

    id: int
    received_at: datetime
    device: str
    boot: int | None
    seq: int | None
    reason: int
    detail: str
    frame: bytes
    gap: int | None
    redriven: bool


def reason_name(reason: int) -> str:
    """Return a reason's name, also of the one that is not the wire's."""
    if reason == REFUSED_BY_DATABASE:
        return "REFUSED_BY_DATABASE"
    try:
        return Reason(reason).name
    except ValueError:
        return f"REASON_{reason}"


async def get(connection: asyncpg.Connection, entry: int, *, lock: bool = False) -> Entry:
    """Return one entry; NotFoundError."""
    row = await connection.fetchrow(f"{_ENTRY} where id = $1 {'for update' if lock else ''}", entry)
    if row is None:
        raise NotFoundError(f"no quarantined frame {entry}")
    return Entry(**row)


async def listed(
    connection: asyncpg.Connection, *, device: str | None, redriven: bool, limit: int
) -> list[Entry]:
    """Return the newest entries, of one device or all; also the `redriven` ones if wanted."""
    return [Entry(**row) for row in await connection.fetch(_LIST, device, redriven, limit)]


def explain(entry: Entry) -> str:
    """Return why a frame is here, and its bytes with what each part is."""
    why = EXPLAIN.get(Reason(entry.reason)) if entry.reason in list(Reason) else None
    lines = [
        f"frame {entry.id} of {entry.device}, seq {entry.seq}: {reason_name(entry.reason)}",
        why or "the database refused what it says",
    ]
    if entry.detail and entry.detail != why:
        lines.append(entry.detail)
    for name, data in _parts(entry.frame):
        lines.append(f"{name}:")
        lines += [f"    {data[at : at + 16].hex(' ')}" for at in range(0, min(len(data), 512), 16)]
        if len(data) > 512:
            lines.append(f"    ... {len(data) - 512} more bytes")
    return "\n".join(lines)


def _parts(frame: bytes) -> Iterator[tuple[str, bytes]]:
    """Take a frame apart as far as it can be; what remains comes as it is."""
    try:
        header = read_header(frame)
    except FrameError as error:
        yield f"header, not to be believed ({error.reason.name})", frame[:HEADER_BYTES]
        yield "rest", frame[HEADER_BYTES:]
        return
    kind = Kind(header.kind).name if header.kind in list(Kind) else f"unknown kind {header.kind}"
    yield (
        f"header: version {header.version}, {kind}, {header.length} bytes claimed, "
        f"{len(frame)} here, boot {header.boot_id:016x}, seq {header.seq}",
        frame[:HEADER_BYTES],
    )
    at = HEADER_BYTES
    while at + SECTION.size <= len(frame):
        number, flags, length = SECTION.unpack_from(frame, at)
        name = Section(number).name if number in list(Section) else f"unknown type {number}"
        short = "" if at + SECTION.size + length <= len(frame) else ", cut off"
        yield (
            f"section {name}, {'critical' if flags & 1 else 'optional'}, {length} bytes{short}",
            frame[at : at + SECTION.size + length],
        )
        at += SECTION.size + length
    if at < len(frame):
        yield "trailing bytes", frame[at:]


async def redrive(connection: asyncpg.Connection, entry: int, *, now_ms: int) -> bool:
    """Read a frame again and fill its gap with it; False if that was done before.

    RefusedError if it still cannot be read or placed; ConflictError if it left no gap.
    """
    async with transaction_on(connection, "redrive"):
        found = await get(connection, entry, lock=True)
        if found.redriven:
            return False
        if found.boot is None or found.gap is None:
            raise ConflictError(f"frame {entry} stands in no sequence: its header is broken")
        device = await _device(connection, found.device)
        boot, offset_ms = await _lock(connection, found, device)
        open_ = await connection.fetchval(
            "select filled_at is null from gaps where id = $1 for update", found.gap
        )
        if not open_:
            return False
        sums, answers = _sums(found.frame)
        turn = Placed()
        place_frame(turn, boot, found.frame, offset_ms=offset_ms, now_ms=now_ms)
        if not turn.done:
            raise RefusedError("unplaceable", f"frame {entry} has no time that can be believed")
        await store(connection, boot, turn, revise=True)
        await _settle_totals(connection, found, boot, sums=sums, answers=answers)
        await connection.execute("update gaps set filled_at = now() where id = $1", found.gap)
        await connection.execute(
            "update quarantine set redriven_at = now() where id = $1", found.id
        )
        await connection.execute("select pg_notify($1, $2)", CHANGED, found.device)
    return True


async def _device(connection: asyncpg.Connection, name: str) -> Device:
    device = await Places(SystemClock()).read(connection, name)
    if device is None:
        raise NotFoundError(f"device {name} is no more")
    return device


async def _lock(
    connection: asyncpg.Connection, found: Entry, device: Device
) -> tuple[Boot, int | None]:
    """Lock the boot, and make what ingest remembers of it outdated."""
    version = await connection.fetchval(
        "update devices set assignment_version = assignment_version + 1 where id = $1 "
        "returning assignment_version",
        device.row,
    )
    await connection.execute(
        "update boots set assignment_version = $2 where device_id = $1", device.row, version
    )
    row = await connection.fetchrow(
        "select boot_id, ordinal, quality, offset_ms from boots where id = $1", found.boot
    )
    assert row is not None
    assert found.boot is not None
    boot_id = row["boot_id"] % (1 << 64)
    boot = Boot(found.boot, device, boot_id, row["ordinal"], Cursor(), Digests())
    device.stored_to_ms = max(device.stored_to_ms, -EVER_MS)
    return boot, row["offset_ms"] if row["quality"] else None


def _sums(frame: bytes) -> tuple[list[int], dict[tuple[int, int], int]]:
    """Return what a frame adds, by line and by answer; RefusedError if it is still unreadable."""
    decoded = decode([frame], [Place(0, 0, 0, 0)])
    (record,) = decoded.frames()
    if record.status == Status.REFUSED:
        reason = Reason(record.reason)
        raise RefusedError("unreadable", f"{reason.name}: {EXPLAIN[reason]}")
    answers: dict[tuple[int, int], int] = {}
    if record.kind == Kind.KIOSK:
        section = memoryview(frame)[record.section_at : record.section_end]
        span = Span(0, record.end_ms - record.start_ms, 0, Quality.NONE)
        for press in decode_presses(section, span).presses:
            key = (press.question, press.answer)
            answers[key] = answers.get(key, 0) + 1
    return list(record.sums), answers


async def _settle_totals(
    connection: asyncpg.Connection,
    found: Entry,
    boot: Boot,
    *,
    sums: list[int],
    answers: dict[tuple[int, int], int],
) -> None:
    """Take the frame's people out of the unplaced ones, or out of those the totals will miss."""
    holder = await connection.fetchrow(
        "select id, counts, answers from gaps where boot = $1 and reason = 'quarantined' "
        "and from_seq >= $2 and (counts <> array_fill(0::bigint, array[8]) or answers <> '{}') "
        "order by from_seq limit 1 for update",
        boot.row,
        found.seq,
    )
    if holder is not None:
        left = _subtract(holder["answers"], answers)
        await connection.execute(
            "update gaps set counts = $2, answers = $3 where id = $1",
            holder["id"],
            [unplaced - counted for unplaced, counted in zip(holder["counts"], sums, strict=True)],
            left,
        )
        return
    row = await connection.fetchrow(
        "select totals, answers, totals_open from boots where id = $1", boot.row
    )
    assert row is not None
    if row["totals_open"]:
        minus = {key: -count for key, count in answers.items()}
        await connection.execute(
            "update boots set totals = $2, answers = $3 where id = $1",
            boot.row,
            [(t + s) % (1 << 32) for t, s in zip(row["totals"], sums, strict=True)],
            _subtract(row["answers"], minus),
        )


def _subtract(flat: Sequence[int], answers: dict[tuple[int, int], int]) -> list[int]:
    """Return flat (question, answer, number) less `answers`; what comes to zero is left out."""
    numbers = {(q, a): n for q, a, n in zip(flat[::3], flat[1::3], flat[2::3], strict=True)}
    for key, count in answers.items():
        numbers[key] = numbers.get(key, 0) - count
    return [n for key, number in sorted(numbers.items()) if number for n in (*key, number)]
