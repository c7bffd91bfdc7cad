"""Answers to a device's greeting: where the server stands in each boot that the device holds.

Only this answer may move an agent's mark back, after the database was restored; so it is read
from the database, never from memory. What memory holds against it is forgotten: the agent will
send again what the database has lost, and memory would take that for repeats, and receipt it.
A boot that we do not know is answered so; nothing is made. A closed one is known, and stays closed.
A hello also brings the offsets of boots that had no clock: what of them is held undated is then
placed (see `undated`). Each hello, will and goodbye is noted for presence (`server.health`); the
two last are answered to nobody.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import asyncpg

from protocol.frame import VERSION, FrameError, Quality, signed
from protocol.identity import DeviceId
from protocol.session import (
    FAILED,
    WILL,
    Answer,
    BootCursor,
    Hello,
    decode_hello,
    encode_answer,
    read_goodbye,
)
from protocol.topics import Leg, topic
from server import log, metrics
from server.clock import Clock, at
from server.db.engine import data_at_fault
from server.health import sessions
from server.health.presence import Kind, Said
from server.health.sessions import Told
from server.ingest.mqtt import publish_head
from server.ingest.places import MAX_SEQ, Device
from server.ingest.strays import Sampler
from server.provisioning.clones import suspect_clone

VERSIONS = frozenset({VERSION})
RUNNING = 4  # boots remembered to tell one device from two
_log = log.get("ingest")

_LEARN = """
with v as (select * from unnest($1::int[], $2::bigint[], $3::int[], $4::bigint[])
    v (device, boot_id, quality, offset_ms)),
closed as (
  update closed_boots b set quality = v.quality, offset_ms = v.offset_ms from v
  where b.device_id = v.device and b.boot_id = v.boot_id and v.quality >= b.quality
    and (b.offset_ms is distinct from v.offset_ms or b.quality <> v.quality))
update boots b set quality = v.quality, offset_ms = v.offset_ms from v
where b.device_id = v.device and b.boot_id = v.boot_id and v.quality >= b.quality
  and (b.offset_ms is distinct from v.offset_ms or b.quality <> v.quality)
"""

_GREETED = "update devices set greeted_at = $2 where id = any($1::int[]) and greeted_at is null"

_STAND = """
select b.device_id, b.boot_id, b.next_seq, b.digest, b.quality > 0 and exists (
    select from undated_frames u where u.boot = b.id and u.reason = 'undated') as placeable
from rows from (unnest($1::int[]), unnest($2::bigint[])) v (device, boot_id)
join all_boots b on b.device_id = v.device and b.boot_id = v.boot_id
"""


async def answer(
    connection: asyncpg.Connection,
    hellos: Sequence[tuple[Device, bytes]],
    *,
    dataset: int,
    clock: Clock,
    sampler: Sampler,
) -> tuple[list[bytes], list[tuple[Device, int]]]:
    """Return the answers, ready to publish, and the (device, boot id) that can be placed now."""
    greetings, told = await _read(connection, hellos, clock=clock, sampler=sampler)
    await _note(connection, told)
    if not greetings:
        return [], []
    await connection.execute(_GREETED, [device.row for device, _ in greetings], at(clock.now_ms()))
    await _learn(connection, greetings)
    stands = await _stand(connection, greetings)
    now_ms = clock.now_ms()
    packets: list[bytes] = []
    for device, hello in greetings:
        _forget_what_differs(device, hello, stands)
        frame = _answered(device, hello, stands, dataset=dataset, now_ms=now_ms)
        packets.append(publish_head(topic(DeviceId(device.name), Leg.RECEIPT), len(frame)) + frame)
    metrics.HELLOS.inc(len(packets))
    by_row = {device.row: device for device, _ in greetings}
    placeable = [(by_row[row], boot) for (row, boot), stand in stands.items() if stand[2]]
    return packets, placeable


async def _read(
    connection: asyncpg.Connection,
    hellos: Sequence[tuple[Device, bytes]],
    *,
    clock: Clock,
    sampler: Sampler,
) -> tuple[list[tuple[Device, Hello]], list[Told]]:
    """Return the greetings, which are answered, and all that was said of presence."""
    greetings: list[tuple[Device, Hello]] = []
    told: list[Told] = []
    for device, frame in hellos:
        try:
            hello = decode_hello(frame)
        except FrameError as error:
            _log.warning("hello refused", device=device.name, reason=error.reason.name)
            metrics.FRAMES_DROPPED.labels("hello").inc()
            continue
        if not hello.agent.isprintable():  # it is stored and shown, and no text holds a zero byte
            _log.warning("hello refused", device=device.name, reason="unprintable name")
            metrics.FRAMES_DROPPED.labels("hello").inc()
            continue
        kept = sampler.wants(f"presence {device.name}")
        told.append(replace(_told(device, frame, hello, clock), kept=kept))
        if told[-1].said.kind is not Kind.HELLO:
            _log.info("device gone", device=device.name, said=hello.agent)
            continue
        greetings.append((device, hello))
        another = _is_another(device, int.from_bytes(frame[8:16], "little"))
        if another and sampler.wants(f"cloned {device.name}"):
            epochs = (f"{hello.nonce >> 32:08x}", *(f"{b:016x}" for b in device.running))
            detail = {"connection": epochs[0], "boots": " ".join(epochs[1:])}
            await suspect_clone(connection, device.row, detail, at(clock.now_ms()))
    return greetings, told


async def _note(connection: asyncpg.Connection, told: Sequence[Told]) -> None:
    """Note what was said for presence. If that breaks, everybody is answered all the same."""
    try:
        await sessions.note(connection, told)
    except Exception as error:
        if not data_at_fault(error):
            raise
        metrics.FRAMES_DROPPED.labels("presence").inc(len(told))
        _log.exception("presence not noted", devices=len(told))


def _told(device: Device, frame: bytes, hello: Hello, clock: Clock) -> Told:
    """Return what a hello says of its connection, whose epoch is its nonce's upper half."""
    epoch, now = hello.nonce >> 32, at(clock.now_ms())
    goodbye = read_goodbye(hello.agent)
    if hello.agent == WILL or (goodbye is not None and goodbye.reason == FAILED):
        return Told(device.row, Said(Kind.WILL, epoch, now, FAILED if goodbye else ""))
    if goodbye is not None:
        until = now + timedelta(seconds=goodbye.back_s) if goodbye.back_s else None
        return Told(device.row, Said(Kind.BYE, epoch, now, goodbye.reason, until))
    boot_id = signed(int.from_bytes(frame[8:16], "little"), 64)
    ordinal = int.from_bytes(frame[20:24], "little")
    return Told(device.row, Said(Kind.HELLO, epoch, now), hello.agent, boot_id, ordinal)


def _answered(
    device: Device,
    hello: Hello,
    stands: dict[tuple[int, int], tuple[int, int, bool]],
    *,
    dataset: int,
    now_ms: int,
) -> bytes:
    """Return the answer to a greeting: of each of its boots, how far it is stored."""
    keys = [(boot.boot_id, (device.row, signed(boot.boot_id, 64))) for boot in hello.boots]
    cursors = tuple(
        BootCursor(boot_id, *stands.get(key, (0, 0, False))[:2], key in stands)
        for boot_id, key in keys
    )
    version = max(VERSIONS & set(hello.versions), default=0)
    return encode_answer(Answer(hello.nonce, dataset, now_ms, version, cursors))


def _forget_what_differs(
    device: Device, hello: Hello, stands: dict[tuple[int, int], tuple[int, int, bool]]
) -> None:
    for held in hello.boots:
        boot = device.boots.get(held.boot_id)
        next_seq, *_ = stands.get((device.row, signed(held.boot_id, 64)), (0, 0, False))
        if boot is not None and min(boot.cursor.next_seq, MAX_SEQ) != next_seq:
            boot.forget()


def _is_another(device: Device, boot_id: int) -> bool:
    """True if a boot greets again after a later one did: two machines share the identity."""
    if device.running and device.running[-1] == boot_id:
        return False
    again = boot_id in device.running
    rest = tuple(b for b in device.running if b != boot_id)
    device.running = (*rest, boot_id)[-RUNNING:]
    return again


async def _learn(connection: asyncpg.Connection, greetings: Sequence[tuple[Device, Hello]]) -> None:
    await learn(
        connection,
        [
            (device.row, signed(b.boot_id, 64), int(b.quality), b.offset_ms)
            for device, hello in greetings
            for b in hello.boots
            if b.quality is not Quality.NONE
        ],
    )


async def learn(
    connection: asyncpg.Connection, offsets: Sequence[tuple[int, int, int, int]]
) -> None:
    """Record boots' offsets: (device row, signed boot id, quality, offset_ms); the better stays."""
    if offsets:
        await connection.execute(_LEARN, *zip(*offsets, strict=True))


async def _stand(
    connection: asyncpg.Connection, greetings: Sequence[tuple[Device, Hello]]
) -> dict[tuple[int, int], tuple[int, int, bool]]:
    pairs = {
        (device.row, signed(b.boot_id, 64)) for device, hello in greetings for b in hello.boots
    }
    if not pairs:
        return {}
    devices, boots = zip(*pairs, strict=True)
    rows = await connection.fetch(_STAND, devices, boots)
    return {
        (r["device_id"], r["boot_id"]): (min(r["next_seq"], MAX_SEQ), r["digest"], r["placeable"])
        for r in rows
    }
