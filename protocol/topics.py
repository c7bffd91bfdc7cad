"""MQTT topics: `v1/<shard>/<device>/up|down|receipt`, all exact, never a wildcard for a device.

The shard is the first byte of SHA-256 of the device id in two hexadecimal digits, so that ingest
workers can share the fleet. A frame on another shard than its device's is dropped and counted.
"""

import hashlib
from enum import Enum
from typing import NamedTuple

from protocol.identity import DeviceId, device_id

VERSION = "v1"
MAX_TOPIC = 64  # bytes; the longest valid one has 50
ALL_UP = f"{VERSION}/+/+/up"


class Leg(Enum):
    """What a topic carries, seen from the device."""

    UP = "up"
    DOWN = "down"
    RECEIPT = "receipt"


class Topic(NamedTuple):
    """A parsed topic."""

    shard: str
    device: DeviceId
    leg: Leg


def shard_of(device: str) -> str:
    """Return the device's shard, '00' to 'ff'."""
    return hashlib.sha256(device.encode()).hexdigest()[:2]


def topic(device: DeviceId, leg: Leg) -> str:
    """Return the one topic of `device` for `leg`."""
    return f"{VERSION}/{shard_of(device)}/{device}/{leg.value}"


def parse(text: str) -> Topic:
    """Read a topic; ValueError if it is not one of ours or its shard is not its device's."""
    parts = text.split("/") if len(text) <= MAX_TOPIC else []
    if len(parts) != 4 or parts[0] != VERSION:
        raise ValueError(f"expected v1/<shard>/<device>/<leg>, got {text[:MAX_TOPIC]!r}")
    device = device_id(parts[2])
    if parts[1] != shard_of(device):
        raise ValueError(f"shard of {device} is {shard_of(device)}, not {parts[1]!r}")
    return Topic(parts[1], device, Leg(parts[3]))
