"""What belongs to one visitor at the kiosk: presses without 30 s of silence between them."""

IDLE_MS = 30_000


class Visits:
    """Number visits from 1 since the agent's start."""

    def __init__(self, *, idle_ms: int = IDLE_MS) -> None:
        self._idle_ms = idle_ms
        self._ordinal = 0
        self._last_ms: int | None = None

    def ordinal(self, now_ms: int) -> int:
        """Return the visit that a press at `now_ms` (monotonic) belongs to."""
        if self._last_ms is None or now_ms - self._last_ms >= self._idle_ms:
            self._ordinal += 1
        self._last_ms = now_ms
        return self._ordinal

    def reset(self) -> None:
        """End the visit: the screen went back to its first question."""
        self._last_ms = None
