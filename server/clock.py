"""Time as an argument: what the server believes it is, so that tests decide it.

Ingest, rollups and the API read the time of day no other way.
"""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time."""

    def now_ms(self) -> int:
        """Return UTC in milliseconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never jump, for durations only."""
        ...


class SystemClock:
    """The host's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._monotonic = 0.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Move both times forward."""
        self._now_ms += round(seconds * 1000)
        self._monotonic += seconds


def at(ms: int) -> datetime:
    """Return UTC milliseconds as a datetime."""
    return datetime.fromtimestamp(ms / 1000, UTC)
