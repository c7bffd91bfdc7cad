"""CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), as in RFC 3720 B.4."""


def _tables() -> list[list[int]]:
    first = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        first.append(crc)
    tables = [first]
    for _ in range(3):
        tables.append([first[crc & 0xFF] ^ (crc >> 8) for crc in tables[-1]])
    return tables


_T0, _T1, _T2, _T3 = _tables()


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of `data`; of b"123456789" it is 0xE3069283."""
    crc = 0xFFFFFFFF
    whole = len(data) & ~3
    words = memoryview(data)[:whole].cast("B").cast("I") if whole else ()
    for word in words:  # four bytes a step; the host is little-endian or swaps below
        crc ^= word if _LITTLE else int.from_bytes(word.to_bytes(4, "big"), "little")
        crc = _T3[crc & 0xFF] ^ _T2[crc >> 8 & 0xFF] ^ _T1[crc >> 16 & 0xFF] ^ _T0[crc >> 24]
    for byte in data[whole:]:
        crc = (crc >> 8) ^ _T0[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


_LITTLE = memoryview(b"\x01\x00").cast("H")[0] == 1
