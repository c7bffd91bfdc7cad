"""Who a device is: its id, made by the server, and nothing the device itself may choose."""

import re
from typing import NewType

DeviceId = NewType("DeviceId", str)

_DEVICE_ID = re.compile(r"[a-z0-9][a-z0-9-]{6,34}[a-z0-9]")


def device_id(text: str) -> DeviceId:
    """Return `text` as a device id: 8 to 36 of a-z, 0-9 and inner hyphens; else ValueError."""
    if not _DEVICE_ID.fullmatch(text):
        raise ValueError(f"a device id is 8 to 36 of a-z, 0-9 and '-'; got {text[:64]!r}")
    return DeviceId(text)
