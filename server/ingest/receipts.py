"""Receipts, as the hot path makes them: whole MQTT packets, equal to `encode_receipt`'s frames."""

import struct
from collections.abc import Iterable

from ext import crc32c
from protocol.frame import CRITICAL, HEADER, MAGIC, SECTION, VERSION, Kind, Section
from server.ingest.places import MAX_SEQ, RECEIPT_BYTES, Boot

_BODY = struct.Struct("<QQI")
_SECTION_HEAD = SECTION.pack(Section.RECEIPT, CRITICAL, _BODY.size)


def receipts(boots: Iterable[Boot], *, dataset: int, server_ms: int) -> list[bytes]:
    """Return a receipt for each boot's cursor, ready to publish."""
    head, body, checksum = HEADER.pack, _BODY.pack, crc32c
    packets: list[bytes] = []
    for boot in boots:
        cursor = boot.cursor
        payload = _SECTION_HEAD + body(dataset, server_ms, cursor.digest)
        start = head(
            MAGIC,
            VERSION,
            Kind.RECEIPT,
            RECEIPT_BYTES,
            boot.boot_id,
            min(cursor.next_seq, MAX_SEQ),
            0,
            checksum(payload),
            0,
        )[:28]
        packets.append(
            b"".join(
                (boot.device.receipt_head, start, checksum(start).to_bytes(4, "little"), payload)
            )
        )
    return packets
