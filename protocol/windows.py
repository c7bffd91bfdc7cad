"""Whether a device may restart itself now, by its assignment's windows alone. Pure; both sides.

The server chooses windows from opening hours, freezes and margins; the device looks again by its
own clock, right before it installs, so that an order which arrives late opens no door's counter
in the middle of the day. Times are UTC in ms; a window is [from, until).
"""

from collections.abc import Sequence

Window = tuple[int, int]


def fits(windows: Sequence[Window], *, at_ms: int, needs_ms: int) -> bool:
    """Whether all of what takes `needs_ms` from `at_ms` on lies within one window.

    No windows at all: at any time, which a server says only where a policy says so.
    """
    if not windows:
        return True
    return any(low <= at_ms and at_ms + needs_ms <= high for low, high in windows)


def wait_ms(windows: Sequence[Window], *, at_ms: int, needs_ms: int) -> int | None:
    """Return how long until it fits, 0 if it does now; None: in none of these windows any more."""
    if fits(windows, at_ms=at_ms, needs_ms=needs_ms):
        return 0
    starts = [low for low, high in windows if low > at_ms and low + needs_ms <= high]
    return min(starts) - at_ms if starts else None
