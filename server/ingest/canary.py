"""The canary: what the server says to itself through the broker, to know what it has heard. Pure.

It travels as a device's frames do, on the shards of each lane, from an identity that no device can
have. Once the batch that it came with is committed, everything said before it has been stored: the
least over the lanes is the watermark (`server.health`).
"""

from protocol.frame import VERSION, FrameError, Quality, Span
from protocol.session import Hello, decode_hello, encode_hello
from protocol.topics import VERSION as TOPICS
from protocol.topics import Leg

IDENTITY = "svc-canary"
NAME = "canary"
LANES = 2
ADDRESSES = tuple(f"{TOPICS}/{lane:02x}/{IDENTITY}/{Leg.UP.value}" for lane in range(LANES))
"""One of each lane: a device's lane goes by its shard's last digit (`listener`)."""
_LANE = {address.encode(): lane for lane, address in enumerate(ADDRESSES)}


def frame(now_ms: int) -> bytes:
    """Return a canary of this instant."""
    span = Span(0, 0, now_ms, Quality.SYNCED)
    return encode_hello(Hello(now_ms, (VERSION,), NAME, span, ()), boot_id=0, ordinal=0)


def lane_of(address: bytes) -> int | None:
    """Return the lane of a canary's topic, None if it is not one's."""
    return _LANE.get(address)


class Heard:
    """How far each lane has come; `mark` is the least, None until all have been heard."""

    def __init__(self) -> None:
        self._lanes: dict[int, int] = {}
        self.mark: int | None = None

    def take(self, lane: int, payload: bytes, *, now_ms: int) -> bool:
        """Take a canary whose batch is committed; True if the mark has moved.

        One that is not ours to read, or of a time that has not come, says nothing.
        """
        try:
            hello = decode_hello(payload)
        except FrameError:
            return False
        if hello.agent != NAME or hello.nonce > now_ms + 1000:
            return False
        self._lanes[lane] = max(hello.nonce, self._lanes.get(lane, 0))
        if len(self._lanes) < LANES:
            return False
        before, self.mark = self.mark, min(self._lanes.values())
        return self.mark != before
