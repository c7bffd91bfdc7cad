"""Two clocks: one that never jumps, and what is known of UTC beside it.

Decided here:
- Everything is measured in monotonic milliseconds of CLOCK_BOOTTIME (it runs on through suspend).
- `offset()` is UTC minus monotonic, with its quality. SYNCED: the kernel says that a time service
  disciplines the clock. ESTIMATED: the clock is plausible, or the server told the time. NONE:
  neither, as on a board without battery that woke up in 1970.
- Plausible means: not before max(build date, last persisted time), and not ten years after it.
- An unsynced clock that the server contradicts by more than 5 s is not believed.
"""

import asyncio
import ctypes
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from protocol.frame import Quality

BUILD_MS = 1_793_491_200_000  # 2026-11-01, raised with each release
TEN_YEARS_MS = 10 * 366 * 86_400_000
SERVER_TOLERANCE_MS = 5_000
_KERNEL_BOOT = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised

Offset = tuple[Quality, int]


class Clock(Protocol):
    """What the agent knows of time. Subclass it to inherit the two optional parts."""

    def monotonic_ms(self) -> int:
        """Return milliseconds on a clock that never jumps."""
        ...

    def offset(self) -> Offset:
        """Return the quality and UTC minus monotonic in ms (0 when the quality is NONE)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait on this clock."""
        ...

    @property
    def epoch(self) -> str:
        """Name the stretch within which `monotonic_ms` is one line; '' if it can't be named."""
        return ""

    def learn(self, server_ms: int, *, rtt_ms: int) -> None:
        """Hear the server's time, `rtt_ms` after asking for it."""
        return


class SystemClock(Clock):
    """The device's own clocks. `floor_ms` is the last persisted UTC time."""

    def __init__(
        self,
        *,
        floor_ms: int = 0,
        utc_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        synced: Callable[[], bool] | None = None,
    ) -> None:
        self._floor_ms = max(BUILD_MS, floor_ms)
        self._utc_ms = utc_ms
        self._synced = synced or kernel_synced
        self._epoch = _read(_KERNEL_BOOT)
        self._server: int | None = None

    @property
    def epoch(self) -> str:
        """The kernel's boot id: CLOCK_BOOTTIME is one line within it."""
        return self._epoch

    @property
    def floor_ms(self) -> int:
        """The earliest time that can be true: max(build date, last persisted time)."""
        return self._floor_ms

    def monotonic_ms(self) -> int:
        """Return CLOCK_BOOTTIME in ms."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def offset(self) -> Offset:
        """Return what is known of UTC now; see the module's rules."""
        utc = self._utc_ms()
        own = utc - self.monotonic_ms()
        if not self._floor_ms <= utc <= self._floor_ms + TEN_YEARS_MS:
            return (Quality.NONE, 0) if self._server is None else (Quality.ESTIMATED, self._server)
        if self._synced():
            return Quality.SYNCED, own
        if self._server is not None and abs(self._server - own) > SERVER_TOLERANCE_MS:
            return Quality.ESTIMATED, self._server
        return Quality.ESTIMATED, own

    def learn(self, server_ms: int, *, rtt_ms: int) -> None:
        """Remember the server's time, taken to be half a round trip old; ten seconds is too old."""
        if rtt_ms <= 10_000 and server_ms >= BUILD_MS:
            self._server = server_ms + rtt_ms // 2 - self.monotonic_ms()

    async def sleep(self, seconds: float) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(seconds)


class ManualClock(Clock):
    """Virtual time for tests and simulators: it stands still until it is moved."""

    def __init__(
        self, *, monotonic_ms: int = 0, utc_ms: int | None = None, quality: Quality = Quality.SYNCED
    ) -> None:
        self.now_ms = monotonic_ms
        self._offset: Offset = (
            (Quality.NONE, 0) if utc_ms is None else (quality, utc_ms - monotonic_ms)
        )
        self._epoch = uuid.uuid4().hex
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    @property
    def epoch(self) -> str:
        """A new name for each clock."""
        return self._epoch

    def monotonic_ms(self) -> int:
        """Return the virtual time."""
        return self.now_ms

    def offset(self) -> Offset:
        """Return what `set_utc` said last."""
        return self._offset

    def set_utc(self, utc_ms: int, quality: Quality = Quality.SYNCED) -> None:
        """Let it be `utc_ms` now: the clock steps."""
        self._offset = (quality, utc_ms - self.now_ms)

    def forget_utc(self) -> None:
        """Know nothing of UTC any more."""
        self._offset = (Quality.NONE, 0)

    def advance(self, ms: int) -> None:
        """Move on by `ms` and wake who waited for it."""
        self.now_ms += ms
        due = [future for when, future in self._sleepers if when <= self.now_ms]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > self.now_ms]
        for future in due:
            if not future.done():
                future.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has passed the moment."""
        future = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now_ms + round(seconds * 1000), future))
        await future


def kernel_synced() -> bool:
    """Return True if adjtimex(2) or systemd-timesyncd says that UTC is disciplined."""
    if _TIMESYNCD.exists():
        return True
    if _LIBC is None:
        return False
    state = _LIBC.adjtimex(ctypes.create_string_buffer(512))  # struct timex has 208; modes=0 reads
    return 0 <= int(state) < _TIME_ERROR


def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        _ = libc.adjtimex
    except (OSError, AttributeError):
        return None
    return libc


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


_LIBC = _libc()
